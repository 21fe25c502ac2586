//! The command line as people use it: the built program as a daemon, and the same program as its client.
//!
//! Every daemon is a real process on a port of its own, and no variable of the surrounding environment reaches it or
//! its clients.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Far beyond what anything here takes; only a test that hangs gets here.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_state_lives_from_acquire_to_release() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    let exports = shell.ok(&["client", "acquire", "-k", "orders", "--owner", "me"]).stdout;
    let names: Vec<_> = exports
        .lines()
        .map(|line| {
            line.strip_prefix("export LOCKD_CLIENT_")
                .unwrap()
                .split_once('=')
                .unwrap()
                .0
        })
        .collect();
    let expected = [
        "LEASE",
        "KEY",
        "OWNER",
        "FENCING_TOKEN",
        "TXN_ID",
        "SERVER",
        "VERSION",
        "ETAG",
        "EXPIRES_UNIX",
        "NAMESPACE",
        "CORRELATION_ID",
    ];
    assert_eq!(names, expected);
    shell.eval(&exports);
    assert_eq!(shell.variables["LOCKD_CLIENT_OWNER"], "me");
    assert_eq!(shell.variables["LOCKD_CLIENT_FENCING_TOKEN"], "1");
    assert_eq!(shell.variables["LOCKD_CLIENT_SERVER"], daemon.url());

    let nothing_yet = shell.ok(&["client", "get"]);
    assert_eq!(nothing_yet.stdout, "null\n");
    assert_eq!(nothing_yet.json_from_stderr(), json!({"version": 0, "bytes": 0}));

    let updated = shell.ok_with_input(&["client", "update"], r#"{ "b": 12345678901234567890123, "a": [1] }"#);
    let etag = updated.json()["etag"].as_str().unwrap().to_owned();
    assert_eq!(updated.json(), json!({"version": 1, "bytes": 37, "etag": etag}));

    let got = shell.ok(&["client", "get"]);
    assert_eq!(
        got.stdout,
        "{\n  \"b\": 12345678901234567890123,\n  \"a\": [\n    1\n  ]\n}\n"
    );
    assert_eq!(got.json_from_stderr()["etag"], etag.as_str());
    assert_eq!(got.json_from_stderr()["bytes"], 37);

    let renewed = shell.ok(&["client", "keepalive", "--ttl", "1m"]).json();
    let expires = renewed["expires_at_unix"].as_i64().unwrap();
    let first_expires: i64 = shell.variables["LOCKD_CLIENT_EXPIRES_UNIX"].parse().unwrap();
    assert!(expires >= first_expires + 29, "{renewed}");
    assert!(renewed["expires_at_iso"].as_str().unwrap().ends_with('Z'), "{renewed}");

    assert_eq!(shell.ok(&["client", "release"]).json(), json!({"released": true}));
    let public = shell.ok(&["client", "get", "--public", "-k", "orders"]);
    assert_eq!(public.json_from_stderr()["version"], 1);
    assert!(shell.fails(&["client", "get"]).contains("lease_required"));

    shell.acquire("orders");
    assert_eq!(shell.variables["LOCKD_CLIENT_VERSION"], "1");
    assert_eq!(shell.variables["LOCKD_CLIENT_ETAG"], etag);
    assert_eq!(shell.variables["LOCKD_CLIENT_FENCING_TOKEN"], "2");
    assert_eq!(
        shell.ok(&["client", "rm"]).json(),
        json!({"removed": true, "version": 2})
    );
    assert_eq!(shell.ok(&["client", "get", "--show-meta=false"]).stderr, "");
    assert_eq!(
        shell.ok(&["client", "release", "--output", "text"]).stdout,
        "released: true\n"
    );
    assert_eq!(
        shell.ok(&["client", "get", "--public", "-k", "orders"]).stdout,
        "null\n"
    );
}

#[test]
fn text_output_is_one_line_per_value() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    let updated = shell
        .ok_with_input(&["client", "update", "--output", "text"], "[1]")
        .stdout;
    let lines: Vec<_> = updated.lines().collect();
    assert_eq!(lines[..2], ["version: 1", "bytes: 3"]);
    assert!(lines[2].starts_with("etag: ") && lines.len() == 3, "{updated}");
    let renewed = shell.ok(&["client", "keepalive", "--output", "TEXT"]).stdout;
    assert!(
        renewed.starts_with("expires_at_unix: ") && renewed.ends_with("Z)\n"),
        "{renewed}"
    );
    let removed = shell.ok(&["client", "remove", "--output", "text"]).stdout;
    assert_eq!(removed, "removed: true\nversion: 2\n");
    let described = shell.ok(&["client", "describe", "--output", "text"]).stdout;
    assert!(
        described.starts_with("namespace: default\nkey: orders\nowner: "),
        "{described}"
    );
}

