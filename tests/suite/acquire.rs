//! Acquire: who gets a key, who waits, in which order, and who hears what instead.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use lockd::clock::ManualClock;
use lockd::drain_plan::CloseOptions;
use lockd::store::fault::{Fault, FaultPlan, FaultStore, Operation};
use serde_json::{Value, json};

use super::fixture::{Backend, ServerOptions, TestServer};
use super::http::{Answer, Connection, send};
use super::lockd_calls::{Held, acquire, acquire_with, begin_acquire, describe, get_public, hold, wait_until};

/// An answer to a request that need not wait comes sooner than any poll, recheck or lease end would bring it.
const AT_ONCE: Duration = Duration::from_secs(2);

/// LS-27: nobody gets a lease without an owner, but any text is one.
pub fn an_owner_is_required(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for body in [
        json!({"key": "a"}),
        json!({"key": "a", "owner": ""}),
        json!({"key": "a", "owner": null}),
    ] {
        assert_eq!(
            acquire_with(server.address, &body).error(),
            (400, "missing_owner".to_owned())
        );
    }
    for (key, owner) in [("blank", " "), ("text", "R\u{fc}diger \"<&>\" \u{1F600}\n")] {
        let answer = acquire_with(server.address, &json!({"key": key, "owner": owner})).expect(200);
        assert_eq!(answer.field("owner"), owner);
        assert_eq!(describe(server.address, key).field("owner"), owner);
    }
}

/// LS-28: a new key has version 0, no etag and token 1, in body and headers.
pub fn a_new_key_starts_with_version_zero_and_token_one(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let answer = acquire(server.address, "a").expect(200);
    assert_eq!(
        (answer.field("version"), answer.field("fencing_token")),
        (json!(0), json!(1))
    );
    assert_eq!(answer.field("state_etag"), Value::Null);
    assert_eq!(answer.field("retry_after_seconds"), Value::Null);
    assert_eq!(answer.header("X-Key-Version"), Some("0"));
    assert_eq!(answer.header("X-Fencing-Token"), Some("1"));
    assert_eq!(answer.field("key"), "a");
    assert_eq!(answer.field("namespace"), "default");
    let held = Held::from_answer(server.address, &answer);
    let etag = held.update("1").expect(200).field("new_state_etag");
    held.release().expect(200);
    let again = acquire(server.address, "a").expect(200);
    assert_eq!((again.field("version"), again.field("state_etag")), (json!(1), etag));
}

/// LS-29, LS-30: a life of zero or less is the default, too much is cut; the end is `floor(now) + ttl`.
pub fn lives_are_bounded_and_end_at_whole_seconds(backend: &dyn Backend) {
    const WALL_MS: i64 = 1_767_261_600_999;
    let clock = ManualClock::at_wall_ms(WALL_MS);
    let server = TestServer::fresh_with(backend, |options| options.clock = clock.clone());
    for (asked, lives) in [
        (json!(0), 30),
        (json!(-5), 30),
        (json!(null), 30),
        (json!(1), 1),
        (json!(45), 45),
        (json!(1_000_000), 1800),
        (json!(10_000_000_000_i64), 1800),
        (json!(i64::MAX), 1800),
        (json!(i64::MIN), 30),
    ] {
        let key = format!("ttl{}", asked.to_string().replace('-', "m"));
        let answer = acquire_with(
            server.address,
            &json!({"key": key, "owner": "test", "ttl_seconds": asked}),
        );
        let held = Held::from_answer(server.address, &answer);
        assert_eq!(held.expires_at_unix, WALL_MS / 1000 + lives, "{asked}");
    }
}

