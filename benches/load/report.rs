//! Turns what was counted into text for people or one JSON object for programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::measure::{Errors, Tally};
use crate::options::{Limit, Options};
use crate::workload::Workload;

/// Appends a line to a `String`, which cannot fail.
macro_rules! line {
    ($out:expr, $($text:tt)*) => {{
        $out.push_str(&format!($($text)*));
        $out.push('\n');
    }};
}

/// Processor time that both ends used over a span.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) seconds: f64,
    pub(crate) generator_seconds: f64,
    /// Known when the server's process id is.
    pub(crate) server_seconds: Option<f64>,
}

/// One workload in one round.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) workload: Workload,
    pub(crate) seconds: f64,
    pub(crate) tally: Tally,
    pub(crate) cpu: Cpu,
    /// Resident memory of the server: now, and the most since it started.
    pub(crate) server_resident_bytes: Option<(u64, u64)>,
}

impl Measured {
    fn operations_per_second(&self) -> f64 {
        self.tally.operations as f64 / self.seconds
    }

    fn requests_per_second(&self) -> f64 {
        self.tally.requests as f64 / self.seconds
    }
}

/// What the workload `parked` found.
#[derive(Debug)]
pub(crate) struct ParkedOutcome {
    /// The request that waits.
    pub(crate) what: &'static str,
    pub(crate) keys: u64,
    /// From the first connection to the answer of the last probe.
    pub(crate) parking_seconds: f64,
    pub(crate) parking_cpu: Cpu,
    /// How many still waited after the pause.
    pub(crate) waiting: usize,
    /// Answers that came before any release.
    pub(crate) refused_early: u64,
    /// Over the pause, when nobody asked for anything.
    pub(crate) idle_cpu: Cpu,
    /// From release sent to grant received, in nanoseconds.
    pub(crate) wake_up_ns: Histogram<u64>,
    pub(crate) waking_cpu: Cpu,
    pub(crate) errors: Errors,
    pub(crate) server_resident_bytes_before: Option<u64>,
    pub(crate) server_resident_bytes_parked: Option<u64>,
    /// After all have left.
    pub(crate) server_resident_bytes_after: Option<u64>,
    pub(crate) server_resident_bytes_peak: Option<u64>,
}

impl ParkedOutcome {
    /// What each waiter costs the server.
    fn server_resident_bytes_per_waiter(&self) -> Option<u64> {
        let grown = (self.server_resident_bytes_parked?).saturating_sub(self.server_resident_bytes_before?);
        grown.checked_div(self.waiting as u64)
    }
}

/// The measurements of a run as the options want them.
pub(crate) fn measured(options: &Options, rounds: &[Vec<Measured>]) -> String {
    if options.json {
        return format!("{:#}\n", measured_json(options, rounds));
    }
    let mut out = String::new();
    line!(
        out,
        "{}, {}, {}",
        options.url,
        counted(options.connections, "connection"),
        counted(options.threads, "thread")
    );
    match options.rate {
        Some(rate) => line!(
            out,
            "open loop at {rate:.0} operations/s: latency counts from when an operation was due"
        ),
        None => line!(
            out,
            "closed loop: latency counts from when an operation was sent, so what a stall held up is left out \
             (coordinated omission)"
        ),
    }
    if rounds.len() > 1 {
        for (number, round) in rounds.iter().enumerate() {
            for measured in round {
                line!(
                    out,
                    "round {}  {:<11} {:>10.0} operations/s {:>10.0} requests/s",
                    number + 1,
                    measured.workload.name(),
                    measured.operations_per_second(),
                    measured.requests_per_second()
                );
            }
        }
    }
    for (n, workload) in options.workloads.iter().enumerate() {
        put_summary(
            &mut out,
            options,
            *workload,
            &Summary::new(rounds.iter().filter_map(|round| round.get(n))),
        );
    }
    for n in 1..options.workloads.len() {
        let Ratio {
            of,
            to,
            median,
            least,
            most,
        } = Ratio::new(rounds, n);
        line!(
            out,
            "\n{of} / {to} in requests/s: {median:.3} (median of the rounds; {least:.3} to {most:.3})"
        );
    }
    out
}

