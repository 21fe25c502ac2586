//! What goes into a queue and comes out of it: enqueue, dequeue, and who gets what.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::fixture::Backend;
use super::http::{Connection, chunked, send};
use super::lockd_calls::wait_until;
use super::queue_calls::{
    Mode, Stream, assert_empty, boundary_of, deliveries, dequeue_with, enqueue, enqueue_body, enqueue_meta,
    enqueue_with, post, queue_server, queue_server_with, stats, take, take_by, until_some, wish, wish_waiting,
};

const MIB: usize = 1024 * 1024;

/// LQ-19: the exchange of the protocol's description, byte for byte but for ids and times.
pub fn a_message_goes_in_and_out_as_the_protocol_shows(backend: &dyn Backend) {
    let server = queue_server(backend);
    let meta = json!({"namespace": "default", "queue": "invoices", "delay_seconds": 0,
        "visibility_timeout_seconds": 30, "ttl_seconds": 300, "max_attempts": 5, "attributes": {"tenant": "acme"},
        "payload_content_type": "text/plain"});
    let answer = enqueue_with(server.address, &[("X-Correlation-Id", "corr-7f1a")], &meta, b"hello").expect(200);
    assert_eq!(answer.header("X-Correlation-Id"), Some("corr-7f1a"));
    let id = answer.field("message_id").as_str().unwrap().to_owned();
    let visible_from = answer.field("not_visible_until_unix").as_i64().unwrap();
    let expected = format!(
        "{{\"namespace\":\"default\",\"queue\":\"invoices\",\"message_id\":\"{id}\",\"attempts\":0,\
         \"max_attempts\":5,\"not_visible_until_unix\":{visible_from},\"visibility_timeout_seconds\":30,\
         \"payload_bytes\":5,\"correlation_id\":\"corr-7f1a\"}}\n"
    );
    assert_eq!(String::from_utf8(answer.body).unwrap(), expected);

    let body = json!({"namespace": "default", "queue": "invoices", "owner": "worker-1",
        "visibility_timeout_seconds": 30, "wait_seconds": 5, "page_size": 1});
    let answer = post(server.address, "dequeue", &body).expect(200);
    assert_eq!(answer.header("X-Correlation-Id"), Some("corr-7f1a"));
    assert_eq!(answer.header("Transfer-Encoding"), Some("chunked"));
    let boundary = boundary_of(&answer);
    let message = deliveries(server.address, &answer).remove(0);
    let text = |name: &str| message.meta[name].as_str().unwrap();
    let expires = message.number("lease_expires_at_unix");
    let expected = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n\
         {{\"message\":{{\"namespace\":\"default\",\"queue\":\"invoices\",\"message_id\":\"{id}\",\"attempts\":1,\
         \"max_attempts\":5,\"not_visible_until_unix\":{expires},\"visibility_timeout_seconds\":30,\
         \"attributes\":{{\"tenant\":\"acme\"}},\"payload_content_type\":\"text/plain\",\"payload_bytes\":5,\
         \"correlation_id\":\"corr-7f1a\",\"lease_id\":\"{}\",\"lease_expires_at_unix\":{expires},\
         \"fencing_token\":1,\"txn_id\":\"{}\",\"meta_etag\":\"{}\"}}}}\n\r\n--{boundary}\r\n\
         Content-Disposition: form-data; name=\"payload\"\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\n\
         hello\r\n--{boundary}--\r\n",
        text("lease_id"),
        text("txn_id"),
        text("meta_etag")
    );
    assert_eq!(String::from_utf8(answer.body).unwrap(), expected);

    let acked = message.ack().expect(200);
    assert_eq!(acked.header("X-Correlation-Id"), Some("corr-7f1a"));
    assert_eq!(acked.body, b"{\"acked\":true,\"correlation_id\":\"corr-7f1a\"}\n");
    let again = message.ack().expect(404);
    assert_eq!(
        again.body,
        b"{\"error\":\"not_found\",\"detail\":\"message not found\"}\n"
    );

    let body = json!({"queue": "invoices", "owner": "worker-1", "wait_seconds": 1});
    let waiting = post(server.address, "dequeue", &body).expect(409);
    assert_eq!(waiting.header("Retry-After"), Some("1"));
    assert_eq!(
        waiting.body,
        b"{\"error\":\"waiting\",\"detail\":\"no messages available\",\"retry_after_seconds\":1}\n"
    );
}

/// LQ-1.
pub fn enqueue_takes_any_multipart_type_and_no_other(backend: &dyn Backend) {
    let server = queue_server(backend);
    let body = enqueue_body("b", "{\"queue\":\"q\"}", b"x");
    let with = |content_type: &str| {
        let headers = [("Content-Type", content_type)];
        send(server.address, "POST", "/v1/queue/enqueue", &headers, &body)
    };
    for content_type in [
        "multipart/related; boundary=b",
        "multipart/form-data; boundary=\"b\"",
        "Multipart/Whatever;charset=x;Boundary=b",
    ] {
        with(content_type).expect(200);
    }
    for content_type in ["application/json", "text/plain; boundary=b", "", "multipart"] {
        assert_eq!(
            with(content_type).error(),
            (400, "invalid_content_type".to_owned()),
            "{content_type}"
        );
    }
}

/// LQ-2.
pub fn a_malformed_enqueue_leaves_no_message(backend: &dyn Backend) {
    let server = queue_server(backend);
    let part =
        |name: &str, data: &str| format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{data}\r\n");
    let meta = part("meta", "{\"queue\":\"q\"}");
    let payload = part("payload", "x");
    let refused = |content_type: &str, body: &str, code: &str| {
        let headers = [("Content-Type", content_type)];
        let answer = send(server.address, "POST", "/v1/queue/enqueue", &headers, body.as_bytes());
        assert_eq!(answer.error(), (400, code.to_owned()), "{content_type} {body}");
    };
    let related = "multipart/related; boundary=b";
    refused("multipart/related", &format!("{meta}{payload}--b--"), "multipart_error");
    for body in [
        format!("{payload}{meta}--b--"),
        format!("{meta}{}--b--", part("other", "x")),
        format!("{meta}--b\r\nno colon here\r\n\r\nx\r\n--b--"),
        // Cut in the payload, between the parts, in the meta part, before anything.
        format!("{meta}--b\r\nContent-Disposition: form-data; name=\"payload\"\r\n\r\nhal"),
        format!("{meta}--b\r\nContent-Dispo"),
        "--b\r\nContent-Disposition: form-data; name=\"meta\"\r\n\r\n{\"queue\":\"q\"}".to_owned(),
        "--b".to_owned(),
        String::new(),
        "--b--".to_owned(),
    ] {
        refused(related, &body, "multipart_error");
    }
    refused(related, &format!("{}{payload}--b--", part("meta", "{")), "invalid_body");

    // A client that goes in the middle of a payload, with and without an announced length.
    for head in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let mut connection = Connection::open(server.address);
        let body = format!("{meta}--b\r\nContent-Disposition: form-data; name=\"payload\"\r\n\r\nhalf of it");
        let body = if head.contains("chunked") {
            format!("{:x}\r\n{body}\r\n", body.len())
        } else {
            body
        };
        let head = format!("POST /v1/queue/enqueue HTTP/1.1\r\nHost: x\r\nContent-Type: {related}\r\n{head}\r\n\r\n");
        connection.send(format!("{head}{body}").as_bytes());
        connection.abort();
    }
    // What follows the payload does not matter.
    let answer = send(
        server.address,
        "POST",
        "/v1/queue/enqueue",
        &[("Content-Type", related)],
        format!("{meta}{payload}--b\r\nanything").as_bytes(),
    )
    .expect(200);
    let message = take(server.address, "q");
    assert_eq!(message.id(), answer.field("message_id").as_str().unwrap());
    message.ack().expect(200);
    assert_empty(server.address, "q");
}

