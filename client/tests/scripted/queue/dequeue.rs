//! Dequeue, and the life of a message.

use std::io::Read;
use std::time::Duration;

use lockd_client::{CallOptions, CancelToken, Dequeue, Error, MessageRef, Wait};
use serde_json::json;

use super::{BOUNDARY, CONTENT_TYPE, Gate, agreeable, chunk, delivered, finish, meta, multipart, stream_head};
use crate::support::{Reply, Seen, Server, client_of, eventually, refusal};

const PATIENT: Duration = Duration::from_secs(20);

/// Delivers message n to the n-th dequeue.
fn one_by_one(seen: &Seen) -> Reply {
    match seen.path.as_str() {
        "/v1/queue/dequeue" => delivered(vec![(meta(seen.index as u32 + 1), b"hello")]),
        "/v1/queue/dequeueWithState" => delivered(vec![(meta(1).with_state(), b"hello")]),
        _ => agreeable(seen),
    }
}

/// CL-34, CL-35, CL-36, the seed's TestClientDequeueHandlesLifecycle: extend, nack with the entity tag of the extend, and ack.
#[test]
fn client_dequeue_handles_lifecycle() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/queue/dequeue", 0) => delivered(vec![(meta(1), b"hello")]),
        ("/v1/queue/dequeue", _) => delivered(vec![(meta(2), b"world")]),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let request = Dequeue::from_queue("invoices")
        .owner("worker-1")
        .visibility(Duration::from_secs(30))
        .wait(Wait::UpTo(Duration::from_secs(5)))
        .page_size(8);
    let message = client.dequeue(&request).unwrap();
    let seen = server.one_at("/v1/queue/dequeue");
    assert_eq!(
        String::from_utf8(seen.body.clone()).unwrap(),
        r#"{"namespace":"default","queue":"invoices","owner":"worker-1","visibility_timeout_seconds":30,"wait_seconds":5,"page_size":1}"#
    );
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!((message.namespace(), message.queue()), ("default", "invoices"));
    assert_eq!((message.message_id(), message.lease_id()), ("msg-1", "lease-1"));
    assert_eq!((message.attempts(), message.max_attempts()), (1, 5));
    assert_eq!((message.fencing_token(), message.txn_id()), (11, "txn-1"));
    assert_eq!((message.content_type(), message.payload_bytes()), ("text/plain", 5));
    assert_eq!(message.attributes()["tenant"], "acme");
    assert_eq!(message.correlation_id(), "corr-1");
    assert!(message.state().is_none());

    let mut first = [0; 2];
    message.payload().read_exact(&mut first).unwrap();
    assert_eq!(
        (&first[..], message.bytes().unwrap().as_slice()),
        (&b"he"[..], &b"llo"[..])
    );
    assert_eq!(message.bytes().unwrap(), b"", "a payload can be read once");

    assert_eq!(message.extend(Duration::from_secs(33)).unwrap(), 1_790_000_075);
    assert_eq!(message.visibility(), Duration::from_secs(33));
    assert_eq!(message.meta_etag(), "m-etag-1-extended");
    assert_eq!(message.lease_expires_at_unix(), 1_790_000_075);
    assert_eq!(message.not_visible_until_unix(), 1_790_000_075);
    assert_eq!(
        server.one_at("/v1/queue/extend").json(),
        json!({
            "namespace": "default", "queue": "invoices", "message_id": "msg-1", "lease_id": "lease-1", "txn_id": "txn-1",
            "fencing_token": 11, "meta_etag": "m-etag-1-1", "extend_by_seconds": 33,
        })
    );
    message
        .nack_because(Duration::from_millis(4_100), &json!({"code": "E42"}))
        .unwrap();
    let nack = server.one_at("/v1/queue/nack");
    assert_eq!(
        nack.json(),
        json!({
            "namespace": "default", "queue": "invoices", "message_id": "msg-1", "lease_id": "lease-1", "txn_id": "txn-1",
            "fencing_token": 11, "meta_etag": "m-etag-1-extended", "delay_seconds": 5, "intent": "failure",
            "last_error": {"code": "E42"},
        })
    );
    assert_eq!(nack.header("x-correlation-id"), Some("corr-1"));
    assert_eq!(message.meta_etag(), "m-etag-1-nacked");
    for error in [
        message.ack().unwrap_err(),
        message.nack(Duration::ZERO).unwrap_err(),
        message.defer(Duration::ZERO).unwrap_err(),
        message.extend(Duration::ZERO).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "lockd: queue handle already closed");
        assert!(error.is_message_closed());
    }
    drop(message);

    let second = client.dequeue(&request).unwrap();
    assert_eq!(second.bytes().unwrap(), b"world");
    second.ack().unwrap();
    assert!(matches!(second.ack(), Err(Error::MessageClosed)));
    assert!(second.is_settled());
    assert_eq!(second.fencing_token(), 12, "what was told stays readable");
    drop(second);
    assert_eq!(
        server.one_at("/v1/queue/ack").json(),
        json!({
            "namespace": "default", "queue": "invoices", "message_id": "msg-2", "lease_id": "lease-2", "txn_id": "txn-2",
            "fencing_token": 12, "meta_etag": "m-etag-2-1",
        })
    );
    assert_eq!(
        server.seen_at("/v1/queue/nack").len(),
        1,
        "a settled message is let go in silence"
    );
    assert_eq!(server.connections(), 1, "one connection serves them all");
}

