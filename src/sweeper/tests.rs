use std::fs::File;
use std::io::Write;
use std::time::SystemTime;

use super::*;
use crate::clock::{Clock, ManualClock, SystemClock};
use crate::ids::BodyId;
use crate::keys::{
    MessageId, Namespace, QueueId, QueueName, RecordKey, dead_message_record, message_record, queue_state_key,
};
use crate::lease::rules::Reason;
use crate::lease::testbed::{SIZES, Testbed, name, state_of, txn, wanted};
use crate::news::NobodyListens;
use crate::record::{
    Body, KeyRecord, MessageLease, MessagePayload, MessageRecord, Participant, StateValue, Subject, TxnRecord,
    encode_key, encode_message, encode_txn,
};
use crate::store::fault::{Fault, Operation};
use crate::store::shared_log::{Options, SharedLogStore};
use crate::store::{Batch, Change, Precondition, RecordWrite, Store, Written};

const LATER: Duration = Duration::from_secs(31);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Testbed {
    fn sweep(&self) -> usize {
        sweep_leases(&self.table, &Pace::without_pauses()).unwrap()
    }

    fn retire(&self, retention: Duration) -> usize {
        sweep_retention(&self.table, retention, &Pace::without_pauses()).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.records().into_iter().map(|(name, _)| name).collect()
    }

    /// Commits a state and returns the token it took.
    fn save(&self, key: &str, state: &str) -> i64 {
        let by = self.hold(key);
        self.update(key, &by, state).unwrap();
        self.leases.release(&name(key), &by, false).unwrap();
        by.fencing_token
    }
}

fn put(store: &dyn Store, key: &str, value: Arc<[u8]>) {
    let batch = Batch {
        records: vec![RecordWrite {
            key: RecordKey::new(key),
            precondition: Precondition::Any,
            change: Change::Put(value),
        }],
        ..Batch::default()
    };
    assert!(matches!(store.write(batch), Ok(Written::Done(_))));
}

#[test]
fn an_expired_lease_is_cleared_with_all_that_it_had_staged() {
    for bytes in SIZES {
        let bed = Testbed::new();
        bed.save("a", "1");
        let by = bed.hold("a");
        bed.update("a", &by, &state_of(bytes, 'x')).unwrap();
        let before = bed.record("a");
        bed.ended.take();
        bed.clock.advance(LATER);
        assert_eq!(bed.sweep(), 1);
        let after = bed.record("a");
        assert_eq!((&after.lease, &after.staged), (&None, &None));
        assert_eq!((after.version, after.fencing_token), (1, before.fencing_token));
        assert_eq!(bed.names(), ["k/default/a"]);
        assert_eq!(bed.memory.counts().bodies, 0);
        assert_eq!(bed.ended.take(), ["k/default/a"], "whoever waits must hear of it");
        assert_eq!(bed.sweep(), 0);
    }
}

#[test]
fn a_living_lease_is_left_alone_to_its_last_second() {
    let bed = Testbed::new();
    let by = bed.hold("a");
    bed.update("a", &by, "1").unwrap();
    let before = bed.records();
    bed.clock.advance(Duration::from_secs(29));
    assert_eq!(bed.sweep(), 0);
    assert_eq!(bed.records(), before);
    bed.clock.advance(Duration::from_secs(1));
    assert_eq!(bed.sweep(), 1);
}

#[test]
fn a_transaction_of_which_nobody_lives_is_forgotten_also_when_its_keys_have_other_holders() {
    let bed = Testbed::new();
    for key in ["a", "b"] {
        let by = bed.hold_in(key, &txn('k'));
        bed.update(key, &by, "1").unwrap();
    }
    // A server that died before it could tell the transaction that its members are lost.
    let left_behind = bed
        .memory
        .read(&RecordKey::new(format!("t/{}", txn('k'))))
        .unwrap()
        .unwrap();
    bed.clock.advance(LATER);
    let new_holder = bed.hold("a");
    bed.hold("b");
    put(&bed.memory, &format!("t/{}", txn('k')), left_behind.value);
    assert_eq!(bed.names().len(), 5);
    assert_eq!(bed.sweep(), 1);
    assert!(!bed.names().contains(&format!("t/{}", txn('k'))));
    bed.update("a", &new_holder, "2").unwrap();
}

