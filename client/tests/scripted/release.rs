//! Letting go: release, drop, renewal, draining servers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use lockd_client::{Acquire, CallOptions, LeaseRef};

use crate::support::{Recorder, Reply, Seen, Server, client_of, dead_url, eventually, obliging, refusal};

fn on(path: &'static str, reply: Reply) -> Server {
    Server::start(move |seen| match seen.path.as_str() {
        at if at == path => reply.clone(),
        _ => obliging(seen),
    })
}

/// CL-17: released once, released for all handles; the token is forgotten.
#[test]
fn a_release_happens_once_and_forgets_the_token() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    let other = lease.session();
    lease.release().unwrap();
    other.release().unwrap();
    other.close().unwrap();
    assert!(other.is_released() && other.fencing_token().is_none());
    drop(lease);
    let seen = server.one_at("/v1/release");
    assert_eq!(
        seen.json(),
        serde_json::json!({"namespace":"default","key":"k","lease_id":"lease-1","txn_id":"txn-1","rollback":false})
    );
    assert_eq!(seen.header("X-Fencing-Token"), Some("41"));
    assert!(other.update("{}").unwrap_err().is_missing_fencing_token());
    assert_eq!(other.lost(), None, "letting go is no loss");
}

/// CL-17: a release that failed can be tried again.
#[test]
fn a_failed_release_can_be_repeated() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/release", 1) => refusal(500, "internal_error"),
        ("/v1/release", 2) => Reply::json(200, r#"{"released":false}"#),
        _ => obliging(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    assert_eq!(lease.rollback().unwrap_err().status(), Some(500));
    assert_eq!(lease.rollback().unwrap_err().to_string(), "lockd: release denied");
    assert_eq!(lease.fencing_token(), Some(41));
    lease.rollback().unwrap();
    assert_eq!(server.seen_at("/v1/release").len(), 3);
    assert!(
        server
            .seen_at("/v1/release")
            .iter()
            .all(|seen| seen.json()["rollback"] == true)
    );
}

/// CL-17: a lease that is gone is released.
#[test]
fn a_lease_that_is_gone_counts_as_released() {
    let (server, recorder) = (on("/v1/release", refusal(403, "lease_required")), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let lease = client.acquire("k").unwrap();
    lease.release().unwrap();
    assert_eq!(
        recorder.one("client.release.already_gone").field_names(),
        ["cid", "key", "lease_id", "txn_id"]
    );
    assert_eq!(server.seen_at("/v1/release").len(), 1);
}

/// CL-20: a release without token succeeds without a request.
#[test]
fn a_release_without_token_needs_no_request() {
    let (server, recorder) = (Server::start(obliging), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    client
        .session(LeaseRef::new("k", "foreign"))
        .unwrap()
        .release()
        .unwrap();
    assert!(server.seen().is_empty());
    assert!(recorder.has("client.release.no_token"));
}

/// Section 10.2: a success is told to the other endpoints; what they make of it does not matter.
#[test]
fn a_release_is_told_to_the_other_endpoints() {
    let (server, peer) = (
        Server::start(obliging),
        on("/v1/release", refusal(403, "lease_required")),
    );
    let (dead, recorder) = (dead_url(), Recorder::shared());
    let client = client_of(&[&server, &peer])
        .endpoint(dead.clone())
        .logger(recorder.clone())
        .build()
        .unwrap();
    client.acquire("k").unwrap().release().unwrap();
    assert_eq!(
        (server.seen_at("/v1/release").len(), peer.seen_at("/v1/release").len()),
        (1, 1)
    );
    assert_eq!(
        recorder.one("client.release.extra_endpoint_error").field("endpoint"),
        dead
    );
    assert_eq!(
        recorder.one("client.release.already_gone").field("endpoint"),
        peer.url()
    );
    assert!(recorder.has("client.release.success"));
}

/// Section 10.2: after a timeout the others are asked one by one.
#[test]
fn a_release_that_times_out_is_tried_elsewhere() {
    let slow = on("/v1/release", Reply::Silence);
    let second = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        // The first one belongs to the walk, the second to the search after it.
        ("/v1/release", 0) => Reply::Silence,
        _ => obliging(seen),
    });
    let recorder = Recorder::shared();
    let client = client_of(&[&slow, &second])
        .http_timeout(Duration::from_millis(100))
        .logger(recorder.clone())
        .build()
        .unwrap();
    client.acquire("k").unwrap().release().unwrap();
    let retried = recorder.one("client.release.retry_different_endpoint");
    assert_eq!(retried.field("endpoint"), second.url());
    assert_eq!(retried.level, log::Level::Warn);
    assert_eq!(second.seen_at("/v1/release").len(), 2);
}

/// Dropping a lease releases it, committing; in a panic it rolls back; a detached one is left alone.
#[test]
fn dropping_a_lease_releases_it() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    drop(client.acquire("k").unwrap());
    assert_eq!(server.seen_at("/v1/release").pop().unwrap().json()["rollback"], false);

    let panic = catch_unwind(AssertUnwindSafe(|| {
        let _lease = client.acquire("k").unwrap();
        panic!("halfway through");
    }));
    assert!(panic.is_err());
    assert_eq!(server.seen_at("/v1/release").pop().unwrap().json()["rollback"], true);

    let session = client.acquire("k").unwrap().detach();
    assert_eq!(server.seen_at("/v1/release").len(), 2);
    session.release().unwrap();
    assert_eq!(server.seen_at("/v1/release").len(), 3);
}

