//! Transactions over several keys and messages.
//!
//! Whoever ends a lease of a transaction that has something to decide calls `settle`: the rules decide for all members.
//! Where several records are one batch, everything that follows goes into the batch of the caller, so that it happens in one
//! step. Elsewhere the decision goes into the transaction's record, and is carried out after that: see [`commit`].
//!
//! `rules` decides, `book` says where transactions are written down, `plan` is what a round of a change wants to be written, and
//! `commit` carries it to the store.

pub mod book;
pub mod commit;
pub mod plan;
pub mod rules;

use crate::error::Error;
use crate::ids::Xid;
use crate::keys;
use crate::lease::table::{KeyName, View};
use crate::queue::{Place, StateEnd};
use crate::record::{Decision, MessageRecord, Participant, Subject, TxnRecord};
use commit::{Committer, ROUNDS_MAX};
use rules::{Ended, Leased, Verdict};

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

/// Decides a transaction and puts what becomes of its members, and of its own record, into the view; or just the decision,
/// where it is carried out afterwards.
///
/// `lease_id`: the lease of whoever asks. Where records are written one by one, one that the transaction does not list has
/// been decided about since it was read, and has no say in what the others do next: then nothing is decided, and what the
/// caller writes will be refused by the store.
///
/// `back`: what a message becomes by a rollback, when that is more than being visible again.
///
/// The state of a message follows its message: with a commit it goes, with a rollback what was staged of it is dropped.
pub(crate) fn settle(
    view: &mut View<'_>,
    txn_id: &Xid,
    lease_id: &Xid,
    wanted: Decision,
    back: Option<(&Subject, &MessageRecord)>,
) -> Result<Settled, Error> {
    let txn = view.txn(txn_id)?;
    if view.in_steps() && !txn.participants.iter().any(|member| member.lease_id == *lease_id) {
        return Ok(Settled {
            conflict: false,
            ended: Vec::new(),
        });
    }
    let mut leased = Vec::with_capacity(txn.participants.len());
    for member in &txn.participants {
        leased.push(view.leased(&member.subject)?);
    }
    let Verdict {
        decision,
        conflict,
        ended,
        mut remaining,
    } = rules::decide(&txn, &leased, wanted, view.now());
    let mut settled = Settled {
        conflict,
        ended: Vec::with_capacity(ended.len()),
    };
    if view.in_steps() && txn.participants.iter().any(|member| member.enlisted) {
        for (index, ended) in &ended {
            let subject = &txn.participants[*index].subject;
            settled.ended.push(subject.clone());
            settled.ended.extend(state_ended_along(view, subject, ended)?);
        }
        view.edit_txn(txn_id, |txn| TxnRecord {
            decision: Some(decision),
            ..txn.clone()
        })?;
        view.carry_out_afterwards(txn_id, back.map(|(subject, record)| (subject.clone(), record.clone())));
        return Ok(settled);
    }
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
    view.edit_txn(txn_id, |_| TxnRecord {
        participants: remaining,
        decision: None,
    })?;
    Ok(settled)
}

/// Carries out what was decided on one member. One that is not there any more is done with. True: its lease goes on, because
/// the decision passes it by.
fn end_member(
    committer: &Committer,
    member: &Participant,
    decision: Decision,
    back: Option<&(Subject, MessageRecord)>,
) -> Result<bool, Error> {
    for _ in 0..ROUNDS_MAX {
        let mut view = View::to_carry_out(committer);
        let leased = view.leased(&member.subject)?;
        let ended = (leased.as_ref()).and_then(|leased| rules::end(decision, member, leased, view.now()));
        let Some(ended) = ended else {
            if !turn_back(committer, &mut view, member, leased.as_ref())? {
                continue;
            }
            // If it is under its lease all the same, it has been passed by before.
            return Ok(rules::is_member_alive(member, leased.as_ref(), view.now()));
        };
        if let (Some(name), Ended::Key(record) | Ended::KeyPassedBy(record)) = (KeyName::of(&member.subject), &ended) {
            view.put_decided(&name, record);
        } else {
            let back = back.filter(|(of, _)| *of == member.subject).map(|(_, record)| record);
            end_message(&mut view, &member.subject, &ended, back)?;
        }
        if committer.commit(view.into_plan(&[]))? {
            return Ok(matches!(ended, Ended::KeyPassedBy(_)));
        }
    }
    Err(Error::Contended)
}

/// A message that is listed may be about to be delivered. Then whoever delivers it must look again, and list it anew: its
/// record is written as it is, so that a write which is on its way is refused. False: somebody else was quicker.
fn turn_back(
    committer: &Committer,
    view: &mut View<'_>,
    member: &Participant,
    leased: Option<&Leased>,
) -> Result<bool, Error> {
    let (Subject::Message { queue, id }, Some(Leased::Message(message))) = (&member.subject, leased) else {
        return Ok(true);
    };
    if !committer.may_come(member) || message.living_lease(view.now().ms).is_some() {
        return Ok(true);
    }
    let record_key = keys::message_record(queue, *id);
    match view.stored(&record_key)? {
        Some(stored) => committer.touch(record_key, stored),
        None => Ok(true),
    }
}

/// The state that is ended along with a message, if there is one.
fn state_ended_along(view: &mut View<'_>, subject: &Subject, ended: &Ended) -> Result<Option<Subject>, Error> {
    let Subject::Message { queue, id } = subject else {
        return Ok(None);
    };
    let end = match ended {
        Ended::MessageDone => StateEnd::Remove,
        Ended::MessageBack(_) => StateEnd::Drop,
        Ended::Key(_) | Ended::KeyPassedBy(_) => return Ok(None),
    };
    let place = Place { queue, id: *id };
    let Some(found) = place.find(view)? else {
        return Ok(None);
    };
    let state = place.state_after(view, &found, end)?;
    Ok(state.map(|(name, _)| name.subject()))
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
        Ended::Key(_) | Ended::KeyPassedBy(_) => return Ok(None),
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

#[cfg(test)]
mod half_way_tests;
#[cfg(test)]
mod schedule_tests;
#[cfg(test)]
mod tests;
