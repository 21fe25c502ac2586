use super::*;
use crate::ids::Xid;
use crate::record::Body;

const NOW: Now = Now { ms: 1_000_000_900 };

fn xid(last: char) -> Xid {
    Xid::parse(&format!("d4k7q2m0h5r8e1t6n9{last}0")).unwrap()
}

fn at(ms_later: i64) -> Now {
    Now { ms: NOW.ms + ms_later }
}

fn new(message: NewMessage) -> MessageRecord {
    let payload = MessagePayload {
        bytes: 0,
        body: Body::Inline([].into()),
    };
    enqueued(message, payload, NOW)
}

fn ready() -> MessageRecord {
    new(NewMessage::default())
}

fn grant(last: char) -> MessageGrant {
    MessageGrant {
        lease: MessageLease {
            id: xid(last),
            owner: "me".into(),
            txn_id: xid('t'),
            explicit: false,
            state: None,
        },
        visibility_seconds: 20,
    }
}

/// Delivered at `NOW` for 20 seconds, with state.
fn leased() -> MessageRecord {
    let mut grant = grant('a');
    grant.lease.state = Some(StateGrant {
        lease_id: xid('s'),
        fencing_token: 4,
    });
    delivered(&ready(), grant, NOW)
}

fn holder(record: &MessageRecord) -> Holder {
    let lease = record.lease.as_ref().unwrap();
    Holder {
        lease_id: lease.id.as_str().to_owned(),
        fencing_token: record.fencing_token,
        txn_id: Some(lease.txn_id.as_str().to_owned()),
        meta_etag: Some(record.meta_etag()),
        state: lease.state.as_ref().map(|state| StateHolder {
            lease_id: state.lease_id.as_str().to_owned(),
            fencing_token: Some(state.fencing_token),
        }),
        state_etag: record.state_etag.as_deref().map(str::to_owned),
    }
}

fn failure(delay_seconds: i64, last_error: Option<&str>) -> Nack {
    Nack {
        intent: Intent::Failure,
        delay_seconds,
        last_error: last_error.map(Into::into),
    }
}

fn deferral(delay_seconds: i64) -> Nack {
    Nack {
        intent: Intent::Defer,
        delay_seconds,
        last_error: None,
    }
}

/// What each of the three calls of a holder answers.
fn answers(record: &MessageRecord, by: &Holder, now: Now) -> [Option<Refusal>; 3] {
    [
        ack(record, by, now).err(),
        nack(record, by, &failure(0, None), now).err(),
        extend(record, by, 60, now).err(),
    ]
}

/// What a producer asks for, and what the record of it says: delay, visibility, time to live, attempts. LQ-5.
#[test]
fn numbers_that_are_zero_or_less_mean_their_defaults() {
    for (wanted, kept) in [
        ((0, 0, 0, 0), (0, 30, None, 5)),
        ((-1, -1, -1, -1), (0, 30, None, 5)),
        ((7, 8, 9, 1), (7_000, 8, Some(9_000), 1)),
        (
            (i64::MAX, i64::MAX, i64::MAX, i64::MAX),
            (i64::MAX - NOW.ms, i64::MAX, Some(i64::MAX - NOW.ms), i64::MAX),
        ),
    ] {
        let record = new(NewMessage {
            delay_seconds: wanted.0,
            visibility_seconds: wanted.1,
            ttl_seconds: wanted.2,
            max_attempts: wanted.3,
            ..NewMessage::default()
        });
        let found = (
            record.visible_from_ms - NOW.ms,
            record.visibility_seconds,
            record.expires_at_ms.map(|expires_at_ms| expires_at_ms - NOW.ms),
            record.max_attempts,
        );
        assert_eq!(found, kept, "{wanted:?}");
        assert_eq!(
            (record.attempts, record.failure_attempts, record.fencing_token),
            (0, 0, 0)
        );
        assert_eq!(&*record.payload_type, "application/octet-stream");
    }
}

