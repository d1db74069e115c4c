//! What goes wrong: faults are drawn by the plan's mix, each with an end of its own. Some are aimed: at a
//! node that leads, or kept back until some replica stands for election.
//!
//! Any number of nodes may be down at once, but every one comes back with all that was durable, except for
//! damaged disks: those are so few that each shard keeps a quorum.

use crate::sim::client::ClientId;
use crate::sim::clock::{MS, SEC};
use crate::sim::cluster::{BURSTS, Cluster, Event, OPERATORS};
use crate::sim::coverage::Role;
use crate::sim::damage::Damage;
use crate::sim::disk::{CallKind, Crash};
use crate::sim::network::receive;
use crate::sim::node::Node;
use crate::sim::plan::FaultKind;
use floe::seam::Input;
use floe_raft::Nanos;
use floe_shard::{CoreAddr, NodeId, PeerBatch, PeerMessage, ShardId};

/// After so many faults the load gets to its end undisturbed.
const FAULTS_MAX: u64 = 500;
/// No fault lasts longer than about this, so that runs get somewhere.
const LASTS_NS_MAX: Nanos = 8 * SEC;

/// A fault that ends at some time.
#[derive(Clone, Debug)]
pub enum Fault {
    /// These directions are blocked, since all were opened for the n-th time.
    Blocked(Vec<(NodeId, NodeId)>, u64),
    /// The network is slow or chaotic.
    Network,
    /// A node's disk is slow, stuck, faulty or full.
    Disk(usize),
}

impl Cluster {
    /// Lets a node's core that owns the shard hear what its counterpart on another node never said.
    pub fn forge(&mut self, node: usize, peer: usize, shard: ShardId, messages: Vec<PeerMessage>) {
        let addr = |node: &Node| {
            let cores = node.process.as_ref().map_or(1, |process| process.cores.len() as u16);
            CoreAddr { node: node.id, core: shard.core(cores) }
        };
        let (to, from) = (addr(&self.nodes[node]), addr(&self.nodes[peer]));
        let frame = floe::codec::encode(&PeerBatch { messages, ..PeerBatch::default() });
        let incarnation = self.nodes[node].incarnation;
        self.input(node, incarnation, to.core, Input::Frame { from, body: receive(&frame) });
    }

    /// Lets faults happen until [`Self::heal`].
    pub fn start_faults(&mut self) {
        self.faults_on = true;
        if self.plan.faults.iter().any(|(kind, _)| *kind == FaultKind::Members) {
            self.queue.after(2 * self.plan.election_timeout_ns(), Event::FirstLearners);
        }
        self.schedule_fault();
    }

    fn schedule_fault(&mut self) {
        if !self.plan.faults.is_empty() && self.faults_total < FAULTS_MAX {
            let usual = self.plan.fault_every_ns;
            let after = self.random.skewed(2 * usual).min(4 * usual);
            self.queue.after(after, Event::NextFault);
        }
    }

    pub(crate) fn next_fault(&mut self) {
        if !self.faults_on {
            return;
        }
        let all: u64 = self.plan.faults.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.random.below(all);
        let mut kind = self.plan.faults[0].0;
        for &(candidate, weight) in &self.plan.faults {
            kind = candidate;
            if drawn < weight {
                break;
            }
            drawn -= weight;
        }
        if self.lets_strike() {
            self.aim(kind);
        }
        self.schedule_fault();
    }

    /// Counts a fault that was drawn; whether the plan lets it strike.
    fn lets_strike(&mut self) -> bool {
        let number = self.faults_drawn;
        self.faults_drawn += 1;
        let may = self.plan.faults_only.as_ref().is_none_or(|only| only.contains(&number));
        self.faults_total += u64::from(!may);
        may
    }

