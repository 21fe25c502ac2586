//! The end of the daemon as its operator sees it: signals, exit codes, sockets.

use std::fs;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;

use lockd::testing::shared;
use rustix::process::Signal;
use tempfile::TempDir;

use super::fixture::Backend;
use super::lockd_calls::hold;
use super::process::Daemon;

/// OP-10. The holder lets go during the drain, so the end comes before the time is over.
pub fn a_daemon_drains_on_sigterm_and_ends_with_zero(backend: &dyn Backend) {
    let _turn = shared();
    let (mut daemon, address) = Daemon::on_tcp(&*backend.open());
    let held = hold(address, "k");
    daemon.signal(Signal::TERM);
    let begun = daemon.wait_for_event("shutdown.drain.begin");
    assert_eq!(begun.int_field("active_leases"), Some(1));
    assert!(daemon.is_running(), "somebody still holds a lease");
    held.release().expect(200);
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    let complete = daemon.wait_for_event("shutdown.drain.complete");
    assert_eq!(complete.int_field("remaining"), Some(0));
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
    // A place goes when nobody has it any more, and these daemons are not waited for until they serve.
    let places = [(); 3].map(|()| backend.open());
    let mut first = Daemon::on_socket(&*places[0], &socket);
    first.wait_for_event("listening");
    let mut second = Daemon::on_socket(&*places[1], &socket);
    assert_eq!(second.wait().code(), Some(1));
    let error = second.wait_for_event("command failed").to_string();
    assert!(error.contains("another server listens on this socket"), "{error}");
    UnixStream::connect(&socket).expect("the first is not disturbed");
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));

    // What is no socket at all is not ours to remove.
    fs::write(&socket, "precious").unwrap();
    let mut third = Daemon::on_socket(&*places[2], &socket);
    assert_eq!(third.wait().code(), Some(1));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}
