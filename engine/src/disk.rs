//! The disk as a core sees it: calls that go out as effects, results that come back as inputs.
//!
//! Paths are relative to the node's data directory and use `/`. All of the WAL, recovery included,
//! is on the core's side of this seam; a driver only carries calls to a real or simulated disk. Calls
//! run concurrently and may complete in any order, except where one is issued after the completion
//! of another.

use bytes::Bytes;
use floe_shard::state_machine::{Dump, Job, JobDone};
use std::fmt;
use std::sync::Arc;

/// A path below the node's data directory.
pub type DiskPath = Arc<str>;

/// Unit of aligned writes, and what a segment header's copy occupies.
pub const BLOCK: usize = 4096;

/// Which part of a core issued a call; its completion is routed back there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpOwner {
    /// The node's boot record.
    Boot,
    /// Recovery of the stream with this id.
    Recovery(u32),
    /// The WAL writer.
    Wal,
    /// Dumps of state machines.
    Store,
}

/// Names a call in flight; unique per core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId {
    /// Who asked.
    pub owner: OpOwner,
    /// The owner's own number.
    pub number: u64,
}

/// Bytes that are produced straight into the driver's aligned buffer.
pub trait Recipe: Send {
    /// How many bytes: a multiple of [`BLOCK`].
    fn len(&self) -> usize;
    /// Fills `buffer`, whose length is exactly `len()`. Called once.
    fn encode_into(&self, buffer: &mut [u8]);
    /// Whether there is nothing to write.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Plain bytes are their own recipe.
impl Recipe for Bytes {
    fn len(&self) -> usize {
        Bytes::len(self)
    }
    fn encode_into(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(self);
    }
}

/// A call to the disk.
pub enum DiskCall {
    /// Lists a directory; one that doesn't exist is empty. Answer: `Listed`.
    List {
        /// The directory.
        dir: DiskPath,
    },
    /// Makes a new file of `len` zero bytes (written, not merely allocated) and syncs it, but not its
    /// directory; makes missing parent directories, and syncs the directories it made into their
    /// parents. Truncates a file that exists.
    Create {
        /// The file.
        path: DiskPath,
        /// Its length in bytes, a multiple of [`BLOCK`].
        len: u64,
    },
    /// Renames a file, replacing the target. Durable only after `SyncDir`.
    Rename {
        /// The old name.
        from: DiskPath,
        /// The new name, in a directory that exists.
        to: DiskPath,
    },
    /// Removes a file; one that doesn't exist is fine. Durable only after `SyncDir`.
    Remove {
        /// The file.
        path: DiskPath,
    },
    /// Makes creations, renames and removals in a directory durable.
    SyncDir {
        /// The directory.
        dir: DiskPath,
    },
    /// Reads up to `len` bytes; fewer only at the end of the file. Answer: `Read`, in a buffer that
    /// is aligned to 8 bytes at least.
    Read {
        /// The file.
        path: DiskPath,
        /// Where, a multiple of [`BLOCK`].
        offset: u64,
        /// How much.
        len: usize,
    },
    /// Writes into an existing file, durable when it completes (O_DSYNC); aligned to [`BLOCK`].
    Write {
        /// The file.
        path: DiskPath,
        /// Where, a multiple of [`BLOCK`].
        offset: u64,
        /// What.
        data: Box<dyn Recipe>,
    },
    /// Writes a whole file from the start and syncs it, in the background: replaces what is there,
    /// not atomically (write a temporary name, then `Rename`). Makes missing parent directories. Answer: `Saved`.
    Save {
        /// The file.
        path: DiskPath,
        /// What; any length.
        data: Box<dyn Dump>,
        /// It takes long: no other save waits for it.
        is_long: bool,
    },
    /// Work of a state machine on its files. Answer: `Ran`.
    Run {
        /// What.
        job: Job,
        /// It takes long: no other job waits for it.
        is_long: bool,
    },
}

impl fmt::Debug for DiskCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List { dir } => write!(f, "List {dir}"),
            Self::Create { path, len } => write!(f, "Create {path} {len}"),
            Self::Rename { from, to } => write!(f, "Rename {from} -> {to}"),
            Self::Remove { path } => write!(f, "Remove {path}"),
            Self::SyncDir { dir } => write!(f, "SyncDir {dir}"),
            Self::Read { path, offset, len } => write!(f, "Read {path} {offset}+{len}"),
            Self::Write { path, offset, data } => write!(f, "Write {path} {offset}+{}", data.len()),
            Self::Save { path, .. } => write!(f, "Save {path}"),
            Self::Run { .. } => write!(f, "Run"),
        }
    }
}

/// One file or directory of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name without the directory.
    pub name: String,
    /// Its length in bytes; 0 for a directory.
    pub len: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// What a call that succeeded answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskDone {
    /// Nothing but success.
    Done,
    /// What a `List` found, sorted by name.
    Listed(Vec<DirEntry>),
    /// What a `Read` found.
    Read(Bytes),
    /// How many bytes a `Save` wrote.
    Saved(u64),
    /// What a `Run` brought.
    Ran(JobDone),
}

/// What kind of failure, as far as it matters to a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskErrorKind {
    /// No space or quota left.
    Full,
    /// The file system or directory can't be written.
    ReadOnly,
    /// The file doesn't exist.
    NotFound,
    /// Anything else; final for a write.
    Io,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// The kind.
    pub kind: DiskErrorKind,
    /// What the system said, naming the file.
    pub message: String,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for DiskError {}

/// The outcome of a call.
pub type DiskResult = Result<DiskDone, DiskError>;

/// Calls that a part of a core wants made; drained into effects by the worker.
pub type DiskCalls = Vec<(OpId, DiskCall)>;