    /// Lets a fault strike any node, one that leads, or the next one with a candidate.
    fn aim(&mut self, kind: FaultKind) {
        let with = |role| -> Vec<usize> {
            (0..self.nodes.len()).filter(|node| self.roles(*node).contains(&role)).collect()
        };
        let (leading, learning) = (with(Role::Leader), with(Role::Learner));
        match self.random.below(10) {
            0..4 if self.plan.aims_at_candidates && self.candidates_spared_until <= self.now() => {
                let patience = 4 * self.plan.election_timeout_ns();
                self.armed = Some(kind);
                self.candidates_spared_until = self.now() + 2 * patience;
                self.queue.after(patience, Event::NoCandidate);
            }
            2..6 if !leading.is_empty() => {
                let node = *self.random.pick(&leading);
                self.strike_at(kind, node);
            }
            6..8 if !learning.is_empty() => {
                let node = *self.random.pick(&learning);
                self.strike_at(kind, node);
            }
            _ => self.strike(kind),
        }
    }

    /// The fault that waits for a candidate has one, or waits no more.
    pub(crate) fn strike_armed(&mut self, candidate: Option<usize>) {
        let is_candidate = |node: usize| self.roles(node).contains(&Role::Candidate);
        let may = self.faults_on && candidate.is_none_or(is_candidate);
        if let Some(kind) = self.armed.take_if(|_| may) {
            let node = candidate.unwrap_or_else(|| self.random.index(self.nodes.len()));
            self.strike_at(kind, node);
        }
    }

    /// What the replicas of a node are at the moment.
    pub(crate) fn roles(&self, node: usize) -> Vec<Role> {
        let cores = self.nodes[node].process.iter().flat_map(|process| &process.cores);
        let multis = cores.filter_map(|core| core.worker.multi());
        let rafts = multis.flat_map(|multi| multi.shards().filter_map(|shard| multi.raft(shard)));
        rafts.map(Role::of).collect()
    }

    /// Makes a fault of this kind happen now, its victim and duration drawn.
    pub fn strike(&mut self, kind: FaultKind) {
        let mut node = self.random.index(self.nodes.len());
        if self.nodes[node].process.is_none() {
            // One that is down is hardly worth a fault: draw once more.
            node = self.random.index(self.nodes.len());
        }
        self.strike_at(kind, node);
    }

    /// Whom a fault strikes that was to strike this node.
    fn victim(&mut self, kind: FaultKind, node: usize) -> usize {
        match kind {
            FaultKind::Drift if !self.plan.drifts_apart => node,
            FaultKind::IsolateLeader | FaultKind::NewLeader | FaultKind::Usurp | FaultKind::Drift => {
                let shard = self.shards[self.random.index(self.shards.len())].shard;
                self.leader(shard).unwrap_or(node)
            }
            FaultKind::BitRot | FaultKind::LostWrite | FaultKind::Misdirected => {
                let may_be_another = self.damaged.len() < self.plan.replication.saturating_sub(1) / 2;
                let first = self.damaged.first().copied().unwrap_or(node);
                if may_be_another || self.damaged.contains(&node) { node } else { first }
            }
            _ => node,
        }
    }

