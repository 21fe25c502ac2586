//! Places on a file system: every server opens the root through the engine, as a daemon does.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lockd::store::Store;
use lockd::store::shared_log::{Options, SharedLogStore};

use crate::root::{Demands, TestDir};
use crate::suite::fixture::{Backend, Place};
use crate::suite::queue_calls::Mode;

/// How the servers of a place come to their stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "not every target has all of them")]
pub(crate) enum Servers {
    /// They live in the process of the test and share one engine, as any two that open one root there do.
    OneEngine,
    /// They live in the process of the test with an engine each, as in processes of their own.
    EngineEach,
    /// They are daemons, processes of their own.
    Processes,
}

/// The backend of one test: its directory, and the places in it.
pub(crate) struct SharedLog {
    name: &'static str,
    dir: TestDir,
    servers: Servers,
    linger: bool,
    mode: Mode,
    places: AtomicUsize,
}

/// Runs one claim in a directory of its own, which goes away if the claim holds.
pub(crate) fn run(demands: Demands, test: &str, how: (Servers, Mode), claim: impl Fn(&dyn Backend)) {
    let (servers, mode) = how;
    let backend = SharedLog {
        name: demands.suite,
        dir: TestDir::create(demands, test),
        servers,
        linger: demands.on_nfs,
        mode,
        places: AtomicUsize::new(0),
    };
    claim(&backend);
    backend.dir.remove();
}

impl Backend for SharedLog {
    fn name(&self) -> &'static str {
        self.name
    }

    fn queue_mode(&self) -> Mode {
        self.mode
    }

    fn open(&self) -> Box<dyn Place> {
        let name = format!("place-{}", self.places.fetch_add(1, Ordering::Relaxed));
        Box::new(SharedLogPlace {
            roots: self.dir.mounts.iter().map(|mount| mount.join(&name)).collect(),
            servers: self.servers,
            opened: AtomicUsize::new(0),
            linger: self.linger,
        })
    }
}

struct SharedLogPlace {
    /// The root by each of its mounts.
    roots: Vec<PathBuf>,
    servers: Servers,
    opened: AtomicUsize,
    /// Files of dropped bodies stay for a while.
    linger: bool,
}

impl SharedLogPlace {
    /// The next server's way to the root: by each mount in turn.
    fn next_root(&self) -> &PathBuf {
        &self.roots[self.opened.fetch_add(1, Ordering::Relaxed) % self.roots.len()]
    }
}

impl Place for SharedLogPlace {
    fn store(&self) -> Arc<dyn Store> {
        let root = self.next_root();
        let store = match self.servers {
            Servers::OneEngine => SharedLogStore::open(root, Options::default()),
            Servers::EngineEach | Servers::Processes => {
                SharedLogStore::open_as_another_process(root, Options::default())
            }
        };
        Arc::new(store.unwrap())
    }

    fn count_bodies(&self) -> Option<usize> {
        if self.linger {
            return None;
        }
        let root = &self.roots[0];
        let in_files = fs::read_dir(root.join("bodies")).unwrap().count();
        let store = SharedLogStore::open_as_another_process(root, Options::default()).unwrap();
        Some(store.bodies_in_log() + in_files)
    }

    fn url(&self) -> String {
        format!("disk://{}", self.next_root().display())
    }

    fn servers_are_processes(&self) -> bool {
        self.servers == Servers::Processes
    }
}
