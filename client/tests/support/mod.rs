//! A real HTTP server that answers by script and remembers what it was asked, and a logger that remembers events.

mod recorder;
mod server;

pub use recorder::Recorder;
pub use server::{Reply, Seen, Server};

use std::time::{Duration, Instant};

use lockd_client::{Backoff, Client, ClientBuilder};

/// A client of these servers that keeps their order and gives up on none for 5 seconds.
pub fn client_of(servers: &[&Server]) -> ClientBuilder {
    Client::builder()
        .endpoints(servers.iter().map(|server| server.url()))
        .endpoint_shuffle(false)
        .http_timeout(Duration::from_secs(5))
}

/// The answer to an acquire: lease `lease-1`, transaction `txn-1`, token 41, version 1, etag `etag-initial`.
pub fn grant(key: &str) -> Reply {
    Reply::json(
        200,
        &format!(
            r#"{{"namespace":"default","lease_id":"lease-1","txn_id":"txn-1","key":"{key}","owner":"o","expires_at_unix":1767261645,"version":1,"state_etag":"etag-initial","fencing_token":41,"correlation_id":"cid-granted"}}"#
        ),
    )
}

/// An error envelope.
pub fn refusal(status: u16, code: &str) -> Reply {
    Reply::json(status, &format!(r#"{{"error":"{code}","detail":"as scripted"}}"#))
}

/// What a server that just works would say.
pub fn obliging(seen: &Seen) -> Reply {
    match seen.path.as_str() {
        "/v1/acquire" => grant("k"),
        "/v1/keepalive" => Reply::json(200, r#"{"expires_at_unix":1767261700}"#),
        "/v1/release" => Reply::json(200, r#"{"released":true}"#),
        "/v1/update" => Reply::json(
            200,
            r#"{"new_version":2,"new_state_etag":"etag-2","bytes":2,"metadata":{}}"#,
        ),
        "/v1/metadata" => Reply::json(200, r#"{"namespace":"default","key":"k","version":3,"metadata":{}}"#),
        "/v1/remove" => Reply::json(200, r#"{"removed":true,"new_version":4}"#),
        "/v1/get" => Reply::json(200, r#"{"count":1}"#)
            .header("ETag", "\"etag-initial\"")
            .header("X-Key-Version", "1"),
        "/v1/describe" => Reply::json(
            200,
            r#"{"namespace":"default","key":"k","version":7,"state_etag":"e","metadata":{}}"#,
        ),
        _ => refusal(404, "not_found"),
    }
}

/// Waits until the condition holds; fails the test when it does not within 10 seconds.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "it never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An address of this machine where nobody listens.
pub fn dead_url() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A backoff that costs no time.
pub fn hasty() -> Backoff {
    Backoff {
        base: Duration::from_millis(1),
        max: Duration::from_millis(2),
        multiplier: 1.2,
        jitter: Duration::ZERO,
    }
}