/// LQ-3, LQ-20: a message without a payload has one of length 0.
pub fn a_message_may_carry_nothing(backend: &dyn Backend) {
    let server = queue_server(backend);
    let meta = "--b\r\nContent-Disposition: form-data; name=\"meta\"\r\n\r\n{\"queue\":\"q\"}\r\n";
    let empty = "--b\r\nContent-Disposition: form-data; name=\"payload\"\r\n\r\n\r\n";
    for body in [format!("{meta}--b--\r\n"), format!("{meta}{empty}--b--\r\n")] {
        let headers = [("Content-Type", "multipart/related; boundary=b")];
        let answer = send(server.address, "POST", "/v1/queue/enqueue", &headers, body.as_bytes()).expect(200);
        assert_eq!(answer.field("payload_bytes"), json!(0));
        let message = take(server.address, "q");
        assert_eq!((message.number("payload_bytes"), message.payload.len()), (0, 0));
        assert_eq!(message.meta["payload_content_type"], "application/octet-stream");
        message.ack().expect(200);
    }
}

/// LQ-4 in small: payloads of every kind of keeping come back as they were, also in chunks that cut everywhere.
pub fn payloads_of_any_size_and_content_come_back_whole(backend: &dyn Backend) {
    let server = queue_server(backend);
    let tricky = b"\r\n--b0undary-of-the-tests\r\n--b\r\r\n--\r\n\r\n--b0undary-of-the-test\r".to_vec();
    let noise = |length: usize| -> Vec<u8> { std::iter::repeat_with(|| fastrand::u8(..)).take(length).collect() };
    let payloads = [
        b"\r".to_vec(),
        noise(4 * 1024),
        noise(4 * 1024 + 1),
        noise(300_000),
        noise(5 * MIB),
    ];
    for payload in &payloads {
        let answer = enqueue_with(server.address, &[], &json!({"queue": "q"}), payload).expect(200);
        assert_eq!(answer.field("payload_bytes"), json!(payload.len()));
        let message = take(server.address, "q");
        assert!(message.payload == *payload, "{} bytes", payload.len());
        message.ack().expect(200);
    }
    for chunk in [1, 7, 64, 1000] {
        let mut connection = Connection::open(server.address);
        let body = enqueue_body("other", "{\"queue\":\"q\"}", &tricky);
        connection.send(
            b"POST /v1/queue/enqueue HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\
              Content-Type: multipart/related; boundary=other\r\n\r\n",
        );
        connection.send(&chunked(&body, chunk));
        connection.read_answer().expect(200);
        let message = take(server.address, "q");
        assert_eq!(message.payload, tricky);
        message.ack().expect(200);
    }
}

