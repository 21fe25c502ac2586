//! A daemon as a process of its own: started, heard, sent signals, and killed at the latest when the test is over.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use lockd::testing::Entry;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::fixture::Place;
use super::lockd_calls::wait_until;

/// How much of the log a failed test shows.
const SHOWN_LINES: usize = 40;

/// A daemon over the store in a place.
pub struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts one, which need not come far: see [`wait_for_event`](Self::wait_for_event). No variable of the surrounding
    /// environment reaches it but those that its store needs.
    pub fn spawn(place: &dyn Place, arguments: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lockd"))
            .args(["--store", &place.url()])
            .args(arguments)
            .env_clear()
            .envs(place.variables())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    /// Starts one on a free port and waits until it serves.
    pub fn on_tcp(place: &dyn Place) -> (Self, SocketAddr) {
        Self::on_tcp_with(place, &[])
    }

    /// The same with further arguments.
    pub fn on_tcp_with(place: &dyn Place, arguments: &[&str]) -> (Self, SocketAddr) {
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(arguments);
        let daemon = Self::spawn(place, &all);
        let listening = daemon.wait_for_event("listening");
        let address = listening.str_field("address").unwrap().parse().unwrap();
        (daemon, address)
    }

    /// Starts one on a unix socket.
    pub fn on_socket(place: &dyn Place, socket: &Path) -> Self {
        Self::spawn(place, &["--listen-proto", "unix", "--listen", socket.to_str().unwrap()])
    }

    /// All it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Waits until the daemon has logged this.
    #[track_caller]
    pub fn wait_for_event(&self, message: &str) -> Entry {
        let mut found = None;
        wait_until(message, || {
            let log = self.log();
            let whole_lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            found = whole_lines
                .map(Entry::parse_line)
                .find(|entry| entry.message == message);
            found.is_some()
        });
        found.unwrap()
    }

    /// The most memory it has ever had resident, in KiB.
    pub fn peak_resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line
            .and_then(|line| line.split_whitespace().next())
            .expect("the kernel tells");
        number.parse().unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the daemon ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
            eprintln!(
                "log of daemon {} (last {} entries):\n{}",
                self.child.id(),
                shown.len(),
                shown.join("\n")
            );
        }
    }
}
