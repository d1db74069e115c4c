//! Reads that don't go to the leader.

use crate::cluster::{Cluster, MS, get, value_of, write};
use crate::{S1, fill, one_shard, others};
use floe_shard::*;
use std::time::Duration;

const LOCAL: Consistency = Consistency::LinearizableLocal;

#[test]
fn followers_and_learners_see_every_write_answered_before() {
    let mut cluster = Cluster::with_spares(ShardConfig::default(), 1, 1);
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"0");
    let learner = MemberChange { node: cluster.nodes[3].addr.node, to: Seat::Learner };
    let change = Request::ChangeMembers { shard: S1, changes: vec![learner], force: false };
    assert_eq!(cluster.ask(leader, change), Answer::Done);
    cluster.run_until("a learner", |cluster| cluster.nodes[3].multi.raft(S1).is_some());
    cluster.run(100);
    let others = [others(leader)[0], others(leader)[1], 3];
    for round in 0..20_u8 {
        cluster.put(leader, S1, b"a", &[round]);
        for node in others {
            let answer = cluster.ask(node, get(S1, b"a", LOCAL));
            assert_eq!(value_of(&answer), Some(&[round][..]), "node {node}");
        }
    }
    assert_eq!(cluster.leader_of(S1), Some(leader));
}

#[test]
fn all_reads_of_a_followers_turn_ask_the_leader_once() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    cluster.run(100);
    let follower = others(leader)[0];
    let node = &mut cluster.nodes[follower];
    node.messages_per_turn = 0;
    let before = node.multi.stats();
    let ids: Vec<_> = (0..50).map(|_| cluster.submit(follower, get(S1, b"a", LOCAL))).collect();
    let done = |cluster: &Cluster| ids.iter().all(|id| cluster.nodes[follower].answers.contains_key(id));
    cluster.run_until("reads", done);
    let (node, after) = (&cluster.nodes[follower], cluster.nodes[follower].multi.stats());
    assert_eq!((after.reads - before.reads, after.read_rounds - before.read_rounds), (50, 1));
    assert_eq!(node.messages_per_turn, 1, "one question for all");
}

#[test]
fn a_follower_that_lags_reads_only_once_it_has_caught_up() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"old");
    cluster.run(100);
    let lags = others(leader)[0];
    cluster.isolated.insert(lags);
    cluster.put(leader, S1, b"a", b"new");
    fill(&mut cluster, leader, 5);
    let id = cluster.submit(lags, get(S1, b"a", LOCAL));
    cluster.run(20);
    assert!(!cluster.nodes[lags].answers.contains_key(&id), "its leader hasn't said how far it must be");
    cluster.isolated.clear();
    // Its question got lost; another one doesn't.
    let value = cluster.ask(lags, get(S1, b"a", LOCAL));
    assert_eq!(value_of(&value), Some(&b"new"[..]));
}

#[test]
fn a_follower_that_reaches_no_leader_turns_readers_away() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    cluster.run(100);
    let alone = others(leader)[0];
    cluster.isolated.insert(alone);
    let began = cluster.now;
    let answer = cluster.ask(alone, get(S1, b"a", LOCAL));
    assert!(matches!(answer, Answer::Refused(Refusal::NotLeader { .. })), "{answer:?}");
    let waited = (cluster.now - began) / MS;
    assert!(waited <= 301, "{waited} ms, an election timeout has 300");
}

#[test]
fn a_follower_waits_until_it_has_applied_what_the_leader_says() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"old");
    cluster.run(100);
    let slow = others(leader)[0];
    cluster.slow_disks.insert(slow, 40 * MS);
    let began = cluster.now;
    cluster.put(leader, S1, b"a", b"new");
    let value = cluster.ask(slow, get(S1, b"a", LOCAL));
    assert_eq!(value_of(&value), Some(&b"new"[..]));
    assert!(cluster.now - began >= 40 * MS, "what isn't durable here isn't applied here");
}