/// The same as JSON.
pub(crate) fn measured_json(options: &Options, rounds: &[Vec<Measured>]) -> Value {
    let one = |measured: &Measured| {
        json!({
            "workload": measured.workload.name(),
            "seconds": measured.seconds,
            "operations": measured.tally.operations,
            "requests": measured.tally.requests,
            "operations_per_second": measured.operations_per_second(),
            "requests_per_second": measured.requests_per_second(),
            "latency_us": latency_json(&measured.tally.latency_ns),
            "errors": measured.tally.errors.0,
            "reconnects": measured.tally.reconnects,
            "lost_connections": measured.tally.lost_connections,
            "never_started": measured.tally.never_started,
            "cpu": cpu_json(&measured.cpu),
            "server_resident_bytes": measured.server_resident_bytes.map(|(now, _)| now),
            "server_resident_bytes_peak": measured.server_resident_bytes.map(|(_, most)| most),
        })
    };
    let summaries = options.workloads.iter().enumerate().map(|(n, workload)| {
        let summary = Summary::new(rounds.iter().filter_map(|round| round.get(n)));
        json!({
            "workload": workload.name(),
            "operations_per_second": summary.operations_per_second,
            "requests_per_second": summary.requests_per_second,
            "latency_us": latency_json(&summary.tally.latency_ns),
            "errors": summary.tally.errors.0,
        })
    });
    let ratios = (1..options.workloads.len()).map(|n| {
        let Ratio {
            of,
            to,
            median,
            least,
            most,
        } = Ratio::new(rounds, n);
        json!({ "of": of, "to": to, "requests_per_second": median, "least": least, "most": most })
    });
    json!({
        "url": options.url,
        "loop": if options.rate.is_some() { "open" } else { "closed" },
        "rate": options.rate,
        "connections": options.connections,
        "threads": options.threads,
        "keys": options.keys,
        "document_bytes": options.document_bytes,
        "medians": summaries.collect::<Vec<_>>(),
        "ratios": ratios.collect::<Vec<_>>(),
        "rounds": rounds.iter().map(|round| round.iter().map(one).collect::<Vec<_>>()).collect::<Vec<_>>(),
    })
}

/// The outcome of `parked` as the options want it.
pub(crate) fn parked(options: &Options, outcome: &ParkedOutcome) -> String {
    if options.json {
        return format!("{:#}\n", parked_json(options, outcome));
    }
    let mut out = String::new();
    let ParkedOutcome {
        keys,
        parking_seconds,
        waiting,
        wake_up_ns,
        ..
    } = outcome;
    line!(
        out,
        "{}, {} waiting on {}",
        options.url,
        counted(options.connections, outcome.what),
        counted(
            usize::try_from(*keys).unwrap_or(usize::MAX),
            if outcome.what == "acquire" {
                "held key"
            } else {
                "empty queue"
            }
        )
    );
    line!(
        out,
        "parked        {parking_seconds:.2} s, {:.0} per second; {waiting} still waiting after {:.1} s",
        options.connections as f64 / parking_seconds,
        options.settle.as_secs_f64()
    );
    if outcome.refused_early > 0 {
        line!(
            out,
            "              {} were answered before any release",
            outcome.refused_early
        );
    }
    line!(out, "wake-up       {}", latency_text(wake_up_ns));
    line!(
        out,
        "              from release sent to grant received, {} times, one at a time",
        wake_up_ns.len()
    );
    put_errors(&mut out, &outcome.errors);
    line!(out, "processor     parking: {}", cpu_text(&outcome.parking_cpu));
    line!(out, "              waiting: {}", cpu_text(&outcome.idle_cpu));
    line!(out, "              waking:  {}", cpu_text(&outcome.waking_cpu));
    let memory = (
        outcome.server_resident_bytes_before,
        outcome.server_resident_bytes_parked,
        outcome.server_resident_bytes_after,
        outcome.server_resident_bytes_peak,
    );
    if let (Some(before), Some(parked), Some(after), Some(peak)) = memory {
        line!(
            out,
            "server memory {:.1} MB before, {:.1} MB while they waited, {:.1} MB after all have left, {:.1} MB at most since \
             it started",
            megabytes(before),
            megabytes(parked),
            megabytes(after),
            megabytes(peak)
        );
        if let Some(each) = outcome.server_resident_bytes_per_waiter() {
            line!(out, "              {each} bytes for each who waits");
        }
    }
    out
}

