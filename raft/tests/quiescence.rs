//! What a quiet leader knows of the others, and what it makes of that when it is woken.

use bytes::Bytes;
use floe_raft::{Change, EntryKind, FeedState, Index, MembershipChange, Raft};
use group::{led_by_the_first, replica, settle};

mod group;

/// How the leader feeds the others, and what they hold.
fn fed(group: &[Raft]) -> Vec<(FeedState, Index)> {
    group[0].status().peers.iter().map(|peer| (peer.state, peer.matched)).collect()
}

/// The third replica is dead since it took the first entry; the others have gone on, and are quiet.
fn quiet_without_the_third() -> Vec<Raft> {
    let mut group = led_by_the_first();
    group.iter_mut().for_each(|raft| raft.allow_promises(100_000_000));
    group[0].propose(0, EntryKind::Command, 0, Bytes::from_static(b"x")).expect("it leads");
    settle(&mut group, 2);
    assert!(group[0].lease().is_some());
    assert!(group[0].maybe_quiesce(0, |id| id == replica(2)), "{:?}", group[0].status());
    settle(&mut group, 2);
    assert_eq!([0, 1].map(|at| group[at].is_quiet()), [true; 2]);
    group
}

#[test]
fn a_quiet_leader_remembers_what_the_others_hold_and_has_no_lease() {
    let group = quiet_without_the_third();
    assert_eq!(fed(&group), [(FeedState::Replicate, 2), (FeedState::Probe, 1)]);
    assert_eq!(group[0].held_by_all(), 1, "what the third lacks is kept for it");
    assert_eq!(group[1].held_by_all(), 2, "by the leader alone");
    assert_eq!(group[0].lease(), None);
}

/// Else it could be made a voter, and the group would wait for its vote for ever.
#[test]
fn a_quiet_leader_knows_whom_it_has_never_heard() {
    let mut group = led_by_the_first();
    let change = MembershipChange::Simple(Change::AddLearner(replica(4)));
    group[0].propose_membership(0, &change, false, b"").expect("it leads");
    settle(&mut group, 3);
    assert!(group[0].is_unheard(replica(4)));
    assert!(group[0].maybe_quiesce(0, |id| id != replica(4)), "{:?}", group[0].status());
    assert!(group[0].is_quiet() && group[0].is_unheard(replica(4)) && !group[0].is_unheard(replica(3)));
}

#[test]
fn a_woken_leader_goes_on_with_who_held_all_and_finds_the_others() {
    let mut group = quiet_without_the_third();
    group[0].propose(0, EntryKind::Command, 0, Bytes::from_static(b"y")).expect("it leads");
    assert_eq!(fed(&group), [(FeedState::Replicate, 2), (FeedState::Probe, 1)], "as when it fell asleep");
    settle(&mut group, 3);
    assert_eq!(fed(&group), [(FeedState::Replicate, 3); 2]);
    assert_eq!([0, 1, 2].map(|at| group[at].applied_index()), [3; 3]);
}
