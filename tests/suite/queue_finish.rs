//! What becomes of a message that was delivered: ack, nack, extend, and the ends that come by themselves.

use std::sync::Arc;
use std::time::Duration;

use lockd::clock::ManualClock;
use lockd::store::{Batch, Change, Precondition, RecordKey, RecordWrite};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::fixture::{Backend, TestServer};
use super::http::{Answer, Connection, send};
use super::process::Daemon;
use super::queue_calls::{
    Message, assert_empty, dequeue_with, enqueue, enqueue_meta, post, queue_options, queue_server, queue_server_at,
    stats, take, take_with_state, until_some, wish,
};

/// What the clock of these tests shows at first.
const BEGINNING_MS: i64 = 1_767_261_600_250;

/// A server whose clock only the test moves.
fn scene(backend: &dyn Backend) -> (TestServer, Arc<ManualClock>) {
    let clock = ManualClock::at_wall_ms(BEGINNING_MS);
    (queue_server_at(backend, clock.clone()), clock)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Takes the only message without waiting.
#[track_caller]
fn take_now(server: &TestServer) -> Message {
    let mut messages =
        dequeue_with(server.address, "dequeue", &wish("q")).unwrap_or_else(|answer| panic!("{answer:?}"));
    messages.remove(0)
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.error(), (status, code.to_owned()));
}

/// LQ-37.
pub fn an_ack_removes_a_message_once(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"x");
    let message = take(server.address, "q");
    assert_eq!(message.ack().expect(200).field("acked"), json!(true));
    refused(&message.ack(), 404, "not_found");
    refused(&message.nack(&json!({})), 404, "not_found");
    refused(&message.extend(10), 404, "not_found");
    assert_empty(server.address, "q");
}

/// LQ-38.
pub fn a_call_by_somebody_else_leaves_a_message_alone(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"x");
    let message = take(server.address, "q");
    for wrong in [
        json!({"lease_id": "d4k7q2m0h5r8e1t6n9bg"}),
        json!({"fencing_token": 2}),
        json!({"fencing_token": 0}),
        json!({"txn_id": "d4k7q2m0h5r8e1t6n9bg"}),
    ] {
        for endpoint in ["ack", "nack", "extend"] {
            let answer = post(server.address, endpoint, &message.proof_with(&wrong));
            refused(&answer, 409, "queue_message_lease_mismatch");
        }
    }
    // Without a transaction, that of the message counts.
    post(server.address, "ack", &message.proof_with(&json!({"txn_id": ""}))).expect(200);
}

/// LQ-39, LQ-45.
pub fn a_stale_etag_matters_to_nack_and_extend_but_not_to_ack(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"x");
    let message = take(server.address, "q");
    let extended = message.extend(60).expect(200);
    assert_ne!(extended.field("meta_etag"), message.meta["meta_etag"]);
    refused(&message.nack(&json!({})), 409, "cas_mismatch");
    refused(&message.extend(60), 409, "cas_mismatch");
    message.ack().expect(200);
}

/// LQ-40, LQ-47, LQ-48.
pub fn extend_sets_the_end_of_the_lease_anew(backend: &dyn Backend) {
    let (server, clock) = scene(backend);
    enqueue(server.address, "q", b"x");
    let mut message = take_now(&server);
    let began = message.number("lease_expires_at_unix") - 30;
    clock.advance(seconds(10));
    let extended = message.extend(60).expect(200);
    assert_eq!(extended.field("lease_expires_at_unix"), json!(began + 10 + 60));
    assert_eq!(extended.field("visibility_timeout_seconds"), json!(60));
    assert_eq!(extended.field("state_lease_expires_at_unix"), Value::Null);
    message.meta["meta_etag"] = extended.field("meta_etag");
    // Nobody else gets it after its first end.
    clock.advance(seconds(50));
    assert_empty(server.address, "q");
    for zero in [0, -3] {
        let extended = message.extend(zero).expect(200);
        assert_eq!(extended.field("lease_expires_at_unix"), json!(began + 60 + 60));
        message.meta["meta_etag"] = extended.field("meta_etag");
    }
    // Sooner is possible, and longer than the maximum of a dequeue.
    let extended = message.extend(5).expect(200);
    assert_eq!(extended.field("lease_expires_at_unix"), json!(began + 60 + 5));
    message.meta["meta_etag"] = extended.field("meta_etag");
    let extended = message.extend(100_000).expect(200);
    assert_eq!(extended.field("lease_expires_at_unix"), json!(began + 60 + 100_000));
    message.meta["meta_etag"] = extended.field("meta_etag");
    clock.advance(seconds(1_000));
    message.ack().expect(200);
}

