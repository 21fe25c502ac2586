//! The rules of transactions over several keys and messages: pure functions.
//!
//! Every lease belongs to a transaction. One that acquire minted has one member and ends with its release. Several
//! leases may share one: then a record lists them, and the first release that has something to decide decides for all
//! that have staged something.
//!
//! * A member that has staged nothing is not covered: its lease goes on until it is released itself.
//! * A message is covered from its delivery on: a commit is its ack, a rollback makes it visible again.
//! * A member that is covered and has lost its lease since (expiry, takeover) decides against all: half a transaction is
//!   never committed.
//! * While a member lives, the transaction lives.
//!
//! Where records are written one by one, a key is listed as covered just before something is staged on it, and a decision may
//! come in between. Then it passes the key by: its lease goes on in a new **epoch**, and what it stages then is for the next
//! decision. An epoch is never gone back to, so a decision that is carried out once more finds that it has been.

use crate::ids::Xid;
use crate::lease::rules::{self, Now};
use crate::queue::rules as message_rules;
use crate::record::{Decision, KeyRecord, MessageRecord, Participant, Subject, TxnRecord};

/// What a release has to do for its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The decision.
    pub decision: Decision,
    /// Somebody asked for a commit and a member was lost: the caller hears of a conflict.
    pub conflict: bool,
    /// What becomes of the members that the decision ends, by index into the members that were handed in.
    pub ended: Vec<(usize, Ended)>,
    /// The members that remain. Empty: the record of the transaction goes.
    pub remaining: Vec<Participant>,
}

/// What is kept of what a member has leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leased {
    /// Of a key.
    Key(KeyRecord),
    /// Of a message.
    Message(MessageRecord),
}

/// What becomes of a member that a decision ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The key's record becomes this one.
    Key(KeyRecord),
    /// The key was about to stage something and has not: its record becomes this one, and its lease goes on.
    KeyPassedBy(KeyRecord),
    /// The message is dealt with and goes.
    MessageDone,
    /// The message becomes this one, visible again.
    MessageBack(MessageRecord),
}

impl Leased {
    /// True when this is still what the member was covered for: under its lease, be it over or not, and in its epoch.
    fn is_covered_as(&self, member: &Participant) -> bool {
        let is_in_epoch = match self {
            Self::Key(key) => key.lease.as_ref().is_some_and(|lease| lease.epoch == member.epoch),
            Self::Message(_) => true,
        };
        is_in_epoch && self.is_under(&member.lease_id)
    }

    /// True when this is still under that lease, be it over or not.
    fn is_under(&self, lease_id: &Xid) -> bool {
        match self {
            Self::Key(key) => key.lease.as_ref().is_some_and(|lease| lease.id == *lease_id),
            Self::Message(message) => message.lease.as_ref().is_some_and(|lease| lease.id == *lease_id),
        }
    }

    fn is_alive(&self, now: Now) -> bool {
        match self {
            Self::Key(key) => key.living_lease(now.unix()).is_some(),
            Self::Message(message) => message.living_lease(now.ms).is_some(),
        }
    }

    fn ended(&self, decision: Decision, now: Now) -> Ended {
        match (self, decision) {
            (Self::Key(key), Decision::Commit) => Ended::Key(rules::committed(key, now)),
            (Self::Key(key), Decision::Rollback) => Ended::Key(rules::cleared(key, now)),
            (Self::Message(_), Decision::Commit) => Ended::MessageDone,
            (Self::Message(message), Decision::Rollback) => {
                Ended::MessageBack(message_rules::rolled_back(message, now))
            }
        }
    }
}

/// Adds a lease to a transaction, or marks a member as having staged something. Epochs do not go back: who adds it may have
/// looked at its lease long ago, and others have gone on since.
pub fn join(record: &TxnRecord, member: Participant) -> TxnRecord {
    let mut joined = record.clone();
    match joined
        .participants
        .iter_mut()
        .find(|known| known.lease_id == member.lease_id)
    {
        Some(known) => {
            known.enlisted |= member.enlisted;
            known.epoch = known.epoch.max(member.epoch);
        }
        None => joined.participants.push(member),
    }
    joined
}

