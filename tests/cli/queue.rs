//! `lockd client queue`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::process::{Daemon, Done, LOCKD, Shell};

/// Takes over what dequeue exported. Returns the payload.
fn dequeue(shell: &mut Shell, more: &[&str]) -> String {
    let done = shell.ok(&[&["client", "queue", "dequeue", "-q", "jobs", "--block", "5s"], more].concat());
    shell.eval(&done.stdout);
    let path = shell.variables["LOCKD_QUEUE_PAYLOAD_PATH"].clone();
    let payload = fs::read_to_string(&path).unwrap();
    if done.stderr.contains(&path) {
        fs::remove_file(&path).unwrap();
    }
    payload
}

fn stats(shell: &Shell) -> Value {
    shell
        .ok(&["client", "queue", "stats", "-q", "jobs", "--output", "json"])
        .json()
}

#[test]
fn a_message_lives_from_enqueue_to_ack() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    let stored = shell.ok(&[
        "client",
        "queue",
        "enqueue",
        "-q",
        "jobs",
        "-d",
        "hello",
        "--content-type",
        "text/plain",
        "--attr",
        "tenant=acme,region=eu",
        "--max-attempts",
        "7",
    ]);
    let id = stored.stdout.split([' ', '=']).nth(1).unwrap().to_owned();
    assert_eq!(stored.stdout, format!("message_id={id} attempts=0 max_attempts=7\n"));
    assert_eq!(stats(&shell)["head_message_id"], id.as_str());

    let done = shell.ok(&["client", "q", "dequeue", "-q", "Jobs"]);
    let names: Vec<&str> = done
        .stdout
        .lines()
        .map(|line| {
            line.strip_prefix("export LOCKD_QUEUE_")
                .unwrap()
                .split_once('=')
                .unwrap()
                .0
        })
        .collect();
    assert_eq!(
        names,
        [
            "NAMESPACE",
            "NAME",
            "MESSAGE_ID",
            "LEASE",
            "FENCING_TOKEN",
            "META_ETAG",
            "PAYLOAD_PATH"
        ]
    );
    shell.eval(&done.stdout);
    assert_eq!(shell.variables["LOCKD_QUEUE_MESSAGE_ID"], id);
    assert_eq!(shell.variables["LOCKD_QUEUE_FENCING_TOKEN"], "1");
    let path = shell.variables["LOCKD_QUEUE_PAYLOAD_PATH"].clone();
    assert_eq!(done.stderr, format!("payload: {path} (5 bytes)\n"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "hello");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    fs::remove_file(&path).unwrap();

    let nothing = shell.ok(&["client", "queue", "dequeue", "--block", "nowait"]);
    assert_eq!(
        nothing.stdout, "",
        "the name comes from the environment, and the message is taken"
    );
    assert_eq!(nothing.stderr, "no messages available (try again later)\n");

    let extended = shell.ok(&["client", "queue", "extend", "--extend", "90s"]).stdout;
    assert!(
        extended.starts_with("lease_expires_at_unix=") && extended.ends_with(" visibility_timeout_seconds=90\n"),
        "{extended}"
    );
    assert_eq!(shell.ok(&["client", "queue", "ack"]).stdout, "acknowledged\n");
    assert!(shell.fails(&["client", "queue", "ack"]).contains("not_found"));
    assert_eq!(stats(&shell)["available"], false);
}

