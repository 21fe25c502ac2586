//! One queue at the desk: what is known of it, who wants something of it, and the rounds in which it is looked at.
//!
//! A **round** looks at what others have changed, then at pages of what is not known yet, and, when what was known may have
//! changed without a word, at some pages of that as well. It begins because somebody came and not everything is known,
//! because others have changed something, or because a poll is due. It ends early when nobody is left who wants
//! something. A queue that is known to fit into one page is looked through in one piece. Else new work comes first: a round that doubts what is known begins behind the newest message that was ever met,
//! so that a long backlog of leased messages does not hide what is enqueued after it.

use crossbeam_channel::Sender;

use super::Parked;
use super::consumers::Line;
use super::credit::Credit;
use super::desk::{DeskLimits, QueueCounts};
use super::poll::Poll;
use super::ready::{Frontier, ReadySet};
use super::scanner::{ScanWhat, Seen};
use crate::clock::Moment;
use crate::keys::MessageId;

/// A round reads at most so many pages of what was known already. The next one goes on there.
pub(super) const OLD_PAGES_MAX: usize = 64;

/// What the desk keeps of a queue.
pub(super) struct Queue<C> {
    pub(super) ready: ReadySet,
    pub(super) line: Line<C>,
    pub(super) credit: Credit,
    poll: Poll,
    pub(super) watchers: Vec<(u64, Sender<()>)>,
    pub(super) round: Option<Round>,
    pub(super) rounds_begun: u64,
    pub(super) rounds_done: u64,
    /// The scanner is at it.
    pub(super) is_looking: bool,
    /// After a fault of the store: no round before this unless somebody new comes.
    pub(super) rest_until: Option<Moment>,
    /// Where the next round goes on with what is known already.
    old_cursor: Option<MessageId>,
    pub(super) due: Option<Moment>,
    pub(super) used: u64,
}

#[derive(Debug)]
pub(super) struct Round {
    pub(super) is_poll: bool,
    step: Step,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// What lies behind this id, up to the end.
    New {
        after: Option<MessageId>,
        began: Option<MessageId>,
    },
    /// What was known before, up to where the round began.
    Old {
        after: Option<MessageId>,
        until: MessageId,
        pages_left: usize,
    },
    Done,
}

impl<C: Parked> Queue<C> {
    pub(super) fn new(limits: &DeskLimits) -> Self {
        Self {
            ready: ReadySet::new(limits.ready),
            line: Line::new(),
            credit: Credit::default(),
            poll: Poll::default(),
            watchers: Vec::new(),
            round: None,
            rounds_begun: 0,
            rounds_done: 0,
            is_looking: false,
            rest_until: None,
            old_cursor: None,
            due: None,
            used: 0,
        }
    }

    /// True when what is known is all there is to know.
    pub(super) fn is_fresh(&self, limits: &DeskLimits) -> bool {
        limits.poll.feed && self.round.is_none() && self.knows_all()
    }

    pub(super) fn knows_all(&self) -> bool {
        self.ready.frontier() == Frontier::End && !self.ready.has_changes()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.line.is_empty()
            && self.line.waiting() == 0
            && self.credit.is_empty()
            && self.watchers.is_empty()
            && !self.is_looking
            && !self.ready.is_trying()
    }

    /// True while somebody wants to hear of it when a hidden message can be delivered.
    pub(super) fn has_company(&self) -> bool {
        !self.line.is_empty() || !self.watchers.is_empty() || !self.credit.is_empty()
    }

    pub(super) fn counts(&self, limits: &DeskLimits) -> QueueCounts {
        QueueCounts {
            waiting: self.line.waiting(),
            ready: self.ready.ready_len(),
            listening: limits.poll.feed && 0 < self.line.waiting(),
        }
    }

    /// When the next poll is due, if somebody waits.
    pub(super) fn poll_due(&self, limits: &DeskLimits) -> Option<Moment> {
        // Watchers of a store without a feed look for themselves.
        let watched = limits.poll.feed && !self.watchers.is_empty();
        self.poll.due(self.line.somebody_waits() || watched)
    }

