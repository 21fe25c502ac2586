//! Messages in transactions that their consumers have named.

use std::time::Duration;

use super::rules::{Nack, Refusal};
use super::testbed::{Bed, failure, holder, in_txn, queue, request, state_name, txn};
use super::tests::refusal;
use super::*;
use crate::lease::rules::Reason;

fn with_state(txn_id: &crate::ids::Xid) -> DeliverRequest {
    DeliverRequest {
        with_state: true,
        ..in_txn(txn_id)
    }
}

/// LQ-63.
#[test]
fn the_ack_of_a_message_commits_what_its_transaction_has_staged() {
    let bed = Bed::new();
    let id = bed.message();
    let (_, by) = bed.take_as(id, &in_txn(&txn('a')));
    let (a, _) = bed.stage("a", Some(&txn('a')), "1");
    let (b, _) = bed.stage("b", Some(&txn('a')), "1");
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert_eq!([bed.key(&a), bed.key(&b)], [(1, false), (1, false)]);
    assert_eq!(bed.record_names(), ["k/default/a", "k/default/b"]);
    assert_eq!(refusal(bed.queues.ack(&queue(), id, &by)), Refusal::Gone);
}

/// LQ-63.
#[test]
fn the_nack_of_a_message_rolls_its_transaction_back_and_keeps_what_the_nack_says() {
    let bed = Bed::new();
    let id = bed.message();
    let (_, by) = bed.take_as(id, &in_txn(&txn('a')));
    let (a, _) = bed.stage("a", Some(&txn('a')), "1");
    bed.heard.take();
    let nack = Nack {
        delay_seconds: 7,
        last_error: Some("3".into()),
        ..failure()
    };
    let nacked = bed.queues.nack(&queue(), id, &by, &nack).unwrap();
    assert_eq!(bed.key(&a), (0, false));
    let from_ms = bed.table.now().ms + 7_000;
    assert_eq!((nacked.visible_from_ms, nacked.failure_attempts), (from_ms, 1));
    assert_eq!(nacked.last_error.as_deref(), Some("3"));
    assert_eq!(bed.queues.read(&queue(), id).unwrap(), Some(nacked));
    assert_eq!(
        bed.heard.take(),
        [News::Visible {
            queue: queue(),
            id,
            from_ms
        }]
    );
    assert_eq!(bed.record_names().len(), 2);
}

