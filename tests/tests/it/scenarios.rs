//! Scenarios named after the promise that they test. Each ends with the demands of every run: fresh
//! writes on every shard, all operations answered, equal replicas, a linearizable history.

use floe_raft::Nanos;
use floe_shard::{Answer, PeerMessage, Rest};
use floe_tests::checker::Violation;
use floe_tests::sim::clock::{MS, SEC};
use floe_tests::sim::cluster::{Cluster, PROBES};
use floe_tests::sim::disk::{CallKind, Crash};
use floe_tests::sim::plan::{FaultKind, Plan};

/// Runs the load until so many operations have begun.
pub(crate) fn load(cluster: &mut Cluster, operations: u64) -> Result<(), Violation> {
    let done = cluster.run_until(120 * SEC, |cluster| cluster.clients.counts.begun >= operations)?;
    assert!(done, "only {:?} operations in two minutes", cluster.clients.counts);
    Ok(())
}

pub(crate) fn heal_and_judge(cluster: &mut Cluster) -> Result<Nanos, Violation> {
    cluster.heal();
    cluster.wait_until_started()?;
    let recovery_ns = cluster.demand_fresh_writes()?;
    cluster.finish()?;
    Ok(recovery_ns)
}

/// Runs a scenario on a few seeds; a broken promise names the seed.
pub(crate) fn on_seeds(nodes: usize, scenario: impl Fn(&mut Cluster) -> Result<(), Violation>) {
    on_plans(|seed| Plan::quiet(seed, nodes), scenario);
}

