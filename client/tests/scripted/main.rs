//! The client against a real HTTP server that answers by script: what it sends, what it makes of answers, of half answers
//! and of none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

mod acquire;
mod cancel;
mod events;
mod for_update;
mod queue;
mod release;
mod session;
mod state;
#[path = "../support/mod.rs"]
mod support;
mod walk;
