//! lockd: exclusive leases, atomic JSON state and a queue over storage you already have.

#![forbid(unsafe_code)]

pub mod clock;
pub mod ids;
pub mod json;
pub mod logging;
pub mod store;
pub mod threads;
