//! Quiet groups: which they are, and who watches their leaders.
//!
//! A group in which nothing was written or read for [`ShardConfig::quiet_after_ns`](crate::ShardConfig) goes quiet:
//! no timer, no message and no turn is spent on it. An election is nothing of that kind, nor is being woken: a leader goes
//! quiet as soon as nothing is left to say. Where ten thousand groups elect, those that have done so thus make room for the
//! others; beats for all of them would come later than their followers wait. The one beat per core pair and interval is what is left: a
//! quiet follower trusts its leader as long as beats come *from that leader's core, with the boot epoch under
//! which it went quiet*.
//!
//! - A new boot epoch wakes all quiet groups led from there: whoever led them has forgotten it.
//! - So does silence for a minimum election timeout. Each replica then counts a random timeout of its own from
//!   the last beat on: after a node's death its groups' elections are spread as if each had had a timer.
//! - A peer that comes back, with a new boot epoch or after a silence, wakes the quiet groups
//!   that are led here and have a replica there: that one waits for a leader.
//!
//! Invariant: a quiet replica that takes part is counted in [`Quiet`], under the core that it depends on: its own, if it
//! leads. The reverse holds after the replica's next turn.

use crate::ids::{CoreAddr, ShardId};
use crate::multi_raft::MultiRaft;
use crate::replica::Replica;
use floe_raft::{Nanos, ReplicaId};
use std::collections::BTreeMap;

/// How many replicas are quiet, by the core that leads them; never 0. Which they are is said by [`Replica::quiet_on`].
#[derive(Default)]
pub(crate) struct Quiet(BTreeMap<CoreAddr, usize>);

impl Quiet {
    fn add(&mut self, on: CoreAddr) {
        *self.0.entry(on).or_default() += 1;
    }

    fn remove(&mut self, on: CoreAddr) {
        let count = self.0.get_mut(&on).unwrap_or_else(|| panic!("no quiet replica is counted on {on}"));
        *count -= 1;
        if *count == 0 {
            self.0.remove(&on);
        }
    }

    /// How many are led from `core`.
    pub(crate) fn led_from(&self, core: CoreAddr) -> usize {
        self.0.get(&core).copied().unwrap_or(0)
    }

    /// How many there are. O(peers).
    pub(crate) fn len(&self) -> usize {
        self.0.values().sum()
    }
}

impl MultiRaft {
    /// A core of another node has said that it lives, and under which boot epoch.
    pub(crate) fn hear(&mut self, core: CoreAddr, boot_epoch: u64) {
        let before = self.peers.heard(core, boot_epoch, self.now);
        let is_new_boot = before.is_none_or(|before| before.boot_epoch < boot_epoch);
        let is_back = is_new_boot || before.is_some_and(|before| self.is_silent(before.heard_at));
        if let (true, Some(before)) = (is_new_boot, before) {
            self.wake_led_from(core, before.heard_at);
        }
        if is_back {
            self.wake_for(core);
        }
    }

    fn is_silent(&self, heard_at: Nanos) -> bool {
        self.now >= self.silent_at(heard_at)
    }

    fn silent_at(&self, heard_at: Nanos) -> Nanos {
        heard_at.saturating_add(self.config.raft.election_timeout_min_ns)
    }

    /// When the first core that quiet replicas depend on has been silent for too long. O(peers).
    pub(crate) fn silence_at(&self) -> Nanos {
        let cores = self.quiet.0.keys().filter(|core| **core != self.me);
        cores.map(|core| self.silent_at(self.peers.heard_at(*core))).min().unwrap_or(Nanos::MAX)
    }

    /// Wakes what is led from cores that are silent.
    pub(crate) fn wake_orphans(&mut self) {
        let me = self.me;
        let cores: Vec<_> = self.quiet.0.keys().copied().filter(|core| *core != me).collect();
        for core in cores {
            let heard_at = self.peers.heard_at(core);
            if self.is_silent(heard_at) {
                self.wake_led_from(core, heard_at);
            }
        }
    }

    /// O(shards of this core), if any is led from there.
    fn wake_led_from(&mut self, core: CoreAddr, heard_at: Nanos) {
        if self.quiet.0.remove(&core).is_none() {
            return;
        }
        for slot in 0..self.replicas.len() {
            if self.replicas[slot].quiet_on.take_if(|on| *on == core).is_some() {
                self.wake(slot, heard_at);
            }
        }
    }

