//! The program as a daemon, and the commands that need none.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Daemon, Done, lockd, pid};

#[test]
fn a_daemon_ends_with_zero_when_it_is_asked_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&[]);
        kill_process(pid(&daemon.child), signal).unwrap();
        assert_eq!(daemon.wait().code(), Some(0));
    }
}

#[test]
fn a_clean_stop_looks_like_no_fault_in_the_log() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("lockd.sock");
    let socket = socket.to_str().unwrap();
    for listen in [vec![], vec!["--listen-proto", "unix", "--listen", socket]] {
        let mut daemon = Daemon::start(&listen);
        kill_process(pid(&daemon.child), Signal::TERM).unwrap();
        assert_eq!(daemon.wait().code(), Some(0));
        let log = daemon.log();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let faults: Vec<_> = lines
            .filter(|line| line["lvl"] == "error" || line["lvl"] == "warn")
            .collect();
        assert!(faults.is_empty(), "{faults:?}");
        assert!(log.contains("\"msg\":\"stopped\""), "{log}");
    }
}

#[test]
fn a_daemon_serves_on_a_unix_socket() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("lockd.sock");
    let socket = socket.to_str().unwrap();
    let mut daemon = Daemon::start(&["--listen-proto", "unix", "--listen", socket]);
    assert_eq!(daemon.listening["network"], "unix");
    let mut shell = daemon.shell();
    shell.set("LOCKD_CLIENT_SERVER", &format!("unix://{socket}"));
    shell.acquire("orders");
    shell.ok(&["client", "release"]);
    kill_process(pid(&daemon.child), Signal::TERM).unwrap();
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!Path::new(socket).exists());
}

#[test]
fn a_daemon_refuses_what_it_cannot_do() {
    let refusal = |arguments: &[&str]| {
        let mut command = lockd(arguments);
        if !arguments.contains(&"--store") {
            command.args(["--store", "mem://"]);
        }
        refusal_of(command)
    };
    assert!(refusal(&["--pprof-listen", ":9465"]).contains("not supported by this version"));
    assert!(refusal(&["--metrics-listen", ":0"]).contains("--allow-plaintext"));
    assert!(refusal(&["--metrics-listen", "192.0.2.1:0", "--allow-plaintext"]).contains("192.0.2.1"));
    assert!(refusal(&["--store", "s3://host"]).contains("bucket"));
    assert!(refusal(&["--store", "disk://relative"]).contains("absolute path"));
    assert!(refusal(&["--bundle", "server.pem"]).contains("no TLS"));
    assert!(refusal(&["--listen", ":0"]).contains("--allow-plaintext"));
    assert!(refusal(&["--max-ttl", "1s"]).contains("shorter than default-ttl"));
    assert!(refusal(&["--log-level", "none", "--listen", "192.0.2.1:0", "--allow-plaintext"]).contains("192.0.2.1"));
    assert!(refusal(&["-s", "http://a"]).contains("option of the client commands"));
}

/// Why a daemon does not start, as its last line of log says.
#[track_caller]
pub(crate) fn refusal_of(mut command: Command) -> String {
    let done = Done::from(command.output().unwrap());
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let line: Value = serde_json::from_str(done.stderr.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&line["sys"], &line["msg"]),
        (&json!("cli.root"), &json!("command failed"))
    );
    line["error"].as_str().unwrap().to_owned()
}

/// What wakes an idle daemon wakes a processor that could sleep: on a battery, in a hundred containers.
#[test]
#[cfg(target_os = "linux")]
fn no_thread_of_an_idle_daemon_wakes_up_more_than_once_a_second() {
    const WINDOW: Duration = Duration::from_secs(8);
    let dir = TempDir::new().unwrap();
    let store = format!("disk://{}/store", dir.path().display());
    let daemon = Daemon::start(&["--store", &store, "--metrics-listen", "127.0.0.1:0"]);
    let clock = SystemClock::new();
    let give_up = clock.now().after(Duration::from_secs(60));
    loop {
        let (before, began) = (naps(&daemon), clock.now());
        std::thread::sleep(WINDOW);
        let (after, seconds) = (naps(&daemon), clock.now().since(began).as_secs());
        let restless: Vec<_> = (after.iter())
            .map(|(thread, count)| (thread, count - before.get(thread).unwrap_or(count)))
            .filter(|(_, count)| seconds < *count)
            .collect();
        if restless.is_empty() {
            return;
        }
        assert!(clock.now() < give_up, "in {seconds} s: {restless:?}");
    }
}

/// How often each thread has gone to sleep, by its id and name.
#[cfg(target_os = "linux")]
fn naps(daemon: &Daemon) -> BTreeMap<String, u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.child.id())).unwrap();
    let nap = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let field = |name: &str| {
            Some(
                status
                    .lines()
                    .find_map(|line| line.strip_prefix(name))?
                    .trim()
                    .to_owned(),
            )
        };
        let thread = format!("{} {}", field("Pid:")?, field("Name:")?);
        Some((thread, field("voluntary_ctxt_switches:")?.parse().unwrap()))
    };
    tasks.filter_map(|task| nap(task.unwrap())).collect()
}

#[test]
fn a_mistyped_flag_ends_with_one_and_a_hint() {
    let done = Done::from(lockd(&["--listne", ":1"]).output().unwrap());
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stderr.contains("'--listen'"), "{done:?}");
    let done = Done::from(lockd(&["--listen", ":1", "version"]).output().unwrap());
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(done.stderr, "--listen is an option of the daemon, not of a command\n");
}

#[test]
fn the_version_has_three_forms() {
    let version = env!("CARGO_PKG_VERSION");
    let printed = |arguments: &[&str]| Done::from(lockd(arguments).output().unwrap()).stdout;
    assert_eq!(printed(&["version"]), format!("lockd v{version}\n"));
    assert_eq!(printed(&["version", "--version"]), format!("v{version}\n"));
    assert_eq!(printed(&["version", "--semver"]), format!("{version}\n"));
    assert!(printed(&["completions", "bash"]).contains("complete -F _lockd"));
    let both = lockd(&["version", "--version", "--semver"]).output().unwrap();
    assert_eq!(both.status.code(), Some(1));
}
