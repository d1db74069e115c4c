//! What a replica does when others lead: vote, take appends, acknowledge, install snapshots.

use crate::lazy::Lazy;
use crate::membership::Membership;
use crate::message::{Body, FollowerStamp, LeaderStamp, Message};
use crate::planted::{self, Planted};
use crate::raft::{Raft, Role};
use crate::read_index::Forwarded;
use crate::ready::{ReadState, SnapshotInstall};
use crate::types::{Entry, EntryKind, Index, Mark, Nanos, ReplicaId, Term};
use std::collections::VecDeque;

/// A follower's own data.
#[derive(Debug)]
pub(crate) struct Follower {
    /// The leader of this term, once it was heard.
    pub(crate) leader: Option<ReplicaId>,
    /// The log is known to equal the leader's up to here, durable or not. (So it is up to the commit
    /// index, whatever this says: Leader Completeness.)
    known: Index,
    /// What the last acknowledgement said.
    acked: Index,
    /// An acknowledgement is due with the next `ready`.
    pub(crate) ack_owed: bool,
    /// The newest stamp of the leader; echoed with the next answer.
    leader_sent_at_ns: Nanos,
    /// Reads that wait for the leader's answer, oldest first.
    pub(crate) forwarded: Lazy<VecDeque<Forwarded>>,
}

/// A snapshot on its way in.
#[derive(Debug)]
pub(crate) struct Installing {
    pub(crate) install: SnapshotInstall,
    /// It is in a `Ready` already.
    pub(crate) handed: bool,
}

/// Whether a follower without room leaves the entry for later, of a leader of `term` that says that `commit` is committed.
/// What that leader found uncommitted in its log can't wait: its own first entry comes after it, and before that is
/// committed nothing is, so nothing could make room. It is as much as the bound on uncommitted bytes lets in.
pub(crate) fn can_wait_for_room(entry: &Entry, term: Term, commit: Index) -> bool {
    let is_inherited = entry.mark.term < term && entry.mark.index > commit;
    entry.kind == EntryKind::Command && !is_inherited
}

impl Follower {
    /// Follows `leader`, or waits for one.
    pub(crate) fn new(leader: Option<ReplicaId>) -> Self {
        let forwarded = Lazy::default();
        Self { leader, known: 0, acked: 0, ack_owed: false, leader_sent_at_ns: 0, forwarded }
    }

    /// The durable index may have moved: what the leader doesn't know yet is acknowledged.
    pub(crate) fn log_persisted(&mut self, durable: Index, commit: Index) {
        let ackable = durable.min(self.known.max(commit));
        // Until this leader has sent something that matched, there is nothing to acknowledge.
        if self.leader.is_some() && self.known > 0 && ackable > self.acked {
            self.ack_owed = true;
        }
    }

    /// When the oldest forwarded read is given up.
    pub(crate) fn reads_deadline(&self, patience: Nanos) -> Nanos {
        self.forwarded.front().map_or(Nanos::MAX, |read| read.asked_at.saturating_add(patience))
    }

    /// Gives up the reads that got no answer in time.
    pub(crate) fn drop_overdue_reads(&mut self, now: Nanos, patience: Nanos, dropped: &mut Vec<u64>) {
        while self.reads_deadline(patience) <= now
            && let Some(read) = self.forwarded.pop_front()
        {
            dropped.push(read.context);
        }
    }
}

impl Raft {
    // --- votes

    /// Whether the log that ends at `last` may win our vote (paper §5.4.1).
    fn is_up_to_date(&self, last: Mark) -> bool {
        last >= self.log.last_mark() || planted::is(Planted::VoteForStaleLog)
    }

    /// Whether a vote in the current term is still to be had by `candidate`.
    fn is_vote_free_for(&self, candidate: ReplicaId) -> bool {
        let is_free = self.vote.is_none() && self.leader().is_none();
        self.vote == Some(candidate) || is_free || planted::is(Planted::VoteGivenTwice)
    }

    /// `term` is the one the sender would campaign in. Changes nothing here (thesis §9.6).
    pub(crate) fn on_pre_vote(&mut self, from: ReplicaId, term: Term, last: Mark) {
        let would_vote = !self.is_bound() && (term > self.term || self.is_vote_free_for(from));
        if would_vote && self.is_up_to_date(last) {
            let body = Body::PreVoteReply { granted: true };
            self.outbox.messages.push(Message { from: self.id, to: from, term, body });
        } else {
            self.send(from, Body::PreVoteReply { granted: false });
        }
    }

    /// RequestVote (paper §5.2). The reply waits until the vote is durable. A promise forbids the vote, except
    /// to the successor that the leader itself told to campaign.
    pub(crate) fn on_vote(&mut self, from: ReplicaId, last: Mark, transfer: bool) {
        let may_help = transfer || !self.is_bound();
        let granted = may_help && self.is_vote_free_for(from) && self.is_up_to_date(last);
        if granted {
            if matches!(self.role, Role::PreCandidate(_)) {
                self.become_follower(self.term, None);
            }
            self.vote = Some(from);
            self.timer.restart(self.now);
        }
        self.send(from, Body::VoteReply { granted });
    }

