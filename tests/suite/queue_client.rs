//! Queues through the client, as programs use them: what it makes of a real server, and what of one that goes away.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockd::testing::{Recorder, TestServer, TestServerBuilder, TestingLogger, shared};
use lockd_client::{CallOptions, CancelToken, Client, Consumer, Dequeue, Enqueue, Message, Payload, Wait};
use serde_json::{Value, json};

use super::fixture::{Backend, Place, serve};
use super::lockd_calls::wait_until;

/// A server of the queue suites. What it and its clients do is shown when the test fails.
fn builder(place: &dyn Place) -> TestServerBuilder {
    let log = TestingLogger::new("client", log::Level::Trace);
    serve(place)
        .log_on_failure(log::Level::Trace)
        .client_options(move |client| client.endpoint_shuffle(false).logger(log.clone()))
}

fn start(backend: &dyn Backend) -> TestServer {
    builder(&*backend.open()).start().unwrap()
}

/// A dequeue that gives up after 20 s, which is far more than it takes.
fn take(client: &Client, request: Dequeue) -> Message {
    client
        .dequeue(request.wait(Wait::UpTo(Duration::from_secs(20))))
        .unwrap()
}

#[track_caller]
fn assert_empty(client: &Client, queue: &str) {
    let error = client.dequeue(Dequeue::from_queue(queue).wait(Wait::No)).unwrap_err();
    assert!(error.is_waiting(), "{error}");
}

/// The round trips of single messages and of a batch, while a watch tells of them.
pub fn messages_make_their_round_through_the_client(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    let mut watch = client.watch_queue("invoices").unwrap();
    assert!(!watch.next().unwrap().unwrap().available);

    let request = Enqueue::to("Invoices")
        .content_type("text/plain")
        .visibility(Duration::from_secs(30))
        .ttl(Duration::from_secs(300))
        .max_attempts(5)
        .attribute("tenant", "acme");
    let stored = client.enqueue(&request, "hello").unwrap();
    assert_eq!((stored.queue.as_str(), stored.payload_bytes), ("invoices", 5));
    let told = watch.next().unwrap().unwrap();
    assert_eq!(
        (told.available, told.head_message_id),
        (true, stored.message_id.clone())
    );

    let message = take(client, Dequeue::from_queue("invoices"));
    assert_eq!(message.message_id(), stored.message_id);
    assert_eq!(message.correlation_id(), stored.correlation_id);
    assert_eq!((message.content_type(), message.payload_bytes()), ("text/plain", 5));
    assert_eq!(message.attributes()["tenant"], "acme");
    assert_eq!((message.attempts(), message.fencing_token()), (1, 1));
    assert_eq!(message.bytes().unwrap(), b"hello");
    message.extend(Duration::from_secs(60)).unwrap();
    message.extend(Duration::ZERO).unwrap();
    message.ack().unwrap();
    assert!(!watch.next().unwrap().unwrap().available);
    assert_empty(client, "invoices");

    let values: Vec<Value> = (0..3).map(|n| json!({"n": n})).collect();
    for value in &values {
        client.enqueue_json("invoices", value).unwrap();
    }
    let batch = client
        .dequeue_batch(Dequeue::from_queue("invoices").page_size(3).wait(Wait::No))
        .unwrap();
    let got: Vec<Value> = batch.iter().map(|message| message.json().unwrap()).collect();
    assert_eq!(got, values);
    for message in batch {
        message.ack().unwrap();
    }
    assert!(!client.queue_stats("invoices").unwrap().available);
}

/// What is longer than any buffer passes through unchanged, also in a stream and also when it looks like its frame.
pub fn large_payloads_stream_through_the_client(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    let frame = b"\r\n--0123456789abcdef\r\nContent-Length: 3\r\n\r\n";
    let large: Vec<u8> = frame.iter().copied().cycle().take(3_000_001).collect();
    for _ in 0..2 {
        client.enqueue("large", Payload::reader(large.as_slice())).unwrap();
    }
    client.enqueue("large", Payload::empty()).unwrap();

    let message = take(client, Dequeue::from_queue("large"));
    let mut start = vec![0; 1_000_000];
    message.payload().read_exact(&mut start).unwrap();
    assert!(start == large[..1_000_000]);
    let mut rest = Vec::new();
    assert_eq!(message.copy_to(&mut rest).unwrap(), 2_000_001);
    assert!(rest == large[1_000_000..]);
    message.ack().unwrap();

    let mut lengths = Vec::new();
    let request = Dequeue::from_queue("large").wait(Wait::No).page_size(4);
    client
        .subscribe(request, |message| {
            let bytes = message.bytes()?;
            assert!(bytes.is_empty() || bytes == large);
            lengths.push(bytes.len());
            message.ack()?;
            Ok(())
        })
        .unwrap();
    assert_eq!(lengths, [large.len(), 0]);
}

