//! Every call of a holder is checked: lease, life, token, transaction, in this order. What expiry does, what keepalive
//! does.

use std::sync::Arc;
use std::time::Duration;

use lockd::clock::ManualClock;
use serde_json::json;

use super::fixture::{Backend, ServerOptions, TestServer};
use super::http::{Answer, send};
use super::lockd_calls::{Held, acquire, acquire_with, describe, get_public, hold};

/// An arbitrary wall time with a broken second.
const WALL_MS: i64 = 1_767_261_600_700;

fn with_manual_clock(backend: &dyn Backend) -> (TestServer, Arc<ManualClock>) {
    let clock = ManualClock::at_wall_ms(WALL_MS);
    let options = ServerOptions {
        clock: clock.clone(),
        ..ServerOptions::default()
    };
    (TestServer::start(backend.open().store(), options), clock)
}

fn hold_for(server: &TestServer, key: &str, ttl_seconds: i64) -> Held {
    let body = json!({"key": key, "owner": "test", "ttl_seconds": ttl_seconds, "block_seconds": -1});
    Held::from_answer(server.address, &acquire_with(server.address, &body))
}

/// Every call that needs the lease, by name.
fn leased_calls(held: &Held) -> Vec<(&'static str, Answer)> {
    vec![
        ("get", held.get()),
        ("update", held.update("2")),
        ("keepalive", held.keepalive(30)),
        ("remove", held.remove()),
        ("metadata", held.hide(true)),
    ]
}

#[track_caller]
fn assert_all(held: &Held, status: u16, code: &str) {
    for (name, answer) in leased_calls(held) {
        assert_eq!(answer.error(), (status, code.to_owned()), "{name}");
    }
}

/// LS-41: without the lease on the key nothing works, whether the key is unknown or somebody else's.
pub fn a_foreign_lease_is_no_lease(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "mine");
    let unknown = Held {
        key: "unknown".to_owned(),
        ..held.clone()
    };
    assert_all(&unknown, 403, "lease_required");
    assert_eq!(describe(server.address, "unknown").field("version"), 0);
    assert!(
        describe(server.address, "unknown").field("updated_at_unix").is_null(),
        "no record came into being"
    );

    let other = hold(server.address, "other");
    other.update("1").expect(200);
    other.release().expect(200);
    let other = hold(server.address, "other");
    let intruder = Held {
        key: "other".to_owned(),
        ..held
    };
    assert_all(&intruder, 403, "lease_required");
    let refused = intruder.update("2");
    assert_eq!(
        refused.field("current_version"),
        1,
        "a refusal tells the committed version"
    );
    assert_eq!(other.get().expect(200).body, b"1");
    other.release().expect(200);
    assert_eq!(
        get_public(server.address, "other").body,
        b"1",
        "nothing was staged for anybody"
    );
}

/// LS-42: the right lease with a wrong token is refused, whether the token is older or newer.
pub fn a_wrong_token_is_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    hold(server.address, "a").release().expect(200);
    let held = hold(server.address, "a");
    for token in [1, 3, 0, -2, i64::MAX] {
        let wrong = Held { token, ..held.clone() };
        assert_all(&wrong, 403, "fencing_mismatch");
    }
    held.update("1").expect(200);
}

/// LS-43: no transaction is 400, another one 409; and before that comes the lease.
pub fn the_transaction_must_be_named_and_right(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let nameless = Held {
        txn_id: String::new(),
        ..held.clone()
    };
    let other = Held {
        txn_id: "d4k7q2m0h5r8e1t6n9b0".to_owned(),
        ..held.clone()
    };
    for (name, answer) in leased_calls(&nameless).into_iter().filter(|(name, _)| *name != "get") {
        assert_eq!(answer.error(), (400, "missing_txn".to_owned()), "{name}");
    }
    for (name, answer) in leased_calls(&other).into_iter().filter(|(name, _)| *name != "get") {
        assert_eq!(answer.error(), (409, "txn_mismatch".to_owned()), "{name}");
    }
    let foreign = Held {
        lease_id: "d4k7q2m0h5r8e1t6n9b0".to_owned(),
        ..nameless
    };
    assert_eq!(
        foreign.keepalive(30).code(),
        "lease_required",
        "the lease is looked at first"
    );
    held.update("1").expect(200);
}

/// LS-44: reading needs no transaction id.
pub fn reading_needs_no_transaction(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    held.update("1").expect(200);
    let token = held.token.to_string();
    let headers = [
        ("X-Lease-ID", held.lease_id.as_str()),
        ("X-Fencing-Token", token.as_str()),
    ];
    let state = send(server.address, "POST", "/v1/get?key=a", &headers, b"").expect(200);
    assert_eq!(state.body, b"1");
    assert_eq!(state.header("X-Fencing-Token"), Some("1"));
}