/// LQ-62, decided by the release of a key.
#[test]
fn a_key_that_is_released_decides_for_the_messages_of_its_transaction() {
    for rollback in [false, true] {
        let bed = Bed::new();
        let ids = [bed.message(), bed.message()];
        for id in ids {
            bed.take_as(id, &in_txn(&txn('a')));
        }
        let (a, by) = bed.stage("a", Some(&txn('a')), "1");
        bed.heard.take();
        bed.leases.release(&a, &by, rollback).unwrap();
        assert_eq!(bed.key(&a), (i64::from(!rollback), false));
        let news = ids.map(|id| match rollback {
            false => News::Gone { queue: queue(), id },
            true => News::Visible {
                queue: queue(),
                id,
                from_ms: bed.table.now().ms,
            },
        });
        assert_eq!(bed.heard.take(), news);
        for id in ids {
            let left = bed.queues.read(&queue(), id).unwrap();
            assert_eq!(left.is_some(), rollback);
            if let Some(record) = left {
                assert_eq!((record.attempts, record.failure_attempts), (1, 0));
                assert_eq!(record.last_error.as_deref(), Some(r#"{"reason":"txn_rollback"}"#));
                bed.take(id);
            }
        }
    }
}

#[test]
fn a_message_joins_the_transaction_that_an_acquire_minted() {
    let bed = Bed::new();
    let id = bed.message();
    let (a, by_key) = bed.stage("a", None, "1");
    let minted = crate::ids::Xid::parse(by_key.txn_id.as_deref().unwrap()).unwrap();
    let (_, by) = bed.take_as(id, &with_state(&minted));
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert_eq!(bed.key(&a), (1, false));
    assert_eq!(bed.record_names(), ["k/default/a"]);
}

#[test]
fn a_transaction_that_has_lost_a_message_is_rolled_back_as_a_whole() {
    for redelivered in [false, true] {
        let bed = Bed::new();
        let (lost, kept) = (bed.message(), bed.message());
        bed.take_as(lost, &in_txn(&txn('a')));
        bed.clock.advance(Duration::from_secs(15));
        let (_, by) = bed.take_as(kept, &in_txn(&txn('a')));
        let (a, _) = bed.stage("a", Some(&txn('a')), "1");
        bed.clock.advance(Duration::from_secs(15));
        let next = redelivered.then(|| bed.take(lost).1);
        assert_eq!(refusal(bed.queues.ack(&queue(), kept, &by)), Refusal::TxnConflict);
        assert_eq!(bed.key(&a), (0, false));
        bed.take(kept);
        match next {
            Some(next) => drop(bed.queues.ack(&queue(), lost, &next).unwrap()),
            None => drop(bed.take(lost)),
        }
        assert!(bed.record_names().iter().all(|name| !name.starts_with("t/")));
    }
}

#[test]
fn a_key_that_was_lost_brings_the_message_back() {
    let bed = Bed::new();
    let id = bed.message();
    let (a, _) = bed.stage("a", Some(&txn('a')), "1");
    bed.clock.advance(Duration::from_secs(15));
    let (_, by) = bed.take_as(id, &in_txn(&txn('a')));
    bed.clock.advance(Duration::from_secs(15));
    assert_eq!(refusal(bed.queues.ack(&queue(), id, &by)), Refusal::TxnConflict);
    assert_eq!(bed.key(&a), (0, false));
    assert_eq!(refusal(bed.queues.ack(&queue(), id, &by)), Refusal::StaleEtag);
    bed.take(id);
}

#[test]
fn a_message_that_lapsed_may_come_back_to_its_transaction() {
    let bed = Bed::new();
    let id = bed.message();
    bed.take_as(id, &with_state(&txn('a')));
    bed.clock.advance(Duration::from_secs(30));
    let (a, _) = bed.stage("a", Some(&txn('a')), "1");
    let (_, by) = bed.take_as(id, &with_state(&txn('a')));
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert_eq!(bed.key(&a), (1, false));
    assert_eq!(bed.record_names(), ["k/default/a"]);
}

#[test]
fn a_transaction_whose_messages_have_all_lapsed_leaves_no_record() {
    let bed = Bed::new();
    let ids = [bed.message(), bed.message()];
    for id in ids {
        bed.take_as(id, &in_txn(&txn('a')));
    }
    bed.clock.advance(Duration::from_secs(30));
    for id in ids {
        let (_, by) = bed.take(id);
        bed.queues.ack(&queue(), id, &by).unwrap();
    }
    assert_eq!(bed.record_names(), [] as [String; 0]);
}

#[test]
fn the_state_of_a_message_follows_it_through_its_transaction() {
    for rollback in [false, true] {
        let bed = Bed::new();
        let id = bed.message();
        // Something is committed already, so that there is something to keep.
        let (first, by) = bed.take_with_state(id);
        bed.save(&first, "1").unwrap();
        bed.queues.nack(&queue(), id, &by, &failure()).unwrap();
        let (delivered, by) = bed.take_as(id, &with_state(&txn('a')));
        bed.save(&delivered, "2").unwrap();
        if rollback {
            bed.queues.nack(&queue(), id, &by, &failure()).unwrap();
            let (again, _) = bed.take_with_state(id);
            assert_eq!(bed.load(&again).unwrap().as_deref(), Some("1"));
        } else {
            bed.queues.ack(&queue(), id, &by).unwrap();
            assert_eq!(bed.record_names(), [] as [String; 0]);
        }
    }
}

#[test]
fn a_released_state_decides_for_its_message_when_something_is_staged_on_it() {
    let bed = Bed::new();
    let id = bed.message();
    let (delivered, by) = bed.take_as(id, &with_state(&txn('a')));
    let released = |delivered: &Delivered| {
        let by = testbed::state_credentials(delivered);
        bed.leases.release(&state_name(id), &by, false).unwrap();
    };
    // Clean: only this lease ends.
    released(&delivered);
    bed.queues.nack(&queue(), id, &by, &failure()).unwrap();
    let (delivered, _) = bed.take_as(id, &with_state(&txn('a')));
    bed.save(&delivered, "1").unwrap();
    released(&delivered);
    assert_eq!(bed.record_names(), [] as [String; 0]);
}

#[test]
fn a_delivery_that_is_given_back_leaves_its_transaction_without_harm() {
    let bed = Bed::new();
    let (id, other) = (bed.message(), bed.message());
    let (_, by) = bed.take_as(other, &in_txn(&txn('a')));
    let (delivered, _) = bed.take_as(id, &with_state(&txn('a')));
    bed.queues.give_back(&delivered).unwrap();
    bed.queues.ack(&queue(), other, &by).unwrap();
    assert_eq!(bed.queues.read(&queue(), id).unwrap().unwrap().attempts, 1);
    assert!(bed.record_names().iter().all(|name| !name.starts_with("t/")));
    bed.take(id);
}

#[test]
fn an_expired_message_leaves_its_transaction() {
    let bed = Bed::new();
    let short = rules::NewMessage {
        ttl_seconds: 10,
        ..testbed::message()
    };
    let id = bed.enqueue(b"x", short).unwrap().id;
    bed.take_as(id, &in_txn(&txn('a')));
    bed.clock.advance(Duration::from_secs(30));
    assert!(bed.queues.scan(&queue(), None, 9).unwrap().seen.is_empty());
    assert_eq!(bed.record_names(), [] as [String; 0]);
}

#[test]
fn a_minted_transaction_of_a_message_is_a_label_and_no_record() {
    let bed = Bed::new();
    let id = bed.message();
    let delivered = bed.queues.deliver(&queue(), id, &request(30)).unwrap();
    assert!(bed.record_names().iter().all(|name| !name.starts_with("t/")));
    let lease = delivered.record.lease.as_ref().unwrap();
    // Somebody else may use the same id; the message takes no part in it.
    let (a, by) = bed.stage("a", Some(&lease.txn_id), "1");
    bed.queues.ack(&queue(), id, &holder(&delivered)).unwrap();
    assert_eq!(bed.key(&a), (0, true));
    bed.leases.release(&a, &by, false).unwrap();
}

#[test]
fn a_key_that_shares_the_minted_transaction_of_a_state_goes_on_by_itself() {
    type Finish = fn(&Bed, &Delivered, &rules::Holder);
    let ways: [(Finish, bool); 3] = [
        (
            |bed, held, by| drop(bed.queues.ack(&queue(), held.id, by).unwrap()),
            false,
        ),
        (
            |bed, held, by| drop(bed.queues.nack(&queue(), held.id, by, &failure()).unwrap()),
            false,
        ),
        (|bed, _, _| bed.clock.advance(Duration::from_secs(15)), true),
    ];
    for (finish, is_lost) in ways {
        let bed = Bed::new();
        let id = bed.message();
        let (delivered, by) = bed.take_with_state(id);
        bed.save(&delivered, "1").unwrap();
        bed.clock.advance(Duration::from_secs(15));
        let txn_id = &delivered.record.lease.as_ref().unwrap().txn_id;
        let (a, by_key) = bed.stage("a", Some(txn_id), "1");
        finish(&bed, &delivered, &by);
        assert_eq!(bed.key(&a), (0, true));
        let released = bed.leases.release(&a, &by_key, false);
        // A state that has lapsed is lost, and half a transaction is never committed.
        assert_eq!(released.is_err(), is_lost);
        assert_eq!(bed.key(&a), (i64::from(!is_lost), false));
        assert!(bed.record_names().iter().all(|name| !name.starts_with("t/")));
    }
}

#[test]
fn a_message_that_is_not_its_consumers_any_more_conflicts_at_release_too() {
    let bed = Bed::new();
    let id = bed.message();
    bed.take_as(id, &in_txn(&txn('a')));
    bed.clock.advance(Duration::from_secs(15));
    let (a, by) = bed.stage("a", Some(&txn('a')), "1");
    bed.clock.advance(Duration::from_secs(15));
    let refused = bed.leases.release(&a, &by, false).unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::TxnConflict));
    assert_eq!(bed.key(&a), (0, false));
    bed.take(id);
}
