//! `watch` and `stats`: looking without taking.

use std::io::{self, Write};

use clap::Args;
use lockd_client::wire::{QueueStatsResponse, QueueWatchEvent};

use super::names::QueueFlags;
use crate::cli::CliError;
use crate::cli::client::Context;
use crate::cli::client::print::{self, OutputForm};

/// Print how a queue is, and every change of it, one line each
#[derive(Debug, Args)]
pub(crate) struct WatchArguments {
    #[command(flatten)]
    at: QueueFlags,
    /// End after so many lines
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// text or json
    #[arg(long, value_name = "FORM", default_value = "text")]
    output: OutputForm,
}

impl WatchArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let client = context.client(self.at.namespace(context.variables)?)?;
        let watch = client.watch_queue(&self.at.queue(context.variables)?)?;
        for event in watch.take(self.count.unwrap_or(usize::MAX)) {
            let event = event?;
            match self.output {
                OutputForm::Json => {
                    let line = serde_json::to_string(&event).map_err(io::Error::from)?;
                    writeln!(context.stdout, "{line}")?;
                }
                OutputForm::Text => show_event(context.stdout, &event)?,
            }
            context.stdout.flush()?;
        }
        Ok(())
    }
}

fn show_event(out: &mut dyn Write, event: &QueueWatchEvent) -> io::Result<()> {
    let time = print::iso_time(event.changed_at_unix);
    write!(out, "{time} queue={} available={}", event.queue, event.available)?;
    if !event.head_message_id.is_empty() {
        write!(out, " head_message_id={}", event.head_message_id)?;
    }
    writeln!(out)
}

/// Print who waits for a queue and which message is next
#[derive(Debug, Args)]
pub(crate) struct StatsArguments {
    #[command(flatten)]
    at: QueueFlags,
    /// text or json
    #[arg(long, value_name = "FORM", default_value = "text")]
    output: OutputForm,
}

impl StatsArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let client = context.client(self.at.namespace(context.variables)?)?;
        let stats = client.queue_stats(&self.at.queue(context.variables)?)?;
        match self.output {
            OutputForm::Json => print::json(context.stdout, &stats)?,
            OutputForm::Text => show_stats(context.stdout, &stats)?,
        }
        Ok(())
    }
}

/// One line per value; those of the next message only when there is one.
fn show_stats(out: &mut dyn Write, stats: &QueueStatsResponse) -> io::Result<()> {
    writeln!(out, "namespace: {}\nqueue: {}", stats.namespace, stats.queue)?;
    writeln!(out, "available: {}", stats.available)?;
    if !stats.head_message_id.is_empty() {
        writeln!(out, "head_message_id: {}", stats.head_message_id)?;
        for (name, unix) in [
            ("head_enqueued_at_unix", stats.head_enqueued_at_unix),
            ("head_not_visible_until_unix", stats.head_not_visible_until_unix),
        ] {
            writeln!(out, "{name}: {unix} ({})", print::iso_time(unix))?;
        }
        writeln!(out, "head_age_seconds: {}", stats.head_age_seconds)?;
    }
    writeln!(out, "waiting_consumers: {}", stats.waiting_consumers)?;
    writeln!(out, "pending_candidates: {}", stats.pending_candidates)?;
    writeln!(out, "total_consumers: {}", stats.total_consumers)?;
    writeln!(out, "has_active_watcher: {}", stats.has_active_watcher)
}
