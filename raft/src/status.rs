//! A snapshot of one replica's state, for operators, tests and the layer above.

use crate::membership::Membership;
use crate::progress::FeedState;
use crate::raft::{Raft, Role};
use crate::types::{Index, Mark, ReplicaId, Term};

/// What a replica is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// Follows, or waits for, a leader.
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads its term.
    Leader,
}

/// Everything there is to see of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Which replica this is.
    pub id: ReplicaId,
    /// Its term.
    pub term: Term,
    /// Whom it voted for in it.
    pub vote: Option<ReplicaId>,
    /// Its role.
    pub role: RoleKind,
    /// The leader of its term, if known.
    pub leader: Option<ReplicaId>,
    /// Highest index known to be committed.
    pub commit: Index,
    /// Highest index known to be applied.
    pub applied: Index,
    /// Highest index that is durable here.
    pub durable: Index,
    /// First index in the log.
    pub first: Index,
    /// The last mark of the log.
    pub last: Mark,
    /// The membership in force: both halves of a joint one, learners, and who is to become one.
    pub membership: Membership,
    /// Index of the entry that brought it; it is uncommitted while that is above `commit`.
    pub membership_index: Index,
    /// Where leadership is being moved to.
    pub transfer_to: Option<ReplicaId>,
    /// What a leader knows of the others (a quiet one: what it begins with when it is woken), in order of id;
    /// empty on other roles.
    pub peers: Vec<PeerStatus>,
}

/// What a leader knows of one other replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which replica it is.
    pub id: ReplicaId,
    /// How it is fed.
    pub state: FeedState,
    /// Highest index known to be durable there and equal to the leader's.
    pub matched: Index,
    /// The next index to send.
    pub next: Index,
    /// Appends in flight.
    pub in_flight_messages: usize,
    /// Bytes in flight.
    pub in_flight_bytes: usize,
}

impl Raft {
    /// A copy of the replica's state. Allocates; not for the hot path.
    pub fn status(&self) -> Status {
        let peers = match &self.role {
            Role::Leader(leader) => {
                let asleep = leader.asleep.iter().map(|peer| peer.awake(self.log.last_index(), self.now));
                leader
                    .peers
                    .iter()
                    .map(PeerStatus::of)
                    .chain(asleep.map(|peer| PeerStatus::of(&peer)))
                    .collect()
            }
            _ => Vec::new(),
        };
        Status {
            id: self.id,
            term: self.term,
            vote: self.vote,
            role: self.role.kind(),
            leader: self.leader(),
            commit: self.commit,
            applied: self.applied,
            durable: self.writes.durable(),
            first: self.log.first_index(),
            last: self.log.last_mark(),
            membership: self.membership().clone(),
            membership_index: self.members.since,
            transfer_to: self.transfer_target(),
            peers,
        }
    }
}

impl PeerStatus {
    fn of(progress: &crate::progress::Progress) -> Self {
        let (in_flight_messages, in_flight_bytes) = progress.in_flight();
        Self {
            id: progress.id,
            state: progress.feed_state(),
            matched: progress.matched,
            next: progress.next,
            in_flight_messages,
            in_flight_bytes,
        }
    }
}
