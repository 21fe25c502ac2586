//! CL-43: names, levels and fields of the events.

use std::time::Duration;

use lockd_client::wire::MetadataAttributes;
use lockd_client::{Acquire, Retries};
use log::Level::{self, Debug, Error, Info, Trace, Warn};

use crate::support::{Recorder, Reply, Server, client_of, hasty, obliging, refusal};

/// Checks the first event of each name. The correlation id, which depends on the call, is left out.
pub fn check(recorder: &Recorder, expected: &[(&str, Level, &str)]) {
    for (name, level, fields) in expected {
        let named = recorder.named(name);
        let event = named
            .first()
            .unwrap_or_else(|| panic!("{name} is not among {:#?}", recorder.names()));
        assert_eq!(event.target, "client.sdk");
        assert_eq!(event.level, *level, "{name}");
        let mut wanted: Vec<&str> = fields.split_whitespace().collect();
        wanted.sort_unstable();
        let got: Vec<&str> = event
            .field_names()
            .into_iter()
            .filter(|field| *field != "cid")
            .collect();
        assert_eq!(got, wanted, "{name}");
    }
}

#[test]
fn a_life_without_trouble_is_told_in_full() {
    let (server, recorder) = (Server::start(obliging), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let lease = client.acquire("k").unwrap();
    lease.get().unwrap();
    client.get_public("k").unwrap();
    lease.update("{}").unwrap();
    lease.update_stream(&b"{}"[..]).unwrap();
    lease
        .update_metadata(MetadataAttributes {
            query_hidden: Some(true),
        })
        .unwrap();
    lease.remove().unwrap();
    lease.keepalive(Duration::from_secs(3)).unwrap();
    client.describe("k").unwrap();
    client.namespace_config(None).unwrap_err();
    lease.release().unwrap();
    check(
        &recorder,
        &[
            ("client.init", Info, "endpoints"),
            ("client.http.order", Trace, "endpoints"),
            ("client.http.attempt", Trace, "endpoint attempt total"),
            ("client.http.success", Trace, "endpoint attempt total status duration"),
            ("client.http.post.start", Trace, "path endpoint"),
            ("client.http.post.success", Trace, "path endpoint status"),
            ("client.acquire.attempt", Trace, "key block_secs endpoint attempt"),
            ("client.acquire.success", Info, "key lease_id txn_id endpoint attempt"),
            (
                "client.get.start",
                Trace,
                "key namespace endpoint lease_id fencing_token",
            ),
            ("client.get_public.start", Trace, "key namespace endpoint public"),
            (
                "client.get.success",
                Trace,
                "key namespace endpoint etag version lease_id fencing_token",
            ),
            (
                "client.update.start",
                Trace,
                "key lease_id txn_id endpoint fencing_token",
            ),
            (
                "client.update.success",
                Trace,
                "key lease_id txn_id endpoint fencing_token new_version new_etag",
            ),
            (
                "client.update_stream.success",
                Trace,
                "key lease_id txn_id endpoint fencing_token new_version new_etag",
            ),
            ("client.metadata.start", Trace, "key lease_id txn_id namespace"),
            (
                "client.metadata.success",
                Trace,
                "key lease_id txn_id namespace endpoint version",
            ),
            (
                "client.remove.start",
                Trace,
                "key lease_id txn_id endpoint fencing_token",
            ),
            (
                "client.remove.success",
                Trace,
                "key lease_id txn_id endpoint fencing_token removed new_version",
            ),
            ("client.keepalive.start", Trace, "key lease_id ttl_seconds"),
            ("client.keepalive.headers", Trace, "key lease_id fencing_token txn_id"),
            (
                "client.keepalive.success",
                Trace,
                "key lease_id fencing_token txn_id expires_at",
            ),
            ("client.describe.start", Trace, "key endpoint"),
            ("client.describe.success", Trace, "key endpoint version state_etag"),
            ("client.namespace.get.start", Trace, "namespace endpoint"),
            ("client.namespace.get.error", Warn, "namespace endpoint status"),
            ("client.release.start", Trace, "key lease_id txn_id"),
            ("client.release.headers", Trace, "key lease_id txn_id fencing_token"),
            ("client.release.success", Trace, "key lease_id txn_id fencing_token"),
        ],
    );
    assert!(!recorder.has("client.update_stream.start"));
    let posts = recorder.named("client.http.post.start");
    let paths: Vec<&str> = posts.iter().map(|event| event.field("path")).collect();
    assert_eq!(
        paths,
        ["/v1/keepalive", "/v1/release"],
        "no other call posts in this sense"
    );
    let public = recorder.named("client.get.success").remove(1);
    assert_eq!(public.field("public"), "true");
    assert_eq!(
        recorder.one("client.init").field("endpoints"),
        format!("[{:?}]", server.url())
    );
}

#[test]
fn refusals_are_told() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/acquire" if seen.index == 0 => refusal(429, "throttled"),
        "/v1/acquire" if seen.index == 1 => refusal(409, "waiting"),
        "/v1/acquire" if seen.index == 2 => refusal(500, ""),
        "/v1/acquire" => obliging(seen),
        _ => refusal(400, "invalid_body"),
    });
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let lease = client.acquire(Acquire::key("k").backoff(hasty())).unwrap();
    lease.get().unwrap_err();
    lease.update("{}").unwrap_err();
    lease.update_stream(&b"{}"[..]).unwrap_err();
    lease
        .update_metadata(MetadataAttributes {
            query_hidden: Some(true),
        })
        .unwrap_err();
    lease.remove().unwrap_err();
    lease.keepalive(Duration::from_secs(3)).unwrap_err();
    client.describe("k").unwrap_err();
    lease.release().unwrap_err();
    lease.detach();
    check(
        &recorder,
        &[
            (
                "client.acquire.throttled",
                Warn,
                "key endpoint attempt retry_after qrf_state",
            ),
            ("client.acquire.conflict_status", Debug, "key endpoint attempt"),
            ("client.acquire.conflict", Debug, "key error attempt"),
            (
                "client.acquire.server_error",
                Warn,
                "key status endpoint attempt retry_after qrf_state",
            ),
            (
                "client.acquire.backoff",
                Trace,
                "key delay retry_after attempt endpoint",
            ),
            (
                "client.get.error",
                Warn,
                "key namespace endpoint status lease_id fencing_token",
            ),
            (
                "client.update.error",
                Warn,
                "key lease_id txn_id endpoint fencing_token status",
            ),
            (
                "client.update_stream.error",
                Warn,
                "key lease_id txn_id endpoint fencing_token status",
            ),
            (
                "client.metadata.error",
                Warn,
                "key lease_id txn_id namespace endpoint status",
            ),
            (
                "client.remove.error",
                Warn,
                "key lease_id txn_id endpoint fencing_token status",
            ),
            (
                "client.keepalive.error",
                Error,
                "key lease_id fencing_token txn_id error",
            ),
            ("client.describe.error", Warn, "key endpoint status"),
            ("client.http.post.error", Warn, "path endpoint status"),
            ("client.release.error", Error, "key lease_id txn_id fencing_token error"),
        ],
    );
}