#[test]
fn a_living_member_keeps_a_transaction_and_what_it_knows_of_the_lost_ones() {
    let bed = Testbed::new();
    let lost = bed.hold_in("a", &txn('k'));
    bed.update("a", &lost, "1").unwrap();
    bed.clock.advance(Duration::from_secs(20));
    let living = bed.hold_in("b", &txn('k'));
    bed.update("b", &living, "2").unwrap();
    bed.clock.advance(Duration::from_secs(15));
    assert_eq!(bed.sweep(), 1);
    assert_eq!(bed.record("a").staged, None);
    assert_eq!(bed.sweep(), 0);
    let answer = bed.leases.release(&name("b"), &living, false);
    assert_eq!(answer.unwrap_err().reason(), Some(Reason::TxnConflict));
    assert_eq!(bed.record("b").version, 0);
}

#[test]
fn a_message_under_a_lease_keeps_its_transaction_and_one_whose_lease_has_lapsed_does_not() {
    let bed = Testbed::new();
    let id = MessageId::parse("0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50").unwrap();
    let mut record = message(bed.clock.wall_ms(), Body::Inline(Arc::from(&[1; 10_000][..])));
    record.visible_from_ms += 30_000;
    record.lease = Some(MessageLease {
        id: txn('m'),
        owner: "o".into(),
        txn_id: txn('k'),
        explicit: true,
        state: None,
    });
    put(
        &bed.memory,
        message_record(&keys_of_queue(), id).as_str(),
        encode_message(&record),
    );
    let member = Participant {
        subject: Subject::Message {
            queue: keys_of_queue(),
            id,
        },
        lease_id: txn('m'),
        enlisted: true,
        lost: false,
        epoch: 0,
    };
    let txn_record = TxnRecord {
        participants: vec![member],
        decision: None,
    };
    put(&bed.memory, &format!("t/{}", txn('k')), encode_txn(&txn_record));
    assert_eq!(bed.sweep(), 0);
    bed.clock.advance(LATER);
    assert_eq!(bed.sweep(), 1);
    assert_eq!(bed.names(), [format!("m/default/jobs/{id}")]);
}

#[test]
fn more_leases_than_a_batch_holds_are_cleared_in_one_pass_and_damage_is_passed_over() {
    let bed = Testbed::new();
    for n in 0..300 {
        bed.hold(&format!("key-{n}"));
    }
    put(&bed.memory, "t/00damaged", Arc::from(&b"no record"[..]));
    bed.clock.advance(LATER);
    assert_eq!(bed.sweep(), 300);
    assert_eq!(bed.names().iter().filter(|name| name.starts_with("t/")).count(), 1);
}

#[test]
fn a_pass_that_fails_in_the_middle_is_finished_by_the_next_one() {
    let bed = Testbed::new();
    for n in 0..5 {
        let by = bed.hold(&format!("key-{n}"));
        bed.update(&format!("key-{n}"), &by, "1").unwrap();
    }
    bed.clock.advance(LATER);
    let third = bed.faulty.calls(Operation::Write) + 3;
    bed.faulty.inject(Operation::Write, third, Fault::FailBefore);
    assert!(sweep_leases(&bed.table, &Pace::without_pauses()).is_err());
    assert_eq!(bed.sweep(), 3);
    assert!(bed.names().iter().all(|name| name.starts_with("k/")));
}

#[test]
fn two_servers_may_sweep_the_same_store() {
    let bed = Testbed::new();
    let other = bed.another();
    bed.hold("a");
    bed.clock.advance(LATER);
    assert_eq!((bed.sweep(), other.sweep()), (1, 0));
}

#[test]
fn keys_that_have_not_changed_for_long_are_deleted_with_their_bodies_and_others_stay() {
    let bed = Testbed::new();
    for (key, bytes) in ["old-1", "old-2", "old-3"].iter().zip(SIZES) {
        bed.save(key, &state_of(bytes, 'x'));
    }
    bed.clock.advance(DAY / 2);
    bed.save("young", "1");
    let holder = bed.hold("held");
    bed.clock.advance(DAY / 2);
    // Its lease is over by now, but nobody has cleared it.
    assert_eq!(bed.retire(DAY), 3);
    assert_eq!(
        bed.names(),
        [
            "k/default/held",
            "k/default/young",
            &format!("p/{}", holder.txn_id.as_deref().unwrap()),
            "r/default"
        ]
    );
    assert_eq!(bed.memory.counts().bodies, 0);
    assert_eq!(bed.retire(DAY), 0);
}

#[test]
fn a_key_under_a_lease_is_never_deleted() {
    let bed = Testbed::new();
    bed.save("a", "1");
    bed.clock.advance(DAY);
    let by = bed.hold("a");
    assert_eq!(bed.retire(Duration::ZERO), 0);
    bed.leases.release(&name("a"), &by, false).unwrap();
    assert_eq!(bed.retire(DAY), 0, "it has just changed");
    assert_eq!(bed.retire(Duration::ZERO), 1);
}

