//! From the settings to a store: opens it, on a disk also anew when it has stopped, and knows whether queues can hear of what other servers write there.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use super::ServeError;
use crate::logging::Logger;
use crate::settings::{QueueSettings, Settings, StoreLocation};
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::store::object::{self, ObjectStore};
use crate::store::reopened::ReopenedStore;
use crate::store::retry::{RetryStore, thread_sleeper};
use crate::store::shared_log::{OpenError, Options, SharedLogStore};

/// Opens the store that the settings name, with retries where it is asked over a network.
pub(super) fn open(settings: &Settings, logger: &Logger) -> Result<Arc<dyn Store>, ServeError> {
    match &settings.store {
        StoreLocation::Object(location) => {
            let options = object::Options {
                logger: Arc::clone(logger),
                ..object::Options::default()
            };
            let store = ObjectStore::open(location, options).map_err(ServeError::OpenBucket)?;
            Ok(Arc::new(RetryStore::new(
                Arc::new(store),
                settings.storage_retry,
                Arc::clone(logger),
                thread_sleeper(),
            )))
        }
        StoreLocation::Memory => Ok(Arc::new(MemoryStore::new())),
        StoreLocation::Disk(root) => open_disk(root, logger),
        StoreLocation::DefaultDisk(root) => {
            make_parents(root)?;
            open_disk(root, logger)
        }
    }
}

fn open_disk(root: &Path, logger: &Logger) -> Result<Arc<dyn Store>, ServeError> {
    let at = root.to_owned();
    let open = move || SharedLogStore::open(&at, Options::default());
    let store = open().map_err(|cause| ServeError::OpenDisk {
        root: root.to_owned(),
        cause,
    })?;
    let open_again = Box::new(move || match open() {
        Ok(store) => Ok(Arc::new(store) as Arc<dyn Store>),
        Err(cause) => Err(cause.to_string()),
    });
    Ok(Arc::new(ReopenedStore::new(
        Arc::new(store),
        open_again,
        Arc::clone(logger),
    )))
}

/// Makes what is missing above a root, for this user alone.
fn make_parents(root: &Path) -> Result<(), ServeError> {
    let Some(parent) = root.parent() else { return Ok(()) };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.map_err(|cause| ServeError::OpenDisk {
        root: root.to_owned(),
        cause: OpenError::Io {
            doing: format!("making {}", parent.display()),
            cause,
        },
    })
}

/// Whether changes of other servers shall be listened to for queues. A store that was handed in may be of any kind.
pub(super) fn wants_queue_feed(settings: &Settings, is_handed_in: bool) -> bool {
    let QueueSettings {
        watch_mem, watch_disk, ..
    } = settings.queue;
    match &settings.store {
        _ if is_handed_in => watch_mem && watch_disk,
        StoreLocation::Memory => watch_mem,
        // It has no feed.
        StoreLocation::Object(_) => false,
        StoreLocation::Disk(_) | StoreLocation::DefaultDisk(_) => watch_disk,
    }
}

/// How queues hear of other servers, and why so, in the words of the log.
pub(super) fn watch_mode(settings: &Settings, is_heard: bool) -> (&'static str, &'static str) {
    let QueueSettings {
        watch_mem, watch_disk, ..
    } = settings.queue;
    match &settings.store {
        StoreLocation::Memory if is_heard => ("inprocess", "memory_queue_watch_enabled"),
        StoreLocation::Memory if !watch_mem => ("disabled", "memory_queue_watch_disabled"),
        StoreLocation::Disk(_) | StoreLocation::DefaultDisk(_) if is_heard => ("fsnotify", "filesystem_watch_enabled"),
        StoreLocation::Disk(_) | StoreLocation::DefaultDisk(_) if !watch_disk => ("polling", "config_disabled"),
        StoreLocation::Disk(_) | StoreLocation::DefaultDisk(_) => ("polling", "filesystem_not_supported"),
        _ => ("unknown", "backend_does_not_report"),
    }
}
