//! What is handed out to be applied: where it is read, and what it means for the lease.

mod cluster;

use cluster::{Cluster, replica};
use floe_raft::{Config, Entry, EntryKind, Index, NotHeld, Raft, Ready};
use std::ops::Range;

fn deliver_all(cluster: &mut Cluster) {
    while !cluster.net.is_empty() {
        cluster.deliver_at(0);
    }
}

/// Three voters that promise, of which the first leads.
fn led(config: Config) -> Cluster {
    let mut cluster = Cluster::new(3, 0, config, 1);
    cluster.allow_promises(Config::default().election_timeout_min_ns);
    cluster.with(1, |raft, now| raft.campaign(now));
    deliver_all(&mut cluster);
    assert_eq!(cluster.leader(), Some(1));
    cluster
}

fn propose(cluster: &mut Cluster, count: usize) {
    for _ in 0..count {
        let proposed = cluster.with(1, |raft, now| raft.propose(now, EntryKind::Command, 0, "x".into()));
        assert!(matches!(proposed, Some(Ok(_))), "{proposed:?}");
    }
}

fn held(raft: &Raft, range: Range<Index>) -> Result<Vec<Index>, NotHeld> {
    let index = |entry: &Entry| entry.mark.index;
    raft.slice(range).map(|entries| entries.map(index).collect())
}

#[test]
fn what_was_handed_out_and_a_snapshot_has_replaced_is_named_as_gone() {
    let mut cluster = led(Config::default());
    cluster.auto_apply = false;
    propose(&mut cluster, 2);
    deliver_all(&mut cluster);
    assert_eq!(cluster.node(3).to_apply.len(), 2, "handed out, and not applied");
    assert_eq!(held(cluster.node(3).raft(), 2..4), Ok(vec![2, 3]));
    cluster.side = vec![0, 0, 1];
    propose(&mut cluster, 2);
    deliver_all(&mut cluster);
    cluster.apply_all(1);
    cluster.side.fill(0);
    cluster.send_snapshot(1, 3);
    deliver_all(&mut cluster);
    let raft = cluster.node(3).raft();
    assert_eq!((raft.applied_index(), raft.first_index()), (5, 6), "the snapshot is in place");
    let gone = Err(NotHeld::Compacted { first: 6 });
    for range in [2..4, 5..6, 1..7] {
        assert_eq!(held(raft, range.clone()), gone, "{range:?}");
    }
    assert_eq!(held(raft, 6..7), Err(NotHeld::Beyond { last: 5 }));
    assert_eq!(held(raft, 3..3), Ok(vec![]), "nothing is everywhere");
    assert!(raft.entries(2, 3, usize::MAX).is_empty() && raft.term_at(3).is_none());
}

/// Followers are told as much of it as the leader was handed, and no more.
#[test]
fn a_backlog_to_apply_pauses_no_lease() {
    let mut cluster = led(Config { apply_bytes_max: 1, ..Config::default() });
    propose(&mut cluster, 20);
    // The followers' answers come in all at once.
    let mut answers = Vec::new();
    while let Some(message) = cluster.net.pop_front() {
        if message.to == replica(1) {
            answers.push(message);
        } else {
            cluster.deliver(message);
        }
    }
    let now = cluster.now;
    let raft = cluster.nodes[0].raft.as_mut().expect("it runs");
    answers.into_iter().for_each(|answer| raft.step(now, answer).expect("a working replica's"));
    assert_eq!((raft.applied_index(), raft.commit()), (1, 21));
    let mut ready = Ready::default();
    for index in 2..=21 {
        raft.ready(&mut ready);
        assert_eq!(ready.committed, index..index + 1, "one at a time");
        assert_eq!(raft.lease(), None, "{index} may be seen elsewhere");
        raft.applied(index);
        assert!(raft.lease().is_some(), "{index} of {} is applied", raft.commit());
    }
}
