//! Leases and state on bad days: what clients are told fits together, although answers of the store are lost and requests are
//! carried out late.
//!
//! The engine has been broken in each of these ways for once, and each was noticed:
//!
//! | breakage | noticed by |
//! |---|---|
//! | a write id that is ours is not looked at, so what was done counts as refused | a holder is refused what it may do; a key that one client alone knows is held |
//! | a refusal after a lost answer is believed without looking | the same |
//! | a lost put is sent again as one that was certainly not done, and its refusal believed | the same |
//! | a refusal after a lost answer counts as done | a token is granted twice; a commit that was acknowledged does not show |
//! | a lost answer counts as done | a commit that was acknowledged does not show; a holder is refused |
//! | what others wrote over the state that was to be replaced counts as ours | the same; versions go back |
//! | a lost put is sent again without its condition | a token is granted twice; a commit that was acknowledged does not show |
//! | puts have no conditions | the same; versions go back |
//! | records are read from a memory of a third of a second | a holder is refused at another server |
//! | a lost answer is given up at once | too many calls come to no verdict |
//! | what a record replaced is not looked at | the same, in most runs |
//!
//! Two of them need others to be quick at the right moment: a refusal that counts as done, and a put without its condition.
//! That is what the keys are for that all clients fight for. For the others there are keys of which one client alone knows,
//! so that it knows each answer.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{BadDay, CLIENTS, operations};
use crate::DEMANDS;
use crate::place::{BucketPlace, retried};
use crate::proxy::Rates;
use crate::suite::fixture::{ServerOptions, TestServer};
use crate::suite::http::{Answer, send};
use crate::suite::scene::seed;

/// Keys that all clients fight for.
const KEYS: usize = 2;
/// How long a lease lives whose holder has given up: a lost answer leaves one.
const TTL_SECONDS: u64 = 3;
/// So many of a thousand calls may come to no verdict. It takes several lost answers in a row, or a record that others have
/// written over twice since.
const WITHOUT_VERDICT_MAX: u64 = 9;

/// What is known of one key. Each commit adds one mark to its state, so the version says how many there are.
#[derive(Default)]
struct Known {
    /// Marks whose release was acknowledged, and marks whose release may have been carried out.
    committed: Vec<u64>,
    perhaps: Vec<u64>,
    tokens: BTreeSet<i64>,
    last_token: i64,
    /// The versions that were committed, and the highest of them.
    versions: BTreeSet<i64>,
    last_version: i64,
    /// Who holds it, until when (Unix time).
    holder: Option<(u64, i64)>,
}

/// All that the clients share.
struct Day {
    addresses: Vec<SocketAddr>,
    fought_for: Vec<Mutex<Known>>,
    /// Keys that only one client knew, when it had done with them.
    own: Mutex<Vec<(String, Known)>>,
    seed: u64,
    calls: AtomicU64,
    without_verdict: AtomicU64,
    marks: AtomicU64,
}

/// How a turn at a key has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Everything was answered in time, and it was what must be answered.
    Good,
    /// Somebody else holds it.
    Held,
    /// Nobody knows.
    Open,
}

