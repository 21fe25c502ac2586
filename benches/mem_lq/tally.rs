//! What is counted, and how it is told.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::time::Duration;

use crate::cases::{Call, Case};
use crate::switches::Switches;

pub(crate) const HEADING: &str = "\
| case | producers | consumers | page | enqueue/s | dequeue/s | produced | consumed | duplicates | lost leases | errors |
|---|---|---|---|---|---|---|---|---|---|---|";

/// What one worker has counted.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) produced: u64,
    pub(crate) consumed: u64,
    pub(crate) enqueue_retries: u64,
    pub(crate) dequeue_retries: u64,
    pub(crate) subscribe_retries: u64,
    pub(crate) ack_retries: u64,
    /// Acks that found the lease in other hands, by error code.
    pub(crate) lost_leases: BTreeMap<String, u64>,
    /// Ids of the messages that were delivered.
    pub(crate) delivered: Vec<String>,
    pub(crate) batches: u64,
    pub(crate) waiting: u64,
    pub(crate) bytes: u64,
    pub(crate) waited: Duration,
    pub(crate) acking: Duration,
    pub(crate) gap_max: Duration,
    pub(crate) errors: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, part: Tally) {
        self.produced += part.produced;
        self.consumed += part.consumed;
        self.enqueue_retries += part.enqueue_retries;
        self.dequeue_retries += part.dequeue_retries;
        self.subscribe_retries += part.subscribe_retries;
        self.ack_retries += part.ack_retries;
        for (code, count) in part.lost_leases {
            *self.lost_leases.entry(code).or_default() += count;
        }
        self.delivered.extend(part.delivered);
        self.batches += part.batches;
        self.waiting += part.waiting;
        self.bytes += part.bytes;
        self.waited += part.waited;
        self.acking += part.acking;
        self.gap_max = self.gap_max.max(part.gap_max);
        self.errors.extend(part.errors);
    }
}

/// The outcome of one run.
pub(crate) struct Report {
    pub(crate) tally: Tally,
    pub(crate) elapsed: Duration,
    /// `waiting` answers that the client has dealt with by itself.
    pub(crate) waiting_answers: u64,
}

impl Report {
    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    fn duplicates(&self) -> usize {
        let distinct: HashSet<&String> = self.tally.delivered.iter().collect();
        self.tally.delivered.len() - distinct.len()
    }

    fn lost_leases(&self) -> u64 {
        self.tally.lost_leases.values().sum()
    }

    /// True when every message was consumed and nothing went wrong that must not.
    pub(crate) fn is_well(&self, case: &Case) -> bool {
        let enough = case.messages as u64;
        let exact = !case.guards_leases
            || (self.tally.produced == enough && self.tally.consumed == enough && self.lost_leases() == 0);
        self.tally.errors.is_empty() && enough <= self.tally.consumed && exact
    }

    /// A row of the table.
    pub(crate) fn row(&self, case: &Case) -> String {
        let enqueued = match case.producers {
            0 => "-".to_owned(),
            _ => format!("{:.0}", self.per_second(self.tally.produced)),
        };
        format!(
            "| {} | {} | {} | {} | {enqueued} | {:.0} | {} | {} | {} | {} | {} |",
            case.name,
            case.producers,
            case.consumers,
            case.page,
            self.per_second(self.tally.consumed),
            self.tally.produced,
            self.tally.consumed,
            self.duplicates(),
            self.lost_leases(),
            self.tally.errors.len(),
        )
    }

    /// Everything else worth a line.
    pub(crate) fn details(&self, case: &Case, switches: &Switches) -> String {
        let tally = &self.tally;
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "  {name} {value}");
        };
        for (name, count) in [
            ("enqueue_retry_total", tally.enqueue_retries),
            ("dequeue_retry_total", tally.dequeue_retries),
            ("subscribe_retry_total", tally.subscribe_retries),
            ("ack_retry_total", tally.ack_retries),
        ] {
            if 0 < count || switches.extra {
                line(name, count.to_string());
            }
        }
        for (code, count) in &tally.lost_leases {
            let name = match code.as_str() {
                "lease_required" | "not_found" => "ack_lease_missing_total",
                "queue_message_lease_mismatch" => "ack_lease_id_mismatch_total",
                _ => "ack_lease_mismatch_total",
            };
            line(name, format!("{count} ({code})"));
        }
        if switches.extra {
            let per_message = |span: Duration| span.as_secs_f64() * 1e3 / tally.consumed.max(1) as f64;
            line("dequeue_ms/op", format!("{:.3}", per_message(tally.waited)));
            line("ack_ms/op", format!("{:.3}", per_message(tally.acking)));
            line(
                "waiting_responses",
                (tally.waiting.max(self.waiting_answers)).to_string(),
            );
            if case.call == Call::Batch {
                let mean = tally.delivered.len() as f64 / tally.batches.max(1) as f64;
                line("messages_per_batch", format!("{mean:.2}"));
            }
            line(
                "dequeue_gap_max_ms",
                format!("{:.3}", tally.gap_max.as_secs_f64() * 1e3),
            );
            line("bytes", tally.bytes.to_string());
        }
        for error in tally.errors.iter().take(3) {
            line("error:", error.clone());
        }
        match out.is_empty() {
            true => out,
            false => format!("{}\n{out}", case.name),
        }
    }
}
