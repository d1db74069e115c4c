//! Linearizable reads of one replica (thesis §6.4): all that came in between two turns share one read index, and
//! each is served once that is applied here.
//!
//! A leader proves its index by a round of heartbeats; a follower or learner asks its leader for one, which
//! the leader proves in the same way. Without an answer within an election timeout the reads are turned away.

use crate::request::{Consistency, Query, RequestId};
use floe_raft::{Index, Nanos, Raft};
use std::collections::VecDeque;

/// A read without an answer.
pub(crate) struct PendingRead {
    pub(crate) id: RequestId,
    pub(crate) query: Query,
    /// By which the caller chose the shard; checked again when it is served.
    pub(crate) range_epoch: u64,
    pub(crate) consistency: Consistency,
}

/// What is known of a round.
enum Confirmed {
    NotYet,
    At(Index),
    Dropped,
}

struct Round {
    context: u64,
    /// Reads that share it: so many from the front of `reads`, after those of earlier rounds.
    reads: usize,
    confirmed: Confirmed,
}

/// A replica's waiting reads, in order.
#[derive(Default)]
pub(crate) struct Reads {
    reads: VecDeque<PendingRead>,
    rounds: VecDeque<Round>,
    /// Reads at the back that belong to no round yet.
    unasked: usize,
}

impl Reads {
    pub(crate) const fn new() -> Self {
        Self { reads: VecDeque::new(), rounds: VecDeque::new(), unasked: 0 }
    }

    pub(crate) fn push(&mut self, read: PendingRead) {
        self.reads.push_back(read);
        self.unasked += 1;
    }

    /// Takes all reads away, unanswered.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = PendingRead> {
        self.rounds.clear();
        self.unasked = 0;
        self.reads.drain(..)
    }

    /// Whether reads have come in since the last round.
    pub(crate) fn are_unasked(&self) -> bool {
        self.unasked > 0
    }

    /// Asks for one read index for all reads that came in since the last. Returns whether it did; if not, nobody
    /// is there to be asked, or too many ask already, and these reads are turned away.
    pub(crate) fn ask(&mut self, raft: &mut Raft, now: Nanos, context_next: &mut u64) -> bool {
        let context = *context_next;
        *context_next += 1;
        let asked = raft.read_index(now, context).is_ok();
        let confirmed = if asked { Confirmed::NotYet } else { Confirmed::Dropped };
        self.rounds.push_back(Round { context, reads: self.unasked, confirmed });
        self.unasked = 0;
        asked
    }

    pub(crate) fn confirm(&mut self, context: u64, index: Index) {
        self.set(context, Confirmed::At(index));
    }

    pub(crate) fn drop_round(&mut self, context: u64) {
        self.set(context, Confirmed::Dropped);
    }

    /// The next read that can be answered: `true` = may be served, `false` = its round was dropped.
    /// Call until `None`.
    pub(crate) fn pop(&mut self, applied: Index) -> Option<(PendingRead, bool)> {
        let round = self.rounds.front_mut()?;
        let may_serve = match round.confirmed {
            Confirmed::At(index) if index <= applied => true,
            Confirmed::Dropped => false,
            Confirmed::At(_) | Confirmed::NotYet => return None,
        };
        let read = self.reads.pop_front().expect("a round has as many reads as it counts");
        round.reads -= 1;
        if round.reads == 0 {
            self.rounds.pop_front();
        }
        Some((read, may_serve))
    }

    pub(crate) fn len(&self) -> usize {
        self.reads.len()
    }

    /// Rounds are few, and the one looked for is nearly always the first that isn't confirmed.
    fn set(&mut self, context: u64, confirmed: Confirmed) {
        if let Some(round) = self.rounds.iter_mut().find(|round| round.context == context) {
            round.confirmed = confirmed;
        }
    }
}
