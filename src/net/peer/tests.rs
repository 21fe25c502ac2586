//! Asks about real sockets. What cannot be had here (netlink, IPv6) is skipped aloud.

#![cfg(target_os = "linux")]

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
        type Leave = fn(TcpStream) -> Option<TcpStream>;
        let ways_to_leave: [(&str, Leave); 4] = [
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
        for (how, leave) in ways_to_leave {
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
        assert_eq!(gone_among(&probe, port, &remotes), []);
        assert_eq!(gone_among(&probe, port, &[]), []);

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
            gone_among(&probe, port, &remotes).len() >= left.len()
        });
        assert_eq!(gone_among(&probe, port, &remotes), left);
        // Closed, they would stay in the kernel's table for a minute and slow down the other tests.
        stayed.into_iter().for_each(abort);
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
    assert_eq!(gone_among(&probe, local.port(), &[remote]), []);
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
    assert_eq!(gone_among(&probe, local.port(), &[aborted_remote]), []);
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
        probe.state(local, "[2001:db8::1]:9341".parse::<SocketAddr>().unwrap()),
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
                for _ in 0..100 {
                    match thread % 2 {
                        0 => assert_eq!(probe.state(local, stays), PeerState::Connected),
                        _ => assert_eq!(gone_among(probe, local.port(), &[stays, left_remote]), [left_remote]),
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
            assert_eq!(probe.state(local, remote), PeerState::Connected);
        });
        measure("  lookup, wildcard", 100, &|| {
            assert_eq!(probe.state(wildcard, remote), PeerState::Connected);
        });
        measure("  dump, all connected", 50, &|| {
            assert_eq!(gone_among(&probe, port, &remotes), []);
        });
        abort(client);
        measure("  lookup, gone", 100, &|| {
            assert_eq!(probe.state(local, remote), PeerState::Gone);
        });
        measure("  dump, one gone", 50, &|| {
            assert_eq!(gone_among(&probe, port, &[remote]), [remote]);
        });
    }
}

fn gone_among(probe: &PeerProbe, local_port: u16, remotes: &[SocketAddr]) -> Vec<SocketAddr> {
    let peers: Vec<Peer> = remotes.iter().map(|remote| Peer::from(*remote)).collect();
    let gone = probe.gone_among(local_port, &peers);
    gone.into_iter().map(|peer| peer.address).collect()
}

#[test]
fn a_client_that_comes_again_from_the_same_port_is_another_one() {
    let Some(probe) = probe() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    let connect = |port: u16| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
        socket.connect(&local.into()).unwrap();
        let (server, remote) = listener.accept().unwrap();
        (socket, server, remote)
    };
    let (first, first_server, remote) = connect(0);
    let mark = probe.mark(local, remote);
    assert!(mark.is_some());
    let peer = Peer { address: remote, mark };
    assert_eq!(probe.state(local, peer), PeerState::Connected);
    assert_eq!(probe.gone_among(local.port(), &[peer]), []);
    // It aborts, so that its port is free at once.
    first.set_linger(Some(Duration::ZERO)).unwrap();
    drop(first);
    let (_second, _second_server, same) = connect(remote.port());
    assert_eq!(same, remote);
    assert_eq!(probe.state(local, remote), PeerState::Connected);
    assert_eq!(probe.state(local, peer), PeerState::Gone);
    let wildcard = SocketAddr::from(([0, 0, 0, 0], local.port()));
    assert_eq!(probe.state(wildcard, peer), PeerState::Gone);
    let other = Peer {
        mark: probe.mark(wildcard, remote),
        ..peer
    };
    assert_ne!(other.mark, mark);
    assert_eq!(probe.gone_among(local.port(), &[peer, other, remote.into()]), [peer]);
    drop(first_server);
}
