//! The one thread of an engine: compacts, moves over to new snapshots, removes what is no longer needed.
//!
//! It sleeps until it is told something or until a grace is over; an idle engine never wakes it.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::engine::Core;
use crate::clock::Moment;
use crate::store::BodyId;

/// What the keeper is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// A segment was sealed: perhaps there is enough to compact.
    ConsiderCompaction,
    /// The log speaks of a snapshot.
    Adopt(u32),
    /// The grace of bodies that were dropped ends then; their files are to be removed or not.
    ForgetBodies {
        ids: Vec<BodyId>,
        due: Moment,
        remove: bool,
    },
    /// The engine is closed.
    Stop,
}

/// Runs until it is told to stop.
pub(super) fn run(core: &Arc<Core>, tasks: &Receiver<Task>) {
    // Files that an earlier process left over go after a grace too: another one may still read them.
    let mut clean_at = Some(core.clock.now().after(core.options.delete_grace));
    // The same grace for all, so the first one is due first.
    let mut bodies: VecDeque<(Moment, Vec<BodyId>, bool)> = VecDeque::new();
    loop {
        let next = clean_at.into_iter().chain(bodies.front().map(|(due, ..)| *due)).min();
        let told = match next {
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
            Ok(Task::ForgetBodies { ids, due, remove }) => bodies.push_back((due, ids, remove)),
            Ok(Task::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                let now = core.clock.now();
                while let Some((_, ids, remove)) = bodies.pop_front_if(|(due, ..)| *due <= now) {
                    core.forget_hidden_bodies(&ids, remove);
                }
                if clean_at.is_some_and(|due| due <= now) {
                    clean_at = None;
                    let _ = core.remove_old_files();
                }
            }
        }
    }
}
