//! How a core finds its replicas at start: every stream that may hold something of its shards is
//! recovered, for each shard the newest replica's newest history wins, and the dumps that these
//! name are read. Dump files that nothing names are removed, before a new one can take their names;
//! nothing else is written here.

use crate::boot::{BootRecord, StreamSet, WITHOUT_IT, stream_name};
use crate::disk::{DirEntry, DiskCall, DiskCalls, DiskDone, DiskResult, OpId, OpOwner};
use crate::dumps::{DUMP_DIR, dump_name, dump_path, dump_shard};
use crate::seam::Failure;
use crate::wal::{Recovered, Recovery, RecoveryError};
use bytes::Bytes;
use floe_shard::ShardId;
use floe_shard::output::ShardState;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One shard as the disk has it.
pub struct Found {
    /// What the log says.
    pub state: ShardState,
    /// The dump that it names, if it names one.
    pub dump: Option<Bytes>,
    /// Whether it comes from another stream than this core's.
    pub moved: bool,
}

/// Everything that a core found.
pub struct FoundAll {
    /// In order of id.
    pub shards: Vec<Found>,
    /// This core's own stream, if it has one already.
    pub own: Option<Recovered>,
    /// Lowest replica accepted of each shard that was destroyed here and has no replica now.
    pub tombstones: BTreeMap<ShardId, u64>,
    /// Largest lease promise that any stream knows of.
    pub promise_ns: u64,
    /// Frames and bytes replayed, and bytes of torn tails.
    pub replayed: (u64, u64, u64),
}

/// A call about dumps in flight.
#[derive(Clone, Copy)]
enum Load {
    /// Which dumps there are.
    List,
    /// The dump of the shard found at this place, of this length.
    Dump { at: usize, len: usize },
    /// The removal of one that nothing names.
    Stray,
}

/// A core's start in progress.
pub struct Start {
    core: u16,
    cores: u16,
    own_stream: u32,
    running: BTreeMap<u32, Recovery>,
    recovered: BTreeMap<u32, Recovered>,
    found: Vec<Found>,
    loads: BTreeMap<u64, Load>,
    next: u64,
}

