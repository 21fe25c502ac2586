use super::*;
use crate::record::Body;

const NOW: Now = Now { ms: 1_000_000_900 };

fn xid(last: char) -> Xid {
    Xid::parse(&format!("d4k7q2m0h5r8e1t6n9{last}0")).unwrap()
}

fn grant(last: char) -> Grant {
    Grant {
        lease_id: xid(last),
        txn_id: Xid::parse(&format!("d4k7q2m0h5r8e1t6n9{last}g")).unwrap(),
        explicit: false,
        owner: "me".to_owned(),
        ttl_seconds: 30,
        create_only: false,
    }
}

fn holder(record: &KeyRecord) -> Credentials {
    let lease = record.lease.as_ref().unwrap();
    Credentials {
        lease_id: lease.id.as_str().to_owned(),
        fencing_token: record.fencing_token,
        txn_id: Some(lease.txn_id.as_str().to_owned()),
    }
}

fn value(text: &str) -> StateValue {
    StateValue {
        etag: format!("etag of {text}").into(),
        bytes: text.len() as u64,
        body: Body::Inline(text.as_bytes().into()),
    }
}

fn held() -> KeyRecord {
    acquire(None, &grant('b'), NOW).unwrap()
}

fn updated(record: &KeyRecord, text: &str) -> KeyRecord {
    stage_state(
        record,
        &holder(record),
        &Expected::default(),
        value(text),
        Attributes::default(),
        NOW,
    )
    .unwrap()
}

fn at_version(version: i64) -> KeyRecord {
    let mut record = held();
    record.version = version;
    record.state = Some(value("old"));
    record
}

fn at(seconds_later: i64) -> Now {
    Now {
        ms: NOW.ms + seconds_later * 1000,
    }
}

#[test]
fn a_grant_raises_the_token_by_one_over_release_removal_rollback_and_expiry() {
    let first = held();
    assert_eq!((first.fencing_token, first.version), (1, 0));
    let mut record = committed(&updated(&first, "1"), NOW);
    record = acquire(Some(&record), &grant('c'), NOW).unwrap();
    assert_eq!(record.fencing_token, 2);
    let removed = stage_removal(&record, &holder(&record), &Expected::default(), NOW)
        .unwrap()
        .unwrap();
    record = acquire(Some(&committed(&removed, NOW)), &grant('d'), NOW).unwrap();
    assert_eq!(record.fencing_token, 3);
    record = acquire(Some(&cleared(&record, NOW)), &grant('e'), NOW).unwrap();
    assert_eq!(record.fencing_token, 4);
    record = acquire(Some(&record), &grant('f'), at(30)).unwrap();
    assert_eq!(record.fencing_token, 5);
}

#[test]
fn a_lease_is_dead_at_the_second_of_its_expiry() {
    let record = held();
    let end = record.lease.as_ref().unwrap().expires_at_unix;
    assert_eq!(end, 1_000_030);
    assert!(check_holder(&record, &holder(&record), Now { ms: end * 1000 - 1 }).is_ok());
    let refusal = check_holder(&record, &holder(&record), Now { ms: end * 1000 }).unwrap_err();
    assert_eq!(refusal.reason, Reason::LeaseExpired);
    let after = *refusal.cleared.unwrap();
    assert_eq!(after.lease, None);
    assert_eq!(
        check_holder(&after, &holder(&record), at(30)).unwrap_err().reason,
        Reason::LeaseRequired
    );
}

#[test]
fn a_living_lease_refuses_everybody_else_even_its_owner() {
    let record = held();
    let refusal = acquire(Some(&record), &grant('b'), NOW).unwrap_err();
    assert_eq!(refusal.reason, Reason::Held { until_unix: 1_000_030 });
}

