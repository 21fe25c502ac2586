//! Bodies go through a server in pieces, however large they are.

use std::env;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::DEMANDS;
use crate::place::BucketPlace;
use crate::suite::lockd_calls::{Held, acquire_with, describe, hold};
use crate::suite::process::Daemon;

/// `LOCKD_TEST_BYTES` makes it more.
const BYTES: usize = 40_000_000;
const PIECE: usize = 100_000;
/// One part of an upload, what the edges hold, and room for the allocator.
const MORE_KIB_MAX: u64 = 20 * 1024;

#[test]
fn a_large_state_passes_through_a_server_that_has_little_memory() {
    let bytes_wanted: usize = env::var("LOCKD_TEST_BYTES").map_or(BYTES, |text| text.parse().unwrap());
    let place = BucketPlace::new(DEMANDS, true);
    let (daemon, address) = Daemon::on_tcp(&place);
    hold(address, "warm").release().expect(200);
    let before = daemon.peak_resident_kib();

    // A daemon without optimisations takes its time for the sums of so many bytes.
    let wish = json!({"key": "large", "owner": "test", "ttl_seconds": 900, "block_seconds": -1});
    let held = Held::from_answer(address, &acquire_with(address, &wish));
    let mut stream = connect(address);
    let head = format!(
        "POST /v1/update?key=large HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Lease-ID: {}\r\nX-Txn-ID: {}\r\n\
         X-Fencing-Token: {}\r\nContent-Length: {bytes_wanted}\r\n\r\n\"",
        held.lease_id, held.txn_id, held.token
    );
    stream.write_all(head.as_bytes()).unwrap();
    for number in 0..bytes_wanted / PIECE {
        let piece = piece(number);
        let piece = match number {
            // The quotes belong to it.
            0 => &piece[1..],
            _ if number == bytes_wanted / PIECE - 1 => &piece[1..],
            _ => &piece[..],
        };
        stream.write_all(piece).unwrap();
    }
    stream.write_all(b"\"").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    held.release().expect(200);
    let up = daemon.peak_resident_kib() - before;

    let mut stream = connect(address);
    let head = "GET /v1/get?key=large&public=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut bytes, mut buffer) = (0, vec![0; PIECE]);
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => break,
            count => bytes += count,
        }
    }
    assert!(
        (bytes_wanted..bytes_wanted + bytes_wanted / 10).contains(&bytes),
        "{bytes} bytes came"
    );
    let described: Value = describe(address, "large").expect(200).json();
    assert_eq!(described["version"], 1);
    let more = daemon.peak_resident_kib() - before;
    eprintln!("{before} KiB at rest; {up} KiB more for {bytes_wanted} bytes up, {more} KiB more for both ways");
    assert!(more < MORE_KIB_MAX, "{more} KiB more than {before}");
}

fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).unwrap()
}

/// Letters that differ from piece to piece.
fn piece(number: usize) -> Vec<u8> {
    vec![b'a' + u8::try_from(number % 26).unwrap(); PIECE]
}