#[test]
fn a_deferred_message_counts_no_failure_and_names_no_reason() {
    let server = Server::start(one_by_one);
    let client = client_of(&[&server]).build().unwrap();
    client
        .dequeue("invoices")
        .unwrap()
        .defer(Duration::from_secs(7))
        .unwrap();
    let nack = server.one_at("/v1/queue/nack").json();
    assert_eq!((&nack["intent"], &nack["delay_seconds"]), (&json!("defer"), &json!(7)));
    assert!(nack.get("last_error").is_none());
}

/// CL-38: a message that nobody has settled is given back as a failure, by close and by drop; letting go of its payload is not
/// that.
#[test]
fn an_unsettled_message_is_given_back() {
    let server = Server::start(one_by_one);
    let client = client_of(&[&server]).build().unwrap();
    let request = Dequeue::from_queue("invoices").close_delay(Duration::from_secs(9));
    let message = client.dequeue(&request).unwrap();
    message.close_payload();
    assert_eq!(message.bytes().unwrap(), b"");
    assert!(server.seen_at("/v1/queue/nack").is_empty());
    message.close().unwrap();
    let nack = server.seen_at("/v1/queue/nack").remove(0).json();
    assert_eq!(
        (&nack["intent"], &nack["delay_seconds"]),
        (&json!("failure"), &json!(9))
    );
    assert!(nack.get("last_error").is_none());

    let message = client.dequeue(&request).unwrap();
    message.set_close_delay(Duration::ZERO);
    drop(message);
    let nack = server.seen_at("/v1/queue/nack").remove(1).json();
    assert!(nack.get("delay_seconds").is_none(), "{nack}");

    let kept = client.dequeue(&request).unwrap().detach();
    assert_eq!(
        server.seen_at("/v1/queue/nack").len(),
        2,
        "a detached message stays leased"
    );
    kept.ack().unwrap();
    assert_eq!(server.seen_at("/v1/queue/ack").len(), 1);
}

/// Nobody waits for the server longer than the close timeout when a message is dropped.
#[test]
fn letting_go_is_bounded_by_the_close_timeout() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/nack" => Reply::Silence,
        _ => one_by_one(seen),
    });
    let client = client_of(&[&server])
        .close_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    drop(client.dequeue("invoices").unwrap());
    let error = client.dequeue("invoices").unwrap().close().unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error}");
}

