use std::sync::{Arc, Barrier};
use std::time::Duration;

use super::testbed::{Testbed, name, txn, wanted};
use super::*;
use crate::store::fault::{Fault, Operation};
use crate::store::{Batch, Change, Precondition, RecordWrite, Store, StoreError};
use crate::threads;

/// Every call that changes something, on a key `a` that is held and has staged a state.
type Call = fn(&Testbed, &Credentials) -> Result<(), Error>;
const CALLS: [(&str, Call); 8] = [
    ("acquire", |bed, _| bed.acquire("b", None).map(drop)),
    ("join", |bed, by| {
        let txn_id = Xid::parse(by.txn_id.as_deref().unwrap());
        bed.acquire("b", txn_id.as_ref()).map(drop)
    }),
    ("keepalive", |bed, by| {
        bed.leases.keepalive(&name("a"), by, 60).map(drop)
    }),
    ("release", |bed, by| bed.leases.release(&name("a"), by, false).map(drop)),
    ("rollback", |bed, by| bed.leases.release(&name("a"), by, true).map(drop)),
    ("update", |bed, by| bed.update("a", by, "2").map(drop)),
    ("hide", |bed, by| {
        let hidden = crate::record::Attributes {
            query_hidden: Some(true),
        };
        let expected = rules::Expected::default();
        bed.states.set_attributes(&name("a"), by, &expected, hidden).map(drop)
    }),
    ("remove", |bed, by| {
        let expected = rules::Expected::default();
        bed.states.remove(&name("a"), by, &expected).map(drop)
    }),
];

fn held() -> (Testbed, Credentials) {
    let bed = Testbed::new();
    let by = bed.hold("a");
    bed.update("a", &by, "1").unwrap();
    (bed, by)
}

#[test]
fn what_was_not_done_changes_nothing_and_may_be_tried_again() {
    for (call_name, call) in CALLS {
        for (operation, fault) in [
            (Operation::Read, Fault::FailBefore),
            (Operation::Read, Fault::Refuse),
            (Operation::Write, Fault::FailBefore),
            (Operation::Write, Fault::Refuse),
        ] {
            let (bed, by) = held();
            let before = bed.records();
            bed.faulty.inject_next(operation, fault);
            let error = call(&bed, &by).expect_err(call_name);
            assert!(
                matches!(
                    error,
                    Error::Store(StoreError::NotDone { .. } | StoreError::Unavailable { .. })
                ),
                "{call_name}: {error}"
            );
            assert_eq!(bed.records(), before, "{call_name}");
            assert_eq!(bed.ended.take(), [] as [String; 0]);
            call(&bed, &by).expect(call_name);
            assert_ne!(bed.records(), before, "{call_name}");
        }
    }
}

/// The store says "nobody knows": then the record is read, and if it is as it was to be, the call was done. Before this
/// was so, an acquire whose answer was lost on the way from the store left a lease that nobody held.
#[test]
fn a_lost_answer_is_found_by_reading() {
    for (call_name, call) in CALLS {
        let (plain, plain_by) = held();
        call(&plain, &plain_by).unwrap();
        let (bed, by) = held();
        bed.faulty.inject_next(Operation::Write, Fault::LoseAnswer);
        call(&bed, &by).expect(call_name);
        assert_eq!(bed.faulty.injected(), 1);
        // The same records as without the fault, but for the ids, which differ in every run.
        let lengths = |bed: &Testbed| bed.records().iter().map(|(_, value)| value.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&bed), lengths(&plain), "{call_name}");
        assert_eq!(bed.record("a").fencing_token, 1);
        assert_eq!(bed.record("a").version, plain.record("a").version, "{call_name}");
        // Whoever waits hears of it as well.
        assert_eq!(bed.ended.take(), plain.ended.take(), "{call_name}");
    }
}

