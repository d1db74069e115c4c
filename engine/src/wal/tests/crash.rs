//! Crashes: every acknowledged record is there, and what is there is a prefix of what was appended.

use super::disk::{Disk, Pending, Rng, take};
use super::model::{Model, append, entries, random_record, state};
use crate::disk::{DiskCall, DiskErrorKind};
use crate::wal::{Record, Recovered, Recovery, RecoveryError, Wal, WalConfig};
use bytes::Bytes;
use floe_shard::ShardId;

pub const STORE: u128 = 0x5eed;
pub const DIR: &str = "wal/00000001";

pub fn config(boot_epoch: u64) -> WalConfig {
    WalConfig {
        segment_bytes_min: 48 << 10,
        segment_bytes_max: 192 << 10,
        frame_bytes_max: 24 << 10,
        ..WalConfig::new(DIR.into(), 1, STORE, boot_epoch)
    }
}

/// Recovers without any accident.
pub fn recover(disk: &mut Disk) -> Result<Recovered, RecoveryError> {
    recover_or_crash(disk, &mut Rng::new(1), u64::MAX).map(|found| found.expect("nothing interrupts it"))
}

/// Recovers, but stops after so many calls: then the rest of the calls is in flight.
fn recover_or_crash(
    disk: &mut Disk,
    rng: &mut Rng,
    calls_max: u64,
) -> Result<Option<Recovered>, RecoveryError> {
    let (mut calls, mut pending) = (Vec::new(), Vec::new());
    let mut recovery = Recovery::new(DIR.into(), 1, STORE, &mut calls);
    for _ in 0..calls_max {
        take(&mut calls, &mut pending);
        let at = rng.below(pending.len() as u64) as usize;
        let Pending { id, call, data } = pending.remove(at);
        let result = disk.execute(&call, &data);
        if let Some(found) = recovery.on_disk(id.number, result, &mut calls)? {
            assert!(calls.is_empty() && pending.is_empty(), "recovery is done when it says so");
            return Ok(Some(found));
        }
    }
    take(&mut calls, &mut pending);
    crash(disk, pending, rng);
    Ok(None)
}

fn crash(disk: &mut Disk, pending: Vec<Pending>, rng: &mut Rng) {
    if rng.one_in(3) { disk.kill(pending, rng) } else { disk.power_failure(pending, rng) }
}

/// A node with one stream, and what is known about it from outside.
pub struct Node {
    pub disk: Disk,
    pub wal: Wal,
    pub pending: Vec<Pending>,
    pub now: u64,
    /// What all records appended so far amount to.
    pub model: Model,
    /// What the acknowledged ones amount to.
    pub acked: Model,
    /// The others, with their barriers.
    pub unacked: Vec<(u64, Record)>,
    pub failed: bool,
}

impl Node {
    pub fn boot(mut disk: Disk, config: impl Fn(u64) -> WalConfig) -> Node {
        let found = recover(&mut disk).unwrap_or_else(|error| panic!("{error}"));
        Self::boot_on(disk, &found, config)
    }

    fn boot_on(disk: Disk, found: &Recovered, config: impl Fn(u64) -> WalConfig) -> Node {
        let mut calls = Vec::new();
        let wal = Wal::new(config(found.boot_epoch + 1), Some(found), 0, &mut calls);
        let model = Model::of(found);
        let acked = model.clone();
        let mut node =
            Node { disk, wal, pending: vec![], now: 0, model, acked, unacked: vec![], failed: false };
        take(&mut calls, &mut node.pending);
        node
    }

    pub fn append(&mut self, record: Record) {
        self.model.apply(&record);
        self.wal.append(record.clone());
        self.unacked.push((self.wal.barrier(), record));
    }

    pub fn submit(&mut self) {
        let mut calls = Vec::new();
        self.wal.submit(self.now, &mut calls);
        take(&mut calls, &mut self.pending);
    }

