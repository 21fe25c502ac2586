//! The suite of all stores against the disk engine: handles of one engine, engines of their own as in several processes,
//! both in the way of NFS, and behind failing calls. Needs no set-up, so it is part of every `cargo test`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test fails, and seeds are printed"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockd::store::Store;
use lockd::store::shared_log::{Options, SharedLogStore};
use store_suite::Place;
use tempfile::TempDir;

#[path = "store_disk/damage.rs"]
mod damage;
#[path = "store_disk/faults.rs"]
mod faults;
#[path = "store_disk/measures.rs"]
mod measures;
#[path = "store_disk/power.rs"]
mod power;
#[path = "store_disk/processes.rs"]
mod processes;
#[path = "store_disk/room.rs"]
mod room;
#[path = "store_disk/rules.rs"]
mod rules;
#[path = "suite/store.rs"]
mod store_suite;
#[path = "store_disk/tools.rs"]
mod tools;
#[path = "store_disk/verify.rs"]
mod verify;

store_suite::store_suite!(disk, || DiskPlace::boxed(Sharing::Handles, Options::default()));
store_suite::store_suite!(disk_behind_failing_calls, || {
    store_suite::retried(DiskPlace::boxed(Sharing::Handles, Options::default()))
});
store_suite::store_suite!(disk_in_several_processes, || {
    DiskPlace::boxed(Sharing::Engines, Options::default())
});
store_suite::store_suite!(disk_with_tiny_segments, || DiskPlace::boxed(Sharing::Engines, tiny()));
store_suite::store_suite!(disk_in_the_way_of_nfs, || {
    let options = Options {
        as_if_network: true,
        ..Options::default()
    };
    DiskPlace::boxed(Sharing::Engines, options)
});

/// Rolls and compacts all the time.
fn tiny() -> Options {
    Options {
        segment_bytes_max: 2_000,
        compact_bytes_min: 10_000,
        body_bytes_in_log_max: 1_000,
        delete_grace: Duration::from_millis(20),
        ..Options::default()
    }
}

/// What another handle is.
enum Sharing {
    /// Another handle on the same engine.
    Handles,
    /// Another engine on the same root.
    Engines,
}

struct DiskPlace {
    _dir: TempDir,
    root: PathBuf,
    sharing: Sharing,
    options: Options,
}

impl DiskPlace {
    fn boxed(sharing: Sharing, options: Options) -> Box<dyn Place> {
        let dir = tempfile::tempdir().unwrap();
        Box::new(Self {
            root: dir.path().join("store"),
            _dir: dir,
            sharing,
            options,
        })
    }
}

impl Place for DiskPlace {
    fn handle(&self) -> Arc<dyn Store> {
        let options = self.options.clone();
        Arc::new(match self.sharing {
            Sharing::Handles => SharedLogStore::open(&self.root, options).unwrap(),
            Sharing::Engines => SharedLogStore::open_as_another_process(&self.root, options).unwrap(),
        })
    }
}
