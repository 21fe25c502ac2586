//! Severs real connections. What cannot be had here (`pidfd_getfd`, IPv6) is skipped aloud.

#![cfg(target_os = "linux")]

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::*;
use crate::clock::{Clock, SystemClock};
use crate::threads;

/// The result, or nothing and a loud word where a sandbox forbids what it takes.
fn permitted<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            eprintln!("SKIPPED: own sockets cannot be duplicated here: {error}");
            None
        }
        result => Some(result.unwrap()),
    }
}

fn listen(address: &str) -> Option<(TcpListener, ListenerAddr)> {
    let listener = TcpListener::bind(address)
        .inspect_err(|error| eprintln!("SKIPPED: no listener on {address}: {error}"))
        .ok()?;
    let local = ListenerAddr::Tcp(listener.local_addr().unwrap());
    Some((listener, local))
}

/// A client and the server's side of its connection. Reads of the client fail after a while instead of hanging.
fn connect(listener: &TcpListener, to: &str) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect((to, listener.local_addr().unwrap().port())).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// Reads what is left. Fails if the connection was reset instead of ended.
fn read_all(mut client: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    bytes
}

fn assert_open(client: &mut (impl Read + Write), server: &mut (impl Read + Write)) {
    let mut byte = [0];
    client.write_all(b"?").unwrap();
    server.read_exact(&mut byte).unwrap();
    server.write_all(b"!").unwrap();
    client.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"!");
}

#[test]
fn the_reading_side_of_those_who_are_named_ends_and_answers_still_arrive() {
    let Some((listener, ListenerAddr::Tcp(local))) = listen("127.0.0.1:0") else {
        return;
    };
    let (named_client, named) = connect(&listener, "127.0.0.1");
    let (other_client, other) = connect(&listener, "127.0.0.1");
    let (later_client, later) = connect(&listener, "127.0.0.1");
    let peer = |client: &TcpStream, mark: &TcpStream| Peer {
        address: client.local_addr().unwrap(),
        mark: Mark::of(&Socket::from(mark.try_clone().unwrap())),
    };
    // The last has the address of one that is gone.
    let peers = [peer(&named_client, &named), peer(&later_client, &named)];
    let Some(ended) = permitted(end_reading(local, &peers)) else {
        return;
    };
    assert_eq!(ended, 1);
    assert_eq!((&named).read(&mut [0]).unwrap(), 0);
    (&named).write_all(b"answer").unwrap();
    drop(named);
    assert_eq!(read_all(&named_client), b"answer");
    assert_open(&mut &other_client, &mut &other);
    assert_open(&mut &later_client, &mut &later);
}

