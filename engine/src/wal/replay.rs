//! From records to states: the stream's records, in their order, applied to nothing.
//!
//! A shard's state starts with its base, its last complete `ShardReset`. Records that precede every
//! base still in the stream belong to a base that was superseded, and are skipped.

use super::bounds::{Bounds, Effect};
use super::record::{Item, ResetPart};
use super::{Record, ShardState};
use bytes::{Bytes, BytesMut};
use floe_raft::{Entry, Index, Mark, Planted, is_planted};
use floe_shard::ShardId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What the records read so far amount to.
#[derive(Default)]
pub(super) struct Replay {
    pub shards: BTreeMap<ShardId, Shard>,
    /// Lowest accepted replica and the segment of the record that says so.
    pub tombstones: BTreeMap<ShardId, (u64, u64)>,
    /// The latest promise and the segment of its record.
    pub promise: Option<(u64, u64)>,
    parts: BTreeMap<ShardId, (ResetPart, u64)>,
    /// Shards with records that no base has followed or preceded.
    orphans: BTreeSet<ShardId>,
}

/// One shard while it is replayed.
pub(super) struct Shard {
    pub state: ShardState,
    /// The segment of its base.
    pub base: u64,
    bounds: Bounds,
    /// First index and bytes of each buffer that live entries share.
    buffers: VecDeque<(Index, usize)>,
}

/// A record that contradicts those before it.
pub(super) struct Contradiction {
    pub shard: ShardId,
    pub reason: &'static str,
}

impl Replay {
    /// Applies one item, read from `segment`.
    pub fn apply(&mut self, item: Item, segment: u64) -> Result<(), Contradiction> {
        match item {
            Item::Seal | Item::Skipped => Ok(()),
            Item::Reset(part) => {
                let shard = part.state.shard;
                self.on_part(*part, segment).map_err(|reason| Contradiction { shard, reason })
            }
            Item::Record(Record::Promise { largest_ns }) => {
                self.promise = Some((largest_ns, segment));
                Ok(())
            }
            Item::Record(Record::ShardTombstone { shard, lowest_replica }) => {
                self.on_tombstone(shard, lowest_replica, segment);
                Ok(())
            }
            Item::Record(record) => self.on_record(record),
        }
    }

    fn on_part(&mut self, part: ResetPart, segment: u64) -> Result<(), &'static str> {
        let shard = part.state.shard;
        let (whole, base) = if part.part == 0 {
            (part, segment)
        } else {
            // Without its earlier parts a part is void: they lie in a segment that is gone.
            let Some((mut whole, base)) = self.parts.remove(&shard) else { return Ok(()) };
            if whole.id != part.id || whole.part + 1 != part.part {
                return Err("parts of a reset are out of order");
            }
            whole.state.entries.extend(part.state.entries);
            (whole.part, whole.last) = (part.part, part.last);
            (whole, base)
        };
        if whole.last {
            self.on_reset(whole.state, base)
        } else {
            self.parts.insert(shard, (whole, base));
            Ok(())
        }
    }

    fn on_reset(&mut self, state: ShardState, base: u64) -> Result<(), &'static str> {
        let bounds = Bounds::of(&state)?;
        if let Some(&(lowest, _)) = self.tombstones.get(&state.shard) {
            if state.replica.get() < lowest {
                return Err("a destroyed replica comes back");
            }
            if state.lowest_replica >= lowest {
                self.tombstones.remove(&state.shard);
            }
        }
        self.orphans.remove(&state.shard);
        let buffers = VecDeque::from([(state.flushed.index + 1, payload_bytes(&state.entries))]);
        self.shards.insert(state.shard, Shard { state, base, bounds, buffers });
        Ok(())
    }

    fn on_tombstone(&mut self, shard: ShardId, lowest: u64, segment: u64) {
        self.parts.remove(&shard);
        self.orphans.remove(&shard);
        let known = self.tombstones.get(&shard).map_or(0, |&(known, _)| known);
        self.tombstones.insert(shard, (lowest.max(known), segment));
        // A repeated tombstone may follow the reset of a newer replica.
        if self.shards.get(&shard).is_some_and(|live| live.state.replica.get() < lowest) {
            self.shards.remove(&shard);
        }
    }

    fn on_record(&mut self, record: Record) -> Result<(), Contradiction> {
        let shard = record.shard().expect("records of the stream were handled before");
        let Some(live) = self.shards.get_mut(&shard) else {
            if !self.tombstones.contains_key(&shard) {
                self.orphans.insert(shard);
            }
            return Ok(());
        };
        live.apply(record).map_err(|reason| Contradiction { shard, reason })
    }

    /// Shards of which there are records but neither a base nor a tombstone: something was lost.
    pub fn orphans(&self) -> Vec<ShardId> {
        self.orphans.iter().copied().collect()
    }
}