#[test]
fn fencing_tokens_go_on_after_a_key_was_deleted_for_its_age() {
    let bed = Testbed::new();
    let other = bed.another();
    for _ in 0..4 {
        bed.save("a", "1");
    }
    let last = bed.save("a", "1");
    bed.save("b", "1");
    bed.clock.advance(DAY);
    assert_eq!(bed.retire(DAY), 2);
    // To its clients it is a new key, but for the token.
    let mut request = wanted("a", None);
    request.create_only = true;
    let granted = other.leases.acquire(&request).unwrap();
    assert_eq!((granted.version, granted.fencing_token), (0, last + 1));
    // One that never was is served likewise: nobody can tell it from one that was.
    assert_eq!(other.hold("c").fencing_token, last + 1);
    // And further deletions never lower it.
    bed.clock.advance(DAY);
    bed.sweep();
    bed.save("d", "1");
    bed.clock.advance(DAY);
    bed.sweep();
    bed.clock.advance(DAY);
    assert_eq!(bed.retire(DAY), 3);
    assert_eq!(bed.hold("e").fencing_token, last + 2);
}

fn message(updated_at_ms: i64, body: Body) -> MessageRecord {
    MessageRecord {
        enqueued_at_ms: updated_at_ms,
        updated_at_ms,
        revision: 1,
        visible_from_ms: updated_at_ms,
        expires_at_ms: None,
        visibility_seconds: 30,
        attempts: 0,
        failure_attempts: 0,
        max_attempts: 5,
        fencing_token: 0,
        lease: None,
        state_etag: None,
        attributes: None,
        last_error: None,
        payload: MessagePayload { bytes: 10_000, body },
        payload_type: "text/plain".into(),
        correlation_id: "c".into(),
    }
}

#[test]
fn messages_and_their_states_stay_and_dead_messages_go_with_age() {
    let bed = Testbed::new();
    let queue = keys_of_queue();
    let id = MessageId::parse("0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50").unwrap();
    let state_key = queue_state_key(&queue.queue, id);
    let now_ms = bed.clock.wall_ms();
    let body = BodyId::new("payload");
    bed.memory
        .write(Batch {
            bodies: vec![(body.clone(), Arc::from(&[1; 10][..]))],
            ..Batch::default()
        })
        .unwrap();
    let [alive, dead] =
        [Body::Inline(Arc::from(&[1; 10_000][..])), Body::Stored(body)].map(|body| message(now_ms, body));
    put(&bed.memory, message_record(&queue, id).as_str(), encode_message(&alive));
    put(
        &bed.memory,
        dead_message_record(&queue, id).as_str(),
        encode_message(&dead),
    );
    bed.save(state_key.as_str(), "1");
    bed.clock.advance(DAY);
    assert_eq!(bed.retire(2 * DAY), 0);
    assert_eq!(bed.retire(DAY), 1);
    assert_eq!(
        bed.names(),
        [format!("k/default/{state_key}"), format!("m/default/jobs/{id}")]
    );
    assert_eq!(bed.memory.counts().bodies, 0);
    // Without its message a state is a key like any other.
    let gone = RecordWrite {
        key: message_record(&queue, id),
        precondition: Precondition::Any,
        change: Change::Delete,
    };
    bed.memory
        .write(Batch {
            records: vec![gone],
            ..Batch::default()
        })
        .unwrap();
    assert_eq!(bed.retire(DAY), 1);
}

fn keys_of_queue() -> QueueId {
    QueueId {
        namespace: Namespace::parse("default").unwrap(),
        queue: QueueName::parse("jobs").unwrap(),
    }
}

/// A disk store with bodies of all kinds, two of them left over, all of them old.
struct DiskScene {
    dir: tempfile::TempDir,
    store: Arc<SharedLogStore>,
    table: KeyTable,
}

