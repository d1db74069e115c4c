//! What all are known to hold: leaders tell followers, who keep it through elections.

use bytes::Bytes;
use floe_raft::{Body, EntryKind, Index, Message, Nanos, Raft};
use group::{led_by_the_first, replica, settle};

mod group;

/// When nobody is bound to a leader any more.
const LATER: Nanos = 10_000_000_000;

fn put(raft: &mut Raft) {
    raft.propose(0, EntryKind::Command, 0, Bytes::from_static(b"x")).expect("it leads");
}

fn held(group: &[Raft]) -> Vec<Index> {
    group.iter().map(Raft::held_by_all).collect()
}

/// The third has heard nothing since the first entry; the others are at the second.
fn without_the_third() -> Vec<Raft> {
    let mut group = led_by_the_first();
    put(&mut group[0]);
    settle(&mut group, 2);
    group
}

#[test]
fn followers_know_after_an_append_what_all_hold() {
    let mut group = without_the_third();
    assert_eq!(held(&group)[..2], [1; 2], "the third lacks the second entry");
    group[0].report_unreachable(replica(3));
    put(&mut group[0]);
    settle(&mut group, 3);
    assert_eq!(group[0].held_by_all(), 3);
    put(&mut group[0]);
    settle(&mut group, 3);
    assert!(held(&group)[1..].iter().all(|held| *held >= 3), "the next append says so: {:?}", held(&group));
}

#[test]
fn who_stands_for_election_knows_it_still() {
    let mut group = without_the_third();
    group[1].campaign(LATER);
    assert!(group[1].is_candidate());
    assert_eq!(group[1].held_by_all(), 1);
}

#[test]
fn a_deposed_leader_knows_what_it_knew() {
    let mut group = without_the_third();
    let (last, term) = (group[1].last_mark(), group[0].term() + 1);
    let body = Body::Vote { last, transfer: true };
    group[0].step(LATER, Message { from: replica(2), to: replica(1), term, body }).expect("sense");
    assert!(!group[0].is_leader());
    assert_eq!(group[0].held_by_all(), 1);
}

/// Nobody has answered it yet, so it can't tell what they hold.
#[test]
fn a_new_leader_takes_nothing_for_granted() {
    let mut group = without_the_third();
    group[0].transfer_leadership(0, replica(2)).expect("it leads, and the second is there");
    settle(&mut group, 2);
    assert!(group[1].is_leader());
    assert_eq!(held(&group)[..2], [0; 2], "the third is silent");
}