/// LS-31: who does not want to wait hears at once that the key is held, for how long, and what version it has.
pub fn a_held_key_is_refused_at_once_without_patience(backend: &dyn Backend) {
    const WALL_MS: i64 = 1_767_261_600_250;
    let clock = ManualClock::at_wall_ms(WALL_MS);
    let server = TestServer::fresh_with(backend, |options| options.clock = clock.clone());
    let held = hold(server.address, "a");
    let etag = held.update("1").expect(200).field("new_state_etag");
    held.release().expect(200);
    let held = hold(server.address, "a");
    held.update("2").expect(200);
    for (waited_ms, left) in [(0, 30), (749, 30), (1, 29), (28_000, 1), (900, 1)] {
        clock.advance(Duration::from_millis(waited_ms));
        for patience in [-1, -2, i64::MIN] {
            let body = json!({"key": "a", "owner": "other", "block_seconds": patience});
            let refused = acquire_with(server.address, &body);
            assert_eq!(refused.error(), (409, "waiting".to_owned()));
            assert_eq!(refused.field("retry_after_seconds"), left, "after {waited_ms} ms more");
            assert_eq!(refused.header("Retry-After"), Some(left.to_string().as_str()));
            assert_eq!(refused.field("current_version"), 1, "the committed one");
            assert_eq!(refused.field("current_etag"), etag);
        }
    }
    clock.advance(Duration::from_millis(100));
    acquire(server.address, "a").expect(200);
}

/// LS-31 on a server that lets nobody wait: zero seconds of patience mean none at all there.
pub fn a_server_may_let_nobody_wait(backend: &dyn Backend) {
    let server = TestServer::fresh_with(backend, |options| options.settings.acquire_block_max = Duration::ZERO);
    hold(server.address, "a");
    for patience in [0, 20] {
        let body = json!({"key": "a", "owner": "other", "block_seconds": patience});
        assert_eq!(acquire_with(server.address, &body).error(), (409, "waiting".to_owned()));
    }
}

/// LS-32: patience ends after the seconds that were asked for.
pub fn patience_ends_in_time(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    hold(server.address, "a");
    let began = Instant::now();
    let refused = begin_acquire(server.address, "a", 2).read_answer();
    let waited = began.elapsed();
    assert_eq!(refused.error(), (409, "waiting".to_owned()));
    assert!(Duration::from_millis(1_900) <= waited, "{waited:?}");
    assert!(waited < Duration::from_secs(20), "{waited:?}");
    let retry = refused.field("retry_after_seconds").as_i64().unwrap();
    assert!((1..=29).contains(&retry), "{retry}");
    assert_eq!(server.server.waiting(), 0);
}

/// LS-33: who waits without limit gets the key after a release, and sees what was committed.
pub fn a_waiter_gets_the_key_at_its_release(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for (patience, ends) in [(0, "release"), (20, "release"), (0, "rollback")] {
        let held = hold(server.address, "a");
        held.update("1").expect(200);
        let mut waiter = begin_acquire(server.address, "a", patience);
        server.wait_until_waiting(1);
        assert!(
            waiter.is_silent_for(Duration::from_millis(100)),
            "not even headers come early"
        );
        let ended = Instant::now();
        if ends == "release" {
            held.release()
        } else {
            held.rollback()
        }
        .expect(200);
        let granted = Held::from_answer(server.address, &waiter.read_answer());
        assert!(ended.elapsed() < AT_ONCE, "{:?}", ended.elapsed());
        assert_eq!(granted.token, held.token + 1);
        assert_eq!(granted.version, held.version + i64::from(ends == "release"));
        granted.update("2").expect(200);
        granted.rollback().expect(200);
    }
}

/// LS-33: who waits gets the key when the holder's lease ends by itself, also when keepalive moved that end.
pub fn a_waiter_gets_the_key_when_the_lease_expires(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = Held::from_answer(
        server.address,
        &acquire_with(server.address, &json!({"key": "a", "owner": "test", "ttl_seconds": 2})),
    );
    let mut waiter = begin_acquire(server.address, "a", 0);
    let granted = Held::from_answer(server.address, &waiter.read_answer());
    let now = unix_now();
    assert!(
        held.expires_at_unix <= now && now <= held.expires_at_unix + 5,
        "{} {now}",
        held.expires_at_unix
    );

    let mut waiter = begin_acquire(server.address, "a", 0);
    server.wait_until_waiting(1);
    let shortened = granted
        .keepalive(1)
        .expect(200)
        .field("expires_at_unix")
        .as_i64()
        .unwrap();
    Held::from_answer(server.address, &waiter.read_answer());
    let now = unix_now();
    assert!(shortened <= now && now <= shortened + 5, "{shortened} {now}");
}

