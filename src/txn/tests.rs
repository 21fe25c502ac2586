//! Transactions where a batch changes one record: a server dies after each of its writes in turn, and others go on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::ManualClock;
use crate::ids::Xid;
use crate::lease::Released;
use crate::lease::rules::Credentials;
use crate::lease::testbed::{Testbed, name, txn};
use crate::queue::rules::Holder;
use crate::queue::testbed::{Bed, failure, in_txn, queue, request, state_name};
use crate::queue::{DeliverRequest, Delivered};
use crate::record::KeyRecord;
use crate::store::fault::{Fault, FaultPlan, Operation};
use crate::store::memory::MemoryStore;
use crate::store::single::SingleRecordStore;
use crate::sweeper::{Pace, sweep_leases};

/// More writes than anything here needs.
const WRITES_MAX: u64 = 30;

/// What both keys show to the public.
fn shown(bed: &Testbed) -> [Option<i64>; 2] {
    ["a", "b"].map(|key| {
        let record = bed.table.read(&name(key)).unwrap();
        record
            .filter(|record| record.state.is_some())
            .map(|record| record.version)
    })
}

fn is_free(bed: &Testbed, key: &str) -> bool {
    let now = bed.table.now().unix();
    let record = bed.table.read(&name(key)).unwrap();
    record.is_none_or(|record| record.living_lease(now).is_none())
}

/// Two keys of one transaction with something staged on each, and an untouched third one.
fn staged(bed: &Testbed) -> [Credentials; 3] {
    let held = ["a", "b", "c"].map(|key| bed.hold_in(key, &txn('t')));
    bed.update("a", &held[0], "1").unwrap();
    bed.update("b", &held[1], "2").unwrap();
    held
}

pub(super) fn assert_nothing_left(bed: &Testbed) {
    sweep_leases(&bed.table, &Pace::without_pauses()).unwrap();
    let mut left = Vec::new();
    let noted = bed.table.committer().book().for_each(|noted| {
        left.push(noted);
        Ok(true)
    });
    noted.unwrap();
    assert!(left.is_empty(), "{left:#?}");
}

/// LS-107: whoever looks next sees all of the decision or nothing of it, and can go on at once.
#[test]
fn a_release_that_dies_anywhere_is_whole() {
    for rolls_back in [false, true] {
        let mut seen = BTreeSet::new();
        for writes in 0..WRITES_MAX {
            let bed = Testbed::in_steps();
            let held = staged(&bed);
            bed.die_after(writes);
            let answer = bed.leases.release(&name("a"), &held[0], rolls_back);

            let other = bed.another();
            let first = shown(&other);
            assert_eq!(first[0], first[1], "after {writes} writes");
            let is_decided = is_free(&other, "a");
            assert_eq!(is_free(&other, "b"), is_decided, "after {writes} writes");
            // The second look shows the same, and the untouched key is not covered.
            assert_eq!(shown(&other), first);
            assert!(!is_free(&other, "c"));
            if answer.is_ok() {
                assert!(is_decided);
            }
            if is_decided {
                assert_eq!(first[0], (!rolls_back).then_some(1));
            } else {
                // The holders are as well off as before.
                other.leases.release(&name("b"), &held[1], rolls_back).unwrap();
                assert_eq!(shown(&other)[0], (!rolls_back).then_some(1));
            }
            for key in ["a", "b"] {
                let (granted, by) = other.acquire(key, None).unwrap();
                assert_eq!((granted.fencing_token, granted.version), (2, i64::from(!rolls_back)));
                other.leases.release(&name(key), &by, false).unwrap();
            }
            other.leases.release(&name("c"), &held[2], false).unwrap();
            assert_nothing_left(&other);
            seen.insert(is_decided);
        }
        assert_eq!(seen.len(), 2, "some died before the decision and some after it");
    }
}

