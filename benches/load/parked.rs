//! Many acquires that wait on held keys: how long it takes to park them, and how soon each is woken.
//!
//! One thread and one epoll set hold all connections. Every hundred connections one `/healthz` on a connection of its own
//! must be answered before more are opened: connections are accepted in order, so this keeps the server's accept queue
//! short and shows that everything before was accepted. Whether the last few requests are parked already cannot be seen
//! from outside; the pause `--settle` is for that.
//!
//! Then the holders release, one key after the other. Whoever is granted the key releases it in turn, so there is always
//! one wake-up under way and never two: this is the latency of a quiet moment, not of a stampede. A server may end a connection
//! with the grant; the waiter then gives back on another one.
//!
//! With `parked-queue` it is one message in each queue that is handed on: whoever gets it gives it back at once.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use hdrhistogram::Histogram;
use lockd::clock::{Clock, Moment, SystemClock};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use crate::driver::connect;
use crate::http::AnswerReader;
use crate::measure::{Errors, new_histogram};
use crate::options::Options;
use crate::process::Process;
use crate::report::{Cpu, ParkedOutcome};
use crate::run::{Reading, RunError, acquire_now, ask, sleep_until};
use crate::workload::{Delivery, Lease, Phrases, Workload};

const CONNECTIONS_PER_PROBE: usize = 100;
/// How long a server is watched that becomes smaller after everybody has left.
const LEAVING_PATIENCE: Duration = Duration::from_secs(30);
/// It has come to rest when nothing changes for so long. The HTTP library's threads go when they were idle for 5 s.
const AT_REST: Duration = Duration::from_secs(7);
/// A waiter that is not woken for so long never will be.
const WAKE_PATIENCE: Duration = Duration::from_secs(30);

/// Parks, pauses, wakes.
pub(crate) fn run(options: &Options, clock: &SystemClock) -> Result<ParkedOutcome, RunError> {
    let phrases = Phrases::new(options);
    let keys = options.keys.min(options.connections as u64);
    let what = match options.workloads[..] {
        [Workload::ParkedQueue] => What::Message,
        _ => What::Lease,
    };
    let mut holders = Vec::new();
    for key in 0..keys {
        let mut stream = connect(options.address).map_err(RunError::when("connecting a holder"))?;
        let held = hold(&mut stream, &phrases, what, key).map_err(RunError::when("preparing what to wait for"))?;
        holders.push((stream, held));
    }
    let resident = || match options.pid {
        Some(pid) => Process::Pid(pid).resident_bytes().map(Some),
        None => Ok(None),
    };
    let resident_before = resident().map_err(RunError::when("reading the server's memory"))?;
    let start = Reading::take(options, clock)?;
    let mut crowd =
        Crowd::new(clock, &phrases, what, options.address, keys).map_err(RunError::when("preparing to wait"))?;
    let parking = crowd.park(options).map_err(RunError::when("parking"))?;
    let parked = Reading::take(options, clock)?;
    sleep_until(clock, clock.now().after(options.settle));
    let settled = Reading::take(options, clock)?;
    let resident_parked = resident().map_err(RunError::when("reading the server's memory"))?;
    crowd.hear().map_err(RunError::when("listening to the waiters"))?;
    let refused_early = crowd.errors.total();
    let waiting = crowd.waiting();
    for (key, holder) in holders.into_iter().enumerate() {
        crowd.wake_all(key, holder).map_err(RunError::when("waking"))?;
    }
    let woken = Reading::take(options, clock)?;
    let idle: Cpu = settled.since(&parked);
    crowd.waiters.clear();
    let resident_after = match options.pid {
        Some(_) => come_to_rest(clock, || Ok(resident()?.map_or(0, |(now, _)| now)))
            .map(Some)
            .map_err(RunError::when("reading the server's memory"))?,
        None => None,
    };
    Ok(ParkedOutcome {
        what: what.name(),
        keys,
        parking_seconds: parking.as_secs_f64(),
        parking_cpu: parked.since(&start),
        waiting,
        refused_early,
        idle_cpu: idle,
        wake_up_ns: crowd.wake_up_ns,
        waking_cpu: woken.since(&settled),
        errors: crowd.errors,
        server_resident_bytes_before: resident_before.map(|(now, _)| now),
        server_resident_bytes_parked: resident_parked.map(|(now, _)| now),
        server_resident_bytes_after: resident_after,
        server_resident_bytes_peak: resident().ok().flatten().map(|(_, most)| most),
    })
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Lease,
    Message,
}

impl What {
    fn name(self) -> &'static str {
        match self {
            Self::Lease => "acquire",
            Self::Message => "dequeue",
        }
    }
}