    pub fn tick(&mut self) {
        let mut calls = Vec::new();
        self.wal.tick(self.now, &mut calls);
        take(&mut calls, &mut self.pending);
    }

    /// Completes the call at this place of those in flight.
    pub fn complete(&mut self, at: usize) {
        let Pending { id, call, data } = self.pending.remove(at);
        let result = self.disk.execute(&call, &data);
        self.now += 1000;
        let mut calls = Vec::new();
        self.failed |= self.wal.on_disk(self.now, id.number, result, &mut calls).is_err();
        assert!(!self.failed || calls.is_empty(), "nothing is issued after a failure");
        take(&mut calls, &mut self.pending);
        self.note_acked();
    }

    fn note_acked(&mut self) {
        let durable = self.wal.durable();
        let done = self.unacked.iter().take_while(|(barrier, _)| *barrier <= durable).count();
        for (_, record) in self.unacked.drain(..done) {
            self.acked.apply(&record);
        }
    }

    /// Completes everything, in order, until nothing is in flight.
    pub fn settle(&mut self) {
        self.submit();
        while !self.pending.is_empty() && !self.failed {
            self.complete(0);
            self.submit();
        }
    }

    pub fn seal(&mut self) {
        self.settle();
        let mut calls = Vec::new();
        self.wal.seal(self.now, &mut calls);
        take(&mut calls, &mut self.pending);
        self.settle();
        assert!(self.wal.is_sealed(), "all is durable");
    }

    /// Checks a recovered stream: all that was acknowledged, and then a prefix of the rest.
    pub fn check(&self, found: &Recovered) {
        let found = Model::of(found);
        found.check();
        let mut model = self.acked.clone();
        if model == found {
            return;
        }
        for (_, record) in &self.unacked {
            match record {
                // A long record is split.
                Record::Entries { shard, replica, entries } => {
                    for entry in entries {
                        let entries = vec![entry.clone()];
                        model.apply(&Record::Entries { shard: *shard, replica: *replica, entries });
                        if model == found {
                            return;
                        }
                    }
                }
                record => model.apply(record),
            }
            if model == found {
                return;
            }
        }
        panic!("recovered neither what was acknowledged nor a prefix beyond:\n{found:?}\n{:?}", self.acked);
    }
}

/// Some turns of a node with random records and completions, then a crash.
fn live_and_crash(mut node: Node, rng: &mut Rng) -> Node {
    for _ in 0..rng.below(120) {
        if node.failed {
            break;
        }
        for _ in 0..rng.below(4) {
            let record = random_record(&node.model, rng);
            node.append(record);
        }
        if rng.one_in(3) {
            for shard in node.wal.pinning(150 << 10) {
                if let Some(live) = node.model.shards.get(&shard).cloned() {
                    node.append(Record::ShardReset(Box::new(live)));
                }
            }
        }
        if !rng.one_in(4) {
            node.submit();
        }
        for _ in 0..rng.below(5) {
            if !node.pending.is_empty() && !node.failed {
                let at = rng.below(node.pending.len() as u64) as usize;
                node.complete(at);
            }
        }
        if rng.one_in(10) {
            node.now += 20_000_000;
            node.tick();
        }
    }
    let pending = std::mem::take(&mut node.pending);
    crash(&mut node.disk, pending, rng);
    node
}

