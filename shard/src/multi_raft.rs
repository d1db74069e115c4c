//! [`MultiRaft`]: every replica of one core, and what comes in from outside. What goes out is in
//! `turn.rs`.
//!
//! Invariant: whatever may give a replica something to do also puts its slot into the ready queue and
//! arms its timer ([`MultiRaft::touch`]); [`MultiRaft::collect`] looks at nothing else.

use crate::callers::Callers;
use crate::config::ShardConfig;
use crate::descriptor::Descriptor;
use crate::elections::Elections;
use crate::ids::{CoreAddr, NodeId, ShardId};
use crate::jobs::Jobs;
use crate::log_budget::LogBudget;
use crate::members::{FOUNDED_AT, MEMBERSHIP_ASKS};
use crate::output::{DumpRead, DumpRemove, LogWrite, PersistToken, RefusedMessage, ShardState};
use crate::peer::PeerMessage;
use crate::peers::Peers;
use crate::quiescence::Quiet;
use crate::ready_queue::ReadyQueue;
use crate::replica::{OnDurable, Replica, Stage};
use crate::request::{Answer, BusyReason, RequestId, UnknownReason};
use crate::shared::Shared;
use crate::state_machine::{Job, StateMachine};
use crate::status::Stats;
use crate::timers::Timers;
use crate::transfer::ReadOfDump;
use floe_raft::{HardState, Index, Nanos, Raft, Ready, ReplicaId, Restored, WriteId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// All replicas of one core. Every method is a step of a pure state machine; `now` is monotonic and never goes
/// back (an older one counts as the newest seen).
pub struct MultiRaft {
    pub(crate) me: CoreAddr,
    pub(crate) config: ShardConfig,
    /// `config.raft`, for all replicas to share.
    raft_config: Arc<floe_raft::Config>,
    pub(crate) boot_epoch: u64,
    seed: u64,
    pub(crate) now: Nanos,
    pub(crate) slots: BTreeMap<ShardId, usize>,
    #[expect(clippy::vec_box, reason = "a vector grows by its half, and replicas are large")]
    pub(crate) replicas: Vec<Box<Replica>>,
    /// Slots of replicas that are gone, for the next ones.
    pub(crate) free: Vec<usize>,
    /// Of shards without a replica here that had one: the lowest replica that may still come.
    pub(crate) lowest: BTreeMap<ShardId, u64>,
    pub(crate) queue: ReadyQueue,
    /// Of entries, in this turn.
    pub(crate) applied_bytes: usize,
    pub(crate) timers: Timers,
    pub(crate) elections: Elections,
    pub(crate) peers: Peers,
    pub(crate) shared: Shared,
    /// The context of the next question for a read index. No two replicas use the same, nor do two boots.
    pub(crate) read_context_next: u64,
    pub(crate) callers: Callers,
    pub(crate) quiet: Quiet,
    /// Slots whose replica leads and isn't quiet.
    pub(crate) leaders: BTreeSet<usize>,
    /// Slots whose replica has no vote and knows no leader, and how often it still asks the others whether it is
    /// a member at all: see [`MultiRaft::ask_members`].
    pub(crate) unled: BTreeMap<usize, u8>,
    /// When the next beat is due.
    pub(crate) beat_at: Nanos,
    /// A beat is due with the next turn.
    pub(crate) beat_owed: bool,
    /// Slots with a dump on its way out or in, or a leadership on its way out: looked after at each beat.
    pub(crate) watched: BTreeSet<usize>,
    /// Slots that want to be dumped.
    pub(crate) flush_queue: VecDeque<usize>,
    pub(crate) dumps_running: usize,
    /// Slots of machines with files, of which followers want a whole dump.
    pub(crate) whole_queue: VecDeque<usize>,
    pub(crate) wholes_running: usize,
    pub(crate) dump_reads: BTreeMap<u64, ReadOfDump>,
    pub(crate) dump_read_next: u64,
    pub(crate) jobs: Jobs,
    /// Incoming transfers.
    pub(crate) incoming: usize,
    pub(crate) outbox: Outbox,
    pub(crate) refuses_proposals: Option<BusyReason>,
    pub(crate) log_budget: LogBudget,
    /// What the replicas were last told of whether there is room for commands.
    told_full: bool,
    /// The log's disk doesn't answer: see [`MultiRaft::set_wedged`].
    pub(crate) wedged: bool,
    /// How long replicas may promise leaders not to help elect anyone else; durable.
    promise_allowed_ns: Nanos,
    /// How long those of an earlier boot may have promised.
    promise_owed_ns: Nanos,
    pub(crate) ready: Ready,
    pub(crate) stats: Stats,
}

/// What came up between two turns.
#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) sends: Vec<(CoreAddr, PeerMessage)>,
    pub(crate) answers: Vec<(RequestId, Answer)>,
    pub(crate) dump_saves: Vec<crate::output::DumpSave>,
    pub(crate) dump_reads: Vec<DumpRead>,
    pub(crate) dump_removes: Vec<DumpRemove>,
    pub(crate) jobs: Vec<(u64, Job)>,
    pub(crate) stagings: Vec<(u64, Job)>,
    pub(crate) creates: Vec<Descriptor>,
    pub(crate) refused: Vec<RefusedMessage>,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.sends.is_empty()
            && self.answers.is_empty()
            && self.dump_saves.is_empty()
            && self.dump_reads.is_empty()
            && self.dump_removes.is_empty()
            && self.jobs.is_empty()
            && self.stagings.is_empty()
            && self.creates.is_empty()
            && self.refused.is_empty()
    }
}