#[test]
fn what_cannot_be_found_out_is_passed_on_as_unknown() {
    for (call_name, call) in CALLS {
        let (bed, by) = held();
        bed.faulty.inject_next(Operation::Write, Fault::LoseAnswer);
        // The read that would resolve it comes after those that the call itself needs.
        let reads_before = bed.faulty.calls(Operation::Read);
        let (twin, twin_by) = held();
        let twin_reads = twin.faulty.calls(Operation::Read);
        call(&twin, &twin_by).unwrap();
        let needed = twin.faulty.calls(Operation::Read) - twin_reads;
        bed.faulty
            .inject(Operation::Read, reads_before + needed + 1, Fault::FailBefore);
        let error = call(&bed, &by).expect_err(call_name);
        assert!(
            matches!(error, Error::Store(StoreError::Unknown { .. })),
            "{call_name}: {error}"
        );
    }
}

#[test]
fn an_outage_is_passed_on_and_everything_is_there_afterwards() {
    let (bed, by) = held();
    bed.faulty.set_outage(true);
    for (call_name, call) in CALLS {
        let error = call(&bed, &by).expect_err(call_name);
        assert!(matches!(error, Error::Store(StoreError::Unavailable { .. })), "{error}");
    }
    assert!(bed.leases.count_living(10).is_err());
    bed.faulty.set_outage(false);
    assert_eq!(bed.read("a", &by).unwrap().as_deref(), Some("1"));
    assert_eq!(bed.leases.release(&name("a"), &by, false).unwrap(), Released::Done);
    assert_eq!(bed.record("a").version, 1);
}

#[test]
fn a_damaged_record_is_reported_and_left_alone() {
    let bed = Testbed::new();
    let junk = Batch {
        records: vec![RecordWrite {
            key: name("a").record_key(),
            precondition: Precondition::Any,
            change: Change::Put(Arc::from(&b"junk"[..])),
        }],
        ..Batch::default()
    };
    bed.memory.write(junk).unwrap();
    let before = bed.records();
    let error = bed.acquire("a", None).unwrap_err();
    assert!(matches!(error, Error::CorruptRecord { .. }), "{error}");
    assert_eq!(bed.records(), before);
}

#[test]
fn a_grant_is_given_back_without_a_trace_but_the_token() {
    let bed = Testbed::new();
    let (granted, _) = bed.acquire("a", None).unwrap();
    bed.leases.give_back(&name("a"), &granted).unwrap();
    let record = bed.record("a");
    assert_eq!((record.lease, record.fencing_token), (None, 1));
    assert_eq!(bed.records().len(), 1, "the transaction's record is gone");
    assert_eq!(bed.ended.take(), ["k/default/a"]);
}

#[test]
fn giving_back_ends_no_other_lease() {
    let bed = Testbed::new();
    // Not the successor's.
    let (granted, _) = bed.acquire("a", None).unwrap();
    bed.clock.advance(Duration::from_secs(31));
    let successor = bed.hold("a");
    bed.leases.give_back(&name("a"), &granted).unwrap();
    assert_eq!(bed.read("a", &successor).unwrap(), None);
    // Not those of the same transaction.
    let other = bed.hold_in("b", &txn('t'));
    bed.update("b", &other, "1").unwrap();
    let (granted, _) = bed.acquire("c", Some(&txn('t'))).unwrap();
    bed.leases.give_back(&name("c"), &granted).unwrap();
    assert_eq!(bed.read("b", &other).unwrap().as_deref(), Some("1"));
    assert_eq!(bed.leases.release(&name("b"), &other, false).unwrap(), Released::Done);
    assert_eq!(bed.record("b").version, 1);
}