/// Every state of a message, as it looks at three moments.
#[test]
fn nothing_ends_early_and_nothing_ends_late() {
    let hidden = |ms| Standing::Hidden { until_ms: NOW.ms + ms };
    let delayed = new(NewMessage {
        delay_seconds: 1,
        ..NewMessage::default()
    });
    let short = new(NewMessage {
        ttl_seconds: 1,
        ..NewMessage::default()
    });
    let late = new(NewMessage {
        ttl_seconds: 1,
        delay_seconds: 2,
        ..NewMessage::default()
    });
    let exhausted = MessageRecord {
        failure_attempts: 5,
        ..ready()
    };
    let exhausted_and_short = MessageRecord {
        failure_attempts: 5,
        ..short.clone()
    };
    for (what, record, looks) in [
        (
            "ready",
            ready(),
            [(-1, hidden(0)), (0, Standing::Ready), (1_000, Standing::Ready)],
        ),
        (
            "delayed",
            delayed,
            [(0, hidden(1_000)), (999, hidden(1_000)), (1_000, Standing::Ready)],
        ),
        (
            "leased",
            leased(),
            [(0, hidden(20_000)), (19_999, hidden(20_000)), (20_000, Standing::Ready)],
        ),
        (
            "short-lived",
            short.clone(),
            [(0, Standing::Ready), (999, Standing::Ready), (1_000, Standing::Expired)],
        ),
        (
            "dies before it is visible",
            late,
            [(0, hidden(2_000)), (999, hidden(2_000)), (1_000, Standing::Expired)],
        ),
        (
            "short-lived, but leased",
            delivered(&short, grant('a'), NOW),
            [
                (999, hidden(20_000)),
                (19_999, hidden(20_000)),
                (20_000, Standing::Expired),
            ],
        ),
        (
            "failed too often",
            exhausted,
            [(-1, Standing::Dead), (0, Standing::Dead), (1, Standing::Dead)],
        ),
        (
            "failed too often, and then too old",
            exhausted_and_short,
            [(0, Standing::Dead), (999, Standing::Dead), (1_000, Standing::Expired)],
        ),
    ] {
        for (ms, expected) in looks {
            assert_eq!(standing(&record, at(ms)), expected, "{what} after {ms} ms");
        }
    }
}

/// The counters and fields that each transition changes.
#[test]
fn a_delivery_counts_itself_and_fences_off_the_one_before() {
    let mut record = MessageRecord {
        last_error: Some("1".into()),
        ..ready()
    };
    for round in 1..=3 {
        record.visible_from_ms = NOW.ms;
        let before = record.clone();
        record = delivered(&record, grant('a'), NOW);
        assert_eq!((record.attempts, record.fencing_token), (round, round));
        assert_eq!(record.failure_attempts, before.failure_attempts);
        assert_eq!(record.visible_from_ms, NOW.ms + 20_000);
        assert_eq!((record.visibility_seconds, record.last_error.as_ref()), (20, None));
        assert_ne!(record.meta_etag(), before.meta_etag());
    }
}

#[test]
fn the_mark_of_a_state_stays_from_its_first_lease_on() {
    let first = leased();
    assert_eq!(first.state_etag.as_deref(), Some(xid('s').as_str()));
    let without = delivered(&first, grant('b'), at(20_000));
    assert_eq!(without.state_etag, first.state_etag);
    let mut again = grant('c');
    again.lease.state = Some(StateGrant {
        lease_id: xid('u'),
        fencing_token: 5,
    });
    assert_eq!(delivered(&without, again, at(40_000)).state_etag, first.state_etag);
    assert_eq!(delivered(&ready(), grant('a'), NOW).state_etag, None);
}

