//! Is the client of a parked request still there?
//!
//! While a request waits, nobody reads its connection, so nobody notices when the client goes away. A lease granted to it
//! would be held by nobody until it expires. The kernel knows: it has seen the FIN or RST. This module asks it about the
//! server-side socket of a connection, without having that socket.
//!
//! A connection is [`PeerState::Connected`] while its socket is established. A client that has closed its sending side
//! counts as [`PeerState::Gone`], although it might still read: no client of this protocol does that, and it looks the
//! same as one that has closed everything. So does a socket that does not exist any more. But that a socket is
//! not found is believed only if the kernel shows us the *listener*: in another network namespace or in a sandbox we would
//! find nothing at all, and would take everybody for gone. In all cases of doubt the answer is [`PeerState::Unknown`]; no
//! question blocks and none panics.
//!
//! Left out on purpose: a machine that vanished without a FIN is found by keep-alive probes and by writing to it, not
//! here. A client that aborts and connects again from the same port between two questions is taken for the one before.
//! Unix sockets have no addresses to ask by. Everything but Linux answers `Unknown`.

use std::net::SocketAddr;

#[cfg(target_os = "linux")]
use std::{collections::HashSet, io, net::IpAddr};

#[cfg(target_os = "linux")]
use netlink_packet_sock_diag::constants::{TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT};
#[cfg(target_os = "linux")]
use netlink_packet_sock_diag::inet::StateFlags;
#[cfg(target_os = "linux")]
use parking_lot::Mutex;

#[cfg(target_os = "linux")]
use super::sock_diag::{Family, SockDiag};

/// What is known about the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// The connection is established in both directions, as far as our kernel has heard.
    Connected,
    /// The peer has closed or aborted the connection.
    Gone,
    /// The kernel cannot or may not be asked. Carry on as if the peer were connected.
    Unknown,
}

/// Asks the kernel about connections. One per server; threads share it and wait for each other.
#[derive(Default)]
pub struct PeerProbe {
    /// Opened with the first question and again after an error.
    #[cfg(target_os = "linux")]
    diag: Mutex<Option<SockDiag>>,
}

impl PeerProbe {
    /// A probe. Never fails: where the kernel refuses, it knows nothing.
    pub fn new() -> Self {
        Self::default()
    }
}

#[cfg(target_os = "linux")]
impl PeerProbe {
    /// Whether the kernel answers at all. For a line in the log at start: without it, all answers are `Unknown`.
    pub fn check(&self) -> io::Result<()> {
        self.with(|diag| diag.dump(Family::V4, StateFlags::LISTEN, 1, 0, &mut |_| {}))
    }

    /// The state of the connection that was accepted at `local` and came from `remote`. A `local` with a wildcard address
    /// (`0.0.0.0`, `[::]`) stands for all addresses of the machine and costs a search through its sockets.
    pub fn state(&self, local: SocketAddr, remote: SocketAddr) -> PeerState {
        self.with(|diag| state(diag, local, remote))
            .unwrap_or(PeerState::Unknown)
    }

    /// Those of `remotes` that were connected to `local_port` on some address of this machine and are gone. One search
    /// through the sockets of the machine, or two if somebody is gone, however many remotes there are.
    pub fn gone_among(&self, local_port: u16, remotes: &[SocketAddr]) -> Vec<SocketAddr> {
        if remotes.is_empty() {
            return Vec::new();
        }
        self.with(|diag| gone_among(diag, local_port, remotes))
            .unwrap_or_default()
    }

    fn with<T>(&self, question: impl FnOnce(&mut SockDiag) -> io::Result<T>) -> io::Result<T> {
        let mut slot = self.diag.lock();
        // Taken out, so that after an error the next question starts with a new socket.
        let mut diag = slot.take().map_or_else(SockDiag::open, Ok)?;
        let answer = question(&mut diag)?;
        *slot = Some(diag);
        Ok(answer)
    }
}

