//! Who takes part in a group, and the algebra of changing that: configuration in, configuration out.
//!
//! Two configurations may be in force at once on different replicas, since each takes a change as
//! soon as it is in its log (paper §6). What keeps two leaders from being elected by two disjoint
//! majorities is the *shape* of the steps between configurations, and that is all that this file decides:
//!
//! - A **simple** change touches one voter at most, so any majority of the old voters shares a member
//!   with any majority of the new ones (thesis §4.1).
//! - Anything larger goes through a **joint** configuration, which decides by a majority of the old
//!   voters *and* one of the new (paper §6, thesis §4.3): [`Membership::enter_joint`], then
//!   [`Membership::leave_joint`]. There is no simple change in between.
//!
//! *Learners* get the log but count nowhere (thesis §4.2.1). A voter that is demoted in a joint change
//! still votes in the outgoing half; it waits in `learners_next` and becomes a learner on leaving.
//!
//! Shape alone isn't enough. That at most one change is uncommitted at a time, and that a leader starts
//! none before it has committed an entry of its own term (Ongaro's note to raft-dev, 2015), depends on
//! the log and is up to who appends the change.
//!
//! All functions are pure and deterministic. A refusal returns nothing, so nothing has changed; the
//! configuration that comes out satisfies [`Membership::broken_rule`], or the function panics.

use crate::error::ChangeError;
use crate::types::ReplicaId;

/// Who takes part. `voters_outgoing` is empty except during a joint configuration (paper §6).
/// All lists are sorted and free of duplicates; the other rules are [`Membership::broken_rule`]'s.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Membership {
    /// Voters; in a joint configuration the incoming half.
    pub voters: Vec<ReplicaId>,
    /// The outgoing half of a joint configuration.
    pub voters_outgoing: Vec<ReplicaId>,
    /// Replicas that receive the log but don't vote.
    pub learners: Vec<ReplicaId>,
    /// Voters of the outgoing half that become learners when the joint configuration is left.
    pub learners_next: Vec<ReplicaId>,
    /// Whether the leader leaves the joint configuration by itself.
    pub auto_leave: bool,
}

/// What is to become of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// It is to vote: a newcomer, or a learner that is promoted (thesis §4.2.1).
    AddVoter(ReplicaId),
    /// It is to receive the log without voting: a newcomer, or a voter that is demoted.
    AddLearner(ReplicaId),
    /// It is to leave the group, voter or learner.
    Remove(ReplicaId),
}

impl Change {
    /// The replica that it is about.
    pub const fn replica(self) -> ReplicaId {
        match self {
            Self::AddVoter(id) | Self::AddLearner(id) | Self::Remove(id) => id,
        }
    }
}

impl Membership {
    /// A plain configuration of voters only.
    pub fn of_voters(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        let mut voters: Vec<_> = voters.into_iter().collect();
        voters.sort_unstable();
        voters.dedup();
        Self { voters, ..Self::default() }
    }

    /// Whether `id` may vote in either half.
    pub fn is_voter(&self, id: ReplicaId) -> bool {
        self.voters.contains(&id) || self.voters_outgoing.contains(&id)
    }

    /// Whether `id` takes part at all.
    pub fn contains(&self, id: ReplicaId) -> bool {
        self.is_voter(id) || self.learners.contains(&id)
    }

