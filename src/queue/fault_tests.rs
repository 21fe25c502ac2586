//! What each call leaves behind when the store has a bad day at exactly that moment.

use super::rules::Refusal;
use super::testbed::{Bed, SIZES, failure, message, queue, request};
use super::tests::refusal;
use super::*;
use crate::store::fault::{Fault, Operation};
use crate::store::{Batch, Store, StoreError};

/// Every call on a message that is held with state.
type Call = fn(&Bed, &Delivered, &rules::Holder) -> Result<(), Error>;
const CALLS: [(&str, Call); 5] = [
    ("ack", |bed, held, by| bed.queues.ack(&queue(), held.id, by).map(drop)),
    ("nack", |bed, held, by| {
        bed.queues.nack(&queue(), held.id, by, &failure()).map(drop)
    }),
    ("extend", |bed, held, by| {
        bed.queues.extend(&queue(), held.id, by, 60).map(drop)
    }),
    ("give back", |bed, held, _| bed.queues.give_back(held)),
    ("deliver", |bed, _, _| {
        let other = bed.queues.scan(&queue(), None, 9)?.seen[1].id;
        match bed.queues.deliver(&queue(), other, &request(30)) {
            Ok(_) => Ok(()),
            Err(NotDelivered::Failed(cause)) => Err(cause),
            Err(other) => panic!("{other:?}"),
        }
    }),
];

fn held() -> (Bed, Delivered, rules::Holder) {
    let bed = Bed::new();
    let id = bed.message();
    bed.message();
    let (delivered, by) = bed.take_with_state(id);
    bed.save(&delivered, "1").unwrap();
    bed.heard.take();
    (bed, delivered, by)
}

fn contents(bed: &Bed) -> Vec<(String, Vec<u8>)> {
    let memory = bed.memory.as_ref().unwrap();
    let rows = memory.list("", None, usize::MAX).unwrap();
    rows.into_iter()
        .map(|row| {
            let value = memory.read(&row.key).unwrap().unwrap().value;
            (row.key.as_str().to_owned(), value.to_vec())
        })
        .collect()
}

#[test]
fn what_was_not_done_changes_nothing_tells_nobody_and_may_be_tried_again() {
    for (name, call) in CALLS {
        for fault in [Fault::FailBefore, Fault::Refuse] {
            let (bed, delivered, by) = held();
            let before = contents(&bed);
            bed.store.inject_next(Operation::Write, fault);
            call(&bed, &delivered, &by).expect_err(name);
            assert_eq!(contents(&bed), before, "{name}");
            assert_eq!(bed.heard.take(), [], "{name}");
            call(&bed, &delivered, &by).unwrap();
            assert_eq!(bed.heard.take().len(), 1, "{name}");
        }
    }
}

#[test]
fn a_lost_answer_is_found_again_by_reading() {
    for (name, call) in CALLS {
        let (bed, delivered, by) = held();
        bed.store.inject_next(Operation::Write, Fault::LoseAnswer);
        call(&bed, &delivered, &by).unwrap_or_else(|cause| panic!("{name}: {cause}"));
        assert_eq!(bed.heard.take().len(), 1, "{name}");
    }
    for bytes in SIZES {
        let bed = Bed::new();
        bed.store.inject_next(Operation::Write, Fault::LoseAnswer);
        let id = bed.enqueue(&vec![7; bytes], message()).unwrap().id;
        assert_eq!(bed.heard.take().len(), 1);
        let (delivered, _) = bed.take(id);
        assert_eq!(bed.bytes(&delivered), vec![7; bytes]);
    }
}

