//! The suites on Azure Blob, or on a double of it: `cargo test --features integration-azure`, with the container
//! in `LOCKD_STORE` as `fixtures/env/.env.azure` explains. `ci/backend azure` starts a double for it.
//!
//! All claims run with servers in the process of the test, each with an engine of its own. Those about several servers run
//! once more with servers that are processes of their own.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::type_complexity,
    clippy::disallowed_methods,
    reason = "a panic is how a test fails, and a test may start threads and look at the clock"
)]

#[cfg(not(feature = "lq"))]
#[path = "bucket/costs.rs"]
mod costs;
#[cfg(not(feature = "lq"))]
#[path = "bucket/decided.rs"]
mod decided;
#[cfg(not(feature = "lq"))]
#[path = "bucket/faults.rs"]
mod faults;
#[path = "bucket/place.rs"]
mod place;
#[cfg(not(feature = "lq"))]
#[path = "bucket/proxy.rs"]
mod proxy;
#[cfg(not(feature = "lq"))]
#[path = "bucket/shares.rs"]
mod shares;
#[cfg(not(feature = "lq"))]
#[path = "bucket/store.rs"]
mod store;
#[cfg(not(feature = "lq"))]
#[path = "suite/store.rs"]
mod store_suite;
#[cfg(not(feature = "lq"))]
#[path = "bucket/streams.rs"]
mod streams;
mod suite;

use place::Demands;

const DEMANDS: Demands = Demands {
    suite: "azure",
    scheme: "azure",
    variables: &["AZURE_", "LOCKD_AZURE_"],
};

include!("bucket/claims.rs");