#[test]
fn the_exports_are_made_for_a_real_shell() {
    let daemon = Daemon::start(&[]);
    let script = r#"
        set -eu
        eval "$("$LOCKD" client acquire -k orders --owner 'it"s $(id) `id` \')"
        printf '%s\n' "$LOCKD_CLIENT_OWNER"
        echo '{"n": 1}' | "$LOCKD" client update >/dev/null
        "$LOCKD" client release >/dev/null
        "$LOCKD" client get --public --type raw 2>/dev/null
    "#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap());
    command.env("LOCKD", LOCKD).env("LOCKD_CLIENT_SERVER", daemon.url());
    let done = Done::from(command.output().unwrap());
    assert!(done.status.success(), "{done:?}");
    assert_eq!(done.stdout, "it\"s $(id) `id` \\\n{\"n\":1}");
}

#[test]
fn a_rollback_drops_what_was_staged() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    shell.ok_with_input(&["client", "update"], "1");
    shell.ok(&["client", "release", "--rollback"]);
    assert_eq!(shell.ok(&["client", "get", "--public"]).stdout, "null\n");
}

#[test]
fn writes_fail_when_the_state_is_not_the_expected_one() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    let wrong = shell.run(&["client", "update", "--if-version", "4"], Some("1"));
    assert_eq!((wrong.status.code(), wrong.stdout.as_str()), (Some(1), ""));
    assert!(wrong.stderr.contains("version_conflict"), "{wrong:?}");
    shell.ok_with_input(&["client", "update", "--if-version", "0"], "1");
    assert!(
        shell
            .fails(&["client", "remove", "--if-etag", "nonsense"])
            .contains("etag_mismatch")
    );
    assert!(
        shell
            .fails(&["client", "remove", "--if-version", "-1"])
            .contains("--if-version")
    );
}

#[test]
fn metadata_is_staged_and_described_after_the_release() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    let hidden = shell.ok(&["client", "metadata", "--query-hidden"]).json();
    assert_eq!(hidden["metadata"], json!({"query_hidden": true}));
    assert_eq!(shell.ok(&["client", "describe"]).json()["metadata"], json!({}));
    shell.ok(&["client", "release"]);
    let described = shell.ok(&["client", "describe", "-k", "orders"]).json();
    assert_eq!(described["metadata"], json!({"query_hidden": true}));
    assert_eq!(described["lease_id"], Value::Null);
    assert!(shell.fails(&["client", "metadata"]).contains("--query-hidden"));
}

#[test]
fn states_are_read_from_and_written_to_files_in_their_form() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    let (yaml, json_file) = (daemon.path("in.yaml"), daemon.path("out.json"));
    let (yaml, json_file) = (yaml.to_str().unwrap(), json_file.to_str().unwrap());
    fs::write(yaml, "name: x\nlist: [1, two]\n").unwrap();
    shell.acquire("orders");
    shell.ok(&["client", "update", yaml]);
    assert_eq!(
        shell.ok(&["client", "get", "--type", "raw"]).stdout,
        r#"{"list":[1,"two"],"name":"x"}"#
    );
    assert_eq!(shell.ok(&["client", "get", "-o", json_file]).stdout, "");
    let written: Value = serde_json::from_str(&fs::read_to_string(json_file).unwrap()).unwrap();
    assert_eq!(written, json!({"name": "x", "list": [1, "two"]}));
    assert_eq!(fs::metadata(json_file).unwrap().permissions().mode() & 0o777, 0o600);
    let as_yaml = shell.ok(&["client", "get", "--type", "yaml"]).stdout;
    assert!(as_yaml.contains("name: x\n"), "{as_yaml}");
    assert!(
        shell
            .fails(&["client", "update", "/nowhere/in.json"])
            .starts_with("/nowhere/in.json: ")
    );
    let bad = shell.run(&["client", "update"], Some("{a: 1}"));
    assert!(bad.stderr.contains("not JSON"), "{bad:?}");
}

