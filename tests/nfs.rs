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

#[cfg(not(feature = "lq"))]
#[path = "shared_log/modes.rs"]
mod modes;
#[path = "shared_log/mounts.rs"]
mod mounts;
#[path = "shared_log/place.rs"]
mod place;
#[path = "shared_log/refusals.rs"]
mod refusals;
#[path = "shared_log/root.rs"]
mod root;
#[path = "shared_log/store_place.rs"]
mod store_place;
#[allow(dead_code, reason = "failing calls and their retries know nothing of file systems")]
#[path = "suite/store.rs"]
mod store_suite;
mod suite;

use std::time::Duration;

use lockd::store::shared_log::Options;
use place::Servers;
use root::Demands;
use suite::queue_calls::Mode;

const DEMANDS: Demands = Demands {
    suite: "nfs",
    env_file: ".env.nfs",
    on_nfs: true,
};

include!("shared_log/claims.rs");

const SERVERS: Servers = Servers::EngineEach;
const MODE: Mode = Mode::Polling;

// The list of all claims is one for all backends.
#[cfg(not(feature = "lq"))]
include!("suite/list.rs");
include!("suite/list_queue.rs");

#[cfg(not(feature = "lq"))]
mod processes {
    const SERVERS: crate::place::Servers = crate::place::Servers::Processes;
    const MODE: crate::Mode = crate::MODE;

    include!("suite/list_processes.rs");
}

store_suite::store_suite!(store, || store_place::store_place(DEMANDS, Options::default()));
store_suite::store_suite!(store_with_tiny_segments, || store_place::store_place(DEMANDS, tiny()));

/// Rolls and compacts all the time.
fn tiny() -> Options {
    Options {
        segment_bytes_max: 2_000,
        compact_bytes_min: 10_000,
        body_bytes_in_log_max: 1_000,
        // Readers of bodies that were dropped have this long.
        delete_grace: Duration::from_secs(5),
        ..Options::default()
    }
}
