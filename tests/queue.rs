//! Many producers and consumers on several servers over one store, with a book of what was sent and what was dealt with.
//!
//! Each server is the library's own services over a handle of the store; a small ready list stands in for its dispatcher.
//! Consumers behave like real ones: most finish, some fail, defer, renew, are too slow or vanish. In the end every message
//! has been acknowledged exactly once, and the store is empty.
//!
//! `LOCKD_TEST_MESSAGES` sets how many messages there are; `LOCKD_TEST_SEED` repeats the choices of a run, though not the
//! order in which threads come to run.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "a run tells its seed and its sums")]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{Moment, SharedClock, SystemClock};
use lockd::error::Error;
use lockd::ids::IdMaker;
use lockd::keys::{MessageId, Namespace, QueueId, QueueName, RecordKey};
use lockd::lease::table::KeyTable;
use lockd::news::Listener;
use lockd::queue::rules::{Holder, Intent, Nack, NewMessage, Refusal};
use lockd::queue::{DeliverRequest, Delivered, EnqueueMeta, NotDelivered, Queues};
use lockd::store::fault::{Fault, FaultPlan, FaultStore, Operation};
use lockd::store::memory::MemoryStore;
use lockd::store::shared_log::{Options, SharedLogStore};
use lockd::store::{Store, StoreError};
use parking_lot::Mutex;

/// A consumer that is too slow, or vanishes, loses its message after so long.
const VISIBILITY_SECONDS: i64 = 1;
/// Nothing may take longer than this, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(600);

#[test]
fn every_message_is_acknowledged_once_on_a_store_in_memory() {
    let memory = MemoryStore::new();
    let run = Run {
        servers: 3,
        producers: 8,
        consumers: 8,
        messages: messages(3_000),
        fault_rate: 0.0,
    };
    run.play(&|| Arc::new(memory.handle()));
}

#[test]
fn every_message_is_acknowledged_once_on_a_store_on_a_disk() {
    let (_dir, root) = new_root();
    let run = Run {
        servers: 3,
        producers: 8,
        consumers: 8,
        messages: messages(1_500),
        fault_rate: 0.0,
    };
    run.play(&|| Arc::new(SharedLogStore::open_as_another_process(&root, Options::default()).unwrap()));
}

#[test]
fn every_message_is_acknowledged_once_though_calls_fail_and_answers_are_lost() {
    let memory = MemoryStore::new();
    let run = Run {
        servers: 3,
        producers: 4,
        consumers: 4,
        messages: messages(1_500),
        fault_rate: 0.02,
    };
    run.play(&|| Arc::new(memory.handle()));
}

fn messages(by_default: usize) -> usize {
    let wanted = std::env::var("LOCKD_TEST_MESSAGES").ok();
    wanted.map_or(by_default, |text| {
        text.parse().expect("LOCKD_TEST_MESSAGES is a number")
    })
}

