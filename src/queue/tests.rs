use std::time::Duration;

use super::rules::{NewMessage, Refusal};
use super::testbed::{Bed, SIZES, deferral, failure, message, queue, request, state_name};
use super::*;
use crate::clock::ManualClock;
use crate::lease::Released;
use crate::store::fault::{FaultPlan, Operation};
use crate::store::{Store, shared_log};

#[track_caller]
pub(super) fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> Refusal {
    match result {
        Err(Error::MessageRefused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_comes_out_as_it_went_in_and_goes_with_its_ack() {
    for bytes in SIZES {
        let bed = Bed::new();
        let payload: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        let attributes = r#"{"a":1.50,"b":[]}"#;
        let enqueued = bed
            .enqueue(
                &payload,
                NewMessage {
                    attributes: Some(attributes.into()),
                    payload_type: "text/plain".into(),
                    ..message()
                },
            )
            .unwrap();
        assert_eq!(enqueued.record.payload.bytes, bytes as u64);
        let (delivered, by) = bed.take(enqueued.id);
        assert_eq!(bed.bytes(&delivered), payload);
        assert_eq!(delivered.record.attributes.as_deref(), Some(attributes));
        assert_eq!(&*delivered.record.payload_type, "text/plain");
        assert_eq!(&*delivered.record.correlation_id, "c-1");
        let acked = bed.queues.ack(&queue(), enqueued.id, &by).unwrap();
        assert_eq!(&*acked.correlation_id, "c-1");
        let counts = bed.memory.as_ref().unwrap().counts();
        assert_eq!((counts.records, counts.bodies), (0, 0), "{bytes} bytes");
        assert_eq!(refusal(bed.queues.ack(&queue(), enqueued.id, &by)), Refusal::Gone);
    }
}

#[test]
fn a_small_message_costs_one_write_for_each_of_enqueue_deliver_and_ack() {
    let bed = Bed::new();
    let writes = || bed.store.calls(Operation::Write);
    let id = bed.message();
    assert_eq!(writes(), 1);
    let (_, by) = bed.take(id);
    assert_eq!(writes(), 2);
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert_eq!(writes(), 3);
    assert_eq!(bed.store.calls(Operation::List), 0);
    assert_eq!(bed.store.calls(Operation::Read), 2);
}

#[test]
fn an_enqueue_that_is_given_up_leaves_nothing() {
    for bytes in SIZES {
        let bed = Bed::new();
        let mut writer = bed.queues.enqueue_writer(EnqueueMeta {
            queue: queue(),
            message: message(),
        });
        writer.push(&vec![7; bytes]).unwrap();
        drop(writer);
        let counts = bed.memory.as_ref().unwrap().counts();
        assert_eq!((counts.records, counts.bodies), (0, 0), "{bytes} bytes");
        assert_eq!(bed.heard.take(), []);
    }
}

#[test]
fn one_lease_lives_at_a_time_and_a_lapsed_one_is_fenced_off() {
    let bed = Bed::new();
    let id = bed.message();
    let (first, first_by) = bed.take(id);
    let until_ms = first.record.visible_from_ms;
    assert!(matches!(bed.deliver(id), Err(NotDelivered::Hidden { until_ms: told }) if told == until_ms));
    bed.clock.advance(Duration::from_millis(29_999));
    assert!(matches!(bed.deliver(id), Err(NotDelivered::Hidden { .. })));
    bed.clock.advance(Duration::from_millis(1));
    assert_eq!(refusal(bed.queues.ack(&queue(), id, &first_by)), Refusal::LeaseExpired);
    let (second, second_by) = bed.take(id);
    assert_eq!((second.record.attempts, second.record.fencing_token), (2, 2));
    assert_eq!(second.record.failure_attempts, 0);
    assert_eq!(refusal(bed.queues.ack(&queue(), id, &first_by)), Refusal::LeaseMismatch);
    bed.queues.ack(&queue(), id, &second_by).unwrap();
    assert_eq!(refusal(bed.queues.ack(&queue(), id, &first_by)), Refusal::Gone);
}

#[test]
fn a_message_that_fails_too_often_is_put_aside_with_its_payload() {
    let bed = Bed::new();
    let new = NewMessage {
        max_attempts: 2,
        ..message()
    };
    let id = bed.enqueue(&[7; 6_000], new).unwrap().id;
    for failures in 1..=2 {
        let (_, by) = bed.take(id);
        let nacked = bed.queues.nack(&queue(), id, &by, &failure()).unwrap();
        assert_eq!(nacked.failure_attempts, failures);
    }
    assert!(matches!(bed.deliver(id), Err(NotDelivered::Gone)));
    assert_eq!(bed.record_names(), [format!("d/default/orders/{id}")]);
    assert_eq!(bed.memory.as_ref().unwrap().counts().bodies, 1);
    assert_eq!(bed.queues.scan(&queue(), None, 10).unwrap().seen, []);
}

#[test]
fn a_deferred_message_never_dies() {
    let bed = Bed::new();
    let new = NewMessage {
        max_attempts: 1,
        ..message()
    };
    let id = bed.enqueue(b"x", new).unwrap().id;
    for attempts in 1..=5 {
        let (delivered, by) = bed.take(id);
        assert_eq!(delivered.record.attempts, attempts);
        bed.queues.nack(&queue(), id, &by, &deferral()).unwrap();
    }
}

#[test]
fn a_scan_shows_what_can_be_delivered_and_clears_away_what_cannot() {
    let bed = Bed::new();
    let ids: Vec<MessageId> = (0..5).map(|_| bed.message()).collect();
    let short = NewMessage {
        ttl_seconds: 1,
        ..message()
    };
    let expired = bed.enqueue(&[1; 6_000], short).unwrap().id;
    let (leased, _) = bed.take(ids[1]);
    bed.heard.take();
    bed.clock.advance(Duration::from_secs(1));
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = bed.queues.scan(&queue(), after, 2).unwrap();
        assert!(page.faults.is_empty());
        seen.extend(page.seen);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(seen.iter().map(|seen| seen.id).collect::<Vec<_>>(), ids);
    assert_eq!(seen[1].visible_from_ms, leased.record.visible_from_ms);
    assert!(bed.queues.read(&queue(), expired).unwrap().is_none());
    assert_eq!(bed.memory.as_ref().unwrap().counts().bodies, 0);
    assert_eq!(bed.queues.look(&queue(), ids[0]).unwrap(), Some(seen[0]));
    assert_eq!(bed.queues.look(&queue(), expired).unwrap(), None);
}

#[test]
fn everybody_who_waits_hears_of_every_durable_change() {
    let bed = Bed::new();
    let visible = |id, from_ms| News::Visible {
        queue: queue(),
        id,
        from_ms,
    };
    let start = bed.table.now().ms;
    let id = bed.message();
    assert_eq!(bed.heard.take(), [visible(id, start)]);
    let (delivered, by) = bed.take(id);
    assert_eq!(bed.heard.take(), [visible(id, start + 30_000)]);
    bed.queues.give_back(&delivered).unwrap();
    assert_eq!(bed.heard.take(), [visible(id, start)]);
    bed.queues.give_back(&delivered).unwrap();
    assert_eq!(
        refusal(bed.queues.extend(&queue(), id, &by, 60)),
        Refusal::LeaseRequired
    );
    assert_eq!(bed.heard.take(), []);
    let (_, mut by) = bed.take(id);
    let extended = bed.queues.extend(&queue(), id, &by, 60).unwrap();
    by.meta_etag = Some(extended.record.meta_etag());
    let delayed = rules::Nack {
        delay_seconds: 5,
        ..failure()
    };
    bed.queues.nack(&queue(), id, &by, &delayed).unwrap();
    assert_eq!(
        bed.heard.take(),
        [30_000, 60_000, 5_000].map(|later_ms| visible(id, start + later_ms))
    );
    bed.clock.advance(Duration::from_secs(5));
    let (_, by) = bed.take(id);
    bed.heard.take();
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert_eq!(bed.heard.take(), [News::Gone { queue: queue(), id }]);
}

#[test]
fn the_state_of_a_message_is_leased_with_it_and_goes_with_its_ack() {
    let bed = Bed::new();
    let id = bed.message();
    let writes = bed.store.calls(Operation::Write);
    let (delivered, by) = bed.take_with_state(id);
    assert_eq!(bed.store.calls(Operation::Write), writes + 1);
    let state = delivered.state.as_ref().expect("the state was asked for");
    assert_eq!(
        (state.fencing_token, state.expires_at_ms),
        (1, delivered.record.visible_from_ms)
    );
    let record = bed.table.read(&state_name(id)).unwrap().unwrap();
    assert_eq!(record.lease.unwrap().id, state.lease_id);
    assert_eq!(record.attributes.query_hidden, Some(true));
    assert!(bed.load(&delivered).unwrap().is_none());
    bed.save(&delivered, "1").unwrap();
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert_eq!(bed.record_names(), [] as [String; 0]);
}

#[test]
fn a_message_whose_state_is_leased_by_hand_is_not_delivered_with_state() {
    let bed = Bed::new();
    let id = bed.message();
    let wanted = crate::lease::Wanted {
        name: state_name(id),
        owner: "by hand".to_owned(),
        ttl_seconds: 10,
        create_only: false,
        txn_id: None,
    };
    bed.leases.acquire(&wanted).unwrap();
    let with_state = DeliverRequest {
        with_state: true,
        ..request(30)
    };
    let refused = bed.queues.deliver(&queue(), id, &with_state);
    let start = bed.table.now().ms;
    assert!(matches!(refused, Err(NotDelivered::StateHeld { until_ms }) if until_ms == start + 10_000));
    bed.take(id);
}

/// LQ-59.
#[test]
fn a_state_is_kept_by_nack_and_deferral_and_lost_by_expiry_and_give_back() {
    let bed = Bed::new();
    let id = bed.enqueue(b"x", message()).unwrap().id;
    let mut marks = std::collections::HashSet::new();
    for (round, expected) in [None, Some("0"), Some("1"), Some("1"), Some("1"), Some("4")]
        .into_iter()
        .enumerate()
    {
        let (delivered, by) = bed.take_with_state(id);
        let state = delivered.state.as_ref().unwrap();
        assert_eq!(state.fencing_token, round as i64 + 1);
        marks.insert(state.state_etag.clone());
        assert_eq!(bed.load(&delivered).unwrap().as_deref(), expected, "round {round}");
        bed.save(&delivered, &round.to_string()).unwrap();
        match round {
            0 => drop(bed.queues.nack(&queue(), id, &by, &failure()).unwrap()),
            1 | 4 => drop(bed.queues.nack(&queue(), id, &by, &deferral()).unwrap()),
            2 => bed.clock.advance(Duration::from_secs(30)),
            _ => bed.queues.give_back(&delivered).unwrap(),
        }
    }
    assert_eq!(marks.len(), 1);
    // An ack by a consumer that did not ask for the state removes it all the same.
    let (_, by) = bed.take(id);
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert_eq!(bed.record_names(), [] as [String; 0]);
}

#[test]
fn a_lapsed_state_lease_does_not_hold_up_the_next_delivery() {
    let bed = Bed::new();
    bed.clock.advance(Duration::from_millis(500));
    let id = bed.message();
    let (first, _) = bed.take_with_state(id);
    bed.save(&first, "1").unwrap();
    // The message is visible again half a second before the second of the state's lease is over.
    bed.clock.advance(Duration::from_secs(30));
    let (second, _) = bed.take_with_state(id);
    assert_eq!(second.state.as_ref().unwrap().fencing_token, 2);
    assert_eq!(bed.load(&second).unwrap(), None);
    assert!(bed.save(&first, "2").is_err());
}

/// LQ-47.
#[test]
fn an_extension_prolongs_message_and_state_together_or_neither() {
    let bed = Bed::new();
    let id = bed.message();
    let (delivered, mut by) = bed.take_with_state(id);
    bed.save(&delivered, "1").unwrap();
    bed.clock.advance(Duration::from_millis(20_001));
    let extended = bed.queues.extend(&queue(), id, &by, 60).unwrap();
    let end_ms = bed.table.now().ms + 60_000;
    assert_eq!(
        (extended.record.visible_from_ms, extended.state_expires_at_ms),
        (end_ms, Some(end_ms))
    );
    bed.clock.advance(Duration::from_millis(59_999));
    assert_eq!(bed.load(&delivered).unwrap().as_deref(), Some("1"));
    by.meta_etag = Some(extended.record.meta_etag());

    let mut stranger = by.clone();
    stranger.state.as_mut().unwrap().lease_id.push('x');
    let before = bed.queues.read(&queue(), id).unwrap();
    assert_eq!(
        refusal(bed.queues.extend(&queue(), id, &stranger, 60)),
        Refusal::LeaseRequired
    );
    assert_eq!(bed.queues.read(&queue(), id).unwrap(), before);
    // A consumer may end the lease of the state by itself; then there is nothing to prolong.
    let name = state_name(id);
    bed.leases
        .release(&name, &testbed::state_credentials(&delivered), false)
        .unwrap();
    assert_eq!(
        refusal(bed.queues.extend(&queue(), id, &by, 60)),
        Refusal::LeaseRequired
    );
    assert_eq!(bed.queues.read(&queue(), id).unwrap(), before);
    by.state = None;
    assert_eq!(
        bed.queues.extend(&queue(), id, &by, 60).unwrap().state_expires_at_ms,
        None
    );
}

#[test]
fn a_state_that_was_leased_by_hand_survives_the_ack_of_its_message() {
    let bed = Bed::new();
    let id = bed.message();
    let (delivered, by) = bed.take_with_state(id);
    let name = state_name(id);
    bed.leases
        .release(&name, &testbed::state_credentials(&delivered), false)
        .unwrap();
    let (by_hand, _) = bed.stage(name.key.as_str(), None, "1");
    bed.queues.ack(&queue(), id, &by).unwrap();
    assert_eq!(bed.key(&by_hand), (0, true));
}

#[test]
fn an_expired_message_takes_its_state_along_and_a_dead_one_leaves_it() {
    let bed = Bed::new();
    for (new, left) in [
        (
            NewMessage {
                ttl_seconds: 60,
                ..message()
            },
            0,
        ),
        (
            NewMessage {
                max_attempts: 1,
                ..message()
            },
            1,
        ),
    ] {
        let id = bed.enqueue(b"x", new).unwrap().id;
        let (delivered, by) = bed.take_with_state(id);
        bed.save(&delivered, "1").unwrap();
        bed.queues.nack(&queue(), id, &by, &failure()).unwrap();
        bed.clock.advance(Duration::from_secs(60));
        assert!(bed.queues.scan(&queue(), None, 10).unwrap().seen.is_empty());
        let names = bed.record_names();
        assert_eq!(
            names.iter().filter(|name| name.starts_with("k/")).count(),
            left,
            "{names:?}"
        );
        assert_eq!(
            names.iter().filter(|name| name.starts_with("m/")).count(),
            0,
            "{names:?}"
        );
    }
}

#[test]
fn a_page_of_messages_that_are_over_is_cleared_away_in_one_write() {
    let bed = Bed::new();
    let short = NewMessage {
        ttl_seconds: 1,
        ..message()
    };
    let ids: Vec<MessageId> = (0..50)
        .map(|at| {
            let new = if at % 5 == 0 { message() } else { short.clone() };
            bed.enqueue(b"x", new).unwrap().id
        })
        .collect();
    bed.clock.advance(Duration::from_secs(1));
    bed.heard.take();
    let writes = bed.store.calls(Operation::Write);
    let page = bed.queues.scan(&queue(), None, 50).unwrap();
    assert_eq!(bed.store.calls(Operation::Write), writes + 1);
    let kept: Vec<MessageId> = ids.iter().step_by(5).copied().collect();
    assert_eq!(page.seen.iter().map(|seen| seen.id).collect::<Vec<_>>(), kept);
    assert_eq!(page.next, Some(ids[49]));
    assert_eq!(bed.record_names().len(), 10);
    assert_eq!(bed.heard.take().len(), 40);
}

/// On NFS each fresh reading is a lock that is taken and given back over the network.
#[test]
fn who_holds_something_writes_without_reading_first_where_reading_is_dear() {
    let dir = tempfile::tempdir().unwrap();
    let options = shared_log::Options {
        as_if_network: true,
        ..shared_log::Options::default()
    };
    let store = shared_log::SharedLogStore::open_as_another_process(dir.path(), options).unwrap();
    assert!(!store.capabilities().cheap_reads);
    let clock = ManualClock::at_wall_ms(1_767_261_600_000);
    let bed = Bed::over(Arc::new(store), clock.clone(), clock, FaultPlan::quiet(0));
    let (name, by) = bed.stage("a", None, "1");
    let message = bed.message();
    let (_, holder) = bed.take(message);
    let before = bed.store.calls(Operation::Read);
    let reads = || bed.store.calls(Operation::Read) - before;
    bed.leases.keepalive(&name, &by, 60).unwrap();
    assert_eq!(reads(), 0, "to keep a lease alive");
    assert_eq!(bed.leases.release(&name, &by, false).unwrap(), Released::Done);
    assert_eq!(reads(), 0, "to release it");
    bed.queues.extend(&queue(), message, &holder, 60).unwrap();
    assert_eq!(reads(), 0, "to extend the lease of a message");
    bed.queues.ack(&queue(), message, &holder).unwrap();
    assert_eq!(reads(), 0, "to acknowledge it");
    // What was given back is looked at again.
    assert_eq!(bed.key(&name), (1, false));
}
