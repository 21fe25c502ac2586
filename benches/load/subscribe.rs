//! Producers and subscribers of one queue: how many messages pass, and how long each takes from the start of its enqueue
//! until it is in a subscriber's hands.
//!
//! Every producer and every subscriber is a thread with blocking connections, because a subscriber spends its life in one
//! answer that never ends; the generator costs more of the machine than it does in the other workloads, and says so. A message
//! carries the time of its enqueue. Producers pause while more messages are under way than subscribers lease ahead, so that
//! what is measured is passing on, not the length of a backlog.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, Moment, SystemClock};

use crate::driver::connect;
use crate::http::{AnswerReader, json_field};
use crate::measure::Tally;
use crate::options::{Limit, Options};
use crate::process::Process;
use crate::report::Measured;
use crate::run::{Reading, RunError, sleep_until};
use crate::workload::{Delivery, Phrases, STAMP_BYTES, Workload};

/// A subscriber that waits for bytes looks so often whether the measurement is over.
const LOOK: Duration = Duration::from_millis(100);
/// An answer that takes longer will not come.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long the end waits for messages that are under way.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 16 * 1024;

struct Bench<'a> {
    options: &'a Options,
    phrases: &'a Phrases,
    clock: &'a SystemClock,
    /// What time stamps are counted from.
    epoch: Moment,
    start: Moment,
    end: Option<Moment>,
    /// Messages that may still be begun, with a limit in operations.
    left: AtomicI64,
    under_way: AtomicI64,
    window: i64,
    over: AtomicBool,
}