/// LQ-5, LQ-6.
pub fn what_an_enqueue_does_not_say_has_a_default(backend: &dyn Backend) {
    let server = queue_server(backend);
    let zero = json!({"queue": "q", "namespace": null, "delay_seconds": 0, "visibility_timeout_seconds": 0,
        "ttl_seconds": 0, "max_attempts": 0, "payload_content_type": ""});
    let negative = json!({"queue": "q", "delay_seconds": -1, "visibility_timeout_seconds": -1, "ttl_seconds": -1,
        "max_attempts": -1});
    for meta in [json!({"queue": "q"}), zero, negative] {
        let answer = enqueue_with(server.address, &[], &meta, b"x").expect(200);
        assert_eq!(answer.field("max_attempts"), json!(5));
        assert_eq!(answer.field("visibility_timeout_seconds"), json!(30));
        let message = take(server.address, "q");
        assert_eq!(message.meta["namespace"], "default");
        // The head of the payload part says text/plain, which does not count.
        assert_eq!(message.meta["payload_content_type"], "application/octet-stream");
        assert_eq!(message.meta.get("attributes"), None);
        assert_eq!(message.meta.get("failure_attempts"), None);
        message.ack().expect(200);
    }
    let meta = json!({"queue": "q", "payload_content_type": " application/x-thing; v=1 ", "max_attempts": 9,
        "visibility_timeout_seconds": 7});
    let answer = enqueue_with(server.address, &[], &meta, b"x").expect(200);
    assert_eq!(answer.field("visibility_timeout_seconds"), json!(7));
    let message = take(server.address, "q");
    assert_eq!(message.meta["payload_content_type"], "application/x-thing; v=1");
    assert_eq!(message.number("max_attempts"), 9);
    let sneaky = json!({"queue": "q", "payload_content_type": "text/plain\r\nX-Evil: 1"});
    let answer = enqueue_with(server.address, &[], &sneaky, b"x");
    assert_eq!(answer.error(), (400, "invalid_body".to_owned()));
}

/// LQ-36: a client written in C takes descriptions of up to 4095 bytes. Only attributes may make one longer, however long all
/// else is.
pub fn a_description_without_attributes_is_short(backend: &dyn Backend) {
    const META_BYTES_MAX: usize = 4095;
    let server = queue_server(backend);
    let long = |letter: &str| letter.repeat(128);
    let correlation_id = long("~");
    let meta = json!({"namespace": long("n"), "queue": long("q"), "payload_content_type": format!("x/{}", long("t")),
        "max_attempts": i32::MAX, "visibility_timeout_seconds": i32::MAX});
    enqueue_with(server.address, &[("X-Correlation-Id", &correlation_id)], &meta, b"x").expect(200);
    let mut wish = wish(&long("q"));
    wish["namespace"] = json!(long("n"));
    let answer = post(server.address, "dequeueWithState", &wish).expect(200);
    let body = String::from_utf8(answer.body).unwrap();
    let (_, description) = body.split_once("\r\n\r\n").unwrap();
    let (description, _) = description.split_once("\r\n--").unwrap();
    assert!(
        description.contains(&correlation_id) && description.ends_with("}\n"),
        "{description}"
    );
    assert!(description.len() <= META_BYTES_MAX, "{} bytes", description.len());
}

