//! `lockd verify store` on roots that a daemon has left, sound and damaged.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::process::{Daemon, Done, Shell, lockd};

/// A root with two keys, one of them with a state in a file of its own; the daemon was killed.
fn left_root() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("store");
    let daemon = Daemon::start(&["--store", &url(&root)]);
    let mut shell = daemon.shell();
    for (key, state) in [
        ("small", "{\"a\":1}".to_owned()),
        ("large", format!("\"{}\"", "x".repeat(100_000))),
    ] {
        shell.acquire(key);
        shell.ok_with_input(&["client", "update"], &state);
        shell.ok(&["client", "release"]);
    }
    drop(daemon);
    (dir, root)
}

fn url(root: &Path) -> String {
    format!("disk://{}", root.display())
}

fn verify(root: &Path) -> Done {
    Done::from(lockd(&["verify", "store", "--store", &url(root)]).output().unwrap())
}

/// The lines that begin with this mark.
fn marked(done: &Done, mark: char) -> Vec<&str> {
    done.stdout.lines().filter(|line| line.starts_with(mark)).collect()
}

#[track_caller]
fn is_damaged(done: &Done) {
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert_eq!(done.stderr, "storage verification failed\n", "{done:?}");
    assert!(!marked(done, '\u{2718}').is_empty(), "{done:?}");
}

fn only_file(directory: &Path) -> PathBuf {
    let mut paths = fs::read_dir(directory).unwrap();
    let path = paths.next().unwrap().unwrap().path();
    assert!(paths.next().is_none());
    path
}

#[test]
fn a_sound_store_is_verified_check_by_check() {
    let (_dir, root) = left_root();
    let done = verify(&root);
    assert_eq!((done.status.code(), done.stderr.as_str()), (Some(0), ""), "{done:?}");
    let head = format!("Store: {}\nProvider: disk\n\n", url(&root));
    assert!(done.stdout.starts_with(&head), "{done:?}");
    assert!(done.stdout.ends_with("\nStorage verification succeeded.\n"), "{done:?}");
    let checks = marked(&done, '\u{2714}');
    assert_eq!(checks.len(), 5, "{done:?}");
    assert!(checks[4].ends_with("Records: records: 2, naming bodies: 1"), "{done:?}");
    assert_eq!(marked(&done, '\u{2718}'), [] as [&str; 0]);
}

#[test]
fn the_store_may_be_named_as_it_is_for_the_daemon() {
    let (_dir, root) = left_root();
    let mut shell = Shell {
        variables: std::collections::BTreeMap::new(),
    };
    shell.set("LOCKD_STORE", &url(&root));
    let done = shell.ok(&["verify", "store"]);
    assert!(done.stdout.contains("Storage verification succeeded."), "{done:?}");
}

#[test]
fn damage_in_the_log_is_reported_with_file_and_offset() {
    let (_dir, root) = left_root();
    let segment = only_file(&root.join("log"));
    let mut bytes = fs::read(&segment).unwrap();
    // In the first frame, which begins behind the header of the file.
    bytes[100] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let done = verify(&root);
    is_damaged(&done);
    let expected = format!("\u{2718} Segments: {} at byte 64: ", segment.display());
    assert!(marked(&done, '\u{2718}')[0].starts_with(&expected), "{done:?}");
}

#[test]
fn a_body_that_is_damaged_or_missing_is_reported_with_the_record_that_names_it() {
    let (_dir, root) = left_root();
    let body = only_file(&root.join("bodies"));
    let mut bytes = fs::read(&body).unwrap();
    bytes[1_000] ^= 1;
    fs::write(&body, bytes).unwrap();
    let done = verify(&root);
    is_damaged(&done);
    let faults = marked(&done, '\u{2718}');
    assert!(faults[0].contains(body.to_str().unwrap()), "{done:?}");
    assert!(
        faults[1].contains("Records: record k/default/large at byte 0: it names body"),
        "{done:?}"
    );

    fs::remove_file(&body).unwrap();
    let done = verify(&root);
    is_damaged(&done);
    assert!(
        marked(&done, '\u{2718}')[0].contains("record k/default/large"),
        "{done:?}"
    );
}

#[test]
fn what_cannot_be_verified_is_said_plainly() {
    let dir = TempDir::new().unwrap();
    let done = verify(&dir.path().join("missing"));
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stderr.contains("the directory does not exist"), "{done:?}");

    let done = verify(dir.path());
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stderr.contains("it holds no store"), "{done:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was made");

    let done = Done::from(lockd(&["verify", "store", "--store", "mem://"]).output().unwrap());
    assert_eq!((done.status.code(), done.stderr.as_str()), (Some(0), ""), "{done:?}");
    assert!(done.stdout.contains("keeps nothing that could be verified"), "{done:?}");
}

/// A daemon that serves the root goes on, and what it has acknowledged meanwhile is sound too.
#[test]
fn a_store_that_is_served_can_be_looked_through() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("store");
    let daemon = Daemon::start(&["--store", &url(&root)]);
    let mut shell = daemon.shell();
    for n in 0..3 {
        shell.acquire(&format!("key-{n}"));
        shell.ok_with_input(&["client", "update"], "{\"a\":1}");
        let done = verify(&root);
        assert!(done.status.success(), "{done:?}");
        shell.ok(&["client", "release"]);
    }
}
