//! The command line as people use it: the built program as a daemon, and the same program as its client.
//!
//! Every daemon is a real process on a port of its own, and no variable of the surrounding environment reaches it or
//! its clients.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod client;
mod daemon;
mod process;
mod queue;
mod store;
mod verify;