/// LS-34: acquire is not re-entrant, not for the same owner, transaction or connection.
pub fn the_holder_itself_must_wait_like_everybody(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let mut connection = Connection::open(server.address);
    let held = hold(server.address, "a");
    for txn_id in ["", held.txn_id.as_str()] {
        let body = json!({"key": "a", "owner": "test", "txn_id": txn_id, "block_seconds": -1}).to_string();
        let answer = connection.ask("POST", "/v1/acquire", &[], body.as_bytes());
        assert_eq!(answer.error(), (409, "waiting".to_owned()));
    }
    held.update("1").expect(200);
}

/// LS-35: fifty clients at one key: at no time do two of them hold it, and each grant's token is the next number.
pub fn fifty_clients_never_hold_one_key_together(backend: &dyn Backend) {
    const CLIENTS: usize = 50;
    const ROUNDS: usize = 4;
    let server = TestServer::fresh(backend);
    let (holders, tokens) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, holders, tokens) = (&server, &holders, &tokens);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let held = Held::from_answer(server.address, &begin_acquire(server.address, "a", 0).read_answer());
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                    tokens.lock().unwrap().push(held.token);
                    held.update(&json!([client, round]).to_string()).expect(200);
                    assert_eq!(held.get().expect(200).json(), json!([client, round]));
                    assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1, "two holders");
                    held.release().expect(200);
                }
            });
        }
    });
    let expected: Vec<i64> = (1..).take(CLIENTS * ROUNDS).collect();
    assert_eq!(*tokens.lock().unwrap(), expected, "tokens in the order of the grants");
    assert_eq!(hold(server.address, "a").version, (CLIENTS * ROUNDS) as i64);
}

/// LS-35 on two servers that share a store.
pub fn clients_of_two_servers_never_hold_one_key_together(backend: &dyn Backend) {
    const CLIENTS: usize = 16;
    const ROUNDS: i64 = 3;
    let place = backend.open();
    let servers = [(); 2].map(|()| TestServer::start(place.store(), ServerOptions::default()));
    let (holders, last_token) = (AtomicUsize::new(0), AtomicI64::new(0));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, other) = (&servers[client % 2], &servers[(client + 1) % 2]);
            let (holders, last_token) = (&holders, &last_token);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let held = Held::from_answer(server.address, &begin_acquire(server.address, "a", 0).read_answer());
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                    assert_eq!(last_token.swap(held.token, Ordering::SeqCst), held.token - 1);
                    held.at(other.address).update("1").expect(200);
                    assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1, "two holders");
                    held.at(other.address).release().expect(200);
                }
            });
        }
    });
    assert_eq!(last_token.load(Ordering::SeqCst), CLIENTS as i64 * ROUNDS);
}

/// Waiters get the key in the order in which they came.
pub fn waiters_are_served_in_the_order_of_their_arrival(backend: &dyn Backend) {
    const WAITERS: usize = 12;
    let server = TestServer::fresh(backend);
    let mut held = hold(server.address, "a");
    let mut waiters = Vec::new();
    for number in 1..=WAITERS {
        // Some patient, some less so: that makes no difference to their turn.
        waiters.push(begin_acquire(server.address, "a", if number % 2 == 0 { 0 } else { 60 }));
        server.wait_until_waiting(number);
    }
    for (number, waiter) in waiters.iter_mut().enumerate() {
        held.release().expect(200);
        let next = Held::from_answer(server.address, &waiter.read_answer());
        assert_eq!(next.token, held.token + 1, "waiter {number}");
        held = next;
    }
}

/// How a client may leave without a word.
type Leave = fn(Connection) -> Option<Connection>;