impl Shard {
    fn apply(&mut self, record: Record) -> Result<(), &'static str> {
        self.check_terms(&record)?;
        if self.bounds.step(&record)? == Effect::Ignored {
            return Ok(());
        }
        match record {
            Record::Entries { entries, .. } => self.replace_suffix(entries),
            Record::HardState { state, .. } if is_planted(Planted::HardStateIgnored) => {
                self.state.hard_state = floe_raft::HardState { vote: None, ..state };
            }
            Record::HardState { state, .. } => self.state.hard_state = state,
            Record::TruncatePrefix { flushed, generation, .. } => self.drop_prefix(flushed, generation),
            Record::SnapshotInstall { mark, generation, descriptor, keep_suffix, .. } => {
                if !keep_suffix {
                    self.state.entries.clear();
                    self.buffers.clear();
                }
                self.state.descriptor = descriptor;
                self.drop_prefix(mark, generation);
            }
            Record::ShardReset(_) | Record::ShardTombstone { .. } | Record::Promise { .. } => {
                unreachable!("{record:?} was handled before")
            }
        }
        Ok(())
    }

    /// The term at `index`, where the shard's log or its flushed mark knows it.
    fn term(&self, index: Index) -> Option<u64> {
        let flushed = self.state.flushed;
        if index == flushed.index {
            return Some(flushed.term);
        }
        let at = usize::try_from(index.checked_sub(flushed.index + 1)?).ok()?;
        self.state.entries.get(at).map(|entry| entry.mark.term)
    }

    fn check_terms(&self, record: &Record) -> Result<(), &'static str> {
        let matches = |mark: Mark| self.term(mark.index).is_none_or(|term| term == mark.term);
        match record {
            Record::Entries { entries, .. } => {
                let first = entries.first().ok_or("a record without entries")?.mark;
                let before = self.term(first.index.saturating_sub(1)).unwrap_or(0);
                if first.term < before { Err("entries go back in term") } else { Ok(()) }
            }
            Record::TruncatePrefix { flushed, generation, .. }
                if *generation >= self.state.generation && !matches(*flushed) =>
            {
                Err("a flushed mark's term is not that of the log")
            }
            Record::SnapshotInstall { mark, keep_suffix: true, .. } if !matches(*mark) => {
                Err("a snapshot's term is not that of the suffix it keeps")
            }
            _ => Ok(()),
        }
    }

    fn replace_suffix(&mut self, entries: Vec<Entry>) {
        let first = entries[0].mark.index;
        let kept = (first - self.state.flushed.index - 1) as usize;
        self.state.entries.truncate(kept);
        while self.buffers.back().is_some_and(|&(start, _)| start >= first) {
            self.buffers.pop_back();
        }
        self.buffers.push_back((first, payload_bytes(&entries)));
        self.state.entries.extend(entries);
    }

    fn drop_prefix(&mut self, flushed: Mark, generation: u64) {
        let dropped = (flushed.index - self.state.flushed.index) as usize;
        self.state.entries.drain(..dropped.min(self.state.entries.len()));
        (self.state.flushed, self.state.generation) = (flushed, generation);
        while self.buffers.get(1).is_some_and(|&(start, _)| start <= flushed.index + 1) {
            self.buffers.pop_front();
        }
    }

    /// The state, its entries moved into one buffer if they pin much that is dead.
    pub fn finish(mut self) -> ShardState {
        let pinned: usize = self.buffers.iter().map(|&(_, bytes)| bytes).sum();
        let live = payload_bytes(&self.state.entries);
        if live < pinned / 2 {
            compact(&mut self.state.entries, live);
        }
        self.state
    }
}

fn payload_bytes(entries: &[Entry]) -> usize {
    entries.iter().map(|entry| entry.data.len().next_multiple_of(8)).sum()
}

fn compact(entries: &mut [Entry], live: usize) {
    let mut buffer = BytesMut::with_capacity(live);
    for entry in entries.iter() {
        buffer.extend_from_slice(&entry.data);
        buffer.resize(buffer.len().next_multiple_of(8), 0);
    }
    let buffer: Bytes = buffer.freeze();
    let mut at = 0;
    for entry in entries {
        let len = entry.data.len();
        entry.data = buffer.slice(at..at + len);
        at += len.next_multiple_of(8);
    }
}
