//! The rules of transactions over several keys: pure functions.
//!
//! Every lease belongs to a transaction. One that acquire minted has one member and ends with its release. Several
//! leases may share one: then a record lists them, and the first release that has something to decide decides for all
//! that have staged something.
//!
//! * A member that has staged nothing is not covered: its lease goes on until it is released itself.
//! * A member that has staged something and has lost its lease since (expiry, takeover) decides against all: half a
//!   transaction is never committed.
//! * While a member lives, the transaction lives.

use crate::ids::Xid;
use crate::lease::rules::{self, Now};
use crate::record::{KeyRecord, Participant, TxnRecord};

/// What becomes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// What was staged becomes the truth on every key.
    Commit,
    /// What was staged is dropped on every key.
    Rollback,
}

/// What a release has to do for its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The decision.
    pub decision: Decision,
    /// Somebody asked for a commit and a member was lost: the caller hears of a conflict.
    pub conflict: bool,
    /// New records of the members that the decision ends, by index into the members that were handed in.
    pub ended: Vec<(usize, KeyRecord)>,
    /// The members that remain. Empty: the record of the transaction goes.
    pub remaining: Vec<Participant>,
}

/// Adds a lease to a transaction, or marks a member as having staged something.
pub fn join(record: &TxnRecord, member: Participant) -> TxnRecord {
    let mut joined = record.clone();
    match joined
        .participants
        .iter_mut()
        .find(|known| known.lease_id == member.lease_id)
    {
        Some(known) => known.enlisted |= member.enlisted,
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
    TxnRecord { participants }
}

/// Marks what expiry means to a transaction: a member that had staged something stays listed as lost, another one goes.
pub fn lose(record: &TxnRecord, lease_id: &Xid) -> TxnRecord {
    let participants = record
        .participants
        .iter()
        .filter(|known| known.lease_id != *lease_id || known.enlisted)
        .cloned()
        .collect();
    TxnRecord { participants }
}

/// True when `key` still holds the lease of this member and it lives.
pub fn is_member_alive(member: &Participant, key: Option<&KeyRecord>, now: Now) -> bool {
    key.and_then(|key| key.living_lease(now.unix()))
        .is_some_and(|lease| lease.id == member.lease_id)
}

/// Decides a transaction. `keys` are the records of its participants, in the order of the record.
pub fn decide(record: &TxnRecord, keys: &[Option<KeyRecord>], wanted: Decision, now: Now) -> Verdict {
    let members = || record.participants.iter().zip(keys);
    let lost = members().any(|(member, key)| member.enlisted && !is_member_alive(member, key.as_ref(), now));
    let decision = if lost { Decision::Rollback } else { wanted };
    let mut verdict = Verdict {
        decision,
        conflict: lost && wanted == Decision::Commit,
        ended: Vec::new(),
        remaining: Vec::new(),
    };
    for (index, (member, key)) in members().enumerate() {
        if !member.enlisted {
            if is_member_alive(member, key.as_ref(), now) {
                verdict.remaining.push(member.clone());
            }
            continue;
        }
        let Some(key) = key else { continue };
        // A member that expired but still stands in its record is cleared along; one that was taken over is somebody
        // else's record now and stays untouched.
        if key.lease.as_ref().is_some_and(|lease| lease.id == member.lease_id) {
            let ended = match decision {
                Decision::Commit => rules::committed(key, now),
                Decision::Rollback => rules::cleared(key, now),
            };
            verdict.ended.push((index, ended));
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Key, Namespace};
    use crate::record::{Attributes, LeaseRecord, Staged, StagedState};

    const NOW: Now = Now { ms: 1_000_000 };

    fn xid(last: char) -> Xid {
        Xid::parse(&format!("d4k7q2m0h5r8e1t6n9{last}0")).unwrap()
    }

    fn member(last: char, enlisted: bool) -> Participant {
        Participant {
            namespace: Namespace::parse("n").unwrap(),
            key: Key::parse(&last.to_string()).unwrap(),
            lease_id: xid(last),
            enlisted,
        }
    }

    fn key(last: char, expires_at_unix: i64) -> Option<KeyRecord> {
        Some(KeyRecord {
            version: 1,
            lease: Some(LeaseRecord {
                id: xid(last),
                owner: "o".to_owned(),
                txn_id: xid('t'),
                explicit: true,
                expires_at_unix,
            }),
            staged: Some(Staged {
                version: 2,
                state: StagedState::Remove,
                attributes: Attributes::default(),
            }),
            ..KeyRecord::default()
        })
    }

    fn txn(participants: Vec<Participant>) -> TxnRecord {
        TxnRecord { participants }
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
                    .all(|(_, key)| key.lease.is_none() && key.version == version)
            );
            assert_eq!(verdict.remaining, [member('c', false)]);
        }
    }

    #[test]
    fn a_lost_member_turns_a_commit_into_a_rollback_of_all() {
        let record = txn(vec![member('a', true), member('b', true)]);
        let taken_over = key('v', 2_000);
        for lost in [key('b', 1_000), taken_over, None] {
            let verdict = decide(&record, &[key('a', 2_000), lost], Decision::Commit, NOW);
            assert_eq!((verdict.decision, verdict.conflict), (Decision::Rollback, true));
            assert!(
                verdict
                    .ended
                    .iter()
                    .all(|(_, key)| key.version == 1 && key.lease.is_none())
            );
            assert_eq!(verdict.remaining, []);
        }
    }

    #[test]
    fn somebody_elses_lease_on_a_lost_key_is_left_alone() {
        let record = txn(vec![member('a', true), member('b', true)]);
        let verdict = decide(&record, &[key('a', 2_000), key('v', 2_000)], Decision::Commit, NOW);
        assert_eq!(verdict.ended.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_wanted_rollback_is_no_conflict_even_with_a_lost_member() {
        let record = txn(vec![member('a', true), member('b', true)]);
        let verdict = decide(&record, &[key('a', 2_000), None], Decision::Rollback, NOW);
        assert!(!verdict.conflict);
    }

    #[test]
    fn joining_twice_keeps_one_entry_and_never_forgets_an_enlistment() {
        let once = join(&txn(vec![]), member('a', false));
        let staged = join(&once, member('a', true));
        assert_eq!(staged.participants, [member('a', true)]);
        assert_eq!(join(&staged, member('a', false)), staged);
        assert_eq!(leave(&staged, &xid('a')), txn(vec![]));
        assert_eq!(lose(&staged, &xid('a')), staged);
        assert_eq!(lose(&once, &xid('a')), txn(vec![]));
    }
}