#[test]
fn checks_come_in_their_order() {
    let record = held();
    let good = holder(&record);
    let wrong_id = Credentials {
        lease_id: "x".into(),
        fencing_token: 99,
        txn_id: None,
    };
    assert_eq!(
        check_holder(&record, &wrong_id, NOW).unwrap_err().reason,
        Reason::LeaseRequired
    );
    let wrong_token = Credentials {
        fencing_token: 99,
        txn_id: None,
        ..good.clone()
    };
    assert_eq!(
        check_holder(&record, &wrong_token, NOW).unwrap_err().reason,
        Reason::FencingMismatch
    );
    assert_eq!(
        check_holder(&record, &wrong_token, at(40)).unwrap_err().reason,
        Reason::LeaseExpired
    );
    let no_txn = Credentials {
        txn_id: None,
        ..good.clone()
    };
    assert_eq!(
        check_holder(&record, &no_txn, NOW).unwrap_err().reason,
        Reason::MissingTxn
    );
    let other_txn = Credentials {
        txn_id: Some("other".into()),
        ..good
    };
    assert_eq!(
        check_holder(&record, &other_txn, NOW).unwrap_err().reason,
        Reason::TxnMismatch
    );
    assert!(check_lease(&record, &no_txn, NOW).is_ok());
}

#[test]
fn create_only_meets_an_existing_record_even_an_empty_one() {
    let once = Grant {
        create_only: true,
        ..grant('c')
    };
    assert!(acquire(None, &once, NOW).is_ok());
    let emptied = cleared(&held(), NOW);
    assert_eq!(
        acquire(Some(&emptied), &once, NOW).unwrap_err().reason,
        Reason::AlreadyExists
    );
    assert_eq!(
        acquire(Some(&held()), &once, NOW).unwrap_err().reason,
        Reason::AlreadyExists
    );
}

#[test]
fn keepalive_sets_the_expiry_and_nothing_else() {
    let record = updated(&held(), "1");
    let longer = keepalive(&record, &holder(&record), 60, NOW).unwrap();
    assert_eq!(longer.lease.as_ref().unwrap().expires_at_unix, 1_000_060);
    assert_eq!(
        (longer.fencing_token, &longer.staged),
        (record.fencing_token, &record.staged)
    );
    let shorter = keepalive(&record, &holder(&record), 1, NOW).unwrap();
    assert_eq!(shorter.lease.unwrap().expires_at_unix, 1_000_001);
}

#[test]
fn ten_updates_of_one_lease_are_one_version() {
    let mut record = held();
    for round in 0..10 {
        record = updated(&record, &round.to_string());
        assert_eq!(record.effective_version(), 1);
    }
    record = acquire(Some(&committed(&record, NOW)), &grant('c'), NOW).unwrap();
    assert_eq!(record.version, 1);
    assert_eq!(updated(&record, "2").effective_version(), 2);
}

#[test]
fn update_then_remove_then_update_counts_as_documented() {
    let record = updated(&at_version(4), "new");
    assert_eq!(record.effective_version(), 5);
    let removed = stage_removal(&record, &holder(&record), &Expected::default(), NOW)
        .unwrap()
        .unwrap();
    assert_eq!((removed.effective_version(), removed.effective_state()), (6, None));
    let done = committed(&removed, NOW);
    assert_eq!((done.version, done.state), (6, None));
    let revived = updated(&removed, "again");
    assert_eq!(revived.effective_version(), 6);
    assert_eq!(committed(&revived, NOW).state, Some(value("again")));
}

#[test]
fn removing_nothing_stages_nothing() {
    let record = held();
    assert_eq!(
        stage_removal(&record, &holder(&record), &Expected::default(), NOW),
        Ok(None)
    );
}

#[test]
fn removing_twice_in_one_lease_counts_twice() {
    let record = at_version(4);
    let once = stage_removal(&record, &holder(&record), &Expected::default(), NOW)
        .unwrap()
        .unwrap();
    let twice = stage_removal(&once, &holder(&once), &Expected::default(), NOW)
        .unwrap()
        .unwrap();
    assert_eq!((once.effective_version(), twice.effective_version()), (5, 6));
}

