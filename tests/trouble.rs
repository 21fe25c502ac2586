//! Whole daemons on a disk in trouble, as their clients see it: a disk that is full, a process that stands still with the
//! lock of the store in its hands, clocks that jump or disagree.
//!
//! What an engine does about either is tested at the engine; here is what becomes of it at the other end.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test fails, and what is skipped is said aloud"
)]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::store::shared_log::{Options, SharedLogStore, Step};
use lockd::store::{Batch, Change, Precondition, RecordKey, RecordWrite, Store};
use process::{Daemon, Done, lockd};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

#[path = "trouble/clocks.rs"]
mod clocks;
#[allow(dead_code, reason = "made for the suites, which need more of it")]
#[path = "suite/http.rs"]
mod http;
#[allow(dead_code, reason = "made for the tests of the command line, which need more of it")]
#[path = "cli/process.rs"]
mod process;

/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const HOLDER_ROOT: &str = "LOCKD_HOLDER_ROOT";

fn address_of(daemon: &Daemon) -> SocketAddr {
    daemon.listening["address"].as_str().unwrap().parse().unwrap()
}

fn start(root: &Path) -> Daemon {
    Daemon::start(&["--store", &format!("disk://{}", root.display())])
}

fn acquire(server: SocketAddr, key: &str) -> http::Answer {
    let body = json!({"key": key, "owner": "test", "ttl_seconds": 60, "block_seconds": -1});
    http::send(server, "POST", "/v1/acquire", &[], body.to_string().as_bytes())
}

fn update(server: SocketAddr, key: &str, lease: &Value, state: &[u8]) -> http::Answer {
    let token = lease["fencing_token"].to_string();
    let headers = [
        ("X-Lease-ID", lease["lease_id"].as_str().unwrap()),
        ("X-Txn-ID", lease["txn_id"].as_str().unwrap()),
        ("X-Fencing-Token", &token),
    ];
    http::send(server, "POST", &format!("/v1/update?key={key}"), &headers, state)
}

fn release(server: SocketAddr, key: &str, lease: &Value) -> http::Answer {
    let body = json!({"key": key, "lease_id": lease["lease_id"], "txn_id": lease["txn_id"]});
    let token = lease["fencing_token"].to_string();
    let headers = [("X-Fencing-Token", token.as_str())];
    http::send(server, "POST", "/v1/release", &headers, body.to_string().as_bytes())
}

fn read(server: SocketAddr, key: &str) -> http::Answer {
    http::send(server, "GET", &format!("/v1/get?key={key}&public=1"), &[], b"")
}

/// Saves a state. The first answer that is none of success, if there is one.
fn save(server: SocketAddr, key: &str, state: &[u8]) -> Result<(), http::Answer> {
    let lease = acquire(server, key);
    if lease.status != 200 {
        return Err(lease);
    }
    let lease = lease.json();
    for answer in [update(server, key, &lease, state), release(server, key, &lease)] {
        if answer.status != 200 {
            return Err(answer);
        }
    }
    Ok(())
}

