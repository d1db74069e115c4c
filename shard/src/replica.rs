//! One shard's copy on this core: its Raft group, its state machine, and what ties the two together.
//!
//! Invariants: `base.flushed <= applied`, by index; Raft's log in memory begins at or before
//! `base.flushed`, so that a [`crate::LogWrite::Reset`] can always be made; the machine's state is the
//! one at `applied`, except in [`Stage::Broken`].

use crate::command::split_head;
use crate::descriptor::{Descriptor, KeyRange};
use crate::flush::Flush;
use crate::ids::{CoreAddr, NodeId, ShardId};
use crate::output::{LogWrite, ShardState};
use crate::peers::Peers;
use crate::request::{Answer, Refusal, RequestId};
use crate::shard_map::is_newer;
use crate::shared::Shared;
use crate::state_machine::{CommandResult, StateMachine};
use crate::transfer::{Incoming, Install};
use crate::work::Work;
use bytes::Bytes;
use floe_raft::{Entry, EntryKind, Index, Lazy, Mark, Nanos, Planted, Raft, ReplicaId, WriteId, is_planted};
use std::num::NonZeroU64;
use std::sync::Arc;

/// Write ids with this bit are the shard layer's own; Raft's never get there.
const OWN_WRITE: u64 = 1 << 63;

/// Campaigns ahead of time, one per beat: enough for the others to come up, few enough to end within an
/// election timeout.
const HEAD_STARTS: u8 = 5;

/// Version byte of entries of kind `Admin`: an encoded descriptor.
pub(crate) const ADMIN_VERSION: u8 = 1;

/// Whether the replica takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its first record is not durable yet: it hears and says nothing.
    Booting,
    /// It takes part.
    Running,
    /// It was removed from the shard: it is gone once its tombstone is durable. It hears and says nothing.
    Leaving,
    /// Its state can't be used any more: [`Work::broken`] says why. It hears and says nothing until a restart,
    /// which recovers what was durable.
    Broken,
}

/// What is durable besides Raft's own writes.
pub(crate) struct Base {
    pub(crate) home_epoch: u64,
    /// The dump `generation` holds the state up to here.
    pub(crate) flushed: Mark,
    /// 0 = no dump: the state at `flushed` is empty.
    pub(crate) generation: u64,
    /// Length of that dump; `None` if a former boot saved it, or it only names files of this node.
    pub(crate) dump_len: Option<NonZeroU64>,
    /// Encoded descriptor as of `flushed`; `None` = the one in force.
    pub(crate) descriptor: Option<Box<Bytes>>,
    pub(crate) lowest_replica: u64,
}

/// What happens when an own write is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDurable {
    /// The replica begins to take part.
    Boot,
    /// The dump of this generation is no longer named.
    Remove(u64),
    /// The replica is gone.
    Leave,
}

/// A command whose turn hasn't come: its replica has put enough into this turn.
pub(crate) struct Held {
    pub(crate) id: RequestId,
    pub(crate) command: Bytes,
}

pub(crate) struct Replica {
    pub(crate) shard: ShardId,
    pub(crate) id: ReplicaId,
    pub(crate) raft: Raft,
    pub(crate) machine: Box<dyn StateMachine>,
    /// In force at `applied`.
    pub(crate) descriptor: Descriptor,
    /// Where the machine's state stands.
    pub(crate) applied: Mark,
    pub(crate) stage: Stage,
    pub(crate) base: Base,
    /// Above every generation that a record names. A file that no record names is written over.
    pub(crate) generation_next: u64,
    own_write_next: u64,
    pub(crate) work: Lazy<Work>,
    /// Where the other replicas can be reached; those that can't be are not in it.
    pub(crate) routes: Arc<[(ReplicaId, CoreAddr)]>,
    /// Index of the membership that they were made for.
    pub(crate) routes_since: Index,
    /// When something was last written or read; `None` = not since this replica leads. See `quiescence.rs`.
    pub(crate) active_at: Option<Nanos>,
    /// While it is quiet, the core whose leader it relies on (its own, if it leads).
    pub(crate) quiet_on: Option<CoreAddr>,
    /// How often it may still campaign ahead of time, so that first leaders spread; see `heartbeat.rs`.
    pub(crate) head_starts: u8,
    /// Up to here it is committed and handed out by Raft. Beyond `applied` only while a command waits for the disk.
    pub(crate) apply_to: Index,
    /// The entry after `applied` waits for a job.
    pub(crate) fetching: bool,
    pub(crate) flush: Flush,
    /// What the core's budget counts for its log; see `log_budget.rs`.
    pub(crate) log_bytes_counted: usize,
    pub(crate) incoming: Option<Box<Incoming>>,
    pub(crate) install: Option<Box<Install>>,
}

