//! The same work, done by lockd and by others, in one run: a table of ratios.
//!
//! `cargo bench --bench contest -- --help` lists the options; `ci/bench` starts the contenders and runs this. Every
//! contender is driven in the same way: one thread and one connection per worker, one request at a time, and a new
//! request only after the answer to the last one. The contenders take turns, round after round, so that what disturbs the machine
//! disturbs all of them alike. A cycle counts when all of its answers have arrived and said yes.
//!
//! What a cycle does is the same for everybody, in the words of each:
//!
//! | work | cycle |
//! |---|---|
//! | `lock` | take an exclusive lock on a name of one's own, give it back |
//! | `update` | take the lock, replace a small document, give the lock back |
//! | `queue` | put a message into the queue that all share, take one from it, confirm it |
//!
//! What it leaves out: several machines, and failure. It repeats nothing that was refused.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a program that measures time with threads of its own and reports on its standard streams"
)]

use std::process::ExitCode;

mod beanstalkd;
mod contender;
mod etcd;
#[path = "../load/http.rs"]
#[allow(dead_code, reason = "shared with the load generator, which uses more of it")]
mod http;
mod lockd;
mod options;
mod postgres;
mod redis;
mod report;
mod run;
mod wire;

fn main() -> ExitCode {
    match options::parse(std::env::args_os()) {
        Ok(options::Command::Help) => {
            print!("{}", options::HELP);
            ExitCode::SUCCESS
        }
        // `cargo test --all-targets` starts every benchmark there is.
        Ok(options::Command::Nothing) => {
            println!("contest: no contender named, nothing to measure (cargo bench --bench contest -- --help)");
            ExitCode::SUCCESS
        }
        Ok(options::Command::Run(options)) => {
            let rounds = run::run(&options);
            print!("{}", report::table(&options, &rounds));
            ExitCode::from(u8::from(rounds.iter().all(|round| round.cycles == 0)))
        }
        Err(error) => {
            eprintln!("contest: {error}\n         --help lists the options");
            ExitCode::from(2)
        }
    }
}
