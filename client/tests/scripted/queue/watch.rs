//! Watching a queue, and its statistics.

use std::io::Write;
use std::time::Duration;

use lockd_client::{CallOptions, CancelToken, Error};
use serde_json::json;

use super::{chunk, stream_head, until_gone};
use crate::support::{Reply, Server, client_of, eventually, refusal};

const EVENTS: &str = "text/event-stream";

fn told(available: bool, head: &str) -> String {
    let head = match head {
        "" => String::new(),
        id => format!(r#""head_message_id":"{id}","#),
    };
    format!(
        "id: 1\nevent: queue_watch\ndata: {{\"namespace\":\"default\",\"queue\":\"invoices\",\"available\":{available},{head}\"changed_at_unix\":1790000017,\"correlation_id\":\"corr-7f31\"}}\n\n"
    )
}

/// CL-42: events come out one by one, everything else is passed over, and a stream that has ended is opened again.
#[test]
fn a_watch_tells_the_changes_and_connects_again() {
    let server = Server::start(|seen| {
        let first = seen.index == 0;
        Reply::live(move |stream| {
            stream_head(stream, EVENTS);
            match first {
                true => {
                    chunk(stream, told(false, "").as_bytes());
                    chunk(stream, b": keepalive\n\nevent: other\ndata: {}\n\n");
                    let text = told(true, "msg-1");
                    let (start, rest) = text.split_at(40);
                    chunk(stream, start.as_bytes());
                    chunk(stream, rest.as_bytes());
                    let _ = stream.write_all(b"0\r\n\r\n");
                }
                false => {
                    chunk(stream, told(false, "").as_bytes());
                    until_gone(stream);
                }
            }
        })
    });
    let client = client_of(&[&server]).build().unwrap();
    let mut watch = client.watch_queue("invoices").unwrap();
    assert!(server.seen().is_empty());
    let first = watch.next().unwrap().unwrap();
    assert_eq!((first.available, first.head_message_id.as_str()), (false, ""));
    let second = watch.next().unwrap().unwrap();
    assert_eq!((second.available, second.head_message_id.as_str()), (true, "msg-1"));
    assert_eq!(
        (second.queue.as_str(), second.changed_at_unix),
        ("invoices", 1_790_000_017)
    );
    assert_eq!(second.correlation_id, "corr-7f31");
    assert!(!watch.next().unwrap().unwrap().available);
    drop(watch);
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].path, "/v1/queue/watch");
    assert_eq!(
        String::from_utf8(seen[0].body.clone()).unwrap(),
        r#"{"namespace":"default","queue":"invoices"}"#
    );
    assert_eq!(seen[0].header("accept"), Some(EVENTS));
}

/// A stream that breaks off is opened again like one that ends; only when nobody answers it is over.
#[test]
fn a_watch_survives_a_broken_connection() {
    let server = Server::start(|seen| {
        let rounds = seen.index;
        Reply::live(move |stream| {
            stream_head(stream, EVENTS);
            chunk(stream, told(rounds == 1, "").as_bytes());
            let _ = stream.write_all(b"9999\r\nhalf");
        })
    });
    let client = client_of(&[&server]).build().unwrap();
    let seen: Vec<bool> = client
        .watch_queue("invoices")
        .unwrap()
        .take(3)
        .map(|event| event.unwrap().available)
        .collect();
    assert_eq!(seen, [false, true, false]);
}

#[test]
fn a_watch_ends_with_the_first_error() {
    let events = |reply: fn() -> Reply| {
        let server = Server::start(move |_| reply());
        let client = client_of(&[&server]).build().unwrap();
        let all: Vec<_> = client.watch_queue("invoices").unwrap().take(5).collect();
        assert_eq!(all.len(), 1, "nothing comes after an error");
        all.into_iter().next().unwrap().unwrap_err()
    };
    assert_eq!(events(|| refusal(400, "invalid_queue")).code(), Some("invalid_queue"));
    let undecodable = events(|| {
        Reply::live(|stream| {
            stream_head(stream, EVENTS);
            chunk(stream, b"data: {\"available\":\n\n");
            until_gone(stream);
        })
    });
    assert!(matches!(undecodable, Error::BadAnswer { .. }), "{undecodable}");
    let foreign = events(|| Reply::json(200, "{}"));
    assert!(matches!(foreign, Error::BadAnswer { .. }), "{foreign}");
}

#[test]
fn a_watch_obeys_token_and_deadline() {
    let server = Server::start(|_| {
        Reply::live(|stream| {
            stream_head(stream, EVENTS);
            until_gone(stream);
        })
    });
    let client = client_of(&[&server]).build().unwrap();
    let bound = client.with_options(CallOptions::new().timeout(Duration::from_millis(200)));
    let last = bound.watch_queue("invoices").unwrap().last().unwrap();
    assert!(matches!(last, Err(Error::DeadlineExceeded)), "{last:?}");

    let token = CancelToken::new();
    let bound = client.with_options(CallOptions::new().cancel(token.clone()));
    let last = std::thread::scope(|scope| {
        let watching = scope.spawn(move || bound.watch_queue("invoices").unwrap().last().unwrap());
        eventually("the server was asked", || server.seen().len() == 2);
        token.cancel();
        watching.join().unwrap()
    });
    assert!(matches!(last, Err(Error::Cancelled)), "{last:?}");
}

#[test]
fn statistics_are_asked_for_and_decoded() {
    let server = Server::start(|seen| match seen.index {
        0 => Reply::json(
            200,
            r#"{"namespace":"default","queue":"invoices","waiting_consumers":1,"pending_candidates":2,"total_consumers":3,"has_active_watcher":true,"available":true,"head_message_id":"msg-1","head_enqueued_at_unix":1790000000,"head_not_visible_until_unix":1790000001,"head_age_seconds":7,"correlation_id":"corr-7f30"}"#,
        ),
        _ => refusal(400, "invalid_queue"),
    });
    let client = client_of(&[&server]).build().unwrap();
    let stats = client.queue_stats(" invoices ").unwrap();
    assert_eq!(
        (stats.waiting_consumers, stats.pending_candidates, stats.total_consumers),
        (1, 2, 3)
    );
    assert!(stats.has_active_watcher && stats.available);
    assert_eq!((stats.head_message_id.as_str(), stats.head_age_seconds), ("msg-1", 7));
    assert_eq!(
        server.one_at("/v1/queue/stats").json(),
        json!({"namespace": "default", "queue": "invoices"})
    );
    assert_eq!(
        client.queue_stats_in(Some("shop"), "a/b").unwrap_err().code(),
        Some("invalid_queue")
    );
    assert_eq!(server.seen()[1].json()["namespace"], "shop");
    assert_eq!(
        client.queue_stats("").unwrap_err().to_string(),
        "lockd: queue is required"
    );
}