    /// Makes a fault of this kind happen now, at this node unless the kind has victims of its own.
    pub fn strike_at(&mut self, kind: FaultKind, node: usize) {
        let now = self.now();
        let node = self.victim(kind, node);
        let lasts = self.random.skewed(2 * self.plan.fault_for_ns).min(LASTS_NS_MAX) + MS;
        let does_something = !matches!(
            kind,
            FaultKind::BitRot | FaultKind::LostWrite | FaultKind::Misdirected | FaultKind::Members
        );
        if does_something {
            self.count_fault(kind, node);
        }
        self.trace.note(now, &[20, kind as u64, node as u64, lasts], || {
            format!("fault {kind:?}, node {}, for {} us", node + 1, lasts / 1000)
        });
        match kind {
            FaultKind::Kill => self.crash_node(node, Crash::Process, lasts),
            FaultKind::PowerCut => self.crash_node(node, Crash::Power, lasts),
            FaultKind::PowerCutAll => self.power_cut_all(lasts),
            FaultKind::Partition => self.partition(lasts),
            // NewLeader strikes by itself at elections; drawing it makes one.
            FaultKind::IsolateLeader | FaultKind::NewLeader => {
                let (hears, says) = *self.random.pick(&[(false, false), (true, false), (false, true)]);
                if self.plan.drifts_apart && self.random.percent(50) {
                    self.drift_apart(node);
                }
                self.isolate(node, hears, says, lasts);
            }
            FaultKind::Usurp => self.usurp(node, lasts),
            // NewState strikes by itself when a state was taken; drawing it makes a node fall behind.
            FaultKind::NewState => self.isolate(node, false, false, (4 * lasts).min(LASTS_NS_MAX)),
            FaultKind::OneWay => {
                let other = (node + 1 + self.random.index(self.nodes.len() - 1)) % self.nodes.len();
                self.block(vec![(self.nodes[node].id, self.nodes[other].id)], lasts);
            }
            FaultKind::CutConnections => {
                self.network.cut(now, self.nodes[node].id, None);
                self.pump_network();
            }
            FaultKind::Delay | FaultKind::Chaos => self.disturb_network(kind, lasts),
            FaultKind::Pause => {
                let until = &mut self.nodes[node].paused_until;
                *until = (now + lasts).max(*until);
            }
            FaultKind::Drift if self.plan.drifts_apart => self.drift_apart(node),
            FaultKind::Drift => self.nodes[node].change_drift(now, self.plan.drift_ppm_max),
            FaultKind::Overload => self.overload(node),
            FaultKind::Shutdown => self.restart_cleanly(node, lasts),
            FaultKind::OtherCores => {
                self.nodes[node].cores_next = self.random.between(1, 3) as u16;
                match self.random.below(3) {
                    0 => self.crash_node(node, Crash::Process, lasts),
                    1 => self.crash_node(node, Crash::Power, lasts),
                    _ => self.restart_cleanly(node, lasts),
                }
            }
            FaultKind::Transfer => self.ask_for_transfer(node),
            FaultKind::Members => self.change_seat(node, lasts),
            FaultKind::BitRot => self.damage(kind, node, Damage::BitRot),
            FaultKind::LostWrite => self.damage(kind, node, Damage::LostWrite),
            FaultKind::Misdirected => self.damage(kind, node, Damage::Misdirected),
            FaultKind::SlowDisk
            | FaultKind::StuckDisk
            | FaultKind::WriteErrors
            | FaultKind::FailedCall
            | FaultKind::FullDisk => self.hinder_disk(kind, node, lasts),
        }
    }

