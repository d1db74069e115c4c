//! The write-ahead log: one stream of segment files per core, shared by all replicas of that core.
//!
//! The whole durable state of consensus is in it. Both halves are pure state machines: [`Wal`] turns
//! records into writes, [`Recovery`] turns what a crash has left into states. They emit
//! [`DiskCalls`](crate::disk::DiskCalls) and are told the results; time comes in as `now`.
//!
//! # Format
//! All numbers are little-endian; a character of a drawing is a byte. Every checksum is CRC-32C, seeded
//! with where its bytes belong (`layout`).
//! ```text
//! stream directory:  <dir>/<segment id, 16 hex digits>.seg
//!
//! segment:  0        4096     8192
//!           | header | header | frame | frame | ...      | unused |
//!             copy 0   copy 1   block-aligned, sequence +1 each
//!
//! segment header copy (4096 bytes, checksum seeded with its place):
//!    0 | magic 8           | format 4  | block size 4 |
//!   16 | segment bytes 8   | store uuid 16 ...
//!   40 | stream 4 | feature bits 4     | key id 8          |
//!   56 | segment id 8      | boot epoch 8      | first sequence 8 |
//!   80 | oldest needed segment 8 | K 4 | flags 4: 1 = first segment of a boot |
//!   96 | where the log before this boot ends: segment 8 | offset 8 | sequence 8 | link 4 |
//!  124 | zeros ...                                      4092 | CRC 4 |
//!
//! frame (one aligned write; header CRC seeded with salt and offset):
//!    0 | magic 4 | header CRC 4 over 8..72 |
//!    8 | segment id 8 | sequence 8 | durable sequence 8 | boot epoch 8 | oldest needed segment 8 |
//!   48 | body bytes 4 | records 4 | K 4 | flags 4 | previous frame's link 4 | CRC of record CRCs 4 |
//!   72 | record | record | ... | zeros up to the next block |
//!        link = checksum of bytes 8..68
//!
//! record (8-aligned; CRC seeded with salt, frame sequence, offset):
//!    0 | CRC 4 over 4.. | kind 1 | flags 1: 1 = must be understood | 0 2 | length 4 | entries 4 |
//!   16 | shard 8 | replica 8 | index 8 | term 8 |
//!   48 | body by kind, padded to 8 |
//!
//!    1 Entries         index = first, term = last's; body = entries
//!    2 HardState       index = commit, term;         body = vote 8
//!    3 TruncatePrefix  index, term = flushed mark;   body = generation 8
//!    4 SnapshotInstall index, term = its mark;       body = generation 8 | 1 = keep suffix 4 | length 4 | descriptor
//!    5 ShardReset      index, term = flushed mark;   body = reset id 8 | part 4 | 1 = last 4 | generation 8
//!                      | home epoch 8 | term 8 | vote 8 | commit 8 | lowest replica 8 | first index 8
//!                      | length 4 | 0 4 | descriptor | entries
//!    6 ShardTombstone                                body = lowest replica 8
//!    7 CheckpointLease (reserved)
//!    8 Promise                                       body = nanoseconds 8
//!    9 SegmentFooter (reserved)
//!   10 Seal                                          no body
//!
//! entries:  | term 8 | length 4 | kind 1 | version 1 | 0 2 |  once per entry
//!           | payload, padded to 8 |                          once per entry
//! ```
//!
//! # Invariants
//! - Frame q is issued only if q <= contiguous durable + K, and to a segment whose header and name are durable.
//! - The first segment of a boot says where the log of the boots before ended. An old tail is never appended to.
//! - Frames of one boot have contiguous sequences; the next boot starts K beyond the end, so that
//!   a sequence is never reused, not even that of a frame that was lost.
//! - A segment is freed only when a durable frame says that it is no longer needed (`oldest`).
//! - After a failed write nothing is issued or acknowledged any more.
//!
//! # Torn or damaged
//! Decided in `recovery`: at the first bad frame s, any sound later frame that proves s
//! acknowledged (its durable sequence is >= s, or it lies K or more beyond s) makes it
//! corruption; otherwise the log ends before s.

mod bounds;
pub mod frame;
mod layout;
mod ops;
mod pins;
pub mod record;
mod recovered;
mod recovery;
mod replay;
mod scan;
pub mod segment;
mod stats;
mod supply;
mod survey;
#[cfg(test)]
mod tests;
mod writer;

pub use layout::salt;
pub use recovered::{Recovered, RecoveredSegments, RecoveryError};
pub use recovery::Recovery;
pub use stats::{WalFailure, WalStats};
pub use survey::{Finding, ReadOnlyDisk, SegmentSurvey, Survey, survey};
pub use writer::Wal;

use crate::disk::DiskPath;
use bytes::Bytes;
use floe_raft::{Entry, HardState, Mark, Nanos, ReplicaId};
use floe_shard::ShardId;

/// Numbers the frames of a stream over its whole life, from 1; never reused.
pub type FrameSeq = u64;