    // --- following

    /// A message that only the leader of the term sends came from `from`. `None` if that can't be (a
    /// term has one leader): then it is dropped.
    pub(crate) fn follow(&mut self, from: ReplicaId, stamp: LeaderStamp) -> Option<&mut Follower> {
        match &self.role {
            Role::Leader(_) => return None,
            Role::Follower(Follower { leader: Some(leader), .. }) if *leader != from => return None,
            Role::Follower(Follower { leader: Some(_), .. }) => {}
            _ => self.become_follower(self.term, Some(from)),
        }
        self.timer.restart(self.now);
        self.leader_heard_at = Some(self.now);
        self.renew_promise();
        let Role::Follower(follower) = &mut self.role else {
            unreachable!("{}: follows {from} in term {}", self.id, self.term)
        };
        follower.leader_sent_at_ns = follower.leader_sent_at_ns.max(stamp.sent_at_ns);
        Some(follower)
    }

    /// The stamp of an answer to the leader's message that was sent at `echo_ns`; since its receipt the
    /// promise binds.
    fn follower_stamp(&self, echo_ns: Nanos) -> FollowerStamp {
        FollowerStamp { echo_ns, promise_ns: self.promise_ns(), stamp: self.freshness.stamp(self.now) }
    }

    /// AppendEntries (paper §5.3).
    pub(crate) fn on_append(
        &mut self,
        from: ReplicaId,
        prev: Mark,
        commit: Index,
        held_by_all: Index,
        entries: Vec<Entry>,
        stamp: LeaderStamp,
    ) {
        if self.follow(from, stamp).is_none() {
            return;
        }
        self.note_echo(commit, stamp.echo);
        self.held_by_all = held_by_all;
        if self.installing.is_some() {
            return;
        }
        let base = self.log.base();
        if prev.index >= base.index && !self.log.contains(prev) {
            let hint = self.log.last_not_above(prev.index, prev.term).unwrap_or(base);
            let stamp = self.follower_stamp(stamp.sent_at_ns);
            return self.send(from, Body::AppendRejected { prev, hint, stamp });
        }
        let entries = self.within_room(entries, commit);
        let matched = prev.index + entries.len() as u64;
        self.take_entries(entries);
        self.note_match(matched);
        let known = if planted::is(Planted::CommitBeyondMatch) { self.log.last_index() } else { matched };
        self.commit_to(commit.min(known));
    }

    /// There is no room for further commands (the disk is full), or there is again.
    ///
    /// While full, a follower takes no command that it doesn't hold yet, nor what comes after it, and says so in its
    /// acknowledgements. Leader's entries with what they can't be committed without, membership changes and everything
    /// else go on: they are what makes room. A leader's own proposals are its caller's to refuse.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// The entries that there is room for: while full, those before the first one that isn't here yet and can wait.
    fn within_room(&self, mut entries: Vec<Entry>, commit: Index) -> Vec<Entry> {
        let is_new = |entry: &Entry| {
            let Mark { term, index } = entry.mark;
            index > self.log.base().index && self.log.term_at(index) != Some(term)
        };
        let needs_room = |entry: &Entry| can_wait_for_room(entry, self.term, commit) && is_new(entry);
        if self.full
            && let Some(first) = entries.iter().position(needs_room)
        {
            entries.truncate(first);
        }
        entries
    }

    /// Appends what the log doesn't hold yet, replacing whatever conflicts.
    fn take_entries(&mut self, mut entries: Vec<Entry>) {
        let held = entries.iter().take_while(|entry| self.holds(entry.mark)).count();
        entries.drain(..held);
        let Some(Mark { term, index }) = entries.first().map(|entry| entry.mark) else { return };
        if let Some(held) = self.log.term_at(index) {
            self.cut_conflict(index, held, term);
        }
        for entry in &entries {
            self.members.note(entry);
        }
        self.log.extend(entries);
    }

    /// Whether the entry at `mark` needn't be taken: it is in the log, or behind it.
    fn holds(&self, mark: Mark) -> bool {
        match self.log.term_at(mark.index) {
            Some(held) => held == mark.term || planted::is(Planted::ConflictKept),
            None => mark.index <= self.log.base().index,
        }
    }

    /// The leader's log differs from `index` on. Never where something is committed: `validation.rs` lets
    /// no such append in.
    fn cut_conflict(&mut self, index: Index, held: Term, term: Term) {
        assert!(
            index > self.commit,
            "{}: term {}'s leader has {} where {} is committed (commit {})",
            self.id,
            self.term,
            Mark::new(term, index),
            Mark::new(held, index),
            self.commit
        );
        self.log.truncate_from(index);
        self.members.truncated(index);
        self.writes.truncated(index);
    }

    /// The log equals the leader's up to `matched`. What is durable already is acknowledged at once
    /// (the ack of a resent append may have got lost); the rest when it is persisted.
    fn note_match(&mut self, matched: Index) {
        let (durable, commit) = (self.writes.durable(), self.commit);
        // A snapshot may come into place when the leader that sent it leads no more.
        let Role::Follower(follower @ Follower { leader: Some(_), .. }) = &mut self.role else { return };
        follower.known = follower.known.max(matched).max(commit);
        follower.ack_owed |= durable >= matched;
    }

