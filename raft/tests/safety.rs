//! Random schedules: whatever the network and the disks do, the paper's properties hold; and once
//! they behave again, the group elects a leader and commits.

mod cluster;

use bytes::Bytes;
use cluster::{Cluster, replica};
use floe_checker::random::Random;
use floe_raft::quorum::{VoteResult, committed_index, committed_index_joint, vote_result, vote_result_joint};
use floe_raft::{Change, Config, EntryKind, FeedState, Membership, MembershipChange, ReplicaId};

const MS: u64 = 1_000_000;

/// One run: its faults are drawn from the seed, so some runs are calm and some are not.
struct Run {
    random: Random,
    cluster: Cluster,
    size: usize,
    /// Memberships are changed.
    changes: bool,
    loss_one_in: u64,
    crash_one_in: u64,
    next_context: u64,
    /// For each read asked: the highest index committed anywhere at that time.
    read_floor: Vec<u64>,
    stats: Stats,
}

#[derive(Default, Debug)]
struct Stats {
    elections: usize,
    committed: u64,
    reads: usize,
    snapshots: usize,
    crashes: usize,
    changes: usize,
    joint: usize,
    leased: usize,
}

impl Run {
    /// `spares` of the `size` replicas are no members at first; memberships change if there are any, or with 0.
    fn new(seed: u64, size: usize, spares: Option<usize>) -> Self {
        let mut random = Random::new(seed);
        let config = Config {
            append_bytes_max: [1, 200, 1 << 20][random.index(3)],
            inflight_messages_max: [1, 3, 64][random.index(3)],
            apply_bytes_max: [1, 1 << 20][random.index(2)],
            lease_slack_ns: [0, MS][random.index(2)],
            ..Config::default()
        };
        let mut cluster =
            Cluster::with_spares(size - spares.unwrap_or(0), 0, spares.unwrap_or(0), config, seed);
        // Two clocks together are within the drift that leases allow for.
        cluster.drift_ppm.fill_with(|| random.below(9_000) as i64 - 4_500);
        cluster.allow_promises([0, 150, 150][random.index(3)] * MS);
        cluster.auto_persist = false;
        cluster.auto_apply = false;
        cluster.trace_messages = std::env::var_os("FLOE_TRACE").is_some();
        let loss_one_in = [4, 20, 1000][random.index(3)];
        let crash_one_in = [60, 300, 5000][random.index(3)];
        let stats = Stats::default();
        Self {
            random,
            cluster,
            size,
            changes: spares.is_some(),
            loss_one_in,
            crash_one_in,
            next_context: 0,
            read_floor: Vec::new(),
            stats,
        }
    }

    fn any_node(&mut self) -> usize {
        1 + self.random.index(self.size)
    }

    fn step(&mut self) {
        match self.random.index(100) {
            0..50 => self.network_event(),
            50..65 => {
                let node = self.any_node();
                self.cluster.persist_one(node);
            }
            65..72 => {
                let node = self.any_node();
                self.cluster.apply_all(node);
            }
            72..82 => self.time_passes(),
            82..86 if self.changes => self.change(),
            82..92 => self.propose(),
            92..95 => self.read(),
            95..97 => self.snapshot_event(),
            _ => self.fault(),
        }
        self.check_reads();
        self.cluster.check_leases();
        let leased = |node: &cluster::Node| node.raft.as_ref().is_some_and(|raft| raft.lease().is_some());
        self.stats.leased += usize::from(self.cluster.nodes.iter().any(leased));
    }

    fn network_event(&mut self) {
        let waiting = self.cluster.net.len();
        if waiting == 0 {
            return self.time_passes();
        }
        // Mostly the oldest, sometimes any: reordering.
        let position = if self.random.one_in(4) { self.random.index(waiting) } else { 0 };
        if self.random.one_in(self.loss_one_in) {
            self.cluster.net.remove(position);
        } else if self.random.one_in(20) {
            let copy = self.cluster.net[position].clone();
            self.cluster.deliver(copy);
        } else {
            self.cluster.deliver_at(position);
        }
    }

    fn time_passes(&mut self) {
        self.cluster.now += (1 + self.random.below(20)) * MS;
        self.cluster.tick();
        if self.random.one_in(3) {
            self.cluster.beat();
        }
    }

    fn propose(&mut self) {
        let node = self.any_node();
        for _ in 0..=self.random.index(4) {
            let data =
                Bytes::copy_from_slice(&self.random.next_u64().to_le_bytes()[..1 + self.random.index(8)]);
            let done = self.cluster.with(node, |raft, now| raft.propose(now, EntryKind::Command, 0, data));
            if done.is_some_and(|result| result.is_err()) {
                return;
            }
        }
    }

