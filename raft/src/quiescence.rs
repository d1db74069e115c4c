//! Quiescence: a group in which nothing happens costs nothing.
//!
//! A quiet replica has no timer ([`Raft::deadline`] is never). A quiet leader sends nothing and checks no
//! quorum; a quiet follower takes its leader for alive. So somebody else has to watch whether it is: the layer
//! above, which hears from the leader's *core*, once for all groups, and calls [`Raft::wake`] when it doesn't
//! any more. Whatever is said to a replica or asked of it wakes it as well, and a follower that is woken by
//! anybody but its leader wakes the leader.
//!
//! Only liveness depends on it. A quiet leader that was replaced is like one that was cut off: it learns of
//! the new term from the first message, and serves no read before a quorum has confirmed it.

use crate::leader::Leader;
use crate::message::{Body, FollowerStamp, LeaderStamp};
use crate::progress::Progress;
use crate::quorum::{self, VoteResult};
use crate::raft::{Raft, Role};
use crate::types::{Index, Mark, Nanos, ReplicaId};

/// What a quiet leader remembers of a follower. It has no lease, and owes nobody anything.
#[derive(Debug)]
pub(crate) struct Asleep {
    pub(crate) id: ReplicaId,
    /// Highest index known to be durable there and equal to the leader's.
    pub(crate) matched: Index,
}

impl Asleep {
    /// A follower that held all is fed as before. One that didn't was not alive: where its log agrees is a guess, as
    /// for a new leader.
    pub(crate) fn awake(&self, last: Index, now: Nanos) -> Progress {
        let mut peer = Progress::new(self.id, last + 1, now);
        peer.matched = self.matched;
        if peer.matched == last {
            peer.become_replicate(now);
            peer.told_commit = last;
        }
        peer
    }
}

impl Raft {
    /// Whether it is quiet.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Goes quiet, and tells the live followers to, if it leads and nothing is outstanding: all of its log is
    /// committed, applied, durable here and on every replica of which `is_live` holds; no read and no transfer
    /// waits; the membership isn't joint; the live voters are a quorum. Returns whether it did.
    pub fn maybe_quiesce(&mut self, now: Nanos, is_live: impl Fn(ReplicaId) -> bool) -> bool {
        self.advance_clock(now);
        if self.quiet || self.has_ready() || !self.may_quiesce(&is_live) {
            return false;
        }
        let last = self.log.last_mark();
        self.with_leader(|leader, view, outbox| {
            for peer in leader.peers.iter_mut().filter(|peer| is_live(peer.id)) {
                outbox.send(view, peer.id, Body::Quiesce { last });
            }
        });
        self.fall_quiet();
        true
    }

    fn may_quiesce(&self, is_live: &impl Fn(ReplicaId) -> bool) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let last = self.log.last_index();
        let live = |id| (id == self.id || is_live(id)).then_some(true);
        [self.commit, self.applied, self.writes.durable()] == [last; 3]
            && self.membership().voters_outgoing.is_empty()
            && quorum::vote_result(&self.membership().voters, live) == VoteResult::Won
            && leader.is_idle()
            && leader.peers.iter().filter(|peer| is_live(peer.id)).all(|peer| peer.is_level(last))
    }

    /// The leader has nothing more to say. Its log ends at `last`, and all of it is committed.
    pub(crate) fn on_quiesce(&mut self, from: ReplicaId, last: Mark) {
        let Some(follower) = self.follow(from, LeaderStamp::default()) else { return };
        let reads_wait = !follower.forwarded.is_empty();
        let is_level = self.log.last_mark() == last && self.writes.durable() == last.index;
        if is_level && !reads_wait && self.installing.is_none() {
            self.commit_to(last.index);
            // All that live hold it. What a dead one lacks its leader keeps; a second copy would cost memory as long as
            // nothing happens.
            self.held_by_all = last.index;
            self.fall_quiet();
        }
    }

    /// Keeps no memory for what may come.
    fn fall_quiet(&mut self) {
        self.quiet = true;
        self.log.shrink();
        self.writes.shrink();
        match &mut self.role {
            Role::Leader(leader) => leader.fall_asleep(),
            Role::Follower(follower) => follower.forwarded.give_back(),
            Role::PreCandidate(_) | Role::Candidate(_) => {}
        }
    }

    /// Ends quiescence, if it is quiet. A follower's election timer then runs as if it had last heard its leader
    /// at `heard_at`, which is when the layer above last heard from the leader's core; the leader is told.
    pub fn wake(&mut self, now: Nanos, heard_at: Nanos) {
        self.advance_clock(now);
        if !std::mem::take(&mut self.quiet) {
            return;
        }
        let (now, patience) = (self.now, self.config.election_timeout_max_ns);
        if let Role::Leader(leader) = &mut self.role {
            return leader.wake(self.log.last_index(), now, patience);
        }
        self.timer.redraw(&self.config);
        self.timer.restart(heard_at);
        self.leader_heard_at = Some(heard_at);
        if let Some(leader) = self.leader() {
            // It answers nothing, so nothing is promised.
            let stamp = FollowerStamp { stamp: self.freshness.stamp(self.now), ..FollowerStamp::default() };
            self.send(leader, Body::HeartbeatReply { read_round: 0, stamp });
        }
    }

    /// A message from `from` has come in: it ends quiescence. The leader knows what it has sent.
    pub(crate) fn wake_by(&mut self, from: ReplicaId) {
        if self.quiet && self.leader() == Some(from) {
            self.quiet = false;
            self.timer.restart(self.now);
        }
        self.wake(self.now, self.now);
    }
}

impl Leader {
    /// Nothing is in flight: what the others hold is all that has to be known of them.
    fn fall_asleep(&mut self) {
        let peers = std::mem::take(&mut self.peers).into_iter();
        self.asleep = peers.map(|Progress { id, matched, .. }| Asleep { id, matched }).collect();
        self.reads.shrink();
    }

    /// Nobody has heard or said anything meanwhile: patience begins anew. The log ends at `last`.
    fn wake(&mut self, last: Index, now: Nanos, patience: Nanos) {
        self.check_quorum_at = now.saturating_add(patience);
        let asleep = std::mem::take(&mut self.asleep);
        self.peers = asleep.iter().map(|peer| peer.awake(last, now)).collect();
    }
}
