//! Consumers: subscriptions that are taken up again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lockd_client::{CallOptions, CancelToken, Consumer, Dequeue, Error, RestartPolicy};

use super::{CONTENT_TYPE, Gate, agreeable, finish, meta, push, stream_head, until_gone};
use crate::support::{Recorder, Reply, Seen, Server, client_of, eventually, refusal};

/// Restarts that cost no time.
fn hasty() -> RestartPolicy {
    RestartPolicy {
        immediate_retries: 1,
        base: Duration::from_millis(20),
        ..RestartPolicy::default()
    }
}

/// One message per subscription, which then stays open.
fn one_and_open(seen: &Seen) -> Reply {
    match seen.path.as_str() {
        "/v1/queue/subscribe" => {
            let number = seen.index as u32 + 1;
            Reply::live(move |stream| {
                stream_head(stream, CONTENT_TYPE);
                push(stream, true, meta(number), b"hello");
                until_gone(stream);
            })
        }
        _ => agreeable(seen),
    }
}

#[test]
fn consumers_are_checked_before_they_start() {
    let server = Server::start(one_and_open);
    let client = client_of(&[&server]).build().unwrap();
    let error = client.run_consumers([]).unwrap_err();
    assert_eq!(error.to_string(), "lockd: at least one consumer config is required");
    let pair = [Consumer::new("a", |_| Ok(())), Consumer::new(" ", |_| Ok(()))];
    let error = client.run_consumers(pair).unwrap_err();
    assert_eq!(error.to_string(), "lockd: consumer config[1] queue is required");
    let nameless = Consumer::new(Dequeue::from_queue("a").owner(" "), |_| Ok(()));
    assert!(client.run_consumers([nameless]).is_err());
    assert!(server.seen().is_empty());
}

