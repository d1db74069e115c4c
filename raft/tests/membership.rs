//! The membership algebra and the quorum arithmetic by exhaustion: every configuration of up to four
//! replicas, every change of it, every subset as a possible quorum. The expected outcome is computed
//! here from roles, one per replica, and not from lists.

use floe_raft::quorum::{committed_index_joint, vote_result_joint};
use floe_raft::{Change, ChangeError, Membership, ReplicaId, VoteResult};

const REPLICAS: usize = 4;

/// What one replica is in a plain configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Absent,
    Learner,
    Voter,
}

/// The roles of replicas 1 to 4.
type Roles = [Role; REPLICAS];

fn replica(number: usize) -> ReplicaId {
    ReplicaId::new(number as u64).expect("not 0")
}

/// All assignments of one of `choices` to each of four replicas.
fn assignments<T: Copy>(choices: &[T]) -> Vec<[T; REPLICAS]> {
    let base = choices.len();
    let digit = |code: usize, at: usize| choices[code / base.pow(at as u32) % base];
    (0..base.pow(REPLICAS as u32)).map(|code| std::array::from_fn(|at| digit(code, at))).collect()
}

/// Every plain configuration somebody votes in.
fn plain_configurations() -> Vec<Roles> {
    let all = assignments(&[Role::Absent, Role::Learner, Role::Voter]);
    all.into_iter().filter(|roles| roles.contains(&Role::Voter)).collect()
}

fn ids_of(roles: &Roles, wanted: Role) -> Vec<ReplicaId> {
    (0..REPLICAS).filter(|&at| roles[at] == wanted).map(|at| replica(at + 1)).collect()
}

fn membership_of(roles: &Roles) -> Membership {
    Membership { learners: ids_of(roles, Role::Learner), ..Membership::of_voters(ids_of(roles, Role::Voter)) }
}

/// Turns replica `at` into `role`.
fn change_to(at: usize, role: Role) -> Change {
    match role {
        Role::Absent => Change::Remove(replica(at + 1)),
        Role::Learner => Change::AddLearner(replica(at + 1)),
        Role::Voter => Change::AddVoter(replica(at + 1)),
    }
}

/// The refusal for a replica that has the wanted role already.
fn refusal(at: usize, role: Role) -> ChangeError {
    let replica = replica(at + 1);
    match role {
        Role::Absent => ChangeError::NotAMember { replica },
        Role::Learner => ChangeError::AlreadyLearner { replica },
        Role::Voter => ChangeError::AlreadyVoter { replica },
    }
}

/// Whether the replicas in the bit set are more than half of `voters`.
fn is_majority(voters: &[ReplicaId], set: usize) -> bool {
    let held = voters.iter().filter(|id| set >> (id.get() - 1) & 1 == 1).count();
    2 * held > voters.len()
}

/// Whether the replicas in the bit set can decide alone.
fn is_quorum(membership: &Membership, set: usize) -> bool {
    let outgoing = &membership.voters_outgoing;
    is_majority(&membership.voters, set) && (outgoing.is_empty() || is_majority(outgoing, set))
}

/// Whether each quorum of `a` shares a replica with each of `b`.
fn quorums_intersect(a: &Membership, b: &Membership) -> bool {
    let sets = 0..1_usize << REPLICAS;
    let quorums = |of: &Membership| sets.clone().filter(|&set| is_quorum(of, set)).collect::<Vec<_>>();
    let (of_a, of_b) = (quorums(a), quorums(b));
    of_a.iter().all(|one| of_b.iter().all(|other| one & other != 0))
}

/// The rules by membership of each replica, independent of `broken_rule`.
fn obeys_the_rules(m: &Membership) -> bool {
    let lists = [&m.voters, &m.voters_outgoing, &m.learners, &m.learners_next];
    let sorted = lists.iter().all(|list| list.windows(2).all(|pair| pair[0] < pair[1]));
    let roles_fit = (1..=REPLICAS).map(replica).all(|id| {
        let [voter, outgoing, learner, demoted] = lists.map(|list| list.contains(&id));
        !(learner && (voter || outgoing)) && (!demoted || outgoing && !voter)
    });
    let joint = !m.voters_outgoing.is_empty();
    sorted && roles_fit && !m.voters.is_empty() && (joint || m.learners_next.is_empty() && !m.auto_leave)
}

/// Every pair of a configuration and the roles wanted, as a joint change: only what differs.
fn for_each_joint_change(mut visit: impl FnMut(&Roles, &Roles, &[Change])) {
    let all_roles = assignments(&[Role::Absent, Role::Learner, Role::Voter]);
    for old in plain_configurations() {
        for wanted in &all_roles {
            let differing = (0..REPLICAS).filter(|&at| old[at] != wanted[at]);
            let changes: Vec<_> = differing.map(|at| change_to(at, wanted[at])).collect();
            visit(&old, wanted, &changes);
        }
    }
}