pub(crate) fn on_plans(plan: impl Fn(u64) -> Plan, scenario: impl Fn(&mut Cluster) -> Result<(), Violation>) {
    for seed in 1..=3 {
        let mut cluster = Cluster::new(plan(seed));
        cluster.start_clients();
        if let Err(violation) = scenario(&mut cluster) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn a_clean_run_carries_out_everything() {
    on_seeds(3, |cluster| {
        // Give the first elections time, so that nothing runs into a deadline.
        load(cluster, 1_000)?;
        heal_and_judge(cluster)?;
        let counts = cluster.clients.counts;
        assert!(counts.unknown == 0, "nothing went wrong, but outcomes are unknown: {counts:?}");
        assert!(counts.written > 300 && counts.read > 300, "{counts:?}");
        Ok(())
    });
}

#[test]
fn acknowledged_writes_survive_a_power_cut_of_all_nodes() {
    on_seeds(3, |cluster| {
        for operations in [200, 400, 600, 800] {
            load(cluster, operations)?;
            cluster.power_cut_all(50 * MS);
            cluster.run_for(SEC)?;
        }
        heal_and_judge(cluster).map(|_| ())
    });
}

#[test]
fn isolated_leader_serves_no_stale_read() {
    on_seeds(3, |cluster| {
        for round in 0..cluster.shards.len() {
            load(cluster, 200 * (round as u64 + 1))?;
            let shard = cluster.shards[round].shard;
            let Some(leader) = cluster.leader(shard) else { continue };
            // It neither hears nor is heard, but its clients still ask it.
            cluster.isolate(leader, false, false, SEC);
            for key in 0..cluster.clients.keys() {
                let client = PROBES + 50_000 + 1_000 * round as u32 + key;
                let now = cluster.now();
                let call = cluster.clients.get(now, client, key);
                cluster.ask(client, leader, call);
            }
            cluster.run_for(2 * SEC)?;
        }
        heal_and_judge(cluster).map(|_| ())
    });
}

#[test]
fn writes_go_on_within_two_election_timeouts_after_a_leader_stops() {
    on_seeds(3, |cluster| {
        load(cluster, 200)?;
        let shard = cluster.shards[0].shard;
        let leader = cluster.leader(shard).expect("the load has found one");
        cluster.crash_node(leader, Crash::Process, 60 * SEC);
        let recovery_ns = cluster.demand_fresh_writes()?;
        let bound = 2 * cluster.plan.election_timeout_ns();
        assert!(recovery_ns <= bound, "{recovery_ns} ns, at most {bound}");
        heal_and_judge(cluster).map(|_| ())
    });
}

/// As a TCP connection can be without either end's noticing: the follower closes it, and what it lacks arrives on the next
/// one.
#[test]
fn a_connection_that_brings_nothing_any_more_is_replaced() {
    on_seeds(3, |cluster| {
        load(cluster, 200)?;
        let shard = cluster.shards[0].shard;
        let leader = cluster.leader(shard).expect("the load has found one");
        cluster.stick(leader, (leader + 1) % 3);
        heal_and_judge(cluster).map(|_| ())
    });
}

/// A core whose disk doesn't answer doesn't beat, but it says something.
#[test]
fn a_stuck_disk_costs_no_connection() {
    on_seeds(3, |cluster| {
        load(cluster, 200)?;
        let shard = cluster.shards[0].shard;
        let leader = cluster.leader(shard).expect("the load has found one");
        let before = cluster.network.connections_made();
        cluster.slow_disk(leader, 500_000, 10 * SEC);
        cluster.run_for(10 * SEC)?;
        assert_eq!(cluster.network.connections_made(), before, "connections were made anew");
        heal_and_judge(cluster).map(|_| ())
    });
}

/// Its core notices after an election timeout that nothing comes back, and stops leading; another node leads
/// after another one.
#[test]
fn writes_go_on_while_the_leaders_disk_is_stuck() {
    on_seeds(3, |cluster| {
        load(cluster, 200)?;
        let shard = cluster.shards[0].shard;
        let leader = cluster.leader(shard).expect("the load has found one");
        cluster.slow_disk(leader, 50_000, SEC);
        let recovery_ns = cluster.demand_fresh_writes()?;
        let bound = 3 * cluster.plan.election_timeout_ns();
        assert!(recovery_ns <= bound, "{recovery_ns} ns, at most {bound}");
        let next = cluster.leader(shard);
        assert!(next.is_some_and(|next| next != leader), "{next:?} leads after {leader}");
        heal_and_judge(cluster).map(|_| ())
    });
}

#[test]
fn a_half_deaf_leader_is_replaced() {
    on_seeds(3, |cluster| {
        load(cluster, 100)?;
        let shard = cluster.shards[0].shard;
        let leader = cluster.leader(shard).expect("the load has found one");
        cluster.isolate(leader, true, false, 10 * SEC);
        cluster.run_for(5 * SEC)?;
        let next = cluster.leader(shard);
        assert!(next.is_some_and(|next| next != leader), "{next:?} leads after {leader}");
        heal_and_judge(cluster).map(|_| ())
    });
}

#[test]
fn a_restart_with_another_core_count_keeps_everything() {
    on_seeds(3, |cluster| {
        let rounds = [(0, 1), (1, 3), (2, 1), (0, 3)];
        for (round, (node, cores)) in (1..).zip(rounds) {
            load(cluster, 200 * round)?;
            cluster.set_cores(node, cores);
            match round % 2 {
                0 => cluster.restart_cleanly(node, 10 * MS),
                _ => cluster.crash_node(node, Crash::Power, 10 * MS),
            }
            cluster.run_for(500 * MS)?;
        }
        heal_and_judge(cluster)?;
        assert!(cluster.found().rehomed > 0, "no replica moved to another core");
        Ok(())
    });
}

#[test]
fn a_lagging_follower_catches_up_through_a_dump() {
    let plan = |seed| {
        let mut plan = Plan::quiet(seed, 3);
        plan.shard.flush_log_bytes = 4 << 10;
        plan.shard.log_bytes_max = 8 << 10;
        plan.shard.dump_chunk_bytes = 4 << 10;
        plan
    };
    on_plans(plan, |cluster| {
        load(cluster, 100)?;
        cluster.crash_node(2, Crash::Process, 60 * SEC);
        load(cluster, 900)?;
        heal_and_judge(cluster)?;
        assert!(cluster.found().installs > 0, "nobody needed a dump");
        Ok(())
    });
}

#[test]
fn a_clean_shutdown_of_each_node_in_turn_loses_nothing() {
    on_seeds(3, |cluster| {
        for node in 0..3 {
            load(cluster, 200 * (node as u64 + 1))?;
            cluster.restart_cleanly(node, 10 * MS);
            cluster.run_for(2 * SEC)?;
        }
        heal_and_judge(cluster).map(|_| ())
    });
}

#[test]
fn five_replicas_survive_two_crashes() {
    let plan = |seed| Plan { replication: 5, ..Plan::quiet(seed, 5) };
    on_plans(plan, |cluster| {
        load(cluster, 200)?;
        cluster.crash_node(0, Crash::Power, 60 * SEC);
        cluster.crash_node(1, Crash::Process, 60 * SEC);
        cluster.run_for(2 * SEC)?;
        load(cluster, 800)?;
        heal_and_judge(cluster).map(|_| ())
    });
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    on_seeds(3, |cluster| {
        load(cluster, 100)?;
        for _ in 0..3 {
            cluster.strike(FaultKind::FullDisk);
        }
        load(cluster, 600)?;
        heal_and_judge(cluster).map(|_| ())
    });
}

/// One damaged disk of three: its node says which file, stays down, and nothing is lost.
#[test]
fn a_damaged_disk_is_refused_by_name_and_served_by_the_others() {
    for kind in [FaultKind::BitRot, FaultKind::LostWrite, FaultKind::Misdirected] {
        on_seeds(3, |cluster| {
            load(cluster, 300)?;
            let node = cluster.leader(cluster.shards[0].shard).expect("the load has found one");
            // Enough for something that is needed to be among it.
            (0..20).for_each(|_| cluster.strike_at(kind, node));
            cluster.crash_node(node, Crash::Power, 10 * MS);
            load(cluster, 600)?;
            heal_and_judge(cluster)?;
            assert_eq!(cluster.found().condemned, 1, "{kind:?}: the damage was not found");
            Ok(())
        });
    }
}

/// Whichever call to the disk fails, and whenever: at most that core stops, by name, and comes back.
#[test]
fn no_failed_disk_call_loses_anything() {
    for nth in [1, 2, 3, 5, 8, 13] {
        on_seeds(3, |cluster| {
            load(cluster, 100)?;
            for (round, kind) in (1..).zip(CallKind::ALL) {
                let node = round as usize % 3;
                cluster.fail_disk_call(node, kind, nth);
                load(cluster, 100 + 50 * round)?;
                // Reads are made at starts, most of the others by a running process.
                cluster.crash_node(node, Crash::Process, 10 * MS);
                load(cluster, 120 + 50 * round)?;
            }
            heal_and_judge(cluster).map(|_| ())
        });
    }
}

#[test]
fn an_overload_is_refused_early_and_loses_nothing() {
    on_plans(
        |seed| Plan { requests_max: 60, ..Plan::quiet(seed, 3) },
        |cluster| {
            load(cluster, 200)?;
            for node in 0..3 {
                cluster.strike_at(FaultKind::Overload, node);
                cluster.run_for(50 * MS)?;
            }
            load(cluster, 600)?;
            heal_and_judge(cluster)?;
            let counts = cluster.clients.counts;
            assert!(counts.burst >= 3 * 2 * 60 && counts.busy > 10, "{counts:?}");
            assert_eq!(counts.unknown, 0, "whoever was taken in was served: {counts:?}");
            Ok(())
        },
    );
}

/// The leader answers forwarded requests with what is no answer to them. Whoever asked is told that a
/// write's outcome isn't known and that a read failed; the request ends there, and the node goes on.
#[test]
fn an_answer_of_the_wrong_kind_is_no_outcome() {
    for seed in 1..=3 {
        let mut cluster = Cluster::new(Plan::quiet(seed, 3));
        let mut run = || {
            cluster.wait_until_started()?;
            cluster.demand_fresh_writes()?;
            let shard = cluster.clients.shard_of(0);
            let leader = cluster.leader(shard).unwrap();
            let other = (leader + 1) % 3;
            for (client, answer) in [
                (PROBES + 1, Answer::Done),
                (PROBES + 2, Answer::Value(None)),
                (PROBES + 3, Answer::Written { version: 1 }),
                (PROBES + 4, Answer::Rows { rows: Vec::new(), rest: Rest::More }),
            ] {
                let (now, before) = (cluster.now(), cluster.clients.counts);
                let reads = client > PROBES + 2;
                let call = match reads {
                    true => cluster.clients.get(now, client, 0),
                    false => cluster.clients.put(now, client, 0),
                };
                cluster.ask(client, other, call);
                // Whichever number the request has there; one that isn't under way is ignored.
                let numbers = (0..64).flat_map(|usage| (0..4).map(move |slot| usage << 32 | slot));
                let forged: Vec<_> =
                    numbers.map(|id| PeerMessage::Answer { id, answer: answer.clone() }).collect();
                for _ in 0..5 {
                    cluster.run_for(10_000)?;
                    cluster.forge(other, leader, shard, forged.clone());
                }
                cluster.run_until(SEC, |cluster| !cluster.clients.is_waiting(client))?;
                let after = cluster.clients.counts;
                let (unknown, refused) = (after.unknown - before.unknown, after.refused - before.refused);
                assert_eq!((unknown, refused), (u64::from(!reads), u64::from(reads)), "{answer:?}");
            }
            heal_and_judge(&mut cluster).map(|_| ())
        };
        if let Err(violation) = run() {
            panic!("seed {seed}: {violation}");
        }
    }
}