fn seed() -> u64 {
    let seed = match std::env::var("LOCKD_TEST_SEED") {
        Ok(text) => text.parse().expect("LOCKD_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    eprintln!("LOCKD_TEST_SEED={seed}");
    seed
}

fn new_root() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    (dir, root)
}

/// How a run is set up.
#[derive(Clone, Copy)]
struct Run {
    servers: usize,
    producers: usize,
    consumers: usize,
    messages: usize,
    /// Share of the calls to the store that fail in each of three ways.
    fault_rate: f64,
}

impl Run {
    fn play(self, open: &dyn Fn() -> Arc<dyn Store>) {
        let mut seeds = fastrand::Rng::with_seed(seed());
        let clock = SystemClock::shared();
        let began = clock.now();
        let servers: Vec<Server> = (0..self.servers)
            .map(|_| Server::new(open(), &clock, self.fault_rate, seeds.u64(..)))
            .collect();
        let book = Book::default();
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            for at in 0..self.producers {
                let (server, rng) = (&servers[at % self.servers], fastrand::Rng::with_seed(seeds.u64(..)));
                let (book, next) = (&book, &next);
                scope.spawn(move || produce(server, self.messages, next, book, rng));
            }
            for at in 0..self.consumers {
                let (server, rng) = (&servers[at % self.servers], fastrand::Rng::with_seed(seeds.u64(..)));
                let (book, clock) = (&book, &clock);
                scope.spawn(move || consume(server, self.messages, book, clock, began, rng));
            }
        });
        let took = clock.now().since(began);
        let sums = book.close(self.messages);
        eprintln!("{} messages in {took:?}: {sums}", self.messages);
        let clean = open();
        let left = clean.list("", None, usize::MAX).unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// One server: services over a store, and the list of what is ready.
struct Server {
    queues: Queues,
    ready: Arc<Ready>,
}

/// Messages that can be delivered, with the time from when on.
#[derive(Default)]
struct Ready {
    list: Mutex<List>,
    /// When somebody last looked at the whole queue.
    scanned: Mutex<Option<Moment>>,
}

/// By time, and by message.
type List = (BTreeSet<(i64, MessageId)>, HashMap<MessageId, i64>);

impl Server {
    fn new(store: Arc<dyn Store>, clock: &SharedClock, rate: f64, seed: u64) -> Self {
        let mut plan = FaultPlan::quiet(seed);
        for operation in [Operation::Read, Operation::Write, Operation::List] {
            for fault in [Fault::FailBefore, Fault::LoseAnswer, Fault::Refuse] {
                plan = plan.rate(operation, fault, rate);
            }
        }
        let store = Arc::new(FaultStore::new(store, plan, Arc::new(|_| ())));
        let ready = Arc::new(Ready::default());
        let table = KeyTable::new(store, Arc::clone(clock), ready.clone());
        let ids = Arc::new(IdMaker::new(Arc::clone(clock)));
        Self {
            queues: Queues::new(Arc::new(table), ids, 64 * 1024),
            ready,
        }
    }
}

impl Listener for Ready {
    fn lease_ended(&self, _: &RecordKey) {}

    fn visible(&self, _: &QueueId, id: MessageId, from_ms: i64) {
        let mut list = self.list.lock();
        if let Some(old_ms) = list.1.insert(id, from_ms) {
            list.0.remove(&(old_ms, id));
        }
        list.0.insert((from_ms, id));
    }

    fn gone(&self, _: &QueueId, id: MessageId) {
        let mut list = self.list.lock();
        if let Some(old_ms) = list.1.remove(&id) {
            list.0.remove(&(old_ms, id));
        }
    }
}

impl Ready {
    fn pop(&self, now_ms: i64) -> Option<MessageId> {
        let mut list = self.list.lock();
        let (from_ms, id) = *list.0.first()?;
        if now_ms < from_ms {
            return None;
        }
        list.0.pop_first();
        list.1.remove(&id);
        Some(id)
    }
}

/// Which messages were sent and which were dealt with, by their number.
#[derive(Default)]
struct Book {
    sent: Mutex<HashMap<usize, usize>>,
    acked: Mutex<HashMap<usize, usize>>,
    /// The highest token seen of each message.
    tokens: Mutex<HashMap<MessageId, i64>>,
    /// Messages that may have been sent more often than their producer knows.
    doubtful: Mutex<HashSet<usize>>,
    deliveries: AtomicUsize,
    fates: Mutex<HashMap<&'static str, usize>>,
}

impl Book {
    fn fate(&self, what: &'static str) {
        *self.fates.lock().entry(what).or_default() += 1;
    }

    fn delivered(&self, delivered: &Delivered) {
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        let token = delivered.record.fencing_token;
        let before = self.tokens.lock().insert(delivered.id, token).unwrap_or(0);
        // A delivery whose answer was lost leaves a gap; the order in which two threads write into this book is theirs.
        assert_ne!(before, token, "two deliveries have one token");
    }

    fn is_complete(&self, messages: usize) -> bool {
        messages <= self.acked.lock().len()
    }

    fn close(&self, messages: usize) -> String {
        let (sent, acked) = (self.sent.lock(), self.acked.lock());
        let doubtful = self.doubtful.lock();
        assert_eq!(sent.len(), messages);
        for number in 0..messages {
            let times = acked.get(&number).copied().unwrap_or(0);
            assert!(0 < times, "message {number} was lost");
            assert!(
                times == 1 || doubtful.contains(&number),
                "message {number} was acknowledged {times} times"
            );
        }
        format!(
            "{} deliveries, {:?}, {} sent in doubt",
            self.deliveries.load(Ordering::Relaxed),
            self.fates.lock(),
            doubtful.len()
        )
    }
}

fn queue() -> QueueId {
    QueueId {
        namespace: Namespace::parse("default").unwrap(),
        queue: QueueName::parse("orders").unwrap(),
    }
}

fn produce(server: &Server, messages: usize, next: &AtomicUsize, book: &Book, mut rng: fastrand::Rng) {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if messages <= number {
            return;
        }
        let mut payload = number.to_string().into_bytes();
        // Some are larger than what fits into a record.
        payload.resize(if rng.u32(..50) == 0 { 6_000 } else { 100 }, b' ');
        loop {
            let message = NewMessage {
                delay_seconds: i64::from(rng.u32(..20) == 0),
                max_attempts: i64::MAX,
                correlation_id: "stress".into(),
                ..NewMessage::default()
            };
            let mut writer = server.queues.enqueue_writer(EnqueueMeta {
                queue: queue(),
                message,
            });
            match writer.push(&payload).and_then(|()| writer.finish()) {
                Ok(_) => break,
                Err(Error::Store(StoreError::Unknown { .. })) => drop(book.doubtful.lock().insert(number)),
                Err(Error::Store(_)) => {}
                Err(cause) => panic!("{cause}"),
            }
        }
        *book.sent.lock().entry(number).or_default() += 1;
    }
}