/// LQ-7.
pub fn attributes_come_back_as_they_were(backend: &dyn Backend) {
    let server = queue_server(backend);
    let attributes =
        json!({"a": 1, "b": [true, null, {"c": "\u{fc}\"\\\n"}], "d": 9007199254740991_i64, "e": -0.5, "": {}});
    enqueue_meta(server.address, &json!({"queue": "q", "attributes": attributes}), b"x");
    assert_eq!(take(server.address, "q").meta["attributes"], attributes);
    enqueue_meta(server.address, &json!({"queue": "q", "attributes": {}}), b"x");
    assert_eq!(take(server.address, "q").meta.get("attributes"), None);
}

/// LQ-8, LQ-9, LQ-10, LQ-11.
pub fn requests_are_strict_where_it_matters(backend: &dyn Backend) {
    let server = queue_server(backend);
    let raw = |endpoint: &str, query: &str, body: &str| {
        let path = format!("/v1/queue/{endpoint}{query}");
        send(server.address, "POST", &path, &[], body.as_bytes())
    };
    let unknown = json!({"queue": "other", "colour": 7});
    enqueue_with(server.address, &[], &unknown, b"x").expect(200);
    for endpoint in [
        "dequeue",
        "dequeueWithState",
        "subscribe",
        "subscribeWithState",
        "ack",
        "nack",
        "extend",
        "stats",
        "watch",
    ] {
        for body in ["{\"colour\":7}", "{\"queue\":\"q\"} {}", "{\"queue\":7}", "[]", "{"] {
            let answer = raw(endpoint, "", body);
            assert_eq!(answer.error(), (400, "invalid_body".to_owned()), "{endpoint} {body}");
            let detail = answer.field("detail");
            assert!(
                detail.as_str().unwrap().starts_with("failed to parse request:"),
                "{detail}"
            );
        }
    }
    enqueue(server.address, "q", b"x");
    raw("dequeue", "?queue=Q&owner=w", "").expect(200);
    raw("stats", "?queue=q", "").expect(200);
    for endpoint in ["ack", "nack", "extend"] {
        assert_eq!(raw(endpoint, "?queue=q", "").error(), (400, "invalid_body".to_owned()));
    }
    let ids = json!({"queue": "q", "message_id": "x", "lease_id": "l"});
    let without = |name: &str| {
        let mut body = ids.clone();
        body[name] = json!(" ");
        body
    };
    let with = |name: &str, value: &str| {
        let mut body = ids.clone();
        body[name] = json!(value);
        body
    };
    let nobody = json!({"queue": "q"});
    let no_queue = json!({"owner": "w"});
    for (endpoint, body, code) in [
        ("dequeue", no_queue.clone(), "missing_queue"),
        ("subscribe", no_queue, "missing_queue"),
        ("stats", json!({}), "missing_queue"),
        ("watch", json!({}), "missing_queue"),
        ("dequeue", nobody.clone(), "missing_owner"),
        ("subscribeWithState", nobody, "missing_owner"),
        ("ack", without("queue"), "missing_fields"),
        ("ack", without("message_id"), "missing_fields"),
        ("extend", without("lease_id"), "missing_fields"),
        ("nack", ids.clone(), "missing_fields"),
        ("extend", ids.clone(), "missing_fields"),
        ("ack", with("queue", "a/b"), "invalid_queue_key"),
        ("ack", with("message_id", "a b"), "invalid_queue_key"),
        ("stats", json!({"queue": "a b"}), "invalid_queue"),
        ("watch", json!({"queue": "a b"}), "invalid_queue"),
        ("dequeue", json!({"queue": "a b", "owner": "w"}), "invalid_queue"),
        (
            "stats",
            json!({"queue": "q", "namespace": ".txns"}),
            "invalid_namespace",
        ),
        (
            "dequeue",
            json!({"queue": "q", "owner": "w", "txn_id": "no xid"}),
            "invalid_txn",
        ),
    ] {
        assert_eq!(
            post(server.address, endpoint, &body).error(),
            (400, code.to_owned()),
            "{endpoint} {body}"
        );
    }
    assert_eq!(post(server.address, "ack", &ids).error(), (404, "not_found".to_owned()));
    for (meta, code) in [
        (json!({}), "missing_queue"),
        (json!({"queue": "a b"}), "invalid_queue"),
        (json!({"queue": "q", "namespace": "a b"}), "invalid_namespace"),
        (json!({"queue": 7}), "invalid_body"),
    ] {
        let answer = enqueue_with(server.address, &[], &meta, b"x");
        assert_eq!(answer.error(), (400, code.to_owned()), "{meta}");
    }
    for method in ["GET", "PUT", "DELETE"] {
        let answer = send(server.address, method, "/v1/queue/dequeue", &[], b"");
        assert_eq!(answer.status, 405);
        assert_eq!(answer.header("Allow"), Some("POST"));
    }
}