#[test]
fn a_flag_beats_the_environment() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    let url = daemon.url();
    shell.acquire("orders");
    let (lease, token) = (shell.variables["LOCKD_CLIENT_LEASE"].clone(), "1");
    shell.set("LOCKD_CLIENT_SERVER", "http://127.0.0.1:1");
    shell.set("LOCKD_CLIENT_KEY", "other");
    shell.set("LOCKD_CLIENT_LEASE", "other");
    shell.set("LOCKD_CLIENT_FENCING_TOKEN", "77");
    shell.fails(&["client", "get"]);
    let lease_flags = ["-k", "orders", "--lease", &lease, "--fencing-token", token];
    shell.ok(&[&["client", "get", "--server", &url], &lease_flags[..]].concat());
    shell.ok(&[&["client", "get", "-s", &url], &lease_flags[..]].concat());
    shell.ok(&[&["--server", &url, "client", "get"], &lease_flags[..]].concat());
    shell.ok(&[&["client", "-s", &url, "get"], &lease_flags[..]].concat());
}

#[test]
fn the_configuration_file_is_the_last_to_be_asked() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    let config = daemon.path("config.yaml");
    fs::write(&config, format!("client-server: {}\n", daemon.url())).unwrap();
    shell.variables.remove("LOCKD_CLIENT_SERVER");
    shell.set("LOCKD_CONFIG_DIR", config.parent().unwrap().to_str().unwrap());
    shell.ok(&["client", "describe", "-k", "orders"]);
    shell.set("LOCKD_CLIENT_SERVER", "http://127.0.0.1:1");
    shell.fails(&["client", "describe", "-k", "orders"]);
    shell.variables.remove("LOCKD_CLIENT_SERVER");
    fs::write(&config, "client-server: [a]\n").unwrap();
    assert!(
        shell
            .fails(&["client", "describe", "-k", "orders"])
            .contains("expected a plain value")
    );
    shell.ok(&["version"]);
}

#[test]
fn a_key_is_made_up_when_none_is_given() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.set("LOCKD_CLIENT_KEY", "of-another-lease");
    let granted = shell.ok(&["client", "acquire", "--output", "json"]).json();
    let key = granted["key"].as_str().unwrap();
    assert!(!key.is_empty() && key != "of-another-lease", "{granted}");
    assert_eq!(granted["fencing_token"], 1);
    assert_eq!(granted["namespace"], "default");
}

#[test]
fn a_held_key_is_not_granted_again() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    for block in ["nowait", "-1", "no-wait"] {
        let refusal = shell.fails(&["client", "acquire", "-k", "orders", "--block", block]);
        assert!(refusal.contains("waiting"), "{refusal}");
    }
    assert!(
        shell
            .fails(&["client", "acquire", "-k", "orders", "--block", "1s"])
            .contains("timed out")
    );
    shell.ok(&[
        "client",
        "acquire",
        "-k",
        "orders",
        "-n",
        "elsewhere",
        "--block",
        "nowait",
    ]);
    shell.ok(&["client", "release"]);
    let again = shell.fails(&[
        "client",
        "acquire",
        "-k",
        "orders",
        "--if-not-exists",
        "--block",
        "nowait",
    ]);
    assert!(again.contains("already_exists"), "{again}");
    shell.ok(&["client", "acquire", "-k", "fresh", "--if-not-exists"]);
}

#[test]
fn a_waiting_acquire_gets_the_key_at_its_release() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    let log = daemon.path("waiter.log");
    let log_flags = ["-v", "--log-output", log.to_str().unwrap()];
    let waiter = shell.spawn(
        &[
            &["client", "acquire", "-k", "orders", "--block", "forever"],
            &log_flags[..],
        ]
        .concat(),
    );
    wait_for_line(&log, "client.acquire.attempt");
    shell.ok(&["client", "release"]);
    let done = Done::from(waiter.wait_with_output().unwrap());
    assert!(done.status.success(), "{done:?}");
    assert!(
        done.stdout.contains("export LOCKD_CLIENT_FENCING_TOKEN=\"2\"\n"),
        "{done:?}"
    );
}

#[test]
fn an_interrupted_acquire_ends_with_one_and_without_a_word() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    for signal in [Signal::INT, Signal::TERM] {
        let log = daemon.path(&format!("waiter-{}.log", signal.as_raw()));
        let log_flags = ["-v", "--log-output", log.to_str().unwrap()];
        let block = ["client", "acquire", "-k", "orders", "--block", "forever"];
        let waiter = shell.spawn(&[&block, &log_flags[..]].concat());
        wait_for_line(&log, "client.acquire.attempt");
        kill_process(pid(&waiter), signal).unwrap();
        let done = Done::from(waiter.wait_with_output().unwrap());
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""));
    }
}

