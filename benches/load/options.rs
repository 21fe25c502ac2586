//! The command line of the load generator, checked as a whole before anything is connected.

use std::ffi::OsString;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};
use lockd_client::wire::DEFAULT_PORT;

use crate::workload::{DOCUMENT_BYTES_MIN, STAMP_BYTES, Workload};

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Load generator for a running lockd server.

  cargo bench --bench load -- --url http://127.0.0.1:9341 [options]

What to do
  --url URL             the server, http only (port 9341 if none is named)
  --workload NAME       may be repeated: the workloads then take turns, and their ratios are printed
      health              GET /healthz                                        1 request per operation
      lease               acquire (not waiting), release                      2 requests (the default)
      lock                acquire, update, release                            3 requests
      public-read         GET /v1/get?public=1 of one prepared key            1 request
      queue               enqueue, dequeue, ack                               3 requests
      queue-subscribe     enqueue on each connection; subscribers that ack    2 requests, and a stream each
      parked              acquires that wait on held keys, then one wake-up after the other; stands alone
      parked-queue        the same with dequeues that wait for a message
  --rounds N            how often the workloads take turns (1)
  --connections N       connections kept open; with parked, waiting requests (32)
  --seconds S           length of each measurement (10)
  --operations N        measure this many operations instead
  --warmup S            load before each measurement that is not counted (1)
  --rate N              open loop: start N operations per second whether or not earlier ones are answered, and count
                        latency from when an operation was due. Without it each connection sends its next operation
                        when the last is answered (closed loop), and latency leaves out what a stall held up

What to send
  --keys N              keys to take turns over (one per connection; with parked: 1)
  --contended           one key for all, same as --keys 1
  --document-bytes N    size of the JSON state of lock and public-read (512, at least 18)
  --queues N            with queue: queues to take turns over (1)
  --payload-bytes N     size of a message (512, at least 20)
  --subscribers N       with queue-subscribe: streams (as many as connections)
  --prefetch N          with queue-subscribe: messages that each leases ahead, 1 to 64 (16)
  --ttl S               life of a lease in seconds (60; with parked: 1800)
  --block S             block_seconds of acquire: -1 not waiting, 0 without limit (-1; with parked: 0)
  --namespace NAME      (default)

How to drive and report
  --threads N           threads that drive the connections (2)
  --pid PID             process id of the server on this machine: also report its processor time and memory
  --settle S            with parked: pause between parking and the first wake-up (2)
  --json                one JSON object instead of text

Keys are named bench-<random>-<number>; a server keeps a small record of each for good.
";

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Print the help text.
    Help,
    /// Called by cargo among other targets, without a server to drive.
    Nothing,
    /// Measure.
    Run(Box<Options>),
}

/// How long one measurement lasts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    Time(Duration),
    Operations(u64),
}

/// Everything there is to choose.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The URL as given, for the report.
    pub(crate) url: String,
    /// Where to connect: the first address that the host resolves to.
    pub(crate) address: SocketAddr,
    /// Value of the `Host` header.
    pub(crate) host: String,
    /// In the order given, without repetition; never empty.
    pub(crate) workloads: Vec<Workload>,
    pub(crate) rounds: usize,
    pub(crate) connections: usize,
    /// At most one per connection.
    pub(crate) threads: usize,
    pub(crate) limit: Limit,
    pub(crate) warmup: Duration,
    /// Operations per second over all connections; `None` is the closed loop.
    pub(crate) rate: Option<f64>,
    pub(crate) keys: u64,
    pub(crate) document_bytes: usize,
    pub(crate) queues: u64,
    pub(crate) payload_bytes: usize,
    pub(crate) subscribers: usize,
    pub(crate) prefetch: usize,
    pub(crate) ttl_seconds: i64,
    pub(crate) block_seconds: i64,
    pub(crate) namespace: String,
    /// Process id of the server.
    pub(crate) pid: Option<u32>,
    pub(crate) settle: Duration,
    pub(crate) json: bool,
}

/// Why a command line was refused.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

/// Reads a command line, the program's name included.
///
/// Cargo adds `--bench` when it benchmarks and passes the arguments of its test harness when it tests, so a command line
/// without `--url` is only refused when cargo did not write it alone.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let given = |name: &str| {
        arguments
            .iter()
            .filter_map(|argument| argument.to_str())
            .any(|argument| argument == name || argument.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')))
    };
    if given("--help") || given("-h") {
        return Ok(Command::Help);
    }
    let by_cargo_bench = given("--bench");
    if !given("--url") && (!by_cargo_bench || arguments.len() <= 2) {
        return Ok(Command::Nothing);
    }
    read(Parser::from_iter(arguments)).map(|options| Command::Run(Box::new(options)))
}