/// LQ-12, LQ-13: ids have their forms, and a queue has one name in any case, as long as any other name.
pub fn names_and_ids_have_one_form(backend: &dyn Backend) {
    let server = queue_server(backend);
    let long = "Q".repeat(128);
    for (asked, name) in [(" Orders ", "orders"), (long.as_str(), &long.to_lowercase())] {
        let answer = enqueue_with(server.address, &[], &json!({"queue": asked}), b"x").expect(200);
        assert_eq!(answer.field("queue"), json!(name));
        assert_eq!(stats(server.address, asked)["available"], true);
        for endpoint in ["dequeue", "dequeueWithState"] {
            let message = dequeue_with(server.address, endpoint, &wish(asked)).unwrap().remove(0);
            assert_eq!(message.meta["queue"], name);
            let id = message.id();
            assert!(id.len() == 36 && &id[14..15] == "7" && id == id.to_lowercase(), "{id}");
            for xid in ["lease_id", "txn_id"] {
                let xid = message.meta[xid].as_str().unwrap();
                assert!(xid.len() == 20 && xid.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'v')));
            }
            let nacked = message.nack(&json!({"queue": asked})).expect(200);
            assert_eq!(nacked.field("requeued"), json!(true));
        }
    }
    let from_query = send(
        server.address,
        "POST",
        "/v1/queue/enqueue?queue=Byquery&namespace=Other",
        &[("Content-Type", "multipart/related; boundary=b")],
        &enqueue_body("b", "{}", b"x"),
    )
    .expect(200);
    assert_eq!(from_query.field("queue"), json!("byquery"));
    assert_eq!(from_query.field("namespace"), json!("other"));
    // The same name in another namespace is another queue.
    assert_empty(server.address, "byquery");
}

/// LQ-14.
pub fn the_correlation_id_of_the_enqueue_stays_with_the_message(backend: &dyn Backend) {
    let server = queue_server(backend);
    let headers = [("X-Correlation-Id", "c-1")];
    enqueue_with(server.address, &headers, &json!({"queue": "q"}), b"x").expect(200);
    let message = take(server.address, "q");
    let extended = message.extend(40).expect(200);
    let etag = extended.field("meta_etag");
    let nacked = message.nack(&json!({"meta_etag": etag})).expect(200);
    let again = take(server.address, "q");
    let acked = again.ack().expect(200);
    for answer in [&extended, &nacked, &acked] {
        assert_eq!(answer.header("X-Correlation-Id"), Some("c-1"));
        assert_eq!(answer.field("correlation_id"), json!("c-1"));
    }
    assert_eq!(
        (&message.meta["correlation_id"], &again.meta["correlation_id"]),
        (&json!("c-1"), &json!("c-1"))
    );
    // Other answers have the id of their request.
    let stats = send(
        server.address,
        "POST",
        "/v1/queue/stats",
        &[("X-Correlation-Id", "s-1")],
        b"{\"queue\":\"q\"}",
    );
    assert_eq!(stats.header("X-Correlation-Id"), Some("s-1"));
    assert_eq!(stats.field("correlation_id"), json!("s-1"));
    let failed = send(
        server.address,
        "POST",
        "/v1/queue/ack",
        &[("X-Correlation-Id", "e-1")],
        b"{}",
    );
    assert_eq!(failed.header("X-Correlation-Id"), Some("e-1"));
}

/// LQ-15, LQ-16.
pub fn an_empty_queue_is_told_in_time(backend: &dyn Backend) {
    let server = queue_server(backend);
    for wait in [-1, -7] {
        let began = Instant::now();
        let answer = post(server.address, "dequeue", &wish_waiting("q", wait)).expect(409);
        assert!(began.elapsed() < Duration::from_secs(1));
        assert_eq!(answer.code(), "waiting");
        assert_eq!(answer.field("detail"), json!("no messages available"));
        assert_eq!(answer.field("retry_after_seconds"), Value::Null);
        assert_eq!(answer.header("Retry-After"), None);
    }
    for endpoint in ["dequeue", "dequeueWithState", "subscribe", "subscribeWithState"] {
        let began = Instant::now();
        let answer = post(server.address, endpoint, &wish_waiting("q", 1)).expect(409);
        assert!(Duration::from_millis(990) <= began.elapsed());
        assert_eq!(answer.field("retry_after_seconds"), json!(1));
        assert_eq!(answer.header("Retry-After"), Some("1"));
    }
}

