//! A transaction over several keys where one write changes one object: the server is killed between any two of the writes,
//! and whoever comes next finds all of it done or nothing, and can go on at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lockd::clock::{Clock, SystemClock};
use rustix::process::Signal;
use serde_json::json;

use crate::DEMANDS;
use crate::place::BucketPlace;
use crate::proxy::{Proxy, Rates};
use crate::suite::http::{Connection, send};
use crate::suite::lockd_calls::{Held, acquire_with};
use crate::suite::process::Daemon;

const KEYS: [&str; 3] = ["decided/a", "decided/b", "decided/c"];

/// Who comes first after the server was killed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Next {
    /// A server that starts now, and readers.
    NewServer,
    /// A server that has been there all the time, and readers.
    OtherServer,
    /// A server that has been there all the time, and somebody who wants one of the keys when the leases have expired.
    Acquirer,
}

/// LS-107, with a server that starts and with one that was there.
#[test]
fn a_decision_that_was_not_carried_out_is_carried_out_by_whoever_comes() {
    for_each_step(Next::NewServer, 600);
    for_each_step(Next::OtherServer, 600);
}

/// LS-108: the leases have expired, and the first thing that happens is an acquire.
#[test]
fn a_decision_holds_although_the_leases_have_expired_since() {
    for_each_step(Next::Acquirer, 4);
}

/// Kills the server behind each write of the release in turn, until it gets through.
fn for_each_step(next: Next, mut ttl_seconds: i64) {
    let mut steps = 0;
    loop {
        match got_through(steps, next, ttl_seconds) {
            Some(true) => break,
            Some(false) => steps += 1,
            // The leases were over before anything was decided: this machine is slow.
            None => ttl_seconds *= 2,
        }
        assert!(ttl_seconds < 1_000);
        assert!(steps < 20, "a release of three keys takes few writes");
    }
    // The decision and one write for each key at least, each of which was the last one once.
    assert!(4 <= steps, "{steps} steps");
}

/// One transaction, at whose release the store goes away with the write after so many. True: the release had no more. `None`:
/// it came too late.
fn got_through(writes: u32, next: Next, ttl_seconds: i64) -> Option<bool> {
    let place = BucketPlace::new(DEMANDS, true);
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    let other = (next != Next::NewServer).then(|| Daemon::on_tcp(&place));
    let (mut daemon, address) = Daemon::on_tcp(&place.behind(proxy.address()));
    let mut txn_id = None;
    let mut held = Vec::new();
    for key in KEYS {
        let mut wish = json!({"key": key, "owner": "first", "ttl_seconds": ttl_seconds, "block_seconds": -1});
        if let Some(txn_id) = &txn_id {
            wish["txn_id"] = json!(txn_id);
        }
        let lease = Held::from_answer(address, &acquire_with(address, &wish));
        txn_id.get_or_insert_with(|| lease.txn_id.clone());
        held.push(lease);
    }
    let expire = || held.iter().map(|lease| lease.expires_at_unix);
    for lease in &held {
        let updated = lease.update("{\"by\":\"first\"}");
        if updated.status != 200 && expire().min() <= Some(SystemClock::new().wall_seconds()) {
            return None;
        }
        updated.expect(200);
    }

    let done = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&done);
    proxy.end_with(move |head| head.starts_with("PUT ") && writes < count.fetch_add(1, Ordering::SeqCst) + 1);
    let body = json!({"key": held[0].key, "lease_id": held[0].lease_id, "txn_id": held[0].txn_id}).to_string();
    let token = held[0].token.to_string();
    // Without a store it does not end by itself.
    let releasing = thread::spawn(move || {
        let mut connection = Connection::open(address);
        let headers = [("X-Fencing-Token", &*token)];
        connection.send_request("POST", "/v1/release", &headers, body.as_bytes());
        drop(connection.try_read_answer());
    });
    let began = Instant::now();
    while !proxy.is_dead() && !releasing.is_finished() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "the release neither ends nor writes"
        );
        thread::sleep(Duration::from_millis(5));
    }
    let got_through = !proxy.is_dead();
    let decided_by = SystemClock::new().wall_seconds();
    daemon.signal(Signal::KILL);
    daemon.wait();
    releasing.join().unwrap();
    if expire().min() <= Some(decided_by) {
        return None;
    }

    if next == Next::Acquirer {
        while SystemClock::new().wall_seconds() <= expire().max().unwrap() {
            thread::sleep(Duration::from_millis(50));
        }
    }
    let (_daemon, address) = other.unwrap_or_else(|| Daemon::on_tcp(&place));
    let first = (next == Next::Acquirer).then(|| hold(address, KEYS[1]));
    for key in KEYS {
        let read = send(address, "POST", &format!("/v1/get?key={key}&public=1"), &[], b"").expect(200);
        assert_eq!(
            read.body, b"{\"by\":\"first\"}",
            "{key}, {next:?}, behind {writes} writes"
        );
        assert_eq!(
            read.header("x-key-version"),
            Some("1"),
            "{key}, {next:?}, behind {writes} writes"
        );
    }
    for key in KEYS {
        let again = match &first {
            Some(first) if first.key == key => first.clone(),
            _ => hold(address, key),
        };
        assert_eq!(
            (again.version, again.token),
            (1, 2),
            "{key}, {next:?}, behind {writes} writes"
        );
        again.release().expect(200);
    }
    Some(got_through)
}

fn hold(address: std::net::SocketAddr, key: &str) -> Held {
    // Far less than it would take for the first leases to expire.
    let wish = json!({"key": key, "owner": "second", "ttl_seconds": 600, "block_seconds": 30});
    Held::from_answer(address, &acquire_with(address, &wish))
}