fn parked_json(options: &Options, outcome: &ParkedOutcome) -> Value {
    json!({
        "url": options.url,
        "workload": options.workloads.first().map(|workload| workload.name()),
        "waits": outcome.what,
        "connections": options.connections,
        "keys": outcome.keys,
        "parking_seconds": outcome.parking_seconds,
        "settle_seconds": options.settle.as_secs_f64(),
        "waiting": outcome.waiting,
        "refused_early": outcome.refused_early,
        "wake_ups": outcome.wake_up_ns.len(),
        "wake_up_us": latency_json(&outcome.wake_up_ns),
        "errors": outcome.errors.0,
        "parking_cpu": cpu_json(&outcome.parking_cpu),
        "idle_cpu": cpu_json(&outcome.idle_cpu),
        "waking_cpu": cpu_json(&outcome.waking_cpu),
        "server_resident_bytes_before": outcome.server_resident_bytes_before,
        "server_resident_bytes_parked": outcome.server_resident_bytes_parked,
        "server_resident_bytes_per_waiter": outcome.server_resident_bytes_per_waiter(),
        "server_resident_bytes_after": outcome.server_resident_bytes_after,
        "server_resident_bytes_peak": outcome.server_resident_bytes_peak,
    })
}

/// One workload over all rounds: medians of the rates, everything else added up.
struct Summary {
    operations_per_second: f64,
    requests_per_second: f64,
    tally: Tally,
    cpu: Cpu,
    server_resident_bytes: Option<(u64, u64)>,
}

impl Summary {
    fn new<'a>(rounds: impl Iterator<Item = &'a Measured>) -> Self {
        let mut summary = Self {
            operations_per_second: 0.0,
            requests_per_second: 0.0,
            tally: Tally::new(),
            cpu: Cpu {
                seconds: 0.0,
                generator_seconds: 0.0,
                server_seconds: Some(0.0),
            },
            server_resident_bytes: None,
        };
        let (mut operations, mut requests) = (Vec::new(), Vec::new());
        for measured in rounds {
            operations.push(measured.operations_per_second());
            requests.push(measured.requests_per_second());
            summary.tally.add(&measured.tally);
            summary.cpu.seconds += measured.cpu.seconds;
            summary.cpu.generator_seconds += measured.cpu.generator_seconds;
            let servers = summary.cpu.server_seconds.zip(measured.cpu.server_seconds);
            summary.cpu.server_seconds = servers.map(|(sum, more)| sum + more);
            summary.server_resident_bytes = measured.server_resident_bytes;
        }
        summary.operations_per_second = median(operations);
        summary.requests_per_second = median(requests);
        summary
    }
}

/// How a workload compares with the first one, round by round, in requests per second.
struct Ratio {
    of: &'static str,
    to: &'static str,
    median: f64,
    least: f64,
    most: f64,
}

impl Ratio {
    fn new(rounds: &[Vec<Measured>], n: usize) -> Self {
        let pairs = || rounds.iter().filter_map(|round| Some((round.get(n)?, round.first()?)));
        let ratios: Vec<f64> = pairs()
            .map(|(of, to)| of.requests_per_second() / to.requests_per_second())
            .collect();
        let (of, to) = pairs()
            .next()
            .map(|(of, to)| (of.workload.name(), to.workload.name()))
            .unwrap_or_default();
        Self {
            of,
            to,
            least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            most: ratios.iter().copied().fold(0.0, f64::max),
            median: median(ratios),
        }
    }
}