impl Start {
    /// Begins to read. Streams of older sets are read by every core; of the current one, its own.
    pub fn new(core: u16, cores: u16, record: &Arc<BootRecord>, calls: &mut DiskCalls) -> Self {
        let own_stream = record.current().first + u32::from(core);
        let mut streams: Vec<u32> = record.old_sets().iter().flat_map(StreamSet::ids).collect();
        streams.push(own_stream);
        let running = streams
            .into_iter()
            .map(|stream| {
                let dir = format!("wal/{}", stream_name(stream)).into();
                (stream, Recovery::new(dir, stream, record.store_uuid, calls))
            })
            .collect();
        Self {
            core,
            cores,
            own_stream,
            running,
            recovered: BTreeMap::new(),
            found: Vec::new(),
            loads: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes a call's outcome. `Some` = everything is read.
    ///
    /// # Errors
    /// A stream or dump is damaged or can't be read.
    pub fn on_disk(
        &mut self,
        op: OpId,
        result: DiskResult,
        calls: &mut DiskCalls,
    ) -> Result<Option<FoundAll>, Failure> {
        match op.owner {
            OpOwner::Recovery(stream) => self.on_recovery(stream, op.number, result, calls)?,
            _ => self.on_dump(op.number, result, calls)?,
        }
        let reading_streams = !self.running.is_empty();
        Ok((!reading_streams && self.loads.is_empty()).then(|| self.finish()))
    }

    fn on_recovery(
        &mut self,
        stream: u32,
        number: u64,
        result: DiskResult,
        calls: &mut DiskCalls,
    ) -> Result<(), Failure> {
        let recovery = self.running.get_mut(&stream).expect("a completion names a running recovery");
        if let Some(recovered) = recovery.on_disk(number, result, calls).map_err(|error| explain(&error))? {
            self.running.remove(&stream);
            self.recovered.insert(stream, recovered);
            if self.running.is_empty() {
                self.choose();
                self.issue(Load::List, DiskCall::List { dir: DUMP_DIR.into() }, calls);
            }
        }
        Ok(())
    }

    /// Per shard the newest replica, and of it the history with the highest home epoch. What any stream knows to be
    /// destroyed counts in none: an old stream may still hold it, because old streams go only when all is settled.
    fn choose(&mut self) {
        let lowest = self.lowest();
        let mut best: BTreeMap<ShardId, Found> = BTreeMap::new();
        for (&stream, recovered) in &self.recovered {
            for (&shard, state) in &recovered.shards {
                let Some(&lowest) = lowest.get(&shard) else { continue };
                let age = |state: &ShardState| (state.replica, state.home_epoch);
                let newer = best.get(&shard).is_none_or(|found| age(state) > age(&found.state));
                if state.replica.get() >= lowest && newer {
                    let state = ShardState { lowest_replica: lowest, ..state.clone() };
                    best.insert(shard, Found { state, dump: None, moved: stream != self.own_stream });
                }
            }
        }
        self.found = best.into_values().collect();
    }

    /// The lowest replica that may still live of each of this core's shards, by all that the streams say.
    fn lowest(&self) -> BTreeMap<ShardId, u64> {
        let mut all = BTreeMap::new();
        for recovered in self.recovered.values() {
            let of_states = recovered.shards.iter().map(|(&shard, state)| (shard, state.lowest_replica));
            let of_tombstones = recovered.tombstones.iter().map(|(&shard, &lowest)| (shard, lowest));
            for (shard, lowest) in of_states.chain(of_tombstones) {
                if shard.core(self.cores) == self.core {
                    let known = all.entry(shard).or_insert(lowest);
                    *known = lowest.max(*known);
                }
            }
        }
        all
    }

    fn on_dump(&mut self, number: u64, result: DiskResult, calls: &mut DiskCalls) -> Result<(), Failure> {
        let load = self.loads.remove(&number).expect("a completion names a call in flight");
        let done = result.map_err(|error| Failure::Disk(format!("a dump can't be used: {error}")))?;
        match (load, done) {
            (Load::List, DiskDone::Listed(entries)) => self.load_dumps(&entries, calls),
            (Load::Dump { at, len }, DiskDone::Read(bytes)) if bytes.len() == len => {
                self.found[at].dump = Some(bytes);
                Ok(())
            }
            (Load::Dump { at, len }, DiskDone::Read(bytes)) => Err(Failure::Disk(format!(
                "the dump of shard {} has {len} bytes, of which only {} could be read",
                self.found[at].state.shard,
                bytes.len()
            ))),
            (Load::Stray, DiskDone::Done) => Ok(()),
            (_, other) => panic!("a call about dumps was answered by {other:?}"),
        }
    }

    fn load_dumps(&mut self, entries: &[DirEntry], calls: &mut DiskCalls) -> Result<(), Failure> {
        let mut named = BTreeMap::new();
        for (at, found) in self.found.iter().enumerate().filter(|(_, found)| found.state.generation > 0) {
            let state = &found.state;
            named.insert(dump_name(state.shard, state.replica, state.generation), at);
        }
        for entry in entries {
            match named.remove(&entry.name) {
                Some(at) => {
                    let state = &self.found[at].state;
                    let path = dump_path(state.shard, state.replica, state.generation);
                    let len = usize::try_from(entry.len).expect("files fit the address space");
                    self.issue(Load::Dump { at, len }, DiskCall::Read { path, offset: 0, len }, calls);
                }
                None if dump_shard(&entry.name).is_some_and(|shard| shard.core(self.cores) == self.core) => {
                    let path = format!("{DUMP_DIR}/{}", entry.name).into();
                    self.issue(Load::Stray, DiskCall::Remove { path }, calls);
                }
                None => {}
            }
        }
        match named.first_key_value() {
            None => Ok(()),
            Some((name, &at)) => Err(Failure::Corrupt(format!(
                "{DUMP_DIR}/{name} is missing, which holds shard {} up to {}: restore the file. {WITHOUT_IT}",
                self.found[at].state.shard, self.found[at].state.flushed
            ))),
        }
    }

    fn issue(&mut self, load: Load, call: DiskCall, calls: &mut DiskCalls) {
        self.next += 1;
        self.loads.insert(self.next, load);
        calls.push((OpId { owner: OpOwner::Store, number: self.next }, call));
    }

    fn finish(&mut self) -> FoundAll {
        let mut tombstones = self.lowest();
        for found in &self.found {
            tombstones.remove(&found.state.shard);
        }
        let mut all = FoundAll {
            shards: std::mem::take(&mut self.found),
            own: self.recovered.remove(&self.own_stream),
            tombstones,
            promise_ns: 0,
            replayed: (0, 0, 0),
        };
        for recovered in self.recovered.values().chain(&all.own) {
            all.promise_ns = all.promise_ns.max(recovered.promise_ns);
            let (frames, bytes, torn) = all.replayed;
            all.replayed = (frames + recovered.frames, bytes + recovered.bytes, torn + recovered.torn_bytes);
        }
        all
    }
}

fn explain(error: &RecoveryError) -> Failure {
    match error {
        RecoveryError::Disk(error) => Failure::Disk(format!("the log can't be read: {error}")),
        other => Failure::Corrupt(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::StreamEnd;
    use floe_raft::{HardState, Mark, ReplicaId};

    const SHARD: ShardId = ShardId(4);
    /// The newest set's; lower ones are of older sets.
    const OWN: u32 = 9;

    /// What a stream holds of the shard: replica and home epoch of its state, lowest replica of its tombstone.
    fn stream(live: Option<(u64, u64)>, tombstone: Option<u64>) -> Recovered {
        let state = live.map(|(replica, home_epoch)| ShardState {
            shard: SHARD,
            replica: ReplicaId::new(replica).unwrap(),
            home_epoch,
            descriptor: Bytes::new(),
            hard_state: HardState::default(),
            flushed: Mark::ZERO,
            generation: 0,
            entries: Vec::new(),
            lowest_replica: replica,
        });
        Recovered {
            shards: state.map(|state| (SHARD, state)).into_iter().collect(),
            tombstones: tombstone.map(|lowest| (SHARD, lowest)).into_iter().collect(),
            promise_ns: 0,
            boot_epoch: 1,
            end: StreamEnd::START,
            seq_next: 1,
            segments: Default::default(),
            frames: 0,
            bytes: 0,
            torn_bytes: 0,
        }
    }

    /// Replica, home epoch and whether it has to move; and the tombstone that stays.
    fn chosen(streams: &[(u32, Recovered)]) -> (Option<(u64, u64, bool)>, Option<u64>) {
        let mut start = Start {
            core: 0,
            cores: 1,
            own_stream: OWN,
            running: BTreeMap::new(),
            recovered: streams.iter().cloned().collect(),
            found: Vec::new(),
            loads: BTreeMap::new(),
            next: 0,
        };
        start.choose();
        let all = start.finish();
        let found = all.shards.first().map(|found| {
            let ShardState { replica, home_epoch, .. } = found.state;
            (replica.get(), home_epoch, found.moved)
        });
        (found, all.tombstones.get(&SHARD).copied())
    }

    #[test]
    fn a_history_that_has_moved_wins_over_the_one_that_it_came_from() {
        let old = stream(Some((3, 1)), None);
        assert_eq!(chosen(&[(1, old.clone())]), (Some((3, 1, true)), None));
        let moved = stream(Some((3, 2)), None);
        assert_eq!(chosen(&[(1, old), (OWN, moved)]), (Some((3, 2, false)), None));
    }

    #[test]
    fn a_replica_that_was_destroyed_after_its_move_does_not_come_back() {
        let (live, gone) = (stream(Some((3, 1)), None), stream(None, Some(4)));
        assert_eq!(chosen(&[(1, live.clone()), (OWN, gone.clone())]), (None, Some(4)));
        // Whichever of several old sets knows of it.
        assert_eq!(chosen(&[(1, live), (2, gone), (OWN, stream(None, None))]), (None, Some(4)));
    }

    #[test]
    fn a_successor_wins_over_the_destroyed_replica_of_an_old_stream() {
        for home_epoch in [1, 2, 7] {
            let old = stream(Some((3, home_epoch)), None);
            assert_eq!(chosen(&[(1, old), (OWN, stream(Some((5, 1)), None))]), (Some((5, 1, false)), None));
        }
    }

    #[test]
    fn a_tombstone_does_not_concern_the_successor() {
        let gone = stream(None, Some(4));
        assert_eq!(
            chosen(&[(1, gone.clone()), (OWN, stream(Some((5, 1)), None))]),
            (Some((5, 1, false)), None)
        );
        // Not even one that has to move first.
        assert_eq!(
            chosen(&[(1, gone), (2, stream(Some((5, 1)), None)), (OWN, stream(None, None))]),
            (Some((5, 1, true)), None)
        );
    }

    #[test]
    fn a_core_keeps_the_tombstones_of_its_own_shards_alone() {
        let streams = BTreeMap::from([(1, stream(None, Some(4)))]);
        let at = |core| Start {
            core,
            cores: 2,
            own_stream: OWN,
            running: BTreeMap::new(),
            recovered: streams.clone(),
            found: Vec::new(),
            loads: BTreeMap::new(),
            next: 0,
        };
        let kept = |core| at(core).finish().tombstones.contains_key(&SHARD);
        assert_eq!([0, 1].map(kept), [0, 1].map(|core| SHARD.core(2) == core));
    }
}