const WAYS_TO_LEAVE: [(&str, Leave); 3] = [
    ("closes", |connection| {
        drop(connection);
        None
    }),
    ("closes its sending side", |connection| {
        connection.close_sending_side();
        Some(connection)
    }),
    ("aborts", |connection| {
        connection.abort();
        None
    }),
];

/// LS-36: a waiter that has gone gets nothing: after the release the key is free at once.
pub fn a_key_is_never_granted_to_a_waiter_that_has_gone(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for (how, leave) in WAYS_TO_LEAVE {
        let held = hold(server.address, "a");
        let waiter = begin_acquire(server.address, "a", 0);
        server.wait_until_waiting(1);
        let _half = leave(waiter);
        held.release().expect(200);
        let next = acquire(server.address, "a");
        assert_eq!(next.status, 200, "a waiter {how}: {next:?}");
        Held::from_answer(server.address, &next).release().expect(200);
        wait_until("the waiter is forgotten", || server.server.waiting() == 0);
        assert!(
            describe(server.address, "a").field("lease_id").is_null(),
            "a waiter {how}"
        );
    }
}

/// LS-36: those who left do not hold up those who stayed, wherever they stood in the queue.
pub fn waiters_that_have_gone_hold_nobody_up(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let (mut staying, mut leaving) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        for (_, leave) in WAYS_TO_LEAVE {
            leaving.push((begin_acquire(server.address, "a", 0), leave));
            server.wait_until_waiting(staying.len() + leaving.len());
        }
        staying.push(begin_acquire(server.address, "a", 0));
        server.wait_until_waiting(staying.len() + leaving.len());
    }
    let _half: Vec<_> = leaving.into_iter().map(|(waiter, leave)| leave(waiter)).collect();
    let began = Instant::now();
    let mut held = held;
    for waiter in &mut staying {
        held.release().expect(200);
        let next = Held::from_answer(server.address, &waiter.read_answer());
        assert_eq!(next.token, held.token + 1, "nobody else had it in between");
        held = next;
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// LS-36: a waiter that has gone is forgotten after a while, although nothing else happens.
pub fn a_waiter_that_has_gone_is_found_although_nothing_is_released(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    hold(server.address, "a");
    let gone = begin_acquire(server.address, "a", 0);
    let _stays = begin_acquire(server.address, "a", 0);
    server.wait_until_waiting(2);
    drop(gone);
    wait_until("the one that has gone is forgotten", || server.server.waiting() == 1);
}

/// LS-36 and LS-112 over two servers: the key is released on one, and the waiter on the other has gone.
pub fn a_waiter_of_another_server_that_has_gone_gets_nothing(backend: &dyn Backend) {
    let place = backend.open();
    let [a, b] = [(); 2].map(|()| TestServer::start(place.store(), ServerOptions::default()));
    for (how, leave) in WAYS_TO_LEAVE {
        let held = hold(b.address, "a");
        let waiter = begin_acquire(a.address, "a", 0);
        a.wait_until_waiting(1);
        let _half = leave(waiter);
        held.release().expect(200);
        // Whoever asks now gets the key, or else the one that has gone got it.
        let next = acquire(b.address, "a");
        assert_eq!(next.status, 200, "a waiter {how}: {next:?}");
        Held::from_answer(b.address, &next).release().expect(200);
        wait_until("the waiter is forgotten", || a.server.waiting() == 0);
        assert!(describe(b.address, "a").field("lease_id").is_null(), "a waiter {how}");
    }
}

/// LS-112: a waiter on one server gets the key soon after its release on another, and in turn with those over there.
pub fn a_waiter_hears_of_a_release_on_another_server(backend: &dyn Backend) {
    let place = backend.open();
    let [a, b] = [(); 2].map(|()| TestServer::start(place.store(), ServerOptions::default()));
    let held = hold(b.address, "a");
    held.update("1").expect(200);
    let mut waiter = begin_acquire(a.address, "a", 0);
    a.wait_until_waiting(1);
    let released = Instant::now();
    held.release().expect(200);
    let granted = Held::from_answer(a.address, &waiter.read_answer());
    assert!(released.elapsed() < Duration::from_secs(6), "{:?}", released.elapsed());
    assert_eq!((granted.token, granted.version), (2, 1));
    assert_eq!(granted.at(b.address).get().expect(200).body, b"1");
    assert_eq!(acquire(b.address, "a").code(), "waiting");
    granted.at(b.address).release().expect(200);
}

/// LS-37: create-only means that there is no record, whatever the record holds; and it never waits.
pub fn create_only_fails_at_once_on_any_key_that_was_ever_acquired(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let create = |key: &str, patience: i64| {
        let body = json!({"key": key, "owner": "test", "if_not_exists": true, "block_seconds": patience});
        acquire_with(server.address, &body)
    };
    let refused = (409, "already_exists".to_owned());
    let held = Held::from_answer(server.address, &create("a", 20));
    let began = Instant::now();
    for patience in [20, 0, -1] {
        assert_eq!(create("a", patience).error(), refused, "held");
    }
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "nobody waited: {:?}",
        began.elapsed()
    );
    held.release().expect(200);
    let answer = create("a", 0);
    assert_eq!(answer.error(), refused, "released without a state");
    assert_eq!(answer.header("Retry-After"), None);
    let held = hold(server.address, "a");
    held.update("1").expect(200);
    held.release().expect(200);
    assert_eq!(create("a", 0).error(), refused, "with a state");
    let held = hold(server.address, "a");
    held.remove().expect(200);
    held.release().expect(200);
    assert_eq!(get_public(server.address, "a").status, 204);
    assert_eq!(create("a", 0).error(), refused, "after removal");
}

