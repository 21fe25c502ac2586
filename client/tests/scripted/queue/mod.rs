//! The queue: what the client sends, byte by byte, and what it makes of the answers.

mod consumer;
mod dequeue;
mod enqueue;
mod events;
mod settle;
mod state;
mod subscribe;
mod watch;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::support::{Reply, Seen, obliging};

const BOUNDARY: &str = "c0ffee11d15ea5e0badc0de5feedface0123456789abcdef0123456789ab";
const CONTENT_TYPE: &str = "multipart/related; boundary=c0ffee11d15ea5e0badc0de5feedface0123456789abcdef0123456789ab";

/// A message as a server describes it.
struct Meta {
    number: u32,
    visibility_seconds: i64,
    with_state: bool,
    length: usize,
}

/// Message `n` of queue `invoices`: id `msg-n`, lease `lease-n`, token 10 + n, entity tag `m-etag-n-1`.
fn meta(number: u32) -> Meta {
    Meta {
        number,
        visibility_seconds: 30,
        with_state: false,
        length: 0,
    }
}

impl Meta {
    fn visibility(mut self, seconds: i64) -> Self {
        self.visibility_seconds = seconds;
        self
    }

    fn with_state(mut self) -> Self {
        self.with_state = true;
        self
    }

    fn json(&self) -> String {
        let n = self.number;
        let state = match self.with_state {
            true => format!(
                r#","state_etag":"s-etag-{n}","state_lease_id":"state-lease-{n}","state_lease_expires_at_unix":1790000031,"state_fencing_token":17,"state_txn_id":"txn-{n}""#
            ),
            false => String::new(),
        };
        format!(
            r#"{{"message":{{"namespace":"default","queue":"invoices","message_id":"msg-{n}","attempts":1,"max_attempts":5,"not_visible_until_unix":1790000031,"visibility_timeout_seconds":{},"attributes":{{"tenant":"acme"}},"payload_content_type":"text/plain","payload_bytes":{},"correlation_id":"corr-{n}","lease_id":"lease-{n}","lease_expires_at_unix":1790000031,"fencing_token":{},"txn_id":"txn-{n}","meta_etag":"m-etag-{n}-1"{state}}}}}"#,
            self.visibility_seconds,
            self.length,
            10 + n
        )
    }

    /// Everything of a delivery but the delimiter in front of it.
    fn delivery(mut self, payload: &[u8]) -> Vec<u8> {
        self.length = payload.len();
        let mut bytes = format!(
            "\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n{}\n\r\n--{BOUNDARY}\r\n\
             Content-Disposition: form-data; name=\"payload\"\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\r\n",
            self.json(),
            payload.len()
        )
        .into_bytes();
        bytes.extend_from_slice(payload);
        bytes
    }
}

/// The deliveries of a whole answer, as its body.
fn multipart(deliveries: Vec<(Meta, &[u8])>) -> Vec<u8> {
    let mut body = Vec::new();
    for (index, (meta, payload)) in deliveries.into_iter().enumerate() {
        body.extend_from_slice(if index == 0 { b"--" } else { b"\r\n--" });
        body.extend_from_slice(BOUNDARY.as_bytes());
        body.extend_from_slice(&meta.delivery(payload));
    }
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// A whole answer, in chunks that have nothing to do with its parts.
fn delivered(deliveries: Vec<(Meta, &[u8])>) -> Reply {
    let mut body = Vec::new();
    for chunk in multipart(deliveries).chunks(100) {
        body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    Reply::Http {
        status: 200,
        headers: vec![
            ("Content-Type".to_owned(), CONTENT_TYPE.to_owned()),
            ("Transfer-Encoding".to_owned(), "chunked".to_owned()),
            ("X-Correlation-Id".to_owned(), "corr-1".to_owned()),
        ],
        body,
    }
}

/// The head of an answer that is a stream.
fn stream_head(stream: &mut TcpStream, content_type: &str) {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n");
    let _ = stream.write_all(head.as_bytes());
}

/// One chunk.
fn chunk(stream: &mut TcpStream, bytes: &[u8]) {
    let mut framed = format!("{:x}\r\n", bytes.len()).into_bytes();
    framed.extend_from_slice(bytes);
    framed.extend_from_slice(b"\r\n");
    let _ = stream.write_all(&framed);
}

/// One delivery of a stream, with the delimiter in front of it.
fn push(stream: &mut TcpStream, first: bool, meta: Meta, payload: &[u8]) {
    let mut bytes = format!("{}--{BOUNDARY}", if first { "" } else { "\r\n" }).into_bytes();
    bytes.extend_from_slice(&meta.delivery(payload));
    chunk(stream, &bytes);
}

/// The closing delimiter and the end of the chunks.
fn finish(stream: &mut TcpStream) {
    chunk(stream, format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    let _ = stream.write_all(b"0\r\n\r\n");
}

/// Blocks until the client hangs up.
fn until_gone(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0]);
}

/// What a server that just works says about messages.
fn agreeable(seen: &Seen) -> Reply {
    let id = || {
        let id = seen.json()["message_id"].as_str().unwrap().to_owned();
        id.strip_prefix("msg-").unwrap().to_owned()
    };
    match seen.path.as_str() {
        "/v1/queue/ack" => Reply::json(200, &format!(r#"{{"acked":true,"correlation_id":"corr-{}"}}"#, id())),
        "/v1/queue/nack" => Reply::json(
            200,
            &format!(
                r#"{{"requeued":true,"meta_etag":"m-etag-{0}-nacked","correlation_id":"corr-{0}"}}"#,
                id()
            ),
        ),
        "/v1/queue/extend" => {
            let by = seen.json()["extend_by_seconds"].as_i64().unwrap();
            let state = match seen.json().get("state_lease_id") {
                Some(_) => r#""state_lease_expires_at_unix":1790000075,"#,
                None => "",
            };
            Reply::json(
                200,
                &format!(
                    r#"{{"lease_expires_at_unix":1790000075,"visibility_timeout_seconds":{by},"meta_etag":"m-etag-{0}-extended",{state}"correlation_id":"corr-{0}"}}"#,
                    id()
                ),
            )
        }
        _ => obliging(seen),
    }
}

/// A part of a request: its headers as they were sent, and its body.
fn request_parts(seen: &Seen) -> Vec<(String, Vec<u8>)> {
    let content_type = seen.header("content-type").unwrap();
    let boundary = content_type.strip_prefix("multipart/related; boundary=").unwrap();
    let body = [b"\r\n", seen.body.as_slice()].concat();
    let delimiter = format!("\r\n--{boundary}").into_bytes();
    let positions: Vec<usize> = body
        .windows(delimiter.len())
        .enumerate()
        .filter(|(_, window)| *window == delimiter.as_slice())
        .map(|(at, _)| at)
        .collect();
    assert_eq!(&body[positions[positions.len() - 1] + delimiter.len()..], b"--\r\n");
    let between = positions
        .windows(2)
        .map(|pair| &body[pair[0] + delimiter.len() + 2..pair[1]]);
    between
        .map(|part| {
            let split = part.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
            let head = String::from_utf8(part[..split].to_vec()).unwrap();
            (head, part[split + 4..].to_vec())
        })
        .collect()
}

/// A gate between the test and its server. Waiting at it fails the test when nobody opens it.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let guard = self.0.0.lock().unwrap();
        let (guard, _) = self
            .0
            .1
            .wait_timeout_while(guard, Duration::from_secs(20), |open| !*open)
            .unwrap();
        assert!(*guard, "the gate was never opened");
    }
}
