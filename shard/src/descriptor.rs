//! A shard's descriptor: its range, its epoch and its members. Replicated with the shard; the
//! shard's own copy is the truth, every other copy is a hint.

use crate::ids::{Epoch, NodeId, ShardId};
use bytes::Bytes;
use floe_raft::{Membership, ReplicaId};
use std::sync::Arc;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ReplicaRole {
    /// Votes.
    Voter = 0,
    /// Receives the log, doesn't vote.
    Learner = 1,
    /// Votes in the incoming half of a joint configuration alone, then is a voter.
    Incoming = 2,
    /// Votes in the outgoing half of a joint configuration alone, then is gone.
    Outgoing = 3,
    /// Votes in the outgoing half of a joint configuration alone, then is a learner.
    Demoted = 4,
}

impl ReplicaRole {
    /// The role with this number; `None` if this version doesn't know it.
    pub const fn from_u8(role: u8) -> Option<Self> {
        match role {
            0 => Some(Self::Voter),
            1 => Some(Self::Learner),
            2 => Some(Self::Incoming),
            3 => Some(Self::Outgoing),
            4 => Some(Self::Demoted),
            _ => None,
        }
    }

    /// The role of `id`, which takes part in `membership`.
    fn in_membership(membership: &Membership, id: ReplicaId) -> Self {
        let votes = membership.voters.contains(&id);
        let voted = membership.voters_outgoing.contains(&id);
        match (votes, voted) {
            (true, false) if membership.is_joint() => Self::Incoming,
            (true, _) => Self::Voter,
            (false, true) if membership.learners_next.contains(&id) => Self::Demoted,
            (false, true) => Self::Outgoing,
            (false, false) => Self::Learner,
        }
    }
}

/// Where one replica lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// Its replicas, in order of id. Shards with the same share them.
    pub replicas: Arc<[ReplicaPlace]>,
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

    /// Whether `replica` was a member and is none any more: ids are given out in order.
    pub fn has_removed(&self, replica: ReplicaId) -> bool {
        replica.get() < self.next_replica_id && self.node_of(replica).is_none()
    }

    /// Raft's view of the members. A joint configuration is always one that its leader leaves by itself.
    pub fn membership(&self) -> Membership {
        use ReplicaRole::{Demoted, Incoming, Learner, Outgoing, Voter};
        let ids = |roles: &[ReplicaRole]| {
            let of_role = self.replicas.iter().filter(|place| roles.contains(&place.role));
            of_role.map(|place| place.replica).collect::<Vec<_>>()
        };
        let is_joint = !ids(&[Incoming, Outgoing, Demoted]).is_empty();
        Membership {
            voters: ids(&[Voter, Incoming]),
            voters_outgoing: if is_joint { ids(&[Voter, Outgoing, Demoted]) } else { Vec::new() },
            learners: ids(&[Learner]),
            learners_next: ids(&[Demoted]),
            auto_leave: is_joint,
        }
    }

    /// The descriptor with these members, under the next membership version. `newcomers` says where those
    /// live that are not in it yet. `None` if that isn't known of all, or the membership is one that a
    /// descriptor can't say.
    pub fn with_membership(
        &self,
        membership: &Membership,
        newcomers: &[(ReplicaId, NodeId)],
    ) -> Option<Self> {
        let place = |replica: ReplicaId| {
            let new = || newcomers.iter().find(|(id, _)| *id == replica).map(|&(_, node)| node);
            let role = ReplicaRole::in_membership(membership, replica);
            Some(ReplicaPlace { replica, node: self.node_of(replica).or_else(new)?, role })
        };
        let replicas = membership.members().into_iter().map(place).collect::<Option<Arc<[_]>>>()?;
        let highest = replicas.last().map_or(0, |place| place.replica.get());
        let next = Self {
            epoch: Epoch { membership: self.epoch.membership + 1, ..self.epoch },
            next_replica_id: self.next_replica_id.max(highest + 1),
            replicas,
            ..self.clone()
        };
        (next.membership() == *membership).then_some(next)
    }
}
