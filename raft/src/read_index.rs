//! ReadIndex (thesis §6.4): linearizable reads without a log entry and without a clock.
//!
//! A leader notes its commit index, then proves by one heartbeat round *started after that* that it
//! still leads; a read may be served once that index is applied. All contexts asked for before the
//! next `ready` share one round. Rounds are numbered within a term; a heartbeat carries the newest
//! round, and its reply confirms that round and all older ones.
//!
//! Before the first entry of the leader's own term is committed its commit index may be stale (paper
//! §8), so until then contexts wait.

use crate::lazy::Lazy;
use crate::types::{Index, Nanos, ReplicaId};
use std::collections::{BTreeMap, VecDeque};

/// One read that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The asker's number.
    pub(crate) context: u64,
    /// The follower that forwarded it; `None` if it was asked here.
    pub(crate) from: Option<ReplicaId>,
}

/// Contexts that share one confirmation.
#[derive(Debug)]
pub(crate) struct Round {
    number: u64,
    /// The commit index when the round began.
    pub(crate) index: Index,
    /// Who waits.
    pub(crate) asked: Vec<Asked>,
}

/// A leader's reads.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Not in a round yet.
    waiting: Lazy<Vec<Asked>>,
    /// Waiting for confirmation, oldest first.
    rounds: Lazy<VecDeque<Round>>,
    /// Number of the newest round; 0 = none yet.
    newest: u64,
    /// How many of each follower's are in `waiting` and `rounds`; never 0.
    forwarded: BTreeMap<ReplicaId, usize>,
}

impl Reads {
    /// Takes a read into the next round.
    pub(crate) fn ask(&mut self, asked: Asked) {
        if let Some(from) = asked.from {
            *self.forwarded.entry(from).or_default() += 1;
        }
        self.waiting.push(asked);
    }

    /// How many reads of this follower wait for an answer.
    pub(crate) fn waiting_of(&self, from: ReplicaId) -> usize {
        self.forwarded.get(&from).copied().unwrap_or(0)
    }

    /// Whether a round should begin.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether nobody waits.
    pub(crate) fn are_none(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty()
    }

    /// Gives back the memory that nobody needs at the moment.
    pub(crate) fn shrink(&mut self) {
        self.waiting.give_back();
        self.rounds.give_back();
    }

    /// Begins the next round at this commit index.
    pub(crate) fn begin_round(&mut self, index: Index) {
        self.newest += 1;
        let asked = std::mem::take(&mut *self.waiting);
        self.rounds.push_back(Round { number: self.newest, index, asked });
    }

    /// The newest round that waits for confirmation; 0 = none.
    pub(crate) fn pending_round(&self) -> u64 {
        if self.rounds.is_empty() { 0 } else { self.newest }
    }

    /// Number of the newest round, waiting or not.
    pub(crate) fn newest_round(&self) -> u64 {
        self.newest
    }

    /// The oldest round, if a quorum has confirmed it by confirming `round`.
    pub(crate) fn pop_confirmed(&mut self, round: u64) -> Option<Round> {
        if self.rounds.is_empty() {
            return None;
        }
        let confirmed = self.rounds.pop_front_if(|oldest| oldest.number <= round)?;
        for from in confirmed.asked.iter().filter_map(|asked| asked.from) {
            let waiting = self.forwarded.get_mut(&from).expect("it was counted when it was asked");
            *waiting -= 1;
            if *waiting == 0 {
                self.forwarded.remove(&from);
            }
        }
        Some(confirmed)
    }

    /// Leadership is over: the contexts of this replica's own callers.
    pub(crate) fn own_contexts(&self) -> impl Iterator<Item = u64> {
        let in_rounds = self.rounds.iter().flat_map(|round| &round.asked);
        in_rounds.chain(&*self.waiting).filter(|asked| asked.from.is_none()).map(|asked| asked.context)
    }
}

/// A read that a follower has forwarded to its leader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forwarded {
    /// The caller's number.
    pub(crate) context: u64,
    /// When it was asked; it is given up an upper election timeout later.
    pub(crate) asked_at: Nanos,
}
