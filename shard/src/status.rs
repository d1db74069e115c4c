//! Looks at a core's replicas: for operators, metrics and checkers.

use crate::descriptor::ReplicaPlace;
use crate::ids::{Epoch, NodeId, ShardId};
use crate::multi_raft::MultiRaft;
use crate::replica::Replica;
use crate::replica::Stage;
use floe_raft::{Index, Mark, Raft, ReplicaId, Term};
use std::sync::Arc;

/// What a core has done since it started. All counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Commands that entered a log here.
    pub proposals: u64,
    /// Own proposals that were committed and applied here.
    pub commits: u64,
    /// Entries applied, of all kinds.
    pub applied: u64,
    /// Campaigns begun here: because an election timer ran out, or with a head start.
    pub campaigns: u64,
    /// Elections won here.
    pub elections: u64,
    /// Reads served.
    pub reads: u64,
    /// ReadIndex rounds asked for.
    pub read_rounds: u64,
    /// Dumps installed that came from a leader.
    pub installs: u64,
    /// Transferred dumps that were not what they should be.
    pub bad_dumps: u64,
    /// Flushes that the machine didn't want when they were due: its files wait for something else.
    pub flushes_postponed: u64,
    /// Messages of peers that no working replica sends.
    pub messages_refused: u64,
}

/// How one replica stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// Its replica here.
    pub replica: ReplicaId,
    /// Epoch of its descriptor.
    pub epoch: Epoch,
    /// The shard's members by the descriptor that was applied here last.
    pub members: Arc<[ReplicaPlace]>,
    /// Its term.
    pub term: Term,
    /// Who leads, if known.
    pub leader: Option<ReplicaId>,
    /// The leader's node.
    pub leader_node: Option<NodeId>,
    /// Whether this replica leads.
    pub is_leader: bool,
    /// Highest index known to be committed.
    pub commit: Index,
    /// Where the state machine stands.
    pub applied: Mark,
    /// End of the log.
    pub last: Mark,
    /// First index of the log in memory.
    pub first: Index,
    /// Mark of the newest dump.
    pub flushed: Mark,
    /// Its number; 0 = there is none.
    pub generation: u64,
    /// Bytes of log in memory.
    pub log_bytes: usize,
    /// Size of the state, roughly.
    pub size_bytes: u64,
    /// Proposals and reads without an answer.
    pub waiting: usize,
    /// Why it doesn't take part, if it doesn't.
    pub fault: Option<String>,
}

impl Replica {
    fn status(&self) -> ShardStatus {
        let leader = self.raft.leader();
        ShardStatus {
            shard: self.shard,
            replica: self.id,
            epoch: self.descriptor.epoch,
            members: Arc::clone(&self.descriptor.replicas),
            term: self.raft.term(),
            leader,
            leader_node: leader.and_then(|leader| self.descriptor.node_of(leader)),
            is_leader: self.raft.is_leader(),
            commit: self.raft.commit(),
            applied: self.applied,
            last: self.raft.last_mark(),
            first: self.raft.first_index(),
            flushed: self.base.flushed,
            generation: self.base.generation,
            log_bytes: self.raft.log_bytes(),
            size_bytes: self.machine.size_bytes(),
            waiting: self.work.proposals.len() + self.work.held.len() + self.work.reads.len(),
            fault: match self.stage {
                Stage::Running => None,
                Stage::Booting => Some("its first record is not durable yet".to_owned()),
                Stage::Leaving => Some("it was removed from the shard".to_owned()),
                Stage::Broken => Some(self.work.broken.clone()),
            },
        }
    }
}

impl MultiRaft {
    /// How the shard's replica here stands.
    pub fn status(&self, shard: ShardId) -> Option<ShardStatus> {
        self.slots.get(&shard).map(|&slot| self.replicas[slot].status())
    }

    /// How every replica here stands, in order of shard.
    pub fn statuses(&self) -> impl Iterator<Item = ShardStatus> {
        self.slots.values().map(|&slot| self.replicas[slot].status())
    }

    /// How many replicas here lead.
    pub fn leaders(&self) -> usize {
        self.leaders.len() + self.quiet.led_from(self.me)
    }

    /// How many replicas here are quiet.
    pub fn quiet_replicas(&self) -> usize {
        self.quiet.len()
    }

    /// Requests without an answer.
    pub fn open_requests(&self) -> usize {
        self.callers.open()
    }

    /// What has been done since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The shard's Raft group, to look at.
    pub fn raft(&self, shard: ShardId) -> Option<&Raft> {
        self.slots.get(&shard).map(|&slot| &self.replicas[slot].raft)
    }

    /// Where the shard's state stands, and its hash there: equal on every replica at the same mark.
    pub fn state_hash(&self, shard: ShardId) -> Option<(Mark, u64)> {
        let replica = &self.replicas[*self.slots.get(&shard)?];
        Some((replica.applied, replica.machine.state_hash()))
    }
}
