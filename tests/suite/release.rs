//! What a release ends, what it commits, and what it leaves alone.

use std::sync::Barrier;
use std::thread;

use serde_json::json;

use super::fixture::{Backend, TestServer};
use super::http::send;
use super::lockd_calls::{Held, acquire, acquire_with, describe, get_public, hold, save};
use super::scene::Scene;

/// LS-51: what was staged is public after the release, at the version that was announced.
pub fn release_commits_what_was_staged_at_the_announced_version(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    for round in 1..=3 {
        let held = hold(server.address, "a");
        let state = format!("{{\"round\":{round}}}");
        let announced = held.update(&state).expect(200);
        assert_eq!(announced.field("new_version"), round);
        assert_eq!(announced.header("X-Key-Version"), Some(round.to_string().as_str()));
        let released = held.release().expect(200);
        assert_eq!(released.json(), json!({"released": true}));
        let public = get_public(server.address, "a").expect(200);
        assert_eq!(public.body, state.as_bytes());
        assert_eq!(public.header("X-Key-Version"), Some(round.to_string().as_str()));
        assert_eq!(public.header("ETag"), announced.header("ETag"));
    }
}

/// LS-52: a rollback drops what was staged, and nothing of it shows.
pub fn rollback_leaves_state_and_version_as_they_were(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let etag = save(server.address, "a", "{\"n\":1}");
    let before = describe(server.address, "a").expect(200);
    for change in 0..3 {
        let held = hold(server.address, "a");
        match change {
            0 => held.update("{\"n\":2}").expect(200),
            1 => held.remove().expect(200),
            _ => held.hide(true).expect(200),
        };
        assert_eq!(held.rollback().expect(200).json(), json!({"released": true}));
        let public = get_public(server.address, "a").expect(200);
        assert_eq!(public.body, b"{\"n\":1}", "change {change}");
        assert_eq!(public.header("X-Key-Version"), Some("1"));
        assert_eq!(public.header("ETag"), Some(etag.as_str()));
        let after = describe(server.address, "a").expect(200);
        for field in ["version", "state_etag", "metadata", "owner", "lease_id"] {
            assert_eq!(after.field(field), before.field(field), "{field} after change {change}");
        }
    }
    // A key that never had a state has none after a rollback either.
    let held = hold(server.address, "b");
    held.update("1").expect(200);
    held.rollback().expect(200);
    assert_eq!(get_public(server.address, "b").status, 204);
    assert_eq!(hold(server.address, "b").version, 0);
}

/// LS-53: whoever releases what it does not hold is told "released", and nothing happens.
pub fn releasing_what_is_not_held_changes_nothing(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let held = hold(scene.address(), "a");
    held.update("1").expect(200);

    let wrong_token = Held {
        token: held.token + 1,
        ..held.clone()
    };
    let foreign_lease = Held {
        lease_id: held.txn_id.clone(),
        ..held.clone()
    };
    let unknown_key = Held {
        key: "nobody/knows".to_owned(),
        ..held.clone()
    };
    for stranger in [&wrong_token, &foreign_lease, &unknown_key] {
        for answer in [stranger.release(), stranger.rollback()] {
            assert_eq!(answer.expect(200).json(), json!({"released": true}));
        }
    }
    assert_eq!(scene.records("k/"), ["k/default/a"]);
    assert_eq!(held.get().expect(200).body, b"1");
    assert_eq!(acquire(scene.address(), "a").error(), (409, "waiting".to_owned()));

    held.release().expect(200);
    let next = hold(scene.address(), "a");
    next.update("2").expect(200);
    // The second release of the first holder does not touch the next one's lease.
    for answer in [held.release(), held.rollback()] {
        assert_eq!(answer.expect(200).json(), json!({"released": true}));
    }
    assert_eq!(next.get().expect(200).body, b"2");
    next.release().expect(200);
    assert_eq!(
        get_public(scene.address(), "a").expect(200).header("X-Key-Version"),
        Some("2")
    );
}

/// LS-54: a release under another transaction is refused, and the lease lives on with what it staged.
pub fn a_release_in_another_transaction_is_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    held.update("1").expect(200);
    let other_txn = Held {
        txn_id: held.lease_id.clone(),
        ..held.clone()
    };
    assert_eq!(other_txn.release().error(), (409, "txn_mismatch".to_owned()));
    assert_eq!(other_txn.rollback().error(), (409, "txn_mismatch".to_owned()));
    assert_eq!(held.get().expect(200).body, b"1");
    assert_eq!(get_public(server.address, "a").status, 204);
    held.release().expect(200);
    assert_eq!(get_public(server.address, "a").expect(200).body, b"1");
}

