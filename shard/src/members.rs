//! Who is a member of a shard: changes, and the replicas that come and go with them.
//!
//! A change is an entry that holds Raft's membership and says where newcomers live. When it is *applied*, the
//! descriptor follows, under the next membership version. What a change asks of nodes is ordered from then
//! on, never before: an uncommitted change may be rolled back, and its ids are then given out again.
//!
//! - A newcomer joins as a learner. Its leader orders its node to create it ([`PeerMessage::Placement`]) at each beat
//!   until it answers. It holds nothing, not even the empty state that the founders' log begins after
//!   ([`FOUNDED_AT`]), so the first thing that it takes is a dump.
//! - A removed replica is told so by whoever leads, a bounded number of times; one that missed it asks for votes
//!   sooner or later, and is told then. (One without a vote shows the others its descriptor when it starts, and
//!   when it is asked for something, as long as it knows no leader, and so does one that campaigns by a change that isn't
//!   committed; whoever has a newer descriptor without it says so.)
//!   It destroys itself by a tombstone, which keeps the lowest id that may
//!   still come: no late order and no late message brings it back with a blank vote.
//!
//! **Must:** only bootstrap and an order create replicas; only a descriptor that was applied and doesn't name it
//! destroys one.

use crate::descriptor::{Descriptor, ReplicaRole};
use crate::ids::{CoreAddr, NodeId, ShardId};
use crate::multi_raft::MultiRaft;
use crate::output::{LogWrite, ShardState};
use crate::peer::PeerMessage;
use crate::replica::{OnDurable, Replica, Stage};
use crate::request::BusyReason;
use crate::request::{Answer, MEMBER_CHANGES_MAX, MemberChange, Refusal, RequestId, Seat, UnknownReason};
use crate::state_machine::StateMachine;
use floe_raft::{Change, Entry, HardState, Mark, Membership, MembershipChange, Nanos, ReplicaId};
use floe_raft::{Planted, Refused, is_planted};

/// Where the log of a shard begins: its founders hold the empty state at this mark, a newcomer doesn't.
pub const FOUNDED_AT: Mark = Mark::new(0, 1);
/// How often a removed replica is told.
const FAREWELLS: u8 = 32;
/// Removed replicas that are remembered; the oldest is forgotten first.
const FAREWELLS_MAX: usize = 16;
/// How often a replica that starts without a vote, and hears of no leader, asks whether it is a member.
pub(crate) const MEMBERSHIP_ASKS: u8 = 32;
const NEWCOMER_BYTES: usize = 16;

/// Replicas that a change brings, and where they are to live.
type Newcomers = Vec<(ReplicaId, NodeId)>;

/// A replica that was removed.
pub(crate) struct Farewell {
    replica: ReplicaId,
    node: NodeId,
    /// How often it is still to be told.
    left: u8,
}

/// A change that somebody asks for.
pub(crate) struct AskedChange {
    pub(crate) id: RequestId,
    pub(crate) changes: Vec<MemberChange>,
    pub(crate) force: bool,
}

/// What becomes of it.
enum Asked {
    Proposed,
    /// The shard was quiet, and it isn't known yet who of the voters is alive.
    TooEarly,
}

/// Where newcomers live, as the context of a membership entry: replica u64, node u64, each.
fn encode_newcomers(newcomers: &[(ReplicaId, NodeId)]) -> Vec<u8> {
    newcomers.iter().flat_map(|(id, node)| [id.get().to_le_bytes(), node.0.to_le_bytes()].concat()).collect()
}

fn decode_newcomers(bytes: &[u8]) -> Option<Newcomers> {
    let (rows, rest) = bytes.as_chunks::<NEWCOMER_BYTES>();
    let number = |part: &[u8]| u64::from_le_bytes(part.try_into().expect("half of 16 bytes"));
    let row =
        |row: &[u8; NEWCOMER_BYTES]| Some((ReplicaId::new(number(&row[..8]))?, NodeId(number(&row[8..]))));
    if rest.is_empty() { rows.iter().map(row).collect() } else { None }
}

impl Replica {
    /// Proposes a change of the members.
    fn change_members(&mut self, now: Nanos, asked: &AskedChange) -> Result<Asked, Refusal> {
        if !self.raft.is_leader() {
            return Err(self.not_leader(self.raft.leader()));
        }
        let may_be_second = is_planted(Planted::SecondChangeUncommitted);
        if self.raft.membership_index() > self.applied.index && !may_be_second {
            // The descriptor that tells the next replica id is behind.
            return Err(Refusal::Busy(BusyReason::MemberChange));
        }
        let (changes, newcomers) = self.plan(&asked.changes)?;
        let step = match changes[..] {
            [change] => MembershipChange::Simple(change),
            _ => MembershipChange::EnterJoint { changes, auto_leave: true },
        };
        let context = encode_newcomers(&newcomers);
        match self.raft.propose_membership(now, &step, asked.force, &context) {
            Ok(mark) => {
                self.work.proposals.push(mark, asked.id);
                Ok(Asked::Proposed)
            }
            Err(Refused::VotersUnheard) => Ok(Asked::TooEarly),
            Err(why) => Err(self.refusal(why)),
        }
    }

