//! Blocking client for lockd.

#![forbid(unsafe_code)]

mod acquire;
mod builder;
mod call;
mod cancel;
mod client;
mod clock;
mod endpoints;
mod error;
mod inner;
mod lease;
mod logging;
mod release;
mod renew;
mod retry;
mod state;
mod threads;
mod transport;
mod walk;
pub mod wire;

pub use acquire::{Acquire, Wait, default_owner};
pub use builder::ClientBuilder;
pub use call::CallOptions;
pub use cancel::CancelToken;
pub use client::Client;
pub use error::{ApiError, Attempt, BoxError, Error, TransportError, Unreachable};
pub use inner::Retries;
pub use lease::{Lease, LeaseRef, Session};
pub use logging::TARGET as LOG_TARGET;
pub use retry::Backoff;
pub use state::{ReadOptions, State, StateInput, WriteOptions};