#[test]
fn a_simple_change_gives_what_was_asked_or_names_why_not() {
    let mut accepted = 0;
    for old in plain_configurations() {
        for at in 0..REPLICAS {
            for role in [Role::Absent, Role::Learner, Role::Voter] {
                let mut wanted = old;
                wanted[at] = role;
                let expected = if old[at] == role {
                    Err(refusal(at, role))
                } else if !wanted.contains(&Role::Voter) {
                    Err(ChangeError::NoVoters { replica: replica(at + 1) })
                } else {
                    accepted += 1;
                    Ok(membership_of(&wanted))
                };
                let before = membership_of(&old);
                assert_eq!(before.simple(change_to(at, role)), expected, "{old:?} {at} {role:?}");
                assert_eq!(before, membership_of(&old));
            }
        }
    }
    // 65 configurations, 4 replicas, 2 other roles; 32 ways to take the only voter away, twice.
    assert_eq!(accepted, 65 * 4 * 2 - 32 * 2);
}

#[test]
fn old_and_new_majorities_of_a_simple_change_intersect() {
    for old in plain_configurations().iter().map(membership_of) {
        for at in 0..REPLICAS {
            for role in [Role::Absent, Role::Learner, Role::Voter] {
                let Ok(new) = old.simple(change_to(at, role)) else { continue };
                assert!(quorums_intersect(&old, &new), "{old:?} {new:?}");
                assert!(obeys_the_rules(&new), "{new:?}");
            }
        }
    }
}

/// The check above can tell: two voters at once are too many.
#[test]
fn majorities_of_larger_steps_need_not_intersect() {
    let of = |numbers: &[usize]| Membership::of_voters(numbers.iter().copied().map(replica));
    assert!(!quorums_intersect(&of(&[1]), &of(&[1, 2, 3])));
    assert!(!quorums_intersect(&of(&[1, 2, 3]), &of(&[1])));
    assert!(!quorums_intersect(&of(&[1]), &of(&[2])));
}

#[test]
fn a_joint_quorum_intersects_those_before_and_after() {
    for_each_joint_change(|old, _, changes| {
        let old = membership_of(old);
        let Ok(joint) = old.enter_joint(changes, true) else { return };
        let new = joint.leave_joint().expect("it is joint");
        assert!(quorums_intersect(&old, &joint), "{old:?} {joint:?}");
        assert!(quorums_intersect(&joint, &joint), "{joint:?}");
        assert!(quorums_intersect(&joint, &new), "{joint:?} {new:?}");
        assert!(obeys_the_rules(&joint), "{joint:?}");
        assert!(obeys_the_rules(&new), "{new:?}");
    });
}

#[test]
fn entering_and_leaving_gives_what_was_asked() {
    let mut accepted = 0;
    for_each_joint_change(|old, wanted, changes| {
        let before = membership_of(old);
        for auto_leave in [false, true] {
            let joint = before.enter_joint(changes, auto_leave);
            if changes.is_empty() {
                assert_eq!(joint, Err(ChangeError::NoChange));
            } else if !wanted.contains(&Role::Voter) {
                let last = *ids_of(old, Role::Voter).last().expect("old has a voter");
                assert_eq!(joint, Err(ChangeError::NoVoters { replica: last }));
            } else {
                accepted += 1;
                let joint = joint.expect("nothing speaks against it");
                assert_eq!(joint.auto_leave, auto_leave);
                assert_eq!(joint.voters, ids_of(wanted, Role::Voter));
                assert_eq!(joint.voters_outgoing, before.voters);
                assert_eq!(joint.leave_joint(), Ok(membership_of(wanted)), "{old:?} {changes:?}");
            }
        }
        assert_eq!(before, membership_of(old));
    });
    assert_eq!(accepted, 2 * (65 * 65 - 65));
}

#[test]
fn a_demoted_voter_votes_until_the_joint_configuration_is_left() {
    let old = Membership::of_voters((1..=3).map(replica));
    let changes = [Change::AddLearner(replica(2)), Change::AddLearner(replica(4))];
    let joint = old.enter_joint(&changes, false).unwrap();
    assert_eq!((&joint.learners, &joint.learners_next), (&vec![replica(4)], &vec![replica(2)]));
    assert!(joint.is_voter(replica(2)));
    let new = joint.leave_joint().unwrap();
    assert!(!new.is_voter(replica(2)));
    assert_eq!(new.learners, [replica(2), replica(4)]);
}

#[test]
fn the_order_of_joint_changes_does_not_matter() {
    for_each_joint_change(|old, _, changes| {
        let old = membership_of(old);
        let reversed: Vec<_> = changes.iter().rev().copied().collect();
        assert_eq!(old.enter_joint(changes, true).ok(), old.enter_joint(&reversed, true).ok());
    });
}

