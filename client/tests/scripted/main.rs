//! The client against a real HTTP server that answers by script: what it sends, what it makes of answers, of half answers
//! and of none.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    missing_docs,
    unreachable_pub
)]

mod session;
#[path = "../support/mod.rs"]
mod support;