    /// What the changes mean for replicas, and where new ones are to live.
    fn plan(&self, changes: &[MemberChange]) -> Result<(Vec<Change>, Newcomers), Refusal> {
        let bad = |reason: String| Refusal::BadChange { reason };
        if !(1..=MEMBER_CHANGES_MAX).contains(&changes.len()) {
            return Err(bad(format!("{} changes; 1 to {MEMBER_CHANGES_MAX} can be", changes.len())));
        }
        let (mut planned, mut newcomers) = (Vec::new(), Vec::new());
        for (at, &MemberChange { node, to }) in changes.iter().enumerate() {
            if changes[..at].iter().any(|earlier| earlier.node == node) {
                return Err(bad(format!("node {node} is to be changed twice at once")));
            }
            let here = self.descriptor.replica_on(node).map(|place| place.replica);
            let is_learner =
                self.descriptor.replica_on(node).is_some_and(|place| place.role == ReplicaRole::Learner);
            if let Some(replica) =
                here.filter(|id| is_learner && to == Seat::Voter && self.raft.is_unheard(*id))
            {
                // Nobody creates a voter; and until the learner is heard it may not exist.
                return Err(bad(format!("{replica} on node {node} has not been heard of: promote it later")));
            }
            planned.push(match (to, here) {
                (Seat::Voter, Some(replica)) => Change::AddVoter(replica),
                (Seat::Learner, Some(replica)) => Change::AddLearner(replica),
                (Seat::Vacant, Some(replica)) => Change::Remove(replica),
                (Seat::Learner, None) => {
                    let next = self.descriptor.next_replica_id + newcomers.len() as u64;
                    let replica = ReplicaId::new(next).ok_or_else(|| bad("no replica id is left".into()))?;
                    newcomers.push((replica, node));
                    Change::AddLearner(replica)
                }
                (Seat::Voter, None) => {
                    return Err(bad(format!("node {node} has no replica: it must join as a learner first")));
                }
                (Seat::Vacant, None) => return Err(Refusal::NotAMember { node }),
            });
        }
        let touches_voter = |change: &MemberChange| {
            let role = self.descriptor.replica_on(change.node).map(|place| place.role);
            change.to == Seat::Voter || role == Some(ReplicaRole::Voter)
        };
        if changes.len() > 1 && !changes.iter().any(touches_voter) {
            return Err(bad("learners come and go one at a time".into()));
        }
        Ok((planned, newcomers))
    }

    /// Replicas that changes in the log bring which aren't applied yet, and where they live: without their votes there
    /// may be no leader to apply anything.
    pub(crate) fn newcomers(&self) -> impl Iterator<Item = (ReplicaId, NodeId)> {
        let entries = self.raft.membership_entries(self.applied.index);
        let contexts = entries.filter_map(|entry| Some(Membership::decode(&entry.data)?.1));
        contexts.filter_map(|context| decode_newcomers(&context)).flatten()
    }

    /// A change is applied: the descriptor follows.
    pub(crate) fn apply_membership(&mut self, entry: &Entry) {
        let next = Membership::decode(&entry.data).and_then(|(membership, context)| {
            self.descriptor.with_membership(&membership, &decode_newcomers(&context)?)
        });
        let Some(next) = next else {
            let why = format!("the membership at {} doesn't fit {:?}", entry.mark, self.descriptor);
            self.break_down(why);
            return;
        };
        for place in &*self.descriptor.replicas {
            if next.node_of(place.replica).is_none() {
                let farewell = Farewell { replica: place.replica, node: place.node, left: FAREWELLS };
                self.work.farewells.push(farewell);
            }
        }
        let surplus = self.work.farewells.len().saturating_sub(FAREWELLS_MAX);
        self.work.farewells.drain(..surplus);
        self.change_descriptor(next);
    }

    /// It knows nobody who leads, and may have been removed without anybody learning of it from its campaigns: it has no
    /// vote, or by a change that may never be committed it asks only some of the members.
    pub(crate) fn is_unled(&self) -> bool {
        let asks_all =
            self.raft.membership().is_voter(self.id) && self.raft.membership_index() <= self.applied.index;
        self.raft.leader().is_none() && !asks_all
    }

