//! The wire: which requests are understood, with which code the others are refused, and that no bytes, however odd, keep
//! the server from answering the next client.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::ManualClock;
use serde_json::{Value, json};

use super::fixture::{Backend, TestServer};
use super::http::{Answer, Connection, chunked, send};
use super::lockd_calls::{Held, acquire, acquire_with, assert_healthy, begin_acquire, get_public, hold};
use super::names::is_uuid_v7;

/// Small enough to exceed in a test.
const JSON_BYTES_MAX: u64 = 256 * 1024;
/// A connection that the server means to close is closed within this time.
const CLOSED_SOON: Duration = Duration::from_secs(20);

fn server_with_small_limit(backend: &dyn Backend) -> TestServer {
    TestServer::fresh_with(backend, |options| options.settings.json_bytes_max = JSON_BYTES_MAX)
}

/// One malformed or refused request.
struct Case {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    status: u16,
    code: &'static str,
}

/// What is refused on the ground of the request alone, or of a lease that it names.
fn refused_requests(held: &Held) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut post = |path: &str, headers: &[(&'static str, &str)], body: &str, status: u16, code: &'static str| {
        cases.push(Case {
            method: if path.starts_with("/v1/get") || path.starts_with("/v1/describe") {
                "GET"
            } else {
                "POST"
            },
            path: path.to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            body: body.as_bytes().to_vec(),
            status,
            code,
        });
    };
    let token = held.token.to_string();
    let token = [("X-Fencing-Token", token.as_str())];
    let lease = [("X-Lease-ID", held.lease_id.as_str()), token[0]];
    let full = [lease[0], ("X-Txn-ID", held.txn_id.as_str()), token[0]];
    let with = |extra: (&'static str, &'static str)| [&full[..], &[extra]].concat();

    // Bodies that are not the one JSON object that is wanted.
    for body in [
        "",
        " ",
        "{",
        "{}{}",
        "{} x",
        "{}\0",
        "[]",
        "\"x\"",
        "1",
        "\u{feff}{}",
        "{\"nope\":1}",
        "{\"key\":1}",
        "{\"key\":\"a\",}",
        "{'key':'a'}",
        "{\"key\":\"a\nb\"}",
        "{\"key\":\"\\ud800\"}",
        "{\"key\":[\"a\"]}",
    ] {
        post("/v1/acquire", &[], body, 400, "invalid_body");
        post("/v1/keepalive", &token, body, 400, "invalid_body");
        post("/v1/release", &token, body, 400, "invalid_body");
        post("/v1/namespace", &[], body, 400, "invalid_body");
        if !body.is_empty() {
            post("/v1/metadata?key=a", &full, body, 400, "invalid_body");
        }
    }
    for value in ["3.0", "1e1", "\"3\"", "true", "[]", "{}", "9223372036854775808"] {
        for field in ["ttl_seconds", "block_seconds"] {
            post(
                "/v1/acquire",
                &[],
                &format!("{{\"owner\":\"o\",\"{field}\":{value}}}"),
                400,
                "invalid_body",
            );
        }
        post(
            "/v1/keepalive",
            &token,
            &format!("{{\"ttl_seconds\":{value}}}"),
            400,
            "invalid_body",
        );
    }
    for value in ["1", "\"true\"", "\"\""] {
        post(
            "/v1/acquire",
            &[],
            &format!("{{\"owner\":\"o\",\"if_not_exists\":{value}}}"),
            400,
            "invalid_body",
        );
        post(
            "/v1/release",
            &token,
            &format!("{{\"rollback\":{value}}}"),
            400,
            "invalid_body",
        );
        post(
            "/v1/metadata?key=a",
            &full,
            &format!("{{\"query_hidden\":{value}}}"),
            400,
            "invalid_body",
        );
    }
    for body in [
        "",
        " ",
        "{",
        "{}{}",
        "{}x",
        "\u{feff}{}",
        "\"a\nb\"",
        "01",
        "+1",
        "nul",
        "'a'",
        "[1,]",
        "{\"a\":1,}",
        "\"\\x\"",
    ] {
        post("/v1/update?key=a", &full, body, 400, "invalid_body");
    }

    // What is missing.
    post("/v1/acquire", &[], "{}", 400, "missing_owner");
    post("/v1/acquire", &[], "null", 400, "missing_owner");
    post("/v1/keepalive", &[], "{}", 400, "missing_fencing_token");
    post("/v1/release", &[], "{}", 400, "missing_fencing_token");
    post("/v1/keepalive", &token, "null", 400, "missing_key");
    post("/v1/release", &token, "{}", 400, "missing_key");
    post("/v1/keepalive", &token, "{\"key\":\"a\"}", 400, "missing_lease");
    post(
        "/v1/release",
        &token,
        "{\"key\":\"a\",\"lease_id\":\" \"}",
        400,
        "missing_lease",
    );
    post(
        "/v1/release",
        &token,
        "{\"key\":\"a\",\"lease_id\":\"x\"}",
        400,
        "missing_txn",
    );
    post(
        "/v1/release?key=a",
        &[token[0], full[1]],
        "{\"lease_id\":\"x\"}",
        400,
        "missing_txn",
    );
    post("/v1/get", &[], "", 400, "missing_params");
    post("/v1/get?public=1", &[], "", 400, "missing_params");
    post("/v1/get?key=a", &[], "", 400, "missing_fencing_token");
    post("/v1/get?key=a&public=0", &[], "", 400, "missing_fencing_token");
    post("/v1/get?key=a", &token, "", 400, "missing_params");
    post("/v1/get?key=a&public=1", &lease[..1], "", 400, "missing_fencing_token");
    post("/v1/describe", &[], "", 400, "missing_key");
    for endpoint in ["update", "metadata", "remove"] {
        let path = format!("/v1/{endpoint}?key=a");
        post(&format!("/v1/{endpoint}"), &full, "1", 400, "missing_key");
        post(
            &format!("/v1/{endpoint}?namespace=a&Key=a"),
            &full,
            "1",
            400,
            "missing_key",
        );
        post(&path, &[], "1", 400, "missing_lease");
        post(&path, &lease, "1", 400, "missing_txn");
        post(&path, &full[..2], "1", 400, "missing_fencing_token");
        post(
            &path,
            &[full[0], full[1], ("X-Fencing-Token", "")],
            "1",
            400,
            "missing_fencing_token",
        );
    }
    post("/v1/metadata?key=a", &full, "", 400, "invalid_metadata");
    post("/v1/metadata?key=a", &full, "{}", 400, "invalid_metadata");
    post("/v1/namespace", &[], "{}", 400, "invalid_namespace_request");

    // What cannot be read.
    for bad in ["abc", "1.0", "1e1", "0x1", "9223372036854775808", "1 2", "--1"] {
        let bad_token = [full[0], full[1], ("X-Fencing-Token", bad)];
        post("/v1/keepalive", &bad_token[2..], "{", 400, "invalid_fencing_token");
        post("/v1/release", &bad_token[2..], "{", 400, "invalid_fencing_token");
        post("/v1/get?key=a", &bad_token, "", 400, "invalid_fencing_token");
        for endpoint in ["update", "metadata", "remove"] {
            let path = format!("/v1/{endpoint}?key=a");
            let hidden = ("X-Lockd-Meta-Query-Hidden", "1");
            post(
                &path,
                &[&bad_token[..], &[hidden]].concat(),
                "",
                400,
                "invalid_fencing_token",
            );
            post(
                &path,
                &[&full[..], &[("X-If-Version", bad), hidden]].concat(),
                "",
                400,
                "invalid_version",
            );
        }
        post(
            "/v1/update?key=a",
            &[&full[..], &[("X-Expected-Bytes", bad)]].concat(),
            "",
            400,
            "invalid_expected_bytes",
        );
    }
    post(
        "/v1/update?key=a",
        &with(("X-Expected-Bytes", "-1")),
        "",
        400,
        "invalid_expected_bytes",
    );
    for bad in [
        "x",
        "\u{67}",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde",
    ] {
        post(
            "/v1/update?key=a",
            &[&full[..], &[("X-Expected-SHA256", bad)]].concat(),
            "1",
            400,
            "invalid_expected_sha256",
        );
    }
    for bad in ["maybe", "2", "yes", "tRue"] {
        let headers = [&full[..], &[("X-Lockd-Meta-Query-Hidden", bad)]].concat();
        post("/v1/update?key=a", &headers, "1", 400, "invalid_metadata");
        post(
            "/v1/metadata?key=a",
            &headers,
            "{\"query_hidden\":true}",
            400,
            "invalid_metadata",
        );
    }
    for query in [
        "{\"preferred_engine\":\"none\"}",
        "{\"fallback_engine\":\"index\"}",
        "{\"nope\":1}",
        "1",
        "{\"preferred_engine\":1}",
    ] {
        post(
            "/v1/namespace",
            &[],
            &format!("{{\"query\":{query}}}"),
            400,
            "invalid_body",
        );
    }

    // What is read, understood and refused.
    post(
        "/v1/acquire",
        &[],
        "{\"key\":\"a\",\"owner\":\"o\",\"block_seconds\":-1}",
        409,
        "waiting",
    );
    post(
        "/v1/acquire",
        &[],
        "{\"key\":\"a\",\"owner\":\"o\",\"if_not_exists\":true}",
        409,
        "already_exists",
    );
    post(
        "/v1/update?key=a",
        &with(("X-If-Version", "7")),
        "1",
        409,
        "version_conflict",
    );
    post(
        "/v1/update?key=a",
        &with(("X-If-State-ETag", "7")),
        "1",
        409,
        "etag_mismatch",
    );
    post(
        "/v1/update?key=a",
        &with(("X-Expected-Bytes", "7")),
        "1",
        409,
        "expected_bytes_mismatch",
    );
    let zeroes = "0000000000000000000000000000000000000000000000000000000000000000";
    post(
        "/v1/update?key=a",
        &with(("X-Expected-SHA256", zeroes)),
        "1",
        409,
        "expected_sha256_mismatch",
    );
    post(
        "/v1/namespace",
        &[("If-Match", "x")],
        "{\"query\":{}}",
        409,
        "namespace_config_conflict",
    );
    post("/v1/update?key=b", &full, "1", 403, "lease_required");
    post("/v1/nowhere", &[], "", 404, "not_found");
    cases
}

#[track_caller]
fn assert_error(answer: &Answer, status: u16, code: &str, what: &dyn std::fmt::Debug) {
    assert_eq!(answer.error(), (status, code.to_owned()), "{what:?}: {answer:?}");
    assert_eq!(answer.header("Content-Type"), Some("application/json"), "{what:?}");
    assert!(answer.body.ends_with(b"}\n") && answer.json().is_object(), "{what:?}");
    let known = [
        "error",
        "detail",
        "current_version",
        "current_etag",
        "retry_after_seconds",
    ];
    let members = answer.json();
    assert!(
        members
            .as_object()
            .unwrap()
            .keys()
            .all(|name| known.contains(&name.as_str())),
        "{members}"
    );
    assert!(
        !answer.field("detail").as_str().unwrap_or_default().is_empty(),
        "{what:?}: {members}"
    );
    let retry = answer.field("retry_after_seconds");
    let header = answer
        .header("Retry-After")
        .map(|header| header.parse::<i64>().unwrap());
    assert_eq!(retry.as_i64(), header, "{what:?}");
    assert!(header.is_none_or(|seconds| 0 < seconds), "{what:?}");
    assert!(
        answer.header("X-Correlation-Id").is_some_and(|id| !id.is_empty()),
        "{what:?}"
    );
}

/// LS-1, LS-2, LS-5, LS-7, LS-8, LS-14, LS-16 and the tables of refusals: each malformed request gets its code in the
/// envelope, and the connection serves on.
pub fn each_malformed_request_gets_its_code_and_costs_no_connection(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let cases = refused_requests(&held);
    assert!(200 < cases.len());
    let mut connection = Connection::open(server.address);
    for case in cases {
        let headers: Vec<(&str, &str)> = case
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let what = (&case.path, &headers, String::from_utf8_lossy(&case.body));
        let answer = connection.ask(case.method, &case.path, &headers, &case.body);
        assert_error(&answer, case.status, case.code, &what);
        let healthy = connection.ask("GET", "/v1/describe?key=a", &[], b"");
        assert_eq!(healthy.field("lease_id"), held.lease_id.as_str(), "after {what:?}");
    }
    held.update("1").expect(200);
    assert_healthy(server.address);
}

/// LS-1: each successful JSON answer is one object, one line feed, and says so.
pub fn each_json_answer_is_one_object_and_a_line_feed(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let granted = acquire(server.address, "a").expect(200);
    let held = Held::from_answer(server.address, &granted);
    let namespace = send(server.address, "GET", "/v1/namespace", &[], b"");
    let described = send(server.address, "GET", "/v1/describe?key=a", &[], b"");
    let answers = [
        granted,
        held.keepalive(30),
        held.update("1"),
        held.hide(true),
        held.remove(),
        held.release(),
        namespace,
        described,
    ];
    for answer in answers {
        assert_eq!(
            (answer.status, answer.header("Content-Type")),
            (200, Some("application/json"))
        );
        assert!(answer.json().is_object() && answer.body.ends_with(b"}\n"), "{answer:?}");
        let text = String::from_utf8(answer.body.clone()).unwrap();
        assert_eq!(text.trim_end().lines().count(), 1, "{text}");
        assert!(!text.contains("null"), "optional members are left out: {text}");
    }
}

/// LS-3, LS-4: a sound correlation id is echoed on every answer, another one is replaced and does no harm.
pub fn correlation_ids_are_echoed_or_replaced(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let longest = "x".repeat(128);
    let paths = [
        "/healthz",
        "/v1/describe?key=a",
        "/v1/get?key=a&public=1",
        "/nowhere",
        "/v1/get",
    ];
    for path in paths {
        for good in ["abc", " a b ", "~!\"", longest.as_str()] {
            let answer = send(server.address, "GET", path, &[("X-Correlation-Id", good)], b"");
            assert_eq!(answer.header("X-Correlation-Id"), Some(good.trim()), "{path}");
        }
        let too_long = "x".repeat(129);
        for bad in ["", " ", "a\tb", "a\0b", "\u{1}", "a\u{7f}", too_long.as_str()] {
            let answer = send(server.address, "GET", path, &[("X-Correlation-Id", bad)], b"");
            assert!(is_uuid_v7(answer.header("X-Correlation-Id").unwrap()), "{path} {bad:?}");
        }
        let absent = [(); 2].map(|()| send(server.address, "GET", path, &[], b""));
        let ids = absent.map(|answer| answer.header("X-Correlation-Id").unwrap().to_owned());
        assert!(is_uuid_v7(&ids[0]) && ids[0] != ids[1]);
    }
    let body = json!({"key": "a", "owner": "test"}).to_string();
    let answer = send(
        server.address,
        "POST",
        "/v1/acquire",
        &[("x-CORRELATION-id", "abc")],
        body.as_bytes(),
    );
    assert_eq!(answer.field("correlation_id"), "abc");
    let body = json!({"key": "b", "owner": "test"}).to_string();
    let answer = send(server.address, "POST", "/v1/acquire", &[], body.as_bytes()).expect(200);
    assert_eq!(
        answer.field("correlation_id").as_str(),
        answer.header("X-Correlation-Id")
    );
    // What is not ASCII the HTTP library refuses before we see it.
    assert_healthy(server.address);
}

/// LS-6, LS-7, LS-8: what clients of this protocol really send is understood.
pub fn lenient_where_clients_need_it(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let ask =
        |path: &str, headers: &[(&str, &str)], body: &str| send(server.address, "POST", path, headers, body.as_bytes());
    for body in [
        "{\"key\":\"k1\",\"owner\":\"o\"} \r\n\t ",
        "{\"KEY\":\"k2\",\"Owner\":\"o\"}",
        "{\"key\":\"x\",\"key\":\"k3\",\"owner\":\"o\"}",
        "{\"key\":\"k4\",\"owner\":\"o\",\"ttl_seconds\":null,\"txn_id\":null,\"block_seconds\":null,\"namespace\":null}",
        "{\"key\":\"\\u006b5\",\"owner\":\"o\",\"if_not_exists\":null}",
    ] {
        assert!(
            ask("/v1/acquire", &[], body)
                .expect(200)
                .field("key")
                .as_str()
                .unwrap()
                .starts_with('k'),
            "{body}"
        );
    }
    ask(
        "/v1/acquire?key=from-query",
        &[],
        "{\"owner\":\"o\",\"block_seconds\":-1}",
    )
    .expect(200);
    assert_eq!(acquire(server.address, "from-query").code(), "waiting");

    let held = hold(server.address, "a");
    let token = [("X-Fencing-Token", "1")];
    let (lease_id, txn_id) = (held.lease_id.as_str(), held.txn_id.as_str());
    let keepalive = json!({"key": "a", "lease_id": lease_id, "txn_id": txn_id, "fencing_token": 99}).to_string();
    ask("/v1/keepalive", &token, &keepalive).expect(200);
    let wrong = ask("/v1/keepalive", &[("X-Fencing-Token", "99")], &keepalive);
    assert_eq!(wrong.code(), "fencing_mismatch", "the header counts");
    let padded = [
        ("X-Lease-ID", lease_id),
        ("X-Txn-ID", txn_id),
        ("x-fencing-TOKEN", " 1 "),
    ];
    ask("/v1/update?key=a", &padded, " 1 ").expect(200);
    ask(
        "/v1/metadata?key=a",
        &[&padded[..], &[("X-Lockd-Meta-Query-Hidden", "T")]].concat(),
        "",
    )
    .expect(200);
    ask(
        "/v1/metadata?key=a",
        &padded,
        "{\"query_hidden\":false,\"Query_Hidden\":true}\n",
    )
    .expect(200);
    let release = json!({"lease_id": lease_id, "txn_id": txn_id, "fencing_token": 99}).to_string();
    ask("/v1/release?key=a&namespace=default", &token, &release).expect(200);
    get_public(server.address, "a").expect(200);
}

/// LS-9: a body of exactly the limit is taken, one byte more is not; announced or chunked, and white space counts.
pub fn a_body_of_the_limit_is_taken_and_one_byte_more_is_not(backend: &dyn Backend) {
    let server = server_with_small_limit(backend);
    let held = hold(server.address, "a");
    let limit = usize::try_from(JSON_BYTES_MAX).unwrap();
    let state = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2)).into_bytes();
    // White space up to this size.
    let padded = |text: &str, bytes: usize| [text.as_bytes(), &vec![b' '; bytes - text.len()]].concat();
    let spaced = |bytes: usize| padded("1", bytes);
    let token = [("X-Fencing-Token", "1")];
    let keepalive = |bytes: usize| {
        let body = json!({"key": "a", "lease_id": held.lease_id, "txn_id": held.txn_id}).to_string();
        padded(&body, bytes)
    };
    for make in [&state as &dyn Fn(usize) -> Vec<u8>, &spaced] {
        for chunk in [0, 4096, limit + 1] {
            let answer = |bytes| match chunk {
                0 => held.send("POST", "update", &[], &make(bytes)),
                chunk => send_chunked(&held, "update", &make(bytes), chunk),
            };
            answer(limit).expect(200);
            assert_error(&answer(limit + 1), 400, "invalid_body", &chunk);
        }
    }
    send(server.address, "POST", "/v1/keepalive", &token, &keepalive(limit)).expect(200);
    let refused = send(server.address, "POST", "/v1/keepalive", &token, &keepalive(limit + 1));
    assert_error(&refused, 400, "invalid_body", &"keepalive");
    held.hide(true).expect(200);
    let attribute = |bytes: usize| padded("{\"query_hidden\":true}", bytes);
    held.send("POST", "metadata", &[], &attribute(4096)).expect(200);
    assert_error(
        &held.send("POST", "metadata", &[], &attribute(4097)),
        400,
        "invalid_body",
        &"metadata",
    );
    let engines = |bytes: usize| padded("{\"query\":{}}", bytes);
    let namespace = |bytes| send(server.address, "POST", "/v1/namespace", &[], &engines(bytes));
    namespace(32 * 1024).expect(200);
    assert_error(&namespace(32 * 1024 + 1), 400, "invalid_body", &"namespace");
    assert_healthy(server.address);
}

