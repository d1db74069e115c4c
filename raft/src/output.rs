//! What goes out: [`Raft::ready`] and the looks at a replica's state.

use crate::error::NotHeld;
use crate::lazy::Part;
use crate::leader::View;
use crate::membership::Membership;
use crate::message::{Body, Message};
use crate::planted::{self, Planted};
use crate::raft::{Raft, Role};
use crate::ready::{Leadership, ReadState, Ready};
use crate::status::RoleKind;
use crate::types::{Entry, HardState, Index, Mark, ReplicaId, Term};
use crate::writes::Ballot;
use std::ops::Range;

/// What waits for the next `ready`.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// To send at once.
    pub(crate) messages: Vec<Message>,
    /// To send once the term and vote they reveal are durable.
    pub(crate) revealing: Vec<Message>,
    pub(crate) reads: Vec<ReadState>,
    pub(crate) reads_dropped: Vec<u64>,
    pub(crate) snapshots_needed: Vec<ReplicaId>,
}

impl Outbox {
    /// Sends a leader's message: its term is durable, or it would not lead.
    pub(crate) fn send(&mut self, view: &View<'_>, to: ReplicaId, body: Body) {
        self.messages.push(Message { from: view.id, to, term: view.term, body });
    }
}

impl Part for Outbox {
    fn empty() -> &'static Self {
        static EMPTY: Outbox = Outbox {
            messages: Vec::new(),
            revealing: Vec::new(),
            reads: Vec::new(),
            reads_dropped: Vec::new(),
            snapshots_needed: Vec::new(),
        };
        &EMPTY
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.revealing.is_empty()
            && self.reads.is_empty()
            && self.reads_dropped.is_empty()
            && self.snapshots_needed.is_empty()
    }
}

impl Raft {
    /// Whether [`Raft::ready`] may have something. O(1).
    pub fn has_ready(&self) -> bool {
        let role_wants = match &self.role {
            Role::Leader(leader) => leader.needs_flush,
            Role::Follower(follower) => follower.ack_owed,
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        };
        role_wants
            || !self.outbox.is_empty()
            || self.ballot() != self.writes.handed_ballot()
            || (self.has_log_to_write() && self.writes.handed() < self.log.last_index())
            || self.installing.as_ref().is_some_and(|installing| !installing.handed)
            || (self.installing.is_none() && self.applying < self.may_apply_to())
            || self.announced != (self.term, self.leader())
    }

    /// Fills `out` (cleared first) with everything that is to be done, in one batch.
    pub fn ready(&mut self, out: &mut Ready) {
        out.clear();
        // First: it decides what followers are told.
        self.put_committed(out);
        let led_at = self.with_leader(|leader, view, outbox| leader.flush(view, outbox));
        self.note_fresh(self.commit, led_at);
        self.emit_ack();
        self.put_write(out);
        self.put_messages(out);
        out.reads.append(&mut self.outbox.reads);
        out.reads_dropped.append(&mut self.outbox.reads_dropped);
        out.snapshots_needed.append(&mut self.outbox.snapshots_needed);
        let (term, leader) = (self.term, self.leader());
        if std::mem::replace(&mut self.announced, (term, leader)) != (term, leader) {
            out.leadership = Some(Leadership { term, leader, is_self: self.is_leader() });
        }
        if self.quiet {
            self.outbox.give_back();
        }
    }

    /// The hard state, entries and snapshot that were not handed out yet, as one write.
    fn put_write(&mut self, out: &mut Ready) {
        let ballot = self.ballot();
        if ballot != self.writes.handed_ballot() {
            let keep = !planted::is(Planted::VoteNotPersisted);
            let vote = ballot.vote.filter(|_| keep);
            out.hard_state = Some(HardState { term: ballot.term, vote, commit: self.commit });
        }
        if self.has_log_to_write() {
            out.entries.extend(self.log.slice(self.writes.handed() + 1, Index::MAX, usize::MAX).cloned());
        }
        if let Some(installing) = self.installing.as_mut().filter(|installing| !installing.handed) {
            installing.handed = true;
            out.snapshot = Some(installing.install.clone());
        }
        if out.hard_state.is_some() || !out.entries.is_empty() || out.snapshot.is_some() {
            let last = out.entries.last().map_or(self.writes.handed(), |entry| entry.mark.index);
            out.write = Some(self.writes.begin(last, out.hard_state.map(|_| ballot)));
        }
    }

    /// Entries to apply: never above our own durable index, or the state could be ahead of the log
    /// after a crash, and the difference would be applied twice.
    fn put_committed(&mut self, out: &mut Ready) {
        if self.installing.is_some() {
            return;
        }
        let from = self.applying + 1;
        let count = self.log.slice(from, self.may_apply_to(), self.config.apply_bytes_max).len() as u64;
        out.committed = from..from + count;
        self.applying += count;
    }

