//! Attributes, removal, describe, and the configuration of namespaces.

use serde_json::{Value, json};

use super::fixture::{Backend, TestServer};
use super::http::{Answer, send};
use super::lockd_calls::{Held, acquire, describe, get_public, hold, save};
use super::scene::Scene;

const HIDDEN: &str = "X-Lockd-Meta-Query-Hidden";

/// Stages attributes by header, by body or by both.
fn metadata(held: &Held, header: Option<&str>, body: &str) -> Answer {
    let headers: Vec<(&str, &str)> = header.map(|value| (HIDDEN, value)).into_iter().collect();
    held.send("POST", "metadata", &headers, body.as_bytes())
}

/// LS-77: the attribute can be set along with a state, and shows after the release; what is no boolean is refused.
pub fn an_update_can_hide_the_key_from_queries(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let updated = held.update_if("1", &[(HIDDEN, "true")]).expect(200);
    assert_eq!(updated.field("metadata"), json!({"query_hidden": true}));
    // A later update that says nothing of it keeps it.
    assert_eq!(
        held.update("2").expect(200).field("metadata"),
        json!({"query_hidden": true})
    );
    for bad in ["maybe", "yes", "2", "TrUe"] {
        let refused = held.update_if("3", &[(HIDDEN, bad)]);
        assert_eq!(refused.error(), (400, "invalid_metadata".to_owned()), "{bad}");
    }
    assert_eq!(describe(server.address, "a").expect(200).field("metadata"), json!({}));
    held.release().expect(200);
    assert_eq!(
        describe(server.address, "a").expect(200).field("metadata"),
        json!({"query_hidden": true})
    );
    assert_eq!(get_public(server.address, "a").expect(200).body, b"2");
}

/// LS-78: the header beats the body, one of them must be there, and `false` is not shown.
pub fn attributes_come_from_the_header_else_from_the_body(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let shown = |answer: Answer| answer.expect(200).field("metadata");
    assert_eq!(
        shown(metadata(&held, Some("true"), "{\"query_hidden\":false}")),
        json!({"query_hidden": true})
    );
    assert_eq!(shown(metadata(&held, Some("0"), "{\"query_hidden\":true}")), json!({}));
    assert_eq!(
        shown(metadata(&held, None, "{\"query_hidden\":true}")),
        json!({"query_hidden": true})
    );
    assert_eq!(shown(metadata(&held, Some("F"), "")), json!({}));
    for (header, body) in [
        (None, ""),
        (None, "{}"),
        (None, "null"),
        (None, "{\"query_hidden\":null}"),
        (Some("maybe"), "{\"query_hidden\":true}"),
    ] {
        let refused = metadata(&held, header, body);
        assert_eq!(
            refused.error(),
            (400, "invalid_metadata".to_owned()),
            "{header:?} {body}"
        );
    }
    let answer = metadata(&held, Some("true"), "").expect(200);
    assert_eq!(
        answer.json(),
        json!({"namespace": "default", "key": "a", "version": 1, "metadata": {"query_hidden": true}})
    );
    assert_eq!(answer.header("X-Key-Version"), Some("1"));
}

/// LS-79: a commit of attributes alone leaves the version, although the answers announced the next one.
pub fn a_commit_of_attributes_alone_leaves_the_version(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let etag = save(server.address, "a", "1");
    let held = hold(server.address, "a");
    let answer = held.hide(true).expect(200);
    assert_eq!(
        (answer.field("version"), answer.header("X-Key-Version")),
        (json!(2), Some("2"))
    );
    held.release().expect(200);
    let described = describe(server.address, "a").expect(200);
    assert_eq!(described.field("version"), 1);
    assert_eq!(described.field("state_etag"), etag);
    assert_eq!(described.field("metadata"), json!({"query_hidden": true}));
    assert_eq!(hold(server.address, "a").version, 1);

    // It works on a key without a state too.
    let held = hold(server.address, "b");
    assert_eq!(held.hide(true).expect(200).field("version"), 1);
    held.release().expect(200);
    let described = describe(server.address, "b").expect(200);
    assert_eq!(described.field("version"), 0);
    assert_eq!(described.field("metadata"), json!({"query_hidden": true}));
    assert_eq!(get_public(server.address, "b").status, 204);
}

