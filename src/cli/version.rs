//! `lockd version`.

use std::io::{self, Write};

use clap::Args;

const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print the version alone, with its leading v
    #[arg(long, conflicts_with = "semver")]
    version: bool,
    /// Print the version alone, as bare numbers
    #[arg(long)]
    semver: bool,
}

impl Arguments {
    pub(super) fn run(&self, out: &mut impl Write) -> io::Result<()> {
        if self.semver {
            writeln!(out, "{VERSION}")
        } else if self.version {
            writeln!(out, "v{VERSION}")
        } else {
            writeln!(out, "lockd v{VERSION}")
        }
    }
}
