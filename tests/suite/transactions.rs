//! Transactions over several keys: together or not at all, whoever releases, wherever, and whatever expires meanwhile.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::fixture::{Backend, TestServer};
use super::http::Answer;
use super::lockd_calls::{Held, acquire, acquire_in, describe, get_public, hold, hold_in, save};
use super::scene::{Scene, seed, txn_id};

/// LS-98: two keys in two namespaces, one release: both committed, both leases gone.
pub fn one_release_commits_every_key_of_the_transaction(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    let txn = txn_id(1);
    let [first, second] = ["shop", "stock"].map(|namespace| {
        let held = Held::from_answer(address, &acquire_in(address, namespace, "a", &txn));
        assert_eq!(held.txn_id, txn);
        held.update(&format!("\"{namespace}\"")).expect(200);
        held
    });
    assert_eq!((first.get_public().status, second.get_public().status), (204, 204));
    first.release().expect(200);
    for held in [&first, &second] {
        let public = held.get_public().expect(200);
        assert_eq!(public.body, format!("\"{}\"", held.namespace).as_bytes());
        assert_eq!(public.header("X-Key-Version"), Some("1"));
    }
    assert_eq!(second.update("1").error(), (403, "lease_required".to_owned()));
    assert_eq!(second.release().expect(200).json(), json!({"released": true}));
    assert_eq!(second.get_public().expect(200).header("X-Key-Version"), Some("1"));
    for namespace in ["shop", "stock"] {
        let next = Held::from_answer(address, &acquire_in(address, namespace, "a", &txn_id(2)));
        assert_eq!((next.version, next.token), (1, 2));
        next.release().expect(200);
    }
    scene.assert_no_transactions();
}

/// LS-99: the same with a rollback: neither is committed, both keys are free at once.
pub fn one_rollback_drops_every_key_of_the_transaction(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    save(address, "b", "\"old\"");
    let held = ["a", "b", "c"].map(|key| hold_in(address, key, &txn_id(1)));
    held[0].update("1").expect(200);
    held[1].update("2").expect(200);
    // The third has staged nothing and asks for the rollback: its own lease ends with it.
    held[2].rollback().expect(200);
    assert_eq!(get_public(address, "a").status, 204);
    assert_eq!(get_public(address, "b").expect(200).body, b"\"old\"");
    for key in ["a", "b", "c"] {
        hold(address, key).release().expect(200);
    }
    for lost in &held {
        assert_eq!(lost.update("9").error(), (403, "lease_required".to_owned()));
        lost.release().expect(200);
    }
    scene.assert_no_transactions();
}

/// LS-100: an untouched key that is released first takes nothing with it.
pub fn releasing_an_untouched_key_decides_nothing(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    let [touched, untouched] = ["a", "b"].map(|key| hold_in(address, key, &txn_id(1)));
    touched.update("1").expect(200);
    untouched.release().expect(200);
    let next = hold(address, "b");
    assert_eq!(next.token, 2);
    assert_eq!(get_public(address, "a").status, 204);
    assert_eq!(touched.get().expect(200).body, b"1");
    touched.release().expect(200);
    assert_eq!(get_public(address, "a").expect(200).body, b"1");
    // Whoever came after is no part of it.
    assert_eq!(next.update("2").expect(200).field("new_version"), 1);
    next.release().expect(200);
    scene.assert_no_transactions();
}

/// LS-101: whoever joins a transaction that an acquire minted shares its fate, whichever key is released.
pub fn joining_a_minted_transaction_commits_jointly(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    let keys = ["a", "b", "c"];
    for (round, released) in (1..).zip([0, 1, 2, 0, 1, 2]) {
        let first = hold(address, keys[0]);
        if round <= 3 {
            first.update(&round.to_string()).expect(200);
        }
        let held = [
            first.clone(),
            hold_in(address, keys[1], &first.txn_id),
            hold_in(address, keys[2], &first.txn_id),
        ];
        if 3 < round {
            // Staged only after the others have joined.
            first.update(&round.to_string()).expect(200);
        }
        held[1].update(&round.to_string()).expect(200);
        held[2].update(&round.to_string()).expect(200);
        held[released].release().expect(200);
        for (key, held) in keys.iter().zip(&held) {
            let public = get_public(address, key).expect(200);
            assert_eq!(public.body, round.to_string().as_bytes(), "{key}, {released} released");
            assert_eq!(held.update("9").error(), (403, "lease_required".to_owned()));
            assert_eq!(held.release().expect(200).json(), json!({"released": true}));
        }
        scene.assert_no_transactions();
    }
    // A rollback by one that joined drops the first one's changes too.
    let first = hold(address, "a");
    first.update("7").expect(200);
    let second = hold_in(address, "b", &first.txn_id);
    second.update("7").expect(200);
    second.rollback().expect(200);
    assert_eq!(get_public(address, "a").expect(200).body, b"6");
    hold(address, "a").release().expect(200);
    scene.assert_no_transactions();
}

