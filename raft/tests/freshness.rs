//! What a stamp is worth to another incarnation than the one that made it.

use floe_raft::*;

const MS: Nanos = 1_000_000;

fn id(number: u64) -> ReplicaId {
    ReplicaId::new(number).expect("not 0")
}

/// A life of replica 1 of three whose clock starts at 1 s.
fn life(seed: u64) -> Raft {
    let restored = Restored {
        hard_state: HardState { term: 1, vote: None, commit: 0 },
        snapshot: Mark::ZERO,
        membership: Membership::of_voters([1, 2, 3].map(id)),
        entries: Vec::new(),
        applied: 0,
    };
    Raft::new(id(1), Config::default(), restored, 1000 * MS, seed)
}

/// Hears the leader; its stamp, if it answers.
fn hear(raft: &mut Raft, now: Nanos, echo: u64) -> u64 {
    let stamp = LeaderStamp { sent_at_ns: 1, echo };
    let body = Body::Heartbeat { commit: 0, read_round: 0, stamp };
    raft.step(now, Message { from: id(2), to: id(1), term: 1, body }).expect("it makes sense");
    let mut ready = Ready::default();
    raft.ready(&mut ready);
    let stamp_of = |message: &Message| match message.body {
        Body::HeartbeatReply { stamp, .. } => Some(stamp.stamp),
        _ => None,
    };
    ready.messages.iter().find_map(stamp_of).expect("a heartbeat is answered")
}

/// The bug that the test below is for.
#[cfg(feature = "planted")]
#[test]
fn a_stamp_without_a_mark_of_its_life_is_taken_for_a_time() {
    plant(Some(Planted::StampOfFormerLife));
    let outcome = std::panic::catch_unwind(a_stamp_of_a_former_life_says_nothing);
    plant(None);
    assert!(outcome.is_err());
}

/// The leader may still hold it when the next life has begun, whose clock reads the same times again.
#[test]
fn a_stamp_of_a_former_life_says_nothing() {
    let mut first = life(7);
    let stamp = hear(&mut first, 1500 * MS, 0);
    assert_eq!(first.fresh_at(), 0, "nothing came back yet");
    hear(&mut first, 1600 * MS, stamp);
    assert_eq!(first.fresh_at(), 1500 * MS);
    let mut second = life(8);
    hear(&mut second, 2000 * MS, stamp);
    assert_eq!(second.fresh_at(), 0, "that was another life's 1.5 s");
    let stamp = hear(&mut second, 2100 * MS, 0);
    hear(&mut second, 2200 * MS, stamp);
    assert_eq!(second.fresh_at(), 2100 * MS);
}
