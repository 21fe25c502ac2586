//! The same directories for the suite of all stores: every handle is an engine of its own, on each mount in turn.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use lockd::store::Store;
use lockd::store::shared_log::{Options, SharedLogStore};

use crate::root::{Demands, TestDir};
use crate::store_suite::Place;

struct StorePlace {
    /// None when it has been removed.
    dir: Option<TestDir>,
    roots: Vec<PathBuf>,
    options: Options,
    opened: AtomicUsize,
}

/// A new place.
pub(crate) fn store_place(demands: Demands, options: Options) -> Box<dyn Place> {
    let dir = TestDir::create(demands, "store");
    Box::new(StorePlace {
        roots: dir.mounts.iter().map(|mount| mount.join("place")).collect(),
        dir: Some(dir),
        options,
        opened: AtomicUsize::new(0),
    })
}

impl Place for StorePlace {
    fn handle(&self) -> Arc<dyn Store> {
        let root = &self.roots[self.opened.fetch_add(1, Ordering::Relaxed) % self.roots.len()];
        Arc::new(SharedLogStore::open_as_another_process(root, self.options.clone()).unwrap())
    }
}

impl Drop for StorePlace {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take().filter(|_| !thread::panicking()) {
            dir.remove();
        }
    }
}
