//! Acquire, read, handle, release in one call.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lockd_client::{Acquire, BoxError, CallOptions, CancelToken, Client, Error, Retries};

use crate::support::{Recorder, Reply, Server, client_of, eventually, hasty, obliging, refusal};

fn request() -> Acquire {
    Acquire::key("k").ttl(Duration::from_secs(2)).backoff(hasty())
}

/// The n-th request to `path`, counted from 0, is answered with the n-th reply; later ones are obliged.
fn on(path: &'static str, replies: Vec<Reply>) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(move |seen| {
        if seen.path != path {
            return obliging(seen);
        }
        let index = count.fetch_add(1, Ordering::SeqCst);
        replies.get(index).cloned().unwrap_or_else(|| obliging(seen))
    })
}

fn quiet(server: &Server) -> (Client, std::sync::Arc<Recorder>) {
    let recorder = Recorder::shared();
    (client_of(&[server]).logger(recorder.clone()).build().unwrap(), recorder)
}

fn count(server: &Server, path: &str) -> usize {
    server.seen_at(path).len()
}

#[test]
fn the_handler_reads_saves_and_its_value_is_returned() {
    let server = Server::start(obliging);
    let (client, recorder) = quiet(&server);
    let value = client
        .acquire_for_update(request(), |ctx| {
            let state: serde_json::Value = ctx.snapshot()?.unwrap_or_default();
            assert!(ctx.take_snapshot().is_none(), "the snapshot is there once");
            ctx.save(&serde_json::json!({"count": state["count"].as_i64().unwrap_or(0) + 1}))?;
            Ok(state["count"].as_i64())
        })
        .unwrap();
    assert_eq!(value, Some(1));
    let order: Vec<String> = server.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(order, ["/v1/acquire", "/v1/get", "/v1/update", "/v1/release"]);
    assert_eq!(server.one_at("/v1/update").body, br#"{"count":2}"#);
    assert_eq!(
        recorder.one("client.acquire_for_update.acquired").field("endpoint"),
        server.url()
    );
    let success = recorder.one("client.acquire_for_update.success");
    assert_eq!(
        (success.level, success.field_names()),
        (log::Level::Info, vec!["cid", "key", "lease_id", "txn_id"])
    );
}

/// CL-21, CL-23: a handler's own error is returned unchanged, without another run, after a release.
#[test]
fn an_error_of_the_handler_is_returned_and_the_lease_released() {
    #[derive(Debug)]
    struct Mine;
    impl std::fmt::Display for Mine {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("mine")
        }
    }
    impl std::error::Error for Mine {}
    let server = Server::start(obliging);
    let (client, recorder) = quiet(&server);
    let mut runs = 0;
    let error = client
        .acquire_for_update(request(), |_| -> Result<(), BoxError> {
            runs += 1;
            Err(Mine.into())
        })
        .unwrap_err();
    let Error::Handler(inner) = &error else {
        panic!("{error}")
    };
    assert!(inner.is::<Mine>());
    assert_eq!(
        (error.to_string().as_str(), runs, count(&server, "/v1/release")),
        ("mine", 1, 1)
    );
    assert!(recorder.has("client.acquire_for_update.handler_error"));
}

/// CL-23: a conflict is the handler's to resolve: no new round.
#[test]
fn a_conflict_is_returned_without_another_run() {
    let server = on("/v1/update", vec![refusal(409, "version_conflict")]);
    let (client, _) = quiet(&server);
    let error = client
        .acquire_for_update(request(), |ctx| Ok(ctx.update("{}")?))
        .unwrap_err();
    assert!(error.is_conflict(), "{error}");
    assert_eq!((count(&server, "/v1/acquire"), count(&server, "/v1/release")), (1, 1));
}

/// CL-24: a lease lost under the handler leads to a new round.
#[test]
fn a_lost_lease_leads_to_a_new_round() {
    let server = on("/v1/update", vec![refusal(403, "lease_required")]);
    let (client, recorder) = quiet(&server);
    client
        .acquire_for_update(request(), |ctx| Ok(ctx.update("{}")?))
        .unwrap();
    assert_eq!((count(&server, "/v1/acquire"), count(&server, "/v1/update")), (2, 2));
    let retry = recorder.one("client.acquire_for_update.retry_after_handler_error");
    assert_eq!(
        retry.field_names(),
        [
            "cid",
            "delay",
            "error",
            "key",
            "lease_id",
            "qrf_state",
            "retries",
            "retry_after",
            "txn_id"
        ]
    );
    assert_eq!((retry.level, retry.field("retries")), (log::Level::Debug, "1"));
}

/// CL-25: an unexpected end of file runs the handler again.
#[test]
fn an_end_of_file_runs_the_handler_again() {
    let server = Server::start(obliging);
    let (client, _) = quiet(&server);
    let mut runs = 0;
    client
        .acquire_for_update(request(), |_| {
            runs += 1;
            match runs {
                1 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                _ => Ok(()),
            }
        })
        .unwrap();
    assert_eq!(
        (runs, count(&server, "/v1/acquire"), count(&server, "/v1/release")),
        (2, 2, 2)
    );
}