#[test]
fn an_answer_that_nobody_can_find_is_reported_as_unknown() {
    for (name, call) in CALLS {
        let (bed, delivered, by) = held();
        bed.store.inject_next(Operation::Write, Fault::LoseAnswer);
        // The call reads the message, and its state if it is concerned, before it writes.
        for ahead in 1..=12 {
            let next = bed.store.calls(Operation::Read) + ahead;
            let is_before_the_write = name == "deliver" && ahead <= 3 || name != "deliver" && ahead <= 2;
            if !is_before_the_write {
                bed.store.inject(Operation::Read, next, Fault::FailBefore);
            }
        }
        let answer = call(&bed, &delivered, &by);
        assert!(
            matches!(answer, Err(Error::Store(StoreError::Unknown { .. }))),
            "{name}: {answer:?}"
        );
        assert_eq!(bed.heard.take(), [], "{name}");
    }
}

/// LQ-56.
#[test]
fn an_enqueue_that_was_certainly_not_done_leaves_no_payload_behind() {
    for bytes in SIZES {
        for operation in [
            Operation::Write,
            Operation::BodyWriter,
            Operation::BodyWrite,
            Operation::BodyFinish,
        ] {
            let bed = Bed::new();
            bed.store.inject_next(operation, Fault::FailBefore);
            if bed.enqueue(&vec![7; bytes], message()).is_ok() {
                assert!(bytes < 50_000 && operation != Operation::Write);
                continue;
            }
            let counts = bed.memory.as_ref().unwrap().counts();
            assert_eq!((counts.records, counts.bodies), (0, 0), "{bytes} bytes, {operation:?}");
            assert_eq!(bed.heard.take(), []);
        }
    }
}

#[test]
fn a_damaged_message_is_reported_and_holds_up_no_other() {
    let bed = Bed::new();
    let ids = [bed.message(), bed.message(), bed.message()];
    let damaged = keys::message_record(&queue(), ids[1]);
    let write = RecordWrite {
        key: damaged.clone(),
        precondition: Precondition::Any,
        change: Change::Put(Arc::from(&b"LKM1 no message"[..])),
    };
    let batch = Batch {
        records: vec![write],
        ..Batch::default()
    };
    bed.store.write(batch).unwrap();
    let page = bed.queues.scan(&queue(), None, 2).unwrap();
    assert_eq!(page.seen.iter().map(|seen| seen.id).collect::<Vec<_>>(), [ids[0]]);
    assert!(matches!(&page.faults[..], [Error::CorruptRecord { key, .. }] if *key == damaged));
    let next = bed.queues.scan(&queue(), page.next, 2).unwrap();
    assert_eq!(next.seen.iter().map(|seen| seen.id).collect::<Vec<_>>(), [ids[2]]);
    assert!(matches!(
        bed.deliver(ids[1]),
        Err(NotDelivered::Failed(Error::CorruptRecord { .. }))
    ));
}

#[test]
fn a_dead_or_expired_message_that_cannot_be_cleared_away_is_tried_again_at_the_next_look() {
    let bed = Bed::new();
    let short = rules::NewMessage {
        ttl_seconds: 1,
        ..message()
    };
    let id = bed.enqueue(b"x", short).unwrap().id;
    bed.clock.advance(Duration::from_secs(1));
    bed.store.inject_next(Operation::Write, Fault::FailBefore);
    let page = bed.queues.scan(&queue(), None, 9).unwrap();
    assert_eq!((page.seen.len(), page.faults.len()), (0, 1));
    assert!(bed.queues.scan(&queue(), None, 9).unwrap().faults.is_empty());
    assert!(bed.queues.read(&queue(), id).unwrap().is_none());
}

#[test]
fn whoever_loses_a_race_learns_what_the_winner_left() {
    let bed = Bed::new();
    let id = bed.message();
    let other = Bed::over(
        Arc::new(bed.memory.as_ref().unwrap().handle()),
        bed.clock.clone(),
        bed.clock.clone(),
        crate::store::fault::FaultPlan::quiet(0),
    );
    let (_, by) = other.take(id);
    assert!(matches!(bed.deliver(id), Err(NotDelivered::Hidden { .. })));
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert!(matches!(other.deliver(id), Err(NotDelivered::Gone)));
    assert_eq!(refusal(other.queues.ack(&queue(), id, &by)), Refusal::Gone);
}
