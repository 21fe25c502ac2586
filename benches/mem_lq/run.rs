//! One run of one case.

use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, ScopedJoinHandle};
use std::time::Duration;

use lockd::clock::{Clock, Moment, SystemClock};
use lockd_client::wire::codes;
use lockd_client::{CallOptions, CancelToken, Client, Dequeue, Enqueue, Message, Wait};

use crate::cases::{Call, Case};
use crate::place::Place;
use crate::switches::Switches;
use crate::tally::{Report, Tally};

const QUEUE: &str = "bench";
const ENQUEUE_LIMIT: Duration = Duration::from_secs(30);
const ACK_LIMIT: Duration = Duration::from_secs(15);
const PREFILL_LIMIT: Duration = Duration::from_secs(120);
/// Pauses before something is tried again.
const WAITING_PAUSE: Duration = Duration::from_micros(200);
const BUSY_PAUSE: Duration = Duration::from_millis(10);
/// Gaps longer than this are told when asked for.
const GAP_TOLD: Duration = Duration::from_millis(10);

type Failure = Box<dyn Error + Send + Sync>;

/// Opens the place, fills the queue if the case wants that, and lets the workers work.
pub(crate) fn run(case: &Case, switches: &Switches) -> Result<Report, Failure> {
    let place = Place::open(case, switches)?;
    warm_up(&place, case, switches)?;
    if case.producers == 0 {
        let client = place.client(0).with_options(CallOptions::new().timeout(PREFILL_LIMIT));
        for _ in 0..case.messages {
            client.enqueue(QUEUE, payload(case))?;
        }
    }
    let clock = SystemClock::new();
    let begun = clock.now();
    let bench = Bench {
        case,
        switches,
        clock: &clock,
        begun,
        limit: case.limit,
        stop: CancelToken::new(),
        enqueued: AtomicUsize::new(0),
        consumed: AtomicUsize::new(0),
    };
    let waiting_before = place.waiting_answers.load(Ordering::Relaxed);
    let mut tally = thread::scope(|scope| -> Result<Tally, Failure> {
        let mut workers: Vec<ScopedJoinHandle<'_, Tally>> = Vec::new();
        for worker in 0..case.producers {
            let (bench, client) = (&bench, place.client(worker));
            let body = move || bench.produce(client);
            workers.push(
                thread::Builder::new()
                    .name("produce".to_owned())
                    .spawn_scoped(scope, body)?,
            );
        }
        for worker in 0..case.consumers {
            let (bench, client) = (&bench, place.client(worker));
            let body = move || bench.consume(worker, client);
            workers.push(
                thread::Builder::new()
                    .name("consume".to_owned())
                    .spawn_scoped(scope, body)?,
            );
        }
        let mut tally = Tally::default();
        for worker in workers {
            tally.add(worker.join().map_err(|_| "a worker panicked")?);
        }
        Ok(tally)
    })?;
    let elapsed = clock.now().since(begun);
    if case.producers == 0 {
        tally.produced = case.messages as u64;
    }
    if tally.consumed < case.messages as u64 && tally.errors.is_empty() {
        tally
            .errors
            .push(format!("not all was consumed within {:?}", case.limit));
    }
    Ok(Report {
        tally,
        elapsed,
        waiting_answers: place.waiting_answers.load(Ordering::Relaxed) - waiting_before,
    })
}

fn payload(case: &Case) -> Vec<u8> {
    vec![b'x'; case.payload_bytes]
}

/// Lets messages pass by every client, so that connections, threads and code are there.
fn warm_up(place: &Place, case: &Case, switches: &Switches) -> Result<(), Failure> {
    for number in 0..switches.warmup {
        let client = place
            .client(number)
            .with_options(CallOptions::new().timeout(ENQUEUE_LIMIT));
        client.enqueue("warm-up", payload(case))?;
        client.dequeue("warm-up")?.ack()?;
    }
    Ok(())
}

struct Bench<'a> {
    case: &'a Case,
    switches: &'a Switches,
    clock: &'a SystemClock,
    begun: Moment,
    limit: Duration,
    /// Cancelled when everything is consumed.
    stop: CancelToken,
    /// Messages that producers have taken on.
    enqueued: AtomicUsize,
    consumed: AtomicUsize,
}

impl Bench<'_> {
    /// Options of calls that end with the run.
    fn options(&self) -> CallOptions {
        let left = self.limit.saturating_sub(self.clock.now().since(self.begun));
        CallOptions::new().cancel(self.stop.clone()).timeout(left)
    }

    fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.limit <= self.clock.now().since(self.begun)
    }

    /// Notes an error, and ends the run: its figures would say nothing.
    fn fail(&self, tally: &mut Tally, what: &str, error: &lockd_client::Error) {
        if self.stop.is_cancelled() {
            return;
        }
        if self.switches.debug {
            eprintln!("{what}: {error}");
        }
        tally.errors.push(format!("{what}: {error}"));
        self.stop.cancel();
    }

    fn produce(&self, client: &Client) -> Tally {
        let mut tally = Tally::default();
        let payload = payload(self.case);
        let request = Enqueue::to(QUEUE).content_type("application/octet-stream");
        while self.enqueued.fetch_add(1, Ordering::Relaxed) < self.case.messages {
            loop {
                if self.is_over() {
                    return tally;
                }
                let bound = client.with_options(CallOptions::new().timeout(ENQUEUE_LIMIT));
                match bound.enqueue(&request, &payload) {
                    Ok(_) => break,
                    Err(error) if is_passing(&error) => {
                        tally.enqueue_retries += 1;
                        thread::sleep(error.retry_after().unwrap_or(BUSY_PAUSE));
                    }
                    Err(error) => {
                        self.fail(&mut tally, "enqueue", &error);
                        return tally;
                    }
                }
            }
            tally.produced += 1;
        }
        tally
    }

    fn consume(&self, number: usize, client: &Client) -> Tally {
        let mut consumer = Consumer {
            bench: self,
            number,
            tally: Tally::default(),
            free_since: self.clock.now(),
        };
        match self.case.call {
            Call::Subscribe(wait) => consumer.subscribe(client, wait),
            Call::Batch => consumer.dequeue(client),
        }
        consumer.tally
    }
}