/// CL-23: one counter for all rounds, from the request or else from the client.
#[test]
fn rounds_are_limited() {
    let always_ends = |_: &mut lockd_client::UpdateContext| -> Result<(), BoxError> {
        Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
    };
    let server = Server::start(obliging);
    let client = client_of(&[&server])
        .failure_retries(Retries::Limited(2))
        .build()
        .unwrap();
    client.acquire_for_update(request(), always_ends).unwrap_err();
    assert_eq!(count(&server, "/v1/acquire"), 3);
    client
        .acquire_for_update(request().failure_retries(Retries::Limited(0)), always_ends)
        .unwrap_err();
    assert_eq!(count(&server, "/v1/acquire"), 4);
}

/// CL-23: a handshake that fails for a reason that may pass is tried again.
#[test]
fn a_failed_acquire_is_tried_again() {
    let server = on(
        "/v1/acquire",
        vec![refusal(429, "throttled"), refusal(400, "invalid_key")],
    );
    let (client, recorder) = quiet(&server);
    let nowait = || request().wait(lockd_client::Wait::No);
    let error = client.acquire_for_update(nowait(), |_| Ok(())).unwrap_err();
    assert_eq!(
        error.code(),
        Some("invalid_key"),
        "a refusal that will not pass is returned"
    );
    let retry = recorder.one("client.acquire_for_update.retry_after_acquire_error");
    assert_eq!(
        retry.field_names(),
        ["delay", "error", "key", "qrf_state", "retries", "retry_after"]
    );
    assert!(!recorder.has("client.acquire_for_update.acquire_error"));

    let server = on("/v1/acquire", vec![refusal(500, ""); 9]);
    let (client, recorder) = quiet(&server);
    client
        .acquire_for_update(nowait().failure_retries(Retries::Limited(1)), |_| Ok(()))
        .unwrap_err();
    assert_eq!(count(&server, "/v1/acquire"), 2);
    let given_up = recorder.one("client.acquire_for_update.acquire_error");
    assert_eq!(
        (given_up.field("retries"), given_up.field_names()),
        ("1", vec!["error", "key", "retries"])
    );
}

/// CL-21, CL-23: a snapshot that breaks off costs the lease, and a new round follows.
#[test]
fn a_broken_snapshot_is_released_and_tried_again() {
    let half = Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 500000\r\nX-Key-Version: 1\r\n\r\n{\"a\":".to_vec());
    let server = on("/v1/get", vec![half, refusal(404, "not_found")]);
    let (client, recorder) = quiet(&server);
    let mut runs = 0;
    let error = client
        .acquire_for_update(request(), |_| {
            runs += 1;
            Ok(())
        })
        .unwrap_err();
    assert_eq!((error.status(), runs), (Some(404), 0));
    assert_eq!((count(&server, "/v1/acquire"), count(&server, "/v1/release")), (2, 2));
    assert_eq!(recorder.named("client.acquire_for_update.snapshot_error").len(), 2);
    assert!(recorder.has("client.acquire_for_update.retry_after_snapshot_failure"));
}

/// CL-26: when only the release meets a standby, only the release is repeated.
#[test]
fn a_release_that_meets_a_standby_is_repeated_alone() {
    let passive = refusal(503, "node_passive");
    let server = on("/v1/release", vec![passive.clone(), passive]);
    let (client, recorder) = quiet(&server);
    let mut runs = 0;
    client
        .acquire_for_update(request(), |_| {
            runs += 1;
            Ok(())
        })
        .unwrap();
    assert_eq!(
        (runs, count(&server, "/v1/acquire"), count(&server, "/v1/release")),
        (1, 1, 3)
    );
    assert!(recorder.has("client.acquire_for_update.success"));

    let server = on("/v1/release", vec![refusal(503, "node_passive"); 9]);
    let (client, recorder) = quiet(&server);
    let error = client
        .acquire_for_update(request().failure_retries(Retries::Limited(2)), |_| Ok(()))
        .unwrap_err();
    assert!(error.is_node_passive(), "{error}");
    assert_eq!((count(&server, "/v1/acquire"), count(&server, "/v1/release")), (1, 3));
    assert!(recorder.has("client.acquire_for_update.node_passive"));
}

/// CL-27: any other standby is returned without a new round.
#[test]
fn a_standby_met_by_the_handler_is_returned() {
    let server = on("/v1/update", vec![refusal(503, "node_passive"); 9]);
    let recorder = Recorder::shared();
    let client = client_of(&[&server])
        .failure_retries(Retries::Limited(1))
        .logger(recorder.clone())
        .build()
        .unwrap();
    let error = client
        .acquire_for_update(request(), |ctx| Ok(ctx.update("{}")?))
        .unwrap_err();
    assert!(error.is_node_passive(), "{error}");
    assert_eq!((count(&server, "/v1/acquire"), count(&server, "/v1/release")), (1, 1));
    assert_eq!(
        recorder.one("client.acquire_for_update.node_passive").level,
        log::Level::Warn
    );
}

