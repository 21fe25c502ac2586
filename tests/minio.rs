//! The suites on a store that is compatible with S3: `cargo test --features integration-minio`, with the bucket in
//! `LOCKD_STORE` as `fixtures/env/.env.minio` explains. `ci/backend minio` starts a server for it.
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
#[path = "bucket/encryption.rs"]
mod encryption;
#[cfg(not(feature = "lq"))]
#[path = "bucket/faults.rs"]
mod faults;
#[path = "bucket/place.rs"]
mod place;
#[cfg(not(feature = "lq"))]
#[path = "bucket/proxy.rs"]
mod proxy;
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
#[cfg(not(feature = "lq"))]
#[path = "bucket/verdicts.rs"]
mod verdicts;

use place::Demands;

const DEMANDS: Demands = Demands {
    suite: "minio",
    scheme: "s3",
    variables: &["LOCKD_S3_"],
};

include!("bucket/claims.rs");
