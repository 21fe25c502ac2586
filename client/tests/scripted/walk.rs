//! The endpoint walk, connections, correlation ids.

use std::io::{BufRead, BufReader, Write};
use std::time::Duration;

use lockd_client::{CallOptions, Client, Error, Retries};

use crate::support::{Recorder, Reply, Server, client_of, dead_url, eventually, obliging, refusal};

fn client_of_urls(urls: &[&str], recorder: &std::sync::Arc<Recorder>) -> Client {
    Client::builder()
        .endpoints(urls.iter().copied())
        .endpoint_shuffle(false)
        .http_timeout(Duration::from_secs(5))
        .logger(recorder.clone())
        .build()
        .unwrap()
}

/// CL-3, CL-7: a refused connection moves on, and the log tells the two in their order.
#[test]
fn a_refused_endpoint_is_passed_over_and_the_log_says_so_in_order() {
    let (dead, server, recorder) = (dead_url(), Server::start(obliging), Recorder::shared());
    let client = client_of_urls(&[&dead, &server.url()], &recorder);
    assert_eq!(client.describe("k").unwrap().version, 7);

    let walk: Vec<(String, String)> = recorder
        .all()
        .into_iter()
        .filter(|event| event.name.starts_with("client.http.") && event.name != "client.http.order")
        .map(|event| (event.name.clone(), event.field("endpoint").to_owned()))
        .collect();
    let expected: Vec<(String, String)> = [
        ("client.http.attempt", &dead),
        ("client.http.error", &dead),
        ("client.http.attempt", &server.url()),
        ("client.http.success", &server.url()),
    ]
    .map(|(name, endpoint)| (name.to_owned(), endpoint.clone()))
    .to_vec();
    assert_eq!(walk, expected);
    let (error, success) = (recorder.one("client.http.error"), recorder.one("client.http.success"));
    assert!(error.at <= success.at);
    assert_eq!((error.field("attempt"), error.field("total")), ("1", "2"));
    assert_eq!((success.field("attempt"), success.field("status")), ("2", "200"));
}

/// CL-3: a standby moves the walk on, with a word or without.
#[test]
fn a_standby_is_passed_over_unless_it_is_the_last() {
    for standby in [refusal(503, "node_passive"), Reply::empty(503)] {
        let passive = Server::start(move |_| standby.clone());
        let active = Server::start(obliging);
        let client = client_of(&[&passive, &active]).build().unwrap();
        assert_eq!(client.describe("k").unwrap().version, 7);
        assert_eq!(passive.seen().len(), 1);

        let client = client_of(&[&active, &passive]).build().unwrap();
        client.describe("k").unwrap();
        assert_eq!(passive.seen().len(), 1, "the first answer ends the walk");

        let alone = client_of(&[&passive]).build().unwrap();
        assert_eq!(alone.describe("k").unwrap_err().status(), Some(503));
    }
}

/// CL-4: everything else ends the walk, a draining server too.
#[test]
fn any_other_answer_ends_the_walk() {
    for (status, code) in [
        (503, "shutdown_draining"),
        (503, "waiting"),
        (500, "internal_error"),
        (502, ""),
        (429, "throttled"),
        (404, "not_found"),
        (301, ""),
    ] {
        let first = Server::start(move |_| refusal(status, code).header("Location", "http://127.0.0.1:1/"));
        let second = Server::start(obliging);
        let client = client_of(&[&first, &second]).build().unwrap();
        let error = client.describe("k").unwrap_err();
        assert_eq!(error.status(), Some(status), "{error}");
        assert_eq!((first.seen().len(), second.seen().len()), (1, 0), "{status} {code}");
    }
}

/// CL-5: the message lists all endpoints in tried order and keeps the last cause.
#[test]
fn when_nobody_answers_the_error_names_all_and_the_last_cause() {
    let (first, second, recorder) = (dead_url(), dead_url(), Recorder::shared());
    let client = client_of_urls(&[&first, &second], &recorder);
    let error = client.describe("k").unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!(
            "lockd: all endpoints unreachable (attempted {first},{second}): "
        )),
        "{text}"
    );
    let Error::Unreachable(unreachable) = error else {
        panic!("{text}")
    };
    assert_eq!(unreachable.attempts.len(), 2);
    assert_eq!(unreachable.attempts[0].endpoint, first);
    let event = recorder.one("client.http.unreachable");
    assert_eq!(event.field_names(), ["error", "order"]);
    assert_eq!(event.field("error"), text);
}