fn head_of(held: &Held, endpoint: &str, more: &str) -> Vec<u8> {
    format!(
        "POST /v1/{endpoint}?key={} HTTP/1.1\r\nHost: test\r\nX-Lease-ID: {}\r\nX-Txn-ID: {}\r\nX-Fencing-Token: {}\r\n{more}\r\n",
        held.key, held.lease_id, held.txn_id, held.token
    )
    .into_bytes()
}

fn send_chunked(held: &Held, endpoint: &str, body: &[u8], chunk: usize) -> Answer {
    let mut connection = Connection::open(held.address);
    connection.send(&head_of(held, endpoint, "Transfer-Encoding: chunked\r\n"));
    connection.send(&chunked(body, chunk));
    connection.read_answer()
}

/// LS-10: chunked bodies are understood on every endpoint, in pieces of any size, with extensions; two on one connection.
pub fn chunked_bodies_are_understood(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let state = json!({"n": 1, "text": "x".repeat(5000)}).to_string();
    for chunk in [1, 7, 4096, 100_000] {
        send_chunked(&held, "update", state.as_bytes(), chunk).expect(200);
        assert_eq!(held.get().body, state.as_bytes());
    }
    let mut connection = Connection::open(server.address);
    for number in [1, 2] {
        connection.send(&head_of(&held, "update", "Transfer-Encoding: chunked\r\n"));
        connection.send(format!("1;name=value\r\n{number}\r\n00\r\n\r\n").as_bytes());
        connection.read_answer().expect(200);
        assert_eq!(held.get().body, number.to_string().as_bytes());
    }
    connection.send(b"POST /v1/acquire HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
    connection.send(&chunked(b"{\"key\":\"b\",\"owner\":\"o\"}", 5));
    connection.read_answer().expect(200);
    connection.send(&head_of(&held, "update", "Transfer-Encoding: chunked\r\n"));
    connection.send(b"0\r\n\r\n");
    assert_error(&connection.read_answer(), 400, "invalid_body", &"empty");
    connection.ask("GET", "/healthz", &[], b"").expect(200);
}

/// LS-10: who asks before sending gets its 100, for lengths and chunks, large and small.
pub fn who_asks_before_sending_is_told_to_go_on(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let mut connection = Connection::open(server.address);
    for size in [1, 1000, 5000] {
        let state = "7".repeat(size);
        for (framing, body) in [
            (format!("Content-Length: {size}\r\n"), state.clone().into_bytes()),
            (
                "Transfer-Encoding: chunked\r\n".to_owned(),
                chunked(state.as_bytes(), 100),
            ),
        ] {
            connection.send(&head_of(&held, "update", &format!("{framing}Expect: 100-continue\r\n")));
            assert_eq!(connection.read_answer().status, 100);
            connection.send(&body);
            connection.read_answer().expect(200);
            assert_eq!(held.get().body, state.as_bytes());
        }
    }
}

/// Who asks before sending something that cannot be taken is refused before it sends, and can ask for something else
/// on a connection of its own at once.
pub fn who_asks_before_sending_too_much_is_refused_before(backend: &dyn Backend) {
    let server = server_with_small_limit(backend);
    let held = hold(server.address, "a");
    let nobody = Held {
        token: 7,
        ..held.clone()
    };
    let no_lease = Held {
        lease_id: " ".to_owned(),
        ..held.clone()
    };
    for (who, length, code) in [
        (&held, JSON_BYTES_MAX + 1, "invalid_body"),
        (&held, 2 << 30, "invalid_body"),
        (&held, 99_999_999_999_999, "invalid_body"),
        (&no_lease, 10, "missing_lease"),
        (&no_lease, JSON_BYTES_MAX, "missing_lease"),
    ] {
        let mut connection = Connection::open(server.address);
        connection.send(&head_of(
            who,
            "update",
            &format!("Content-Length: {length}\r\nExpect: 100-continue\r\n"),
        ));
        assert_error(&connection.read_answer(), 400, code, &length);
        // Whether the body follows is the client's choice: nobody knows what the next bytes would mean.
        assert!(connection.ends_within(CLOSED_SOON), "{length}");
        assert_healthy(server.address);
    }
    let mut connection = Connection::open(server.address);
    connection.send(&head_of(
        &nobody,
        "update",
        "Content-Length: 1\r\nExpect: 100-continue\r\n",
    ));
    assert_eq!(
        connection.read_answer().status,
        100,
        "a token is looked at after the body"
    );
    connection.send(b"1");
    assert_eq!(connection.read_answer().code(), "fencing_mismatch");
    connection.ask("GET", "/healthz", &[], b"").expect(200);
    let mut connection = Connection::open(server.address);
    connection.send(&head_of(&held, "update", "Content-Length: 1\r\nExpect: a-miracle\r\n"));
    assert_eq!(connection.read_answer().status, 417);
    assert_healthy(server.address);
}

/// An announced length beyond all memory once would have ended the process: the HTTP library allocates what is missing
/// of a body when it lets go of it.
pub fn no_announced_length_harms_the_server(backend: &dyn Backend) {
    let server = server_with_small_limit(backend);
    let held = hold(server.address, "a");
    let whole = || head_of(&held, "update", "");
    for length in [
        "262145",
        "2147483648",
        "99999999999999",
        "9223372036854775807",
        "18446744073709551615",
        "18446744073709551616",
        "-1",
        "abc",
        "1e3",
        "0x10",
        "1, 1",
    ] {
        for endpoint in ["update", "remove", "get", "nowhere"] {
            let mut connection = Connection::open(server.address);
            connection.send(&head_of(&held, endpoint, &format!("Content-Length: {length}\r\n")));
            let _ = connection.try_send(b"{\"some\":\"bytes\"}");
            let answer = connection.read_answer();
            match endpoint {
                "update" => assert_error(&answer, 400, "invalid_body", &length),
                _ => assert!((200..500).contains(&answer.status), "{answer:?}"),
            }
            // The rest of such a body never comes, so nothing else can follow it.
            assert!(connection.ends_within(CLOSED_SOON), "{endpoint} {length}");
        }
    }
    let mut connection = Connection::open(server.address);
    connection.send(&whole());
    assert_error(&connection.read_answer(), 400, "invalid_body", &"no length is no body");
    assert_healthy(server.address);
}

/// What is left of a body that was refused is not taken for the next request.
pub fn a_refused_body_is_never_taken_for_a_request(backend: &dyn Backend) {
    let server = server_with_small_limit(backend);
    let held = hold(server.address, "a");
    let victim = hold(server.address, "victim");
    let hidden = {
        let body = json!({"key": "victim", "lease_id": victim.lease_id, "txn_id": victim.txn_id}).to_string();
        format!(
            "POST /v1/release HTTP/1.1\r\nHost: test\r\nX-Fencing-Token: 1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let tail = [b"\r\n\r\n", hidden.as_bytes()].concat();
    let broken_json = [b"}}".to_vec(), vec![b' '; 100_000]].concat();
    let too_large = vec![b' '; usize::try_from(JSON_BYTES_MAX).unwrap() + 1];
    for (what, framing, body) in [
        ("chunked, broken", "Transfer-Encoding: chunked\r\n".to_owned(), {
            let mut body = chunked(&[&broken_json[..], &tail].concat(), 64 * 1024);
            body.extend_from_slice(&tail);
            body
        }),
        (
            "chunked, too large",
            "Transfer-Encoding: chunked\r\n".to_owned(),
            chunked(&[&too_large[..], &tail].concat(), 64 * 1024),
        ),
        (
            "bad chunk size",
            "Transfer-Encoding: chunked\r\n".to_owned(),
            [b"zz\r\n", &tail[..]].concat(),
        ),
        (
            "length, broken",
            format!("Content-Length: {}\r\n", broken_json.len() + tail.len()),
            [&broken_json[..], &tail].concat(),
        ),
        (
            "length, too large",
            format!("Content-Length: {}\r\n", too_large.len() + tail.len()),
            [&too_large[..], &tail].concat(),
        ),
        (
            "bad chunk size, request at once",
            "Transfer-Encoding: chunked\r\n".to_owned(),
            [b"zz\r\n", hidden.as_bytes()].concat(),
        ),
        ("no length", "Content-Length: abc\r\n".to_owned(), tail.clone()),
        (
            "no length, request at once",
            "Content-Length: abc\r\n".to_owned(),
            hidden.clone().into_bytes(),
        ),
        (
            "two lengths",
            "Content-Length: 1\r\nContent-Length: 2\r\n".to_owned(),
            [b"1", hidden.as_bytes()].concat(),
        ),
        (
            "length and chunks",
            format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", hidden.len() + 6),
            [b"1\r\n1\r\n0\r\n\r\n", hidden.as_bytes()].concat(),
        ),
        (
            "unknown coding",
            "Transfer-Encoding: gzip, chunked\r\n".to_owned(),
            [b"1\r\n1\r\n0\r\n\r\n", hidden.as_bytes()].concat(),
        ),
    ] {
        let mut connection = Connection::open(server.address);
        connection.send(&head_of(&held, "update", &framing));
        let _ = connection.try_send(&body);
        assert_error(&connection.read_answer(), 400, "invalid_body", &what);
        connection.close_sending_side();
        assert!(connection.ends_within(CLOSED_SOON), "{what}");
        let lease = send(server.address, "GET", "/v1/describe?key=victim", &[], b"").field("lease_id");
        assert_eq!(lease, victim.lease_id.as_str(), "{what}: a part of the body was obeyed");
    }
    held.release().expect(200);
    assert_eq!(get_public(server.address, "a").status, 204, "nothing of it was staged");
}

/// A body that ends early is no body, wherever it ends.
pub fn a_truncated_body_is_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    held.update("0").expect(200);
    // Each beginning is valid JSON: taken for the whole, it would be a wrong state.
    let digits = "1".repeat(3000);
    for (what, framing, sent) in [
        ("a large body", "Content-Length: 3001\r\n", digits.clone()),
        ("a small body", "Content-Length: 10\r\n", "11".to_owned()),
        ("no body at all", "Content-Length: 10\r\n", String::new()),
        ("within a chunk", "Transfer-Encoding: chunked\r\n", "a\r\n11".to_owned()),
        ("after a chunk", "Transfer-Encoding: chunked\r\n", "2\r\n11".to_owned()),
        (
            "between chunks",
            "Transfer-Encoding: chunked\r\n",
            "2\r\n11\r\n".to_owned(),
        ),
        (
            "before the end",
            "Transfer-Encoding: chunked\r\n",
            "2\r\n11\r\n0\r\n".to_owned(),
        ),
    ] {
        let mut connection = Connection::open(server.address);
        connection.send(&head_of(&held, "update", framing));
        connection.send(sent.as_bytes());
        connection.close_sending_side();
        // A body small enough to be read with the head gets no answer at all.
        if let Ok(answer) = connection.try_read_answer() {
            assert_error(&answer, 400, "invalid_body", &what);
        }
        assert_eq!(held.get().body, b"0", "{what}");
    }
    assert_healthy(server.address);
}

/// A body that trickles in is cut off after its time, and holds up nobody else meanwhile.
pub fn a_body_that_never_ends_is_cut_off(backend: &dyn Backend) {
    let clock = ManualClock::at_wall_ms(1_767_261_600_000);
    let server = TestServer::fresh_with(backend, |options| options.clock = clock.clone());
    let body = json!({"key": "a", "owner": "test", "ttl_seconds": 1000}).to_string();
    let held = Held::from_answer(
        server.address,
        &send(server.address, "POST", "/v1/acquire", &[], body.as_bytes()),
    );
    let stop = Arc::new(AtomicBool::new(false));
    let trickling: Vec<_> = ["Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n"]
        .into_iter()
        .map(|framing| {
            let mut connection = Connection::open(server.address);
            connection.send(&head_of(&held, "update", framing));
            let (stop, piece) = (
                Arc::clone(&stop),
                if framing.contains("chunked") { "1\r\n \r\n" } else { " " },
            );
            thread::spawn(move || {
                while connection.is_silent_for(Duration::from_millis(5)) {
                    assert!(!stop.load(Ordering::SeqCst), "never cut off");
                    if connection.try_send(piece.as_bytes()).is_err() {
                        break;
                    }
                }
                connection.try_read_answer()
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(50));
    assert_healthy(server.address);
    clock.advance(Duration::from_secs(45));
    for client in trickling {
        super::lockd_calls::wait_until("it is cut off", || client.is_finished());
        if let Ok(answer) = client.join().unwrap() {
            assert_error(&answer, 400, "invalid_body", &"too slow");
        }
    }
    stop.store(true, Ordering::SeqCst);
    assert_healthy(server.address);
}

/// Uploads that stall cannot take all workers: others are served meanwhile.
pub fn stalled_uploads_leave_workers_for_others(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let mut stalled = Vec::new();
    for number in 0..40 {
        let mut connection = Connection::open(server.address);
        match number % 4 {
            0 => connection.send(&head_of(&held, "update", "Content-Length: 5000\r\n")),
            1 => connection.send(&head_of(&held, "update", "Transfer-Encoding: chunked\r\n")),
            2 => connection.send(&head_of(
                &held,
                "update",
                "Content-Length: 10\r\nExpect: 100-continue\r\n",
            )),
            _ => connection.send(&head_of(&held, "metadata", "Content-Length: 3000\r\n")),
        }
        stalled.push(connection);
    }
    for asked in stalled.iter_mut().skip(2).step_by(4) {
        assert_eq!(asked.read_answer().status, 100, "somebody reads its body");
    }
    for _ in 0..20 {
        assert_healthy(server.address);
    }
}

/// Clients that ask for much and read nothing cannot take all workers either.
pub fn slow_readers_leave_workers_for_others(backend: &dyn Backend) {
    // More than the kernel takes from us for a client that does not read.
    const STATE_BYTES: usize = 16 << 20;
    let server = TestServer::fresh(backend);
    // On a busy machine so much may take longer than a lease usually lives.
    let wish = json!({"key": "a", "owner": "test", "ttl_seconds": 600, "block_seconds": -1});
    let held = Held::from_answer(server.address, &acquire_with(server.address, &wish));
    let state = format!("\"{}\"", "x".repeat(STATE_BYTES - 2));
    held.update(&state).expect(200);
    held.release().expect(200);
    let mut slow: Vec<_> = (0..20)
        .map(|_| {
            let mut connection = Connection::open(server.address);
            connection.send_request("GET", "/v1/get?key=a&public=1", &[], b"");
            connection
        })
        .collect();
    for connection in &mut slow {
        assert!(!connection.is_silent_for(CLOSED_SOON), "somebody writes its answer");
    }
    for _ in 0..20 {
        assert_healthy(server.address);
    }
    let answer = slow.remove(0).read_answer();
    assert!(answer.body == state.as_bytes(), "it gets all of it in the end");
}

/// Bytes that are no HTTP end their own connection and nothing else.
pub fn garbage_ends_its_own_connection_alone(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let noise: Vec<u8> = (0..20_000).map(|_| fastrand::u8(..)).chain(*b"\r\n\r\n").collect();
    let no_end_of_line = vec![b'A'; 1 << 20];
    let no_end_of_head = [&b"GET /healthz HTTP/1.1\r\n"[..], &b"X-A: b\r\n".repeat(10_000)].concat();
    let cases: [(&str, &[u8]); 16] = [
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("noise", &noise),
        ("empty lines", b"\r\n\r\n\r\n\r\n"),
        ("two words", b"GET /\r\n\r\n"),
        ("one word", b"hello\r\n\r\n"),
        ("HTTP/0.9", b"GET /healthz\r\n\r\n"),
        ("HTTP/9.9", b"GET /healthz HTTP/9.9\r\n\r\n"),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("header without colon", b"GET /healthz HTTP/1.1\r\nnonsense\r\n\r\n"),
        ("space before colon", b"GET /healthz HTTP/1.1\r\nX-A : b\r\n\r\n"),
        ("header not ASCII", b"GET /healthz HTTP/1.1\r\nX-A: \xfc\r\n\r\n"),
        ("NUL in method", b"GE\0T /v1/get HTTP/1.1\r\n\r\n"),
        ("NUL in path", b"GET /v1/\0get HTTP/1.1\r\n\r\n"),
        ("no end of line", &no_end_of_line),
        ("no end of head", &no_end_of_head),
        ("bare line feeds", b"GET /healthz HTTP/1.1\nHost: a\n\n"),
    ];
    let mut kept = Vec::new();
    for (what, bytes) in cases {
        let mut connection = Connection::open(server.address);
        let _ = connection.try_send(bytes);
        assert_healthy(server.address);
        if what.starts_with("no end") || what.starts_with("bare") {
            kept.push(connection);
            continue;
        }
        connection.close_sending_side();
        if let Ok(answer) = connection.try_read_answer() {
            assert!((400..506).contains(&answer.status), "{what}: {answer:?}");
        }
        assert!(connection.ends_within(CLOSED_SOON), "{what}");
    }
    assert_healthy(server.address);
}

/// Chunk sizes that are none are refused. (The HTTP library takes a plus sign and space around the digits, and keeps it to
/// itself; what follows is read by the size that it understood.)
pub fn bad_chunk_sizes_are_refused(backend: &dyn Backend) {
    let server = server_with_small_limit(backend);
    let held = hold(server.address, "a");
    held.update("0").expect(200);
    for (size, more) in [
        ("zz", ""),
        ("", ""),
        ("-1", "1\r\n0\r\n\r\n"),
        ("0x1", "1\r\n0\r\n\r\n"),
        ("10000000000000000", "1"),
        ("ffffffffffffffff", "1x"),
        ("7fffffffffffffff", "1x"),
        ("1", "12\r\n0\r\n\r\n"),
        ("1 1", "1\r\n0\r\n\r\n"),
    ] {
        let mut connection = Connection::open(server.address);
        connection.send(&head_of(&held, "update", "Transfer-Encoding: chunked\r\n"));
        let _ = connection.try_send(format!("{size}\r\n{more}").as_bytes());
        assert_error(&connection.read_answer(), 400, "invalid_body", &size);
        assert!(connection.ends_within(CLOSED_SOON), "{size:?}");
        assert_eq!(held.get().body, b"0", "{size:?}");
    }
    assert_healthy(server.address);
}

/// Requests that come in one go are answered one by one in their order.
pub fn pipelined_requests_are_answered_in_order(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let mut connection = Connection::open(server.address);
    let mut bytes = Vec::new();
    for number in 0..50 {
        match number % 3 {
            0 => bytes
                .extend_from_slice(format!("GET /v1/describe?key=k{number} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes()),
            1 => {
                let body = json!({"key": format!("k{number}"), "owner": "o", "block_seconds": -1}).to_string();
                let length = body.len();
                bytes.extend_from_slice(
                    format!("POST /v1/acquire HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n\r\n{body}")
                        .as_bytes(),
                );
            }
            _ => bytes.extend_from_slice(
                format!("GET /k{number} HTTP/1.1\r\nX-Correlation-Id: k{number}\r\n\r\n").as_bytes(),
            ),
        }
    }
    connection.send(&bytes);
    for number in 0..50 {
        let answer = connection.read_answer();
        match number % 3 {
            2 => assert_eq!(answer.header("X-Correlation-Id"), Some(format!("k{number}").as_str())),
            _ => assert_eq!(answer.field("key"), format!("k{number}")),
        }
    }
    connection.ask("GET", "/healthz", &[], b"").expect(200);
}

/// A client that waits for a lease and asks on without waiting for its answer takes no worker from others. Each answer
/// waits for the one before it, and a worker that waited along would be lost until the lease ends; as many such clients
/// as workers would stop the server.
pub fn requests_behind_a_waiting_one_hold_no_workers(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let mut clients = Vec::new();
    for number in 1..=20 {
        let mut connection = begin_acquire(server.address, "a", 0);
        server.wait_until_waiting(number);
        for _ in 0..3 {
            connection.send(b"GET /v1/describe?key=a HTTP/1.1\r\nHost: test\r\n\r\n");
        }
        clients.push(connection);
    }
    for _ in 0..3 {
        assert_healthy(server.address);
    }
    let mut held = held;
    for client in &mut clients {
        held.release().expect(200);
        held = Held::from_answer(server.address, &client.read_answer());
        for _ in 0..3 {
            assert!(client.read_answer().field("lease_id").is_string());
        }
    }
}

/// A client that waits and sends on without end is cut off before it fills the memory.
pub fn a_client_that_sends_without_end_is_cut_off(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let mut connection = begin_acquire(server.address, "a", 0);
    server.wait_until_waiting(1);
    let many = b"GET /healthz HTTP/1.1\r\n\r\n".repeat(100);
    for _ in 0..1000 {
        if connection.try_send(&many).is_err() {
            break;
        }
    }
    assert!(connection.ends_within(CLOSED_SOON));
    super::lockd_calls::wait_until("it waits no more", || server.server.waiting() == 0);
    held.release().expect(200);
    hold(server.address, "a");
}

/// A client that closes its sending side after its request still gets the answer.
pub fn a_half_closed_client_still_gets_its_answer(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let body = b"{\"key\":\"b\",\"owner\":\"o\"}";
    let mut connection = Connection::open(server.address);
    connection.send_request("POST", "/v1/acquire", &[], body);
    connection.close_sending_side();
    connection.read_answer().expect(200);
    assert!(connection.ends_within(CLOSED_SOON));
    let mut connection = Connection::open(server.address);
    let state = format!("\"{}\"", "x".repeat(5000));
    connection.send(&head_of(&held, "update", "Content-Length: 5002\r\n"));
    connection.send(state.as_bytes());
    connection.close_sending_side();
    connection.read_answer().expect(200);
    let mut connection = Connection::open(server.address);
    connection.send(b"GET /v1/get?key=");
    connection.close_sending_side();
    assert!(connection.ends_within(CLOSED_SOON), "half a head is no request");
    // And who leaves before the answer does no harm.
    for _ in 0..20 {
        let mut connection = Connection::open(server.address);
        connection.send_request("GET", "/v1/describe?key=a", &[], b"");
        connection.abort();
    }
    assert_healthy(server.address);
}

/// HTTP/1.0 closes after each answer, unless it is asked not to; HTTP/1.1 the other way round.
pub fn connections_live_as_long_as_their_version_says(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    hold(server.address, "a");
    for (version, header, stays) in [
        ("1.0", "", false),
        ("1.0", "Connection: close\r\n", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.1", "", true),
        ("1.1", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: close\r\n", false),
    ] {
        for path in [
            "/healthz",
            "/v1/describe?key=a",
            "/v1/get?key=a&public=1",
            "/nowhere",
            "/v1/get",
        ] {
            let what = format!("{version} {header:?} {path}");
            let mut connection = Connection::open(server.address);
            let request = format!("GET {path} HTTP/{version}\r\n{header}\r\n");
            connection.send(request.as_bytes());
            let answer = connection.read_answer();
            assert!(answer.header("Transfer-Encoding").is_none(), "{what}");
            if version == "1.0" && stays {
                let said = answer.header("Connection").unwrap_or_default().to_ascii_lowercase();
                assert_eq!(said, "keep-alive", "{what}");
            }
            if stays {
                connection.send(request.as_bytes());
                assert_eq!(connection.read_answer().status, answer.status, "{what}");
            } else {
                assert!(connection.ends_within(CLOSED_SOON), "{what}");
            }
        }
    }
}

/// A client that offers another protocol is served in this one.
pub fn an_offer_to_upgrade_is_ignored(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";
    let update = |framing: &str, body: &[u8]| {
        let mut connection = Connection::open(server.address);
        connection.send(&head_of(&held, "update", &format!("{offer}{framing}")));
        connection.send(body);
        connection
    };
    for size in [3, 5000] {
        let state = format!("\"{}\"", "x".repeat(size - 2));
        let chunks = chunked(state.as_bytes(), 1000);
        for (framing, body) in [
            (format!("Content-Length: {size}\r\n"), state.as_bytes()),
            ("Transfer-Encoding: chunked\r\n".to_owned(), &chunks),
        ] {
            held.update("0").expect(200);
            let mut connection = update(&framing, body);
            let answer = connection.read_answer().expect(200);
            assert_eq!(answer.header("Connection"), Some("close"));
            assert_eq!(held.get().body, state.as_bytes());
            assert!(connection.ends_within(CLOSED_SOON));
        }
    }
    for (framing, cut_off) in [
        ("Content-Length: 3\r\n", "11"),
        ("Transfer-Encoding: chunked\r\n", "a\r\n11"),
    ] {
        let mut connection = update(framing, cut_off.as_bytes());
        connection.close_sending_side();
        assert_error(&connection.read_answer(), 400, "invalid_body", &framing);
    }
    let mut connection = Connection::open(server.address);
    connection.send(format!("GET /v1/describe?key=a HTTP/1.1\r\n{offer}\r\n").as_bytes());
    assert_eq!(connection.read_answer().expect(200).field("key"), "a");
    assert_healthy(server.address);
}

/// LS-11 and the methods of each endpoint: foreign ones are refused by 405 with what is allowed, in the envelope.
pub fn endpoints_take_their_methods_and_no_others(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    held.update("1").expect(200);
    held.release().expect(200);
    let held = hold(server.address, "a");
    for query in ["key=a&public=1", "key=none&public=1", "key=a"] {
        let path = format!("/v1/get?{query}");
        let token = held.token.to_string();
        let lease = [
            ("X-Lease-ID", held.lease_id.as_str()),
            ("X-Fencing-Token", token.as_str()),
        ];
        let headers = if query.contains("public") {
            &lease[..0]
        } else {
            &lease[..]
        };
        let told = |method| {
            let answer = send(server.address, method, &path, headers, b"");
            let told = ["ETag", "X-Key-Version", "X-Fencing-Token", "Content-Type"]
                .map(|name| answer.header(name).map(str::to_owned));
            (answer.status, told, answer.body)
        };
        assert_eq!(told("GET"), told("POST"));
    }
    let engines = |method: &str, preferred: &str| {
        let body = json!({"query": {"preferred_engine": preferred}}).to_string();
        send(
            server.address,
            method,
            "/v1/namespace?namespace=n",
            &[],
            body.as_bytes(),
        )
        .expect(200)
    };
    let (posted, put) = (engines("POST", "scan"), engines("PUT", "scan"));
    assert_eq!((posted.json(), posted.header("ETag")), (put.json(), put.header("ETag")));
    for (endpoint, allowed) in [
        ("acquire", "POST"),
        ("keepalive", "POST"),
        ("release", "POST"),
        ("update", "POST"),
        ("metadata", "POST"),
        ("remove", "POST"),
        ("get", "GET, POST"),
        ("describe", "GET, POST"),
        ("namespace", "GET, POST"),
    ] {
        let path = format!("/v1/{endpoint}?key=a");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW", "get", "a/b"] {
            if allowed.split(", ").any(|known| known == method) || (endpoint, method) == ("namespace", "PUT") {
                continue;
            }
            let answer = send(server.address, method, &path, &[], b"");
            assert_error(&answer, 405, "method_not_allowed", &(method, endpoint));
            assert_eq!(answer.header("Allow"), Some(allowed), "{method} {endpoint}");
        }
    }
    for method in ["GET", "POST", "PUT", "DELETE", "BREW"] {
        for probe in ["/healthz", "/readyz"] {
            assert_eq!(send(server.address, method, probe, &[], b"").expect(200).body, b"");
        }
    }
}

/// HEAD is answered without a body, and the connection stays in step.
pub fn head_is_answered_without_a_body(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let mut connection = Connection::open(server.address);
    for (path, status) in [
        ("/healthz", 200),
        ("/v1/get?key=a&public=1", 405),
        ("/nowhere", 404),
        ("/readyz", 200),
    ] {
        connection.send(format!("HEAD {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes());
        assert_eq!(connection.read_head_answer().status, status, "{path}");
        connection.ask("GET", "/healthz", &[], b"").expect(200);
    }
}

/// LS-13: unknown paths are 404 in the envelope; a path is compared as it came.
pub fn unknown_paths_are_not_found(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/acquire/",
        "//v1/acquire",
        "/v1//acquire",
        "/V1/acquire",
        "/v1%2Facquire",
        "/v1/acquire%00",
        "/v1/acquire%20",
        "/v1/../v1/acquire",
        "/v2/acquire",
        "/healthz/",
        "*",
        "v1/acquire",
        "/v1/acquire;x",
    ] {
        for method in ["GET", "POST", "BREW"] {
            assert_error(
                &send(server.address, method, path, &[], b"{}"),
                404,
                "not_found",
                &(method, path),
            );
        }
    }
    hold(server.address, "orders/1");
    for path in [
        "/v1/describe?key=orders%2F1",
        "/v1/describe?key=orders%2f1",
        "/v1/describe?%6bey=orders/1",
        "/v1/describe?key=orders/1#x",
    ] {
        let answer = send(server.address, "GET", path, &[], b"");
        assert!(path.contains('#') || answer.field("lease_id").is_string(), "{path}");
    }
}

/// LS-17, LS-18 and the orders of checks: of several faults the first in order is told.
pub fn of_several_faults_the_first_in_order_is_told(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    held.release().expect(200);
    assert_eq!(
        held.update("{").error(),
        (400, "invalid_body".to_owned()),
        "the body before the lost lease"
    );
    assert_eq!(held.update("1").code(), "lease_required");
    let wrong = [("X-Expected-Bytes", "7")];
    assert_eq!(
        held.update_if("1", &wrong).code(),
        "expected_bytes_mismatch",
        "what was announced before the lost lease"
    );
    let ask = |path: &str, headers: &[(&str, &str)], body: &str| {
        send(server.address, "POST", path, headers, body.as_bytes()).code()
    };
    assert_eq!(ask("/v1/keepalive", &[], "{"), "missing_fencing_token");
    assert_eq!(ask("/v1/release", &[], "{"), "missing_fencing_token");
    let token = [("X-Fencing-Token", "1")];
    assert_eq!(
        ask("/v1/keepalive", &token, "{\"namespace\":\".x\",\"key\":\"a b\"}"),
        "invalid_namespace"
    );
    assert_eq!(ask("/v1/keepalive", &token, "{\"key\":\"a b\"}"), "invalid_key");
    assert_eq!(ask("/v1/release", &token, "{\"key\":\"a\"}"), "missing_lease");
    let acquire = |body: Value| acquire_with(server.address, &body).code();
    assert_eq!(
        acquire(json!({"namespace": ".x", "key": "a b", "txn_id": "x"})),
        "invalid_namespace"
    );
    assert_eq!(acquire(json!({"key": "a b", "txn_id": "x"})), "missing_owner");
    assert_eq!(
        acquire(json!({"key": "a b", "txn_id": "x", "owner": "o"})),
        "invalid_key"
    );
    assert_eq!(acquire(json!({"key": "a", "txn_id": "x", "owner": "o"})), "invalid_txn");
    let update = |query: &str, headers: &[(&str, &str)]| ask(&format!("/v1/update?{query}"), headers, "{");
    let bad = [
        ("X-Lease-ID", "x"),
        ("X-Txn-ID", "x"),
        ("X-Fencing-Token", "x"),
        ("X-If-Version", "x"),
        ("X-Expected-Bytes", "x"),
        ("X-Lockd-Meta-Query-Hidden", "x"),
        ("X-Expected-SHA256", "x"),
    ];
    let mut headers = bad;
    assert_eq!(update("namespace=.x", &headers), "missing_key");
    assert_eq!(update("namespace=.x&key=a%20b", &headers), "invalid_namespace");
    assert_eq!(update("key=a%20b", &[]), "invalid_key");
    assert_eq!(update("key=a", &headers[1..]), "missing_lease");
    assert_eq!(update("key=a", &[headers[0], headers[2]]), "missing_txn");
    for (index, (good, code)) in [
        ("1", "invalid_fencing_token"),
        ("1", "invalid_version"),
        ("1", "invalid_expected_bytes"),
        ("1", "invalid_metadata"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(update("key=a", &headers), code);
        headers[index + 2].1 = good;
    }
    assert_eq!(update("key=a", &headers), "invalid_expected_sha256");
    assert_eq!(update("key=a", &headers[..6]), "invalid_body");
    let get = |query: &str, headers: &[(&str, &str)]| {
        send(server.address, "GET", &format!("/v1/get?{query}"), headers, b"").code()
    };
    assert_eq!(get("namespace=.x", &[]), "missing_params");
    assert_eq!(get("namespace=.x&key=a", &[]), "missing_fencing_token");
    assert_eq!(get("namespace=.x&key=a", &token), "invalid_namespace");
    assert_eq!(get("key=a", &token), "missing_params");
}

/// LS-19: the first of repeated parameters counts, and one that cannot be decoded is absent.
pub fn the_first_of_repeated_parameters_counts(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for (key, state) in [("a", "1"), ("b", "2")] {
        let held = hold(server.address, key);
        held.update(state).expect(200);
        held.release().expect(200);
    }
    for (query, expected) in [
        ("key=a&key=b&public=1", "1"),
        ("key=b&key=a&public=1", "2"),
        ("key=%zz&key=b&public=1", "2"),
        ("key=a;x&key=b&public=1", "2"),
        ("key=%4&key=a&public=1", "1"),
        ("public=yes&public=0&key=+a+", "1"),
        ("public=ON&key=%61", "1"),
        ("&&key=a&&public=True&", "1"),
    ] {
        let answer = send(server.address, "GET", &format!("/v1/get?{query}"), &[], b"");
        assert_eq!(
            (answer.status, answer.body),
            (200, expected.as_bytes().to_vec()),
            "{query}"
        );
    }
    for query in ["key=&key=a&public=1", "key=%zz&public=1", "key", "public=1"] {
        assert_eq!(
            send(server.address, "GET", &format!("/v1/get?{query}"), &[], b"").code(),
            "missing_params",
            "{query}"
        );
    }
}

/// LS-20: keepalive takes the header's transaction before the body's; release looks at the body alone.
pub fn the_transaction_comes_from_the_right_place(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    const OTHER: &str = "d4k7q2m0h5r8e1t6n9b0";
    let call = |endpoint: &str, header: Option<&str>, body_txn: &str| {
        let body = json!({"key": "a", "lease_id": held.lease_id, "txn_id": body_txn}).to_string();
        let mut headers = vec![("X-Fencing-Token", "1")];
        headers.extend(header.map(|txn| ("X-Txn-ID", txn)));
        send(
            server.address,
            "POST",
            &format!("/v1/{endpoint}"),
            &headers,
            body.as_bytes(),
        )
    };
    let own = held.txn_id.as_str();
    call("keepalive", Some(own), OTHER).expect(200);
    call("keepalive", Some(own), "").expect(200);
    call("keepalive", None, own).expect(200);
    assert_eq!(call("keepalive", Some(OTHER), own).code(), "txn_mismatch");
    assert_eq!(call("keepalive", None, "").code(), "missing_txn");
    assert_eq!(call("release", Some(own), "").code(), "missing_txn");
    assert_eq!(call("release", Some(own), OTHER).code(), "txn_mismatch");
    held.update("1").expect(200);
    call("release", Some(OTHER), own).expect(200);
    get_public(server.address, "a").expect(200);
}
