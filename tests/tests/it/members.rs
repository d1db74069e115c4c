//! Scenarios of members that come and go; each ends with the demands of every run.

use crate::scenarios::{heal_and_judge, load, on_seeds};
use floe_shard::{MemberChange, NodeId, Seat, ShardId};
use floe_tests::checker::Violation;
use floe_tests::sim::clock::{MS, SEC};
use floe_tests::sim::cluster::Cluster;
use floe_tests::sim::disk::Crash;

/// Founded on the first three of four nodes.
fn shard(cluster: &Cluster) -> ShardId {
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
fn make(cluster: &mut Cluster, node: u64, to: Seat) -> Result<(), Violation> {
    for _ in 0..50 {
        if change(cluster, node, to, false)? {
            return Ok(());
        }
        cluster.run_for(50 * MS)?;
    }
    panic!("node {node} doesn't become {to:?}");
}

fn others(cluster: &Cluster, node: u64) -> Vec<u64> {
    let places = cluster.descriptor(shard(cluster)).replicas.into_iter().map(|place| place.node.0);
    places.filter(|id| *id != node).collect()
}

/// Its log says who they are; what it has applied doesn't yet, and nobody else can lead (seed 35 of the simulator's).
#[test]
fn a_restarted_voter_reaches_members_that_only_its_log_names() {
    on_seeds(4, |cluster| {
        load(cluster, 100)?;
        let of = shard(cluster);
        let sole = cluster.leader(of).expect("the load has found one");
        let sole_id = sole as u64 + 1;
        for node in others(cluster, sole_id) {
            make(cluster, node, Seat::Vacant)?;
        }
        let newcomer = if sole_id == 4 { 1 } else { 4 };
        make(cluster, newcomer, Seat::Learner)?;
        cluster.run_for(SEC)?;
        // The promotion stands in the log of the only voter, and goes no further.
        cluster.isolate(sole, true, false, SEC);
        let promotion = MemberChange { node: NodeId(newcomer), to: Seat::Voter };
        cluster.ask_for_members(sole, of, vec![promotion], true);
        cluster.run_for(50 * MS)?;
        cluster.crash_node(sole, Crash::Power, 10 * MS);
        heal_and_judge(cluster)?;
        assert_eq!(cluster.descriptor(of).membership().voters.len(), 2, "the promotion is made after all");
        Ok(())
    });
}

#[test]
fn a_learner_that_nobody_has_heard_of_is_not_promoted() {
    on_seeds(4, |cluster| {
        load(cluster, 100)?;
        let founders = others(cluster, 0);
        let absent = (1..=4).find(|node| !founders.contains(node)).expect("one of four is no founder");
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

/// A learner asks for no votes, so nobody tells it that it was removed but who orders another one to its place.
#[test]
fn a_learner_comes_where_a_removed_one_has_not_heard_of_it() {
    on_seeds(4, |cluster| {
        load(cluster, 100)?;
        let founders = others(cluster, 0);
        let spare = (1..=4).find(|node| !founders.contains(node)).expect("one of four is no founder");
        make(cluster, spare, Seat::Learner)?;
        cluster.run_for(SEC)?;
        cluster.crash_node(spare as usize - 1, Crash::Process, 60 * SEC);
        make(cluster, spare, Seat::Vacant)?;
        // Longer than its farewells are repeated.
        cluster.run_for(5 * SEC)?;
        make(cluster, spare, Seat::Learner)?;
        heal_and_judge(cluster)?;
        assert_eq!(cluster.descriptor(shard(cluster)).membership().learners.len(), 1);
        // Only one that exists is promoted.
        make(cluster, spare, Seat::Voter)
    });
}