#[test]
fn retries_are_counted() {
    let daemon = Daemon::start(&[]);
    let shell = daemon.shell();
    let log = daemon.path("client.log");
    // Nobody listens on port 1, and failures to connect count against the retries.
    let flags = [
        "--retries",
        "1",
        "-s",
        "http://127.0.0.1:1",
        "-v",
        "--log-output",
        log.to_str().unwrap(),
    ];
    shell.fails(&[&["client", "acquire", "-k", "orders", "--block", "forever"], &flags[..]].concat());
    let attempts = fs::read_to_string(&log)
        .unwrap()
        .matches("\"client.acquire.attempt\"")
        .count();
    assert_eq!(attempts, 2);
}

#[test]
fn a_keepalive_needs_the_transaction_of_the_lease() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    let txn_id = shell.variables.remove("LOCKD_CLIENT_TXN_ID").unwrap();
    assert!(shell.fails(&["client", "keepalive"]).contains("missing_txn"));
    assert!(shell.fails(&["client", "release"]).contains("--txn-id is required"));
    shell.ok(&["client", "keepalive", "--txn-id", &txn_id]);
    assert!(
        shell
            .fails(&["client", "keepalive", "--txn-id", &txn_id, "--ttl", "0s"])
            .contains("more than zero")
    );
}

#[test]
fn two_keys_of_one_transaction_are_committed_together() {
    let daemon = Daemon::start(&[]);
    let mut first = daemon.shell();
    first.acquire("from");
    let mut second = daemon.shell();
    let txn_id = first.variables["LOCKD_CLIENT_TXN_ID"].clone();
    second.set("LOCKD_CLIENT_TXN_ID", &txn_id);
    second.acquire("to");
    assert_eq!(second.variables["LOCKD_CLIENT_TXN_ID"], txn_id);
    first.ok_with_input(&["client", "update"], "1");
    second.ok_with_input(&["client", "update"], "2");
    first.ok(&["client", "release"]);
    assert_eq!(second.ok(&["client", "get", "--public", "-k", "from"]).stdout, "1\n");
    assert_eq!(second.ok(&["client", "get", "--public", "-k", "to"]).stdout, "2\n");
}

#[test]
fn a_client_says_nothing_unless_it_is_told_to() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    let describe = ["client", "describe", "-k", "orders"];
    assert_eq!(shell.ok(&describe).stderr, "");
    let all = shell.ok(&[&describe[..], &["-v"]].concat()).stderr;
    let first: Value = serde_json::from_str(all.lines().next().unwrap()).unwrap();
    assert_eq!((&first["app"], &first["sys"]), (&json!("lockd"), &json!("client.sdk")));
    assert!(all.contains("\"lvl\":\"trace\""), "{all}");
    shell.set("LOCKD_CLIENT_LOG_LEVEL", "error");
    assert_eq!(shell.ok(&describe).stderr, "");
    shell.set("LOCKD_CLIENT_LOG_LEVEL", "trace");
    assert!(!shell.ok(&describe).stderr.is_empty());
    assert_eq!(
        shell.ok(&[&describe[..], &["--log-level", "error"]].concat()).stderr,
        ""
    );
}

#[test]
fn the_correlation_id_of_the_acquire_stays_with_the_session() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    shell.acquire("orders");
    let cid = shell.variables["LOCKD_CLIENT_CORRELATION_ID"].clone();
    let log = shell.ok(&["client", "keepalive", "-v"]).stderr;
    assert!(log.contains(&format!("\"cid\":\"{cid}\"")), "{log}");
}

#[test]
fn a_daemon_without_arguments_or_home_says_that_memory_forgets() {
    // It listens on the default port, so it may also meet another daemon there; the word comes before that.
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("stderr");
    let mut daemon = lockd(&[]).stderr(File::create(&log).unwrap()).spawn().unwrap();
    wait_for_line(&log, "nothing survives a restart");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let first: Value = serde_json::from_str(fs::read_to_string(&log).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(first["lvl"], "warn");
    assert_eq!(first["store"], "mem://");
}

#[test]
fn a_daemon_ends_with_zero_when_it_is_asked_to() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&[]);
        kill_process(pid(&daemon.child), signal).unwrap();
        assert_eq!(daemon.wait().code(), Some(0));
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
        let done = Done::from(lockd(arguments).output().unwrap());
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        let line: Value = serde_json::from_str(done.stderr.lines().last().unwrap()).unwrap();
        assert_eq!(
            (&line["sys"], &line["msg"]),
            (&json!("cli.root"), &json!("command failed"))
        );
        line["error"].as_str().unwrap().to_owned()
    };
    assert!(refusal(&["--metrics-listen", ":9464"]).contains("not supported by this version"));
    assert!(refusal(&["--store", "disk:///tmp"]).contains("not supported by this version"));
    assert!(refusal(&["--bundle", "server.pem"]).contains("no TLS"));
    assert!(refusal(&["--listen", ":0"]).contains("--allow-plaintext"));
    assert!(refusal(&["--max-ttl", "1s"]).contains("shorter than default-ttl"));
    assert!(refusal(&["--log-level", "none", "--listen", "192.0.2.1:0", "--allow-plaintext"]).contains("192.0.2.1"));
    assert!(refusal(&["-s", "http://a"]).contains("option of the client commands"));
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

