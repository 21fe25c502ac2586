//! Blocking client for lockd: exclusive leases with fencing tokens, a JSON state guarded by the lease, and queues.
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
//! A queue delivers each message at least once. Whoever gets it has a lease on it, and acknowledges it or gives it back:
//!
//! ```no_run
//! use lockd_client::{BoxError, Client, Consumer, Enqueue};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Invoice {
//!     order: u64,
//! }
//!
//! fn main() -> Result<(), BoxError> {
//!     let client = Client::builder().endpoint("http://lockd-1:9341").build()?;
//!     client.enqueue_json(Enqueue::to("invoices").attribute("tenant", "acme"), &Invoice { order: 4711 })?;
//!
//!     // Four workers, restarted when they fail. The lease of a message is prolonged while the handler works; a message that
//!     // the handler does not settle, because it returns early or panics, is given back as a failed attempt.
//!     let consumer = Consumer::new("invoices", |message| {
//!         let invoice: Invoice = message.json()?;
//!         println!("invoice for order {}, attempt {}", invoice.order, message.attempts());
//!         message.ack()?;
//!         Ok(())
//!     })
//!     .workers(4);
//!     client.run_consumers([consumer])?;
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
//! | enqueue | none | only past endpoints that could not be reached or said that they are standbys | no | never: once any of the message was on its way, a failure is [`Error::MaybeEnqueued`] |
//! | dequeue, dequeue batch | none | yes | no | never; an empty queue is `waiting` |
//! | subscribe | none | yes | no | `waiting` and `cas_mismatch`, without limit; a second try comes not sooner than the server asks for, or after 1 ms doubling up to 50 ms. A stream that ends or breaks off is not opened again |
//! | ack | none | yes | no | never. When an answer was lost, on the way over the endpoints or in an earlier call for the same delivery, `not_found` means that the message is finished: that is a success |
//! | nack, defer, extend | none | yes | no | never. After an answer that was lost, a repeated one finds `cas_mismatch`; that is reported, not resolved |
//! | extending in the background | HTTP timeout, and half of the visibility timeout in all | yes | no | never: the first failure cancels the handler |
//! | message dropped or closed, or sent ahead into a subscription that ends | close timeout in all | yes | no | never |
//! | [`Consumer`] | | | | whatever ended a subscription: 3 times at once, then after 250 ms doubling up to 5 min ([`RestartPolicy`]). 401, 403 and `namespace_forbidden`, `forbidden`, `unauthorized`, `permission_denied` in answer to the subscription: never |
//! | watch | none | yes | no | a stream that ended or broke off is opened again after 100 ms, without limit. Errors: never |
//! | queue statistics | HTTP timeout | yes | yes | never |
//!
//! "None" means that only the deadline and the cancel token of the call limit it.
//!
//! Redirects are not followed. A proxy named by the environment is not used.
//!
//! # Cancelling and deadlines
//!
//! Every call obeys the [`CallOptions`] given to [`Client::with_options`], [`Session::with_options`] or
//! [`MessageHandle::with_options`]. A [`CancelToken`] reaches a call that is blocked in a connect, a read or a write, at once;
//! only a name lookup runs to its end.
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
//! TLS, attachments, queries, mutations and transaction decisions.

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
mod leave;
mod logging;
mod namespace;
mod queue;
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
pub use error::{ApiError, Attempt, BoxError, ConsumerError, Error, TransportError, Unreachable};
pub use for_update::UpdateContext;
pub use inner::Retries;
pub use lease::{Lease, LeaseRef, Session};
pub use logging::TARGET as LOG_TARGET;
pub use namespace::NamespaceSettings;
pub use queue::{
    Consumer, ConsumerFailure, Dequeue, Enqueue, Message, MessageHandle, MessageRef, MessageState, Payload,
    PayloadReader, QueueWatch, RestartPolicy, RunningConsumers,
};
pub use retry::Backoff;
pub use state::{ReadOptions, State};
pub use write::{StateInput, WriteOptions};
