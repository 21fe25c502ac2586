//! The suites on the memory store: `cargo test --features integration-mem`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::type_complexity,
    clippy::disallowed_methods,
    reason = "a panic is how a test fails, and a test may start threads and look at the clock"
)]

use std::sync::Arc;

use lockd::store::Store;
use lockd::store::memory::MemoryStore;

mod suite;

use suite::fixture::{Backend, Place};

struct Memory;

struct MemoryPlace(MemoryStore);

impl Backend for Memory {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn open(&self) -> Box<dyn Place> {
        Box::new(MemoryPlace(MemoryStore::new()))
    }
}

impl Place for MemoryPlace {
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.0.handle())
    }

    fn count_bodies(&self) -> Option<usize> {
        Some(self.0.counts().bodies)
    }

    fn url(&self) -> String {
        "mem://".to_owned()
    }
}

/// Makes a test of each function of a suite.
macro_rules! suite {
    ($module:ident: $($claim:ident),* $(,)?) => {
        mod $module {
            $(#[test] fn $claim() { super::suite::$module::$claim(&super::Memory); })*
        }
    };
}

// The list of all claims is one for all backends.
include!("suite/list.rs");
include!("suite/list_queue.rs");
