//! States: what is taken, what is stored, who sees what, and that nothing is left behind.

use std::collections::HashMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lockd::state::hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::fixture::{Backend, TestServer};
use super::http::{Answer, Connection, send};
use super::lockd_calls::{Held, acquire, describe, get_public, hold, hold_in, save};
use super::scene::{Scene, txn_id};

/// A state that is this long in bytes, spaces around it not counted.
fn state_of(bytes: usize, letter: char) -> String {
    format!("\"{}\"", letter.to_string().repeat(bytes - 2))
}

/// What a state may take up in memory before it is streamed, in scenes about sizes.
const SPOOL_BYTES: usize = 64 * 1024;
/// One state of each kind: inside the record, in one batch with it, streamed ahead of it.
const SIZES: [usize; 3] = [100, 20_000, 300_000];

fn small_spool(backend: &dyn Backend, servers: usize) -> Scene {
    Scene::with_options(backend, servers, |options| {
        options.settings.payload_spool_bytes = SPOOL_BYTES as u64;
        options.settings.json_bytes_max = 1024 * 1024;
    })
}

/// LS-59: insignificant white space goes, nothing else changes.
pub fn a_state_reads_back_as_it_was_written_but_for_white_space(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let updated = held.update("{ \"b\" : 1.0, \"a\":\"\\u0041\" }").expect(200);
    assert_eq!(updated.field("bytes"), 22);
    assert_eq!(updated.field("metadata"), json!({}));
    let expected = b"{\"b\":1.0,\"a\":\"\\u0041\"}";
    let etag = hex(&Sha256::digest(expected));
    assert_eq!(updated.field("new_state_etag"), etag);
    assert_eq!(held.get().expect(200).body, expected);
    held.release().expect(200);
    let public = get_public(server.address, "a").expect(200);
    assert_eq!(public.body, expected);
    assert_eq!(public.header("ETag"), Some(etag.as_str()));
}

/// LS-60: every JSON value is a state, and odd ones survive byte for byte.
pub fn odd_values_survive_byte_for_byte(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let values: [&[u8]; 14] = [
        b"null",
        b"true",
        b"0",
        b"-0.0e-0",
        b"1e400",
        b"\"\"",
        b"[]",
        b"{}",
        b"{\"a\":1,\"a\":2}",
        b"1234567890123456789012345678901234567890",
        b"\"\\ud800\"",
        b"\" two  spaces \"",
        b"\"\x80\xff\"",
        "\"\u{fc}\u{1f600}\u{7f}\"".as_bytes(),
    ];
    for value in values {
        let shown = String::from_utf8_lossy(value);
        let updated = held.send("POST", "update", &[], &[b" \r\n\t", value, b"\n"].concat());
        assert_eq!(
            updated.status,
            200,
            "{shown}: {}",
            String::from_utf8_lossy(&updated.body)
        );
        assert_eq!(updated.field("bytes"), value.len(), "{shown}");
        assert_eq!(held.get().expect(200).body, value, "{shown}");
    }
    held.release().expect(200);
    assert_eq!(get_public(server.address, "a").expect(200).body, values[13]);
}

/// LS-61: what is not exactly one JSON value is refused, and stages nothing.
pub fn what_is_not_one_json_value_is_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let bad: [&[u8]; 14] = [
        b"",
        b" \n",
        b"{}{}",
        b"1 2",
        b"\xef\xbb\xbf{}",
        b"\"a\nb\"",
        b"\"a\x00b\"",
        b"{\"a\":1",
        b"[1,]",
        b"{\"a\":1,}",
        b"nul",
        b"01",
        b"'a'",
        b"\x1f\x8b\x08\x00",
    ];
    for state in bad {
        let refused = held.send("POST", "update", &[], state);
        assert_eq!(refused.error(), (400, "invalid_body".to_owned()), "{state:?}");
        assert_eq!(held.get().status, 204, "{state:?}");
    }
    // A malformed state is reported before a lost lease.
    held.release().expect(200);
    assert_eq!(held.update("{").error(), (400, "invalid_body".to_owned()));
    assert_eq!(held.update("{}").error(), (403, "lease_required".to_owned()));
}

