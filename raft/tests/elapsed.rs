//! Elapsed time is what the clock says (lease rule 5): who stood still is as much older as everybody else, and the
//! ticks that come late afterwards are no time.

mod cluster;

use cluster::{Cluster, replica};
use floe_raft::{Config, Message, Nanos, RoleKind};
use std::collections::VecDeque;

const MS: Nanos = 1_000_000;
const PROMISE: Nanos = 150 * MS;
/// Longer than any promise, shorter than what a leader waits for its quorum.
const STALL: Nanos = 200 * MS;

fn deliver_all(cluster: &mut Cluster) {
    while !cluster.net.is_empty() {
        cluster.deliver_at(0);
    }
}

/// Takes what is in flight to one replica.
fn take_inbox(cluster: &mut Cluster, number: usize) -> VecDeque<Message> {
    let (inbox, rest) = cluster.net.drain(..).partition(|message| message.to == replica(number));
    cluster.net = rest;
    inbox
}

/// Three voters, of which the first leads and has a lease.
fn led() -> Cluster {
    let mut cluster = Cluster::new(3, 0, Config::default(), 1);
    cluster.allow_promises(PROMISE);
    cluster.with(1, |raft, now| raft.campaign(now));
    deliver_all(&mut cluster);
    assert!(cluster.node(1).raft().lease().is_some(), "{:?}", cluster.node(1).raft());
    cluster
}

#[test]
fn a_leader_that_stood_still_has_no_lease_whatever_it_hears_first() {
    let mut cluster = led();
    cluster.now += 30 * MS;
    cluster.beat();
    for number in [2, 3] {
        let beats = take_inbox(&mut cluster, number);
        beats.into_iter().for_each(|beat| cluster.deliver(beat));
    }
    let answers = take_inbox(&mut cluster, 1);
    assert_eq!(answers.len(), 2, "{answers:?}");
    // While it gets no turn the others elect another leader.
    cluster.now += STALL;
    cluster.side = vec![1, 0, 0];
    cluster.with(2, |raft, now| raft.campaign(now));
    deliver_all(&mut cluster);
    assert_eq!(cluster.leader(), Some(2));
    cluster.side.fill(0);
    for answer in answers {
        cluster.deliver(answer);
        let raft = cluster.node(1).raft();
        assert!(raft.is_leader(), "nobody has told it");
        assert_eq!(raft.lease(), None, "promises of {STALL} ns ago");
    }
}

#[test]
fn late_ticks_end_neither_a_promise_nor_a_lease() {
    const LATE_TICKS: usize = 50;
    let mut cluster = led();
    cluster.now += STALL;
    // What they hear first, before the ticks that they have missed.
    cluster.beat();
    deliver_all(&mut cluster);
    for _ in 0..LATE_TICKS {
        for number in 1..=3 {
            cluster.with(number, |raft, now| raft.tick(now));
        }
    }
    assert!(cluster.node(1).raft().lease().is_some(), "the quorum has just promised");
    for number in [2, 3] {
        let raft = cluster.node(number).raft();
        assert!(raft.is_bound() && raft.status().role == RoleKind::Follower, "{raft:?}");
    }
    cluster.now += PROMISE;
    cluster.with(1, |raft, now| raft.tick(now));
    cluster.with(2, |raft, now| raft.tick(now));
    assert_eq!(cluster.node(1).raft().lease(), None);
    assert!(!cluster.node(2).raft().is_bound(), "one late tick is as good as many");
}
