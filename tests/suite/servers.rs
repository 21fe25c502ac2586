//! Several servers over one place, and servers that go away.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lockd::drain_plan::CloseOptions;
use serde_json::json;

use super::fixture::Backend;
use super::http::{Connection, send};
use super::lockd_calls::{Held, acquire, acquire_with, describe, get_public, hold, hold_in, wait_until};
use super::node::{Node, Wishes};
use super::scene::{Scene, txn_id};

/// LS-106: a holder whose server has crashed goes on at the next one with the same lease, and nothing it staged is lost.
pub fn a_lease_and_its_staged_state_survive_a_crash(backend: &dyn Backend) {
    let place = backend.open();
    let node = Node::start(&*place);
    let first = node.address();
    let states = [
        ("small", "1".to_owned()),
        ("large", format!("\"{}\"", "x".repeat(50_000))),
    ];
    let held = states.each_ref().map(|(key, state)| {
        let held = hold(first, key);
        held.update(state).expect(200);
        held
    });
    let [one, other] = ["one", "other"].map(|key| hold_in(first, key, &txn_id(1)));
    one.update("1").expect(200);
    other.update("1").expect(200);
    node.crash();
    let node = Node::start(&*place);
    let second = node.address();
    for (held, (key, state)) in held.iter().map(|held| held.at(second)).zip(&states) {
        assert_eq!(acquire(second, key).error(), (409, "waiting".to_owned()));
        assert!(held.get().expect(200).body == state.as_bytes());
        held.keepalive(60).expect(200);
        assert_eq!(get_public(second, key).status, 204);
        held.release().expect(200);
        let public = get_public(second, key).expect(200);
        assert!(public.body == state.as_bytes());
        assert_eq!(public.header("X-Key-Version"), Some("1"));
        assert_eq!(hold(second, key).token, 2);
    }
    // A transaction goes on as a whole.
    other.at(second).release().expect(200);
    for key in ["one", "other"] {
        assert_eq!(get_public(second, key).expect(200).body, b"1");
    }
}

/// LS-109: acquired at one server, written at another, released at a third: visible at once on all of them.
pub fn a_lease_may_wander_over_the_servers(backend: &dyn Backend) {
    let place = backend.open();
    let nodes = [(); 3].map(|()| Node::start(&*place));
    let addresses = nodes.each_ref().map(Node::address);
    for round in 0..9 {
        let at = |offset: usize| addresses[(round + offset) % 3];
        let held = hold(at(0), "a");
        let state = format!("[{round}]");
        held.at(at(1)).update(&state).expect(200);
        assert_eq!(held.at(at(2)).get().expect(200).body, state.as_bytes());
        for address in &addresses {
            assert_eq!(acquire(*address, "a").error(), (409, "waiting".to_owned()));
            assert_eq!(
                describe(*address, "a").expect(200).field("lease_id"),
                held.lease_id.as_str()
            );
        }
        held.at(at(2)).release().expect(200);
        for address in &addresses {
            let public = get_public(*address, "a").expect(200);
            assert_eq!(public.body, state.as_bytes());
            assert_eq!(public.header("X-Key-Version"), Some((round + 1).to_string().as_str()));
        }
    }
}

/// LS-111: what a server has granted is honoured by the others when it is gone, for as long as it lives.
pub fn a_lease_outlives_the_server_that_granted_it(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 2);
    let [first, second] = [scene.servers[0].address, scene.servers[1].address];
    let [kept, expiring] = ["a", "b"].map(|key| hold(first, key));
    for held in [&kept, &expiring] {
        held.update("1").expect(200);
    }
    scene.servers[0].server.abort();
    assert_eq!(acquire(second, "a").error(), (409, "waiting".to_owned()));
    let kept = kept.at(second);
    kept.keepalive(60).expect(200);
    scene.pass(31);
    assert_eq!(acquire(second, "a").error(), (409, "waiting".to_owned()));
    // The other one is over, and so is what it had staged.
    let next = hold(second, "b");
    assert_eq!((next.token, next.get().status), (2, 204));
    next.release().expect(200);
    kept.release().expect(200);
    assert_eq!(get_public(second, "a").expect(200).body, b"1");
    scene.assert_no_transactions();
}

/// LS-112: a waiter hears of a release on another server, long before the lease would have run out.
pub fn a_waiter_hears_of_a_release_on_another_server(backend: &dyn Backend) {
    let place = backend.open();
    let nodes = [(); 2].map(|()| Node::start(&*place));
    let [first, second] = nodes.each_ref().map(Node::address);
    for round in 0..5 {
        let ttl = json!({"key": "a", "owner": "holder", "ttl_seconds": 1500, "block_seconds": -1});
        let held = Held::from_answer(second, &acquire_with(second, &ttl));
        let wish = json!({"key": "a", "owner": "waiter", "ttl_seconds": 1500, "block_seconds": 50});
        let mut waiter = Connection::open(first);
        waiter.send_request("POST", "/v1/acquire", &[], wish.to_string().as_bytes());
        // Whether the release finds it parked or on its way makes no difference to what it must get.
        thread::sleep(Duration::from_millis(40 * round));
        held.release().expect(200);
        let granted = Held::from_answer(first, &waiter.read_answer());
        assert_eq!(granted.token, held.token + 1);
        granted.at(second).release().expect(200);
    }
}

/// Where the store reports changes, it is that report which wakes the waiter: the clock stands still, so nothing else
/// ever becomes due.
pub fn a_waiter_is_woken_by_the_report_of_a_change(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 2);
    if !scene.place.store().capabilities().feed {
        eprintln!("skipped: the store reports no changes");
        return;
    }
    let [first, second] = [scene.servers[0].address, scene.servers[1].address];
    for round in 0..10 {
        let held = hold(second, "a");
        let wish = json!({"key": "a", "owner": "waiter", "ttl_seconds": 30});
        let mut waiter = Connection::open(first);
        waiter.send_request("POST", "/v1/acquire", &[], wish.to_string().as_bytes());
        thread::sleep(Duration::from_millis(10 * round));
        held.release().expect(200);
        Held::from_answer(first, &waiter.read_answer()).release().expect(200);
    }
}

/// LS-114: a server is healthy until it is gone; it is ready until it drains.
pub fn probes_say_whether_a_server_lives_and_serves(backend: &dyn Backend) {
    let wishes = Wishes {
        close: CloseOptions::new()
            .drain_leases(Duration::from_secs(20))
            .shutdown_timeout(Duration::from_secs(25)),
        ..Wishes::default()
    };
    let node = Arc::new(Node::start_with(&*backend.open(), wishes));
    let probe = |path: &str, method: &str| send(node.address(), method, path, &[], b"");
    for path in ["/healthz", "/readyz"] {
        for method in ["GET", "POST", "HEAD"] {
            let answer = probe(path, method).expect(200);
            assert_eq!((answer.body.len(), answer.header("Shutdown-Imminent")), (0, None));
        }
    }
    // A lease holds the drain open until it is released.
    let held = hold(node.address(), "a");
    let stopping = Arc::clone(&node);
    let stopper = thread::spawn(move || stopping.shutdown());
    wait_until("the drain begins", || probe("/readyz", "GET").status != 200);
    let healthy = probe("/healthz", "GET").expect(200);
    assert_eq!(
        (healthy.body.len(), healthy.header("Shutdown-Imminent")),
        (0, Some("true"))
    );
    let ready = probe("/readyz", "GET").expect(503);
    assert_eq!((ready.body.len(), ready.header("Shutdown-Imminent")), (0, Some("true")));
    held.release().expect(200);
    stopper.join().expect("the server stops");
}