    /// Any change, at any replica: most are refused.
    fn change(&mut self) {
        let node = if self.random.one_in(4) { self.any_node() } else { self.cluster.leader().unwrap_or(1) };
        let mut changes: Vec<Change> = (0..=self.random.index(3)).map(|_| self.one_change()).collect();
        changes.dedup_by_key(|change| change.replica());
        let raft = self.cluster.node(node).raft.as_ref();
        let is_joint = raft.is_some_and(|raft| raft.membership().is_joint());
        let change = match self.random.index(4) {
            _ if is_joint => MembershipChange::LeaveJoint,
            0 | 1 => MembershipChange::Simple(changes[0]),
            _ => MembershipChange::EnterJoint { changes, auto_leave: self.random.one_in(2) },
        };
        let force = self.random.one_in(2);
        let done =
            self.cluster.with(node, |raft, now| raft.propose_membership(now, &change, force, b"context"));
        if done.is_some_and(|result| result.is_ok()) {
            self.stats.changes += 1;
            self.stats.joint += usize::from(matches!(change, MembershipChange::EnterJoint { .. }));
        }
    }

    fn one_change(&mut self) -> Change {
        let id = replica(self.any_node());
        match self.random.index(3) {
            0 => Change::AddVoter(id),
            1 => Change::AddLearner(id),
            _ => Change::Remove(id),
        }
    }

    fn read(&mut self) {
        let (node, context) = (self.any_node(), self.next_context);
        let asked = self.cluster.with(node, |raft, now| raft.read_index(now, context));
        if asked.is_some_and(|result| result.is_ok()) {
            self.next_context += 1;
        }
        // Also noted for one that wasn't taken: the number is used again then.
        let floor = self.cluster.truth.last_key_value().map_or(0, |(index, _)| *index);
        self.read_floor.truncate(context as usize);
        self.read_floor.push(floor);
    }

    /// Linearizability: a read sees at least what was committed anywhere when it was asked for.
    fn check_reads(&mut self) {
        for node in &mut self.cluster.nodes {
            for (context, index) in node.reads.drain(..) {
                let floor = self.read_floor[context as usize];
                assert!(
                    index >= floor,
                    "stale read: {} may serve {context} at {index}, not {floor}",
                    node.id
                );
                self.stats.reads += 1;
            }
        }
    }

    fn snapshot_event(&mut self) {
        let node = self.any_node();
        let Some(raft) = &self.cluster.node(node).raft else { return };
        let (applied, term) = (raft.applied_index(), raft.term());
        if let Some(&peer) = self.cluster.node(node).snapshots_needed.first() {
            let delivered = !self.random.one_in(3);
            self.stats.snapshots += usize::from(delivered);
            self.cluster.nodes[node - 1].snapshots_needed.retain(|other| *other != peer);
            if delivered {
                assert!(term > 0);
                self.cluster.send_snapshot(node, peer.get() as usize);
            }
            self.cluster.with(node, |raft, _| raft.report_snapshot(peer, delivered));
        } else if applied > 0 && self.random.one_in(2) {
            let to = applied - self.random.below(3).min(applied);
            self.cluster.compact(node, to);
        }
    }

    fn fault(&mut self) {
        let node = self.any_node();
        match self.random.index(5) {
            0 => {
                let peer = replica(self.any_node());
                self.cluster.with(node, |raft, _| raft.report_unreachable(peer));
            }
            1 => {
                let to = replica(self.any_node());
                let _refused = self.cluster.with(node, |raft, now| raft.transfer_leadership(now, to));
            }
            2 if self.random.one_in(4) => {
                for side in &mut self.cluster.side {
                    *side = usize::from(self.random.one_in(2));
                }
            }
            3 => self.cluster.side.fill(0),
            2 => {
                self.cluster.with(node, |raft, now| raft.campaign(now));
            }
            _ => {}
        }
        if self.random.one_in(self.crash_one_in.div_ceil(20)) && self.cluster.node(node).raft.is_some() {
            self.stats.crashes += 1;
            self.cluster.crash(node);
        }
        let down = self.any_node();
        if self.cluster.node(down).raft.is_none() {
            self.cluster.restart(down);
        }
    }

    /// No more faults: time passes, everything is delivered.
    fn calm(&mut self, rounds: usize) {
        self.cluster.auto_persist = true;
        self.cluster.auto_apply = true;
        self.cluster.side.fill(0);
        for node in 1..=self.size {
            if self.cluster.node(node).raft.is_none() {
                self.cluster.restart(node);
            }
            while !self.cluster.node(node).pending.is_empty() {
                self.cluster.persist_one(node);
            }
            self.cluster.apply_all(node);
        }
        for _ in 0..rounds {
            self.cluster.now += 10 * MS;
            self.cluster.tick();
            self.cluster.beat();
            let mut budget = 20_000;
            while !self.cluster.net.is_empty() {
                self.cluster.deliver_at(0);
                budget -= 1;
                assert!(
                    budget > 0,
                    "messages never end: {:?}",
                    self.cluster.net.iter().take(5).collect::<Vec<_>>()
                );
            }
            self.transfer_snapshots();
            self.check_reads();
        }
    }

