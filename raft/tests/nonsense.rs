//! A faulty peer: whatever a message says, no replica panics, its commit index never falls, and what is
//! committed here never changes. Fields are drawn near the real values, where checks are off by one, and
//! sometimes from the ends of their types, where arithmetic overflows.

use bytes::Bytes;
use floe_checker::random::Random;
use floe_raft::{
    Body, Config, ENTRY_BYTES_MAX, Entry, EntryKind, FollowerStamp, HardState, Index, LeaderStamp, Mark,
    Membership, Message, Nonsense, Raft, Ready, ReplicaId, Restored, RoleKind, Term, WriteId,
};
use std::collections::BTreeMap;

const MS: u64 = 1_000_000;

/// Mostly one of `reals` or close to it.
fn near(random: &mut Random, reals: &[u64]) -> u64 {
    if random.one_in(30) {
        let ends = [0, u64::MAX, u64::MAX - 1, u64::MAX / 2, u64::MAX / 4, 1 << 40];
        return ends[random.index(ends.len())];
    }
    let real = reals[random.index(reals.len())];
    real.saturating_add(random.below(5)).saturating_sub(2)
}

fn id(number: u64) -> ReplicaId {
    ReplicaId::new(number).expect("not 0")
}

fn entry(term: Term, index: Index, data: &str) -> Entry {
    let data = Bytes::copy_from_slice(data.as_bytes());
    Entry { mark: Mark::new(term, index), kind: EntryKind::Command, version: 0, data }
}

fn message(from: u64, term: Term, body: Body) -> Message {
    Message { from: id(from), to: id(2), term, body }
}

fn append(prev: Mark, commit: Index, entries: Vec<Entry>) -> Body {
    Body::Append { prev, commit, held_by_all: 0, entries, stamp: LeaderStamp::default() }
}

/// Replica 2 of three voters and a learner, with everything around it that a driver does.
struct Victim {
    raft: Raft,
    ready: Ready,
    now: u64,
    writes: Vec<(WriteId, Option<Mark>)>,
    commit: Index,
    committed: BTreeMap<Index, Entry>,
}

impl Victim {
    /// A follower in term 5 whose log begins after 4@2 and ends at 14@5, all durable; 9 is committed.
    fn follower() -> Self {
        let terms = [2, 2, 3, 3, 3, 4, 5, 5, 5, 5];
        let restored = Restored {
            hard_state: HardState { term: 5, vote: Some(id(1)), commit: 9 },
            snapshot: Mark::new(2, 4),
            membership: Membership { learners: vec![id(4)], ..Membership::of_voters([id(1), id(2), id(3)]) },
            entries: (5..).zip(terms).map(|(index, term)| entry(term, index, "real")).collect(),
            applied: 4,
        };
        let raft = Raft::new(id(2), Config::default(), restored, 0, 7);
        let (writes, committed) = (Vec::new(), BTreeMap::new());
        let mut victim = Self { raft, ready: Ready::default(), now: 0, writes, commit: 0, committed };
        victim.hear(message(1, 5, append(Mark::new(5, 14), 9, Vec::new())));
        victim.settle();
        victim
    }

    fn candidate() -> Self {
        let mut victim = Self::follower();
        victim.now += 10_000 * MS;
        victim.raft.campaign(victim.now);
        victim.hear(message(3, 6, Body::PreVoteReply { granted: true }));
        victim.settle();
        assert_eq!(victim.raft.status().role, RoleKind::Candidate);
        victim
    }

    fn leader() -> Self {
        let mut victim = Self::candidate();
        victim.hear(message(3, 6, Body::VoteReply { granted: true }));
        victim.settle();
        let stamp = FollowerStamp::default();
        victim.hear(message(3, 6, Body::AppendAccepted { matched: 15, stamp }));
        victim.settle();
        assert!(victim.raft.is_leader() && victim.raft.commit() == 15, "{:?}", victim.raft.status());
        victim
    }

    fn hear(&mut self, message: Message) {
        let _ = self.raft.step(self.now, message);
        self.check();
    }

    /// One batch of work; its write stays in flight.
    fn turn(&mut self) {
        self.raft.ready(&mut self.ready);
        let snapshot = self.ready.snapshot.take().map(|install| install.mark);
        self.writes.extend(self.ready.write.map(|write| (write, snapshot)));
        if let Some(last) = self.ready.committed.clone().last() {
            self.raft.applied(last);
        }
    }

    fn persist(&mut self) {
        for (write, snapshot) in std::mem::take(&mut self.writes) {
            self.raft.persisted(write);
            if let Some(mark) = snapshot {
                self.raft.snapshot_installed(mark);
            }
        }
        self.check();
    }

    fn settle(&mut self) {
        while self.raft.has_ready() || !self.writes.is_empty() {
            self.turn();
            self.persist();
        }
    }

