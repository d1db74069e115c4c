//! Votes: a replica gives one per term, and whoever leads a term was elected by a majority of the voters, in each half
//! of a joint membership (paper §5.2, §6).
//!
//! Fed with what every replica is after each of its steps. A vote that a replica gave in the very step in which it
//! moved on to a later term can't be seen; such a voter counts for everybody in the terms between.

use crate::checker::Violation;
use crate::checker::raft_safety::is_quorum;
use floe_raft::{Membership, ReplicaId, Term};
use floe_shard::ShardId;
use std::collections::BTreeMap;

/// What a replica is after a step.
#[derive(Clone, Copy, Debug)]
pub struct Ballot<'a> {
    /// Which replica.
    pub replica: ReplicaId,
    /// Counts the processes of its node: what isn't durable may change between two.
    pub incarnation: u64,
    /// Its term.
    pub term: Term,
    /// Its vote in that term.
    pub vote: Option<ReplicaId>,
    /// The membership by which it leads, if it does.
    pub leads: Option<&'a Membership>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    incarnation: u64,
    term: Term,
    vote: Option<ReplicaId>,
}

#[derive(Debug, Default)]
struct Shard {
    seen: BTreeMap<ReplicaId, Seen>,
    votes: BTreeMap<(Term, ReplicaId), ReplicaId>,
    /// Terms that a replica left or passed without being seen to vote: from, to before.
    unseen: BTreeMap<ReplicaId, Vec<(Term, Term)>>,
    /// Terms whose leader was judged.
    judged: BTreeMap<Term, ReplicaId>,
}

/// The checker.
#[derive(Debug, Default)]
pub struct Votes {
    shards: BTreeMap<ShardId, Shard>,
}

impl Votes {
    /// Looks at a replica.
    ///
    /// # Errors
    /// A second vote in a term, or a leader without enough of them.
    pub fn observe(&mut self, shard: ShardId, ballot: Ballot<'_>) -> Result<(), Violation> {
        let of = self.shards.entry(shard).or_default();
        let Ballot { replica, incarnation, term, vote, leads } = ballot;
        let new = Seen { incarnation, term, vote };
        let old = of.seen.insert(replica, new);
        if old == Some(new) && (leads.is_none() || of.judged.contains_key(&term)) {
            return Ok(()); // as it nearly always is
        }
        if let Some(old) = old.filter(|old| old.term == term && old.incarnation == incarnation)
            && old.vote.is_some()
            && old.vote != vote
        {
            let detail =
                format!("{shard}: {replica} voted for {:?}, then for {vote:?} in term {term}", old.vote);
            return Err(Violation::new("one vote", detail));
        }
        let left = old.map_or((0, None), |old| (old.term, old.vote));
        if term > left.0 {
            let from = left.0 + u64::from(left.1.is_some());
            of.unseen.entry(replica).or_default().push((from, term));
        }
        if let Some(candidate) = vote {
            of.votes.insert((term, replica), candidate);
        }
        leads.map_or(Ok(()), |membership| of.judge(shard, term, replica, membership))
    }
}

impl Shard {
    fn judge(
        &mut self,
        shard: ShardId,
        term: Term,
        leader: ReplicaId,
        by: &Membership,
    ) -> Result<(), Violation> {
        if self.judged.insert(term, leader) == Some(leader) {
            return Ok(());
        }
        let may_have = |id: ReplicaId| {
            let gaps = self.unseen.get(&id).map_or(&[][..], Vec::as_slice);
            gaps.iter().any(|(from, to)| (*from..*to).contains(&term))
        };
        let voted = |id: ReplicaId| {
            self.votes.get(&(term, id)).map_or_else(|| may_have(id), |candidate| *candidate == leader)
        };
        if is_quorum(by, voted) {
            return Ok(());
        }
        let votes = self.votes.iter().filter(|((of, _), _)| *of == term);
        let votes: Vec<_> = votes.map(|((_, id), candidate)| (*id, *candidate)).collect();
        let detail = format!("{shard}: {leader} leads term {term} of {by:?} by the votes {votes:?}");
        Err(Violation::new("election without a quorum", detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);

    fn id(number: u64) -> ReplicaId {
        ReplicaId::new(number).expect("not 0")
    }

    /// Replica, incarnation, term, vote.
    fn see(
        votes: &mut Votes,
        (replica, incarnation, term, vote): (u64, u64, Term, u64),
    ) -> Option<&'static str> {
        let vote = ReplicaId::new(vote);
        let ballot = Ballot { replica: id(replica), incarnation, term, vote, leads: None };
        votes.observe(SHARD, ballot).err().map(|violation| violation.property)
    }

    fn lead(votes: &mut Votes, replica: u64, term: Term, by: &Membership) -> Option<&'static str> {
        let replica = id(replica);
        let ballot = Ballot { replica, incarnation: 1, term, vote: Some(replica), leads: Some(by) };
        votes.observe(SHARD, ballot).err().map(|violation| violation.property)
    }

    fn three() -> Membership {
        Membership::of_voters([1, 2, 3].map(id))
    }

    #[test]
    fn a_vote_stands_until_the_term_ends_or_the_process() {
        let mut votes = Votes::default();
        assert_eq!(see(&mut votes, (1, 1, 4, 0)), None);
        assert_eq!(see(&mut votes, (1, 1, 4, 2)), None);
        assert_eq!(see(&mut votes, (1, 2, 4, 3)), None, "it wasn't durable: another checker's affair");
        assert_eq!(see(&mut votes, (1, 2, 5, 1)), None);
        assert_eq!(see(&mut votes, (1, 2, 5, 2)), Some("one vote"));
    }

    #[test]
    fn a_leader_has_the_votes_of_a_majority() {
        let mut votes = Votes::default();
        assert_eq!(see(&mut votes, (2, 1, 4, 0)), None);
        assert_eq!(see(&mut votes, (3, 1, 4, 0)), None);
        assert_eq!(lead(&mut votes, 1, 4, &three()), Some("election without a quorum"));
        let mut votes = Votes::default();
        assert_eq!(see(&mut votes, (2, 1, 4, 1)), None);
        assert_eq!(lead(&mut votes, 1, 4, &three()), None);
    }

    #[test]
    fn half_of_a_joint_membership_is_not_enough() {
        let joint = Membership { voters_outgoing: [3, 4, 5].map(id).into(), ..three() };
        let mut votes = Votes::default();
        for voter in [2, 3] {
            assert_eq!(see(&mut votes, (voter, 1, 4, 1)), None);
        }
        for voter in [4, 5] {
            assert_eq!(see(&mut votes, (voter, 1, 4, 0)), None);
        }
        assert_eq!(lead(&mut votes, 1, 4, &joint), Some("election without a quorum"));
    }

    #[test]
    fn who_passed_a_term_between_two_looks_may_have_voted_in_it() {
        let mut votes = Votes::default();
        assert_eq!(see(&mut votes, (2, 1, 3, 0)), None);
        assert_eq!(see(&mut votes, (2, 1, 5, 0)), None);
        assert_eq!(lead(&mut votes, 1, 4, &three()), None);
    }
}
