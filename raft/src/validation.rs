//! What no working replica says. A peer may be faulty, or no peer at all; what it sends must not bring this
//! process down, nor change what is committed here.
//!
//! Every message passes [`Raft::nonsense`] before anything else looks at it, and one that fails changes
//! nothing, not even the term. So the assertions behind it are about this code's own mistakes, and may
//! abort. What is checked is what Raft's properties (paper, Figure 3) rule out between working replicas,
//! and what the arithmetic and the formats can't hold. A lie that is possible, such as a commit index
//! that no quorum holds, can't be told from the truth here: Raft does not tolerate Byzantine faults.

use crate::membership::Membership;
use crate::message::{Body, Message};
use crate::raft::{Raft, Role};
use crate::types::{Entry, EntryKind, Index, Mark, Term};
use std::fmt;

/// Terms and indices end here: what is counted on from them can't overflow, nor leave the formats.
const NUMBER_MAX: u64 = u64::MAX / 4;

/// Bytes of one entry's payload that a peer may send. The log of the layer above must take it.
pub const ENTRY_BYTES_MAX: usize = (16 << 20) + (512 << 10);

/// Why a message can't have come from a replica that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nonsense {
    /// A term or index that no group gets to.
    NumberTooLarge,
    /// The entries leave a gap, go back in term, or are of a later term than their sender.
    EntriesOutOfOrder,
    /// An entry's payload is over [`ENTRY_BYTES_MAX`].
    EntryTooLong,
    /// An append or a snapshot has this mark where something else is committed here.
    ContradictsCommitted(Mark),
    /// An entry says that it is a membership, and isn't a sound one.
    BadMembership(Mark),
    /// A snapshot is of a later term than its sender, or its members can't be a group.
    BadSnapshot,
    /// An answer about entries that this leader doesn't have.
    BeyondLog(Index),
    /// An answer to a ReadIndex round that this leader hasn't begun.
    UnknownRound(u64),
}

impl fmt::Display for Nonsense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NumberTooLarge => write!(f, "a term or index beyond {NUMBER_MAX}"),
            Self::EntriesOutOfOrder => write!(f, "entries with a gap, or terms out of order"),
            Self::EntryTooLong => write!(f, "an entry of more than {ENTRY_BYTES_MAX} bytes"),
            Self::BadMembership(mark) => write!(f, "{mark} holds no sound membership"),
            Self::ContradictsCommitted(mark) => write!(f, "{mark} where another entry is committed"),
            Self::BadSnapshot => write!(f, "a snapshot of a later term, or of an impossible membership"),
            Self::BeyondLog(index) => write!(f, "an answer about {index}, which is beyond the log"),
            Self::UnknownRound(round) => write!(f, "an answer to read round {round}, which never began"),
        }
    }
}

impl std::error::Error for Nonsense {}

impl Raft {
    /// Why no working member can have said this; `None` for everything that one may say. O(entries),
    /// and O(log terms) for each mark at or below the commit index.
    pub(crate) fn nonsense(&self, message: &Message) -> Option<Nonsense> {
        let term = message.term;
        if term > NUMBER_MAX || largest_number(&message.body) > NUMBER_MAX {
            return Some(Nonsense::NumberTooLarge);
        }
        match &message.body {
            // One of an old term is only told of ours.
            _ if term < self.term => None,
            Body::Append { prev, entries, .. } => {
                bad_entries(*prev, entries, term).or_else(|| self.contradiction(*prev, entries))
            }
            Body::InstallSnapshot { mark, membership, .. } => self.bad_snapshot(*mark, membership, term),
            Body::Quiesce { last } => self.bad_quiesce(*last, term),
            Body::AppendAccepted { matched: index, .. } | Body::AppendRefused { matched: index, .. } => {
                self.beyond_log(term, *index)
            }
            Body::AppendRejected { prev, .. } => self.beyond_log(term, prev.index),
            Body::HeartbeatReply { read_round, .. } => self.unknown_round(term, *read_round),
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::Vote { .. }
            | Body::VoteReply { .. }
            | Body::Heartbeat { .. }
            | Body::TimeoutNow
            | Body::ReadIndex { .. }
            | Body::ReadIndexReply { .. }
            | Body::ReadIndexRefused { .. } => None,
        }
    }

