//! What clients saw: written down while they work, judged afterwards, and shown to a reader when it cannot be right.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use lockd::clock::{Clock, SystemClock};

use crate::linear::{self, Operation, Stuck, Verdict};
use crate::model::{Action, Answer, Call, Group, KeyNo, Leases};

/// A search that looks at more is given up; histories of this test take some thousands.
const VISITED_MAX: usize = 3_000_000;

/// Hands out times that are the same for all clients.
pub(crate) struct Stopwatch {
    clock: SystemClock,
    events: AtomicU64,
}

/// One moment: its place in the order of all moments, and what the wall clock showed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) order: u64,
    pub(crate) wall_ms: i64,
}

impl Stopwatch {
    pub(crate) fn new() -> Self {
        Self {
            clock: SystemClock::new(),
            events: AtomicU64::new(1),
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            order: self.events.fetch_add(1, Ordering::SeqCst),
            wall_ms: self.clock.wall_ms(),
        }
    }
}

/// One call, where it was made and what came of it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Who called; the highest number looks at the end.
    pub(crate) client: usize,
    pub(crate) server: usize,
    pub(crate) group: usize,
    pub(crate) key: KeyNo,
    pub(crate) call: Call,
    pub(crate) answer: Answer,
    pub(crate) called: Stamp,
    pub(crate) ended: Stamp,
    /// What else a reader may want to know.
    pub(crate) note: String,
}

impl Entry {
    fn operation(&self) -> Operation<Action> {
        Operation {
            called: self.called.order,
            answered: (self.answer != Answer::Unknown).then_some(self.ended.order),
            action: Action {
                key: self.key,
                call: self.call,
                answer: self.answer,
                called_ms: self.called.wall_ms,
                ended_ms: self.ended.wall_ms,
            },
        }
    }

    fn line(&self, names: &[String], start_ms: i64) -> String {
        let ended = match self.answer {
            Answer::Unknown => "    ?".to_owned(),
            _ => format!("{:>5}", self.ended.order),
        };
        let mut line = format!(
            "{:>5}..{ended}  {:>5}..{:<5} ms  client {} at server {}: {} {:?} -> {:?}",
            self.called.order,
            self.called.wall_ms - start_ms,
            self.ended.wall_ms - start_ms,
            self.client,
            self.server,
            names[self.key],
            self.call,
            self.answer,
        );
        if !self.note.is_empty() {
            let _ = write!(line, "  [{}]", self.note);
        }
        line
    }
}

/// Judges the calls of one group of keys that nobody had used before. Returns how much work it was.
pub(crate) fn judge(entries: &[Entry], names: &[String]) -> Result<usize, String> {
    let operations: Vec<Operation<Action>> = entries.iter().map(Entry::operation).collect();
    match linear::check(&Leases, Group::new(names.len()), &operations, VISITED_MAX) {
        Verdict::Linearizable { visited } => Ok(visited),
        Verdict::Undecided { visited } => Err(format!(
            "given up after {visited} states: neither right nor wrong\n{}",
            shown(entries, names, None)
        )),
        Verdict::NotLinearizable(stuck) => Err(shown(entries, names, Some(&stuck))),
    }
}

/// The history for a reader: every call in the order in which they began, and how far an order of effects goes.
fn shown(entries: &[Entry], names: &[String], stuck: Option<&Stuck<Group>>) -> String {
    let start_ms = entries.iter().map(|entry| entry.called.wall_ms).min().unwrap_or(0);
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|index| entries[*index].called.order);
    let mut text = String::from(
        "Every call in the order in which they began. Columns: event numbers of call and answer (\"?\": no answer, so it \
         may take effect at any later time or never), wall clock, who, what.\n\n",
    );
    for index in &order {
        let _ = writeln!(text, "{}", entries[*index].line(names, start_ms));
    }
    let Some(stuck) = stuck else { return text };
    let _ = writeln!(
        text,
        "\nNo order of these calls gives these answers. The longest one that begins right ({} calls):\n",
        stuck.placed.len()
    );
    for index in &stuck.placed {
        let _ = writeln!(text, "{}", entries[*index].line(names, start_ms));
    }
    let _ = writeln!(
        text,
        "\nThen the state is {:#?}\n\nand none of these can be next:\n",
        stuck.state
    );
    for index in &stuck.blocked {
        let _ = writeln!(text, "{}", entries[*index].line(names, start_ms));
    }
    text
}
