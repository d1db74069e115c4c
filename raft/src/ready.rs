//! What one replica wants done, as plain data in buffers that the caller reuses.

use crate::membership::Membership;
use crate::message::Message;
use crate::types::{Entry, HardState, Index, Mark, ReplicaId, Term, WriteId};
use std::ops::Range;

/// One batch of work. The caller clears and reuses it; on the steady path nothing is allocated per
/// entry. Fill it with [`crate::Raft::ready`], then, in any order and as late as it likes:
/// send `messages`; persist `hard_state` and `entries` (in the order of the write ids) and report
/// [`crate::Raft::persisted`]; send `messages_after_persist` once *everything handed out so far,
/// this write included,* is durable; apply `committed` in order and report [`crate::Raft::applied`].
#[derive(Debug, Default)]
pub struct Ready {
    /// To send now. A leader's appends are here: local write and replication run side by side.
    pub messages: Vec<Message>,
    /// To send once everything handed out up to and with this batch is durable (votes, refusals
    /// that carry a new term).
    pub messages_after_persist: Vec<Message>,
    /// Present if `hard_state`, `entries` or `snapshot` is there to persist.
    pub write: Option<WriteId>,
    /// Term and vote to persist (commit rides along).
    pub hard_state: Option<HardState>,
    /// To append to the durable log: contiguous; everything there from the first one's index on is
    /// replaced.
    pub entries: Vec<Entry>,
    /// A staged snapshot to install: persist the install record, swap the state, then report
    /// [`crate::Raft::snapshot_installed`]. Never together with `committed`.
    pub snapshot: Option<SnapshotInstall>,
    /// Committed entries to apply, at most up to min(commit, own durable index): read them in the log with
    /// [`crate::Raft::slice`]. There they stay until they have been applied; a snapshot that comes into their place
    /// holds what they do, and nothing more is to be done about them.
    pub committed: Range<Index>,
    /// Reads that may be served once `index` is applied here.
    pub reads: Vec<ReadState>,
    /// Contexts of reads that can't be served (leadership lost, no leader); the caller answers or retries.
    pub reads_dropped: Vec<u64>,
    /// Followers whose next entry is no longer in the log: start a snapshot transfer to each and
    /// report its fate with [`crate::Raft::report_snapshot`].
    pub snapshots_needed: Vec<ReplicaId>,
    /// Who leads in which term, when that changed since the last batch.
    pub leadership: Option<Leadership>,
}

/// A read index that is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// The caller's number for the read.
    pub context: u64,
    /// Serve it once this index is applied.
    pub index: Index,
}

/// A change of leader as this replica sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// Its term.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<ReplicaId>,
    /// Whether this replica is that leader.
    pub is_self: bool,
}

/// A snapshot that takes the place of the log up to its mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInstall {
    /// Where the state stands.
    pub mark: Mark,
    /// The membership in force there.
    pub membership: Membership,
    /// The log holds `mark` with its term, so entries after it stay (they may have been
    /// acknowledged and may count for a commit); otherwise the whole log is dropped.
    pub keep_suffix: bool,
}

impl Ready {
    /// Empties every buffer, keeping its capacity.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.messages_after_persist.clear();
        self.write = None;
        self.hard_state = None;
        self.entries.clear();
        self.snapshot = None;
        self.committed = 0..0;
        self.reads.clear();
        self.reads_dropped.clear();
        self.snapshots_needed.clear();
        self.leadership = None;
    }
}
