//! Membership changes on a leader: what may be proposed, what comes into force, what follows a commit.
//!
//! The shape of a step is `membership.rs`'s; which membership is in force where, `membership_log.rs`'s.
//! Here are the rules that depend on the log and on who is alive:
//!
//! - a change is in force as soon as it is in the log (paper §6), on the leader as on its followers;
//! - at most one change is uncommitted at a time (thesis §4.1);
//! - a leader proposes none before it has committed an entry of its own term: without that rule two
//!   leaders can each have a change in force that the other doesn't know, and two majorities that share
//!   nobody (Ongaro's note to raft-dev, 2015);
//! - a change after which too few voters are known to be alive and caught up is refused, unless forced;
//! - a committed joint configuration that asks for it is left by the leader itself (thesis §4.3);
//! - a leader that doesn't vote any more goes on until the change is committed, without counting itself,
//!   then hands over to the best of the voters, or steps down (paper §6, thesis §4.2.2).

use crate::error::Refused;
use crate::leader::{Leader, View};
use crate::membership::{Change, Membership};
use crate::membership_entry::MEMBERSHIP_VERSION;
use crate::planted::{self, Planted};
use crate::progress::{FeedState, Progress};
use crate::quorum::{self, VoteResult};
use crate::raft::{Raft, Role};
use crate::types::{Entry, EntryKind, Index, Mark, Nanos, ReplicaId};
use std::sync::Arc;

/// A voter that is at most so many entries behind the commit index has caught up: what it lacks is
/// less than what is in flight to a busy follower anyway.
const CAUGHT_UP_WITHIN: Index = 1024;

/// One step from a membership to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// A change that touches one voter at most: [`Membership::simple`].
    Simple(Change),
    /// Any number of changes at once, through a joint configuration: [`Membership::enter_joint`].
    EnterJoint {
        /// About different replicas.
        changes: Vec<Change>,
        /// The leader leaves the joint configuration by itself once it is committed.
        auto_leave: bool,
    },
    /// The end of a joint configuration: [`Membership::leave_joint`].
    LeaveJoint,
}

impl Raft {
    /// Proposes a membership change. It is in force as soon as this returns, and becomes irrevocable when
    /// its entry is committed. `context` travels in the entry, after the membership
    /// ([`Membership::decode`]); it is empty in the entry with which a leader leaves a joint configuration by
    /// itself. Linear in the members.
    ///
    /// With `force` a change is taken even if too few of the resulting voters are known to be alive and
    /// caught up: the group may then be unable to commit it, or anything else, until they are.
    ///
    /// # Errors
    /// Nothing was done: not the leader; a transfer in progress; an earlier change or the leader's first entry
    /// is uncommitted; the step isn't one from the membership in force; or (without `force`) it would
    /// lose the quorum, or it isn't known yet whether it would.
    pub fn propose_membership(
        &mut self,
        now: Nanos,
        change: &MembershipChange,
        force: bool,
        context: &[u8],
    ) -> Result<Mark, Refused> {
        self.wake(now, now);
        let hint = self.leader();
        let Role::Leader(leader) = &self.role else {
            return Err(Refused::NotLeader { leader: hint });
        };
        if self.commit < leader.term_start() {
            return Err(Refused::NothingCommittedYet);
        }
        if self.members.since > self.commit && !planted::is(Planted::SecondChangeUncommitted) {
            return Err(Refused::ChangePending { index: self.members.since });
        }
        let current = &self.members.current;
        let next = match change {
            MembershipChange::Simple(change) => current.simple(*change),
            MembershipChange::EnterJoint { changes, auto_leave } => current.enter_joint(changes, *auto_leave),
            MembershipChange::LeaveJoint => current.leave_joint(),
        };
        let next = next.map_err(Refused::Change)?;
        if !force {
            leader.check_live_quorum(&self.view(), &next)?;
        }
        self.append_membership(&next, context)
    }

    fn append_membership(&mut self, next: &Membership, context: &[u8]) -> Result<Mark, Refused> {
        next.assert_sound();
        let mark = Mark::new(self.term, self.log.last_index() + 1);
        let data = next.encode(context);
        let entry = Entry { mark, kind: EntryKind::Membership, version: MEMBERSHIP_VERSION, data };
        let Role::Leader(leader) = &mut self.role else { panic!("{}: only a leader appends", self.id) };
        leader.admit(&entry, &self.config)?;
        self.append(entry);
        self.with_leader(|leader, view, _| leader.follow_membership(view));
        // Fewer may have to agree now than before.
        self.maybe_commit();
        self.with_leader(|leader, view, outbox| leader.confirm_reads(view, outbox));
        Ok(mark)
    }

    /// Appends to the log; a membership is in force from here on.
    pub(crate) fn append(&mut self, entry: Entry) {
        self.members.note(&entry);
        self.log.push(entry);
    }

