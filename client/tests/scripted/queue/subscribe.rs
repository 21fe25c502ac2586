//! Subscriptions.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lockd_client::{CallOptions, CancelToken, Dequeue, Error, Wait};

use super::{BOUNDARY, CONTENT_TYPE, Gate, agreeable, chunk, finish, meta, multipart, push, stream_head, until_gone};
use crate::support::{Reply, Seen, Server, client_of, eventually, refusal};

fn two_messages(seen: &Seen) -> Reply {
    match seen.path.as_str() {
        "/v1/queue/subscribe" | "/v1/queue/subscribeWithState" => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            push(stream, true, meta(1), b"hello");
            push(stream, false, meta(2).with_state(), b"");
            finish(stream);
        }),
        _ => agreeable(seen),
    }
}

/// CL-40: in order, each by itself, until the server ends the stream.
#[test]
fn messages_are_handled_in_order_until_the_stream_ends() {
    let server = Server::start(two_messages);
    let client = client_of(&[&server]).default_namespace("shop").build().unwrap();
    let mut handled = Vec::new();
    let request = Dequeue::from_queue("invoices")
        .namespace("default")
        .owner("worker-1")
        .visibility(Duration::from_secs(30))
        .wait(Wait::UpTo(Duration::from_secs(10)))
        .page_size(2);
    client
        .subscribe(&request, |message| {
            handled.push((message.message_id().to_owned(), message.bytes()?));
            message.ack()?;
            Ok(())
        })
        .unwrap();
    assert_eq!(
        handled,
        [
            ("msg-1".to_owned(), b"hello".to_vec()),
            ("msg-2".to_owned(), Vec::new())
        ]
    );
    let seen = server.one_at("/v1/queue/subscribe");
    assert_eq!(
        String::from_utf8(seen.body.clone()).unwrap(),
        r#"{"namespace":"default","queue":"invoices","owner":"worker-1","visibility_timeout_seconds":30,"wait_seconds":10,"page_size":2}"#
    );
    assert_eq!(seen.header("accept"), Some("multipart/related"));

    client
        .subscribe(request.with_state(true), |message| {
            assert_eq!(message.state().is_some(), message.message_id() == "msg-2");
            message.ack()?;
            Ok(())
        })
        .unwrap();
    let acks = server.seen_at("/v1/queue/ack");
    assert_eq!(server.seen_at("/v1/queue/subscribeWithState").len(), 1);
    assert_eq!(acks[3].json()["state_fencing_token"], 17);
}

/// LQ-29, LQ-30: a message is handled when it is complete, whatever its last byte is, not when the next one comes.
#[test]
fn a_message_does_not_wait_for_the_next_one() {
    for eager in [false, true] {
        let gate = Gate::default();
        let opened = gate.clone();
        let server = Server::start(move |seen| {
            let gate = gate.clone();
            match seen.path.as_str() {
                "/v1/queue/subscribe" => Reply::live(move |stream| {
                    stream_head(stream, CONTENT_TYPE);
                    push(stream, true, meta(1), b"a\r\n--\r");
                    if eager {
                        // The next delimiter may come before what it begins.
                        chunk(stream, format!("\r\n--{BOUNDARY}").as_bytes());
                        gate.wait();
                        chunk(stream, &meta(2).delivery(b"second"));
                    } else {
                        gate.wait();
                        push(stream, false, meta(2), b"second");
                    }
                    finish(stream);
                }),
                _ => agreeable(seen),
            }
        });
        let client = client_of(&[&server]).build().unwrap();
        let mut payloads = Vec::new();
        client
            .subscribe("invoices", |message| {
                payloads.push(message.bytes()?);
                opened.open();
                message.ack()?;
                Ok(())
            })
            .unwrap();
        assert_eq!(payloads, [&b"a\r\n--\r"[..], b"second"]);
    }
}

