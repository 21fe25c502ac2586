//! Enqueue.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockd_client::{CallOptions, CancelToken, Enqueue, Error, Payload};
use serde_json::{Value, json};

use super::request_parts;
use crate::support::{Reply, Server, client_of, dead_url, eventually, refusal};

fn stored() -> Reply {
    Reply::json(
        200,
        r#"{"namespace":"default","queue":"invoices","message_id":"0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50","attempts":0,"max_attempts":7,"not_visible_until_unix":1790000002,"visibility_timeout_seconds":33,"payload_bytes":5,"correlation_id":"corr-7f1a"}"#,
    )
}

/// CL-33, the seed's TestClientEnqueue: two parts in this order, with these names and types, durations in whole seconds, rounded
/// up.
#[test]
fn client_enqueue_sends_a_description_and_a_payload() {
    let server = Server::start(|_| stored());
    let client = client_of(&[&server]).build().unwrap();
    let request = Enqueue::to(" Invoices ")
        .delay(Duration::from_millis(1_001))
        .visibility(Duration::from_secs(33))
        .ttl(Duration::from_secs(300))
        .max_attempts(7)
        .attribute("tenant", "acme")
        .attribute("retries", 3)
        .content_type("text/plain");
    let answer = client
        .with_options(CallOptions::new().correlation_id("corr-7f1a"))
        .enqueue(request, "hello")
        .unwrap();
    assert_eq!(answer.message_id, "0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50");
    assert_eq!((answer.attempts, answer.max_attempts, answer.payload_bytes), (0, 7, 5));
    assert_eq!(answer.not_visible_until_unix, 1_790_000_002);
    assert_eq!(answer.visibility_timeout_seconds, 33);
    assert_eq!(answer.correlation_id, "corr-7f1a");

    let seen = server.one_at("/v1/queue/enqueue");
    assert_eq!(seen.method, "POST");
    assert_eq!(seen.header("x-correlation-id"), Some("corr-7f1a"));
    let parts = request_parts(&seen);
    assert_eq!(parts.len(), 2);
    assert_eq!(
        parts[0].0,
        "Content-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json"
    );
    assert_eq!(
        serde_json::from_slice::<Value>(&parts[0].1).unwrap(),
        json!({
            "namespace": "default", "queue": "invoices", "delay_seconds": 2, "visibility_timeout_seconds": 33,
            "ttl_seconds": 300, "max_attempts": 7, "attributes": {"tenant": "acme", "retries": 3},
            "payload_content_type": "text/plain",
        })
    );
    assert_eq!(
        parts[1].0,
        "Content-Disposition: form-data; name=\"payload\"\r\nContent-Type: text/plain"
    );
    assert_eq!(parts[1].1, b"hello");
}

#[test]
fn bytes_tell_their_length_and_readers_are_sent_in_chunks() {
    let server = Server::start(|_| stored());
    let client = client_of(&[&server]).build().unwrap();
    let large: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(n) % 251) as u8).collect();
    client.enqueue("q", &large).unwrap();
    client.enqueue("q", Payload::reader(large.as_slice())).unwrap();
    client.enqueue("q", Payload::empty()).unwrap();
    let seen = server.seen();
    assert_eq!(seen[0].header("content-length"), Some(&*seen[0].body.len().to_string()));
    assert_eq!(seen[1].header("transfer-encoding"), Some("chunked"));
    for seen in &seen[..2] {
        let parts = request_parts(seen);
        assert!(parts[1].1 == large, "the payload arrived as it was sent");
        assert!(parts[1].0.ends_with("application/octet-stream"));
    }
    assert_eq!(request_parts(&seen[2])[1].1, b"");
    assert_eq!(server.connections(), 1);
}