/// A failed ack leaves the message open for another try; once the server says that it is somebody else's, closing it is pointless.
#[test]
fn a_failed_ack_can_be_tried_again() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/queue/ack", 1) => refusal(500, "internal_error"),
        ("/v1/queue/ack", 3..) => refusal(409, "queue_message_lease_mismatch"),
        _ => one_by_one(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let message = client.dequeue("invoices").unwrap();
    assert_eq!(message.ack().unwrap_err().status(), Some(500));
    message.ack().unwrap();
    let other = client.dequeue("invoices").unwrap();
    let error = other.ack().unwrap_err();
    assert!(error.is_message_lost() && !error.is_message_closed(), "{error}");
    assert!(other.lost().is_some());
    assert!(other.ack().unwrap_err().is_message_lost());
    drop(other);
    assert!(server.seen_at("/v1/queue/nack").is_empty());
}

/// The token of a reply, in header or body, is used from then on.
#[test]
fn tokens_are_taken_over_from_answers() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/queue/extend", 1) => Reply::json(
            200,
            r#"{"lease_expires_at_unix":1,"meta_etag":"e","fencing_token":21,"state_fencing_token":31}"#,
        ),
        ("/v1/queue/extend", _) => {
            Reply::json(200, r#"{"lease_expires_at_unix":2,"meta_etag":"f"}"#).header("X-Fencing-Token", "22")
        }
        _ => one_by_one(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let message = client
        .dequeue(Dequeue::from_queue("invoices").with_state(true))
        .unwrap();
    message.extend(Duration::ZERO).unwrap();
    assert_eq!((message.fencing_token(), message.state_fencing_token()), (21, 31));
    message.extend(Duration::ZERO).unwrap();
    message.ack().unwrap();
    let ack = server.one_at("/v1/queue/ack").json();
    assert_eq!(
        (&ack["fencing_token"], &ack["state_fencing_token"]),
        (&json!(22), &json!(31))
    );
    assert_eq!(ack["meta_etag"], "f");
}

#[test]
fn an_empty_queue_is_an_answer_of_the_server() {
    let server = Server::start(|_| refusal(409, "waiting").header("Retry-After", "5"));
    let client = client_of(&[&server]).build().unwrap();
    let error = client
        .dequeue(Dequeue::from_queue("invoices").wait(Wait::No))
        .unwrap_err();
    assert!(error.is_waiting());
    assert_eq!(error.retry_after(), Some(Duration::from_secs(5)));
    assert_eq!(server.one_at("/v1/queue/dequeue").json()["wait_seconds"], -1);
}

#[test]
fn a_batch_brings_several_messages_each_under_its_own_lease() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/dequeue" => delivered(vec![(meta(1), b"one"), (meta(2), b""), (meta(3), b"\r\n--three\r")]),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let batch = client
        .dequeue_batch(Dequeue::from_queue("invoices").page_size(500))
        .unwrap();
    assert_eq!(server.one_at("/v1/queue/dequeue").json()["page_size"], 64);
    let payloads: Vec<Vec<u8>> = batch.iter().map(|message| message.bytes().unwrap()).collect();
    assert_eq!(payloads, [&b"one"[..], b"", b"\r\n--three\r"]);
    for message in &batch {
        message.ack().unwrap();
    }
    let tokens: Vec<i64> = server
        .seen_at("/v1/queue/ack")
        .iter()
        .map(|seen| seen.json()["fencing_token"].as_i64().unwrap())
        .collect();
    assert_eq!(tokens, [11, 12, 13]);
}

/// What had arrived of a batch is leased and worth working on; the rest comes back by itself.
#[test]
fn a_batch_that_breaks_off_brings_what_had_arrived() {
    let body = multipart(vec![(meta(1), b"one"), (meta(2), b"two")]);
    let cut = body.len() - 90;
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v1/queue/dequeue" => Reply::Raw([head.as_bytes(), &body[..cut]].concat()),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let batch = client
        .dequeue_batch(Dequeue::from_queue("invoices").page_size(2))
        .unwrap();
    assert_eq!(batch.len(), 1);
    assert_eq!(batch[0].bytes().unwrap(), b"one");
}

