//! The suites on the memory store: `cargo test --features integration-mem`, or `--features "integration-mem lq"` for those
//! about queues alone.
//!
//! Claims about queues run with the feed of the store. `LOCKD_LQ_INCLUDE_POLLING=1` runs them by polling as well, and
//! `LOCKD_LQ_EXTENDED=1` adds the long ones to both.

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
use suite::queue_calls::Mode;

/// How the memory store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// As it is.
    Plain,
    /// Its feed is not listened to for queues.
    Polled,
    /// Like a bucket: no atomic batches and no feed.
    InSteps,
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
            in_steps: *self == Memory::InSteps,
        })
    }

    fn queue_mode(&self) -> Mode {
        match self {
            Memory::Plain => Mode::Feed,
            Memory::Polled | Memory::InSteps => Mode::Polling,
        }
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

fn is_wanted(module: &str, backend: &Memory, takes_long: bool) -> bool {
    suite::queue_calls::is_wanted(module, backend.name(), backend.queue_mode(), takes_long)
}

/// Makes a test of each function of a suite.
macro_rules! suite {
    ($module:ident: $($claim:ident),* $(,)?) => {
        mod $module {
            $(#[test] fn $claim() {
                if crate::is_wanted(stringify!($module), &super::BACKEND, false) {
                    crate::suite::$module::$claim(&super::BACKEND);
                }
            })*
        }
    };
}

/// The same for claims that take long.
macro_rules! extended {
    ($name:ident of $module:ident: $($claim:ident),* $(,)?) => {
        mod $name {
            $(#[test] fn $claim() {
                if crate::is_wanted(stringify!($module), &super::BACKEND, true) {
                    crate::suite::$module::$claim(&super::BACKEND);
                }
            })*
        }
    };
}

const BACKEND: Memory = Memory::Plain;

// The list of all claims is one for all backends.
#[cfg(not(feature = "lq"))]
include!("suite/list.rs");
include!("suite/list_queue.rs");

/// Once more in the way of a bucket.
mod in_steps {
    const BACKEND: crate::Memory = crate::Memory::InSteps;

    #[cfg(not(feature = "lq"))]
    include!("suite/list.rs");
    include!("suite/list_queue.rs");
}

/// Queues without a feed.
mod polling {
    const BACKEND: crate::Memory = crate::Memory::Polled;

    include!("suite/list_queue.rs");
}