/// LS-102: a key that staged nothing is not covered by the decision; its release afterwards frees it at once.
pub fn an_untouched_key_can_be_released_after_the_decision(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    for rolled_back in [false, true] {
        let [touched, untouched] = ["a", "b"].map(|key| hold_in(address, key, &txn_id(1)));
        touched.update("1").expect(200);
        if rolled_back {
            touched.rollback().expect(200);
        } else {
            touched.release().expect(200);
        }
        assert_eq!(acquire(address, "b").error(), (409, "waiting".to_owned()));
        untouched.release().expect(200);
        hold(address, "b").release().expect(200);
        scene.assert_no_transactions();

        // It may also go on working: then its own release commits what it staged.
        let [touched, late] = ["a", "c"].map(|key| hold_in(address, key, &txn_id(2)));
        touched.update("1").expect(200);
        touched.release().expect(200);
        late.update("2").expect(200);
        late.release().expect(200);
        assert_eq!(get_public(address, "c").expect(200).body, b"2");
        scene.assert_no_transactions();
    }
}

/// LS-103: a participant that expired before the decision decides against all of them.
pub fn a_lost_participant_rolls_all_back(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    save(address, "a", "\"old\"");
    // How the lost lease was met meanwhile: not at all, by its holder, by a release that came too late, by a successor.
    for meeting in 0..4 {
        let held = ["a", "b", "c"].map(|key| hold_in(address, key, &txn_id(meeting)));
        for held in &held {
            held.update("\"new\"").expect(200);
        }
        held[0].keepalive(1000).expect(200);
        held[2].keepalive(1000).expect(200);
        scene.pass(31);
        let mut successor = None;
        match meeting {
            0 => {}
            1 => assert_eq!(held[1].update("3").error(), (403, "lease_expired".to_owned())),
            2 => drop(held[1].release().expect(200)),
            _ => {
                let next = hold(address, "b");
                next.update("\"successor\"").expect(200);
                successor = Some(next);
            }
        }
        let refused = held[0].release();
        assert_eq!(refused.error(), (409, "txn_conflict".to_owned()), "meeting {meeting}");
        assert_eq!(held[0].release().expect(200).json(), json!({"released": true}));
        assert_eq!(held[2].release().expect(200).json(), json!({"released": true}));
        assert_eq!(get_public(address, "a").expect(200).body, b"\"old\"");
        for key in ["b", "c"] {
            assert_eq!(get_public(address, key).status, 204, "{key} after meeting {meeting}");
        }
        if let Some(next) = successor {
            // The successor is a stranger to all this and keeps what it staged.
            assert_eq!(next.get().expect(200).body, b"\"successor\"");
            next.rollback().expect(200);
        }
        for key in ["a", "b", "c"] {
            hold(address, key).release().expect(200);
        }
        scene.assert_no_transactions();
    }
}

/// A participant that staged nothing may expire: there is nothing of it to lose.
pub fn an_untouched_participant_may_expire(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    for taken_over in [false, true] {
        let [touched, untouched] = ["a", "b"].map(|key| hold_in(address, key, &txn_id(1)));
        touched.update("1").expect(200);
        touched.keepalive(1000).expect(200);
        scene.pass(31);
        let successor = taken_over.then(|| hold(address, "b"));
        touched.release().expect(200);
        assert_eq!(get_public(address, "a").expect(200).body, b"1");
        untouched.release().expect(200);
        if let Some(successor) = successor {
            successor.update("2").expect(200);
            successor.rollback().expect(200);
        }
        hold(address, "b").release().expect(200);
        scene.assert_no_transactions();
    }
}