/// No clock of its group has moved since it fell quiet.
#[test]
fn a_quiet_leader_that_was_replaced_is_as_old_as_its_last_answers() {
    let mut cluster = one_shard();
    cluster.nodes.iter_mut().for_each(|node| node.multi.allow_promises(150 * MS));
    let old = cluster.await_leader(S1);
    cluster.put(old, S1, b"a", b"old");
    let raft =
        |cluster: &Cluster| cluster.nodes[old].multi.raft(S1).map(|raft| (raft.is_quiet(), raft.lease()));
    cluster.run_until("quiet", |cluster| raft(cluster).is_some_and(|(is_quiet, _)| is_quiet));
    assert!(raft(&cluster).is_some_and(|(_, lease)| lease.is_none()), "who is quiet has no lease");
    cluster.isolated.insert(old);
    let new = cluster.await_leader(S1);
    cluster.put(new, S1, b"a", b"new");
    cluster.run(400);
    let max = Duration::from_millis(300);
    let answer = cluster.ask(old, get(S1, b"a", Consistency::Stale { max }));
    assert!(matches!(answer, Answer::Refused(Refusal::TooStale { .. })), "{answer:?}");
}

/// The follower asks whom it still takes for the leader.
#[test]
fn a_deposed_leader_gives_its_last_follower_no_index() {
    let mut cluster = Cluster::of_five();
    let old = cluster.await_leader(S1);
    cluster.put(old, S1, b"a", b"old");
    cluster.run(100);
    let follower = (old + 1) % 5;
    for one in [old, follower] {
        (0..5).filter(|&two| two != old && two != follower).for_each(|two| cluster.cut_both_ways(one, two));
    }
    let rest = |cluster: &Cluster| (2..5).map(|step| (old + step) % 5).find(|&node| cluster.leads(node, S1));
    cluster.run_until("a new leader", |cluster| rest(cluster).is_some());
    let new = rest(&cluster).unwrap();
    cluster.put(new, S1, b"a", b"new");
    assert!(cluster.leads(old, S1), "it doesn't know yet");
    let answer = cluster.ask(follower, get(S1, b"a", LOCAL));
    assert!(matches!(answer, Answer::Refused(Refusal::NotLeader { .. })), "{answer:?}");
}

#[test]
fn a_local_read_wakes_its_quiet_group_and_raises_no_term() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    let quiet = |cluster: &Cluster| cluster.nodes.iter().all(|node| node.multi.quiet_replicas() == 1);
    cluster.run_until("quiet", quiet);
    let term = cluster.nodes[leader].multi.status(S1).unwrap().term;
    let began = cluster.now;
    let answer = cluster.ask(others(leader)[0], get(S1, b"a", LOCAL));
    assert_eq!(value_of(&answer), Some(&b"1"[..]));
    assert!(cluster.now - began <= 10 * MS, "{} ns for two rounds", cluster.now - began);
    cluster.run_until("quiet again", quiet);
    assert_eq!(cluster.nodes[leader].multi.status(S1).unwrap().term, term);
}

fn stale(ms: u64) -> Consistency {
    Consistency::Stale { max: Duration::from_millis(ms) }
}

#[test]
fn a_follower_serves_what_is_fresh_enough_at_once_and_without_a_word() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    cluster.run(200);
    for node in 0..3 {
        for _ in 0..200 {
            cluster.turn();
            let id = cluster.submit(node, get(S1, b"a", stale(100)));
            let answer = cluster.nodes[node].answers.remove(&id);
            assert_eq!(value_of(&answer.expect("at once")), Some(&b"1"[..]), "node {node}");
        }
        assert_eq!(cluster.nodes[node].multi.stats().read_rounds, 0);
    }
}

#[test]
fn a_stale_read_never_misses_what_was_acknowledged_longer_ago_than_its_bound() {
    const BOUND_MS: u64 = 40;
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    let lags = others(leader)[0];
    cluster.slow_disks.insert(lags, 90 * MS);
    let mut acknowledged = Vec::new();
    for round in 0..60_u8 {
        cluster.put(leader, S1, b"a", &[round]);
        acknowledged.push(cluster.now);
        let asked = cluster.now;
        let answer = cluster.ask(lags, get(S1, b"a", stale(BOUND_MS)));
        let due = acknowledged.iter().filter(|at| **at < asked - BOUND_MS * MS).count();
        let seen = value_of(&answer).map_or(0, |value| usize::from(value[0]) + 1);
        assert!(seen >= due, "write {due} was acknowledged {BOUND_MS} ms before, {seen} is seen");
    }
}

