//! The suite of all stores against the memory engine, plainly and behind failing calls. Needs no set-up, so it is part of
//! every `cargo test`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test fails, and seeds are printed"
)]

use std::sync::Arc;

use lockd::store::Store;
use lockd::store::memory::MemoryStore;
use store_suite::Place;

#[path = "suite/store.rs"]
mod store_suite;

store_suite::store_suite!(memory, || memory_place());
store_suite::store_suite!(memory_behind_failing_calls, || store_suite::retried(memory_place()));

fn memory_place() -> Box<dyn Place> {
    Box::new(MemoryPlace(MemoryStore::new()))
}

struct MemoryPlace(MemoryStore);

impl Place for MemoryPlace {
    fn handle(&self) -> Arc<dyn Store> {
        Arc::new(self.0.handle())
    }
}