    fn check(&mut self) {
        let commit = self.raft.commit();
        assert!(commit >= self.commit, "commit fell from {} to {commit}", self.commit);
        self.commit = commit;
        let first = self.raft.first_index();
        for (&index, known) in self.committed.range(first..) {
            let held = self.raft.entries(index, index, 0);
            assert_eq!(held.first(), Some(known), "committed, then changed");
        }
        let news = self.committed.last_key_value().map_or(0, |(&last, _)| last) + 1;
        for entry in self.raft.entries(first.max(news), commit, usize::MAX) {
            self.committed.insert(entry.mark.index, entry);
        }
    }

    // --- what a faulty peer says

    fn index(&self, random: &mut Random) -> Index {
        let raft = &self.raft;
        let reals = [
            raft.first_index(),
            raft.commit(),
            raft.last_mark().index,
            raft.durable_index(),
            raft.applied_index(),
        ];
        near(random, &reals)
    }

    fn mark(&self, random: &mut Random) -> Mark {
        let index = self.index(random);
        let term = self.raft.term_at(index).filter(|_| !random.one_in(4));
        Mark::new(term.unwrap_or_else(|| near(random, &[self.raft.term()])), index)
    }

    fn entries(&self, random: &mut Random, prev: Mark) -> Vec<Entry> {
        let (mut entries, mut term) = (Vec::new(), prev.term);
        for offset in 1..=random.below(9) {
            let mut index = prev.index.wrapping_add(offset);
            term = match random.below(8) {
                0 => near(random, &[self.raft.term()]),
                1 => term.saturating_add(1),
                _ => self.raft.term_at(index).unwrap_or(term),
            };
            if random.one_in(40) {
                index = self.index(random);
            }
            entries.push(entry(term, index, "fake"));
        }
        entries
    }

    fn membership(random: &mut Random) -> Membership {
        let mut list = |most: u64| (0..random.below(most)).map(|_| id(1 + random.below(6))).collect();
        let (voters, voters_outgoing, learners, learners_next) = (list(5), list(2), list(3), list(2));
        Membership { voters, voters_outgoing, learners, learners_next, auto_leave: true }
    }

    fn body(&self, random: &mut Random) -> Body {
        let stamp = LeaderStamp { sent_at_ns: random.next_u64(), echo: random.next_u64() };
        let answer = FollowerStamp {
            echo_ns: random.next_u64(),
            promise_ns: random.next_u64(),
            stamp: random.next_u64(),
        };
        let granted = !random.one_in(3);
        let read_round = near(random, &[0, 3]);
        let context = random.below(4);
        match random.below(21) {
            0 => Body::PreVote { last: self.mark(random) },
            1 => Body::PreVoteReply { granted },
            2 => Body::Vote { last: self.mark(random), transfer: granted },
            3 => Body::VoteReply { granted },
            4 => Body::AppendRejected { prev: self.mark(random), hint: self.mark(random), stamp: answer },
            5 | 6 => Body::Heartbeat { commit: self.index(random), read_round, stamp },
            7 => Body::HeartbeatReply { read_round, stamp: answer },
            8 => Body::TimeoutNow,
            9 => Body::ReadIndex { context },
            10 => Body::ReadIndexReply { context, index: self.index(random) },
            11 => Body::ReadIndexRefused { context },
            12 => {
                let sane = random.one_in(2).then(|| self.raft.membership().clone());
                let membership = sane.unwrap_or_else(|| Self::membership(random));
                Body::InstallSnapshot { mark: self.mark(random), membership, stamp }
            }
            13..15 => Body::AppendAccepted { matched: self.index(random), stamp: answer },
            15 => Body::AppendRefused { matched: self.index(random), stamp: answer },
            _ => {
                let prev = self.mark(random);
                let entries = self.entries(random, prev);
                let (commit, held_by_all) = (self.index(random), self.index(random));
                Body::Append { prev, commit, held_by_all, entries, stamp }
            }
        }
    }

    fn nonsense(&mut self, random: &mut Random) {
        let term = if random.one_in(2) { self.raft.term() } else { near(random, &[self.raft.term()]) };
        let body = self.body(random);
        let to = if random.one_in(20) { id(3) } else { id(2) };
        self.hear(Message { from: id(1 + random.below(5)), to, term, body });
    }

    /// What goes on besides.
    fn go_on(&mut self, random: &mut Random) {
        self.now += random.below(50) * MS;
        match random.below(12) {
            0 => self.raft.tick(self.now),
            1 => self.raft.beat(self.now),
            2 => drop(self.raft.propose(self.now, EntryKind::Command, 0, Bytes::from_static(b"own"))),
            3 => drop(self.raft.read_index(self.now, random.below(4))),
            4..8 => self.turn(),
            8 | 9 => self.persist(),
            10 => {
                for peer in 1..=4 {
                    self.raft.report_snapshot(id(peer), random.one_in(2));
                }
            }
            _ => self.raft.compact(self.raft.applied_index()),
        }
        self.check();
    }
}

fn torment(make: fn() -> Victim) {
    for seed in 0..600 {
        let mut random = Random::new(seed);
        let mut victim = make();
        for _ in 0..60 {
            victim.nonsense(&mut random);
            victim.go_on(&mut random);
        }
        victim.settle();
    }
}

