//! `dequeue`.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use lockd_client::{Dequeue, Message, MessageHandle, Wait};
use serde::Serialize;

use super::names::{QueueFlags, variable};
use crate::cli::CliError;
use crate::cli::client::Context;
use crate::cli::client::amounts::parse_wait;
use crate::cli::client::print::{self, OutputForm};
use crate::settings::parse_duration;

/// Take a message from a queue, keep its payload in a file, and print what later commands need
#[derive(Debug, Args)]
pub(crate) struct DequeueArguments {
    #[command(flatten)]
    at: QueueFlags,
    /// Who asks [default: host name and process id]
    #[arg(long)]
    owner: Option<String>,
    /// How long to wait for a message: a duration, seconds, nowait or forever
    #[arg(long, value_name = "WAIT", default_value = "forever", value_parser = parse_wait, allow_hyphen_values = true)]
    block: Wait,
    /// How long nobody else gets the message
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    visibility: Option<Duration>,
    /// Messages to lease; the first one is kept, the others go back to the queue at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    page_size: u32,
    /// A cursor
    #[arg(long, value_name = "CURSOR")]
    start_after: Option<String>,
    /// Also lease the state of the message
    #[arg(long)]
    stateful: bool,
    /// File for the payload [default: a new one in the directory for temporary files]
    #[arg(long, short = 'o', value_name = "PATH")]
    payload_out: Option<PathBuf>,
    /// text: shell exports for eval; json: a summary
    #[arg(long, value_name = "FORM", default_value = "text")]
    output: OutputForm,
}

/// A message as JSON. What belongs to its state is there only with state.
#[derive(Serialize)]
struct Summary {
    namespace: String,
    queue: String,
    message_id: String,
    attempts: i64,
    failure_attempts: i64,
    max_attempts: i64,
    visibility_timeout_secs: u64,
    not_visible_until_unix: i64,
    lease_id: String,
    lease_expires_at_unix: i64,
    fencing_token: i64,
    meta_etag: String,
    cursor: String,
    payload_path: String,
    payload_content_type: String,
    payload_bytes: u64,
    #[serde(flatten)]
    state: Option<StateSummary>,
}

#[derive(Serialize)]
struct StateSummary {
    state_lease_id: String,
    state_lease_expires_at_unix: i64,
    state_fencing_token: i64,
    state_etag: String,
}

impl DequeueArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let client = context.client(self.at.namespace(context.variables)?)?;
        let mut request = Dequeue::from_queue(self.at.queue(context.variables)?)
            .wait(self.block)
            .visibility(self.visibility.unwrap_or_default())
            .page_size(self.page_size)
            .start_after(self.start_after.clone().unwrap_or_default())
            .with_state(self.stateful);
        if let Some(owner) = &self.owner {
            request = request.owner(owner);
        }
        let taken = match self.page_size {
            0 | 1 => client.dequeue(request).map(|message| vec![message]),
            _ => client.dequeue_batch(request),
        };
        let mut taken = match taken {
            Err(error) if error.is_waiting() => {
                writeln!(context.stderr, "no messages available (try again later)")?;
                return Ok(());
            }
            taken => taken?.into_iter(),
        };
        let Some(message) = taken.next() else { return Ok(()) };
        for other in taken {
            other.defer(Duration::ZERO)?;
        }
        let (path, payload_bytes) = self.keep_payload(&message)?;
        // The lease outlives this process: that is the point of the command.
        let message = message.detach();
        match self.output {
            OutputForm::Json => print::json(context.stdout, &summary(&message, &path, payload_bytes))?,
            OutputForm::Text => export(context, &message, &path)?,
        }
        if self.payload_out.is_none() {
            context.stdout.flush()?;
            writeln!(context.stderr, "payload: {} ({payload_bytes} bytes)", path.display())?;
        }
        Ok(())
    }

    /// Writes the payload to its file, for the user alone. When that fails, the message goes back to the queue.
    fn keep_payload(&self, message: &Message) -> Result<(PathBuf, u64), CliError> {
        let about = |path: &Path, error: &dyn Display| CliError::new(format!("{}: {error}", path.display()));
        match &self.payload_out {
            Some(path) => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                let mut file = options.open(path).map_err(|error| about(path, &error))?;
                let written = message.copy_to(&mut file).map_err(|error| about(path, &error))?;
                Ok((path.clone(), written))
            }
            None => {
                let mut file = tempfile::Builder::new()
                    .prefix("lockd-queue-")
                    .suffix(".bin")
                    .tempfile()?;
                let written = message.copy_to(&mut file)?;
                let (_, path) = file.keep().map_err(|error| CliError::from(error.error))?;
                Ok((path, written))
            }
        }
    }
}

fn summary(message: &MessageHandle, path: &Path, payload_bytes: u64) -> Summary {
    let state = (!message.state_lease_id().is_empty()).then(|| StateSummary {
        state_lease_id: message.state_lease_id().to_owned(),
        state_lease_expires_at_unix: message.state_lease_expires_at_unix(),
        state_fencing_token: message.state_fencing_token(),
        state_etag: message.state_etag().to_owned(),
    });
    Summary {
        namespace: message.namespace().to_owned(),
        queue: message.queue().to_owned(),
        message_id: message.message_id().to_owned(),
        attempts: message.attempts(),
        failure_attempts: message.failure_attempts(),
        max_attempts: message.max_attempts(),
        visibility_timeout_secs: message.visibility().as_secs(),
        not_visible_until_unix: message.not_visible_until_unix(),
        lease_id: message.lease_id().to_owned(),
        lease_expires_at_unix: message.lease_expires_at_unix(),
        fencing_token: message.fencing_token(),
        meta_etag: message.meta_etag(),
        cursor: message.cursor().to_owned(),
        payload_path: path.display().to_string(),
        payload_content_type: message.content_type().to_owned(),
        payload_bytes,
        state,
    }
}

/// The variables of a message, those of its payload and its state included; empty ones are left out.
pub(super) fn exports(message: &MessageHandle, payload_path: &str) -> Vec<(&'static str, String)> {
    let mut all = vec![
        (variable::NAMESPACE, message.namespace().to_owned()),
        (variable::NAME, message.queue().to_owned()),
        (variable::MESSAGE_ID, message.message_id().to_owned()),
        (variable::LEASE, message.lease_id().to_owned()),
        (variable::FENCING_TOKEN, message.fencing_token().to_string()),
        (variable::META_ETAG, message.meta_etag()),
        (variable::PAYLOAD_PATH, payload_path.to_owned()),
        (variable::CURSOR, message.cursor().to_owned()),
    ];
    if !message.state_lease_id().is_empty() {
        all.extend([
            (variable::STATE_LEASE, message.state_lease_id().to_owned()),
            (variable::STATE_FENCING_TOKEN, message.state_fencing_token().to_string()),
            (variable::STATE_ETAG, message.state_etag().to_owned()),
        ]);
    }
    all.retain(|(_, value)| !value.is_empty());
    all
}

fn export(context: &mut Context<'_>, message: &MessageHandle, path: &Path) -> io::Result<()> {
    let exports = exports(message, &path.display().to_string());
    for (name, value) in &exports {
        print::export(context.stdout, name, value)?;
    }
    // What an earlier message with state has left would be taken for this one's.
    for name in [
        variable::STATE_LEASE,
        variable::STATE_FENCING_TOKEN,
        variable::STATE_ETAG,
    ] {
        let stale = (context.variables)(name).is_some_and(|value| !value.is_empty());
        if stale && exports.iter().all(|(exported, _)| *exported != name) {
            writeln!(context.stdout, "unset {name}")?;
        }
    }
    Ok(())
}