#[test]
fn a_message_given_back_comes_again() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    let file = daemon.path("payload");
    fs::write(&file, [0xff, 0, b'\r', b'\n']).unwrap();
    let file = file.to_str().unwrap();
    let stored = shell
        .ok(&[
            "client", "queue", "enqueue", "-q", "jobs", "-f", file, "-d", "unused", "--output", "json",
        ])
        .json();
    assert_eq!(
        (&stored["queue"], &stored["payload_bytes"]),
        (&json!("jobs"), &json!(4))
    );

    let out = daemon.path("out");
    let out = out.to_str().unwrap();
    let taken = shell.ok(&[
        "client",
        "queue",
        "dequeue",
        "-q",
        "jobs",
        "-o",
        out,
        "--visibility",
        "1m",
    ]);
    assert_eq!(taken.stderr, "");
    shell.eval(&taken.stdout);
    assert_eq!(fs::read(out).unwrap(), [0xff, 0, b'\r', b'\n']);
    let refused = shell.fails(&["client", "queue", "nack", "-i", "defer", "--reason", "x"]);
    assert_eq!(refused, "--reason is only supported when --intent=failure\n");

    // An extension brings a new entity tag, which the next nack must name.
    let export = shell.ok(&["client", "queue", "extend", "--export"]).stdout;
    assert!(export.starts_with("export LOCKD_QUEUE_META_ETAG="), "{export}");
    assert!(shell.fails(&["client", "queue", "nack"]).contains("cas_mismatch"));
    shell.eval(&export);
    assert_eq!(
        shell.ok(&["client", "queue", "nack", "--reason", "no paper"]).stdout,
        "requeued\n"
    );

    let again = shell
        .ok(&[
            "client", "queue", "dequeue", "-q", "jobs", "-o", out, "--output", "json",
        ])
        .json();
    assert_eq!(
        (&again["attempts"], &again["failure_attempts"], &again["fencing_token"]),
        (&json!(2), &json!(1), &json!(2))
    );
    assert_eq!(
        (&again["payload_path"], &again["payload_bytes"]),
        (&json!(out), &json!(4))
    );
    assert_eq!(again["visibility_timeout_secs"], 30);
    assert!(again.get("state_lease_id").is_none(), "{again}");
    let named = |name: &str| again[name].as_str().unwrap().to_owned();
    let deferred = shell.ok(&[
        "client",
        "queue",
        "nack",
        "--message",
        &named("message_id"),
        "--lease",
        &named("lease_id"),
        "--meta-etag",
        &named("meta_etag"),
        "--fencing-token",
        "2",
        "-i",
        "Defer",
        "--delay",
        "1h",
    ]);
    assert_eq!(deferred.stdout, "requeued\n");
    assert_eq!(stats(&shell)["available"], false);
}

#[test]
fn a_message_with_state_brings_its_lease_along() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    for data in ["first", "second"] {
        shell.ok(&["client", "queue", "enqueue", "-q", "jobs", "-d", data]);
    }
    assert_eq!(dequeue(&mut shell, &["--stateful"]), "first");
    let token = shell.variables["LOCKD_QUEUE_STATE_FENCING_TOKEN"].clone();
    assert_eq!(token, "1");
    assert!(!shell.variables["LOCKD_QUEUE_STATE_ETAG"].is_empty());
    let stale = shell.variables.remove("LOCKD_QUEUE_STATE_FENCING_TOKEN").unwrap();
    assert_eq!(
        shell.fails(&["client", "queue", "ack"]),
        "--state-fencing-token is required (or set LOCKD_QUEUE_STATE_FENCING_TOKEN)\n"
    );
    shell.set("LOCKD_QUEUE_STATE_FENCING_TOKEN", &stale);
    shell.ok(&["client", "queue", "ack"]);

    // What the message before has left is not taken for this one's.
    let second = shell.ok(&["client", "queue", "dequeue", "-q", "jobs"]).stdout;
    for name in ["STATE_LEASE", "STATE_FENCING_TOKEN", "STATE_ETAG"] {
        assert!(second.contains(&format!("unset LOCKD_QUEUE_{name}\n")), "{second}");
    }
}

#[test]
fn only_one_message_of_a_page_is_kept() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    for data in ["first", "second", "third"] {
        shell.ok(&["client", "queue", "enqueue", "-q", "jobs", "-d", data]);
    }
    assert_eq!(dequeue(&mut shell, &["--page-size", "8"]), "first");
    let second = shell
        .ok(&[
            "client",
            "queue",
            "subscribe",
            "-q",
            "jobs",
            "--block",
            "nowait",
            "--output",
            "json",
        ])
        .stdout;
    let lines: Vec<Value> = second.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    for (line, payload) in lines.iter().zip(["second", "third"]) {
        assert_eq!((&line["payload"], &line["attempts"]), (&json!(payload), &json!(2)));
        assert!(line.get("failure_attempts") == Some(&json!(0)), "{line}");
    }
}

