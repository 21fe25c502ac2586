//! The command line: parse, pick the command, turn its outcome into an exit status.
//!
//! Without a command the program is the daemon. The exit status is 0 for success and 1 for every failure, a mistyped
//! flag included. The daemon reports a failure as its last log line (`command failed`, from `cli.root`); every other
//! command writes one plain line to standard error.
//!
//! Flags are looked up by name, together with the environment and the configuration file, by [`crate::settings`]; that
//! is why they are built from its table and not from the fields of a struct.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::register_conditional_shutdown;

use crate::settings::{Flags, SettingsError};

mod client;
mod flags;
mod namespace;
mod serve;
mod verify;
mod version;

use client::{ClientCommand, Context};
use flags::{GlobalFlags, ServerFlags};
use namespace::NamespaceCommand;
use verify::VerifyCommand;

/// Leases, JSON state and a queue for programs that run in several places.
///
/// Without a command, lockd is the daemon. Each of its options can also be set by an environment variable
/// (--max-ttl is LOCKD_MAX_TTL) and in the configuration file (max-ttl: 1h).
#[derive(Debug, Parser)]
#[command(name = "lockd", version, verbatim_doc_comment)]
struct Arguments {
    #[command(flatten)]
    global: GlobalFlags,
    #[command(flatten)]
    server: ServerFlags,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Use a server: leases, states and queues
    #[command(subcommand)]
    Client(ClientCommand),
    /// Read and change the configuration of a namespace
    #[command(subcommand, visible_alias = "ns")]
    Namespace(NamespaceCommand),
    /// Check that a store is whole
    #[command(subcommand)]
    Verify(VerifyCommand),
    /// Print the version
    Version(version::Arguments),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the program with the arguments and the environment of the process.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come this way too; they are no failure and go to standard output.
            let failed = error.use_stderr();
            let printed = error.print();
            return exit_code(!failed && printed.is_ok());
        }
    };
    let (global, server) = (arguments.global.0, arguments.server.0);
    let Some(command) = arguments.command else {
        return serve::run(&global.into_iter().chain(server).collect());
    };
    let outcome = match server.keys().next() {
        Some(name) => Err(CliError::new(format!(
            "--{name} is an option of the daemon, not of a command"
        ))),
        None => dispatch(command, &global),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, global: &Flags) -> Result<(), CliError> {
    let variables = |name: &str| std::env::var(name).ok();
    let (mut stdout, mut stderr) = (io::stdout(), io::stderr());
    let mut context = Context {
        flags: global,
        variables: &variables,
        stdout: &mut stdout,
        stderr: &mut stderr,
    };
    exit_quietly_when_interrupted()?;
    match command {
        Command::Client(command) => command.run(&mut context)?,
        Command::Namespace(command) => command.run(&mut context)?,
        Command::Verify(command) => command.run(&mut context)?,
        Command::Version(arguments) => arguments.run(&mut stdout)?,
        Command::Completions { shell } => {
            // By way of memory, because the generator panics when it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "lockd", &mut script);
            stdout.write_all(&script)?;
        }
    }
    // Here a full disk or a closed pipe still becomes an exit status.
    Ok(stdout.flush()?)
}

/// An interrupted command ends with status 1 and says nothing.
fn exit_quietly_when_interrupted() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        register_conditional_shutdown(signal, 1, Arc::new(AtomicBool::new(true)))?;
    }
    Ok(())
}

/// Why a command failed: one line for standard error.
#[derive(Debug)]
struct CliError(String);

impl CliError {
    fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<SettingsError> for CliError {
    fn from(error: SettingsError) -> Self {
        Self(error.to_string())
    }
}

impl From<lockd_client::Error> for CliError {
    fn from(error: lockd_client::Error) -> Self {
        Self(error.to_string())
    }
}

#[allow(clippy::print_stderr, reason = "the one place where a command reports its failure")]
fn complain(error: &CliError) {
    eprintln!("{error}");
}

fn exit_code(success: bool) -> ExitCode {
    if success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from([&["lockd"], arguments].concat())
    }

    fn server(arguments: &[&str]) -> Vec<(String, String)> {
        parse(arguments).unwrap().server.0.into_iter().collect()
    }

    fn pair(name: &str, text: &str) -> (String, String) {
        (name.to_owned(), text.to_owned())
    }

    #[test]
    fn the_command_tree_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_keep_their_text_and_absent_ones_are_absent() {
        assert_eq!(server(&[]), []);
        assert_eq!(
            server(&["--max-ttl", "1h", "--listen=:1", "-n", "shop"]),
            [
                pair("default-namespace", "shop"),
                pair("listen", ":1"),
                pair("max-ttl", "1h")
            ]
        );
    }

    #[test]
    fn a_switch_takes_a_value_only_after_an_equals_sign() {
        assert_eq!(server(&["--allow-plaintext"]), [pair("allow-plaintext", "true")]);
        assert_eq!(server(&["--allow-plaintext=false"]), [pair("allow-plaintext", "false")]);
        let arguments = parse(&["--disable-mtls", "version"]).unwrap();
        assert_eq!(arguments.global.0.get("disable-mtls").map(String::as_str), Some("true"));
        assert!(matches!(arguments.command, Some(Command::Version(_))));
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for arguments in [["-s", "http://a", "version"], ["version", "-s", "http://a"]] {
            let arguments = parse(&arguments).unwrap();
            assert_eq!(arguments.global.0.get("server").map(String::as_str), Some("http://a"));
        }
    }

    #[test]
    fn a_mistyped_flag_gets_a_hint() {
        let message = parse(&["--max-tll", "1h"]).unwrap_err().to_string();
        assert!(message.contains("--max-ttl"), "{message}");
    }

    #[test]
    fn foreign_flags_parse_but_stay_out_of_the_help() {
        assert_eq!(
            server(&["--connguard-enabled=false", "--logstore-segment-size", "1MB"]),
            [pair("connguard-enabled", "false"), pair("logstore-segment-size", "1MB")]
        );
        let help = Arguments::command().render_long_help().to_string();
        assert!(help.contains("--sweeper-interval <DURATION>"), "{help}");
        assert!(!help.contains("connguard"), "{help}");
        assert!(!help.contains("logstore"), "{help}");
    }
}