    /// Leader Completeness: whoever leads a term that isn't behind ours has all that is committed here.
    fn contradiction(&self, prev: Mark, entries: &[Entry]) -> Option<Nonsense> {
        let marks = std::iter::once(prev).chain(entries.iter().map(|entry| entry.mark));
        let mut committed = marks.take_while(|mark| mark.index <= self.commit);
        committed.find(|mark| self.contradicts(*mark)).map(Nonsense::ContradictsCommitted)
    }

    /// Whether something else is known here at `mark`'s index. What lies below the log isn't.
    fn contradicts(&self, mark: Mark) -> bool {
        self.log.term_at(mark.index).is_some_and(|term| term != mark.term)
    }

    fn bad_snapshot(&self, mark: Mark, membership: &Membership, term: Term) -> Option<Nonsense> {
        let committed_term = self.log.term_at(self.commit).unwrap_or(0);
        if mark.term > term || membership.broken_rule().is_some() {
            return Some(Nonsense::BadSnapshot);
        }
        let is_ahead = mark.index > self.commit;
        let contradicts = if is_ahead { mark.term < committed_term } else { self.contradicts(mark) };
        contradicts.then_some(Nonsense::ContradictsCommitted(mark))
    }

    fn bad_quiesce(&self, last: Mark, term: Term) -> Option<Nonsense> {
        if last.term > term {
            return Some(Nonsense::EntriesOutOfOrder);
        }
        let contradicts = last.index <= self.commit && self.contradicts(last);
        contradicts.then_some(Nonsense::ContradictsCommitted(last))
    }

    /// A follower answers only about what this leader has sent it in this term.
    fn beyond_log(&self, term: Term, index: Index) -> Option<Nonsense> {
        let leads = term == self.term && matches!(self.role, Role::Leader(_));
        (leads && index > self.log.last_index()).then_some(Nonsense::BeyondLog(index))
    }

    fn unknown_round(&self, term: Term, round: u64) -> Option<Nonsense> {
        let Role::Leader(leader) = &self.role else { return None };
        let is_ours = term == self.term;
        (is_ours && round > leader.reads.newest_round()).then_some(Nonsense::UnknownRound(round))
    }
}

/// The largest term or index in a message's body. Entries aren't looked at: those in order lie right
/// after `prev`, and their terms are bounded by the message's.
fn largest_number(body: &Body) -> u64 {
    let of = |mark: &Mark| mark.term.max(mark.index);
    match body {
        Body::PreVote { last } | Body::Vote { last, .. } | Body::Quiesce { last } => of(last),
        Body::Append { prev, commit, held_by_all, .. } => of(prev).max(*commit).max(*held_by_all),
        Body::AppendAccepted { matched, .. } | Body::AppendRefused { matched, .. } => *matched,
        Body::AppendRejected { prev, hint, .. } => of(prev).max(of(hint)),
        Body::Heartbeat { commit, .. } => *commit,
        Body::ReadIndexReply { index, .. } => *index,
        Body::InstallSnapshot { mark, .. } => of(mark),
        Body::PreVoteReply { .. }
        | Body::VoteReply { .. }
        | Body::HeartbeatReply { .. }
        | Body::TimeoutNow
        | Body::ReadIndex { .. }
        | Body::ReadIndexRefused { .. } => 0,
    }
}

/// Entries are contiguous from `prev`; their terms never fall, nor exceed the leader's; each has its bound.
fn bad_entries(prev: Mark, entries: &[Entry], term: Term) -> Option<Nonsense> {
    let mut last = prev;
    for entry in entries {
        if entry.mark.index != last.index + 1 || entry.mark.term < last.term {
            return Some(Nonsense::EntriesOutOfOrder);
        }
        if entry.data.len() > ENTRY_BYTES_MAX {
            return Some(Nonsense::EntryTooLong);
        }
        if entry.kind == EntryKind::Membership && Membership::decode(&entry.data).is_none() {
            return Some(Nonsense::BadMembership(entry.mark));
        }
        last = entry.mark;
    }
    (last.term > term).then_some(Nonsense::EntriesOutOfOrder)
}
