//! `subscribe`: a command per message, or the messages themselves, one after the other.

use std::io::{self, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use clap::Args;
use data_encoding::BASE64;
use lockd_client::{BoxError, Client, Dequeue, Message, Wait};
use serde::Serialize;
use serde_json::{Map, Value};

use super::dequeue::exports;
use super::names::{QueueFlags, variable};
use crate::cli::CliError;
use crate::cli::client::Context;
use crate::cli::client::amounts::parse_wait;
use crate::cli::client::print::OutputForm;
use crate::settings::parse_duration;

/// Take messages one after the other: run a command for each, or print them
///
/// The command finds the payload on its standard input and the message in LOCKD_QUEUE_* variables. When it ends well, the
/// message is acknowledged, else it is given back as a failed attempt. Its lease is prolonged meanwhile. Without a command,
/// messages are acknowledged once they are printed.
#[derive(Debug, Args)]
pub(crate) struct SubscribeArguments {
    #[command(flatten)]
    at: QueueFlags,
    /// Who asks [default: host name and process id]
    #[arg(long)]
    owner: Option<String>,
    /// End when no message came for this long: a duration, seconds, nowait or forever
    #[arg(long, value_name = "WAIT", default_value = "forever", value_parser = parse_wait, allow_hyphen_values = true)]
    block: Wait,
    /// How long nobody else gets a message, unless it is prolonged
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    visibility: Option<Duration>,
    /// Messages to lease ahead
    #[arg(long, value_name = "N", default_value_t = 1)]
    prefetch: u32,
    /// Also lease the state of each message
    #[arg(long)]
    stateful: bool,
    /// End after so many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// How long a message rests whose command failed
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    retry_delay: Option<Duration>,
    /// How messages are printed. text: the payload; json: one object per line
    #[arg(long, value_name = "FORM", default_value = "text")]
    output: OutputForm,
    /// A command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A message as a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    namespace: &'a str,
    queue: &'a str,
    message_id: &'a str,
    attempts: i64,
    failure_attempts: i64,
    max_attempts: i64,
    fencing_token: i64,
    correlation_id: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    attributes: &'a Map<String, Value>,
    payload_content_type: &'a str,
    /// When it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    /// When it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl SubscribeArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let client = context.client(self.at.namespace(context.variables)?)?;
        let mut left = self.count.unwrap_or(u64::MAX);
        let page = self.prefetch.min(u32::try_from(left).unwrap_or(u32::MAX));
        let mut request = Dequeue::from_queue(self.at.queue(context.variables)?)
            .wait(self.block)
            .visibility(self.visibility.unwrap_or_default())
            .page_size(page)
            .close_delay(self.retry_delay.unwrap_or_default())
            .with_state(self.stateful);
        if let Some(owner) = &self.owner {
            request = request.owner(owner);
        }
        match self.block {
            Wait::Forever => self.stream(context, &client, &request, left),
            // A subscription asks again and again; a dequeue says when there is nothing.
            _ => {
                while 0 < left {
                    match client.dequeue(&request) {
                        Err(error) if error.is_waiting() => break,
                        taken => self.take(context, taken?, true)?,
                    }
                    left -= 1;
                }
                Ok(())
            }
        }
    }

    fn stream(
        &self,
        context: &mut Context<'_>,
        client: &Client,
        request: &Dequeue,
        mut left: u64,
    ) -> Result<(), CliError> {
        while 0 < left {
            let outcome = client.subscribe(request, |message| {
                self.take(context, message, false).map_err(|error| error.to_string())?;
                left -= 1;
                match left {
                    // Leaving by an error is the one way to leave; it is looked at right below.
                    0 => Err("done".into()),
                    _ => Ok(()),
                }
            });
            match outcome {
                Err(_) if left == 0 => {}
                // The server has ended the stream: it is going down, and perhaps coming back.
                Ok(()) => std::thread::sleep(Duration::from_millis(100)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Deals with one message and settles it. A command that fails is no failure of ours.
    fn take(&self, context: &mut Context<'_>, message: Message, alone: bool) -> Result<(), CliError> {
        if alone {
            message.start_auto_extend()?;
        }
        if self.command.is_empty() {
            self.print(context, &message)?;
            return Ok(message.ack()?);
        }
        let status = run_command(&self.command, &message)
            .map_err(|error| CliError::new(format!("{}: {error}", self.command[0])))?;
        if status.success() {
            return Ok(message.ack()?);
        }
        writeln!(context.stderr, "message {}: {status}", message.message_id())?;
        let delay = self.retry_delay.unwrap_or_default();
        match message.nack_because(delay, &status.to_string()) {
            Err(error) if !error.is_message_lost() => Err(error.into()),
            // Somebody else has it now.
            _ => Ok(()),
        }
    }

    fn print(&self, context: &mut Context<'_>, message: &Message) -> Result<(), CliError> {
        let payload = message.bytes()?;
        match self.output {
            OutputForm::Text => {
                context.stdout.write_all(&payload)?;
                if !payload.ends_with(b"\n") {
                    context.stdout.write_all(b"\n")?;
                }
            }
            OutputForm::Json => {
                let text = std::str::from_utf8(&payload).ok();
                let line = Line {
                    namespace: message.namespace(),
                    queue: message.queue(),
                    message_id: message.message_id(),
                    attempts: message.attempts(),
                    failure_attempts: message.failure_attempts(),
                    max_attempts: message.max_attempts(),
                    fencing_token: message.fencing_token(),
                    correlation_id: message.correlation_id(),
                    attributes: message.attributes(),
                    payload_content_type: message.content_type(),
                    payload: text,
                    payload_base64: text.is_none().then(|| BASE64.encode(&payload)),
                };
                let line = serde_json::to_string(&line).map_err(io::Error::from)?;
                writeln!(context.stdout, "{line}")?;
            }
        }
        // Printed means handed on: only then the message may be acknowledged.
        Ok(context.stdout.flush()?)
    }
}

/// Runs the command with the payload on its standard input.
fn run_command(command: &[String], message: &Message) -> Result<ExitStatus, BoxError> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut prepared = Command::new(program);
    // What an earlier dequeue has left in our own environment is not about this message.
    for name in [
        variable::PAYLOAD_PATH,
        variable::CURSOR,
        variable::STATE_LEASE,
        variable::STATE_FENCING_TOKEN,
        variable::STATE_ETAG,
    ] {
        prepared.env_remove(name);
    }
    let mut child = prepared
        .args(arguments)
        .envs(exports(message, ""))
        .env("LOCKD_QUEUE_ATTEMPTS", message.attempts().to_string())
        .env("LOCKD_QUEUE_CONTENT_TYPE", message.content_type())
        .stdin(Stdio::piped())
        .spawn()?;
    let fed = match child.stdin.take() {
        Some(mut stdin) => feed(message, &mut stdin),
        None => Ok(()),
    };
    let status = child.wait()?;
    fed?;
    Ok(status)
}

/// A command need not read all of its input.
fn feed(message: &Message, stdin: &mut dyn Write) -> Result<(), BoxError> {
    match message.copy_to(stdin) {
        Err(lockd_client::Error::Handler(cause)) if is_broken_pipe(&*cause) => Ok(()),
        outcome => Ok(outcome.map(drop)?),
    }
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