/// A counter in the state of a message rises with each delivery, whether the message is deferred or has failed; the first save
/// needs no precondition, and the ack takes the state along.
pub fn the_state_of_a_message_survives_what_gives_it_back(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    for defers in [true, false] {
        let max_attempts = if defers { 1 } else { 5 };
        client
            .enqueue(Enqueue::to("steps").max_attempts(max_attempts), "x")
            .unwrap();
        for round in 0..3 {
            let message = take(client, Dequeue::from_queue("steps").with_state(true));
            assert_eq!(message.attempts(), round + 1);
            let state = message.state().unwrap();
            let counter: Option<i64> = state.load().unwrap();
            assert_eq!(counter.unwrap_or(0), round);
            state.save(&(round + 1)).unwrap();
            assert_eq!(state.load::<i64>().unwrap(), Some(round + 1));
            match (round, defers) {
                (2, _) => message.ack().unwrap(),
                (_, true) => message.defer(Duration::ZERO).unwrap(),
                (_, false) => message.nack_because(Duration::ZERO, "not yet").unwrap(),
            }
            if round == 2 {
                assert!(!client.get_public(state.key()).unwrap().exists());
            }
        }
        assert_empty(client, "steps");
    }
}

/// Two workers on a full queue, one elsewhere, one with state: each of them gets its share, and a stop is no error.
pub fn every_consumer_gets_its_share(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    for n in 0..8 {
        client.enqueue("shared", format!("{n}")).unwrap();
    }
    client.enqueue("alone", "x").unwrap();
    client.enqueue("stateful", "x").unwrap();
    let handled = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let consumer = |name: &str, request: Dequeue| {
        let (handled, key) = (Arc::clone(&handled), name.to_owned());
        let with_state = name == "stateful";
        Consumer::new(request.wait(Wait::UpTo(Duration::from_secs(3))), move |message| {
            assert_eq!(message.state().is_some(), with_state);
            *handled.lock().unwrap().entry(key.clone()).or_default() += 1;
            std::thread::sleep(Duration::from_millis(5));
            message.ack()?;
            Ok(())
        })
        .name(name)
    };
    let running = client
        .start_consumers([
            consumer("first", Dequeue::from_queue("shared")),
            consumer("second", Dequeue::from_queue("shared")),
            consumer("alone", Dequeue::from_queue("alone")),
            consumer("stateful", Dequeue::from_queue("stateful").with_state(true)),
        ])
        .unwrap();
    wait_until("all messages are handled", || {
        handled.lock().unwrap().values().sum::<usize>() == 10
    });
    running.stop();
    running.wait().unwrap();
    let handled = handled.lock().unwrap();
    assert_eq!(handled.len(), 4, "{handled:?}");
    for queue in ["shared", "alone", "stateful"] {
        assert_empty(client, queue);
    }
}

/// A handler that takes longer than the visibility timeout keeps its message, because the client prolongs the lease.
pub fn a_slow_handler_keeps_its_message_from_others(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    client.enqueue("slow", "x").unwrap();
    let request = Dequeue::from_queue("slow")
        .visibility(Duration::from_secs(2))
        .with_state(true)
        .wait(Wait::No);
    let mut taken = 0;
    client
        .subscribe(request, |message| {
            taken += 1;
            message.state().unwrap().save(&1)?;
            let end = Instant::now() + Duration::from_secs(5);
            while Instant::now() < end {
                assert_empty(client, "slow");
                std::thread::sleep(Duration::from_millis(100));
            }
            assert!(message.lost().is_none());
            message.ack()?;
            Ok(())
        })
        .unwrap();
    assert_eq!(taken, 1);
    assert_empty(client, "slow");
}

