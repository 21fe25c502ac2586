//! The one thread of an engine: compacts, moves over to new snapshots, removes what is no longer needed.
//!
//! It sleeps until it is told something or until a grace is over; an idle engine never wakes it.

use std::sync::Arc;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::engine::Core;

/// What the keeper is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// A segment was sealed: perhaps there is enough to compact.
    ConsiderCompaction,
    /// The log speaks of a snapshot.
    Adopt(u32),
    /// The engine is closed.
    Stop,
}

/// Runs until it is told to stop.
pub(super) fn run(core: &Arc<Core>, tasks: &Receiver<Task>) {
    // Files that an earlier process left over go after a grace too: another one may still read them.
    let mut clean_at = Some(core.clock.now().after(core.options.delete_grace));
    loop {
        let told = match clean_at {
            Some(moment) => tasks.recv_timeout(moment.since(core.clock.now())),
            None => tasks.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        // What fails here is tried again at the next occasion; nothing depends on it but space and restart time. Damage
        // that it meets latches the engine by itself.
        match told {
            Ok(Task::ConsiderCompaction) => {
                if core.compaction_is_due() {
                    let _ = core.compact();
                }
            }
            Ok(Task::Adopt(number)) => {
                let _ = core.adopt(number);
                clean_at = Some(core.clock.now().after(core.options.delete_grace));
            }
            Ok(Task::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                clean_at = None;
                let _ = core.remove_old_files();
            }
        }
    }
}
