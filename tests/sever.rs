//! Connections that the HTTP library holds. The floor below it knows nothing of that library, so this is tested from outside.

#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lockd::net::sever::{ListenerAddr, sever_connections};

/// The reason for severing: stopping a `tiny_http` server left the connections of its clients open.
#[test]
fn an_idle_connection_of_a_stopped_http_server_ends() {
    let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let local = server.server_addr().to_ip().unwrap();
    let client = TcpStream::connect(local).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (&client).write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let request = server.recv().unwrap();
    request.respond(tiny_http::Response::empty(204)).unwrap();
    let mut answer = BufReader::new(&client);
    let mut line = String::new();
    answer.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 204"), "{line}");
    while line != "\r\n" {
        line.clear();
        assert!(answer.read_line(&mut line).unwrap() > 0);
    }
    drop(server);

    match sever_connections(&ListenerAddr::Tcp(local)) {
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            eprintln!("SKIPPED: own sockets cannot be duplicated here: {error}");
        }
        severed => {
            // A server that is dropped connects to itself once, and that connection may still be there.
            assert!(matches!(severed.unwrap(), 1..=2));
            let mut rest = Vec::new();
            answer.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"");
        }
    }
}
