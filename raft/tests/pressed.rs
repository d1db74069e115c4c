//! While memory runs short, a leader feeds those less that a quorum goes on without, and nobody else.

use bytes::Bytes;
use floe_raft::{EntryKind, PeerStatus, Raft};
use group::{led_by_the_first, settle};

mod group;

fn propose(group: &mut [Raft], entries: u64) {
    for _ in 0..entries {
        let proposed = group[0].propose(0, EntryKind::Command, 0, Bytes::from_static(b"x"));
        proposed.expect("it leads");
        settle(group, 2);
    }
}

fn peers(group: &[Raft]) -> Vec<PeerStatus> {
    group[0].status().peers
}

#[test]
fn a_pressed_leader_sends_the_laggard_one_append_at_a_time_and_the_quorum_all() {
    let mut group = led_by_the_first();
    group[0].set_pressed(true);
    propose(&mut group, 10);
    let last = group[0].last_mark().index;
    assert_eq!(group[0].commit(), last, "a quorum has all");
    assert_eq!((peers(&group)[0].matched, peers(&group)[1].in_flight_messages), (last, 1));
    group[0].set_pressed(false);
    propose(&mut group, 5);
    assert_eq!(
        peers(&group)[1].in_flight_messages,
        1 + 5,
        "each of the new ones, the first with what was left over"
    );
}
