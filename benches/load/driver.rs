//! Drives many connections from one thread with epoll, and measures.
//!
//! Closed loop: a connection starts its next operation as soon as the last is over. Open loop: operations are due at
//! fixed times whatever the server does; any free connection takes the next one, and its latency counts from when it was
//! due, so a stalled server is charged for everything it held up.
//!
//! A thread that has nothing to read sleeps in one `epoll_wait`; under load that call returns several answers at once.
//! Against a server with a thread per connection, 32 connections and two cores for both, that took about 5 us of
//! processor time per request; a blocking thread per connection took 7 us. Two threads reached 10 to 20 % more requests
//! per second than one, which is why two is what the options choose.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lockd::clock::{Clock, Moment, SystemClock};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime};

use crate::http::AnswerReader;
use crate::measure::Tally;
use crate::options::{Limit, Options};
use crate::workload::{Conversation, Next, Phrases, Workload};

const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// A loop that was late by less than this had kept up with its rate.
const LATE_START_PATIENCE: Duration = Duration::from_millis(20);
/// How long answers are awaited after the end, so that no lease is left behind.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// With a limit in operations, how long not one answer may arrive, beside what acquire may wait.
const SILENCE_PATIENCE: Duration = Duration::from_secs(60);
const TIMER: u64 = u64::MAX;

/// One measurement, shared by the threads that make it.
#[derive(Debug)]
pub(crate) struct Measurement<'a> {
    pub(crate) workload: Workload,
    pub(crate) options: &'a Options,
    pub(crate) phrases: &'a Phrases,
    pub(crate) clock: &'a SystemClock,
    /// When counting begins.
    pub(crate) start: Moment,
    /// When it ends; `None` with a limit in operations.
    pub(crate) end: Option<Moment>,
    /// Operations begun since `start`, for a limit in operations.
    pub(crate) begun: AtomicU64,
}

impl<'a> Measurement<'a> {
    /// A measurement that begins to count at `start`.
    pub(crate) fn new(
        workload: Workload,
        options: &'a Options,
        phrases: &'a Phrases,
        clock: &'a SystemClock,
        start: Moment,
    ) -> Self {
        let end = match options.limit {
            Limit::Time(span) => Some(start.after(span)),
            Limit::Operations(_) => None,
        };
        Self {
            workload,
            options,
            phrases,
            clock,
            start,
            end,
            begun: AtomicU64::new(0),
        }
    }

    /// Takes the right to begin an operation. False when there are enough.
    fn may_begin(&self, now: Moment) -> bool {
        if let Limit::Operations(count) = self.options.limit {
            return now < self.start || self.begun.fetch_add(1, Ordering::Relaxed) < count;
        }
        !self.is_over(now)
    }

    fn is_over(&self, now: Moment) -> bool {
        self.end.is_some_and(|end| now >= end)
    }

    /// Open loop: what was due just before the end may still begin just after it.
    fn is_over_for_long(&self, now: Moment) -> bool {
        self.end.is_some_and(|end| now >= end.after(LATE_START_PATIENCE))
    }

    /// Whether what began then and ended now is counted. With a fixed length in the closed loop it is what ends inside
    /// it. Otherwise the operations are given, by number or by rate, and all those that begin inside count.
    fn counts(&self, began: Moment, now: Moment) -> bool {
        let decisive = if self.options.rate.is_some() || self.end.is_none() {
            began
        } else {
            now
        };
        decisive >= self.start && !self.is_over(decisive)
    }
}

/// Opens one connection as this generator uses it: no delay, not blocking.
pub(crate) fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Drives these connections to the end of the measurement. Connections are opened before, so that an unreachable server
/// is an error here; later losses are counted.
pub(crate) fn drive(
    measurement: &Measurement<'_>,
    streams: Vec<TcpStream>,
    first: usize,
) -> io::Result<(Tally, Moment)> {
    let mut driver = Driver::new(measurement, streams, first)?;
    driver.run()?;
    Ok((driver.tally, driver.last))
}

struct Connection {
    /// `None` once it could not be opened again.
    stream: Option<TcpStream>,
    conversation: Conversation,
    reader: AnswerReader,
    /// Bytes of the current request that are written.
    sent: usize,
    /// When the operation began, or was due.
    began: Moment,
    busy: bool,
    waits_for_room: bool,
    /// It was answered before. A server that takes a connection and never serves it is worth knowing.
    answers: bool,
}

struct Driver<'a> {
    measurement: &'a Measurement<'a>,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    /// Connections without work.
    free: Vec<usize>,
    /// Open loop: when the next operation is due, and the time between two.
    due: Moment,
    interval: Option<Duration>,
    timer: OwnedFd,
    timer_set_for: Option<Moment>,
    in_flight: usize,
    tally: Tally,
    /// When anything was answered last.
    progress: Moment,
    /// When the last counted operation was over.
    last: Moment,
}

