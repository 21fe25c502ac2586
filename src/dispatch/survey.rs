//! How queues are doing, for whoever watches the daemon.
//!
//! What is told is bounded whatever names clients make up: the fullest queues one by one, and the others in one sum.

use super::Parked;
use super::desk::Desk;
use super::one_queue::Queue;
use crate::keys::QueueId;

/// The queues that this server knows anything of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The fullest, by name.
    pub queues: Vec<(QueueId, QueueLevels)>,
    /// All others together, if there are any.
    pub others: Option<QueueLevels>,
    /// How many are known.
    pub known: usize,
}

/// What is known of a queue's messages, and who waits for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueLevels {
    /// Can be delivered now.
    pub ready: usize,
    /// Are being delivered, are leased to a consumer, or cannot be delivered yet.
    pub in_flight: usize,
    /// Consumers that wait.
    pub waiting: usize,
}

impl QueueLevels {
    fn and(self, other: Self) -> Self {
        Self {
            ready: self.ready + other.ready,
            in_flight: self.in_flight + other.in_flight,
            waiting: self.waiting + other.waiting,
        }
    }
}

impl<C: Parked> Desk<C> {
    /// At most so many queues one by one.
    pub(super) fn survey(&self, queues_max: usize) -> Survey {
        let mut levels: Vec<_> = self.queues().map(|(name, queue)| (name, levels_of(queue))).collect();
        let known = levels.len();
        // Of those that are equally full the same ones each time.
        levels.sort_unstable_by(|(name, one), (other_name, other)| {
            let fullness = |levels: &QueueLevels| levels.ready + levels.in_flight + levels.waiting;
            fullness(other).cmp(&fullness(one)).then_with(|| name.cmp(other_name))
        });
        let others = levels.split_off(queues_max.min(known));
        levels.sort_unstable_by_key(|(name, _)| *name);
        Survey {
            queues: levels
                .into_iter()
                .map(|(name, levels)| (name.clone(), levels))
                .collect(),
            others: others.into_iter().map(|(_, levels)| levels).reduce(QueueLevels::and),
            known,
        }
    }
}

fn levels_of<C: Parked>(queue: &Queue<C>) -> QueueLevels {
    QueueLevels {
        ready: queue.ready.ready_len(),
        in_flight: queue.ready.hidden_len() + queue.ready.trying_len(),
        waiting: queue.line.waiting(),
    }
}