/// LS-80: removing nothing is no change, and says so.
pub fn removing_nothing_stages_nothing(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let answer = held.remove().expect(200);
    assert_eq!(answer.json(), json!({"removed": false}));
    assert_eq!(answer.header("X-Key-Version"), Some("0"));
    // Attributes alone are nothing to remove, and stay staged.
    held.hide(true).expect(200);
    assert_eq!(held.remove().expect(200).field("removed"), false);
    held.release().expect(200);
    assert_eq!(
        describe(server.address, "a").expect(200).field("metadata"),
        json!({"query_hidden": true})
    );

    // A key whose state was removed before tells its version.
    save(server.address, "b", "1");
    let held = hold(server.address, "b");
    held.remove().expect(200);
    held.release().expect(200);
    let held = hold(server.address, "b");
    let answer = held.remove().expect(200);
    assert_eq!(answer.json(), json!({"removed": false, "new_version": 2}));
    assert_eq!(answer.header("X-Key-Version"), Some("2"));
    held.release().expect(200);
    assert_eq!(hold(server.address, "b").version, 2);
}

/// LS-81: each removal takes a version of its own; the key keeps it without a state.
pub fn a_removal_takes_a_version_of_its_own(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for round in 1..=4 {
        save(server.address, "a", &round.to_string());
    }
    let held = hold(server.address, "a");
    assert_eq!(held.update("5").expect(200).field("new_version"), 5);
    let removed = held.remove().expect(200);
    assert_eq!(removed.json(), json!({"removed": true, "new_version": 6}));
    assert_eq!(removed.header("X-Key-Version"), Some("6"));
    assert_eq!(held.get().status, 204);
    held.release().expect(200);
    let gone = get_public(server.address, "a").expect(204);
    assert_eq!((gone.header("ETag"), gone.header("X-Key-Version")), (None, None));
    let next = acquire(server.address, "a").expect(200);
    assert_eq!(
        (next.field("version"), next.field("state_etag")),
        (json!(6), Value::Null)
    );
    let next = Held::from_answer(server.address, &next);
    assert_eq!(next.update("7").expect(200).field("new_version"), 7);
    next.release().expect(200);

    // Once more in the same lease counts again.
    let held = hold(server.address, "a");
    assert_eq!(held.remove().expect(200).field("new_version"), 8);
    assert_eq!(
        held.remove().expect(200).json(),
        json!({"removed": true, "new_version": 9})
    );
    held.release().expect(200);
    assert_eq!(hold(server.address, "a").version, 9);
}

/// LS-82: an update after a removal in one lease keeps the removal's version, and the state is there after the release.
pub fn an_update_after_a_removal_keeps_its_version(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    save(server.address, "a", "1");
    let held = hold(server.address, "a");
    assert_eq!(held.update("2").expect(200).field("new_version"), 2);
    assert_eq!(held.remove().expect(200).field("new_version"), 3);
    assert_eq!(held.update("3").expect(200).field("new_version"), 3);
    assert_eq!(held.get().expect(200).header("X-Key-Version"), Some("3"));
    held.release().expect(200);
    let public = get_public(server.address, "a").expect(200);
    assert_eq!(
        (public.body.as_slice(), public.header("X-Key-Version")),
        (&b"3"[..], Some("3"))
    );
}

/// LS-83: a removal looks at the etag before the version, unlike an update; clients that send both rely on it.
pub fn a_removal_checks_the_etag_before_the_version(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let etag = save(server.address, "a", "1");
    let held = hold(server.address, "a");
    for version in ["1", "7"] {
        let refused = held.remove_if(&[("X-If-State-ETag", "stale"), ("X-If-Version", version)]);
        assert_eq!(refused.error(), (409, "etag_mismatch".to_owned()));
        assert_eq!(refused.field("current_etag"), etag.as_str());
    }
    let refused = held.remove_if(&[("X-If-Version", "7")]);
    assert_eq!(refused.error(), (409, "version_conflict".to_owned()));
    assert_eq!(refused.field("current_version"), 1);
    let refused = held.remove_if(&[("X-If-State-ETag", &etag), ("X-If-Version", "0")]);
    assert_eq!(refused.error(), (409, "version_conflict".to_owned()));
    assert_eq!(held.get().expect(200).body, b"1");
    let quoted = format!("\"{etag}\"");
    held.remove_if(&[("X-If-State-ETag", &quoted), ("X-If-Version", "1")])
        .expect(200);
    assert_eq!(held.get().status, 204);
}

/// LS-84: whoever still has version and etag from before a staged removal is stale.
pub fn a_writer_from_before_a_staged_removal_is_stale(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let etag = save(server.address, "a", "1");
    let held = hold(server.address, "a");
    held.remove().expect(200);
    let refused = held.update_if("2", &[("X-If-Version", "1"), ("X-If-State-ETag", &etag)]);
    assert_eq!(refused.error(), (409, "version_conflict".to_owned()));
    assert_eq!(refused.field("current_version"), 2);
    assert_eq!(held.get().status, 204);
    held.update_if("2", &[("X-If-Version", "2")]).expect(200);
}

