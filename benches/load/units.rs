//! The parts of the load generator that need no server. They stand here and not in their modules because cargo also
//! compiles those with `cfg(test)` for the benchmark, where tests cannot run.

use std::io;

use crate::http::{AnswerReader, ProtocolError, json_field};
use crate::report::median;
use crate::workload::KeyCycle;

fn read_all(text: &str, step: usize) -> Result<(u16, String, bool), ProtocolError> {
    let mut reader = AnswerReader::default();
    for piece in text.as_bytes().chunks(step) {
        let mut piece = piece;
        while !piece.is_empty() {
            reader.read_from(&mut piece).unwrap();
        }
        reader.answer()?;
    }
    reader.read_from(&mut io::empty()).unwrap();
    let answer = reader.answer()?.expect("complete");
    Ok((
        answer.status,
        String::from_utf8(answer.body.to_vec()).unwrap(),
        answer.close,
    ))
}

#[test]
fn every_framing_is_read_in_pieces_of_any_size() {
    let cases = [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nDate: x\r\n\r\nhello",
            200,
            "hello",
            false,
        ),
        ("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", 204, "", true),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}",
            409,
            "{}",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: v\r\n\r\n",
            200,
            "abc0123456789",
            false,
        ),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, "until the end", true),
    ];
    for (text, status, body, close) in cases {
        for step in 1..=text.len() {
            let read = read_all(text, step);
            assert_eq!(read, Ok((status, body.to_owned(), close)), "{text:?} by {step}");
        }
    }
}

#[test]
fn an_answer_nobody_asked_for_is_an_error() {
    let twice = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n";
    assert_eq!(
        read_all(twice, twice.len()),
        Err(ProtocolError("bytes after the answer"))
    );
    assert!(read_all("SSH-2.0-OpenSSH\r\n\r\n", 64).is_err());
}

#[test]
fn fields_are_found_whatever_stands_around_them() {
    let body = br#"{"key":"lease_id","lease_id" : "d4k7", "fencing_token":12,"txn_id":"d4k8"}"#;
    assert_eq!(json_field(body, "lease_id"), Some(&b"d4k7"[..]));
    assert_eq!(json_field(body, "fencing_token"), Some(&b"12"[..]));
    assert_eq!(json_field(body, "txn_id"), Some(&b"d4k8"[..]));
    assert_eq!(json_field(body, "owner"), None);
}

#[test]
fn connections_share_no_key_while_there_are_enough() {
    let (connections, keys) = (3, 8);
    let mut seen = vec![0; 8];
    for connection in 0..connections {
        let mut cycle = KeyCycle::new(connection, connections, keys);
        let first = cycle.current;
        loop {
            seen[usize::try_from(cycle.current).unwrap()] += 1;
            cycle.advance();
            if cycle.current == first {
                break;
            }
        }
    }
    assert_eq!(
        seen,
        vec![1; 8],
        "each key belongs to one connection and is used in turn"
    );
    let mut shared = KeyCycle::new(2, connections, 1);
    shared.advance();
    assert_eq!(shared.current, 0);
}

#[test]
fn the_median_is_the_middle_of_the_sorted_values() {
    assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
    assert_eq!(median(Vec::new()), 0.0);
}