/// A drop is bounded by the close timeout and never panics, whatever the server does.
#[test]
fn dropping_a_lease_of_a_silent_server_ends() {
    let server = on("/v1/release", Reply::Silence);
    let client = client_of(&[&server])
        .close_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    drop(client.acquire("k").unwrap());
    assert_eq!(server.seen_at("/v1/release").len(), 1);
}

/// CL-18: a lease does not renew itself unless asked; its holder can see that its time is over.
#[test]
fn a_plain_lease_is_not_renewed() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire(Acquire::key("k").ttl(Duration::from_secs(1))).unwrap();
    assert_eq!(lease.lost(), None);
    let why = lease.wait_lost(Duration::from_secs(20)).unwrap();
    assert_eq!(why, "the lease was not renewed in time");
    assert!(server.seen_at("/v1/keepalive").is_empty());
}

#[test]
fn a_lease_renews_itself_when_asked_and_stops_with_its_owner() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let lease = client
        .acquire(Acquire::key("k").ttl(Duration::from_secs(1)).auto_renew(true))
        .unwrap();
    eventually("two renewals", || 2 <= server.seen_at("/v1/keepalive").len());
    assert_eq!(lease.lost(), None);
    assert_eq!(lease.expires_at_unix(), 1_767_261_700);
    let seen = server.seen_at("/v1/keepalive").remove(0);
    assert_eq!(seen.json()["ttl_seconds"], 1);
    assert_eq!(
        (seen.header("X-Fencing-Token"), seen.header("X-Txn-ID")),
        (Some("41"), Some("txn-1"))
    );
    drop(lease);
    let last = server.seen().pop().unwrap();
    assert_eq!(last.path, "/v1/release", "the renewal ended before the release");
}

#[test]
fn a_renewal_that_is_refused_makes_the_lease_lost() {
    let server = on("/v1/keepalive", refusal(403, "lease_required"));
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire(Acquire::key("k").ttl(Duration::from_secs(60))).unwrap();
    lease.start_renewal(Duration::from_millis(300)).unwrap();
    let why = lease.wait_lost(Duration::from_secs(20)).unwrap();
    assert!(why.contains("lease_required"), "{why}");
    assert_eq!(
        server.seen_at("/v1/keepalive").len(),
        1,
        "there is nothing left to renew"
    );
}

#[test]
fn a_renewal_gets_over_trouble_while_the_lease_lives() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/keepalive", 1) => refusal(500, ""),
        ("/v1/keepalive", 2) => Reply::Close,
        _ => obliging(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire(Acquire::key("k").ttl(Duration::from_secs(60))).unwrap();
    lease.start_renewal(Duration::from_millis(300)).unwrap();
    eventually("a renewal after the trouble", || {
        4 <= server.seen_at("/v1/keepalive").len()
    });
    lease.release().unwrap();
}

#[test]
fn any_call_may_find_out_that_the_lease_is_lost() {
    let server = on("/v1/update", refusal(403, "fencing_mismatch"));
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    assert!(lease.update("{}").unwrap_err().is_lease_lost());
    assert!(lease.lost().unwrap().contains("fencing_mismatch"));
}