fn read(mut parser: Parser) -> Result<Options, UsageError> {
    let mut url = None;
    let mut workloads = Vec::new();
    let (mut rounds, mut connections, mut threads) = (1, 32, 2);
    let (mut seconds, mut operations, mut warmup) = (None, None, 1.0);
    let (mut rate, mut keys, mut document_bytes) = (None, None, 512);
    let (mut queues, mut payload_bytes, mut subscribers, mut prefetch) = (1, 512, None, 16);
    let (mut ttl_seconds, mut block_seconds) = (None, None);
    let mut namespace = lockd_client::wire::DEFAULT_NAMESPACE.to_owned();
    let (mut pid, mut settle, mut json) = (None, 2.0, false);
    while let Some(argument) = parser.next()? {
        let Arg::Long(name) = argument else {
            return Err(argument.unexpected().into());
        };
        match name.to_owned().as_str() {
            "bench" => {}
            "url" => url = Some(parser.value()?.string()?),
            "workload" => workloads.push(parser.value()?.parse_with(Workload::named)?),
            "rounds" => rounds = parser.value()?.parse_with(at_least_one)?,
            "connections" => connections = parser.value()?.parse_with(at_least_one)?,
            "threads" => threads = parser.value()?.parse_with(at_least_one)?,
            "seconds" => seconds = Some(parser.value()?.parse_with(positive)?),
            "operations" => operations = Some(parser.value()?.parse_with(at_least_one)? as u64),
            "warmup" => warmup = parser.value()?.parse_with(not_negative)?,
            "rate" => rate = Some(parser.value()?.parse_with(positive)?),
            "keys" => keys = Some(parser.value()?.parse_with(at_least_one)? as u64),
            "contended" => keys = Some(1),
            "document-bytes" => document_bytes = parser.value()?.parse()?,
            "queues" => queues = parser.value()?.parse_with(at_least_one)? as u64,
            "payload-bytes" => payload_bytes = parser.value()?.parse()?,
            "subscribers" => subscribers = Some(parser.value()?.parse_with(at_least_one)?),
            "prefetch" => prefetch = parser.value()?.parse_with(at_least_one)?,
            "ttl" => ttl_seconds = Some(parser.value()?.parse()?),
            "block" => block_seconds = Some(parser.value()?.parse()?),
            "namespace" => namespace = parser.value()?.string()?,
            "pid" => pid = Some(parser.value()?.parse()?),
            "settle" => settle = parser.value()?.parse_with(not_negative)?,
            "json" => json = true,
            other => return Err(UsageError(format!("unknown option --{other}"))),
        }
    }

    let url = url.ok_or_else(|| UsageError("--url is missing".to_owned()))?;
    let (host, address) = resolve(&url)?;
    if workloads.is_empty() {
        workloads.push(Workload::Lease);
    }
    for n in (1..workloads.len()).rev() {
        if workloads[..n].contains(&workloads[n]) {
            workloads.remove(n);
        }
    }
    let parked = workloads.contains(&Workload::Parked) || workloads.contains(&Workload::ParkedQueue);
    if parked && workloads.len() > 1 {
        return Err(UsageError("parked cannot take turns with other workloads".to_owned()));
    }
    if parked && (rate.is_some() || operations.is_some() || seconds.is_some()) {
        return Err(UsageError(
            "parked knows no --rate, --operations or --seconds".to_owned(),
        ));
    }
    if workloads.contains(&Workload::QueueSubscribe) && rate.is_some() {
        return Err(UsageError("queue-subscribe knows no --rate".to_owned()));
    }
    if payload_bytes < STAMP_BYTES || 64 < prefetch {
        return Err(UsageError(format!(
            "--payload-bytes is at least {STAMP_BYTES}, --prefetch at most 64"
        )));
    }
    let limit = match (seconds, operations) {
        (Some(_), Some(_)) => return Err(UsageError("either --seconds or --operations".to_owned())),
        (None, Some(count)) => Limit::Operations(count),
        (seconds, None) => Limit::Time(Duration::from_secs_f64(seconds.unwrap_or(10.0))),
    };
    if document_bytes < DOCUMENT_BYTES_MIN {
        return Err(UsageError(format!("--document-bytes is at least {DOCUMENT_BYTES_MIN}")));
    }
    let namespace = lockd_client::wire::normalize_namespace(&namespace)
        .ok_or_else(|| UsageError("--namespace is made of a-z 0-9 . _ -".to_owned()))?;
    Ok(Options {
        address,
        host,
        workloads,
        rounds,
        connections,
        threads: threads.min(connections),
        limit,
        warmup: Duration::from_secs_f64(warmup),
        rate,
        keys: keys.unwrap_or(if parked { 1 } else { connections as u64 }),
        document_bytes,
        queues,
        payload_bytes,
        subscribers: subscribers.unwrap_or(connections),
        prefetch,
        ttl_seconds: ttl_seconds.unwrap_or(if parked { 1800 } else { 60 }),
        block_seconds: block_seconds.unwrap_or(if parked { 0 } else { -1 }),
        namespace,
        pid,
        settle: Duration::from_secs_f64(settle),
        json,
        url,
    })
}

fn resolve(url: &str) -> Result<(String, SocketAddr), UsageError> {
    let host = url
        .strip_prefix("http://")
        .ok_or_else(|| UsageError(format!("{url}: the URL begins with http://")))?
        .trim_end_matches('/');
    if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
        return Err(UsageError(format!(
            "{url}: the URL is http://host:port and nothing else"
        )));
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
    let with_port = if has_port {
        host.to_owned()
    } else {
        format!("{host}:{DEFAULT_PORT}")
    };
    let addresses = with_port
        .to_socket_addrs()
        .map_err(|error| UsageError(format!("{url}: {error}")))?;
    let first = addresses.into_iter().next();
    let address = first.ok_or_else(|| UsageError(format!("{url}: the host has no address")))?;
    Ok((host.to_owned(), address))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number of at least 1 is needed".to_owned()),
        Ok(number) => Ok(number),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    not_negative(text).and_then(|number| {
        if number > 0.0 {
            Ok(number)
        } else {
            Err("must be above 0".to_owned())
        }
    })
}

/// A number that a `Duration` in seconds can hold with room to spare.
fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1e9).contains(&number) => Ok(number),
        _ => Err("a number from 0 to 1e9 is needed".to_owned()),
    }
}
