//! Steps on the disk that fail, and roots that cannot be used.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lockd::store::reopened::ReopenedStore;
use lockd::store::shared_log::{OpenError, Options, SharedLogStore, Step};
use lockd::store::{Precondition, RecordKey, Store, StoreError, Written};
use parking_lot::Mutex;

use super::tools::*;

/// Input/output error.
const EIO: i32 = 5;
/// No space left on device.
const ENOSPC: i32 = 28;

/// Fails every step that is on the list.
pub(crate) fn failing(list: &Arc<Mutex<Vec<Step>>>) -> Options {
    failing_with(EIO, list)
}

fn failing_with(error: i32, list: &Arc<Mutex<Vec<Step>>>) -> Options {
    let list = list.clone();
    Options {
        step_hook: Some(Arc::new(move |step, _| {
            if list.lock().contains(&step) {
                return Err(io::Error::from_raw_os_error(error));
            }
            Ok(())
        })),
        ..Options::default()
    }
}

#[test]
fn a_failed_append_or_sync_stops_the_store_until_it_is_reopened_and_leaves_no_trace() {
    for step in [Step::Append, Step::AppendSync] {
        let (_dir, root) = new_root();
        let bad = Arc::new(Mutex::new(vec![]));
        let store = open_with(&root, failing(&bad));
        put(&store, "a", b"1");
        let before = contents(&store);
        bad.lock().push(step);
        let write = || store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
        let answer = write();
        assert!(
            matches!(answer, Err(StoreError::NotDone { .. })),
            "{step:?}: {answer:?}"
        );
        bad.lock().clear();
        assert!(!store.healthy());
        for answer in [
            write().err(),
            store.read(&RecordKey::new("a")).err(),
            store.list("", None, 1).err(),
        ] {
            assert!(
                matches!(answer, Some(StoreError::Unavailable { .. })),
                "{step:?}: {answer:?}"
            );
        }
        assert!(matches!(
            store.body_writer().err(),
            Some(StoreError::Unavailable { .. })
        ));
        // Others are not stopped, and this root opens again.
        let other = open(&root);
        assert_eq!(contents(&other), before, "{step:?}");
        put(&other, "a", b"3");
    }
}

#[test]
fn an_append_for_which_there_is_no_space_is_refused_and_leaves_no_trace() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![]));
    let store = open_with(&root, failing_with(ENOSPC, &bad));
    put(&store, "a", b"1");
    let before = contents(&store);
    for _ in 0..3 {
        bad.lock().push(Step::Append);
        let answer = store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
        assert!(matches!(answer, Err(StoreError::NotDone { .. })), "{answer:?}");
        assert!(store.healthy());
        assert_eq!(contents(&store), before);
        assert_eq!(contents(&open(&root)), before);
        bad.lock().clear();
    }
    put(&store, "a", b"3");
    assert_eq!(contents(&open(&root)), contents(&store));
    // Here nobody knows what of it is on the disk.
    *bad.lock() = vec![Step::Append, Step::CutBackSync];
    let answer = store.write(batch_of(vec![write_of("a", Precondition::Any, b"4")]));
    assert!(matches!(answer, Err(StoreError::Unknown { .. })), "{answer:?}");
    assert!(!store.healthy());
}

/// A seal is an append as well, and the segment that it would have named is there already.
#[test]
fn a_log_that_cannot_go_on_in_a_new_segment_for_lack_of_space_does_so_later() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![]));
    let options = Options {
        segment_bytes_max: 100,
        ..failing_with(ENOSPC, &bad)
    };
    let store = open_with(&root, options);
    put(&store, "a", b"1");
    for _ in 0..3 {
        let segments = log_files(&root, "segment");
        *bad.lock() = vec![Step::Append];
        let answer = store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
        assert!(matches!(answer, Err(StoreError::NotDone { .. })), "{answer:?}");
        assert!(store.healthy());
        assert_eq!(log_files(&root, "segment"), segments, "none is left over");
        bad.lock().clear();
        put(&store, "a", b"3");
        put(&store, "b", b"4");
    }
    assert_eq!(contents(&open(&root)), contents(&store));
}

#[test]
fn a_snapshot_that_there_is_no_space_to_speak_of_is_not_left_behind() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![]));
    let store = open_with(&root, failing_with(ENOSPC, &bad));
    put(&store, "a", b"1");
    *bad.lock() = vec![Step::Append];
    for _ in 0..3 {
        let answer = store.compact();
        assert!(matches!(answer, Err(StoreError::NotDone { .. })), "{answer:?}");
        assert_eq!(log_files(&root, "snapshot"), Vec::<std::path::PathBuf>::new());
    }
    bad.lock().clear();
    assert_eq!(store.compact(), Ok(true));
    assert_eq!(log_files(&root, "snapshot").len(), 1);
    put(&store, "a", b"2");
    assert_eq!(contents(&open(&root)), contents(&store));
}

