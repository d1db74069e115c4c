//! What one turn of a core's replicas wants done, as plain data in buffers that the worker reuses.

use crate::descriptor::Descriptor;
use crate::ids::{CoreAddr, NodeId, ShardId};
use crate::peer::{PeerBatch, PeerMessage};
use crate::request::{Answer, RequestId};
use crate::state_machine::{Dump, Job};
use bytes::Bytes;
use floe_raft::{Entry, HardState, Mark, Nonsense, ReplicaId, WriteId};
use std::collections::BTreeMap;
use std::fmt;

/// A record for the core's WAL; all of one turn, in this order, form one group commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogWrite {
    /// Replaces the durable log's suffix from the first entry on.
    Entries {
        /// The shard.
        shard: ShardId,
        /// Its replica here.
        replica: ReplicaId,
        /// Contiguous.
        entries: Vec<Entry>,
    },
    /// Term, vote and a commit hint.
    HardState {
        /// The shard.
        shard: ShardId,
        /// Its replica here.
        replica: ReplicaId,
        /// The state.
        state: HardState,
    },
    /// A dump at `flushed` is durable: the log up to it is no longer needed.
    TruncatePrefix {
        /// The shard.
        shard: ShardId,
        /// Its replica here.
        replica: ReplicaId,
        /// Where the dump stands.
        flushed: Mark,
        /// The dump's number.
        generation: u64,
    },
    /// A transferred dump, already durable as `generation`, takes the place of the state: the commit
    /// point of a transfer.
    SnapshotInstall {
        /// The shard.
        shard: ShardId,
        /// Its replica here.
        replica: ReplicaId,
        /// Where the dump stands.
        mark: Mark,
        /// The dump's number here.
        generation: u64,
        /// Encoded descriptor in force there.
        descriptor: Bytes,
        /// Whether entries after `mark` stay.
        keep_suffix: bool,
    },
    /// The replica here is destroyed for good, with its log: only higher ones may come.
    Tombstone {
        /// The shard.
        shard: ShardId,
        /// The lowest replica that may come; above the one destroyed.
        lowest_replica: u64,
    },
    /// The complete live state of one shard: bootstrap, or copied forward to free old segments.
    Reset(Box<ShardState>),
}

/// Everything durable of one shard, apart from the dump that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardState {
    /// The shard.
    pub shard: ShardId,
    /// Its replica here.
    pub replica: ReplicaId,
    /// Raised each time the shard moves to another stream; the highest wins.
    pub home_epoch: u64,
    /// Encoded descriptor as of `flushed`.
    pub descriptor: Bytes,
    /// Term, vote, commit hint.
    pub hard_state: HardState,
    /// The log starts after it; the dump `generation` holds the state up to it.
    pub flushed: Mark,
    /// The dump's number; 0 = the state at `flushed` is empty.
    pub generation: u64,
    /// The log after `flushed`.
    pub entries: Vec<Entry>,
    /// Lowest ReplicaId still accepted for this shard on this node.
    pub lowest_replica: u64,
}

/// Names a write that a replica waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersistToken {
    /// The shard.
    pub shard: ShardId,
    /// Its replica's own number.
    pub write: WriteId,
}

/// A picture of a state machine to be saved as a file, in the background.
pub struct DumpSave {
    /// The shard.
    pub shard: ShardId,
    /// Its replica here.
    pub replica: ReplicaId,
    /// The dump's number: with shard and replica it names the file.
    pub generation: u64,
    /// The whole file's content, checksums included.
    pub data: Box<dyn Dump>,
    /// It is as long as a shard's state, though a machine with files made it: nothing else should wait for it.
    pub is_long: bool,
}

/// A part of a saved dump to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpRead {
    /// The caller's number for it.
    pub token: u64,
    /// The shard.
    pub shard: ShardId,
    /// Its replica here.
    pub replica: ReplicaId,
    /// The dump's number.
    pub generation: u64,
    /// From where, a multiple of 4096.
    pub offset: u64,
    /// How much.
    pub len: u32,
}

/// A dump file that nothing names any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpRemove {
    /// The shard.
    pub shard: ShardId,
    /// Its replica here.
    pub replica: ReplicaId,
    /// The dump's number.
    pub generation: u64,
}

/// What is wrong with a message that no working node sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// No working replica says this.
    Nonsense(Nonsense),
    /// It speaks for a replica that the shard's descriptor places on this other node.
    ForeignReplica {
        /// Where the replica is.
        node: NodeId,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nonsense(nonsense) => nonsense.fmt(f),
            Self::ForeignReplica { node } => write!(f, "it speaks for a replica that is on node {node}"),
        }
    }
}

/// A peer's message that no working replica sends; it changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedMessage {
    /// Who sent it.
    pub peer: CoreAddr,
    /// The shard.
    pub shard: ShardId,
    /// The replica in whose name.
    pub from: ReplicaId,
    /// What is wrong with it.
    pub why: Fault,
}

/// One turn's output. The worker, in this order: appends `writes` to the WAL; remembers `persists` and
/// `sends_after` until everything appended so far is durable; sends `sends`; does the rest.
#[derive(Default)]
pub struct Output {
    /// For the WAL.
    pub writes: Vec<LogWrite>,
    /// To report with [`crate::MultiRaft::persisted`] once `writes` are durable.
    pub persists: Vec<PersistToken>,
    /// To send now.
    pub sends: BTreeMap<CoreAddr, PeerBatch>,
    /// To send once everything appended to the WAL so far is durable.
    pub sends_after: Vec<(CoreAddr, PeerMessage)>,
    /// For the callers.
    pub answers: Vec<(RequestId, Answer)>,
    /// Shards whose leader, as this core sees it, is another now, or unknown.
    pub leaders: Vec<(ShardId, Option<NodeId>)>,
    /// To save; report with [`crate::MultiRaft::dump_saved`].
    pub dump_saves: Vec<DumpSave>,
    /// To read; report with [`crate::MultiRaft::dump_read`].
    pub dump_reads: Vec<DumpRead>,
    /// To run in the background; report each with [`crate::MultiRaft::job_done`].
    pub jobs: Vec<(u64, Job)>,
    /// The same, for parts of dumps on their way into machines' files: they may take long, and no read should wait for them.
    pub stagings: Vec<(u64, Job)>,
    /// To remove; no report.
    pub dump_removes: Vec<DumpRemove>,
    /// Replicas that an order of their leaders asks for: create each with [`crate::MultiRaft::create`].
    pub creates: Vec<Descriptor>,
    /// Shards that had a turn: what may be read of them without the core ([`crate::MultiRaft::readable`])
    /// may be another now. To be looked at before anything of this output leaves.
    pub turned: Vec<ShardId>,
    /// To be told to an operator: a sample, [`Stats::messages_refused`](crate::status::Stats) counts all.
    pub refused: Vec<RefusedMessage>,
}
