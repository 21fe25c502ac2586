//! Acquire: what it sends, what it retries, when it gives up.

use std::time::{Duration, Instant};

use lockd_client::{Acquire, CallOptions, Error, Retries, Wait};

use crate::support::{Recorder, Reply, Server, client_of, dead_url, grant, hasty, obliging, refusal};

fn impatient(key: &str) -> Acquire {
    Acquire::key(key).backoff(hasty())
}

/// Answers the n-th acquire with the n-th reply, and every later one with the last.
fn in_turn(replies: Vec<Reply>) -> Server {
    Server::start(move |seen| match seen.path.as_str() {
        "/v1/acquire" => replies[seen.index.min(replies.len() - 1)].clone(),
        _ => obliging(seen),
    })
}

/// CL-10: a waiting acquire outlives the HTTP timeout: one request, answered long after it.
#[test]
fn waiting_without_end_is_not_bound_by_the_http_timeout() {
    let server = in_turn(vec![Reply::After(Duration::from_millis(150), Box::new(grant("k")))]);
    let client = client_of(&[&server])
        .http_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let lease = client.acquire(Acquire::key("k").wait(Wait::Forever)).unwrap();
    let seen = server.one_at("/v1/acquire").json();
    assert_eq!(seen["block_seconds"], 0);
    assert_eq!(seen["namespace"], "default");
    assert!(!seen["owner"].as_str().unwrap().is_empty());
    lease.detach();
}

