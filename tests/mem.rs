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
use lockd::store::single::SingleRecordStore;

mod suite;

use suite::fixture::{Backend, Place};

struct Memory {
    /// Behave like a bucket: no atomic batches and no feed.
    in_steps: bool,
}

struct MemoryPlace {
    memory: MemoryStore,
    in_steps: bool,
}

impl Backend for Memory {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn open(&self) -> Box<dyn Place> {
        Box::new(MemoryPlace {
            memory: MemoryStore::new(),
            in_steps: self.in_steps,
        })
    }
}

impl Place for MemoryPlace {
    fn store(&self) -> Arc<dyn Store> {
        let handle = Arc::new(self.memory.handle());
        if self.in_steps {
            return Arc::new(SingleRecordStore::new(handle));
        }
        handle
    }

    fn count_bodies(&self) -> Option<usize> {
        Some(self.memory.counts().bodies)
    }

    fn url(&self) -> String {
        "mem://".to_owned()
    }
}

/// Makes a test of each function of a suite.
macro_rules! suite {
    ($module:ident: $($claim:ident),* $(,)?) => {
        mod $module {
            $(#[test] fn $claim() { crate::suite::$module::$claim(&super::BACKEND); })*
        }
    };
}

const BACKEND: Memory = Memory { in_steps: false };

// The list of all claims is one for all backends.
include!("suite/list.rs");
include!("suite/list_queue.rs");

/// Once more in the way of a bucket.
mod in_steps {
    const BACKEND: crate::Memory = crate::Memory { in_steps: true };

    include!("suite/list.rs");
    include!("suite/list_queue.rs");
}
