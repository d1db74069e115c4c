//! Scenarios of members that come and go; each ends with the demands of every run.

use crate::scenarios::{heal_and_judge, load, on_seeds};
use floe_shard::{MemberChange, NodeId, Seat, ShardId};
use floe_tests::checker::Violation;
use floe_tests::sim::clock::{MS, SEC};
use floe_tests::sim::cluster::Cluster;
use floe_tests::sim::disk::Crash;

/// Founded on the first three of four nodes.
pub(crate) fn shard(cluster: &Cluster) -> ShardId {
    cluster.shards[0].shard
}

/// Asks the shard's leader for one change and answers whether it was carried out.
fn change(cluster: &mut Cluster, node: u64, to: Seat, force: bool) -> Result<bool, Violation> {
    let of = shard(cluster);
    let leader = cluster.leader(of).expect("a leader");
    let change = MemberChange { node: NodeId(node), to };
    let client = cluster.ask_for_members(leader, of, vec![change], force);
    cluster.run_until(5 * SEC, |cluster| cluster.outcome(client).is_some())?;
    Ok(cluster.outcome(client) == Some(true))
}

/// As [`change`], again and again until it is carried out.
pub(crate) fn make(cluster: &mut Cluster, node: u64, to: Seat) -> Result<(), Violation> {
    for _ in 0..50 {
        if change(cluster, node, to, false)? {
            return Ok(());
        }
        cluster.run_for(50 * MS)?;
    }
    panic!("node {node} doesn't become {to:?}");
}

#[test]
fn a_learner_that_nobody_has_heard_of_is_not_promoted() {
    on_seeds(4, |cluster| {
        load(cluster, 100)?;
        let founders = cluster.descriptor(shard(cluster));
        let absent = (1..=4).find(|node| founders.replica_on(NodeId(*node)).is_none());
        let absent = absent.expect("one of four is no founder");
        cluster.crash_node(absent as usize - 1, Crash::Process, 60 * SEC);
        make(cluster, absent, Seat::Learner)?;
        for force in [false, true] {
            assert!(!change(cluster, absent, Seat::Voter, force)?, "it doesn't exist; force: {force}");
        }
        heal_and_judge(cluster)?;
        make(cluster, absent, Seat::Voter)?;
        heal_and_judge(cluster).map(|_| ())
    });
}