/// LS-55: a release must name its transaction in the body; a header does not stand in for it.
pub fn a_release_without_transaction_is_refused(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let held = hold(server.address, "a");
    let token = held.token.to_string();
    for body in [
        json!({"key": "a", "lease_id": held.lease_id}),
        json!({"key": "a", "lease_id": held.lease_id, "txn_id": ""}),
        json!({"key": "a", "lease_id": held.lease_id, "txn_id": null}),
    ] {
        let headers = [("X-Fencing-Token", token.as_str()), ("X-Txn-ID", held.txn_id.as_str())];
        let answer = send(
            server.address,
            "POST",
            "/v1/release",
            &headers,
            body.to_string().as_bytes(),
        );
        assert_eq!(answer.error(), (400, "missing_txn".to_owned()), "{body}");
    }
    held.update("1").expect(200);
}

/// LS-56: a release that comes too late is told "released", but commits nothing; it clears the lease, whoever sends it.
pub fn a_release_after_expiry_commits_nothing(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let held = hold(scene.address(), "a");
    held.update("1").expect(200);
    scene.clock.set_wall_ms(held.expires_at_unix * 1000);
    assert_eq!(held.release().expect(200).json(), json!({"released": true}));
    assert_eq!(get_public(scene.address(), "a").status, 204);
    let described = describe(scene.address(), "a").expect(200);
    assert_eq!(described.field("version"), 0);
    assert_eq!(described.field("lease_id"), serde_json::Value::Null);

    let held = hold(scene.address(), "a");
    held.update("2").expect(200);
    scene.pass(31);
    let stranger = Held {
        lease_id: held.txn_id.clone(),
        ..held
    };
    assert_eq!(stranger.release().expect(200).json(), json!({"released": true}));
    assert_eq!(
        describe(scene.address(), "a").expect(200).field("lease_id"),
        serde_json::Value::Null
    );
    assert_eq!(get_public(scene.address(), "a").status, 204);
    let next = hold(scene.address(), "a");
    assert_eq!((next.version, next.token), (0, 3));
    assert_eq!(next.get().status, 204);
}

/// LS-57: a lease that staged nothing leaves version and etag as they were.
pub fn release_without_staging_leaves_version_and_etag(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let etag = save(server.address, "a", "[1]");
    for round in 0..3 {
        let held = hold(server.address, "a");
        assert_eq!((held.version, held.token), (1, 2 + round));
        held.release().expect(200);
        let public = get_public(server.address, "a").expect(200);
        assert_eq!(public.header("X-Key-Version"), Some("1"));
        assert_eq!(public.header("ETag"), Some(etag.as_str()));
    }
}

/// LS-58: one release sent to two servers at once is one commit, and both say so. Clients with several endpoints do this.
pub fn the_same_release_at_two_servers_commits_once(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 2);
    let [first, second] = [scene.servers[0].address, scene.servers[1].address];
    for round in 1..=30 {
        let held = hold(if round % 2 == 0 { first } else { second }, "a");
        assert_eq!((held.version, held.token), (round - 1, round));
        held.update(&round.to_string()).expect(200);
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for address in [first, second] {
                let (held, start) = (held.at(address), &start);
                scope.spawn(move || {
                    start.wait();
                    assert_eq!(held.release().expect(200).json(), json!({"released": true}));
                });
            }
        });
        for address in [first, second] {
            let public = get_public(address, "a").expect(200);
            assert_eq!(public.body, round.to_string().as_bytes());
            assert_eq!(public.header("X-Key-Version"), Some(round.to_string().as_str()));
        }
    }
    scene.assert_no_transactions();
}

/// A commit and a rollback of one lease at the same time end it once: the state is the old one or the new one, and
/// whatever it is, it stays.
pub fn commit_and_rollback_at_the_same_time_end_the_lease_once(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 2);
    let mut version = 0;
    for round in 1..=30 {
        let held = hold(scene.address(), "a");
        held.update(&round.to_string()).expect(200);
        let start = Barrier::new(2);
        thread::scope(|scope| {
            let (commit, rollback) = (held.clone(), held.at(scene.servers[1].address));
            let start = &start;
            scope.spawn(move || {
                start.wait();
                commit.release().expect(200);
            });
            scope.spawn(move || {
                start.wait();
                rollback.rollback().expect(200);
            });
        });
        let next = hold(scene.address(), "a");
        assert!((version..=version + 1).contains(&next.version));
        if next.version != version {
            assert_eq!(next.get().expect(200).body, round.to_string().as_bytes());
        }
        version = next.version;
        next.release().expect(200);
    }
}

/// The answer to a release means that everybody reads the new state from then on, on every server.
pub fn after_the_answer_every_server_shows_the_commit(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 3);
    let addresses = scene.addresses();
    for round in 0..30 {
        let held = hold(addresses[round % 3], "a");
        held.update(&round.to_string()).expect(200);
        held.at(addresses[(round + 1) % 3]).release().expect(200);
        for address in &addresses {
            assert_eq!(get_public(*address, "a").expect(200).body, round.to_string().as_bytes());
        }
    }
    // A create-only acquire looks at the record, wherever it was made.
    let create = json!({"key": "a", "owner": "x", "if_not_exists": true});
    for address in addresses {
        assert_eq!(
            acquire_with(address, &create).error(),
            (409, "already_exists".to_owned())
        );
    }
}