#[test]
fn nothing_is_granted_twice_or_lost_or_refused_on_a_bad_day() {
    let (seed, operations) = (seed(), 2 * operations());
    let place = BucketPlace::new(DEMANDS, false);
    let faulty = BadDay::begin(&place, seed, Rates::all(20));
    let day = Day {
        addresses: faulty.addresses(),
        fought_for: (0..KEYS).map(|_| Mutex::default()).collect(),
        own: Mutex::default(),
        seed,
        calls: AtomicU64::new(0),
        without_verdict: AtomicU64::new(0),
        marks: AtomicU64::new(1),
    };
    thread::scope(|scope| {
        for client in 0..CLIENTS as u64 {
            let day = &day;
            scope.spawn(move || day.spend(client, operations));
        }
    });

    // A good day: everything is as the clients know it.
    let calm = TestServer::start(retried(place.engine()), ServerOptions::default());
    let named = |key: usize| format!("bad-day/{key}");
    let fought_for = day.fought_for.into_iter().map(Mutex::into_inner).enumerate();
    let keys: Vec<(String, Known)> = (fought_for.map(|(key, known)| (named(key), known)))
        .chain(day.own.into_inner())
        .collect();
    let mut committed = 0;
    for (name, known) in &keys {
        let shown = state_of(calm.address, name);
        let mut left = shown.clone();
        let mut take = |mark: &u64| (left.iter().position(|known| known == mark)).map(|place| left.remove(place));
        for mark in &known.committed {
            let found = take(mark);
            assert!(
                found.is_some(),
                "mark {mark} of {name} was acknowledged, seed {seed}: {shown:?}"
            );
        }
        known.perhaps.iter().for_each(|mark| _ = take(mark));
        assert!(
            left.is_empty(),
            "{name} shows marks that nobody released, or twice: {left:?}, seed {seed}"
        );
        committed += known.committed.len();
    }
    let (calls, without_verdict) = (day.calls.into_inner(), day.without_verdict.into_inner());
    let faults = faulty.faults();
    eprintln!(
        "{calls} calls, {without_verdict} without a verdict, {committed} commits of {} keys; {faults}",
        keys.len()
    );
    assert!(0 < committed && 0 < faults.faults);
    assert!(
        without_verdict * 1000 <= calls * WITHOUT_VERDICT_MAX,
        "{without_verdict} of {calls} calls came to no verdict, seed {seed}"
    );
}

impl Day {
    /// One client, until enough calls have been made: now at a key that everybody wants, now at one of its own.
    fn spend(&self, client: u64, operations: u64) {
        let mut rng = fastrand::Rng::with_seed(self.seed.wrapping_mul(31).wrapping_add(client));
        let (mut number, mut own) = (0, Mutex::<Known>::default());
        let own_name = |number: u64| format!("bad-day/of-{client}/{number}");
        while self.calls.load(Ordering::SeqCst) < operations {
            if rng.bool() {
                let key = rng.usize(..KEYS);
                self.take_turn(&mut rng, &format!("bad-day/{key}"), &self.fought_for[key]);
                continue;
            }
            let (tokens, versions) = (own.get_mut().last_token, own.get_mut().last_version);
            let turn = self.take_turn(&mut rng, &own_name(number), &own);
            let known = own.get_mut();
            assert_ne!(
                turn,
                Turn::Held,
                "nobody else knows {}, seed {}",
                own_name(number),
                self.seed
            );
            if turn == Turn::Good {
                assert_eq!(
                    (known.last_token, known.last_version),
                    (tokens + 1, versions + 1),
                    "seed {}",
                    self.seed
                );
            } else {
                self.own.lock().push((own_name(number), std::mem::take(known)));
                number += 1;
            }
        }
        self.own.lock().push((own_name(number), own.into_inner()));
    }

