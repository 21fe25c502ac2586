//! What programs do with leases and states on one server, through the client crate.
//!
//! The lock suites of lockd v0.9.0 have the same scenarios under the names `TestMemLockLifecycle`,
//! `TestMemAcquireNoWaitReturnsWaiting` and so on; the doc of each claim names its own.

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::testing::{TestServer, shared};
use lockd_client::wire::codes;
use lockd_client::{Acquire, Client, Error, ReadOptions, Session, Wait, WriteOptions};
use serde_json::{Value, json};

use super::fixture::{Backend, no_drain, serve};

/// A refusal takes no longer, however slow the machine is.
const AT_ONCE: Duration = Duration::from_secs(5);

fn start(backend: &dyn Backend) -> TestServer {
    serve(&*backend.open()).start().unwrap()
}

fn patient(key: &str) -> Acquire {
    Acquire::key(key)
        .ttl(Duration::from_secs(45))
        .wait(Wait::UpTo(Duration::from_secs(20)))
}

fn no_wait(key: &str) -> Acquire {
    Acquire::key(key).wait(Wait::No)
}

fn document(session: &Session) -> Option<Value> {
    session.load().unwrap()
}

fn public(client: &Client, key: &str) -> Option<Value> {
    client.get_public(key).unwrap().into_json().unwrap()
}

/// Runs a call that must be refused, soon.
#[track_caller]
fn refused_at_once<T>(call: impl FnOnce() -> Result<T, Error>) -> Error {
    let clock = SystemClock::new();
    let began = clock.now();
    let error = call().map(|_| ()).expect_err("a refusal");
    let took = clock.now().since(began);
    assert!(took < AT_ONCE, "it took {took:?}: {error}");
    error
}

#[track_caller]
fn assert_error(error: &Error, status: u16, code: &str) {
    assert_eq!((error.status(), error.code()), (Some(status), Some(code)), "{error}");
}