impl MultiRaft {
    /// A core without replicas. `boot_epoch` is higher than that of every earlier boot of this node;
    /// `seed` feeds the randomized election timeouts.
    ///
    /// # Panics
    /// If `config` isn't valid or `me` is no core of this node.
    pub fn new(me: CoreAddr, config: ShardConfig, boot_epoch: u64, seed: u64) -> Self {
        if let Err(error) = config.validate() {
            panic!("{me}: {error}");
        }
        Self {
            me,
            peers: Peers::new(me, config.cores),
            shared: Shared::new(),
            read_context_next: boot_epoch << 40,
            raft_config: Arc::new(config.raft.clone()),
            config,
            boot_epoch,
            seed,
            now: 0,
            slots: BTreeMap::new(),
            replicas: Vec::new(),
            free: Vec::new(),
            lowest: BTreeMap::new(),
            queue: ReadyQueue::default(),
            applied_bytes: 0,
            timers: Timers::default(),
            elections: Elections::default(),
            callers: Callers::default(),
            quiet: Quiet::default(),
            leaders: BTreeSet::new(),
            unled: BTreeMap::new(),
            beat_at: 0,
            beat_owed: false,
            watched: BTreeSet::new(),
            flush_queue: VecDeque::new(),
            dumps_running: 0,
            whole_queue: VecDeque::new(),
            wholes_running: 0,
            dump_reads: BTreeMap::new(),
            dump_read_next: 0,
            jobs: Jobs::default(),
            incoming: 0,
            outbox: Outbox::default(),
            refuses_proposals: None,
            log_budget: LogBudget::default(),
            told_full: false,
            wedged: false,
            promise_allowed_ns: 0,
            promise_owed_ns: 0,
            ready: Ready::default(),
            stats: Stats::default(),
        }
    }

    // --- leases

    /// An earlier boot of this node may have promised leaders not to help elect anyone else for so long.
    /// Replicas restored from now on are bound by that, counted from when they are.
    pub fn owe_promises(&mut self, ns: Nanos) {
        self.promise_owed_ns = ns;
    }

    /// Promises of up to so long are durable: the next boot will be told by [`MultiRaft::owe_promises`].
    /// Before this is called none is given, and nobody has a lease by this core's help.
    pub fn allow_promises(&mut self, ns: Nanos) {
        self.promise_allowed_ns = ns;
        self.replicas.iter_mut().for_each(|replica| replica.raft.allow_promises(ns));
    }

    // --- replicas

    /// Creates this node's replica of a new, empty shard. Takes part once its first record is durable.
    ///
    /// # Panics
    /// If the shard is here already, or `descriptor` names no replica on this node.
    pub fn bootstrap(&mut self, now: Nanos, descriptor: Descriptor, machine: Box<dyn StateMachine>) {
        let place = descriptor.replica_on(self.me.node);
        let Some(place) = place else { panic!("{}: {descriptor:?} has no replica here", self.me) };
        let state = ShardState {
            shard: descriptor.shard,
            replica: place.replica,
            home_epoch: 1,
            descriptor: descriptor.encode(),
            hard_state: HardState::default(),
            flushed: FOUNDED_AT,
            generation: 0,
            entries: Vec::new(),
            lowest_replica: place.replica.get(),
        };
        self.add(now, state, descriptor, machine, true, true);
    }