#[cfg(not(target_os = "linux"))]
impl PeerProbe {
    /// Whether the kernel answers at all. Not here.
    pub fn check(&self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    /// Always unknown here.
    pub fn state(&self, _local: SocketAddr, _remote: SocketAddr) -> PeerState {
        PeerState::Unknown
    }

    /// Always none here.
    pub fn gone_among(&self, _local_port: u16, _remotes: &[SocketAddr]) -> Vec<SocketAddr> {
        Vec::new()
    }
}

/// States in which the peer of an accepted socket has not gone. With TCP Fast Open, one can be accepted in `SYN_RECV`.
#[cfg(target_os = "linux")]
const ALIVE: StateFlags = StateFlags::ESTABLISHED.union(StateFlags::SYN_RECV);

#[cfg(target_os = "linux")]
fn state(diag: &mut SockDiag, local: SocketAddr, remote: SocketAddr) -> io::Result<PeerState> {
    if !local.ip().is_unspecified() {
        match diag.state(local, remote)? {
            Some(TCP_ESTABLISHED) => return Ok(PeerState::Connected),
            Some(TCP_SYN_RECV | TCP_SYN_SENT) => return Ok(PeerState::Unknown),
            // Not found directly. Sockets of a routing domain (VRF) are found by search only, so search.
            Some(TCP_LISTEN) | None => {}
            Some(_) => return Ok(PeerState::Gone),
        }
    }
    if absent_among(diag, local.port(), remote.port(), &[remote])?.is_empty() {
        return Ok(PeerState::Connected);
    }
    match listener_is_visible(diag, local.port())? {
        true => Ok(PeerState::Gone),
        false => Ok(PeerState::Unknown),
    }
}

#[cfg(target_os = "linux")]
fn gone_among(diag: &mut SockDiag, local_port: u16, remotes: &[SocketAddr]) -> io::Result<Vec<SocketAddr>> {
    let absent = absent_among(diag, local_port, 0, remotes)?;
    if absent.is_empty() || listener_is_visible(diag, local_port)? {
        return Ok(absent);
    }
    Ok(Vec::new())
}

/// Those without a live connection to `local_port`. A `remote_port` that is not 0 says that all remotes have this port, and saves work.
#[cfg(target_os = "linux")]
fn absent_among(
    diag: &mut SockDiag,
    local_port: u16,
    remote_port: u16,
    remotes: &[SocketAddr],
) -> io::Result<Vec<SocketAddr>> {
    let mut missing: HashSet<(IpAddr, u16)> = remotes.iter().map(key).collect();
    // A dump is not a picture of one moment, and may miss a socket beside one that closes. So it takes two of them to
    // make somebody gone.
    for _ in 0..2 {
        for family in [Family::V4, Family::V6] {
            diag.dump(family, ALIVE, local_port, remote_port, &mut |remote| {
                missing.remove(&key(&remote));
            })?;
            if missing.is_empty() {
                return Ok(Vec::new());
            }
        }
    }
    Ok(remotes
        .iter()
        .filter(|remote| missing.contains(&key(remote)))
        .copied()
        .collect())
}

#[cfg(target_os = "linux")]
fn listener_is_visible(diag: &mut SockDiag, local_port: u16) -> io::Result<bool> {
    let mut visible = false;
    for family in [Family::V4, Family::V6] {
        diag.dump(family, StateFlags::LISTEN, local_port, 0, &mut |_| visible = true)?;
        if visible {
            break;
        }
    }
    Ok(visible)
}

/// By what a remote is recognised: an IPv4 address is the same whether mapped to IPv6 or not.
#[cfg(target_os = "linux")]
fn key(remote: &SocketAddr) -> (IpAddr, u16) {
    (remote.ip().to_canonical(), remote.port())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::time::Duration;

    use socket2::{Domain, SockAddr, SockRef, Socket, Type};

    use super::*;
    use crate::clock::{Clock, SystemClock};

    /// A probe, or nothing and a loud word where netlink is refused (some sandboxes).
    fn probe() -> Option<PeerProbe> {
        let probe = PeerProbe::new();
        match probe.check() {
            Ok(()) => Some(probe),
            Err(error) => {
                eprintln!("SKIPPED: the kernel does not answer questions about sockets here: {error}");
                None
            }
        }
    }

    /// A listener, or nothing and a loud word where there is no IPv6.
    fn listen(address: &str) -> Option<TcpListener> {
        TcpListener::bind(address)
            .inspect_err(|error| eprintln!("SKIPPED: no listener on {address}: {error}"))
            .ok()
    }

    /// A client and the server's side of its connection.
    fn connect(listener: &TcpListener, to: &str) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect((to, listener.local_addr().unwrap().port())).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    /// Closes with an RST instead of a FIN, as the kernel does for a process that dies with data unread.
    fn abort(client: TcpStream) {
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
    }

    /// News of a closed connection takes a moment even on the loopback interface.
    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let clock = SystemClock::new();
        while !condition() {
            assert!(
                clock.now().since(crate::clock::Moment::ZERO) < Duration::from_secs(20),
                "waited in vain: {what}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_peer_is_connected_until_it_closes_half_closes_or_aborts() {
        let Some(probe) = probe() else { return };
        // The last two are IPv4 clients of an IPv6 socket, and a listener that does not tell which address was meant.
        let cases = [
            ("127.0.0.1:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
            ("[::]:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1"),
        ];
        for (address, to) in cases {
            let Some(listener) = listen(address) else { continue };
            let leave: [(&str, fn(TcpStream) -> Option<TcpStream>); 4] = [
                ("close", |client| {
                    drop(client);
                    None
                }),
                ("half-close", |client| {
                    client.shutdown(Shutdown::Write).unwrap();
                    Some(client)
                }),
                ("abort", |client| {
                    abort(client);
                    None
                }),
                ("close behind unread data", |mut client| {
                    client.write_all(b"POST /v1/acquire HTTP/1.1\r\n").unwrap();
                    None
                }),
            ];
            for (how, leave) in leave {
                let (client, server) = connect(&listener, to);
                let (stays, stays_server) = connect(&listener, to);
                let remote = server.peer_addr().unwrap();
                // As accepted, and as the listener is bound.
                let locals = [server.local_addr().unwrap(), listener.local_addr().unwrap()];
                for local in locals {
                    assert_eq!(probe.state(local, remote), PeerState::Connected, "{address} {local}");
                }
                let kept = leave(client);
                for local in locals {
                    wait_until(&format!("{address} {local} {how}"), || {
                        probe.state(local, remote) == PeerState::Gone
                    });
                    let state = probe.state(local, stays_server.peer_addr().unwrap());
                    assert_eq!(
                        state,
                        PeerState::Connected,
                        "the neighbour of {how} on {address} {local}"
                    );
                }
                drop((kept, stays));
            }
        }
    }

    #[test]
    fn among_a_thousand_peers_exactly_those_that_left_are_gone() {
        let Some(probe) = probe() else { return };
        for (address, to) in [("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::]:0", "::1")] {
            let Some(listener) = listen(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let (clients, servers): (Vec<_>, Vec<_>) = (0..1_000).map(|_| connect(&listener, to)).unzip();
            let remotes: Vec<_> = servers.iter().map(|server| server.peer_addr().unwrap()).collect();
            assert_eq!(probe.gone_among(port, &remotes), []);
            assert_eq!(probe.gone_among(port, &[]), []);

            let mut left = Vec::new();
            let mut stayed = Vec::new();
            for (index, client) in clients.into_iter().enumerate() {
                match index % 5 {
                    0 => drop(client),
                    1 => abort(client),
                    _ => {
                        stayed.push(client);
                        continue;
                    }
                }
                left.push(remotes[index]);
            }
            wait_until(&format!("400 have left {address}"), || {
                probe.gone_among(port, &remotes).len() >= left.len()
            });
            assert_eq!(probe.gone_among(port, &remotes), left);
            drop(stayed);
        }
    }

    #[test]
    fn a_new_connection_from_the_port_of_an_aborted_one_is_connected() {
        let Some(probe) = probe() else { return };
        let listener = listen("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        // From an address of its own: the kernel may give a free port of 127.0.0.1 to another test.
        let connect_from = |from: SocketAddr| {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            client.set_reuse_address(true).unwrap();
            client.bind(&SockAddr::from(from)).unwrap();
            client.connect(&SockAddr::from(local)).unwrap();
            TcpStream::from(client)
        };
        let client = connect_from("127.77.0.1:0".parse().unwrap());
        let (server, remote) = listener.accept().unwrap();
        abort(client);
        wait_until("the first has left", || probe.state(local, remote) == PeerState::Gone);

        let _again = connect_from(remote);
        let (again_server, again_remote) = listener.accept().unwrap();
        assert_eq!(again_remote, remote);
        assert_eq!(probe.state(local, remote), PeerState::Connected);
        assert_eq!(probe.gone_among(local.port(), &[remote]), []);
        drop((server, again_server));
    }

    /// In another network namespace neither connections nor listeners can be found. Nobody must be taken for gone then.
    #[test]
    fn a_peer_that_is_not_found_is_unknown_unless_the_listener_is_found() {
        let Some(probe) = probe() else { return };
        let listener = listen("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let (aborting, aborted) = connect(&listener, "127.0.0.1");
        let (closing, closed) = connect(&listener, "127.0.0.1");
        let (aborted_remote, closed_remote) = (aborted.peer_addr().unwrap(), closed.peer_addr().unwrap());
        abort(aborting);
        wait_until("the first has left", || {
            probe.state(local, aborted_remote) == PeerState::Gone
        });
        drop(listener);
        assert_eq!(probe.state(local, aborted_remote), PeerState::Unknown);
        assert_eq!(probe.gone_among(local.port(), &[aborted_remote]), []);
        // What the kernel says about a socket that is there holds without a listener.
        assert_eq!(probe.state(local, closed_remote), PeerState::Connected);
        drop(closing);
        wait_until("the second has left", || {
            probe.state(local, closed_remote) == PeerState::Gone
        });
    }

    #[test]
    fn a_question_that_fails_leaves_the_probe_usable() {
        let Some(probe) = probe() else { return };
        let listener = listen("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let (_client, server) = connect(&listener, "127.0.0.1");
        assert_eq!(
            probe.state(local, "[2001:db8::1]:9341".parse().unwrap()),
            PeerState::Unknown
        );
        assert_eq!(probe.state(local, server.peer_addr().unwrap()), PeerState::Connected);
    }

    #[test]
    fn threads_share_a_probe_and_get_their_own_answers() {
        let Some(probe) = probe() else { return };
        let listener = listen("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let (_stays, stays) = connect(&listener, "127.0.0.1");
        let (leaves, left) = connect(&listener, "127.0.0.1");
        let (stays, left_remote) = (stays.peer_addr().unwrap(), left.peer_addr().unwrap());
        drop(leaves);
        wait_until("one has left", || probe.state(local, left_remote) == PeerState::Gone);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let probe = &probe;
                scope.spawn(move || {
                    for _ in 0..500 {
                        match thread % 2 {
                            0 => assert_eq!(probe.state(local, stays), PeerState::Connected),
                            _ => assert_eq!(probe.gone_among(local.port(), &[stays, left_remote]), [left_remote]),
                        }
                    }
                });
            }
        });
    }

    /// Not a test but a measurement: `cargo test --release --lib net::peer::tests::cost -- --ignored --nocapture`. Wants
    /// twice as many open files as connections.
    #[test]
    #[ignore = "a measurement, meaningful only in a release build"]
    fn cost_of_a_lookup_and_of_a_dump() {
        let Some(probe) = probe() else { return };
        let listener = listen("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let clock = SystemClock::new();
        let measure = |what: &str, rounds: u32, work: &dyn Fn()| {
            let start = clock.now();
            (0..rounds).for_each(|_| work());
            println!(
                "{what}: {:.1} us",
                clock.now().since(start).as_secs_f64() * 1e6 / f64::from(rounds)
            );
        };
        let mut pairs = Vec::new();
        for count in [1, 1_000, 9_900] {
            pairs.resize_with(count, || connect(&listener, "127.0.0.1"));
            let (client, server) = pairs.pop().unwrap();
            let remotes: Vec<_> = pairs.iter().map(|(_, server)| server.peer_addr().unwrap()).collect();
            let (local, remote) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
            let wildcard = listener.local_addr().unwrap();
            println!("{count} connections");
            measure("  lookup", 10_000, &|| {
                assert_eq!(probe.state(local, remote), PeerState::Connected)
            });
            measure("  lookup, wildcard", 100, &|| {
                assert_eq!(probe.state(wildcard, remote), PeerState::Connected)
            });
            measure("  dump, all connected", 50, &|| {
                assert_eq!(probe.gone_among(port, &remotes), [])
            });
            abort(client);
            measure("  lookup, gone", 100, &|| {
                assert_eq!(probe.state(local, remote), PeerState::Gone)
            });
            measure("  dump, one gone", 50, &|| {
                assert_eq!(probe.gone_among(port, &[remote]), [remote])
            });
        }
    }
}
