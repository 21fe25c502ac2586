//! Names: namespaces, keys, ids. What is one thing under several spellings, and what is none.

use serde_json::{Value, json};

use super::fixture::{Backend, TestServer};
use super::http::{Answer, send};
use super::lockd_calls::{Held, acquire_with, get_public, hold};

fn acquire_named(server: &TestServer, namespace: &str, key: &str) -> Answer {
    let body = json!({"namespace": namespace, "key": key, "owner": "test", "block_seconds": -1});
    acquire_with(server.address, &body)
}

fn invalid(code: &str) -> (u16, String) {
    (400, code.to_owned())
}

/// LS-21: `Shop` is `shop` and is echoed so; reserved and overlong names are refused; an empty one is the default.
pub fn namespaces_are_lower_cased_and_reserved_ones_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = Held::from_answer(server.address, &acquire_named(&server, "Shop", "a"));
    assert_eq!(held.namespace, "shop");
    assert_eq!(acquire_named(&server, " shop ", "a").code(), "waiting");
    held.update("1").expect(200);
    held.release().expect(200);
    let seen = send(server.address, "GET", "/v1/get?key=a&namespace=SHOP&public=1", &[], b"").expect(200);
    assert_eq!(seen.body, b"1");
    assert_eq!(get_public(server.address, "a").status, 204, "another namespace");

    for bad in [".txns", ".", "a/b", "a b", "\u{fc}", &"n".repeat(129)] {
        assert_eq!(
            acquire_named(&server, bad, "a").error(),
            invalid("invalid_namespace"),
            "{bad:?}"
        );
        let body = json!({"namespace": bad, "query": {"preferred_engine": "scan"}}).to_string();
        let answer = send(server.address, "POST", "/v1/namespace", &[], body.as_bytes());
        assert_eq!(answer.error(), invalid("invalid_namespace"), "{bad:?}");
    }
    for endpoint in ["get?public=1&", "describe?", "update?", "remove?"] {
        let path = format!("/v1/{endpoint}key=a&namespace=.txns");
        let method = if endpoint.contains("get") || endpoint.contains("describe") {
            "GET"
        } else {
            "POST"
        };
        let answer = send(server.address, method, &path, &[], b"");
        assert_eq!(answer.error(), invalid("invalid_namespace"), "{endpoint}");
    }
    assert_eq!(acquire_named(&server, &"n".repeat(128), "a").status, 200);
    for empty in ["", "  "] {
        let answer = acquire_named(&server, empty, &format!("empty{}", empty.len())).expect(200);
        assert_eq!(answer.field("namespace"), "default");
    }
}

/// LS-22: keys are case-insensitive, but acquire echoes what was asked for.
pub fn keys_are_case_insensitive_and_acquire_echoes_them_as_asked(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "Orders/A");
    assert_eq!(held.key, "Orders/A");
    assert_eq!(acquire_named(&server, "", "orders/a").code(), "waiting");
    held.update("1").expect(200);
    let described = send(server.address, "GET", "/v1/describe?key=ORDERS/a", &[], b"").expect(200);
    assert_eq!(described.field("key"), "ORDERS/a", "describe echoes the query");
    assert_eq!(described.field("lease_id"), held.lease_id.as_str());
    held.release().expect(200);
    get_public(server.address, "orders/a").expect(200);
}

