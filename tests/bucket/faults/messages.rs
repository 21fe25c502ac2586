//! Queues on bad days.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;

use super::{BadDay, CLIENTS, operations};
use crate::DEMANDS;
use crate::place::{BucketPlace, retried};
use crate::proxy::Rates;
use crate::suite::fixture::{ServerOptions, TestServer};
use crate::suite::queue_calls::{Stream, deliveries, enqueue_with};
use crate::suite::scene::seed;

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
    let day = BadDay::begin(&place, seed, Rates::all(12));
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
