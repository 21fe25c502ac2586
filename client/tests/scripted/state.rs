//! Reading and writing state.

use std::io::Read;
use std::sync::mpsc;
use std::time::Duration;

use lockd_client::wire::{MetadataAttributes, QueryEngines};
use lockd_client::{CallOptions, Error, LeaseRef, ReadOptions, Retries, WriteOptions};

use crate::support::{Recorder, Reply, Server, client_of, obliging, refusal};

/// CL-28: a public read says so and carries no lease headers.
#[test]
fn a_public_read_carries_no_lease() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let state = client.get_public("k").unwrap();
    assert_eq!((state.etag.as_str(), state.version), ("etag-initial", 1));
    let value: Option<serde_json::Value> = state.into_json().unwrap();
    assert_eq!(value.unwrap()["count"], 1);
    let seen = server.one_at("/v1/get");
    assert_eq!(seen.query, "key=k&namespace=default&public=1");
    assert_eq!(
        (seen.header("X-Lease-ID"), seen.header("X-Fencing-Token")),
        (None, None)
    );
    assert_eq!(
        (seen.method.as_str(), seen.header("content-length")),
        ("POST", Some("0"))
    );
}

/// CL-28: 204 means that there is no state; it is no error.
#[test]
fn no_state_is_not_an_error() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/get" => Reply::empty(204),
        _ => obliging(seen),
    });
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let state = client.get_public("k").unwrap();
    assert!(!state.exists());
    assert_eq!(state.into_bytes().unwrap(), b"");
    assert_eq!(client.get_public("k").unwrap().into_json::<u8>().unwrap(), None);
    let lease = client.acquire("k").unwrap();
    assert_eq!(lease.load::<serde_json::Value>().unwrap(), None);
    assert_eq!(lease.state_etag(), "etag-initial", "what is known stays known");
    assert_eq!(recorder.named("client.get.empty").len(), 3);
}

/// CL-28: leased reads, through the lease, an explicit id, or the default lease.
#[test]
fn a_leased_read_carries_lease_and_token_but_no_transaction() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    lease.get().unwrap();
    client
        .get_with("k", &ReadOptions::new().lease_id("lease-1").namespace("Shop"))
        .unwrap();
    client.set_default_lease(Some("lease-1"));
    client.get("k").unwrap();
    for seen in server.seen_at("/v1/get") {
        assert_eq!(
            (seen.header("X-Lease-ID"), seen.header("X-Fencing-Token")),
            (Some("lease-1"), Some("41"))
        );
        assert_eq!(seen.header("X-Txn-ID"), None);
        assert!(!seen.query.contains("public"));
    }
    assert_eq!(server.seen_at("/v1/get")[1].query, "key=k&namespace=shop");
    lease.release().unwrap();
    client.get("k").unwrap();
    let last = server.seen_at("/v1/get").pop().unwrap();
    assert!(
        last.query.ends_with("public=1"),
        "the default lease ends with its release"
    );

    let error = client.get_with("k", &ReadOptions::new().leased_only()).unwrap_err();
    assert_eq!(error.to_string(), "lockd: lease_id required for key k");
    assert_eq!(client.get_public(" ").unwrap_err().to_string(), "lockd: key required");
    assert_eq!(server.seen_at("/v1/get").len(), 4);
}

/// CL-10: the HTTP timeout of a get covers the reading of its body.
#[test]
fn a_body_that_trickles_is_cut_off_by_the_timeout_of_its_get() {
    let server = Server::start(|_| Reply::Http {
        status: 200,
        headers: vec![("Transfer-Encoding".to_owned(), "chunked".to_owned())],
        body: b"5\r\n{\"a\":\r\n".to_vec(),
    });
    let client = client_of(&[&server])
        .http_timeout(Duration::from_millis(150))
        .build()
        .unwrap();
    let error = client.get_public("k").unwrap().into_bytes().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
}

