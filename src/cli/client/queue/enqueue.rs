//! `enqueue`.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use lockd_client::{Enqueue, Payload};

use super::names::NamespaceFlag;
use crate::cli::CliError;
use crate::cli::client::Context;
use crate::cli::client::print::{self, OutputForm};
use crate::settings::parse_duration;

/// Put a message into a queue
#[derive(Debug, Args)]
pub(crate) struct EnqueueArguments {
    /// Queue
    #[arg(long, short)]
    queue: String,
    #[command(flatten)]
    namespace: NamespaceFlag,
    /// The payload
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    data: Option<String>,
    /// File to send as the payload, instead of --data; - for standard input
    #[arg(long, short, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Media type of the payload
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Nobody gets the message before this time is over
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    delay: Option<Duration>,
    /// Visibility timeout to store with the message; consumers bring their own
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    visibility: Option<Duration>,
    /// The message is dropped when nobody has acknowledged it after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// Failed attempts after which nobody gets the message any more
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Something that comes back with every delivery; can be given more than once, or several with commas
    #[arg(long = "attr", value_name = "NAME=VALUE", value_delimiter = ',', value_parser = parse_attribute)]
    attributes: Vec<(String, String)>,
    /// text or json
    #[arg(long, value_name = "FORM", default_value = "text")]
    output: OutputForm,
}

fn parse_attribute(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.to_owned())),
        _ => Err("expected name=value".to_owned()),
    }
}

impl EnqueueArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let client = context.client(self.namespace.namespace(context.variables)?)?;
        let mut request = Enqueue::to(&self.queue)
            .delay(self.delay.unwrap_or_default())
            .visibility(self.visibility.unwrap_or_default())
            .ttl(self.ttl.unwrap_or_default())
            .max_attempts(self.max_attempts.unwrap_or_default());
        if let Some(media_type) = &self.content_type {
            request = request.content_type(media_type);
        }
        for (name, value) in &self.attributes {
            request = request.attribute(name, value.as_str());
        }
        let payload = match (&self.file, &self.data) {
            (Some(path), _) if path == Path::new("-") => Payload::reader(io::stdin()),
            (Some(path), _) => {
                let file = File::open(path).map_err(|error| CliError::new(format!("{}: {error}", path.display())))?;
                Payload::reader(file)
            }
            (None, Some(text)) => text.into(),
            (None, None) => Payload::empty(),
        };
        let stored = client.enqueue(request, payload)?;
        match self.output {
            OutputForm::Json => print::json(context.stdout, &stored)?,
            OutputForm::Text => writeln!(
                context.stdout,
                "message_id={} attempts={} max_attempts={}",
                stored.message_id, stored.attempts, stored.max_attempts
            )?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_pairs() {
        assert_eq!(parse_attribute("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(parse_attribute(" a ="), Ok(("a".to_owned(), String::new())));
        assert!(parse_attribute("a").is_err() && parse_attribute("=b").is_err());
    }
}
