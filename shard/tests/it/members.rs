//! Members come and go.

use crate::cluster::{Cluster, addr, get, value_of};
use crate::{S1, fill};
use floe_raft::{Mark, ReplicaId};
use floe_shard::*;

/// The node that has no replica at first.
const SPARE: usize = 3;

fn four_nodes() -> (Cluster, usize) {
    let mut cluster = Cluster::with_spares(ShardConfig::default(), 1, 1);
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 20);
    (cluster, leader)
}

fn seat(node: usize, to: Seat) -> MemberChange {
    MemberChange { node: addr(node).node, to }
}

/// Asks whoever leads, again while an earlier change is under way.
fn change(cluster: &mut Cluster, changes: &[MemberChange]) -> Answer {
    for _ in 0..100 {
        let leader = cluster.await_leader(S1);
        let request = Request::ChangeMembers { shard: S1, changes: changes.to_vec(), force: false };
        match cluster.ask(leader, request) {
            Answer::Refused(Refusal::Busy(BusyReason::MemberChange) | Refusal::NotLeader { .. }) => {
                cluster.run(20);
            }
            answer => return answer,
        }
    }
    panic!("the change before never ends");
}

fn descriptor(cluster: &Cluster, node: usize) -> &Descriptor {
    cluster.nodes[node].multi.descriptor(S1).expect("a replica is there")
}

fn has_replica(cluster: &Cluster, node: usize) -> bool {
    cluster.nodes[node].multi.descriptor(S1).is_some()
}

/// Until the replica on `node` has applied everything that the leader has.
fn await_caught_up(cluster: &mut Cluster, node: usize) {
    let leader = cluster.await_leader(S1);
    cluster.run_until("it catches up", |cluster| {
        let state = |node: usize| cluster.nodes[node].multi.state_hash(S1);
        state(node).is_some() && state(node) == state(leader)
    });
}

fn add_spare(cluster: &mut Cluster) -> ReplicaId {
    assert_eq!(change(cluster, &[seat(SPARE, Seat::Learner)]), Answer::Done);
    await_caught_up(cluster, SPARE);
    descriptor(cluster, SPARE).replica_on(addr(SPARE).node).expect("it knows itself").replica
}

#[test]
fn a_learner_gets_a_dump_and_is_promoted() {
    let (mut cluster, leader) = four_nodes();
    let before = descriptor(&cluster, leader).epoch;
    let id = add_spare(&mut cluster);
    assert_eq!(id.get(), 4, "the next id of the descriptor");
    cluster.run(50);
    assert!(cluster.nodes[SPARE].multi.stats().installs == 1, "its first state is a dump");
    let stale = cluster.ask(SPARE, get(S1, b"k7", Consistency::ANY_AGE));
    assert!(value_of(&stale).is_some());
    assert_eq!(change(&mut cluster, &[seat(SPARE, Seat::Voter)]), Answer::Done);
    await_caught_up(&mut cluster, SPARE);
    let after = descriptor(&cluster, SPARE);
    assert_eq!((after.epoch.range, after.epoch.membership), (before.range, before.membership + 2));
    assert_eq!((after.membership().voters.len(), after.next_replica_id), (4, 5));
    // Three of four are a majority, the new one among them.
    cluster.isolated.insert(crate::others(leader)[0]);
    fill(&mut cluster, leader, 5);
}

#[test]
fn a_learner_counts_for_nothing() {
    let (mut cluster, leader) = four_nodes();
    add_spare(&mut cluster);
    for node in crate::others(leader) {
        cluster.isolated.insert(node);
    }
    let put = cluster.submit(leader, crate::write(S1, b"x", b"1"));
    cluster.run(2000);
    let answer = cluster.nodes[leader].answers.get(&put);
    assert!(answer.is_none(), "the leader and a learner are no majority: {answer:?}");
    assert_eq!(cluster.leader_of(S1), None);
}

#[test]
fn a_replacement_goes_through_a_joint_configuration_and_leaves_it() {
    let (mut cluster, leader) = four_nodes();
    add_spare(&mut cluster);
    let gone = crate::others(leader)[1];
    let changes = [seat(SPARE, Seat::Voter), seat(gone, Seat::Vacant)];
    assert_eq!(change(&mut cluster, &changes), Answer::Done);
    cluster.run_until("the removed replica is destroyed", |cluster| !has_replica(cluster, gone));
    await_caught_up(&mut cluster, SPARE);
    let after = descriptor(&cluster, SPARE);
    assert!(after.replicas.iter().all(|place| place.role == ReplicaRole::Voter), "{after:?}");
    let nodes: Vec<_> = after.replicas.iter().map(|place| place.node).collect();
    assert!(nodes.len() == 3 && !nodes.contains(&addr(gone).node), "{nodes:?}");
    fill(&mut cluster, leader, 5);
    assert!(!cluster.nodes[gone].disk.contains_key(&S1) && cluster.nodes[gone].dumps.is_empty());
}