/// LS-108: the leases have expired when somebody comes, and the first thing that he does is to acquire.
#[test]
fn a_decision_outlives_the_leases_that_it_covers() {
    for key in ["a", "b"] {
        for writes in 0..WRITES_MAX {
            let bed = Testbed::in_steps();
            let held = staged(&bed);
            bed.die_after(writes);
            let answer = bed.leases.release(&name("a"), &held[0], false);
            bed.clock.advance(Duration::from_secs(100));
            let other = bed.another();
            let (granted, _) = other.acquire(key, None).unwrap();
            assert_eq!(granted.fencing_token, 2);
            let both = shown(&other);
            assert_eq!(both[0], both[1], "after {writes} writes");
            assert_eq!(
                both[0].map_or(0, |version| version),
                granted.version,
                "after {writes} writes"
            );
            if answer.is_ok() {
                assert_eq!(both, [Some(1); 2]);
            }
        }
    }
}

/// Every other call that writes more than one record: whatever it leaves, what comes next is as if it had not been, or had
/// been done.
#[test]
fn calls_that_die_anywhere_stand_in_nobodys_way() {
    type Call = fn(&Testbed, &[Credentials; 2]);
    let calls: [(&str, Call); 7] = [
        ("acquire", |bed, _| drop(bed.acquire("new", None))),
        ("join", |bed, _| drop(bed.acquire("new", Some(&txn('t'))))),
        ("join what acquire began", |bed, held| {
            let txn_id = Xid::parse(held[1].txn_id.as_deref().unwrap());
            drop(bed.acquire("new", txn_id.as_ref()));
        }),
        ("first staging", |bed, held| drop(bed.update("a", &held[0], "9"))),
        ("release of an untouched key", |bed, held| {
            drop(bed.leases.release(&name("a"), &held[0], false));
        }),
        ("rollback by an untouched key", |bed, held| {
            drop(bed.leases.release(&name("a"), &held[0], true));
        }),
        ("give back", |bed, _| {
            if let Ok((granted, _)) = bed.acquire("new", Some(&txn('t'))) {
                drop(bed.leases.give_back(&name("new"), &granted));
            }
        }),
    ];
    for (call_name, call) in calls {
        for writes in 0..WRITES_MAX {
            let bed = Testbed::in_steps();
            let explicit = bed.hold_in("a", &txn('t'));
            let minted = bed.hold("b");
            bed.update("b", &minted, "2").unwrap();
            let held = [explicit, minted];
            bed.die_after(writes);
            call(&bed, &held);

            let other = bed.another();
            let context = format!("{call_name} after {writes} writes");
            // The one whose transaction is its own commits, whether somebody was about to join it or not.
            assert_eq!(
                other.leases.release(&name("b"), &held[1], false).unwrap(),
                Released::Done,
                "{context}"
            );
            assert_eq!(other.record("b").version, 1, "{context}");
            other.clock.advance(Duration::from_secs(200));
            for key in ["a", "b", "new"] {
                let (granted, by) = other
                    .acquire(key, Some(&txn('u')))
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                assert!(granted.staged.is_none(), "{context}");
                other.update(key, &by, "3").unwrap();
                if key == "new" {
                    other
                        .leases
                        .release(&name(key), &by, false)
                        .unwrap_or_else(|error| panic!("{context}: {error}"));
                }
            }
            let states = ["a", "b", "new"].map(|key| other.record(key).state.is_some());
            assert_eq!(states, [true; 3], "{context}");
            other.clock.advance(Duration::from_secs(10_000));
            assert_nothing_left(&other);
        }
    }
}

/// A takeover that dies between the mark and the clearing leaves a transaction that can only be rolled back, not half of it.
#[test]
fn a_takeover_that_dies_anywhere_never_leaves_half_a_commit() {
    for writes in 0..WRITES_MAX {
        let bed = Testbed::in_steps();
        let held = staged(&bed);
        // The first key lives on, the second one runs out.
        bed.leases.keepalive(&name("a"), &held[0], 1000).unwrap();
        bed.clock.advance(Duration::from_secs(60));
        bed.die_after(writes);
        let taken: Option<(KeyRecord, Credentials)> = bed.acquire("b", None).ok();
        let other = bed.another();
        let error = other.leases.release(&name("a"), &held[0], false).unwrap_err();
        assert_eq!(
            error.reason(),
            Some(crate::lease::rules::Reason::TxnConflict),
            "after {writes} writes"
        );
        assert_eq!(shown(&other), [None, None], "after {writes} writes");
        if let Some((_, by)) = taken {
            other.leases.release(&name("b"), &by, false).unwrap();
        }
        for key in ["a", "b"] {
            other.hold(key);
        }
    }
}