    pub(super) fn wants_a_round(&self, now: Moment) -> bool {
        let rests = self.rest_until.is_some_and(|until| now < until);
        self.line.needs_round_after(self.rounds_done) || (!rests && !self.line.is_empty() && !self.knows_all())
    }

    pub(super) fn begin_round(&mut self, limits: &DeskLimits, is_poll: bool, now: Moment) {
        self.rest_until = None;
        // What was known before may have changed without a word.
        let somebody_came = self.line.needs_round_after(self.rounds_done);
        let doubts = is_poll || (!limits.poll.feed && somebody_came);
        let step = match self.ready.frontier() {
            Frontier::Start => Step::New {
                after: None,
                began: None,
            },
            Frontier::After(id) => Step::New {
                after: Some(id),
                began: Some(id).filter(|_| doubts),
            },
            // A look at all of it is one request, where a look at what is new and one at what is old are two.
            Frontier::End if doubts && self.ready.len() < limits.page => Step::New {
                after: None,
                began: None,
            },
            Frontier::End if doubts => Step::New {
                after: self.ready.newest(),
                began: self.ready.newest(),
            },
            Frontier::End => Step::Done,
        };
        self.rounds_begun += 1;
        if !matches!(step, Step::Done) {
            self.poll.looked(now, &limits.poll, fastrand::f64());
        }
        self.round = Some(Round { is_poll, step });
    }

    /// What to look at next; nothing when the round is over.
    pub(super) fn next_task(&mut self, page: usize) -> Option<ScanWhat> {
        if self.ready.has_changes() {
            return Some(ScanWhat::Messages(self.ready.begin_look_at_changes()));
        }
        let after = match self.round.as_ref()?.step {
            Step::New { after, .. } => match self.ready.frontier() {
                Frontier::Start => None,
                Frontier::After(id) => Some(id),
                Frontier::End => after,
            },
            Step::Old { after, .. } => after,
            Step::Done => return None,
        };
        self.ready.begin_look();
        Some(ScanWhat::Page { after, limit: page })
    }

    /// A page has been seen: where the round goes on, and how far the queue is known now if that has changed.
    pub(super) fn go_on(&mut self, what: &ScanWhat, seen: &Seen) -> Option<Frontier> {
        let (ScanWhat::Page { .. }, Some(round)) = (what, &mut self.round) else {
            return None;
        };
        let reached = seen.reached;
        match round.step {
            Step::New { began, .. } => {
                round.step = match (reached, began) {
                    (Frontier::After(id), began) => Step::New { after: Some(id), began },
                    (_, Some(until)) => Step::Old {
                        after: self.old_cursor.filter(|cursor| *cursor < until),
                        until,
                        pages_left: OLD_PAGES_MAX,
                    },
                    (_, None) => Step::Done,
                };
                (self.ready.frontier() != Frontier::End).then_some(reached)
            }
            Step::Old { until, pages_left, .. } => {
                let next = match reached {
                    Frontier::After(id) if id < until => Some(id),
                    _ => None,
                };
                self.old_cursor = next;
                round.step = match next {
                    Some(after) if 1 < pages_left => Step::Old {
                        after: Some(after),
                        until,
                        pages_left: pages_left - 1,
                    },
                    _ => Step::Done,
                };
                None
            }
            Step::Done => None,
        }
    }

    pub(super) fn poke_watchers(&mut self) {
        // A watcher that has not looked since the last time will see this as well.
        self.watchers
            .retain(|(_, watcher)| !matches!(watcher.try_send(()), Err(error) if error.is_disconnected()));
    }

    /// Whoever held these has lost or finished them: streams that stepped aside may have room now.
    pub(super) fn settled(&mut self, ids: impl IntoIterator<Item = MessageId>) {
        for id in ids {
            if let Some(stream) = self.credit.settled(id) {
                self.line.step_in(stream);
            }
        }
    }
}