fn consume(server: &Server, messages: usize, book: &Book, clock: &SharedClock, began: Moment, mut rng: fastrand::Rng) {
    let wanted = DeliverRequest {
        owner: "consumer".into(),
        visibility_seconds: VISIBILITY_SECONDS,
        txn_id: None,
        with_state: false,
    };
    // The last messages may be with consumers that have vanished, and doubtful ones with nobody: look until none is left.
    while !book.is_complete(messages) || !is_empty(server) {
        assert!(
            clock.now().since(began) < PATIENCE,
            "{} of {messages}",
            book.acked.lock().len()
        );
        let Some(id) = server.ready.pop(clock.wall_ms()) else {
            look_around(server, clock);
            continue;
        };
        match server.queues.deliver(&queue(), id, &wanted) {
            Ok(delivered) => {
                book.delivered(&delivered);
                work(server, &delivered, book, &mut rng);
            }
            Err(NotDelivered::Hidden { until_ms }) => server.ready.visible(&queue(), id, until_ms),
            Err(NotDelivered::Failed(Error::Store(_))) => server.ready.visible(&queue(), id, clock.wall_ms()),
            Err(NotDelivered::Gone) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// What other servers have, and what was forgotten, is found by a scan, though not by all consumers at once.
fn look_around(server: &Server, clock: &SharedClock) {
    {
        let mut scanned = server.ready.scanned.lock();
        if scanned.is_some_and(|scanned| clock.now().since(scanned) < Duration::from_millis(50)) {
            drop(scanned);
            thread::sleep(Duration::from_millis(2));
            return;
        }
        *scanned = Some(clock.now());
    }
    let mut after = None;
    loop {
        let Ok(page) = server.queues.scan(&queue(), after, 128) else {
            return;
        };
        for seen in &page.seen {
            server.ready.visible(&queue(), seen.id, seen.visible_from_ms);
        }
        after = page.next;
        if after.is_none() {
            return;
        }
    }
}

fn is_empty(server: &Server) -> bool {
    matches!(server.queues.scan(&queue(), None, 1), Ok(page) if page.seen.is_empty() && page.next.is_none() && page.faults.is_empty())
}

fn work(server: &Server, delivered: &Delivered, book: &Book, rng: &mut fastrand::Rng) {
    let queues = &server.queues;
    let (queue, id) = (queue(), delivered.id);
    let mut payload = Vec::new();
    let opened = queues.payload(&delivered.record).open();
    let is_read = opened.is_ok_and(|mut reader| std::io::Read::read_to_end(&mut reader, &mut payload).is_ok());
    if !is_read || payload.len() as u64 != delivered.record.payload.bytes {
        // A broken stream: the consumer gives up and the message comes back by itself.
        return;
    }
    let number: usize = str::from_utf8(&payload).unwrap().trim_end().parse().unwrap();
    let lease = delivered.record.lease.as_ref().unwrap();
    let mut by = Holder {
        lease_id: lease.id.as_str().to_owned(),
        fencing_token: delivered.record.fencing_token,
        txn_id: Some(lease.txn_id.as_str().to_owned()),
        meta_etag: Some(delivered.record.meta_etag()),
        state: None,
        state_etag: None,
    };
    let choice = rng.u32(..100);
    match choice {
        0..5 => {
            let nack = Nack {
                intent: if choice == 0 { Intent::Failure } else { Intent::Defer },
                delay_seconds: 0,
                last_error: None,
            };
            let _ = queues.nack(&queue, id, &by, &nack);
            return book.fate("nacked");
        }
        5 => {
            book.fate("vanished");
            return;
        }
        6 => {
            let _ = queues.give_back(delivered);
            return book.fate("given back");
        }
        7..10 => {
            if let Ok(extended) = queues.extend(&queue, id, &by, VISIBILITY_SECONDS) {
                by.meta_etag = Some(extended.record.meta_etag());
                book.fate("extended");
            }
        }
        10 => thread::sleep(Duration::from_millis(1_100)),
        _ => {}
    }
    let mut was_unknown = false;
    loop {
        match queues.ack(&queue, id, &by) {
            Ok(_) => break,
            Err(Error::MessageRefused(Refusal::Gone)) if was_unknown => break,
            Err(Error::MessageRefused(Refusal::LeaseMismatch | Refusal::LeaseExpired | Refusal::Gone)) => {
                return book.fate("too late");
            }
            Err(Error::Store(cause)) => was_unknown |= matches!(cause, StoreError::Unknown { .. }),
            Err(cause) => panic!("{cause}"),
        }
    }
    *book.acked.lock().entry(number).or_default() += 1;
}