/// CL-14: being told to wait, throttling and server errors do not use up the failure budget.
#[test]
fn answers_that_ask_for_patience_cost_nothing() {
    let mut replies: Vec<Reply> = Vec::new();
    for (status, code) in [
        (409, "waiting"),
        (429, "throttled"),
        (500, ""),
        (503, "shutdown_draining"),
    ] {
        replies.extend([refusal(status, code), refusal(status, code)]);
    }
    replies.push(grant("k"));
    let (server, recorder) = (in_turn(replies), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    client
        .acquire(impatient("k").failure_retries(Retries::Limited(0)))
        .unwrap()
        .detach();
    assert_eq!(server.seen().len(), 9);
    assert_eq!(recorder.named("client.acquire.conflict_status").len(), 2);
    assert_eq!(recorder.named("client.acquire.conflict").len(), 2);
    assert_eq!(recorder.named("client.acquire.throttled").len(), 2);
    assert_eq!(recorder.named("client.acquire.server_error").len(), 4);
    assert_eq!(recorder.named("client.acquire.backoff").len(), 8);
    assert_eq!(recorder.one("client.acquire.success").field("attempt"), "9");
}

/// CL-14: everything else counts, up to the limit.
#[test]
fn failures_are_counted_up_to_the_limit() {
    let recorder = Recorder::shared();
    let client = client_of(&[])
        .endpoint(dead_url())
        .logger(recorder.clone())
        .build()
        .unwrap();
    let error = client
        .acquire(impatient("k").failure_retries(Retries::Limited(2)))
        .unwrap_err();
    assert!(error.is_transport(), "{error}");
    assert_eq!(recorder.named("client.acquire.attempt").len(), 3);
    assert_eq!(recorder.named("client.acquire.retry").len(), 2);
    assert_eq!(recorder.one("client.acquire.failure_limit").field("retries"), "2");

    let server = in_turn(vec![refusal(400, "invalid_key")]);
    let client = client_of(&[&server]).build().unwrap();
    client
        .acquire(impatient("k").failure_retries(Retries::Limited(1)))
        .unwrap_err();
    assert_eq!(server.seen().len(), 2, "other refusals count as failures");
}

/// CL-14: an answer that asks for patience resets the count.
#[test]
fn patience_resets_the_failure_count() {
    let turns = [
        Reply::Close,
        Reply::Close,
        refusal(409, "waiting"),
        Reply::Close,
        Reply::Close,
        grant("k"),
    ];
    let server = in_turn(turns.to_vec());
    let client = client_of(&[&server]).build().unwrap();
    client
        .acquire(impatient("k").failure_retries(Retries::Limited(2)))
        .unwrap()
        .detach();
    assert_eq!(server.seen().len(), 6);
}

/// CL-14: what will not get better is returned after one call.
#[test]
fn a_forbidden_namespace_and_an_existing_key_are_returned_at_once() {
    let recorder = Recorder::shared();
    let server = in_turn(vec![refusal(403, "namespace_forbidden")]);
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    assert_eq!(
        client.acquire(impatient("k")).unwrap_err().code(),
        Some("namespace_forbidden")
    );
    assert_eq!(server.seen().len(), 1);
    assert!(recorder.has("client.acquire.forbidden"));

    let server = in_turn(vec![refusal(409, "already_exists")]);
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let error = client.acquire(impatient("k").if_not_exists(true)).unwrap_err();
    assert!(error.is_already_exists());
    assert_eq!(server.one_at("/v1/acquire").json()["if_not_exists"], true);
    assert!(recorder.has("client.acquire.already_exists"));
}

/// CL-15: without waiting there is one attempt, whatever its outcome.
#[test]
fn without_waiting_there_is_one_attempt() {
    for reply in [refusal(409, "waiting"), refusal(500, ""), Reply::Close] {
        let (server, recorder) = (in_turn(vec![reply]), Recorder::shared());
        let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
        client.acquire(impatient("k").wait(Wait::No)).unwrap_err();
        assert_eq!(server.one_at("/v1/acquire").json()["block_seconds"], -1);
        assert_eq!(recorder.one("client.acquire.failure").level, log::Level::Error);
    }
    let server = in_turn(vec![Reply::Silence]);
    let client = client_of(&[&server])
        .http_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let error = client.acquire(impatient("k").wait(Wait::No)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
}

/// CL-15: waiting without end under a deadline tells the server how long, and ends with the deadline.
#[test]
fn waiting_under_a_deadline_tells_the_server_and_ends_with_it() {
    let (server, recorder) = (in_turn(vec![Reply::Silence]), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let bound = client.with_options(CallOptions::new().timeout(Duration::from_millis(300)));
    let error = bound.acquire(impatient("k")).unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error}");
    assert_eq!(server.one_at("/v1/acquire").json()["block_seconds"], 1);
    assert!(recorder.has("client.acquire.deadline"));
}

/// CL-10, CL-13: waiting for a time ends with an error of its own that still knows why.
#[test]
fn waiting_for_a_time_ends_with_the_time() {
    let (server, recorder) = (in_turn(vec![refusal(409, "waiting")]), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let error = client
        .acquire(impatient("k").wait(Wait::UpTo(Duration::from_millis(120))))
        .unwrap_err();
    assert!(
        error.to_string().starts_with("lockd: acquire timed out after "),
        "{error}"
    );
    assert!(error.is_timeout() && error.is_waiting());
    assert!(1 < server.seen().len());
    assert!(server.seen().iter().all(|seen| seen.json()["block_seconds"] == 1));
    assert_eq!(recorder.one("client.acquire.timeout").level, log::Level::Warn);
}

/// A pause that uses up the waiting time is not followed by another attempt, which the server would hold for a second more.
#[test]
fn no_attempt_is_made_after_the_waiting_time() {
    let server = in_turn(vec![refusal(409, "waiting").header("Retry-After", "30")]);
    let client = client_of(&[&server]).build().unwrap();
    let error = client
        .acquire(impatient("k").wait(Wait::UpTo(Duration::from_millis(50))))
        .unwrap_err();
    assert!(error.is_waiting() && error.is_timeout(), "{error}");
    assert_eq!(server.seen().len(), 1);
}

/// CL-12: Retry-After is a lower bound of the pause, also beyond our own maximum.
#[test]
fn the_servers_wish_is_kept() {
    let turns = [refusal(409, "waiting").header("Retry-After", "0.2"), grant("k")];
    let (server, recorder) = (in_turn(turns.to_vec()), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let started = Instant::now();
    client.acquire(impatient("k")).unwrap().detach();
    assert!(Duration::from_millis(200) <= started.elapsed());
    let backoff = recorder.one("client.acquire.backoff");
    assert_eq!(
        (backoff.field("delay"), backoff.field("retry_after")),
        ("200ms", "200ms")
    );
}

/// Section 8: the server makes up a key when none is given, and the lease carries it.
#[test]
fn a_generated_key_becomes_the_key_of_the_lease() {
    let server = in_turn(vec![grant("made-up")]);
    let client = client_of(&[&server]).build().unwrap();
    let lease = client
        .acquire(Acquire::generated_key().ttl(Duration::from_millis(1_500)))
        .unwrap();
    assert_eq!(lease.key(), "made-up");
    let asked = server.one_at("/v1/acquire").json();
    assert_eq!(asked.get("key"), None);
    assert_eq!(asked["ttl_seconds"], 2, "a part of a second counts as a whole one");
    lease.detach();
}

#[test]
fn a_grant_without_token_is_no_grant() {
    let server = in_turn(vec![Reply::json(200, r#"{"lease_id":"l","key":"k"}"#)]);
    let client = client_of(&[&server]).build().unwrap();
    let error = client.acquire(impatient("k")).unwrap_err();
    assert!(matches!(error, Error::BadAnswer { .. }), "{error}");
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn joining_a_transaction_is_said_in_body_and_header() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    client
        .acquire(Acquire::key("k").namespace(" Shop ").txn_id("txn-9"))
        .unwrap()
        .detach();
    let seen = server.one_at("/v1/acquire");
    assert_eq!(seen.header("X-Txn-ID"), Some("txn-9"));
    assert_eq!(
        (seen.json()["txn_id"].as_str(), seen.json()["namespace"].as_str()),
        (Some("txn-9"), Some("shop"))
    );
}

#[test]
fn a_malformed_namespace_is_refused_before_any_request() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let error = client.acquire(Acquire::key("k").namespace("a b")).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    assert!(server.seen().is_empty());
}