/// LQ-42, LQ-43.
#[test]
fn a_nack_counts_a_failure_and_a_deferral_does_not() {
    let record = leased();
    let by = holder(&record);
    for (request, failures, visible_after_ms, last_error) in [
        (failure(0, None), 1, 5, None),
        (failure(-3, Some(r#"{"code":1}"#)), 1, 5, Some(r#"{"code":1}"#)),
        (failure(2, Some("7")), 1, 2_005, Some("7")),
        (deferral(0), 0, 5, None),
        (deferral(3), 0, 3_005, None),
    ] {
        let nacked = nack(&record, &by, &request, at(5)).unwrap();
        assert_eq!(nacked.failure_attempts, failures, "{request:?}");
        assert_eq!(nacked.visible_from_ms, NOW.ms + visible_after_ms, "{request:?}");
        assert_eq!(nacked.last_error.as_deref(), last_error, "{request:?}");
        assert_eq!((nacked.attempts, nacked.visibility_seconds), (1, 20));
        assert!(nacked.lease.is_none());
        assert_ne!(nacked.meta_etag(), record.meta_etag());
    }
}

/// LQ-47, LQ-48.
#[test]
fn an_extension_counts_from_now_and_keeps_lease_and_token() {
    let record = leased();
    let by = holder(&record);
    for (seconds, kept_seconds) in [(60, 60), (1, 1), (0, 20), (-1, 20), (100_000, 100_000)] {
        let extended = extend(&record, &by, seconds, at(10_000)).unwrap();
        assert_eq!(extended.visible_from_ms, NOW.ms + 10_000 + kept_seconds * 1000);
        assert_eq!(extended.visibility_seconds, kept_seconds);
        assert_eq!((&extended.lease, extended.fencing_token), (&record.lease, 1));
        assert_eq!(extended.attempts, 1);
        assert_ne!(extended.meta_etag(), record.meta_etag());
        assert_eq!(extend(&extended, &by, 60, at(10_000)), Err(Refusal::StaleEtag));
        // A renewal on another thread does not keep the consumer from finishing, past the first end too.
        let past = at(20_500);
        if past.ms < extended.visible_from_ms {
            assert_eq!(ack(&extended, &by, past), Ok(()));
        }
    }
}

/// Who may do what: ack, nack and extend for every kind of caller.
#[test]
fn every_caller_without_the_lease_is_told_why() {
    let record = leased();
    let good = holder(&record);
    let with = |change: fn(&mut Holder)| {
        let mut by = good.clone();
        change(&mut by);
        by
    };
    let all = |refusal| [Some(refusal); 3];
    use Refusal::{LeaseExpired, LeaseMismatch, LeaseRequired, StaleEtag, StateFencingMismatch};
    for (who, by, ms, expected) in [
        ("the holder", good.clone(), 0, [None; 3]),
        ("the holder, just in time", good.clone(), 19_999, [None; 3]),
        ("without a transaction", with(|by| by.txn_id = None), 0, [None; 3]),
        ("without naming the state", with(|by| by.state = None), 0, [None; 3]),
        ("without an etag", with(|by| by.meta_etag = None), 0, [None; 3]),
        ("another lease", with(|by| by.lease_id.push('x')), 0, all(LeaseMismatch)),
        ("another token", with(|by| by.fencing_token = 2), 0, all(LeaseMismatch)),
        ("no token", with(|by| by.fencing_token = 0), 0, all(LeaseMismatch)),
        (
            "another transaction",
            with(|by| by.txn_id = Some("x".into())),
            0,
            all(LeaseMismatch),
        ),
        ("too late", good.clone(), 20_000, all(LeaseExpired)),
        (
            "too late and stale",
            with(|by| by.meta_etag = Some("0".into())),
            20_000,
            all(LeaseExpired),
        ),
        (
            "another lease, and late",
            with(|by| by.lease_id.push('x')),
            20_000,
            all(LeaseMismatch),
        ),
        (
            "stale",
            with(|by| by.meta_etag = Some("0".into())),
            0,
            [None, Some(StaleEtag), Some(StaleEtag)],
        ),
        (
            "another lease of the state",
            with(|by| by.state.as_mut().unwrap().lease_id.push('x')),
            0,
            all(LeaseRequired),
        ),
        (
            "another token of the state",
            with(|by| by.state.as_mut().unwrap().fencing_token = Some(3)),
            0,
            all(StateFencingMismatch),
        ),
        (
            "no token of the state",
            with(|by| by.state.as_mut().unwrap().fencing_token = None),
            0,
            [None; 3],
        ),
        (
            "another mark of the state",
            with(|by| by.state_etag = Some("x".into())),
            0,
            [Some(StaleEtag), None, None],
        ),
    ] {
        assert_eq!(answers(&record, &by, at(ms)), expected, "{who}");
    }
    let stateless = delivered(&ready(), grant('a'), NOW);
    let by = Holder {
        state: good.state.clone(),
        ..holder(&stateless)
    };
    assert_eq!(
        answers(&stateless, &by, NOW),
        all(LeaseRequired),
        "a state that was never leased"
    );
}

/// LQ-46: ack and nack and extend, with the old revision, the new one, and none, after the lease was given up.
#[test]
fn nobody_acts_on_a_message_that_is_not_leased() {
    let record = leased();
    let old = holder(&record);
    for ended in [
        nack(&record, &old, &failure(0, None), NOW).unwrap(),
        nack(&record, &old, &deferral(5), NOW).unwrap(),
        rolled_back(&record, NOW),
        given_back(&record, NOW),
    ] {
        let new = Holder {
            meta_etag: Some(ended.meta_etag()),
            ..old.clone()
        };
        let none = Holder {
            meta_etag: None,
            ..old.clone()
        };
        let (stale, required) = (Some(Refusal::StaleEtag), Some(Refusal::LeaseRequired));
        assert_eq!(answers(&ended, &old, NOW), [stale, stale, required]);
        assert_eq!(answers(&ended, &new, NOW), [required; 3]);
        assert_eq!(answers(&ended, &none, NOW), [required; 3]);
    }
}

/// LQ-41.
#[test]
fn whoever_is_late_hears_so_until_somebody_else_has_the_message() {
    let record = leased();
    let late = holder(&record);
    assert_eq!(answers(&record, &late, at(20_000)), [Some(Refusal::LeaseExpired); 3]);
    let next = delivered(&record, grant('b'), at(20_000));
    assert_eq!(answers(&next, &late, at(20_000)), [Some(Refusal::LeaseMismatch); 3]);
}

#[test]
fn only_failures_lead_to_death() {
    let mut record = new(NewMessage {
        max_attempts: 2,
        ..NewMessage::default()
    });
    for _ in 0..10 {
        record = delivered(
            &record,
            grant('a'),
            Now {
                ms: record.visible_from_ms,
            },
        );
        assert_eq!(
            standing(
                &record,
                Now {
                    ms: record.visible_from_ms
                }
            ),
            Standing::Ready
        );
    }
    for _ in 0..10 {
        record = nacked(&record, &deferral(0), NOW);
        record = rolled_back(&record, NOW);
        record = given_back(&record, NOW);
        assert_eq!(standing(&record, NOW), Standing::Ready);
    }
    record = nacked(&record, &failure(0, None), NOW);
    assert_eq!(standing(&record, NOW), Standing::Ready);
    record = nacked(&record, &failure(60, None), NOW);
    assert_eq!(standing(&record, NOW), Standing::Dead);
}

#[test]
fn a_dead_message_keeps_what_it_was_and_what_its_last_consumer_said() {
    let before = MessageRecord {
        attributes: Some(r#"{"a":1}"#.into()),
        last_error: Some(r#"{"code":"E42"}"#.into()),
        ..leased()
    };
    let put_aside = dead(&before, "2026-01-01T10:00:00.000Z", NOW);
    assert_eq!(
        put_aside.last_error.as_deref(),
        Some(
            r#"{"reason":"max_attempts_exceeded","time_rfc3339":"2026-01-01T10:00:00.000Z","last_error":{"code":"E42"}}"#
        )
    );
    let kept = MessageRecord {
        last_error: before.last_error.clone(),
        lease: before.lease.clone(),
        revision: before.revision,
        ..put_aside
    };
    assert_eq!(kept, before);
    let silent = dead(&ready(), "2026-01-01T10:00:00.000Z", NOW).last_error.unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&silent).unwrap();
    assert_eq!(parsed["reason"], "max_attempts_exceeded");
    assert!(parsed.get("last_error").is_none());
}

#[test]
fn a_rollback_says_so_and_counts_nothing() {
    let record = leased();
    let back = rolled_back(&record, at(5));
    assert_eq!(back.last_error.as_deref(), Some(r#"{"reason":"txn_rollback"}"#));
    assert_eq!(
        (back.failure_attempts, back.attempts, back.visible_from_ms),
        (0, 1, NOW.ms + 5)
    );
}

#[test]
fn the_lease_of_a_state_outlives_that_of_its_message_by_less_than_a_second() {
    for (end_ms, end_unix) in [
        (2_000, 2),
        (2_001, 3),
        (2_999, 3),
        (3_000, 3),
        (i64::MAX, i64::MAX / 1000 + 1),
    ] {
        assert_eq!(state_lease_end_unix(end_ms), end_unix);
    }
}
