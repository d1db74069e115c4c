//! Ten thousand groups on three nodes: quiet ones cost nothing, and the death of a node is no burst.

use floe_shard::{Beat, PeerBatch};
use floe_tests::sim::clock::{MS, SEC};
use floe_tests::sim::cluster::Cluster;
use floe_tests::sim::disk::Crash;
use floe_tests::sim::network::Sent;
use floe_tests::sim::plan::Plan;

const GROUPS: u32 = 10_000;

fn plan() -> Plan {
    let mut plan = Plan::quiet(1, 3);
    plan.shards = GROUPS;
    plan.load.clients = 0;
    plan.shard.quiet_after_ns = 200 * MS;
    (plan.wal.segment_bytes_min, plan.wal.segment_bytes_max) = (4 << 20, 16 << 20);
    (plan.wal.bytes_max, plan.wal.queued_bytes_max) = (128 << 20, 64 << 20);
    plan
}

fn quiet_replicas(cluster: &Cluster) -> usize {
    cluster.multis().map(|(_, multi)| multi.quiet_replicas()).sum()
}

/// Campaigns that each core has begun.
fn campaigns(cluster: &Cluster) -> Vec<u64> {
    cluster.multis().map(|(_, multi)| multi.stats().campaigns).collect()
}

/// In so large a cluster the checkers look at who took a turn; whoever took none has nothing new for them.
fn checkers_have_missed_nothing(cluster: &mut Cluster) {
    let seen = (cluster.safety.checked, cluster.safety.elections);
    cluster.look_at_all().unwrap();
    assert_eq!((cluster.safety.checked, cluster.safety.elections), seen, "entries and elections seen");
}

#[test]
fn ten_thousand_idle_groups_say_nothing_and_survive_a_node_without_a_burst() {
    let mut cluster = Cluster::new(plan());
    let half = u64::from(GROUPS / 2);
    assert!(cluster.run_until(20 * SEC, |cluster| cluster.safety.elections >= half).unwrap());
    checkers_have_missed_nothing(&mut cluster);

    let all = 3 * GROUPS as usize;
    let quiet = cluster.run_until(20 * SEC, |cluster| quiet_replicas(cluster) == all).unwrap();
    assert!(quiet, "{} of {all} replicas are quiet", quiet_replicas(&cluster));
    cluster.network.sent = Sent::default();
    cluster.run_for(3 * SEC).unwrap();
    assert_eq!(quiet_replicas(&cluster), all);
    // Two cores per node, each with its twin on two others, 100 intervals.
    let Sent { frames, bytes_max } = cluster.network.sent;
    assert!((1150..=1250).contains(&frames), "{frames} frames in 3 s");
    let empty = PeerBatch { beat: Some(Beat::of(1)), ..PeerBatch::default() };
    let empty = floe::codec::encode(&empty).len();
    assert_eq!(bytes_max, empty, "bytes of the largest frame, and of a beat without a word about any group");

    let orphans: Vec<_> = cluster
        .shards
        .iter()
        .map(|place| place.shard)
        .filter(|shard| cluster.leader(*shard) == Some(0))
        .collect();
    assert!(orphans.len() > GROUPS as usize / 4, "{} groups are led from node 1", orphans.len());
    cluster.crash_node(0, Crash::Process, 60 * SEC);
    let (mut before, mut most) = (campaigns(&cluster), 0);
    let within = 3 * cluster.plan.election_timeout_ns();
    let end = cluster.run_until(within, |cluster| {
        let now = campaigns(cluster);
        most = now.iter().zip(&before).map(|(now, before)| now - before).max().unwrap_or(0).max(most);
        before = now;
        false
    });
    end.unwrap();
    let leaderless = orphans.iter().filter(|shard| cluster.leader(**shard).is_none()).count();
    assert_eq!(leaderless, 0, "of {} groups, within {within} ns", orphans.len());
    let max = cluster.plan.shard.campaigns_per_turn_max as u64;
    assert!((1..=max).contains(&most), "{most} campaigns begun in one turn, at most {max}");
    checkers_have_missed_nothing(&mut cluster);
}