/// CL-34: what is not the agreed form is an error and not a message.
#[test]
fn answers_that_make_no_sense_are_refused() {
    let part = |name: &str| {
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{{}}\r\n--{BOUNDARY}--\r\n")
    };
    for (content_type, body) in [
        ("application/json", "{}".to_owned()),
        ("multipart/related", part("meta")),
        (CONTENT_TYPE, part("state")),
        (CONTENT_TYPE, part("payload")),
        (CONTENT_TYPE, format!("--{BOUNDARY}--\r\n")),
        // A description without a message says nothing.
        (CONTENT_TYPE, part("meta")),
    ] {
        let server = Server::start(move |_| Reply::Http {
            status: 200,
            headers: vec![("Content-Type".to_owned(), content_type.to_owned())],
            body: body.clone().into_bytes(),
        });
        let client = client_of(&[&server]).build().unwrap();
        let error = client.dequeue("invoices").unwrap_err();
        assert!(matches!(error, Error::BadAnswer { .. }), "{content_type}: {error}");
        assert!(matches!(client.dequeue_batch("invoices"), Err(Error::BadAnswer { .. })));
    }
}

/// A payload of any size passes without being held in memory: here the server sends the rest only once its start was read.
#[test]
fn a_large_payload_streams() {
    let gate = Gate::default();
    let opened = gate.clone();
    let server = Server::start(move |seen| {
        if seen.path != "/v1/queue/dequeue" {
            return agreeable(seen);
        }
        let gate = gate.clone();
        Reply::live(move |stream| {
            let whole = meta(1).delivery(&vec![b'x'; 1_000_000]);
            let (start, rest) = whole.split_at(whole.len() - 700_000);
            stream_head(stream, CONTENT_TYPE);
            chunk(stream, format!("--{BOUNDARY}").as_bytes());
            chunk(stream, start);
            gate.wait();
            chunk(stream, rest);
            finish(stream);
        })
    });
    let client = client_of(&[&server]).build().unwrap();
    let message = client.dequeue("invoices").unwrap();
    let mut start = vec![0; 300_000];
    message.payload().read_exact(&mut start).unwrap();
    opened.open();
    let mut sink = Vec::new();
    assert_eq!(message.copy_to(&mut sink).unwrap(), 700_000);
    assert!(sink.iter().all(|byte| *byte == b'x'));
    message.ack().unwrap();
}

/// Long polls are not cut by the limit of an attempt, and a waiting dequeue is cut off by its token at once.
#[test]
fn a_waiting_dequeue_outlives_the_http_timeout_and_can_be_cancelled() {
    let server = Server::start(|seen| match seen.index {
        0 => Reply::After(
            Duration::from_millis(150),
            Box::new(delivered(vec![(meta(1), b"hello")])),
        ),
        _ => match seen.path.as_str() {
            "/v1/queue/dequeue" => Reply::Silence,
            _ => agreeable(seen),
        },
    });
    let client = client_of(&[&server])
        .http_timeout(Duration::from_millis(20))
        .build()
        .unwrap();
    client.dequeue("invoices").unwrap().ack().unwrap();
    assert_eq!(server.seen_at("/v1/queue/dequeue").len(), 1);

    let token = CancelToken::new();
    let bound = client.with_options(CallOptions::new().cancel(token.clone()));
    let error = std::thread::scope(|scope| {
        let waiting = scope.spawn(move || bound.dequeue("invoices").map(drop));
        eventually("the server was asked", || {
            server.seen_at("/v1/queue/dequeue").len() == 2
        });
        token.cancel();
        waiting.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, Error::Cancelled), "{error}");
    eventually("the connection is gone", || server.hung_up() == 1);

    let bound = client.with_options(CallOptions::new().timeout(Duration::from_millis(1_100)));
    let error = bound.dequeue("invoices").map(drop).unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error}");
    assert_eq!(
        server.seen_at("/v1/queue/dequeue")[2].json()["wait_seconds"],
        2,
        "the server is told how long the caller has"
    );
}

