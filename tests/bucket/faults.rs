//! Servers whose store has bad days: a proxy cuts connections before and after a request was carried out, carries it out
//! late, answers with errors, loses answers. No lease is granted twice, and nothing that was acknowledged is lost.
//!
//! `LOCKD_TEST_OPERATIONS` makes it last longer, `LOCKD_TEST_SEED` repeats what goes wrong, though not how threads meet.

use std::collections::HashMap;
use std::env;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lockd::logging;
use lockd::store::Store;
use lockd::store::object::{Location, ObjectStore, OpenError, Options};
use lockd::store::retry::{RetryPolicy, RetryStore, thread_sleeper};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::DEMANDS;
use crate::place::BucketPlace;
use crate::proxy::{METHODS, Proxy, Rates};
use crate::suite::fixture::{ServerOptions, TestServer};
use crate::suite::http::{Answer, send};
use crate::suite::queue_calls::{dequeue_with, enqueue, take, wish_waiting};
use crate::suite::scene::seed;

const SERVERS: usize = 3;
const CLIENTS: usize = 8;
const KEYS: usize = 5;
/// How long a lease lives whose holder has given up: a lost answer leaves one.
const TTL_SECONDS: u64 = 3;

/// An engine on this place that goes through a proxy.
fn engine_behind(place: &BucketPlace, proxy: &Proxy) -> Result<ObjectStore, OpenError> {
    let options = Options {
        drop_grace: Duration::from_secs(1),
        ..Options::default()
    };
    ObjectStore::open(&place.location_at(proxy.address()), options)
}

fn retried(engine: ObjectStore) -> Arc<dyn Store> {
    Arc::new(RetryStore::new(
        Arc::new(engine),
        RetryPolicy::default(),
        logging::off(),
        thread_sleeper(),
    ))
}

/// What the clients of one key know of it.
#[derive(Default)]
struct Known {
    /// Marks whose release was acknowledged, and marks whose release may have been carried out.
    committed: Vec<u64>,
    perhaps: Vec<u64>,
    last_token: i64,
    holder: Option<u64>,
}

#[test]
fn nothing_is_granted_twice_or_lost_on_a_bad_day() {
    let seed = seed();
    let operations: u64 = env::var("LOCKD_TEST_OPERATIONS").map_or(800, |text| text.parse().unwrap());
    let place = BucketPlace::new(DEMANDS, false);
    let proxies: Vec<Proxy> = (0..SERVERS as u64)
        .map(|number| Proxy::start(place.upstream(), Rates::all(12), seed ^ number, &[]))
        .collect();
    let servers: Vec<TestServer> = proxies
        .iter()
        .map(|proxy| {
            // The trial at the start has bad days as well, and may come to no verdict.
            let engine = (0..20)
                .find_map(|_| engine_behind(&place, proxy).ok())
                .expect("one start in twenty succeeds");
            TestServer::start(retried(engine), ServerOptions::default())
        })
        .collect();
    let addresses: Vec<SocketAddr> = servers.iter().map(|server| server.address).collect();
    let known: Vec<Mutex<Known>> = (0..KEYS).map(|_| Mutex::default()).collect();
    let (done, marks) = (AtomicU64::new(0), AtomicU64::new(1));
    thread::scope(|scope| {
        for client in 0..CLIENTS as u64 {
            let (addresses, known, done, marks) = (&addresses, &known, &done, &marks);
            let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(client));
            scope.spawn(move || {
                while done.load(Ordering::SeqCst) < operations {
                    let key = rng.usize(..KEYS);
                    let mark = marks.fetch_add(1, Ordering::SeqCst);
                    let calls = append(addresses, &mut rng, key, &known[key], mark);
                    done.fetch_add(calls, Ordering::SeqCst);
                }
            });
        }
    });

    // A good day: everything is as the clients know it.
    let calm = TestServer::start(retried(place.engine()), ServerOptions::default());
    let mut committed = 0;
    for (key, known) in known.into_iter().map(Mutex::into_inner).enumerate() {
        let shown = state_of(calm.address, key);
        let mut counts: HashMap<u64, usize> = HashMap::new();
        shown.iter().for_each(|mark| *counts.entry(*mark).or_default() += 1);
        for mark in &known.committed {
            assert_eq!(
                counts.remove(mark),
                Some(1),
                "mark {mark} of key {key} was acknowledged, seed {seed}: {shown:?}"
            );
        }
        for mark in &known.perhaps {
            assert!(
                counts.remove(mark).unwrap_or(0) <= 1,
                "mark {mark} of key {key} is there twice, seed {seed}"
            );
        }
        assert!(
            counts.is_empty(),
            "key {key} shows marks that nobody released: {counts:?}, seed {seed}"
        );
        committed += known.committed.len();
    }
    let (requests, faults) = proxies
        .iter()
        .map(Proxy::counts)
        .fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    eprintln!(
        "{} calls, {committed} commits; {requests} requests to the store, {faults} of which went wrong",
        done.into_inner()
    );
    assert!(0 < committed && 0 < faults);
}

