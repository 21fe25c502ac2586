//! Behaviour that every backend must show, written once. Each claim is a test named by it; the number before it is the
//! point of the protocol's conformance list that it proves.

pub mod fixture;
pub mod http;
pub mod lockd_calls;
pub mod node;
pub mod process;
pub mod queue_calls;

pub mod smoke;

pub mod metadata;
pub mod release;
pub mod scene;
pub mod servers;
pub mod state;
pub mod transactions;

pub mod acquire;
pub mod checks;
pub mod contention;
pub mod daemon;
pub mod drain;
pub mod failover;
pub mod for_update;
pub mod locks;
pub mod multi;
pub mod names;
pub mod queue;
pub mod queue_client;
pub mod queue_finish;
pub mod queue_streams;
pub mod wire;