    /// Brings back a replica from what recovery found. `machine` holds the state at `state.flushed`, and
    /// `state.descriptor` is the one in force there: if there is a dump, the one in the dump's head.
    /// With `rehome` its whole state is written first, under the next home epoch.
    ///
    /// # Panics
    /// If the shard is here already, or `state` is not what was once written.
    pub fn restore(
        &mut self,
        now: Nanos,
        mut state: ShardState,
        machine: Box<dyn StateMachine>,
        rehome: bool,
    ) {
        let descriptor = match Descriptor::decode(&state.descriptor) {
            Ok(descriptor) => descriptor,
            Err(error) => panic!("{}: {error}", state.shard),
        };
        state.home_epoch += u64::from(rehome);
        self.add(now, state, descriptor, machine, rehome, false);
    }

    pub(crate) fn add(
        &mut self,
        now: Nanos,
        mut state: ShardState,
        descriptor: Descriptor,
        machine: Box<dyn StateMachine>,
        writes_state: bool,
        is_new: bool,
    ) {
        self.advance_clock(now);
        assert!(
            descriptor.shard == state.shard,
            "{} with the descriptor of {}",
            state.shard,
            descriptor.shard
        );
        let restored = Restored {
            hard_state: state.hard_state,
            snapshot: state.flushed,
            membership: descriptor.membership(),
            entries: std::mem::take(&mut state.entries),
            applied: state.flushed.index,
        };
        let seed = self.seed ^ state.shard.0.rotate_left(17);
        let mut raft = Raft::new(state.replica, Arc::clone(&self.raft_config), restored, self.now, seed);
        raft.set_wedged(self.now, self.wedged);
        raft.allow_promises(self.promise_allowed_ns);
        if !is_new {
            raft.owe_promise(self.now, self.promise_owed_ns);
        }
        raft.set_full(self.is_full());
        raft.set_pressed(self.log_budget.is_pressed());
        let mut replica = Box::new(Replica::new(&state, descriptor, raft, machine));
        replica.refresh_routes(&self.peers, &mut self.shared);
        if writes_state {
            replica.stage = Stage::Booting;
            let record = LogWrite::Reset(Box::new(replica.state()));
            replica.write_own(record, Some(OnDurable::Boot));
        }
        let slot = self.free.pop().unwrap_or(self.replicas.len());
        let before = self.slots.insert(state.shard, slot);
        assert!(before.is_none(), "{}: {} is here already", self.me, state.shard);
        if replica.head_starts > 0 {
            self.elections.add_starter(slot);
        }
        if !is_new && replica.is_unled() {
            self.unled.insert(slot, MEMBERSHIP_ASKS);
        }
        if slot == self.replicas.len() {
            self.replicas.push(replica);
        } else {
            self.replicas[slot] = replica;
        }
        self.touch(slot);
    }

    // --- peers

    /// A node with so many cores is connected. Where its replicas live follows from the core count.
    pub fn peer_up(&mut self, now: Nanos, node: NodeId, cores: u16) {
        self.advance_clock(now);
        self.peers.up(node, cores);
        for slot in 0..self.replicas.len() {
            if self.replicas[slot].has_member_on(node) {
                self.replicas[slot].refresh_routes(&self.peers, &mut self.shared);
            }
        }
    }

    /// The connection to one core of a node is gone. O(shards of this core).
    pub fn peer_down(&mut self, now: Nanos, peer: CoreAddr) {
        self.advance_clock(now);
        for slot in 0..self.replicas.len() {
            let gone = self.replicas[slot].routes.iter().find(|(_, addr)| *addr == peer);
            // A quiet replica has nothing in flight that could be lost.
            if let Some(&(id, _)) = gone.filter(|_| self.replicas[slot].quiet_on.is_none()) {
                self.replicas[slot].raft.report_unreachable(id);
                self.end_transfers_with(slot, id);
                self.touch(slot);
            }
        }
        self.peers.down(peer);
        for replica in &mut self.replicas {
            if replica.routes.iter().any(|(_, addr)| *addr == peer) {
                replica.routes = replica.routes.iter().copied().filter(|(_, addr)| *addr != peer).collect();
                self.shared.share(replica);
            }
        }
    }

    // --- time

    /// Fires everything that is due.
    pub fn tick(&mut self, now: Nanos) {
        self.advance_clock(now);
        if self.now >= self.silence_at() {
            self.wake_orphans();
        }
        while let Some(slot) = self.timers.pop_due(self.now) {
            let replica = &mut self.replicas[slot];
            let deadline = replica.raft.deadline();
            if deadline > self.now {
                self.timers.arm(slot, deadline);
            } else if !replica.raft.is_leader() {
                self.elections.on_due(slot);
            } else if replica.takes_part() {
                replica.raft.tick(self.now);
                self.touch(slot);
            }
        }
        if self.now >= self.beat_at {
            self.beat();
        }
        self.hold_elections();
    }

