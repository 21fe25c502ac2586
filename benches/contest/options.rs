//! What the command line says.

use std::ffi::OsString;
use std::fmt;
use std::net::ToSocketAddrs;
use std::time::Duration;

use lexopt::{Arg, Parser, ValueExt};

use crate::contender::{Contender, Kind, Work};

pub(crate) const HELP: &str = "\
Does the same work with several systems in turn and prints a table of ratios.

    cargo bench --bench contest -- CONTENDER... [OPTIONS]

A CONTENDER is NAME=KIND@HOST:PORT, for example 'lockd-disk=lockd@127.0.0.1:9341'. Kinds: lockd, etcd, redis,
beanstalkd, postgres. The ratio in a row is that contender's cycles per second divided by those of the first one
that can do the work.

    --work NAME         lock, update or queue; may be repeated; all of them by default
    --connections N     connections, each with a thread of its own (32)
    --seconds N         length of one measurement (3)
    --rounds N          how often each contender takes its turn (5)
    --payload-bytes N   size of a document or message (512)
    --help              this text
";

/// A run as asked for.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) contenders: Vec<Contender>,
    pub(crate) works: Vec<Work>,
    pub(crate) connections: usize,
    pub(crate) length: Duration,
    pub(crate) rounds: usize,
    pub(crate) payload_bytes: usize,
}

pub(crate) enum Command {
    Help,
    Nothing,
    Run(Options),
}

/// Why the command line makes no sense.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut options = Options {
        contenders: Vec::new(),
        works: Vec::new(),
        connections: 32,
        length: Duration::from_secs(3),
        rounds: 5,
        payload_bytes: 512,
    };
    let mut parser = Parser::from_iter(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            // Cargo says so to every benchmark.
            Arg::Long("bench" | "test") => {}
            Arg::Long("work") => {
                let name = parser.value()?.string()?;
                options
                    .works
                    .push(Work::parse(&name).ok_or_else(|| UsageError(format!("there is no work {name:?}")))?);
            }
            Arg::Long("connections") => options.connections = parser.value()?.parse()?,
            Arg::Long("seconds") => options.length = Duration::from_secs(parser.value()?.parse()?),
            Arg::Long("rounds") => options.rounds = parser.value()?.parse()?,
            Arg::Long("payload-bytes") => options.payload_bytes = parser.value()?.parse()?,
            Arg::Value(value) => options.contenders.push(contender(&value.string()?)?),
            other => return Err(other.unexpected().into()),
        }
    }
    if options.connections == 0 || options.rounds == 0 || options.length.is_zero() {
        return Err(UsageError(
            "connections, rounds and seconds must be at least 1".to_owned(),
        ));
    }
    if options.works.is_empty() {
        options.works = Work::ALL.to_vec();
    }
    if options.contenders.is_empty() {
        return Ok(Command::Nothing);
    }
    Ok(Command::Run(options))
}

fn contender(text: &str) -> Result<Contender, UsageError> {
    let wrong = || UsageError(format!("{text:?} is not NAME=KIND@HOST:PORT"));
    let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (kind, address) = rest.split_once('@').ok_or_else(wrong)?;
    let kind = Kind::parse(kind).ok_or_else(|| UsageError(format!("there is no kind {kind:?}")))?;
    let address = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(wrong)?;
    Ok(Contender {
        name: name.to_owned(),
        kind,
        address,
    })
}