/// LQ-17, LQ-18: whoever waits without limit gets the message when it comes, and costs nothing once its client has gone.
pub fn a_dequeue_waits_until_a_message_comes_or_its_client_goes(backend: &dyn Backend) {
    let server = queue_server(backend);
    let mut first = Stream::request(server.address, "dequeue", &wish_waiting("q", 0));
    let second = Stream::request(server.address, "dequeue", &wish_waiting("q", 0));
    wait_until("both wait", || stats(server.address, "q")["waiting_consumers"] == 2);
    assert!(first.is_silent_for(Duration::from_millis(50)));
    assert_eq!(stats(server.address, "q")["total_consumers"], 2);
    second.abort();
    wait_until("the one that has gone is noticed", || {
        stats(server.address, "q")["waiting_consumers"] == 1
    });
    enqueue(server.address, "q", b"x");
    let answer = first.read_answer().expect(200);
    assert_eq!(deliveries(server.address, &answer).len(), 1);
    wait_until("nobody is left", || stats(server.address, "q")["total_consumers"] == 0);
}

/// A consumer that has gone is granted nothing, even before anybody has noticed that it has: the message goes to another.
pub fn nothing_is_delivered_to_a_client_that_has_gone(backend: &dyn Backend) {
    let server = queue_server(backend);
    for endpoint in ["dequeue", "subscribe"] {
        let gone = Stream::request(server.address, endpoint, &wish_waiting("q", 0));
        wait_until("it waits", || stats(server.address, "q")["waiting_consumers"] == 1);
        gone.abort();
        enqueue(server.address, "q", b"x");
        let message = take(server.address, "q");
        assert_eq!(message.number("attempts"), 1);
        message.ack().expect(200);
    }
}

/// A client that aborts may come again from the same port before anybody has noticed that it had gone. It does not wait for
/// what it asked for before, and what it asked for before gets nothing.
pub fn a_client_that_comes_again_from_the_same_port_is_another_client(backend: &dyn Backend) {
    let server = queue_server(backend);
    let acquire = |key: &str| json!({"key": key, "owner": "w", "ttl_seconds": 30}).to_string();
    let held = super::lockd_calls::hold(server.address, "k");
    for (path, body) in [
        ("/v1/queue/dequeue", wish_waiting("q", 0).to_string()),
        ("/v1/queue/subscribe", wish_waiting("q", 0).to_string()),
        ("/v1/acquire", acquire("k")),
    ] {
        let mut first = Connection::open_from(0, server.address);
        let port = first.socket().local_addr().unwrap().port();
        first.send_request("POST", path, &[], body.as_bytes());
        server.wait_until_waiting(1);
        first.abort();
        let mut second = Connection::open_from(port, server.address);
        let began = Instant::now();
        second.ask("GET", "/healthz", &[], b"").expect(200);
        assert!(began.elapsed() < Duration::from_secs(4), "{path}");
        if path == "/v1/acquire" {
            held.release().expect(200);
            super::lockd_calls::hold(server.address, "k");
        } else {
            enqueue(server.address, "q", b"x");
            take(server.address, "q").ack().expect(200);
        }
        server.wait_until_waiting(0);
        second.ask("GET", "/healthz", &[], b"").expect(200);
    }
}

/// What could not be written whole is given back, and comes again without waiting for its lease to lapse.
pub fn a_delivery_that_breaks_off_comes_again_at_once(backend: &dyn Backend) {
    let server = queue_server(backend);
    let large = vec![b'x'; 16 * MIB];
    for count in [1, 2] {
        for _ in 0..count {
            enqueue(server.address, "q", &large);
        }
        let mut body = wish_waiting("q", 0);
        body["page_size"] = json!(count);
        let mut breaks_off = Stream::request(server.address, "dequeue", &body);
        breaks_off.try_read_head().unwrap().expect(200);
        breaks_off.abort();
        for _ in 0..count {
            let message = take(server.address, "q");
            assert_eq!(message.number("attempts"), 2);
            message.ack().expect(200);
        }
    }
}

