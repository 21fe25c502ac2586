//! For tests of this harness whose subject ends the process or is its output: the test binary runs one test again as a
//! child process and looks at it from outside.

use std::process::{Command, ExitStatus, Stdio};

const CHILD: &str = "LOCKD_TEST_IS_CHILD";

/// What the child left behind.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Whether this process is such a child.
pub(super) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs the test of this name, and no other, with these further arguments for the test runner.
pub(super) fn run_this_test_as_child(name: &str, arguments: &[&str]) -> Child {
    run_this_test_as_child_with(name, arguments, &[])
}

/// The same with variables in the child's environment.
pub(super) fn run_this_test_as_child_with(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Child {
    let own_binary = std::env::current_exe().unwrap();
    let output = Command::new(own_binary)
        .args(["--exact", name])
        .args(arguments)
        .env(CHILD, "1")
        .env_remove("RUST_TEST_NOCAPTURE")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let child = Child {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    // A name that went stale would select nothing and pass.
    assert!(
        child.stdout.contains("running 1 test"),
        "no test named {name}: {child:?}"
    );
    child
}