/// The middle value; of an even number the mean of the two in the middle; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

fn put_summary(out: &mut String, options: &Options, workload: Workload, summary: &Summary) {
    let tally = &summary.tally;
    line!(out, "\n{}", workload.name());
    line!(
        out,
        "  rate        {:.0} operations/s, {:.0} requests/s{}",
        summary.operations_per_second,
        summary.requests_per_second,
        if options.rounds > 1 {
            " (medians of the rounds)"
        } else {
            ""
        }
    );
    line!(out, "  latency     {}", latency_text(&tally.latency_ns));
    put_errors(out, &tally.errors);
    if tally.reconnects + tally.lost_connections > 0 {
        line!(
            out,
            "  connections {} opened again, {} lost for good",
            tally.reconnects,
            tally.lost_connections
        );
    }
    if tally.never_started > 0 {
        line!(
            out,
            "  behind      {} operations were due and never sent: the rate was not reached, and the latency of these is \
             missing above",
            tally.never_started
        );
    }
    line!(out, "  processor   {}", cpu_text(&summary.cpu));
    if let (Some(server), true) = (summary.cpu.server_seconds, tally.requests > 0) {
        // With a limit in operations the counters are read a little before and after; the difference does not matter.
        let per_request = |seconds: f64| seconds * 1e6 / tally.requests as f64;
        line!(
            out,
            "              per request: server {:.1} us, load generator {:.1} us",
            per_request(server),
            per_request(summary.cpu.generator_seconds)
        );
    }
    if let Some((now, most)) = summary.server_resident_bytes {
        line!(
            out,
            "  server      {:.1} MB resident, {:.1} MB at most since it started",
            megabytes(now),
            megabytes(most)
        );
    }
    if let (Limit::Operations(_), true) = (options.limit, tally.operations == 0) {
        line!(out, "  nothing succeeded");
    }
}

fn put_errors(out: &mut String, errors: &Errors) {
    if errors.total() == 0 {
        line!(out, "  errors      none");
        return;
    }
    for (what, count) in &errors.0 {
        line!(out, "  errors      {count} x {what}");
    }
}

fn cpu_text(cpu: &Cpu) -> String {
    let percent = |used: f64| 100.0 * used / cpu.seconds;
    let generator = format!(
        "load generator used {:.0} % of one core",
        percent(cpu.generator_seconds)
    );
    match cpu.server_seconds {
        Some(server) => format!("{generator}, server {:.0} %", percent(server)),
        None => generator,
    }
}

fn cpu_json(cpu: &Cpu) -> Value {
    json!({
        "generator_cores": cpu.generator_seconds / cpu.seconds,
        "server_cores": cpu.server_seconds.map(|server| server / cpu.seconds),
    })
}

fn latency_text(latency_ns: &Histogram<u64>) -> String {
    if latency_ns.is_empty() {
        return "nothing was measured".to_owned();
    }
    let at = |quantile: f64| span_text(latency_ns.value_at_quantile(quantile));
    format!(
        "p50 {}  p99 {}  p99.9 {}  max {}",
        at(0.5),
        at(0.99),
        at(0.999),
        span_text(latency_ns.max())
    )
}

fn latency_json(latency_ns: &Histogram<u64>) -> Value {
    if latency_ns.is_empty() {
        return Value::Null;
    }
    let us = |ns: u64| ns as f64 / 1e3;
    json!({
        "p50": us(latency_ns.value_at_quantile(0.5)),
        "p99": us(latency_ns.value_at_quantile(0.99)),
        "p99_9": us(latency_ns.value_at_quantile(0.999)),
        "max": us(latency_ns.max()),
        "mean": latency_ns.mean() / 1e3,
    })
}

fn span_text(ns: u64) -> String {
    let span = Duration::from_nanos(ns);
    match ns {
        0..1_000_000 => format!("{:.0} us", span.as_secs_f64() * 1e6),
        1_000_000..1_000_000_000 => format!("{:.2} ms", span.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", span.as_secs_f64()),
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
