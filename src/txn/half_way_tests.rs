//! Transactions where a batch changes one record: a decision meets a member that is about to stage something, when its
//! transaction knows of it already and its key does not yet.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::ManualClock;
use crate::lease::Released;
use crate::lease::rules::Credentials;
use crate::lease::testbed::{Meanwhile, Testbed, name, txn};
use crate::queue::testbed::{Bed, in_txn, queue};
use crate::store::fault::{Fault, FaultPlan, FaultStore, Operation};
use crate::store::memory::MemoryStore;
use crate::store::retry::Sleeper;
use crate::store::single::SingleRecordStore;
use crate::txn::tests::assert_nothing_left;

/// More calls of one kind than anything here needs.
const CALLS_MAX: u64 = 20;

/// Two keys of one transaction with something staged on each, and a third one that is about to follow.
fn held(bed: &Testbed) -> [Credentials; 3] {
    let held = ["a", "b", "c"].map(|key| bed.hold_in(key, &txn('t')));
    bed.update("a", &held[0], "1").unwrap();
    bed.update("b", &held[1], "2").unwrap();
    held
}

fn versions(bed: &Testbed) -> [i64; 3] {
    ["a", "b", "c"].map(|key| bed.record(key).version)
}

/// What a server does while this call of another one is on its way.
fn meanwhile(bed: &Testbed, operation: Operation, call: u64, happens: impl FnOnce() + Send + 'static) {
    let number = bed.faulty.calls(operation) + call;
    bed.faulty.inject(operation, number, Fault::Delay(Duration::ZERO));
    *bed.meanwhile.lock() = Some(Box::new(happens));
}

/// The transaction knows that the third key is about to stage something, and the server that was to do it is gone.
fn half_way() -> (Testbed, [Credentials; 3]) {
    let dying = Testbed::in_steps();
    let held = held(&dying);
    dying.die_after(1);
    dying.update("c", &held[2], "3").unwrap_err();
    (dying.another(), held)
}

#[test]
fn a_first_update_that_a_decision_overtakes_belongs_to_the_next_one() {
    for rolls_back in [false, true] {
        for operation in [Operation::Write, Operation::Read] {
            let mut met = 0;
            for call in 1..=CALLS_MAX {
                let bed = Testbed::in_steps();
                let held = held(&bed);
                let (decider, by) = (bed.another(), held[0].clone());
                meanwhile(&bed, operation, call, move || {
                    decider.leases.release(&name("a"), &by, rolls_back).unwrap();
                });
                let context = format!("{operation:?} {call}, rolls back: {rolls_back}");
                bed.update("c", &held[2], "3").expect(&context);
                if bed.meanwhile.lock().take().is_some() {
                    break;
                }
                met += 1;
                let decided = i64::from(!rolls_back);
                assert_eq!(versions(&bed), [decided, decided, 0], "{context}");
                assert_eq!(bed.read("c", &held[2]).unwrap().as_deref(), Some("3"), "{context}");
                let released = bed.leases.release(&name("c"), &held[2], false).unwrap();
                assert_eq!(released, Released::Done, "{context}");
                assert_eq!(versions(&bed), [decided, decided, 1], "{context}");
            }
            assert!((2..CALLS_MAX).contains(&met), "{operation:?} {met}");
        }
    }
}

/// The server that was to stage something is gone, and a decision comes, which dies anywhere itself. The holder goes on at
/// another server, and what it stages then is for the next decision.
#[test]
fn who_was_passed_by_half_way_goes_on_elsewhere() {
    for rolls_back in [false, true] {
        for writes in 0..CALLS_MAX {
            let (bed, held) = half_way();
            let decider = bed.another();
            decider.die_after(writes);
            let answer = decider.leases.release(&name("a"), &held[0], rolls_back);
            let context = format!("after {writes} writes, rolls back: {rolls_back}");
            bed.update("c", &held[2], "4").expect(&context);
            bed.leases.release(&name("c"), &held[2], false).expect(&context);
            // If nothing was decided before, this was the decision.
            let decided = bed.record("a").version;
            assert_eq!(versions(&bed), [decided, decided, 1], "{context}");
            if answer.is_ok() {
                assert_eq!(decided, i64::from(!rolls_back), "{context}");
            }
            for key in ["a", "b", "c"] {
                assert!(bed.record(key).lease.is_none(), "{context}: {key}");
            }
            assert_nothing_left(&bed);
        }
    }
}

/// One server is slow to carry a decision out. Meanwhile others have done it, and the holder that was passed by has gone on:
/// what it has staged since is none of that decision's business.
#[test]
fn who_comes_late_to_carry_a_decision_out_touches_nothing_of_the_next_one() {
    for rolls_back in [false, true] {
        for operation in [Operation::Write, Operation::Read] {
            let mut met = 0;
            for call in 1..=CALLS_MAX {
                let (bed, held) = half_way();
                let decider = bed.another();
                decider.die_after(1);
                decider.leases.release(&name("a"), &held[0], rolls_back).unwrap();
                let (slow, quick, by) = (bed.another(), bed.another(), held[2].clone());
                meanwhile(&slow, operation, call, move || {
                    quick.update("c", &by, "4").unwrap();
                });
                let decided = i64::from(!rolls_back);
                let context = format!("{operation:?} {call}, rolls back: {rolls_back}");
                // Reading is reason enough to carry it out.
                assert_eq!(slow.record("b").version, decided, "{context}");
                let is_met = slow.meanwhile.lock().take().is_none();
                if is_met {
                    met += 1;
                    assert_eq!(bed.read("c", &held[2]).unwrap().as_deref(), Some("4"), "{context}");
                } else {
                    bed.update("c", &held[2], "4").expect(&context);
                }
                bed.leases.release(&name("c"), &held[2], false).expect(&context);
                assert_eq!(versions(&bed), [decided, decided, 1], "{context}");
                assert_nothing_left(&bed);
                if !is_met {
                    break;
                }
            }
            assert!((3..CALLS_MAX).contains(&met), "{operation:?} {met}");
        }
    }
}