#[test]
fn a_follower_survives_nonsense() {
    torment(Victim::follower);
}

#[test]
fn a_candidate_survives_nonsense() {
    torment(Victim::candidate);
}

#[test]
fn a_leader_survives_nonsense() {
    torment(Victim::leader);
}

/// Hears it, is told why it makes no sense, and stays as it was.
fn refuse(victim: &mut Victim, from: u64, term: Term, body: Body, why: Nonsense) {
    let (before, text) = (victim.raft.status(), format!("{body:?}"));
    assert_eq!(victim.raft.step(victim.now, message(from, term, body)), Err(why), "{text}");
    assert_eq!(victim.raft.status(), before, "{text}");
    assert!(!victim.raft.has_ready(), "not even an answer to {text}");
}

#[test]
fn an_append_that_contradicts_what_is_committed_changes_nothing() {
    let mut victim = Victim::follower();
    let fake = || (6..12).map(|index| entry(5, index, "fake")).collect();
    let why = Nonsense::ContradictsCommitted(Mark::new(5, 6));
    for term in [5, 8] {
        refuse(&mut victim, 1, term, append(Mark::new(2, 5), 11, fake()), why);
    }
    let (prev, why) = (Mark::new(4, 9), Nonsense::ContradictsCommitted(Mark::new(4, 9)));
    refuse(&mut victim, 1, 5, append(prev, 9, Vec::new()), why);
}

#[test]
fn entries_that_no_leader_sends_change_nothing() {
    let mut victim = Victim::follower();
    let prev = Mark::new(5, 14);
    for entries in [
        vec![entry(5, 16, "a gap")],
        vec![entry(5, 15, "twice"), entry(5, 15, "twice")],
        vec![entry(6, 15, "of a later term than the message")],
        vec![entry(4, 15, "back in term")],
    ] {
        refuse(&mut victim, 1, 5, append(prev, 9, entries), Nonsense::EntriesOutOfOrder);
    }
    let data = Bytes::from(vec![0; ENTRY_BYTES_MAX + 1]);
    let long = Entry { data, ..entry(5, 15, "") };
    refuse(&mut victim, 1, 5, append(prev, 9, vec![long]), Nonsense::EntryTooLong);
    let far = append(Mark::new(5, u64::MAX), 9, vec![entry(5, 0, "wraps")]);
    refuse(&mut victim, 1, 5, far, Nonsense::NumberTooLarge);
    let (entries, stamp) = (Vec::new(), LeaderStamp::default());
    let held = Body::Append { prev, commit: 9, held_by_all: u64::MAX, entries, stamp };
    refuse(&mut victim, 1, 5, held, Nonsense::NumberTooLarge);
    refuse(&mut victim, 1, u64::MAX, append(prev, 9, Vec::new()), Nonsense::NumberTooLarge);
}

#[test]
fn a_snapshot_that_can_not_be_changes_nothing() {
    let mut victim = Victim::follower();
    let group = victim.raft.membership().clone();
    let snapshot = |mark, membership: &Membership| Body::InstallSnapshot {
        mark,
        membership: membership.clone(),
        stamp: LeaderStamp::default(),
    };
    let voters = |voters: &[u64]| Membership {
        voters: voters.iter().map(|&number| id(number)).collect(),
        ..Membership::default()
    };
    let both = Membership { learners: vec![id(3)], ..voters(&[1, 2, 3]) };
    let demoted_stranger = Membership { learners_next: vec![id(4)], ..voters(&[1, 2, 3]) };
    let nothing_to_leave = Membership { auto_leave: true, ..voters(&[1, 2, 3]) };
    let impossible =
        [voters(&[]), voters(&[1, 1]), voters(&[2, 1]), both, demoted_stranger, nothing_to_leave];
    for bad in impossible {
        refuse(&mut victim, 1, 5, snapshot(Mark::new(5, 20), &bad), Nonsense::BadSnapshot);
    }
    refuse(&mut victim, 1, 5, snapshot(Mark::new(6, 20), &group), Nonsense::BadSnapshot);
    // 9@3 is committed: neither can 20 be of an older term, nor 8 of another.
    for mark in [Mark::new(2, 20), Mark::new(5, 8)] {
        refuse(&mut victim, 1, 5, snapshot(mark, &group), Nonsense::ContradictsCommitted(mark));
    }
}

#[test]
fn answers_about_what_a_leader_never_sent_change_nothing() {
    let mut victim = Victim::leader();
    let stamp = FollowerStamp::default();
    let beyond = Nonsense::BeyondLog(16);
    refuse(&mut victim, 3, 6, Body::AppendAccepted { matched: 16, stamp }, beyond);
    let (prev, hint) = (Mark::new(6, 16), Mark::ZERO);
    refuse(&mut victim, 3, 6, Body::AppendRejected { prev, hint, stamp }, beyond);
    // Believed, it would confirm every read to come.
    let round = Body::HeartbeatReply { read_round: 1, stamp };
    refuse(&mut victim, 3, 6, round, Nonsense::UnknownRound(1));
}