    /// When [`MultiRaft::tick`] is to be called at the latest.
    pub fn deadline(&self) -> Nanos {
        if self.may_hold_election() {
            return self.now;
        }
        self.timers.next().min(self.beat_at).min(self.silence_at())
    }

    // --- durability

    /// These writes, and everything before them, are durable.
    pub fn persisted(&mut self, tokens: &[PersistToken]) {
        for token in tokens {
            let Some(&slot) = self.slots.get(&token.shard) else { continue };
            if Replica::is_own(token.write) {
                self.own_persisted(slot, token.write);
            } else {
                self.raft_persisted(slot, token.write);
            }
            self.touch(slot);
        }
    }

    fn raft_persisted(&mut self, slot: usize, write: WriteId) {
        let replica = &mut self.replicas[slot];
        replica.raft.persisted(write);
        if replica.install.as_ref().is_some_and(|install| install.write <= write) {
            self.finish_install(slot);
        }
    }

    fn own_persisted(&mut self, slot: usize, write: WriteId) {
        while let Some((_, what)) =
            self.replicas[slot].work.own_writes.pop_front_if(|(waiting, _)| *waiting <= write)
        {
            match what {
                OnDurable::Boot => self.replicas[slot].stage = Stage::Running,
                OnDurable::Remove(generation) => self.remove_dump(slot, generation),
                OnDurable::Leave => self.finish_leave(slot),
            }
        }
    }

    // --- operators and harnesses

    /// While there is a reason, proposals are refused with it, as followers' commands are ([`Raft::set_full`]);
    /// everything else goes on. O(shards of this core) when that changes.
    pub fn refuse_proposals(&mut self, reason: Option<BusyReason>) {
        self.refuses_proposals = reason;
        self.tell_whether_full();
    }

    fn is_full(&self) -> bool {
        self.refuses_proposals.is_some() || self.log_budget.refuses
    }

    /// Tells the replicas, if it has changed.
    pub(crate) fn tell_whether_full(&mut self) {
        let is_full = self.is_full();
        if std::mem::replace(&mut self.told_full, is_full) != is_full {
            self.replicas.iter_mut().for_each(|replica| replica.raft.set_full(is_full));
        }
    }

    /// The core's log can't be made durable for the time being, or can again. While wedged, the core doesn't
    /// beat, its replicas don't campaign, and its leaders step down, except sole voters: others can take over
    /// ([`Raft::set_wedged`]). Their callers aren't left waiting for the disk: what is in the log already is
    /// answered as unknown. O(shards of this core).
    pub fn set_wedged(&mut self, now: Nanos, wedged: bool) {
        self.advance_clock(now);
        self.wedged = wedged;
        for slot in 0..self.replicas.len() {
            let replica = &mut self.replicas[slot];
            replica.raft.set_wedged(self.now, wedged);
            while wedged
                && !replica.raft.is_leader()
                && let Some((id, _)) = replica.work.proposals.skip(Index::MAX)
            {
                let answer = Answer::Unknown(UnknownReason::LeadershipLost);
                self.callers.answer(id, answer, &mut self.outbox.answers);
            }
            self.touch(slot);
        }
    }

    /// Makes the replica here campaign now. It never bypasses leader stickiness.
    pub fn campaign(&mut self, now: Nanos, shard: ShardId) {
        self.advance_clock(now);
        if let Some(&slot) = self.slots.get(&shard)
            && self.replicas[slot].takes_part()
        {
            self.replicas[slot].raft.campaign(self.now);
            self.touch(slot);
        }
    }

    // --- inside

    pub(crate) fn advance_clock(&mut self, now: Nanos) {
        self.now = self.now.max(now);
    }

    /// The replica may have something to do, and its deadline may have moved.
    pub(crate) fn touch(&mut self, slot: usize) {
        self.queue.push(slot);
        let replica = &self.replicas[slot];
        if replica.takes_part() {
            self.timers.arm(slot, replica.raft.deadline());
        }
    }

    /// The slot of this very replica; `None` = it was destroyed.
    pub(crate) fn slot_of(&self, shard: ShardId, replica: ReplicaId) -> Option<usize> {
        self.slots.get(&shard).copied().filter(|&slot| self.replicas[slot].id == replica)
    }

    /// The slot of a replica that takes part.
    pub(crate) fn running(&self, shard: ShardId) -> Option<usize> {
        self.slots.get(&shard).copied().filter(|&slot| self.replicas[slot].takes_part())
    }
}