/// Longest record: one entry of 16 MiB and what surrounds it.
pub const RECORD_BYTES_MAX: usize = 17 << 20;
const _: () = assert!(floe_raft::ENTRY_BYTES_MAX + 4096 < RECORD_BYTES_MAX, "what a peer may send fits");

/// How a stream is written. None of it has to be the same at the next boot.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// The stream's directory.
    pub dir: DiskPath,
    /// The stream's id; never reused.
    pub stream: u32,
    /// The store it belongs to.
    pub store_uuid: u128,
    /// Higher than that of any boot before.
    pub boot_epoch: u64,
    /// Length of a boot's first segment in bytes; each later one is twice as long as the one before ...
    pub segment_bytes_min: u64,
    /// ... up to this.
    pub segment_bytes_max: u64,
    /// The limit K on frames in flight, at least 1.
    pub frames_in_flight: u32,
    /// A frame takes no further record beyond this many bytes; a longer record is alone in its frame.
    pub frame_bytes_max: usize,
    /// How many segments are kept ready ahead of need, and how many freed ones are kept for reuse.
    pub spares: u32,
    /// After so long without a write the stream is sealed.
    pub seal_idle_ns: Nanos,
}

impl WalConfig {
    /// The usual figures.
    pub fn new(dir: DiskPath, stream: u32, store_uuid: u128, boot_epoch: u64) -> Self {
        Self {
            dir,
            stream,
            store_uuid,
            boot_epoch,
            segment_bytes_min: 4 << 20,
            segment_bytes_max: 64 << 20,
            frames_in_flight: 4,
            frame_bytes_max: 4 << 20,
            spares: 2,
            seal_idle_ns: 10_000_000,
        }
    }
}

/// What the log is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Replaces the suffix of a shard's log from the first entry's index on.
    Entries {
        /// The shard.
        shard: ShardId,
        /// Its replica here.
        replica: ReplicaId,
        /// Contiguous; none is more than [`RECORD_BYTES_MAX`] with its surroundings.
        entries: Vec<Entry>,
    },
    /// Replaces a replica's hard state. Its term never goes back.
    HardState {
        /// The shard.
        shard: ShardId,
        /// Its replica here.
        replica: ReplicaId,
        /// The new one.
        state: HardState,
    },
    /// Everything up to `flushed` is in the state machine's durable `generation`. Void if a snapshot of a
    /// newer generation was installed before.
    TruncatePrefix {
        /// The shard.
        shard: ShardId,
        /// Its replica here.
        replica: ReplicaId,
        /// The log starts after it now.
        flushed: Mark,
        /// What holds the state at `flushed`.
        generation: u64,
    },
    /// A snapshot replaces the state. Its files are durable already: this record is the commit point.
    SnapshotInstall {
        /// The shard.
        shard: ShardId,
        /// Its replica here.
        replica: ReplicaId,
        /// The log starts after it now.
        mark: Mark,
        /// What holds the state at `mark`.
        generation: u64,
        /// The shard's descriptor at `mark`; opaque here.
        descriptor: Bytes,
        /// Whether the log held `mark`, so that what follows it stays; else everything is dropped.
        keep_suffix: bool,
    },
    /// The complete live state of one shard: its new base. The first record of every shard.
    ShardReset(Box<ShardState>),
    /// The shard's replica here is destroyed; only higher ones are accepted from now on.
    ShardTombstone {
        /// The shard.
        shard: ShardId,
        /// The lowest replica that may come; above the one destroyed.
        lowest_replica: u64,
    },
    /// The largest lease promise in force. The latest record counts.
    Promise {
        /// Its duration.
        largest_ns: u64,
    },
}

impl Record {
    /// Its kind, as the format names it.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Entries { .. } => "Entries",
            Self::HardState { .. } => "HardState",
            Self::TruncatePrefix { .. } => "TruncatePrefix",
            Self::SnapshotInstall { .. } => "SnapshotInstall",
            Self::ShardReset(_) => "ShardReset",
            Self::ShardTombstone { .. } => "ShardTombstone",
            Self::Promise { .. } => "Promise",
        }
    }

    /// The shard concerned; `None` if it is the whole stream.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            Self::Entries { shard, .. }
            | Self::HardState { shard, .. }
            | Self::TruncatePrefix { shard, .. }
            | Self::SnapshotInstall { shard, .. }
            | Self::ShardTombstone { shard, .. } => Some(*shard),
            Self::ShardReset(state) => Some(state.shard),
            Self::Promise { .. } => None,
        }
    }
}

pub use floe_shard::ShardState;

/// Where a log ends: after the last frame that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// The segment; 0 if there is none yet.
    pub segment: u64,
    /// The first byte behind the last frame.
    pub offset: u64,
    /// The first sequence that is not part of the log.
    pub seq: FrameSeq,
    /// The last frame's link.
    pub link: u32,
}

impl StreamEnd {
    /// Of a stream without any frame.
    pub const START: StreamEnd = StreamEnd { segment: 0, offset: 0, seq: 1, link: 0 };
}