#[test]
fn a_leader_that_is_removed_hands_over_and_is_destroyed() {
    let (mut cluster, old) = four_nodes();
    assert_eq!(change(&mut cluster, &[seat(old, Seat::Vacant)]), Answer::Done);
    cluster.run_until("it is destroyed", |cluster| !has_replica(cluster, old));
    let new = cluster.await_leader(S1);
    assert_ne!(new, old);
    fill(&mut cluster, new, 5);
    let tombstone = cluster.nodes[old].tombstones.get(&S1).copied();
    assert!(tombstone.is_some_and(|lowest| lowest > 1), "{tombstone:?}");
}

#[test]
fn a_destroyed_replica_is_not_revived_by_late_orders_nor_after_a_restart() {
    let (mut cluster, leader) = four_nodes();
    let first = add_spare(&mut cluster);
    let old = descriptor(&cluster, leader).clone();
    assert_eq!(change(&mut cluster, &[seat(SPARE, Seat::Vacant)]), Answer::Done);
    cluster.run_until("it is destroyed", |cluster| !has_replica(cluster, SPARE));
    let from = old.replica_on(addr(leader).node).expect("it leads").replica;
    let order = |to, descriptor: &Descriptor| PeerBatch {
        messages: vec![PeerMessage::Placement {
            shard: S1,
            from,
            to,
            descriptor: Box::new(descriptor.clone()),
        }],
        ..PeerBatch::default()
    };
    for restart in [false, true] {
        if restart {
            cluster.restart(SPARE, false);
        }
        let now = cluster.now;
        cluster.nodes[SPARE].multi.receive(now, addr(leader), order(first, &old));
        cluster.run(500);
        assert!(!has_replica(&cluster, SPARE), "{first} comes back (after a restart: {restart})");
    }
    let second = add_spare(&mut cluster);
    assert!(second > first, "{second} after {first}");
    // Nor does an order that is older than the replica destroy it.
    let now = cluster.now;
    cluster.nodes[SPARE].multi.receive(now, addr(leader), order(second, &old));
    cluster.run(500);
    assert!(has_replica(&cluster, SPARE));
}

#[test]
fn only_an_order_creates_and_only_a_learner() {
    let (mut cluster, leader) = four_nodes();
    let mut wrong = descriptor(&cluster, leader).clone();
    let replica = ReplicaId::new(9).expect("not 0");
    let from = wrong.replicas[0].replica;
    let stranger = ReplicaPlace { replica, node: addr(SPARE).node, role: ReplicaRole::Voter };
    wrong.replicas = [&*wrong.replicas, &[stranger]].concat().into();
    let order = PeerMessage::Placement { shard: S1, from, to: replica, descriptor: Box::new(wrong) };
    let last = Mark::new(9, 9);
    let body = floe_raft::Body::PreVote { last };
    let message = floe_raft::Message { from, to: replica, term: 9, body };
    let epoch = Epoch { range: 1, membership: 1 };
    let batch = PeerBatch {
        messages: vec![PeerMessage::Raft { shard: S1, epoch, message }, order],
        ..PeerBatch::default()
    };
    let now = cluster.now;
    cluster.nodes[SPARE].multi.receive(now, addr(leader), batch);
    cluster.run(200);
    assert!(!has_replica(&cluster, SPARE));
}

/// The removed replica trusts the core that led it, and so asks for no votes as long as that core beats.
#[test]
fn a_group_that_goes_quiet_at_once_has_told_the_replica_that_it_removed() {
    let mut cluster = Cluster::with_spares(ShardConfig { quiet_after_ns: 0, ..ShardConfig::default() }, 1, 1);
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 5);
    cluster.run(100);
    let gone = crate::others(leader)[0];
    assert_eq!(change(&mut cluster, &[seat(gone, Seat::Vacant)]), Answer::Done);
    cluster.run_until("it is destroyed", |cluster| !has_replica(cluster, gone));
    cluster.run(2000);
    let quiet: usize = cluster.nodes.iter().map(|node| node.multi.quiet_replicas()).sum();
    assert_eq!(quiet, 2, "the others are quiet once it is told");
}

