//! Blocking client for lockd: exclusive leases with fencing tokens, and a JSON state guarded by the lease.
//!
//! ```no_run
//! use lockd_client::{BoxError, Client};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Order {
//!     status: String,
//!     attempts: u32,
//! }
//!
//! fn main() -> Result<(), BoxError> {
//!     let client = Client::builder()
//!         .endpoint("http://lockd-1:9341,http://lockd-2:9341")
//!         .build()?;
//!
//!     // Lease, read, change, save, release: nobody else touches the key meanwhile.
//!     client.acquire_for_update("orders/4711", |ctx| {
//!         let mut order: Order = ctx.snapshot()?.unwrap_or_default();
//!         order.status = "paid".to_owned();
//!         order.attempts += 1;
//!         ctx.save(&order)?;
//!         Ok(())
//!     })?;
//!     Ok(())
//! }
//! ```
//!
//! Or step by step, with a lease that renews itself and is released when it goes out of scope:
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use lockd_client::{Acquire, BoxError, Client, Wait};
//!
//! fn main() -> Result<(), BoxError> {
//!     let client = Client::builder().endpoint("unix:///run/lockd.sock").build()?;
//!     let request = Acquire::key("reports/nightly")
//!         .ttl(Duration::from_secs(30))
//!         .wait(Wait::UpTo(Duration::from_secs(60)))
//!         .auto_renew(true);
//!     let lease = client.acquire(request)?;
//!     lease.update(r#"{"state":"running"}"#)?;
//!     if let Some(why) = lease.lost() {
//!         eprintln!("somebody else may run it now: {why}");
//!     }
//!     lease.release()?;
//!     Ok(())
//! }
//! ```
//!
//! # What is retried and what never is
//!
//! There are three layers. The *connection*: a pooled connection that turns out to be dead is replaced by a fresh one, once
//! and silently, if nothing of the request was written, or if nothing was answered and the call is marked "repeatable"
//! below. The *walk*: each request tries the endpoints in turn (in a new random order unless
//! [`ClientBuilder::endpoint_shuffle`] is off) until one answers; connection failures, timeouts and standbys
//! (503 `node_passive`, or 503 without a word) move on, every other answer ends the walk. The *call*: what it does about the
//! outcome of a walk is this table.
//!
//! | Call | Limit of one attempt | Walked | Repeatable | Retried by the call itself |
//! |---|---|---|---|---|
//! | acquire, [`Wait::No`] | HTTP timeout | yes | no | never |
//! | acquire, waiting | none, or waiting time + HTTP timeout | yes | no | 409 `waiting`, 429, 5xx: without limit of number, until waiting time, deadline or cancellation end it. Transport errors and other 4xx: 5 in a row ([`Acquire::failure_retries`]). 403 and `already_exists`: never |
//! | update, save | HTTP timeout | yes | no | transport errors and `node_passive`, 5 times ([`ClientBuilder::failure_retries`]), 10 ms doubling up to 500 ms. A retry can meet `version_conflict` because the first try did arrive; that is reported, not resolved |
//! | `update_stream` | HTTP timeout | first endpoint only | no | never: the body is sent as it is read |
//! | get, describe, namespace config | HTTP timeout (describe: none) | yes | yes | never |
//! | metadata, remove, set namespace config | HTTP timeout | yes | no | never |
//! | keepalive | keepalive timeout in all | yes | yes | never, except by the renewal of [`Lease::start_renewal`] |
//! | release | HTTP timeout | yes | yes | never; after a timeout the other endpoints are asked one by one. A success is told to the other endpoints, one second each |
//! | `acquire_for_update` | for-update timeout for acquire and first read | | | rounds: 429, 5xx, `lease_required`, a lease given back because its server goes down, time limits, broken-off answers, unexpected ends of file, 5 in all. **The handler runs again.** `node_passive`: never, except that a release alone is repeated after a handler that succeeded |
//!
//! Redirects are not followed. A proxy named by the environment is not used.
//!
//! # Cancelling and deadlines
//!
//! Every call obeys the [`CallOptions`] given to [`Client::with_options`] or [`Session::with_options`]. A [`CancelToken`]
//! reaches a call that is blocked in a connect, a read or a write, at once; only a name lookup runs to its end.
//!
//! # Log events
//!
//! What happens is logged as events: the message is the event's name (`client.http.error`), the target is [`LOG_TARGET`], the
//! rest (`endpoint`, `attempt`, `status`, `duration`, `error`, `cid`, ...) are key-values. `client.http.success` means that an
//! HTTP answer arrived, whatever its status. They go to the global logger, or to the one given to
//! [`ClientBuilder::logger`].
//!
//! # Not there yet
//!
//! TLS, queues, attachments, queries, mutations and transaction decisions.

#![forbid(unsafe_code)]

mod acquire;
mod builder;
mod call;
mod cancel;
mod client;
mod clock;
mod endpoints;
mod error;
mod for_update;
mod inner;
mod lease;
mod logging;
mod namespace;
mod release;
mod renew;
mod retry;
mod state;
mod threads;
mod transport;
mod walk;
pub mod wire;
mod write;

pub use acquire::{Acquire, Wait, default_owner};
pub use builder::ClientBuilder;
pub use call::CallOptions;
pub use cancel::CancelToken;
pub use client::Client;
pub use error::{ApiError, Attempt, BoxError, Error, TransportError, Unreachable};
pub use for_update::UpdateContext;
pub use inner::Retries;
pub use lease::{Lease, LeaseRef, Session};
pub use logging::TARGET as LOG_TARGET;
pub use namespace::NamespaceSettings;
pub use retry::Backoff;
pub use state::{ReadOptions, State};
pub use write::{StateInput, WriteOptions};
