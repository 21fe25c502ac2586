//! Queues under load through the client: whole servers, their clients and all workers in one process, over loopback TCP.
//!
//! `cargo bench --bench mem_lq -- --help` lists the cases and the switches. What it counts as a dequeue includes the
//! acknowledgement, and the clock runs from the start of the workers until the last one has ended, so figures of the mixed
//! cases are figures of whole cycles. It speaks plain text: there is no TLS yet.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports on its standard streams"
)]

use std::error::Error;
use std::process::ExitCode;

use lexopt::{Arg, Parser, ValueExt};

mod cases;
mod place;
mod run;
mod switches;
mod tally;

use cases::Case;
use switches::Switches;

const HELP: &str = "\
Queues under load, servers and clients in one process.

  cargo bench --bench mem_lq -- all | CASE ... [options]

Cases
  single_server_prefetch1_100p_100c    100 producers, 100 subscribers, 2000 messages
  single_server_prefetch4_100p_100c    the same, 4 messages leased ahead
  single_server_subscribe_100p_1c      200 messages enqueued before, 1 subscriber
  double_server_subscribe_100p_1c      the same with two servers over one store
  double_server_dequeue_100p_1c        the same, dequeued in batches
  single_server_dequeue_guard          1 producer, 1 consumer that dequeues in batches
  double_server_prefetch4_100p_100c    100 producers, 100 subscribers, two servers
  ack_lease_mem                        8 producers, 8 subscribers, 200 messages; fails on the loss of a lease
  ack_lease_disk                       the same on a disk; needs --root

Options
  --iterations N    run each case so often (1)
  --root DIR        a directory for the cases on a disk

Switches in the environment
  MEM_LQ_BENCH_PRODUCERS, _CONSUMERS, _MESSAGES    numbers for every case that has such workers
  MEM_LQ_BENCH_PREFETCH, _PREFETCH_DOUBLE          page size with one server, with two
  MEM_LQ_BENCH_WARMUP                              messages that pass before the clock starts (20)
  MEM_LQ_BENCH_DEBUG=1         debug logs of servers and clients, a line per delivery, the first error
  MEM_LQ_BENCH_TRACE=1         trace logs of servers and clients
  MEM_LQ_BENCH_EXTRA=1         more figures: times of dequeue and ack, batches, gaps, bytes, `waiting` answers
  MEM_LQ_BENCH_TRACE_GAPS=1    a line for each pause of more than 10 ms between two deliveries to one consumer
  MEM_LQ_BENCH_LOG_ERRORS=1    error logs of servers and clients
  LOCKD_BENCH_LOG_LEVEL, LOCKD_BENCH_LOG_PATH      any level, and a file instead of standard error
  LOCKD_LQ_BENCH_MESSAGES, _PRODUCERS, _CONSUMERS, _PREFETCH, _TIMEOUT_SECONDS, _ALLOW_MISMATCH=1
                               the same for the ack_lease cases
  LOCKD_READY_CACHE_TRACE=1    a line of the server for each look at a queue
";

fn main() -> ExitCode {
    match Plan::read().and_then(|plan| plan.map_or(Ok(true), |plan| plan.run())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mem_lq: {error}");
            ExitCode::from(2)
        }
    }
}

struct Plan {
    cases: Vec<Case>,
    iterations: usize,
    switches: Switches,
}

impl Plan {
    /// `None` when there is nothing to do. Cargo starts every benchmark there is, so a command line without a case is no
    /// error.
    fn read() -> Result<Option<Self>, Box<dyn Error + Send + Sync>> {
        let switches = Switches::read(&|name| std::env::var(name).ok())?;
        let all = cases::all(&switches);
        let (mut cases, mut iterations, mut root) = (Vec::new(), 1, None);
        let mut parser = Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Arg::Long("bench") => {}
                Arg::Long("help") | Arg::Short('h') => {
                    print!("{HELP}");
                    return Ok(None);
                }
                Arg::Long("iterations") => iterations = parser.value()?.parse()?,
                Arg::Long("root") => root = Some(std::path::PathBuf::from(parser.value()?)),
                Arg::Value(name) if name == "all" => cases.extend(all.iter().cloned()),
                Arg::Value(name) => {
                    let name = name.string()?;
                    let found = all.iter().find(|case| case.name == name);
                    cases.push(found.ok_or(format!("there is no case {name:?}; see --help"))?.clone());
                }
                other => return Err(other.unexpected().into()),
            }
        }
        if cases.is_empty() {
            println!("mem_lq: no case, nothing to measure (cargo bench --bench mem_lq -- --help)");
            return Ok(None);
        }
        for case in &mut cases {
            if case.store == cases::StoreKind::Disk {
                case.root.clone_from(&root);
            }
        }
        Ok(Some(Self {
            cases,
            iterations,
            switches,
        }))
    }

    /// True when every case that was run went well.
    fn run(&self) -> Result<bool, Box<dyn Error + Send + Sync>> {
        if self.switches.cpu_profile {
            eprintln!("mem_lq: MEM_LQ_BENCH_CPUPROFILE: there is no profiler inside; run this program under one");
        }
        let mut all_well = true;
        println!("{}", tally::HEADING);
        for case in &self.cases {
            if case.store == cases::StoreKind::Disk && case.root.is_none() {
                println!("| {} | not run: it needs --root |", case.name);
                continue;
            }
            for _ in 0..self.iterations {
                let report = run::run(case, &self.switches)?;
                println!("{}", report.row(case));
                eprint!("{}", report.details(case, &self.switches));
                all_well &= report.is_well(case);
            }
        }
        Ok(all_well)
    }
}
