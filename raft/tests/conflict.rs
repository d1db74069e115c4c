//! How fast a leader finds where a divergent log agrees with its own (paper §5.3): both sides skip a whole
//! term per round trip, so the length of the logs doesn't count.

use bytes::Bytes;
use floe_raft::{
    Body, Config, Entry, EntryKind, HardState, Index, Mark, Membership, Message, Raft, Ready, ReplicaId,
    Restored, Term,
};

/// Entries after which the logs part, and terms that they have after that.
const COMMON: u64 = 10;
const DIVERGENT: u64 = 1_000_000;
const TERMS: u64 = 50;
const ROUND_TRIPS_MAX: u64 = 55;

fn replica(number: u64) -> ReplicaId {
    ReplicaId::new(number).expect("not 0")
}

/// `COMMON` entries of term 1, then as many as asked for, of `terms` in equal shares.
fn log(divergent: u64, terms: impl Iterator<Item = Term> + Clone) -> Vec<Entry> {
    let count = terms.clone().count() as u64;
    let divergent = terms.flat_map(|term| (0..divergent / count).map(move |_| term));
    let all = (0..COMMON).map(|_| 1).chain(divergent);
    let (kind, version, data) = (EntryKind::Command, 0, Bytes::new());
    let entry = |(index, term)| Entry { mark: Mark::new(term, index), kind, version, data: data.clone() };
    (1..).zip(all).map(entry).collect()
}

fn start(number: u64, term: Term, entries: Vec<Entry>) -> Raft {
    let restored = Restored {
        hard_state: HardState { term, vote: None, commit: COMMON },
        snapshot: Mark::ZERO,
        membership: Membership::of_voters((1..=3).map(replica)),
        entries,
        applied: 0,
    };
    Raft::new(replica(number), Config::default(), restored, 0, 7)
}

/// Everything that `raft` has to say, its writes being durable at once.
fn said(raft: &mut Raft, ready: &mut Ready) -> Vec<Message> {
    let mut messages = Vec::new();
    while raft.has_ready() {
        raft.ready(ready);
        ready.write.into_iter().for_each(|write| raft.persisted(write));
        ready.committed.clone().last().into_iter().for_each(|index| raft.applied(index));
        messages.append(&mut ready.messages);
        messages.append(&mut ready.messages_after_persist);
    }
    messages
}

/// Lets replica 1 win the vote of replica 2 and feed it. Returns how many probes were refused.
fn refused_until_equal(leader: &mut Raft, follower: &mut Raft) -> u64 {
    const NOW: u64 = 1_000_000_000;
    let (mut ready, mut refused) = (Ready::default(), 0);
    leader.campaign(NOW);
    loop {
        for message in said(leader, &mut ready) {
            // Replica 3 is down.
            if message.to == replica(2) {
                follower.step(NOW, message).expect("sense");
            }
        }
        let answers = said(follower, &mut ready);
        if answers.is_empty() {
            return refused;
        }
        for answer in answers {
            refused += u64::from(matches!(answer.body, Body::AppendRejected { .. }));
            leader.step(NOW, answer).expect("sense");
        }
        // The one that is accepted is a round trip as well.
        assert!(refused < ROUND_TRIPS_MAX, "{refused} probes were refused");
    }
}

fn last(raft: &Raft) -> (Index, Term) {
    (raft.last_mark().index, raft.last_mark().term)
}

#[test]
fn a_million_divergent_entries_of_fifty_terms_are_passed_in_as_many_round_trips() {
    let (even, odd) = ((1..=TERMS).map(|n| 2 * n), (1..=TERMS).map(|n| 2 * n + 1));
    let newest = 2 * TERMS + 1;
    let leaders = [log(DIVERGENT, odd), log(DIVERGENT, [newest].into_iter())];
    for (case, entries) in leaders.into_iter().enumerate() {
        let mut leader = start(1, newest, entries);
        let mut follower = start(2, newest, log(DIVERGENT, even.clone()));
        let refused = refused_until_equal(&mut leader, &mut follower);
        assert!(leader.is_leader(), "case {case}");
        assert_eq!(last(&leader), last(&follower), "case {case}");
        assert_eq!(leader.commit(), leader.last_mark().index, "case {case}");
        assert!(refused > 0, "case {case}: the logs agreed from the start");
    }
}
