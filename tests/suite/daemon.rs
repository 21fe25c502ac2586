//! The end of the daemon as its operator sees it: signals, exit codes, sockets.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use lockd::testing::shared;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::fixture::{Backend, Place};
use super::lockd_calls::{hold, wait_until};

/// A daemon over the store in a place, killed when the test is over.
struct Daemon {
    child: Child,
    dir: TempDir,
}

impl Daemon {
    /// Starts one. It need not come far: see `listening`.
    fn spawn(place: &dyn Place, arguments: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lockd"))
            .args(["--store", &place.url()])
            .args(arguments)
            .env_clear()
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn on_tcp(place: &dyn Place) -> (Self, SocketAddr) {
        let daemon = Self::spawn(place, &["--listen", "127.0.0.1:0"]);
        let address = daemon.wait_for_event("listening")["address"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        (daemon, address)
    }

    fn on_socket(place: &dyn Place, socket: &Path) -> Self {
        Self::spawn(place, &["--listen-proto", "unix", "--listen", socket.to_str().unwrap()])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Waits until the daemon has logged this.
    fn wait_for_event(&self, message: &str) -> Value {
        let mut found = None;
        wait_until(message, || {
            let entries = self.log();
            let mut entries = entries
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            found = entries.find(|entry| entry["msg"] == message);
            found.is_some()
        });
        found.unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
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
    }
}

/// OP-10. The holder lets go during the drain, so the end comes before the time is over.
pub fn a_daemon_drains_on_sigterm_and_ends_with_zero(backend: &dyn Backend) {
    let _turn = shared();
    let (mut daemon, address) = Daemon::on_tcp(&*backend.open());
    let held = hold(address, "k");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_for_event("shutdown.drain.begin")["active_leases"], 1);
    assert!(
        daemon.child.try_wait().unwrap().is_none(),
        "somebody still holds a lease"
    );
    held.release().expect(200);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert_eq!(daemon.wait_for_event("shutdown.drain.complete")["remaining"], 0);
}

/// OP-10. With a whole drain ahead, a second signal means now.
pub fn a_second_signal_ends_a_daemon_at_once(backend: &dyn Backend) {
    let _turn = shared();
    for (first, second) in [
        (Signal::TERM, Signal::TERM),
        (Signal::TERM, Signal::INT),
        (Signal::INT, Signal::TERM),
    ] {
        let (mut daemon, address) = Daemon::on_tcp(&*backend.open());
        hold(address, "k");
        daemon.signal(first);
        daemon.wait_for_event("shutdown.drain.begin");
        daemon.signal(second);
        let status = daemon.wait();
        assert_eq!(status.signal(), Some(second.as_raw()), "{status}: {}", daemon.log());
        assert!(!daemon.log().contains("shutdown.drain.complete"), "{}", daemon.log());
    }
}

/// A daemon that was killed leaves its socket file behind, and must not be kept from starting again by it.
pub fn a_daemon_removes_its_socket_and_replaces_a_stale_one(backend: &dyn Backend) {
    let _turn = shared();
    let place = backend.open();
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("lockd.sock");
    let mut killed = Daemon::on_socket(&*place, &socket);
    killed.wait_for_event("listening");
    killed.signal(Signal::KILL);
    assert_eq!(killed.wait().signal(), Some(Signal::KILL.as_raw()));
    assert!(
        socket.exists() && UnixStream::connect(&socket).is_err(),
        "a stale socket"
    );

    let mut next = Daemon::on_socket(&*place, &socket);
    next.wait_for_event("listening");
    UnixStream::connect(&socket).unwrap();
    next.signal(Signal::TERM);
    assert_eq!(next.wait().code(), Some(0), "{}", next.log());
    assert!(!socket.exists());
}

pub fn a_socket_that_somebody_listens_on_is_refused(backend: &dyn Backend) {
    let _turn = shared();
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("lockd.sock");
    let mut first = Daemon::on_socket(&*backend.open(), &socket);
    first.wait_for_event("listening");
    let mut second = Daemon::on_socket(&*backend.open(), &socket);
    assert_eq!(second.wait().code(), Some(1));
    let error = second.wait_for_event("command failed")["error"].to_string();
    assert!(error.contains("another server listens on this socket"), "{error}");
    UnixStream::connect(&socket).expect("the first is not disturbed");
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));

    // What is no socket at all is not ours to remove.
    fs::write(&socket, "precious").unwrap();
    let mut third = Daemon::on_socket(&*backend.open(), &socket);
    assert_eq!(third.wait().code(), Some(1));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}
