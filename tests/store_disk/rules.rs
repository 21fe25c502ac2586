//! Rules of the log that no story of the other files would miss if they were broken, each broken once to see this.
//!
//! Which test stands for which rule:
//!
//! | rule | broken, it shows in |
//! |---|---|
//! | a frame, a body, a snapshot, a new file and its directory are synced before anything names them | `power` |
//! | old files go only after the snapshot that replaces them is durable, and only those before it | `power` |
//! | the mark moves after the sync | `power` |
//! | what a dead writer left is synced before anybody sees it | `faults::what_a_dead_writer_left_...` |
//! | the index moves after the sync | `faults::reads_do_not_wait_...` |
//! | the index moves after the mark | here, `what_one_process_shows_...` |
//! | a failed append is cut back, and latches unless there was just no space; if that fails too nobody knows | `faults::a_failed_append_...`, `faults::an_append_for_which_...`, `faults::when_not_even_...` |
//! | a store that has stopped is opened anew, unless it is damaged | `faults::a_store_that_has_stopped_...`, `damage::a_bit_that_flips_under_...` |
//! | bodies of a write of which nobody knows stay | here, `a_body_of_a_write_...` |
//! | only a torn tail is cut; damage, and what a newer version wrote, is not | `damage` |
//! | frames and segments follow each other by number | `damage::a_segment_that_does_not_follow_...`, here, `frames_that_have_changed_places_...` |
//! | damage stops the store | `damage::a_bit_that_flips_under_...` |
//! | a snapshot without its end, or with one that does not fit, does not exist | here, `a_snapshot_that_is_not_whole_...` |
//! | without its snapshot a log that does not begin at the beginning is damage | here, `a_log_without_its_beginning_...` |
//! | batches of a group see each other | the suite's `increments_by_compare_and_swap_...` |
//! | the lock is taken, its wait is bounded, also for many | `processes::a_stopped_holder_...`; `tests/trouble.rs` |
//! | the lock is taken in turn | here, `nobody_takes_the_lock_out_of_turn` |
//! | one process compacts at a time, and only who could do so removes old files | here, `while_another_process_compacts_...`, `old_files_go_...` |
//! | a snapshot says where the log goes on before its first page is read | `processes::compaction_goes_on_among_writers_...` |
//! | who sleeps through a compaction begins again | `processes::a_process_that_sleeps_...` |
//! | files of bodies that were dropped go, at the latest when the root is opened again | here, `the_file_of_a_dropped_body_...` |
//! | every file has a salt of its own | here, `no_two_files_have_the_same_salt` |
//! | on NFS: what is read is read under locks, what is written is written under that of its segment | here, `on_nfs_...` |
//!
//! Not seen by any test: that files stay for a grace, and that loading begins again when one has gone meanwhile; each of the
//! two makes up for the lack of the other unless somebody is very slow. That the mark is synced on NFS shows only where a
//! machine is cut off, in `tests/shared_log/mounts.rs`.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lockd::store::shared_log::{OpenError, Options, SharedLogStore, Step};
use lockd::store::{Batch, BodyId, Precondition, RecordKey, Store, StoreError};
use parking_lot::Mutex;

use super::faults::failing;
use super::tools::*;

fn value(store: &SharedLogStore, name: &str) -> Vec<u8> {
    store.read(&RecordKey::new(name)).unwrap().unwrap().value.to_vec()
}

