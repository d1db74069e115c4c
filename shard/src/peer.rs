//! What the cores of two nodes say to each other: the content of one frame per peer and turn.

use crate::descriptor::Descriptor;
use crate::ids::{Epoch, NodeId, ShardId};
use crate::request::{Answer, Request};
use bytes::Bytes;
use floe_raft::{FollowerStamp, LeaderStamp, Mark, Message, ReplicaId, Term};

/// Everything that one core has for another in one turn. On the wire it is one frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerBatch {
    /// Heartbeats of all groups that need one, and the sign that this core is alive.
    pub beat: Option<Beat>,
    /// Answers to heartbeats.
    pub beat_reply: Option<BeatReply>,
    /// Everything else, in order.
    pub messages: Vec<PeerMessage>,
}

impl PeerBatch {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.beat.is_none() && self.beat_reply.is_none() && self.messages.is_empty()
    }
}

/// One beat per core pair and interval, whatever the number of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Boot epoch of the sending node.
    pub boot_epoch: u64,
    /// Only the groups that need a word: active, and no append went to that peer in the last interval,
    /// or with a ReadIndex round waiting.
    pub groups: Vec<GroupBeat>,
    /// Groups that go quiet. From then on beats without them are their leaders' sign of life.
    pub quiet: Vec<GroupQuiet>,
}

impl Beat {
    /// A beat without a word about any group.
    pub fn of(boot_epoch: u64) -> Self {
        Self { boot_epoch, groups: Vec::new(), quiet: Vec::new() }
    }
}

/// A leader's last word to one follower ([`floe_raft::Body::Quiesce`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupQuiet {
    /// The group.
    pub shard: ShardId,
    /// The leader.
    pub from: ReplicaId,
    /// The follower.
    pub to: ReplicaId,
    /// The leader's term.
    pub term: Term,
    /// The leader's last mark, committed.
    pub last: Mark,
}

/// A leader's heartbeat to one follower ([`floe_raft::Body::Heartbeat`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupBeat {
    /// The group.
    pub shard: ShardId,
    /// The leader.
    pub from: ReplicaId,
    /// The follower.
    pub to: ReplicaId,
    /// The leader's term.
    pub term: Term,
    /// Commit index, capped at what is known to match.
    pub commit: u64,
    /// Newest ReadIndex round that waits; 0 = none.
    pub read_round: u64,
    /// Lease and stale-read stamps.
    pub stamp: LeaderStamp,
}

/// Answers to the groups of one or several beats.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BeatReply {
    /// Boot epoch of the answering node.
    pub boot_epoch: u64,
    /// One row per group that was in the beat.
    pub groups: Vec<GroupBeatReply>,
}

/// A follower's answer ([`floe_raft::Body::HeartbeatReply`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupBeatReply {
    /// The group.
    pub shard: ShardId,
    /// The follower.
    pub from: ReplicaId,
    /// The leader.
    pub to: ReplicaId,
    /// The follower's term.
    pub term: Term,
    /// `read_round` of the heartbeat.
    pub read_round: u64,
    /// Lease and stale-read stamps.
    pub stamp: FollowerStamp,
}

/// One message between cores of two nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// A message of one group (never a heartbeat or its reply: those travel in beats).
    Raft {
        /// The group.
        shard: ShardId,
        /// Epoch of the sender's descriptor.
        epoch: Epoch,
        /// The message.
        message: Message,
    },
    /// Leader to follower: your next entry is no longer in my log; pull this dump.
    DumpOffer {
        /// The group.
        shard: ShardId,
        /// The leader.
        from: ReplicaId,
        /// The follower.
        to: ReplicaId,
        /// The leader's term.
        term: Term,
        /// Which dump of the leader's.
        generation: u64,
        /// Where its state stands.
        mark: Mark,
        /// Its length in bytes.
        len: u64,
    },
    /// Follower to leader: send me this part of the dump.
    DumpPull {
        /// The group.
        shard: ShardId,
        /// The follower.
        from: ReplicaId,
        /// The leader.
        to: ReplicaId,
        /// Which dump.
        generation: u64,
        /// From where.
        offset: u64,
        /// How much.
        len: u32,
    },
    /// A part of a dump; `data` is empty if the dump is gone (ask for a new offer).
    DumpChunk {
        /// The group.
        shard: ShardId,
        /// The leader.
        from: ReplicaId,
        /// The follower.
        to: ReplicaId,
        /// Which dump.
        generation: u64,
        /// From where.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Leader to the node of a replica: these are the shard's members, as committed and applied. If `to` is
    /// a learner among them and isn't there, it is to be created; if it is not among them, destroyed. A replica
    /// without a vote and without a leader sends its own, `from` itself, and gets a newer one that doesn't name it.
    Placement {
        /// The group.
        shard: ShardId,
        /// The leader.
        from: ReplicaId,
        /// The replica that the order is about.
        to: ReplicaId,
        /// The shard's descriptor.
        descriptor: Box<Descriptor>,
    },
    /// A client's request, forwarded to the node that leads.
    Request {
        /// The sender's number for it.
        id: u64,
        /// The node where it came in.
        origin: NodeId,
        /// Nanoseconds left until its deadline.
        remaining_ns: u64,
        /// What is asked.
        request: Request,
    },
    /// The answer to a forwarded request.
    Answer {
        /// The asker's number.
        id: u64,
        /// What came of it.
        answer: Answer,
    },
}
