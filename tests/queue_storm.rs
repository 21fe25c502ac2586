//! Queues under kills: several servers that are processes on one root on a disk, producers and consumers at all of them, and
//! every few hundred milliseconds one of the servers is killed and started again.
//!
//! What must hold, whatever was killed when:
//!
//! - *nothing acknowledged is lost*: every message whose enqueue was answered is finished by a consumer in the end;
//! - *nothing is finished twice*: of each message at most one ack is answered with success;
//! - *nothing comes twice without a reason*: a message is delivered again only after its lease has lapsed, or after a
//!   server was killed since, which may have taken the answer along.
//!
//! ```sh
//! LOCKD_STORM_MESSAGES=100000 LOCKD_STORM_PRODUCERS=100 LOCKD_STORM_CONSUMERS=100 LOCKD_STORM_KILL_EVERY_MS=3000 \
//!     cargo test --release --test queue_storm -- --nocapture
//! ```
//!
//! `cargo test --release --test queue_storm -- --ignored --nocapture` measures how long a waiting consumer waits for a
//! message that is enqueued, at its own server and at another one. `LOCKD_STORM_ROUNDS` says how often, and
//! `LOCKD_STORM_PAUSE_MS` how long the consumer has waited at the most, by chance, before the message comes. With `LOCKD_STORE`
//! (`disk:///...`) it does so there, and the other server uses `LOCKD_STORE_SECOND_MOUNT`: `ci/bench-wake-up nfs` runs it on NFS.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a panic is how a test fails, and a test may start threads, look at the clock and print figures"
)]

use std::collections::HashMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use http::{Answer, Connection};

#[allow(dead_code, reason = "made for the suites, which need more of it")]
#[path = "suite/http.rs"]
mod http;

const SERVERS: usize = 3;
/// Life of a lease. Longer than a server takes to come back, so that most acks are in time.
const VISIBILITY: Duration = Duration::from_secs(10);
/// Far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
/// A delivery that was seen may have been leased this much earlier.
const LATENESS: Duration = Duration::from_secs(2);

fn number_from(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is a number")),
        Err(_) => default,
    }
}