#[test]
fn a_large_state_streams() {
    let text = format!("{:?}", "x".repeat(3 << 20));
    let body = text.clone();
    let server = Server::start(move |_| Reply::json(200, &body));
    let client = client_of(&[&server]).build().unwrap();
    let mut reader = client.get_public("k").unwrap().into_reader();
    let mut first = [0; 2];
    reader.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"\"x");
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len() + 2, text.len());
    drop(reader);
    client.get_public("k").unwrap().into_bytes().unwrap();
    assert_eq!(server.connections(), 1, "a body read to its end frees its connection");
}

/// CL-11: transport errors and standbys are got over, with the body sent again from its beginning.
#[test]
fn an_update_is_repeated_on_transport_errors_and_standbys() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.index) {
        ("/v1/update", 1) => Reply::Close,
        ("/v1/update", 2) => refusal(503, "node_passive"),
        ("/v1/update", 3) => Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".to_vec()),
        _ => obliging(seen),
    });
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    let source = lockd_client::StateInput::reader(&br#"{"a":1}"#[..]);
    assert_eq!(lease.update(source).unwrap().new_version, 2);
    let updates = server.seen_at("/v1/update");
    assert_eq!(updates.len(), 4);
    assert!(updates.iter().all(|seen| seen.body == br#"{"a":1}"#));
}

/// CL-11: five retries, and only of what may heal.
#[test]
fn an_update_gives_up_after_its_retries_and_at_once_on_a_conflict() {
    let counted = |reply: Reply, retries: Option<u32>| {
        let server = Server::start(move |seen| match seen.path.as_str() {
            "/v1/update" => reply.clone(),
            _ => obliging(seen),
        });
        let mut builder = client_of(&[&server]);
        if let Some(limit) = retries {
            builder = builder.failure_retries(Retries::Limited(limit));
        }
        let lease = builder.build().unwrap().acquire("k").unwrap();
        let error = lease.update("{}").unwrap_err();
        (server.seen_at("/v1/update").len(), error)
    };
    let (requests, error) = counted(refusal(503, "node_passive"), None);
    assert_eq!(requests, 6);
    assert!(error.is_node_passive());
    assert_eq!(counted(Reply::Close, Some(1)).0, 2);
    let (requests, error) = counted(refusal(409, "version_conflict"), None);
    assert_eq!(requests, 1);
    assert!(error.is_conflict());
    assert_eq!(counted(refusal(500, "internal_error"), None).0, 1);
}

/// CL-11: nothing else is repeated.
#[test]
fn other_calls_are_not_repeated() {
    let server = Server::start(|seen| match seen.path.as_str() {
        "/v1/acquire" | "/v1/release" => obliging(seen),
        _ => refusal(503, "node_passive"),
    });
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    assert!(lease.get().unwrap_err().is_node_passive());
    assert!(lease.remove().unwrap_err().is_node_passive());
    assert!(lease.update_stream(&b"{}"[..]).unwrap_err().is_node_passive());
    assert!(lease.keepalive(Duration::from_secs(9)).unwrap_err().is_node_passive());
    let hidden = MetadataAttributes {
        query_hidden: Some(true),
    };
    assert!(lease.update_metadata(hidden).unwrap_err().is_node_passive());
    assert!(client.describe("k").unwrap_err().is_node_passive());
    assert_eq!(server.seen().len(), 7);
}

/// CL-16: what is given explicitly beats memory; what is given empty does not.
#[test]
fn explicit_values_beat_what_the_lease_remembers() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    let options = WriteOptions::new()
        .if_version(77)
        .if_state_etag("other")
        .fencing_token(99)
        .txn_id("txn-other")
        .namespace("Elsewhere")
        .expected_sha256("ab".repeat(32))
        .expected_bytes(2)
        .query_hidden(true);
    lease.update_with("{}", &options).unwrap();
    let seen = server.one_at("/v1/update");
    assert_eq!(seen.header("X-If-Version"), Some("77"));
    assert_eq!(seen.header("X-If-State-ETag"), Some("other"));
    assert_eq!(seen.header("X-Fencing-Token"), Some("99"));
    assert_eq!(seen.header("X-Txn-ID"), Some("txn-other"));
    assert_eq!(seen.header("X-Expected-SHA256"), Some("ab".repeat(32).as_str()));
    assert_eq!(seen.header("X-Expected-Bytes"), Some("2"));
    assert_eq!(seen.header("X-Lockd-Meta-Query-Hidden"), Some("true"));
    assert_eq!(seen.query, "key=k&namespace=elsewhere");

    lease
        .update_stream_with(
            &b"{}"[..],
            &WriteOptions::new().expected_bytes(2).if_state_etag("").txn_id(""),
        )
        .unwrap();
    let seen = server.seen_at("/v1/update").pop().unwrap();
    assert_eq!(seen.header("X-Expected-Bytes"), Some("2"));
    assert_eq!(seen.header("X-If-State-ETag"), Some("etag-2"));
    assert_eq!(seen.header("X-Txn-ID"), Some("txn-1"));
    assert_eq!(seen.header("X-Lockd-Meta-Query-Hidden"), None);
    assert_eq!(seen.header("Transfer-Encoding"), Some("chunked"));

    let zero = lease
        .update_with("{}", &WriteOptions::new().fencing_token(0))
        .unwrap_err();
    assert!(zero.is_missing_fencing_token());
}

/// CL-16: attributes travel as JSON, carry no etag, and their answer moves the version on.
#[test]
fn attributes_are_changed_and_move_the_version_on() {
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    let error = lease.update_metadata(MetadataAttributes::default()).unwrap_err();
    assert_eq!(error.to_string(), "lockd: metadata options required");
    lease
        .update_metadata(MetadataAttributes {
            query_hidden: Some(false),
        })
        .unwrap();
    lease.update("{}").unwrap();
    let seen = server.one_at("/v1/metadata");
    assert_eq!(seen.json(), serde_json::json!({"query_hidden": false}));
    assert_eq!(
        (seen.header("X-If-Version"), seen.header("X-If-State-ETag")),
        (Some("1"), None)
    );
    assert_eq!(server.one_at("/v1/update").header("X-If-Version"), Some("3"));
}

/// CL-16: every answer may bring a new token, and the next call uses it.
#[test]
fn a_token_that_an_answer_brings_is_used_from_then_on() {
    let server = Server::start(|seen| {
        let next = 42 + seen.index;
        obliging(seen).header("X-Fencing-Token", &next.to_string())
    });
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    assert_eq!(
        lease.fencing_token(),
        Some(41),
        "the body of a grant counts, not its header"
    );
    lease.get().unwrap();
    lease.update("{}").unwrap();
    lease.keepalive(Duration::from_secs(3)).unwrap();
    lease.remove().unwrap();
    lease.release().unwrap();
    let sent: Vec<String> = server.seen()[1..]
        .iter()
        .map(|seen| seen.header("X-Fencing-Token").unwrap().to_owned())
        .collect();
    assert_eq!(sent, ["41", "43", "44", "45", "46"]);
}

/// CL-29: a streamed update is on its way while its source is still being read.
#[test]
fn a_streamed_update_is_not_held_in_memory() {
    /// Gives its second part only when the server has the first.
    struct Source {
        parts: Vec<&'static [u8]>,
        first_arrived: mpsc::Receiver<()>,
    }
    impl Read for Source {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.parts.len() == 1 {
                self.first_arrived
                    .recv_timeout(Duration::from_secs(10))
                    .map_err(|_| std::io::Error::other("the first part never arrived: it was held back"))?;
            }
            if self.parts.is_empty() {
                return Ok(0);
            }
            let part = self.parts.remove(0);
            buffer[..part.len()].copy_from_slice(part);
            Ok(part.len())
        }
    }
    let (arrived, first_arrived) = mpsc::channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::Builder::new()
        .spawn(move || {
            use std::io::Write;
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            let mut buffer = [0; 4096];
            let mut told = false;
            while !received.windows(5).any(|window| window == b"0\r\n\r\n") {
                let count = stream.read(&mut buffer).unwrap();
                assert_ne!(count, 0, "{}", String::from_utf8_lossy(&received));
                received.extend_from_slice(&buffer[..count]);
                if !told && received.windows(5).any(|window| window == b"first") {
                    told = true;
                    arrived.send(()).unwrap();
                }
            }
            let body = r#"{"new_version":1,"new_state_etag":"e"}"#;
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            String::from_utf8(received).unwrap()
        })
        .unwrap();
    let client = client_of(&[]).endpoint(url).build().unwrap();
    let session = client
        .session(LeaseRef::new("k", "lease-9").fencing_token(5).txn_id("txn-9"))
        .unwrap();
    let source = Source {
        parts: vec![b"\"first ", b"second\""],
        first_arrived,
    };
    assert_eq!(session.update_stream(source).unwrap().new_version, 1);
    let received = server.join().unwrap().to_ascii_lowercase();
    assert!(
        received.contains("x-lease-id: lease-9\r\n") && received.contains("x-txn-id: txn-9\r\n"),
        "{received}"
    );
}

