//! Appending: records are checked against those before them, split where they are long, and put into frames.

use super::{Open, Wal};
use crate::wal::bounds::Bounds;
use crate::wal::frame::FRAME_HEAD;
use crate::wal::layout::mix;
use crate::wal::pins::PinMove;
use crate::wal::record::{INDEX_MAX, Item, RECORD_HEAD, ResetPart, entry_len, item_len};
use crate::wal::{RECORD_BYTES_MAX, Record, ShardState};
use bytes::Bytes;
use floe_raft::Entry;
use floe_shard::ShardId;

impl Wal {
    /// Appends a record to the open frame. What is too long for one frame is split.
    ///
    /// # Panics
    /// If the record doesn't fit to those before it (a log that could not be replayed must not be written), or
    /// one entry or descriptor is longer than a record may be.
    pub fn append(&mut self, record: Record) {
        match record {
            Record::ShardReset(state) => self.append_reset(*state),
            Record::ShardTombstone { shard, lowest_replica } => self.append_tombstone(shard, lowest_replica),
            Record::Promise { largest_ns } => {
                self.promise = Some(largest_ns);
                self.push(Item::Record(Record::Promise { largest_ns }), Some(PinMove::Promise));
            }
            Record::Entries { entries, .. } if entries.is_empty() => {}
            record => {
                self.check(&record);
                self.push_split(record);
            }
        }
    }

    fn check(&mut self, record: &Record) {
        let shard = record.shard().expect("the stream's own records are handled before");
        let bounds = self.bounds.get_mut(&shard);
        let bounds = bounds.unwrap_or_else(|| panic!("{shard} has no base: a ShardReset comes first"));
        let before = *bounds;
        if let Err(reason) = bounds.step(record) {
            panic!("{shard}: {reason}: {record:?} after {before:?}");
        }
    }

    fn push_split(&mut self, record: Record) {
        let room = self.body_bytes_max();
        let item = Item::Record(record);
        if item_len(&item) <= room {
            return self.push(item, None);
        }
        let Item::Record(Record::Entries { shard, replica, entries }) = item else {
            return self.push(item, None);
        };
        for entries in split_entries(entries, room - RECORD_HEAD) {
            self.push(Item::Record(Record::Entries { shard, replica, entries }), None);
        }
    }

    fn append_reset(&mut self, state: ShardState) {
        let shard = state.shard;
        let bounds = Bounds::of(&state).unwrap_or_else(|reason| panic!("{shard}: {reason}"));
        let mut clears_tombstone = false;
        if let Some(&lowest) = self.tombstones.get(&shard) {
            assert!(
                state.replica.get() >= lowest,
                "{shard}: {} was destroyed, {lowest} may come",
                state.replica
            );
            clears_tombstone = state.lowest_replica >= lowest;
        }
        if clears_tombstone {
            self.tombstones.remove(&shard);
        }
        self.bounds.insert(shard, bounds);
        *self.resets_pending.entry(shard).or_default() += 1;
        self.push_reset_parts(state, clears_tombstone);
    }

    fn push_reset_parts(&mut self, mut state: ShardState, clears_tombstone: bool) {
        let shard = state.shard;
        let entries = std::mem::take(&mut state.entries);
        let fixed = item_len(&reset_item(state.clone(), 0, 0, true));
        let room = self.body_bytes_max().saturating_sub(fixed).max(1);
        let mut shares = split_entries(entries, room);
        if shares.is_empty() {
            shares.push(Vec::new());
        }
        let records_open = self.open.as_ref().map_or(0, |open| open.items.len() as u64);
        let id = mix(mix(0, self.seq_next), records_open);
        let parts = shares.len();
        for (part, entries) in shares.into_iter().enumerate() {
            let (begins, last) = (part == 0, part + 1 == parts);
            let item = reset_item(ShardState { entries, ..state.clone() }, id, part as u32, last);
            let begin = PinMove::ResetBegins { shard, id };
            let end = PinMove::ResetEnds { shard, id, clears_tombstone };
            self.push(
                item,
                [(begins, begin), (last, end)].into_iter().filter(|(is, _)| *is).map(|(_, moved)| moved),
            );
            state.descriptor = Bytes::new();
        }
    }

    fn append_tombstone(&mut self, shard: ShardId, lowest_replica: u64) {
        let mut destroys = false;
        if let Some(live) = self.bounds.remove(&shard) {
            let replica = live.replica;
            assert!(
                lowest_replica > replica.get(),
                "{shard}: a tombstone for {lowest_replica} leaves {replica}"
            );
            destroys = true;
        }
        let lowest = self.tombstones.entry(shard).or_default();
        *lowest = lowest_replica.max(*lowest);
        self.push_tombstone(shard, destroys);
    }

    pub(super) fn push_tombstone(&mut self, shard: ShardId, destroys: bool) {
        let Some(&lowest_replica) = self.tombstones.get(&shard) else { return };
        let record = Record::ShardTombstone { shard, lowest_replica };
        self.push(Item::Record(record), Some(PinMove::Tombstone { shard, destroys }));
    }

    fn body_bytes_max(&self) -> usize {
        self.config.frame_bytes_max.min(RECORD_BYTES_MAX).saturating_sub(FRAME_HEAD).max(RECORD_HEAD + 8)
    }

    pub(super) fn push(&mut self, item: Item, moves: impl IntoIterator<Item = PinMove>) {
        let len = item_len(&item);
        assert!(len <= RECORD_BYTES_MAX, "a record of {len} bytes exceeds {RECORD_BYTES_MAX}");
        if self.open.as_ref().is_some_and(|open| open.body_bytes + len > self.body_bytes_max()) {
            let full = self.open.take();
            self.waiting.extend(full);
        }
        let open = self.open.get_or_insert_with(|| {
            self.seq_next += 1;
            Open { seq: self.seq_next - 1, items: Vec::new(), body_bytes: 0, entries: 0, moves: Vec::new() }
        });
        open.body_bytes += len;
        open.entries += entries_in(&item);
        open.items.push(item);
        open.moves.extend(moves);
        self.queued_bytes += len;
        self.sealed = false;
    }
}

fn reset_item(state: ShardState, id: u64, part: u32, last: bool) -> Item {
    Item::Reset(Box::new(ResetPart { state, id, part, last }))
}

fn entries_in(item: &Item) -> u64 {
    match item {
        Item::Record(Record::Entries { entries, .. }) => entries.len() as u64,
        Item::Reset(part) => part.state.entries.len() as u64,
        _ => 0,
    }
}

/// Cuts entries into runs of at most `room` encoded bytes; a longer entry is alone.
fn split_entries(entries: Vec<Entry>, room: usize) -> Vec<Vec<Entry>> {
    let mut runs: Vec<Vec<Entry>> = Vec::new();
    let mut used = usize::MAX;
    for entry in entries {
        assert!(entry.mark.index <= INDEX_MAX, "{entry:?}");
        let len = entry_len(&entry);
        match runs.last_mut() {
            Some(run) if used + len <= room => run.push(entry),
            _ => {
                runs.push(vec![entry]);
                used = 0;
            }
        }
        used += len;
    }
    runs
}
