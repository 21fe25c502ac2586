//! Servers whose store has bad days: a proxy cuts connections before and after a request was carried out, carries it out
//! late, answers with errors, loses answers. No lease is granted twice, and nothing that was acknowledged is lost, neither
//! an update nor a message.
//!
//! `LOCKD_TEST_OPERATIONS` makes it last longer, `LOCKD_TEST_SEED` repeats what goes wrong, though not how threads meet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lockd::store::object::{Location, ObjectStore, OpenError, Options};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::DEMANDS;
use crate::place::{BucketPlace, retried};
use crate::proxy::{Proxy, Rates};
use crate::suite::fixture::{ServerOptions, TestServer};
use crate::suite::http::{Answer, send};
use crate::suite::queue_calls::{Stream, deliveries, enqueue_with};
use crate::suite::scene::seed;

const SERVERS: usize = 3;
const CLIENTS: usize = 8;
const KEYS: usize = 5;
/// How long a lease lives whose holder has given up: a lost answer leaves one.
const TTL_SECONDS: u64 = 3;

fn operations() -> u64 {
    env::var("LOCKD_TEST_OPERATIONS").map_or(800, |text| text.parse().unwrap())
}

/// Several servers, each with a proxy of its own between it and the store.
struct BadDay {
    servers: Vec<TestServer>,
    proxies: Vec<Proxy>,
}

/// What went wrong.
struct Faults {
    requests: u64,
    faults: u64,
}

impl BadDay {
    fn begin(place: &BucketPlace, seed: u64) -> Self {
        let proxies: Vec<Proxy> = (0..SERVERS as u64)
            .map(|number| Proxy::start(place.upstream(), Rates::all(12), seed ^ number, &[]))
            .collect();
        let start = |proxy: &Proxy| {
            // The trial at the start has bad days as well, and may come to no verdict.
            let engine = (0..20)
                .find_map(|_| place.engine_behind(proxy.address()).ok())
                .expect("one start in twenty succeeds");
            TestServer::start(retried(engine), ServerOptions::default())
        };
        Self {
            servers: proxies.iter().map(start).collect(),
            proxies,
        }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|server| server.address).collect()
    }

    fn faults(&self) -> Faults {
        let counts = self.proxies.iter().map(Proxy::counts);
        let (requests, faults) = counts.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
        Faults { requests, faults }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, faults } = self;
        write!(f, "{requests} requests to the store, {faults} of which went wrong")
    }
}

/// What the clients of one key know of it.
#[derive(Default)]
struct Known {
    /// Marks whose release was acknowledged, and marks whose release may have been carried out.
    committed: Vec<u64>,
    perhaps: Vec<u64>,
    tokens: BTreeSet<i64>,
    last_token: i64,
    holder: Option<u64>,
}

#[test]
fn nothing_is_granted_twice_or_lost_on_a_bad_day() {
    let (seed, operations) = (seed(), operations());
    let place = BucketPlace::new(DEMANDS, false);
    let day = BadDay::begin(&place, seed);
    let addresses = day.addresses();
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
    let faults = day.faults();
    eprintln!("{} calls, {committed} commits; {faults}", done.into_inner());
    assert!(0 < committed && 0 < faults.faults);
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
        // Tokens may be skipped, by grants whose answers were lost. None comes twice, and none comes late, unless this
        // thread was so late that its lease is over.
        let is_over = lease["expires_at_unix"].as_i64().unwrap() <= now_unix();
        assert!(
            known.tokens.insert(token),
            "token {token} of key {key} was granted twice"
        );
        assert!(
            known.last_token < token || is_over,
            "token {token} of key {key} after {}",
            known.last_token
        );
        known.last_token = known.last_token.max(token);
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

/// Nobody enqueues while so many messages are waiting: consumers are to meet each other.
const BACKLOG: usize = 30;
/// How long a message is leased: a lost answer to a dequeue hides one for so long.
const VISIBLE_SECONDS: u64 = 4;

/// What producers and consumers know of the messages of one queue, by their number.
#[derive(Default)]
struct Messages {
    /// Their enqueue was acknowledged.
    taken_in: BTreeSet<u64>,
    /// Their ack was acknowledged, or may have been carried out.
    acked: BTreeSet<u64>,
    perhaps_acked: BTreeSet<u64>,
    /// Deliveries that broke off.
    cut_off: u64,
    /// The tokens of their deliveries.
    tokens: BTreeMap<u64, Vec<i64>>,
}

#[test]
fn no_message_is_lost_or_leased_twice_on_a_bad_day() {
    let (seed, operations) = (seed(), operations());
    let place = BucketPlace::new(DEMANDS, false);
    let day = BadDay::begin(&place, seed);
    let addresses = day.addresses();
    let (known, done, numbers) = (Mutex::new(Messages::default()), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for client in 0..CLIENTS as u64 {
            let (addresses, known, done, numbers) = (&addresses, &known, &done, &numbers);
            let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(37).wrapping_add(client));
            scope.spawn(move || {
                while done.load(Ordering::SeqCst) < operations {
                    let server = addresses[rng.usize(..addresses.len())];
                    let is_short = {
                        let known = known.lock();
                        known.taken_in.len() < known.acked.len() + BACKLOG
                    };
                    let calls = if client % 2 == 0 && is_short {
                        produce(server, known, numbers.fetch_add(1, Ordering::SeqCst))
                    } else {
                        consume(server, addresses[rng.usize(..addresses.len())], known)
                    };
                    done.fetch_add(calls, Ordering::SeqCst);
                }
            });
        }
    });
    let known_before = known.lock().acked.len();

    // A good day: what nobody has acknowledged is there, and comes.
    let calm = TestServer::start(retried(place.engine()), ServerOptions::default());
    let mut last_seen = Instant::now();
    while last_seen.elapsed() < 2 * Duration::from_secs(VISIBLE_SECONDS) {
        if consume(calm.address, calm.address, &known) == 2 {
            last_seen = Instant::now();
        }
    }
    let known = known.into_inner();
    let lost: Vec<&u64> = (known.taken_in.iter())
        .filter(|number| !known.acked.contains(number) && !known.perhaps_acked.contains(number))
        .collect();
    assert!(lost.is_empty(), "lost: {lost:?}, seed {seed}");
    let faults = day.faults();
    eprintln!(
        "{} calls, {} messages taken in, {known_before} acknowledged on the bad day, {} after it, {} deliveries cut off; {faults}",
        done.into_inner(),
        known.taken_in.len(),
        known.acked.len() - known_before,
        known.cut_off
    );
    assert!(0 < known_before && 0 < faults.faults);
}