/// CL-6: there is no memory of a good endpoint; only update, metadata and release begin with the granting one.
#[test]
fn only_writes_and_release_begin_at_the_granting_endpoint() {
    let passive = Server::start(|_| refusal(503, "node_passive"));
    let active = Server::start(obliging);
    let client = client_of(&[&passive, &active]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    assert_eq!(lease.endpoint(), Some(active.url().as_str()));
    lease.get().unwrap();
    lease.update("{}").unwrap();
    lease
        .update_metadata(lockd_client::wire::MetadataAttributes {
            query_hidden: Some(true),
        })
        .unwrap();
    lease.keepalive(Duration::from_secs(30)).unwrap();
    lease.remove().unwrap();
    client.describe("k").unwrap();
    let began_at_first = |path: &str| !passive.seen_at(path).is_empty();
    for path in ["/v1/acquire", "/v1/get", "/v1/keepalive", "/v1/remove", "/v1/describe"] {
        assert!(began_at_first(path), "{path}");
    }
    for path in ["/v1/update", "/v1/metadata"] {
        assert!(!began_at_first(path), "{path}");
    }
    lease.release().unwrap();
    let recorded = active.seen_at("/v1/release");
    assert_eq!(recorded.len(), 1);
}

/// CL-3: a server that says nothing is given up after the time for one attempt.
#[test]
fn a_silent_endpoint_is_given_up_after_the_attempt_timeout() {
    let (silent, server, recorder) = (
        Server::start(|_| Reply::Silence),
        Server::start(obliging),
        Recorder::shared(),
    );
    let client = client_of(&[&silent, &server])
        .http_timeout(Duration::from_secs(2))
        .logger(recorder.clone())
        .build()
        .unwrap();
    assert!(client.get_public("k").unwrap().exists());
    assert!(
        recorder
            .one("client.http.error")
            .field("error")
            .starts_with("timed out")
    );
}

/// CL-3: an answer that ends in its head is a failure of the endpoint; CL-10: one that ends in its body is reported.
#[test]
fn half_an_answer_is_no_answer() {
    let half_head = Server::start(|_| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Le".to_vec()));
    let noise = Server::start(|_| Reply::Raw(b"SSH-2.0-hello\r\n\r\n".to_vec()));
    let server = Server::start(obliging);
    let client = client_of(&[&half_head, &noise, &server]).build().unwrap();
    assert_eq!(client.describe("k").unwrap().version, 7);

    let half_body = Server::start(|_| Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"ver".to_vec()));
    let client = client_of(&[&half_body, &server]).build().unwrap();
    let error = client.describe("k").unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert!(error.is_transport());
}

/// CL-9: a body that was on its way once is not sent again, not even partly.
#[test]
fn a_streamed_body_is_never_sent_twice() {
    let broken = Server::start(|seen| match seen.path.as_str() {
        "/v1/update" => Reply::Close,
        _ => obliging(seen),
    });
    let second = Server::start(obliging);
    let recorder = Recorder::shared();
    let client = client_of(&[&broken, &second]).logger(recorder.clone()).build().unwrap();
    let lease = client.acquire("k").unwrap();
    let error = lease.update_stream(&br#"{"a":1}"#[..]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("lockd: update stream body is not replayable"),
        "{error}"
    );
    assert!(second.seen_at("/v1/update").is_empty());
    assert_eq!(
        recorder.one("client.http.builder_error").field("endpoint"),
        second.url()
    );
    assert!(recorder.has("client.update_stream.transport_error"));
}

/// CL-9: when the source of a body fails, its own error is reported and nothing counts as sent.
#[test]
fn a_source_that_fails_is_reported_as_itself() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is on fire"))
        }
    }
    let server = Server::start(obliging);
    let client = client_of(&[&server]).build().unwrap();
    let lease = client.acquire("k").unwrap();
    let error = lease.update_stream(Broken).unwrap_err();
    assert!(matches!(&error, Error::BodySource(_)), "{error}");
    assert!(error.to_string().contains("the disk is on fire"));
    let error = lease.update(lockd_client::StateInput::reader(Broken)).unwrap_err();
    assert!(matches!(&error, Error::BodySource(_)), "{error}");
}

/// Idle connections that a server has closed are noticed before they are used: the caller sees nothing of it, also for
/// calls that must not be repeated.
#[test]
fn a_connection_closed_while_idle_is_replaced_unseen() {
    let server = Server::start(|seen| Reply::ThenClose(Box::new(obliging(seen))));
    let recorder = Recorder::shared();
    let client = client_of(&[&server])
        .failure_retries(Retries::Limited(0))
        .logger(recorder.clone())
        .build()
        .unwrap();
    let lease = client.acquire("k").unwrap();
    for round in 1..=3 {
        eventually("the server has closed the connection", || server.ended() == round);
        lease.update("{}").unwrap();
    }
    assert_eq!(server.connections(), 4);
    assert!(!recorder.has("client.http.error"));
    drop(lease);
}

