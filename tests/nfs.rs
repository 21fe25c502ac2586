//! The suites on a local disk: `cargo test --features integration-disk`, with the root in `LOCKD_STORE` as `.env.nfs`
//! explains.
//!
//! All claims run with servers in the process of the test, which share one engine when they serve one root. Those about
//! several servers run twice more: with an engine for each, and with servers that are processes of their own.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::type_complexity,
    clippy::disallowed_methods,
    reason = "a panic is how a test fails, and a test may start threads and look at the clock"
)]

#[path = "shared_log/place.rs"]
mod place;
#[path = "shared_log/refusals.rs"]
mod refusals;
#[path = "shared_log/root.rs"]
mod root;
mod suite;

use place::Servers;
use root::Demands;

const DEMANDS: Demands = Demands {
    suite: "nfs",
    env_file: ".env.nfs",
    on_nfs: true,
};

/// Makes a test of each function of a suite.
macro_rules! suite {
    ($module:ident: $($claim:ident),* $(,)?) => {
        mod $module {
            $(#[test] fn $claim() {
                crate::place::run(crate::DEMANDS, stringify!($claim), super::SERVERS, crate::suite::$module::$claim);
            })*
        }
    };
}

const SERVERS: Servers = Servers::OneEngine;

// The list of all claims is one for all backends.
include!("suite/list.rs");
include!("suite/list_queue.rs");

mod engines {
    const SERVERS: crate::place::Servers = crate::place::Servers::EngineEach;

    include!("suite/list_servers.rs");
}

mod processes {
    const SERVERS: crate::place::Servers = crate::place::Servers::Processes;

    include!("suite/list_processes.rs");
}
