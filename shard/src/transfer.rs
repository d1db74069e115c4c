//! Moving a dump from a leader to a follower whose next entry is no longer in the log.
//!
//! ```text
//! leader                                    follower
//!   DumpOffer {generation, mark, len}  ->     takes it if it has a slot free
//!                                      <-     DumpPull {offset, len}, a few in flight
//!   reads the file, DumpChunk          ->     takes the parts in: a machine with files of its own puts each into
//!                                             them, in the background; for another one they are put together
//!                                      <-     DumpPull {offset: 0, len: 0}: still at it (each beat)
//!                                             checks the whole, saves it, or the names of the files, under a
//!                                             number of its own
//!                                             InstallSnapshot into its own Raft, restore,
//!                                             SnapshotInstall record durable: the commit point
//!                                      <-     DumpPull {offset: len, len: 0}: I have it
//!   report_snapshot(delivered)
//! ```
//! The log is held from the dump's mark on and the file is kept while a follower is being fed. Either side gives
//! up after [`PATIENCE`] election timeouts of silence; the leader's Raft then asks again. An empty
//! chunk says that the dump is gone.
//!
//! Bounds: one incoming transfer per shard and [`INCOMING_MAX`] per core. For a machine with files a few parts of each
//! lie in memory. One without has its whole state there, and the dump beside it until it is swapped in: a buffer has
//! the address space that the offer claims, or the offer is turned down; its memory grows with what arrives.

use crate::dump_file::{DumpHead, DumpReader};
use crate::multi_raft::MultiRaft;
use crate::replica::Replica;
use crate::state_machine::Stage;
use bytes::Bytes;
use floe_raft::{Index, Mark, Nanos, ReplicaId, Term, WriteId};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;

/// Silence, in election timeouts, after which a transfer is given up.
const PATIENCE: u64 = 4;
/// Incoming transfers of one core.
pub(crate) const INCOMING_MAX: usize = 2;

/// A dump on its way to a follower.
pub(crate) struct Outgoing {
    pub(crate) to: ReplicaId,
    pub(crate) stage: OutStage,
    /// The dump is no longer named: remove it when the follower has it.
    pub(crate) remove_after: bool,
}

pub(crate) enum OutStage {
    /// There is no dump that reaches the log: one is being made.
    AwaitsFlush,
    /// The follower knows of it.
    Offered { generation: u64, mark: Mark, len: u64, heard_at: Nanos },
}

impl Replica {
    /// Whether a follower waits for a dump to be made.
    pub(crate) fn awaits_dump(&self) -> bool {
        self.work.outgoing.iter().any(|outgoing| matches!(outgoing.stage, OutStage::AwaitsFlush))
    }
}

impl Outgoing {
    pub(crate) fn feeds_from(&self, wanted: u64) -> bool {
        matches!(self.stage, OutStage::Offered { generation, .. } if generation == wanted)
    }

    /// The log must stay from here on.
    pub(crate) fn holds_from(&self) -> Option<Index> {
        match self.stage {
            OutStage::Offered { mark, .. } => Some(mark.index),
            OutStage::AwaitsFlush => None,
        }
    }

    fn is_silent_since(&self, before: Nanos) -> bool {
        matches!(self.stage, OutStage::Offered { heard_at, .. } if heard_at < before)
    }
}

/// A part of a dump being read for a follower.
pub(crate) struct ReadOfDump {
    pub(crate) slot: usize,
    pub(crate) to: ReplicaId,
    pub(crate) generation: u64,
    pub(crate) offset: u64,
}

/// A dump on its way from a leader.
pub(crate) struct Incoming {
    pub(crate) from: ReplicaId,
    pub(crate) term: Term,
    /// The leader's number for it.
    pub(crate) generation: u64,
    pub(crate) mark: Mark,
    pub(crate) len: u64,
    pub(crate) stage: InStage,
}

pub(crate) enum InStage {
    /// Parts are being asked for, up to `pulled`; those that are ahead of their turn wait in `ahead`.
    Pulling {
        reader: Box<DumpReader>,
        taking: Taking,
        ahead: BTreeMap<u64, Bytes>,
        pulled: u64,
        heard_at: Nanos,
    },
    /// It is whole and right, and being saved.
    Saving(Arrived),
    /// It is saved, and Raft has been told.
    Staged(Arrived),
}