/// LS-45: at its last second exactly a lease is dead. The first late call hears that it expired, later ones that there
/// is none.
pub fn a_lease_is_dead_at_its_last_second_exactly(backend: &dyn Backend) {
    let late_calls: [(&str, fn(&Held) -> Answer); 5] = [
        ("update", |held| held.update("2")),
        ("get", Held::get),
        ("keepalive", |held| held.keepalive(30)),
        ("remove", Held::remove),
        ("metadata", |held| held.hide(true)),
    ];
    let (server, clock) = with_manual_clock(backend);
    for (name, call) in late_calls {
        let held = hold_for(&server, name, 5);
        clock.set_wall_ms(held.expires_at_unix * 1000 - 1);
        held.update("1").expect(200);
        clock.set_wall_ms(held.expires_at_unix * 1000);
        assert!(
            describe(server.address, name).field("lease_id").is_string(),
            "nobody has looked yet"
        );
        assert_eq!(call(&held).error(), (403, "lease_expired".to_owned()), "{name}");
        assert_eq!(call(&held).error(), (403, "lease_required".to_owned()), "{name} again");
        assert!(describe(server.address, name).field("lease_id").is_null(), "{name}");
        clock.set_wall_ms(WALL_MS);
    }
}

/// LS-46: after expiry anybody may acquire at once, and the old holder is nobody.
pub fn an_expired_lease_is_taken_over_at_once(backend: &dyn Backend) {
    let (server, clock) = with_manual_clock(backend);
    let old = hold_for(&server, "a", 5);
    clock.advance(Duration::from_secs(4));
    assert_eq!(acquire(server.address, "a").code(), "waiting");
    clock.advance(Duration::from_secs(1));
    let new = hold_for(&server, "a", 5);
    assert_eq!(new.token, old.token + 1);
    assert_all(&old, 403, "lease_required");
    new.update("1").expect(200);
    new.release().expect(200);
}

/// LS-47: what an expired lease had staged is gone for good, for the next holder and for the late one.
pub fn what_an_expired_lease_staged_is_gone(backend: &dyn Backend) {
    let (server, clock) = with_manual_clock(backend);
    let first = hold_for(&server, "a", 5);
    first.update("\"committed\"").expect(200);
    first.release().expect(200);

    let late = hold_for(&server, "a", 5);
    late.update("\"staged\"").expect(200);
    late.hide(true).expect(200);
    clock.advance(Duration::from_secs(6));
    let next = hold_for(&server, "a", 5);
    assert_eq!((next.version, next.get().body), (1, b"\"committed\"".to_vec()));
    late.release().expect(200);
    assert_eq!(
        next.get().expect(200).body,
        b"\"committed\"",
        "the late release did nothing"
    );
    next.release().expect(200);
    assert_eq!(get_public(server.address, "a").body, b"\"committed\"");
    assert_eq!(describe(server.address, "a").field("metadata"), json!({}));

    let removing = hold_for(&server, "a", 5);
    removing.remove().expect(200);
    clock.advance(Duration::from_secs(6));
    assert_eq!(removing.get().code(), "lease_expired");
    assert_eq!(get_public(server.address, "a").body, b"\"committed\"");
}

/// LS-48: keepalive sets the end anew, later or sooner, and answers with the token.
pub fn keepalive_sets_the_end_anew(backend: &dyn Backend) {
    let (server, clock) = with_manual_clock(backend);
    let now = WALL_MS / 1000;
    let held = hold_for(&server, "a", 30);
    assert_eq!(held.expires_at_unix, now + 30);
    for (asked, until) in [
        (60, now + 60),
        (10, now + 10),
        (0, now + 30),
        (-1, now + 30),
        (1_000_000, now + 1800),
    ] {
        let answer = held.keepalive(asked).expect(200);
        assert_eq!(answer.field("expires_at_unix"), until, "{asked}");
        assert_eq!(answer.header("X-Fencing-Token"), Some("1"));
        assert_eq!(describe(server.address, "a").field("expires_at_unix"), until);
    }
    held.keepalive(5).expect(200);
    clock.advance(Duration::from_secs(4));
    held.keepalive(5).expect(200);
    clock.advance(Duration::from_secs(4));
    held.update("1").expect(200);
    clock.advance(Duration::from_secs(1));
    assert_eq!(
        held.keepalive(5).code(),
        "lease_expired",
        "an update renews nothing, and keepalive wakes no dead"
    );
}

/// LS-49: keepalive tells the effective version and etag.
pub fn keepalive_tells_the_effective_version_and_etag(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let told = |held: &Held| {
        let answer = held.keepalive(30).expect(200);
        (answer.field("version"), answer.field("state_etag"))
    };
    assert_eq!(told(&held), (json!(0), json!(null)));
    let first = held.update("1").expect(200).field("new_state_etag");
    assert_eq!(told(&held), (json!(1), first.clone()));
    let second = held.update("2").expect(200).field("new_state_etag");
    assert_ne!(first, second);
    assert_eq!(told(&held), (json!(1), second.clone()));
    held.release().expect(200);
    let held = hold(server.address, "a");
    assert_eq!(told(&held), (json!(1), second.clone()));
    held.hide(true).expect(200);
    assert_eq!(told(&held), (json!(2), second));
}

/// LS-50: the state of a queue message is renewed through its message.
pub fn keepalive_of_a_queue_state_is_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "q/x/state/y");
    assert_eq!(
        held.keepalive(30).error(),
        (403, "queue_state_keepalive_unsupported".to_owned())
    );
    held.update("1").expect(200);
    let ordinary = hold(server.address, "q/x/state");
    ordinary.keepalive(30).expect(200);
}