/// LS-62: updates in one lease share a version, not an etag.
pub fn updates_in_one_lease_share_a_version(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let mut etags = Vec::new();
    for round in 0..10 {
        let updated = held.update(&round.to_string()).expect(200);
        assert_eq!(updated.field("new_version"), 1);
        assert_eq!(updated.header("ETag"), updated.field("new_state_etag").as_str());
        etags.push(updated.field("new_state_etag").to_string());
    }
    etags.sort();
    etags.dedup();
    assert_eq!(etags.len(), 10);
}

/// LS-63: each lease with an update raises the version by one.
pub fn three_leases_with_an_update_each_make_three_versions(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for version in 1..=3 {
        let held = hold(server.address, "a");
        assert_eq!(held.version, version - 1);
        assert_eq!(held.update("1").expect(200).field("new_version"), version);
        held.release().expect(200);
    }
}

/// LS-64: the expected version is compared with the effective one; 0 means no version yet.
pub fn an_update_can_name_the_version_it_expects(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let refused = held.update_if("1", &[("X-If-Version", "1")]);
    assert_eq!(refused.error(), (409, "version_conflict".to_owned()));
    held.update_if("1", &[("X-If-Version", "0")]).expect(200);
    let refused = held.update_if("2", &[("X-If-Version", "0")]);
    assert_eq!(refused.error(), (409, "version_conflict".to_owned()));
    assert_eq!(refused.field("current_version"), 1);
    assert_eq!(refused.field("current_etag"), hex(&Sha256::digest(b"1")));
    held.update_if("2", &[("X-If-Version", "1")]).expect(200);
    for bad in ["one", "1.0", "9223372036854775808"] {
        let refused = held.update_if("3", &[("X-If-Version", bad)]);
        assert_eq!(refused.error(), (400, "invalid_version".to_owned()), "{bad}");
    }
    assert_eq!(held.get().expect(200).body, b"2");
}

/// LS-65: once a state is staged, the committed version is a stale writer's.
pub fn after_a_staged_update_the_committed_version_is_stale(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for round in 1..=4 {
        save(server.address, "a", &round.to_string());
    }
    let held = hold(server.address, "a");
    held.update_if("5", &[("X-If-Version", "4")]).expect(200);
    let refused = held.update_if("6", &[("X-If-Version", "4")]);
    assert_eq!(refused.error(), (409, "version_conflict".to_owned()));
    assert_eq!(refused.field("current_version"), 5);
    held.update_if("6", &[("X-If-Version", "5")]).expect(200);
}

/// LS-66, for attributes: staged attributes raise the effective version without every client noticing, so both pass.
pub fn after_staged_attributes_both_versions_pass(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for round in 1..=4 {
        save(server.address, "a", &round.to_string());
    }
    for version in ["4", "5"] {
        let held = hold(server.address, "a");
        assert_eq!(held.hide(true).expect(200).field("version"), 5);
        let refused = held.update_if("5", &[("X-If-Version", "3")]);
        assert_eq!(refused.error(), (409, "version_conflict".to_owned()));
        let updated = held.update_if("5", &[("X-If-Version", version)]).expect(200);
        assert_eq!(updated.field("new_version"), 5);
        held.rollback().expect(200);
        let held = hold(server.address, "a");
        held.hide(true).expect(200);
        held.remove_if(&[("X-If-Version", version)]).expect(200);
        held.rollback().expect(200);
    }
}

