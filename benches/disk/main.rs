//! What a disk costs: figures of the daemon on a directory, each beside what the same run can be compared with.
//!
//! `cargo bench --bench disk -- --help` lists the options. The server is a process of its own (this program in another
//! role, so that the counters of its engine can be asked for); the load is that of `benches/load`, driven from here.
//!
//! It leaves out other systems, for which there is `benches/contest`, and the network.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program that reports on its standard streams, and whose failure is a report too"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt};

mod figures;
mod served;

// The load generator is used as it is; it reaches its own parts from the root of the crate.
#[allow(dead_code, reason = "shared with the load generator, which uses more of it")]
#[path = "../load/driver.rs"]
mod driver;
#[allow(dead_code, reason = "as above")]
#[path = "../load/http.rs"]
mod http;
#[allow(dead_code, reason = "as above")]
#[path = "../load/measure.rs"]
mod measure;
#[allow(dead_code, reason = "as above")]
#[path = "../load/options.rs"]
mod options;
#[allow(dead_code, reason = "as above")]
#[path = "../load/parked.rs"]
mod parked;
#[allow(dead_code, reason = "as above")]
#[path = "../load/process.rs"]
mod process;
#[allow(dead_code, reason = "as above")]
#[path = "../load/report.rs"]
mod report;
#[allow(dead_code, reason = "as above")]
#[path = "../load/run.rs"]
mod run;
#[allow(dead_code, reason = "as above")]
#[path = "../load/subscribe.rs"]
mod subscribe;
#[allow(dead_code, reason = "as above")]
#[path = "../load/workload.rs"]
mod workload;

const HELP: &str = "\
Figures of the daemon on a disk.

  cargo bench --bench disk -- --part groups --part keys [options]

  --part NAME           may be repeated
      groups              acquire, update, release against /healthz in the same run, and syncs per request
      keys                by the number of keys: restart, memory, the cost of a request
  --dir PATH            an empty or missing directory for the stores (a temporary one)
  --connections N       may be repeated; for groups (1, 8, 32, 128)
  --keys N              may be repeated; for keys (1000, 10000, 100000, 1000000)
  --seconds S           length of each measurement (4)
  --rounds N            how often measurements take turns (3)
";

/// What there is to choose.
struct Choice {
    parts: Vec<String>,
    dir: PathBuf,
    connections: Vec<usize>,
    keys: Vec<usize>,
    seconds: f64,
    rounds: usize,
    /// Play the server on this root.
    serve: Option<PathBuf>,
    /// Write so many keys first, and end.
    preload: Option<usize>,
}

fn main() -> ExitCode {
    let choice = match parse() {
        Ok(Some(choice)) => choice,
        Ok(None) => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("disk: {error}\n      --help lists the options");
            return ExitCode::from(2);
        }
    };
    if let Some(root) = &choice.serve {
        served::play_server(root, choice.preload);
        return ExitCode::SUCCESS;
    }
    for part in &choice.parts {
        match part.as_str() {
            "groups" => figures::groups(&choice),
            "keys" => figures::keys(&choice),
            other => {
                eprintln!("disk: unknown part {other}");
                return ExitCode::from(2);
            }
        }
    }
    if choice.parts.is_empty() {
        // `cargo test --all-targets` starts every benchmark there is.
        println!("disk: no --part, nothing to measure (cargo bench --bench disk -- --help)");
    }
    ExitCode::SUCCESS
}

fn parse() -> Result<Option<Choice>, lexopt::Error> {
    let mut choice = Choice {
        parts: Vec::new(),
        dir: PathBuf::new(),
        connections: Vec::new(),
        keys: Vec::new(),
        seconds: 4.0,
        rounds: 3,
        serve: None,
        preload: None,
    };
    let mut parser = Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            Arg::Long("bench") => {}
            Arg::Long("part") => choice.parts.push(parser.value()?.string()?),
            Arg::Long("dir") => choice.dir = parser.value()?.into(),
            Arg::Long("connections") => choice.connections.push(parser.value()?.parse()?),
            Arg::Long("keys") => choice.keys.push(parser.value()?.parse()?),
            Arg::Long("seconds") => choice.seconds = parser.value()?.parse()?,
            Arg::Long("rounds") => choice.rounds = parser.value()?.parse()?,
            Arg::Long("serve") => choice.serve = Some(parser.value()?.into()),
            Arg::Long("preload") => choice.preload = Some(parser.value()?.parse()?),
            // What cargo passes to a test harness of its own.
            _ if choice.parts.is_empty() => {}
            other => return Err(other.unexpected()),
        }
    }
    if choice.connections.is_empty() {
        choice.connections = vec![1, 8, 32, 128];
    }
    if choice.keys.is_empty() {
        choice.keys = vec![1_000, 10_000, 100_000, 1_000_000];
    }
    Ok(Some(choice))
}
