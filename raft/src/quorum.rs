//! Quorum arithmetic: pure functions over a voter list, plain and joint (paper §6).
//!
//! A quorum of `n` voters is `n / 2 + 1` of them. In a joint configuration a decision needs a quorum
//! of *each* half. An empty list decides everything at once, so that an empty outgoing half doesn't
//! count: its committed index is [`Index::MAX`] and its vote is won.

use crate::membership::Membership;
use crate::planted::{self, Planted};
use crate::types::{Index, ReplicaId};

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// Neither side has a quorum yet.
    Pending,
    /// A quorum said yes.
    Won,
    /// So many said no that a quorum can't be reached any more.
    Lost,
}

/// The smallest number of voters of `n` that any two majorities share one of.
pub const fn majority(n: usize) -> usize {
    n / 2 + 1
}

/// The highest index that a quorum of `voters` has acknowledged. `acked` gives 0 for a voter that has
/// acknowledged nothing. O(n log n); no allocation up to 8 voters.
pub fn committed_index(voters: &[ReplicaId], acked: impl Fn(ReplicaId) -> Index) -> Index {
    const ON_STACK: usize = 8;
    let count = voters.len();
    if count == 0 {
        return Index::MAX;
    }
    let mut stack = [0; ON_STACK];
    let mut heap = Vec::new();
    let acks = if count <= ON_STACK {
        &mut stack[..count]
    } else {
        heap.resize(count, 0);
        &mut heap[..]
    };
    for (ack, &voter) in acks.iter_mut().zip(voters) {
        *ack = acked(voter);
    }
    acks.sort_unstable();
    acks[count - majority(count)]
}

/// How the vote of `voters` stands; `vote` gives `None` for one that hasn't voted.
pub fn vote_result(voters: &[ReplicaId], vote: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
    if voters.is_empty() {
        return VoteResult::Won;
    }
    let (mut yes, mut no) = (0, 0);
    for &voter in voters {
        match vote(voter) {
            Some(true) => yes += 1,
            Some(false) => no += 1,
            None => {}
        }
    }
    if yes >= majority(voters.len()) {
        VoteResult::Won
    } else if voters.len() - no < majority(voters.len()) {
        VoteResult::Lost
    } else {
        VoteResult::Pending
    }
}

/// [`committed_index`] of a membership: what both halves have acknowledged.
pub fn committed_index_joint(membership: &Membership, acked: impl Fn(ReplicaId) -> Index) -> Index {
    if planted::is(Planted::JointAsUnion) {
        return committed_index(&union(membership), acked);
    }
    committed_index(&membership.voters, &acked).min(committed_index(&membership.voters_outgoing, &acked))
}

/// [`vote_result`] of a membership: won if both halves are, lost if either is.
pub fn vote_result_joint(membership: &Membership, vote: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
    if planted::is(Planted::JointAsUnion) {
        return vote_result(&union(membership), vote);
    }
    let incoming = vote_result(&membership.voters, &vote);
    let outgoing = vote_result(&membership.voters_outgoing, &vote);
    match (incoming, outgoing) {
        (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
        (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
        _ => VoteResult::Pending,
    }
}

/// All voters of both halves, as if they were one. For a planted bug.
fn union(membership: &Membership) -> Vec<ReplicaId> {
    let mut voters = membership.members();
    voters.retain(|id| membership.is_voter(*id));
    voters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_half_decides_nothing() {
        let id = ReplicaId::new(1).expect("not 0");
        let alone = Membership::of_voters([id]);
        assert_eq!(committed_index_joint(&alone, |_| 7), 7);
        assert_eq!(vote_result_joint(&alone, |_| Some(true)), VoteResult::Won);
        assert_eq!(vote_result_joint(&alone, |_| Some(false)), VoteResult::Lost);
    }
}
