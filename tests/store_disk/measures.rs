//! Figures, not claims: run them with `cargo test --release --test store_disk measures -- --ignored --nocapture`.

use std::fs;
use std::thread;

use lockd::clock::{Clock, SystemClock};
use lockd::store::shared_log::Options;
use lockd::store::{Precondition, RecordKey, Store};

use super::tools::*;

pub(crate) fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Restart time and memory by the number of records, with values as long as those of a key with a lease.
#[test]
#[ignore = "figures"]
fn restart_and_memory_by_number_of_records() {
    let clock = SystemClock::new();
    for records in [1_000, 100_000, 1_000_000] {
        let (_dir, root) = new_root();
        let store = open_with(&root, Options::default());
        for first in (0..records).step_by(1_000) {
            let writes = (first..first + 1_000)
                .map(|n| write_of(&format!("k/default/orders/{n:09}"), Precondition::Absent, &[b'v'; 500]));
            store.write(batch_of(writes.collect())).unwrap();
        }
        let start = clock.now();
        for n in 0..200 {
            put(&store, &format!("k/default/orders/{n:09}"), &[b'w'; 500]);
        }
        let write_us = clock.now().since(start).as_micros() / 200;
        let start = clock.now();
        for n in 0..10_000 {
            let key = RecordKey::new(format!("k/default/orders/{:09}", n * 7919 % records));
            assert!(store.read(&key).unwrap().is_some());
        }
        let read_ns = clock.now().since(start).as_nanos() / 10_000;
        drop(store);
        let start = clock.now();
        let store = open_with(&root, Options::default());
        let from_log_ms = clock.now().since(start).as_millis();
        // In a process of its own, since memory that is free again still counts.
        let grown_kib = Helper::start("grow", &root, "").find_line("grown ").unwrap();
        let bytes_per_key = grown_kib.parse::<u64>().unwrap() * 1024 / records;
        let start = clock.now();
        store.compact().unwrap();
        let compact_ms = clock.now().since(start).as_millis();
        drop(store);
        let start = clock.now();
        let store = open_with(&root, Options::default());
        let from_snapshot_ms = clock.now().since(start).as_millis();
        assert!(
            store
                .read(&RecordKey::new("k/default/orders/000000007"))
                .unwrap()
                .is_some()
        );
        eprintln!(
            "{records} records: write {write_us} us, read {read_ns} ns, open from log {from_log_ms} ms, from snapshot \
             {from_snapshot_ms} ms, compaction {compact_ms} ms, {bytes_per_key} bytes of memory each"
        );
    }
}

/// Syncs and writes per second by the number of writers, each with a record of its own.
#[test]
#[ignore = "figures"]
fn syncs_per_write_by_number_of_writers() {
    let clock = SystemClock::new();
    for writers in [1, 8, 32, 128] {
        let (_dir, root) = new_root();
        let store = open_with(&root, Options::default());
        let writes = 6_400 / writers;
        let before = store.counters();
        let start = clock.now();
        thread::scope(|scope| {
            for writer in 0..writers {
                let store = &store;
                scope.spawn(move || (0..writes).for_each(|_| drop(put(store, &format!("{writer}"), &[1; 500]))));
            }
        });
        let seconds = clock.now().since(start).as_secs_f64();
        let syncs = store.counters().syncs - before.syncs;
        let total = writers * writes;
        eprintln!(
            "{writers} writers: {:.0} writes/s, {:.3} syncs per write",
            total as f64 / seconds,
            syncs as f64 / total as f64
        );
    }
}
