//! What breaks each of the properties is found, and nothing else is.

use super::*;
use bytes::Bytes;

const SHARD: ShardId = ShardId(1);

#[derive(Clone)]
struct Fake {
    term: Term,
    is_leader: bool,
    commit: Index,
    state: (Mark, u64),
    /// In force from here on; who votes.
    members: (Index, Vec<u64>),
    entries: Vec<(Term, &'static str)>,
}

fn membership(voters: impl IntoIterator<Item = u64>) -> Membership {
    Membership::of_voters(voters.into_iter().map(|id| ReplicaId::new(id).expect("not 0")))
}

impl Fake {
    fn new(term: Term, commit: Index, entries: &[(Term, &'static str)]) -> Self {
        let members = (0, vec![1, 2, 3]);
        Self { term, is_leader: false, commit, state: (Mark::ZERO, 0), members, entries: entries.into() }
    }

    fn with_members(mut self, since: Index, voters: &[u64]) -> Self {
        self.members = (since, voters.into());
        self
    }

    fn leading(mut self) -> Self {
        self.is_leader = true;
        self
    }

    fn observe(&self, checker: &mut RaftSafety, node: u64) -> Result<(), &'static str> {
        let term_at = |index: Index| match index {
            0 => Some(0),
            index => self.entries.get(index as usize - 1).map(|entry| entry.0),
        };
        let entries = |from: Index, to: Index| {
            (from..=to)
                .map(|index| {
                    let (term, data) = self.entries[index as usize - 1];
                    let mark = Mark::new(term, index);
                    match data.strip_prefix("voters ") {
                        None => {
                            let data = Bytes::from_static(data.as_bytes());
                            Entry { mark, kind: EntryKind::Command, version: 1, data }
                        }
                        Some(voters) => {
                            let ids = voters.bytes().map(|digit| u64::from(digit - b'0'));
                            let data = membership(ids).encode(b"");
                            Entry { mark, kind: EntryKind::Membership, version: 1, data }
                        }
                    }
                })
                .collect()
        };
        let last = self.entries.len() as u64;
        let members = membership(self.members.1.iter().copied());
        let view = View {
            replica: ReplicaId::new(node).expect("not 0"),
            membership: (self.members.0, &members),
            term: self.term,
            is_leader: self.is_leader,
            commit: self.commit,
            state: self.state,
            first: 1,
            last: Mark::new(term_at(last).unwrap_or(0), last),
            term_at: &term_at,
            entries: &entries,
        };
        checker.observe(NodeId(node), SHARD, &view).map_err(|violation| violation.property)
    }
}

const LOG: &[(Term, &str)] = &[(1, "a"), (1, "b"), (2, "c")];

#[test]
fn a_sound_group_passes() {
    let mut checker = RaftSafety::default();
    Fake::new(1, 0, &LOG[..2]).leading().observe(&mut checker, 1).unwrap();
    Fake::new(1, 1, &LOG[..2]).observe(&mut checker, 2).unwrap();
    Fake::new(1, 2, &LOG[..2]).leading().observe(&mut checker, 1).unwrap();
    Fake::new(1, 0, &[LOG[0], LOG[1], (1, "lost")]).observe(&mut checker, 3).unwrap();
    Fake::new(2, 2, LOG).leading().observe(&mut checker, 2).unwrap();
    Fake::new(2, 3, LOG).observe(&mut checker, 3).unwrap();
    checker.forget(NodeId(1));
    Fake::new(1, 0, &LOG[..2]).observe(&mut checker, 1).unwrap();
    assert_eq!(checker.history(SHARD).count(), 3);
}

#[test]
fn two_leaders_of_one_term_break_election_safety() {
    let mut checker = RaftSafety::default();
    Fake::new(3, 0, LOG).leading().observe(&mut checker, 1).unwrap();
    assert_eq!(Fake::new(3, 0, LOG).leading().observe(&mut checker, 2), Err("election safety"));
}

#[test]
fn a_leader_that_lacks_a_committed_entry_breaks_leader_completeness() {
    let mut checker = RaftSafety::default();
    Fake::new(2, 3, LOG).leading().observe(&mut checker, 1).unwrap();
    let late = Fake::new(1, 0, &LOG[..2]).leading();
    late.observe(&mut checker, 3).expect("a late leader of an older term is no contradiction");
    assert_eq!(Fake::new(4, 0, &LOG[..2]).leading().observe(&mut checker, 2), Err("leader completeness"));
}

#[test]
fn what_too_few_hold_is_not_committed() {
    let mut checker = RaftSafety::default();
    Fake::new(2, 0, LOG).leading().observe(&mut checker, 1).unwrap();
    let committed = Fake::new(2, 3, LOG).leading();
    assert_eq!(committed.observe(&mut checker, 1), Err("commit without a quorum"));
    Fake::new(2, 0, LOG).observe(&mut checker, 2).unwrap();
    committed.observe(&mut checker, 1).expect("two of three hold it");
}

#[test]
fn the_newest_membership_in_the_log_is_in_force_and_no_other() {
    const CHANGED: &[(Term, &str)] = &[(1, "a"), (1, "voters 12"), (1, "b")];
    let mut checker = RaftSafety::default();
    let before = Fake::new(1, 0, &CHANGED[..1]);
    before.observe(&mut checker, 1).unwrap();
    let changed = Fake::new(1, 0, CHANGED);
    changed.clone().with_members(2, &[1, 2]).observe(&mut checker, 1).expect("it is in force at once");
    assert_eq!(changed.observe(&mut checker, 2), Err("membership in force"), "not before");
    let other = changed.with_members(2, &[1, 3]);
    assert_eq!(other.observe(&mut checker, 2), Err("membership in force"), "nor what the entry doesn't say");
    let cut = Fake::new(2, 0, &[CHANGED[0], (2, "c")]);
    let kept = cut.clone().with_members(2, &[1, 2]);
    assert_eq!(kept.observe(&mut checker, 1), Err("membership in force"), "it was cut away");
    cut.observe(&mut checker, 3).expect("it never had it");
}

#[test]
fn a_commit_that_a_later_leader_lacks_breaks_leader_completeness() {
    let mut checker = RaftSafety::default();
    Fake::new(2, 0, LOG).leading().observe(&mut checker, 1).unwrap();
    Fake::new(4, 0, &[LOG[0], LOG[1], (4, "x")]).leading().observe(&mut checker, 2).unwrap();
    Fake::new(2, 0, LOG).observe(&mut checker, 3).unwrap();
    Fake::new(2, 2, LOG).leading().observe(&mut checker, 1).expect("both have this");
    assert_eq!(Fake::new(2, 3, LOG).leading().observe(&mut checker, 1), Err("leader completeness"));
}

#[test]
fn another_committed_entry_breaks_state_machine_safety() {
    let mut checker = RaftSafety::default();
    Fake::new(2, 3, LOG).observe(&mut checker, 1).unwrap();
    let other = Fake::new(3, 3, &[LOG[0], LOG[1], (3, "x")]);
    assert_eq!(other.observe(&mut checker, 2), Err("state machine safety"));
    let mut one = Fake::new(2, 3, LOG);
    one.state = (Mark::new(2, 3), 7);
    one.observe(&mut checker, 1).unwrap();
    one.state.1 = 8;
    assert_eq!(one.observe(&mut checker, 3), Err("state machine safety"), "unequal states");
}

#[test]
fn the_same_mark_with_other_content_breaks_log_matching() {
    let mut checker = RaftSafety::default();
    Fake::new(2, 0, LOG).observe(&mut checker, 1).unwrap();
    assert_eq!(Fake::new(2, 0, &[(1, "z")]).observe(&mut checker, 2), Err("log matching"));
    assert_eq!(
        Fake::new(2, 0, &[(1, "a"), (2, "b"), (2, "c")]).observe(&mut checker, 3),
        Err("log matching")
    );
}

#[test]
fn a_leader_that_drops_entries_breaks_append_only() {
    let mut checker = RaftSafety::default();
    Fake::new(2, 0, LOG).leading().observe(&mut checker, 1).unwrap();
    assert_eq!(Fake::new(2, 0, &LOG[..2]).leading().observe(&mut checker, 1), Err("leader append-only"));
}

#[test]
fn a_commit_index_that_falls_breaks_monotony_within_one_incarnation() {
    let mut checker = RaftSafety::default();
    Fake::new(2, 3, LOG).observe(&mut checker, 1).unwrap();
    assert_eq!(Fake::new(2, 2, LOG).observe(&mut checker, 1), Err("monotony"));
    checker.forget(NodeId(1));
    Fake::new(2, 0, LOG).observe(&mut checker, 1).unwrap();
}
