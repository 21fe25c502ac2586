//! `get`, `update`, `remove`, `metadata`, `describe`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use lockd_client::WriteOptions;
use lockd_client::wire::{DescribeResponse, MetadataAttributes};
use serde::Serialize;

use super::Context;
use super::document::TypeFlag;
use super::print::{self, OutputForm};
use super::session::{KeyFlags, LeaseFlags, TxnFlags};
use crate::cli::CliError;

/// Print the state of a key
#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    #[command(flatten)]
    lease: LeaseFlags,
    /// File to write the state to, - for standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Form of the state: raw, json, yaml, or auto, which goes by the extension of the file
    #[arg(
        long = "type",
        value_name = "TYPE",
        value_enum,
        ignore_case = true,
        default_value_t,
        hide_possible_values = true
    )]
    form: TypeFlag,
    /// Print version, length and etag to standard error
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = clap::ArgAction::Set, hide_possible_values = true)]
    show_meta: bool,
    /// Read what is committed, without a lease
    #[arg(long)]
    public: bool,
}

#[derive(Serialize)]
struct GetSummary {
    version: i64,
    bytes: usize,
    #[serde(skip_serializing_if = "String::is_empty")]
    etag: String,
}

impl GetArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let state = if self.public {
            let at = self.lease.at();
            let key = at.key(context.variables)?;
            context.client(at.namespace(context.variables)?)?.get_public(&key)?
        } else {
            let lease = self.lease.named(context.variables)?;
            context.session(lease, None)?.get()?
        };
        let file = (self.output != Path::new("-")).then_some(self.output.as_path());
        let (version, etag, exists) = (state.version, state.etag.clone(), state.exists());
        let bytes = state.into_bytes()?;
        let text = self.form.form(file).show(exists.then_some(&bytes))?;
        match file {
            None => context.stdout.write_all(&text)?,
            Some(path) => write_private(path, &text).map_err(|error| about(path, &error))?,
        }
        if self.show_meta {
            let summary = GetSummary {
                version,
                bytes: bytes.len(),
                etag,
            };
            // What people see first should come first, also when both streams end at one terminal.
            context.stdout.flush()?;
            print::json(context.stderr, &summary)?;
        }
        Ok(())
    }
}

fn write_private(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)?.write_all(text)
}

/// Stage a new state; it is committed by the release
#[derive(Debug, Args)]
pub(crate) struct UpdateArguments {
    /// File to read the state from; - or nothing for standard input
    input: Option<PathBuf>,
    #[command(flatten)]
    lease: LeaseFlags,
    #[command(flatten)]
    txn: TxnFlags,
    /// Form of the input: raw, json, yaml, or auto, which goes by the extension of the file
    #[arg(
        long = "type",
        value_name = "TYPE",
        value_enum,
        ignore_case = true,
        default_value_t,
        hide_possible_values = true
    )]
    form: TypeFlag,
    #[command(flatten)]
    expected: ExpectedFlags,
    /// json or text
    #[arg(long, value_name = "FORM", default_value = "json")]
    output: OutputForm,
}

/// What a write expects to find.
#[derive(Debug, Args)]
struct ExpectedFlags {
    /// Fail unless the key has this version
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..), allow_negative_numbers = true)]
    if_version: Option<i64>,
    /// Fail unless the state has this etag
    #[arg(long, value_name = "ETAG")]
    if_etag: Option<String>,
}

impl ExpectedFlags {
    fn options(&self) -> WriteOptions {
        let options = WriteOptions::new();
        let options = match self.if_version {
            Some(version) => options.if_version(version),
            None => options,
        };
        match &self.if_etag {
            Some(etag) => options.if_state_etag(etag),
            None => options,
        }
    }
}

#[derive(Serialize)]
struct UpdateOutput {
    version: i64,
    bytes: i64,
    etag: String,
}

impl UpdateArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let lease = self.lease.named(context.variables)?;
        let txn = self.txn.required(context.variables)?;
        let file = self.input.as_deref().filter(|path| *path != Path::new("-"));
        let text = read_input(file)?;
        let document = self.form.form(file).read(text)?;
        let session = context.session(lease, Some(txn))?;
        let answer = session.update_with(document, &self.expected.options())?;
        let output = UpdateOutput {
            version: answer.new_version,
            bytes: answer.bytes,
            etag: answer.new_state_etag,
        };
        match self.output {
            OutputForm::Json => print::json(context.stdout, &output)?,
            OutputForm::Text => writeln!(
                context.stdout,
                "version: {}\nbytes: {}\netag: {}",
                output.version, output.bytes, output.etag
            )?,
        }
        Ok(())
    }
}

