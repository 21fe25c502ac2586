//! One run: the measurements in their order, and the counters of the processes around each of them.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use lockd::clock::{Clock, Moment, SystemClock};

use crate::driver::{Measurement, connect, drive, shares};
use crate::http::AnswerReader;
use crate::measure::{Errors, Tally};
use crate::options::Options;
use crate::parked;
use crate::process::{Process, allow_open_files};
use crate::report::{self, Cpu, Measured};
use crate::subscribe;
use crate::workload::{Lease, Phrases, Workload};

const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Whether a run says anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Measured,
    /// A measurement without one operation that succeeded.
    NothingSucceeded,
}

/// Why there was no run.
#[derive(Debug)]
pub(crate) struct RunError {
    doing: &'static str,
    source: io::Error,
}

impl RunError {
    /// For `map_err`: what was being done.
    pub(crate) fn when(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { doing, source }
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.source)
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Measures, and returns the report.
pub(crate) fn run(options: &Options) -> Result<(String, Verdict), RunError> {
    let subscribes = options.workloads.contains(&Workload::QueueSubscribe);
    let subscribers = if subscribes { 2 * options.subscribers as u64 } else { 0 };
    let files = options.connections as u64 + options.keys.min(options.connections as u64) + subscribers + 64;
    allow_open_files(files).map_err(RunError::when("raising the limit of open files"))?;
    let clock = SystemClock::new();
    if let [Workload::Parked | Workload::ParkedQueue] = options.workloads[..] {
        let outcome = parked::run(options, &clock)?;
        let verdict = if outcome.wake_up_ns.is_empty() {
            Verdict::NothingSucceeded
        } else {
            Verdict::Measured
        };
        return Ok((report::parked(options, &outcome), verdict));
    }
    let rounds = measure_all(options, &clock)?;
    let all_succeeded = rounds.iter().flatten().all(|measured| measured.tally.operations > 0);
    let verdict = if all_succeeded {
        Verdict::Measured
    } else {
        Verdict::NothingSucceeded
    };
    Ok((report::measured(options, &rounds), verdict))
}

/// The measurements by round, each with one entry per workload in the order of the options.
pub(crate) fn measure_all(options: &Options, clock: &SystemClock) -> Result<Vec<Vec<Measured>>, RunError> {
    let phrases = Phrases::new(options);
    if options.workloads.contains(&Workload::PublicRead) {
        write_state(options, &phrases).map_err(RunError::when("writing the state to read"))?;
    }
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        let mut round = Vec::new();
        for workload in &options.workloads {
            if !options.json {
                eprintln!("round {number} of {}: {} ...", options.rounds, workload.name());
            }
            round.push(match workload {
                Workload::QueueSubscribe => subscribe::measure(options, &phrases, clock)?,
                workload => measure(*workload, options, &phrases, clock)?,
            });
        }
        rounds.push(round);
    }
    Ok(rounds)
}

fn measure(
    workload: Workload,
    options: &Options,
    phrases: &Phrases,
    clock: &SystemClock,
) -> Result<Measured, RunError> {
    let mut shared_out = Vec::new();
    for share in shares(options.connections, options.threads) {
        let streams: io::Result<Vec<TcpStream>> = share.clone().map(|_| connect(options.address)).collect();
        shared_out.push((share.start, streams.map_err(RunError::when("connecting"))?));
    }
    let start = clock.now().after(options.warmup);
    let measurement = &Measurement::new(workload, options, phrases, clock, start);
    thread::scope(|scope| {
        let mut drivers = Vec::new();
        for (first, streams) in shared_out {
            let body = move || drive(measurement, streams, first);
            let driver = thread::Builder::new().name("load".to_owned()).spawn_scoped(scope, body);
            drivers.push(driver.map_err(RunError::when("starting a thread"))?);
        }
        sleep_until(clock, start);
        let before = Reading::take(options, clock)?;
        // With a limit in operations the end is when the drivers are done; else the counters are read on time, so that
        // waiting for the last answers is not counted.
        let mut after = None;
        if let Some(end) = measurement.end {
            sleep_until(clock, end);
            after = Some(Reading::take(options, clock)?);
        }
        let mut tally = Tally::new();
        let mut last = start;
        for driver in drivers {
            let (part, part_last) = driver
                .join()
                .map_err(|_| io::Error::other("a driving thread panicked"))
                .and_then(|driven| driven)
                .map_err(RunError::when("driving the connections"))?;
            tally.add(&part);
            last = last.max(part_last);
        }
        let after = match after {
            Some(after) => after,
            None => Reading::take(options, clock)?,
        };
        let resident = options.pid.map(|pid| Process::Pid(pid).resident_bytes()).transpose();
        Ok(Measured {
            workload,
            seconds: measurement.end.unwrap_or(last).since(start).as_secs_f64(),
            tally,
            cpu: after.since(&before),
            server_resident_bytes: resident.map_err(RunError::when("reading the server's memory"))?,
        })
    })
}

