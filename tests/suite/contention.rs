//! Fifty threads fight for one key, for 3 s or as long as `LOCKD_TEST_SECONDS` says.

use std::env;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, Moment, SystemClock};
use lockd::testing::{Watchdog, exclusive};
use lockd_client::{Acquire, Client};

use super::fixture::Backend;
use super::node::Node;

const THREADS: usize = 50;

/// First come first served lets everybody else go first once. A waiter may be passed by a few more while its request is
/// on its way; nobody is passed by for three rounds.
const TURNS_WAITED_MAX: i64 = 3 * THREADS as i64;

/// One turn of holding the key.
struct Turn {
    thread: usize,
    token: i64,
    asked: Moment,
    granted: Moment,
    let_go: Moment,
    /// How many turns others had between the question and the grant.
    turns_waited: i64,
}

/// TH-33.
pub fn fifty_threads_take_turns_at_one_key(backend: &dyn Backend) {
    let _turn = exclusive();
    let span = span();
    let _watchdog = Watchdog::start("contention", span + Duration::from_secs(120)).unwrap();
    let server = Node::start(&*backend.open());
    let clients: Vec<Client> = (0..THREADS).map(|_| server.client().clone()).collect();
    let turns = fight(&clients, span);
    report("one server", &turns);
    assert_exclusive(&turns);
    let longest = turns.iter().map(|turn| turn.turns_waited).max().unwrap();
    assert!(
        longest <= TURNS_WAITED_MAX,
        "somebody waited for {longest} turns of others"
    );
    assert_nobody_starved(&turns);
}

/// Each server serves its own waiters in their order; which of the two gets a key that is released is open. What must
/// hold in any case is that only one does. Without a feed a server hears of a release elsewhere only when it looks, and
/// while the other one is never without waiters it mostly looks in vain.
pub fn fifty_threads_at_two_servers_never_hold_a_key_together(backend: &dyn Backend) {
    let _turn = exclusive();
    let span = span();
    let _watchdog = Watchdog::start("contention", span + Duration::from_secs(120)).unwrap();
    let place = backend.open();
    let feed = place.store().capabilities().feed;
    let servers = [(); 2].map(|()| Node::start(&*place));
    let clients: Vec<Client> = (0..THREADS)
        .map(|number| servers[number % 2].client().clone())
        .collect();
    let turns = fight(&clients, span);
    report("two servers", &turns);
    assert_exclusive(&turns);
    if feed {
        assert_nobody_starved(&turns);
    } else {
        // A server that must look for itself finds the key held nearly every time, as long as the other one has waiters of
        // its own to hand it to. Its waiters get it when those are served.
        assert!(shares(&turns).iter().all(|&share| 0 < share), "{:?}", shares(&turns));
    }
}

fn span() -> Duration {
    let seconds = env::var("LOCKD_TEST_SECONDS").ok();
    Duration::from_secs(seconds.map_or(3, |text| text.parse().expect("LOCKD_TEST_SECONDS is a number")))
}

/// Every client takes the key again and again until the time is over, and once at least, however slow the store is. Returns
/// all turns in the order of their tokens.
fn fight(clients: &[Client], span: Duration) -> Vec<Turn> {
    let clock = &SystemClock::new();
    let (holders, last_token, granted_so_far) = (&AtomicUsize::new(0), &AtomicI64::new(0), &AtomicI64::new(0));
    let end = clock.now().after(span);
    let fight_one = |thread: usize, client: &Client| {
        let mut turns = Vec::new();
        let request = Acquire::key("coveted").owner(format!("thread-{thread}"));
        while turns.is_empty() || clock.now() < end {
            let (asked, turns_before) = (clock.now(), granted_so_far.load(Ordering::SeqCst));
            let lease = client.acquire(&request).expect("a lease in the end");
            let granted = clock.now();
            assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two hold the key");
            let token = lease.fencing_token().expect("a held lease has a token");
            assert_eq!(
                last_token.swap(token, Ordering::SeqCst) + 1,
                token,
                "tokens rise one by one"
            );
            let turns_waited = granted_so_far.fetch_add(1, Ordering::SeqCst) - turns_before;
            thread::yield_now();
            assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1, "two hold the key");
            turns.push(Turn {
                thread,
                token,
                asked,
                granted,
                let_go: clock.now(),
                turns_waited,
            });
            lease.release().expect("a holder may release");
        }
        turns
    };
    let mut turns: Vec<Turn> = thread::scope(|scope| {
        let fighters: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(thread, client)| scope.spawn(move || fight_one(thread, client)))
            .collect();
        fighters
            .into_iter()
            .flat_map(|fighter| fighter.join().unwrap())
            .collect()
    });
    turns.sort_by_key(|turn| turn.token);
    turns
}

/// The log of intervals says the same as the counters in the fight, without having been in its way.
fn assert_exclusive(turns: &[Turn]) {
    assert_eq!(turns.first().map(|turn| turn.token), Some(1));
    for pair in turns.windows(2) {
        assert_eq!(pair[0].token + 1, pair[1].token);
        assert!(
            pair[0].let_go <= pair[1].granted,
            "tokens {} and {} overlap",
            pair[0].token,
            pair[1].token
        );
    }
}

/// Everybody had about as many turns as everybody else. On one server exactly so but for the last round.
fn assert_nobody_starved(turns: &[Turn]) {
    let shares = shares(turns);
    let fair = turns.len() / THREADS;
    assert!(shares.iter().all(|&share| fair / 3 <= share && 0 < share), "{shares:?}");
}

fn shares(turns: &[Turn]) -> Vec<usize> {
    let mut shares = vec![0; THREADS];
    turns.iter().for_each(|turn| shares[turn.thread] += 1);
    shares
}

fn report(what: &str, turns: &[Turn]) {
    let mut waits: Vec<Duration> = turns.iter().map(|turn| turn.granted.since(turn.asked)).collect();
    waits.sort_unstable();
    let mut passed: Vec<i64> = turns.iter().map(|turn| turn.turns_waited).collect();
    passed.sort_unstable();
    let at = |percent: usize| (turns.len() - 1) * percent / 100;
    let shares = shares(turns);
    eprintln!(
        "contention, {what}: {} turns; waits p50 {:?} p99 {:?} max {:?}; turns of others while waiting p50 {} p99 {} max {}; \
         turns per thread {} to {}",
        turns.len(),
        waits[at(50)],
        waits[at(99)],
        waits[at(100)],
        passed[at(50)],
        passed[at(99)],
        passed[at(100)],
        shares.iter().min().unwrap_or(&0),
        shares.iter().max().unwrap_or(&0),
    );
}
