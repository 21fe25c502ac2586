//! What the claims have in common.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::store::{
    Batch, BodyId, Change, Etag, Precondition, RecordKey, RecordWrite, Store, StoreError, Stored, Written,
};

/// How long to wait for what must happen "at leisure" before calling it missing.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn key(name: &str) -> RecordKey {
    RecordKey::new(name)
}

pub(super) fn body_id(name: &str) -> BodyId {
    BodyId::new(name)
}

pub(super) fn put_change(value: &[u8]) -> Change {
    Change::Put(Arc::from(value))
}

pub(super) fn record(name: &str, precondition: Precondition, change: Change) -> RecordWrite {
    RecordWrite {
        key: key(name),
        precondition,
        change,
    }
}

pub(super) fn batch(records: Vec<RecordWrite>) -> Batch {
    Batch {
        records,
        ..Batch::default()
    }
}

pub(super) fn done(store: &dyn Store, batch: Batch) -> Vec<Option<Etag>> {
    match store.write(batch).unwrap() {
        Written::Done(etags) => etags,
        Written::Refused { index } => panic!("refused for record {index}"),
    }
}

pub(super) fn put(store: &dyn Store, name: &str, precondition: Precondition, value: &[u8]) -> Etag {
    match &done(store, batch(vec![record(name, precondition, put_change(value))]))[..] {
        [Some(etag)] => etag.clone(),
        etags => panic!("one etag is due for one put, not {etags:?}"),
    }
}

pub(super) fn delete(store: &dyn Store, name: &str, precondition: Precondition) {
    assert_eq!(
        done(store, batch(vec![record(name, precondition, Change::Delete)])),
        [None]
    );
}

pub(super) fn refuse(store: &dyn Store, name: &str, precondition: Precondition, change: Change) {
    let answer = store.write(batch(vec![record(name, precondition, change)])).unwrap();
    assert_eq!(answer, Written::Refused { index: 0 }, "{name}");
}

pub(super) fn read(store: &dyn Store, name: &str) -> Option<Vec<u8>> {
    store.read(&key(name)).unwrap().map(|stored| stored.value.to_vec())
}

pub(super) fn list(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Vec<String> {
    let rows = store.list(prefix, after.map(key).as_ref(), limit).unwrap();
    rows.into_iter().map(|row| row.key.as_str().to_owned()).collect()
}

/// The number that a record holds; 0 for no record.
pub(super) fn number(stored: Option<Stored>) -> u64 {
    stored.map_or(0, |stored| str::from_utf8(&stored.value).unwrap().parse().unwrap())
}

pub(super) fn write_body(store: &dyn Store, bytes: &[u8]) -> BodyId {
    let mut writer = store.body_writer().unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

pub(super) fn read_body(store: &dyn Store, id: &BodyId) -> Vec<u8> {
    let mut bytes = Vec::new();
    store.body_reader(id).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Bytes in which a piece that is missing, doubled or misplaced shows.
pub(super) fn body_bytes(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(size as u64).fill(&mut bytes);
    bytes
}

pub(super) fn wait_until_missing(store: &dyn Store, id: &BodyId) {
    wait_until(&format!("body {} is gone", id.as_str()), || {
        match store.body_reader(id) {
            Ok(_) => false,
            Err(StoreError::BodyMissing { body }) => body == *id,
            Err(error) => panic!("{error}"),
        }
    });
}

pub(super) fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let clock = SystemClock::new();
    let start = clock.now();
    while !holds() {
        assert!(clock.now().since(start) < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Counts from 1 up to `most`, or until a second is over: a quick engine shows its races by numbers, a slow one by its
/// slowness.
pub(super) fn up_to_in_a_second(most: u64) -> impl Iterator<Item = u64> {
    let clock = SystemClock::new();
    let start = clock.now();
    (1..=most).take_while(move |n| *n == 1 || clock.now().since(start) < Duration::from_secs(1))
}

/// Lets the other threads of a test end, also when the test fails: otherwise it would wait for them instead of saying so.
pub(super) struct StopAtEnd<'a>(pub(super) &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Says aloud that a claim was not tested.
pub(super) fn skipped(capability: &str) {
    eprintln!("skipped: this engine does without {capability}");
}
