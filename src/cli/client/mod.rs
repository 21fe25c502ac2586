//! `lockd client …`: leases, states and queues from the shell.
//!
//! `eval "$(lockd client acquire -k orders)"` leaves lease, key, token and the rest in the environment, where the commands
//! that follow find them. Results go to standard output, everything about them to standard error.

use std::io::Write;

use clap::Subcommand;
use lockd_client::{Client, LeaseRef, Session};

use crate::settings::Flags;

use super::CliError;

mod amounts;
mod document;
mod lease;
pub(crate) mod print;
mod queue;
pub(crate) mod session;
mod state;

use session::{Connection, NamedLease, Variables};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    Acquire(lease::AcquireArguments),
    Keepalive(lease::KeepaliveArguments),
    Release(lease::ReleaseArguments),
    Get(state::GetArguments),
    Update(state::UpdateArguments),
    #[command(visible_aliases = ["delete", "rm"])]
    Remove(state::RemoveArguments),
    Metadata(state::MetadataArguments),
    Describe(state::DescribeArguments),
    /// Put messages into queues and take them out
    #[command(subcommand, visible_alias = "q")]
    Queue(queue::QueueCommand),
}

impl ClientCommand {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        match self {
            ClientCommand::Acquire(arguments) => arguments.run(context),
            ClientCommand::Keepalive(arguments) => arguments.run(context),
            ClientCommand::Release(arguments) => arguments.run(context),
            ClientCommand::Get(arguments) => arguments.run(context),
            ClientCommand::Update(arguments) => arguments.run(context),
            ClientCommand::Remove(arguments) => arguments.run(context),
            ClientCommand::Metadata(arguments) => arguments.run(context),
            ClientCommand::Describe(arguments) => arguments.run(context),
            ClientCommand::Queue(command) => command.run(context),
        }
    }
}

/// What surrounds a command.
pub(crate) struct Context<'a> {
    pub(crate) flags: &'a Flags,
    pub(crate) variables: Variables<'a>,
    pub(crate) stdout: &'a mut dyn Write,
    pub(crate) stderr: &'a mut dyn Write,
}

impl Context<'_> {
    /// A client whose calls go to this namespace, or to its default one.
    pub(crate) fn client(&self, namespace: Option<String>) -> Result<Client, CliError> {
        let connection = Connection::load(self.flags, self.variables)?;
        let mut builder = Client::builder()
            .endpoint(connection.server)
            .drain_aware(connection.drain_aware)
            .logger(connection.logger)
            .correlation_id(&session::correlation_id(self.variables));
        if let Some(timeout) = connection.timeout {
            builder = builder.http_timeout(timeout);
        }
        if let Some(timeout) = connection.close_timeout {
            builder = builder.close_timeout(timeout);
        }
        if let Some(timeout) = connection.keepalive_timeout {
            builder = builder.keepalive_timeout(timeout);
        }
        if let Some(namespace) = namespace {
            builder = builder.default_namespace(namespace);
        }
        Ok(builder.build()?)
    }

    /// A handle to a lease of an earlier command.
    fn session(&self, lease: NamedLease, txn_id: Option<String>) -> Result<Session, CliError> {
        let client = self.client(lease.namespace)?;
        let mut reference = LeaseRef::new(lease.key, lease.lease_id).fencing_token(lease.fencing_token);
        if let Some(txn_id) = txn_id {
            reference = reference.txn_id(txn_id);
        }
        Ok(client.session(reference)?)
    }
}