fn read_input(file: Option<&Path>) -> Result<Vec<u8>, CliError> {
    let mut text = Vec::new();
    match file {
        None => io::stdin().lock().read_to_end(&mut text).map_err(CliError::from)?,
        Some(path) => {
            let read = File::open(path).and_then(|mut file| file.read_to_end(&mut text));
            read.map_err(|error| about(path, &error))?
        }
    };
    Ok(text)
}

fn about(path: &Path, error: &io::Error) -> CliError {
    CliError::new(format!("{}: {error}", path.display()))
}

/// Stage the removal of the state; it is committed by the release
#[derive(Debug, Args)]
pub(crate) struct RemoveArguments {
    #[command(flatten)]
    lease: LeaseFlags,
    #[command(flatten)]
    txn: TxnFlags,
    #[command(flatten)]
    expected: ExpectedFlags,
    /// json or text
    #[arg(long, value_name = "FORM", default_value = "json")]
    output: OutputForm,
}

#[derive(Serialize)]
struct RemoveOutput {
    removed: bool,
    version: i64,
}

impl RemoveArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let lease = self.lease.named(context.variables)?;
        let txn = self.txn.required(context.variables)?;
        let session = context.session(lease, Some(txn))?;
        let answer = session.remove_with(&self.expected.options())?;
        let output = RemoveOutput {
            removed: answer.removed,
            version: answer.new_version,
        };
        match self.output {
            OutputForm::Json => print::json(context.stdout, &output)?,
            OutputForm::Text => {
                writeln!(
                    context.stdout,
                    "removed: {}\nversion: {}",
                    output.removed, output.version
                )?;
            }
        }
        Ok(())
    }
}

/// Stage attributes of a key; they are committed by the release
#[derive(Debug, Args)]
pub(crate) struct MetadataArguments {
    #[command(flatten)]
    lease: LeaseFlags,
    #[command(flatten)]
    txn: TxnFlags,
    /// Hide the key from queries, or show it again
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, required = true,
          default_missing_value = "true", action = clap::ArgAction::Set, hide_possible_values = true)]
    query_hidden: bool,
    /// Fail unless the key has this version
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(0..), allow_negative_numbers = true)]
    if_version: Option<i64>,
    /// json or text
    #[arg(long, value_name = "FORM", default_value = "json")]
    output: OutputForm,
}

impl MetadataArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let lease = self.lease.named(context.variables)?;
        let txn = self.txn.required(context.variables)?;
        let session = context.session(lease, Some(txn))?;
        let options = match self.if_version {
            Some(version) => WriteOptions::new().if_version(version),
            None => WriteOptions::new(),
        };
        let attributes = MetadataAttributes {
            query_hidden: Some(self.query_hidden),
        };
        let answer = session.update_metadata_with(attributes, &options)?;
        match self.output {
            OutputForm::Json => print::json(context.stdout, &answer)?,
            OutputForm::Text => writeln!(
                context.stdout,
                "version: {}\nquery_hidden: {}",
                answer.version,
                answer.metadata.query_hidden == Some(true)
            )?,
        }
        Ok(())
    }
}

/// Print what the server knows about a key: lease, version, etag
#[derive(Debug, Args)]
pub(crate) struct DescribeArguments {
    #[command(flatten)]
    at: KeyFlags,
    /// json or text
    #[arg(long, value_name = "FORM", default_value = "json")]
    output: OutputForm,
}

impl DescribeArguments {
    pub(crate) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        let key = self.at.key(context.variables)?;
        let client = context.client(self.at.namespace(context.variables)?)?;
        let answer = client.describe(&key)?;
        match self.output {
            OutputForm::Json => print::json(context.stdout, &answer)?,
            OutputForm::Text => describe_as_text(context.stdout, &answer)?,
        }
        Ok(())
    }
}

/// Leaves out what the key does not have.
fn describe_as_text(out: &mut dyn Write, answer: &DescribeResponse) -> io::Result<()> {
    writeln!(out, "namespace: {}\nkey: {}", answer.namespace, answer.key)?;
    if !answer.lease_id.is_empty() {
        writeln!(out, "owner: {}\nlease_id: {}", answer.owner, answer.lease_id)?;
        let iso = print::iso_time(answer.expires_at_unix);
        writeln!(out, "expires_at_unix: {} ({iso})", answer.expires_at_unix)?;
    }
    writeln!(out, "version: {}", answer.version)?;
    if !answer.state_etag.is_empty() {
        writeln!(out, "etag: {}", answer.state_etag)?;
    }
    if answer.updated_at_unix > 0 {
        let iso = print::iso_time(answer.updated_at_unix);
        writeln!(out, "updated_at_unix: {} ({iso})", answer.updated_at_unix)?;
    }
    if answer.metadata.query_hidden == Some(true) {
        writeln!(out, "query_hidden: true")?;
    }
    Ok(())
}
