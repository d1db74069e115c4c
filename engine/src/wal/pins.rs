//! What keeps old segments: per shard its base, and the latest record of everything that concerns the
//! stream as a whole. A segment may go when nothing is left in it or before it.

use floe_shard::ShardId;
use std::collections::{BTreeMap, BTreeSet};

/// For each shard one segment, and the other way round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SegmentIndex {
    of: BTreeMap<ShardId, u64>,
    by: BTreeMap<u64, BTreeSet<ShardId>>,
}

impl SegmentIndex {
    pub fn set(&mut self, shard: ShardId, segment: u64) {
        self.remove(shard);
        self.of.insert(shard, segment);
        self.by.entry(segment).or_default().insert(shard);
    }

    pub fn remove(&mut self, shard: ShardId) {
        let Some(segment) = self.of.remove(&shard) else { return };
        let shards = self.by.get_mut(&segment).expect("both directions hold the same pairs");
        shards.remove(&shard);
        if shards.is_empty() {
            self.by.remove(&segment);
        }
    }

    /// The oldest segment that holds anything.
    pub fn oldest(&self) -> Option<(u64, &BTreeSet<ShardId>)> {
        self.by.first_key_value().map(|(&segment, shards)| (segment, shards))
    }

    /// Shards in segments below `segment`.
    pub fn below(&self, segment: u64) -> impl Iterator<Item = ShardId> + '_ {
        self.by.range(..segment).flat_map(|(_, shards)| shards.iter().copied())
    }
}

/// A record that moves pins, once its frame is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PinMove {
    /// The first part of a reset.
    ResetBegins { shard: ShardId, id: u64 },
    /// The last part of a reset; whether it says itself what the shard's tombstone said.
    ResetEnds { shard: ShardId, id: u64, clears_tombstone: bool },
    /// A tombstone; whether it ends the shard or repeats what an earlier one said.
    Tombstone { shard: ShardId, destroys: bool },
    /// A promise.
    Promise,
}

/// Everything that pins segments of one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins {
    /// Durable bases.
    pub bases: SegmentIndex,
    /// Where resets that are not yet durable begin.
    starts: BTreeMap<(ShardId, u64), u64>,
    /// Durable tombstones.
    pub tombstones: SegmentIndex,
    /// The segment of the latest durable promise.
    pub promise: Option<u64>,
}

impl Pins {
    /// A frame with this move was issued to `segment`.
    pub fn on_issued(&mut self, moved: PinMove, segment: u64) {
        if let PinMove::ResetBegins { shard, id } = moved {
            self.starts.insert((shard, id), segment);
        }
    }

    /// A frame with this move, issued to `segment`, is durable.
    pub fn on_durable(&mut self, moved: PinMove, segment: u64) {
        match moved {
            PinMove::ResetBegins { .. } => {}
            PinMove::ResetEnds { shard, id, clears_tombstone } => {
                let start = self.starts.remove(&(shard, id));
                self.bases.set(shard, start.expect("a reset begins before it ends"));
                if clears_tombstone {
                    self.tombstones.remove(shard);
                }
            }
            PinMove::Tombstone { shard, destroys } => {
                self.tombstones.set(shard, segment);
                if destroys {
                    self.bases.remove(shard);
                }
            }
            PinMove::Promise => self.promise = Some(segment),
        }
    }

    /// The oldest segment that a shard needs.
    pub fn oldest_of_shards(&self) -> Option<u64> {
        let base = self.bases.oldest().map(|(segment, _)| segment);
        self.starts.values().copied().chain(base).min()
    }

    /// The oldest segment that something of the whole stream needs.
    pub fn oldest_of_stream(&self) -> Option<u64> {
        let tombstone = self.tombstones.oldest().map(|(segment, _)| segment);
        self.promise.into_iter().chain(tombstone).min()
    }
}
