//! While memory runs short, a leader feeds those less that a quorum goes on without, and nobody else.

use bytes::Bytes;
use floe_raft::{
    Config, EntryKind, HardState, Mark, Membership, Message, PeerStatus, Raft, Ready, ReplicaId, Restored,
};

fn replica(number: u64) -> ReplicaId {
    ReplicaId::new(number).expect("not 0")
}

fn start(number: u64) -> Raft {
    let restored = Restored {
        hard_state: HardState::default(),
        snapshot: Mark::ZERO,
        membership: Membership::of_voters((1..=3).map(replica)),
        entries: Vec::new(),
        applied: 0,
    };
    Raft::new(replica(number), Config::default(), restored, 0, 1)
}

fn said(raft: &mut Raft) -> Vec<Message> {
    let (mut messages, mut ready) = (Vec::new(), Ready::default());
    while raft.has_ready() {
        raft.ready(&mut ready);
        ready.write.into_iter().for_each(|write| raft.persisted(write));
        ready.committed.clone().last().into_iter().for_each(|index| raft.applied(index));
        messages.append(&mut ready.messages);
        messages.append(&mut ready.messages_after_persist);
    }
    messages
}

/// Until nobody has anything to say; replicas from `hear` on hear nothing.
fn settle(group: &mut [Raft], hear: usize) {
    loop {
        let messages: Vec<_> = group.iter_mut().flat_map(said).collect();
        if messages.is_empty() {
            return;
        }
        for message in messages {
            let to = message.to.get() as usize - 1;
            if to < hear {
                group[to].step(0, message).expect("working replicas make sense");
            }
        }
    }
}

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
    let mut group: Vec<_> = (1..=3).map(start).collect();
    group[0].campaign(0);
    settle(&mut group, 3);
    assert!(group[0].is_leader());
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