pub(crate) fn sleep_until(clock: &SystemClock, moment: Moment) {
    thread::sleep(moment.since(clock.now()));
}

/// The processor time of both ends at one moment.
pub(crate) struct Reading {
    at: Moment,
    generator: f64,
    server: Option<f64>,
}

impl Reading {
    /// Reads the counters now.
    pub(crate) fn take(options: &Options, clock: &SystemClock) -> Result<Self, RunError> {
        let server = options.pid.map(|pid| Process::Pid(pid).cpu_seconds()).transpose();
        Ok(Self {
            at: clock.now(),
            generator: Process::Myself
                .cpu_seconds()
                .map_err(RunError::when("reading processor time"))?,
            server: server.map_err(RunError::when("reading the server's processor time"))?,
        })
    }

    /// What was used since an earlier reading.
    pub(crate) fn since(&self, earlier: &Reading) -> Cpu {
        Cpu {
            seconds: self.at.since(earlier.at).as_secs_f64(),
            generator_seconds: self.generator - earlier.generator,
            server_seconds: self.server.zip(earlier.server).map(|(now, then)| now - then),
        }
    }
}

/// Asks once and waits for the answer, outside of any measurement. Anything but 200 is an error.
pub(crate) fn ask(stream: &mut TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    stream.write_all(request)?;
    let mut reader = AnswerReader::default();
    loop {
        let ended = reader.read_from(stream).map_err(explained)? == 0;
        let answer = reader
            .answer()
            .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        if let Some(answer) = answer {
            if answer.status == 200 {
                return Ok(answer.body.to_vec());
            }
            let mut refusal = Errors::default();
            refusal.refused(answer.status, answer.body);
            let what = refusal.0.into_keys().next().unwrap_or_default();
            return Err(io::Error::other(format!("the server answered {what}")));
        }
        if ended {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A read that timed out says "temporarily unavailable", which explains nothing.
fn explained(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => io::Error::new(
            ErrorKind::TimedOut,
            format!(
                "the server took the connection and did not answer within {} s",
                ANSWER_PATIENCE.as_secs()
            ),
        ),
        _ => error,
    }
}

/// Acquires a key, not waiting.
pub(crate) fn acquire_now(stream: &mut TcpStream, phrases: &Phrases, key: u64) -> io::Result<Lease> {
    let mut request = Vec::new();
    phrases.acquire_blocking(&mut request, key, -1);
    let mut lease = Lease::default();
    if lease.read(&ask(stream, &request)?) {
        Ok(lease)
    } else {
        Err(io::Error::other(
            "acquire answered without lease_id, txn_id or fencing_token",
        ))
    }
}

fn write_state(options: &Options, phrases: &Phrases) -> io::Result<()> {
    let mut stream = connect(options.address)?;
    let mut request = Vec::new();
    let lease = acquire_now(&mut stream, phrases, 0)?;
    phrases.update(&mut request, 0, &lease, 0);
    ask(&mut stream, &request)?;
    phrases.release(&mut request, 0, &lease);
    ask(&mut stream, &request)?;
    Ok(())
}
