//! Several processes on one root: this test binary runs itself again in a role, and is killed or stopped in it.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::store::shared_log::{Options, SharedLogStore, Step};
use lockd::store::{BodyId, Precondition, RecordKey, Store, StoreError, Written};
use rustix::process::{Pid, Signal, getpid, kill_process};

use super::measures::resident_kib;
use super::tools::*;

const WRITERS: usize = 4;

/// What the other processes do. Not a test: it does nothing unless it is told its role.
#[test]
#[ignore = "the role of a process that other tests start"]
fn helper() {
    let Ok(role) = env::var("LOCKD_HELPER_ROLE") else {
        return;
    };
    let root = PathBuf::from(env::var_os("LOCKD_HELPER_ROOT").unwrap());
    let argument = env::var("LOCKD_HELPER_ARGUMENT").unwrap();
    match role.as_str() {
        "increment" => {
            let store = SharedLogStore::open(&root, tiny()).unwrap();
            let won = (0..argument.parse().unwrap()).filter(|_| increment(&store)).count();
            say(&format!("won {won}"));
        }
        "count up" => {
            // The whole history stays in one segment.
            let store = open(&root);
            let won = (0..argument.parse().unwrap()).filter(|_| increment(&store)).count();
            say(&format!("won {won}"));
        }
        "counter" => {
            let stored = open(&root).read(&RecordKey::new("counter")).unwrap().unwrap();
            say(&format!("counter {} {}", number(&stored.value), stored.etag.as_str()));
        }
        "write" => write_for_ever(&root, argument.parse().unwrap()),
        "hold" => hold(&root),
        "compact" => compact(&root, argument.parse().unwrap()),
        "grow" => {
            let before_kib = resident_kib();
            let store = open(&root);
            assert!(store.healthy());
            say(&format!("grown {}", resident_kib() - before_kib));
        }
        "die" => die_at(&root, &argument),
        other => panic!("{other}"),
    }
}

fn tiny() -> Options {
    Options {
        segment_bytes_max: 20_000,
        compact_bytes_min: 60_000,
        body_bytes_in_log_max: 1_000,
        delete_grace: Duration::from_millis(50),
        ..Options::default()
    }
}

