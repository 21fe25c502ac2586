//! `lockd namespace`: which engine answers the queries of a namespace.

use std::io::Write;

use clap::{Args, Subcommand};
use lockd_client::NamespaceSettings;
use lockd_client::wire::QueryEngines;
use serde::Serialize;

use super::CliError;
use super::client::session::namespace;
use super::client::{Context, print};

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum NamespaceCommand {
    /// Print the configuration of a namespace
    Get {
        #[command(flatten)]
        which: Which,
    },
    /// Change the configuration of a namespace
    #[command(subcommand)]
    Set(SetCommand),
}

/// What can be changed.
#[derive(Debug, Subcommand)]
pub(super) enum SetCommand {
    /// Which engine answers queries
    Query {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        engines: Engines,
        /// Change it only if the configuration still has this etag
        #[arg(long, value_name = "ETAG")]
        if_match: Option<String>,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct Engines {
    /// The engine to ask first: index or scan
    #[arg(long, value_name = "ENGINE", value_parser = ["index", "scan"], ignore_case = true, hide_possible_values = true)]
    preferred: Option<String>,
    /// The engine for when the first cannot: scan or none
    #[arg(long, value_name = "ENGINE", value_parser = ["scan", "none"], ignore_case = true, hide_possible_values = true)]
    fallback: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// Namespace [env: LOCKD_CLIENT_NAMESPACE; default: default]
    #[arg(long, short)]
    namespace: Option<String>,
    /// json or text
    #[arg(long, short, value_name = "FORM", default_value = "json", value_parser = ["text", "json"], ignore_case = true, hide_possible_values = true)]
    output: String,
}

impl NamespaceCommand {
    pub(super) fn run(&self, context: &mut Context<'_>) -> Result<(), CliError> {
        match self {
            NamespaceCommand::Get { which } => {
                let client = context.client(namespace(which.namespace.as_deref(), context.variables)?)?;
                let settings = client.namespace_config(None)?;
                which.show(context.stdout, &settings)
            }
            NamespaceCommand::Set(SetCommand::Query {
                which,
                engines,
                if_match,
            }) => {
                let client = context.client(namespace(which.namespace.as_deref(), context.variables)?)?;
                let word = |engine: &Option<String>| engine.as_deref().unwrap_or_default().to_ascii_lowercase();
                let query = QueryEngines {
                    preferred_engine: word(&engines.preferred),
                    fallback_engine: word(&engines.fallback),
                };
                let settings = client.set_namespace_config(None, query, if_match.as_deref())?;
                which.show(context.stdout, &settings)
            }
        }
    }
}

/// The configuration with its etag beside it; a namespace that was never configured has none.
#[derive(Serialize)]
struct Shown<'a> {
    namespace: &'a str,
    query: &'a QueryEngines,
    #[serde(skip_serializing_if = "str::is_empty")]
    etag: &'a str,
}

impl Which {
    fn show(&self, out: &mut dyn Write, settings: &NamespaceSettings) -> Result<(), CliError> {
        let shown = Shown {
            namespace: &settings.config.namespace,
            query: &settings.config.query,
            etag: &settings.etag,
        };
        if self.output.eq_ignore_ascii_case("json") {
            print::json(out, &shown)?;
            return Ok(());
        }
        writeln!(out, "Namespace: {}", shown.namespace)?;
        writeln!(out, "Preferred query engine: {}", shown.query.preferred_engine)?;
        writeln!(out, "Fallback query engine: {}", shown.query.fallback_engine)?;
        writeln!(out, "ETag: {}", shown.etag)?;
        Ok(())
    }
}