#[test]
fn living_leases_are_counted_over_many_pages_and_kinds() {
    let bed = Testbed::new();
    for number in 0..600 {
        bed.hold(&format!("implicit/{number}"));
    }
    bed.clock.advance(Duration::from_secs(20));
    for number in 0..5 {
        bed.hold_in(&format!("explicit/{number}"), &txn('t'));
    }
    assert_eq!(bed.leases.count_living(usize::MAX).unwrap(), 605);
    assert_eq!(bed.another().leases.count_living(100).unwrap(), 100);
    bed.clock.advance(Duration::from_secs(20));
    assert_eq!(bed.leases.count_living(usize::MAX).unwrap(), 5);
}

#[test]
fn whoever_waits_hears_of_every_early_end_and_of_nothing_else() {
    let bed = Testbed::new();
    let by = bed.hold("a");
    bed.leases.keepalive(&name("a"), &by, 60).unwrap();
    bed.update("a", &by, "1").unwrap();
    assert_eq!(bed.ended.take(), [] as [String; 0]);
    bed.leases.keepalive(&name("a"), &by, 10).unwrap();
    assert_eq!(bed.ended.take(), ["k/default/a"]);
    bed.leases.release(&name("a"), &by, false).unwrap();
    assert_eq!(bed.ended.take(), ["k/default/a"]);
    bed.leases.release(&name("a"), &by, false).unwrap();
    assert_eq!(bed.ended.take(), [] as [String; 0]);

    let [one, other] = ["b", "c"].map(|key| bed.hold_in(key, &txn('t')));
    bed.update("b", &one, "1").unwrap();
    bed.update("c", &other, "1").unwrap();
    bed.leases.release(&name("c"), &other, false).unwrap();
    let mut ended = bed.ended.take();
    ended.sort();
    assert_eq!(ended, ["k/default/b", "k/default/c"]);
}

#[test]
fn many_may_join_one_transaction_at_once() {
    const EACH: usize = 6;
    let bed = Testbed::new();
    let first = bed.hold("first");
    let txn_id = Xid::parse(first.txn_id.as_deref().unwrap()).unwrap();
    let servers: Vec<Arc<Testbed>> = (0..3).map(|_| Arc::new(bed.another())).collect();
    let start = Arc::new(Barrier::new(3 * EACH));
    let joiners: Vec<_> = (0..3 * EACH)
        .map(|number| {
            let (server, start, txn_id) = (servers[number % 3].clone(), start.clone(), txn_id.clone());
            let join = move || {
                start.wait();
                let key = format!("joined/{number}");
                let by = server.hold_in(&key, &txn_id);
                server.update(&key, &by, "1").map(drop)
            };
            threads::spawn("joiner", join).unwrap()
        })
        .collect();
    for joiner in joiners {
        joiner.join().unwrap().unwrap();
    }
    bed.update("first", &first, "1").unwrap();
    assert_eq!(bed.leases.count_living(usize::MAX).unwrap(), 3 * EACH + 1);
    assert_eq!(
        bed.leases.release(&name("first"), &first, false).unwrap(),
        Released::Done
    );
    for number in 0..3 * EACH {
        let record = bed.record(&format!("joined/{number}"));
        assert_eq!((record.version, record.lease), (1, None));
    }
    assert_eq!(bed.records().len(), 3 * EACH + 1, "no record of a transaction is left");
}

#[test]
fn one_of_many_servers_wins_a_key() {
    let bed = Testbed::new();
    for round in 1..=20 {
        let start = Arc::new(Barrier::new(4));
        let rivals: Vec<_> = (0..4)
            .map(|_| {
                let (server, start) = (bed.another(), start.clone());
                let rival = move || {
                    start.wait();
                    server.leases.acquire(&wanted("a", None))
                };
                threads::spawn("rival", rival).unwrap()
            })
            .collect();
        let granted: Vec<_> = rivals
            .into_iter()
            .filter_map(|rival| rival.join().unwrap().ok())
            .collect();
        assert_eq!(granted.len(), 1);
        assert_eq!(granted[0].fencing_token, round);
        bed.leases.give_back(&name("a"), &granted[0]).unwrap();
    }
}