#[test]
fn a_removed_replica_that_missed_it_learns_it_when_it_asks_for_votes() {
    let (mut cluster, leader) = four_nodes();
    let gone = crate::others(leader)[0];
    cluster.isolated.insert(gone);
    cluster.run(400);
    assert_eq!(change(&mut cluster, &[seat(gone, Seat::Vacant)]), Answer::Done);
    cluster.run(3000);
    assert!(has_replica(&cluster, gone), "nobody could tell it");
    let term = cluster.nodes[leader].multi.raft(S1).expect("it leads").term();
    cluster.isolated.clear();
    cluster.run_until("it is destroyed", |cluster| !has_replica(cluster, gone));
    let raft = cluster.nodes[leader].multi.raft(S1).expect("it leads");
    assert!(raft.is_leader() && raft.term() == term, "it disturbed the others");
}

/// A learner asks for no votes: it asks whether it is a member when it starts, and when a caller wants something.
#[test]
fn a_removed_replica_learns_it_although_it_asks_only_whom_its_own_change_left() {
    let mut cluster = Cluster::new(ShardConfig::default(), 1);
    let old = cluster.await_leader(S1);
    cluster.put(old, S1, b"a", b"1");
    cluster.run(100);
    let [new, third] = crate::others(old);
    cluster.isolated.insert(old);
    let changes = vec![seat(new, Seat::Vacant)];
    cluster.submit(old, Request::ChangeMembers { shard: S1, changes, force: false });
    cluster.run(1000);
    // The one whom that change would have removed is to lead, and stays alone.
    let leader = cluster.await_leader(S1);
    if leader != new {
        let to = addr(new).node;
        assert_eq!(cluster.ask(leader, Request::TransferLeadership { shard: S1, to }), Answer::Done);
    }
    assert_eq!(change(&mut cluster, &[seat(old, Seat::Vacant)]), Answer::Done);
    assert_eq!(change(&mut cluster, &[seat(third, Seat::Vacant)]), Answer::Done);
    // Longer than farewells are repeated.
    cluster.run(5000);
    let asks = cluster.nodes[old].multi.raft(S1).unwrap().membership().voters.clone();
    assert!(!has_replica(&cluster, third) && asks.len() == 2, "{asks:?}");
    cluster.isolated.clear();
    cluster.run(3000);
    assert!(!has_replica(&cluster, old));
}

#[test]
fn a_removed_learner_that_missed_it_learns_it_when_it_starts_or_is_asked() {
    for restarts in [true, false] {
        let (mut cluster, leader) = four_nodes();
        add_spare(&mut cluster);
        cluster.isolated.insert(SPARE);
        assert_eq!(change(&mut cluster, &[seat(SPARE, Seat::Vacant)]), Answer::Done);
        cluster.run(3000);
        assert!(has_replica(&cluster, SPARE), "nobody could tell it");
        cluster.restart(SPARE, false);
        if restarts {
            cluster.isolated.clear();
        } else {
            // It asks, for a while, and nobody hears it.
            cluster.run(5000);
            cluster.isolated.clear();
            cluster.run(1000);
            assert!(has_replica(&cluster, SPARE), "it has asked often enough");
            let refused = cluster.ask(SPARE, crate::write(S1, b"x", b"1"));
            assert_eq!(refused, Answer::Refused(Refusal::NotLeader { leader: None }));
        }
        cluster.run_until("it is destroyed", |cluster| !has_replica(cluster, SPARE));
        assert!(cluster.leads(leader, S1), "restarts: {restarts}");
    }
}

/// A learner asks for no votes, so nobody tells it that it was removed but who orders another one to its place.
#[test]
fn a_learner_that_missed_its_removal_makes_room_for_the_next_one() {
    let (mut cluster, leader) = four_nodes();
    let first = add_spare(&mut cluster);
    cluster.isolated.insert(SPARE);
    assert_eq!(change(&mut cluster, &[seat(SPARE, Seat::Vacant)]), Answer::Done);
    // Longer than its farewells are repeated, and the shard doesn't go quiet meanwhile.
    for puts in 0..30 {
        if puts == 20 {
            cluster.isolated.clear();
        }
        fill(&mut cluster, leader, 1);
        cluster.run(100);
    }
    assert!(has_replica(&cluster, SPARE), "nobody tells it any more");
    assert_eq!(change(&mut cluster, &[seat(SPARE, Seat::Learner)]), Answer::Done);
    cluster.run_until("the next one comes", |cluster| {
        let here = cluster.nodes[SPARE].multi.raft(S1).map(|raft| raft.id());
        here.is_some_and(|here| here > first)
    });
    await_caught_up(&mut cluster, SPARE);
    assert_eq!(change(&mut cluster, &[seat(SPARE, Seat::Voter)]), Answer::Done);
}