/// Measures once.
pub(crate) fn measure(options: &Options, phrases: &Phrases, clock: &SystemClock) -> Result<Measured, RunError> {
    let epoch = clock.now();
    let (warmup, left) = match options.limit {
        Limit::Time(_) => (options.warmup, i64::MAX),
        // Every message counts.
        Limit::Operations(count) => (Duration::ZERO, i64::try_from(count).unwrap_or(i64::MAX)),
    };
    let start = epoch.after(warmup);
    let bench = &Bench {
        options,
        phrases,
        clock,
        epoch,
        start,
        end: match options.limit {
            Limit::Time(span) => Some(start.after(span)),
            Limit::Operations(_) => None,
        },
        left: AtomicI64::new(left),
        under_way: AtomicI64::new(0),
        window: (options.subscribers * options.prefetch).max(options.connections) as i64,
        over: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let failed = |error| RunError::when("starting a thread")(error);
        // Also when this ends early: the scope waits for the subscribers.
        let ending = SetOnDrop(&bench.over);
        let mut subscribers = Vec::new();
        for number in 0..options.subscribers {
            let body = move || Subscriber::run(bench, number);
            subscribers.push(spawn("subscribe").spawn_scoped(scope, body).map_err(failed)?);
        }
        let mut producers = Vec::new();
        for _ in 0..options.connections {
            let body = move || produce(bench);
            producers.push(spawn("produce").spawn_scoped(scope, body).map_err(failed)?);
        }
        sleep_until(clock, start);
        let before = Reading::take(options, clock)?;
        let mut after = None;
        if let Some(end) = bench.end {
            sleep_until(clock, end);
            after = Some(Reading::take(options, clock)?);
        }
        let mut tally = Tally::new();
        let broken = || io::Error::other("a thread panicked");
        for producer in producers {
            let part = producer.join().map_err(|_| broken()).and_then(|part| part);
            tally.add(&part.map_err(RunError::when("enqueuing"))?);
        }
        let give_up = clock.now().after(DRAIN_PATIENCE);
        while 0 < bench.under_way.load(Ordering::SeqCst) && clock.now() < give_up {
            thread::sleep(Duration::from_micros(200));
        }
        let after = match after {
            Some(after) => after,
            None => Reading::take(options, clock)?,
        };
        drop(ending);
        let mut last = start;
        for subscriber in subscribers {
            let part = subscriber.join().map_err(|_| broken()).and_then(|part| part);
            let (part, part_last) = part.map_err(RunError::when("subscribing"))?;
            tally.add(&part);
            last = last.max(part_last);
        }
        let resident = options.pid.map(|pid| Process::Pid(pid).resident_bytes()).transpose();
        Ok(Measured {
            workload: Workload::QueueSubscribe,
            seconds: bench.end.unwrap_or(last).since(start).as_secs_f64(),
            tally,
            cpu: after.since(&before),
            server_resident_bytes: resident.map_err(RunError::when("reading the server's memory"))?,
        })
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Bench<'_> {
    fn counts(&self, now: Moment) -> bool {
        self.start <= now && self.end.is_none_or(|end| now < end)
    }

    /// Nanoseconds since the epoch of this measurement.
    fn stamp(&self) -> u64 {
        let nanos = self.clock.now().since(self.epoch).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

/// A connection that asks and waits.
struct Line {
    stream: TcpStream,
    reader: AnswerReader,
}

impl Line {
    fn open(options: &Options) -> io::Result<Self> {
        let stream = connect(options.address)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        Ok(Self {
            stream,
            reader: AnswerReader::default(),
        })
    }

    /// Sends a request and counts its answer. True when it was a success.
    fn ask(&mut self, request: &[u8], tally: &mut Tally) -> io::Result<bool> {
        self.stream.write_all(request)?;
        self.reader.clear();
        loop {
            let ended = self.reader.read_from(&mut self.stream)? == 0;
            let answer = self.reader.answer().map_err(malformed)?;
            if let Some(answer) = answer {
                tally.requests += 1;
                if answer.status != 200 {
                    tally.errors.refused(answer.status, answer.body);
                }
                return Ok(answer.status == 200);
            }
            if ended {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn malformed(error: crate::http::ProtocolError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// Enqueues until the measurement is over. Its operations are counted where they end.
fn produce(bench: &Bench<'_>) -> io::Result<Tally> {
    let mut line = Line::open(bench.options)?;
    let mut tally = Tally::new();
    let mut uncounted = Tally::new();
    let mut request = Vec::new();
    while bench.end.is_none_or(|end| bench.clock.now() < end) {
        if bench.window <= bench.under_way.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        if bench.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            break;
        }
        bench.under_way.fetch_add(1, Ordering::SeqCst);
        bench.phrases.enqueue(&mut request, 0, bench.stamp());
        let into = match bench.counts(bench.clock.now()) {
            true => &mut tally,
            false => &mut uncounted,
        };
        if !line.ask(&request, into)? {
            bench.under_way.fetch_sub(1, Ordering::SeqCst);
        }
    }
    Ok(tally)
}

struct Subscriber<'a> {
    bench: &'a Bench<'a>,
    acks: Line,
    tally: Tally,
    uncounted: Tally,
    request: Vec<u8>,
    delivery: Delivery,
    last: Moment,
}

impl<'a> Subscriber<'a> {
    /// Subscribes until the measurement is over. Also returns when the last counted message was done.
    fn run(bench: &'a Bench<'a>, number: usize) -> io::Result<(Tally, Moment)> {
        let mut subscriber = Self {
            bench,
            acks: Line::open(bench.options)?,
            tally: Tally::new(),
            uncounted: Tally::new(),
            request: Vec::new(),
            delivery: Delivery::default(),
            last: bench.start,
        };
        while !bench.over.load(Ordering::SeqCst) {
            subscriber.stream(number)?;
        }
        Ok((subscriber.tally, subscriber.last))
    }

    /// One subscription, to its end.
    fn stream(&mut self, number: usize) -> io::Result<()> {
        let bench = self.bench;
        let mut stream = connect(bench.options.address)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LOOK))?;
        bench
            .phrases
            .subscribe(&mut self.request, 0, number, bench.options.prefetch);
        stream.write_all(&self.request)?;
        let mut body = Body::default();
        let mut piece = vec![0; READ_BYTES];
        while !bench.over.load(Ordering::SeqCst) {
            match stream.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let ended = body.take(&piece[..count])?;
                    if let Some((status, refusal)) = body.refusal() {
                        // An empty queue and a busy server are asked again.
                        if json_field(refusal, "error") != Some(b"waiting") {
                            self.tally.errors.refused(status, refusal);
                            thread::sleep(LOOK);
                        }
                        return Ok(());
                    }
                    while let Some((meta, payload)) = body.next_delivery()? {
                        let complete = self.delivery.read(meta);
                        let stamp = payload
                            .get(..STAMP_BYTES)
                            .and_then(|digits| str::from_utf8(digits).ok());
                        let stamp = stamp.and_then(|digits| digits.parse().ok());
                        self.delivered(complete.then_some(stamp).flatten())?;
                    }
                    if ended {
                        return Ok(());
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Measures and acknowledges one message, enqueued at this time.
    fn delivered(&mut self, enqueued: Option<u64>) -> io::Result<()> {
        let bench = self.bench;
        let Some(enqueued) = enqueued else {
            self.tally
                .errors
                .other("a delivery without its fields or its time stamp");
            return Ok(());
        };
        let latency_ns = bench.stamp().saturating_sub(enqueued);
        bench.phrases.ack(&mut self.request, 0, &self.delivery);
        let now = bench.clock.now();
        let into = match bench.counts(now) {
            true => &mut self.tally,
            false => &mut self.uncounted,
        };
        let acked = self.acks.ask(&self.request, into)?;
        bench.under_way.fetch_sub(1, Ordering::SeqCst);
        if acked {
            into.operations += 1;
            into.latency_ns.saturating_record(latency_ns);
            if bench.counts(now) {
                self.last = self.last.max(bench.clock.now());
            }
        }
        Ok(())
    }
}

/// The body of a subscription as it arrives.
#[derive(Debug, Default)]
struct Body {
    /// What arrived, not yet taken out of its chunks.
    raw: Vec<u8>,
    status: Option<u16>,
    /// What was in the chunks, not yet handed out.
    parts: Vec<u8>,
    /// How much of it was.
    taken: usize,
    ended: bool,
}

impl Body {
    /// Takes bytes from the connection. True at the end of the answer.
    fn take(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.raw.extend_from_slice(bytes);
        if self.status.is_none() {
            let Some(end) = find(&self.raw, b"\r\n\r\n", 0) else {
                return Ok(false);
            };
            let digits = self.raw.get(9..12).and_then(|digits| str::from_utf8(digits).ok());
            let status = digits.and_then(|digits| digits.parse().ok());
            self.status = Some(status.ok_or_else(|| io::Error::from(ErrorKind::InvalidData))?);
            if self.status != Some(200) {
                // A refusal is short and comes with its head.
                self.parts = self.raw.split_off(end + 4);
                return Ok(true);
            }
            self.raw.drain(..end + 4);
        }
        self.parts.drain(..self.taken);
        self.taken = 0;
        let mut at = 0;
        while let Some(line_end) = find(&self.raw, b"\r\n", at) {
            let size = str::from_utf8(&self.raw[at..line_end])
                .ok()
                .and_then(|digits| usize::from_str_radix(digits.trim(), 16).ok())
                .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a chunk size that cannot be"))?;
            let data = line_end + 2;
            if self.raw.len() < data + size + 2 {
                break;
            }
            self.parts.extend_from_slice(&self.raw[data..data + size]);
            at = data + size + 2;
            if size == 0 {
                self.ended = true;
                break;
            }
        }
        self.raw.drain(..at);
        Ok(self.ended)
    }

    /// The answer, when it is a refusal.
    fn refusal(&self) -> Option<(u16, &[u8])> {
        let status = self.status.filter(|status| *status != 200)?;
        Some((status, &self.parts))
    }

    /// Description and payload of the next delivery, once both are complete.
    fn next_delivery(&mut self) -> io::Result<Option<(&[u8], &[u8])>> {
        let parts = &self.parts;
        let Some(meta) = find(parts, b"\r\n\r\n", self.taken).map(|at| at + 4) else {
            return Ok(None);
        };
        let Some(meta_end) = find(parts, b"\r\n--", meta) else {
            return Ok(None);
        };
        let Some(payload) = find(parts, b"\r\n\r\n", meta_end + 4).map(|at| at + 4) else {
            return Ok(None);
        };
        const LENGTH: &[u8] = b"Content-Length: ";
        let length = find(&parts[..payload], LENGTH, meta_end).and_then(|at| {
            let digits = &parts[at + LENGTH.len()..payload];
            let end = find(digits, b"\r\n", 0)?;
            str::from_utf8(&digits[..end]).ok()?.parse::<usize>().ok()
        });
        let length =
            length.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a payload that does not tell its length"))?;
        if parts.len() < payload + length {
            return Ok(None);
        }
        self.taken = payload + length;
        Ok(Some((
            &self.parts[meta..meta_end],
            &self.parts[payload..payload + length],
        )))
    }
}

fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(what.len())
        .position(|window| window == what)
        .map(|at| from + at)
}