impl DiskScene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SharedLogStore::open(&dir.path().join("store"), Options::default()).unwrap());
        let clock = SystemClock::shared();
        let table = KeyTable::new(store.clone(), clock, Arc::new(NobodyListens));
        Self { dir, store, table }
    }

    fn body(&self) -> BodyId {
        let mut writer = self.store.body_writer().unwrap();
        writer.write_all(&[b'x'; 1_000]).unwrap();
        writer.finish().unwrap()
    }

    /// As a crash in the middle of an upload leaves it.
    fn unfinished(&self) {
        std::fs::write(self.dir.path().join("store/bodies/s-unfinished"), b"half").unwrap();
    }

    fn age_all(&self, age: Duration) {
        for entry in std::fs::read_dir(self.dir.path().join("store/bodies")).unwrap() {
            let file = File::options().write(true).open(entry.unwrap().path()).unwrap();
            #[allow(clippy::disallowed_methods, reason = "the file system reads this clock too")]
            file.set_modified(SystemTime::now() - age).unwrap();
        }
    }

    fn bodies(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("store/bodies")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Two passes, as only what is left over in both goes.
    fn sweep(&self) -> Result<usize, Error> {
        let mut noted = BTreeSet::new();
        Ok(self.pass(&mut noted)? + self.pass(&mut noted)?)
    }

    fn pass(&self, noted: &mut BTreeSet<BodyId>) -> Result<usize, Error> {
        sweep_bodies(&self.table, BODY_GRACE, noted, &Pace::without_pauses())
    }
}

fn key_with(body: &BodyId) -> Arc<[u8]> {
    encode_key(&KeyRecord {
        version: 1,
        state: Some(StateValue {
            etag: "e".into(),
            bytes: 1_000,
            body: Body::Stored(body.clone()),
        }),
        ..KeyRecord::default()
    })
}

#[test]
fn bodies_that_no_record_names_are_dropped_after_a_grace_and_the_others_stay() {
    let scene = DiskScene::new();
    let named: Vec<BodyId> = (0..3).map(|_| scene.body()).collect();
    put(&*scene.store, "k/default/a", key_with(&named[0]));
    for (record, body) in ["m/default/jobs/x", "d/default/jobs/y"].iter().zip(&named[1..]) {
        put(
            &*scene.store,
            record,
            encode_message(&message(0, Body::Stored(body.clone()))),
        );
    }
    put(&*scene.store, "t/x", encode_txn(&TxnRecord::default()));
    put(&*scene.store, "n/default", Arc::from(&b"{}"[..]));
    scene.body();
    scene.unfinished();
    scene.age_all(BODY_GRACE - Duration::from_secs(60));
    assert_eq!(scene.sweep().unwrap(), 0);
    assert_eq!(scene.bodies().len(), 5);

    scene.age_all(BODY_GRACE + Duration::from_secs(60));
    assert_eq!(scene.sweep().unwrap(), 2);
    let mut expected: Vec<String> = named.iter().map(|body| body.as_str().to_owned()).collect();
    expected.sort();
    assert_eq!(scene.bodies(), expected);
    assert_eq!(scene.sweep().unwrap(), 0);
}

/// A clock was days ahead, or had jumped there: what had just been written looked old, and was gone when it was named.
#[test]
fn a_body_that_is_yet_to_be_named_outlives_a_pass_by_a_wrong_clock() {
    let scene = DiskScene::new();
    let mut noted = BTreeSet::new();
    let body = scene.body();
    scene.age_all(2 * BODY_GRACE);
    assert_eq!(scene.pass(&mut noted).unwrap(), 0);
    put(&*scene.store, "k/default/a", key_with(&body));
    for _ in 0..2 {
        assert_eq!(scene.pass(&mut noted).unwrap(), 0);
        assert_eq!(scene.bodies(), [body.as_str()]);
    }
}

#[test]
fn nothing_is_dropped_while_any_record_is_unreadable_or_of_an_unknown_kind() {
    for (key, is_error) in [("k/default/damaged", true), ("z/newer", false)] {
        let scene = DiskScene::new();
        scene.body();
        scene.age_all(2 * BODY_GRACE);
        put(&*scene.store, key, Arc::from(&b"no record"[..]));
        assert_eq!(scene.sweep().is_err(), is_error, "{key}");
        assert_eq!(scene.bodies().len(), 1, "{key}");
    }
}

#[test]
fn the_first_pass_comes_within_one_interval_and_the_next_after_one() {
    let clock = ManualClock::at_wall_ms(0);
    for wanted in [Duration::ZERO, Duration::from_secs(300)] {
        let every = wanted.max(INTERVAL_MIN);
        let mut due = Due::new(clock.now(), wanted);
        assert!(clock.now().after(every / 2) <= due.at && due.at <= clock.now().after(every));
        clock.advance(every);
        assert!(due.is_now(clock.now()));
        assert!(!due.is_now(clock.now()));
        clock.advance(every - Duration::from_millis(1));
        assert!(!due.is_now(clock.now()));
        clock.advance(Duration::from_millis(1));
        assert!(due.is_now(clock.now()));
    }
}