/// LS-67: an expected etag may come in quotes; a stale one is refused with the current one.
pub fn an_update_can_name_the_etag_it_expects(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let first = save(server.address, "a", "1");
    let held = hold(server.address, "a");
    let update = |state: &str, etag: &str| held.update_if(state, &[("X-If-State-ETag", etag)]);
    let second = update("2", &first).expect(200).field("new_state_etag");
    let second = second.as_str().expect("an etag");
    let refused = update("3", &first);
    assert_eq!(refused.error(), (409, "etag_mismatch".to_owned()));
    assert_eq!(refused.field("current_etag"), second);
    update("3", &format!("\"{second}\"")).expect(200);

    // Without a state there is no etag to match.
    let held = hold(server.address, "b");
    let refused = held.update_if("1", &[("X-If-State-ETag", &first)]);
    assert_eq!(refused.error(), (409, "etag_mismatch".to_owned()));
}

/// LS-68: an announced hash is one of the raw bytes, in either case.
pub fn an_announced_hash_is_that_of_the_raw_bytes(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let raw = "{ \"a\": 1 }";
    let (of_raw, of_compact) = (hex(&Sha256::digest(raw)), hex(&Sha256::digest("{\"a\":1}")));
    let update = |hash: &str| held.update_if(raw, &[("X-Expected-SHA256", hash)]);
    assert_eq!(
        update(&of_compact).error(),
        (409, "expected_sha256_mismatch".to_owned())
    );
    for bad in [&of_raw[1..], &of_raw.replace(|c: char| c.is_ascii_digit(), "g"), "abc"] {
        assert_eq!(
            update(bad).error(),
            (400, "invalid_expected_sha256".to_owned()),
            "{bad}"
        );
    }
    assert_eq!(held.get().status, 204);
    update(&of_raw).expect(200);
    update(&of_raw.to_uppercase()).expect(200);
}

/// LS-69: an announced length is that of the raw bytes.
pub fn an_announced_length_is_that_of_the_raw_bytes(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let update = |length: &str| held.update_if("{ \"a\": 1 }", &[("X-Expected-Bytes", length)]);
    for wrong in ["7", "0", "11"] {
        assert_eq!(
            update(wrong).error(),
            (409, "expected_bytes_mismatch".to_owned()),
            "{wrong}"
        );
    }
    for bad in ["-1", "ten"] {
        assert_eq!(update(bad).error(), (400, "invalid_expected_bytes".to_owned()), "{bad}");
    }
    assert_eq!(held.get().status, 204);
    update("10").expect(200);
}

/// Every way to refuse an update that arrives whole or not, with the code it is refused with.
fn refused_updates(held: &Held, bytes: usize) -> Vec<(&'static str, Answer)> {
    let state = state_of(bytes, 'x');
    let stranger = Held {
        lease_id: held.txn_id.clone(),
        ..held.clone()
    };
    let other_token = Held {
        token: held.token + 1,
        ..held.clone()
    };
    let other_txn = Held {
        txn_id: held.lease_id.clone(),
        ..held.clone()
    };
    let zeros = "0".repeat(64);
    vec![
        ("version_conflict", held.update_if(&state, &[("X-If-Version", "77")])),
        ("etag_mismatch", held.update_if(&state, &[("X-If-State-ETag", "stale")])),
        (
            "expected_bytes_mismatch",
            held.update_if(&state, &[("X-Expected-Bytes", "3")]),
        ),
        (
            "expected_sha256_mismatch",
            held.update_if(&state, &[("X-Expected-SHA256", &zeros)]),
        ),
        ("invalid_body", held.update(&state[..state.len() - 1])),
        ("invalid_body", held.update(&format!("{state},"))),
        ("lease_required", stranger.update(&state)),
        ("fencing_mismatch", other_token.update(&state)),
        ("txn_mismatch", other_txn.update(&state)),
    ]
}