    /// The applied descriptor doesn't name this replica any more, and it has handed over what it led. (A dump may be
    /// older than the replica that takes it: then the descriptor doesn't name it *yet*.)
    pub(crate) fn is_to_leave(&self) -> bool {
        self.takes_part()
            && self.install.is_none()
            && !self.raft.is_leader()
            && self.descriptor.has_removed(self.id)
    }
}

impl MultiRaft {
    /// Proposes a change of the members, once it is known who of the voters is alive.
    pub(crate) fn ask_change(&mut self, slot: usize, asked: AskedChange) -> Result<(), Refusal> {
        let replica = &mut self.replicas[slot];
        if replica.work.asked_change.is_some() {
            return Err(Refusal::Busy(BusyReason::MemberChange));
        }
        if let Asked::TooEarly = replica.change_members(self.now, &asked)? {
            replica.work.asked_change = Some(asked);
            self.watched.insert(slot);
        }
        Ok(())
    }

    /// Tries again what came too early; once per beat.
    pub(crate) fn check_change(&mut self, slot: usize) {
        let Some(asked) = self.replicas[slot].work.asked_change.take() else { return };
        let id = asked.id;
        match self.ask_change(slot, asked) {
            Ok(()) => self.touch(slot),
            Err(refusal) => self.callers.answer(id, Answer::Refused(refusal), &mut self.outbox.answers),
        }
    }

    /// Replicas below `lowest` of this shard were destroyed here, in an earlier boot: none of them may come back.
    pub fn forbid(&mut self, shard: ShardId, lowest: u64) {
        let known = self.lowest.entry(shard).or_default();
        *known = lowest.max(*known);
    }

    /// Creates this node's replica as an order of its leader asked for ([`crate::Output::creates`]). It holds
    /// nothing, and takes part once its first record is durable. Does nothing if that isn't due any more.
    pub fn create(&mut self, now: Nanos, descriptor: Descriptor, machine: Box<dyn StateMachine>) {
        self.advance_clock(now);
        let Some(replica) = self.creatable(&descriptor) else { return };
        let state = ShardState {
            shard: descriptor.shard,
            replica,
            home_epoch: 1,
            descriptor: descriptor.encode(),
            hard_state: HardState::default(),
            flushed: Mark::ZERO,
            generation: 0,
            entries: Vec::new(),
            lowest_replica: replica.get(),
        };
        self.lowest.remove(&descriptor.shard);
        self.add(now, state, descriptor, machine, true, true);
    }

    /// The replica that `descriptor` asks to have here: a learner, on a node that has none of the shard and
    /// never destroyed this one. (A voter isn't created: what it has promised would be lost.)
    fn creatable(&self, descriptor: &Descriptor) -> Option<ReplicaId> {
        let shard = descriptor.shard;
        let place = descriptor.replica_on(self.me.node)?;
        let is_home = shard.core(self.config.cores) == self.me.core;
        let is_new = !self.slots.contains_key(&shard);
        let may_come = self.lowest.get(&shard).is_none_or(|&lowest| place.replica.get() >= lowest);
        let may = is_home && is_new && may_come && place.role == ReplicaRole::Learner;
        may.then_some(place.replica)
    }

    /// Once per beat: replicas that may have been removed show the other members their descriptors.
    pub(crate) fn ask_members(&mut self) {
        for (slot, left) in std::mem::take(&mut self.unled) {
            let replica = &self.replicas[slot];
            if !replica.takes_part() || !replica.is_unled() {
                continue;
            }
            let (shard, me) = (replica.shard, replica.id);
            for &(_, addr) in &*replica.routes {
                let descriptor = Box::new(replica.descriptor.clone());
                self.outbox
                    .sends
                    .push((addr, PeerMessage::Placement { shard, from: me, to: me, descriptor }));
            }
            if left > 1 {
                self.unled.insert(slot, left - 1);
            }
        }
    }

    /// A leader says who the members are; or a replica without one asks.
    pub(crate) fn on_placement(&mut self, addr: CoreAddr, message: PeerMessage) {
        let PeerMessage::Placement { shard, from, to, descriptor } = message else { return };
        if descriptor.shard != shard {
            return;
        }
        match self.running(shard) {
            Some(slot) if descriptor.epoch.membership < self.replicas[slot].descriptor.epoch.membership => {
                self.tell_removed(slot, addr, from);
            }
            Some(slot) => {
                let replica = &self.replicas[slot];
                let is_newer = descriptor.epoch.membership > replica.descriptor.epoch.membership;
                // What is said to another one here counts too: it is to come in this one's place.
                let is_removed = descriptor.has_removed(replica.id);
                if is_newer && is_removed && replica.install.is_none() {
                    self.leave(slot);
                }
            }
            None if self.creatable(&descriptor) == Some(to) => self.outbox.creates.push(*descriptor),
            None => {}
        }
    }