/// A handler that does not read, or reads half, does not disturb what follows; a large payload streams while it is handled.
#[test]
fn what_a_handler_leaves_of_a_payload_is_skipped() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/subscribe" => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            for n in 1..=4 {
                push(stream, n == 1, meta(n), &vec![b'0' + n as u8; 400_000]);
            }
            finish(stream);
        }),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let mut kept = Vec::new();
    let mut starts = Vec::new();
    client
        .subscribe("invoices", |message| {
            match message.message_id() {
                "msg-1" => message.ack()?,
                "msg-2" => {
                    let mut start = [0; 3];
                    message.payload().read_exact(&mut start)?;
                    starts.push(start);
                    message.ack()?;
                }
                "msg-3" => kept.push(message),
                _ => {
                    assert_eq!(message.bytes()?, vec![b'4'; 400_000]);
                    message.ack()?;
                }
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(starts, [*b"222"]);
    let error = kept[0].bytes().unwrap_err();
    assert!(error.to_string().contains("moved on"), "{error}");
    kept[0].ack().unwrap();
    assert_eq!(server.seen_at("/v1/queue/ack").len(), 4);
    assert!(server.seen_at("/v1/queue/nack").is_empty());
}

/// `waiting` and `cas_mismatch` are no end: the request is made again, not sooner than the server wants.
#[test]
fn a_subscription_that_finds_nothing_asks_again() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/queue/subscribe", 0 | 2 | 3) => refusal(409, "waiting"),
        ("/v1/queue/subscribe", 1) => refusal(409, "cas_mismatch").header("Retry-After", "0.2"),
        _ => two_messages(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let begun = Instant::now();
    client.subscribe("invoices", |message| Ok(message.ack()?)).unwrap();
    assert!(Duration::from_millis(200) <= begun.elapsed());
    assert_eq!(server.seen_at("/v1/queue/subscribe").len(), 5);
}

/// An empty queue and a consumer that does not wait make no busy loop.
#[test]
fn asking_again_and_again_slows_down() {
    let server = Server::start(|_| refusal(409, "waiting"));
    let client = client_of(&[&server]).build().unwrap();
    let bound = client.with_options(CallOptions::new().timeout(Duration::from_secs(1)));
    let request = Dequeue::from_queue("invoices").wait(Wait::No);
    let error = bound.subscribe(request, |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error}");
    let asked = server.seen().len();
    assert!((2..=30).contains(&asked), "{asked} requests in a second");
}

#[test]
fn other_refusals_and_broken_streams_end_a_subscription() {
    let server = Server::start(|_| refusal(503, "shutdown_draining"));
    let client = client_of(&[&server]).build().unwrap();
    let error = client.subscribe("invoices", |_| Ok(())).unwrap_err();
    assert!(error.is_shutdown_draining());
    assert_eq!(server.seen().len(), 1);

    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/subscribe" => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            push(stream, true, meta(1), b"hello");
        }),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let error = client.subscribe("invoices", |message| Ok(message.ack()?)).unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert_eq!(server.seen_at("/v1/queue/ack").len(), 1);

    // A body that ends in good order but without the closing delimiter is cut off all the same.
    let server = Server::start(|_| {
        let body = multipart(vec![]);
        Reply::Http {
            status: 200,
            headers: vec![("Content-Type".to_owned(), CONTENT_TYPE.to_owned())],
            body: body[..4].to_vec(),
        }
    });
    let client = client_of(&[&server]).build().unwrap();
    assert!(matches!(
        client.subscribe("invoices", |_| Ok(())),
        Err(Error::Interrupted(_))
    ));
}

/// CL-40: an error of the handler ends the subscription, and so does a panic; the message is given back, and what came behind it.
#[test]
fn a_handler_that_fails_ends_the_subscription() {
    let server = Server::start(two_messages);
    let client = client_of(&[&server]).build().unwrap();
    let error = client.subscribe("invoices", |_| Err("no paper".into())).unwrap_err();
    assert!(
        matches!(&error, Error::Handler(_)) && error.to_string() == "no paper",
        "{error}"
    );
    let intents = || -> Vec<_> {
        let nacks = server.seen_at("/v1/queue/nack");
        let intent = |seen: &Seen| seen.json()["intent"].as_str().unwrap().to_owned();
        nacks.iter().map(intent).collect()
    };
    assert_eq!(intents(), ["defer", "failure"]);

    let error = client
        .subscribe("invoices", |message| {
            message.ack()?;
            panic!("on fire");
        })
        .unwrap_err();
    assert_eq!(error.to_string(), "lockd: consumer message handler panic: on fire");
    assert_eq!(intents(), ["defer", "failure", "defer"]);
    assert_eq!(server.seen_at("/v1/queue/ack").len(), 1);
}