fn draining(header: &'static str) -> impl Fn(&Seen) -> Reply + Send + Sync {
    move |seen| {
        let key = || seen.json()["key"].as_str().unwrap().to_owned();
        match seen.path.as_str() {
            "/v1/acquire" => Reply::json(
                200,
                &format!(
                    r#"{{"lease_id":"lease-{0}","txn_id":"t","key":"{0}","fencing_token":1}}"#,
                    key()
                ),
            )
            .header("Shutdown-Imminent", header),
            _ => obliging(seen).header("Shutdown-Imminent", header),
        }
    }
}

/// CL-19: exactly one background release per lease, however often the server says it.
#[test]
fn a_server_that_goes_down_gets_its_leases_back_once() {
    let (server, recorder) = (Server::start(draining("Yes")), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let (first, second) = (client.acquire("a").unwrap(), client.acquire("b").unwrap());
    first.update("{}").unwrap();
    assert!(!recorder.has("client.shutdown.notice"), "only some calls look at it");
    // The background release may be quicker than the second renewal: then that one fails for want of a token.
    first.keepalive(Duration::from_secs(30)).unwrap();
    let _ = second.keepalive(Duration::from_secs(30));
    eventually("both are released", || {
        recorder.named("client.shutdown.auto_release.complete").len() == 2
    });
    assert!(first.is_released() && second.is_released());
    assert!(
        first.wait_lost(Duration::from_secs(10)).is_some(),
        "its holder did not let go"
    );
    drop((first, second));
    let mut keys: Vec<_> = server
        .seen_at("/v1/release")
        .iter()
        .map(|seen| seen.json()["key"].clone())
        .collect();
    keys.sort_by_key(ToString::to_string);
    assert_eq!(keys, ["a", "b"]);
    assert_eq!(recorder.one("client.shutdown.notice").level, log::Level::Info);
    assert!(!recorder.named("client.shutdown.notice.repeat").is_empty());
    let start = recorder.named("client.shutdown.auto_release.start").remove(0);
    assert_eq!(start.field_names(), ["endpoint", "key", "lease_id", "reason"]);
    assert_eq!(start.field("reason"), "server_shutdown");
}

/// CL-19: switched off, the announcement is ignored completely; so is one that says no.
#[test]
fn an_announcement_can_be_ignored() {
    for (header, aware) in [("true", false), ("false", true)] {
        let (server, recorder) = (Server::start(draining(header)), Recorder::shared());
        let client = client_of(&[&server])
            .drain_aware(aware)
            .logger(recorder.clone())
            .build()
            .unwrap();
        let lease = client.acquire("a").unwrap();
        lease.keepalive(Duration::from_secs(30)).unwrap();
        assert!(!recorder.names().iter().any(|name| name.starts_with("client.shutdown")));
        assert!(!lease.is_released());
    }
}

/// CL-19: leases of another endpoint are left alone.
#[test]
fn leases_of_other_servers_are_left_alone() {
    let (granting, recorder) = (Server::start(obliging), Recorder::shared());
    let leaving = Server::start(|seen| match seen.path.as_str() {
        "/v1/acquire" => refusal(503, "node_passive"),
        _ => obliging(seen).header("Shutdown-Imminent", "1"),
    });
    let client = client_of(&[&leaving, &granting])
        .logger(recorder.clone())
        .build()
        .unwrap();
    let lease = client.acquire("k").unwrap();
    lease.keepalive(Duration::from_secs(30)).unwrap();
    assert!(recorder.has("client.shutdown.notice"));
    assert!(!recorder.has("client.shutdown.auto_release.start"));
    assert!(!lease.is_released());
}

#[test]
fn a_keepalive_has_a_time_limit_of_its_own() {
    let server = on("/v1/keepalive", Reply::Silence);
    let client = client_of(&[&server])
        .keepalive_timeout(Duration::from_millis(80))
        .build()
        .unwrap();
    let lease = client.acquire("k").unwrap();
    assert!(lease.keepalive(Duration::from_secs(30)).unwrap_err().is_timeout());
    let ttl = server.one_at("/v1/keepalive").json()["ttl_seconds"].clone();
    assert_eq!(ttl, 30);
    // A handle under a deadline that is over still lets go: close has a limit of its own.
    let late = lease.with_options(CallOptions::new().timeout(Duration::ZERO));
    assert!(late.release().unwrap_err().is_timeout());
    late.close().unwrap();
}