/// Takes a lease, adds a mark to the state, and releases. Whatever has no good answer ends it. Returns how many calls it
/// took.
fn append(addresses: &[SocketAddr], rng: &mut fastrand::Rng, key: usize, known: &Mutex<Known>, mark: u64) -> u64 {
    let mut somewhere = || addresses[rng.usize(..addresses.len())];
    let name = format!("bad-day/{key}");
    let wish = json!({"key": name, "owner": format!("client-{mark}"), "ttl_seconds": TTL_SECONDS, "block_seconds": -1});
    let granted = post(somewhere(), "/v1/acquire", &[], &wish);
    if granted.status != 200 {
        thread::sleep(Duration::from_millis(5));
        return 1;
    }
    let lease = granted.json();
    let token = lease["fencing_token"].as_i64().unwrap();
    {
        let mut known = known.lock();
        // Tokens may be skipped, by grants whose answers were lost; none comes twice, and none comes late.
        assert!(
            known.last_token < token,
            "token {token} of key {key} after {}",
            known.last_token
        );
        known.last_token = token;
        known.holder = Some(mark);
    }
    let token_text = token.to_string();
    let headers = [
        ("X-Lease-ID", lease["lease_id"].as_str().unwrap()),
        ("X-Txn-ID", lease["txn_id"].as_str().unwrap()),
        ("X-Fencing-Token", &token_text),
    ];
    let read = post(somewhere(), &format!("/v1/get?key={name}"), &headers, &Value::Null);
    let mut state: Vec<u64> = match read.status {
        200 => serde_json::from_slice(&read.body).unwrap(),
        204 => Vec::new(),
        _ => return 2,
    };
    state.push(mark);
    let saved = post(somewhere(), &format!("/v1/update?key={name}"), &headers, &json!(state));
    if saved.status != 200 {
        // Staged or not: it is committed by a release only, and there is none. It runs out.
        return 3;
    }
    let body = json!({"key": name, "lease_id": lease["lease_id"], "txn_id": lease["txn_id"]});
    // From here on it may be committed. What the answer says is believed only while the lease surely lives: a release that
    // comes too late is answered in the same way.
    let granted_until = lease["expires_at_unix"].as_i64().unwrap();
    let before = now_unix();
    let released = post(somewhere(), "/v1/release", &[("X-Fencing-Token", &token_text)], &body);
    let mut known = known.lock();
    if known.holder == Some(mark) {
        known.holder = None;
    }
    if released.status == 200 && now_unix() < granted_until && before < granted_until {
        known.committed.push(mark);
    } else {
        known.perhaps.push(mark);
    }
    4
}

fn now_unix() -> i64 {
    use lockd::clock::{Clock, SystemClock};
    SystemClock::new().wall_seconds()
}

fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let body = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    send(address, "POST", path, headers, &body)
}

fn state_of(address: SocketAddr, key: usize) -> Vec<u64> {
    let answer = send(
        address,
        "POST",
        &format!("/v1/get?key=bad-day/{key}&public=1"),
        &[],
        b"",
    );
    match answer.status {
        200 => serde_json::from_slice(&answer.body).unwrap(),
        204 => Vec::new(),
        status => panic!("{status}"),
    }
}

/// A store that does not look at conditions is refused, and the refusal says so. The real one does; so they are taken off on
/// the way to it. Where requests are signed, that is found out by the signature.
#[test]
fn a_store_that_ignores_conditions_is_refused() {
    let place = BucketPlace::new(DEMANDS, false);
    for taken_off in [&["if-match", "if-none-match"][..], &["if-match"], &["if-none-match"]] {
        let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, taken_off);
        match engine_behind(&place, &proxy) {
            Err(OpenError::BreaksPromise { detail, .. }) => assert!(detail.contains("ignores If-"), "{detail}"),
            Err(OpenError::Unusable { detail, .. }) => {
                assert!(
                    detail.contains("answered 400") || detail.contains("answered 403"),
                    "{detail}"
                );
            }
            Ok(_) => panic!("a store without {taken_off:?} was taken"),
            Err(other) => panic!("{other}"),
        }
    }
    // What was refused was refused for that alone.
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    engine_behind(&place, &proxy).unwrap();
}

