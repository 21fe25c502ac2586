//! The `lockd` program: the daemon, and the commands that talk to one. Everything is in the library, [`lockd::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    lockd::cli::main()
}
