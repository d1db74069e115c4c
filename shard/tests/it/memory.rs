//! What idle replicas cost.

use crate::allocator::HELD;
use crate::quiescence::quiet_cluster;
use floe_shard::*;

/// Bytes per replica, in Raft and the shard layer: all that goes when the three nodes' replicas go. It is the mean of
/// one leader and two followers.
const IDLE_REPLICA_BYTES_MAX: i64 = 1024;

#[test]
fn an_idle_replica_of_a_group_of_three_keeps_to_its_bytes() {
    check(3_334);
}

#[test]
#[ignore = "takes a minute in the dev profile"]
fn so_does_each_of_a_hundred_thousand() {
    check(33_334);
}

fn check(shards: u32) {
    let mut cluster = quiet_cluster(shards);
    // Timers from before come up once more.
    cluster.run(400);
    // What the fixture shares with the replicas is theirs alone now.
    cluster.map = ShardMap::new(Vec::new());
    cluster.nodes.iter_mut().for_each(|node| node.disk.clear());
    let with_replicas = HELD.get();
    for node in &mut cluster.nodes {
        node.multi = MultiRaft::new(node.addr, cluster.config.clone(), 2, 7);
    }
    let each = (with_replicas - HELD.get()) / i64::from(3 * shards);
    println!("{each} bytes per idle replica");
    assert!(each <= IDLE_REPLICA_BYTES_MAX, "{each} bytes per idle replica");
    assert!(each > 300, "{each} bytes can't be all of it");
}
