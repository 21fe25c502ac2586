//! How a server goes: what it still does while it drains, how long that takes, and what remains afterwards.
//!
//! Most claims run on a clock that stands still: a drain that ends then has ended because nobody held a lease any more,
//! not because its time was over. `TestMemShutdownDrainingBlocksAcquire` of lockd v0.9.0 is the first claim.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, ManualClock, SystemClock};
use lockd::testing::{CloseOptions, Recorder, TestServer, TestServerBuilder, exclusive, shared};
use lockd_client::wire::{codes, headers};
use lockd_client::{Acquire, Wait};
use serde_json::json;

use super::fixture::{Backend, no_drain, serve};
use super::http::{Answer, Connection, send};
use super::lockd_calls::{Held, acquire, acquire_with, describe, get_public, hold, wait_until};
use super::node::{Node, Wishes};
use super::queue_calls::{Message, dequeue_with, enqueue, wish};

/// A state that no answer fits into one packet, and that the buffers of a connection hold.
const LARGE_STATE_BYTES: usize = 425_984;

fn start(backend: &dyn Backend) -> TestServerBuilder {
    serve(&*backend.open()).close_defaults(&[no_drain()])
}

fn address(server: &TestServer) -> SocketAddr {
    server.socket_address().expect("the suite talks TCP")
}

fn is_draining(address: SocketAddr) -> bool {
    send(address, "GET", "/readyz", &[], b"").status == 503
}

/// A server whose clock stands still.
fn timeless(backend: &dyn Backend) -> (TestServer, Arc<ManualClock>) {
    let clock = ManualClock::at_wall_ms(SystemClock::new().wall_ms());
    let server = start(backend).clock(clock.clone()).start().unwrap();
    (server, clock)
}

/// Does something while the server drains, whose clock stands still. Returns when the server has stopped.
fn while_draining<T>(server: &TestServer, clock: &ManualClock, notify: bool, during: impl FnOnce() -> T) -> T {
    /// Without this a failed assertion would wait for a drain that nobody ends.
    struct EndDrain<'a>(&'a ManualClock);
    impl Drop for EndDrain<'_> {
        fn drop(&mut self) {
            if thread::panicking() {
                self.0.advance(Duration::from_secs(3_600));
            }
        }
    }
    let options = CloseOptions::new()
        .drain_leases(Duration::from_secs(8))
        .shutdown_timeout(Duration::from_secs(10))
        .notify(notify);
    thread::scope(|scope| {
        let stopping = scope.spawn(move || server.server().shutdown_with(options));
        let _end = EndDrain(clock);
        wait_until("the server drains", || is_draining(address(server)));
        let result = during();
        wait_until("the drain ends although no time passes", || stopping.is_finished());
        result
    })
}

#[track_caller]
fn assert_announced(answer: &Answer) {
    assert_eq!(answer.header(headers::SHUTDOWN_IMMINENT), Some("true"), "{answer:?}");
}

/// `ShutdownDrainingBlocksAcquire`, TH-23.
pub fn a_draining_server_refuses_to_acquire_and_says_for_how_long(backend: &dyn Backend) {
    let _turn = shared();
    let wishes = Wishes {
        close: CloseOptions::new()
            .drain_leases(Duration::from_millis(1_500))
            .shutdown_timeout(Duration::from_secs(2)),
        ..Wishes::default()
    };
    let node = Node::start_with(&*backend.open(), wishes);
    let address = node.address();
    let lease = node
        .client()
        .acquire(Acquire::key("held").ttl(Duration::from_secs(30)))
        .unwrap();
    let refused = thread::scope(|scope| {
        scope.spawn(|| node.shutdown());
        let mut refused = None;
        wait_until("an acquire is refused", || {
            // Asked over the wire: the client would go on asking.
            let answer = acquire_with(
                address,
                &json!({"key": "other", "owner": "probe", "ttl_seconds": 5, "block_seconds": -1}),
            );
            let is_refused = answer.status == 503;
            refused = Some(answer);
            is_refused
        });
        refused.unwrap()
    });
    let _ = lease.detach();
    assert_eq!(refused.error(), (503, codes::SHUTDOWN_DRAINING.to_owned()));
    assert_announced(&refused);
    let retry_after: u64 = refused.header("Retry-After").unwrap().parse().unwrap();
    assert!((1..=2).contains(&retry_after), "{refused:?}");
    assert_eq!(refused.field("retry_after_seconds"), retry_after);
}