    fn transfer_snapshots(&mut self) {
        for node in 1..=self.size {
            while let Some(&peer) = self.cluster.node(node).snapshots_needed.first() {
                self.cluster.send_snapshot(node, peer.get() as usize);
                self.cluster.with(node, |raft, _| raft.report_snapshot(peer, true));
            }
        }
    }

    /// Every replica in a line.
    fn describe(&self) -> String {
        let line = |node: &cluster::Node| {
            let status = node.raft().status();
            let members = cluster::describe_membership(&status.membership);
            let (role, term, last, commit) = (status.role, status.term, status.last, status.commit);
            format!("{} {role:?} of {term}, {last}, commit {commit}, {members}\n", node.id)
        };
        self.cluster.nodes.iter().map(line).collect()
    }

    fn heals(&mut self) {
        self.calm(150);
        let Some(leader) = self.cluster.leader() else {
            panic!("no leader after 1.5 s of calm:\n{}", self.describe());
        };
        let proposed = self
            .cluster
            .with(leader, |raft, now| raft.propose(now, EntryKind::Command, 0, Bytes::from_static(b"fresh")));
        let mark = proposed.expect("it runs").expect("it leads, and nothing is in the way");
        self.calm(20);
        let leader = self.cluster.leader().expect("it leads on, or has handed over");
        for id in self.cluster.node(leader).raft().membership().members() {
            let node = id.get() as usize;
            let raft = self.cluster.node(node).raft();
            assert!(raft.applied_index() >= mark.index, "r{node} lacks {mark}: {:#?}", raft.status());
        }
        let status = self.cluster.node(leader).raft().status();
        let fed = status
            .peers
            .iter()
            .all(|peer| peer.state == FeedState::Replicate && peer.in_flight_messages == 0);
        assert!(fed, "{status:#?}");
        self.stats.committed = mark.index;
        self.stats.elections = self.cluster.leaders.len();
    }
}

fn run(seed: u64, size: usize, spares: Option<usize>, steps: usize) -> Stats {
    let mut run = Run::new(seed, size, spares);
    for step in 0..steps {
        run.step();
        if step % 50 == 0 {
            run.cluster.check_log_matching();
        }
        if run.cluster.trace_messages {
            run.cluster.trace.drain(..).for_each(|line| eprintln!("{line}"));
        }
        run.cluster.trace.clear();
    }
    run.heals();
    run.cluster.check_log_matching();
    run.stats
}