/// Many servers decide, join and take over at once; what is committed is committed everywhere.
#[test]
fn servers_that_settle_the_same_decision_apply_it_once() {
    for writes in 1..6 {
        let bed = Testbed::in_steps();
        let held = staged(&bed);
        bed.die_after(writes);
        let _ = bed.leases.release(&name("a"), &held[0], false);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let server = bed.another();
                crate::threads::spawn("settler", move || shown(&server)).unwrap()
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), [Some(1); 2]);
        }
        assert_eq!([bed.record("a").version, bed.record("b").version], [1, 1]);
    }
}

/// A server for messages over a store that takes one record a batch. The memory underneath is shared by all that are made
/// of it.
fn bed_over(memory: &MemoryStore, clock: &Arc<ManualClock>) -> Bed {
    let store = Arc::new(SingleRecordStore::new(Arc::new(memory.handle())));
    Bed::over(store, clock.clone(), clock.clone(), FaultPlan::quiet(0))
}

fn die_after(bed: &Bed, writes: u64) {
    let done = bed.store.calls(Operation::Write);
    for call in 1..=500 {
        bed.store.inject(Operation::Write, done + writes + call, Fault::Refuse);
    }
}

fn places() -> (MemoryStore, Arc<ManualClock>) {
    (MemoryStore::new(), ManualClock::at_wall_ms(1_767_261_600_000))
}

/// LQ-63 where a server dies: the message is dealt with if and only if what belongs to it is committed.
#[test]
fn an_ack_in_a_transaction_that_dies_anywhere_is_whole() {
    for is_ack in [true, false] {
        for writes in 0..WRITES_MAX {
            let (memory, clock) = places();
            let bed = bed_over(&memory, &clock);
            let id = bed.message();
            let with_state = DeliverRequest {
                with_state: true,
                ..in_txn(&txn('t'))
            };
            let (delivered, by) = bed.take_as(id, &with_state);
            bed.save(&delivered, "7").unwrap();
            let (a, a_by) = bed.stage("a", Some(&txn('t')), "1");
            die_after(&bed, writes);
            let answer = if is_ack {
                bed.queues.ack(&queue(), id, &by).map(drop)
            } else {
                bed.queues.nack(&queue(), id, &by, &failure()).map(drop)
            };

            let other = bed_over(&memory, &clock);
            let context = format!("ack {is_ack} after {writes} writes: {answer:?}");
            let record = other.table.read(&a).unwrap().unwrap();
            let message = other.queues.read(&queue(), id).unwrap();
            let state = other.table.read(&state_name(id)).unwrap();
            if record.lease.is_some() {
                // Nothing is decided yet, so the holder of the key may still do it.
                assert!(answer.is_err(), "{context}");
                assert!(message.is_some_and(|message| message.lease.is_some()), "{context}");
                other.leases.release(&a, &a_by, !is_ack).unwrap();
            } else if is_ack {
                assert!(message.is_none() && state.is_none(), "{context}");
            } else {
                assert!(message.is_some_and(|message| message.lease.is_none()), "{context}");
                assert!(
                    state.is_some_and(|state| state.lease.is_none() && state.state.is_none()),
                    "{context}"
                );
            }
            let version = other.table.read(&a).unwrap().unwrap().version;
            assert_eq!(version, i64::from(is_ack), "{context}");
            assert_eq!(other.queues.read(&queue(), id).unwrap().is_none(), is_ack, "{context}");
            // In the end nothing stands in anybody's way.
            clock.advance(Duration::from_secs(100));
            if !is_ack {
                let (again, by) = other.take_with_state(id);
                assert_eq!(other.load(&again).unwrap(), None, "{context}");
                other.queues.ack(&queue(), id, &by).unwrap();
            }
        }
    }
}