/// Handlers that return an error, panic or forget their message get it again at once, until they settle it.
pub fn what_a_handler_does_not_settle_comes_again(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    client.enqueue("fragile", "x").unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let consumer = Consumer::new("fragile", move |message| {
        let run = counter.fetch_add(1, Ordering::SeqCst);
        assert_eq!(message.failure_attempts(), run as i64);
        match run {
            0 => Err("no paper".into()),
            1 => panic!("on fire"),
            2 => Ok(()),
            _ => Ok(message.ack()?),
        }
    });
    let running = client.start_consumers([consumer]).unwrap();
    wait_until("the message is done", || {
        runs.load(Ordering::SeqCst) == 4 && !client.queue_stats("fragile").unwrap().available
    });
    running.stop();
    running.wait().unwrap();
    assert_empty(client, "fragile");
}

/// What a consumer was leased ahead waits for nobody when it stops, fails, or has given its message back itself: somebody else
/// gets it long before its visibility timeout.
pub fn what_a_consumer_leaves_behind_is_there_for_others_at_once(backend: &dyn Backend) {
    const MESSAGES: usize = 12;
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    let request = |queue: &str| {
        Dequeue::from_queue(queue)
            .visibility(Duration::from_secs(120))
            .page_size(MESSAGES as u32)
    };
    for (queue, fails) in [("stopped", false), ("failed", true)] {
        for n in 0..MESSAGES {
            client.enqueue(queue, format!("{n}")).unwrap();
        }
        let token = CancelToken::new();
        let bound = client.with_options(CallOptions::new().cancel(token.clone()));
        bound
            .subscribe(request(queue), |message| {
                wait_until("all are leased", || !client.queue_stats(queue).unwrap().available);
                if fails {
                    return Err("no paper".into());
                }
                token.cancel();
                wait_until("the others are back", || client.queue_stats(queue).unwrap().available);
                message.detach().with_options(CallOptions::new()).ack()?;
                Ok(())
            })
            .unwrap_err();
        for _ in usize::from(!fails)..MESSAGES {
            let message = take(client, Dequeue::from_queue(queue));
            assert_eq!(
                message.failure_attempts() != 0,
                fails && &message.bytes().unwrap() == b"0"
            );
            message.ack().unwrap();
        }
        assert_empty(client, queue);
    }
}

/// A message that its handler has given back itself comes straight into the same stream. When that ends, because the handler
/// fails, it is there for others all the same.
pub fn a_message_that_came_again_into_a_dying_stream_is_there_for_others(backend: &dyn Backend) {
    let _turn = shared();
    let log = Recorder::new(log::Level::Info);
    let server = builder(&*backend.open()).logger(log.clone()).start().unwrap();
    let client = server.client();
    let sent = || {
        let events = log.events();
        events
            .iter()
            .filter(|entry| entry.message == "queue.delivery.sent")
            .count()
    };
    client.enqueue("hot", "x").unwrap();
    for _ in 0..5 {
        let before = sent();
        let request = Dequeue::from_queue("hot")
            .visibility(Duration::from_secs(120))
            .page_size(2);
        client
            .subscribe(request, |message| {
                message.defer(Duration::ZERO)?;
                wait_until("it comes again", || sent() == before + 2);
                Err("and out".into())
            })
            .unwrap_err();
        wait_until("it is there", || client.queue_stats("hot").unwrap().available);
    }
}

/// Consumers with two servers go on at the other one when theirs stops, and lose nothing.
pub fn consumers_move_on_when_their_server_stops(backend: &dyn Backend) {
    let _turn = shared();
    let place = backend.open();
    let (first, second) = (builder(&*place).start().unwrap(), builder(&*place).start().unwrap());
    let both = second
        .new_client_for_endpoints([first.url(), second.url()], |client| client)
        .unwrap();
    let handled = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let noted = Arc::clone(&handled);
    let consumer = Consumer::new(
        Dequeue::from_queue("moving").wait(Wait::UpTo(Duration::from_secs(2))),
        move |message| {
            let text = String::from_utf8(message.bytes()?)?;
            message.ack()?;
            *noted.lock().unwrap().entry(text).or_default() += 1;
            Ok(())
        },
    )
    .workers(3);
    let running = both.start_consumers([consumer]).unwrap();
    let client = second.client();
    for n in 0..60 {
        client.enqueue("moving", format!("{n}")).unwrap();
        if n == 30 {
            wait_until("the first server has delivered some", || {
                10 <= handled.lock().unwrap().len()
            });
            first.stop();
        }
    }
    wait_until("everything is handled", || handled.lock().unwrap().len() == 60);
    running.stop();
    running.wait().unwrap();
    assert_empty(client, "moving");
}