/// LQ-41.
pub fn a_late_ack_is_told_what_became_of_the_message(backend: &dyn Backend) {
    let (server, clock) = scene(backend);
    enqueue(server.address, "q", b"x");
    let message = take_now(&server);
    clock.advance(Duration::from_millis(29_999));
    assert_empty(server.address, "q");
    clock.advance(Duration::from_millis(1));
    for _ in 0..2 {
        refused(&message.ack(), 403, "lease_expired");
        refused(&message.nack(&json!({})), 403, "lease_expired");
        refused(&message.extend(10), 403, "lease_expired");
    }
    let other = take_now(&server);
    assert_eq!(other.id(), message.id());
    refused(&message.ack(), 409, "queue_message_lease_mismatch");
    other.ack().expect(200);
    refused(&message.ack(), 404, "not_found");
}

/// LQ-42, LQ-43.
pub fn a_nack_counts_as_a_failure_unless_it_defers(backend: &dyn Backend) {
    let (server, clock) = scene(backend);
    enqueue_meta(server.address, &json!({"queue": "q", "max_attempts": 3}), b"x");
    let message = take_now(&server);
    let nacked = message.nack(&json!({"last_error": {"code": "E42"}})).expect(200);
    assert_eq!(nacked.field("requeued"), json!(true));
    assert_ne!(nacked.field("meta_etag"), message.meta["meta_etag"]);
    let message = take_now(&server);
    assert_eq!((message.number("attempts"), message.number("failure_attempts")), (2, 1));
    assert_eq!(message.number("fencing_token"), 2);
    message
        .nack(&json!({"intent": " FAILURE ", "delay_seconds": 10, "last_error": "x"}))
        .expect(200);
    clock.advance(Duration::from_millis(9_999));
    assert_empty(server.address, "q");
    clock.advance(Duration::from_millis(1));
    let mut message = take_now(&server);
    for attempts in 3..8 {
        assert_eq!(
            (message.number("attempts"), message.number("failure_attempts")),
            (attempts, 2)
        );
        message
            .nack(&json!({"intent": "defer", "last_error": null}))
            .expect(200);
        message = take_now(&server);
    }
    message.ack().expect(200);
}

/// LQ-44.
pub fn a_nack_is_refused_for_what_it_cannot_mean(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"x");
    let message = take(server.address, "q");
    refused(&message.nack(&json!({"intent": "maybe"})), 400, "invalid_nack_intent");
    let deferral = json!({"intent": "Defer", "last_error": {}});
    refused(&message.nack(&deferral), 400, "invalid_nack_last_error");
    refused(&message.nack(&json!({"meta_etag": ""})), 400, "missing_fields");
    message.ack().expect(200);
}

/// LQ-46, LQ-49.
pub fn after_a_nack_the_old_lease_does_nothing(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue(server.address, "q", b"x");
    let message = take(server.address, "q");
    let etag = message
        .nack(&json!({"delay_seconds": 60}))
        .expect(200)
        .field("meta_etag");
    refused(&message.ack(), 409, "cas_mismatch");
    refused(&message.nack(&json!({})), 409, "cas_mismatch");
    refused(&message.extend(10), 403, "lease_required");
    let new = json!({"meta_etag": etag});
    refused(&message.nack(&new), 403, "lease_required");
    refused(
        &post(server.address, "ack", &message.proof_with(&new)),
        403,
        "lease_required",
    );
    let without = json!({"meta_etag": ""});
    refused(
        &post(server.address, "ack", &message.proof_with(&without)),
        403,
        "lease_required",
    );
    assert_eq!(stats(server.address, "q")["available"], false);
}

/// LQ-50, LQ-52.
pub fn a_lapsed_lease_is_no_failure(backend: &dyn Backend) {
    let (server, clock) = scene(backend);
    enqueue_meta(server.address, &json!({"queue": "q", "max_attempts": 2}), b"x");
    for number in 1..=10 {
        let message = take_now(&server);
        assert_eq!(
            (message.number("attempts"), message.number("fencing_token")),
            (number, number)
        );
        assert_eq!(message.meta.get("failure_attempts"), None);
        clock.advance(seconds(30));
    }
    take_now(&server).ack().expect(200);
}

