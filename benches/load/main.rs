//! A load generator for any server that speaks lockd's protocol over plain HTTP.
//!
//! `cargo bench --bench load -- --help` lists the options. It drives a server that is running already, says how many
//! operations and requests per second were answered and how long they took, and, so that the reader can tell who was
//! the bottleneck, how much processor time it needed itself.
//!
//! It is made to cost little next to the server, because both often share a small machine: one thread drives many
//! connections with epoll, every request leaves in one write from a buffer that is reused, and answers are searched for
//! the three fields that matter instead of being parsed. That is also why it does not use lockd's own client. It runs on
//! Linux only, speaks no TLS, follows no redirects and repeats nothing that was refused.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports on its standard streams"
)]

use std::process::ExitCode;

#[cfg(target_os = "linux")]
mod driver;
#[cfg(target_os = "linux")]
mod http;
#[cfg(target_os = "linux")]
mod measure;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod parked;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod subscribe;
#[cfg(target_os = "linux")]
mod workload;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    use options::Command;

    match options::parse(std::env::args_os()) {
        Ok(Command::Help) => {
            print!("{}", options::HELP);
            ExitCode::SUCCESS
        }
        // `cargo test --all-targets` and a bare `cargo bench` start every benchmark there is: without a server to
        // drive there is nothing to do, and that is no failure.
        Ok(Command::Nothing) => {
            println!("load: no --url, nothing to measure (cargo bench --bench load -- --help)");
            ExitCode::SUCCESS
        }
        Ok(Command::Run(options)) => match run::run(&options) {
            Ok((report, verdict)) => {
                print!("{report}");
                ExitCode::from(u8::from(verdict == run::Verdict::NothingSucceeded))
            }
            Err(error) => {
                eprintln!("load: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("load: {error}\n      --help lists the options");
            ExitCode::from(2)
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    println!("load: this load generator needs Linux (epoll, timerfd, /proc)");
    ExitCode::SUCCESS
}
