//! The turns: one contender at a time, all of them once per round.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::contender::{Contender, Task, Work};
use crate::options::Options;

/// What one turn gave.
pub(crate) struct Turn {
    pub(crate) contender: usize,
    pub(crate) work: Work,
    pub(crate) cycles: u64,
    pub(crate) seconds: f64,
    /// Time of a cycle in nanoseconds.
    pub(crate) cycle_ns: Histogram<u64>,
    pub(crate) failures: Vec<String>,
}

/// Longest cycle that is told apart, in nanoseconds: a minute.
const CYCLE_NS_MAX: u64 = 60_000_000_000;

pub(crate) fn run(options: &Options) -> Vec<Turn> {
    let mut turns = Vec::new();
    let mut run_id = std::process::id() % 100_000;
    for round in 0..options.rounds {
        for &work in &options.works {
            for (index, contender) in options.contenders.iter().enumerate() {
                if !contender.kind.can(work) {
                    continue;
                }
                run_id += 1;
                let turn = take_turn(options, contender, index, work, run_id);
                eprintln!(
                    "round {}: {:<6} {:<16} {:>9.0} cycles/s, {} failed",
                    round + 1,
                    work.name(),
                    contender.name,
                    turn.cycles as f64 / turn.seconds,
                    turn.failures.len()
                );
                turns.push(turn);
            }
        }
    }
    turns
}

fn take_turn(options: &Options, contender: &Contender, index: usize, work: Work, run_id: u32) -> Turn {
    let (start, stop) = (Barrier::new(options.connections + 1), AtomicBool::new(false));
    let mut turn = Turn {
        contender: index,
        work,
        cycles: 0,
        seconds: 0.0,
        cycle_ns: histogram(),
        failures: Vec::new(),
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.connections)
            .map(|worker| {
                let task = Task {
                    work,
                    worker,
                    payload_bytes: options.payload_bytes,
                    run_id,
                };
                let (start, stop) = (&start, &stop);
                scope.spawn(move || drive(contender, task, start, stop))
            })
            .collect();
        start.wait();
        let began = Instant::now();
        thread::sleep(options.length);
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            match worker.join() {
                Ok((cycle_ns, failure)) => {
                    turn.cycles += cycle_ns.len();
                    let _ = turn.cycle_ns.add(cycle_ns);
                    turn.failures.extend(failure);
                }
                Err(_) => turn.failures.push("a worker panicked".to_owned()),
            }
        }
        turn.seconds = began.elapsed().as_secs_f64();
    });
    turn
}

/// Drives one connection until it is told to stop or something fails.
fn drive(contender: &Contender, task: Task, start: &Barrier, stop: &AtomicBool) -> (Histogram<u64>, Option<String>) {
    let mut cycle_ns = histogram();
    let opened = contender.open(task);
    start.wait();
    let mut session = match opened {
        Ok(session) => session,
        Err(failure) => return (cycle_ns, Some(format!("opening: {failure}"))),
    };
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        if let Err(failure) = session.cycle() {
            return (cycle_ns, Some(failure.to_string()));
        }
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(CYCLE_NS_MAX);
        cycle_ns.saturating_record(took);
    }
    (cycle_ns, None)
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, CYCLE_NS_MAX, 3).expect("the bounds are sound")
}