/// What is handed on.
enum Held {
    Lease(Lease),
    Message(Box<Delivery>),
}

impl Held {
    /// Takes it from an answer. `None` if a field is missing.
    fn read(what: What, body: &[u8]) -> Option<Self> {
        match what {
            What::Lease => {
                let mut lease = Lease::default();
                lease.read(body).then_some(Self::Lease(lease))
            }
            What::Message => {
                let mut delivery = Delivery::default();
                delivery.read(body).then(|| Self::Message(Box::new(delivery)))
            }
        }
    }

    /// Replaces the content of `out` by the request that hands it on.
    fn give_back(&self, phrases: &Phrases, out: &mut Vec<u8>, key: u64) {
        match self {
            Self::Lease(lease) => phrases.release(out, key, lease),
            Self::Message(delivery) => phrases.defer(out, key, delivery),
        }
    }
}

/// Makes it so that others have to wait.
fn hold(stream: &mut TcpStream, phrases: &Phrases, what: What, key: u64) -> io::Result<Held> {
    match what {
        What::Lease => acquire_now(stream, phrases, key).map(Held::Lease),
        What::Message => {
            let mut request = Vec::new();
            phrases.enqueue(&mut request, key, 0);
            ask(stream, &request)?;
            phrases.dequeue(&mut request, key);
            let answer = ask(stream, &request)?;
            Held::read(what, &answer)
                .ok_or_else(|| io::Error::other("dequeue answered without a field that nack needs"))
        }
    }
}

