//! A replica that is a moment behind gets log, whoever leads.

use crate::cluster::Cluster;
use crate::{S1, fill, others, small_logs};
use floe_raft::{FeedState, Index, Raft};
use floe_shard::*;

fn raft(cluster: &Cluster, node: usize) -> &Raft {
    cluster.nodes[node].multi.raft(S1).expect("every node has the shard")
}

fn flushed(cluster: &Cluster, node: usize) -> Index {
    cluster.nodes[node].multi.status(S1).expect("every node has the shard").flushed.index
}

/// Two have taken 100 KiB and dumped on the way; the third was cut off meanwhile. Answers who leads, who follows
/// and who is behind.
fn one_behind(cluster: &mut Cluster) -> [usize; 3] {
    let leader = cluster.await_leader(S1);
    fill(cluster, leader, 10);
    cluster.run(100);
    let [follower, behind] = others(leader);
    cluster.isolated.insert(behind);
    fill(cluster, leader, 100);
    cluster.run(100);
    let has = raft(cluster, behind).last_mark().index;
    assert!(flushed(cluster, follower) > has + 10, "the follower has dumped what the third lacks");
    [leader, follower, behind]
}

fn assert_catches_up_by_log(cluster: &mut Cluster, behind: usize, leader: usize) {
    let last = raft(cluster, leader).last_mark().index;
    cluster.run_until("it has caught up", |cluster| {
        let peers = raft(cluster, leader).status().peers;
        assert!(peers.iter().all(|peer| peer.state != FeedState::Snapshot), "a dump is due: {peers:?}");
        raft(cluster, behind).applied_index() >= last
    });
    assert_eq!(cluster.nodes[behind].multi.stats().installs, 0);
}

#[test]
fn a_leader_that_was_handed_over_to_feeds_a_laggard_from_its_log() {
    let mut cluster = small_logs();
    let [old, new, behind] = one_behind(&mut cluster);
    let to = cluster.nodes[new].addr.node;
    assert_eq!(cluster.ask(old, Request::TransferLeadership { shard: S1, to }), Answer::Done);
    cluster.isolated.clear();
    assert_eq!(cluster.await_leader(S1), new);
    assert_catches_up_by_log(&mut cluster, behind, new);
    cluster.run(100);
    cluster.assert_equal_states(S1);
}

#[test]
fn whoever_replaces_a_dead_leader_feeds_a_laggard_from_its_log() {
    let mut cluster = small_logs();
    let [dead, new, behind] = one_behind(&mut cluster);
    cluster.isolated = [dead].into();
    cluster.run_until("a leader", |cluster| cluster.leads(new, S1));
    assert_catches_up_by_log(&mut cluster, behind, new);
}

#[test]
fn followers_keep_no_more_log_for_a_laggard_than_leaders() {
    let mut cluster = small_logs();
    let [leader, follower, behind] = one_behind(&mut cluster);
    fill(&mut cluster, leader, 400);
    cluster.run(100);
    let first = |node: usize| raft(&cluster, node).first_index();
    assert!(first(leader) > 100 && first(follower) > 100, "{} and {}", first(leader), first(follower));
    let bytes = [leader, follower].map(|node| raft(&cluster, node).log_bytes());
    assert!(bytes.iter().all(|bytes| *bytes < 160 << 10), "{bytes:?} bytes");
    assert!(first(behind) < 100, "it has heard nothing");
}

#[test]
fn a_follower_drops_what_all_hold() {
    let mut cluster = small_logs();
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 150);
    cluster.run(100);
    for node in others(leader) {
        let (first, flushed) = (raft(&cluster, node).first_index(), flushed(&cluster, node));
        assert!(flushed > 50 && first == flushed + 1, "it begins at {first}, and {flushed} is dumped");
    }
}

#[test]
fn a_quiet_follower_keeps_nothing_for_a_dead_replica() {
    let mut cluster = small_logs();
    let [leader, follower, behind] = one_behind(&mut cluster);
    let kept = raft(&cluster, follower).first_index();
    assert!(kept <= raft(&cluster, behind).last_mark().index + 1, "until then it has the log from {kept} on");
    cluster.run_until("quiet", |cluster| cluster.nodes[follower].multi.quiet_replicas() == 1);
    cluster.run(5);
    assert_eq!(raft(&cluster, follower).first_index(), flushed(&cluster, follower) + 1);
    assert!(raft(&cluster, leader).first_index() <= kept, "its leader keeps it");
}