/// A key that was lost and acquired again in the same transaction does not make up for what was lost.
pub fn acquiring_a_lost_key_again_does_not_heal_the_transaction(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    let [first, second] = ["a", "b"].map(|key| hold_in(address, key, &txn_id(1)));
    first.update("1").expect(200);
    second.update("1").expect(200);
    first.keepalive(1000).expect(200);
    scene.pass(31);
    let again = hold_in(address, "b", &txn_id(1));
    assert_eq!(again.get().status, 204);
    again.update("2").expect(200);
    assert_eq!(again.release().error(), (409, "txn_conflict".to_owned()));
    for key in ["a", "b"] {
        assert_eq!(get_public(address, key).status, 204);
        hold(address, key).release().expect(200);
    }
    scene.assert_no_transactions();
}

/// LS-104: a transaction lives as long as its leases do, however often they are renewed.
pub fn renewed_leases_keep_their_transaction_alive(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 2);
    let [one, other] = [scene.servers[0].address, scene.servers[1].address];
    let held = ["a", "b"].map(|key| hold_in(one, key, &txn_id(1)));
    for held in &held {
        held.update("1").expect(200);
    }
    for _ in 0..20 {
        scene.pass(25);
        held[0].keepalive(30).expect(200);
        held[1].at(other).keepalive(30).expect(200);
    }
    held[1].release().expect(200);
    for key in ["a", "b"] {
        assert_eq!(get_public(one, key).expect(200).body, b"1");
    }
    scene.assert_no_transactions();
}

/// LS-105, without attachments: an update, a removal and attributes on three keys are decided together.
pub fn changes_of_every_kind_are_decided_together(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    save(address, "gone", "1");
    for commit in [false, true] {
        let held = ["new", "gone", "hidden"].map(|key| hold_in(address, key, &txn_id(u32::from(commit))));
        held[0].update("1").expect(200);
        held[1].remove().expect(200);
        held[2].hide(true).expect(200);
        if commit {
            held[2].release().expect(200);
        } else {
            held[2].rollback().expect(200);
        }
        assert_eq!(get_public(address, "new").status, if commit { 200 } else { 204 });
        assert_eq!(get_public(address, "gone").status, if commit { 204 } else { 200 });
        let expected = if commit {
            json!({"query_hidden": true})
        } else {
            json!({})
        };
        assert_eq!(describe(address, "hidden").expect(200).field("metadata"), expected);
    }
    let gone = hold(address, "gone");
    assert_eq!(gone.version, 2);
    gone.release().expect(200);
    scene.assert_no_transactions();
}

/// A transaction id may be used again after its decision; it begins anew.
pub fn a_decided_transaction_id_begins_anew(backend: &dyn Backend) {
    let scene = Scene::open(backend);
    let address = scene.address();
    for round in 1..=4 {
        let held = ["a", "b"].map(|key| hold_in(address, key, &txn_id(1)));
        for held in &held {
            assert_eq!(
                held.update(&round.to_string()).expect(200).field("new_version"),
                (round + 1) / 2
            );
        }
        if round % 2 == 0 {
            held[0].release().expect(200);
        } else {
            held[1].rollback().expect(200);
        }
        scene.assert_no_transactions();
    }
    assert_eq!(get_public(address, "b").expect(200).body, b"4");
}

/// A minted transaction is joined while its first holder releases: whatever comes first, nothing is lost, nothing is
/// stuck, and no record is left.
pub fn joining_races_with_the_release_of_the_first_holder(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 2);
    let [one, other] = [scene.servers[0].address, scene.servers[1].address];
    for round in 0..150 {
        let [a, b] = ["a", "b"].map(|key| format!("{key}{round}"));
        let first = hold(one, &a);
        first.update("1").expect(200);
        let rolls_back = round % 3 == 0;
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                if rolls_back {
                    first.rollback().expect(200);
                } else {
                    first.release().expect(200);
                }
            });
            scope.spawn(|| {
                start.wait();
                let joined = hold_in(other, &b, &first.txn_id);
                joined.update("2").expect(200);
                joined.release().expect(200);
            });
        });
        // The one that joined may have decided for both before the rollback came, but never for itself alone.
        let committed = [get_public(other, &a), get_public(one, &b)].map(|answer| answer.status == 200);
        if rolls_back {
            assert!(!committed[0] || committed[1], "round {round}");
        } else {
            assert_eq!(committed, [true, true], "round {round}");
        }
        for (address, key) in [(one, &b), (other, &a)] {
            let free = hold(address, key);
            assert_eq!(
                (free.token, free.get().status == 200),
                (2, free.version == 1),
                "round {round}"
            );
            free.release().expect(200);
        }
        scene.assert_no_transactions();
    }
}