    /// Puts the acknowledgement that is owed, if any: one for all appends since the last.
    pub(crate) fn emit_ack(&mut self) {
        let (durable, commit) = (self.writes.durable(), self.commit);
        let Role::Follower(follower) = &mut self.role else { return };
        let Some(leader) = follower.leader.filter(|_| follower.ack_owed) else { return };
        let is_known = !planted::is(Planted::AckOfUnknown);
        let matched = if is_known { durable.min(follower.known.max(commit)) } else { durable };
        follower.ack_owed = false;
        follower.acked = matched;
        let echo_ns = follower.leader_sent_at_ns;
        let stamp = self.follower_stamp(echo_ns);
        let body = match self.full {
            true => Body::AppendRefused { matched, stamp },
            false => Body::AppendAccepted { matched, stamp },
        };
        self.send(leader, body);
    }

    /// The leader lives. Its `commit` is never above what it knows to be durable here, so it needs
    /// no check of the log; the bound only guards against a replica that lost its log.
    pub(crate) fn on_heartbeat(
        &mut self,
        from: ReplicaId,
        commit: Index,
        read_round: u64,
        stamp: LeaderStamp,
    ) {
        if self.follow(from, stamp).is_none() {
            return;
        }
        self.note_echo(commit, stamp.echo);
        if self.installing.is_none() {
            self.commit_to(commit.min(self.writes.durable()));
        }
        let stamp = self.follower_stamp(stamp.sent_at_ns);
        self.send(from, Body::HeartbeatReply { read_round, stamp });
    }

    /// The leader hands over (thesis §3.10): campaign at once, without PreVote.
    pub(crate) fn on_timeout_now(&mut self, from: ReplicaId) {
        let follows = matches!(&self.role, Role::Follower(follower) if follower.leader == Some(from));
        if follows && self.members.current.is_voter(self.id) && self.may_campaign() {
            self.become_candidate(true);
        }
    }

    /// The leader's answer to a forwarded read.
    pub(crate) fn on_read_index_reply(&mut self, from: ReplicaId, context: u64, index: Index) {
        let Role::Follower(follower) = &mut self.role else { return };
        let asked = follower.forwarded.iter().position(|read| read.context == context);
        if let (Some(at), true) = (asked, follower.leader == Some(from)) {
            let read = follower.forwarded.remove(at).expect("it was just found there");
            self.outbox.reads.push(ReadState { context, index });
            self.note_fresh(index, read.asked_at);
        }
    }

    /// The leader has no room for a forwarded read.
    pub(crate) fn on_read_index_refused(&mut self, from: ReplicaId, context: u64) {
        let Role::Follower(follower) = &mut self.role else { return };
        let asked = follower.forwarded.iter().position(|read| read.context == context);
        if let (Some(at), true) = (asked, follower.leader == Some(from)) {
            follower.forwarded.remove(at);
            self.outbox.reads_dropped.push(context);
        }
    }

    // --- snapshots

    /// A state at `mark` is staged here (paper §7). Until it is in place the log doesn't change:
    /// appends are dropped, and the leader sends them again.
    pub(crate) fn on_install_snapshot(
        &mut self,
        from: ReplicaId,
        mark: Mark,
        membership: Membership,
        stamp: LeaderStamp,
    ) {
        if self.follow(from, stamp).is_none() || self.installing.is_some() {
            return;
        }
        if mark.index <= self.commit {
            let durable_commit = self.commit.min(self.writes.durable());
            return self.note_match(durable_commit);
        }
        let keep_suffix = self.log.contains(mark);
        if !keep_suffix {
            // What is in flight will be gone by the time the snapshot is in place.
            self.writes.truncated(self.commit.max(self.log.base().index) + 1);
        }
        let install = SnapshotInstall { mark, membership, keep_suffix };
        self.installing = Some(Box::new(Installing { install, handed: false }));
    }

    /// The snapshot that was handed out is in place and durable.
    ///
    /// # Panics
    /// If no snapshot at `mark` was handed out.
    pub fn snapshot_installed(&mut self, mark: Mark) {
        let installing = self.installing.take_if(|installing| installing.handed);
        let Some(install) = installing.map(|installing| installing.install) else {
            panic!("{}: no snapshot was handed out, but {mark} was installed", self.id);
        };
        assert!(install.mark == mark, "{}: {mark} was installed, not {}", self.id, install.mark);
        assert!(mark.index > self.commit, "{}: {mark} is behind commit {}", self.id, self.commit);
        if install.keep_suffix {
            self.log.compact(mark.index);
        } else {
            self.log.reset(mark);
        }
        self.writes.installed(mark.index, !install.keep_suffix);
        (self.commit, self.applied, self.applying) = (mark.index, mark.index, mark.index);
        self.members.installed(install.membership, mark.index, install.keep_suffix);
        self.timer.restart(self.now);
        self.note_match(mark.index);
    }
}
