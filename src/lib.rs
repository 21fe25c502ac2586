//! lockd: exclusive leases, atomic JSON state and a queue over storage you already have.

#![forbid(unsafe_code)]

pub mod cli;
pub mod clock;
pub mod dispatch;
pub mod drain_plan;
pub mod error;
pub mod http;
pub mod ids;
pub mod json;
pub mod keys;
pub mod lease;
pub mod logging;
pub mod namespace;
pub mod net;
pub mod record;
pub mod server;
pub mod settings;
pub mod state;
pub mod store;
pub mod testing;
pub mod threads;
pub mod txn;
