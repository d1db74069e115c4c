//! What recovery hands out: the stream's state, or why it can't be used.

use super::pins::Pins;
use super::segment::SegmentFile;
use super::{FrameSeq, ShardState, StreamEnd};
use crate::boot::WITHOUT_IT;
use crate::disk::{DiskError, DiskPath};
use floe_shard::ShardId;
use std::collections::BTreeMap;
use std::fmt;

/// Why a stream can't be used. In every case nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryError {
    /// Bytes that had been acknowledged are damaged or missing.
    Corruption {
        /// The file.
        file: DiskPath,
        /// Where in it.
        offset: u64,
        /// The frame expected there; 0 if that is not known.
        seq: FrameSeq,
        /// Shards named by the damaged records, as far as they can be read.
        shards: Vec<ShardId>,
        /// What is wrong.
        reason: &'static str,
    },
    /// The files belong to another store or stream.
    WrongStore {
        /// The file.
        file: DiskPath,
        /// Store and stream it says it belongs to.
        found: (u128, u32),
        /// Store and stream asked for.
        expected: (u128, u32),
    },
    /// A later version of Floe wrote it.
    UnknownFormat {
        /// The file.
        file: DiskPath,
        /// Where in it.
        offset: u64,
        /// What this version doesn't know.
        what: String,
    },
    /// A call to the disk failed.
    Disk(DiskError),
}

impl fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corruption { file, offset, seq, shards, reason } => write!(
                f,
                "the write-ahead log is damaged: {file} at offset {offset}, frame {seq}, shards {shards:?}: {reason}. \
                 `floe wal verify` shows all of the damage. Restore the file. {WITHOUT_IT}"
            ),
            Self::WrongStore { file, found, expected } => write!(
                f,
                "{file} at offset 0 belongs to store {:032x}, stream {}, not to store {:032x}, stream {}. \
                 Check which disk is mounted at the data directory",
                found.0, found.1, expected.0, expected.1
            ),
            Self::UnknownFormat { file, offset, what } => write!(
                f,
                "{file} at offset {offset} was written by a later version: {what}. Start that version of floe"
            ),
            Self::Disk(error) => {
                write!(f, "reading the write-ahead log failed: {error}. Check the disk and restart")
            }
        }
    }
}

impl std::error::Error for RecoveryError {}

impl From<DiskError> for RecoveryError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// A stream as recovery found it.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// The live state of every shard.
    pub shards: BTreeMap<ShardId, ShardState>,
    /// Lowest replica accepted, for shards whose state doesn't say it.
    pub tombstones: BTreeMap<ShardId, u64>,
    /// The latest promise; 0 = none.
    pub promise_ns: u64,
    /// The highest boot epoch seen; 0 = none.
    pub boot_epoch: u64,
    /// Where the log ends.
    pub end: StreamEnd,
    /// The next boot's first sequence: beyond all that the last one can have issued.
    pub seq_next: FrameSeq,
    /// What the writer takes over.
    pub segments: RecoveredSegments,
    /// Frames replayed.
    pub frames: u64,
    /// Their bytes, padding included.
    pub bytes: u64,
    /// Bytes of unacknowledged frames that were discarded, as far as they could be read.
    pub torn_bytes: u64,
}

impl Recovered {
    /// All files of the stream, to be removed once every shard has a new home in another stream.
    pub fn files(&self) -> impl Iterator<Item = &DiskPath> {
        let RecoveredSegments { used, unused, discarded, .. } = &self.segments;
        used.iter().chain(unused).chain(discarded).map(|file| &file.path)
    }
}

/// The files of a recovered stream, and what pins them.
#[derive(Clone, Debug)]
pub struct RecoveredSegments {
    /// Those that hold something, ascending.
    pub(super) used: Vec<SegmentFile>,
    /// Those to be reused.
    pub(super) unused: Vec<SegmentFile>,
    /// Those with discarded frames: to be reused once the next boot's header says where this one's log ends,
    /// not before; until then another recovery has to find them all or none.
    pub(super) discarded: Vec<SegmentFile>,
    /// Above that of every file.
    pub(super) next_id: u64,
    pub(super) pins: Pins,
}

impl Default for RecoveredSegments {
    fn default() -> Self {
        Self {
            used: Vec::new(),
            unused: Vec::new(),
            discarded: Vec::new(),
            next_id: 1,
            pins: Pins::default(),
        }
    }
}