/// LS-39, OP-8.
pub fn while_a_server_drains_holders_finish_and_nobody_begins(backend: &dyn Backend) {
    let _turn = shared();
    let (server, clock) = timeless(backend);
    let address = address(&server);
    let busy = hold(address, "busy");
    let doomed = hold(address, "doomed");
    doomed.update("{}").expect(200);
    let dropped = hold(address, "dropped");
    dropped.update("{}").expect(200);
    let preference = br#"{"namespace":"default","query":{"preferred_engine":"scan"}}"#;
    while_draining(&server, &clock, true, || {
        for refused in [acquire(address, "new"), acquire(address, "busy"), acquire(address, "")] {
            assert_eq!(refused.error(), (503, codes::SHUTDOWN_DRAINING.to_owned()));
            assert_eq!(refused.header("Retry-After"), Some("8"));
            assert_announced(&refused);
        }
        for served in [
            busy.keepalive(30),
            busy.update(r#"{"saved":"while draining"}"#),
            busy.get(),
            busy.hide(true),
            doomed.remove(),
            describe(address, "busy"),
            send(address, "GET", "/v1/namespace?namespace=default", &[], b""),
            send(address, "POST", "/v1/namespace", &[], preference),
            send(address, "GET", "/healthz", &[], b""),
            dropped.rollback(),
            doomed.release(),
        ] {
            assert_eq!(served.status, 200, "{served:?}");
            assert_announced(&served);
        }
        assert_announced(&get_public(address, "busy").expect(204));
        assert_announced(&send(address, "GET", "/nowhere", &[], b"").expect(404));
        assert_announced(&send(address, "GET", "/readyz", &[], b"").expect(503));
        assert_announced(&busy.release().expect(200));
    });
    // What was released during the drain is committed: a server that comes next over this store has it.
    let next = serve_again(&server);
    let next = self::address(&next);
    assert_eq!(
        get_public(next, "busy").expect(200).body,
        br#"{"saved":"while draining"}"#
    );
    assert_eq!(get_public(next, "doomed").status, 204);
    assert_eq!(get_public(next, "dropped").status, 204);
}

fn serve_again(stopped: &TestServer) -> TestServer {
    TestServer::builder().store(stopped.store()).start().unwrap()
}

/// LS-15.
pub fn a_quiet_drain_announces_nothing(backend: &dyn Backend) {
    let _turn = shared();
    let (server, clock) = timeless(backend);
    let address = address(&server);
    let busy = hold(address, "busy");
    assert_eq!(busy.get().header(headers::SHUTDOWN_IMMINENT), None);
    while_draining(&server, &clock, false, || {
        let refused = acquire(address, "new");
        assert_eq!(refused.error(), (503, codes::SHUTDOWN_DRAINING.to_owned()));
        for answer in [refused, busy.keepalive(30), busy.release()] {
            assert_eq!(answer.header(headers::SHUTDOWN_IMMINENT), None, "{answer:?}");
        }
    });
}

/// The clock stands still, so no patience ends and no lease expires: only the drain can have answered.
pub fn whoever_waits_is_sent_away_when_the_drain_begins(backend: &dyn Backend) {
    let _turn = shared();
    let (server, clock) = timeless(backend);
    let address = address(&server);
    let held = hold(address, "held");
    let waiting = json!({"key": "held", "owner": "waiter", "ttl_seconds": 30, "block_seconds": 10});
    let waiters: Vec<Connection> = (0..3)
        .map(|_| {
            let mut waiter = Connection::open(address);
            waiter.send_request("POST", "/v1/acquire", &[], waiting.to_string().as_bytes());
            waiter
        })
        .collect();
    wait_until("all of them are parked", || server.server().waiting() == 3);
    while_draining(&server, &clock, true, || {
        for mut waiter in waiters {
            let refused = waiter.read_answer();
            assert_eq!(refused.error(), (503, codes::SHUTDOWN_DRAINING.to_owned()));
            assert_eq!(refused.header("Retry-After"), Some("8"));
            assert_announced(&refused);
        }
        held.release().expect(200);
    });
}

/// TH-4 by the clock on the wall: with a held lease 4 s by default, 8 s as in production; without one nearly nothing.
pub fn a_stop_takes_as_long_as_its_profile_says(backend: &dyn Backend) {
    let _turn = exclusive();
    let stop = |production: bool, held: bool| {
        let mut builder = serve(&*backend.open());
        if production {
            builder = builder.close_defaults(&[]);
        }
        let server = builder.start().unwrap();
        let lease = server.client().acquire("k").unwrap();
        if !held {
            lease.release().unwrap();
        }
        let clock = SystemClock::new();
        let began = clock.now();
        server.stop();
        let took = clock.now().since(began);
        let _ = lease.detach();
        took
    };
    let within = |took: Duration, from_ms: u64, below_ms: u64| {
        let range = Duration::from_millis(from_ms)..Duration::from_millis(below_ms);
        assert!(range.contains(&took), "{took:?} is not in {range:?}");
    };
    within(stop(false, false), 0, 1_000);
    within(stop(true, false), 0, 1_000);
    // Both at once, to save the time of whoever runs the suite; they do nothing but sleep.
    let (default, production) = thread::scope(|scope| {
        let default = scope.spawn(|| stop(false, true));
        (default.join(), stop(true, true))
    });
    within(default.unwrap(), 4_000, 6_000);
    within(production, 7_500, 8_500);
}

/// The client looks at the answers to its keepalives, so a holder that renews lets go in time.
pub fn a_drain_aware_client_lets_go_and_ends_the_drain(backend: &dyn Backend) {
    let _turn = shared();
    let (server, clock) = timeless(backend);
    let log = Recorder::new(log::Level::Trace);
    let client = server.new_client(|builder| builder.logger(log.clone())).unwrap();
    let lease = client.acquire("k").unwrap();
    let other = client.acquire("other").unwrap();
    lease.save(&json!({"n": 1})).unwrap();
    while_draining(&server, &clock, true, || {
        lease.keepalive(Duration::from_secs(30)).unwrap();
    });
    // The server has stopped, and no time has passed on its clock: it was the client who gave back both leases.
    for key in ["k", "other"] {
        let released = log.wait_for(Duration::from_secs(30), |entry| {
            entry.message == "client.shutdown.auto_release.complete" && entry.str_field("key") == Some(key)
        });
        assert!(released.is_some(), "{key}: {}", log.summary());
    }
    assert!(
        log.first(|entry| entry.message == "client.shutdown.notice").is_some(),
        "{}",
        log.summary()
    );
    assert!(lease.is_released() && other.is_released());
    assert!(
        lease.lost().is_some(),
        "its holder must not go on as if nothing had happened"
    );
    let next = serve_again(&server);
    assert!(next.client().get_public("k").unwrap().exists());
}

pub fn a_client_that_is_not_drain_aware_holds_on(backend: &dyn Backend) {
    let _turn = shared();
    let (server, clock) = timeless(backend);
    let log = Recorder::new(log::Level::Trace);
    let options = |builder: lockd_client::ClientBuilder| builder.logger(log.clone()).drain_aware(false);
    let client = server.new_client(options).unwrap();
    let lease = client.acquire("k").unwrap();
    while_draining(&server, &clock, true, || {
        lease.keepalive(Duration::from_secs(30)).unwrap();
        // Two keepalives, so that a release that the first began would have met the second.
        lease.keepalive(Duration::from_secs(30)).unwrap();
        let error = client.acquire(Acquire::key("other").wait(Wait::No)).unwrap_err();
        assert!(error.is_shutdown_draining(), "{error}");
        lease.release().unwrap();
    });
    assert_eq!(lease.lost(), None);
    let noticed = log.first(|entry| entry.message.starts_with("client.shutdown."));
    assert!(noticed.is_none(), "{noticed:?}");
}

/// A client whose call was carried out and who does not hear of it asks again, is told that the message is gone or the
/// version another, and takes that for a failure.
pub fn a_stopping_server_answers_everything_that_it_carries_out(backend: &dyn Backend) {
    const HOLDERS: usize = 8;
    const MESSAGES: usize = 64;
    let _turn = shared();
    // Requests meet the last moment of a server by chance.
    for round in 0..6 {
        let server = start(backend).start().unwrap();
        let address = address(&server);
        let queue = |holder: usize| format!("q{holder}");
        let messages: Vec<Vec<Message>> = (0..HOLDERS)
            .map(|holder| {
                (0..MESSAGES).for_each(|_| drop(enqueue(address, &queue(holder), b"x")));
                let mut wish = wish(&queue(holder));
                wish["page_size"] = MESSAGES.into();
                dequeue_with(address, "dequeue", &wish).unwrap()
            })
            .collect();
        let leases: Vec<Held> = (0..HOLDERS).map(|holder| hold(address, &queue(holder))).collect();
        let answered = AtomicUsize::new(0);
        let (acked, updated) = thread::scope(|scope| {
            let answered = &answered;
            let ackers: Vec<_> = (messages.iter())
                .map(|messages| {
                    let calls = messages.iter().map(ack_of);
                    scope.spawn(move || count_answered(address, calls, answered))
                })
                .collect();
            let updaters: Vec<_> = (leases.iter())
                .map(|lease| {
                    let calls = (1..).map(|number| update_of(lease, number));
                    scope.spawn(move || count_answered(address, calls, answered))
                })
                .collect();
            wait_until("all are at it", || 20 * round <= answered.load(Ordering::SeqCst));
            server.server().shutdown();
            let join = |threads: Vec<thread::ScopedJoinHandle<'_, usize>>| -> Vec<usize> {
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            };
            (join(ackers), join(updaters))
        });
        let next = serve_again(&server);
        let at = next.socket_address().unwrap();
        for (holder, (messages, acked)) in messages.iter().zip(acked).enumerate() {
            if let Some(message) = messages.get(acked) {
                assert_eq!(
                    message.at(at).ack().status,
                    200,
                    "holder {holder}, round {round}, {acked} acked"
                );
            }
        }
        for (lease, updated) in leases.iter().zip(updated) {
            let state = lease.at(at).get();
            let expected = if updated == 0 {
                String::new()
            } else {
                updated.to_string()
            };
            assert_eq!(
                String::from_utf8_lossy(&state.body),
                expected,
                "{}, round {round}",
                lease.key
            );
            lease.at(at).release().expect(200);
        }
    }
}