/// LS-38: of ten that create one key at the same time, one succeeds.
pub fn one_of_ten_creators_succeeds(backend: &dyn Backend) {
    let place = backend.open();
    let servers = [(); 2].map(|()| TestServer::start(place.store(), ServerOptions::default()));
    for round in 0..10 {
        let body = json!({"key": format!("key{round}"), "owner": "test", "if_not_exists": true});
        let statuses: Vec<u16> = thread::scope(|scope| {
            let creators: Vec<_> = (0..10)
                .map(|number| {
                    let (address, body) = (servers[number % 2].address, &body);
                    scope.spawn(move || acquire_with(address, body))
                })
                .collect();
            creators
                .into_iter()
                .map(|creator| creator.join().unwrap().status)
                .collect()
        });
        assert_eq!(
            statuses.iter().filter(|status| **status == 200).count(),
            1,
            "{statuses:?}"
        );
        assert_eq!(
            statuses.iter().filter(|status| **status == 409).count(),
            9,
            "{statuses:?}"
        );
    }
}

/// LS-39, LS-15: a draining server grants nothing new and sends waiters away at once, while holders finish; every answer
/// announces the shutdown, and before that none does.
pub fn a_draining_server_grants_nothing_and_lets_holders_finish(backend: &dyn Backend) {
    let server = TestServer::fresh_with(backend, |options| {
        options.close = CloseOptions::new()
            .drain_leases(Duration::from_secs(40))
            .shutdown_timeout(Duration::from_secs(60));
    });
    let address = server.address;
    let (held, other) = (hold(address, "a"), hold(address, "b"));
    let mut waiters: Vec<_> = [0, 50, 0].map(|patience| begin_acquire(address, "a", patience)).into();
    server.wait_until_waiting(3);
    let announces = |answer: &Answer| answer.header("Shutdown-Imminent").map(str::to_owned);
    assert_eq!(announces(&held.keepalive(30)), None);
    assert_eq!(announces(&send(address, "GET", "/readyz", &[], b"")), None);

    thread::scope(|scope| {
        let stopping = scope.spawn(|| server.server.shutdown());
        wait_until("the drain has begun", || {
            send(address, "GET", "/readyz", &[], b"").status == 503
        });
        for waiter in &mut waiters {
            let refused = waiter.read_answer();
            assert_draining(&refused);
        }
        for patience in [-1, 0, 20] {
            let body = json!({"key": "new", "owner": "test", "block_seconds": patience});
            assert_draining(&acquire_with(address, &body));
        }
        assert_draining(&acquire(address, "a"));
        let served = [
            ("204", get_public(address, "a").expect(204)),
            ("describe", describe(address, "a").expect(200)),
            ("keepalive", held.keepalive(30).expect(200)),
            ("update", held.update("1").expect(200)),
            ("get", held.get().expect(200)),
            ("conflict", held.update_if("1", &[("X-If-Version", "7")]).expect(409)),
            ("400", acquire_with(address, &json!({})).expect(400)),
            ("404", send(address, "GET", "/nowhere", &[], b"").expect(404)),
            ("405", send(address, "GET", "/v1/acquire", &[], b"").expect(405)),
            ("healthz", send(address, "GET", "/healthz", &[], b"").expect(200)),
            ("readyz", send(address, "GET", "/readyz", &[], b"").expect(503)),
            ("release", held.release().expect(200)),
            ("public get", get_public(address, "a").expect(200)),
        ];
        for (what, answer) in served {
            assert_eq!(announces(&answer).as_deref(), Some("true"), "{what}");
        }
        assert!(!stopping.is_finished(), "one lease is still held");
        let last = Instant::now();
        other.release().expect(200);
        stopping.join().unwrap();
        assert!(
            last.elapsed() < Duration::from_secs(20),
            "no lease, no drain: {:?}",
            last.elapsed()
        );
    });
}

