//! What the checkers look at after each step of a core: its replicas one by one, and, across nodes, that nobody
//! reads under a lease while another replica leads in a later term.
//!
//! In a cluster of many shards that would be the square of their number. There a step's checkers look at the replicas
//! that took a turn in it, as nothing else changes one, and at all of them now and then.

use crate::checker::Violation;
use crate::checker::recovery;
use crate::checker::votes::Ballot;
use crate::sim::cluster::{Cluster, Event, index};
use crate::sim::coverage::Role;
use crate::sim::node::{Node, Process};
use floe_raft::{Index, Raft};
use floe_shard::{MultiRaft, ShardId};

/// Up to so many shards, every replica of a core is looked at after each of its steps. No seed draws more.
const SHARDS_ALWAYS_LOOKED_AT: usize = 64;
/// With more, every replica is looked at after one step of so many.
const STEPS_PER_LOOK_AT_ALL: u64 = 256;

impl Cluster {
    /// Lets the checkers look at the replicas of a core that has taken a step.
    pub(crate) fn check_core(&mut self, node: usize, core: u16) {
        let elections = self.safety.elections;
        let looks_at_all =
            self.shards.len() <= SHARDS_ALWAYS_LOOKED_AT || self.steps.is_multiple_of(STEPS_PER_LOOK_AT_ALL);
        if let Err(violation) = self.look_at_core(node, core, looks_at_all) {
            self.break_promise(violation);
        }
        if self.safety.elections > elections {
            self.maybe_strike_new_leader(node);
        }
        self.maybe_strike_first_commit(node);
        let installs = self.nodes[node].process.as_ref().map_or(0, Process::installs);
        if installs > std::mem::replace(&mut self.nodes[node].installs_seen, installs) {
            self.maybe_strike_new_state(node);
        }
        if self.armed.is_some() && self.roles(node).contains(&Role::Candidate) {
            self.queue.after(0, Event::Candidate(node));
        }
    }

    /// A leadership on this node under which nothing is committed yet, and what is committed there by then.
    pub(crate) fn new_leadership(&self, node: usize) -> Option<(usize, ShardId, Index)> {
        let here = self.multis().filter(|(of, _)| index(of.id) == node);
        let rafts =
            here.flat_map(|(_, multi)| multi.shards().filter_map(|shard| Some((shard, multi.raft(shard)?))));
        let is_new = |raft: &Raft| raft.is_leader() && raft.term_at(raft.commit()) != Some(raft.term());
        rafts.filter(|(_, raft)| is_new(raft)).map(|(shard, raft)| (node, shard, raft.commit())).next()
    }

    /// A new leader that was spared until it commits something has: what it commits first may be of an older term, and
    /// its own entries may be nowhere else yet.
    fn maybe_strike_first_commit(&mut self, node: usize) {
        let Some((_, shard, before)) = self.spared.filter(|(of, ..)| *of == node) else { return };
        let commits = |(of, multi): (&Node, &MultiRaft)| {
            index(of.id) == node && multi.raft(shard).is_some_and(|raft| raft.commit() > before)
        };
        if self.multis().any(commits) {
            self.spared = None;
            self.queue.after(0, Event::NewLeader(node));
        }
    }

    /// Lets the checkers look at every replica.
    ///
    /// # Errors
    /// A promise that was broken.
    pub fn look_at_all(&mut self) -> Result<(), Violation> {
        for node in 0..self.nodes.len() {
            let cores = self.nodes[node].process.as_ref().map_or(0, |process| process.cores.len());
            (0..cores as u16).try_for_each(|core| self.look_at_core(node, core, true))?;
        }
        Ok(())
    }