/// Half-way or not, a holder that rolls back or gives its lease up has no lease any more.
#[test]
fn who_gives_up_half_way_is_not_passed_by() {
    for rolls_back in [false, true] {
        for writes in 0..CALLS_MAX {
            let (bed, held) = half_way();
            let server = bed.another();
            server.die_after(writes);
            let answer = server.leases.release(&name("c"), &held[2], rolls_back);
            let context = format!("after {writes} writes, rolls back: {rolls_back}");
            if answer.is_ok() && writes == CALLS_MAX - 1 {
                assert!(bed.record("c").lease.is_none(), "{context}");
            }
            bed.leases.release(&name("c"), &held[2], rolls_back).expect(&context);
            assert!(bed.record("c").lease.is_none(), "{context}");
            bed.leases.release(&name("a"), &held[0], false).expect(&context);
            let decided = i64::from(!rolls_back);
            assert_eq!(versions(&bed), [decided, decided, 0], "{context}");
            assert_nothing_left(&bed);
        }
    }
}

/// Epochs are counted by leases: the next lease of the key begins anew, and knows nothing of a decision from before.
#[test]
fn a_lease_that_follows_one_that_was_passed_by_is_no_part_of_it() {
    let (bed, held) = half_way();
    bed.leases.release(&name("a"), &held[0], false).unwrap();
    assert_eq!(bed.record("c").lease.map(|lease| lease.epoch), Some(1));
    bed.clock.advance(Duration::from_secs(100));
    let by = bed.hold_in("c", &txn('t'));
    let again = bed.hold_in("a", &txn('t'));
    assert_eq!(bed.record("c").lease.map(|lease| lease.epoch), Some(0));
    bed.update("c", &by, "5").unwrap();
    bed.update("a", &again, "5").unwrap();
    bed.leases.release(&name("a"), &again, false).unwrap();
    assert_eq!(versions(&bed), [2, 1, 1]);
    assert_nothing_left(&bed);
}

/// The holder rolls back at one server while another one is about to stage something for it. The rollback covers that, also
/// if the server that took it down is gone.
#[test]
fn a_rollback_covers_what_its_own_holder_is_about_to_stage() {
    for writes in 1..CALLS_MAX {
        let bed = Testbed::in_steps();
        let held = held(&bed);
        let (other, by) = (bed.another(), held[2].clone());
        meanwhile(&bed, Operation::Write, 2, move || {
            other.die_after(writes);
            other.leases.release(&name("c"), &by, true).unwrap();
        });
        // It came too late, or was staged and dropped.
        let _ = bed.update("c", &held[2], "3");
        let record = bed.record("c");
        assert_eq!((record.lease, record.staged), (None, None), "after {writes} writes");
        assert_eq!(versions(&bed), [0, 0, 0], "after {writes} writes");
        assert_nothing_left(&bed);
    }
}

/// Living leases are counted, and lapsed ones swept, by what is listed.
#[test]
fn who_was_passed_by_stays_listed() {
    let (bed, held) = half_way();
    bed.leases.release(&name("a"), &held[0], false).unwrap();
    assert_eq!(bed.leases.count_living(10).unwrap(), 1);
    bed.clock.advance(Duration::from_secs(100));
    assert_nothing_left(&bed);
    assert!(bed.record("c").lease.is_none());
}

/// A message is listed as delivered into a transaction and is not yet, when another member decides. It is part of that
/// decision or of the next one, never of none.
#[test]
fn a_delivery_that_a_decision_overtakes_belongs_to_the_next_one() {
    for rolls_back in [false, true] {
        for operation in [Operation::Write, Operation::Read] {
            let mut met = 0;
            for call in 1..=CALLS_MAX {
                let (memory, clock) = (MemoryStore::new(), ManualClock::at_wall_ms(1_767_261_600_000));
                let over = |sleep: Sleeper| {
                    let single = Arc::new(SingleRecordStore::new(Arc::new(memory.handle())));
                    let delayed = Arc::new(FaultStore::new(single, FaultPlan::quiet(0), sleep));
                    let bed = Bed::over(delayed.clone(), clock.clone(), clock.clone(), FaultPlan::quiet(0));
                    (bed, delayed)
                };
                let decider = over(Arc::new(|_| ())).0;
                let id = decider.message();
                let (a, by) = decider.stage("a", Some(&txn('t')), "1");
                let decides: Meanwhile = Arc::new(Mutex::new(Some(Box::new(move || {
                    decider.leases.release(&a, &by, rolls_back).unwrap();
                }))));
                let happens = Arc::clone(&decides);
                let (bed, delayed) = over(Arc::new(move |_| {
                    let happens = happens.lock().take();
                    happens.into_iter().for_each(|happens| happens());
                }));
                delayed.inject(operation, call, Fault::Delay(Duration::ZERO));

                let context = format!("{operation:?} {call}, rolls back: {rolls_back}");
                bed.queues.deliver(&queue(), id, &in_txn(&txn('t'))).expect(&context);
                if decides.lock().take().is_some() {
                    break;
                }
                met += 1;
                let (d, by) = bed.stage("d", Some(&txn('t')), "2");
                bed.leases.release(&d, &by, false).expect(&context);
                assert_eq!(bed.key(&d).0, 1, "{context}");
                assert_eq!(bed.queues.read(&queue(), id).unwrap(), None, "{context}");
            }
            assert!((2..CALLS_MAX).contains(&met), "{operation:?} {met}");
        }
    }
}