fn boots_of(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut node = Node::boot(Disk::default(), config);
    for _boot in 0..1 + rng.below(10) {
        node = live_and_crash(node, &mut rng);
        let (calls_max, crashes) = (rng.below(30), rng.below(3));
        for _ in 0..crashes {
            let found = recover_or_crash(&mut node.disk, &mut rng, calls_max);
            drop(found.unwrap_or_else(|error| panic!("seed {seed}: {error}")));
        }
        let found = recover(&mut node.disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        node.check(&found);
        let again = recover(&mut node.disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(Model::of(&found), Model::of(&again), "recovery is idempotent");
        assert_eq!((found.end, found.seq_next), (again.end, again.seq_next), "recovery is idempotent");
        let frames_in_flight = 1 + rng.below(6) as u32;
        let configured = |epoch| WalConfig { frames_in_flight, ..config(epoch) };
        if rng.one_in(3) {
            // What recovery has seen must survive a power failure too: others may have been told.
            node.disk.power_failure(Vec::new(), &mut rng);
            let after = recover(&mut node.disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(Model::of(&found), Model::of(&after), "recovery makes durable what it replays");
        }
        let found = recover(&mut node.disk).expect("it worked before");
        node = Node::boot_on(node.disk, &found, configured);
    }
}

/// Runs a test for many seeds and names the one that fails.
fn for_seeds(count: u64, test: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let first = std::env::var("FLOE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = first.map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(panic) = std::panic::catch_unwind(|| test(seed)) {
            eprintln!("failed with FLOE_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn what_was_acknowledged_survives_any_crash() {
    let seeds = std::env::var("FLOE_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(400);
    for_seeds(seeds, boots_of);
}

/// A workload that crosses segments, frees and recycles them.
fn scripted(node: &mut Node, turns: u64) {
    let mut rng = Rng::new(99);
    for _ in 0..turns {
        for _ in 0..3 {
            let record = random_record(&node.model, &mut rng);
            node.append(record);
        }
        for shard in node.wal.pinning(100 << 10) {
            if let Some(live) = node.model.shards.get(&shard).cloned() {
                node.append(Record::ShardReset(Box::new(live)));
            }
        }
        node.submit();
        while !node.pending.is_empty() && !node.failed {
            node.complete(0);
        }
        if node.failed {
            break;
        }
    }
}

#[test]
fn a_failing_call_never_leads_to_a_false_ack() {
    let mut whole = Node::boot(Disk::default(), config);
    scripted(&mut whole, 60);
    assert!(whole.disk.renames > 0, "the workload recycles segments");
    for kind in [DiskErrorKind::Io, DiskErrorKind::Full, DiskErrorKind::ReadOnly] {
        for at in 2..whole.disk.calls {
            let mut disk = Disk { fail: Some((at, kind)), ..Disk::default() };
            let Ok(found) = recover(&mut disk) else { continue };
            let mut node = Node::boot_on(disk, &found, config);
            scripted(&mut node, 60);
            assert!(node.failed || kind == DiskErrorKind::Full, "{kind:?} of call {at} went unnoticed");
            let before = node.wal.durable();
            if node.failed {
                let in_flight = node.pending.len();
                node.append(Record::Promise { largest_ns: 1 });
                node.now += 1 << 40;
                node.submit();
                node.tick();
                assert_eq!(node.pending.len(), in_flight, "{kind:?} of call {at}: a stopped stream goes on");
            }
            assert_eq!(node.wal.durable(), before, "a stream that failed acknowledges nothing");
            let pending = std::mem::take(&mut node.pending);
            node.disk.power_failure(pending, &mut Rng::new(at));
            let found =
                recover(&mut node.disk).unwrap_or_else(|error| panic!("{kind:?} of call {at}: {error}"));
            node.check(&found);
        }
    }
}

#[test]
fn a_failure_during_recovery_changes_nothing() {
    let mut node = Node::boot(Disk::default(), config);
    scripted(&mut node, 20);
    let (disk, calls) = (node.disk.clone(), node.disk.calls);
    let mut clean = disk.clone();
    let expected = Model::of(&recover(&mut clean).expect("nothing is wrong"));
    for at in calls + 1..=clean.calls {
        let mut disk = Disk { fail: Some((at, DiskErrorKind::Io)), ..disk.clone() };
        assert!(matches!(recover(&mut disk), Err(RecoveryError::Disk(_))), "call {at}");
        disk.fail = None;
        assert_eq!(Model::of(&recover(&mut disk).expect("it was the disk")), expected);
    }
}

#[test]
fn an_idle_stream_is_sealed_once() {
    let mut node = Node::boot(Disk::default(), config);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.settle();
    assert!(!node.wal.is_sealed());
    node.now = node.wal.deadline();
    node.tick();
    node.settle();
    assert!(node.wal.is_sealed());
    assert_eq!(node.wal.deadline(), u64::MAX, "nothing is left to do");
    let frames = node.wal.stats().frames;
    node.now += 1 << 40;
    node.tick();
    node.settle();
    assert_eq!(node.wal.stats().frames, frames, "a sealed stream is not sealed again");
}

#[test]
fn frames_are_issued_up_to_k_and_acknowledged_in_order() {
    let mut node = Node::boot(Disk::default(), config);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.settle();
    let durable = node.wal.durable();
    for index in 1..=10 {
        node.append(append(1, 1, entries(1, index, 1, b"x")));
        node.submit();
    }
    let frames = |node: &Node| {
        node.pending
            .iter()
            .filter(|call| matches!(&call.call, DiskCall::Write { offset, .. } if *offset > 0))
            .count()
    };
    assert_eq!(frames(&node), 4, "K = 4");
    assert_eq!(node.wal.barrier(), durable + 5, "the rest waits in one frame");
    let last = node.pending.len() - 1;
    node.complete(last);
    assert_eq!(node.wal.durable(), durable, "a later frame alone counts for nothing");
    node.settle();
    assert_eq!(node.wal.durable(), durable + 5);
    assert_eq!(node.wal.queued_bytes(), 0);
    assert_eq!(node.wal.stats().entries, 10);
}

#[test]
fn a_destroyed_shard_stays_destroyed_when_its_segments_are_gone() {
    let mut node = Node::boot(Disk::default(), config);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.append(Record::ShardReset(Box::new(state(2, 1))));
    node.append(Record::Promise { largest_ns: 77 });
    node.append(Record::ShardTombstone { shard: ShardId(2), lowest_replica: 5 });
    for index in 1..400 {
        node.append(append(1, 1, entries(1, index, 1, &[1; 3000])));
        if index % 40 == 0 {
            let mut fresh = node.model.shards[&ShardId(1)].clone();
            fresh.entries.clear();
            fresh.flushed = floe_raft::Mark::new(1, index);
            node.append(Record::ShardReset(Box::new(fresh)));
        }
        node.settle();
    }
    let found = recover(&mut node.disk).expect("nothing is wrong");
    assert!(found.segments.used[0].id > 2, "the first segments are gone");
    assert_eq!(found.promise_ns, 77);
    assert_eq!(found.tombstones[&ShardId(2)], 5);
    node.check(&found);
}

#[test]
fn a_reset_in_parts_is_void_until_its_last_part() {
    let mut node = Node::boot(Disk::default(), config);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.append(append(1, 1, entries(1, 1, 30, &[5; 2000])));
    node.settle();
    let mut whole = node.model.shards[&ShardId(1)].clone();
    whole.descriptor = Bytes::from_static(b"another");
    let before = node.acked.clone();
    node.append(Record::ShardReset(Box::new(whole)));
    assert!(node.wal.barrier() > node.wal.durable() + 2, "it takes several frames");
    node.submit();
    let writes = node.pending.iter().position(|call| matches!(call.call, DiskCall::Write { .. }));
    node.complete(writes.expect("a frame is in flight"));
    let mut disk = node.disk.clone();
    assert_eq!(Model::of(&recover(&mut disk).expect("nothing is wrong")), before);
    node.settle();
    assert_eq!(Model::of(&recover(&mut node.disk).expect("nothing is wrong")), node.model);
}

#[cfg(feature = "planted")]
#[test]
fn the_planted_bugs_break_their_promises() {
    let mut node = Node::boot(Disk::default(), config);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.settle();
    floe_raft::plant(Some(floe_raft::Planted::AckBeforeDurable));
    node.append(append(1, 1, entries(1, 1, 1, b"lost")));
    node.submit();
    assert_eq!(node.wal.durable(), node.wal.barrier(), "acknowledged while the write is in flight");
    floe_raft::plant(None);
}