/// A message does not inherit the deadline under which it was dequeued, and can be given one.
#[test]
fn a_message_outlives_the_deadline_of_its_dequeue() {
    let server = Server::start(one_by_one);
    let client = client_of(&[&server]).build().unwrap();
    let token = CancelToken::new();
    let message = client
        .with_options(CallOptions::new().cancel(token.clone()))
        .dequeue("invoices")
        .unwrap();
    token.cancel();
    message.extend(Duration::from_secs(1)).unwrap();
    let bound = message.with_options(CallOptions::new().cancel(token));
    assert!(bound.ack().unwrap_err().is_cancelled());
    message.ack().unwrap();
}

#[test]
fn a_message_dequeued_elsewhere_is_settled_by_name() {
    let server = Server::start(agreeable);
    let client = client_of(&[&server]).build().unwrap();
    let named = MessageRef::new("invoices", "msg-7", "lease-7", 17)
        .namespace("Shop")
        .meta_etag("m-etag")
        .state_lease("state-lease-7", 3)
        .state_etag("s-etag");
    let message = client.message(named.clone()).unwrap();
    message.extend(Duration::from_secs(60)).unwrap();
    assert_eq!(message.state_lease_expires_at_unix(), 1_790_000_075);
    message.ack().unwrap();
    assert_eq!(
        server.one_at("/v1/queue/ack").json(),
        json!({
            "namespace": "shop", "queue": "invoices", "message_id": "msg-7", "lease_id": "lease-7", "fencing_token": 17,
            "meta_etag": "m-etag-7-extended", "state_etag": "s-etag", "state_lease_id": "state-lease-7",
            "state_fencing_token": 3,
        })
    );
    drop(client.message(named).unwrap());
    assert!(server.seen_at("/v1/queue/nack").is_empty(), "a handle has no duty");
    assert!(
        client
            .message(MessageRef::new("q", "m", "l", 0))
            .unwrap_err()
            .is_missing_fencing_token()
    );
    assert!(client.message(MessageRef::new("q", " ", "l", 1)).is_err());
}

/// The lease of a message that is worked on outside a subscription is prolonged on request, until the message is settled.
#[test]
fn a_message_can_be_prolonged_in_the_background() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/dequeue" => delivered(vec![(meta(1).visibility(1), b"hello")]),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let message = client.dequeue("invoices").unwrap();
    message.start_auto_extend().unwrap();
    eventually("it was prolonged twice", || {
        2 <= server.seen_at("/v1/queue/extend").len()
    });
    let extends = server.seen_at("/v1/queue/extend");
    assert_eq!(extends[0].json()["extend_by_seconds"], 1);
    assert_eq!(extends[1].json()["meta_etag"], "m-etag-1-extended");
    message.ack().unwrap();
    let before = server.seen_at("/v1/queue/extend").len();
    drop(message);
    assert_eq!(server.seen_at("/v1/queue/extend").len(), before);
    assert!(server.seen_at("/v1/queue/nack").is_empty());
}

/// A lease that cannot be prolonged is lost, and whoever works on the message is told.
#[test]
fn a_message_that_cannot_be_prolonged_is_lost() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/dequeue" => delivered(vec![(meta(1).visibility(1), b"hello")]),
        "/v1/queue/extend" => refusal(403, "lease_expired"),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let message = client.dequeue("invoices").unwrap();
    message.start_auto_extend().unwrap();
    assert!(message.cancel_token().wait(PATIENT));
    assert!(message.lost().unwrap().contains("lease_expired"));
    drop(message);
    assert!(
        server.seen_at("/v1/queue/nack").is_empty(),
        "there is nothing to give back"
    );
}