impl<'a> Driver<'a> {
    fn new(measurement: &'a Measurement<'a>, streams: Vec<TcpStream>, first: usize) -> io::Result<Self> {
        let options = measurement.options;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        epoll::add(
            &epoll,
            &timer,
            EventData::new_u64(TIMER),
            EventFlags::IN | EventFlags::ET,
        )?;
        let now = measurement.clock.now();
        let share = streams.len() as f64 / options.connections as f64;
        let mut connections = Vec::with_capacity(streams.len());
        for (slot, stream) in streams.into_iter().enumerate() {
            epoll::add(&epoll, &stream, EventData::new_u64(slot as u64), EventFlags::IN)?;
            connections.push(Connection {
                stream: Some(stream),
                conversation: Conversation::new(measurement.workload, measurement.phrases, options, first + slot),
                reader: AnswerReader::default(),
                sent: 0,
                began: now,
                busy: false,
                waits_for_room: false,
                answers: false,
            });
        }
        Ok(Self {
            measurement,
            epoll,
            free: Vec::new(),
            connections,
            due: now.min(measurement.start),
            interval: options.rate.map(|rate| Duration::from_secs_f64(1.0 / (rate * share))),
            timer,
            timer_set_for: None,
            in_flight: 0,
            tally: Tally::new(),
            progress: measurement.start.max(now),
            last: measurement.start,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        self.free = (0..self.connections.len()).rev().collect();
        let patience = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        let mut events: Vec<Event> = Vec::with_capacity(256);
        loop {
            let now = self.measurement.clock.now();
            self.begin_due(now)?;
            if self.in_flight == 0 && self.has_ended(now) {
                break;
            }
            if self.gives_up_waiting(now) {
                for connection in self.connections.iter().filter(|connection| connection.busy) {
                    let what = if connection.answers {
                        "no answer"
                    } else {
                        "no answer, never one on this connection"
                    };
                    self.tally.errors.other(what);
                }
                break;
            }
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&patience),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let slot = event.data.u64();
                if slot != TIMER {
                    self.is_ready(usize::try_from(slot).unwrap_or(usize::MAX));
                }
            }
        }
        if let (Some(_), Some(end)) = (self.interval, self.measurement.end) {
            // Whatever was due before the end and is not begun by now never will be.
            while self.due < end {
                self.tally.never_started += 1;
                self.advance_due();
            }
        }
        Ok(())
    }

    /// Nothing is in flight: will anything begin any more?
    fn has_ended(&self, now: Moment) -> bool {
        self.free.is_empty() || (self.interval.is_some() && self.measurement.is_over(self.due.max(now)))
    }

    /// Answers are overdue and the measurement is over, or nothing at all has been answered for long.
    fn gives_up_waiting(&self, now: Moment) -> bool {
        let block = Duration::from_secs(u64::try_from(self.measurement.options.block_seconds).unwrap_or(0));
        match self.measurement.end {
            Some(end) => now >= end.after(DRAIN_PATIENCE),
            None => now >= self.progress.after(SILENCE_PATIENCE + block),
        }
    }

    /// Closed loop: begins on connections that were opened again. Open loop: begins what is due while there are free
    /// connections, and sets the timer for the next.
    fn begin_due(&mut self, now: Moment) -> io::Result<()> {
        if self.interval.is_none() {
            for slot in std::mem::take(&mut self.free) {
                self.begin_at_once(slot);
            }
            return Ok(());
        }
        if self.due < self.measurement.start && now >= self.measurement.start {
            // What the warm-up left undone is not the measurement's to make up for.
            self.due = self.measurement.start;
        }
        while self.due <= now {
            let Some(slot) = self.free.pop() else {
                return Ok(());
            };
            if self.measurement.is_over_for_long(now) || !self.measurement.may_begin(self.due) {
                self.free.clear();
                return Ok(());
            }
            let due = self.due;
            self.advance_due();
            self.begin(slot, due);
        }
        if self.timer_set_for == Some(self.due) {
            return Ok(());
        }
        self.timer_set_for = Some(self.due);
        let wait = self.due.since(now);
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(wait.subsec_nanos().max(1)),
        };
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    fn advance_due(&mut self) {
        self.due = self.due.after(self.interval.unwrap_or(Duration::MAX));
    }

    fn begin_at_once(&mut self, slot: usize) {
        let now = self.measurement.clock.now();
        if self.measurement.may_begin(now) {
            self.begin(slot, now);
        }
    }

    fn begin(&mut self, slot: usize, began: Moment) {
        let connection = &mut self.connections[slot];
        connection.conversation.begin();
        connection.began = began;
        connection.busy = true;
        self.in_flight += 1;
        self.send(slot);
    }

    /// Sends the request from its beginning: one write, unless it is larger than the socket's buffer.
    fn send(&mut self, slot: usize) {
        self.connections[slot].sent = 0;
        self.write(slot);
    }

