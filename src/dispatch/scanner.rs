//! The thread that looks at the store for the dispatcher: pages of a queue, and single messages that others have changed.
//!
//! It takes one task after the other, a page at most, so a long queue does not hold up the others. The dispatcher has at most
//! one task per queue under way.

use std::io;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};

use super::ready::{Found, Frontier};
use crate::error::Error;
use crate::keys::{MessageId, QueueId};
use crate::queue::Queues;
use crate::store::StoreError;
use crate::threads;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanTask {
    /// In which queue.
    pub queue: QueueId,
    /// At what.
    pub what: ScanWhat,
}

/// Single messages or a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanWhat {
    /// These messages.
    Messages(Vec<MessageId>),
    /// So many messages after this one.
    Page {
        /// Where to begin; `None` is the oldest.
        after: Option<MessageId>,
        /// How many at most.
        limit: usize,
    },
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Each message and what is known of it now.
    pub found: Vec<(MessageId, Found)>,
    /// For a page: how far it goes. Without meaning for single messages.
    pub reached: Frontier,
}

/// The answer to a task.
#[derive(Debug)]
pub struct Scanned {
    /// The task.
    pub task: ScanTask,
    /// What came of it.
    pub outcome: Result<Seen, Error>,
}

/// Does a task over a store. What cannot be read of single messages is told to `fault`; the others are not held up by it.
pub fn look_at(queues: &Queues, task: &ScanTask, fault: impl Fn(&Error)) -> Result<Seen, Error> {
    match &task.what {
        ScanWhat::Messages(ids) => {
            let mut found = Vec::with_capacity(ids.len());
            for id in ids {
                let seen = match queues.look(&task.queue, *id) {
                    Ok(seen) => seen,
                    // It cannot be delivered, and trying again will not help.
                    Err(damage @ Error::CorruptRecord { .. }) => {
                        fault(&damage);
                        None
                    }
                    Err(other) => return Err(other),
                };
                found.push((*id, seen.map_or(Found::Gone, |seen| Found::From(seen.visible_from_ms))));
            }
            let reached = Frontier::Start;
            Ok(Seen { found, reached })
        }
        ScanWhat::Page { after, limit } => {
            let page = queues.scan(&task.queue, *after, *limit)?;
            page.faults.iter().for_each(fault);
            let found = page
                .seen
                .iter()
                .map(|seen| (seen.id, Found::From(seen.visible_from_ms)));
            Ok(Seen {
                found: found.collect(),
                reached: page.next.map_or(Frontier::End, Frontier::After),
            })
        }
    }
}

/// The scanner's thread. Ends, once what was begun is done, when this is dropped.
pub(super) struct Scanner {
    tasks: Option<Sender<ScanTask>>,
    thread: Option<JoinHandle<()>>,
}

impl Scanner {
    /// Starts the thread. `look` does a task, `report` takes what came of it.
    pub(super) fn start(
        look: impl Fn(&ScanTask) -> Result<Seen, Error> + Send + 'static,
        report: impl Fn(Scanned) + Send + 'static,
    ) -> io::Result<Self> {
        let (tasks, inbox) = unbounded::<ScanTask>();
        let thread = threads::spawn("queue-scanner", move || {
            for task in inbox {
                // A queue whose task is never reported would stand still for ever.
                let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(&task)));
                let outcome = looked.unwrap_or_else(|_| {
                    let detail = "the look at the queue panicked".to_owned();
                    Err(StoreError::NotDone { detail }.into())
                });
                report(Scanned { task, outcome });
            }
        })?;
        Ok(Self {
            tasks: Some(tasks),
            thread: Some(thread),
        })
    }

    /// Hands over a task. Never blocks: there is at most one per queue.
    pub(super) fn push(&self, task: ScanTask) {
        if let Some(tasks) = &self.tasks {
            // The thread lives as long as this sender does.
            let _ = tasks.send(task);
        }
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
