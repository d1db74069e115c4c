//! Shards that pin the log's oldest segment are copied forward or dumped, a few at a time.

use crate::cluster::Cluster;
use crate::{S1, one_shard, others};
use floe_shard::ShardId;
use std::collections::BTreeSet;

#[test]
fn a_pinned_segment_is_freed_by_writing_the_whole_state_or_by_a_dump() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    let wanted = cluster.nodes[leader].multi.raft(S1).unwrap().last_mark();
    cluster.nodes[leader].disk.get_mut(&S1).unwrap().entries.clear();
    cluster.nodes[leader].multi.free_bases(&[S1]);
    cluster.run(20);
    assert_eq!(cluster.nodes[leader].disk[&S1].entries.last().unwrap().mark, wanted, "copied forward");
    cluster.put(leader, S1, b"big", &vec![7; 2 << 20]);
    cluster.nodes[leader].multi.free_bases(&[S1]);
    cluster.run(20);
    let state = &cluster.nodes[leader].disk[&S1];
    assert!(state.generation > 0 && state.entries.is_empty(), "dumped first");
}

/// As the log says so, once more.
fn pin(cluster: &mut Cluster, node: usize) -> u64 {
    cluster.nodes[node].multi.free_bases(&[S1]);
    cluster.run(20);
    cluster.nodes[node].disk[&S1].generation
}

#[test]
fn what_pins_again_after_it_was_copied_is_dumped() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    for round in 0..3 {
        cluster.put(leader, S1, b"a", b"1");
        assert_eq!(pin(&mut cluster, leader), round, "copied forward, once");
        assert_eq!(pin(&mut cluster, leader), round + 1, "dumped");
        let state = &cluster.nodes[leader].disk[&S1];
        assert!(state.entries.is_empty(), "{:?}", state.entries);
        assert_eq!(pin(&mut cluster, leader), round + 1, "nothing was applied since");
    }
}

/// A dump would free nothing as long as none of it is committed.
#[test]
fn a_log_that_is_not_committed_is_copied_whenever_it_pins() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    pin(&mut cluster, leader);
    let dumped = pin(&mut cluster, leader);
    cluster.isolated.extend(others(leader));
    cluster.submit(leader, crate::cluster::write(S1, b"a", b"2"));
    for _ in 0..3 {
        assert_eq!(pin(&mut cluster, leader), dumped);
        assert_eq!(cluster.nodes[leader].disk[&S1].entries.len(), 1);
    }
}

/// What a segment holds that is as old as they are: everybody pins it at once.
struct Segment {
    pinning: BTreeSet<ShardId>,
    passes: usize,
    largest: usize,
}

fn free_a_segment(cluster: &mut Cluster) -> Segment {
    let pinning = cluster.map.iter().map(|shard| shard.shard).collect();
    let mut segment = Segment { pinning, passes: 0, largest: 0 };
    cluster.nodes[0].resets.clear();
    while !segment.pinning.is_empty() {
        // The log doesn't name whose reset is on its way.
        let is_named = |shard: &ShardId| !cluster.nodes[0].is_resetting(*shard);
        let pinning: Vec<ShardId> = segment.pinning.iter().copied().filter(is_named).collect();
        cluster.nodes[0].multi.free_bases(&pinning);
        cluster.run(20);
        let resets = std::mem::take(&mut cluster.nodes[0].resets);
        segment.passes += 1;
        segment.largest = segment.largest.max(resets.len());
        for shard in resets {
            assert!(segment.pinning.remove(&shard), "{shard} was written twice");
        }
        assert!(segment.passes < 2_000, "{} still pin it", segment.pinning.len());
    }
    segment
}

#[test]
fn ten_thousand_cold_shards_neither_pin_the_log_nor_are_rewritten_in_a_storm() {
    let mut cluster = Cluster::alone(10_000);
    let shards: Vec<ShardId> = cluster.map.iter().map(|shard| shard.shard).collect();
    cluster.run_until("leaders", |cluster| shards.iter().all(|&shard| cluster.leads(0, shard)));
    cluster.run(100);
    let generations = |cluster: &Cluster| -> BTreeSet<u64> {
        cluster.nodes[0].disk.values().map(|state| state.generation).collect()
    };
    let first = free_a_segment(&mut cluster);
    assert!(first.largest <= 256, "{} shards in one pass", first.largest);
    assert!(first.passes <= 50, "{} passes, every 20 ms", first.passes);
    assert_eq!(generations(&cluster), BTreeSet::from([0]), "copied, not dumped");
    free_a_segment(&mut cluster);
    assert_eq!(generations(&cluster), BTreeSet::from([1]), "each is dumped once");
    let third = free_a_segment(&mut cluster);
    assert!(third.largest <= 256 && third.passes <= 50, "{} passes", third.passes);
    assert_eq!(generations(&cluster), BTreeSet::from([1]), "nothing was applied since");
}
