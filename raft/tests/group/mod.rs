//! Three replicas whose writes are durable at once, and whose messages arrive in order or not at all.

use floe_raft::{Config, HardState, Mark, Membership, Message, Raft, Ready, ReplicaId, Restored};

pub fn replica(number: u64) -> ReplicaId {
    ReplicaId::new(number).expect("not 0")
}

pub fn start(number: u64) -> Raft {
    let restored = Restored {
        hard_state: HardState::default(),
        snapshot: Mark::ZERO,
        membership: Membership::of_voters((1..=3).map(replica)),
        entries: Vec::new(),
        applied: 0,
    };
    Raft::new(replica(number), Config::default(), restored, 0, 1)
}

pub fn said(raft: &mut Raft) -> Vec<Message> {
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
pub fn settle(group: &mut [Raft], hear: usize) {
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

/// The first leads, and all have its first entry.
pub fn led_by_the_first() -> Vec<Raft> {
    let mut group: Vec<_> = (1..=3).map(start).collect();
    group[0].campaign(0);
    settle(&mut group, 3);
    assert!(group[0].is_leader());
    group
}
