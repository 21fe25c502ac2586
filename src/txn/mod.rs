//! Transactions over several keys and messages.
//!
//! Whoever ends a lease of a transaction that has something to decide calls `settle`: the rules decide for all members,
//! and everything that follows goes into the batch of the caller, so that it happens in one step.

pub mod rules;

use crate::error::Error;
use crate::ids::Xid;
use crate::lease::table::{KeyName, View};
use crate::queue::{Place, StateEnd};
use crate::record::{MessageRecord, Subject, TxnRecord};
use rules::{Decision, Ended, Verdict};

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// A commit was asked for and a member was lost: all was rolled back.
    pub conflict: bool,
    /// The members that were ended.
    ended: Vec<Subject>,
}

impl Settled {
    /// True when the decision has ended this member.
    pub fn has_ended(&self, subject: &Subject) -> bool {
        self.ended.contains(subject)
    }
}

/// Decides a transaction and puts what becomes of its members, and of its own record, into the view.
///
/// `back`: what a message becomes by a rollback, when that is more than being visible again.
///
/// The state of a message follows its message: with a commit it goes, with a rollback what was staged of it is dropped.
pub(crate) fn settle(
    view: &mut View<'_>,
    txn_id: &Xid,
    wanted: Decision,
    back: Option<(&Subject, &MessageRecord)>,
) -> Result<Settled, Error> {
    let (txn, etag) = view.txn(txn_id)?;
    let mut leased = Vec::with_capacity(txn.participants.len());
    for member in &txn.participants {
        leased.push(view.leased(&member.subject)?);
    }
    let Verdict {
        conflict,
        ended,
        mut remaining,
        ..
    } = rules::decide(&txn, &leased, wanted, view.now());
    let mut settled = Settled {
        conflict,
        ended: Vec::with_capacity(ended.len()),
    };
    let (messages, keys): (Vec<_>, Vec<_>) = (ended
        .into_iter()
        .map(|(index, ended)| (&txn.participants[index].subject, ended)))
    .partition(|(subject, _)| matches!(subject, Subject::Message { .. }));
    for (subject, ended) in messages {
        let back = back.filter(|(of, _)| *of == subject).map(|(_, record)| record);
        let Some(state) = end_message(view, subject, &ended, back)? else {
            settled.ended.push(subject.clone());
            continue;
        };
        remaining.retain(|member| member.subject != state);
        settled.ended.extend([subject.clone(), state]);
    }
    for (subject, ended) in keys {
        if let (Some(name), Ended::Key(record)) = (KeyName::of(subject), &ended)
            && !settled.has_ended(subject)
        {
            view.put_decided(&name, record);
            settled.ended.push(subject.clone());
        }
    }
    let remaining = TxnRecord {
        participants: remaining,
    };
    view.put_txn(txn_id, &remaining, etag);
    Ok(settled)
}

/// Ends a message, and returns its state if that was ended along.
fn end_message(
    view: &mut View<'_>,
    subject: &Subject,
    ended: &Ended,
    back: Option<&MessageRecord>,
) -> Result<Option<Subject>, Error> {
    let Subject::Message { queue, id } = subject else {
        return Ok(None);
    };
    let place = Place { queue, id: *id };
    let Some(found) = place.find(view)? else {
        return Ok(None);
    };
    let end = match ended {
        Ended::MessageDone => {
            place.remove(view, &found);
            StateEnd::Remove
        }
        Ended::MessageBack(record) => {
            place.put_back(view, &found, back.unwrap_or(record));
            StateEnd::Drop
        }
        Ended::Key(_) => return Ok(None),
    };
    let Some((name, state)) = place.state_after(view, &found, end)? else {
        return Ok(None);
    };
    match state {
        Some(record) => view.put_decided(&name, &record),
        None => view.delete_decided(&name),
    }
    Ok(Some(name.subject()))
}