/// A client that does not understand chunks gets its answer up to the end of the connection.
pub fn a_client_of_http_1_0_is_served_without_chunks(backend: &dyn Backend) {
    let server = queue_server(backend);
    let large = vec![b'x'; 100_000];
    enqueue(server.address, "q", &large);
    let body = wish("q").to_string();
    let mut connection = Connection::open(server.address);
    let head = format!(
        "POST /v1/queue/dequeue HTTP/1.0\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.send(format!("{head}{body}").as_bytes());
    let mut answer = connection.try_read_head().unwrap().expect(200);
    assert_eq!(answer.header("Transfer-Encoding"), None);
    assert_eq!(answer.header("Content-Length"), None);
    assert_eq!(answer.header("Connection"), Some("close"));
    answer.body = connection.read_to_the_end();
    let message = deliveries(server.address, &answer).remove(0);
    assert!(message.payload == large);
    message.ack().expect(200);
}

/// LQ-21, LQ-22.
pub fn a_page_holds_what_is_there_up_to_its_size(backend: &dyn Backend) {
    let server = queue_server(backend);
    let page = |size: i64, wait: i64| {
        let mut body = wish_waiting("q", wait);
        body["page_size"] = json!(size);
        dequeue_with(server.address, "dequeue", &body).unwrap()
    };
    for number in 0..70 {
        enqueue(server.address, "q", format!("{number}").as_bytes());
    }
    assert_eq!(page(0, -1).len(), 1);
    assert_eq!(page(-3, -1).len(), 1);
    let three = page(3, -1);
    assert_eq!(three.len(), 3);
    let rest = page(74, 5);
    assert_eq!(rest.len(), 64);
    for (number, message) in rest.iter().enumerate() {
        let files = (format!("meta-{number}.json"), format!("payload-{number}"));
        assert_eq!(message.files, Some(files));
        assert_eq!(message.payload, format!("{}", number + 5).as_bytes());
    }
    for name in ["message_id", "lease_id", "txn_id"] {
        let mut all: Vec<_> = rest.iter().map(|message| message.meta[name].to_string()).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 64, "{name}");
    }
    assert_eq!(page(10, -1).len(), 1);
    assert_empty(server.address, "q");
    rest[0].nack(&json!({})).expect(200);
    // With state there is always one.
    let mut body = wish("q");
    body["page_size"] = json!(10);
    rest[1].nack(&json!({})).expect(200);
    assert_eq!(
        dequeue_with(server.address, "dequeueWithState", &body).unwrap().len(),
        1
    );
    assert_eq!(page(10, 1).len(), 1);
}

/// A page waits a little for more once it has begun.
pub fn a_page_that_has_begun_waits_a_moment_for_more(backend: &dyn Backend) {
    let server = queue_server(backend);
    let mut body = wish_waiting("q", 20);
    body["page_size"] = json!(8);
    let mut waiting = Stream::request(server.address, "dequeue", &body);
    wait_until("it waits", || stats(server.address, "q")["waiting_consumers"] == 1);
    enqueue(server.address, "q", b"1");
    let messages = deliveries(server.address, &waiting.read_answer().expect(200));
    // How many come in that moment nobody knows; that it ends is the claim.
    assert!(!messages.is_empty());
}

/// LQ-23.
pub fn a_visibility_timeout_has_a_default_and_a_maximum(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"x");
    for (asked, applied) in [(0, 30), (-5, 30), (7, 7), (3_600, 120)] {
        let mut body = wish("q");
        body["visibility_timeout_seconds"] = json!(asked);
        let message = dequeue_with(server.address, "dequeue", &body).unwrap().remove(0);
        assert_eq!(message.number("visibility_timeout_seconds"), applied);
        assert_eq!(
            message.number("not_visible_until_unix"),
            message.number("lease_expires_at_unix")
        );
        message.nack(&json!({"intent": "defer"})).expect(200);
    }
}

/// LQ-24.
pub fn of_five_consumers_one_gets_the_message(backend: &dyn Backend) {
    let server = queue_server(backend);
    let address = server.address;
    enqueue(address, "q", b"x");
    let consumers: Vec<_> = (0..5)
        .map(|_| thread::spawn(move || dequeue_with(address, "dequeue", &wish_waiting("q", 1))))
        .collect();
    let outcomes: Vec<_> = consumers.into_iter().map(|thread| thread.join().unwrap()).collect();
    let (got, not): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!((got.len(), not.len()), (1, 4));
    for answer in not {
        assert_eq!(answer.unwrap_err().error(), (409, "waiting".to_owned()));
    }
    got.into_iter()
        .flatten()
        .flatten()
        .for_each(|message| drop(message.ack().expect(200)));
    assert_empty(address, "q");
}

/// LQ-25.
pub fn messages_come_out_in_the_order_they_went_in(backend: &dyn Backend) {
    let server = queue_server(backend);
    let ids: Vec<_> = (0..100).map(|_| enqueue(server.address, "q", b"x")).collect();
    let mut sorted = ids.clone();
    sorted.sort();
    assert_eq!(ids, sorted);
    for id in ids {
        let message = take(server.address, "q");
        assert_eq!(message.id(), id);
        message.ack().expect(200);
    }
}