    /// Once per beat, for each leader: orders what its applied descriptor asks of other nodes.
    pub(crate) fn order_placements(&mut self, slot: usize) {
        let Self { replicas, peers, outbox, .. } = self;
        let replica = &mut replicas[slot];
        let order = |to| PeerMessage::Placement {
            shard: replica.shard,
            from: replica.id,
            to,
            descriptor: Box::new(replica.descriptor.clone()),
        };
        let learners = replica.descriptor.replicas.iter().filter(|place| place.role == ReplicaRole::Learner);
        for place in learners.filter(|place| replica.raft.is_unheard(place.replica)) {
            if let Some(addr) = replica.route(place.replica) {
                outbox.sends.push((addr, order(place.replica)));
            }
        }
        let mut farewells = std::mem::take(&mut replica.work.farewells);
        for farewell in &mut farewells {
            if let Some(addr) = peers.route(farewell.node, replica.shard) {
                outbox.sends.push((addr, order(farewell.replica)));
                farewell.left -= 1;
            }
        }
        farewells.retain(|farewell| farewell.left > 0);
        replicas[slot].work.farewells = farewells;
    }

    /// Whether a removed replica that can be reached is still to be told. In a quiet group nobody would tell it, and it
    /// may be quiet itself, and trust the core of the leader that it had. (One that can't be reached will miss that
    /// core's beats.)
    pub(crate) fn owes_farewell(&self, slot: usize) -> bool {
        let replica = &self.replicas[slot];
        replica.work.farewells.iter().any(|gone| self.peers.route(gone.node, replica.shard).is_some())
    }

    /// `from` takes part no more, but doesn't know it: it asks for votes, or whether it is a member.
    pub(crate) fn tell_removed(&mut self, slot: usize, addr: CoreAddr, from: ReplicaId) {
        let replica = &self.replicas[slot];
        let descriptor = &replica.descriptor;
        if descriptor.has_removed(from) {
            let descriptor = Box::new(descriptor.clone());
            let (shard, me) = (replica.shard, replica.id);
            let order = PeerMessage::Placement { shard, from: me, to: from, descriptor };
            self.outbox.sends.push((addr, order));
        }
    }

    /// Destroys the replica: it says nothing more, its callers are answered, and once its tombstone is durable
    /// its files go.
    pub(crate) fn leave(&mut self, slot: usize) {
        self.leaders.remove(&slot);
        self.unled.remove(&slot);
        self.forget_quiet(slot);
        self.end_outgoing(slot);
        self.drop_incoming(slot);
        self.forget_flush(slot);
        let replica = &mut self.replicas[slot];
        assert!(replica.install.is_none(), "{}: leaves while a snapshot is installed", replica.shard);
        replica.stage = Stage::Leaving;
        let lowest_replica = replica.id.get() + 1;
        let record = LogWrite::Tombstone { shard: replica.shard, lowest_replica };
        replica.work.own_records.clear();
        replica.write_own(record, Some(OnDurable::Leave));
        let refused = || Answer::Refused(Refusal::NotLeader { leader: None });
        let mut answers = Vec::new();
        answers.extend(replica.work.held.drain(..).map(|held| (held.id, refused())));
        answers.extend(replica.work.reads.drain().map(|read| (read.id, refused())));
        answers.extend(replica.work.handing_over.take().map(|(id, _)| (id, refused())));
        answers.extend(replica.work.asked_change.take().map(|asked| (asked.id, refused())));
        while let Some((id, _)) = replica.work.proposals.skip(u64::MAX) {
            answers.push((id, Answer::Unknown(UnknownReason::LeadershipLost)));
        }
        replica.work.held_bytes = 0;
        for (id, answer) in answers {
            self.callers.answer(id, answer, &mut self.outbox.answers);
        }
        self.touch(slot);
    }

    /// The tombstone is durable.
    pub(crate) fn finish_leave(&mut self, slot: usize) {
        let replica = &mut self.replicas[slot];
        let (shard, lowest) = (replica.shard, replica.id.get() + 1);
        let generation = std::mem::take(&mut replica.base.generation);
        self.slots.remove(&shard);
        self.forbid(shard, lowest);
        if generation > 0 {
            self.push_remove(slot, generation);
        }
        self.uncount_log(slot);
        self.replicas[slot].machine.destroy();
        self.replicas[slot].machine = Box::new(crate::memory_store::MemoryStore::new());
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_come_back_as_written() {
        let rows = [(4, 40), (5, 50)].map(|(id, node)| (ReplicaId::new(id).expect("not 0"), NodeId(node)));
        let bytes = encode_newcomers(&rows);
        assert_eq!(decode_newcomers(&bytes).as_deref(), Some(&rows[..]));
        assert_eq!(decode_newcomers(&bytes[1..]), None);
        assert_eq!(decode_newcomers(&[0; 16]), None, "replica 0");
    }
}
