//! Changes of members as a fault: seats change by the requests that clients send, one at a time or through a
//! joint configuration; while all is well, with the leader cut off, or with its leadership under way.
//!
//! Bounds, so that healing brings every shard back: with damaged disks in the mix as many voters stay as that
//! damage leaves a quorum of; and some founder stays a member, because requests find shards by their founders.

use crate::sim::client::ClientId;
use crate::sim::clock::MS;
use crate::sim::cluster::{Cluster, Event, index};
use crate::sim::disk::Crash;
use crate::sim::plan::FaultKind;
use floe_raft::Nanos;
use floe_shard::{Descriptor, MemberChange, NodeId, ReplicaRole, Seat, ShardId};

/// Votes now, or will.
fn votes(role: ReplicaRole) -> bool {
    matches!(role, ReplicaRole::Voter | ReplicaRole::Incoming)
}

fn to(node: NodeId, to: Seat) -> MemberChange {
    MemberChange { node, to }
}

impl Cluster {
    /// The newest descriptor of a shard that a running replica has applied; else the founders'.
    pub fn descriptor(&self, shard: ShardId) -> Descriptor {
        let applied = self.multis().filter_map(|(_, multi)| multi.descriptor(shard));
        let newest = applied.max_by_key(|descriptor| descriptor.epoch.membership);
        let founded = || self.shards.iter().find(|descriptor| descriptor.shard == shard);
        newest.or_else(founded).expect("only shards of the cluster are asked for").clone()
    }

    /// Asks a node for other members of a shard, as a client does.
    pub fn ask_for_members(
        &mut self,
        node: usize,
        shard: ShardId,
        changes: Vec<MemberChange>,
        force: bool,
    ) -> ClientId {
        let client = self.operator();
        let now = self.now();
        self.trace.note(now, &[25, shard.0, changes.len() as u64], || {
            format!("ask node {} for members of {shard}: {changes:?}, force {force}", node + 1)
        });
        let call = self.clients.change_members(now, client, shard, changes, force);
        self.send_call(client, node, call);
        client
    }

    /// Whether disks may be damaged in this run: what was acknowledged may be lost for good there.
    fn may_damage(&self) -> bool {
        let damages = [FaultKind::BitRot, FaultKind::LostWrite, FaultKind::Misdirected];
        self.plan.faults.iter().any(|(kind, _)| damages.contains(kind)) || !self.damaged.is_empty()
    }

    /// A learner for about every second shard that a node has no replica of, so that faults meet learners from
    /// the first one on.
    pub(crate) fn seat_learners(&mut self) {
        for shard in self.shards.iter().map(|descriptor| descriptor.shard).collect::<Vec<_>>() {
            let descriptor = self.descriptor(shard);
            let nodes = self.nodes.iter().map(|node| node.id);
            let spare: Vec<_> = nodes.filter(|node| descriptor.replica_on(*node).is_none()).collect();
            if !spare.is_empty() && self.random.percent(50) {
                let (node, asked) = (*self.random.pick(&spare), self.random.index(self.nodes.len()));
                self.ask_for_members(asked, shard, vec![to(node, Seat::Learner)], false);
            }
        }
    }

    /// Changes the seat of a node in some shard, under more or less trouble.
    pub(crate) fn change_seat(&mut self, node: usize, lasts: Nanos) {
        let shard = self.shards[self.random.index(self.shards.len())].shard;
        let leader = self.leader(shard);
        let trouble = self.random.below(10);
        let mut has_asked = false;
        let asked = match leader {
            // What is cut off still takes requests; what comes of them is cut from its log later.
            Some(leader) if trouble < 3 => {
                let hears = self.random.percent(50);
                self.isolate(leader, hears, false, lasts);
                leader
            }
            Some(leader) if trouble < 6 => leader,
            _ => self.random.index(self.nodes.len()),
        };
        // More than one at once: the leader must take the others only when the first is committed.
        for _ in 0..*self.random.pick(&[1, 1, 2, 3]) {
            let of = if self.random.percent(70) { node } else { self.random.index(self.nodes.len()) };
            let id = self.nodes[of].id;
            if let Some(changes) = self.draw_changes(shard, id) {
                if !std::mem::replace(&mut has_asked, true) {
                    self.count_fault(FaultKind::Members, node);
                }
                let force = !self.may_damage() && self.random.percent(15);
                self.ask_for_members(asked, shard, changes, force);
            }
        }
        match (leader, trouble) {
            (Some(leader), 3) => {
                let after = self.random.skewed(5 * MS);
                self.queue.after(after, Event::NewLeader(leader));
            }
            (Some(leader), 4) => self.hand_over(leader, shard),
            (Some(leader), 5) => {
                let crash = *self.random.pick(&[Crash::Process, Crash::Power]);
                self.crash_node(leader, crash, lasts);
            }
            _ => {}
        }
    }

    /// Changes about a node's seat, and maybe others', that leave enough voters; `None` if none were drawn.
    fn draw_changes(&mut self, shard: ShardId, node: NodeId) -> Option<Vec<MemberChange>> {
        let descriptor = self.descriptor(shard);
        let others = |wanted: fn(ReplicaRole) -> bool| -> Vec<NodeId> {
            let places = descriptor.replicas.iter().filter(|place| place.node != node && wanted(place.role));
            places.map(|place| place.node).collect()
        };
        let (voters, learners) = (others(votes), others(|role| role == ReplicaRole::Learner));
        let down = *self.random.pick(&[Seat::Learner, Seat::Vacant]);
        let role = descriptor.replica_on(node).map(|place| place.role);
        let drawn = self.random.below(10);
        let changes = match role {
            None => vec![to(node, Seat::Learner)],
            Some(ReplicaRole::Learner) => match drawn {
                0 => vec![to(node, Seat::Vacant)],
                1..5 if !voters.is_empty() => {
                    vec![to(node, Seat::Voter), to(*self.random.pick(&voters), down)]
                }
                _ => vec![to(node, Seat::Voter)],
            },
            Some(_) => match drawn {
                0..4 if !learners.is_empty() => {
                    vec![to(node, down), to(*self.random.pick(&learners), Seat::Voter)]
                }
                4..7 if voters.len() > 1 => vec![to(node, down), to(*self.random.pick(&voters), down)],
                _ => vec![to(node, down)],
            },
        };
        self.may_be(&descriptor, &changes).then_some(changes)
    }

    /// Whether every demand can still be met when the changes are made.
    fn may_be(&self, descriptor: &Descriptor, changes: &[MemberChange]) -> bool {
        let seat = |node: NodeId| changes.iter().find(|change| change.node == node).map(|change| change.to);
        let place = |node: NodeId| descriptor.replica_on(node).map(|place| place.role);
        let lives = |node: &NodeId| !self.nodes[index(*node)].is_condemned;
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id).collect();
        let will_vote = |node: &NodeId| {
            seat(*node).map_or_else(|| place(*node).is_some_and(votes), |seat| seat == Seat::Voter)
        };
        let stays = |node: &NodeId| seat(*node).map_or(place(*node).is_some(), |seat| seat != Seat::Vacant);
        let founders = self.shards.iter().filter(|founded| founded.shard == descriptor.shard);
        let founders = founders.flat_map(|founded| &*founded.replicas).map(|place| place.node);
        let damages = if self.may_damage() { (self.plan.replication - 1) / 2 } else { 0 };
        let voters = ids.iter().filter(|node| will_vote(node)).count();
        voters > 2 * damages && founders.filter(stays).any(|node| lives(&node))
    }
}