/// Whatever a server grants in its last moments has arrived at a consumer, or is there for others as soon as it is gone.
pub fn a_stopping_server_leaves_no_message_with_nobody(backend: &dyn Backend) {
    const CONSUMERS: usize = 6;
    const MESSAGES: usize = 120;
    let _turn = shared();
    for round in 0..4 {
        let server = start(backend).start().unwrap();
        let address = address(&server);
        (0..MESSAGES).for_each(|_| drop(enqueue(address, "q", b"x")));
        let arrived = AtomicUsize::new(0);
        thread::scope(|scope| {
            for number in 0..CONSUMERS {
                let arrived = &arrived;
                scope.spawn(move || count_arrived(address, number % 2 == 0, arrived));
            }
            wait_until("all are at it", || 15 * round <= arrived.load(Ordering::SeqCst));
            server.server().shutdown();
        });
        let arrived = arrived.into_inner();
        let next = serve_again(&server);
        let mut wish = wish("q");
        wish["page_size"] = 64.into();
        wish["visibility_timeout_seconds"] = 120.into();
        let mut left = 0;
        while let Ok(messages) = dequeue_with(next.socket_address().unwrap(), "dequeue", &wish) {
            left += messages.len();
        }
        assert_eq!(arrived + left, MESSAGES, "{arrived} have arrived in round {round}");
    }
}

