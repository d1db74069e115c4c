//! What a writer reports: what it has done, and why it has stopped.

use crate::disk::{DiskError, DiskPath};
use floe_raft::Nanos;
use std::fmt;

/// Why a stream has stopped. Final: what is not durable by now may or may not be there after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalFailure {
    /// The file or directory.
    pub file: DiskPath,
    /// Where in it.
    pub offset: u64,
    /// What the disk said.
    pub error: DiskError,
}

impl fmt::Display for WalFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, error } = self;
        write!(
            f,
            "the write-ahead log stopped: {file} at offset {offset}: {error}; nothing more is acknowledged. \
             Check the disk, then restart the node: what was acknowledged is recovered"
        )
    }
}

impl std::error::Error for WalFailure {}

/// What the writer has done since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Frames durable.
    pub frames: u64,
    /// Their bytes, padding included.
    pub bytes: u64,
    /// Their records.
    pub records: u64,
    /// Their entries.
    pub entries: u64,
    /// Frames issued but not durable.
    pub frames_in_flight: u32,
    /// From issue to completion of each frame, in ns, since last taken; of the first 65,536 since then.
    pub write_latencies_ns: Vec<Nanos>,
}