    /// Everybody who takes part, each once, in order of id.
    pub fn members(&self) -> Vec<ReplicaId> {
        let mut all: Vec<_> =
            self.voters.iter().chain(&self.voters_outgoing).chain(&self.learners).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether decisions need a majority of two halves (paper §6).
    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// The configuration after one change that touches one voter at most (thesis §4.1): any two
    /// majorities, one of the old voters and one of the new, share a member. Linear in the members.
    ///
    /// # Errors
    /// While joint; if the change is none (the replica is there already, or isn't a member); if no
    /// voter would be left.
    ///
    /// # Panics
    /// If `self` breaks a rule of [`Membership::broken_rule`].
    pub fn simple(&self, change: Change) -> Result<Self, ChangeError> {
        self.assert_sound();
        if self.is_joint() {
            return Err(ChangeError::AlreadyJoint { replica: change.replica() });
        }
        let mut next = self.clone();
        next.apply(change)?;
        next.refuse_no_voters(self, &[change])?;
        next.assert_sound();
        let touched = difference(&self.voters, &next.voters) + difference(&next.voters, &self.voters);
        assert!(touched <= 1, "{change:?} touches {touched} voters: {self:?} to {next:?}");
        Ok(next)
    }

    /// The joint configuration on the way to `self` with all of `changes` (paper §6, thesis §4.3):
    /// today's voters become the outgoing half. Changes are about different replicas, so that their
    /// order doesn't matter. New learners come and old ones go at once, since they count nowhere; a
    /// removed voter takes part until the joint configuration is left. With `auto_leave` the leader is to
    /// leave it by itself, once it is committed. Quadratic in the number of changes.
    ///
    /// # Errors
    /// While joint; without changes; if two of them are about one replica; if one of them is none (the
    /// replica is there already, or isn't a member); if no voter would be left.
    ///
    /// # Panics
    /// If `self` breaks a rule of [`Membership::broken_rule`].
    pub fn enter_joint(&self, changes: &[Change], auto_leave: bool) -> Result<Self, ChangeError> {
        self.assert_sound();
        let Some(first) = changes.first() else {
            return Err(ChangeError::NoChange);
        };
        if self.is_joint() {
            return Err(ChangeError::AlreadyJoint { replica: first.replica() });
        }
        let mut next = Self { voters_outgoing: self.voters.clone(), auto_leave, ..self.clone() };
        for (at, change) in changes.iter().enumerate() {
            let replica = change.replica();
            if changes[..at].iter().any(|earlier| earlier.replica() == replica) {
                return Err(ChangeError::Repeated { replica });
            }
            next.apply(*change)?;
        }
        next.refuse_no_voters(self, changes)?;
        next.assert_sound();
        assert_eq!(next.voters_outgoing, self.voters, "the outgoing half is not the old configuration");
        Ok(next)
    }

    /// The configuration after a joint one: the incoming half alone decides, and who was demoted becomes
    /// a learner (paper §6, thesis §4.3). Only once the joint configuration is committed. Linear in the
    /// members.
    ///
    /// # Errors
    /// If there is no joint configuration to leave.
    ///
    /// # Panics
    /// If `self` breaks a rule of [`Membership::broken_rule`].
    pub fn leave_joint(&self) -> Result<Self, ChangeError> {
        self.assert_sound();
        if !self.is_joint() {
            return Err(ChangeError::NotJoint);
        }
        let mut next =
            Self { voters: self.voters.clone(), learners: self.learners.clone(), ..Self::default() };
        for &demoted in &self.learners_next {
            let is_new = insert(&mut next.learners, demoted);
            assert!(is_new, "{demoted} is demoted and was a learner before: {self:?}");
        }
        next.assert_sound();
        Ok(next)
    }

    /// The first rule that this configuration breaks, `None` if it is sound. Linear in the members, with
    /// a logarithm. The rules:
    ///
    /// - every list is sorted and free of duplicates;
    /// - somebody votes;
    /// - nobody is a learner and a voter, in either half;
    /// - who is to become a learner votes in the outgoing half and not in the incoming one;
    /// - outside of a joint configuration nobody is to become a learner, and there is nothing to leave.
    pub fn broken_rule(&self) -> Option<&'static str> {
        let lists = [&self.voters, &self.voters_outgoing, &self.learners, &self.learners_next];
        let is_sorted = |list: &Vec<ReplicaId>| list.is_sorted_by(|a, b| a < b);
        if !lists.into_iter().all(is_sorted) {
            Some("a list is not sorted or has duplicates")
        } else if self.voters.is_empty() {
            Some("nobody votes")
        } else if shares(&self.learners, &self.voters) {
            Some("a learner votes")
        } else if shares(&self.learners, &self.voters_outgoing) {
            Some("a learner votes in the outgoing half")
        } else if shares(&self.learners_next, &self.voters) {
            Some("a demoted replica votes in the incoming half")
        } else if difference(&self.learners_next, &self.voters_outgoing) != 0 {
            Some("a demoted replica doesn't vote in the outgoing half")
        } else if !self.is_joint() && self.auto_leave {
            Some("there is no joint configuration to leave")
        } else {
            None
        }
    }

    /// Panics with the configuration if it breaks a rule of [`Membership::broken_rule`].
    pub fn assert_sound(&self) {
        if let Some(rule) = self.broken_rule() {
            panic!("{rule}: {self:?}");
        }
    }

    /// Applies one change to the incoming half. A demoted voter of the outgoing half waits in
    /// `learners_next`. After an error `self` is to be thrown away.
    fn apply(&mut self, change: Change) -> Result<(), ChangeError> {
        match change {
            Change::AddVoter(replica) => {
                if !insert(&mut self.voters, replica) {
                    return Err(ChangeError::AlreadyVoter { replica });
                }
                remove(&mut self.learners, replica);
            }
            Change::AddLearner(replica) => {
                remove(&mut self.voters, replica);
                let votes_on = self.voters_outgoing.binary_search(&replica).is_ok();
                let list = if votes_on { &mut self.learners_next } else { &mut self.learners };
                if !insert(list, replica) {
                    return Err(ChangeError::AlreadyLearner { replica });
                }
            }
            Change::Remove(replica) => {
                if !remove(&mut self.voters, replica) && !remove(&mut self.learners, replica) {
                    return Err(ChangeError::NotAMember { replica });
                }
            }
        }
        Ok(())
    }

    /// Refuses `changes`, which led from `old` to `self`, if nobody would vote any more; names the last
    /// voter that they take away.
    fn refuse_no_voters(&self, old: &Self, changes: &[Change]) -> Result<(), ChangeError> {
        if !self.voters.is_empty() {
            return Ok(());
        }
        let mut replicas = changes.iter().rev().map(|change| change.replica());
        let last = replicas.find(|replica| old.voters.binary_search(replica).is_ok());
        Err(ChangeError::NoVoters {
            replica: last.expect("old had voters, and only a change takes one away"),
        })
    }
}

/// Inserts into a sorted list; `false` if it was there.
fn insert(list: &mut Vec<ReplicaId>, id: ReplicaId) -> bool {
    match list.binary_search(&id) {
        Ok(_) => false,
        Err(at) => {
            list.insert(at, id);
            true
        }
    }
}

/// Removes from a sorted list; `false` if it wasn't there.
fn remove(list: &mut Vec<ReplicaId>, id: ReplicaId) -> bool {
    match list.binary_search(&id) {
        Ok(at) => {
            list.remove(at);
            true
        }
        Err(_) => false,
    }
}

/// How many of `a` are not in `b`, which is sorted.
fn difference(a: &[ReplicaId], b: &[ReplicaId]) -> usize {
    a.iter().filter(|id| b.binary_search(id).is_err()).count()
}

/// Whether the sorted lists `a` and `b` have a member in common.
fn shares(a: &[ReplicaId], b: &[ReplicaId]) -> bool {
    difference(a, b) != a.len()
}