#[test]
fn a_store_that_has_stopped_is_opened_anew_until_that_works_and_its_listeners_hear_again() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![]));
    let stays_away = Arc::new(AtomicBool::new(true));
    let tries = Arc::new(AtomicUsize::new(0));
    let open_again = {
        let (root, stays_away, tries) = (root.clone(), stays_away.clone(), tries.clone());
        move || match stays_away.load(Ordering::SeqCst) {
            true => {
                tries.fetch_add(1, Ordering::SeqCst);
                Err("away".to_owned())
            }
            false => Ok(Arc::new(open(&root)) as Arc<dyn Store>),
        }
    };
    let first: Arc<dyn Store> = Arc::new(open_with(&root, failing(&bad)));
    let store = ReopenedStore::new(first, Box::new(open_again), lockd::logging::off());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = heard.clone();
    let listener =
        Arc::new(move |keys: &[RecordKey]| hears.lock().extend(keys.iter().map(|key| key.as_str().to_owned())));
    assert!(store.watch(listener), "there is a feed on a disk");
    put(&store, "a", b"1");
    *bad.lock() = vec![Step::AppendSync];
    let write = || store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
    assert!(matches!(write(), Err(StoreError::NotDone { .. })));
    assert!(!store.healthy());
    wait_until("it was tried twice", || 2 <= tries.load(Ordering::SeqCst));
    assert!(matches!(write(), Err(StoreError::Unavailable { .. })));
    let other = open(&root);
    put(&other, "meanwhile", b"3");
    stays_away.store(false, Ordering::SeqCst);
    wait_until("it is open again", || store.healthy());
    put(&store, "a", b"4");
    assert_eq!(contents(&store), contents(&other));
    wait_until("they have heard of everything", || {
        let heard = heard.lock();
        ["a", "meanwhile"]
            .iter()
            .all(|key| heard.iter().any(|heard| heard == key))
    });
    put(&other, "afterwards", b"5");
    wait_until("they hear of others", || {
        heard.lock().iter().any(|heard| heard == "afterwards")
    });
}

#[test]
fn when_not_even_cutting_back_works_nobody_knows_and_reopening_settles_it() {
    for (steps, survives) in [
        (vec![Step::Append, Step::CutBack], false),
        (vec![Step::AppendSync, Step::CutBack], true),
        (vec![Step::AppendSync, Step::CutBackSync], false),
        (vec![Step::Mark], true),
    ] {
        let (_dir, root) = new_root();
        let bad = Arc::new(Mutex::new(vec![]));
        let store = open_with(&root, failing(&bad));
        put(&store, "a", b"1");
        *bad.lock() = steps.clone();
        let answer = store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
        assert!(
            matches!(answer, Err(StoreError::Unknown { .. })),
            "{steps:?}: {answer:?}"
        );
        assert!(!store.healthy());
        let found = open(&root).read(&RecordKey::new("a")).unwrap().unwrap();
        assert_eq!(&*found.value == b"2", survives, "{steps:?}");
    }
}

/// What a dead writer left may not have been synced. Whoever shows it must have done that first, and moved the mark.
#[test]
fn what_a_dead_writer_left_is_synced_before_anybody_sees_it() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![]));
    let store = open_with(&root, failing(&bad));
    let steps = Arc::new(Mutex::new(Vec::new()));
    let options = Options {
        step_hook: Some(Arc::new({
            let steps = steps.clone();
            move |step, _| {
                steps.lock().push(step);
                Ok(())
            }
        })),
        ..Options::default()
    };
    let other = open_with(&root, options);
    *bad.lock() = vec![Step::AppendSync, Step::CutBack];
    let answer = store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
    assert!(matches!(answer, Err(StoreError::Unknown { .. })), "{answer:?}");

    steps.lock().clear();
    let absent = batch_of(vec![write_of("a", Precondition::Absent, b"3")]);
    assert_eq!(other.write(absent), Ok(Written::Refused { index: 0 }));
    assert_eq!(*steps.lock(), [Step::SettleSync, Step::Mark]);
}

#[test]
fn a_segment_that_cannot_be_made_costs_a_try_and_no_more() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![]));
    let options = Options {
        segment_bytes_max: 100,
        ..failing(&bad)
    };
    let store = open_with(&root, options);
    put(&store, "a", b"1");
    for step in [Step::CreateSegment, Step::CreateSync] {
        *bad.lock() = vec![step];
        let answer = store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
        assert!(matches!(answer, Err(StoreError::NotDone { .. })), "{answer:?}");
        assert!(store.healthy());
        bad.lock().clear();
        put(&store, "a", b"3");
    }
    assert_eq!(contents(&open(&root)), contents(&store));
}