#[test]
fn the_committed_version_passes_until_a_state_is_staged() {
    let expected = |version| Expected {
        version: Some(version),
        etag: None,
    };
    let record = at_version(4);
    let by = holder(&record);
    let hidden = Attributes {
        query_hidden: Some(true),
    };
    let staged = stage_attributes(&record, &by, &Expected::default(), hidden, NOW).unwrap();
    for version in [4, 5] {
        assert!(stage_state(&staged, &by, &expected(version), value("n"), Attributes::default(), NOW).is_ok());
    }
    let written = updated(&record, "n");
    let refusal = stage_state(&written, &by, &expected(4), value("m"), Attributes::default(), NOW).unwrap_err();
    assert_eq!((refusal.reason, refusal.version), (Reason::VersionConflict, 5));
    assert_eq!(refusal.etag.as_deref(), Some("etag of n"));
    assert!(stage_state(&written, &by, &expected(5), value("m"), Attributes::default(), NOW).is_ok());
    assert!(stage_state(&held(), &by, &expected(0), value("m"), Attributes::default(), NOW).is_ok());
}

#[test]
fn the_version_from_before_a_staged_removal_is_stale() {
    let record = at_version(4);
    let by = holder(&record);
    let removed = stage_removal(&record, &by, &Expected::default(), NOW).unwrap().unwrap();
    let before = Expected {
        version: Some(4),
        etag: Some("etag of old".to_owned()),
    };
    let refusal = stage_state(&removed, &by, &before, value("m"), Attributes::default(), NOW).unwrap_err();
    assert_eq!(refusal.reason, Reason::VersionConflict);
}

#[test]
fn a_removal_checks_the_etag_before_the_version() {
    let record = at_version(4);
    let by = holder(&record);
    let reason = |version, etag: &str| {
        let expected = Expected {
            version: Some(version),
            etag: Some(etag.to_owned()),
        };
        stage_removal(&record, &by, &expected, NOW).unwrap_err().reason
    };
    assert_eq!(reason(4, "stale"), Reason::EtagMismatch);
    assert_eq!(reason(3, "stale"), Reason::EtagMismatch);
    assert_eq!(reason(3, "etag of old"), Reason::VersionConflict);
}

#[test]
fn attributes_alone_leave_the_version_and_a_removal_drops_staged_ones() {
    let record = at_version(4);
    let by = holder(&record);
    let hidden = Attributes {
        query_hidden: Some(true),
    };
    let staged = stage_attributes(&record, &by, &Expected::default(), hidden, NOW).unwrap();
    assert_eq!(staged.effective_version(), 5);
    let done = committed(&staged, NOW);
    assert_eq!((done.version, done.attributes), (4, hidden));
    let removed = stage_removal(&staged, &by, &Expected::default(), NOW).unwrap().unwrap();
    assert_eq!(committed(&removed, NOW).attributes, Attributes::default());
}

#[test]
fn a_release_tells_what_it_found() {
    let record = held();
    let by = holder(&record);
    assert_eq!(release_case(&record, &by, NOW), Ok(ReleaseCase::Held));
    let other_token = Credentials {
        fencing_token: 7,
        ..by.clone()
    };
    assert_eq!(release_case(&record, &other_token, NOW), Ok(ReleaseCase::NothingHeld));
    let other_txn = Credentials {
        txn_id: Some("x".to_owned()),
        ..by.clone()
    };
    assert_eq!(
        release_case(&record, &other_txn, NOW).unwrap_err().reason,
        Reason::TxnMismatch
    );
    assert!(matches!(
        release_case(&record, &other_txn, at(31)),
        Ok(ReleaseCase::Expired(_))
    ));
    assert_eq!(
        release_case(&cleared(&record, NOW), &by, NOW),
        Ok(ReleaseCase::NothingHeld)
    );
}

#[test]
fn a_ttl_is_bounded() {
    assert_eq!(clamp_ttl(0, 30, 1800), 30);
    assert_eq!(clamp_ttl(-5, 30, 1800), 30);
    assert_eq!(clamp_ttl(10_i64.pow(10), 30, 1800), 1800);
    assert_eq!(clamp_ttl(45, 30, 1800), 45);
}