/// At the moment at which the mark is about to move, by the writer or by who found what a dead one left.
#[test]
fn what_one_process_shows_is_found_by_the_others_at_the_same_moment() {
    for is_left_by_a_dead_one in [false, true] {
        let (_dir, root) = new_root();
        let armed = Arc::new(AtomicBool::new(false));
        let stores: Arc<OnceLock<[SharedLogStore; 2]>> = Arc::new(OnceLock::new());
        let shown = Arc::new(Mutex::new(None));
        let options = Options {
            step_hook: Some(Arc::new({
                let (armed, stores, shown) = (armed.clone(), stores.clone(), shown.clone());
                move |step, _| {
                    if step == Step::Mark && armed.swap(false, Ordering::SeqCst) {
                        *shown.lock() = stores
                            .get()
                            .map(|stores| stores.each_ref().map(|store| value(store, "a")));
                    }
                    Ok(())
                }
            })),
            ..Options::default()
        };
        let bad = Arc::new(Mutex::new(vec![]));
        let dead = open_with(&root, failing(&bad));
        put(&dead, "a", b"1");
        let [own, other] = stores.get_or_init(|| [open_with(&root, options), open(&root)]);
        if is_left_by_a_dead_one {
            bad.lock().push(Step::Mark);
            let answer = dead.write(batch_of(vec![write_of("a", Precondition::Any, b"2")]));
            assert!(matches!(answer, Err(StoreError::Unknown { .. })), "{answer:?}");
        }
        armed.store(true, Ordering::SeqCst);
        let written = if is_left_by_a_dead_one { "b" } else { "a" };
        put(own, written, b"2");
        let shown = shown.lock().take().expect("the mark has moved");
        assert_eq!(shown, [b"1", b"1"], "{is_left_by_a_dead_one}");
        for store in [own, other] {
            assert_eq!(value(store, "a"), b"2");
        }
    }
}

#[test]
fn a_body_of_a_write_of_which_nobody_knows_stays_for_the_record_that_may_name_it() {
    let (_dir, root) = new_root();
    let bad = Arc::new(Mutex::new(vec![]));
    let store = open_with(&root, failing(&bad));
    bad.lock().push(Step::Mark);
    let body = BodyId::new("large");
    let answer = store.write(Batch {
        bodies: vec![(body.clone(), Arc::from(vec![1; 100_000]))],
        ..batch_of(vec![write_of("names-it", Precondition::Any, b"large")])
    });
    assert!(matches!(answer, Err(StoreError::Unknown { .. })), "{answer:?}");
    drop(store);
    let store = open(&root);
    assert_eq!(value(&store, "names-it"), b"large");
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut store.body_reader(&body).unwrap(), &mut bytes).unwrap();
    assert_eq!(bytes.len(), 100_000);
}

#[test]
fn frames_that_have_changed_places_are_damage() {
    let (_dir, root) = new_root();
    let store = open(&root);
    for n in [b"1", b"2", b"3"] {
        put(&store, "a", n);
    }
    drop(store);
    let segment = log_files(&root, "segment").remove(0);
    let bytes = fs::read(&segment).unwrap();
    let [first, second, third, end] = frame_offsets(&bytes)[..] else {
        panic!()
    };
    let changed = [
        &bytes[..first],
        &bytes[second..third],
        &bytes[first..second],
        &bytes[third..end],
    ]
    .concat();
    fs::write(&segment, changed).unwrap();
    is_damaged(&root, &segment, first);
}

/// Opening says that this file is damaged there.
#[track_caller]
fn is_damaged(root: &Path, file: &Path, at: usize) {
    match try_open(root).map(|_| ()) {
        Err(OpenError::Store(StoreError::Corrupt { place, offset, .. })) => {
            assert_eq!((place, offset), (file.display().to_string(), at as u64));
        }
        other => panic!("{other:?}"),
    }
}

/// A root with a snapshot of several frames and all segments since the beginning.
fn compacted_root(root: &Path) -> SharedLogStore {
    let options = Options {
        segment_bytes_max: 200_000,
        delete_grace: Duration::from_secs(600),
        ..Options::default()
    };
    let store = open_with(root, options);
    for n in 0..200 {
        put(&store, &format!("record/{n}"), &[n; 4_000]);
    }
    assert!(store.compact().unwrap());
    put(&store, "later", b"");
    store
}

