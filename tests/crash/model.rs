//! What leases, states and transactions over a few keys are, as their clients see them: one state at a time, one call
//! after the other. It is written from the protocol's point of view and shares no code with the server.
//!
//! Time is the one thing that a history does not pin down: a server looks at its clock some time between call and answer.
//! So a lease is *possibly alive* for a call that began before its end, and *possibly dead* for one that was answered
//! after it, and around the end a call may find either.

use std::collections::BTreeSet;

use crate::linear::Model;

/// All clocks are those of one machine, read at slightly different moments.
const SLACK_MS: i64 = 20;

/// A lease of a history. Clients number their calls of acquire, granted or not; 0 is nobody's.
pub(crate) type LeaseNo = u32;
/// A transaction of a history; 0 stands for one that no other lease shares.
pub(crate) type TxnNo = u32;
/// A state as a client has written it; 0 stands for none.
pub(crate) type ValueNo = u64;
/// Which key of the group.
pub(crate) type KeyNo = usize;

/// What was asked of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Acquire {
        lease: LeaseNo,
        /// The transaction to join.
        txn: TxnNo,
        ttl_seconds: i64,
    },
    Update {
        lease: LeaseNo,
        value: ValueNo,
    },
    Remove {
        lease: LeaseNo,
    },
    Release {
        lease: LeaseNo,
        rollback: bool,
    },
    ReadLeased {
        lease: LeaseNo,
    },
    ReadPublic,
}

/// What was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Granted {
        token: i64,
        version: i64,
        value: ValueNo,
        expires_at_unix: i64,
    },
    Waiting,
    /// The version that the update or the removal announces.
    Staged(i64),
    NothingToRemove(i64),
    Released,
    Conflict,
    /// The caller does not hold the lease (any more).
    NotHolder,
    State {
        version: i64,
        value: ValueNo,
    },
    NoState,
    /// None came.
    Unknown,
}

/// One call on one key of a group, with its answer and the wall clock around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Action {
    pub(crate) key: KeyNo,
    pub(crate) call: Call,
    pub(crate) answer: Answer,
    pub(crate) called_ms: i64,
    /// When the answer came, or it was clear that none would: whoever was to give it was gone by then.
    pub(crate) ended_ms: i64,
}

