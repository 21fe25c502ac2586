//! Several servers over one store: none is special, and a lease belongs to the store, not to the server that granted it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use lockd::testing::shared;
use lockd_client::{Acquire, Client, LeaseRef, Session, Wait};
use serde_json::{Value, json};

use super::fixture::Backend;
use super::node::{Node, client_of};

fn start_two(backend: &dyn Backend) -> (Node, Node) {
    let place = backend.open();
    (Node::start(&*place), Node::start(&*place))
}

fn patient(key: &str) -> Acquire {
    Acquire::key(key)
        .ttl(Duration::from_secs(45))
        .wait(Wait::UpTo(Duration::from_secs(20)))
}

fn read(session: &Session) -> Option<Value> {
    session.load().unwrap()
}

/// The same lease, used through another client.
fn at(client: &Client, session: &Session) -> Session {
    let token = session.fencing_token().expect("the lease is held");
    let lease = LeaseRef::new(session.key(), session.lease_id())
        .txn_id(session.txn_id())
        .fencing_token(token);
    client.session(lease).unwrap()
}

/// MultiReplica.
pub fn what_one_server_commits_the_other_shows(backend: &dyn Backend) {
    let _turn = shared();
    let (one, two) = start_two(backend);
    let lease = one.client().acquire(patient("shared")).unwrap();
    let error = two.client().acquire(Acquire::key("shared").wait(Wait::No)).unwrap_err();
    assert!(error.is_waiting(), "{error}");
    let written = lease.save(&json!({"from": "one"})).unwrap();
    lease.release().unwrap();
    let public = two.client().get_public("shared").unwrap();
    assert_eq!(
        (public.version, &public.etag),
        (written.new_version, &written.new_state_etag)
    );
    let second = two.client().acquire(patient("shared")).unwrap();
    assert_eq!(second.fencing_token(), Some(2));
    assert_eq!(read(&second), Some(json!({"from": "one"})));
    second.release().unwrap();
}

/// MultiReplica, the counters: two owners at each of two servers.
pub fn counters_at_several_servers_lose_no_increment(backend: &dyn Backend) {
    const ROUNDS: i64 = 5;
    let _turn = shared();
    let (one, two) = start_two(backend);
    let highest_token = AtomicI64::new(0);
    thread::scope(|scope| {
        for worker in 0..4 {
            let client = [&one, &two][worker % 2].client().clone();
            let highest_token = &highest_token;
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let lease = client
                        .acquire(patient("counter").owner(format!("worker-{worker}")))
                        .unwrap();
                    let token = lease.fencing_token().unwrap();
                    assert_eq!(
                        highest_token.swap(token, Ordering::SeqCst) + 1,
                        token,
                        "tokens rise one by one"
                    );
                    let count = read(&lease).map_or(0, |state| state["count"].as_i64().unwrap());
                    lease.save(&json!({"count": count + 1})).unwrap();
                    lease.release().unwrap();
                }
            });
        }
    });
    let state: Value = two
        .client()
        .get_public("counter")
        .unwrap()
        .into_json()
        .unwrap()
        .unwrap();
    assert_eq!(state["count"], 4 * ROUNDS);
}

/// RemoveMultiServer.
pub fn what_one_server_removes_is_gone_at_the_other(backend: &dyn Backend) {
    let _turn = shared();
    let (one, two) = start_two(backend);
    let writer = one.client().acquire(patient("doomed")).unwrap();
    writer.save(&json!({"n": 1})).unwrap();
    writer.release().unwrap();
    let remover = two.client().acquire(patient("doomed")).unwrap();
    let removed = remover.remove().unwrap();
    assert!(removed.removed);
    remover.release().unwrap();
    assert!(!one.client().get_public("doomed").unwrap().exists());
    let verifier = one.client().acquire(patient("doomed")).unwrap();
    assert_eq!((read(&verifier), verifier.version()), (None, removed.new_version));
    verifier.release().unwrap();
}

/// TxnCommitAcrossNodes. The client of the second server is told the token: without it its release would be no request
/// at all, and the test would say nothing about that server.
pub fn a_release_at_another_server_commits(backend: &dyn Backend) {
    let _turn = shared();
    let (one, two) = start_two(backend);
    let lease = one.client().acquire(patient("k")).unwrap();
    lease.save(&json!({"n": 1})).unwrap();
    let there = at(two.client(), &lease);
    assert_eq!(
        read(&there),
        Some(json!({"n": 1})),
        "staged states are seen under the lease"
    );
    there.release().unwrap();
    assert!(two.client().get_public("k").unwrap().exists());
    assert!(one.client().get_public("k").unwrap().exists());
    let error = lease.save(&json!({"n": 2})).unwrap_err();
    assert!(error.is_lease_required(), "{error}");
    lease.release().unwrap();
}

/// TxnRollbackAcrossNodes.
pub fn a_rollback_at_another_server_drops_what_was_staged(backend: &dyn Backend) {
    let _turn = shared();
    let (one, two) = start_two(backend);
    let lease = one.client().acquire(patient("k")).unwrap();
    lease.save(&json!({"n": 1})).unwrap();
    at(two.client(), &lease).rollback().unwrap();
    // The second release comes too late to commit anything.
    lease.release().unwrap();
    assert!(!one.client().get_public("k").unwrap().exists());
    assert!(!two.client().get_public("k").unwrap().exists());
    let next = one.client().acquire(patient("k")).unwrap();
    assert_eq!(next.version(), 0);
    next.release().unwrap();
}

/// A crash leaves the lease in the store: it is valid at the other server, and nobody else gets the key.
pub fn a_lease_survives_the_crash_of_the_server_that_granted_it(backend: &dyn Backend) {
    let _turn = shared();
    let (one, two) = start_two(backend);
    let client = client_of([one.url(), two.url()], |builder| builder.endpoint_shuffle(false));
    let lease = client.acquire(patient("k")).unwrap();
    assert_eq!(lease.endpoint(), Some(&*one.url()));
    lease.save(&json!({"n": 1})).unwrap();
    one.crash();
    let error = two.client().acquire(Acquire::key("k").wait(Wait::No)).unwrap_err();
    assert!(error.is_waiting(), "{error}");
    assert_eq!(read(&lease), Some(json!({"n": 1})));
    lease.keepalive(Duration::from_secs(30)).unwrap();
    lease.release().unwrap();
    let state: Value = two.client().get_public("k").unwrap().into_json().unwrap().unwrap();
    assert_eq!(state, json!({"n": 1}));
}