    /// Wakes what is led here and has a replica on `core`. O(shards of this core).
    fn wake_for(&mut self, core: CoreAddr) {
        for slot in 0..self.replicas.len() {
            let replica = &self.replicas[slot];
            if replica.quiet_on == Some(self.me) && replica.routes.iter().any(|(_, addr)| *addr == core) {
                self.wake(slot, self.now);
            }
        }
    }

    fn wake(&mut self, slot: usize, heard_at: Nanos) {
        self.replicas[slot].raft.wake(self.now, heard_at);
        self.touch(slot);
    }

    /// A message from `from` is about to be given to the replica, or (`from` is itself) a reader's question. Unless its
    /// leader wakes it, what counts is when the leader's core was last heard, not that it was quiet until now.
    pub(crate) fn wake_by(&mut self, slot: usize, from: ReplicaId) {
        let replica = &self.replicas[slot];
        if let Some(core) = replica.quiet_on.filter(|_| replica.raft.leader() != Some(from)) {
            self.wake(slot, if core == self.me { self.now } else { self.peers.heard_at(core) });
        }
    }

    /// The leader's core has told a replica to go quiet, in a beat under `boot_epoch`. If it did, that core is
    /// watched from now on; if it can't be, the replica doesn't stay quiet.
    pub(crate) fn depend_on(&mut self, core: CoreAddr, boot_epoch: u64, shard: ShardId) {
        let Some(slot) = self.running(shard) else { return };
        let replica = &self.replicas[slot];
        if !replica.raft.is_quiet() {
            return;
        }
        let leader = replica.raft.leader().and_then(|leader| replica.route(leader));
        if leader == Some(core) && self.peers.boot_epoch(core) == Some(boot_epoch) {
            self.note_quiet(slot, core);
        } else {
            self.wake(slot, self.now);
        }
    }

    /// A leader that has had nothing to do for long enough, or ever, goes quiet with its live followers. Returns whether
    /// it did.
    pub(crate) fn maybe_quiesce(&mut self, slot: usize) -> bool {
        let replica = &self.replicas[slot];
        let patience = self.config.quiet_after_ns;
        let is_active = replica.active_at.is_some_and(|at| self.now.saturating_sub(at) < patience);
        if patience == Nanos::MAX || is_active || replica.has_business() || self.owes_farewell(slot) {
            return false;
        }
        let live = replica.routes.iter().filter(|(_, core)| !self.is_silent(self.peers.heard_at(*core)));
        let live: Vec<ReplicaId> = live.map(|(id, _)| *id).collect();
        let quiet = self.replicas[slot].raft.maybe_quiesce(self.now, |id| live.contains(&id));
        if quiet {
            self.note_quiet(slot, self.me);
            self.queue.push(slot);
        }
        quiet
    }

    /// The shard was read under its lease, past this core: that keeps its group awake as well as anything else.
    pub fn note_read(&mut self, shard: ShardId) {
        if let Some(slot) = self.running(shard) {
            self.replicas[slot].active_at = Some(self.now);
        }
    }

    fn note_quiet(&mut self, slot: usize, on: CoreAddr) {
        let replica = &mut self.replicas[slot];
        match replica.quiet_on.replace(on) {
            Some(before) => assert!(before == on, "{}: quiet on {before} and on {on}", replica.shard),
            None => self.quiet.add(on),
        }
    }

    /// The replica leaves: nobody has to watch for it any more.
    pub(crate) fn forget_quiet(&mut self, slot: usize) {
        if let Some(on) = self.replicas[slot].quiet_on.take() {
            self.quiet.remove(on);
        }
    }

    /// If something has woken the replica, it is on the books of those that are awake again.
    pub(crate) fn note_awake(&mut self, slot: usize) {
        let replica = &mut self.replicas[slot];
        if replica.raft.is_quiet() {
            return;
        }
        let Some(on) = replica.quiet_on.take() else { return };
        self.quiet.remove(on);
        if on == self.me {
            self.leaders.insert(slot);
        }
    }
}

impl Replica {
    /// Whether something is under way that Raft doesn't know of.
    fn has_business(&self) -> bool {
        !self.work.held.is_empty()
            || self.work.reads.len() > 0
            || !self.work.outgoing.is_empty()
            || self.incoming.is_some()
            || self.install.is_some()
            || self.work.handing_over.is_some()
            || self.work.asked_change.is_some()
    }

    /// Gives back memory that a quiet replica doesn't need.
    pub(crate) fn shrink(&mut self) {
        self.work.give_back();
    }
}