/// LQ-26.
pub fn a_delayed_message_comes_when_it_is_due(backend: &dyn Backend) {
    let server = queue_server_with(backend, |options| {
        options.settings.queue.poll_interval = Duration::from_secs(300);
    });
    let began = Instant::now();
    let mut waiting = Stream::request(server.address, "dequeue", &wish_waiting("q", 20));
    wait_until("it waits", || stats(server.address, "q")["waiting_consumers"] == 1);
    enqueue_meta(server.address, &json!({"queue": "q", "delay_seconds": 2}), b"x");
    assert_empty(server.address, "q");
    waiting.read_answer().expect(200);
    assert!(Duration::from_millis(1_900) <= began.elapsed());
    // Long before the poll interval, and before the patience of the consumer ends.
    assert!(began.elapsed() < Duration::from_secs(15));
}

/// LQ-27.
pub fn more_consumers_than_the_limit_are_refused(backend: &dyn Backend) {
    let server = queue_server_with(backend, |options| options.settings.queue.max_consumers = 2);
    let waiting: Vec<_> = (0..2)
        .map(|_| Stream::request(server.address, "dequeue", &wish_waiting("q", 0)))
        .collect();
    wait_until("both wait", || stats(server.address, "q")["waiting_consumers"] == 2);
    for endpoint in ["dequeue", "subscribe"] {
        let answer = post(server.address, endpoint, &wish("other"));
        assert_eq!(answer.error(), (503, "queue_busy".to_owned()));
        assert_eq!(answer.field("detail"), json!("too many consumers"));
    }
    waiting.into_iter().for_each(Connection::abort);
    until_some("seats are free again", || {
        (post(server.address, "dequeue", &wish("other")).status == 409).then_some(())
    });
}

/// LQ-66.
pub fn stats_tell_of_a_queue_and_change_nothing(backend: &dyn Backend) {
    let server = queue_server(backend);
    let empty = stats(server.address, "q");
    assert_eq!(empty["available"], false);
    for name in [
        "head_message_id",
        "head_enqueued_at_unix",
        "head_not_visible_until_unix",
        "head_age_seconds",
    ] {
        assert_eq!(empty.get(name), None, "{name}");
    }
    for name in ["waiting_consumers", "pending_candidates", "total_consumers"] {
        assert_eq!(empty[name], 0, "{name}");
    }
    assert_eq!(empty["has_active_watcher"], false);
    let first = enqueue(server.address, "q", b"1");
    let second = enqueue(server.address, "q", b"2");
    for _ in 0..3 {
        let stats = stats(server.address, "q");
        assert_eq!(
            (&stats["available"], &stats["head_message_id"]),
            (&json!(true), &json!(first))
        );
        assert!(
            stats["head_enqueued_at_unix"].as_i64().unwrap() <= stats["head_not_visible_until_unix"].as_i64().unwrap()
        );
    }
    let message = take(server.address, "q");
    assert_eq!((message.id(), message.number("attempts")), (first, 1));
    assert_eq!(stats(server.address, "q")["head_message_id"], json!(second));
    message.ack().expect(200);
    take(server.address, "q").ack().expect(200);
    assert_eq!(stats(server.address, "q")["available"], false);
    let waiting = Stream::request(server.address, "dequeue", &wish_waiting("q", 0));
    wait_until("it waits", || stats(server.address, "q")["waiting_consumers"] == 1);
    let listens = stats(server.address, "q")["has_active_watcher"] == true;
    let can = backend.queue_mode() == Mode::Feed && server.server.store().capabilities().feed;
    assert_eq!(listens, can);
    drop(waiting);
}

/// A client that asks without waiting, over and over, is answered quickly each time.
pub fn a_client_that_spins_is_answered_cheaply(backend: &dyn Backend) {
    let server = queue_server(backend);
    let mut connection = Connection::open(server.address);
    let body = wish("q").to_string();
    // Everything of the backlog is leased, so that a look at the store would have a lot to read.
    let mut wish_for_long = wish_waiting("q", 10);
    wish_for_long["visibility_timeout_seconds"] = json!(120);
    for _ in 0..30 {
        enqueue(server.address, "q", b"x");
        take_by(server.address, "dequeue", &wish_for_long);
    }
    for _ in 0..500 {
        let answer = connection.ask("POST", "/v1/queue/dequeue", &[], body.as_bytes());
        assert_eq!(answer.error(), (409, "waiting".to_owned()));
    }
}
