//! Where a daemon keeps everything: what it takes without being told, and what it refuses, in which words.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::refusal_of;
use crate::process::{Daemon, lockd, wait_for_line};

/// Not the default port, where somebody may be listening.
const FREE_PORT: [&str; 2] = ["--listen", "127.0.0.1:0"];

fn at_home(home: &Path, arguments: &[&str]) -> Command {
    let mut command = lockd(arguments);
    command.env("HOME", home);
    command
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn line_about_the_store(log: &str) -> Value {
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut about = lines.iter().filter(|line| {
        let message = line["msg"].as_str().unwrap();
        message.contains("no store was chosen")
    });
    let line = about.next().unwrap_or_else(|| panic!("{log}")).clone();
    assert!(about.next().is_none(), "{log}");
    line
}

#[test]
fn a_daemon_without_a_word_keeps_everything_at_home() {
    let home = TempDir::new().unwrap();
    let daemon = Daemon::start_from(at_home(home.path(), &FREE_PORT));
    let data = home.path().join(".lockd/data");
    assert_eq!([mode(&home.path().join(".lockd")), mode(&data)], [0o700, 0o700]);
    let line = line_about_the_store(&daemon.log());
    assert_eq!(line["store"], format!("disk://{}", data.display()));
    assert_eq!(line["address"], "127.0.0.1:0");

    let mut shell = daemon.shell();
    shell.acquire("orders/4711");
    shell.ok_with_input(&["client", "update"], r#"{"status":"paid"}"#);
    shell.ok(&["client", "release"]);
    // Killed, not stopped.
    drop(daemon);
    let next = Daemon::start_from(at_home(home.path(), &FREE_PORT));
    let state = next.shell().ok(&["client", "get", "-k", "orders/4711", "--public"]);
    assert_eq!(state.json(), json!({"status": "paid"}));
}

/// Truly without: on the default port too. There it may meet another daemon; the word comes before that.
#[test]
fn a_daemon_without_arguments_says_where_it_keeps_everything_and_listens() {
    let home = TempDir::new().unwrap();
    let log = home.path().join("stderr");
    let mut daemon = at_home(home.path(), &[])
        .stderr(File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let line = wait_for_line(&log, "no store was chosen");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["store"], format!("disk://{}/.lockd/data", home.path().display()));
    assert_eq!(line["address"], "127.0.0.1:9341");
    assert!(line["msg"].as_str().unwrap().contains("plain text, no TLS"));
}

#[test]
fn the_configuration_directory_is_made_with_all_above_it() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("some/where");
    let mut command = lockd(&FREE_PORT);
    command.env("LOCKD_CONFIG_DIR", &config);
    let daemon = Daemon::start_from(command);
    let made = ["some", "some/where", "some/where/data"].map(|name| mode(&dir.path().join(name)));
    assert_eq!(made, [0o700; 3]);
    drop(daemon);

    // Two of them share it, as with any store.
    let both = [(); 2].map(|()| {
        let mut command = lockd(&FREE_PORT);
        command.env("LOCKD_CONFIG_DIR", &config);
        Daemon::start_from(command)
    });
    both[0].shell().acquire("k");
    let refused = both[1]
        .shell()
        .fails(&["client", "acquire", "-k", "k", "--block", "nowait"]);
    assert!(refused.contains("waiting"), "{refused}");
}

#[test]
fn a_daemon_with_neither_store_nor_home_does_not_start() {
    let words = refusal_of(lockd(&FREE_PORT));
    assert!(words.contains("--store") && words.contains("HOME"), "{words}");
    // With a store it needs no home.
    Daemon::start(&["--store", "mem://"]);
}

#[test]
fn of_a_store_that_was_chosen_only_the_last_directory_is_made() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("store");
    let daemon = Daemon::start(&["--store", &format!("disk://{}", root.display())]);
    assert_eq!(mode(&root), 0o700);
    assert!(!daemon.log().contains("no store was chosen"));
    let words = refusal(&dir.path().join("not/there"));
    assert!(words.contains("the directory above it does not exist"), "{words}");
    assert!(!dir.path().join("not").exists());
}

/// Why a daemon refuses a root. The words name the root in every case.
#[track_caller]
fn refusal(root: &Path) -> String {
    let url = format!("disk://{}", root.display());
    let words = refusal_of(lockd(&["--listen", "127.0.0.1:0", "--store", &url]));
    assert!(words.contains(root.to_str().unwrap()), "{words}");
    words
}

#[test]
fn a_root_that_is_no_store_and_cannot_become_one_is_refused() {
    let dir = TempDir::new().unwrap();
    let words = refusal_of(lockd(&["--store", "disk://var/lib/lockd"]));
    assert!(words.contains("absolute path"), "{words}");

    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(refusal(&file).ends_with("it is not a directory"));
    assert!(refusal(&file.join("store")).ends_with("what is above it is not a directory"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    // Somebody else's directory stays as it is.
    let words = refusal(dir.path());
    assert!(
        words.ends_with("it holds no store, but something else (file)"),
        "{words}"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    // Not even the superuser makes directories there.
    #[cfg(target_os = "linux")]
    {
        let words = refusal(Path::new("/sys/lockd-test"));
        assert!(words.contains("it is not writable"), "{words}");
    }
}

#[test]
fn a_store_of_another_format_is_refused_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let lock = dir.path().join("commit.lock");
    let found = "lockd shared log, format 99\n";
    fs::write(&lock, found).unwrap();
    let words = refusal(dir.path());
    assert!(words.contains("format 99") && words.contains("format 1"), "{words}");
    assert_eq!(fs::read_to_string(&lock).unwrap(), found);
}

/// As one that was stopped in the middle of a write holds it.
#[test]
fn a_store_that_somebody_holds_is_refused_after_a_while() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("store");
    drop(Daemon::start(&["--store", &format!("disk://{}", root.display())]));
    let lock = File::options()
        .read(true)
        .write(true)
        .open(root.join("commit.lock"))
        .unwrap();
    fs2::FileExt::lock_exclusive(&lock).unwrap();
    let words = refusal(&root);
    assert!(words.contains("another process has held its lock"), "{words}");
    fs2::FileExt::unlock(&lock).unwrap();
    Daemon::start(&["--store", &format!("disk://{}", root.display())]);
}