/// Takes a lease out of a transaction.
pub fn leave(record: &TxnRecord, lease_id: &Xid) -> TxnRecord {
    let participants = record
        .participants
        .iter()
        .filter(|known| known.lease_id != *lease_id)
        .cloned()
        .collect();
    TxnRecord {
        participants,
        ..record.clone()
    }
}

/// Marks what expiry means to a transaction: a member that had staged something stays listed as lost, another one goes.
pub fn lose(record: &TxnRecord, lease_id: &Xid) -> TxnRecord {
    let participants = record
        .participants
        .iter()
        .filter(|known| known.lease_id != *lease_id || known.enlisted)
        .map(|known| Participant {
            lost: known.lost || known.lease_id == *lease_id,
            ..known.clone()
        })
        .collect();
    TxnRecord {
        participants,
        ..record.clone()
    }
}

/// Marks a member whose holder gives it up and has staged nothing. If it is listed as about to stage something, the decision
/// must end its lease and not pass it by.
pub fn give_up(record: &TxnRecord, lease_id: &Xid) -> TxnRecord {
    let mut given_up = record.clone();
    for known in &mut given_up.participants {
        known.lost |= known.enlisted && known.lease_id == *lease_id;
    }
    given_up
}

/// Takes the leases of one subject out of a transaction, as if they had never been part of it.
pub fn forget(record: &TxnRecord, subject: &Subject) -> TxnRecord {
    let participants = record
        .participants
        .iter()
        .filter(|known| known.subject != *subject)
        .cloned()
        .collect();
    TxnRecord {
        participants,
        ..record.clone()
    }
}

/// True when what this member has leased is still under its lease and the lease lives.
pub fn is_member_alive(member: &Participant, leased: Option<&Leased>, now: Now) -> bool {
    leased.is_some_and(|leased| leased.is_under(&member.lease_id) && leased.is_alive(now))
}

/// True when a member that is covered still stands where it was leased, but too late. One that does not stand there any more
/// has been marked as lost, or has never come to be covered.
fn has_expired(member: &Participant, leased: Option<&Leased>, now: Now) -> bool {
    member.enlisted && leased.is_some_and(|leased| leased.is_covered_as(member) && !leased.is_alive(now))
}

/// Decides a transaction. `leased` is what its participants have leased, in the order of the record.
pub fn decide(record: &TxnRecord, leased: &[Option<Leased>], wanted: Decision, now: Now) -> Verdict {
    let members = || record.participants.iter().zip(leased);
    let lost = members().any(|(member, leased)| member.lost || has_expired(member, leased.as_ref(), now));
    let decision = if lost { Decision::Rollback } else { wanted };
    let mut verdict = Verdict {
        decision,
        conflict: lost && wanted == Decision::Commit,
        ended: Vec::new(),
        remaining: Vec::new(),
    };
    for (index, (member, leased)) in members().enumerate() {
        if !member.enlisted {
            if is_member_alive(member, leased.as_ref(), now) {
                verdict.remaining.push(member.clone());
            }
            continue;
        }
        // A member that expired but still stands in its record is ended along; one that was taken over is somebody else's
        // record now and stays untouched.
        match leased.as_ref().and_then(|leased| end(decision, member, leased, now)) {
            Some(Ended::KeyPassedBy(_)) | None => {}
            Some(ended) => verdict.ended.push((index, ended)),
        }
    }
    verdict
}

/// What a decision makes of what a member has leased. `None` when it is not what the member was covered for any longer: the
/// decision has reached it already, or somebody else has it.
pub fn end(decision: Decision, member: &Participant, leased: &Leased, now: Now) -> Option<Ended> {
    if !leased.is_covered_as(member) {
        return None;
    }
    match leased {
        Leased::Key(key) if key.staged.is_none() && !member.lost && leased.is_alive(now) => {
            Some(Ended::KeyPassedBy(passed_by(key, now)))
        }
        _ => Some(leased.ended(decision, now)),
    }
}

