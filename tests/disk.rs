//! The suites on a local disk: `cargo test --features integration-disk`, with the root in `LOCKD_STORE` as `.env.disk`
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

#[cfg(not(feature = "lq"))]
#[path = "shared_log/modes.rs"]
mod modes;
#[path = "shared_log/place.rs"]
mod place;
#[path = "shared_log/refusals.rs"]
mod refusals;
#[path = "shared_log/root.rs"]
mod root;
mod suite;

use place::Servers;
use root::Demands;
use suite::queue_calls::Mode;

const DEMANDS: Demands = Demands {
    suite: "disk",
    env_file: ".env.disk",
    on_nfs: false,
};

include!("shared_log/claims.rs");

const SERVERS: Servers = Servers::OneEngine;
const MODE: Mode = Mode::Feed;

// The list of all claims is one for all backends.
#[cfg(not(feature = "lq"))]
include!("suite/list.rs");
include!("suite/list_queue.rs");

mod engines {
    const SERVERS: crate::place::Servers = crate::place::Servers::EngineEach;
    const MODE: crate::Mode = crate::MODE;

    #[cfg(not(feature = "lq"))]
    include!("suite/list_servers.rs");
    include!("suite/list_queue_servers.rs");
}

#[cfg(not(feature = "lq"))]
mod processes {
    const SERVERS: crate::place::Servers = crate::place::Servers::Processes;
    const MODE: crate::Mode = crate::MODE;

    include!("suite/list_processes.rs");
}

/// Queues without a feed.
mod polling {
    const SERVERS: crate::place::Servers = crate::SERVERS;
    const MODE: crate::Mode = crate::Mode::Polling;

    include!("suite/list_queue.rs");
}