    /// A leader's clock gets as slow as it may be, all others as fast.
    fn drift_apart(&mut self, leader: usize) {
        let (now, most) = (self.now(), self.plan.drift_ppm_max as i64);
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.set_drift(now, if at == leader { -most } else { most });
        }
    }

    fn disturb_network(&mut self, kind: FaultKind, lasts: Nanos) {
        let profile = &mut self.network.profile;
        match kind {
            FaultKind::Chaos => profile.chaos_ppm = *self.random.pick(&[10_000, 100_000, 300_000]),
            _ => profile.delay_ns = *self.random.pick(&[5 * MS, 50 * MS, 200 * MS]),
        }
        self.queue.after(lasts, Event::Undo(Fault::Network));
    }

    fn hinder_disk(&mut self, kind: FaultKind, node: usize, lasts: Nanos) {
        let disk = &mut self.nodes[node].disk;
        let mut lasts = lasts;
        match kind {
            FaultKind::SlowDisk => {
                let slowness = *self.random.pick(&[10, 100, 3_000]);
                return self.slow_disk(node, slowness, lasts);
            }
            FaultKind::StuckDisk => {
                disk.profile.stuck = true;
                // Long enough now and then for others to take over.
                lasts = (lasts * *self.random.pick(&[1, 4])).min(LASTS_NS_MAX);
            }
            FaultKind::WriteErrors => {
                disk.profile.write_error_ppm = *self.random.pick(&[3_000, 100_000]);
            }
            FaultKind::FailedCall => {
                let (call, nth) = (*self.random.pick(&CallKind::ALL), self.random.skewed(8) + 1);
                return self.fail_disk_call(node, call, nth);
            }
            _ => disk.profile.full = true,
        }
        self.queue.after(lasts, Event::Undo(Fault::Disk(node)));
    }

    /// The n-th call of this kind to a node's disk fails, counted from now.
    pub fn fail_disk_call(&mut self, node: usize, call: CallKind, nth: u64) {
        self.nodes[node].disk.fails_at = Some((call, nth));
    }

    /// Counts only if there was something to damage.
    fn damage(&mut self, kind: FaultKind, node: usize, damage: Damage) {
        let now = self.now();
        if let Some(path) = self.nodes[node].disk.damage(damage) {
            self.damaged.insert(node);
            self.count_fault(kind, node);
            self.trace.note(now, &[24, node as u64], || format!("{damage:?} in {path} of node {}", node + 1));
        }
    }

    /// More requests at once than a node's cores take in; each comes from a client of its own.
    fn overload(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let taken = process.cores.len() * self.plan.requests_max;
        for _ in 0..taken as u64 + self.random.between(20, 100) {
            let client = BURSTS + self.clients.counts.burst as u32;
            let call = self.clients.begin_in_burst(self.queue.now(), client);
            self.send_call(client, node, call);
        }
    }

    /// Calls to a node's disk that are issued from now on take so many times as long.
    pub fn slow_disk(&mut self, node: usize, slowness: u64, lasts: Nanos) {
        self.nodes[node].disk.profile.slowness = slowness;
        self.queue.after(lasts, Event::Undo(Fault::Disk(node)));
    }

    /// No file of a node's disk can be made for a while.
    pub fn fill_disk(&mut self, node: usize, lasts: Nanos) {
        self.nodes[node].disk.profile.full = true;
        self.queue.after(lasts, Event::Undo(Fault::Disk(node)));
    }

    pub(crate) fn count_fault(&mut self, kind: FaultKind, node: usize) {
        use FaultKind::{Chaos, Delay, Partition, PowerCutAll};
        let roles = match kind {
            PowerCutAll | Partition | Delay | Chaos => {
                (0..self.nodes.len()).flat_map(|node| self.roles(node)).collect()
            }
            _ => self.roles(node),
        };
        self.faults.count(kind, &roles);
        self.faults_total += 1;
    }

    pub(crate) fn maybe_strike_new_leader(&mut self, node: usize) {
        let drawn = self.plan.faults.iter().any(|(kind, _)| *kind == FaultKind::NewLeader);
        if !self.faults_on || !drawn || self.faults_total >= FAULTS_MAX {
            return;
        }
        match self.random.below(4) {
            // At once: not even its first entry leaves.
            0 if self.lets_strike() => {
                self.count_fault(FaultKind::NewLeader, node);
                // One that hears would drop its entry, which nobody has, for those of the next leader.
                let hears = self.random.percent(50) && !self.plan.alternates;
                let lasts = self.random.skewed(2 * self.plan.fault_for_ns);
                self.free_others();
                self.isolate(node, hears, false, lasts + MS);
            }
            1 => {
                // Within a few round trips: it has committed something then, but hardly all.
                let after = self.random.skewed((15 * self.plan.network.latency_ns).max(5 * MS));
                self.queue.after(after, Event::NewLeader(node));
            }
            2 if self.plan.alternates => self.spared = self.new_leadership(node),
            _ => {}
        }
    }

    pub(crate) fn strike_new_leader(&mut self, node: usize) {
        if !self.faults_on || !self.lets_strike() {
            return;
        }
        let lasts = self.random.skewed(2 * self.plan.fault_for_ns) + MS;
        self.count_fault(FaultKind::NewLeader, node);
        self.free_others();
        let now = self.now();
        self.trace.note(now, &[22, node as u64], || format!("fault NewLeader, node {}", node + 1));
        match self.random.below(4) {
            0 => self.crash_node(node, Crash::Process, lasts),
            1 => self.crash_node(node, Crash::Power, lasts),
            2 => self.isolate(node, true, false, lasts),
            _ => self.isolate(node, false, false, lasts),
        }
    }

    /// A new leader is struck: where they alternate, whoever was cut off before it is back.
    fn free_others(&mut self) {
        if self.plan.alternates {
            let now = self.now();
            self.network.open_all(now);
            self.pump_network();
        }
    }

    pub(crate) fn maybe_strike_new_state(&mut self, node: usize) {
        let drawn = self.plan.faults.iter().any(|(kind, _)| *kind == FaultKind::NewState);
        if self.faults_on && drawn && self.random.percent(80) {
            let after = self.random.skewed(MS);
            self.queue.after(after, Event::NewState(node));
        }
    }

    pub(crate) fn strike_new_state(&mut self, node: usize) {
        if !self.faults_on || !self.lets_strike() {
            return;
        }
        let lasts = self.random.skewed(2 * self.plan.fault_for_ns) + MS;
        self.count_fault(FaultKind::NewState, node);
        let crash = *self.random.pick(&[Crash::Process, Crash::Power, Crash::Power]);
        self.crash_node(node, crash, lasts);
    }

    /// A leader loses one follower, which will want to be elected; some time later it loses the others, and they
    /// restart: whatever they have promised, a process that is gone has promised it.
    fn usurp(&mut self, leader: usize, lasts: Nanos) {
        let timeout = self.plan.election_timeout_ns();
        let lasts = lasts + 2 * timeout;
        let mut others: Vec<usize> = (0..self.nodes.len()).filter(|node| *node != leader).collect();
        self.random.shuffle(&mut others);
        let usurper = others.swap_remove(0);
        self.part(leader, usurper, lasts);
        let after = self.random.between(timeout / 2, 2 * timeout);
        self.queue.after(after, Event::Usurp(leader, others, lasts));
    }

    pub(crate) fn restart_followers(&mut self, leader: usize, followers: &[usize], lasts: Nanos) {
        if !self.faults_on {
            return;
        }
        for &node in followers {
            self.part(leader, node, lasts);
            let crash = *self.random.pick(&[Crash::Process, Crash::Power]);
            let down = self.random.skewed(5 * MS);
            self.crash_node(node, crash, down);
        }
    }

    /// Two nodes don't reach each other for a while.
    fn part(&mut self, one: usize, other: usize, lasts: Nanos) {
        let (one, other) = (self.nodes[one].id, self.nodes[other].id);
        self.block(vec![(one, other), (other, one)], lasts);
    }

    /// Ends a node's process and starts it again after `down`.
    pub fn crash_node(&mut self, node: usize, crash: Crash, down: Nanos) {
        self.end_node(node, crash);
        let incarnation = self.nodes[node].incarnation;
        self.queue.after(down, Event::Restart(node, incarnation));
    }

    /// The power of all nodes fails at once; each comes back within about `down`.
    pub fn power_cut_all(&mut self, down: Nanos) {
        for node in 0..self.nodes.len() {
            let down = down + self.random.below(100 * MS);
            self.crash_node(node, Crash::Power, down);
        }
    }

    /// Shuts a node down cleanly; it starts again some time after.
    pub fn restart_cleanly(&mut self, node: usize, down: Nanos) {
        self.shut_down(node);
        let incarnation = self.nodes[node].incarnation;
        // Tried again and again: the restart only takes place when the process is gone.
        for seconds in 1..=30 {
            self.queue.after(down + seconds * SEC, Event::Restart(node, incarnation));
        }
    }

    /// The connections from one node to another are stuck until somebody replaces them: [`Network::stick`].
    ///
    /// [`Network::stick`]: crate::sim::network::Network::stick
    pub fn stick(&mut self, from: usize, to: usize) {
        self.network.stick(self.nodes[from].id, self.nodes[to].id);
    }

    /// Blocks directions for a while.
    pub fn block(&mut self, directions: Vec<(NodeId, NodeId)>, lasts: Nanos) {
        let now = self.now();
        for &(from, to) in &directions {
            self.network.block(now, from, to, true);
        }
        self.pump_network();
        let fault = Fault::Blocked(directions, self.network.openings);
        self.queue.after(lasts, Event::Undo(fault));
    }

    /// Cuts one node off from all others: what it hears, what it says, or both.
    pub fn isolate(&mut self, node: usize, hears: bool, says: bool, lasts: Nanos) {
        let me = self.nodes[node].id;
        let others: Vec<NodeId> = self.nodes.iter().map(|other| other.id).filter(|id| *id != me).collect();
        let inwards = others.iter().filter(|_| !hears).map(|other| (*other, me));
        let outwards = others.iter().filter(|_| !says).map(|other| (me, *other));
        self.block(inwards.chain(outwards).collect(), lasts);
    }

    fn partition(&mut self, lasts: Nanos) {
        let mut ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        self.random.shuffle(&mut ids);
        let (one, other) = ids.split_at(1 + self.random.index(ids.len() - 1));
        let one_way = |from: &[NodeId], to: &[NodeId]| -> Vec<(NodeId, NodeId)> {
            from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to))).collect()
        };
        let directions = [one_way(one, other), one_way(other, one)].concat();
        self.block(directions, lasts);
    }

    fn ask_for_transfer(&mut self, node: usize) {
        let shard = self.shards[self.random.index(self.shards.len())].shard;
        self.hand_over(node, shard);
    }

    /// Asks a node to have the leadership of a shard handed to some member.
    pub(crate) fn hand_over(&mut self, node: usize, shard: ShardId) {
        let members = self.descriptor(shard).replicas;
        let to = self.random.pick(&members).node;
        let client = self.operator();
        let call = self.clients.transfer(self.queue.now(), client, shard, to);
        self.send_call(client, node, call);
    }

    /// A client of the harness that has asked for nothing yet.
    pub(crate) fn operator(&mut self) -> ClientId {
        self.operators += 1;
        OPERATORS + self.operators
    }

    /// Ends a pause: steps that were put off take place now.
    fn resume(&mut self, node: usize) {
        let incarnation = self.nodes[node].incarnation;
        let was_paused = std::mem::take(&mut self.nodes[node].paused_until) > self.now();
        if let Some(process) = self.nodes[node].process.as_ref().filter(|_| was_paused) {
            for core in 0..process.cores.len() as u16 {
                self.queue.after(0, Event::Run(node, incarnation, core));
            }
        }
    }

    pub(crate) fn undo(&mut self, fault: &Fault) {
        let now = self.now();
        match fault {
            // What all opened meanwhile, others may have blocked since.
            Fault::Blocked(_, since) if *since < self.network.openings => {}
            Fault::Blocked(directions, _) => {
                for &(from, to) in directions {
                    self.network.block(now, from, to, false);
                }
                self.pump_network();
            }
            Fault::Network => self.network.profile = self.plan.network.clone(),
            Fault::Disk(node) => {
                self.nodes[*node].disk.profile = self.plan.disk.clone();
                self.release_held(*node);
            }
        }
    }

    /// What a stuck disk held back comes now.
    fn release_held(&mut self, node: usize) {
        for ticket in self.nodes[node].disk.take_held() {
            let after = self.random.between(0, MS);
            self.queue.after(after, Event::Disk(node, ticket));
        }
    }

    /// Ends every fault and draws no more. What is down starts; so does, once more, what runs on a damaged
    /// disk: it must find out.
    pub fn heal(&mut self) {
        let now = self.now();
        self.trace.note(now, &[21], || "heal".into());
        self.faults_on = false;
        self.armed = None;
        self.network.profile = self.plan.network.clone();
        self.network.profile.loss_ppm = 0;
        self.network.profile.chaos_ppm = 0;
        self.network.open_all(now);
        self.pump_network();
        for node in 0..self.nodes.len() {
            self.nodes[node].disk.profile = self.plan.disk.clone();
            self.nodes[node].disk.fails_at = None;
            self.release_held(node);
            if self.nodes[node].disk.is_damaged() {
                self.end_node(node, Crash::Process);
            }
            // What a slow disk holds back comes now.
            for ticket in self.nodes[node].disk.in_flight().collect::<Vec<_>>() {
                let after = self.random.between(0, 20 * MS);
                self.queue.after(after, Event::Disk(node, ticket));
            }
            self.resume(node);
            if self.nodes[node].process.is_none() {
                self.start_node(node);
            }
        }
    }
}