/// Runs seeds and prints the one that failed.
fn run_seeds(seeds: std::ops::Range<u64>, size: usize, steps: usize) {
    let only = std::env::var("FLOE_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut sum = Stats::default();
    for seed in only.map_or(seeds, |seed| seed..seed + 1) {
        let result = std::panic::catch_unwind(|| run(seed, size, None, steps));
        let Ok(stats) = result else { panic!("FLOE_SEED={seed} with {size} replicas fails") };
        sum.elections += stats.elections;
        sum.committed += stats.committed;
        sum.reads += stats.reads;
        sum.snapshots += stats.snapshots;
        sum.crashes += stats.crashes;
        sum.leased += stats.leased;
    }
    println!("{size} replicas: {sum:?}");
    assert!(
        only.is_some() || (sum.elections > 100 && sum.reads > 100 && sum.snapshots > 10 && sum.leased > 1000),
        "too calm: {sum:?}"
    );
}

#[test]
fn three_replicas_stay_safe_under_faults_and_recover() {
    run_seeds(0..300, 3, 3000);
}

#[test]
fn five_replicas_stay_safe_under_faults_and_recover() {
    run_seeds(1000..1150, 5, 4000);
}

/// With 3 to 7 replicas, of which up to two thirds are no members at first.
fn changing(seed: u64) -> Stats {
    let size = 3 + seed as usize % 5;
    let spares = (seed / 5) as usize % (2 * size / 3 + 1);
    run(seed, size, Some(spares), 4000)
}

#[test]
fn groups_that_change_their_members_stay_safe_under_faults_and_recover() {
    let only = std::env::var("FLOE_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut sum = Stats::default();
    for seed in only.map_or(0..400, |seed| seed..seed + 1) {
        let result = std::panic::catch_unwind(|| changing(seed));
        let Ok(stats) = result else { panic!("FLOE_SEED={seed} fails") };
        sum.elections += stats.elections;
        sum.committed += stats.committed;
        sum.changes += stats.changes;
        sum.joint += stats.joint;
        sum.snapshots += stats.snapshots;
    }
    println!("{sum:?}");
    assert!(only.is_some() || (sum.changes > 1200 && sum.joint > 400), "too calm: {sum:?}");
}

/// The checks above are worth something only if they find what is known to be broken.
#[cfg(feature = "planted")]
#[test]
fn planted_bugs_are_found() {
    use floe_raft::{Planted, plant};
    let changing_is_needed = [
        Planted::SecondChangeUncommitted,
        Planted::MembershipNotRolledBack,
        Planted::JointAsUnion,
        Planted::RemovedVoteCounted,
    ];
    for bug in changing_is_needed {
        plant(Some(bug));
        let found = (0..3000).find(|seed| std::panic::catch_unwind(|| changing(*seed)).is_err());
        plant(None);
        println!("{bug:?} is found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} is not found");
    }
    for bug in [
        Planted::VoteNotPersisted,
        Planted::OldTermCommitCounted,
        Planted::StampBeforeOwnCommit,
        Planted::StampBesideLess,
        Planted::FreshBeforeApplied,
    ] {
        plant(Some(bug));
        let fails = |seed: &u64| {
            std::panic::catch_unwind(|| run(*seed, 3 + 2 * (*seed as usize % 2), None, 4000)).is_err()
        };
        let found = (0..3000).find(fails);
        plant(None);
        println!("{bug:?} is found by seed {found:?}");
        assert!(found.is_some(), "{bug:?} is not found");
    }
}

#[test]
fn the_committed_index_is_the_highest_that_a_majority_holds() {
    let mut random = Random::new(1);
    for _ in 0..3000 {
        let count = 1 + random.index(11);
        let voters: Vec<ReplicaId> = (1..=count).map(replica).collect();
        let acks: Vec<u64> = (0..count).map(|_| random.below(6)).collect();
        let held_by = |index: u64| acks.iter().filter(|&&ack| ack >= index).count();
        let expected = (0..6).rev().find(|&index| 2 * held_by(index) > count).expect("all hold 0");
        assert_eq!(committed_index(&voters, |id| acks[id.get() as usize - 1]), expected, "{acks:?}");
    }
}

#[test]
fn a_vote_is_won_or_lost_as_soon_as_nothing_can_change_it() {
    for count in 1..=6_usize {
        let voters: Vec<ReplicaId> = (1..=count).map(replica).collect();
        for code in 0..3_usize.pow(count as u32) {
            let votes: Vec<_> = (0..count)
                .map(|at| [None, Some(true), Some(false)][code / 3_usize.pow(at as u32) % 3])
                .collect();
            let yes = votes.iter().filter(|vote| **vote == Some(true)).count();
            let open = votes.iter().filter(|vote| vote.is_none()).count();
            let expected = match (2 * yes > count, 2 * (yes + open) > count) {
                (true, _) => VoteResult::Won,
                (false, true) => VoteResult::Pending,
                (false, false) => VoteResult::Lost,
            };
            assert_eq!(vote_result(&voters, |id| votes[id.get() as usize - 1]), expected, "{votes:?}");
        }
    }
}

#[test]
fn a_joint_decision_needs_a_majority_of_each_half() {
    let mut random = Random::new(2);
    for _ in 0..3000 {
        let mut half = || -> Vec<ReplicaId> { (1..=6).filter(|_| random.one_in(2)).map(replica).collect() };
        let membership = Membership { voters: half(), voters_outgoing: half(), ..Membership::default() };
        let acks: Vec<u64> = (0..6).map(|_| random.below(5)).collect();
        let votes: Vec<_> = (0..6).map(|_| [None, Some(true), Some(false)][random.index(3)]).collect();
        let acked = |id: ReplicaId| acks[id.get() as usize - 1];
        let vote = |id: ReplicaId| votes[id.get() as usize - 1];
        let (voters, outgoing) = (&membership.voters, &membership.voters_outgoing);
        let both = [committed_index(voters, acked), committed_index(outgoing, acked)];
        assert_eq!(Some(&committed_index_joint(&membership, acked)), both.iter().min());
        let results = [vote_result(voters, vote), vote_result(outgoing, vote)];
        let expected = if results.contains(&VoteResult::Lost) {
            VoteResult::Lost
        } else if results.contains(&VoteResult::Pending) {
            VoteResult::Pending
        } else {
            VoteResult::Won
        };
        assert_eq!(vote_result_joint(&membership, vote), expected);
    }
}