#[test]
fn one_impossible_change_refuses_the_whole_joint_change() {
    for_each_joint_change(|old, wanted, changes| {
        let before = membership_of(old);
        for at in (0..REPLICAS).filter(|&at| old[at] == wanted[at]) {
            let with_none = [changes, &[change_to(at, old[at])]].concat();
            assert_eq!(before.enter_joint(&with_none, true), Err(refusal(at, old[at])));
        }
        for change in changes {
            for role in [Role::Absent, Role::Learner, Role::Voter] {
                let replica = change.replica();
                let twice = [changes, &[change_to(replica.get() as usize - 1, role)]].concat();
                assert_eq!(before.enter_joint(&twice, true), Err(ChangeError::Repeated { replica }));
            }
        }
    });
}

#[test]
fn a_joint_configuration_is_left_before_anything_else_changes() {
    for_each_joint_change(|old, _, changes| {
        let old = membership_of(old);
        assert_eq!(old.leave_joint(), Err(ChangeError::NotJoint));
        let Ok(joint) = old.enter_joint(changes, true) else { return };
        let before = joint.clone();
        for at in 0..REPLICAS {
            for role in [Role::Absent, Role::Learner, Role::Voter] {
                let refused = ChangeError::AlreadyJoint { replica: replica(at + 1) };
                assert_eq!(joint.simple(change_to(at, role)), Err(refused));
                assert_eq!(joint.enter_joint(&[change_to(at, role)], true), Err(refused));
            }
        }
        assert_eq!(joint, before);
    });
}

/// All 2^12 contents of the lists over three replicas, sound or not, and unsorted ones.
#[test]
fn broken_rules_are_found() {
    let list = |bits: usize| (0..3).filter(|at| bits >> at & 1 == 1).map(|at| replica(at + 1)).collect();
    let mut sound = 0;
    for code in 0..2 * 8_usize.pow(4) {
        let m = Membership {
            voters: list(code & 7),
            voters_outgoing: list(code >> 3 & 7),
            learners: list(code >> 6 & 7),
            learners_next: list(code >> 9 & 7),
            auto_leave: code >> 12 == 1,
        };
        assert_eq!(m.broken_rule().is_none(), obeys_the_rules(&m), "{m:?}: {:?}", m.broken_rule());
        sound += usize::from(m.broken_rule().is_none());
    }
    assert!(sound > 100, "{sound}");
    for voters in [vec![replica(2), replica(1)], vec![replica(1), replica(1)]] {
        assert!(Membership { voters, ..Membership::default() }.broken_rule().is_some());
    }
}

/// Every joint configuration and every vote or acknowledgement of its members, against all subsets.
#[test]
fn joint_arithmetic_agrees_with_all_subsets() {
    let sets = 0..1_usize << REPLICAS;
    let votes = assignments(&[None, Some(true), Some(false)]);
    let acks = assignments(&[0, 1, 2]);
    for halves in
        sets.clone().skip(1).flat_map(|incoming| sets.clone().map(move |outgoing| (incoming, outgoing)))
    {
        let list =
            |set: usize| (0..REPLICAS).filter(|at| set >> at & 1 == 1).map(|at| replica(at + 1)).collect();
        let (voters, voters_outgoing) = (list(halves.0), list(halves.1));
        let membership = Membership { voters, voters_outgoing, ..Membership::default() };
        let quorums: Vec<_> = sets.clone().filter(|&set| is_quorum(&membership, set)).collect();
        let at = |id: ReplicaId| id.get() as usize - 1;
        for vote in &votes {
            let all = |set: usize, may: fn(Option<bool>) -> bool| {
                (0..REPLICAS).all(|at| set >> at & 1 == 0 || may(vote[at]))
            };
            let expected = if quorums.iter().any(|&set| all(set, |vote| vote == Some(true))) {
                VoteResult::Won
            } else if quorums.iter().any(|&set| all(set, |vote| vote != Some(false))) {
                VoteResult::Pending
            } else {
                VoteResult::Lost
            };
            assert_eq!(
                vote_result_joint(&membership, |id| vote[at(id)]),
                expected,
                "{membership:?} {vote:?}"
            );
        }
        for ack in &acks {
            let lowest = |set: usize| (0..REPLICAS).filter(|at| set >> at & 1 == 1).map(|at| ack[at]).min();
            let expected = quorums.iter().filter_map(|&set| lowest(set)).max().expect("there is a quorum");
            assert_eq!(
                committed_index_joint(&membership, |id| ack[at(id)]),
                expected,
                "{membership:?} {ack:?}"
            );
        }
    }
}