/// What came of one entry, before it is known whether somebody waits for it.
pub(crate) enum Applied {
    Command(CommandResult),
    WrongEpoch,
    /// Entries without a result.
    Nothing,
    /// It isn't applied: the machine needs something from the disk first.
    Pending,
}

impl Replica {
    /// `state.entries` are Raft's already.
    pub(crate) fn new(
        state: &ShardState,
        descriptor: Descriptor,
        raft: Raft,
        machine: Box<dyn StateMachine>,
    ) -> Self {
        let lowest_voter = raft.membership().voters.first().copied();
        Self {
            shard: state.shard,
            id: state.replica,
            head_starts: if lowest_voter == Some(state.replica) { HEAD_STARTS } else { 0 },
            applied: state.flushed,
            base: Base {
                home_epoch: state.home_epoch,
                flushed: state.flushed,
                generation: state.generation,
                dump_len: None,
                descriptor: None,
                lowest_replica: state.lowest_replica,
            },
            generation_next: state.generation + 1,
            raft,
            machine,
            descriptor,
            stage: Stage::Running,
            own_write_next: 0,
            work: Lazy::default(),
            routes: Arc::default(),
            routes_since: 0,
            active_at: None,
            quiet_on: None,
            apply_to: state.flushed.index,
            fetching: false,
            flush: Flush::default(),
            log_bytes_counted: 0,
            incoming: None,
            install: None,
        }
    }

    pub(crate) fn break_down(&mut self, why: String) {
        self.stage = Stage::Broken;
        self.work.broken = why;
    }

    pub(crate) fn takes_part(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Everything durable of the shard, as of now, to be written as one record.
    pub(crate) fn state(&self) -> ShardState {
        assert!(self.install.is_none(), "{}: no complete state while a snapshot is installed", self.shard);
        let from = self.base.flushed.index + 1;
        let last = self.raft.last_mark().index;
        let entries = self.raft.entries(from, last, usize::MAX);
        assert!(
            entries.len() as u64 == (last + 1).saturating_sub(from),
            "{}: the log in memory lacks some of {from}..={last}",
            self.shard
        );
        ShardState {
            shard: self.shard,
            replica: self.id,
            home_epoch: self.base.home_epoch,
            descriptor: self.base_descriptor(),
            hard_state: self.raft.hard_state(),
            flushed: self.base.flushed,
            generation: self.base.generation,
            entries,
            lowest_replica: self.base.lowest_replica,
        }
    }

    /// Writes a record of the shard layer's own with the next turn.
    pub(crate) fn write_own(&mut self, record: LogWrite, on_durable: Option<OnDurable>) {
        self.work.own_records.push(record);
        if let Some(what) = on_durable {
            self.work.own_writes.push_back((WriteId(OWN_WRITE | self.own_write_next), what));
            self.own_write_next += 1;
        }
    }

    /// Whether `write` names an own write and not one of Raft's.
    pub(crate) fn is_own(write: WriteId) -> bool {
        write.0 & OWN_WRITE != 0
    }

    pub(crate) fn take_generation(&mut self) -> u64 {
        self.generation_next += 1;
        self.generation_next - 1
    }

    /// The members, and where they live: those of the applied descriptor, and those whom the log brings.
    fn members(&self) -> impl Iterator<Item = (ReplicaId, NodeId)> {
        let applied = self.descriptor.replicas.iter().map(|place| (place.replica, place.node));
        applied.chain(self.newcomers())
    }

    pub(crate) fn has_member_on(&self, node: NodeId) -> bool {
        self.members().any(|(_, home)| home == node)
    }

    /// Members, or cores that can be reached, have changed.
    pub(crate) fn refresh_routes(&mut self, peers: &Peers, shared: &mut Shared) {
        let (me, shard) = (self.id, self.shard);
        let others = self.members().filter(|(replica, _)| *replica != me);
        let routes = others.filter_map(|(replica, node)| Some((replica, peers.route(node, shard)?)));
        let routes = routes.collect();
        self.routes = routes;
        self.routes_since = self.raft.membership_index();
        shared.share(self);
    }

    /// A message of `replica` came from there. One that isn't in the descriptor may lead all the same: the entry that
    /// makes it a member may not have been applied here yet.
    pub(crate) fn learn_route(&mut self, replica: ReplicaId, addr: CoreAddr) {
        const STRANGERS_MAX: usize = 16;
        if replica != self.id
            && self.route(replica).is_none()
            && self.routes.len() < self.descriptor.replicas.len() + STRANGERS_MAX
        {
            self.routes = self.routes.iter().copied().chain([(replica, addr)]).collect();
        }
    }

    /// Where `replica` can be reached, if it can.
    pub(crate) fn route(&self, replica: ReplicaId) -> Option<CoreAddr> {
        self.routes.iter().find(|(id, _)| *id == replica).map(|&(_, addr)| addr)
    }

    /// Whether, with this replica, a majority of the voters can be reached.
    pub(crate) fn reaches_quorum(&self) -> bool {
        let voters = &self.raft.membership().voters;
        let reached = voters.iter().filter(|&&id| id == self.id || self.route(id).is_some()).count();
        reached > voters.len() / 2
    }

    /// Applies one committed entry. In this order: range epoch, then the machine's own range check,
    /// conditions and effects.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Applied {
        assert!(
            entry.mark.index == self.applied.index + 1,
            "{}: {} can't be applied after {}",
            self.shard,
            entry.mark,
            self.applied
        );
        let command = (entry.kind == EntryKind::Command).then(|| self.apply_command(entry));
        if matches!(command, Some(Applied::Pending)) {
            return Applied::Pending;
        }
        self.applied = entry.mark;
        self.flush.unflushed_bytes += entry.size();
        if let Some(applied) = command {
            return applied;
        }
        match entry.kind {
            EntryKind::Admin => {
                self.apply_admin(entry);
                Applied::Nothing
            }
            EntryKind::Noop | EntryKind::Command => Applied::Nothing,
            EntryKind::Membership => {
                self.apply_membership(entry);
                Applied::Nothing
            }
        }
    }