/// LS-39, the quiet way: whoever asks for no announcement gets none.
pub fn a_drain_may_be_kept_quiet(backend: &dyn Backend) {
    let server = TestServer::fresh_with(backend, |options| {
        options.close = CloseOptions::new()
            .drain_leases(Duration::from_secs(40))
            .shutdown_timeout(Duration::from_secs(60))
            .notify(false);
    });
    let held = hold(server.address, "a");
    thread::scope(|scope| {
        let stopping = scope.spawn(|| server.server.shutdown());
        wait_until("the drain has begun", || {
            send(server.address, "GET", "/readyz", &[], b"").status == 503
        });
        let refused = acquire(server.address, "b");
        assert_draining(&refused);
        assert_eq!(refused.header("Shutdown-Imminent"), None);
        assert_eq!(held.release().expect(200).header("Shutdown-Imminent"), None);
        stopping.join().unwrap();
    });
}

/// LS-40: every grant raises the token by one, whatever ended the lease before; keepalive leaves it.
pub fn every_grant_raises_the_token_by_one(backend: &dyn Backend) {
    let place = backend.open();
    let clock = ManualClock::at_wall_ms(1_767_261_600_000);
    let start = || {
        let options = ServerOptions {
            clock: clock.clone(),
            ..ServerOptions::default()
        };
        TestServer::start(place.store(), options)
    };
    let ends: [(&str, fn(&Held)); 4] = [
        ("release", |held| drop(held.release().expect(200))),
        ("commit", |held| {
            held.update("1").expect(200);
            held.release().expect(200);
        }),
        ("removal", |held| {
            held.remove().expect(200);
            held.release().expect(200);
        }),
        ("rollback", |held| {
            held.update("1").expect(200);
            held.rollback().expect(200);
        }),
    ];
    let mut expected = 0;
    let mut server = start();
    for _ in 0..2 {
        for (name, end) in ends {
            expected += 1;
            let held = hold(server.address, "a");
            assert_eq!(held.token, expected, "before {name}");
            let kept = held.keepalive(30).expect(200);
            assert_eq!(kept.header("X-Fencing-Token"), Some(expected.to_string().as_str()));
            end(&held);
        }
        expected += 1;
        assert_eq!(hold(server.address, "a").token, expected);
        clock.advance(Duration::from_secs(31));
        expected += 1;
        let held = hold(server.address, "a");
        assert_eq!(held.token, expected, "after expiry");
        held.update("1").expect(200);
        // A crash gives nothing back: the lease lives on and is honoured by whoever serves next.
        server.server.abort();
        server = start();
        assert_eq!(acquire(server.address, "a").code(), "waiting", "after a restart");
        held.at(server.address).release().expect(200);
    }
}