/// CL-20: without a token nothing is sent.
#[test]
fn a_missing_token_is_noticed_before_any_request() {
    let server = Server::start(obliging);
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let session = client.session(LeaseRef::new("k", "foreign")).unwrap();
    let hidden = MetadataAttributes {
        query_hidden: Some(true),
    };
    let missing = |error: Error| {
        assert_eq!(error.to_string(), "lockd: fencing token required");
        assert!(error.is_missing_fencing_token());
    };
    missing(session.get().unwrap_err());
    missing(session.update("{}").unwrap_err());
    missing(session.update_stream(&b"{}"[..]).unwrap_err());
    missing(session.update_metadata(hidden).unwrap_err());
    missing(session.remove().unwrap_err());
    missing(session.keepalive(Duration::from_secs(5)).unwrap_err());
    missing(
        client
            .get_with("k", &ReadOptions::new().lease_id("foreign"))
            .unwrap_err(),
    );
    assert!(server.seen().is_empty());

    client.register_token("foreign", 7);
    session.update("{}").unwrap();
    let seen = server.one_at("/v1/update");
    assert_eq!(
        (seen.header("X-Fencing-Token"), seen.header("X-If-Version")),
        (Some("7"), None)
    );
}

#[test]
fn namespace_configuration_is_read_and_changed() {
    let server = Server::start(|seen| match seen.index {
        2 => refusal(409, "namespace_config_conflict"),
        _ => Reply::json(
            200,
            r#"{"namespace":"shop","query":{"preferred_engine":"scan","fallback_engine":"none"}}"#,
        )
        .header("ETag", "\"e1\""),
    });
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let settings = client.namespace_config(Some("Shop")).unwrap();
    assert_eq!(
        (settings.etag.as_str(), settings.config.query.preferred_engine.as_str()),
        ("e1", "scan")
    );
    let wanted = QueryEngines {
        preferred_engine: "index".to_owned(),
        ..QueryEngines::default()
    };
    client
        .set_namespace_config(Some("shop"), wanted.clone(), Some("e1"))
        .unwrap();
    let error = client.set_namespace_config(None, wanted, None).unwrap_err();
    assert_eq!(error.code(), Some("namespace_config_conflict"));
    assert!(
        client
            .set_namespace_config(None, QueryEngines::default(), None)
            .is_err()
    );
    let seen = server.seen();
    assert_eq!(
        (seen[0].method.as_str(), seen[0].query.as_str()),
        ("GET", "namespace=shop")
    );
    assert_eq!(seen[1].header("If-Match"), Some("e1"));
    assert_eq!(
        seen[1].json(),
        serde_json::json!({"namespace":"shop","query":{"preferred_engine":"index"}})
    );
    assert_eq!(seen[2].query, "namespace=default");
    assert_eq!(seen.len(), 3);
    assert_eq!(
        recorder.one("client.namespace.get.success").field_names(),
        ["endpoint", "etag", "namespace"]
    );
    assert_eq!(
        recorder.one("client.namespace.set.error").field_names(),
        ["endpoint", "namespace", "status"]
    );
}

#[test]
fn options_bind_reads_too() {
    let server = Server::start(|_| Reply::Silence);
    let client = client_of(&[&server]).build().unwrap();
    let bound = client.with_options(CallOptions::new().timeout(Duration::from_millis(50)));
    assert!(matches!(bound.get_public("k").unwrap_err(), Error::DeadlineExceeded));
}
