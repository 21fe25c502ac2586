//! `lockd client queue …`: messages from the shell.
//!
//! `eval "$(lockd client queue dequeue -q jobs)"` leaves the message, its lease and the path of its payload in the
//! environment, where `ack`, `nack` and `extend` find them. `subscribe` does it all for a command: once per message.

use clap::Subcommand;

use super::Context;
use crate::cli::CliError;

mod dequeue;
mod enqueue;
mod look;
mod names;
mod settle;
mod subscribe;

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum QueueCommand {
    Enqueue(enqueue::EnqueueArguments),
    Dequeue(dequeue::DequeueArguments),
    Ack(settle::AckArguments),
    Nack(settle::NackArguments),
    Extend(settle::ExtendArguments),
    Subscribe(subscribe::SubscribeArguments),
    Watch(look::WatchArguments),
    Stats(look::StatsArguments),
}

impl QueueCommand {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        match self {
            QueueCommand::Enqueue(arguments) => arguments.run(context),
            QueueCommand::Dequeue(arguments) => arguments.run(context),
            QueueCommand::Ack(arguments) => arguments.run(context),
            QueueCommand::Nack(arguments) => arguments.run(context),
            QueueCommand::Extend(arguments) => arguments.run(context),
            QueueCommand::Subscribe(arguments) => arguments.run(context),
            QueueCommand::Watch(arguments) => arguments.run(context),
            QueueCommand::Stats(arguments) => arguments.run(context),
        }
    }
}