    fn write(&mut self, slot: usize) {
        let connection = &mut self.connections[slot];
        let Some(stream) = &mut connection.stream else {
            return;
        };
        loop {
            let rest = &connection.conversation.request()[connection.sent..];
            match stream.write(rest) {
                Ok(count) if count == rest.len() => break,
                Ok(count) => connection.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !connection.waits_for_room {
                        connection.waits_for_room = true;
                        self.listen(slot, EventFlags::IN | EventFlags::OUT);
                    }
                    return;
                }
                Err(error) => return self.failed(slot, &error),
            }
        }
        if connection.waits_for_room {
            connection.waits_for_room = false;
            self.listen(slot, EventFlags::IN);
        }
    }

    fn listen(&mut self, slot: usize, what: EventFlags) {
        let stream = self.connections[slot].stream.as_ref();
        let modified = stream.map(|stream| epoll::modify(&self.epoll, stream, EventData::new_u64(slot as u64), what));
        if let Some(Err(error)) = modified {
            self.failed(slot, &error.into());
        }
    }

    fn is_ready(&mut self, slot: usize) {
        if self.connections[slot].waits_for_room {
            self.write(slot);
        }
        let connection = &mut self.connections[slot];
        let Some(stream) = &mut connection.stream else {
            return;
        };
        let ended = match connection.reader.read_from(stream) {
            Ok(count) => count == 0,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            Err(error) => return self.failed(slot, &error),
        };
        if !connection.busy {
            // An idle connection that the server ends is no error; one that it speaks on is, and shows as such.
            let error = (!ended).then(|| io::Error::new(ErrorKind::InvalidData, "bytes without a request"));
            return self.reconnect(slot, error.as_ref());
        }
        let (next, close) = match connection.reader.answer() {
            Ok(Some(answer)) => {
                let mut uncounted = crate::measure::Errors::default();
                let now = self.measurement.clock.now();
                self.progress = now;
                let counts = self.measurement.counts(connection.began, now);
                let errors = if counts { &mut self.tally.errors } else { &mut uncounted };
                let next = connection.conversation.answered(&answer, errors);
                self.tally.requests += u64::from(counts);
                if counts && let Next::Over(success) = next {
                    self.last = self.last.max(now);
                    if success {
                        self.tally.operations += 1;
                        let latency = now.since(connection.began).as_nanos();
                        self.tally
                            .latency_ns
                            .saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
                    }
                }
                (next, answer.close)
            }
            Ok(None) if ended => return self.failed(slot, &ErrorKind::UnexpectedEof.into()),
            Ok(None) => return,
            Err(error) => return self.failed(slot, &io::Error::new(ErrorKind::InvalidData, error)),
        };
        connection.answers = true;
        connection.reader.clear();
        if next != Next::Send {
            connection.busy = false;
            self.in_flight -= 1;
        }
        if close && !self.open_again(slot) {
            return self.give_up(slot);
        }
        match next {
            Next::Send => self.send(slot),
            Next::Over(_) if self.interval.is_some() => self.free.push(slot),
            Next::Over(_) => self.begin_at_once(slot),
        }
    }

    /// The connection failed: the operation on it is over, and another connection takes its place.
    fn failed(&mut self, slot: usize, error: &io::Error) {
        self.reconnect(slot, Some(error));
    }

    fn reconnect(&mut self, slot: usize, error: Option<&io::Error>) {
        let connection = &mut self.connections[slot];
        let now = self.measurement.clock.now();
        if let Some(error) = error
            && (!connection.busy || self.measurement.counts(connection.began, now))
        {
            self.tally.errors.io(error);
        }
        let was_busy = std::mem::take(&mut connection.busy);
        if was_busy {
            connection.conversation.cut_off();
            self.in_flight -= 1;
        }
        if !self.open_again(slot) {
            self.give_up(slot);
        } else if was_busy {
            // Not begun from here: on a connection that fails at once this would never return.
            self.free.push(slot);
        }
    }

    fn open_again(&mut self, slot: usize) -> bool {
        let connection = &mut self.connections[slot];
        // Closing the old socket takes it out of the epoll set.
        connection.stream = None;
        connection.reader.clear();
        connection.waits_for_room = false;
        connection.answers = false;
        let opened = connect(self.measurement.options.address).and_then(|stream| {
            epoll::add(&self.epoll, &stream, EventData::new_u64(slot as u64), EventFlags::IN)?;
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                self.tally.reconnects += 1;
                connection.stream = Some(stream);
                true
            }
            Err(error) => {
                self.tally.errors.io(&error);
                false
            }
        }
    }

    fn give_up(&mut self, slot: usize) {
        self.tally.lost_connections += 1;
        if std::mem::take(&mut self.connections[slot].busy) {
            self.in_flight -= 1;
        }
        self.free.retain(|free| *free != slot);
    }
}

/// Which connections each thread drives.
pub(crate) fn shares(connections: usize, threads: usize) -> impl Iterator<Item = Range<usize>> {
    (0..threads).map(move |thread| connections * thread / threads..connections * (thread + 1) / threads)
}