/// Two keys of one transaction are released at two servers at once, or one is released while the other is first written:
/// one decision, and each key is changed once. The one that is written meanwhile is part of the decision or goes on after it.
pub fn releases_of_one_transaction_race_to_one_decision(backend: &dyn Backend) {
    let scene = Scene::with_servers(backend, 3);
    let addresses = scene.addresses();
    for round in 0..100 {
        let held = ["a", "b", "c"].map(|key| hold_in(addresses[0], key, &txn_id(round)));
        for held in &held[..2] {
            held.update(&round.to_string()).expect(200);
        }
        let start = Barrier::new(3);
        thread::scope(|scope| {
            for (held, address) in held.iter().zip(&addresses) {
                let (held, start) = (held.at(*address), &start);
                scope.spawn(move || {
                    start.wait();
                    if held.key == "c" {
                        // It has staged nothing before, so no decision has ended its lease.
                        held.update(&round.to_string()).expect(200);
                    }
                    held.release().expect(200);
                });
            }
        });
        for (key, address) in ["a", "b", "c"].iter().zip(&addresses) {
            let public = get_public(*address, key);
            assert_eq!(public.body, round.to_string().as_bytes(), "{key}");
            assert_eq!(public.header("X-Key-Version"), Some(&*(round + 1).to_string()), "{key}");
        }
        scene.assert_no_transactions();
    }
}

