//! What records amount to, in the plainest way, and a generator of records that fit together.

use super::disk::Rng;
use crate::wal::{Record, Recovered, ShardState};
use bytes::Bytes;
use floe_raft::{Entry, EntryKind, HardState, Mark, ReplicaId};
use floe_shard::ShardId;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    pub shards: BTreeMap<ShardId, ShardState>,
    pub tombstones: BTreeMap<ShardId, u64>,
    pub promise_ns: u64,
}

impl Model {
    pub fn of(found: &Recovered) -> Self {
        let (shards, tombstones) = (found.shards.clone(), found.tombstones.clone());
        Self { shards, tombstones, promise_ns: found.promise_ns }
    }

    pub fn apply(&mut self, record: &Record) {
        match record.clone() {
            Record::Promise { largest_ns } => self.promise_ns = largest_ns,
            Record::ShardTombstone { shard, lowest_replica } => {
                self.shards.remove(&shard);
                let lowest = self.tombstones.entry(shard).or_default();
                *lowest = lowest_replica.max(*lowest);
            }
            Record::ShardReset(state) => {
                if self.tombstones.get(&state.shard).is_some_and(|&lowest| state.lowest_replica >= lowest) {
                    self.tombstones.remove(&state.shard);
                }
                self.shards.insert(state.shard, *state);
            }
            Record::HardState { shard, state, .. } => self.live(shard).hard_state = state,
            Record::Entries { shard, entries, .. } => {
                let live = self.live(shard);
                live.entries.retain(|entry| entry.mark.index < entries[0].mark.index);
                live.entries.extend(entries);
            }
            Record::TruncatePrefix { shard, flushed, generation, .. } => {
                let live = self.live(shard);
                if generation >= live.generation {
                    live.entries.retain(|entry| entry.mark.index > flushed.index);
                    (live.flushed, live.generation) = (flushed, generation);
                }
            }
            Record::SnapshotInstall { shard, mark, generation, descriptor, keep_suffix, .. } => {
                let live = self.live(shard);
                live.entries.retain(|entry| keep_suffix && entry.mark.index > mark.index);
                (live.flushed, live.generation, live.descriptor) = (mark, generation, descriptor);
            }
        }
    }

    fn live(&mut self, shard: ShardId) -> &mut ShardState {
        self.shards.get_mut(&shard).expect("the generator writes to live shards only")
    }

    pub fn check(&self) {
        for state in self.shards.values() {
            for (index, entry) in (state.flushed.index + 1..).zip(&state.entries) {
                assert_eq!(entry.mark.index, index, "{state:?}");
            }
        }
    }
}

pub fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("not 0")
}

pub fn state(shard: u64, id: u64) -> ShardState {
    ShardState {
        shard: ShardId(shard),
        replica: replica(id),
        home_epoch: 1,
        descriptor: Bytes::from_static(b"descriptor"),
        hard_state: HardState::default(),
        flushed: Mark::ZERO,
        generation: 0,
        entries: Vec::new(),
        lowest_replica: 0,
    }
}

pub fn entries(term: u64, first: u64, count: u64, data: &[u8]) -> Vec<Entry> {
    let entry = |index| Entry {
        mark: Mark::new(term, index),
        kind: EntryKind::Command,
        version: 3,
        data: Bytes::copy_from_slice(data),
    };
    (first..first + count).map(entry).collect()
}

pub fn append(shard: u64, id: u64, entries: Vec<Entry>) -> Record {
    Record::Entries { shard: ShardId(shard), replica: replica(id), entries }
}

/// A record that fits to `model`.
pub fn random_record(model: &Model, rng: &mut Rng) -> Record {
    let shard = ShardId(rng.below(6));
    if rng.one_in(40) {
        return Record::Promise { largest_ns: rng.next() };
    }
    let Some(live) = model.shards.get(&shard) else {
        let lowest = model.tombstones.get(&shard).copied().unwrap_or(0);
        let mut fresh = state(shard.0, lowest.max(1) + rng.below(2));
        fresh.lowest_replica = if rng.one_in(2) { fresh.replica.get() } else { 0 };
        return Record::ShardReset(Box::new(fresh));
    };
    let replica = live.replica;
    let last = live.flushed.index + live.entries.len() as u64;
    match rng.below(24) {
        0 => Record::ShardTombstone { shard, lowest_replica: replica.get() + 1 + rng.below(2) },
        1 => Record::ShardReset(Box::new(ShardState { home_epoch: live.home_epoch + 1, ..live.clone() })),
        2..=4 => {
            let hard = live.hard_state;
            let vote = ReplicaId::new(rng.below(3));
            let state = HardState { term: hard.term + rng.below(2), vote, commit: last };
            Record::HardState { shard, replica, state }
        }
        5..=7 => {
            let index = live.flushed.index + rng.below(live.entries.len() as u64 + 1);
            let generation = (live.generation + rng.below(2)).saturating_sub(u64::from(rng.one_in(8)));
            Record::TruncatePrefix {
                shard,
                replica,
                flushed: Mark::new(term_at(live, index), index),
                generation,
            }
        }
        8 => {
            let keep_suffix = rng.one_in(2);
            let index = if keep_suffix { last } else { last + rng.below(5) };
            let term = if keep_suffix { term_at(live, index) } else { term_at(live, last) + rng.below(2) };
            let (mark, generation) = (Mark::new(term, index), live.generation + 1);
            let descriptor = Bytes::from(vec![7; rng.below(40) as usize]);
            Record::SnapshotInstall { shard, replica, mark, generation, descriptor, keep_suffix }
        }
        _ => random_entries(live, last, rng),
    }
}

fn random_entries(live: &ShardState, last: u64, rng: &mut Rng) -> Record {
    let first = last + 1 - if rng.one_in(4) { rng.below(live.entries.len().min(4) as u64 + 1) } else { 0 };
    let term = term_at(live, last) + u64::from(first <= last || rng.one_in(5));
    let mut all = Vec::new();
    for index in first..=first + rng.below(8) {
        let len = if rng.one_in(60) { rng.below(30_000) } else { rng.below(300) };
        let data = Bytes::from(vec![index as u8; len as usize]);
        let kind = EntryKind::from_u8(rng.below(4) as u8).expect("0..4 are kinds");
        all.push(Entry { mark: Mark::new(term, index), kind, version: rng.below(9) as u8, data });
    }
    Record::Entries { shard: live.shard, replica: live.replica, entries: all }
}

fn term_at(live: &ShardState, index: u64) -> u64 {
    if index <= live.flushed.index {
        return live.flushed.term;
    }
    live.entries[(index - live.flushed.index - 1) as usize].mark.term
}
