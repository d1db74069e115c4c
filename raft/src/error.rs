//! Why a call on [`crate::Raft`] or a change of a [`crate::Membership`] was refused. Every refusal
//! means: nothing was done.

use crate::types::{Index, ReplicaId};
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
    /// Too many reads wait for the leader's answer; try again later.
    TooManyReads,
    /// The target of a transfer is not a voter of this group, or is this replica itself.
    NotAVoter,
    /// An earlier membership change is not committed yet; try again when it is.
    ChangePending {
        /// Index of its entry.
        index: Index,
    },
    /// The leader has committed nothing in its term yet, so it can't tell which membership is committed
    /// (Ongaro's note to raft-dev, 2015); try again in a moment.
    NothingCommittedYet,
    /// The step isn't one from the membership in force.
    Change(ChangeError),
    /// Of the voters that there would be, too few are known to be alive and to have caught up.
    LosesQuorum,
    /// Too few of them have answered since this replica was woken, so it can't tell yet; try again in a moment.
    VotersUnheard,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { leader: Some(leader) } => write!(f, "not the leader; {leader} is"),
            Self::NotLeader { leader: None } => write!(f, "not the leader; none is known"),
            Self::TransferInProgress { target } => write!(f, "leadership is moving to {target}"),
            Self::TooManyUncommittedBytes => write!(f, "too many uncommitted bytes"),
            Self::TooManyReads => write!(f, "too many reads wait"),
            Self::NotAVoter => write!(f, "the target is not another voter of this group"),
            Self::ChangePending { index } => write!(f, "the membership change at {index} is uncommitted"),
            Self::NothingCommittedYet => write!(f, "the leader has committed nothing in its term yet"),
            Self::Change(error) => write!(f, "{error}"),
            Self::LosesQuorum => write!(f, "too few of the voters to be are alive and caught up"),
            Self::VotersUnheard => write!(f, "too few of the voters to be have answered yet"),
        }
    }
}

impl std::error::Error for Refused {}

/// Why entries can't be read from the log ([`crate::Raft::slice`]). It stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotHeld {
    /// The first of them are gone, because the log was compacted or a snapshot has come into their place: the state
    /// holds what they did.
    Compacted {
        /// The first index that the log holds, or will.
        first: Index,
    },
    /// The last of them aren't there, or not any more.
    Beyond {
        /// The last index of the log; the one before its first if it holds none.
        last: Index,
    },
}

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compacted { first } => write!(f, "the log begins at {first}"),
            Self::Beyond { last } => write!(f, "the log ends at {last}"),
        }
    }
}

impl std::error::Error for NotHeld {}

/// Why a change of a [`crate::Membership`] was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeError {
    /// A joint configuration is in force: it must be left before anything else changes (paper §6).
    AlreadyJoint {
        /// The replica of the change, or of the first of several.
        replica: ReplicaId,
    },
    /// There is no joint configuration to leave.
    NotJoint,
    /// A joint change without changes.
    NoChange,
    /// Several changes of one joint change are about the same replica: which is meant isn't clear.
    Repeated {
        /// The replica that comes up again.
        replica: ReplicaId,
    },
    /// The replica that is to vote does already.
    AlreadyVoter {
        /// The voter.
        replica: ReplicaId,
    },
    /// The replica that is to be a learner is one already.
    AlreadyLearner {
        /// The learner.
        replica: ReplicaId,
    },
    /// The replica that is to be removed doesn't take part.
    NotAMember {
        /// The stranger.
        replica: ReplicaId,
    },
    /// Nobody would be left to vote, so the group could never decide anything again.
    NoVoters {
        /// The voter that would be the last to go.
        replica: ReplicaId,
    },
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyJoint { replica } => {
                write!(f, "a joint configuration is in force; {replica} can't be changed before it is left")
            }
            Self::NotJoint => write!(f, "there is no joint configuration to leave"),
            Self::NoChange => write!(f, "there is nothing to change"),
            Self::Repeated { replica } => write!(f, "{replica} is to be changed twice at once"),
            Self::AlreadyVoter { replica } => write!(f, "{replica} is a voter already"),
            Self::AlreadyLearner { replica } => write!(f, "{replica} is a learner already"),
            Self::NotAMember { replica } => write!(f, "{replica} is not a member"),
            Self::NoVoters { replica } => write!(f, "without {replica} nobody would be left to vote"),
        }
    }
}

impl std::error::Error for ChangeError {}
