//! lockd: exclusive leases with fencing tokens, JSON state that only the holder may change, over storage you already have.
//!
//! This page is the plan of the house. Read it first, then follow one request from [`http`] down to [`store`].
//!
//! # One request, from socket to store
//!
//! ```text
//! client --HTTP--> HTTP library (a thread per connection)
//!                     | Request
//!                  intake --channel--> workers            http; one request of a connection at a time
//!                                        | parse, route   http::request, http::route
//!                                        | decide         lease::rules, txn::rules: pure functions
//!                                        | read, write    lease::table over store: one conditional write
//!                                        + answer         http::reply
//!
//! must wait (acquire on a held key, dequeue on an empty queue)?
//!                  worker --Event--> dispatcher           parks the request itself, holds no thread
//!                  dispatcher --Job--> workers            "try again, it may be yours now" / "time is up"
//!
//! store's feed --Event--> dispatcher                      what other servers did
//! nothing heard, and somebody waits for a message?
//!                  dispatcher --> scanner --> store       never more often than the poll floor
//! ```
//!
//! A subscription is a thread from its first message on: it asks the dispatcher for more and writes what it leases.
//!
//! # Floors
//!
//! A file uses what is below it, never what is above; `tests/floors.rs` enforces this list.
//!
//! | floor | what | knows nothing of |
//! |---|---|---|
//! | 0 | the wire types of `lockd-client`, [`clock`], [`ids`], [`keys`], [`record`], [`json`], [`logging`], [`metrics`], [`net`] | everything above |
//! | 1 | [`lease::rules`], [`queue::rules`], [`txn::rules`]: pure functions (record, request, now) -> new record or refusal | I/O, threads, HTTP |
//! | 2 | [`store`]: bytes, etags, preconditions, change feed; engines and wrappers | leases, HTTP |
//! | 3 | [`lease`], [`state`], [`queue`], [`namespace`], [`dispatch`], [`sweeper`]: rules over a store, whoever waits, who clears away | HTTP |
//! | 4 | [`http`]: the only floor with status codes and headers | |
//! | 5 | [`server`] (wiring, drain, join), [`exporter`], [`settings`], [`cli`], [`testing`] | |
//!
//! # Invariants
//!
//! - A lease or a message is decided by exactly one conditional write. The dispatcher only ever suggests whom to try
//!   next; a wrong suggestion costs a retry, never correctness. So several servers over one store need no leader.
//! - Everything that one decision must see together lives in one record ([`record::KeyRecord`],
//!   [`record::MessageRecord`]); several keys and messages of a transaction go into one batch, or,
//!   where a batch changes one record, are decided by one record and carried out after it ([`txn::commit`]).
//! - Nothing is acknowledged before the store has promised to keep it, and nothing staged is visible before its release.
//! - A fencing token rises by one with every grant of its key and never goes back, whatever is released or removed.
//! - A lease or a message is never granted to a client that is known to have gone, and one that cannot be delivered is given
//!   back.
//! - No two consumers of a server are suggested the same message at the same time, and what is known of a queue is bounded:
//!   forgetting a message costs a look at the store.
//! - Records carry wall time, waiting uses monotonic time, and [`clock`] is the only module that reads either.
//! - Every queue, body and loop has a bound.
//! - There is deliberately no async runtime, no global state, and no cache of records above the store.
//!
//! # Embedding
//!
//! [`server::Server::start`] runs a whole daemon inside a process; [`testing`] has what tests of programs that use lockd
//! want on top of it. The client is the crate `lockd-client`.

#![forbid(unsafe_code)]

pub mod cli;
pub mod clock;
pub mod dispatch;
pub mod drain_plan;
pub mod error;
pub mod exporter;
pub mod http;
pub mod ids;
pub mod json;
pub mod keys;
pub mod lease;
pub mod logging;
pub mod metrics;
pub mod namespace;
pub mod net;
pub mod news;
pub mod queue;
pub mod record;
pub mod server;
pub mod settings;
pub mod state;
pub mod store;
pub mod sweeper;
pub mod testing;
pub mod threads;
pub mod txn;