#[test]
fn accepted_connections_end_and_nothing_else_does() {
    // The last two are IPv4 clients of an IPv6 socket, and a listener on every address.
    for (address, to) in [
        ("127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "::1"),
        ("[::]:0", "127.0.0.1"),
        ("0.0.0.0:0", "127.0.0.2"),
    ] {
        let Some((listener, local)) = listen(address) else {
            continue;
        };
        let (other_listener, _) = listen("127.0.0.1:0").unwrap();
        let (mut other_client, mut other_server) = connect(&other_listener, "127.0.0.1");
        let (client, server) = connect(&listener, to);
        let (mut second, _second_server) = connect(&listener, to);
        // A second descriptor of the same socket is no second connection.
        let _clone = server.try_clone().unwrap();

        let Some(severed) = permitted(sever_connections(&local)) else {
            return;
        };
        assert_eq!(severed, 2, "{address}");
        assert_eq!(read_all(&client), b"");
        assert_eq!(read_all(&server), b"");
        assert_eq!(read_all(&second), b"");
        // The client's side of the connection lives in this process too, and was not shut down itself.
        second.write_all(b"one word more").unwrap();

        assert_open(&mut other_client, &mut other_server);
        let (mut new_client, mut new_server) = connect(&listener, to);
        assert_open(&mut new_client, &mut new_server);
    }
}

#[test]
fn a_listener_at_another_address_with_the_same_port_keeps_its_connections() {
    let (listener, local) = listen("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let Some((other_listener, other)) = listen(&format!("127.0.0.2:{port}")) else {
        return;
    };
    let (client, _server) = connect(&listener, "127.0.0.1");
    let (mut other_client, mut other_server) = connect(&other_listener, "127.0.0.2");
    let Some(severed) = permitted(sever_connections(&local)) else {
        return;
    };
    assert_eq!(severed, 1);
    assert_eq!(read_all(&client), b"");
    assert_open(&mut other_client, &mut other_server);
    assert_eq!(sever_connections(&other).unwrap(), 1);
}

#[test]
fn unix_connections_end_by_the_path_of_their_listener() {
    let directory = tempfile::tempdir().unwrap();
    let [path, other_path] = ["lockd.sock", "other.sock"].map(|name| directory.path().join(name));
    let listener = UnixListener::bind(&path).unwrap();
    let other_listener = UnixListener::bind(&other_path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let (server, _) = listener.accept().unwrap();
    let mut other_client = UnixStream::connect(&other_path).unwrap();
    let (mut other_server, _) = other_listener.accept().unwrap();

    let Some(severed) = permitted(sever_connections(&ListenerAddr::Unix(path.clone()))) else {
        return;
    };
    assert_eq!(severed, 1);
    assert_eq!(read_all(&client), b"");
    assert_eq!(read_all(&server), b"");
    assert_open(&mut other_client, &mut other_server);
    let mut new_client = UnixStream::connect(&path).unwrap();
    let (mut new_server, _) = listener.accept().unwrap();
    assert_open(&mut new_client, &mut new_server);
}

#[test]
fn one_connection_is_found_by_its_peer() {
    let (listener, local) = listen("127.0.0.1:0").unwrap();
    let ListenerAddr::Tcp(local) = local else {
        unreachable!()
    };
    let (client, server) = connect(&listener, "127.0.0.1");
    let (mut stays, mut stays_server) = connect(&listener, "127.0.0.1");
    let remote = server.peer_addr().unwrap();
    let Some(found) = permitted(find_connection(local, remote)) else {
        return;
    };
    found.unwrap().shutdown(Shutdown::Both).unwrap();
    assert_eq!(read_all(&client), b"");
    assert_open(&mut stays, &mut stays_server);
    drop((client, server));
    assert!(find_connection(local, remote).unwrap().is_none());
}

#[test]
fn several_connections_are_severed_by_their_peers() {
    let (listener, local) = listen("127.0.0.1:0").unwrap();
    let ListenerAddr::Tcp(local) = local else {
        unreachable!()
    };
    let pairs = [(); 4].map(|()| connect(&listener, "127.0.0.1"));
    let remotes = [0, 2].map(|index: usize| pairs[index].1.peer_addr().unwrap());
    let Some(severed) = permitted(sever_those(local, &remotes)) else {
        return;
    };
    assert_eq!(severed, 2);
    for (index, (mut client, mut server)) in pairs.into_iter().enumerate() {
        match index {
            0 | 2 => assert_eq!(read_all(&client), b""),
            _ => assert_open(&mut client, &mut server),
        }
    }
}

#[test]
fn what_was_written_before_reaches_the_peer() {
    let (listener, local) = listen("127.0.0.1:0").unwrap();
    let (client, mut server) = connect(&listener, "127.0.0.1");
    // As much of a megabyte as the kernel takes while nobody reads: part waits at the client, part at the server.
    socket2::SockRef::from(&server).set_send_buffer_size(2_000_000).unwrap();
    server.set_nonblocking(true).unwrap();
    let message: Vec<u8> = (0..1_000_000_u32).map(|index| (index / 7) as u8).collect();
    let mut written = 0;
    while written < message.len() {
        match server.write(&message[written..]) {
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(written > 0);
    let Some(severed) = permitted(sever_connections(&local)) else {
        return;
    };
    assert_eq!(severed, 1);
    assert_eq!(server.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
    // The holder notices and closes its socket, long before the client reads.
    drop(server);
    let received = read_all(&client);
    assert!(
        received == message[..written],
        "{} of {written} bytes came",
        received.len()
    );
}

#[test]
fn a_thread_that_waits_for_input_wakes_up() {
    let (listener, local) = listen("127.0.0.1:0").unwrap();
    let (_client, mut server) = connect(&listener, "127.0.0.1");
    let reader = threads::spawn("reader", move || {
        let mut byte = [0];
        let mut count = 0;
        server.read_exact(&mut byte).unwrap();
        count += 1;
        while server.read(&mut byte).unwrap() > 0 {
            count += 1;
        }
        count
    })
    .unwrap();
    (&_client).write_all(b"x").unwrap();
    let Some(severed) = permitted(sever_connections(&local)) else {
        return;
    };
    assert_eq!(severed, 1);
    assert_eq!(reader.join().unwrap(), 1);
}

/// Not a test but a measurement: `cargo test --release --lib net::sever::tests::cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, meaningful only in a release build"]
fn cost_of_severing_among_many_descriptors() {
    let (listener, local) = listen("127.0.0.1:0").unwrap();
    let pairs: Vec<_> = (0..5_000).map(|_| connect(&listener, "127.0.0.1")).collect();
    let clock = SystemClock::new();
    let ListenerAddr::Tcp(address) = local else {
        unreachable!()
    };
    let start = clock.now();
    let found = find_connection(address, pairs[17].1.peer_addr().unwrap()).unwrap();
    found.unwrap().shutdown(Shutdown::Both).unwrap();
    println!("one of 5,000: {:?}", clock.now().since(start));
    let start = clock.now();
    assert!(sever_connections(&local).unwrap() >= 4_999);
    println!("5,000: {:?}", clock.now().since(start));
}