    fn look_at_core(&mut self, node: usize, core: u16, looks_at_all: bool) -> Result<(), Violation> {
        let Node { id, incarnation, ref process, .. } = self.nodes[node];
        let Some(process) = process else { return Ok(()) };
        let worker = &process.cores[usize::from(core)].worker;
        let Some(multi) = worker.multi() else { return Ok(()) };
        let elections = self.safety.elections;
        let shards: Vec<ShardId> =
            if looks_at_all { multi.shards().collect() } else { worker.turned().to_vec() };
        for &shard in &shards {
            let (Some(raft), Some(state)) = (multi.raft(shard), multi.state_hash(shard)) else { continue };
            self.safety.observe_raft(id, shard, raft, state)?;
            let (term, vote) = (raft.hard_state().term, raft.hard_state().vote);
            let (replica, leads) = (raft.id(), raft.is_leader().then(|| raft.membership()));
            self.votes.observe(shard, Ballot { replica, incarnation, term, vote, leads })?;
            if !self.damaged.contains(&node) {
                let view = recovery::View {
                    replica,
                    incarnation,
                    ballot: (term, vote),
                    durable_ballot: raft.durable_ballot(),
                    durable: raft.durable(),
                    first: raft.first_index(),
                    term_at: &|index| raft.term_at(index),
                };
                self.recovery.observe(id, shard, &view)?;
            }
            if let Some(descriptor) = multi.descriptor(shard) {
                self.ranges.observe(descriptor)?;
            }
        }
        // All nodes run the same code: what one of them refuses as nonsense, another really said.
        let refused = multi.stats().messages_refused;
        if refused > 0 {
            let detail = format!("{id} core {core} refused {refused} messages of working replicas");
            return Err(Violation::new("nonsense", detail));
        }
        let is_new_leader = self.safety.elections > elections;
        shards.iter().try_for_each(|shard| self.leases_exclude(node, multi, *shard, is_new_leader))
    }

    /// A lease means that nobody leads in a later term, and that the owner's state has all that was committed
    /// in earlier ones.
    fn leases_exclude(
        &self,
        node: usize,
        multi: &MultiRaft,
        shard: ShardId,
        is_new_leader: bool,
    ) -> Result<(), Violation> {
        let Some(raft) = multi.raft(shard).filter(|raft| raft.is_leader()) else { return Ok(()) };
        let (latest, committed) = self.safety.leadership(shard, raft.term());
        let is_behind = raft.term() < latest;
        let lacks = multi.state_hash(shard).is_some_and(|(applied, _)| applied.index < committed);
        if (is_behind || lacks) && self.has_lease(node, raft) {
            let detail = format!(
                "{} reads {shard} under a lease of term {}, though {latest} has a leader; \
                 it must have applied {committed}, and lacks it: {lacks}",
                self.nodes[node].id,
                raft.term()
            );
            return Err(Violation::new("lease", detail));
        }
        if !is_new_leader {
            return Ok(());
        }
        let older = |(_, multi): &(&Node, &MultiRaft)| {
            multi.raft(shard).is_some_and(|other| other.is_leader() && other.term() < raft.term())
        };
        let holds = |(of, multi): &(&Node, &MultiRaft)| {
            multi.raft(shard).is_some_and(|other| self.has_lease(index(of.id), other))
        };
        match self.multis().filter(older).find(holds) {
            None => Ok(()),
            Some((of, _)) => {
                let detail = format!(
                    "{} leads {shard} in term {}, and {} may still read under its lease",
                    self.nodes[node].id,
                    raft.term(),
                    of.id
                );
                Err(Violation::new("lease", detail))
            }
        }
    }

    /// Whether readers on this node may read under the lease as of now, by the node's own clock.
    fn has_lease(&self, node: usize, raft: &Raft) -> bool {
        let local = self.nodes[node].clock.local(self.queue.now());
        raft.lease().is_some_and(|lease| local < lease.until)
    }

    /// All cores of a node have started: every replica that was durable there is there again, unless it was
    /// removed.
    pub(crate) fn check_started(&mut self, node: usize) {
        let Node { id, incarnation, .. } = self.nodes[node];
        if self.damaged.contains(&node) {
            return self.recovery.forget(id);
        }
        let is_here =
            |shard: ShardId| self.multis().any(|(of, multi)| of.id == id && multi.raft(shard).is_some());
        let was_removed =
            |shard, replica| self.safety.members(shard).is_some_and(|now| !now.contains(replica));
        let is_lost = |&(shard, replica): &_| !is_here(shard) && !was_removed(shard, replica);
        let lost = self.recovery.missing(id, incarnation).find(is_lost);
        if let Some((shard, replica)) = lost {
            let detail = format!("{replica} of {shard} is not on {id} any more");
            self.break_promise(Violation::new("durable state", detail));
        }
    }
}