/// Every worker has an owner of its own, and all share one handler.
#[test]
fn workers_share_a_handler_and_no_owner() {
    let server = Server::start(one_and_open);
    let client = client_of(&[&server]).build().unwrap();
    let handled = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&handled);
    let consumer = Consumer::new("invoices", move |message| {
        counter.fetch_add(1, Ordering::SeqCst);
        message.ack()?;
        Ok(())
    })
    .name("billing / eu")
    .workers(3);
    let running = client.start_consumers([consumer]).unwrap();
    eventually("all have handled one", || {
        handled.load(Ordering::SeqCst) == 3 && server.seen_at("/v1/queue/ack").len() == 3
    });
    running.stop();
    running.wait().unwrap();
    let owners: BTreeSet<String> = server
        .seen_at("/v1/queue/subscribe")
        .iter()
        .map(|seen| seen.json()["owner"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(owners.len(), 3, "{owners:?}");
    let pid = std::process::id();
    for owner in &owners {
        assert!(owner.starts_with("consumer-billing-eu-"), "{owner}");
        assert!(owner.contains(&format!("-{pid}-")), "{owner}");
    }
    assert!(server.seen_at("/v1/queue/nack").is_empty());
}

/// CL-41: a failure is counted, told to the error handler, and got over; a subscription that ends well begins a new count.
#[test]
fn a_failed_subscription_is_taken_up_again() {
    let server = Server::start(|seen| {
        let subscriptions = seen.index;
        match (seen.path.as_str(), subscriptions) {
            ("/v1/queue/subscribe", 0 | 1) => refusal(500, "internal_error"),
            ("/v1/queue/subscribe", 2) => Reply::live(|stream| {
                stream_head(stream, CONTENT_TYPE);
                push(stream, true, meta(1), b"hello");
                finish(stream);
            }),
            ("/v1/queue/subscribe", 4) => refusal(500, "internal_error"),
            _ => one_and_open(seen),
        }
    });
    let (client, failures) = (client_of(&[&server]).build().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let hooks = Arc::new(Mutex::new(Vec::new()));
    let (noted, started, ended) = (Arc::clone(&failures), Arc::clone(&hooks), Arc::clone(&hooks));
    let consumer = Consumer::new("invoices", |message| Ok(message.ack()?))
        .restart(hasty())
        .on_error(move |failure| {
            assert_eq!((failure.consumer, failure.queue), ("invoices", "invoices"));
            assert!(!failure.with_state);
            let status = failure.error.status();
            noted
                .lock()
                .unwrap()
                .push((failure.attempt, failure.restart_in, status));
            Ok(())
        })
        .on_start(move |attempt| started.lock().unwrap().push(format!("start {attempt}")))
        .on_stop(move |attempt, error| {
            ended
                .lock()
                .unwrap()
                .push(format!("stop {attempt} {}", error.is_some()));
        });
    let running = client.start_consumers([consumer]).unwrap();
    eventually("both messages are done", || server.seen_at("/v1/queue/ack").len() == 2);
    running.stop();
    running.wait().unwrap();
    let pause = Duration::from_millis(20);
    assert_eq!(
        *failures.lock().unwrap(),
        [
            (1, Duration::ZERO, Some(500)),
            (2, pause, Some(500)),
            (1, Duration::ZERO, Some(500))
        ]
    );
    assert_eq!(
        *hooks.lock().unwrap(),
        [
            "start 1",
            "stop 1 true",
            "start 2",
            "stop 2 true",
            "start 3",
            "stop 3 false",
            "start 4",
            "stop 4 true",
            "start 5",
            "stop 5 false"
        ]
    );
}

/// CL-41: a refusal that will not change ends the consumer after one attempt, and the others with it.
#[test]
fn a_refusal_for_good_ends_all_consumers() {
    for (status, code) in [(403, "namespace_forbidden"), (401, ""), (400, "permission_denied")] {
        let server = Server::start(move |seen| match seen.json()["queue"].as_str() {
            Some("invoices") => refusal(status, code),
            _ => Reply::Silence,
        });
        let (client, recorder) = (client_of(&[&server]), Recorder::shared());
        let client = client.logger(recorder.clone()).build().unwrap();
        let other = Consumer::new("orders", |_| Ok(()));
        let error = client
            .run_consumers([Consumer::new("invoices", |_| Ok(())).name("billing"), other])
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("lockd: consumer \"billing\" queue \"invoices\" non-retryable error: "),
            "{text}"
        );
        assert_eq!(error.status(), Some(status));
        let asked = server.seen();
        assert_eq!(
            asked.iter().filter(|seen| seen.json()["queue"] == "invoices").count(),
            1
        );
        assert_eq!(recorder.one("client.consumer.stop").field("attempt"), "1");
        assert!(!recorder.has("client.consumer.restart"));
    }
}

/// What a handler met with its message says nothing about the subscription, whatever the status was.
#[test]
fn a_refused_ack_is_no_reason_to_give_up() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/queue/ack", 1) => refusal(403, "lease_expired"),
        _ => one_and_open(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let consumer = Consumer::new("invoices", |message| Ok(message.ack()?)).restart(hasty());
    let running = client.start_consumers([consumer]).unwrap();
    eventually("the second message is done", || {
        server.seen_at("/v1/queue/ack").len() == 2
    });
    running.stop();
    running.wait().unwrap();
}

#[test]
fn a_consumer_gives_up_after_too_many_failures() {
    let server = Server::start(|_| refusal(500, "internal_error"));
    let (client, recorder) = (client_of(&[&server]), Recorder::shared());
    let client = client.logger(recorder.clone()).build().unwrap();
    let policy = RestartPolicy {
        max_failures: Some(2),
        ..RestartPolicy::default()
    };
    let consumer = Consumer::new("invoices", |_| Ok(())).restart(policy);
    let error = client.run_consumers([consumer]).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("lockd: consumer \"invoices\" queue \"invoices\" exceeded max failures (2): "),
        "{text}"
    );
    assert!(matches!(&error, Error::Consumer(end) if end.consumer == "invoices"));
    assert_eq!(server.seen().len(), 3);
    assert_eq!(recorder.named("client.consumer.restart").len(), 2);
}

