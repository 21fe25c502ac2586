//! What a suite does that is not told where to write: this test binary runs one of its claims again as a child.

use std::process::{Command, Output, Stdio};

use crate::DEMANDS;
use crate::root::STORE;

/// Runs one claim that needs the root, with this value of the variable.
fn run_with(root: Option<&str>) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "smoke::a_lease_guards_a_state_from_acquire_to_release"])
        .env_remove(STORE)
        .stdin(Stdio::null());
    if let Some(root) = root {
        command.env(STORE, root);
    }
    command.output().unwrap()
}

#[track_caller]
fn assert_refused(root: Option<&str>, reason: &str) {
    let output = run_with(root);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stdout.contains("running 1 test"), "{stdout}");
    assert_eq!(output.status.code(), Some(1), "{root:?}: {stdout}{stderr}");
    for part in [reason, STORE, DEMANDS.env_file] {
        assert!(stderr.contains(part), "{part:?} is not in {stderr:?}");
    }
}

/// TH-11.
#[test]
fn without_a_root_the_run_ends_at_once_and_says_what_is_missing() {
    assert_refused(None, "LOCKD_STORE is not set");
}

#[test]
fn a_root_that_cannot_be_right_ends_the_run_too() {
    assert_refused(Some(""), "expected");
    assert_refused(Some("/var/tmp"), "expected");
    assert_refused(Some("mem://"), "expected disk:///absolute/path");
    assert_refused(Some("s3://host"), "expected");
    assert_refused(Some("disk://host/path"), "absolute path");
    assert_refused(Some("disk://relative"), "absolute path");
    assert_refused(Some("disk:///nowhere/at/all"), "there is no such directory");
    if DEMANDS.on_nfs {
        assert_refused(Some("disk:///"), "not on NFS");
    }
}
