//! The feed on a local disk: inotify tells of every move of the mark, and what lies before it is read at once.
//!
//! Events of the own process come too; they find the mark where the index is already, which costs one short read. On NFS
//! the kernel does not tell of other machines, so there is no feed and whoever waits polls.

use std::path::Path;
use std::sync::Weak;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};

use super::engine::Core;
use super::mark::LOCK_FILE;

/// Begins to listen. None: the system has no watch to give, so there is no feed.
pub(super) fn start(core: Weak<Core>, root: &Path) -> Option<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        let news = match &event {
            Ok(event) => event.kind.is_modify() || event.need_rescan(),
            Err(_) => true,
        };
        if news && let Some(core) = core.upgrade() {
            hear(&core);
        }
    })
    .ok()?;
    watcher.watch(&root.join(LOCK_FILE), RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}

fn hear(core: &Core) {
    if core.check_latch().is_err() || core.listeners.lock().is_empty() {
        return;
    }
    if let Ok(Some(mark)) = core.mark() {
        let behind = core.index.read().applied < mark;
        // What fails here fails for the next reader too, who can say so.
        if behind {
            let _ = core.follow(mark);
        }
    }
}