/// The same with a real one: the server that `LOCKD_TEST_BAD_STORE` names, where `LOCKD_TEST_BAD_KEY` is both halves of the
/// key.
#[test]
fn a_real_store_that_ignores_conditions_is_refused() {
    let Ok(url) = env::var("LOCKD_TEST_BAD_STORE") else {
        eprintln!("skipped: LOCKD_TEST_BAD_STORE names no store that ignores conditions");
        return;
    };
    let key = |name: &str| match name {
        "LOCKD_S3_ACCESS_KEY_ID" | "LOCKD_S3_SECRET_ACCESS_KEY" => env::var("LOCKD_TEST_BAD_KEY").ok(),
        _ => None,
    };
    let location = Location::parse(&url, &key).unwrap().unwrap();
    match ObjectStore::open(&location, Options::default()) {
        Err(OpenError::BreaksPromise { store, detail }) => eprintln!("{store}: {detail}"),
        Ok(_) => panic!("{url} was taken"),
        Err(other) => panic!("{other}"),
    }
}

/// The bill of whoever pays the store: what each call costs in requests, and what waiting costs.
#[test]
fn every_call_costs_few_requests() {
    let place = BucketPlace::new(DEMANDS, false);
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    let server = TestServer::start(
        retried(engine_behind(&place, &proxy).unwrap()),
        ServerOptions::default(),
    );
    let address = server.address;
    let mut last = proxy.by_method();
    let mut table = String::new();
    let mut cost = |what: &str, most: u64| {
        // What is deleted at leisure belongs to the call as well.
        thread::sleep(Duration::from_millis(300));
        let now = proxy.by_method();
        let spent: Vec<u64> = now.iter().zip(last).map(|(now, last)| now - last).collect();
        let texts: Vec<String> = (METHODS.iter().zip(&spent).filter(|(_, count)| 0 < **count))
            .map(|(method, count)| format!("{count} {method}"))
            .collect();
        table += &format!("{what:<28} {}\n", texts.join(", "));
        last = now;
        let paid: u64 = spent[..4].iter().sum();
        assert!(paid <= most, "{what} costs {texts:?}\n{table}");
    };
    let acquire = |key: &str| {
        let wish = json!({"key": key, "owner": "o", "ttl_seconds": 30, "block_seconds": -1});
        post(address, "/v1/acquire", &[], &wish).expect(200).json()
    };
    let headers = |lease: &Value| {
        [
            ("X-Lease-ID", lease["lease_id"].as_str().unwrap().to_owned()),
            ("X-Txn-ID", lease["txn_id"].as_str().unwrap().to_owned()),
            ("X-Fencing-Token", lease["fencing_token"].to_string()),
        ]
    };
    let call = |path: &str, lease: &Value, body: &Value| {
        let headers = headers(lease);
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        post(address, path, &headers, body)
    };
    let release = |lease: &Value| {
        let body = json!({"key": lease["key"], "lease_id": lease["lease_id"], "txn_id": lease["txn_id"]});
        call("/v1/release", lease, &body).expect(200);
    };
    cost("(start)", u64::MAX);
    let lease = acquire("k");
    cost("acquire, new key", 4);
    call("/v1/update?key=k", &lease, &json!(1)).expect(200);
    cost("update, up to 4 KiB", 2);
    let beat = json!({"key": "k", "lease_id": lease["lease_id"], "txn_id": lease["txn_id"], "ttl_seconds": 30});
    call("/v1/keepalive", &lease, &beat).expect(200);
    cost("keepalive", 2);
    call("/v1/get?key=k", &lease, &Value::Null).expect(200);
    cost("get, by the holder", 1);
    release(&lease);
    cost("release", 2);
    let lease = acquire("k");
    cost("acquire", 3);
    call("/v1/update?key=k", &lease, &json!("x".repeat(10_000))).expect(200);
    cost("update, 10 KB", 3);
    release(&lease);
    cost("release", 2);
    post(address, "/v1/get?key=k&public=1", &[], &Value::Null).expect(200);
    cost("get, public, 10 KB", 2);
    enqueue(address, "q", b"x");
    cost("enqueue, up to 4 KiB", 1);
    let message = take(address, "q");
    cost("dequeue", 6);
    message.ack().expect(200);
    cost("ack", 2);
    enqueue(address, "q", &[0; 10_000]);
    cost("enqueue, 10 KB", 2);
    let message = take(address, "q");
    cost("dequeue, 10 KB", 7);
    message.ack().expect(200);
    cost("ack", 2);
    // Nothing comes, so this is what the poll floor lets through.
    let seconds = 10;
    let began = std::time::Instant::now();
    let empty = dequeue_with(address, "dequeue", &wish_waiting("q", seconds));
    assert!(empty.is_err());
    let most = 2 * began.elapsed().as_secs() / 3 + 4;
    cost(&format!("a consumer that waits {seconds} s"), most);
    eprintln!("requests to the store\n{table}");
}
