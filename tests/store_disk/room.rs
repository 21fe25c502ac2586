//! Zeroes ahead of the end of the log: they are written over, harm nobody, and hide nothing.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lockd::store::shared_log::Options;
use lockd::store::shared_log::verify::verify;

use super::tools::*;

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// Where the last frame of a segment ends.
fn end_of(path: &Path) -> u64 {
    frame_offsets(&fs::read(path).unwrap()).pop().unwrap() as u64
}

#[test]
fn writes_go_into_the_room_ahead_with_one_sync_each_and_sealed_segments_keep_none() {
    let (_dir, root) = new_root();
    let options = Options {
        segment_bytes_max: 60_000,
        ..Options::default()
    };
    let store = open_with(&root, options);
    put(&store, "first", &[1; 100]);
    let segment = log_files(&root, "segment").remove(0);
    let with_room = length(&segment);
    assert!(end_of(&segment) + 10_000 < with_room && with_room <= 60_000);
    let before = store.counters();
    for n in 0..50 {
        put(&store, &format!("{n}"), &[2; 100]);
    }
    assert_eq!(length(&segment), with_room);
    assert_eq!(store.counters().syncs - before.syncs, 50);
    for n in 0..100 {
        put(&store, &format!("{n}"), &[3; 1_000]);
    }
    let segments = log_files(&root, "segment");
    assert!(1 < segments.len());
    for sealed in &segments[..segments.len() - 1] {
        assert_eq!(length(sealed), end_of(sealed));
    }
    let syncs = store.counters().syncs - before.syncs;
    // A new segment takes two more: its header, and what it has room for the first time.
    assert!(syncs <= 150 + 3 * segments.len() as u64, "{syncs}");
    let before = contents(&store);
    drop(store);
    assert_eq!(contents(&open(&root)), before);
}

#[test]
fn no_room_is_made_when_none_is_wanted_or_the_root_is_on_a_network() {
    for options in [
        Options {
            room_bytes_max: 0,
            ..Options::default()
        },
        Options {
            as_if_network: true,
            ..Options::default()
        },
    ] {
        let (_dir, root) = new_root();
        let store = open_with(&root, options);
        put(&store, "a", b"1");
        let segment = log_files(&root, "segment").remove(0);
        assert_eq!(length(&segment), end_of(&segment));
    }
}

#[test]
fn those_who_make_room_and_those_who_do_not_serve_one_root() {
    let (_dir, root) = new_root();
    let local = open(&root);
    let remote = open_with(
        &root,
        Options {
            as_if_network: true,
            ..Options::default()
        },
    );
    for n in 0..20_u8 {
        put(&local, "local", &[n; 300]);
        put(&remote, "remote", &[n; 300]);
        assert_eq!(contents(&local), contents(&remote));
    }
    drop((local, remote));
    assert_eq!(contents(&open(&root)).len(), 2);
}

/// What the loss of power may leave: the beginning of a frame did not arrive, what follows it did.
#[test]
fn garbage_behind_a_gap_is_cut_off_at_the_next_start_and_later_frames_are_safe() {
    for gap in [1, 24, 30, 4_000] {
        let (_dir, root) = new_root();
        let store = open(&root);
        put(&store, "a", b"1");
        let before = contents(&store);
        drop(store);
        let segment = log_files(&root, "segment").remove(0);
        let end = end_of(&segment);
        let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
        file.write_all_at(b"garbage lkfr garbage", end + gap).unwrap();
        let findings = verify(&root, |_, _| ()).unwrap();
        assert!(findings.checks.iter().all(|check| check.faults.is_empty()));

        let store = open(&root);
        assert_eq!(contents(&store), before);
        assert_eq!(length(&segment), end, "gap of {gap}");
        for n in 0..50 {
            put(&store, &format!("{n}"), &[2; 100]);
        }
        drop(store);
        assert_eq!(contents(&open(&root)).len(), 51);
    }
}