struct Consumer<'a> {
    bench: &'a Bench<'a>,
    number: usize,
    tally: Tally,
    /// When it was done with the message before.
    free_since: Moment,
}

impl Consumer<'_> {
    fn request(&self, wait: Wait) -> Dequeue {
        Dequeue::from_queue(QUEUE)
            .owner(format!("consumer-{}", self.number))
            .wait(wait)
            .page_size(self.bench.case.page)
    }

    fn subscribe(&mut self, client: &Client, wait: Wait) {
        let request = self.request(wait);
        let bench = self.bench;
        while !bench.is_over() {
            let outcome = client.with_options(bench.options()).subscribe(&request, |message| {
                self.delivered(&message)?;
                self.ack(&message, true);
                Ok(())
            });
            match outcome {
                // The queue was empty for a moment.
                Ok(()) => {}
                Err(_) if bench.is_over() => return,
                Err(error) if is_passing(&error) => {
                    self.tally.subscribe_retries += 1;
                    thread::sleep(error.retry_after().unwrap_or(BUSY_PAUSE));
                }
                Err(error) => return bench.fail(&mut self.tally, "subscribe", &error),
            }
        }
    }

    fn dequeue(&mut self, client: &Client) {
        let request = self.request(Wait::No);
        let bench = self.bench;
        while !bench.is_over() {
            match client.with_options(bench.options()).dequeue_batch(&request) {
                Ok(batch) => {
                    self.tally.batches += 1;
                    for message in batch {
                        if let Err(error) = self.delivered(&message) {
                            return bench.fail(&mut self.tally, "payload", &error);
                        }
                        self.ack(&message, false);
                    }
                }
                Err(_) if bench.is_over() => return,
                Err(error) if error.is_waiting() => {
                    self.tally.waiting += 1;
                    self.tally.dequeue_retries += 1;
                    thread::sleep(WAITING_PAUSE);
                }
                Err(error) if is_passing(&error) => {
                    self.tally.dequeue_retries += 1;
                    thread::sleep(error.retry_after().unwrap_or(BUSY_PAUSE));
                }
                Err(error) => return bench.fail(&mut self.tally, "dequeue", &error),
            }
        }
    }

    /// Takes note of a delivery and reads its payload.
    fn delivered(&mut self, message: &Message) -> Result<(), lockd_client::Error> {
        let bench = self.bench;
        let gap = bench.clock.now().since(self.free_since);
        self.tally.waited += gap;
        self.tally.gap_max = self.tally.gap_max.max(gap);
        if bench.switches.trace_gaps && GAP_TOLD < gap {
            eprintln!("consumer {}: {gap:?} without a message", self.number);
        }
        if bench.switches.debug {
            eprintln!(
                "consumer {}: message {} after {gap:?}",
                self.number,
                message.message_id()
            );
        }
        self.tally.bytes += message.bytes()?.len() as u64;
        self.tally.delivered.push(message.message_id().to_owned());
        Ok(())
    }

    /// Acknowledges. The ack is not cut off by the end of the run: it is what the end waits for.
    fn ack(&mut self, message: &Message, all_losses_count: bool) {
        let bench = self.bench;
        let bound = message.with_options(CallOptions::new().timeout(ACK_LIMIT));
        let begun = bench.clock.now();
        let outcome = loop {
            match bound.ack() {
                Err(error) if error.has_code(codes::THROTTLED) => {
                    self.tally.ack_retries += 1;
                    thread::sleep(error.retry_after().unwrap_or(BUSY_PAUSE));
                }
                outcome => break outcome,
            }
        };
        self.free_since = bench.clock.now();
        let took = self.free_since.since(begun);
        self.tally.acking += took;
        if bench.switches.debug {
            eprintln!(
                "consumer {}: ack of {} took {took:?}",
                self.number,
                message.message_id()
            );
        }
        if let Err(error) = outcome {
            let code = error.code().unwrap_or_default().to_owned();
            let counts = match code.as_str() {
                codes::QUEUE_MESSAGE_LEASE_MISMATCH => true,
                codes::LEASE_REQUIRED | codes::NOT_FOUND | codes::CAS_MISMATCH => all_losses_count,
                _ => return bench.fail(&mut self.tally, "ack", &error),
            };
            *self.tally.lost_leases.entry(code).or_default() += 1;
            if !counts {
                return;
            }
        }
        self.tally.consumed += 1;
        if bench.case.messages <= bench.consumed.fetch_add(1, Ordering::SeqCst) + 1 {
            bench.stop.cancel();
        }
    }
}

/// True for what passes by itself.
fn is_passing(error: &lockd_client::Error) -> bool {
    const CODES: [&str; 5] = [
        codes::WAITING,
        codes::LEASE_REQUIRED,
        codes::THROTTLED,
        codes::QUEUE_BUSY,
        codes::SERVER_BUSY,
    ];
    CODES.iter().any(|code| error.has_code(code))
}