/// Looks until the number becomes no smaller any more, and returns it.
fn come_to_rest(clock: &SystemClock, look: impl Fn() -> io::Result<u64>) -> io::Result<u64> {
    let began = clock.now();
    let (mut least, mut since) = (look()?, began);
    loop {
        sleep_until(clock, clock.now().after(Duration::from_millis(250)));
        let (found, now) = (look()?, clock.now());
        // A page more or less is no news.
        if found + found / 100 < least {
            (least, since) = (found, now);
        }
        if AT_REST <= now.since(since) || LEAVING_PATIENCE <= now.since(began) {
            return Ok(found);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Waiting,
    Releasing,
    Over,
}

struct Waiter {
    stream: TcpStream,
    reader: AnswerReader,
    key: usize,
    stage: Stage,
}

struct Crowd<'a> {
    clock: &'a SystemClock,
    phrases: &'a Phrases,
    what: What,
    address: SocketAddr,
    epoll: OwnedFd,
    waiters: Vec<Waiter>,
    /// How many wait, by key.
    waiting: Vec<usize>,
    /// Releases that are sent and not answered.
    releasing: usize,
    /// The key that is being handed on, and when its last release was sent.
    handing_on: Option<(usize, Moment)>,
    request: Vec<u8>,
    wake_up_ns: Histogram<u64>,
    errors: Errors,
}

impl<'a> Crowd<'a> {
    fn new(
        clock: &'a SystemClock,
        phrases: &'a Phrases,
        what: What,
        address: SocketAddr,
        keys: u64,
    ) -> io::Result<Self> {
        Ok(Self {
            clock,
            phrases,
            what,
            address,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            waiters: Vec::new(),
            waiting: vec![0; usize::try_from(keys).unwrap_or(usize::MAX)],
            releasing: 0,
            handing_on: None,
            request: Vec::new(),
            wake_up_ns: new_histogram(),
            errors: Errors::default(),
        })
    }

    fn waiting(&self) -> usize {
        self.waiting.iter().sum()
    }

    /// Opens the connections and sends a request that waits on each. Returns how long that took, the last probe included.
    fn park(&mut self, options: &Options) -> io::Result<Duration> {
        let begun = self.clock.now();
        for number in 0..options.connections {
            let mut stream = connect(options.address)?;
            let key = number % self.waiting.len();
            match self.what {
                What::Lease => self.phrases.acquire(&mut self.request, key as u64),
                What::Message => self.phrases.wait_for_message(&mut self.request, key as u64),
            }
            // A new connection has room for a request of this size.
            stream.write_all(&self.request)?;
            epoll::add(&self.epoll, &stream, EventData::new_u64(number as u64), EventFlags::IN)?;
            self.waiting[key] += 1;
            self.waiters.push(Waiter {
                stream,
                reader: AnswerReader::default(),
                key,
                stage: Stage::Waiting,
            });
            if (number + 1) % CONNECTIONS_PER_PROBE == 0 || number + 1 == options.connections {
                self.phrases.health(&mut self.request);
                ask(&mut connect(options.address)?, &self.request)?;
            }
        }
        Ok(self.clock.now().since(begun))
    }

    /// Takes what has arrived, without waiting.
    fn hear(&mut self) -> io::Result<()> {
        while self.listen(Duration::ZERO)? > 0 {}
        Ok(())
    }

    /// Lets the holder of this key release it, and each waiter in turn.
    fn wake_all(&mut self, key: usize, (mut stream, held): (TcpStream, Held)) -> io::Result<()> {
        held.give_back(self.phrases, &mut self.request, key as u64);
        self.handing_on = Some((key, self.clock.now()));
        stream.write_all(&self.request)?;
        let mut progress = self.clock.now();
        while self.waiting[key] > 0 || self.releasing > 0 {
            if self.listen(Duration::from_millis(100))? > 0 {
                progress = self.clock.now();
            } else if self.clock.now().since(progress) >= WAKE_PATIENCE {
                for _ in 0..self.waiting[key] {
                    self.errors.other("never woken");
                }
                for _ in 0..self.releasing {
                    self.errors.other("release not answered");
                }
                self.give_up(key);
                break;
            }
        }
        self.handing_on = None;
        Ok(())
    }

    /// Waits for events and handles them; returns how many there were.
    fn listen(&mut self, patience: Duration) -> io::Result<usize> {
        let patience = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let mut events: Vec<Event> = Vec::with_capacity(64);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&patience),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let heard_at = self.clock.now();
        for event in &events {
            let number = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            self.is_ready(number, heard_at)?;
        }
        Ok(events.len())
    }

    fn is_ready(&mut self, number: usize, heard_at: Moment) -> io::Result<()> {
        let waiter = &mut self.waiters[number];
        let ended = match waiter.reader.read_from(&mut waiter.stream) {
            Ok(count) => count == 0,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(()),
            Err(error) => {
                self.errors.io(&error);
                return self.leave(number);
            }
        };
        if waiter.stage == Stage::Over {
            return self.leave(number);
        }
        let (key, stage) = (waiter.key, waiter.stage);
        match waiter.reader.answer() {
            Ok(Some(answer)) if answer.status == 200 && stage == Stage::Waiting => {
                let Some(held) = Held::read(self.what, answer.body) else {
                    self.errors.other("granted without a field that giving back needs");
                    return self.leave(number);
                };
                if answer.close {
                    let stream = connect(self.address)?;
                    epoll::delete(&self.epoll, &waiter.stream)?;
                    epoll::add(&self.epoll, &stream, EventData::new_u64(number as u64), EventFlags::IN)?;
                    waiter.stream = stream;
                }
                if let Some((handed_on, released_at)) = self.handing_on
                    && handed_on == key
                {
                    let latency = heard_at.since(released_at).as_nanos();
                    self.wake_up_ns
                        .saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
                } else {
                    self.errors.other("granted while the key was held");
                }
                waiter.reader.clear();
                waiter.stage = Stage::Releasing;
                self.waiting[key] -= 1;
                self.releasing += 1;
                held.give_back(self.phrases, &mut self.request, key as u64);
                if let Some((handed_on, released_at)) = &mut self.handing_on
                    && *handed_on == key
                {
                    *released_at = self.clock.now();
                }
                if let Err(error) = waiter.stream.write_all(&self.request) {
                    self.errors.io(&error);
                    return self.leave(number);
                }
            }
            Ok(Some(answer)) if answer.status == 200 => {
                waiter.reader.clear();
                waiter.stage = Stage::Over;
                self.releasing -= 1;
            }
            Ok(Some(answer)) => {
                self.errors.refused(answer.status, answer.body);
                return self.leave(number);
            }
            Ok(None) if ended => {
                self.errors.io(&ErrorKind::UnexpectedEof.into());
                return self.leave(number);
            }
            Ok(None) => {}
            Err(error) => {
                self.errors.io(&io::Error::new(ErrorKind::InvalidData, error));
                return self.leave(number);
            }
        }
        Ok(())
    }

    /// Nothing more is expected on this connection. It stays open but is not listened to any more.
    fn leave(&mut self, number: usize) -> io::Result<()> {
        let waiter = &mut self.waiters[number];
        match waiter.stage {
            Stage::Waiting => self.waiting[waiter.key] -= 1,
            Stage::Releasing => self.releasing -= 1,
            Stage::Over => {}
        }
        waiter.stage = Stage::Over;
        epoll::delete(&self.epoll, &waiter.stream)?;
        Ok(())
    }

    fn give_up(&mut self, key: usize) {
        for waiter in &mut self.waiters {
            let concerned = waiter.stage == Stage::Releasing || (waiter.stage == Stage::Waiting && waiter.key == key);
            if concerned {
                waiter.stage = Stage::Over;
            }
        }
        self.waiting[key] = 0;
        self.releasing = 0;
    }
}