#[track_caller]
fn asks_to_come_back(answer: &http::Answer) {
    assert_eq!(answer.error(), (503, "storage_unavailable".to_owned()), "{answer:?}");
    let seconds: u64 = answer.header("Retry-After").unwrap().parse().unwrap();
    assert!((1..60).contains(&seconds), "{answer:?}");
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    let start = clock.now();
    while !is_so() {
        assert!(clock.now().since(start) < PATIENCE, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A child with a line to it and lines from it, killed at the latest when the test is over.
struct Helper {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Helper {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads lines until one holds this. False: there are no more.
    fn says(&mut self, wanted: &str) -> bool {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() != 0 {
            if line.contains(wanted) {
                return true;
            }
            line.clear();
        }
        false
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stands still in the middle of a commit until a line comes.
#[test]
#[ignore = "the role of a process that another test starts"]
fn holder() {
    let Some(root) = env::var_os(HOLDER_ROOT) else { return };
    let say = |line: &str| {
        let mut out = stdout().lock();
        writeln!(out, "{line}").unwrap();
        out.flush().unwrap();
    };
    let options = Options {
        step_hook: Some(Arc::new(move |step, _| {
            if step == Step::AppendSync {
                say("holding");
                stdin().lock().read_line(&mut String::new())?;
            }
            Ok(())
        })),
        ..Options::default()
    };
    let store = SharedLogStore::open(Path::new(&root), options).unwrap();
    let write = RecordWrite {
        key: RecordKey::new("x/of-the-holder"),
        precondition: Precondition::Any,
        change: Change::Put(Arc::from(&b"held"[..])),
    };
    let batch = Batch {
        records: vec![write],
        ..Batch::default()
    };
    store.write(batch).unwrap();
    say("written");
}

/// Writers on one key waited for each other, and only then, one by one, for the lock: the last of twenty was answered
/// after more than a minute.
#[test]
fn while_a_process_that_has_the_lock_is_stopped_all_others_are_told_to_come_back_and_served_once_it_goes_on_or_dies() {
    const WRITERS: usize = 20;
    /// The wait for the lock is five seconds. Far less than one after the other would take.
    const BOUND: Duration = Duration::from_secs(40);
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let daemon = start(&root);
    let server = address_of(&daemon);
    save(server, "before", b"{\"n\":1}").unwrap();
    let clock = SystemClock::new();
    for is_killed in [false, true] {
        let mut holder = Helper::start(
            Command::new(env::current_exe().unwrap())
                .args(["--exact", "holder", "--ignored", "--nocapture"])
                .env(HOLDER_ROOT, &root),
        );
        assert!(holder.says("holding"));
        holder.signal(Signal::STOP);
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| {
                    let clock = &clock;
                    scope.spawn(move || {
                        let start = clock.now();
                        let key = if writer % 5 == 0 {
                            format!("own-{writer}")
                        } else {
                            "one-for-many".to_owned()
                        };
                        (acquire(server, &key), clock.now().since(start))
                    })
                })
                .collect();
            // Whoever reads waits for nobody.
            assert_eq!(read(server, "before").status, 200);
            for writer in writers {
                let (answer, took) = writer.join().unwrap();
                asks_to_come_back(&answer);
                assert!(took < BOUND, "{took:?}");
            }
        });
        assert_eq!(http::send(server, "GET", "/readyz", &[], b"").status, 200);
        if is_killed {
            holder.child.kill().unwrap();
        } else {
            holder.signal(Signal::CONT);
            holder.child.stdin.take().unwrap().write_all(b"\n").unwrap();
            assert!(holder.says("written"));
        }
        let key = format!("after-{is_killed}");
        wait_until("the store takes writes again", || {
            save(server, &key, b"{\"n\":2}").is_ok()
        });
        assert_eq!(read(server, &key).body, b"{\"n\":2}");
    }
}

/// A small file system of its own, in a mount namespace that lives as long as the helper; reached by way of that.
struct SmallDisk {
    _helper: Helper,
    place: PathBuf,
}

impl SmallDisk {
    /// None, said aloud, where an ordinary process may not have one.
    fn new(dir: &Path, size: &str) -> Option<Self> {
        let mount = format!("mount -t tmpfs -o size={size} small \"$0\" && echo mounted && read -r line");
        let mut helper = Helper::start(
            Command::new("unshare")
                .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
                .arg(dir),
        );
        if !helper.says("mounted") {
            eprintln!("skipped: no file system of a limited size can be mounted here");
            return None;
        }
        let place = PathBuf::from(format!("/proc/{}/root{}", helper.child.id(), dir.display()));
        // Where a security module forbids the way there.
        if fs::read_dir(&place).is_err() {
            eprintln!("skipped: a file system in another namespace cannot be reached here");
            return None;
        }
        Some(Self { _helper: helper, place })
    }
}

fn verify(root: &Path) -> Done {
    let url = format!("disk://{}", root.display());
    Done::from(lockd(&["verify", "store", "--store", &url]).output().unwrap())
}

#[test]
fn a_full_disk_is_answered_503_loses_nothing_acknowledged_and_is_served_again_when_there_is_space() {
    const SMALL: usize = 600;
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::new(dir.path(), "512k") else {
        return;
    };
    let root = disk.place.join("store");
    // Small states fill the log; large ones fill the disk with files of their own.
    for state_bytes in [SMALL, 100_000] {
        let daemon = start(&root);
        let server = address_of(&daemon);
        let filler = disk.place.join("filler");
        fs::write(&filler, vec![0; 60_000]).unwrap();
        let state = |n: usize| format!("{{\"n\":{n},\"pad\":\"{}\"}}", "x".repeat(state_bytes));
        let key = |n: usize| format!("key-{state_bytes}-{n}");
        let (saved, refused) = (0..)
            .find_map(|n| {
                save(server, &key(n), state(n).as_bytes())
                    .err()
                    .map(|answer| (n, answer))
            })
            .unwrap();
        asks_to_come_back(&refused);
        assert!(0 < saved);
        eprintln!("{saved} states of {state_bytes} bytes are saved when the disk is full");
        // What is there can be read, and a restart changes nothing.
        assert_eq!(http::send(server, "GET", "/readyz", &[], b"").status, 200);
        assert_eq!(read(server, &key(0)).body, state(0).as_bytes());
        let done = verify(&root);
        assert!(done.status.success(), "{done:?}");
        fs::remove_file(&filler).unwrap();
        wait_until("it takes writes again", || {
            save(server, "after", b"{\"room\":true}").is_ok()
        });
        drop(daemon);
        let daemon = start(&root);
        let server = address_of(&daemon);
        for n in 0..saved {
            assert!(read(server, &key(n)).body == state(n).as_bytes(), "{}", key(n));
        }
        assert_eq!(read(server, "after").body, b"{\"room\":true}");
        drop(daemon);
        // Room for the next.
        fs::remove_dir_all(&root).unwrap();
    }
}
