//! Links that fail in part (Howard & Abraham 2020): who leads, how soon, and that it stays so.

use crate::cluster::{Cluster, MS};
use crate::{S1, one_shard, others};
use floe_raft::Term;
use floe_shard::*;

/// The upper bound of the randomized timeout.
const ELECTION_TIMEOUT_MS: u64 = 300;

fn terms(cluster: &Cluster) -> Vec<Term> {
    cluster.nodes.iter().map(|node| node.multi.status(S1).expect("every node has the shard").term).collect()
}

fn settled() -> (Cluster, usize) {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    cluster.run(100);
    (cluster, leader)
}

/// Nobody raises a term for so long, and writes go on at `leader`.
fn assert_stable(cluster: &mut Cluster, leader: usize) {
    let before = terms(cluster);
    for _ in 0..20 {
        assert!(matches!(cluster.put(leader, S1, b"a", b"2"), Answer::Written { .. }));
        cluster.run(ELECTION_TIMEOUT_MS / 2);
    }
    assert_eq!(terms(cluster), before, "terms rise");
    assert!(cluster.leads(leader, S1));
}

/// Within two election timeouts after the links from or to the leader are cut another one leads, and the old one doesn't.
fn replaced_after(cut: impl Fn(usize, usize) -> (usize, usize)) {
    let (mut cluster, old) = settled();
    cluster.cut.extend(others(old).map(|other| cut(old, other)));
    let began = cluster.now;
    let next = |cluster: &Cluster| others(old).into_iter().find(|&node| cluster.leads(node, S1));
    cluster.run_until("another leader", |cluster| next(cluster).is_some());
    let took = (cluster.now - began) / MS;
    assert!(took <= 2 * ELECTION_TIMEOUT_MS, "{took} ms");
    let new = next(&cluster).expect("it was just seen");
    cluster.run((2 * ELECTION_TIMEOUT_MS).saturating_sub(took));
    assert!(!cluster.leads(old, S1), "two lead, in different terms");
    let disturbed = cluster.nodes[new].multi.status(S1).expect("every node has the shard").term;
    assert_stable(&mut cluster, new);
    cluster.cut.clear();
    cluster.run(2 * ELECTION_TIMEOUT_MS);
    assert!(cluster.leads(new, S1), "the old one comes back and changes nothing");
    assert_eq!(terms(&cluster), [disturbed; 3]);
}

#[test]
fn a_leader_that_nobody_hears_is_replaced_within_two_election_timeouts() {
    replaced_after(|leader, other| (leader, other));
}

#[test]
fn a_leader_that_hears_nobody_steps_down_within_two_election_timeouts() {
    replaced_after(|leader, other| (other, leader));
}

#[test]
fn a_triangle_without_one_link_of_the_leader_keeps_its_leader_and_goes_on_writing() {
    let (mut cluster, leader) = settled();
    let [one, _] = others(leader);
    let before = terms(&cluster);
    cluster.cut_both_ways(leader, one);
    // While nobody writes its log is as good as any: it isn't elected only because the third hears the leader.
    cluster.run(2 * ELECTION_TIMEOUT_MS);
    assert_eq!(terms(&cluster), before, "the third has helped it");
    assert_stable(&mut cluster, leader);
    assert_eq!(terms(&cluster), before);
}

/// One of them asks for votes although it hears the leader: the leader is all that it can ask, and doesn't help.
#[test]
fn a_triangle_without_the_link_of_its_followers_keeps_its_leader_whoever_campaigns() {
    let (mut cluster, leader) = settled();
    let [one, other] = others(leader);
    let before = terms(&cluster);
    cluster.cut_both_ways(one, other);
    assert_stable(&mut cluster, leader);
    let now = cluster.now;
    cluster.nodes[one].multi.campaign(now, S1);
    cluster.run(ELECTION_TIMEOUT_MS);
    assert_eq!(terms(&cluster), before, "the leader has voted against itself");
    assert_stable(&mut cluster, leader);
}

/// Nor can anybody take its place: the others don't hear each other. It leads no longer than it hears a quorum, and
/// when the links are back whoever leads does so in the next term, since nobody has stood for election in vain.
#[test]
fn a_leader_that_nobody_hears_steps_down_though_nobody_replaces_it() {
    let (mut cluster, leader) = settled();
    let [one, other] = others(leader);
    let before = terms(&cluster);
    cluster.cut.extend([(leader, one), (leader, other)]);
    cluster.cut_both_ways(one, other);
    cluster.run(2 * ELECTION_TIMEOUT_MS);
    assert_eq!(cluster.leader_of(S1), None, "it hears its followers campaign, but none of them answers it");
    cluster.run(10 * ELECTION_TIMEOUT_MS);
    assert_eq!(terms(&cluster), before, "terms rise while nobody can be elected");
    cluster.cut.clear();
    let next = cluster.await_leader(S1);
    cluster.run(ELECTION_TIMEOUT_MS);
    assert_stable(&mut cluster, next);
}

#[test]
fn a_node_that_returns_from_a_minority_raises_no_term() {
    let (mut cluster, leader) = settled();
    let before = terms(&cluster);
    let away = others(leader)[0];
    cluster.isolated.insert(away);
    for _ in 0..10 {
        cluster.put(leader, S1, b"a", b"3");
        cluster.run(ELECTION_TIMEOUT_MS);
    }
    cluster.isolated.clear();
    cluster.run(2 * ELECTION_TIMEOUT_MS);
    assert_eq!(terms(&cluster), before);
    assert_stable(&mut cluster, leader);
    cluster.run(100);
    cluster.assert_equal_states(S1);
}
