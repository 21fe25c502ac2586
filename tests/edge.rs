//! The edge of the server against habits of the HTTP library that would hurt its users.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use lockd::logging;
use lockd::net::sever::ListenerAddr;
use lockd::server::{Parts, Server};
use lockd::settings::{Listen, Settings};

const PROBE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n";

fn server(listen: Listen) -> Server {
    Server::start(Parts::new(
        Settings {
            listen,
            workers: 4,
            ..Settings::default()
        },
        logging::off(),
    ))
    .unwrap()
}

/// Sends on all connections, then wants an answer on each while all stay open.
fn all_are_served<S: Read + Write>(mut connections: Vec<S>) {
    for connection in &mut connections {
        connection.write_all(PROBE).unwrap();
    }
    for (number, connection) in connections.iter_mut().enumerate() {
        let mut status = [0; 12];
        connection
            .read_exact(&mut status)
            .unwrap_or_else(|cause| panic!("connection {number}: {cause}"));
        assert_eq!(&status, b"HTTP/1.1 200");
    }
}

/// tiny_http gives several connections of a burst to one idle thread; those behind the first waited until another
/// connection ended, in most bursts on a fresh server for ever.
#[test]
fn every_connection_of_a_burst_is_served() {
    for _ in 0..5 {
        let server = server(Listen::loopback_any_port());
        let ListenerAddr::Tcp(address) = *server.address() else {
            panic!("TCP was asked for")
        };
        // The second and third burst meet the idle threads that the one before has left.
        for _ in 0..3 {
            let connections = (0..64).map(|_| {
                let connection = TcpStream::connect(address).unwrap();
                connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                connection
            });
            all_are_served(connections.collect());
        }
    }
}

/// The same without addresses and without a kernel that could be asked.
#[test]
fn every_connection_of_a_burst_on_a_unix_socket_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockd.sock");
    let _server = server(Listen::Unix(path.clone()));
    for _ in 0..3 {
        let connections = (0..32).map(|_| {
            let connection = UnixStream::connect(&path).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            connection
        });
        all_are_served(connections.collect());
    }
}