/// Keys that share transactions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Group {
    pub(crate) keys: Vec<KeyState>,
    /// Transactions that have lost a member with staged changes, and that somebody may still decide.
    lost: BTreeSet<TxnNo>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct KeyState {
    pub(crate) version: i64,
    pub(crate) value: ValueNo,
    pub(crate) token: i64,
    lease: Option<Lease>,
    staged: Option<Staged>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lease {
    number: LeaseNo,
    txn: TxnNo,
    /// Other leases share the transaction, or were meant to.
    shares: bool,
    /// It may be over from this moment, and is over from that one.
    over_from_ms: i64,
    over_by_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Staged {
    version: i64,
    /// 0: the state is to be removed.
    value: ValueNo,
}

impl Group {
    /// Keys that nobody has ever used.
    pub(crate) fn new(keys: usize) -> Self {
        Self {
            keys: vec![KeyState::default(); keys],
            lost: BTreeSet::new(),
        }
    }
}

impl Action {
    fn may_find_alive(&self, lease: &Lease) -> bool {
        self.called_ms < lease.over_by_ms.saturating_add(SLACK_MS)
    }

    fn may_find_dead(&self, lease: &Lease) -> bool {
        // What was not answered may take effect at any later time.
        self.answer == Answer::Unknown || lease.over_from_ms <= self.ended_ms.saturating_add(SLACK_MS)
    }

    fn answered(&self, answer: Answer) -> bool {
        self.answer == answer || self.answer == Answer::Unknown
    }
}

/// The protocol.
pub(crate) struct Leases;

impl Model for Leases {
    type State = Group;
    type Action = Action;

    fn step(&self, group: &Group, action: &Action) -> Vec<Group> {
        match action.call {
            Call::Acquire {
                lease,
                txn,
                ttl_seconds,
            } => acquire(group, action, lease, txn, ttl_seconds),
            Call::ReadPublic => read_public(group, action),
            Call::Release { lease, rollback } => release(group, action, lease, rollback),
            Call::Update { lease, .. } | Call::Remove { lease } | Call::ReadLeased { lease } => {
                as_holder(group, action, lease)
            }
        }
    }
}

fn acquire(group: &Group, action: &Action, lease: LeaseNo, txn: TxnNo, ttl_seconds: i64) -> Vec<Group> {
    let key = &group.keys[action.key];
    let mut found = Vec::new();
    if let Some(held) = &key.lease
        && action.may_find_alive(held)
        && action.answered(Answer::Waiting)
    {
        found.push(group.clone());
    }
    let free = key.lease.as_ref().is_none_or(|held| action.may_find_dead(held));
    let (over_from_ms, over_by_ms) = match action.answer {
        Answer::Granted {
            token,
            version,
            value,
            expires_at_unix,
        } => {
            let expected = (key.token + 1, key.version, key.value);
            let ends = action.called_ms.div_euclid(1000) + ttl_seconds..=action.ended_ms.div_euclid(1000) + ttl_seconds;
            if (token, version, value) != expected || !ends.contains(&expires_at_unix) {
                return found;
            }
            (expires_at_unix * 1000, expires_at_unix * 1000)
        }
        // Its server may have given it back at once, when it could not be delivered.
        Answer::Unknown => (0, action.ended_ms + ttl_seconds * 1000),
        _ => return found,
    };
    if !free {
        return found;
    }
    for mut granted in cleared(group, action, action.key) {
        if txn != 0 {
            let members = granted.keys.iter_mut().filter_map(|key| key.lease.as_mut());
            members
                .filter(|member| member.txn == txn)
                .for_each(|member| member.shares = true);
        }
        let key = &mut granted.keys[action.key];
        key.token += 1;
        key.lease = Some(Lease {
            number: lease,
            // A transaction of its own has the number of its lease's call, so that others can join it.
            txn: if txn == 0 { lease } else { txn },
            shares: txn != 0,
            over_from_ms,
            over_by_ms,
        });
        found.push(granted);
    }
    found
}

fn read_public(group: &Group, action: &Action) -> Vec<Group> {
    let key = &group.keys[action.key];
    let seen = match key.value {
        0 => Answer::NoState,
        value => Answer::State {
            version: key.version,
            value,
        },
    };
    if action.answered(seen) {
        vec![group.clone()]
    } else {
        vec![]
    }
}

/// What only the holder may do, short of ending the lease.
fn as_holder(group: &Group, action: &Action, lease: LeaseNo) -> Vec<Group> {
    let key = &group.keys[action.key];
    let Some(held) = key.lease.as_ref().filter(|held| held.number == lease) else {
        let refused = action.answered(Answer::NotHolder);
        return if refused { vec![group.clone()] } else { vec![] };
    };
    let mut found = Vec::new();
    if action.may_find_dead(held) && action.answered(Answer::NotHolder) {
        found.extend(cleared(group, action, action.key));
    }
    if action.may_find_alive(held) {
        let (answer, changed) = staged_by(key, action.call);
        if action.answered(answer) {
            let mut group = group.clone();
            group.keys[action.key] = changed;
            found.push(group);
        }
    }
    found
}

/// What a call under a living lease answers, and what it leaves.
fn staged_by(key: &KeyState, call: Call) -> (Answer, KeyState) {
    let mut changed = key.clone();
    let answer = match call {
        Call::Update { value, .. } => {
            let version = key.staged.map_or(key.version + 1, |staged| staged.version);
            changed.staged = Some(Staged { version, value });
            Answer::Staged(version)
        }
        Call::Remove { .. } => {
            let effective = key.staged.map_or(key.version, |staged| staged.version);
            if key.value == 0 && key.staged.is_none_or(|staged| staged.value == 0) {
                Answer::NothingToRemove(effective)
            } else {
                let version = effective + 1;
                changed.staged = Some(Staged { version, value: 0 });
                Answer::Staged(version)
            }
        }
        _ => match key.staged {
            None if key.value == 0 => Answer::NoState,
            None => Answer::State {
                version: key.version,
                value: key.value,
            },
            Some(Staged { value: 0, .. }) => Answer::NoState,
            Some(Staged { version, value }) => Answer::State { version, value },
        },
    };
    (answer, changed)
}

fn release(group: &Group, action: &Action, lease: LeaseNo, rollback: bool) -> Vec<Group> {
    let Some(held) = &group.keys[action.key].lease else {
        return if action.answered(Answer::Released) {
            vec![group.clone()]
        } else {
            vec![]
        };
    };
    let mut found = Vec::new();
    // Whoever comes to release clears what is over, his or not; and says "released" in any case.
    if action.may_find_dead(held) && action.answered(Answer::Released) {
        found.extend(cleared(group, action, action.key));
    }
    if action.may_find_alive(held) {
        if held.number != lease {
            if action.answered(Answer::Released) {
                found.push(group.clone());
            }
        } else if !held.shares || (group.keys[action.key].staged.is_none() && !rollback) {
            if action.answered(Answer::Released) {
                let mut ended = group.clone();
                end(&mut ended.keys[action.key], !rollback);
                found.push(ended);
            }
        } else {
            found.extend(decide(group, action, held.txn, rollback));
        }
    }
    found
}

/// The first release of a transaction decides for all of its leases that have staged something.
fn decide(group: &Group, action: &Action, txn: TxnNo, rollback: bool) -> Vec<Group> {
    let members = |key: &KeyState| key.staged.is_some() && key.lease.as_ref().is_some_and(|lease| lease.txn == txn);
    let others = || {
        (group.keys.iter().enumerate())
            .filter(|(number, key)| *number != action.key && members(key))
            .filter_map(|(_, key)| key.lease.as_ref())
    };
    let is_lost = group.lost.contains(&txn);
    let may_be_whole = !is_lost && others().all(|lease| action.may_find_alive(lease));
    let may_be_lost = is_lost || others().any(|lease| action.may_find_dead(lease));
    let decided = |commit: bool| {
        let mut group = group.clone();
        group.lost.remove(&txn);
        for key in group.keys.iter_mut().filter(|key| members(key)) {
            end(key, commit);
        }
        // A rollback may be asked for by a member that has staged nothing.
        if group.keys[action.key]
            .lease
            .as_ref()
            .is_some_and(|lease| lease.txn == txn)
        {
            end(&mut group.keys[action.key], false);
        }
        group
    };
    let mut found = Vec::new();
    if rollback {
        if action.answered(Answer::Released) {
            found.push(decided(false));
        }
        return found;
    }
    if may_be_whole && action.answered(Answer::Released) {
        found.push(decided(true));
    }
    if may_be_lost && action.answered(Answer::Conflict) {
        found.push(decided(false));
    }
    found
}

/// Ends the lease of a key, with what it has staged or without.
fn end(key: &mut KeyState, commit: bool) {
    key.lease = None;
    if let Some(staged) = key.staged.take().filter(|_| commit) {
        key.version = staged.version;
        key.value = staged.value;
    }
}

/// The group after somebody has met the dead lease of a key, if there is one. What it had staged is lost, and so is its
/// transaction; but a transaction of which nobody lives is forgotten.
fn cleared(group: &Group, action: &Action, key: KeyNo) -> Vec<Group> {
    let Some(lease) = &group.keys[key].lease else {
        return vec![group.clone()];
    };
    let had_staged = group.keys[key].staged.is_some();
    let mut without = group.clone();
    end(&mut without.keys[key], false);
    if !lease.shares {
        return vec![without];
    }
    let others = || {
        let leases = without.keys.iter().filter_map(|key| key.lease.as_ref());
        leases.filter(|other| other.txn == lease.txn)
    };
    let mut found = Vec::new();
    if others().any(|other| action.may_find_alive(other)) {
        let mut remembered = without.clone();
        if had_staged {
            remembered.lost.insert(lease.txn);
        }
        found.push(remembered);
    }
    if others().all(|other| action.may_find_dead(other)) {
        let mut forgotten = without.clone();
        forgotten.lost.remove(&lease.txn);
        if !found.contains(&forgotten) {
            found.push(forgotten);
        }
    }
    found
}