    /// Messages that reveal the ballot wait until it is durable.
    fn put_messages(&mut self, out: &mut Ready) {
        out.messages.append(&mut self.outbox.messages);
        let is_durable = self.writes.durable_ballot() == self.ballot();
        if is_durable || planted::is(Planted::VoteNotPersisted) {
            out.messages.append(&mut self.outbox.revealing);
        } else {
            out.messages_after_persist.append(&mut self.outbox.revealing);
        }
    }

    /// A log that a snapshot is about to replace isn't written any more.
    fn has_log_to_write(&self) -> bool {
        self.installing.as_ref().is_none_or(|installing| installing.install.keep_suffix)
    }

    fn may_apply_to(&self) -> Index {
        self.commit.min(self.writes.durable())
    }

    fn ballot(&self) -> Ballot {
        Ballot { term: self.term, vote: self.vote }
    }

    // --- looks

    /// Which replica this is.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// The latest term it has seen.
    pub fn term(&self) -> Term {
        self.term
    }

    /// Whom it voted for in that term.
    pub fn vote(&self) -> Option<ReplicaId> {
        self.vote
    }

    /// Highest index known to be committed.
    pub fn commit(&self) -> Index {
        self.commit
    }

    /// Highest index that the caller has applied.
    pub fn applied_index(&self) -> Index {
        self.applied
    }

    /// The last mark of the log, durable or not.
    pub fn last_mark(&self) -> Mark {
        self.log.last_mark()
    }

    /// Highest index whose entry is durable here as the log holds it.
    pub fn durable_index(&self) -> Index {
        self.writes.durable()
    }

    /// The first index of the log; the next one if it is empty.
    pub fn first_index(&self) -> Index {
        self.log.first_index()
    }

    /// Whether it leads its term (as far as it knows).
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Whether it campaigns, or asks whether it may.
    pub fn is_candidate(&self) -> bool {
        matches!(self.role, Role::PreCandidate(_) | Role::Candidate(_))
    }

    /// Its role at the moment.
    pub fn role(&self) -> RoleKind {
        self.role.kind()
    }

    /// The leader of its term, if known.
    pub fn leader(&self) -> Option<ReplicaId> {
        match &self.role {
            Role::Leader(_) => Some(self.id),
            Role::Follower(follower) => follower.leader,
            Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// The membership in force.
    pub fn membership(&self) -> &Membership {
        &self.members.current
    }

    /// Term, vote and commit as of now, durable or not.
    pub fn hard_state(&self) -> HardState {
        HardState { term: self.term, vote: self.vote, commit: self.commit }
    }

    /// Highest index that is durable here, and not replaced since.
    pub fn durable(&self) -> Index {
        self.writes.durable()
    }

    /// Term and vote that are durable.
    pub fn durable_ballot(&self) -> (Term, Option<ReplicaId>) {
        let ballot = self.writes.durable_ballot();
        (ballot.term, ballot.vote)
    }

    /// Term of the entry at `index`, or of the snapshot the log starts after. O(1).
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// Entries `from..=to_inclusive`, cut where their sizes exceed `max_bytes`; the first one is always
    /// admitted. Empty if `from` is not in the log; [`Raft::slice`] says why.
    pub fn entries(&self, from: Index, to_inclusive: Index, max_bytes: usize) -> Vec<Entry> {
        self.log.slice(from, to_inclusive, max_bytes).cloned().collect()
    }

    /// The entries at `range`, as they lie in the log: all of them, or none. Nothing is copied.
    ///
    /// # Errors
    /// One of them isn't in the log. What [`crate::Ready::committed`] names is, until it was applied and
    /// [`Raft::compact`] has dropped it, or a snapshot has come into its place ([`Raft::snapshot_installed`]).
    pub fn slice(&self, range: Range<Index>) -> Result<impl ExactSizeIterator<Item = &Entry>, NotHeld> {
        let (first, last) = (self.log.first_index(), self.log.last_index());
        if !range.is_empty() && range.start < first {
            return Err(NotHeld::Compacted { first });
        }
        if !range.is_empty() && range.end > last + 1 {
            return Err(NotHeld::Beyond { last });
        }
        Ok(self.log.slice(range.start, range.end.saturating_sub(1), usize::MAX))
    }

    /// Bytes of the entries held in memory, by [`Entry::size`].
    pub fn log_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// Of these, the bytes of entries that aren't known to be committed. Linear in their number.
    pub fn uncommitted_log_bytes(&self) -> usize {
        self.log.slice(self.commit + 1, self.log.last_index(), usize::MAX).map(Entry::size).sum()
    }
}