#[test]
fn changes_that_can_not_be_are_refused_by_name() {
    let (mut cluster, _) = four_nodes();
    let voter = |node| seat(node, Seat::Voter);
    let nothing: [MemberChange; 0] = [];
    for (changes, part) in [
        (&[voter(SPARE)][..], "join as a learner first"),
        (&nothing[..], "0 changes"),
        (&[voter(0), seat(0, Seat::Vacant)][..], "twice at once"),
        (&[voter(0)][..], "voter already"),
        (&[seat(SPARE, Seat::Learner), seat(7, Seat::Learner)][..], "one at a time"),
        (&[seat(0, Seat::Vacant), seat(1, Seat::Vacant), seat(2, Seat::Vacant)][..], "nobody would be left"),
    ] {
        match change(&mut cluster, changes) {
            Answer::Refused(Refusal::BadChange { reason }) => assert!(reason.contains(part), "{reason}"),
            answer => panic!("{changes:?}: {answer:?}"),
        }
    }
    let refused = change(&mut cluster, &[seat(SPARE, Seat::Vacant)]);
    assert_eq!(refused, Answer::Refused(Refusal::NotAMember { node: addr(SPARE).node }));
    let leader = cluster.await_leader(S1);
    cluster.isolated.insert(crate::others(leader)[0]);
    cluster.run(400);
    match change(&mut cluster, &[seat(crate::others(leader)[1], Seat::Vacant)]) {
        Answer::Refused(Refusal::BadChange { reason }) => assert!(reason.contains("too few"), "{reason}"),
        answer => panic!("{answer:?}"),
    }
}

#[test]
fn in_a_quiet_shard_nobody_counts_as_alive_before_it_answers() {
    let mut cluster = Cluster::new(ShardConfig::default(), 1);
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    let [dead, alive] = crate::others(leader);
    cluster.run(3000);
    assert!(cluster.nodes[leader].multi.raft(S1).unwrap().is_quiet());
    cluster.isolated.insert(dead);
    cluster.run(3000);
    let quiet = cluster.nodes[leader].multi.raft(S1).unwrap().is_quiet();
    assert!(quiet, "a dead node doesn't keep the others from going quiet");
    let refused = change(&mut cluster, &[seat(alive, Seat::Vacant)]);
    let Answer::Refused(Refusal::BadChange { reason }) = refused else { panic!("{refused:?}") };
    assert!(reason.contains("too few of the voters"), "{reason}");
    // What leaves a quorum is taken, at the first try.
    cluster.run(3000);
    assert_eq!(change(&mut cluster, &[seat(dead, Seat::Vacant)]), Answer::Done);
    assert!(matches!(cluster.put(leader, S1, b"a", b"2"), Answer::Written { .. }));
}

#[test]
fn members_survive_a_restart_of_everybody() {
    let (mut cluster, leader) = four_nodes();
    add_spare(&mut cluster);
    let changes = [seat(SPARE, Seat::Voter), seat(crate::others(leader)[0], Seat::Learner)];
    assert_eq!(change(&mut cluster, &changes), Answer::Done);
    cluster.run(300);
    let before = descriptor(&cluster, leader).clone();
    assert_eq!(before.membership().learners.len(), 1, "{before:?}");
    for node in 0..4 {
        cluster.restart(node, false);
    }
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 5);
    cluster.run(300);
    for node in 0..4 {
        assert_eq!(descriptor(&cluster, node), &before, "on node {node}");
    }
    cluster.assert_equal_states(S1);
}

/// It needs the vote of one that its descriptor doesn't name yet, and finds its node in the log.
#[test]
fn a_restarted_voter_reaches_whom_only_its_log_names() {
    let (mut cluster, leader) = four_nodes();
    for gone in crate::others(leader) {
        assert_eq!(change(&mut cluster, &[seat(gone, Seat::Vacant)]), Answer::Done);
    }
    assert_eq!(change(&mut cluster, &[seat(SPARE, Seat::Learner)]), Answer::Done);
    // Promoted as soon as it is heard, before there is a dump for it, and cut off: the change stands in the log
    // of the only voter and goes no further.
    let promotion =
        Request::ChangeMembers { shard: S1, changes: vec![seat(SPARE, Seat::Voter)], force: true };
    loop {
        let asked = cluster.submit(leader, promotion.clone());
        if !cluster.nodes[leader].answers.contains_key(&asked) {
            break;
        }
        cluster.turn();
    }
    cluster.cut_both_ways(leader, SPARE);
    cluster.run(5);
    cluster.restart(leader, false);
    let named = descriptor(&cluster, leader).replica_on(addr(SPARE).node);
    assert_eq!(named, None, "what it restarts from is older than the learner");
    cluster.cut.clear();
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 5);
    assert_eq!(descriptor(&cluster, leader).membership().voters.len(), 2);
}