/// Puts a message in; every other one has a payload that is an object of its own.
fn produce(server: SocketAddr, known: &Mutex<Messages>, number: u64) -> u64 {
    let answer = enqueue_with(server, &[], &json!({"queue": "bad-day"}), &payload(number));
    if answer.status == 200 {
        known.lock().taken_in.insert(number);
    }
    1
}

fn payload(number: u64) -> Vec<u8> {
    let padding = if number.is_multiple_of(2) { 0 } else { 5_000 };
    format!("{number}:{}", "x".repeat(padding)).into_bytes()
}

/// Takes a message at one server and acknowledges it at another. Returns how many calls it took.
fn consume(from: SocketAddr, to: SocketAddr, known: &Mutex<Messages>) -> u64 {
    let wish = json!({"queue": "bad-day", "owner": "test", "visibility_timeout_seconds": VISIBLE_SECONDS,
        "wait_seconds": -1});
    let settled_before: BTreeSet<u64> = known.lock().acked.clone();
    let mut connection = Stream::request(from, "dequeue", &wish);
    let message = match connection.try_read_answer() {
        Ok(answer) if answer.status == 200 => deliveries(from, &answer).pop(),
        Ok(_) => None,
        // The answer was cut off: its payload could not be had any more.
        Err(_) => {
            known.lock().cut_off += 1;
            None
        }
    };
    let Some(message) = message else {
        thread::sleep(Duration::from_millis(5));
        return 1;
    };
    let text = String::from_utf8(message.payload.clone()).unwrap();
    let number: u64 = text.split(':').next().unwrap().parse().expect("a number comes first");
    assert_eq!(message.payload, payload(number), "message {number} came damaged");
    assert!(
        !settled_before.contains(&number),
        "message {number} came again although it was acknowledged"
    );
    {
        let mut known = known.lock();
        let tokens = known.tokens.entry(number).or_default();
        let token = message.number("fencing_token");
        assert!(
            !tokens.contains(&token),
            "message {number} was leased twice under token {token}"
        );
        tokens.push(token);
    }
    let acked = message.at(to).ack();
    let mut known = known.lock();
    match acked.status {
        200 => assert!(known.acked.insert(number), "message {number} was acknowledged twice"),
        // It may have been carried out.
        500.. => drop(known.perhaps_acked.insert(number)),
        // The lease had lapsed, or an earlier ack was carried out.
        _ => {}
    }
    2
}

/// A store that does not look at conditions is refused, and the refusal says so. The real one does; so they are taken off on
/// the way to it. Where requests are signed, that is found out by the signature.
#[test]
fn a_store_that_ignores_conditions_is_refused() {
    let place = BucketPlace::new(DEMANDS, false);
    for taken_off in [&["if-match", "if-none-match"][..], &["if-match"], &["if-none-match"]] {
        let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, taken_off);
        match place.engine_behind(proxy.address()) {
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
    place.engine_behind(proxy.address()).unwrap();
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