/// A message whose handler failed once went straight back into the stream that was about to be closed, and nobody else got it
/// before its visibility timeout: the stream is closed before the message is given back.
#[test]
fn the_stream_is_closed_before_a_failed_message_is_given_back() {
    for panics in [false, true] {
        let closed = Gate::default();
        let server = Server::start(move |seen| {
            let closed = closed.clone();
            match seen.path.as_str() {
                "/v1/queue/subscribe" => Reply::live(move |stream| {
                    stream_head(stream, CONTENT_TYPE);
                    push(stream, true, meta(1), b"hello");
                    until_gone(stream);
                    closed.open();
                }),
                "/v1/queue/nack" => {
                    closed.wait();
                    agreeable(seen)
                }
                _ => agreeable(seen),
            }
        });
        let client = client_of(&[&server]).build().unwrap();
        client
            .subscribe("invoices", |_| match panics {
                true => panic!("on fire"),
                false => Err("no paper".into()),
            })
            .unwrap_err();
        assert_eq!(server.seen_at("/v1/queue/nack").len(), 1);
    }
}

/// What the server has sent ahead would be seen by nobody before its visibility timeout. It is given back while the handler of
/// the first message is still at work, over a connection of its own, when the stream is closed.
#[test]
fn what_was_leased_ahead_is_given_back_when_a_subscription_ends() {
    for fails in [false, true] {
        let (sent, closed) = (Gate::default(), Gate::default());
        let (tells, hears) = (sent.clone(), closed.clone());
        let server = Server::start(move |seen| {
            let (sent, closed) = (tells.clone(), hears.clone());
            match seen.path.as_str() {
                "/v1/queue/subscribe" => Reply::live(move |stream| {
                    stream_head(stream, CONTENT_TYPE);
                    push(stream, true, meta(1), b"one");
                    push(stream, false, meta(2), &[b'x'; 300_000]);
                    push(stream, false, meta(3), b"three");
                    sent.open();
                    until_gone(stream);
                    closed.open();
                }),
                "/v1/queue/nack" => {
                    closed.wait();
                    agreeable(seen)
                }
                _ => agreeable(seen),
            }
        });
        let client = client_of(&[&server]).build().unwrap();
        let token = CancelToken::new();
        let returned = || server.seen_at("/v1/queue/nack");
        let error = client
            .with_options(CallOptions::new().cancel(token.clone()))
            .subscribe("invoices", |message| {
                assert_eq!(message.message_id(), "msg-1");
                sent.wait();
                if fails {
                    return Err("no paper".into());
                }
                token.cancel();
                eventually("the others are back", || returned().len() == 2);
                Ok(())
            })
            .unwrap_err();
        assert_eq!(error.is_cancelled(), !fails, "{error}");
        let told: Vec<_> = returned()
            .iter()
            .map(|seen| {
                let body = seen.json();
                (
                    body["message_id"].as_str().unwrap().to_owned(),
                    body["intent"].as_str().unwrap().to_owned(),
                )
            })
            .collect();
        let back = |id: &str, intent: &str| told.contains(&(id.to_owned(), intent.to_owned()));
        assert!(
            back("msg-2", "defer") && back("msg-3", "defer") && back("msg-1", "failure"),
            "{told:?}"
        );
        assert_eq!(told.len(), 3);
    }
}

#[test]
fn a_message_that_its_handler_has_put_aside_is_on_its_own() {
    let server = Server::start(two_messages);
    let client = client_of(&[&server]).build().unwrap();
    let mut aside = Vec::new();
    client
        .subscribe("invoices", |message| {
            aside.push(message);
            match aside.len() {
                1 => Ok(()),
                _ => Err("later".into()),
            }
        })
        .unwrap_err();
    assert!(server.seen_at("/v1/queue/nack").is_empty());
    aside.remove(0).ack().unwrap();
    drop(aside);
    assert_eq!(server.one_at("/v1/queue/nack").json()["message_id"], "msg-2");
}

/// CL-40: while a handler works, its message is prolonged at half the visibility timeout, with the newest entity tag.
#[test]
fn a_slow_handler_keeps_its_message() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/subscribe" => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            push(stream, true, meta(1).visibility(1), b"hello");
            push(stream, false, meta(2).visibility(1), b"world");
            finish(stream);
        }),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    client
        .subscribe("invoices", |message| {
            let prolonged = |id: &str| {
                let extends = server.seen_at("/v1/queue/extend");
                extends.iter().filter(|seen| seen.json()["message_id"] == id).count()
            };
            eventually("it was prolonged twice", || 2 <= prolonged(message.message_id()));
            message.ack()?;
            Ok(())
        })
        .unwrap();
    let acks = server.seen_at("/v1/queue/ack");
    assert_eq!(acks[0].json()["meta_etag"], "m-etag-1-extended");
    assert_eq!(acks[1].json()["meta_etag"], "m-etag-2-extended");
    assert!(
        server
            .seen_at("/v1/queue/extend")
            .iter()
            .all(|seen| seen.json()["extend_by_seconds"] == 1)
    );
}

