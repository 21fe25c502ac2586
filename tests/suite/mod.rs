//! Behaviour that every backend must show, written once. Each claim is a test named by it; the number before it is the
//! point of the protocol's conformance list that it proves.
//!
//! With the feature `lq` only what concerns queues is built.
#![cfg_attr(feature = "lq", allow(dead_code, reason = "queues need a part of the tools alone"))]

pub mod fixture;
pub mod http;
pub mod lockd_calls;
pub mod node;
pub mod process;
pub mod queue_calls;

pub mod queue;
pub mod queue_client;
pub mod queue_finish;
pub mod queue_long;
pub mod queue_servers;
pub mod queue_streams;
pub mod queue_watchful;

#[cfg(not(feature = "lq"))]
pub mod acquire;
#[cfg(not(feature = "lq"))]
pub mod checks;
#[cfg(not(feature = "lq"))]
pub mod contention;
#[cfg(not(feature = "lq"))]
pub mod daemon;
#[cfg(not(feature = "lq"))]
pub mod drain;
#[cfg(not(feature = "lq"))]
pub mod failover;
#[cfg(not(feature = "lq"))]
pub mod for_update;
#[cfg(not(feature = "lq"))]
pub mod locks;
#[cfg(not(feature = "lq"))]
pub mod metadata;
#[cfg(not(feature = "lq"))]
pub mod multi;
#[cfg(not(feature = "lq"))]
pub mod names;
#[cfg(not(feature = "lq"))]
pub mod release;
#[cfg(not(feature = "lq"))]
pub mod scene;
#[cfg(not(feature = "lq"))]
pub mod servers;
#[cfg(not(feature = "lq"))]
pub mod smoke;
#[cfg(not(feature = "lq"))]
pub mod state;
#[cfg(not(feature = "lq"))]
pub mod transactions;
#[cfg(not(feature = "lq"))]
pub mod wire;
