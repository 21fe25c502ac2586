//! The server as a process of its own, and the load on it.

use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lockd::clock::{Clock, SystemClock};
use lockd::net::sever::ListenerAddr;
use lockd::record::{Attributes, Body, KeyRecord, StateValue, encode_key};
use lockd::server::{Parts, Server};
use lockd::settings::{Listen, Settings};
use lockd::store::shared_log::{Counters, Options, SharedLogStore};
use lockd::store::{Batch, Change, Precondition, RecordKey, RecordWrite, Store};

use crate::options::{self, Command as Parsed};
use crate::process::Process;
use crate::report::Measured;
use crate::run;

/// Size of a state in bytes, here and in the load.
const STATE_BYTES: usize = 512;

/// Serves a root and answers questions about it on standard input; or fills it first and ends.
pub(crate) fn play_server(root: &Path, preload: Option<usize>) {
    let store = SharedLogStore::open(root, Options::default()).unwrap();
    if let Some(keys) = preload {
        return fill(&store, keys);
    }
    let settings = Settings {
        listen: Listen::loopback_any_port(),
        ..Settings::default()
    };
    let server = Server::start(Parts {
        store: Some(Arc::new(store.handle())),
        ..Parts::new(settings, lockd::logging::off())
    })
    .unwrap();
    let ListenerAddr::Tcp(address) = server.address() else {
        unreachable!("TCP was asked for")
    };
    println!("{address}");
    stdout().flush().unwrap();
    for _question in stdin().lock().lines() {
        let Counters {
            syncs,
            commits,
            batches,
            ..
        } = store.counters();
        println!("{syncs} {commits} {batches}");
        stdout().flush().unwrap();
    }
}

/// Writes so many keys that were used once, as the server leaves them.
fn fill(store: &SharedLogStore, keys: usize) {
    let state: Arc<[u8]> = format!("{{\"pad\":\"{}\"}}", "x".repeat(STATE_BYTES - 10))
        .into_bytes()
        .into();
    let record = encode_key(&KeyRecord {
        version: 1,
        fencing_token: 1,
        updated_at_ms: SystemClock::new().wall_ms(),
        state: Some(StateValue {
            etag: "0".repeat(64).into(),
            bytes: state.len() as u64,
            body: Body::Inline(state),
        }),
        attributes: Attributes::default(),
        lease: None,
        staged: None,
    });
    for first in (0..keys).step_by(1_000) {
        let records = (first..keys.min(first + 1_000)).map(|n| RecordWrite {
            key: RecordKey::new(format!("k/default/bench-kept-{n:09}")),
            precondition: Precondition::Absent,
            change: Change::Put(record.clone()),
        });
        store
            .write(Batch {
                records: records.collect(),
                ..Batch::default()
            })
            .unwrap();
    }
}

/// A running server.
pub(crate) struct Served {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
    /// From the start of the process until it serves.
    pub(crate) started_in: Duration,
}

impl Served {
    /// Fills a root in a process of its own.
    pub(crate) fn fill(root: &Path, keys: usize) {
        let status = role(root).args(["--preload", &keys.to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn start(root: &Path) -> Self {
        let clock = SystemClock::new();
        let start = clock.now();
        let mut child = role(root).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        Self {
            questions: child.stdin.take().unwrap(),
            answers,
            address: line.trim().parse().unwrap(),
            child,
            started_in: clock.now().since(start),
        }
    }

    /// Syncs, groups and batches since it was started.
    pub(crate) fn counters(&mut self) -> [f64; 3] {
        self.questions.write_all(b"counters\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap());
        [(); 3].map(|()| numbers.next().unwrap())
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        Process::Pid(self.child.id()).resident_bytes().unwrap().0
    }

    /// Drives one workload of the load generator.
    pub(crate) fn drive(&self, workload: &str, connections: usize, seconds: f64) -> Measured {
        let arguments = [
            "load",
            "--url",
            &format!("http://{}", self.address),
            "--workload",
            workload,
            "--connections",
            &connections.to_string(),
            "--seconds",
            &seconds.to_string(),
            "--warmup",
            "0",
            "--document-bytes",
            &STATE_BYTES.to_string(),
            "--pid",
            &self.child.id().to_string(),
            // Silences its word about rounds.
            "--json",
        ]
        .map(Into::into);
        let Ok(Parsed::Run(options)) = options::parse(arguments) else {
            unreachable!("these are its options")
        };
        let mut rounds = run::measure_all(&options, &SystemClock::new()).unwrap_or_else(|error| panic!("{error}"));
        let measured = rounds.remove(0).remove(0);
        assert!(0 < measured.tally.operations, "nothing succeeded");
        measured
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn role(root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--serve").arg(root);
    command
}
