//! Why a call on [`crate::Raft`] was refused. Every refusal means: nothing was done.

use crate::types::ReplicaId;
use std::fmt;

/// Why a proposal or read was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// This replica doesn't lead; the one that does, if known.
    NotLeader {
        /// The leader of the current term, if known.
        leader: Option<ReplicaId>,
    },
    /// Leadership is being handed over; try again at the new leader.
    TransferInProgress {
        /// The replica that is to lead.
        target: ReplicaId,
    },
    /// Too many bytes of proposals wait for their commit; try again later.
    TooManyUncommittedBytes,
    /// The target of a transfer is not a voter of this group, or is this replica itself.
    NotAVoter,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { leader: Some(leader) } => write!(f, "not the leader; {leader} is"),
            Self::NotLeader { leader: None } => write!(f, "not the leader; none is known"),
            Self::TransferInProgress { target } => write!(f, "leadership is moving to {target}"),
            Self::TooManyUncommittedBytes => write!(f, "too many uncommitted bytes"),
            Self::NotAVoter => write!(f, "the target is not another voter of this group"),
        }
    }
}

impl std::error::Error for Refused {}