/// CL-22: the lease is renewed at half its life, with the life that was asked for.
#[test]
fn the_lease_is_renewed_while_the_handler_works() {
    let server = Server::start(obliging);
    let (client, _) = quiet(&server);
    client
        .acquire_for_update(request(), |ctx| {
            eventually("a renewal", || 0 < count(&server, "/v1/keepalive"));
            assert!(!ctx.is_cancelled());
            Ok(())
        })
        .unwrap();
    assert_eq!(server.seen_at("/v1/keepalive")[0].json()["ttl_seconds"], 2);
}

/// CL-21, CL-22: the first renewal that fails cancels the handler's context; the lease is released all the same.
#[test]
fn a_failed_renewal_cancels_the_handler() {
    let server = on("/v1/keepalive", vec![refusal(403, "fencing_mismatch"); 9]);
    let (client, recorder) = quiet(&server);
    let error = client
        .acquire_for_update(request(), |ctx| {
            assert!(
                ctx.cancel_token().wait(Duration::from_secs(20)),
                "the renewal never failed"
            );
            // Calls through the context are cut off too.
            assert!(ctx.get().unwrap_err().is_cancelled());
            Ok(())
        })
        .unwrap_err();
    assert!(error.is_lease_lost(), "{error}");
    assert_eq!((count(&server, "/v1/keepalive"), count(&server, "/v1/release")), (1, 1));
    let failed = recorder.one("client.acquire_for_update.keepalive_failed");
    assert_eq!(
        (failed.level, failed.field_names()),
        (log::Level::Warn, vec!["cid", "error", "key", "lease_id", "txn_id"])
    );
}

/// A renewal that the end of the handler cuts short is no failure.
#[test]
fn the_end_of_the_handler_ends_a_renewal_in_flight() {
    let server = on("/v1/keepalive", vec![Reply::Silence; 9]);
    let (client, recorder) = quiet(&server);
    client
        .acquire_for_update(request(), |_| {
            eventually("a renewal is on its way", || 0 < count(&server, "/v1/keepalive"));
            Ok(())
        })
        .unwrap();
    assert!(!recorder.has("client.acquire_for_update.keepalive_failed"));
}

/// CL-21: a panic of the handler comes out unchanged, after the lease was given back and its staging dropped.
#[test]
fn a_panic_of_the_handler_still_releases() {
    let server = Server::start(obliging);
    let (client, _) = quiet(&server);
    let panic = catch_unwind(AssertUnwindSafe(|| {
        client.acquire_for_update(request(), |_| -> Result<(), BoxError> { panic!("handler down") })
    }))
    .unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"handler down"));
    assert_eq!(server.one_at("/v1/release").json()["rollback"], true);
}

/// CL-21: the caller cancels while the handler works; the lease is given back all the same.
#[test]
fn the_callers_cancellation_reaches_the_handler_and_the_lease_is_released() {
    let server = Server::start(obliging);
    let (client, _) = quiet(&server);
    let token = CancelToken::new();
    let bound = client.with_options(CallOptions::new().cancel(token.clone()));
    let error = bound
        .acquire_for_update(request(), |ctx| {
            token.cancel();
            assert!(ctx.is_cancelled());
            Ok(ctx.update("{}")?)
        })
        .unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    assert_eq!((count(&server, "/v1/acquire"), count(&server, "/v1/release")), (1, 1));
}

/// A server may go down while the handler has not yet read: half a megabyte of snapshot is in memory before it starts.
#[test]
fn the_snapshot_outlives_its_server() {
    let blob = "x".repeat(512 * 1024);
    let text = format!("{blob:?}");
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v1/get" => Reply::json(200, &text).header("X-Key-Version", "1"),
        _ => obliging(seen),
    });
    let (client, _) = quiet(&server);
    let mut server = Some(server);
    let mut read = None;
    client
        .acquire_for_update(request(), |ctx| {
            drop(server.take());
            read = ctx.snapshot::<String>()?;
            Ok(())
        })
        .unwrap_err();
    assert_eq!(read, Some(blob));
}

/// Section 12.1: the for-update timeout bounds the handshake.
#[test]
fn the_handshake_has_a_time_limit() {
    let server = Server::start(|_| Reply::Silence);
    let client = client_of(&[&server])
        .for_update_timeout(Duration::from_millis(50))
        .failure_retries(Retries::Limited(1))
        .build()
        .unwrap();
    let error = client.acquire_for_update(request(), |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded), "{error}");
    assert_eq!(server.seen().len(), 2, "a time limit may pass: it was tried twice");
}
