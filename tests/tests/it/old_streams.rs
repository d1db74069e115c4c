//! Replicas that come and go while a node can't forget the streams of its older core counts. Each scenario ends with the
//! demands of every run.

use crate::members::{make, shard};
use crate::scenarios::{heal_and_judge, load, on_plans};
use floe_shard::Seat;
use floe_tests::checker::Violation;
use floe_tests::sim::clock::{MS, SEC};
use floe_tests::sim::cluster::Cluster;
use floe_tests::sim::disk::Crash;
use floe_tests::sim::plan::{Load, Plan};
use std::collections::BTreeSet;

/// Four nodes and few clients: what takes long here is waiting.
fn unhurried(seed: u64) -> Plan {
    let plan = Plan::quiet(seed, 4);
    Plan { load: Load { clients: 5, think_ns: 20 * MS, ..plan.load }, ..plan }
}

/// Restarts a node with another core count, on a disk that is full when its old streams could be forgotten. They stay.
fn leave_unsettled(cluster: &mut Cluster, node: usize, cores: u16) -> Result<(), Violation> {
    let old = streams(cluster, node);
    cluster.set_cores(node, cores);
    cluster.crash_node(node, Crash::Power, 10 * MS);
    assert!(!cluster.node(node).is_started(), "it is down");
    assert!(
        cluster.run_until(10 * SEC, |cluster| cluster.node(node).is_started())?,
        "node {node} doesn't start"
    );
    cluster.fill_disk(node, SEC);
    cluster.run_for(2 * SEC)?;
    let now = streams(cluster, node);
    assert!(old.is_subset(&now) && old.len() < now.len(), "settled after all: {old:?}, then {now:?}");
    Ok(())
}

/// The log streams that a node's disk has files of.
fn streams(cluster: &Cluster, node: usize) -> BTreeSet<String> {
    let files = cluster.node(node).disk.listing().into_iter().map(|(path, _)| path);
    files.filter_map(|path| Some(path.strip_prefix("wal/")?.split('/').next()?.to_string())).collect()
}

/// The replica of the scenarios' shard that lives on a node.
fn lives_on(cluster: &Cluster, node: usize) -> Option<u64> {
    let cores = cluster.node(node).process.iter().flat_map(|process| &process.cores);
    let mut multis = cores.filter_map(|core| core.worker.multi());
    multis.find_map(|multi| multi.raft(shard(cluster))).map(|raft| raft.id().get())
}

/// A voter of the shard that doesn't lead it, as a place and an id.
fn follower(cluster: &Cluster) -> (usize, u64) {
    let leader = cluster.leader(shard(cluster)).expect("a leader") as u64 + 1;
    let descriptor = cluster.descriptor(shard(cluster));
    let mut places = descriptor.replicas.iter().map(|place| place.node.0);
    let id = places.find(|id| *id != leader).expect("three voters");
    (id as usize - 1, id)
}

fn restart(cluster: &mut Cluster, node: usize) -> Result<(), Violation> {
    cluster.crash_node(node, Crash::Power, 10 * MS);
    cluster.run_for(3 * SEC)
}

/// Runs a scenario on a shard that holds something, and on a follower of it as a place and an id; then the demands of every
/// run.
fn on_a_follower(scenario: impl Fn(&mut Cluster, usize, u64) -> Result<(), Violation>) {
    on_plans(unhurried, |cluster| {
        load(cluster, 50)?;
        let (node, id) = follower(cluster);
        scenario(cluster, node, id)?;
        heal_and_judge(cluster).map(|_| ())
    });
}

/// Gives a seat to another incarnation, or to nobody; the replica that lives on the node a second later.
fn reseat(cluster: &mut Cluster, node: usize, id: u64, seat: Seat) -> Result<Option<u64>, Violation> {
    make(cluster, id, seat)?;
    cluster.run_for(SEC)?;
    Ok(lives_on(cluster, node))
}

/// While an old stream can't be forgotten it still holds what was destroyed since.
#[test]
fn a_destroyed_replica_does_not_come_back_from_an_old_stream() {
    on_a_follower(|cluster, node, id| {
        leave_unsettled(cluster, node, 1)?;
        assert_eq!(reseat(cluster, node, id, Seat::Vacant)?, None, "it was told that it is removed");
        restart(cluster, node)?;
        assert_eq!(lives_on(cluster, node), None);
        // Nor by way of another set of streams.
        leave_unsettled(cluster, node, 3)?;
        assert_eq!(lives_on(cluster, node), None);
        Ok(())
    });
}

#[test]
fn a_successor_stays_where_an_old_stream_holds_its_predecessor() {
    on_a_follower(|cluster, node, id| {
        let founder = lives_on(cluster, node);
        leave_unsettled(cluster, node, 1)?;
        reseat(cluster, node, id, Seat::Vacant)?;
        let successor = reseat(cluster, node, id, Seat::Learner)?;
        assert!(successor > founder, "{successor:?} came after {founder:?}");
        restart(cluster, node)?;
        assert_eq!(lives_on(cluster, node), successor);
        leave_unsettled(cluster, node, 3)?;
        assert_eq!(lives_on(cluster, node), successor);
        Ok(())
    });
}

#[test]
fn a_tombstone_in_an_old_stream_leaves_the_successor_alone() {
    on_a_follower(|cluster, node, id| {
        assert_eq!(reseat(cluster, node, id, Seat::Vacant)?, None, "it was told that it is removed");
        leave_unsettled(cluster, node, 1)?;
        let successor = reseat(cluster, node, id, Seat::Learner)?;
        assert!(successor.is_some(), "it was created");
        restart(cluster, node)?;
        assert_eq!(lives_on(cluster, node), successor);
        Ok(())
    });
}