/// The record in the next epoch of its lease. It differs from the one before, so whatever was about to be staged on that must
/// look again, and enlist anew.
fn passed_by(key: &KeyRecord, now: Now) -> KeyRecord {
    let mut passed_by = key.clone();
    if let Some(lease) = &mut passed_by.lease {
        lease.epoch += 1;
    }
    passed_by.updated_at_ms = now.ms;
    passed_by
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Key, MessageId, Namespace, QueueId, QueueName};
    use crate::record::{Attributes, Body, LeaseRecord, MessageLease, MessagePayload, Staged, StagedState};

    const NOW: Now = Now { ms: 1_000_000 };

    fn xid(last: char) -> Xid {
        Xid::parse(&format!("d4k7q2m0h5r8e1t6n9{last}0")).unwrap()
    }

    fn member(last: char, enlisted: bool) -> Participant {
        Participant {
            subject: Subject::Key {
                namespace: Namespace::parse("n").unwrap(),
                key: Key::parse(&last.to_string()).unwrap(),
            },
            lease_id: xid(last),
            enlisted,
            lost: false,
            epoch: 0,
        }
    }

    fn key(last: char, expires_at_unix: i64) -> Option<Leased> {
        Some(Leased::Key(KeyRecord {
            version: 1,
            lease: Some(LeaseRecord {
                id: xid(last),
                owner: "o".to_owned(),
                txn_id: xid('t'),
                explicit: true,
                expires_at_unix,
                epoch: 0,
            }),
            staged: Some(Staged {
                version: 2,
                state: StagedState::Remove,
                attributes: Attributes::default(),
            }),
            ..KeyRecord::default()
        }))
    }

    fn message_member(last: char) -> Participant {
        Participant {
            subject: Subject::Message {
                queue: QueueId {
                    namespace: Namespace::parse("n").unwrap(),
                    queue: QueueName::parse("q").unwrap(),
                },
                id: MessageId::parse("0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50").unwrap(),
            },
            lease_id: xid(last),
            enlisted: true,
            lost: false,
            epoch: 0,
        }
    }

    fn message(last: char, visible_from_ms: i64) -> Option<Leased> {
        let payload = MessagePayload {
            bytes: 0,
            body: Body::Inline([].into()),
        };
        let new = message_rules::enqueued(message_rules::NewMessage::default(), payload, NOW);
        Some(Leased::Message(MessageRecord {
            visible_from_ms,
            attempts: 1,
            lease: Some(MessageLease {
                id: xid(last),
                owner: "o".into(),
                txn_id: xid('t'),
                explicit: true,
                state: None,
            }),
            ..new
        }))
    }

    fn becomes(ended: &Ended) -> (Option<i64>, bool) {
        match ended {
            Ended::Key(key) | Ended::KeyPassedBy(key) => (Some(key.version), key.lease.is_none()),
            Ended::MessageDone => (None, true),
            Ended::MessageBack(message) => (Some(message.visible_from_ms), message.lease.is_none()),
        }
    }

    fn txn(participants: Vec<Participant>) -> TxnRecord {
        TxnRecord {
            participants,
            decision: None,
        }
    }

    #[test]
    fn all_that_staged_something_are_decided_together() {
        let record = txn(vec![member('a', true), member('b', true), member('c', false)]);
        let keys = [key('a', 2_000), key('b', 2_000), key('c', 2_000)];
        for (wanted, version) in [(Decision::Commit, 2), (Decision::Rollback, 1)] {
            let verdict = decide(&record, &keys, wanted, NOW);
            assert_eq!((verdict.decision, verdict.conflict), (wanted, false));
            assert_eq!(
                verdict.ended.iter().map(|(index, _)| *index).collect::<Vec<_>>(),
                [0, 1]
            );
            assert!(
                verdict
                    .ended
                    .iter()
                    .all(|(_, ended)| becomes(ended) == (Some(version), true))
            );
            assert_eq!(verdict.remaining, [member('c', false)]);
        }
    }

    #[test]
    fn a_lost_member_turns_a_commit_into_a_rollback_of_all() {
        let expired = (txn(vec![member('a', true), member('b', true)]), key('b', 1_000));
        let taken_over = (lose(&expired.0, &xid('b')), key('v', 2_000));
        let gone = (lose(&expired.0, &xid('b')), None);
        for (record, lost) in [expired, taken_over, gone] {
            let verdict = decide(&record, &[key('a', 2_000), lost], Decision::Commit, NOW);
            assert_eq!((verdict.decision, verdict.conflict), (Decision::Rollback, true));
            assert!(verdict.ended.iter().all(|(_, ended)| becomes(ended) == (Some(1), true)));
            assert_eq!(verdict.remaining, []);
        }
    }

    #[test]
    fn somebody_elses_lease_on_a_lost_key_is_left_alone() {
        let record = lose(&txn(vec![member('a', true), member('b', true)]), &xid('b'));
        let verdict = decide(&record, &[key('a', 2_000), key('v', 2_000)], Decision::Commit, NOW);
        assert_eq!(verdict.ended.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_message_goes_with_the_commit_and_comes_back_with_the_rollback() {
        let record = txn(vec![member('a', true), message_member('m')]);
        let leased = [key('a', 2_000), message('m', NOW.ms + 1)];
        let verdict = decide(&record, &leased, Decision::Commit, NOW);
        assert_eq!((verdict.decision, verdict.conflict), (Decision::Commit, false));
        assert_eq!(verdict.ended[1], (1, Ended::MessageDone));
        let verdict = decide(&record, &leased, Decision::Rollback, NOW);
        let (1, Ended::MessageBack(back)) = &verdict.ended[1] else {
            panic!("{verdict:?}")
        };
        assert_eq!(
            (back.visible_from_ms, back.attempts, back.failure_attempts),
            (NOW.ms, 1, 0)
        );
        assert_eq!(back.last_error.as_deref(), Some(r#"{"reason":"txn_rollback"}"#));
        assert_eq!(verdict.remaining, []);
    }

    #[test]
    fn a_message_that_has_lapsed_decides_against_all_and_is_nobody_elses_to_end() {
        let lapsed = txn(vec![member('a', true), message_member('m')]);
        let gone = lose(&lapsed, &xid('m'));
        for (record, lost, ended) in [
            (&lapsed, message('m', NOW.ms), vec![0, 1]),
            (&gone, message('v', NOW.ms + 1), vec![0]),
            (&gone, None, vec![0]),
        ] {
            let verdict = decide(record, &[key('a', 2_000), lost], Decision::Commit, NOW);
            assert_eq!((verdict.decision, verdict.conflict), (Decision::Rollback, true));
            assert_eq!(verdict.ended.iter().map(|(index, _)| *index).collect::<Vec<_>>(), ended);
        }
    }

    #[test]
    fn a_wanted_rollback_is_no_conflict_even_with_a_lost_member() {
        let record = txn(vec![member('a', true), member('b', true)]);
        let record = lose(&record, &xid('b'));
        let verdict = decide(&record, &[key('a', 2_000), None], Decision::Rollback, NOW);
        assert!(!verdict.conflict);
    }

    #[test]
    fn a_member_that_was_never_leased_as_it_was_about_to_be_decides_nothing() {
        let record = txn(vec![member('a', true), member('b', true), message_member('m')]);
        let verdict = decide(
            &record,
            &[key('a', 2_000), key('v', 2_000), None],
            Decision::Commit,
            NOW,
        );
        assert_eq!((verdict.decision, verdict.conflict), (Decision::Commit, false));
        assert_eq!(verdict.ended.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_member_that_is_marked_as_lost_is_lost_while_its_lease_still_stands() {
        let record = lose(&txn(vec![member('a', true), member('b', true)]), &xid('b'));
        let keys = [key('a', 2_000), key('b', 2_000)];
        let verdict = decide(&record, &keys, Decision::Commit, NOW);
        assert_eq!((verdict.decision, verdict.conflict), (Decision::Rollback, true));
        assert_eq!(verdict.ended.len(), 2);
    }

    #[test]
    fn joining_twice_keeps_one_entry_and_never_forgets_an_enlistment() {
        let once = join(&txn(vec![]), member('a', false));
        let staged = join(&once, member('a', true));
        assert_eq!(staged.participants, [member('a', true)]);
        assert_eq!(join(&staged, member('a', false)), staged);
        assert_eq!(leave(&staged, &xid('a')), txn(vec![]));
        let lost = Participant {
            lost: true,
            ..member('a', true)
        };
        assert_eq!(lose(&staged, &xid('a')), txn(vec![lost]));
        assert_eq!(lose(&once, &xid('a')), txn(vec![]));
    }
}
