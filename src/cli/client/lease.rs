//! `acquire`, `keepalive`, `release`.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use lockd_client::wire::AcquireResponse;
use lockd_client::{Acquire, Retries, Wait};
use serde::Serialize;

use super::Context;
use super::amounts::{parse_ttl, parse_wait};
use super::print::{self, OutputForm};
use super::session::{KeyFlags, LeaseFlags, TxnFlags, variable};
use crate::cli::CliError;

/// Acquire a lease and print what later commands need
#[derive(Debug, Args)]
pub(crate) struct AcquireArguments {
    #[command(flatten)]
    at: KeyFlags,
    #[command(flatten)]
    txn: TxnFlags,
    /// Life of the lease
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_ttl)]
    ttl: Duration,
    /// How long to wait for a held key: a duration, seconds, nowait or forever
    #[arg(long, value_name = "WAIT", default_value = "10s", value_parser = parse_wait, allow_hyphen_values = true)]
    block: Wait,
    /// Who asks [default: host name and process id]
    #[arg(long)]
    owner: Option<String>,
    /// How many failures in a row to get over; -1 any number
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    retries: Option<i64>,
    /// Fail when the key has ever been acquired before
    #[arg(long)]
    if_not_exists: bool,
    /// text: shell exports for eval; json: the answer
    #[arg(long, value_name = "FORM", default_value = "text")]
    output: OutputForm,
}

impl AcquireArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let namespace = self.at.namespace(context.variables)?;
        let client = context.client(namespace)?;
        // The key of the environment is that of the lease one has; it is not taken here.
        let mut request = Acquire::key(self.at.key_flag().unwrap_or_default())
            .ttl(self.ttl)
            .wait(self.block)
            .if_not_exists(self.if_not_exists);
        if let Some(owner) = &self.owner {
            request = request.owner(owner);
        }
        if let Some(txn_id) = self.txn.txn(context.variables) {
            request = request.txn_id(txn_id);
        }
        if let Some(retries) = self.retries {
            request = request.failure_retries(match u32::try_from(retries) {
                Ok(limit) => Retries::Limited(limit),
                Err(_) if retries < 0 => Retries::Unlimited,
                Err(_) => Retries::Limited(u32::MAX),
            });
        }
        // The lease outlives this process: that is the point of the command.
        let session = client.acquire(request)?.detach();
        let granted = AcquireResponse {
            namespace: session.namespace().to_owned(),
            lease_id: session.lease_id().to_owned(),
            txn_id: session.txn_id().to_owned(),
            key: session.key().to_owned(),
            owner: session.owner().to_owned(),
            expires_at_unix: session.expires_at_unix(),
            version: session.version(),
            state_etag: session.state_etag(),
            fencing_token: session.fencing_token().unwrap_or_default(),
            retry_after_seconds: 0,
            correlation_id: session.correlation_id().unwrap_or_default().to_owned(),
        };
        match self.output {
            OutputForm::Json => print::json(context.stdout, &granted)?,
            OutputForm::Text => export_grant(context.stdout, &granted, &client.endpoints().join(","))?,
        }
        Ok(())
    }
}

fn export_grant(out: &mut dyn Write, granted: &AcquireResponse, server: &str) -> io::Result<()> {
    print::export(out, variable::LEASE, &granted.lease_id)?;
    print::export(out, variable::KEY, &granted.key)?;
    print::export(out, variable::OWNER, &granted.owner)?;
    print::export(out, variable::FENCING_TOKEN, &granted.fencing_token)?;
    print::export(out, variable::TXN_ID, &granted.txn_id)?;
    print::export(out, variable::SERVER, &server)?;
    print::export(out, variable::VERSION, &granted.version)?;
    print::export(out, variable::ETAG, &granted.state_etag)?;
    print::export(out, variable::EXPIRES_UNIX, &granted.expires_at_unix)?;
    if !granted.namespace.is_empty() {
        print::export(out, variable::NAMESPACE, &granted.namespace)?;
    }
    if granted.retry_after_seconds > 0 {
        print::export(out, variable::RETRY_AFTER, &granted.retry_after_seconds)?;
    }
    if !granted.correlation_id.is_empty() {
        print::export(out, variable::CORRELATION_ID, &granted.correlation_id)?;
    }
    Ok(())
}

/// Renew a lease
#[derive(Debug, Args)]
pub(crate) struct KeepaliveArguments {
    #[command(flatten)]
    lease: LeaseFlags,
    #[command(flatten)]
    txn: TxnFlags,
    /// New life of the lease, counted from now
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_ttl)]
    ttl: Duration,
    /// json or text
    #[arg(long, value_name = "FORM", default_value = "json")]
    output: OutputForm,
}

#[derive(Serialize)]
struct KeepaliveOutput {
    expires_at_unix: i64,
    expires_at_iso: String,
}

impl KeepaliveArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let txn = self.txn.txn(context.variables);
        let session = context.session(self.lease.named(context.variables)?, txn)?;
        let expires_at_unix = session.keepalive(self.ttl)?;
        let output = KeepaliveOutput {
            expires_at_unix,
            expires_at_iso: print::iso_time(expires_at_unix),
        };
        match self.output {
            OutputForm::Json => print::json(context.stdout, &output)?,
            OutputForm::Text => {
                writeln!(
                    context.stdout,
                    "expires_at_unix: {expires_at_unix} ({})",
                    output.expires_at_iso
                )?;
            }
        }
        Ok(())
    }
}

/// End a lease and commit what was staged under it
#[derive(Debug, Args)]
pub(crate) struct ReleaseArguments {
    #[command(flatten)]
    lease: LeaseFlags,
    #[command(flatten)]
    txn: TxnFlags,
    /// Drop what was staged instead of committing it
    #[arg(long)]
    rollback: bool,
    /// json or text
    #[arg(long, value_name = "FORM", default_value = "json")]
    output: OutputForm,
}

#[derive(Serialize)]
struct ReleaseOutput {
    released: bool,
}

impl ReleaseArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let lease = self.lease.named(context.variables)?;
        let txn = self.txn.required(context.variables)?;
        let session = context.session(lease, Some(txn))?;
        match self.rollback {
            true => session.rollback()?,
            false => session.release()?,
        }
        match self.output {
            OutputForm::Json => print::json(context.stdout, &ReleaseOutput { released: true })?,
            OutputForm::Text => writeln!(context.stdout, "released: true")?,
        }
        Ok(())
    }
}