/// The race that no probe can see: the server closes a reused connection just when the request arrives. A read is repeated
/// on a fresh connection, silently and once; a write is not, because it may have been carried out.
#[test]
fn a_reused_connection_that_dies_under_a_request_is_replaced_for_reads_only() {
    let dies_under = |path: &'static str| {
        Server::start(move |seen| match (seen.connection, seen.path.as_str()) {
            (0, at) if at == path => Reply::Close,
            _ => obliging(seen),
        })
    };
    let server = dies_under("/v1/describe");
    let recorder = Recorder::shared();
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    client.get_public("k").unwrap();
    assert_eq!(client.describe("k").unwrap().version, 7);
    assert_eq!(server.seen_at("/v1/describe").len(), 2);
    assert!(!recorder.has("client.http.error"));

    let server = dies_under("/v1/update");
    let client = client_of(&[&server])
        .failure_retries(Retries::Limited(0))
        .build()
        .unwrap();
    let lease = client.acquire("k").unwrap();
    let error = lease.update("{}").unwrap_err();
    assert!(error.last_transport_error().unwrap().is_end_of_file(), "{error}");
    assert_eq!(server.seen_at("/v1/update").len(), 1);

    // On a fresh connection it is no race but a server that does not answer.
    let server = dies_under("/v1/describe");
    let client = client_of(&[&server]).build().unwrap();
    assert!(client.describe("k").unwrap_err().is_transport());
    assert_eq!(server.seen().len(), 1);
}

/// CL-1: a path in the address comes before the path of the call.
#[test]
fn an_address_may_have_a_path() {
    let server = Server::start(|_| Reply::json(200, r#"{"version":3}"#));
    let client = client_of(&[])
        .endpoint(format!("{}/lock/", server.url()))
        .build()
        .unwrap();
    assert_eq!(client.describe("a/b c").unwrap().version, 3);
    let seen = server.one_at("/lock/v1/describe");
    assert_eq!(seen.query, "key=a%2Fb+c&namespace=default");
    assert_eq!(seen.method, "GET");
}

/// CL-1: a unix socket, with and without a base path.
#[test]
fn requests_travel_over_unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lockd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let server = std::thread::Builder::new()
        .spawn(move || {
            let mut targets = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
                targets.push(lines.next().unwrap());
                assert!(lines.any(|line| line.is_empty()));
                let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\n{\"version\":5}";
                stream.write_all(answer.as_bytes()).unwrap();
            }
            targets
        })
        .unwrap();
    for query in ["", "?path=/base"] {
        let url = format!("unix://{}{query}", path.display());
        let client = Client::builder().endpoint(url).build().unwrap();
        assert_eq!(client.describe("k").unwrap().version, 5);
    }
    assert_eq!(
        server.join().unwrap(),
        [
            "GET /v1/describe?key=k&namespace=default HTTP/1.1",
            "GET /base/v1/describe?key=k&namespace=default HTTP/1.1"
        ]
    );
}

/// Section 6 of the protocol: the caller's id goes with the acquire, the server's id with everything after it.
#[test]
fn correlation_ids_are_sent_remembered_and_logged() {
    let (server, recorder) = (Server::start(obliging), Recorder::shared());
    let client = client_of(&[&server]).logger(recorder.clone()).build().unwrap();
    let asking = client.with_options(CallOptions::new().correlation_id(" mine "));
    let lease = asking.acquire("k").unwrap();
    lease.update("{}").unwrap();
    assert_eq!(server.one_at("/v1/acquire").header("X-Correlation-Id"), Some("mine"));
    assert_eq!(
        server.one_at("/v1/update").header("X-Correlation-Id"),
        Some("cid-granted")
    );
    assert_eq!(recorder.one("client.acquire.success").field("cid"), "mine");
    assert_eq!(recorder.one("client.update.success").field("cid"), "cid-granted");
    lease.release().unwrap();

    recorder.clear();
    client
        .with_options(CallOptions::new().correlation_id("\n"))
        .describe("k")
        .unwrap();
    assert_eq!(
        server.one_at("/v1/describe").header("X-Correlation-Id"),
        None,
        "an invalid id is not sent"
    );
    assert!(recorder.all().iter().all(|event| !event.fields.contains_key("cid")));

    let fixed = client_of(&[&server]).correlation_id("fixed").build().unwrap();
    fixed
        .with_options(CallOptions::new().correlation_id("mine"))
        .get_public("k")
        .unwrap();
    assert_eq!(server.one_at("/v1/get").header("X-Correlation-Id"), Some("fixed"));
}

/// CL-2: two servers, shuffle on: each is asked first sooner or later. 64 equal draws have a chance of 2^-63.
#[test]
fn shuffled_walks_begin_at_different_endpoints() {
    let (first, second) = (Server::start(obliging), Server::start(obliging));
    let client = client_of(&[&first, &second]).endpoint_shuffle(true).build().unwrap();
    for _ in 0..64 {
        client.describe("k").unwrap();
    }
    assert!(!first.seen().is_empty() && !second.seen().is_empty());
    assert_eq!(first.seen().len() + second.seen().len(), 64);
}