/// LS-70: a refused update leaves what is staged, whatever its size, and no body of its own.
pub fn a_refused_update_leaves_the_staged_state(backend: &dyn Backend) {
    let scene = small_spool(backend, 1);
    for (staged, refused) in SIZES.into_iter().flat_map(|one| SIZES.map(|other| (one, other))) {
        let held = hold(scene.address(), "a");
        let state = state_of(staged, 's');
        let etag = held.update(&state).expect(200).field("new_state_etag");
        for (code, answer) in refused_updates(&held, refused) {
            assert_eq!(answer.code(), code, "{refused} bytes over {staged}");
        }
        let kept = held.get().expect(200);
        assert!(kept.body == state.as_bytes(), "{refused} bytes over {staged}");
        assert_eq!(kept.header("ETag"), etag.as_str());
        scene.assert_bodies(
            usize::from(4096 < staged),
            &format!("{refused} bytes refused over {staged}"),
        );
        held.rollback().expect(200);
        scene.assert_bodies(0, "after the rollback");
    }
}

/// LS-71: one etag for a state wherever it is shown.
pub fn a_state_has_one_etag_wherever_it_is_shown(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for size in [30, 50_000] {
        let key = format!("k{size}");
        let held = hold(server.address, &key);
        let updated = held.update(&state_of(size, 'e')).expect(200);
        let etag = updated.field("new_state_etag");
        let etag = etag.as_str().expect("an etag");
        assert_eq!(updated.header("ETag"), Some(etag));
        assert_eq!(held.get().expect(200).header("ETag"), Some(etag));
        assert_eq!(held.keepalive(60).expect(200).field("state_etag"), etag);
        held.release().expect(200);
        assert_eq!(get_public(server.address, &key).expect(200).header("ETag"), Some(etag));
        assert_eq!(describe(server.address, &key).expect(200).field("state_etag"), etag);
        assert_eq!(acquire(server.address, &key).expect(200).field("state_etag"), etag);
        // Also in the refusal of somebody who comes second.
        assert_eq!(acquire(server.address, &key).field("current_etag"), etag);
    }
}

/// LS-72: no state is 204 and carries none of the headers that stand for one, whatever the version.
pub fn no_state_is_an_empty_answer(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let assert_empty = |answer: Answer| {
        assert_eq!((answer.status, answer.body.len()), (204, 0));
        for name in ["ETag", "X-Key-Version", "X-Fencing-Token", "Content-Type"] {
            assert_eq!(answer.header(name), None, "{name}");
        }
    };
    assert_empty(get_public(server.address, "never"));
    let held = hold(server.address, "a");
    assert_empty(held.get());
    held.update("1").expect(200);
    held.release().expect(200);
    let held = hold(server.address, "a");
    held.remove().expect(200);
    assert_empty(held.get());
    held.release().expect(200);
    assert_empty(get_public(server.address, "a"));
    assert_empty(hold(server.address, "a").get());
}

/// LS-73: a state comes as its exact bytes with etag, version and, for the holder, the token; GET and POST alike.
pub fn a_state_comes_with_etag_version_and_token(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for size in [29, 10_000] {
        let key = format!("k{size}");
        let state = state_of(size, 'b');
        let etag = save(server.address, &key, &state);
        let held = hold(server.address, &key);
        for method in ["GET", "POST"] {
            let path = format!("/v1/get?key={key}&public=1");
            let public = send(server.address, method, &path, &[], b"").expect(200);
            let leased = held.send(method, "get", &[], b"").expect(200);
            for answer in [&public, &leased] {
                assert!(answer.body == state.as_bytes());
                assert_eq!(answer.header("ETag"), Some(etag.as_str()));
                assert_eq!(answer.header("X-Key-Version"), Some("1"));
                assert_eq!(answer.header("Content-Type"), Some("application/json"));
                assert_eq!(answer.header("Content-Length"), Some(size.to_string().as_str()));
            }
            assert_eq!(public.header("X-Fencing-Token"), None);
            assert_eq!(leased.header("X-Fencing-Token"), Some(held.token.to_string().as_str()));
        }
    }
}

