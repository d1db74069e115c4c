//! Errors of the public API: one enum per kind of operation, each variant saying whether the
//! operation surely didn't happen or may have.

use floe_raft::ConfigError;
use floe_shard::CommandError;
use floe_shard::request::{BusyReason, Refusal, UnknownReason};
use std::path::PathBuf;
use std::time::Duration;

/// Why a node can't be opened. Nothing is running, and nothing was changed that matters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A setting breaks its bound.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The data directory can't be made or used.
    #[error("data directory {}: {source}; `dir` must name a directory in which this process may write", dir.display())]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has the directory open.
    #[error("data directory {} is in use by {holder}; stop that process, or choose another `dir`", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// Who holds the lock, as far as it says so itself.
        holder: String,
    },
    /// The listening port can't be taken.
    #[error("can't listen on {address}: {source}; {}", what_to_do(source))]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel refuses io_uring, or there is too little locked memory.
    #[error(transparent)]
    Uring(#[from] crate::probe::ProbeError),
    /// A thread could not be started.
    #[error("can't start a core: {0}")]
    Spawn(std::io::Error),
    /// A core could not recover: a sentence that names the file and what to do.
    #[error("{0}")]
    Start(#[from] crate::seam::Failure),
}

/// What came of a write that was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Applied; the new version of every key that it wrote.
    Written {
        /// Log index within the shard.
        version: u64,
    },
    /// A condition didn't hold: nothing was changed.
    ConditionFailed {
        /// Which, counted from 0.
        condition: u32,
    },
}

/// Why a write is not known to be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// Surely not done: the command breaks a limit.
    #[error("invalid write: {0}")]
    Invalid(#[from] CommandError),
    /// Surely not done: the keys belong to several shards; split the batch at the boundary.
    #[error("the batch spans shards: split it at key {}", escape(boundary))]
    SpansShards {
        /// First key of the second shard.
        boundary: bytes::Bytes,
    },
    /// Surely not done: a bound is reached. Try again later, slower.
    #[error("busy: {0}; try again later")]
    Busy(BusyReason),
    /// Surely not done: the deadline passed before anything was begun (no leader in reach, say).
    #[error("the deadline passed; the write was not begun")]
    TimedOut,
    /// Surely not done: the shard's range has changed. Try again: a remote client asks for the ranges anew; one of this
    /// process knows those with which its node was opened.
    #[error("the shard's range has changed; try again")]
    Rerouted,
    /// Surely not done: the node can't serve.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Not known: the write may have been done, or may yet be.
    #[error("the outcome is unknown ({0}): the write may have been done, or may yet be")]
    OutcomeUnknown(UnknownReason),
}

impl WriteError {
    /// Whether trying again can't do the write twice.
    pub fn is_surely_not_done(&self) -> bool {
        !matches!(self, Self::OutcomeUnknown(_))
    }

    pub(crate) fn from_refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Busy(reason) => Self::Busy(reason),
            Refusal::DeadlinePassed => Self::TimedOut,
            Refusal::WrongEpoch { .. } | Refusal::OutOfRange { .. } => Self::Rerouted,
            other => Self::Unavailable(explain(&other)),
        }
    }
}

/// Why a read has no result. A read changes nothing, so it can always be tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The key is empty or too long.
    #[error("invalid read: {0}")]
    Invalid(#[from] CommandError),
    /// A bound is reached. Try again later, slower.
    #[error("busy: {0}; try again later")]
    Busy(BusyReason),
    /// The deadline passed.
    #[error("the deadline passed")]
    TimedOut,
    /// The shard's range has changed. Try again: a remote client asks for the ranges anew; one of this process knows
    /// those with which its node was opened.
    #[error("the shard's range has changed; try again")]
    Rerouted,
    /// A stale read's bound can't be kept: the replica here may be this old, and no leader told it more. Try
    /// another node, or a larger bound. `None` = it may be of any age.
    #[error("too stale: the replica here is {}", describe_age(.0))]
    TooStale(Option<Duration>),
    /// The snapshot of a shard that the pages of a scan are read from is gone: it was held for 30 s, the node that
    /// held it went, or its write buffer is full. [`Pages`](crate::Pages) goes on in a new one if it is asked for the next page again.
    #[error("the snapshot that the scan reads is gone; what follows is of a newer one")]
    SnapshotGone,
    /// The node can't serve.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

impl ReadError {
    /// For an answer that says that nobody knows.
    pub(crate) fn from_unknown(reason: UnknownReason) -> Self {
        match reason {
            UnknownReason::DeadlinePassed => Self::TimedOut,
            UnknownReason::Disconnected => Self::Unavailable("the connection broke".into()),
            UnknownReason::LeadershipLost => Self::Unavailable("the leader was replaced".into()),
            UnknownReason::ShuttingDown => Self::Unavailable("the node is shutting down".into()),
            UnknownReason::BadAnswer => Self::Unavailable("the answer doesn't fit the request".into()),
        }
    }

    pub(crate) fn from_refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Busy(reason) => Self::Busy(reason),
            Refusal::DeadlinePassed => Self::TimedOut,
            Refusal::TooStale { age } => Self::TooStale(age),
            Refusal::ViewGone => Self::SnapshotGone,
            Refusal::WrongEpoch { .. } | Refusal::OutOfRange { .. } => Self::Rerouted,
            other => Self::Unavailable(explain(&other)),
        }
    }
}

/// Why a leadership is not known to have moved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// It stays where it is: another transfer of the shard runs, or the target didn't catch up in time, or a
    /// bound is reached. Try again later.
    #[error("busy: {0}; try again later")]
    Busy(BusyReason),
    /// It stays where it is: the deadline passed before anything was begun (no leader in reach, say).
    #[error("the deadline passed; the transfer was not begun")]
    TimedOut,
    /// It stays where it is, or went elsewhere: the target can't lead the shard, or the node can't serve.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Not known: leadership may have moved, or may yet. To ask again is harmless.
    #[error("the outcome is unknown ({0}): leadership may have moved, or may yet")]
    OutcomeUnknown(UnknownReason),
}

impl TransferError {
    pub(crate) fn from_refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Busy(reason) => Self::Busy(reason),
            Refusal::DeadlinePassed => Self::TimedOut,
            other => Self::Unavailable(explain(&other)),
        }
    }
}

fn explain(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NotLeader { leader: Some(leader) } => format!("node {leader} leads the shard"),
        Refusal::NotLeader { leader: None } => "no leader of the shard is known".into(),
        Refusal::NoSuchShard { shard } => format!("no replica of shard {shard} in reach"),
        Refusal::BadCommand { reason } => format!("the command was refused: {reason}"),
        Refusal::Overwritten => "a change of leader dropped it".into(),
        Refusal::Unavailable { reason } => reason.clone(),
        Refusal::BadChange { reason } => format!("the members can't be changed so: {reason}"),
        Refusal::NotAMember { node } => format!("node {node} has no replica of the shard"),
        other => format!("{other:?}"),
    }
}

fn what_to_do(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => {
            "stop the process that serves there, or give this node another address in `members` (`floe local`: another --port)"
        }
        _ => "check this node's address in `members`",
    }
}

fn describe_age(age: &Option<Duration>) -> String {
    match age {
        Some(age) => format!("up to {} ms old", age.as_millis()),
        None => "of unknown age".into(),
    }
}

fn escape(key: &[u8]) -> String {
    format!("\"{}\"", key.escape_ascii())
}
