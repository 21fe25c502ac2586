//! `lockd client` and `lockd namespace`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use crate::process::{Daemon, Done, LOCKD, pid, wait_for_line};

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
fn the_configuration_of_a_namespace_is_read_and_changed() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    let before = shell.ok(&["namespace", "get", "-n", "shop"]).json();
    assert_eq!(before["namespace"], "shop");
    assert_eq!(before["etag"], Value::Null, "it was never configured");
    let query = ["ns", "set", "query", "-n", "shop"];
    let first = shell.ok(&[&query[..], &["--preferred", "INDEX"]].concat()).json();
    let etag = first["etag"].as_str().unwrap();
    let guarded = [
        &query[..],
        &["--preferred", "scan", "--fallback", "none", "--if-match", etag],
    ]
    .concat();
    let changed = shell.ok(&guarded).json();
    assert_eq!(
        changed["query"],
        json!({"preferred_engine": "scan", "fallback_engine": "none"})
    );
    assert_ne!(changed["etag"], etag);
    assert!(shell.fails(&guarded).contains("namespace_config_conflict"));
    // The flags of every command reach these too.
    shell.set("LOCKD_CLIENT_SERVER", "http://127.0.0.1:1");
    shell.set("LOCKD_CLIENT_NAMESPACE", "shop");
    let text = shell.ok(&["--server", &daemon.url(), "ns", "get", "-o", "text"]).stdout;
    assert!(text.starts_with("Namespace: shop\nPreferred query engine: scan\nFallback query engine: none\nETag: "));
    assert!(shell.fails(&["ns", "set", "query"]).contains("--preferred"));
    assert!(
        shell
            .fails(&["ns", "set", "query", "--preferred", "fast"])
            .contains("index, scan")
    );
    assert!(shell.fails(&["ns", "get", "-o", "xml"]).contains("text, json"));
}