/// LQ-51.
pub fn a_message_that_failed_too_often_is_never_delivered_again(backend: &dyn Backend) {
    let server = queue_server(backend);
    enqueue_meta(server.address, &json!({"queue": "q", "max_attempts": 2}), b"x");
    take(server.address, "q").nack(&json!({})).expect(200);
    let message = take(server.address, "q");
    let nacked = message.nack(&json!({})).expect(200);
    assert_eq!(nacked.field("requeued"), json!(true));
    assert_empty(server.address, "q");
    assert_eq!(stats(server.address, "q")["available"], false);
    refused(&message.ack(), 404, "not_found");
}

/// LQ-53.
pub fn a_message_whose_time_is_over_is_gone(backend: &dyn Backend) {
    let (server, clock) = scene(backend);
    enqueue_meta(server.address, &json!({"queue": "q", "ttl_seconds": 40}), b"1");
    enqueue_meta(server.address, &json!({"queue": "q", "ttl_seconds": 40}), b"2");
    let held = take_now(&server);
    clock.advance(seconds(20));
    let held_etag = held.extend(60).expect(200).field("meta_etag");
    clock.advance(seconds(20));
    assert_eq!(stats(server.address, "q")["available"], false);
    assert_empty(server.address, "q");
    // A living lease may finish.
    let body = held.proof_with(&json!({"meta_etag": held_etag}));
    post(server.address, "ack", &body).expect(200);
}

/// LQ-55.
pub fn servers_of_one_store_share_a_queue(backend: &dyn Backend) {
    let place = backend.open();
    let servers: Vec<_> = (0..2)
        .map(|_| TestServer::start(place.store(), queue_options(backend)))
        .collect();
    let [a, b] = [servers[0].address, servers[1].address];
    for round in 0..20 {
        let id = enqueue(a, "q", b"x");
        let message = take(b, "q");
        assert_eq!((message.id(), message.number("attempts")), (id, 1), "{round}");
        // Neither server gives it away a second time, and either may finish it.
        assert_empty(a, "q");
        let finisher = if round % 2 == 0 { a } else { b };
        message.at(finisher).ack().expect(200);
        assert_empty(a, "q");
        assert_empty(b, "q");
    }
}

/// LQ-18 for another server's message, and what comes back from another server.
pub fn a_consumer_hears_of_what_other_servers_enqueue_and_give_back(backend: &dyn Backend) {
    let place = backend.open();
    let servers: Vec<_> = (0..2)
        .map(|_| TestServer::start(place.store(), queue_options(backend)))
        .collect();
    let [a, b] = [servers[0].address, servers[1].address];
    for endpoint in ["dequeue", "subscribe"] {
        let waiting = std::thread::spawn(move || {
            let body = super::queue_calls::wish_waiting("q", 20);
            if endpoint == "dequeue" {
                return super::queue_calls::take_by(b, endpoint, &body);
            }
            let mut stream = super::queue_calls::Stream::open(b, endpoint, &body).unwrap();
            stream.next().unwrap()
        });
        until_some("it waits", || (stats(b, "q")["waiting_consumers"] == 1).then_some(()));
        enqueue(a, "q", b"x");
        let message = waiting.join().unwrap();
        message.at(a).nack(&json!({"intent": "defer"})).expect(200);
        let again = take(b, "q");
        assert_eq!(again.number("attempts"), 2);
        again.ack().expect(200);
    }
}

/// LQ-54: another server over the same store goes on where the first one was.
pub fn messages_and_leases_survive_their_server(backend: &dyn Backend) {
    let place = backend.open();
    let clock = ManualClock::at_wall_ms(BEGINNING_MS);
    let options = || {
        let mut options = queue_options(backend);
        options.clock = clock.clone();
        options
    };
    let first = TestServer::start(place.store(), options());
    let ready = enqueue(first.address, "q", b"ready");
    enqueue_meta(first.address, &json!({"queue": "q", "delay_seconds": 40}), b"delayed");
    let held = take_now(&first);
    enqueue(first.address, "q", b"second");
    take_now(&first).nack(&json!({})).expect(200);
    first.server.abort();
    drop(first);
    let second = TestServer::start(place.store(), options());
    let failed = take_now(&second);
    assert_eq!(failed.payload, b"second");
    assert_eq!((failed.number("attempts"), failed.number("failure_attempts")), (2, 1));
    failed.ack().expect(200);
    assert_empty(second.address, "q");
    clock.advance(seconds(30));
    let again = take_now(&second);
    assert_eq!((again.id(), again.number("attempts")), (ready, 2));
    refused(&held.at(second.address).ack(), 409, "queue_message_lease_mismatch");
    assert_empty(second.address, "q");
    clock.advance(seconds(10));
    assert_eq!(take_now(&second).payload, b"delayed");
}

