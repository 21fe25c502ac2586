//! Servers as processes of their own on one root, to be killed: the program itself with its usual settings, or this test
//! binary as a server that rolls and compacts all the time and may die at a chosen step on the disk.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::net::sever::ListenerAddr;
use lockd::server::{Parts, Server};
use lockd::settings::{Listen, Settings};
use lockd::store::shared_log::{Options, SharedLogStore, Step};
use rustix::process::{Signal, getpid, kill_process};

use crate::lies::{Lie, Told, ToldStore};

/// Far beyond what a start takes.
const PATIENCE: Duration = Duration::from_secs(60);
const ROOT: &str = "LOCKD_CRASH_ROOT";
const DEATH: &str = "LOCKD_CRASH_DEATH";
const TOLD: &str = "LOCKD_CRASH_TOLD";

/// Steps at which a server may die. The later it is in a write, the more there is to be half-done.
const DEATHS: [Step; 13] = [
    Step::Append,
    Step::AppendSync,
    Step::AppendSync,
    Step::Mark,
    Step::Mark,
    Step::CreateSegment,
    Step::CreateSync,
    Step::BodySync,
    Step::SnapshotEntries,
    Step::SnapshotEnd,
    Step::SnapshotSync,
    Step::Announce,
    Step::RemoveOld,
];

/// A running server.
pub(crate) struct Daemon {
    pub(crate) number: usize,
    pub(crate) address: SocketAddr,
    child: Child,
    log: PathBuf,
    /// It was told to die by itself, at this step.
    pub(crate) death: Option<String>,
}

impl Daemon {
    /// Starts a server on this root; `number` names it in the history. One that is told something is of this binary.
    pub(crate) fn start(root: &Path, logs: &Path, number: usize, told: Told, rng: &mut fastrand::Rng) -> Self {
        let log = logs.join(format!("server-{number}.log"));
        let (mut command, mut death) = (Command::new(env!("CARGO_BIN_EXE_lockd")), None);
        command.env_clear();
        if told == Told::default() && rng.bool() {
            command
                .args(["--listen", "127.0.0.1:0", "--workers", "8"])
                // Bodies beyond this are streamed to the store instead of being held in memory.
                .args(["--payload-spool-mem", "16KiB"])
                // Clears expired leases among all that happens.
                .args(["--sweeper-interval", "1s", "--store"])
                .arg(format!("disk://{}", root.display()));
        } else {
            command = Command::new(env::current_exe().unwrap());
            command
                .args(["--exact", "daemons::server_of_this_binary", "--ignored", "--nocapture"])
                .env(ROOT, root)
                .env(TOLD, told.to_string());
            if told.lie == Some(Lie::EarlyRead) {
                death = Some("of its lie".to_owned());
            } else if rng.bool() {
                let step = DEATHS[rng.usize(..DEATHS.len())];
                // Steps of compaction are rare.
                let often = matches!(step, Step::Append | Step::AppendSync | Step::Mark);
                let argument = format!("{step:?}:{}", rng.usize(1..if often { 20 } else { 3 }));
                command.env(DEATH, &argument);
                death = Some(argument);
            }
        }
        let output = File::create(&log).unwrap();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let address = wait_for_address(&log, &mut child);
        Self {
            number,
            // One that died before it could listen is found dead by whoever looks after it.
            address: address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 1))),
            child,
            log,
            death,
        }
    }

    /// Ends it as the loss of its machine would, but for the page cache.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// True when it has died as it was told to. Panics when it has ended in any other way.
    pub(crate) fn has_died(&mut self) -> bool {
        let Some(status) = self.child.try_wait().unwrap() else {
            return false;
        };
        let as_told = self.death.is_some() && is_killed(status);
        assert!(
            as_told,
            "server {} ended with {status}:\n{}",
            self.number,
            self.log_text()
        );
        true
    }

    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}

/// Waits until a server says where it listens. None: it was killed before.
fn wait_for_address(log: &Path, child: &mut Child) -> Option<SocketAddr> {
    let clock = SystemClock::new();
    let give_up = clock.now().after(PATIENCE);
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        let address = text.lines().find_map(|line| {
            let (_, rest) = line
                .split_once("\"address\":\"")
                .or_else(|| line.split_once("listening on "))?;
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')?;
            rest[..end].parse().ok()
        });
        if address.is_some() {
            return address;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(is_killed(status), "a server does not start: {status}\n{text}");
            return None;
        }
        assert!(clock.now() < give_up, "a server does not say where it listens: {text}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A real server with tiny segments. Not a test: it does nothing unless it is told its root.
#[test]
#[ignore = "the role of a process that other tests start"]
fn server_of_this_binary() {
    let Some(root) = env::var_os(ROOT) else { return };
    let options = Options {
        segment_bytes_max: 30_000,
        compact_bytes_min: 100_000,
        delete_grace: Duration::from_millis(500),
        step_hook: env::var(DEATH).ok().map(|argument| {
            let (step_name, times) = argument.split_once(':').unwrap();
            let (step_name, times): (String, usize) = (step_name.to_owned(), times.parse().unwrap());
            let seen = AtomicUsize::new(0);
            let hook: lockd::store::shared_log::StepHook = Arc::new(move |step, _| {
                if format!("{step:?}") == step_name && seen.fetch_add(1, Ordering::SeqCst) + 1 == times {
                    kill_process(getpid(), Signal::KILL)?;
                }
                Ok(())
            });
            hook
        }),
        ..Options::default()
    };
    let settings = Settings {
        listen: Listen::loopback_any_port(),
        workers: 8,
        payload_spool_bytes: 16 * 1024,
        sweeper_interval: Duration::from_secs(1),
        ..Settings::default()
    };
    let store = SharedLogStore::open(Path::new(&root), options).unwrap();
    let told: Told = env::var(TOLD).map_or_else(|_| Told::default(), |text| text.parse().unwrap());
    let logger = lockd::logging::LogOptions::default().build().unwrap();
    let server = Server::start(Parts {
        store: Some(Arc::new(ToldStore::new(Arc::new(store), told))),
        ..Parts::new(settings, logger)
    })
    .unwrap();
    let ListenerAddr::Tcp(address) = server.address() else {
        panic!("TCP was asked for")
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "listening on {address} ").unwrap();
    out.flush().unwrap();
    drop(out);
    loop {
        std::thread::park();
    }
}