#[test]
fn a_command_runs_once_per_message() {
    let daemon = Daemon::start(&[]);
    let shell = daemon.shell();
    for data in ["one", "bad", "two"] {
        shell.ok(&["client", "queue", "enqueue", "-q", "jobs", "-d", data]);
    }
    let script = r#"payload=$(cat); test "$payload" != bad || test "$LOCKD_QUEUE_ATTEMPTS" -gt 1 || exit 3
        echo "$payload $LOCKD_QUEUE_ATTEMPTS $LOCKD_QUEUE_NAME ${LOCKD_QUEUE_PAYLOAD_PATH-none}""#;
    let mut shell_with_path = daemon.shell();
    shell_with_path.set("LOCKD_QUEUE_PAYLOAD_PATH", "of another message");
    shell_with_path.set("PATH", &std::env::var("PATH").unwrap());
    let done = shell_with_path.ok(&[
        "client",
        "queue",
        "subscribe",
        "-q",
        "jobs",
        "--count",
        "4",
        "--",
        "sh",
        "-c",
        script,
    ]);
    let mut lines: Vec<&str> = done.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["bad 2 jobs none", "one 1 jobs none", "two 1 jobs none"]);
    assert!(done.stderr.contains("exit status: 3"), "{done:?}");
    assert_eq!(stats(&shell)["available"], false);

    let missing = shell_with_path.run(
        &[
            "client", "queue", "enqueue", "-q", "jobs", "-f", "-", "--output", "json",
        ],
        Some("from stdin"),
    );
    assert_eq!(missing.json()["payload_bytes"], 10);
    let unknown = shell_with_path.fails(&["client", "queue", "subscribe", "-q", "jobs", "--", "/no/such/program"]);
    assert!(unknown.contains("/no/such/program"), "{unknown}");
    // A command that cannot be started settles nothing: the message is given back.
    assert_eq!(stats(&shell)["available"], true);
}

#[test]
fn a_watch_tells_how_a_queue_is() {
    let daemon = Daemon::start(&[]);
    let shell = daemon.shell();
    let empty = shell
        .ok(&["client", "queue", "watch", "-q", "jobs", "--count", "1"])
        .stdout;
    assert!(empty.ends_with(" queue=jobs available=false\n"), "{empty}");
    shell.ok(&["client", "queue", "enqueue", "-q", "jobs", "-d", "x"]);
    let event = shell
        .ok(&[
            "client", "queue", "watch", "-q", "jobs", "--count", "1", "--output", "json",
        ])
        .json();
    assert_eq!(event["available"], true);
    let text = shell.ok(&["client", "queue", "stats", "-q", "jobs"]).stdout;
    assert!(
        text.starts_with("namespace: default\nqueue: jobs\navailable: true\nhead_message_id: "),
        "{text}"
    );
}

#[test]
fn what_is_missing_is_asked_for_by_flag_and_variable() {
    let daemon = Daemon::start(&[]);
    let mut shell = daemon.shell();
    assert_eq!(
        shell.fails(&["client", "queue", "stats"]),
        "--queue is required (or set LOCKD_QUEUE_NAME)\n"
    );
    assert!(
        shell
            .fails(&["client", "queue", "enqueue", "-d", "x"])
            .contains("--queue")
    );
    for (name, flag) in [
        ("NAME", "queue"),
        ("MESSAGE_ID", "message"),
        ("LEASE", "lease"),
        ("FENCING_TOKEN", "fencing-token"),
        ("META_ETAG", "meta-etag"),
    ] {
        let variable = format!("LOCKD_QUEUE_{name}");
        assert_eq!(
            shell.fails(&["client", "queue", "extend"]),
            format!("--{flag} is required (or set {variable})\n")
        );
        shell.set(&variable, "x");
    }
    assert!(shell.fails(&["client", "queue", "extend"]).contains("positive integer"));
}

#[test]
fn the_exports_of_a_message_are_made_for_a_real_shell() {
    let daemon = Daemon::start(&[]);
    let script = r#"
        set -eu
        "$LOCKD" client queue enqueue -q jobs -d 'it"s $(id)' >/dev/null
        eval "$("$LOCKD" client queue dequeue -q jobs -o "$OUT")"
        cat "$OUT"
        "$LOCKD" client queue ack
    "#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("OUT", daemon.path("out"));
    command.env("LOCKD", LOCKD).env("LOCKD_CLIENT_SERVER", daemon.url());
    let done = Done::from(command.output().unwrap());
    assert!(done.status.success(), "{done:?}");
    assert_eq!(done.stdout, "it\"s $(id)acknowledged\n");
}
