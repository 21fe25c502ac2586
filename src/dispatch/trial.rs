//! Messages that were suggested to a consumer, until it is known what came of each.

use std::sync::Arc;

use super::credit::StreamId;
use super::ready::Found;
use crate::keys::{MessageId, QueueId};

/// What came of trying to deliver a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It was delivered; its lease lapses at this time (milliseconds of Unix time).
    Delivered {
        /// When.
        until_ms: i64,
    },
    /// It was not, for this is how it stands.
    Found(Found),
    /// The store could not say.
    Faulty,
    /// Nobody tried.
    Untouched,
}

/// Takes reports.
pub trait TrialSink: Send + Sync {
    /// What came of these messages of a queue. Must not block.
    fn tried(&self, queue: &QueueId, stream: Option<StreamId>, outcomes: Vec<(MessageId, Tried)>);
}

/// Messages to try. Nobody else is given them meanwhile, so a report is due whatever happens: it is sent when this is
/// dropped, and what nothing was told of counts as untouched.
pub struct Trial {
    queue: QueueId,
    stream: Option<StreamId>,
    outcomes: Vec<(MessageId, Tried)>,
    sink: Arc<dyn TrialSink>,
}

impl Trial {
    pub(super) fn new(queue: QueueId, stream: Option<StreamId>, ids: Vec<MessageId>, sink: Arc<dyn TrialSink>) -> Self {
        Self {
            queue,
            stream,
            outcomes: ids.into_iter().map(|id| (id, Tried::Untouched)).collect(),
            sink,
        }
    }

    /// The queue.
    pub fn queue(&self) -> &QueueId {
        &self.queue
    }

    /// The messages.
    pub fn ids(&self) -> impl Iterator<Item = MessageId> {
        self.outcomes.iter().map(|(id, _)| *id)
    }

    /// The deliveries count for this stream, which did not exist when it asked.
    pub fn count_for(&mut self, stream: StreamId) {
        self.stream = Some(stream);
    }

    /// Tries each message in turn, until `try_one` says to stop by returning nothing for one, which is then untouched.
    pub fn each(&mut self, mut try_one: impl FnMut(&QueueId, MessageId) -> Option<Tried>) {
        for (id, outcome) in &mut self.outcomes {
            match try_one(&self.queue, *id) {
                Some(tried) => *outcome = tried,
                None => return,
            }
        }
    }
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trial")
            .field("queue", &self.queue)
            .field("outcomes", &self.outcomes)
            .finish_non_exhaustive()
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let outcomes = std::mem::take(&mut self.outcomes);
        self.sink.tried(&self.queue, self.stream, outcomes);
    }
}