fn say(line: &str) {
    let mut out = stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

fn increment(store: &dyn Store) -> bool {
    let key = RecordKey::new("counter");
    let (precondition, number) = match store.read(&key).unwrap() {
        Some(stored) => (Precondition::Matches(stored.etag), number(&stored.value)),
        None => (Precondition::Absent, 0),
    };
    let next = (number + 1).to_string();
    let answer = store.write(batch_of(vec![write_of("counter", precondition, next.as_bytes())]));
    matches!(answer.unwrap(), Written::Done(_))
}

fn number(value: &[u8]) -> u64 {
    str::from_utf8(value).unwrap().parse().unwrap()
}

#[test]
fn increments_of_several_processes_are_never_lost() {
    let (_dir, root) = new_root();
    let mut helpers: Vec<Helper> = (0..3).map(|_| Helper::start("increment", &root, "400")).collect();
    let won: Vec<u64> = (helpers.iter_mut())
        .map(|helper| helper.find_line("won ").unwrap().parse().unwrap())
        .collect();
    eprintln!("won by each process: {won:?}");
    let stored = open(&root).read(&RecordKey::new("counter")).unwrap().unwrap();
    assert_eq!(number(&stored.value), won.iter().sum::<u64>());
    // Nobody starved.
    assert!(won.iter().all(|won| 0 < *won));
}

/// Each writer counts up in two records of one batch, sometimes with a large body, and says so after each answer.
fn write_for_ever(root: &Path, first: u64) {
    let store = Arc::new(SharedLogStore::open(root, tiny()).unwrap());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            lockd::threads::spawn("writer", move || {
                for n in first.. {
                    write_round(&*store, writer, n);
                    say(&format!("ack {writer} {n}"));
                }
            })
            .unwrap()
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

fn write_round(store: &dyn Store, writer: usize, n: u64) {
    let text = n.to_string();
    let filler = vec![b' '; (n % 7) as usize * 100];
    let padded = [text.as_bytes(), &filler].concat();
    let body = |n: u64| BodyId::new(format!("body-{writer}-{n}"));
    let batch = lockd::store::Batch {
        bodies: vec![(body(n), Arc::from(vec![b'x'; (n % 5) as usize * 400]))],
        records: vec![
            write_of(&format!("{writer}/first"), Precondition::Any, text.as_bytes()),
            write_of(&format!("{writer}/second"), Precondition::Any, &padded),
        ],
        drop_bodies: n.checked_sub(1).map(body).into_iter().collect(),
    };
    assert!(matches!(store.write(batch), Ok(Written::Done(_))));
}

/// What each writer has written last; panics if a batch is there by half.
fn last_rounds(store: &dyn Store) -> BTreeMap<usize, u64> {
    let mut rounds = BTreeMap::new();
    for writer in 0..WRITERS {
        let read = |name: &str| store.read(&RecordKey::new(format!("{writer}/{name}"))).unwrap();
        let (first, second) = (read("first"), read("second"));
        assert_eq!(first.is_some(), second.is_some());
        let (Some(first), Some(second)) = (first, second) else {
            continue;
        };
        let n = number(&first.value);
        assert_eq!(str::from_utf8(&second.value).unwrap().trim_end(), n.to_string());
        let mut bytes = Vec::new();
        let body = BodyId::new(format!("body-{writer}-{n}"));
        std::io::Read::read_to_end(&mut store.body_reader(&body).unwrap(), &mut bytes).unwrap();
        assert_eq!(bytes.len(), (n % 5) as usize * 400);
        rounds.insert(writer, n);
    }
    rounds
}

/// Two processes write while another one watches; both are killed at a random moment. `LOCKD_TEST_KILLS` sets how often.
#[test]
fn nothing_acknowledged_is_lost_when_writers_are_killed_at_any_moment() {
    let kills: u64 = env::var("LOCKD_TEST_KILLS").map_or(30, |text| text.parse().unwrap());
    let (_dir, root) = new_root();
    let mut rng = fastrand::Rng::new();
    let mut rounds: BTreeMap<usize, u64> = BTreeMap::new();
    let watcher = open_with(&root, tiny());
    let mut acknowledged = 0;
    for _ in 0..kills {
        let first = rounds.values().max().map_or(0, |n| n + 1);
        let mut helper = Helper::start("write", &root, &first.to_string());
        let mut acks: BTreeMap<usize, u64> = BTreeMap::new();
        let until_kill = rng.u32(1..60);
        for _ in 0..until_kill {
            take_ack(&helper.find_line("ack ").unwrap(), &mut acks);
            acknowledged += 1;
        }
        thread::sleep(Duration::from_micros(rng.u64(0..2_000)));
        helper.child.kill().unwrap();
        helper.child.wait().unwrap();
        while let Some(line) = helper.find_line("ack ") {
            // The last line may have been cut off with its writer.
            if line.split(' ').count() == 2 {
                take_ack(&line, &mut acks);
                acknowledged += 1;
            }
        }
        for store in [&watcher, &open_with(&root, tiny())] {
            let found = last_rounds(store);
            for (writer, n) in &acks {
                let last = found[writer];
                assert!(
                    *n <= last && last <= n + 1,
                    "writer {writer}: {n} acknowledged, {last} found"
                );
            }
            for (writer, n) in &rounds {
                assert!(*n <= found[writer]);
            }
            rounds = found;
        }
    }
    eprintln!("{kills} kills, {acknowledged} acknowledged writes, none lost");
}

fn take_ack(line: &str, acks: &mut BTreeMap<usize, u64>) {
    let (writer, n) = line.split_once(' ').unwrap();
    acks.insert(writer.parse().unwrap(), n.parse().unwrap());
}

/// Stands still in the middle of a commit until a line comes.
fn hold(root: &Path) {
    let options = Options {
        step_hook: Some(Arc::new(|step, _| {
            if step == Step::AppendSync {
                say("holding");
                stdin().lock().read_line(&mut String::new())?;
            }
            Ok(())
        })),
        ..Options::default()
    };
    let store = open_with(root, options);
    put(&store, "held", b"by the helper");
    say("written");
}

#[test]
fn a_stopped_holder_of_the_lock_makes_others_say_so_and_they_go_on_when_it_does() {
    let (_dir, root) = new_root();
    let options = Options {
        lock_wait: Duration::from_millis(200),
        ..Options::default()
    };
    let store = open_with(&root, options);
    put(&store, "a", b"1");
    for killed in [false, true] {
        let mut helper = Helper::start("hold", &root, "");
        helper.find_line("holding").unwrap();
        let pid = Pid::from_child(&helper.child);
        kill_process(pid, Signal::STOP).unwrap();
        let write = || store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
        let clock = SystemClock::new();
        let start = clock.now();
        let answer = write();
        assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
        // Far more than the bound, far less than for ever.
        assert!(clock.now().since(start) < Duration::from_secs(20));
        // Nothing is broken, and reads are not held up.
        assert!(store.healthy());
        assert!(store.read(&RecordKey::new("a")).unwrap().is_some());
        if killed {
            helper.child.kill().unwrap();
        } else {
            kill_process(pid, Signal::CONT).unwrap();
            helper.child.stdin.take().unwrap().write_all(b"\n").unwrap();
            helper.find_line("written").unwrap();
        }
        // Once it has gone on or died, the lock is free at once or a moment later.
        while write().is_err() {
            assert!(clock.now().since(start) < Duration::from_secs(20));
        }
        assert!(store.read(&RecordKey::new("held")).unwrap().is_some());
    }
}

/// Dies at the n-th time that it comes to a step: `Step:n`.
fn die_at(root: &Path, argument: &str) {
    let (step_name, times) = argument.split_once(':').unwrap();
    let (step_name, times): (String, usize) = (step_name.to_owned(), times.parse().unwrap());
    let seen = AtomicUsize::new(0);
    let options = Options {
        step_hook: Some(Arc::new(move |step, _| {
            if format!("{step:?}") == step_name && seen.fetch_add(1, Ordering::SeqCst) + 1 == times {
                kill_process(getpid(), Signal::KILL)?;
            }
            Ok(())
        })),
        // The grace is over at once, so that removing is a part of it.
        ..tiny()
    };
    let store = SharedLogStore::open(root, options).unwrap();
    for n in 0.. {
        write_round(&store, 0, n);
        say(&format!("ack 0 {n}"));
        if n % 40 == 39 {
            store.compact().unwrap();
        }
    }
}

#[test]
fn killed_at_each_step_of_writing_rolling_and_compacting_one_valid_state_remains() {
    let steps = [
        Step::Append,
        Step::AppendSync,
        Step::Mark,
        Step::CreateSegment,
        Step::CreateSync,
        Step::BodySync,
        Step::CreateSnapshot,
        Step::SnapshotEntries,
        Step::SnapshotEnd,
        Step::SnapshotSync,
        Step::Announce,
        Step::RemoveOld,
    ];
    for step in steps {
        for times in [1, 2, 3] {
            let (_dir, root) = new_root();
            // Something to compact that is not touched any more.
            let store = open_with(&root, tiny());
            for n in 0..30 {
                put(&store, &format!("stays/{n}"), &[b'a'; 300]);
            }
            let stays = contents(&store);
            let mut helper = Helper::start("die", &root, &format!("{step:?}:{times}"));
            let mut acks = BTreeMap::new();
            while let Some(line) = helper.find_line("ack ") {
                take_ack(&line, &mut acks);
            }
            assert!(!helper.child.wait().unwrap().success());
            let last = acks.get(&0).copied();
            for store in [&store, &open_with(&root, tiny())] {
                let mut found = contents(store);
                found.retain(|name, _| name.starts_with("stays/"));
                assert_eq!(found, stays, "{step:?} {times}");
                let round = last_rounds(store).get(&0).copied();
                let expected = [last, Some(last.map_or(0, |n| n + 1))];
                assert!(expected.contains(&round), "{step:?} {times}: {last:?}, {round:?}");
            }
            // What it left is no obstacle to the next compaction.
            let store = open_with(&root, tiny());
            assert!(store.compact().unwrap());
            put(&store, "after", b"");
            assert_eq!(contents(&open(&root)), contents(&store));
        }
    }
}

#[test]
fn compaction_goes_on_among_writers_of_several_processes_and_old_files_go() {
    let (_dir, root) = new_root();
    let mut writers: Vec<Helper> = (0..2).map(|_| Helper::start("increment", &root, "600")).collect();
    let store = open_with(&root, tiny());
    put(&store, "stays", &[1; 1_000]);
    for _ in 0..5 {
        while !store.compact().unwrap() {
            thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..100 {
            put(&store, "filler", &[2; 1_000]);
        }
    }
    let won: u64 = (writers.iter_mut())
        .map(|writer| writer.find_line("won ").unwrap().parse::<u64>().unwrap())
        .sum();
    let counter = |store: &dyn Store| number(&store.read(&RecordKey::new("counter")).unwrap().unwrap().value);
    assert_eq!(counter(&store), won);
    assert_eq!(contents(&open(&root)), contents(&store));
    assert_eq!(
        store.read(&RecordKey::new("stays")).unwrap().unwrap().value.len(),
        1_000
    );
    store.compact().unwrap();
    wait_until("old files are gone", || {
        log_files(&root, "snapshot").len() == 1 && log_files(&root, "segment").len() == 1
    });
    assert_eq!(counter(&open(&root)), won);
    assert_eq!(counter(&store), won);
}

/// Compacts so often.
fn compact(root: &Path, times: usize) {
    let store = SharedLogStore::open(root, tiny()).unwrap();
    let mut done = 0;
    while done < times {
        // Another process may be at it.
        match store.compact().unwrap() {
            true => done += 1,
            false => thread::sleep(Duration::from_millis(1)),
        }
    }
    say(&format!("compacted {done}"));
}

#[test]
fn two_and_three_processes_write_while_one_that_only_compacts_is_at_work_and_nothing_is_lost() {
    for writers in [2, 3] {
        let (_dir, root) = new_root();
        let store = open_with(&root, tiny());
        for n in 0..30 {
            put(&store, &format!("stays/{n}"), &[n; 700]);
        }
        let stays = contents(&store);
        let mut compactor = Helper::start("compact", &root, "40");
        let mut writers: Vec<Helper> = (0..writers).map(|_| Helper::start("increment", &root, "300")).collect();
        let won: u64 = (writers.iter_mut())
            .map(|writer| writer.find_line("won ").unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(compactor.find_line("compacted ").as_deref(), Some("40"));
        for store in [&store, &open(&root)] {
            let mut found = contents(store);
            let (counter, _) = found.remove("counter").unwrap();
            assert_eq!(number(&counter), won);
            assert_eq!(found, stays);
        }
        let findings = lockd::store::shared_log::verify::verify(&root, |_, _| ()).unwrap();
        let faults: Vec<_> = findings.checks.iter().flat_map(|check| &check.faults).collect();
        assert!(faults.is_empty(), "{faults:?}");
    }
}

/// A snapshot made in the same segment as the one before it has the greater number, and was taken for something newer: the
/// index kept pointing into a file that had been removed.
#[test]
fn files_that_compaction_has_removed_are_not_kept_open() {
    let (_dir, root) = new_root();
    let store = open_with(&root, tiny());
    put(&store, "large", &[1; 1_000]);
    let removed_and_open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        links
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .filter(|target| target.contains(root.to_str().unwrap()) && target.ends_with("(deleted)"))
            .collect::<Vec<_>>()
    };
    for _ in 0..3 {
        store.compact().unwrap();
        wait_until("the older snapshot is gone", || log_files(&root, "snapshot").len() == 1);
        assert_eq!(removed_and_open(), [""; 0]);
        assert_eq!(
            store.read(&RecordKey::new("large")).unwrap().unwrap().value.len(),
            1_000
        );
    }
}

/// It met segments that were gone and called that damage.
#[test]
fn a_process_that_sleeps_through_compactions_wakes_up_to_the_newest_state() {
    let (_dir, root) = new_root();
    let busy = open_with(&root, tiny());
    put(&busy, "a", b"1");
    let asleep = open_with(&root, tiny());
    for round in 0..3 {
        for n in 0..100 {
            put(&busy, &format!("filler/{n}"), &[round; 1_000]);
        }
        busy.compact().unwrap();
    }
    put(&busy, "a", b"2");
    wait_until("old files are gone", || {
        let segments = log_files(&root, "segment");
        segments.len() <= 2 && !segments.iter().any(|path| path.ends_with("0000000001.segment"))
    });
    assert_eq!(contents(&asleep), contents(&busy));
    put(&asleep, "a", b"3");
    assert_eq!(&*busy.read(&RecordKey::new("a")).unwrap().unwrap().value, b"3");
}