/// A grant whose answer cannot be written is given back: nobody who is there waits for somebody who is not. (A grant that was
/// delivered before its client went cannot be told from one that was received: that one ends with its time to live.)
pub fn a_grant_that_cannot_be_delivered_is_given_back(backend: &dyn Backend) {
    let (begins, has_begun) = channel();
    let (goes_on, may_go_on) = channel();
    let may_go_on = Mutex::new(may_go_on);
    let gate = move |_| {
        begins.send(()).unwrap();
        may_go_on.lock().unwrap().recv().unwrap();
    };
    let store = Arc::new(FaultStore::new(
        backend.open().store(),
        FaultPlan::quiet(0),
        Arc::new(gate),
    ));
    let server = TestServer::start(store.clone(), ServerOptions::default());
    for _ in 0..10 {
        store.inject_next(Operation::Write, Fault::Delay(Duration::ZERO));
        let client = begin_acquire(server.address, "a", 20);
        has_begun.recv().unwrap();
        // The lease is being written down, and nobody will look for the client any more.
        client.abort();
        goes_on.send(()).unwrap();
        let answer = begin_acquire(server.address, "a", 20).read_answer();
        Held::from_answer(server.address, &answer).release().expect(200);
    }
}

/// An acquire behind one that waits is treated when that one is done with. If its client has gone by then, it gets nothing.
pub fn a_request_behind_a_waiting_one_grants_nothing_to_a_client_that_has_gone(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for (how, leave) in WAYS_TO_LEAVE {
        let gate = hold(server.address, "gate");
        let mut waiter = begin_acquire(server.address, "gate", 0);
        server.wait_until_waiting(1);
        let body = json!({"key": "a", "owner": "gone", "block_seconds": -1}).to_string();
        waiter.send_request("POST", "/v1/acquire", &[], body.as_bytes());
        let _half = leave(waiter);
        gate.release().expect(200);
        wait_until("the waiter is forgotten", || server.server.waiting() == 0);
        // The request behind it may not have been treated yet, hence again and again.
        for _ in 0..20 {
            let answer = begin_acquire(server.address, "a", 20).read_answer();
            assert_eq!(answer.status, 200, "a waiter {how}: {answer:?}");
            Held::from_answer(server.address, &answer).release().expect(200);
        }
    }
}

/// Waiters that come and go at any moment, while the key is held and is passed on, leave nothing behind: those who stay get
/// it one after the other.
pub fn clients_that_come_and_go_leave_no_lease_behind(backend: &dyn Backend) {
    const ROUNDS: i64 = 15;
    let server = TestServer::fresh(backend);
    let mut held = hold(server.address, "a");
    for _ in 0..ROUNDS {
        let staying = thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..8 {
                        let waiter = begin_acquire(server.address, "a", 0);
                        // Anywhere from before it is parked to long after.
                        thread::sleep(Duration::from_micros(fastrand::u64(0..3_000)));
                        waiter.abort();
                    }
                });
            }
            begin_acquire(server.address, "a", 0)
        });
        let began = Instant::now();
        held.release().expect(200);
        let mut staying = staying;
        held = Held::from_answer(server.address, &staying.read_answer());
        // A grant to one that has gone would have ended with its time to live.
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
    held.release().expect(200);
    wait_until("the key is free", || acquire(server.address, "a").status == 200);
}

#[track_caller]
fn assert_draining(answer: &Answer) {
    assert_eq!(answer.error(), (503, "shutdown_draining".to_owned()));
    let retry = answer.field("retry_after_seconds").as_i64().unwrap();
    assert!((1..=40).contains(&retry), "{retry}");
    assert_eq!(answer.header("Retry-After"), Some(retry.to_string().as_str()));
}

fn unix_now() -> i64 {
    let since_epoch = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    i64::try_from(since_epoch.as_secs()).unwrap()
}