#[test]
fn a_snapshot_that_is_not_whole_does_not_exist() {
    let (_dir, root) = new_root();
    let store = compacted_root(&root);
    let expected = contents(&store);
    drop(store);
    let whole = fs::read(log_files(&root, "snapshot").remove(0)).unwrap();
    let frames = frame_offsets(&whole);
    assert!(3 < frames.len());
    // A newer one that was never finished, by the number of its file the newest.
    let newer = root.join("log/0000000099.snapshot");
    let mut renumbered = whole.clone();
    renumbered[16..20].copy_from_slice(&99_u32.to_le_bytes());
    let crc = crc32fast::hash(&renumbered[..60]);
    renumbered[60..64].copy_from_slice(&crc.to_le_bytes());
    let salt = u64::from_le_bytes(whole[40..48].try_into().unwrap());
    const END: u32 = 5;
    for (number, cut) in frames[..frames.len() - 1].iter().enumerate() {
        // Without an end, and with one that speaks of more than there is.
        let other_end = frame_of(END, salt, number as u64 + 1, &7_777_u64.to_le_bytes());
        for end in [vec![], other_end] {
            fs::write(&newer, [&renumbered[..*cut], &end[..]].concat()).unwrap();
            assert!(contents(&open(&root)) == expected, "cut at {cut}");
        }
    }
    fs::write(&newer, &renumbered).unwrap();
    assert!(contents(&open(&root)) == expected);
}

#[test]
fn a_log_without_its_beginning_is_damage_when_the_snapshot_is_gone() {
    let (_dir, root) = new_root();
    drop(compacted_root(&root));
    let segments = log_files(&root, "segment");
    assert!(2 < segments.len());
    fs::remove_file(log_files(&root, "snapshot").remove(0)).unwrap();
    fs::remove_file(&segments[0]).unwrap();
    is_damaged(&root, &segments[1], 0);
}

#[test]
fn nobody_takes_the_lock_out_of_turn() {
    let (_dir, root) = new_root();
    let options = Options {
        lock_wait: Duration::from_millis(50),
        ..Options::default()
    };
    let store = open_with(&root, options);
    let turn = fs::File::open(root.join("turn.lock")).unwrap();
    fs2::FileExt::lock_exclusive(&turn).unwrap();
    let write = || store.write(batch_of(vec![write_of("a", Precondition::Any, b"1")]));
    let answer = write();
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    fs2::FileExt::unlock(&turn).unwrap();
    assert!(write().is_ok());
}

#[test]
fn while_another_process_compacts_nobody_else_does() {
    let (_dir, root) = new_root();
    let store = open(&root);
    put(&store, "a", b"1");
    let compacting = fs::File::open(root.join("compact.lock")).unwrap();
    fs2::FileExt::lock_exclusive(&compacting).unwrap();
    assert_eq!(store.compact(), Ok(false));
    assert_eq!(log_files(&root, "snapshot").len(), 0);
    fs2::FileExt::unlock(&compacting).unwrap();
    assert_eq!(store.compact(), Ok(true));
}

/// Its process died after the batch was durable and before it came to removing the file.
#[test]
fn the_file_of_a_dropped_body_goes_when_the_root_is_opened_again() {
    let (dir, root) = new_root();
    let store = open(&root);
    let body = BodyId::new("dropped");
    let batch = Batch {
        bodies: vec![(body.clone(), Arc::from(vec![1; 100_000]))],
        ..Batch::default()
    };
    store.write(batch).unwrap();
    let path = root.join("bodies/dropped");
    let kept = dir.path().join("kept");
    fs::copy(&path, &kept).unwrap();
    drop_body(&store, &body);
    drop(store);
    fs::copy(&kept, &path).unwrap();
    drop(open(&root));
    assert!(!path.exists());
}

