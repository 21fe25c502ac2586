//! What a lease remembers and sends.

use crate::support::{Recorder, Server, client_of, obliging};
use lockd_client::Acquire;
use std::time::Duration;

/// CL-16: version, etag, token, transaction, namespace and correlation id come from memory and are refreshed by answers.
#[test]
fn writes_carry_what_the_lease_has_learnt() {
    let server = Server::start(obliging);
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let lease = client
        .acquire(Acquire::key("k").owner("o").ttl(Duration::from_secs(20)))
        .unwrap();
    assert_eq!(lease.get().unwrap().into_bytes().unwrap(), br#"{"count":1}"#);
    lease.update(r#"{"count":2}"#).unwrap();
    lease.keepalive(Duration::from_secs(20)).unwrap();
    lease.remove().unwrap();
    lease.release().unwrap();
    lease.release().unwrap();

    let acquire = server.one_at("/v1/acquire").json();
    assert_eq!(acquire["ttl_seconds"], 20);
    let update = server.one_at("/v1/update");
    assert_eq!(update.header("x-if-version"), Some("1"));
    assert_eq!(update.header("x-if-state-etag"), Some("etag-initial"));
    assert_eq!(update.header("x-fencing-token"), Some("41"));
    assert_eq!(update.header("x-lease-id"), Some("lease-1"));
    assert_eq!(update.header("x-txn-id"), Some("txn-1"));
    assert_eq!(update.header("x-correlation-id"), Some("cid-granted"));
    assert_eq!(update.query, "key=k&namespace=default");
    assert_eq!(update.body, br#"{"count":2}"#);
    let remove = server.one_at("/v1/remove");
    assert_eq!(remove.header("x-if-version"), Some("2"));
    assert_eq!(remove.header("x-if-state-etag"), Some("etag-2"));
    assert_eq!(
        server.seen_at("/v1/release").len(),
        1,
        "a released lease is not released again"
    );
    assert_eq!(server.connections(), 1, "one connection serves them all");
}