/// LockLifecycle.
pub fn a_lease_begins_empty_and_sees_what_it_saved(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let lease = server.client().acquire(patient("lifecycle")).unwrap();
    assert_eq!(document(&lease), None);
    lease.update(br#"{"cursor":42}"#).unwrap();
    assert_eq!(document(&lease), Some(json!({"cursor": 42})));
    lease.release().unwrap();
    let second = server.client().acquire(patient("lifecycle")).unwrap();
    assert_ne!(second.lease_id(), lease.lease_id());
    assert_eq!(document(&second), Some(json!({"cursor": 42})));
    second.release().unwrap();
}

/// AcquireNoWaitReturnsWaiting.
pub fn an_acquire_that_does_not_wait_is_told_that_the_key_is_held(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let held = server.client().acquire(Acquire::key("held").owner("holder")).unwrap();
    let error = refused_at_once(|| server.client().acquire(no_wait("held").owner("other")));
    assert_error(&error, 409, codes::WAITING);
    assert!(error.is_waiting() && error.retry_after().is_some(), "{error:?}");
    held.release().unwrap();
    server.client().acquire(no_wait("held")).unwrap().release().unwrap();
}

/// AcquireIfNotExists, but for acquire-for-update.
pub fn a_create_only_acquire_succeeds_once(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    let create = || Acquire::key("created").if_not_exists(true);
    let lease = client.acquire(create()).unwrap();
    // While it is held, the two refusals differ: one says "never", the other "not now".
    let error = refused_at_once(|| client.acquire(create()));
    assert_error(&error, 409, codes::ALREADY_EXISTS);
    assert!(error.is_already_exists() && !error.is_waiting());
    let error = refused_at_once(|| client.acquire(no_wait("created")));
    assert_error(&error, 409, codes::WAITING);
    assert!(!error.is_already_exists());
    lease.release().unwrap();
    // A key that was held once exists, with a state or without.
    let error = refused_at_once(|| client.acquire(create()));
    assert_error(&error, 409, codes::ALREADY_EXISTS);
    client.acquire(no_wait("created")).unwrap().release().unwrap();
}

/// Concurrency: four workers, three rounds each.
pub fn counters_under_a_lease_lose_no_increment(backend: &dyn Backend) {
    const WORKERS: i64 = 4;
    const ROUNDS: i64 = 3;
    let _turn = shared();
    let server = start(backend);
    let done = AtomicI64::new(0);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (client, done) = (server.client().clone(), &done);
            scope.spawn(move || {
                let request = patient("counter").owner(format!("worker-{worker}"));
                for _ in 0..ROUNDS {
                    let lease = client.acquire(&request).unwrap();
                    let count = document(&lease).map_or(0, |state| state["count"].as_i64().unwrap());
                    lease.save(&json!({"count": count + 1, "worker": worker})).unwrap();
                    lease.release().unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), WORKERS * ROUNDS);
    let state = server.client().get_public("counter").unwrap();
    assert_eq!(state.version, WORKERS * ROUNDS);
    assert_eq!(state.into_json::<Value>().unwrap().unwrap()["count"], WORKERS * ROUNDS);
    // Every lease but the last one has handed its token on.
    let last = server.client().acquire("counter").unwrap();
    assert_eq!(last.fencing_token(), Some(WORKERS * ROUNDS + 1));
    last.release().unwrap();
}

/// AutoKeyAcquire.
pub fn a_generated_key_can_be_acquired_again_by_its_name(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let lease = server.client().acquire(Acquire::generated_key()).unwrap();
    let key = lease.key().to_owned();
    assert!(!key.is_empty());
    lease.save(&json!({"made": "up"})).unwrap();
    lease.release().unwrap();
    let again = server.client().acquire(patient(&key)).unwrap();
    assert_eq!(document(&again), Some(json!({"made": "up"})));
    again.release().unwrap();
    let other = server.client().acquire(Acquire::generated_key()).unwrap();
    assert_ne!(other.key(), key);
    other.release().unwrap();
}

/// PublicGetAfterRelease.
pub fn after_a_release_the_old_lease_reads_nothing_and_the_public_reads_all(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    let lease = client.acquire(patient("published")).unwrap();
    let (lease_id, token) = (lease.lease_id().to_owned(), lease.fencing_token().unwrap());
    let written = lease.save(&json!({"status": "published"})).unwrap();
    assert!(
        !client.get_public("published").unwrap().exists(),
        "staged is not public"
    );
    lease.release().unwrap();
    // The client has forgotten the token with the release; a careless holder has not.
    client.register_token(&lease_id, token);
    let error = refused_at_once(|| client.get_with("published", &ReadOptions::new().lease_id(&lease_id)));
    assert_error(&error, 403, codes::LEASE_REQUIRED);
    let state = client.get_public("published").unwrap();
    assert_eq!(
        (state.version, state.etag.as_str()),
        (1, written.new_state_etag.as_str())
    );
    assert_eq!(state.into_bytes().unwrap(), br#"{"status":"published"}"#);
}

/// RejectsReservedNamespace.
pub fn reserved_namespaces_are_refused(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let error = refused_at_once(|| server.client().acquire(no_wait("k").namespace(".txns")));
    assert_error(&error, 400, codes::INVALID_NAMESPACE);
}

/// RemoveSingleServer.
pub fn a_removed_state_is_gone_for_everybody(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    let writer = client.acquire(patient("removed").owner("writer")).unwrap();
    writer.save(&json!({"value": "doomed"})).unwrap();
    writer.release().unwrap();

    let remover = client.acquire(patient("removed").owner("remover")).unwrap();
    assert_eq!(document(&remover), Some(json!({"value": "doomed"})));
    assert!(remover.remove().unwrap().removed);
    assert_eq!(document(&remover), None);
    assert!(public(client, "removed").is_some(), "a staged removal is not public");
    remover.release().unwrap();

    assert_eq!(public(client, "removed"), None);
    let verifier = client.acquire(patient("removed").owner("verifier")).unwrap();
    assert_eq!(document(&verifier), None);
    verifier.release().unwrap();
}

/// RemoveSingleServer, subtest after-update.
pub fn removing_after_an_update_takes_the_version_on(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let lease = server.client().acquire(patient("k")).unwrap();
    let updated = lease.save(&json!({"n": 1})).unwrap();
    let removed = lease.remove().unwrap();
    assert!(removed.removed);
    assert!(updated.new_version <= removed.new_version, "{updated:?} {removed:?}");
    assert!(0 < removed.new_version);
    lease.release().unwrap();
    let next = server.client().acquire(patient("k")).unwrap();
    assert_eq!(next.version(), removed.new_version);
    assert_eq!(document(&next), None);
    next.release().unwrap();
}

/// RemoveSingleServer, subtest without-state.
pub fn removing_nothing_removes_nothing(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let lease = server.client().acquire(patient("k")).unwrap();
    let answer = lease.remove().unwrap();
    assert_eq!((answer.removed, answer.new_version), (false, 0));
    lease.release().unwrap();
    let next = server.client().acquire(patient("k")).unwrap();
    assert_eq!(next.version(), 0);
    next.release().unwrap();
}

/// RemoveSingleServer, subtest after-reacquire.
pub fn a_state_is_removed_by_the_next_holder(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let first = server.client().acquire(patient("k")).unwrap();
    let written = first.save(&json!({"n": 1})).unwrap();
    first.release().unwrap();
    let second = server.client().acquire(patient("k")).unwrap();
    let removed = second.remove().unwrap();
    assert_eq!((removed.removed, removed.new_version), (true, written.new_version + 1));
    second.release().unwrap();
    let third = server.client().acquire(patient("k")).unwrap();
    assert_eq!((third.version(), document(&third)), (removed.new_version, None));
    third.release().unwrap();
}

/// RemoveCASMismatch.
pub fn a_removal_under_an_old_etag_is_refused(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let lease = server.client().acquire(patient("k")).unwrap();
    let old = lease.save(&json!({"n": 1})).unwrap();
    lease.save(&json!({"n": 2})).unwrap();
    let error = refused_at_once(|| lease.remove_with(&WriteOptions::new().if_state_etag(&*old.new_state_etag)));
    assert_error(&error, 409, codes::ETAG_MISMATCH);
    assert!(error.is_conflict());
    assert_eq!(document(&lease), Some(json!({"n": 2})));
    assert!(lease.remove().unwrap().removed);
    lease.release().unwrap();
    assert_eq!(public(server.client(), "k"), None);
}

/// RemoveKeepAlive.
pub fn a_lease_lives_on_after_a_removal_and_saves_anew(backend: &dyn Backend) {
    let _turn = shared();
    let server = start(backend);
    let client = server.client();
    let first = client.acquire(patient("k")).unwrap();
    first.save(&json!({"n": 1})).unwrap();
    first.release().unwrap();

    let lease = client.acquire(patient("k")).unwrap();
    let (old_version, old_etag) = (lease.version(), lease.state_etag());
    assert!(lease.remove().unwrap().removed);
    lease.keepalive(Duration::from_secs(30)).unwrap();
    let stale = WriteOptions::new().if_version(old_version).if_state_etag(&*old_etag);
    let error = refused_at_once(|| lease.save_with(&json!({"n": "stale"}), &stale));
    assert!(error.is_conflict(), "{error}");
    let fresh = lease.save(&json!({"n": 2})).unwrap();
    lease.release().unwrap();

    let next = client.acquire(patient("k")).unwrap();
    assert_eq!(
        (next.version(), next.state_etag()),
        (fresh.new_version, fresh.new_state_etag)
    );
    assert_eq!(document(&next), Some(json!({"n": 2})));
    next.release().unwrap();
}

/// A lease that nobody renews ends by itself, and its holder is told so.
pub fn what_an_expired_holder_staged_is_lost(backend: &dyn Backend) {
    let _turn = shared();
    let server = serve(&*backend.open()).close_defaults(&[no_drain()]).start().unwrap();
    let client = server.client();
    let lease = client.acquire(Acquire::key("k").ttl(Duration::from_secs(1))).unwrap();
    lease.save(&json!({"n": "never seen"})).unwrap();
    let next = client.acquire(patient("k")).unwrap();
    assert_eq!(document(&next), None);
    let error = lease.save(&json!({"n": "too late"})).unwrap_err();
    assert!(error.is_lease_lost(), "{error}");
    assert!(lease.lost().is_some());
    next.release().unwrap();
}
