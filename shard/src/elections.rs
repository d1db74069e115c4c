//! Who campaigns, and when: elections are rationed, in turns and in flight.
//!
//! When a node dies, when a core has stood still, or when a node of ten thousand shards starts, thousands of replicas
//! want to campaign at once. At most [`ShardConfig::campaigns_per_turn_max`](crate::ShardConfig) begin in one turn, so
//! that they fill neither this turn nor the peers', and as many may be *in flight*, without a result. Turns alone bound
//! no rate: a core with nothing else to do makes thousands of short ones in a second and floods slower peers with
//! votes; the beats of the leaders that these have elected come too late behind the flood, and their groups campaign
//! again, without end. This way new campaigns begin as fast as the peers settle those before.
//!
//! A campaign is in flight until the replica is no candidate any more, or its timer has run out again. One that reaches
//! no majority floods nobody and doesn't count: shards that can't elect take no room from those that can.

use crate::multi_raft::MultiRaft;
use crate::ready_queue::ReadyQueue;
use floe_raft::RoleKind;
use std::collections::BTreeSet;

/// Slots whose replicas campaign, or want to.
#[derive(Default)]
pub(crate) struct Elections {
    /// They want to, and their turn hasn't come.
    waiting: ReadyQueue,
    /// They do, and reach a majority.
    in_flight: BTreeSet<usize>,
    /// They have a head start.
    starters: BTreeSet<usize>,
}

impl Elections {
    /// The replica has head starts to use.
    pub(crate) fn add_starter(&mut self, slot: usize) {
        self.starters.insert(slot);
    }

    /// The election timer has run out: whatever campaign was in flight has come to nothing.
    pub(crate) fn on_due(&mut self, slot: usize) {
        self.in_flight.remove(&slot);
        self.waiting.push(slot);
    }

    /// Gives back memory that isn't needed after a time of many elections.
    pub(crate) fn shrink(&mut self) {
        self.waiting.shrink();
    }

    /// The replica is no candidate any more.
    pub(crate) fn on_settled(&mut self, slot: usize) {
        self.in_flight.remove(&slot);
    }
}

impl MultiRaft {
    /// Whether a campaign waits that may begin.
    pub(crate) fn may_hold_election(&self) -> bool {
        !self.elections.waiting.is_empty() && self.room_in_flight() > 0
    }

    fn room_in_flight(&self) -> usize {
        self.config.campaigns_per_turn_max.saturating_sub(self.elections.in_flight.len())
    }

    /// Lets those campaign that wait for it, in order, as many as may.
    pub(crate) fn hold_elections(&mut self) {
        let mut left = self.room_in_flight();
        while left > 0
            && let Some(slot) = self.elections.waiting.pop()
        {
            if self.campaign_for(slot) {
                left -= 1;
                self.stats.campaigns += 1;
                if self.replicas[slot].reaches_quorum() {
                    self.elections.in_flight.insert(slot);
                }
            }
            self.touch(slot);
        }
    }

    /// Whether the replica has begun to campaign. It may have heard a leader while it waited.
    fn campaign_for(&mut self, slot: usize) -> bool {
        let replica = &mut self.replicas[slot];
        if !replica.takes_part() || replica.raft.is_leader() {
            return false;
        }
        if replica.raft.deadline() <= self.now {
            replica.raft.tick(self.now);
        } else if replica.may_start_ahead() {
            replica.head_starts -= 1;
            replica.raft.campaign(self.now);
        } else {
            return false;
        }
        replica.raft.is_candidate()
    }

    /// The replica with the lowest id of each group campaigns ahead of the others as soon as it reaches a
    /// majority, so that the first leaders are where the descriptors put them. Forced campaigns ask
    /// first (PreVote) and disturb no leader. Called with each beat, until one is known or all are used up.
    pub(crate) fn queue_head_starts(&mut self) {
        let Self { elections: Elections { waiting, starters, .. }, replicas, .. } = self;
        starters.retain(|&slot| {
            let replica = &replicas[slot];
            if replica.may_start_ahead() {
                waiting.push(slot);
            }
            replica.head_starts > 0
        });
    }
}

impl crate::replica::Replica {
    /// One that stands already would only throw its votes away.
    fn may_start_ahead(&self) -> bool {
        self.head_starts > 0
            && self.takes_part()
            && self.raft.role() != RoleKind::Candidate
            && !self.raft.is_bound()
            && self.reaches_quorum()
    }
}