/// Where the parts of a dump go.
pub(crate) enum Taking {
    /// All together, the file as it came: for a machine without files.
    Whole(Vec<u8>),
    /// Into the machine's own files.
    Files(IntoFiles),
}

/// Parts of a dump's body on their way into a machine's files.
pub(crate) struct IntoFiles {
    pub(crate) stage: Box<dyn Stage>,
    /// Parts whose turn has come, and where each ends in the dump's file.
    pub(crate) waiting: VecDeque<(u64, Bytes)>,
    /// The job that is under way, and where its part ends.
    pub(crate) job: Option<(u64, u64)>,
    /// Up to where parts were taken in.
    pub(crate) taken: u64,
}

/// A dump that is whole and right.
#[derive(Clone)]
pub(crate) struct Arrived {
    pub(crate) saved_as: u64,
    pub(crate) head: Box<DumpHead>,
    /// What the machine is to restore.
    pub(crate) body: Bytes,
    /// Length of what is saved, if that is good for a follower, too.
    pub(crate) dump_len: Option<NonZeroU64>,
}

/// A state that is swapped in and whose record is on its way to the disk.
pub(crate) struct Install {
    pub(crate) write: WriteId,
    pub(crate) mark: Mark,
    pub(crate) saved_as: u64,
    pub(crate) dump_len: Option<NonZeroU64>,
    pub(crate) descriptor: Bytes,
    /// Who is to be told, and the leader's number for the dump.
    pub(crate) from: ReplicaId,
    pub(crate) generation: u64,
    pub(crate) len: u64,
}

impl Taking {
    /// Whether what is here already keeps the disk busy.
    fn is_busy(&self) -> bool {
        matches!(self, Self::Files(IntoFiles { job: Some(_), .. }))
    }

    /// Up to where the dump's file takes no memory that a part needs any more, if so much was read of it.
    pub(crate) fn done_to(&self, read: u64) -> u64 {
        match self {
            Self::Files(files) if files.job.is_some() || !files.waiting.is_empty() => files.taken,
            _ => read,
        }
    }
}

impl MultiRaft {
    /// Once per beat: gives up what is silent, keeps alive what takes long.
    pub(crate) fn look_after_transfers(&mut self) {
        let silence = PATIENCE * self.config.raft.election_timeout_max_ns;
        let before = self.now.saturating_sub(silence);
        for slot in std::mem::take(&mut self.watched) {
            let is_silent = |outgoing: &Outgoing| outgoing.is_silent_since(before);
            while let Some(at) = self.replicas[slot].work.outgoing.iter().position(is_silent) {
                self.end_outgoing_at(slot, at, Some(false));
            }
            self.look_after_incoming(slot, before);
            self.check_hand_over(slot);
            self.check_change(slot);
            let replica = &self.replicas[slot];
            if !replica.work.outgoing.is_empty()
                || replica.incoming.is_some()
                || replica.work.handing_over.is_some()
                || replica.work.asked_change.is_some()
            {
                self.watched.insert(slot);
            }
        }
    }

    fn look_after_incoming(&mut self, slot: usize, before: Nanos) {
        let Some(incoming) = &self.replicas[slot].incoming else { return };
        let (from, generation) = (incoming.from, incoming.generation);
        match &incoming.stage {
            InStage::Pulling { heard_at, taking, .. } if !taking.is_busy() => {
                if *heard_at < before {
                    self.drop_incoming(slot);
                }
            }
            _ => self.send_pull(slot, from, generation, 0, 0),
        }
    }

    /// The connection to `peer` is gone, and with it what was under way.
    pub(crate) fn end_transfers_with(&mut self, slot: usize, peer: ReplicaId) {
        let replica = &self.replicas[slot];
        if let Some(at) = replica.work.outgoing.iter().position(|outgoing| outgoing.to == peer) {
            self.end_outgoing_at(slot, at, Some(false));
        }
        let replica = &self.replicas[slot];
        let is_lost = replica.incoming.as_ref().is_some_and(|incoming| {
            incoming.from == peer && matches!(incoming.stage, InStage::Pulling { .. })
        });
        if is_lost {
            self.drop_incoming(slot);
        }
    }
}