/// LS-74: a read is the holder's or public; one that is neither is refused.
pub fn a_read_without_lease_must_say_public(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    save(server.address, "a", "1");
    let get =
        |query: &str, headers: &[(&str, &str)]| send(server.address, "GET", &format!("/v1/get?{query}"), headers, b"");
    assert_eq!(get("key=a", &[]).error(), (400, "missing_fencing_token".to_owned()));
    assert_eq!(
        get("key=a&public=0", &[]).error(),
        (400, "missing_fencing_token".to_owned())
    );
    assert_eq!(
        get("key=a", &[("X-Fencing-Token", "1")]).error(),
        (400, "missing_params".to_owned())
    );
    assert_eq!(get("public=1", &[]).error(), (400, "missing_params".to_owned()));
    for yes in ["1", "true", "ON", "Yes"] {
        assert_eq!(get(&format!("key=a&public={yes}"), &[]).expect(200).body, b"1");
    }
    // A lease id makes it a leased read, even where public would do.
    let held = hold(server.address, "a");
    let answer = get("key=a&public=1", &[("X-Lease-ID", &held.lease_id)]);
    assert_eq!(answer.error(), (400, "missing_fencing_token".to_owned()));
}

/// LS-75: the public sees committed states alone, never what is staged.
pub fn the_public_sees_committed_states_alone(backend: &dyn Backend) {
    let scene = small_spool(backend, 2);
    for size in SIZES {
        let key = format!("k{size}");
        let held = hold(scene.address(), &key);
        held.update(&state_of(size, 's')).expect(200);
        for address in scene.addresses() {
            assert_eq!(get_public(address, &key).status, 204);
        }
        held.update(&state_of(size, 'c')).expect(200);
        held.release().expect(200);
        let held = hold(scene.address(), &key);
        for change in 0..2 {
            if change == 0 {
                held.update(&state_of(size, 's')).expect(200);
            } else {
                held.remove().expect(200);
            }
            for address in scene.addresses() {
                let public = get_public(address, &key).expect(200);
                assert!(public.body == state_of(size, 'c').as_bytes());
                assert_eq!(public.header("X-Key-Version"), Some("1"));
                assert_eq!(describe(address, &key).expect(200).field("version"), 1);
            }
        }
        held.release().expect(200);
        assert_eq!(get_public(scene.address(), &key).status, 204);
    }
    scene.assert_bodies(0, "when every state is removed");
}

/// LS-76, for attributes: with attributes alone staged, both kinds of read show the committed state.
pub fn staged_attributes_do_not_hide_the_committed_state(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    held.hide(true).expect(200);
    assert_eq!((held.get().status, held.get_public().status), (204, 204));
    held.release().expect(200);

    let etag = save(server.address, "a", "1");
    let held = hold(server.address, "a");
    held.hide(false).expect(200);
    for answer in [held.get(), held.get_public()] {
        let answer = answer.expect(200);
        assert_eq!(answer.body, b"1");
        assert_eq!(
            (answer.header("ETag"), answer.header("X-Key-Version")),
            (Some(etag.as_str()), Some("1"))
        );
    }
}

/// States of every size around the limits where they are kept differently read back whole, staged and committed.
pub fn states_around_every_limit_read_back_whole(backend: &dyn Backend) {
    let scene = small_spool(backend, 1);
    let inline = 4096;
    let mut sizes = vec![2, 3];
    for limit in [inline, SPOOL_BYTES, 2 * SPOOL_BYTES] {
        sizes.extend([limit - 1, limit, limit + 1]);
    }
    sizes.push(1024 * 1024);
    for (number, size) in sizes.iter().enumerate() {
        let state = state_of(*size, char::from(b'a' + u8::try_from(number).unwrap()));
        let held = hold(scene.address(), "a");
        let updated = held.update(&state).expect(200);
        assert_eq!(updated.field("bytes"), *size);
        assert_eq!(updated.field("new_state_etag"), hex(&Sha256::digest(&state)));
        assert!(held.get().expect(200).body == state.as_bytes(), "staged {size}");
        held.release().expect(200);
        let public = get_public(scene.address(), "a").expect(200);
        assert!(public.body == state.as_bytes(), "committed {size}");
        scene.assert_bodies(
            usize::from(inline < *size),
            &format!("with a committed state of {size} bytes"),
        );
    }
    let held = hold(scene.address(), "a");
    let refused = held.update(&state_of(1024 * 1024 + 1, 'z'));
    assert_eq!(refused.error(), (400, "invalid_body".to_owned()));
    scene.assert_bodies(1, "after a state over the limit");
}

