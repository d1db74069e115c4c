//! What faults met: how often each kind struck a node, and which roles its replicas had at that moment.
//!
//! A node has replicas of several shards, so one strike can meet a leader, followers and a candidate at
//! once; each role counts once per strike. A batch of [`BATCH_MIN`] seeds or more in which some kind never met
//! some role is too weak to say anything about that pair, and fails.

use crate::sim::plan::FaultKind;
use floe_raft::{Raft, RoleKind};
use std::collections::BTreeMap;
use std::fmt;

/// From so many seeds on, an empty cell fails a batch: about four seeds of ten draw a kind, and a dozen or
/// more of them meet the rarest role at least once.
pub const BATCH_MIN: u64 = 200;

/// What a replica of a struck node was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It led its shard.
    Leader,
    /// It followed, or waited for a leader.
    Follower,
    /// It stood for election, or asked whether it could win one.
    Candidate,
    /// It followed without a vote.
    Learner,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Leader, Self::Follower, Self::Candidate, Self::Learner];

    /// What this replica is.
    pub fn of(raft: &Raft) -> Self {
        match raft.role() {
            RoleKind::Leader => Self::Leader,
            RoleKind::Follower if raft.membership().learners.contains(&raft.id()) => Self::Learner,
            RoleKind::Follower => Self::Follower,
            RoleKind::PreCandidate | RoleKind::Candidate => Self::Candidate,
        }
    }
}

/// How often one kind of fault struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Hits {
    /// In all, nodes that were down included.
    pub strikes: u64,
    /// With a leader among the replicas of the node, or of one of the nodes.
    pub leader: u64,
    /// With a follower.
    pub follower: u64,
    /// With a candidate.
    pub candidate: u64,
    /// With a learner.
    pub learner: u64,
}

impl Hits {
    fn of(&self, role: Role) -> u64 {
        match role {
            Role::Leader => self.leader,
            Role::Follower => self.follower,
            Role::Candidate => self.candidate,
            Role::Learner => self.learner,
        }
    }
}

/// Faults by kind and by role.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(transparent)]
pub struct Coverage {
    kinds: BTreeMap<FaultKind, Hits>,
}

impl Coverage {
    /// Counts one strike on nodes whose replicas have these roles, repeated or not.
    pub fn count(&mut self, kind: FaultKind, roles: &[Role]) {
        let hits = self.kinds.entry(kind).or_default();
        hits.strikes += 1;
        hits.leader += u64::from(roles.contains(&Role::Leader));
        hits.follower += u64::from(roles.contains(&Role::Follower));
        hits.candidate += u64::from(roles.contains(&Role::Candidate));
        hits.learner += u64::from(roles.contains(&Role::Learner));
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (&kind, more) in &other.kinds {
            let hits = self.kinds.entry(kind).or_default();
            hits.strikes += more.strikes;
            hits.leader += more.leader;
            hits.follower += more.follower;
            hits.candidate += more.candidate;
            hits.learner += more.learner;
        }
    }

    /// Strikes of all kinds.
    pub fn strikes(&self) -> u64 {
        self.kinds.values().map(|hits| hits.strikes).sum()
    }

    /// Strikes by kind, for reports.
    pub fn by_kind(&self) -> BTreeMap<String, u64> {
        self.kinds.iter().map(|(kind, hits)| (format!("{kind:?}"), hits.strikes)).collect()
    }

    /// Pairs that were met fewer than `least` times, but could have been.
    pub fn rarer_than(&self, least: u64) -> Vec<(FaultKind, Role)> {
        let hits = |kind| self.kinds.get(&kind).copied().unwrap_or_default();
        let pairs = FaultKind::ALL.into_iter().flat_map(|kind| Role::ALL.map(|role| (kind, role)));
        pairs
            .filter(|&(kind, role)| hits(kind).of(role) < least && unreachable(kind, role).is_none())
            .collect()
    }
}

/// Why a kind of fault can't meet a role, if it can't.
pub const fn unreachable(kind: FaultKind, role: Role) -> Option<&'static str> {
    match (kind, role) {
        // Both choose a leader for their victim; that it stands for election elsewhere is chance.
        (FaultKind::IsolateLeader | FaultKind::NewLeader | FaultKind::Usurp, Role::Candidate) => {
            Some("it is aimed at leaders; what isolates a candidate is `Partition`")
        }
        (FaultKind::Usurp, Role::Learner) => Some("seeds about leases change no members"),
        _ => None,
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["strikes", "leader", "follower", "candidate", "learner"];
        writeln!(f, "{:<16}{}", "fault", head.map(|word| format!(" {word:>9}")).concat())?;
        for (kind, hits) in &self.kinds {
            let Hits { strikes, leader, follower, candidate, learner } = *hits;
            let row = [strikes, leader, follower, candidate, learner];
            writeln!(f, "{:<16}{}", format!("{kind:?}"), row.map(|hits| format!(" {hits:>9}")).concat())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_cell_is_named_and_an_unreachable_one_is_not() {
        let mut coverage = Coverage::default();
        for kind in FaultKind::ALL {
            coverage.count(kind, &[Role::Follower, Role::Leader, Role::Follower, Role::Learner]);
            if kind != FaultKind::Kill {
                coverage.count(kind, &[Role::Candidate]);
            }
        }
        assert_eq!(coverage.rarer_than(1), [(FaultKind::Kill, Role::Candidate)]);
        for once in [Role::Leader, Role::Follower] {
            assert!(coverage.rarer_than(2).contains(&(FaultKind::Pause, once)), "each role once per strike");
        }
        assert!(!coverage.rarer_than(2).contains(&(FaultKind::NewLeader, Role::Candidate)));
        let mut sum = coverage.clone();
        sum.add(&coverage);
        assert!(!sum.rarer_than(2).contains(&(FaultKind::Pause, Role::Leader)), "{sum}");
        assert_eq!(sum.strikes(), 2 * coverage.strikes());
    }
}