/// CL-41: a panic of the handler or a hook counts as a failure and nothing more; an error handler that fails ends everything.
#[test]
fn panics_are_contained_and_the_error_handler_decides() {
    let server = Server::start(one_and_open);
    let client = client_of(&[&server]).build().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&told);
    let consumer = Consumer::new("invoices", |_| panic!("on fire"))
        .restart(hasty())
        .on_start(|attempt| assert!(attempt != 2, "hook on fire"))
        .on_error(move |failure| {
            noted.lock().unwrap().push(failure.error.to_string());
            match failure.attempt {
                3 => Err("enough".into()),
                _ => Ok(()),
            }
        });
    let error = client.run_consumers([consumer]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "lockd: consumer \"invoices\" queue \"invoices\" error handler: enough"
    );
    assert_eq!(
        *told.lock().unwrap(),
        [
            "lockd: consumer message handler panic: on fire",
            "lockd: consumer start hook panic: hook on fire",
            "lockd: consumer message handler panic: on fire"
        ]
    );
    assert_eq!(
        server.seen_at("/v1/queue/nack").len(),
        2,
        "unsettled messages are given back"
    );
}

/// A stop takes no more messages and lets the handlers finish, acknowledgement included.
#[test]
fn a_stop_lets_handlers_finish() {
    let server = Server::start(one_and_open);
    let client = client_of(&[&server]).build().unwrap();
    let (gate, working) = (Gate::default(), Gate::default());
    let (opened, at_work) = (gate.clone(), working.clone());
    let consumer = Consumer::new("invoices", move |message| {
        at_work.open();
        opened.wait();
        assert!(!message.cancel_token().is_cancelled());
        message.ack()?;
        Ok(())
    });
    let running = client.start_consumers([consumer]).unwrap();
    working.wait();
    running.stop();
    // Before the ack makes the server send the next one.
    eventually("the stream is closed", || server.ended() == 1);
    gate.open();
    running.wait().unwrap();
    assert_eq!(server.seen_at("/v1/queue/ack").len(), 1);
    assert_eq!(server.seen_at("/v1/queue/subscribe").len(), 1);
}

/// The end of the caller's patience is no failure; it reaches the handler at work and the pause before a restart.
#[test]
fn a_cancelled_caller_ends_the_consumers_well() {
    let server = Server::start(|seen| match seen.json()["queue"].as_str() {
        Some("failing") => refusal(500, "internal_error"),
        _ => one_and_open(seen),
    });
    let token = CancelToken::new();
    let client = client_of(&[&server]).build().unwrap();
    let client = client.with_options(CallOptions::new().cancel(token.clone()));
    let working = Gate::default();
    let at_work = working.clone();
    let busy = Consumer::new("invoices", move |message| {
        at_work.open();
        assert!(message.cancel_token().wait(Duration::from_secs(20)));
        Err("cut short".into())
    });
    let policy = RestartPolicy {
        immediate_retries: 0,
        base: Duration::from_secs(600),
        ..RestartPolicy::default()
    };
    let pausing = Consumer::new("failing", |_| Ok(())).restart(policy);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| client.run_consumers([busy, pausing]));
        working.wait();
        eventually("the other one has failed", || {
            server.seen().iter().any(|seen| seen.json()["queue"] == "failing")
        });
        token.cancel();
        running.join().unwrap().unwrap();
    });
}

/// A lease that could not be prolonged counts as a failure; the consumer goes on.
#[test]
fn a_failed_extension_restarts_the_consumer() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/subscribe" if seen.index == 0 => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            push(stream, true, meta(1).visibility(1), b"hello");
            until_gone(stream);
        }),
        "/v1/queue/extend" => refusal(403, "lease_required"),
        _ => one_and_open(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&told);
    let consumer = Consumer::new("invoices", |message| {
        if message.message_id() == "msg-1" {
            assert!(message.cancel_token().wait(Duration::from_secs(20)));
            return Ok(());
        }
        message.ack()?;
        Ok(())
    })
    .restart(hasty())
    .on_error(move |failure| {
        noted.lock().unwrap().push(failure.error.to_string());
        Ok(())
    });
    let running = client.start_consumers([consumer]).unwrap();
    eventually("a later message is done", || {
        !server.seen_at("/v1/queue/ack").is_empty()
    });
    drop(running);
    let told = told.lock().unwrap();
    assert!(
        told[0].starts_with("lockd: queue lease auto-extend failed: "),
        "{told:?}"
    );
}
