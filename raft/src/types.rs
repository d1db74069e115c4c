//! The nouns of one Raft group: ids, marks, entries, hard state.
//!
//! Everything here is plain data. A [`Mark`] names one position in one leader's log; two logs that
//! hold the same mark are identical up to it (the Log Matching Property, paper §5.3).

use bytes::Bytes;
use std::fmt;
use std::num::NonZeroU64;

/// A leader's reign (paper §5.1). 0 = before any election.
pub type Term = u64;
/// A position in the log, counted from 1. 0 = before the first entry.
pub type Index = u64;
/// Monotonic time in nanoseconds, from an origin that only the driver knows. Never wall-clock time.
pub type Nanos = u64;

/// One incarnation of a shard's copy on a node. Raft's peers are replicas, never nodes: a node that
/// lost its copy comes back under a new id, so that it is not taken for the voter it used to be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(NonZeroU64);

impl ReplicaId {
    /// `None` for 0, which formats use for "nobody".
    pub const fn new(id: u64) -> Option<Self> {
        match NonZeroU64::new(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The id as a number, never 0.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// One position in one leader's log. Ordered by term first, then by index: this is the paper's
/// "at least as up-to-date" order (§5.4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mark {
    /// Term of the leader that created the entry.
    pub term: Term,
    /// The entry's position.
    pub index: Index,
}

impl Mark {
    /// Before the first entry of any log.
    pub const ZERO: Mark = Mark { term: 0, index: 0 };

    /// The mark of `index` in the log of `term`'s leader.
    pub const fn new(term: Term, index: Index) -> Self {
        Self { term, index }
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// What an entry is for. The number is part of the disk and wire formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Appended by every new leader, so that it can commit at once (thesis §6.4, paper §8).
    Noop = 0,
    /// A client's command for the state machine.
    Command = 1,
    /// A membership change; in force as soon as it is in the log (paper §6).
    Membership = 2,
    /// A command for the layer above Raft (descriptor changes, session registration, feature level).
    Admin = 3,
}

impl EntryKind {
    /// The kind with this number; `None` if this version doesn't know it.
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            0 => Some(Self::Noop),
            1 => Some(Self::Command),
            2 => Some(Self::Membership),
            3 => Some(Self::Admin),
            _ => None,
        }
    }
}

/// One entry of the log. Cloning is cheap: the payload is reference-counted.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its position and the term of the leader that created it.
    pub mark: Mark,
    /// What it is for.
    pub kind: EntryKind,
    /// Version of the payload's encoding; opaque here.
    pub version: u8,
    /// The payload, opaque here; encoded once in its life.
    pub data: Bytes,
}

impl Entry {
    /// What the entry counts for in byte budgets: its payload and a fixed overhead for what holds it.
    pub fn size(&self) -> usize {
        self.data.len() + std::mem::size_of::<Entry>()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{:?}[{}]", self.mark, self.kind, self.data.len())
    }
}

/// What must survive a restart besides the log (paper, Figure 2, "persistent state").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HardState {
    /// Latest term this replica has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<ReplicaId>,
    /// A commit index known at some time. A hint that spares work after a restart; never the reason
    /// for a write of its own.
    pub commit: Index,
}

/// Numbers the writes that one replica hands out; see [`crate::Raft::persisted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WriteId(pub u64);