/// A majority without the leader's disk commits, and could show what the leader can't yet.
#[test]
fn no_read_elsewhere_is_ahead_of_the_leader() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"old");
    cluster.run(100);
    let follower = others(leader)[0];
    cluster.slow_disks.insert(leader, 60 * MS);
    let put = cluster.submit(leader, write(S1, b"a", b"new"));
    let commit = cluster.nodes[leader].multi.raft(S1).unwrap().last_mark().index;
    let (began, mut was_ahead) = (cluster.now, false);
    while !cluster.nodes[leader].answers.contains_key(&put) {
        assert!(cluster.now - began < 200 * MS, "{:?}", cluster.nodes[leader].multi.status(S1));
        let answer = cluster.ask(follower, get(S1, b"a", stale(100)));
        let raft = cluster.nodes[leader].multi.raft(S1).unwrap();
        was_ahead |= raft.commit() == commit && raft.status().applied < commit;
        let is_applied = raft.status().applied == commit;
        assert!(is_applied || value_of(&answer) == Some(&b"old"[..]), "the leader still serves the old one");
        cluster.turn();
    }
    assert!(was_ahead, "followers' disks were faster");
}

#[test]
fn a_follower_that_is_cut_off_says_how_old_it_is() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    cluster.run(200);
    let alone = others(leader)[0];
    cluster.isolated.insert(alone);
    let began = cluster.now;
    assert!(matches!(cluster.ask(alone, get(S1, b"a", stale(200))), Answer::Value(Some(_))));
    assert_eq!(cluster.now, began, "it was heard of a moment ago");
    cluster.run(150);
    let answer = cluster.ask(alone, get(S1, b"a", stale(200)));
    let Answer::Refused(Refusal::TooStale { age: Some(age) }) = answer else { panic!("{answer:?}") };
    let since_cut = Duration::from_nanos(cluster.now - began);
    let most = since_cut + Duration::from_millis(100);
    assert!(since_cut <= age && age <= most, "{age:?} old, cut off for {since_cut:?}");
    assert!(matches!(cluster.ask(alone, get(S1, b"a", Consistency::ANY_AGE)), Answer::Value(Some(_))));
}

#[test]
fn a_quiet_follower_asks_before_it_serves_a_stale_read() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    let quiet = |cluster: &Cluster| cluster.nodes.iter().all(|node| node.multi.quiet_replicas() == 1);
    cluster.run_until("quiet", quiet);
    cluster.run(1000);
    let began = cluster.now;
    let answer = cluster.ask(others(leader)[0], get(S1, b"a", stale(50)));
    assert_eq!(value_of(&answer), Some(&b"1"[..]));
    let took = (cluster.now - began) / MS;
    assert!((2..=10).contains(&took), "{took} ms for two rounds");
    assert!(!quiet(&cluster));
}

/// A quiet leader's core beats on, but it can't know whether the others have elected another one meanwhile.
#[test]
fn the_beats_of_a_quiet_leaders_core_vouch_for_nothing() {
    let mut cluster = Cluster::of_five();
    let old = cluster.await_leader(S1);
    cluster.put(old, S1, b"a", b"old");
    let quiet = |cluster: &Cluster| cluster.nodes.iter().all(|node| node.multi.quiet_replicas() == 1);
    cluster.run_until("quiet", quiet);
    let follower = (old + 1) % 5;
    for one in [old, follower] {
        (0..5).filter(|&two| two != old && two != follower).for_each(|two| cluster.cut_both_ways(one, two));
    }
    let rest = |cluster: &Cluster| (2..5).map(|step| (old + step) % 5).find(|&node| cluster.leads(node, S1));
    cluster.run_until("a new leader", |cluster| rest(cluster).is_some());
    cluster.put(rest(&cluster).unwrap(), S1, b"a", b"new");
    cluster.run(200);
    assert_eq!(cluster.nodes[follower].multi.quiet_replicas(), 1, "its leader's core beats");
    let answer = cluster.ask(follower, get(S1, b"a", stale(100)));
    assert!(matches!(answer, Answer::Refused(Refusal::TooStale { .. })), "{answer:?}");
}