    /// What a leader does by itself once a membership is committed: leaves a joint one, or its office.
    pub(crate) fn after_membership_commit(&mut self) {
        let is_committed = self.members.since <= self.commit;
        let Role::Leader(leader) = &mut self.role else { return };
        if !is_committed || self.commit < leader.term_start() {
            return;
        }
        let current = &self.members.current;
        if current.is_joint() && current.auto_leave {
            let next = current.leave_joint().expect("it is joint");
            // Refused only while leadership moves: then it is the next leader's to do, or done at a later tick.
            let _retried = self.append_membership(&next, b"");
        } else if !current.is_voter(self.id) {
            self.leave_office();
        }
    }

    /// Hands over to the best of the voters, if one is alive; else steps down.
    fn leave_office(&mut self) {
        let now = self.now;
        let term = self.term;
        let successor = self.with_leader(|leader, view, _| leader.best_successor(view));
        let abort_at = now.saturating_add(self.config.election_timeout_max_ns);
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.is_handing_over() {
            return;
        }
        match successor {
            Some(to) => leader.hand_over(to, abort_at),
            None => self.become_follower(term, None),
        }
    }

    /// The membership that was in force at `index`: what belongs to the state there.
    ///
    /// # Panics
    /// If `index` is below the log's base.
    pub fn membership_at(&self, index: Index) -> &Membership {
        self.members.at(index)
    }

    /// The membership in force, to be shared with replicas that have an equal one.
    pub fn shared_membership(&self) -> &Arc<Membership> {
        &self.members.current
    }

    /// Holds `same` in place of its own copy of the membership in force. Of many groups most have the same.
    ///
    /// # Panics
    /// If they aren't equal.
    pub fn share_membership(&mut self, same: Arc<Membership>) {
        self.members.share(same);
    }

    /// Whether this replica leads, and `peer` has answered nothing in this term: it may not exist yet.
    pub fn is_unheard(&self, peer: ReplicaId) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        leader.peers.iter().any(|known| known.id == peer && known.matched == 0 && known.answered_at == 0)
            || leader.asleep.iter().any(|known| known.id == peer && known.matched == 0)
    }

    /// The entries of the log after `after` that hold memberships, oldest first. Linear in the memberships.
    pub fn membership_entries(&self, after: Index) -> impl Iterator<Item = &Entry> {
        self.members.indices_after(after).flat_map(|index| self.log.slice(index, index, usize::MAX))
    }

    /// Index of the entry that brought the membership in force; that of the stored state, if none did. The
    /// change is committed once [`Raft::commit`] gets there.
    pub fn membership_index(&self) -> Index {
        self.members.since
    }
}

impl Leader {
    /// Another membership is in force: feeds who came, forgets who left.
    fn follow_membership(&mut self, view: &View<'_>) {
        let next = view.log.last_index() + 1;
        self.peers.retain(|peer| view.membership.contains(peer.id));
        for id in view.membership.members().into_iter().filter(|id| *id != view.id) {
            if let Err(at) = self.peers.binary_search_by_key(&id, |peer| peer.id) {
                self.peers.insert(at, Progress::new(id, next, view.now));
            }
        }
        self.drop_transfer_to_nonvoter(view);
        self.needs_flush = true;
    }

    /// The voters of `next` that are alive and have caught up must be a quorum, in both halves. This replica counts as
    /// such a voter, if it is one. Who hasn't answered since the group woke may have died while it was quiet.
    fn check_live_quorum(&self, view: &View<'_>, next: &Membership) -> Result<(), Refused> {
        let is_quorum = |is_ready: &dyn Fn(&Progress) -> bool| {
            let vote = |id| match self.peers.iter().find(|peer| peer.id == id) {
                Some(peer) => Some(is_ready(peer)),
                None => Some(id == view.id),
            };
            quorum::vote_result_joint(next, vote) == VoteResult::Won
        };
        let may_be_ready = |peer: &Progress| is_alive(peer, view) && has_caught_up(peer, view);
        if !is_quorum(&may_be_ready) {
            return Err(Refused::LosesQuorum);
        }
        if !is_quorum(&|peer| may_be_ready(peer) && peer.has_answered) {
            return Err(Refused::VotersUnheard);
        }
        Ok(())
    }

    /// The voter that is alive and holds most of the log; of equals, the one with the lowest id.
    fn best_successor(&mut self, view: &View<'_>) -> Option<ReplicaId> {
        let voters = self.peers.iter().filter(|peer| view.membership.is_voter(peer.id));
        let alive = voters.filter(|peer| is_alive(peer, view) && has_caught_up(peer, view));
        alive.rev().max_by_key(|peer| peer.matched).map(|peer| peer.id)
    }
}

/// It was heard within an election timeout.
fn is_alive(peer: &Progress, view: &View<'_>) -> bool {
    view.now < peer.heard_at.saturating_add(view.config.election_timeout_max_ns)
}

/// It is fed from the log, and lacks little of what is committed.
fn has_caught_up(peer: &Progress, view: &View<'_>) -> bool {
    peer.feed_state() == FeedState::Replicate && peer.matched + CAUGHT_UP_WITHIN >= view.commit
}