/// Several megabytes stream through with the product's own spool limit.
pub fn a_state_of_several_megabytes_streams_through(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let piece = "0123456789abcdef".repeat(4096);
    let pieces: Vec<&str> = vec![piece.as_str(); 96];
    let state = format!("[\"{}\"]", pieces.join("\",\""));
    let updated = held.update(&state).expect(200);
    assert_eq!(updated.field("bytes"), state.len());
    assert!(held.get().expect(200).body == state.as_bytes());
    held.release().expect(200);
    assert!(get_public(server.address, "a").expect(200).body == state.as_bytes());
}

/// Sends an update in chunks of these sizes, over and over.
fn update_chunked(held: &Held, state: &[u8], chunk_sizes: &[usize]) -> Answer {
    let mut connection = Connection::open(held.address);
    let head = format!(
        "POST /v1/update?key={} HTTP/1.1\r\nHost: test\r\nX-Lease-ID: {}\r\nX-Txn-ID: {}\r\nX-Fencing-Token: {}\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        held.key, held.lease_id, held.txn_id, held.token
    );
    connection.send(head.as_bytes());
    let (mut rest, mut sizes) = (state, chunk_sizes.iter().cycle());
    let mut framed = Vec::new();
    while !rest.is_empty() {
        let (chunk, behind) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
        write!(framed, "{:x}\r\n", chunk.len()).unwrap();
        framed.extend_from_slice(chunk);
        framed.extend_from_slice(b"\r\n");
        rest = behind;
    }
    framed.extend_from_slice(b"0\r\n\r\n");
    connection.send(&framed);
    connection.read_answer()
}

/// A state may come in chunks of any size, cut anywhere.
pub fn a_chunked_state_may_be_cut_anywhere(backend: &dyn Backend) {
    let scene = small_spool(backend, 1);
    let held = hold(scene.address(), "a");
    let odd = "{ \"\\u00e4\\\\\" : [ 1.5e+3 , \"\u{fc}\u{1f600}\" ,null ] }";
    let compact = "{\"\\u00e4\\\\\":[1.5e+3,\"\u{fc}\u{1f600}\",null]}";
    for sizes in [&[1][..], &[2, 1, 3], &[7], &[1000]] {
        update_chunked(&held, odd.as_bytes(), sizes).expect(200);
        assert_eq!(held.get().expect(200).body, compact.as_bytes(), "{sizes:?}");
    }
    for size in SIZES {
        let state = state_of(size, 'c');
        let updated = update_chunked(&held, state.as_bytes(), &[1, 4095, 17, 20_000]).expect(200);
        assert_eq!(updated.field("bytes"), size);
        assert!(held.get().expect(200).body == state.as_bytes());
    }
    let refused = update_chunked(&held, b"{}{}", &[3]);
    assert_eq!(refused.error(), (400, "invalid_body".to_owned()));
    held.release().expect(200);
    assert!(get_public(scene.address(), "a").expect(200).body == state_of(SIZES[2], 'c').as_bytes());
    scene.assert_bodies(1, "after chunked updates");
}

