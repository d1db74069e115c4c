//! Space: segments are freed, reused, made large enough, and their lack is survived.

use super::crash::{Node, config, recover};
use super::disk::Disk;
use super::model::{Model, append, entries, state};
use crate::wal::{Record, RecoveryError, WalConfig};
use floe_raft::Mark;
use floe_shard::ShardId;

/// Flushes and resets every shard that pins the log.
fn unpin(node: &mut Node, bytes_max: u64) {
    for shard in node.wal.pinning(bytes_max) {
        let mut live = node.model.shards[&shard].clone();
        let last = live.flushed.index + live.entries.len() as u64;
        if let Some(entry) = live.entries.last() {
            live.flushed = Mark::new(entry.mark.term, last);
            live.entries.clear();
        }
        node.append(Record::ShardReset(Box::new(live)));
    }
}

fn write_much(node: &mut Node, turns: u64, bytes_max: u64) -> u64 {
    let mut used_max = 0;
    for turn in 0..turns {
        let shard = turn % 5;
        if !node.model.shards.contains_key(&ShardId(shard)) {
            node.append(Record::ShardReset(Box::new(state(shard, 1))));
        }
        let live = &node.model.shards[&ShardId(shard)];
        let next = live.flushed.index + live.entries.len() as u64 + 1;
        node.append(append(shard, 1, entries(1, next, 4, &[3; 900])));
        unpin(node, bytes_max);
        node.settle();
        used_max = used_max.max(node.wal.bytes_used());
    }
    used_max
}

#[test]
fn space_stays_bounded_while_shards_are_reset() {
    let mut node = Node::boot(Disk::default(), config);
    node.append(Record::Promise { largest_ns: 9 });
    let used = write_much(&mut node, 3000, 600 << 10);
    assert!(used < 2 << 20, "{used} bytes");
    assert_eq!(node.wal.bytes_used(), node.disk.used(), "what is counted is what is there");
    let (renames, creates) = (node.disk.renames, node.disk.creates);
    assert!(renames > creates, "freed segments are reused: {renames} renamed, {creates} made");
    let found = recover(&mut node.disk).expect("nothing is wrong");
    assert_eq!(Model::of(&found), node.model, "nothing of a file's former life is replayed");
    let node = Node::boot(node.disk, config);
    assert!(node.wal.bytes_used() < 3 << 20, "{} bytes after a boot", node.wal.bytes_used());
}

#[test]
fn a_cold_shard_pins_the_log_and_is_named() {
    let mut node = Node::boot(Disk::default(), config);
    for shard in [8, 9] {
        node.append(Record::ShardReset(Box::new(state(shard, 1))));
    }
    write_much(&mut node, 200, u64::MAX);
    let pinning = node.wal.pinning(300 << 10);
    assert!(pinning.contains(&ShardId(8)) && pinning.contains(&ShardId(9)), "{pinning:?}");
    assert!(node.wal.pinning(u64::MAX).is_empty(), "there is room enough");
    unpin(&mut node, 300 << 10);
    assert!(node.wal.pinning(300 << 10).is_empty(), "their resets are on the way");
}

#[test]
fn a_record_of_16_mib_gets_a_segment_of_its_size() {
    let mut node = Node::boot(Disk::default(), config);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.append(append(1, 1, entries(1, 1, 1, &vec![7; 16 << 20])));
    node.append(append(1, 1, entries(1, 2, 1, b"after")));
    node.settle();
    assert_eq!(node.wal.durable(), node.wal.barrier());
    assert_eq!(Model::of(&recover(&mut node.disk).expect("nothing is wrong")), node.model);
}

#[test]
fn a_full_disk_is_tight_and_resumes_by_itself() {
    let disk = Disk { capacity: 300 << 10, ..Disk::default() };
    let mut node = Node::boot(disk, config);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.settle();
    let mut index = 0;
    while node.wal.queued_bytes() == 0 && index < 1000 {
        index += 1;
        node.append(append(1, 1, entries(1, index, 1, &[1; 3000])));
        node.settle();
    }
    assert!(node.wal.is_tight() && !node.failed, "no segment, but no failure");
    let deadline = node.wal.deadline();
    assert!(deadline > node.now && deadline < u64::MAX, "it will be tried again");
    node.now = deadline;
    node.tick();
    node.settle();
    assert!(node.wal.is_tight() && node.wal.queued_bytes() > 0, "still no space");
    node.disk.capacity = 0;
    node.now = node.wal.deadline();
    node.tick();
    node.settle();
    assert!(!node.wal.is_tight());
    assert_eq!(node.wal.queued_bytes(), 0);
    assert_eq!(Model::of(&recover(&mut node.disk).expect("nothing is wrong")), node.model);
}

#[test]
fn a_missing_first_segment_is_noticed() {
    let mut node = Node::boot(Disk::default(), config);
    write_much(&mut node, 300, 500 << 10);
    let found = recover(&mut node.disk).expect("nothing is wrong");
    for file in &found.segments.used {
        let mut disk = node.disk.clone();
        disk.remove(&file.path);
        let newest = Some(file) == found.segments.used.last();
        match recover(&mut disk) {
            Err(RecoveryError::Corruption { .. }) => {}
            Ok(_) => assert!(newest, "{file:?}"),
            Err(other) => panic!("{file:?}: {other}"),
        }
    }
}

#[test]
fn another_k_and_other_sizes_at_the_next_boot_change_nothing() {
    let mut disk = Disk::default();
    for (boot, frames_in_flight) in [4, 1, 7, 2].into_iter().enumerate() {
        let minimum = (20 << 10) << boot;
        let configured = |epoch| WalConfig { frames_in_flight, segment_bytes_min: minimum, ..config(epoch) };
        let mut node = Node::boot(disk, configured);
        write_much(&mut node, 60, 400 << 10);
        let found = recover(&mut node.disk).expect("nothing is wrong");
        assert_eq!(Model::of(&found), node.model);
        disk = node.disk;
    }
}
