//! What must hold between one shard's records, whoever looks: the writer asserts it before a record
//! enters the log, recovery checks it before a record is believed.

use super::record::INDEX_MAX;
use super::{Record, ShardState};
use floe_raft::{Entry, Index, Mark, ReplicaId, Term};

/// The part of a shard's state that later records must fit to.
/// Invariant: `flushed.index <= last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub replica: ReplicaId,
    pub flushed: Mark,
    pub last: Index,
    pub generation: u64,
    pub term: Term,
}

/// Whether a record changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Counts,
    /// A flush of a state that a snapshot has replaced since.
    Ignored,
}

type Checked = Result<Effect, &'static str>;

impl Bounds {
    /// Those of a complete state.
    pub fn of(state: &ShardState) -> Result<Self, &'static str> {
        if state.flushed.index > INDEX_MAX {
            return Err("a flushed mark is impossible");
        }
        contiguous(&state.entries, state.flushed.index + 1)?;
        if state.replica.get() < state.lowest_replica {
            return Err("a reset's replica is below the lowest one it accepts");
        }
        Ok(Self {
            replica: state.replica,
            flushed: state.flushed,
            last: state.flushed.index + state.entries.len() as u64,
            generation: state.generation,
            term: state.hard_state.term,
        })
    }

    /// Takes one more record of this shard in.
    pub fn step(&mut self, record: &Record) -> Checked {
        match record {
            Record::Entries { replica, entries, .. } => self.on_entries(*replica, entries),
            Record::HardState { replica, state, .. } => {
                self.check_replica(*replica)?;
                if state.term < self.term {
                    return Err("a hard state's term goes back");
                }
                self.term = state.term;
                Ok(Effect::Counts)
            }
            Record::TruncatePrefix { replica, flushed, generation, .. } => {
                self.on_truncate(*replica, *flushed, *generation)
            }
            Record::SnapshotInstall { replica, mark, generation, keep_suffix, .. } => {
                self.on_install(*replica, *mark, *generation, *keep_suffix)
            }
            Record::ShardReset(_) | Record::ShardTombstone { .. } | Record::Promise { .. } => {
                unreachable!("{record:?} doesn't depend on a shard's bounds")
            }
        }
    }

    fn check_replica(&self, replica: ReplicaId) -> Result<(), &'static str> {
        if replica == self.replica {
            Ok(())
        } else {
            Err("a record is of another replica than its shard's base")
        }
    }

    fn on_entries(&mut self, replica: ReplicaId, entries: &[Entry]) -> Checked {
        self.check_replica(replica)?;
        let first = entries.first().ok_or("a record without entries")?.mark.index;
        if first <= self.flushed.index {
            return Err("entries replace what was flushed");
        }
        if first > self.last + 1 {
            return Err("entries leave a gap in their shard's log");
        }
        contiguous(entries, first)?;
        self.last = first + entries.len() as u64 - 1;
        Ok(Effect::Counts)
    }

    fn on_truncate(&mut self, replica: ReplicaId, flushed: Mark, generation: u64) -> Checked {
        self.check_replica(replica)?;
        if generation < self.generation {
            return Ok(Effect::Ignored);
        }
        if flushed.index < self.flushed.index {
            return Err("a flushed mark goes back");
        }
        if flushed.index > self.last {
            return Err("a flushed mark lies beyond the log");
        }
        (self.flushed, self.generation) = (flushed, generation);
        Ok(Effect::Counts)
    }

    fn on_install(&mut self, replica: ReplicaId, mark: Mark, generation: u64, keep: bool) -> Checked {
        self.check_replica(replica)?;
        if generation < self.generation {
            return Err("a snapshot's generation goes back");
        }
        if mark.index > INDEX_MAX {
            return Err("a snapshot's mark is impossible");
        }
        if mark.index < self.flushed.index {
            return Err("a snapshot lies before what was flushed");
        }
        if keep && mark.index > self.last {
            return Err("a snapshot beyond the log keeps a suffix of it");
        }
        (self.flushed, self.generation) = (mark, generation);
        self.last = if keep { self.last } else { mark.index };
        Ok(Effect::Counts)
    }
}

/// Checks that entries start at `first`, leave no gap, and never go back in term.
fn contiguous(entries: &[Entry], first: Index) -> Result<(), &'static str> {
    let mut term = 0;
    for (index, entry) in (first..).zip(entries) {
        if entry.mark.index != index {
            return Err("entries leave a gap");
        }
        if entry.mark.term < term {
            return Err("entries go back in term");
        }
        term = entry.mark.term;
    }
    Ok(())
}