/// LS-85: a removal keeps token and committed attributes, drops staged ones, and a rollback brings everything back.
pub fn a_removal_keeps_token_and_committed_attributes(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    held.update_if("1", &[(HIDDEN, "1")]).expect(200);
    held.release().expect(200);

    let held = hold(server.address, "a");
    held.hide(false).expect(200);
    held.remove().expect(200);
    held.rollback().expect(200);
    assert_eq!(get_public(server.address, "a").expect(200).body, b"1");

    let held = hold(server.address, "a");
    held.hide(false).expect(200);
    held.remove().expect(200);
    held.release().expect(200);
    let described = describe(server.address, "a").expect(200);
    assert_eq!(described.field("version"), 3);
    assert_eq!(described.field("state_etag"), Value::Null);
    assert_eq!(described.field("metadata"), json!({"query_hidden": true}));
    assert_eq!(hold(server.address, "a").token, 4);
}

/// LS-86: describe answers for every key: one that nobody has touched, one that is held, one whose lease has run out.
pub fn describe_tells_who_holds_a_key(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let unknown = describe(scene.address(), "Never/Seen").expect(200);
    assert_eq!(
        unknown.json(),
        json!({"namespace": "default", "key": "Never/Seen", "version": 0, "metadata": {}})
    );
    assert_eq!(scene.records("k/"), [] as [String; 0]);

    let etag = save(scene.address(), "a", "1");
    let held = hold(scene.address(), "a");
    let expected = json!({"namespace": "default", "key": "a", "version": 1, "metadata": {}, "state_etag": etag,
        "owner": "test", "lease_id": held.lease_id, "expires_at_unix": held.expires_at_unix,
        "updated_at_unix": scene.now_unix()});
    let described = describe(scene.address(), "a").expect(200);
    assert_eq!(described.json(), expected);
    assert_eq!(
        (described.header("X-Key-Version"), described.header("ETag")),
        (None, None)
    );
    // Looking does not clear a lease that is over.
    scene.pass(1000);
    assert_eq!(describe(scene.address(), "a").expect(200).json(), expected);
    assert_eq!(held.update("2").error(), (403, "lease_expired".to_owned()));
    let cleared = describe(scene.address(), "a").expect(200);
    assert_eq!(
        (cleared.field("owner"), cleared.field("expires_at_unix")),
        (Value::Null, Value::Null)
    );
    assert_eq!(cleared.field("updated_at_unix"), scene.now_unix());
}

/// LS-113: a namespace has default engines, a partial change keeps the other field, a stale etag is refused.
pub fn a_namespace_keeps_what_a_change_does_not_name(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 2);
    let [first, second] = [scene.servers[0].address, scene.servers[1].address];
    let read = |address| send(address, "GET", "/v1/namespace?namespace=Shop", &[], b"").expect(200);
    let write = |address, headers: &[(&str, &str)], body: Value| {
        send(address, "POST", "/v1/namespace", headers, body.to_string().as_bytes())
    };
    let engines = |preferred: &str, fallback: &str| json!({"namespace": "shop", "query": {"preferred_engine": preferred, "fallback_engine": fallback}});
    let nothing_stored = read(first);
    assert_eq!(nothing_stored.json(), engines("index", "none"));
    assert_eq!(nothing_stored.header("ETag"), None);
    let early = write(
        first,
        &[("If-Match", "anything")],
        json!({"namespace": "shop", "query": {"fallback_engine": "scan"}}),
    );
    assert_eq!(early.error(), (409, "namespace_config_conflict".to_owned()));

    let changed = write(
        first,
        &[],
        json!({"namespace": "shop", "query": {"preferred_engine": "SCAN"}}),
    )
    .expect(200);
    assert_eq!(changed.json(), engines("scan", "none"));
    let etag = changed
        .header("ETag")
        .expect("a stored document has an etag")
        .to_owned();
    let seen = read(second);
    assert_eq!(
        (seen.json(), seen.header("ETag")),
        (engines("scan", "none"), Some(etag.as_str()))
    );

    let quoted = format!("\"{etag}\"");
    let changed = write(
        second,
        &[("If-Match", &quoted)],
        json!({"namespace": "shop", "query": {"fallback_engine": "scan"}}),
    );
    assert_eq!(changed.expect(200).json(), engines("scan", "scan"));
    let stale = write(
        first,
        &[("If-Match", &etag)],
        json!({"namespace": "shop", "query": {"preferred_engine": "index"}}),
    );
    assert_eq!(stale.error(), (409, "namespace_config_conflict".to_owned()));
    assert_eq!(read(first).json(), engines("scan", "scan"));

    let no_query = write(first, &[], json!({"namespace": "shop"}));
    assert_eq!(no_query.error(), (400, "invalid_namespace_request".to_owned()));
    let bad_engine = write(
        first,
        &[],
        json!({"namespace": "shop", "query": {"preferred_engine": "magic"}}),
    );
    assert_eq!(bad_engine.error(), (400, "invalid_body".to_owned()));
}