#[test]
fn a_body_that_cannot_be_synced_is_no_body_and_harms_nothing_else() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![Step::BodySync]));
    let store = open_with(&root, failing(&bad));
    let writer = store.body_writer().unwrap();
    assert!(matches!(writer.finish(), Err(StoreError::NotDone { .. })));
    let batch = lockd::store::Batch {
        bodies: vec![(lockd::store::BodyId::new("large"), Arc::from(vec![1; 100_000]))],
        ..Default::default()
    };
    assert!(matches!(store.write(batch.clone()), Err(StoreError::NotDone { .. })));
    assert!(store.healthy());
    assert_eq!(fs::read_dir(root.join("bodies")).unwrap().count(), 0);
    bad.lock().clear();
    assert_eq!(store.write(batch), Ok(Written::Done(vec![])));
}

#[test]
fn concurrent_writers_share_their_syncs() {
    const WRITERS: usize = 32;
    const WRITES: usize = 20;
    let (_dir, root) = new_root();
    // A disk slow enough that writers meet.
    let options = Options {
        step_hook: Some(Arc::new(|step, _| {
            if step == Step::AppendSync {
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        })),
        ..Options::default()
    };
    let store = open_with(&root, options);
    let before = store.counters();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || (0..WRITES).for_each(|n| drop(put(store, &format!("{writer}/{n}"), b"value"))));
        }
    });
    let counters = store.counters();
    let syncs = counters.syncs - before.syncs;
    eprintln!("{} writes, {syncs} syncs", WRITERS * WRITES);
    assert!(syncs as usize <= WRITERS * WRITES / 8, "{syncs} syncs");
    assert_eq!(counters.batches as usize, WRITERS * WRITES);
    assert_eq!(open(&root).list("", None, usize::MAX).unwrap().len(), WRITERS * WRITES);
}

/// A leader that is held up must not hold up readers.
#[test]
fn reads_do_not_wait_for_a_sync_of_their_own_process_or_another() {
    let (_dir, root) = new_root();
    let (reached, release) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let hook = {
        let (reached, release, calls) = (reached.clone(), release.clone(), AtomicUsize::new(0));
        move |step, _: Option<&fs::File>| {
            if step == Step::AppendSync && calls.fetch_add(1, Ordering::SeqCst) == 1 {
                reached.store(true, Ordering::SeqCst);
                while !release.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            Ok(())
        }
    };
    let options = Options {
        step_hook: Some(Arc::new(hook)),
        ..Options::default()
    };
    let store = open_with(&root, options);
    let other = open(&root);
    put(&store, "a", b"1");
    thread::scope(|scope| {
        // Also when this fails: the writer would wait for ever.
        let _release = SetAtEnd(&release);
        scope.spawn(|| put(&store, "a", b"2"));
        while !reached.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        for store in [&store, &other] {
            assert_eq!(&*store.read(&RecordKey::new("a")).unwrap().unwrap().value, b"1");
        }
    });
    for store in [&store, &other] {
        assert_eq!(&*store.read(&RecordKey::new("a")).unwrap().unwrap().value, b"2");
    }
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// The latched engine was handed out again as long as anybody held a handle on it.
#[test]
fn a_root_that_is_reopened_after_a_failure_serves_though_old_handles_remain() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![]));
    let old = SharedLogStore::open(&root, failing(&bad)).unwrap();
    put(&old, "a", b"1");
    bad.lock().push(Step::AppendSync);
    assert!(
        old.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]))
            .is_err()
    );
    let new = SharedLogStore::open(&root, Options::default()).unwrap();
    put(&new, "a", b"3");
    assert!(new.healthy() && !old.healthy());
}

/// Nobody knew what had become of the dead writer's batch, and the live one was told the same of its own.
#[test]
fn a_mark_that_cannot_be_moved_before_the_write_leaves_no_doubt_about_the_write() {
    let (_dir, root) = new_root();
    let dead = Arc::new(Mutex::new(vec![]));
    let store = open_with(&root, failing(&dead));
    let bad = Arc::new(Mutex::new(vec![]));
    let other = open_with(&root, failing(&bad));
    *dead.lock() = vec![Step::Mark];
    let write = |store: &SharedLogStore| store.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
    assert!(matches!(write(&store), Err(StoreError::Unknown { .. })));
    *bad.lock() = vec![Step::Mark];
    let answer = write(&other);
    assert!(matches!(answer, Err(StoreError::NotDone { .. })), "{answer:?}");
    assert!(matches!(write(&other), Err(StoreError::Unavailable { .. })));
}