/// Takes messages, by a stream or a few at a time, until the server is gone. Counts those that arrive.
fn count_arrived(address: SocketAddr, streams: bool, arrived: &AtomicUsize) {
    let mut wish = wish("q");
    wish["wait_seconds"] = 0.into();
    wish["page_size"] = 3.into();
    wish["visibility_timeout_seconds"] = 120.into();
    let Ok(mut connection) = Connection::try_open(address) else {
        return;
    };
    let endpoint = if streams {
        "/v1/queue/subscribe"
    } else {
        "/v1/queue/dequeue"
    };
    loop {
        let asked = connection.try_send_request("POST", endpoint, &[], wish.to_string().as_bytes());
        let Ok(answer) = asked.and_then(|()| connection.try_read_head()) else {
            return;
        };
        if answer.status != 200 {
            return;
        }
        let (mut body, mut counted) = (Vec::new(), 0);
        while let Ok(Some(chunk)) = connection.try_read_chunk() {
            body.extend_from_slice(&chunk);
            let count = String::from_utf8_lossy(&body).matches("name=\"payload\"").count();
            arrived.fetch_add(count - counted, Ordering::SeqCst);
            counted = count;
        }
    }
}

/// A request to this path, with these headers and this body.
type Call = (String, Vec<(&'static str, String)>, String);

fn ack_of(message: &Message) -> Call {
    ("/v1/queue/ack".to_owned(), Vec::new(), message.proof().to_string())
}

fn update_of(lease: &Held, number: usize) -> Call {
    let headers = vec![
        ("X-Lease-ID", lease.lease_id.clone()),
        ("X-Txn-ID", lease.txn_id.clone()),
        ("X-Fencing-Token", lease.token.to_string()),
    ];
    (format!("/v1/update?key={}", lease.key), headers, number.to_string())
}

/// Makes one call after the other on one connection until the server is gone. Says how many succeeded.
fn count_answered(address: SocketAddr, calls: impl Iterator<Item = Call>, all: &AtomicUsize) -> usize {
    let Ok(mut connection) = Connection::try_open(address) else {
        return 0;
    };
    let mut answered = 0;
    for (path, headers, body) in calls {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let asked = connection.try_send_request("POST", &path, &headers, body.as_bytes());
        match asked.and_then(|()| connection.try_read_answer()) {
            Ok(answer) if answer.status == 200 => {
                answered += 1;
                all.fetch_add(1, Ordering::SeqCst);
            }
            Ok(answer) => {
                assert_eq!(answer.error(), (503, codes::NODE_PASSIVE.to_owned()));
                break;
            }
            Err(_) => break,
        }
    }
    answered
}

/// Clients pool connections. One that was left open to a server that is gone would cost its next user a failed request.
pub fn after_a_stop_nothing_is_served_and_idle_connections_are_cut(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend).start().unwrap();
    let address = address(&server);
    let mut used = Connection::open(address);
    used.send_request("GET", "/healthz", &[], b"");
    used.read_answer().expect(200);
    let fresh = TcpStream::connect(address).unwrap();
    fresh.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let pooled = server.client().clone();
    pooled.acquire("k").unwrap().release().unwrap();
    server.server().shutdown();
    assert_eq!(
        TcpStream::connect(address).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    for mut socket in [used.socket(), &fresh] {
        let outcome = socket.read(&mut [0; 16]);
        let is_cut = match &outcome {
            Ok(count) => *count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        assert!(is_cut, "{outcome:?}");
    }
    let error = pooled.acquire(Acquire::key("k").wait(Wait::No)).unwrap_err();
    assert!(error.is_transport(), "{error}");
}

/// A reader may be slow: what the server has written before it stopped is in the buffers of the connection, and a stop
/// that throws them away would cut an answer that counts as given.
pub fn an_answer_that_was_written_arrives_after_the_stop(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend).start().unwrap();
    let state = format!("\"{}\"", "x".repeat(LARGE_STATE_BYTES));
    let lease = server.client().acquire("large").unwrap();
    lease.update(state.as_bytes()).unwrap();
    lease.release().unwrap();
    let mut reader = Connection::open(address(&server));
    reader.send_request("GET", "/v1/get?key=large&public=1", &[], b"");
    // The answer has begun to arrive; nobody takes it out of the buffers.
    reader.socket().peek(&mut [0]).unwrap();
    server.server().shutdown();
    let answer = reader.read_answer().expect(200);
    assert!(
        answer.body == state.as_bytes(),
        "{} of {} bytes",
        answer.body.len(),
        state.len()
    );
}
