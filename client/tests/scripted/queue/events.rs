//! CL-43: names, levels and fields of the events of the queue.

use std::time::Duration;

use lockd_client::{CallOptions, Dequeue, RestartPolicy};
use log::Level::{Error, Info, Trace, Warn};

use super::{CONTENT_TYPE, agreeable, delivered, finish, meta, push, stream_head};
use crate::events::check;
use crate::support::{Recorder, Reply, Server, client_of, dead_url, refusal};

#[test]
fn a_message_is_followed_through_its_life() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/enqueue" => Reply::json(200, r#"{"message_id":"msg-1","attempts":0,"max_attempts":5}"#),
        "/v1/queue/dequeue" => delivered(vec![(meta(1), b"hello")]),
        "/v1/queue/subscribe" => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            push(stream, true, meta(2), b"hello");
            finish(stream);
        }),
        "/v1/queue/stats" => Reply::json(
            200,
            r#"{"queue":"invoices","available":true,"head_message_id":"msg-1"}"#,
        ),
        _ => agreeable(seen),
    });
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let asking = client.with_options(CallOptions::new().correlation_id("mine"));
    asking.enqueue("invoices", "hello").unwrap();
    let message = asking.dequeue("invoices").unwrap();
    message.extend(Duration::from_secs(60)).unwrap();
    message.ack().unwrap();
    client
        .subscribe("invoices", |message| Ok(message.defer(Duration::from_secs(3))?))
        .unwrap();
    client.queue_stats("invoices").unwrap();
    check(
        &recorder,
        &[
            ("client.queue.enqueue.begin", Info, "queue content_type"),
            (
                "client.queue.enqueue.success",
                Info,
                "queue mid attempts max_attempts endpoint",
            ),
            (
                "client.queue.dequeue.begin",
                Info,
                "queue owner stateful visibility_seconds wait_seconds page_size start_after",
            ),
            (
                "client.queue.dequeue.success",
                Info,
                "queue owner stateful endpoint next_cursor messages",
            ),
            ("client.queue.extend.start", Trace, "queue mid extend_seconds"),
            (
                "client.queue.extend.success",
                Trace,
                "queue mid endpoint lease_expires_at_unix",
            ),
            ("client.queue.ack.start", Trace, "queue mid"),
            ("client.queue.ack.success", Trace, "queue mid endpoint"),
            ("client.queue.nack.start", Trace, "queue mid delay_seconds intent"),
            ("client.queue.nack.success", Trace, "queue mid endpoint"),
            (
                "client.queue.subscribe.begin",
                Info,
                "queue owner stateful prefetch wait_seconds",
            ),
            (
                "client.queue.subscribe.complete",
                Info,
                "queue owner stateful endpoint delivered",
            ),
            ("client.queue.stats.start", Trace, "queue namespace"),
            (
                "client.queue.stats.success",
                Trace,
                "queue namespace available head_message_id",
            ),
        ],
    );
    assert_eq!(recorder.one("client.queue.enqueue.begin").field("cid"), "mine");
    assert_eq!(recorder.one("client.queue.ack.success").field("cid"), "corr-1");
    assert_eq!(recorder.one("client.queue.nack.start").field("intent"), "defer");
    assert_eq!(recorder.one("client.queue.subscribe.complete").field("delivered"), "1");
    let posts = recorder.named("client.http.post.start");
    let paths: Vec<&str> = posts.iter().map(|event| event.field("path")).collect();
    assert_eq!(
        paths,
        ["/v1/queue/stats"],
        "no other call of the queue posts in this sense"
    );
}

#[test]
fn refusals_and_dead_servers_are_told() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/queue/dequeue", 0) => delivered(vec![(meta(1), b"hello")]),
        _ => refusal(409, "cas_mismatch"),
    });
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let message = client.dequeue("invoices").unwrap();
    message.ack().unwrap_err();
    message.extend(Duration::ZERO).unwrap_err();
    message.nack(Duration::ZERO).unwrap_err();
    message.detach();
    client.enqueue("invoices", "hello").unwrap_err();
    client.dequeue(Dequeue::from_queue("invoices")).unwrap_err();
    let dead = client_of(&[])
        .endpoint(dead_url())
        .logger(recorder.clone())
        .build()
        .unwrap();
    dead.enqueue("invoices", "hello").unwrap_err();
    let policy = RestartPolicy {
        max_failures: Some(1),
        ..RestartPolicy::default()
    };
    let consumer = lockd_client::Consumer::new("invoices", |_| Ok(())).restart(policy);
    dead.run_consumers([consumer]).unwrap_err();
    check(
        &recorder,
        &[
            ("client.queue.ack.error", Warn, "queue mid endpoint status"),
            ("client.queue.extend.error", Warn, "queue mid endpoint status"),
            ("client.queue.nack.error", Warn, "queue mid endpoint status"),
            ("client.queue.enqueue.error", Warn, "queue endpoint status"),
            ("client.queue.enqueue.transport_error", Error, "queue error"),
            ("client.queue.dequeue.error", Warn, "queue owner endpoint status"),
            (
                "client.consumer.restart",
                Warn,
                "consumer queue stateful attempt restart_in error",
            ),
            ("client.consumer.stop", Error, "consumer queue stateful attempt error"),
        ],
    );
    assert!(!recorder.has("client.queue.dequeue.transport_error"));
    assert_eq!(recorder.one("client.consumer.restart").field("restart_in"), "0s");
}