/// What lay in a block of the disk before, or what a client has put into a value, is no frame of a file by chance.
#[test]
fn no_two_files_have_the_same_salt() {
    let (_dir, root) = new_root();
    drop(compacted_root(&root));
    let files = [log_files(&root, "segment"), log_files(&root, "snapshot")].concat();
    let mut salts: Vec<Vec<u8>> = files
        .iter()
        .map(|path| fs::read(path).unwrap()[40..48].to_vec())
        .collect();
    let count = salts.len();
    assert!(3 < count);
    salts.sort();
    salts.dedup();
    assert_eq!(salts.len(), count);
}

fn as_on_nfs() -> Options {
    Options {
        as_if_network: true,
        lock_wait: Duration::from_millis(50),
        ..Options::default()
    }
}

/// Only what is read under both is fresh there.
#[test]
fn on_nfs_a_read_takes_the_lock_of_the_store_and_that_of_the_segment() {
    let (_dir, root) = new_root();
    let [store, other] = [(), ()].map(|()| open_with(&root, as_on_nfs()));
    put(&store, "a", b"1");
    assert_eq!(value(&other, "a"), b"1");
    put(&store, "a", b"2");
    for name in ["commit.lock", "log/0000000001.segment"] {
        let file = fs::File::open(root.join(name)).unwrap();
        fs2::FileExt::lock_exclusive(&file).unwrap();
        let answer = other.read(&RecordKey::new("a"));
        assert!(
            matches!(answer, Err(StoreError::Unavailable { .. })),
            "{name}: {answer:?}"
        );
    }
    assert_eq!(value(&other, "a"), b"2");
}

/// What the server refuses once it has given a machine up is what was written under a lock of that very file.
#[test]
fn on_nfs_a_commit_holds_its_segment_from_before_it_looks_for_the_end_until_its_frame_is_synced() {
    let (_dir, root) = new_root();
    let held = Arc::new(Mutex::new(Vec::new()));
    let options = Options {
        segment_bytes_max: 300,
        step_hook: Some(Arc::new({
            let (held, root) = (held.clone(), root.clone());
            move |step, _| {
                // A seal goes into the segment before the last one there is.
                if [Step::Append, Step::AppendSync].contains(&step) {
                    let is_free = |path: &std::path::PathBuf| {
                        fs2::FileExt::try_lock_shared(&fs::File::open(path).unwrap()).is_ok()
                    };
                    let last = log_files(&root, "segment").pop().unwrap();
                    held.lock().push(!is_free(&last));
                }
                Ok(())
            }
        })),
        ..as_on_nfs()
    };
    let store = open_with(&root, options);
    for n in 0..9 {
        put(&store, &format!("k/{n}"), &[n; 50]);
    }
    assert!(2 < log_files(&root, "segment").len());
    let held = held.lock();
    assert!(held.len() > 18 && held.iter().all(|held| *held), "{held:?}");
    for path in log_files(&root, "segment") {
        assert!(fs2::FileExt::try_lock_exclusive(&fs::File::open(path).unwrap()).is_ok());
    }
}

/// Otherwise a snapshot that somebody is writing could be taken for one that was never finished.
#[test]
fn old_files_go_under_the_lock_of_compaction() {
    let (_dir, root) = new_root();
    let held = Arc::new(Mutex::new(Vec::new()));
    let options = Options {
        segment_bytes_max: 300,
        delete_grace: Duration::ZERO,
        step_hook: Some(Arc::new({
            let (held, root) = (held.clone(), root.clone());
            move |step, _| {
                if step == Step::RemoveOld {
                    let file = fs::File::open(root.join("compact.lock")).unwrap();
                    held.lock().push(fs2::FileExt::try_lock_exclusive(&file).is_err());
                }
                Ok(())
            }
        })),
        ..Options::default()
    };
    let store = open_with(&root, options);
    for n in 0..9 {
        put(&store, &format!("k/{n}"), &[n; 50]);
    }
    assert_eq!(store.compact(), Ok(true));
    wait_until("old files are gone", || !root.join("log/0000000001.segment").exists());
    let held = held.lock();
    assert!(!held.is_empty() && held.iter().all(|held| *held), "{held:?}");
}
