//! What our own code makes of the text of a request: names, parameters, numbers and JSON bodies. Nothing panics, what is
//! in its one form stays in it, and JSON bodies are no more lenient than they say.
//!
//! The first byte chooses what the rest is taken for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lockd::http::request::{Query, etag, fencing_token, integer, json, key, namespace, query_hidden};
use lockd::keys::Namespace;
use lockd_client::wire::{AcquireRequest, KeepaliveRequest, MetadataRequest, NamespaceRequest, ReleaseRequest};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    match choice % 8 {
        0 => check_query(&text),
        1 => check_names(&text),
        2 => check_values(&text),
        3 => check_body::<AcquireRequest>(rest),
        4 => check_body::<KeepaliveRequest>(rest),
        5 => check_body::<ReleaseRequest>(rest),
        6 => check_body::<NamespaceRequest>(rest),
        _ => check_body::<MetadataRequest>(rest),
    }
});

fn check_query(text: &str) {
    let query = Query::parse(text);
    for name in ["key", "namespace", "public", ""] {
        let value = query.get(name);
        assert_eq!(value, value.trim());
        // A pair in front that has nothing to do with it changes nothing.
        let longer = format!("other=1&{text}");
        assert_eq!(Query::parse(&longer).get(name), value);
        // One with the same name counts instead.
        let sooner = format!("{name}=%61%2f&{text}");
        assert_eq!(Query::parse(&sooner).get(name), "a/");
    }
    let _ = query.is_set("public");
}

fn check_names(text: &str) {
    let default = Namespace::parse("default").unwrap();
    if let Ok(name) = namespace(text, &default) {
        assert_eq!(namespace(name.as_str(), &default).unwrap(), name);
        assert!(!name.as_str().starts_with('.') && !name.as_str().contains('/'));
    }
    if let Ok(name) = key(text) {
        assert_eq!(key(name.as_str()).unwrap(), name);
        assert!(!name.as_str().starts_with('/') && !name.as_str().contains("//"));
    }
}

fn check_values(text: &str) {
    if let Ok(Some(number)) = integer(Some(text), "code", "it") {
        assert_eq!(integer(Some(&number.to_string()), "code", "it").unwrap(), Some(number));
        assert_eq!(fencing_token(Some(text)).unwrap(), number);
    }
    if let Some(bare) = etag(Some(text)) {
        assert_eq!(etag(Some(&format!("\"{bare}\""))), Some(bare));
    }
    let _ = query_hidden(Some(text));
}

fn check_body<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let Ok(body) = json::<T>(bytes) else { return };
    // Whatever is taken is one JSON value, an object or null.
    assert!(serde_json::from_slice::<IgnoredAny>(bytes).is_ok());
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    assert!(matches!(first, Some(b'{' | b'n')));
    // And means the same when it is written down in the plain way, but for members that are taken and ignored.
    let plain = serde_json::to_vec(&body).unwrap();
    assert_eq!(serde_json::to_vec(&json::<T>(&plain).unwrap()).unwrap(), plain);
}
