//! A shard's descriptor: its range, its epoch and its members. Replicated with the shard; the
//! shard's own copy is the truth, every other copy is a hint.

use crate::ids::{Epoch, NodeId, ShardId};
use bytes::Bytes;
use floe_raft::{Membership, ReplicaId};

/// A range of keys: from `start`, inclusive, to `end`, exclusive. An empty `end` means no upper bound
/// (keys are never empty, so an empty `start` means no lower bound).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key of the range.
    pub start: Bytes,
    /// First key after the range; empty = unbounded.
    pub end: Bytes,
}

impl KeyRange {
    /// Every key.
    pub const fn all() -> Self {
        Self { start: Bytes::new(), end: Bytes::new() }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }
}

/// How a replica takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplicaRole {
    /// Votes.
    Voter = 0,
    /// Receives the log, doesn't vote.
    Learner = 1,
}

/// Where one replica lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaPlace {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// How it takes part.
    pub role: ReplicaRole,
}

/// What a shard is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its id.
    pub shard: ShardId,
    /// The keys it owns.
    pub range: KeyRange,
    /// Versions of range and membership.
    pub epoch: Epoch,
    /// Its replicas, in order of id.
    pub replicas: Vec<ReplicaPlace>,
    /// The id that the next replica gets.
    pub next_replica_id: u64,
    /// Which features every member must know; raised by a command.
    pub feature_level: u32,
}

impl Descriptor {
    /// The replica on `node`, if there is one.
    pub fn replica_on(&self, node: NodeId) -> Option<&ReplicaPlace> {
        self.replicas.iter().find(|place| place.node == node)
    }

    /// The node of `replica`, if it is a member.
    pub fn node_of(&self, replica: ReplicaId) -> Option<NodeId> {
        self.replicas.iter().find(|place| place.replica == replica).map(|place| place.node)
    }

    /// Raft's view of the members.
    pub fn membership(&self) -> Membership {
        let of = |role| move |place: &&ReplicaPlace| place.role == role;
        let ids = |role| self.replicas.iter().filter(of(role)).map(|place| place.replica);
        Membership {
            learners: ids(ReplicaRole::Learner).collect(),
            ..Membership::of_voters(ids(ReplicaRole::Voter))
        }
    }
}
