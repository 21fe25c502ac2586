//! How often the daemon asks for memory: allocations and bytes per request, for each workload of the load generator.
//!
//! `cargo bench --bench allocations -- all` prints a table. The server runs in this process, whose allocator counts; the load
//! comes from this program in another role, as a process of its own, so that nothing of it is counted. Each workload is
//! driven for some operations and then for three times as many: the difference leaves out what connections and the start
//! cost. What `health` needs is what the HTTP library needs; the rest is ours.
//!
//! It leaves out time, for which there is `benches/load`: counting makes every allocation slower.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program that reports on its standard streams, and whose failure is a report too"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};

use lockd::clock::SystemClock;
use lockd::server::{Parts, Server};
use lockd::settings::{Listen, Settings, StoreLocation};

use options::Command as Parsed;

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
Allocations of the daemon per request, for each workload of the load generator, in memory and on a disk.

  cargo bench --bench allocations -- all             every workload
  cargo bench --bench allocations -- lease queue     these
";

const WORKLOADS: [&str; 6] = ["health", "lease", "lock", "public-read", "queue", "queue-subscribe"];
/// Operations of the shorter run. The longer one has three times as many.
const OPERATIONS: u64 = 2_000;
const CONNECTIONS: usize = 4;
/// Begins the command line of the other role.
const DRIVE: &str = "--drive";

/// The allocator of the system, with two counts.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

impl Counting {
    fn count(bytes: usize) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the allocator of the system with the arguments it came with, and its answer comes back as it
// is; counting allocates nothing and cannot panic.
#[allow(unsafe_code, reason = "that is what an allocator is")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the promises that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        Self::count(new_size.saturating_sub(layout.size()));
        // SAFETY: as above; the block came from `System`, as all do.
        unsafe { System.realloc(block, layout, new_size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    if arguments.first().is_some_and(|first| first == DRIVE) {
        return drive(&arguments[1..]);
    }
    let wanted: Vec<&str> = match arguments
        .iter()
        .filter_map(|argument| argument.to_str())
        .collect::<Vec<_>>()[..]
    {
        ["all"] => WORKLOADS.to_vec(),
        ["--help" | "-h"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        ref names if !names.is_empty() && names.iter().all(|name| WORKLOADS.contains(name)) => names.to_vec(),
        // `cargo test --all-targets` starts every benchmark there is.
        _ => {
            println!("allocations: no workload, nothing to count (cargo bench --bench allocations -- --help)");
            return ExitCode::SUCCESS;
        }
    };
    println!("| workload | store | allocations per request | bytes per request |");
    println!("|---|---|---|---|");
    for workload in wanted {
        for store in ["memory", "disk"] {
            let (allocations, bytes) = measure(workload, store);
            println!("| {workload} | {store} | {allocations:.1} | {bytes:.0} |");
        }
    }
    ExitCode::SUCCESS
}

/// Plays the load generator, and prints what it reports.
fn drive(arguments: &[OsString]) -> ExitCode {
    let line = std::iter::once(OsString::from("load")).chain(arguments.iter().cloned());
    let Ok(Parsed::Run(options)) = options::parse(line) else {
        unreachable!("these are its options")
    };
    let mut rounds = run::measure_all(&options, &SystemClock::new()).unwrap_or_else(|error| panic!("{error}"));
    let measured = rounds.remove(0).remove(0);
    assert!(measured.tally.errors.0.is_empty(), "{:?}", measured.tally.errors);
    println!("{}", measured.tally.requests);
    ExitCode::SUCCESS
}

/// Allocations and bytes per request.
fn measure(workload: &str, store: &str) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(Parts::new(
        Settings {
            listen: Listen::loopback_any_port(),
            store: match store {
                "disk" => StoreLocation::Disk(folder.path().join("store")),
                _ => StoreLocation::Memory,
            },
            ..Settings::default()
        },
        lockd::logging::off(),
    ))
    .unwrap();
    let run = |operations: u64| {
        let read = || [&ALLOCATIONS, &BYTES].map(|count| count.load(Ordering::Relaxed) as f64);
        let before = read();
        let requests = drive_elsewhere(&server.url(), workload, operations);
        let after = read();
        [after[0] - before[0], after[1] - before[1], requests]
    };
    // Threads, queues and tables grow to their size.
    run(OPERATIONS);
    let (short, long) = (run(OPERATIONS), run(3 * OPERATIONS));
    let requests = long[2] - short[2];
    ((long[0] - short[0]) / requests, (long[1] - short[1]) / requests)
}

/// Requests that were answered.
fn drive_elsewhere(url: &str, workload: &str, operations: u64) -> f64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        DRIVE,
        "--bench",
        "--json",
        "--warmup",
        "0",
        "--url",
        url,
        "--workload",
        workload,
    ]);
    command.args([
        "--operations",
        &operations.to_string(),
        "--connections",
        &CONNECTIONS.to_string(),
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