#[test]
fn failures_of_the_network_are_told() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/acquire" => obliging(seen),
        _ => Reply::Close,
    });
    let recorder = Recorder::shared();
    let client = client_of(&[&server])
        .failure_retries(Retries::Limited(0))
        .logger(recorder.clone())
        .build()
        .unwrap();
    let lease = client.acquire("k").unwrap();
    lease.get().unwrap_err();
    lease.update("{}").unwrap_err();
    lease.update_stream(&b"{}"[..]).unwrap_err();
    lease
        .update_metadata(MetadataAttributes {
            query_hidden: Some(true),
        })
        .unwrap_err();
    lease.remove().unwrap_err();
    lease.keepalive(Duration::from_secs(3)).unwrap_err();
    client.describe("k").unwrap_err();
    client.namespace_config(None).unwrap_err();
    lease.release().unwrap_err();
    lease.detach();
    check(
        &recorder,
        &[
            ("client.http.error", Trace, "endpoint attempt total error duration"),
            ("client.http.unreachable", Debug, "order error"),
            ("client.http.post.transport_error", Error, "path error"),
            (
                "client.get.transport_error",
                Error,
                "key namespace endpoint error lease_id fencing_token",
            ),
            (
                "client.update.transport_error",
                Error,
                "key lease_id txn_id endpoint fencing_token error",
            ),
            (
                "client.update_stream.transport_error",
                Error,
                "key lease_id txn_id endpoint fencing_token error",
            ),
            (
                "client.metadata.transport_error",
                Error,
                "key lease_id txn_id namespace endpoint error",
            ),
            (
                "client.remove.transport_error",
                Error,
                "key lease_id txn_id endpoint fencing_token error",
            ),
            ("client.describe.transport_error", Error, "key error"),
            ("client.namespace.get.transport_error", Error, "namespace error"),
        ],
    );
    assert_eq!(recorder.one("client.update.transport_error").field("endpoint"), "");
}

#[test]
fn the_life_of_a_connection_is_told_on_request() {
    let (server, recorder) = (Server::start(obliging), Recorder::shared());
    let client = client_of(&[&server])
        .http_trace(true)
        .logger(recorder.clone())
        .build()
        .unwrap();
    client.describe("k").unwrap();
    client.describe("k").unwrap();
    let told: Vec<String> = recorder
        .names()
        .into_iter()
        .filter_map(|name| name.strip_prefix("client.http.trace.").map(str::to_owned))
        .collect();
    let once = ["got_conn", "wrote_request", "first_byte", "put_idle"];
    assert_eq!(told, [once, once].concat());
    check(
        &recorder,
        &[
            ("client.http.trace.got_conn", Trace, "endpoint reused was_idle remote"),
            ("client.http.trace.wrote_request", Trace, "endpoint"),
            ("client.http.trace.first_byte", Trace, "endpoint"),
            ("client.http.trace.put_idle", Trace, "endpoint"),
        ],
    );
    let reused: Vec<String> = recorder
        .named("client.http.trace.got_conn")
        .iter()
        .map(|event| event.field("reused").to_owned())
        .collect();
    assert_eq!(reused, ["false", "true"]);
    assert_eq!(
        recorder.named("client.http.trace.got_conn")[0].field("remote"),
        server.url().replace("http://", "")
    );
}