    /// Takes a lease, adds a mark to the state, and releases, each at any server. Whatever has no good answer ends it.
    fn take_turn(&self, rng: &mut fastrand::Rng, name: &str, known: &Mutex<Known>) -> Turn {
        let mark = self.marks.fetch_add(1, Ordering::SeqCst);
        let seed = self.seed;
        let wish =
            json!({"key": name, "owner": format!("client-{mark}"), "ttl_seconds": TTL_SECONDS, "block_seconds": -1});
        let granted = self.call(rng, "/v1/acquire", &[], &wish);
        if granted.status != 200 {
            thread::sleep(Duration::from_millis(5));
            return if granted.status < 500 { Turn::Held } else { Turn::Open };
        }
        let lease = granted.json();
        let number = |field: &str| lease[field].as_i64().unwrap();
        let (token, version, until) = (number("fencing_token"), number("version"), number("expires_at_unix"));
        {
            let mut known = known.lock();
            // Tokens may be skipped, by grants whose answers were lost. None comes twice, and none comes late, unless this
            // thread was so late that its lease is over.
            assert!(
                known.tokens.insert(token),
                "token {token} of {name} was granted twice, seed {seed}"
            );
            if now_unix() < until {
                assert!(
                    known.last_token < token,
                    "token {token} of {name} after {}, seed {seed}",
                    known.last_token
                );
                assert!(
                    known.last_version <= version,
                    "version {version} of {name} after {}, seed {seed}",
                    known.last_version
                );
                let holder = known.holder.filter(|(_, until)| now_unix() < *until);
                assert!(
                    holder.is_none(),
                    "{name} is granted to {mark} and {holder:?}, seed {seed}"
                );
                known.holder = Some((mark, until));
            }
            known.last_token = known.last_token.max(token);
        }
        let token_text = token.to_string();
        let version_text = version.to_string();
        let headers = [
            ("X-Lease-ID", lease["lease_id"].as_str().unwrap()),
            ("X-Txn-ID", lease["txn_id"].as_str().unwrap()),
            ("X-Fencing-Token", &*token_text),
            ("X-If-Version", &*version_text),
        ];
        // Nobody but the holder may change anything, so while its lease surely lives it is refused nothing.
        let is_good = |what: &str, answer: &Answer| {
            assert!(
                answer.status < 400 || 500 <= answer.status || until <= now_unix(),
                "the holder of {name} was refused its {what}: {}, seed {seed}",
                String::from_utf8_lossy(&answer.body)
            );
            answer.status < 400
        };
        let give_up = || {
            let mut known = known.lock();
            known.holder = known.holder.filter(|(by, _)| *by != mark);
            Turn::Open
        };
        let read = self.call(rng, &format!("/v1/get?key={name}"), &headers[..3], &Value::Null);
        if !is_good("get", &read) {
            return give_up();
        }
        let mut state = marks_in(&read);
        assert_eq!(state.len() as i64, version, "{name}, seed {seed}: {state:?}");
        state.push(mark);
        let saved = self.call(rng, &format!("/v1/update?key={name}"), &headers, &json!(state));
        if !is_good("update", &saved) {
            // Staged or not: it is committed by a release only, and there is none. It runs out.
            return give_up();
        }
        assert_eq!(
            saved.json()["new_version"].as_i64(),
            Some(version + 1),
            "{name}, seed {seed}"
        );
        if rng.bool() {
            let body = json!({"key": name, "lease_id": lease["lease_id"], "txn_id": lease["txn_id"],
                "ttl_seconds": TTL_SECONDS});
            let renewed = self.call(rng, "/v1/keepalive", &headers[2..3], &body);
            if !is_good("keepalive", &renewed) {
                return give_up();
            }
        }
        let body = json!({"key": name, "lease_id": lease["lease_id"], "txn_id": lease["txn_id"]});
        // From here on it may be committed. What the answer says is believed only while the lease surely lives: a release
        // that comes too late is answered in the same way.
        give_up();
        let released = self.call(rng, "/v1/release", &headers[2..3], &body);
        {
            let mut known = known.lock();
            if !(is_good("release", &released) && now_unix() < until) {
                known.perhaps.push(mark);
                return Turn::Open;
            }
            known.committed.push(mark);
            assert!(
                known.versions.insert(version + 1),
                "version {} of {name} twice, seed {seed}",
                version + 1
            );
            known.last_version = known.last_version.max(version + 1);
        }
        // Whoever looks from now on sees it.
        let seen = self.call(rng, &format!("/v1/get?key={name}&public=1"), &[], &Value::Null);
        if seen.status < 400 {
            assert!(
                marks_in(&seen).contains(&mark),
                "{name} does not show mark {mark}, seed {seed}"
            );
        }
        Turn::Good
    }

    fn call(&self, rng: &mut fastrand::Rng, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let address = self.addresses[rng.usize(..self.addresses.len())];
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let answer = send(address, "POST", path, headers, &body);
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.without_verdict
            .fetch_add(u64::from(500 <= answer.status), Ordering::SeqCst);
        answer
    }
}

fn marks_in(answer: &Answer) -> Vec<u64> {
    match answer.status {
        200 => serde_json::from_slice(&answer.body).unwrap(),
        204 => Vec::new(),
        status => panic!("{status}"),
    }
}

fn state_of(address: SocketAddr, name: &str) -> Vec<u64> {
    marks_in(&send(
        address,
        "POST",
        &format!("/v1/get?key={name}&public=1"),
        &[],
        b"",
    ))
}

fn now_unix() -> i64 {
    SystemClock::new().wall_seconds()
}