/// Calls of the state that belongs to a message, by whom it was delivered to.
struct State<'a>(&'a Message);

impl State<'_> {
    fn send(&self, endpoint: &str, body: &[u8]) -> Answer {
        let meta = &self.0.meta;
        let key = format!("q/{}/state/{}", meta["queue"].as_str().unwrap(), self.0.id());
        let token = meta["state_fencing_token"].to_string();
        let headers = [
            ("X-Lease-ID", meta["state_lease_id"].as_str().unwrap()),
            ("X-Txn-ID", meta["state_txn_id"].as_str().unwrap()),
            ("X-Fencing-Token", token.as_str()),
        ];
        let path = format!("/v1/{endpoint}?key={key}&namespace=default");
        send(self.0.address, "POST", &path, &headers, body)
    }

    fn load(&self) -> Vec<u8> {
        self.send("get", b"").body
    }
}

/// LQ-57, LQ-58, LQ-59.
pub fn a_state_goes_along_with_its_message(backend: &dyn Backend) {
    let (server, clock) = scene(backend);
    let id = enqueue_meta(server.address, &json!({"queue": "q", "max_attempts": 1}), b"x");
    let message = take_with_state(server.address, "q");
    for name in ["state_etag", "state_lease_id", "state_txn_id"] {
        assert!(message.meta[name].is_string(), "{name}");
    }
    assert_eq!(message.number("state_fencing_token"), 1);
    assert_eq!(message.meta["state_txn_id"], message.meta["txn_id"]);
    assert!(message.number("lease_expires_at_unix") <= message.number("state_lease_expires_at_unix"));
    let state = State(&message);
    assert_eq!(state.send("get", b"").status, 204);
    state.send("update", b"{\"counter\":1}").expect(200);
    assert_eq!(state.load(), b"{\"counter\":1}");
    // Nothing of it is public before the message is given back, and then it is kept.
    message.nack(&json!({"intent": "defer"})).expect(200);
    let again = take_with_state(server.address, "q");
    assert_eq!((again.id(), again.number("state_fencing_token")), (id, 2));
    assert_eq!(again.meta["state_etag"], message.meta["state_etag"]);
    assert_eq!(State(&again).load(), b"{\"counter\":1}");
    State(&again).send("update", b"{\"counter\":2}").expect(200);
    // What a lapsed delivery had staged is lost.
    clock.advance(seconds(31));
    let third = take_with_state(server.address, "q");
    assert_eq!(State(&third).load(), b"{\"counter\":1}");
    State(&third).send("update", b"{\"counter\":3}").expect(200);
    third.ack().expect(200);
    let key = format!("q/q/state/{}", third.id());
    let public = send(server.address, "GET", &format!("/v1/get?key={key}&public=1"), &[], b"");
    assert_eq!(public.status, 204);
    // A delivery without state says nothing of it.
    enqueue(server.address, "q", b"x");
    assert_eq!(take_now(&server).meta.get("state_lease_id"), None);
}

/// LQ-60.
pub fn the_lease_of_a_state_is_prolonged_with_its_message(backend: &dyn Backend) {
    let (server, clock) = scene(backend);
    enqueue(server.address, "q", b"x");
    let message = take_with_state(server.address, "q");
    let key = format!("q/q/state/{}", message.id());
    let body = json!({"key": key, "lease_id": message.meta["state_lease_id"], "ttl_seconds": 60,
        "txn_id": message.meta["txn_id"]});
    let token = [("X-Fencing-Token", "1")];
    let answer = send(
        server.address,
        "POST",
        "/v1/keepalive",
        &token,
        body.to_string().as_bytes(),
    );
    refused(&answer, 403, "queue_state_keepalive_unsupported");
    clock.advance(seconds(20));
    let wrong = message.proof_with(&json!({"extend_by_seconds": 60, "state_lease_id": "d4k7q2m0h5r8e1t6n9bg"}));
    refused(&post(server.address, "extend", &wrong), 403, "lease_required");
    let extended = message.extend(60).expect(200);
    assert_eq!(
        extended.field("state_lease_expires_at_unix"),
        extended.field("lease_expires_at_unix")
    );
    clock.advance(seconds(50));
    State(&message).send("update", b"1").expect(200);
    message.ack().expect(200);
}