/// LQ-64: who starts applies what was decided before it, though nobody asks for what is concerned.
#[test]
fn what_a_server_had_decided_is_applied_when_another_one_starts() {
    let mut applied = 0;
    for writes in 0..WRITES_MAX {
        let (memory, clock) = places();
        let bed = bed_over(&memory, &clock);
        let id = bed.message();
        let (_, by) = bed.take_as(id, &in_txn(&txn('t')));
        bed.stage("a", Some(&txn('t')), "1");
        die_after(&bed, writes);
        let answer = bed.queues.ack(&queue(), id, &by);
        let is_decided = || {
            let mut is_decided = false;
            let other = bed_over(&memory, &clock);
            let noted = other.table.committer().book().for_each(|noted| {
                is_decided |= noted.record.decision.is_some();
                Ok(true)
            });
            noted.unwrap();
            is_decided
        };
        if !is_decided() {
            continue;
        }
        applied += 1;
        bed_over(&memory, &clock)
            .table
            .committer()
            .finish_what_others_left()
            .unwrap();
        assert!(!is_decided(), "after {writes} writes: {answer:?}");
        // Looked at as they lie there: reading one would apply what is left.
        let left = bed_over(&memory, &clock).record_names();
        assert!(
            !left.iter().any(|name| name.starts_with("m/")),
            "after {writes} writes: {left:?}"
        );
    }
    assert_ne!(applied, 0);
}

/// Messages with state, without a transaction of their own: whatever call dies, the message is delivered again or gone.
#[test]
fn calls_on_a_message_with_state_that_die_anywhere_lose_no_message() {
    type Call = fn(&Bed, &Delivered, &Holder) -> bool;
    let calls: [(&str, Call); 4] = [
        ("ack", |bed, delivered, by| {
            bed.queues.ack(&queue(), delivered.id, by).is_ok()
        }),
        ("nack", |bed, delivered, by| {
            bed.queues.nack(&queue(), delivered.id, by, &failure()).is_ok()
        }),
        ("give back", |bed, delivered, _| bed.queues.give_back(delivered).is_ok()),
        ("extend", |bed, delivered, by| {
            bed.queues.extend(&queue(), delivered.id, by, 60).is_ok()
        }),
    ];
    for (call_name, call) in calls {
        for writes in 0..8 {
            let (memory, clock) = places();
            let bed = bed_over(&memory, &clock);
            let id = bed.message();
            let (delivered, by) = bed.take_with_state(id);
            bed.save(&delivered, "7").unwrap();
            die_after(&bed, writes);
            let is_done = call(&bed, &delivered, &by);
            let other = bed_over(&memory, &clock);
            let context = format!("{call_name} after {writes} writes");
            clock.advance(Duration::from_secs(200));
            match other.queues.read(&queue(), id).unwrap() {
                None => assert_eq!(call_name, "ack", "{context}"),
                Some(_) => {
                    assert!(!(is_done && call_name == "ack"), "{context}");
                    let (again, by) = other.take_with_state(id);
                    let state = other.load(&again).unwrap();
                    assert!(state.is_none() || state.as_deref() == Some("7"), "{context}");
                    if is_done && call_name == "nack" {
                        assert_eq!(state.as_deref(), Some("7"), "{context}");
                    }
                    other.queues.ack(&queue(), id, &by).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_delivery_that_dies_anywhere_is_made_again_when_its_time_is_over() {
    for txn_id in [None, Some(txn('t'))] {
        for writes in 0..10 {
            let (memory, clock) = places();
            let bed = bed_over(&memory, &clock);
            let id = bed.message();
            let request = DeliverRequest {
                with_state: true,
                txn_id: txn_id.clone(),
                ..request(30)
            };
            die_after(&bed, writes);
            let is_delivered = bed.queues.deliver(&queue(), id, &request).is_ok();
            let other = bed_over(&memory, &clock);
            if is_delivered {
                other.queues.deliver(&queue(), id, &request).unwrap_err();
            }
            clock.advance(Duration::from_secs(100));
            let (_, by) = other.take_as(id, &request);
            other.queues.ack(&queue(), id, &by).unwrap();
            assert_eq!(other.queues.read(&queue(), id).unwrap(), None);
        }
    }
}
