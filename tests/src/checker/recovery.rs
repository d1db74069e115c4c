//! What was durable before a process ended is there in the next one: the replica itself, its term and vote, and its
//! log, entry by entry up to where it said that it was durable.
//!
//! Knows nothing of how anything is stored. Of a replica it remembers what it last said was durable; at the first look
//! at the next process it compares. Not for damaged disks: what those lose, only a quorum brings back.

use crate::checker::Violation;
use floe_raft::{Index, Mark, ReplicaId, Term};
use floe_shard::{FOUNDED_AT, NodeId, ShardId};
use std::collections::BTreeMap;

/// A replica after a step.
pub struct View<'a> {
    /// Which replica.
    pub replica: ReplicaId,
    /// Counts the processes of its node.
    pub incarnation: u64,
    /// Term and vote, durable or not.
    pub ballot: (Term, Option<ReplicaId>),
    /// Term and vote that are durable.
    pub durable_ballot: (Term, Option<ReplicaId>),
    /// Up to where its log is durable.
    pub durable: Index,
    /// First index of its log.
    pub first: Index,
    /// Term of the entry at an index; also right before the first.
    pub term_at: &'a dyn Fn(Index) -> Option<Term>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    replica: ReplicaId,
    incarnation: u64,
    ballot: (Term, Option<ReplicaId>),
    durable: Mark,
}

/// The checker.
#[derive(Debug, Default)]
pub struct Recovery {
    replicas: BTreeMap<(NodeId, ShardId), Kept>,
}

impl Recovery {
    /// Looks at a replica.
    ///
    /// # Errors
    /// What an earlier process had made durable, and this one lacks.
    pub fn observe(&mut self, node: NodeId, shard: ShardId, view: &View<'_>) -> Result<(), Violation> {
        let old = self.replicas.get(&(node, shard)).filter(|old| old.replica == view.replica);
        if let Some(old) = old.filter(|old| old.incarnation != view.incarnation) {
            compare(node, shard, old, view)?;
        }
        let term = (view.term_at)(view.durable).unwrap_or_default();
        let new = Kept {
            replica: view.replica,
            incarnation: view.incarnation,
            ballot: view.durable_ballot,
            durable: Mark::new(term, view.durable),
        };
        self.replicas.insert((node, shard), new);
        Ok(())
    }

    /// Replicas that a node had made durable before this incarnation and that nobody has seen in it.
    pub fn missing(&self, node: NodeId, incarnation: u64) -> impl Iterator<Item = (ShardId, ReplicaId)> {
        let of_node = self.replicas.iter().filter(move |((of, _), _)| *of == node);
        let was_durable = |kept: &Kept| kept.durable.index > FOUNDED_AT.index || kept.ballot.0 > 0;
        let missing = of_node.filter(move |(_, kept)| kept.incarnation != incarnation && was_durable(kept));
        missing.map(|((_, shard), kept)| (*shard, kept.replica))
    }

    /// Of a node nothing is demanded any more.
    pub fn forget(&mut self, node: NodeId) {
        self.replicas.retain(|(of, _), _| *of != node);
    }
}

fn compare(node: NodeId, shard: ShardId, old: &Kept, view: &View<'_>) -> Result<(), Violation> {
    let lost = |what: String| {
        let replica = view.replica;
        Err(Violation::new("durable state", format!("{replica} of {shard} on {node} lost {what}")))
    };
    let (term, vote) = view.ballot;
    let (old_term, old_vote) = old.ballot;
    if term < old_term || (term == old_term && old_vote.is_some() && vote != old_vote) {
        return lost(format!("{:?}: term and vote are {:?}", old.ballot, view.ballot));
    }
    let Mark { term, index } = old.durable;
    let is = (view.term_at)(index);
    if index >= view.first && is != Some(term) {
        return lost(format!("{}: at that index is {is:?}, the log begins at {}", old.durable, view.first));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);
    const SHARD: ShardId = ShardId(1);

    fn id(number: u64) -> ReplicaId {
        ReplicaId::new(number).expect("not 0")
    }

    /// A replica in this process with this ballot and a log of entries of these terms, all durable.
    fn see(recovery: &mut Recovery, incarnation: u64, ballot: (Term, u64), log: &[Term]) -> bool {
        let ballot = (ballot.0, ReplicaId::new(ballot.1));
        let term_at = |index: Index| match index {
            0 => Some(0),
            index => log.get(index as usize - 1).copied(),
        };
        let view = View {
            replica: id(7),
            incarnation,
            ballot,
            durable_ballot: ballot,
            durable: log.len() as u64,
            first: 1,
            term_at: &term_at,
        };
        recovery.observe(NODE, SHARD, &view).is_ok()
    }

    fn after(ballot: (Term, u64), log: &[Term]) -> bool {
        let mut recovery = Recovery::default();
        assert!(see(&mut recovery, 1, (3, 2), &[1, 1, 3]));
        see(&mut recovery, 2, ballot, log)
    }

    #[test]
    fn what_was_durable_is_found_again() {
        assert!(after((3, 2), &[1, 1, 3]));
        assert!(after((3, 2), &[1, 1, 3, 3]), "more may have landed");
        assert!(after((4, 0), &[1, 1, 3]), "a later term has a vote of its own");
    }

    #[test]
    fn a_term_a_vote_and_an_entry_do_not_go_back() {
        assert!(!after((2, 2), &[1, 1, 3]));
        assert!(!after((3, 0), &[1, 1, 3]));
        assert!(!after((3, 1), &[1, 1, 3]));
        assert!(!after((3, 2), &[1, 1]));
        assert!(!after((3, 2), &[1, 1, 2]));
    }

    #[test]
    fn a_replica_that_nobody_sees_again_is_missing() {
        let mut recovery = Recovery::default();
        assert!(see(&mut recovery, 1, (3, 2), &[1, 1, 3]));
        assert_eq!(recovery.missing(NODE, 1).count(), 0);
        assert_eq!(recovery.missing(NODE, 2).collect::<Vec<_>>(), [(SHARD, id(7))]);
        recovery.forget(NODE);
        assert_eq!(recovery.missing(NODE, 2).count(), 0);
    }
}