/// Somebody holds the state of the first message by hand: the next one is delivered.
pub fn a_message_whose_state_is_held_by_hand_is_skipped(backend: &dyn Backend) {
    let server = queue_server(backend);
    let first = enqueue(server.address, "q", b"1");
    let second = enqueue(server.address, "q", b"2");
    let lock = super::lockd_calls::hold(server.address, &format!("q/q/state/{first}"));
    assert_eq!(take_with_state(server.address, "q").id(), second);
    lock.release().expect(200);
}

/// A message whose record is damaged is not delivered, and those before and behind it are.
pub fn a_damaged_message_holds_up_no_others(backend: &dyn Backend) {
    let place = backend.open();
    let server = TestServer::start(place.store(), queue_options(backend));
    let first = enqueue(server.address, "q", b"1");
    let damaged = enqueue(server.address, "q", b"2");
    let third = enqueue(server.address, "q", b"3");
    let key = RecordKey::new(format!("m/default/q/{damaged}"));
    let garbage = Batch {
        records: vec![RecordWrite {
            key,
            precondition: Precondition::Any,
            change: Change::Put(Arc::from(*b"garbage")),
        }],
        ..Batch::default()
    };
    place.store().write(garbage).unwrap();
    assert_eq!(take(server.address, "q").id(), first);
    assert_eq!(take(server.address, "q").id(), third);
    assert_empty(server.address, "q");
    assert_eq!(stats(server.address, "q")["available"], false);
    // The same for a server that finds it there, and for one that hears of it later.
    let other = TestServer::start(place.store(), queue_options(backend));
    assert_empty(other.address, "q");
    let fourth = enqueue(server.address, "q", b"4");
    assert_eq!(take(other.address, "q").id(), fourth);
}

/// LQ-56: a server that is killed while a payload comes in has not taken the message.
pub fn a_kill_in_the_middle_of_an_enqueue_leaves_no_message(backend: &dyn Backend) {
    let place = backend.open();
    let (daemon, address) = Daemon::on_tcp(&*place);
    enqueue(address, "q", b"whole");
    let body = super::queue_calls::enqueue_body("b", "{\"queue\":\"q\"}", &vec![b'x'; 8 * 1024 * 1024]);
    let mut connection = Connection::open(address);
    let head = format!(
        "POST /v1/queue/enqueue HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\
         Content-Type: multipart/related; boundary=b\r\n\r\n",
        body.len()
    );
    connection.send(head.as_bytes());
    connection.send(&body[..body.len() / 2]);
    daemon.signal(Signal::KILL);
    drop(daemon);
    let (_daemon, address) = Daemon::on_tcp(&*place);
    if backend.name() != "mem" {
        take(address, "q").ack().expect(200);
    }
    assert_empty(address, "q");
}

/// LQ-63: a message that takes part in a transaction decides it.
pub fn a_message_decides_the_transaction_that_it_takes_part_in(backend: &dyn Backend) {
    use super::lockd_calls::{get_public, hold_in};
    let server = queue_server(backend);
    for (number, endpoint, status) in [(1, "ack", 200), (2, "nack", 204)] {
        let txn_id = format!("d4k7q2m0h5r8e1t6n{number}bg");
        let key = format!("key-{number}");
        enqueue(server.address, "q", b"x");
        let held = hold_in(server.address, &key, &txn_id);
        held.update("{\"done\":true}").expect(200);
        let mut body = wish("q");
        body["txn_id"] = json!(txn_id);
        let message = dequeue_with(server.address, "dequeue", &body).unwrap().remove(0);
        assert_eq!(message.meta["txn_id"], json!(txn_id));
        post(server.address, endpoint, &message.proof()).expect(200);
        assert_eq!(get_public(server.address, &key).status, status, "{endpoint}");
    }
    let again = take(server.address, "q");
    assert_eq!((again.number("attempts"), again.number("failure_attempts")), (2, 1));
}