/// Money moves between accounts through three servers, while leases run out at any moment and holders give up half-way:
/// every transfer shows on both accounts or on none, and those that were refused show on none.
pub fn transfers_are_whole_whatever_expires(backend: &dyn Backend) {
    const ACCOUNTS: usize = 5;
    const TRANSFERS_EACH: u32 = 40;
    let seed = seed();
    let scene = Scene::with_servers(backend, 3);
    for account in 0..ACCOUNTS {
        save(
            scene.address(),
            &format!("account/{account}"),
            "{\"balance\":100,\"transfers\":[]}",
        );
    }
    let numbers = AtomicU32::new(0);
    let outcomes: Vec<(u32, Outcome)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..6)
            .map(|worker| {
                let (scene, numbers) = (&scene, &numbers);
                let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(worker));
                let addresses = scene.addresses();
                let clock = scene.clock.clone();
                scope.spawn(move || {
                    (0..TRANSFERS_EACH)
                        .map(|_| {
                            let number = numbers.fetch_add(1, Ordering::SeqCst);
                            let mut pass = |rng: &mut fastrand::Rng| {
                                if rng.u8(..10) == 0 {
                                    clock.advance(std::time::Duration::from_secs(rng.u64(1..4)));
                                }
                            };
                            (number, transfer(number, &addresses, &mut rng, &mut pass))
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().expect("workers end well"))
            .collect()
    });

    // Leases of those who gave up run out.
    scene.pass(1000);
    let mut total = 0;
    let mut shown = vec![0; numbers.into_inner() as usize];
    for account in 0..ACCOUNTS {
        let key = format!("account/{account}");
        hold(scene.address(), &key).release().expect(200);
        let state = get_public(scene.address(), &key).expect(200).json();
        total += state["balance"].as_i64().unwrap();
        for number in state["transfers"].as_array().unwrap() {
            shown[number.as_u64().unwrap() as usize] += 1;
        }
    }
    assert_eq!(total, 100 * ACCOUNTS as i64, "seed {seed}");
    let mut committed = 0;
    for (number, outcome) in outcomes {
        let times = shown[number as usize];
        match outcome {
            // The lease may have run out before the release: the wire does not tell.
            Outcome::Released => assert!(
                times == 0 || times == 2,
                "transfer {number} shows {times} times, seed {seed}"
            ),
            Outcome::Refused => assert_eq!(times, 0, "transfer {number} was refused, seed {seed}"),
        }
        committed += usize::from(times == 2);
    }
    assert!(0 < committed, "not one transfer came through, seed {seed}");
    scene.assert_no_transactions();
    scene.assert_bodies(0, "at the end");
}

enum Outcome {
    Released,
    Refused,
}

/// Moves an amount between two accounts, and gives up at the first refusal.
fn transfer(
    number: u32,
    addresses: &[SocketAddr],
    rng: &mut fastrand::Rng,
    pass: &mut dyn FnMut(&mut fastrand::Rng),
) -> Outcome {
    let mut accounts: Vec<usize> = (0..5).collect();
    rng.shuffle(&mut accounts);
    // In one order, so that nobody waits for each other.
    accounts[..2].sort_unstable();
    let amount = rng.i64(1..20);
    let mut txn = (rng.bool()).then(|| txn_id(number));
    let mut held: Vec<Held> = Vec::new();
    for account in &accounts[..2] {
        let address = *rng.choice(addresses).unwrap();
        let key = format!("account/{account}");
        let lease = loop {
            let answer = match &txn {
                Some(txn) => acquire_in(address, "", &key, txn),
                None => acquire(address, &key),
            };
            if answer.error() != (409, "waiting".to_owned()) {
                break Held::from_answer(address, &answer);
            }
            pass(rng);
            thread::yield_now();
        };
        lease.keepalive(rng.i64(2..40));
        // Without a name of its own the transaction is the one that the first acquire minted.
        txn.get_or_insert_with(|| lease.txn_id.clone());
        held.push(lease);
        pass(rng);
    }
    for (lease, change) in held.iter().zip([-amount, amount]) {
        let Some(mut state) = accepted(lease.get()) else {
            return Outcome::Refused;
        };
        state["balance"] = json!(state["balance"].as_i64().unwrap() + change);
        state["transfers"].as_array_mut().unwrap().push(json!(number));
        pass(rng);
        let lease = lease.at(*rng.choice(addresses).unwrap());
        if accepted(lease.update(&state.to_string())).is_none() {
            return Outcome::Refused;
        }
        pass(rng);
    }
    let last = rng.choice(&held).unwrap().at(*rng.choice(addresses).unwrap());
    match rng.u8(..8) {
        // Gives up without a word.
        0 => Outcome::Refused,
        1 => {
            last.rollback().expect(200);
            Outcome::Refused
        }
        _ => match accepted(last.release()) {
            Some(_) => Outcome::Released,
            None => Outcome::Refused,
        },
    }
}

/// The body of an answer, or nothing if the lease was lost. Anything else is a fault.
#[track_caller]
fn accepted(answer: Answer) -> Option<Value> {
    match answer.error() {
        (200, _) => Some(answer.json()),
        (403, code) if code == "lease_required" || code == "lease_expired" => None,
        (409, code) if code == "txn_conflict" => None,
        _ => panic!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
    }
}

/// Random calls on three servers, judged by a model: leases, versions, states and transactions are what it says.
pub fn random_histories_agree_with_a_model(backend: &dyn Backend) {
    let seed = seed();
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..20 {
        let scene = Scene::with_servers(backend, 3);
        let mut model = Model::default();
        for step in 0..150 {
            one_step(
                &scene,
                &mut model,
                &mut rng,
                &format!("seed {seed}, round {round}, step {step}"),
            );
        }
        // In the end everything expires, and the next acquire of each key sweeps it.
        scene.pass(10_000);
        model.now += 10_000;
        for number in 0..KEYS {
            let held = hold(scene.address(), &format!("key/{number}"));
            assert_eq!(held.version, model.keys[number].version, "seed {seed}, round {round}");
            held.release().expect(200);
        }
        scene.assert_no_transactions();
        scene.assert_bodies(model.large_states(), "at the end");
    }
}

const KEYS: usize = 5;

/// What the servers should know, said as plainly as possible.
#[derive(Default)]
struct Model {
    now: i64,
    keys: [ModelKey; KEYS],
    /// Every lease ever granted; those of one transaction share its id.
    leases: Vec<ModelLease>,
}

#[derive(Default, Clone)]
struct ModelKey {
    version: i64,
    token: i64,
    state: Option<String>,
    /// Index of the recorded lease.
    lease: Option<usize>,
}

struct ModelLease {
    key: usize,
    held: Held,
    until: i64,
    /// Whether its transaction may have other members.
    explicit: bool,
    /// Version and state that its commit would make.
    staged: Option<(i64, Option<String>)>,
    /// It has not been decided yet, nor ended by itself.
    open: bool,
}

impl Model {
    fn lives(&self, lease: usize) -> bool {
        let of = &self.leases[lease];
        of.open && self.now < of.until && self.keys[of.key].lease == Some(lease)
    }

    fn living_lease(&self, key: usize) -> Option<usize> {
        self.keys[key].lease.filter(|lease| self.lives(*lease))
    }

    /// What the next call that meets a lease which is over does to it.
    fn clear_if_over(&mut self, key: usize) {
        if self.living_lease(key).is_none() {
            self.keys[key].lease = None;
        }
    }

    fn end(&mut self, lease: usize, commit: bool) {
        let of = &mut self.leases[lease];
        of.open = false;
        let staged = of.staged.take();
        let key = &mut self.keys[of.key];
        if key.lease == Some(lease) {
            key.lease = None;
            if let (true, Some((version, state))) = (commit, staged) {
                (key.version, key.state) = (version, state);
            }
        }
    }

    /// Ends a living lease; returns whether its release is told of a conflict.
    fn release(&mut self, lease: usize, rollback: bool) -> bool {
        let of = &self.leases[lease];
        if !of.explicit || (of.staged.is_none() && !rollback) {
            self.end(lease, !rollback);
            return false;
        }
        let txn = of.held.txn_id.clone();
        let members: Vec<usize> = (0..self.leases.len())
            .filter(|other| {
                let other = &self.leases[*other];
                other.open && other.held.txn_id == txn && other.staged.is_some()
            })
            .collect();
        let lost = members.iter().any(|member| !self.lives(*member));
        for member in members {
            self.end(member, !lost && !rollback);
        }
        self.end(lease, false);
        lost && !rollback
    }

    fn large_states(&self) -> usize {
        let states = self.keys.iter().filter_map(|key| key.state.as_ref());
        states.filter(|state| 4096 < state.len()).count()
    }
}

fn one_step(scene: &Scene, model: &mut Model, rng: &mut fastrand::Rng, when: &str) {
    let address = rng.choice(scene.addresses()).unwrap();
    let key = rng.usize(..KEYS);
    match rng.u8(..20) {
        0 => {
            let seconds = rng.u64(1..20);
            scene.pass(seconds);
            model.now += i64::try_from(seconds).unwrap();
        }
        1..=5 => step_acquire(address, key, model, rng, when),
        6 | 7 => step_public(address, key, model, when),
        _ if model.leases.is_empty() => {}
        choice => {
            // Mostly the latest holders, sometimes one from long ago.
            let newest = model.leases.len();
            let oldest = if rng.u8(..10) == 0 { 0 } else { newest.saturating_sub(8) };
            let lease = rng.usize(oldest..newest);
            step_leased(address, lease, choice, model, rng, when);
        }
    }
}

fn step_acquire(address: SocketAddr, key: usize, model: &mut Model, rng: &mut fastrand::Rng, when: &str) {
    // A name of its own, or the one of a transaction that lives, or none.
    let living: Vec<usize> = (0..model.leases.len()).filter(|lease| model.lives(*lease)).collect();
    let txn = match (rng.u8(..4), rng.choice(&living)) {
        (0, _) => None,
        (1, _) => Some(txn_id(u32::try_from(model.leases.len()).unwrap())),
        (_, Some(joined)) => Some(model.leases[*joined].held.txn_id.clone()),
        (_, None) => None,
    };
    let name = format!("key/{key}");
    let answer = match &txn {
        Some(txn) => acquire_in(address, "", &name, txn),
        None => acquire(address, &name),
    };
    if model.living_lease(key).is_some() {
        assert_eq!(answer.error(), (409, "waiting".to_owned()), "{when}");
        return;
    }
    let held = Held::from_answer(address, &answer);
    if let Some(txn) = &txn {
        for lease in &mut model.leases {
            lease.explicit |= lease.held.txn_id == *txn;
        }
    }
    let of_key = &mut model.keys[key];
    of_key.token += 1;
    of_key.lease = Some(model.leases.len());
    assert_eq!((held.version, held.token), (of_key.version, of_key.token), "{when}");
    model.leases.push(ModelLease {
        key,
        held,
        until: model.now + 30,
        explicit: txn.is_some(),
        staged: None,
        open: true,
    });
}

fn step_public(address: SocketAddr, key: usize, model: &Model, when: &str) {
    let answer = get_public(address, &format!("key/{key}"));
    match &model.keys[key].state {
        Some(state) => {
            assert!(answer.expect(200).body == state.as_bytes(), "{when}");
        }
        None => assert_eq!(answer.status, 204, "{when}"),
    }
}

fn step_leased(address: SocketAddr, lease: usize, choice: u8, model: &mut Model, rng: &mut fastrand::Rng, when: &str) {
    let held = model.leases[lease].held.at(address);
    let key = model.leases[lease].key;
    let lives = model.lives(lease);
    let is_recorded = model.keys[key].lease == Some(lease);
    if 16 <= choice {
        let rollback = choice == 19;
        let answer = if rollback { held.rollback() } else { held.release() };
        let conflict = lives && model.release(lease, rollback);
        model.clear_if_over(key);
        let expected = if conflict { (409, "txn_conflict") } else { (200, "") };
        assert_eq!((answer.status, answer.code().as_str()), expected, "{when}");
        return;
    }
    let text = match rng.u8(..3) {
        0 => format!("\"{}\"", rng.char('a'..='z').to_string().repeat(5_000)),
        _ => rng.u32(..).to_string(),
    };
    let answer = match choice {
        8..=11 => held.update(&text),
        12 => held.remove(),
        13 => held.keepalive(15),
        _ => held.get(),
    };
    if !lives {
        let expected = if is_recorded { "lease_expired" } else { "lease_required" };
        assert_eq!(answer.error(), (403, expected.to_owned()), "{when}");
        if is_recorded {
            model.keys[key].lease = None;
        }
        return;
    }
    let now = model.now;
    let committed = model.keys[key].clone();
    let of = &mut model.leases[lease];
    let effective = of.staged.clone().unwrap_or((committed.version, committed.state));
    match choice {
        8..=11 => {
            let version = of
                .staged
                .as_ref()
                .map_or(committed.version + 1, |(version, _)| *version);
            assert_eq!(answer.expect(200).field("new_version"), version, "{when}");
            of.staged = Some((version, Some(text)));
        }
        12 => {
            // After a staged removal there is still a committed state to remove.
            let removes = model.keys[key].state.is_some() || effective.1.is_some();
            assert_eq!(answer.expect(200).field("removed"), removes, "{when}");
            if removes {
                of.staged = Some((effective.0 + 1, None));
            }
        }
        13 => {
            assert_eq!(answer.expect(200).field("version"), effective.0, "{when}");
            of.until = now + 15;
        }
        _ => match effective.1 {
            Some(state) => {
                let answer = answer.expect(200);
                assert!(answer.body == state.as_bytes(), "{when}");
                assert_eq!(
                    answer.header("X-Key-Version"),
                    Some(effective.0.to_string().as_str()),
                    "{when}"
                );
            }
            None => assert_eq!(answer.status, 204, "{when}"),
        },
    }
}

/// Joining the transaction of a key that is not held any more begins a transaction of that name; nothing of the old one
/// comes back.
pub fn joining_a_transaction_that_has_ended_begins_a_new_one(backend: &dyn Backend) {
    let server = TestServer::fresh(backend);
    let first = hold(server.address, "a");
    first.update("1").expect(200);
    first.release().expect(200);
    let second = hold_in(server.address, "b", &first.txn_id);
    second.update("2").expect(200);
    let third = hold(server.address, "a");
    third.update("3").expect(200);
    second.release().expect(200);
    assert_eq!(get_public(server.address, "b").expect(200).body, b"2");
    assert_eq!(get_public(server.address, "a").expect(200).body, b"1");
    assert_eq!(third.get().expect(200).body, b"3");
}