#[test]
fn values_are_sent_as_json() {
    let server = Server::start(|_| stored());
    let client = client_of(&[&server]).build().unwrap();
    client.enqueue_json("q", &json!({"order": 4711})).unwrap();
    let patch = Enqueue::to("q").content_type("application/merge-patch+json");
    client.enqueue_json(patch, &json!({"a": null})).unwrap();
    let seen = server.seen();
    let meta = |index: usize| serde_json::from_slice::<Value>(&request_parts(&seen[index])[0].1).unwrap();
    assert_eq!(meta(0)["payload_content_type"], "application/json");
    assert_eq!(request_parts(&seen[0])[1].1, br#"{"order":4711}"#);
    assert_eq!(meta(1)["payload_content_type"], "application/merge-patch+json");
}

/// A reader is asked for more only when what it gave has gone out: a payload is never held in memory.
#[test]
fn a_reader_is_read_as_it_is_sent() {
    struct Counting(Arc<AtomicUsize>, u64);
    impl Read for Counting {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            let count = out.len().min(usize::try_from(self.1).unwrap());
            self.1 -= count as u64;
            self.0.fetch_add(count, Ordering::SeqCst);
            Ok(count)
        }
    }
    // The peer reads nothing, so what the client takes is what fits into the buffers between the two.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = client_of(&[]).endpoint(url).build().unwrap();
    let (taken, token) = (Arc::new(AtomicUsize::new(0)), CancelToken::new());
    let bound = client.with_options(CallOptions::new().cancel(token.clone()));
    const LENGTH: u64 = 1 << 30;
    std::thread::scope(|scope| {
        let source = Counting(Arc::clone(&taken), LENGTH);
        let sending = scope.spawn(move || bound.enqueue("q", Payload::reader(source)));
        let before = std::cell::Cell::new(usize::MAX);
        eventually("the sender is blocked", || {
            std::thread::sleep(Duration::from_millis(50));
            let now = taken.load(Ordering::SeqCst);
            0 < now && before.replace(now) == now
        });
        token.cancel();
        let error = sending.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Cancelled), "{error}");
    });
    assert!(taken.load(Ordering::SeqCst) < 64 << 20);
}

/// CL-9: a message that may have arrived is not sent a second time, whether it can be made again or not.
#[test]
fn a_message_that_may_have_arrived_is_not_sent_again() {
    let (dying, second) = (Server::start(|_| Reply::Close), Server::start(|_| stored()));
    let client = client_of(&[&dying, &second]).build().unwrap();
    for payload in [Payload::from("hello"), Payload::reader(&b"hello"[..])] {
        let error = client.enqueue("q", payload).unwrap_err();
        assert!(
            matches!(&error, Error::MaybeEnqueued(attempt) if attempt.endpoint == dying.url()),
            "{error}"
        );
        assert!(error.is_transport());
    }
    assert_eq!(dying.seen().len(), 2);
    assert!(second.seen().is_empty());
}

/// An endpoint that is not there has taken nothing.
#[test]
fn an_endpoint_that_cannot_be_reached_is_passed_over() {
    let server = Server::start(|_| stored());
    let client = client_of(&[])
        .endpoint(dead_url())
        .endpoint(server.url())
        .build()
        .unwrap();
    client.enqueue("q", Payload::reader(&b"hello"[..])).unwrap();
    assert_eq!(request_parts(&server.one_at("/v1/queue/enqueue"))[1].1, b"hello");
    let alone = client_of(&[]).endpoint(dead_url()).build().unwrap();
    assert!(matches!(alone.enqueue("q", "x"), Err(Error::Unreachable(_))));
}

/// A standby says that it has not done it; what can be made again goes to the next endpoint.
#[test]
fn a_standby_is_passed_over_with_bytes_but_not_with_a_reader() {
    let (standby, active) = (
        Server::start(|_| refusal(503, "node_passive")),
        Server::start(|_| stored()),
    );
    let client = client_of(&[&standby, &active]).build().unwrap();
    client.enqueue("q", "hello").unwrap();
    assert_eq!(request_parts(&active.one_at("/v1/queue/enqueue"))[1].1, b"hello");
    let error = client.enqueue("q", Payload::reader(&b"hello"[..])).unwrap_err();
    assert!(matches!(&error, Error::BodyNotReplayable(_)), "{error}");
    assert_eq!(active.seen().len(), 1);
}

#[test]
fn what_no_server_would_take_is_not_sent() {
    let server = Server::start(|_| stored());
    let client = client_of(&[&server]).build().unwrap();
    let text = client.enqueue(" ", "x").unwrap_err().to_string();
    assert_eq!(text, "lockd: queue is required");
    let injected = Enqueue::to("q").content_type("text/plain\r\nX-Evil: 1");
    assert!(matches!(client.enqueue(injected, "x"), Err(Error::InvalidArgument(_))));
    assert!(client.enqueue(Enqueue::to("q").namespace("a b"), "x").is_err());
    assert!(server.seen().is_empty());
}

#[test]
fn refusals_are_returned_as_they_are() {
    let server = Server::start(|_| refusal(400, "invalid_queue"));
    let client = client_of(&[&server]).build().unwrap();
    let error = client.enqueue("a/b", "x").unwrap_err();
    assert_eq!(error.code(), Some("invalid_queue"));
    assert_eq!(server.seen().len(), 1);
}