/// A server on a port of its own, which it has again after a kill.
struct Daemon {
    address: SocketAddr,
    child: Child,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Daemon {
    fn start(store: &str, log: &Path, address: SocketAddr) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_lockd"))
            .env_clear()
            .args([
                "--listen",
                &address.to_string(),
                "--queue-max-consumers",
                "4096",
                "--log-level",
                "warn",
            ])
            .args(["--store", store])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Self { address, child };
        let began = Instant::now();
        while Connection::try_open(address).is_err() {
            assert!(began.elapsed() < PATIENCE, "{address} does not serve");
            thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that goes to any server and keeps its connection as long as that lasts.
struct Client<'a> {
    addresses: &'a [SocketAddr],
    at: usize,
    connection: Option<Connection>,
    rng: fastrand::Rng,
}

impl<'a> Client<'a> {
    fn new(addresses: &'a [SocketAddr], number: usize) -> Self {
        Self {
            addresses,
            at: number % addresses.len(),
            connection: None,
            rng: fastrand::Rng::new(),
        }
    }

    /// Sends a request once. No answer: nobody knows whether it was done, unless there was not even a connection.
    fn ask(&mut self, endpoint: &str, content_type: &str, body: &[u8]) -> Option<Answer> {
        // Now and then at another server.
        if self.rng.u8(..) < 16 {
            self.move_on();
        }
        if self.connection.is_none() {
            self.connection = Connection::try_open(self.addresses[self.at]).ok();
        }
        let answer = self.connection.as_mut().and_then(|connection| {
            let headers = [("Content-Type", content_type)];
            let path = format!("/v1/queue/{endpoint}");
            connection.try_send_request("POST", &path, &headers, body).ok()?;
            connection.try_read_answer().ok()
        });
        if answer.is_none() {
            self.move_on();
            thread::sleep(Duration::from_millis(self.rng.u64(1..20)));
        }
        answer
    }

    fn move_on(&mut self) {
        self.connection = None;
        self.at = (self.at + 1) % self.addresses.len();
    }

    fn ask_json(&mut self, endpoint: &str, body: &Value) -> Option<Answer> {
        self.ask(endpoint, "application/json", body.to_string().as_bytes())
    }

    fn enqueue(&mut self, payload: &str) -> Option<Answer> {
        let body = format!(
            "--b\r\nContent-Disposition: form-data; name=\"meta\"\r\n\r\n{{\"queue\":\"storm\"}}\r\n\
             --b\r\nContent-Disposition: form-data; name=\"payload\"\r\n\r\n{payload}\r\n--b--\r\n"
        );
        self.ask("enqueue", "multipart/related; boundary=b", body.as_bytes())
    }
}

/// The messages of an answer to a dequeue.
fn messages(answer: &Answer) -> Vec<Value> {
    let text = String::from_utf8_lossy(&answer.body);
    let metas = text.match_indices("{\"message\":").map(|(at, _)| {
        let rest = &text[at..];
        let end = rest.find("\n\r\n--").expect("the meta part ends");
        let delivery: Value = serde_json::from_str(&rest[..end]).expect("the meta part is JSON");
        delivery["message"].clone()
    });
    metas.collect()
}

/// What is known of one message.
#[derive(Debug, Default, Clone)]
struct Fate {
    /// Its enqueue was answered.
    enqueued: bool,
    delivered: Vec<Instant>,
    /// Acks that were answered with success.
    acks: usize,
    /// An ack had no answer: it may have been done.
    maybe_acked: bool,
    /// An ack was told that the message is gone.
    gone: bool,
}

#[derive(Default)]
struct Book {
    fates: Mutex<HashMap<String, Fate>>,
    kills: Mutex<Vec<Instant>>,
    finished: AtomicUsize,
    /// Deliveries of messages that had been leased before, whether a consumer has seen that or not.
    redelivered: AtomicUsize,
    unanswered: AtomicUsize,
}

impl Book {
    fn note(&self, id: &str, change: impl FnOnce(&mut Fate)) {
        let mut fates = self.fates.lock().unwrap();
        let fate = fates.entry(id.to_owned()).or_default();
        let before = fate.is_finished();
        change(fate);
        if fate.is_finished() && !before {
            self.finished.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A message has come. Fails if it came before and had no reason to come again.
    fn note_delivery(&self, message: &Value) {
        let now = Instant::now();
        let id = message["message_id"].as_str().unwrap();
        let kills = self.kills.lock().unwrap().clone();
        self.note(id, |fate| {
            assert_eq!(fate.acks, 0, "{id} was acknowledged and came again");
            if message["attempts"] != json!(1) {
                self.redelivered.fetch_add(1, Ordering::SeqCst);
            }
            if let Some(last) = fate.delivered.last() {
                let lapsed = VISIBILITY <= now.duration_since(*last) + LATENESS;
                let was_killed = kills.iter().any(|kill| *last <= *kill + LATENESS);
                assert!(
                    lapsed || was_killed,
                    "{id} came again after {:?}",
                    now.duration_since(*last)
                );
            }
            fate.delivered.push(now);
        });
    }
}

impl Fate {
    /// Acknowledged, as far as anybody can know.
    fn is_finished(&self) -> bool {
        self.acks != 0 || (self.maybe_acked && self.gone)
    }
}

#[test]
fn nothing_is_lost_and_nothing_is_finished_twice_however_often_a_server_is_killed() {
    let messages_wanted = usize::try_from(number_from("LOCKD_STORM_MESSAGES", 2_000)).unwrap();
    let producers = usize::try_from(number_from("LOCKD_STORM_PRODUCERS", 8)).unwrap();
    let consumers = usize::try_from(number_from("LOCKD_STORM_CONSUMERS", 8)).unwrap();
    let kill_every = Duration::from_millis(number_from("LOCKD_STORM_KILL_EVERY_MS", 300));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = dir.path().join("root");
    let log = dir.path().join("log");
    std::fs::create_dir(&root).unwrap();
    let store = format!("disk://{}", root.display());
    let mut daemons: Vec<_> = (0..SERVERS)
        .map(|_| Daemon::start(&store, &log, free_address()))
        .collect();
    let addresses: Vec<_> = daemons.iter().map(|daemon| daemon.address).collect();

    let book = Book::default();
    let enqueued = AtomicUsize::new(0);
    let next = AtomicUsize::new(0);
    let producing = AtomicUsize::new(producers);
    let is_over = AtomicBool::new(false);
    let began = Instant::now();
    thread::scope(|scope| {
        for number in 0..producers {
            let (addresses, book, next, enqueued, producing) = (&addresses, &book, &next, &enqueued, &producing);
            scope.spawn(move || {
                let mut client = Client::new(addresses, number);
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if messages_wanted <= number {
                        break;
                    }
                    // Until one is acknowledged. Others before it may exist as well; they are consumed too.
                    loop {
                        match client.enqueue(&format!("message {number}")) {
                            Some(answer) if answer.status == 200 => {
                                let id = answer.field("message_id").as_str().unwrap().to_owned();
                                book.note(&id, |fate| fate.enqueued = true);
                                enqueued.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                            Some(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
                            None => drop(book.unanswered.fetch_add(1, Ordering::SeqCst)),
                        }
                    }
                }
                producing.fetch_sub(1, Ordering::SeqCst);
            });
        }
        for number in 0..consumers {
            let (addresses, book, is_over) = (&addresses, &book, &is_over);
            scope.spawn(move || consume(Client::new(addresses, number), book, is_over));
        }
        let mut rng = fastrand::Rng::new();
        let mut last_kill = Instant::now();
        let mut last_progress = (0, Instant::now());
        loop {
            thread::sleep(Duration::from_millis(20));
            let finished = book.finished.load(Ordering::SeqCst);
            if finished != last_progress.0 {
                last_progress = (finished, Instant::now());
            }
            assert!(
                last_progress.1.elapsed() < PATIENCE,
                "nothing moves any more: {finished} finished"
            );
            let all_in = producing.load(Ordering::SeqCst) == 0;
            let waits = book
                .fates
                .lock()
                .unwrap()
                .values()
                .any(|fate| fate.enqueued && !fate.is_finished());
            if all_in && !waits {
                break;
            }
            if kill_every <= last_kill.elapsed() {
                let victim = rng.usize(..daemons.len());
                book.kills.lock().unwrap().push(Instant::now());
                daemons[victim].kill();
                book.kills.lock().unwrap().push(Instant::now());
                daemons[victim] = Daemon::start(&store, &log, addresses[victim]);
                last_kill = Instant::now();
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });

    let fates = book.fates.lock().unwrap();
    for (id, fate) in fates.iter() {
        assert!(fate.acks <= 1, "{id}: {fate:?}");
        assert!(!fate.enqueued || fate.is_finished(), "{id}: {fate:?}");
    }
    let took = began.elapsed();
    eprintln!(
        "{} messages, {} of them enqueued without an answer, {} acknowledged for certain, {} delivered again, {} enqueues \
         without an answer, {} kills, {took:?}",
        fates.len(),
        fates.values().filter(|fate| !fate.enqueued).count(),
        fates.values().filter(|fate| fate.acks == 1).count(),
        book.redelivered.load(Ordering::SeqCst),
        book.unanswered.load(Ordering::SeqCst),
        book.kills.lock().unwrap().len() / 2,
    );
    assert_eq!(enqueued.load(Ordering::SeqCst), messages_wanted);
}

/// Takes messages and acknowledges each until it is known what came of it.
fn consume(mut client: Client<'_>, book: &Book, is_over: &AtomicBool) {
    let visibility = VISIBILITY.as_secs();
    while !is_over.load(Ordering::SeqCst) {
        let page = 1 + client.rng.u64(..4);
        let wish = json!({"queue": "storm", "owner": "consumer", "visibility_timeout_seconds": visibility,
            "wait_seconds": 1, "page_size": page});
        let Some(answer) = client.ask_json("dequeue", &wish) else {
            continue;
        };
        match answer.status {
            200 => {}
            409 | 503 => continue,
            _ => panic!("{answer:?}"),
        }
        for message in messages(&answer) {
            book.note_delivery(&message);
            let id = message["message_id"].as_str().unwrap();
            let proof = json!({"queue": "storm", "message_id": id, "lease_id": message["lease_id"],
                "txn_id": message["txn_id"], "fencing_token": message["fencing_token"],
                "meta_etag": message["meta_etag"]});
            let began = Instant::now();
            loop {
                assert!(began.elapsed() < PATIENCE, "{id} cannot be acknowledged");
                let Some(answer) = client.ask_json("ack", &proof) else {
                    book.note(id, |fate| fate.maybe_acked = true);
                    continue;
                };
                match (answer.status, answer.code().as_str()) {
                    (200, _) => book.note(id, |fate| fate.acks += 1),
                    (404, "not_found") => book.note(id, |fate| fate.gone = true),
                    // Too late: somebody else will get it, or has.
                    (403, "lease_expired") | (409, "queue_message_lease_mismatch") => {}
                    (503, _) => continue,
                    _ => panic!("{answer:?}"),
                }
                break;
            }
        }
    }
}

/// The store of each of two servers: a new root, by one name or by two.
fn two_ways_to_a_store(dir: &Path) -> [String; 2] {
    let Ok(parent) = std::env::var("LOCKD_STORE") else {
        std::fs::create_dir(dir.join("root")).unwrap();
        return [(); 2].map(|()| format!("disk://{}/root", dir.display()));
    };
    let second = std::env::var("LOCKD_STORE_SECOND_MOUNT").unwrap_or_else(|_| parent.clone());
    let name = format!("wake-up-{}", std::process::id());
    let path = parent.strip_prefix("disk://").expect("LOCKD_STORE is a disk:// URL");
    std::fs::create_dir(Path::new(path).join(&name)).unwrap();
    [parent, second].map(|parent| format!("{parent}/{name}"))
}

/// How long a waiting consumer waits for a message, from before it is sent to the server until it is here.
#[test]
#[ignore = "a measurement, meaningful only in a release build on a quiet machine"]
fn wake_up_latency() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let log = dir.path().join("log");
    let stores = two_ways_to_a_store(dir.path());
    let daemons = stores.map(|store| Daemon::start(&store, &log, free_address()));
    let rounds = number_from("LOCKD_STORM_ROUNDS", 500);
    let pause_ms_max = number_from("LOCKD_STORM_PAUSE_MS", 0);
    for (name, producer) in [("same server", 0), ("other server", 1)] {
        let (mut wake_ups, mut enqueues) = (Histogram::<u64>::new(3).unwrap(), Histogram::<u64>::new(3).unwrap());
        let sent_at = AtomicU64::new(0);
        let clock = Instant::now();
        let micros = || u64::try_from(clock.elapsed().as_micros()).unwrap();
        let addresses: Vec<_> = daemons.iter().map(|daemon| daemon.address).collect();
        let waiting = || {
            let mut client = Client::new(&addresses[..1], 0);
            let stats = client.ask_json("stats", &json!({"queue": "storm"})).unwrap();
            stats.field("waiting_consumers") == json!(1)
        };
        for _ in 0..rounds {
            thread::scope(|scope| {
                let consumer = scope.spawn(|| {
                    let mut client = Client::new(&addresses[..1], 0);
                    let wish = json!({"queue": "storm", "owner": "consumer", "wait_seconds": 20});
                    let answer = client.ask_json("dequeue", &wish).unwrap();
                    let woken = micros();
                    let message = messages(&answer).remove(0);
                    let proof = json!({"queue": "storm", "message_id": message["message_id"],
                        "lease_id": message["lease_id"], "fencing_token": message["fencing_token"]});
                    assert_eq!(client.ask_json("ack", &proof).unwrap().status, 200);
                    woken
                });
                while !waiting() {
                    thread::yield_now();
                }
                // What is looked for when a consumer comes, and then for a while no more, is not found by waiting.
                thread::sleep(Duration::from_millis(fastrand::u64(0..=pause_ms_max)));
                let mut client = Client::new(&addresses[producer..=producer], 0);
                client.rng = fastrand::Rng::with_seed(7);
                client.connection = Some(Connection::open(addresses[producer]));
                sent_at.store(micros(), Ordering::SeqCst);
                assert_eq!(client.enqueue("x").unwrap().status, 200);
                enqueues.record(micros() - sent_at.load(Ordering::SeqCst)).unwrap();
                let woken = consumer.join().unwrap();
                wake_ups.record(woken - sent_at.load(Ordering::SeqCst)).unwrap();
            });
        }
        eprintln!(
            "{name}: enqueue sent to message here p50 {} us, p99 {} us (enqueue answered p50 {} us, p99 {} us)",
            wake_ups.value_at_quantile(0.5),
            wake_ups.value_at_quantile(0.99),
            enqueues.value_at_quantile(0.5),
            enqueues.value_at_quantile(0.99),
        );
    }
}