const LOCKD: &str = env!("CARGO_BIN_EXE_lockd");

/// The program with these arguments and an empty environment.
fn lockd(arguments: &[&str]) -> Command {
    let mut command = Command::new(LOCKD);
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

/// A running daemon, killed when the test is over.
struct Daemon {
    child: Child,
    dir: TempDir,
    /// The log line that says where it listens.
    listening: Value,
}

impl Daemon {
    /// A daemon on memory, on a free port unless the arguments say otherwise.
    fn start(arguments: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let log = dir.path().join("daemon.log");
        let mut command = lockd(&["--store", "mem://"]);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let child = command
            .args(arguments)
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut daemon = Self {
            child,
            dir,
            listening: Value::Null,
        };
        let line = wait_for_line(&log, "\"msg\":\"listening\"");
        daemon.listening = serde_json::from_str(&line).unwrap();
        daemon
    }

    fn url(&self) -> String {
        format!("http://{}", self.listening["address"].as_str().unwrap())
    }

    /// A file in a directory that goes away with the daemon.
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A shell whose commands talk to this daemon.
    fn shell(&self) -> Shell {
        let mut shell = Shell {
            variables: BTreeMap::new(),
        };
        shell.set("LOCKD_CLIENT_SERVER", &self.url());
        shell
    }

    fn wait(&mut self) -> ExitStatus {
        let clock = SystemClock::new();
        let give_up = clock.now().after(PATIENCE);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(clock.now() < give_up, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The environment of client commands, as a person's shell keeps it.
struct Shell {
    variables: BTreeMap<String, String>,
}

impl Shell {
    fn set(&mut self, name: &str, value: &str) {
        self.variables.insert(name.to_owned(), value.to_owned());
    }

    /// Takes over what acquire exported. Only for values without anything to unquote.
    fn eval(&mut self, exports: &str) {
        for line in exports.lines() {
            let (name, value) = line.strip_prefix("export ").unwrap().split_once('=').unwrap();
            let value = value.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
            assert!(!value.contains(['\\', '"']), "{line}");
            self.set(name, value);
        }
    }

    fn acquire(&mut self, key: &str) {
        let exports = self.ok(&["client", "acquire", "-k", key]).stdout;
        self.eval(&exports);
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = lockd(arguments);
        command
            .envs(&self.variables)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    fn run(&self, arguments: &[&str], input: Option<&str>) -> Done {
        let mut command = lockd(arguments);
        command
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A command that reads nothing may be gone by now; what it did is what the test looks at.
        let _ = stdin.write_all(input.unwrap_or_default().as_bytes());
        drop(stdin);
        Done::from(child.wait_with_output().unwrap())
    }

    fn ok(&self, arguments: &[&str]) -> Done {
        let done = self.run(arguments, None);
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        done
    }

    fn ok_with_input(&self, arguments: &[&str], input: &str) -> Done {
        let done = self.run(arguments, Some(input));
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        done
    }

    /// Runs a command that must fail with status 1 and nothing on standard output. Returns standard error.
    fn fails(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments, None);
        assert_eq!(
            (done.status.code(), done.stdout.as_str()),
            (Some(1), ""),
            "{arguments:?}: {done:?}"
        );
        done.stderr
    }
}

/// What a command left behind.
#[derive(Debug)]
struct Done {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Done {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }

    fn json_from_stderr(&self) -> Value {
        serde_json::from_str(&self.stderr).unwrap()
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// Waits for a whole line with this text in a log file that somebody writes.
fn wait_for_line(log: &Path, text: &str) -> String {
    let clock = SystemClock::new();
    let give_up = clock.now().after(PATIENCE);
    loop {
        let written = fs::read_to_string(log).unwrap_or_default();
        let whole_lines = written.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        if let Some(line) = whole_lines.into_iter().find(|line| line.contains(text)) {
            return line.to_owned();
        }
        assert!(clock.now() < give_up, "no line with {text:?} in: {written}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