/// LS-23: one leading slash is dropped, malformed keys are refused, dots are ordinary, acquire drops the namespace.
pub fn keys_have_one_form_and_malformed_ones_are_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let longest = "k".repeat(128);
    for (asked, echoed) in [
        ("/a", "a"),
        (" b ", "b"),
        ("default/c", "c"),
        ("/default/d", "d"),
        ("DEFAULT/e", "e"),
        ("defaults/f", "defaults/f"),
        ("..", ".."),
        ("../../etc/passwd", "../../etc/passwd"),
        (".", "."),
        (longest.as_str(), longest.as_str()),
    ] {
        let held = Held::from_answer(server.address, &acquire_named(&server, "", asked));
        assert_eq!(held.key, echoed, "{asked:?}");
        held.update(&json!(asked).to_string()).expect(200);
        held.release().expect(200);
        let state = get_public(server.address, echoed).expect(200);
        assert_eq!(state.json(), Value::from(asked), "the state of no other key");
    }
    for bad in [
        "a//b",
        "//a",
        "a b",
        "a/",
        "/",
        "a\u{fc}",
        "a\u{0}b",
        "a%2Fb",
        "a\\b",
        &"k".repeat(129),
    ] {
        assert_eq!(
            acquire_named(&server, "", bad).error(),
            invalid("invalid_key"),
            "{bad:?}"
        );
    }
    let held = hold(server.address, "ok");
    for (query, code) in [
        ("a//b", "invalid_key"),
        ("a/", "invalid_key"),
        ("a%20b", "invalid_key"),
        ("a%C3%BC", "invalid_key"),
        ("a%00b", "invalid_key"),
        ("", "missing_key"),
        ("%20", "missing_key"),
    ] {
        for endpoint in ["update", "remove", "metadata"] {
            let odd = Held {
                key: query.to_owned(),
                ..held.clone()
            };
            // A body of metadata is looked at before the form of the key, and one of `1` would not pass.
            let body: &[u8] = if endpoint == "metadata" { b"" } else { b"1" };
            let answer = odd.send("POST", endpoint, &[("X-Lockd-Meta-Query-Hidden", "1")], body);
            assert_eq!(answer.error(), invalid(code), "{endpoint} {query:?}");
        }
    }
}

/// LS-24: acquire without a key makes one up, which works like any other.
pub fn a_key_is_generated_when_none_is_given(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let nameless = || Held::from_answer(server.address, &acquire_with(server.address, &json!({"owner": "test"})));
    let (held, other) = (nameless(), nameless());
    assert_ne!(held.key, other.key);
    assert!(is_uuid_v7(&held.key), "{}", held.key);
    held.update("1").expect(200);
    held.release().expect(200);
    get_public(server.address, &held.key).expect(200);
    assert_eq!(hold(server.address, &held.key).token, 2);
}

/// LS-25: lease and transaction ids are xids and differ.
pub fn lease_and_transaction_ids_are_xids_and_differ(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let mut seen = std::collections::HashSet::new();
    for number in 0..20 {
        let held = hold(server.address, &format!("key{number}"));
        for id in [held.lease_id, held.txn_id] {
            let (last, others) = id.as_bytes().split_last().unwrap();
            assert_eq!(others.len(), 19, "{id}");
            assert!(
                others.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'v')),
                "{id}"
            );
            assert!(matches!(last, b'0' | b'g'), "{id}");
            assert!(seen.insert(id));
        }
    }
}

/// LS-26: a transaction id must be an xid, in the body and in the header.
pub fn a_transaction_id_that_is_no_xid_is_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for bad in [
        "x",
        "d4k7q2m0h5r8e1t6n9b",
        "d4k7q2m0h5r8e1t6n9b00",
        "d4k7q2m0h5r8e1t6n9bh",
        "D4K7Q2M0H5R8E1T6N9B0",
        "d4k7q2m0h5r8e1t6n9w0",
    ] {
        let in_body = acquire_with(server.address, &json!({"key": "a", "owner": "test", "txn_id": bad}));
        assert_eq!(in_body.error(), invalid("invalid_txn"), "{bad}");
        let body = json!({"key": "a", "owner": "test"}).to_string();
        let in_header = send(
            server.address,
            "POST",
            "/v1/acquire",
            &[("X-Txn-ID", bad)],
            body.as_bytes(),
        );
        assert_eq!(in_header.error(), invalid("invalid_txn"), "{bad}");
    }
    let body = json!({"key": "a", "owner": "test", "txn_id": " d4k7q2m0h5r8e1t6n9b0 "}).to_string();
    let other = [("X-Txn-ID", "d4k7q2m0h5r8e1t6n9bg")];
    let both = send(server.address, "POST", "/v1/acquire", &other, body.as_bytes()).expect(200);
    assert_eq!(
        both.field("txn_id"),
        "d4k7q2m0h5r8e1t6n9b0",
        "the body counts before the header"
    );
    let body = json!({"key": "b", "owner": "test"}).to_string();
    let header = send(server.address, "POST", "/v1/acquire", &other, body.as_bytes()).expect(200);
    assert_eq!(header.field("txn_id"), "d4k7q2m0h5r8e1t6n9bg");
}

/// Canonical lower-case text of a UUID of version 7.
pub fn is_uuid_v7(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    let digits = text
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    lengths == [8, 4, 4, 4, 12] && digits && text.as_bytes()[14] == b'7'
}
