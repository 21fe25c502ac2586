//! `ack`, `nack`, `extend`.

use std::time::Duration;

use clap::{Args, ValueEnum};
use lockd_client::wire::ExtendResponse;

use super::names::{MessageFlags, variable};
use crate::cli::CliError;
use crate::cli::client::Context;
use crate::cli::client::print::{self, OutputForm};
use crate::cli::client::session::given;
use crate::settings::parse_duration;

/// Acknowledge a message: it is done and gone
#[derive(Debug, Args)]
pub(crate) struct AckArguments {
    #[command(flatten)]
    message: MessageFlags,
    /// Etag of the state's marker [env: LOCKD_QUEUE_STATE_ETAG]
    #[arg(long, value_name = "ETAG")]
    state_etag: Option<String>,
}

impl AckArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let mut named = self.message.named(context.variables)?;
        if let Some(etag) = given(self.state_etag.as_deref(), variable::STATE_ETAG, context.variables) {
            named = named.state_etag(etag);
        }
        context.client(None)?.message(named)?.ack()?;
        Ok(writeln!(context.stdout, "acknowledged")?)
    }
}

/// Why a message is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Intent {
    /// An attempt that failed
    Failure,
    /// Not now; counts no failure
    Defer,
}

/// Give a message back
#[derive(Debug, Args)]
pub(crate) struct NackArguments {
    #[command(flatten)]
    message: MessageFlags,
    /// Nobody gets the message before this time is over
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    delay: Option<Duration>,
    /// failure: an attempt that failed; defer: not now, counts no failure
    #[arg(
        long,
        short,
        value_enum,
        ignore_case = true,
        default_value = "failure",
        hide_possible_values = true
    )]
    intent: Intent,
    /// What went wrong, stored with the message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    reason: Option<String>,
}

impl NackArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let reason = self.reason.as_deref().filter(|reason| !reason.trim().is_empty());
        if reason.is_some() && self.intent == Intent::Defer {
            return Err(CliError::new("--reason is only supported when --intent=failure"));
        }
        let message = context.client(None)?.message(self.message.named(context.variables)?)?;
        let delay = self.delay.unwrap_or_default();
        match (self.intent, reason) {
            (Intent::Defer, _) => message.defer(delay)?,
            (Intent::Failure, None) => message.nack(delay)?,
            (Intent::Failure, Some(reason)) => message.nack_because(delay, reason)?,
        }
        Ok(writeln!(context.stdout, "requeued")?)
    }
}

/// Prolong the lease of a message
#[derive(Debug, Args)]
pub(crate) struct ExtendArguments {
    #[command(flatten)]
    message: MessageFlags,
    /// New life of the lease, counted from now [default: the visibility timeout of the message]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    extend: Option<Duration>,
    /// Print a shell export of the message's new entity tag instead, which a later nack or extend needs
    #[arg(long)]
    export: bool,
    /// text or json
    #[arg(long, value_name = "FORM", default_value = "text")]
    output: OutputForm,
}

impl ExtendArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let message = context.client(None)?.message(self.message.named(context.variables)?)?;
        let lease_expires_at_unix = message.extend(self.extend.unwrap_or_default())?;
        let answer = ExtendResponse {
            lease_expires_at_unix,
            visibility_timeout_seconds: i64::try_from(message.visibility().as_secs()).unwrap_or(i64::MAX),
            meta_etag: message.meta_etag(),
            state_lease_expires_at_unix: message.state_lease_expires_at_unix(),
            correlation_id: message.correlation_id(),
        };
        match (self.export, self.output) {
            (true, _) => print::export(context.stdout, variable::META_ETAG, &answer.meta_etag)?,
            (false, OutputForm::Json) => print::json(context.stdout, &answer)?,
            (false, OutputForm::Text) => writeln!(
                context.stdout,
                "lease_expires_at_unix={} visibility_timeout_seconds={}",
                answer.lease_expires_at_unix, answer.visibility_timeout_seconds
            )?,
        }
        Ok(())
    }
}