#[test]
fn the_same_root_opened_twice_is_one_engine() {
    let (dir, root) = new_root();
    let one = SharedLogStore::open(&root, Options::default()).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&root, &link).unwrap();
    let two = SharedLogStore::open(&link, Options::default()).unwrap();
    put(&one, "a", b"1");
    assert_eq!(one.counters(), two.counters());
    assert_eq!(two.counters().commits, 1);
    drop((one, two));
    let again = SharedLogStore::open(&root, Options::default()).unwrap();
    assert_eq!(again.counters().commits, 0);
    assert_eq!(contents(&again).len(), 1);
}

#[test]
fn roots_that_cannot_be_used_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let words = |root: &Path| try_open(root).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(matches!(try_open(Path::new("relative")), Err(OpenError::NotAbsolute)));
    assert!(matches!(
        try_open(&dir.path().join("no/store")),
        Err(OpenError::ParentMissing)
    ));

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(try_open(&file), Err(OpenError::NotADirectory)));

    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("homework.txt"), "").unwrap();
    assert_eq!(words(&foreign), "it holds no store, but something else (homework.txt)");
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 1, "nothing was added");

    let fresh = dir.path().join("fresh");
    fs::create_dir_all(fresh.join("lost+found")).unwrap();
    drop(open(&fresh));

    let newer = dir.path().join("newer");
    copy_root(&fresh, &newer);
    let line = fs::read_to_string(newer.join("commit.lock")).is_ok();
    assert!(line || newer.join("commit.lock").exists());
    let mut lock_file = fs::read(newer.join("commit.lock")).unwrap();
    lock_file[25] = b'2';
    fs::write(newer.join("commit.lock"), &lock_file).unwrap();
    assert_eq!(
        words(&newer),
        "its format is \"lockd shared log, format 2\", this version knows \"lockd shared log, format 1\""
    );

    let held = SharedLogStore::open_as_another_process(
        &fresh,
        Options {
            lock_wait: Duration::from_millis(50),
            ..Options::default()
        },
    );
    assert!(held.is_ok());
    let lock_file = fs::File::open(fresh.join("commit.lock")).unwrap();
    fs2::FileExt::lock_shared(&lock_file).unwrap();
    let held = SharedLogStore::open_as_another_process(
        &fresh,
        Options {
            lock_wait: Duration::from_millis(50),
            ..Options::default()
        },
    );
    assert!(matches!(held.err(), Some(OpenError::Held { .. })));

    // Nobody is too mighty for this one only if this is not root.
    let locked = dir.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(locked.join("probe"), "").is_err() {
        assert!(matches!(try_open(&locked), Err(OpenError::NotWritable { .. })));
    } else {
        eprintln!("skipped: this user may write everywhere");
    }
}

/// The n-th group panics in its leader, which is a writer or the engine's own thread, with others waiting behind it.
#[test]
fn a_leader_that_panics_leaves_nobody_waiting() {
    const WRITERS: usize = 16;
    for unlucky in [1, 2, 3, 5, 8, 13] {
        let (_dir, root) = new_root();
        let syncs = Arc::new(AtomicUsize::new(0));
        let counted = syncs.clone();
        let armed = Arc::new(AtomicBool::new(false));
        let is_armed = armed.clone();
        let options = Options {
            step_hook: Some(Arc::new(move |step, _| {
                if step == Step::AppendSync && is_armed.load(Ordering::SeqCst) {
                    // Long enough for the others to queue up.
                    thread::sleep(Duration::from_millis(5));
                    assert!(
                        counted.fetch_add(1, Ordering::SeqCst) + 1 != unlucky,
                        "unlucky on purpose"
                    );
                }
                Ok(())
            })),
            ..Options::default()
        };
        let store = open_with(&root, options);
        armed.store(true, Ordering::SeqCst);
        let acknowledged = AtomicUsize::new(0);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (store, acknowledged) = (&store, &acknowledged);
                scope.spawn(move || {
                    let write = |n: usize| {
                        let name = format!("{writer}/{n}");
                        store.write(batch_of(vec![write_of(&name, Precondition::Absent, b"1")]))
                    };
                    // A writer that leads panics itself; for the others it is an error.
                    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        (0..).find_map(|n| match write(n) {
                            Ok(Written::Done(_)) => {
                                acknowledged.fetch_add(1, Ordering::SeqCst);
                                None
                            }
                            other => Some(other),
                        })
                    }));
                    if let Ok(answer) = outcome {
                        let refused = matches!(
                            answer,
                            Some(Err(StoreError::Unknown { .. } | StoreError::Unavailable { .. }))
                        );
                        assert!(refused, "{answer:?}");
                    }
                });
            }
        });
        assert!(!store.healthy());
        drop(store);
        let found = contents(&open(&root)).len();
        assert!(acknowledged.load(Ordering::SeqCst) <= found);
    }
}