    fn apply_command(&mut self, entry: &Entry) -> Applied {
        match split_head(&entry.data) {
            None => Applied::Command(CommandResult::Malformed),
            Some((epoch, _)) if epoch != self.descriptor.epoch.range => Applied::WrongEpoch,
            Some((_, payload)) => {
                let anywhere = is_planted(Planted::RangeNotChecked).then(KeyRange::all);
                let range = anywhere.as_ref().unwrap_or(&self.descriptor.range);
                match self.machine.apply(entry.mark, payload, range) {
                    CommandResult::Pending => Applied::Pending,
                    result => Applied::Command(result),
                }
            }
        }
    }

    /// A newer descriptor of this shard with the same members takes the place of the one in force.
    fn apply_admin(&mut self, entry: &Entry) {
        let Ok(descriptor) = Descriptor::decode(&entry.data) else { return };
        if descriptor.shard == self.shard
            && is_newer(descriptor.epoch, self.descriptor.epoch)
            && descriptor.replicas == self.descriptor.replicas
        {
            self.change_descriptor(descriptor);
        }
    }

    /// Another descriptor is in force; the base keeps its own.
    pub(crate) fn change_descriptor(&mut self, next: Descriptor) {
        let before = std::mem::replace(&mut self.descriptor, next);
        self.base.descriptor.get_or_insert_with(|| Box::new(before.encode()));
    }

    /// The encoded descriptor as of the new base.
    pub(crate) fn set_base_descriptor(&mut self, flushed: Bytes) {
        self.base.descriptor = (flushed != self.descriptor.encode()).then(|| Box::new(flushed));
    }

    fn base_descriptor(&self) -> Bytes {
        self.base.descriptor.as_deref().cloned().unwrap_or_else(|| self.descriptor.encode())
    }

    /// The answer for whoever proposed the entry at `applied`.
    pub(crate) fn answer_for(&self, applied: &Applied) -> Answer {
        match applied {
            Applied::Command(CommandResult::Written) => Answer::Written { version: self.applied.index },
            Applied::Command(CommandResult::ConditionFailed(condition)) => {
                Answer::ConditionFailed { condition: *condition }
            }
            Applied::Command(CommandResult::OutOfRange) => Answer::Refused(self.out_of_range()),
            Applied::Command(CommandResult::Malformed) => Answer::Refused(Refusal::BadCommand {
                reason: "not a command of this shard's state machine".into(),
            }),
            Applied::Command(CommandResult::Pending) | Applied::Pending => {
                panic!("{}: nobody is answered before the command is applied", self.shard)
            }
            Applied::WrongEpoch => Answer::Refused(self.wrong_epoch()),
            Applied::Nothing => Answer::Done,
        }
    }

    pub(crate) fn wrong_epoch(&self) -> Refusal {
        Refusal::WrongEpoch { descriptor: Box::new(self.descriptor.clone()) }
    }

    pub(crate) fn out_of_range(&self) -> Refusal {
        Refusal::OutOfRange { descriptor: Box::new(self.descriptor.clone()) }
    }

    /// Who leads, as a node.
    pub(crate) fn not_leader(&self, leader: Option<ReplicaId>) -> Refusal {
        Refusal::NotLeader { leader: leader.and_then(|id| self.descriptor.node_of(id)) }
    }
}