/// An upload that breaks off half-way stages nothing and leaves nothing.
pub fn an_upload_that_breaks_off_leaves_nothing(backend: &dyn Backend) {
    let scene = small_spool(backend, 1);
    let held = hold(scene.address(), "a");
    held.update("1").expect(200);
    for length in [SIZES[1], SIZES[2]] {
        let mut connection = Connection::open(scene.address());
        let head = format!(
            "POST /v1/update?key=a HTTP/1.1\r\nHost: test\r\nX-Lease-ID: {}\r\nX-Txn-ID: {}\r\nX-Fencing-Token: {}\r\n\
             Content-Length: {length}\r\n\r\n",
            held.lease_id, held.txn_id, held.token
        );
        connection.send(head.as_bytes());
        // Whole as a JSON value, but not as a body.
        connection.send(state_of(length - 10, 'h').as_bytes());
        connection.socket().shutdown(std::net::Shutdown::Write).unwrap();
        // Whether an answer comes to somebody who hangs up is of no interest; that the server is done with it is.
        let _ = connection.try_read_answer();
    }
    assert_eq!(held.get().expect(200).body, b"1");
    scene.assert_bodies(0, "after uploads that broke off");
}

/// However a lease ends, the bodies that nobody names any more are gone.
pub fn no_body_outlives_its_use(backend: &dyn Backend) {
    let scene = small_spool(backend, 2);
    let (one, other) = (scene.servers[0].address, scene.servers[1].address);
    for size in [SIZES[1], SIZES[2]] {
        let state = |letter| state_of(size, letter);
        let staged = |key: &str| {
            let held = hold(one, key);
            held.update(&state('a')).expect(200);
            held.at(other).update(&state('b')).expect(200);
            held
        };
        let held = staged("a");
        scene.assert_bodies(1, "after the second update");
        held.rollback().expect(200);
        scene.assert_bodies(0, "after a rollback");

        let held = staged("a");
        scene.pass(31);
        assert_eq!(held.update(&state('c')).error(), (403, "lease_expired".to_owned()));
        scene.assert_bodies(0, "after the expired holder came back");

        staged("a");
        scene.pass(31);
        let next = hold(other, "a");
        scene.assert_bodies(0, "after a takeover");
        next.release().expect(200);

        let held = staged("a");
        scene.pass(31);
        held.release().expect(200);
        scene.assert_bodies(0, "after a release that came too late");

        let held = staged("a");
        held.update("1").expect(200);
        scene.assert_bodies(0, "after a small state replaced a large one");
        held.update(&state('d')).expect(200);
        held.remove().expect(200);
        scene.assert_bodies(0, "after a staged removal");
        held.rollback().expect(200);

        staged("a").release().expect(200);
        scene.assert_bodies(1, "after a commit");
        let held = staged("a");
        scene.assert_bodies(2, "with a committed and a staged state");
        held.release().expect(200);
        scene.assert_bodies(1, "after the next commit");
        let held = hold(one, "a");
        held.remove().expect(200);
        scene.assert_bodies(1, "with a staged removal");
        held.release().expect(200);
        scene.assert_bodies(0, "after a committed removal");

        // A conflict of a transaction drops what all its members had staged.
        let txn = txn_id(u32::try_from(size).unwrap());
        let [first, second] = ["b", "c"].map(|key| hold_in(one, key, &txn));
        first.update(&state('e')).expect(200);
        second.update(&state('f')).expect(200);
        second.keepalive(1000).expect(200);
        scene.pass(31);
        assert_eq!(second.at(other).release().error(), (409, "txn_conflict".to_owned()));
        scene.assert_bodies(0, "after a conflict");
        scene.assert_no_transactions();
    }
}

/// The same holder may write through several servers at once: one state wins whole, and the bodies of the others go.
pub fn updates_at_the_same_time_leave_one_body(backend: &dyn Backend) {
    let scene = small_spool(backend, 3);
    let held = hold(scene.address(), "a");
    thread::scope(|scope| {
        for (number, address) in scene.addresses().into_iter().cycle().take(6).enumerate() {
            let held = held.at(address);
            let letter = char::from(b'a' + u8::try_from(number).unwrap());
            scope.spawn(move || {
                for _ in 0..10 {
                    held.update(&state_of(SIZES[1 + number % 2], letter)).expect(200);
                }
            });
        }
    });
    let body = held.get().expect(200).body;
    let letter = char::from(body[1]);
    assert!(body == state_of(body.len(), letter).as_bytes());
    scene.assert_bodies(1, "after all updates");
    held.release().expect(200);
    scene.assert_bodies(1, "after the release");
}