/// A lease that cannot be prolonged cancels the handler, whose own error is joined to that.
#[test]
fn a_message_that_cannot_be_prolonged_cancels_its_handler() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/subscribe" => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            push(stream, true, meta(1).visibility(1), b"hello");
            until_gone(stream);
        }),
        "/v1/queue/extend" => refusal(409, "queue_message_lease_mismatch"),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let error = client
        .subscribe("invoices", |message| {
            assert!(message.cancel_token().wait(Duration::from_secs(20)));
            assert!(message.ack().unwrap_err().is_cancelled());
            Err("gave up".into())
        })
        .unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("lockd: queue lease auto-extend failed: "), "{text}");
    assert!(
        text.contains("queue_message_lease_mismatch") && text.ends_with("gave up"),
        "{text}"
    );
    assert!(error.is_message_lost());
    assert!(server.seen_at("/v1/queue/nack").is_empty(), "it is somebody else's");
}

/// An ack waits for an extension that is under way, and names the entity tag that it brings.
#[test]
fn an_ack_and_an_extension_do_not_cross() {
    let gate = Gate::default();
    let opened = gate.clone();
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v1/queue/subscribe" => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            push(stream, true, meta(1).visibility(1), b"hello");
            finish(stream);
        }),
        "/v1/queue/extend" => {
            gate.wait();
            agreeable(seen)
        }
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    client
        .subscribe("invoices", |message| {
            eventually("an extension is under way", || {
                !server.seen_at("/v1/queue/extend").is_empty()
            });
            std::thread::scope(|scope| {
                let acking = scope.spawn(|| message.ack());
                opened.open();
                acking.join().unwrap()
            })?;
            Ok(())
        })
        .unwrap();
    assert_eq!(server.one_at("/v1/queue/ack").json()["meta_etag"], "m-etag-1-extended");
}

/// Cancelling reaches a subscription that waits for the first message, one that waits for the next, and the handler at work.
#[test]
fn a_subscription_is_cancelled_wherever_it_is() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/queue/subscribe", 0) => Reply::Silence,
        ("/v1/queue/subscribe", _) => Reply::live(|stream| {
            stream_head(stream, CONTENT_TYPE);
            push(stream, true, meta(1), b"hello");
            until_gone(stream);
        }),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    for round in 1..=3 {
        let token = CancelToken::new();
        let bound = client.with_options(CallOptions::new().cancel(token.clone()));
        let handled = AtomicUsize::new(0);
        let cancelled = Mutex::new(Vec::new());
        let error = std::thread::scope(|scope| {
            let running = scope.spawn(|| {
                bound.subscribe("invoices", |message| {
                    if round == 3 {
                        handled.fetch_add(1, Ordering::SeqCst);
                        assert!(message.cancel_token().wait(Duration::from_secs(20)));
                        cancelled.lock().unwrap().push(message.ack().unwrap_err());
                        return Ok(());
                    }
                    message.ack()?;
                    handled.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                })
            });
            match round {
                1 => eventually("the server was asked", || server.seen().len() == 1),
                _ => eventually("a message is at work or done", || handled.load(Ordering::SeqCst) == 1),
            }
            token.cancel();
            running.join().unwrap().unwrap_err()
        });
        assert!(matches!(error, Error::Cancelled), "{round}: {error}");
        assert_eq!(cancelled.lock().unwrap().len(), usize::from(round == 3));
    }
    // What the third handler could not settle was given back all the same.
    assert_eq!(server.seen_at("/v1/queue/nack").len(), 1);
}

/// A server that goes down says so, and the leases it has granted are released.
#[test]
fn a_subscription_hears_of_a_shutdown() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/queue/subscribe" => refusal(503, "shutdown_draining").header("Shutdown-Imminent", "true"),
        _ => agreeable(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    client.subscribe("invoices", |_| Ok(())).unwrap_err();
    eventually("the lease is released", || server.seen_at("/v1/release").len() == 1);
    drop(lease);
}