/// A read while the state is being replaced is one state from its first byte to its last, with the etag and version that
/// belong to it; later reads never go back.
pub fn a_read_during_replacement_is_never_torn(backend: &dyn Backend) {
    const BYTES: usize = 2 * 1024 * 1024;
    const ROUNDS: u8 = 6;
    let scene = Scene::with_options(backend, 2, |options| {
        options.settings.payload_spool_bytes = SPOOL_BYTES as u64;
    });
    let addresses = scene.addresses();
    save(addresses[0], "a", &state_of(BYTES, 'a'));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|number| {
                let (address, done) = (addresses[number % 2], &done);
                scope.spawn(move || read_until(address, done))
            })
            .collect();
        for round in 1..=ROUNDS {
            let held = hold(addresses[usize::from(round) % 2], "a");
            let at_other = held.at(addresses[0]);
            // The holder reads while it replaces what it has staged itself.
            held.update(&state_of(BYTES, 'x')).expect(200);
            let reader = scope.spawn(move || {
                for _ in 0..2 {
                    whole(&at_other.get().expect(200).body);
                }
            });
            held.update(&state_of(BYTES, char::from(b'a' + round))).expect(200);
            reader.join().expect("the holder reads whole states");
            held.release().expect(200);
        }
        done.store(true, Ordering::SeqCst);
        let mut etags: HashMap<String, char> = HashMap::new();
        for reader in readers {
            for (etag, letter) in reader.join().expect("readers see whole states") {
                assert_eq!(*etags.entry(etag).or_insert(letter), letter, "one etag for two states");
            }
        }
    });
    let last = get_public(addresses[0], "a").expect(200);
    assert_eq!(whole(&last.body), char::from(b'a' + ROUNDS));
    scene.assert_bodies(1, "at the end");
}

/// Reads the public state until told to stop; returns which letters came under which etags.
fn read_until(address: SocketAddr, done: &AtomicBool) -> Vec<(String, char)> {
    let mut seen = Vec::new();
    let mut last_version = 0;
    while !done.load(Ordering::SeqCst) {
        let answer = get_public(address, "a").expect(200);
        let letter = whole(&answer.body);
        let version: i64 = answer.header("X-Key-Version").unwrap().parse().unwrap();
        assert!(last_version <= version, "version {version} after {last_version}");
        assert_eq!(i64::from(letter as u32) - i64::from(u32::from('a')), version - 1);
        last_version = version;
        seen.push((answer.header("ETag").unwrap().to_owned(), letter));
    }
    seen
}

/// The letter that a state is made of, if it is made of one alone.
#[track_caller]
fn whole(body: &[u8]) -> char {
    let letter = body[1];
    let inside = &body[1..body.len() - 1];
    assert!(inside.iter().all(|byte| *byte == letter), "a torn state");
    char::from(letter)
}

/// A lease may be used through every server, and each shows the same staged state.
pub fn staged_states_are_the_same_on_every_server(backend: &dyn Backend) {
    let scene = small_spool(backend, 3);
    let held = hold(scene.address(), "a");
    for (size, address) in SIZES.into_iter().zip(scene.addresses()) {
        held.at(address).update(&state_of(size, 's')).expect(200);
        for other in scene.addresses() {
            let read = held.at(other).get().expect(200);
            assert!(read.body == state_of(size, 's').as_bytes());
            assert_eq!(read.header("X-Key-Version"), Some("1"));
        }
    }
    assert_eq!(acquire(scene.address(), "a").field("current_version"), Value::Null);
}
