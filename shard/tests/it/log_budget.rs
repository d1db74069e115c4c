//! One budget for all logs of a core: laggards pay first, then callers, and nobody waits for ever.

use crate::cluster::{Cluster, MS, write};
use crate::others;
use floe_shard::*;

const BUDGET: usize = 256 << 10;
/// What a turn may add before it is counted: the commands of some shards.
const SLACK: usize = 32 << 10;

fn cluster(shards: u32) -> Cluster {
    let config = ShardConfig {
        flush_log_bytes: 16 << 10,
        log_bytes_max: 4 << 20,
        core_log_bytes_max: BUDGET,
        dump_chunk_bytes: 16 << 10,
        ..ShardConfig::default()
    };
    let mut cluster = Cluster::new(config, shards);
    for descriptor in cluster.map.clone().iter() {
        cluster.await_leader(descriptor.shard);
    }
    cluster
}

fn shards(cluster: &Cluster) -> Vec<ShardId> {
    cluster.map.iter().map(|descriptor| descriptor.shard).collect()
}

fn key(cluster: &Cluster, shard: ShardId, put: usize) -> Vec<u8> {
    [&cluster.map.get(shard).expect("it is in the map").range.start[..], format!("\0{}", put % 10).as_bytes()]
        .concat()
}

/// A put of 1 KiB through the shard's leader.
fn put(cluster: &mut Cluster, shard: ShardId, put: usize) -> Answer {
    let (leader, key) = (cluster.leader_of(shard).expect("it has a leader"), key(cluster, shard, put));
    cluster.put(leader, shard, &key, &[put as u8; 1024])
}

fn put_all(cluster: &mut Cluster, shards: &[ShardId], puts: usize) {
    for number in 0..puts {
        for &shard in shards {
            let answer = put(cluster, shard, number);
            assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
            for node in &cluster.nodes {
                let bytes = node.multi.log_bytes();
                assert!(bytes < BUDGET, "{}: {bytes} bytes of log, put {number} of {shard}", node.addr);
            }
        }
    }
}

fn first(cluster: &Cluster, node: usize, shard: ShardId) -> u64 {
    cluster.nodes[node].multi.status(shard).expect("a replica is there").first
}

#[test]
fn what_a_silent_node_still_needs_goes_before_writers_notice_anything() {
    let mut cluster = cluster(8);
    cluster.isolated.insert(2);
    cluster.run(1000);
    let shards = shards(&cluster);
    // A megabyte: four times the budget.
    put_all(&mut cluster, &shards, 128);
    cluster.isolated.clear();
    // Dumps come in few at a time.
    cluster.run(9000);
    for shard in shards {
        cluster.assert_equal_states(shard);
    }
    let installs = cluster.nodes[2].multi.stats().installs;
    assert!(installs > 0, "nothing was left to a dump");
}

#[test]
fn the_slowest_follower_pays_and_one_that_is_nearly_there_does_not() {
    let mut cluster = cluster(6);
    cluster.isolated.insert(2);
    cluster.run(1000);
    let led: Vec<_> = shards(&cluster).into_iter().filter(|&shard| cluster.leads(0, shard)).collect();
    let [slow, nearly] = [led[0], led[1]];
    put_all(&mut cluster, &[nearly], 20);
    put_all(&mut cluster, &[slow], 150);
    cluster.run(100);
    assert!(first(&cluster, 0, slow) > 10, "its follower gets a dump");
    assert_eq!(first(&cluster, 0, nearly), 2, "its follower gets the log");
}

#[test]
fn without_dumps_callers_are_told_busy_at_last_and_no_longer_once_there_are() {
    let mut cluster = cluster(4);
    let shards = shards(&cluster);
    cluster.nodes.iter_mut().for_each(|node| node.dumps_stuck = true);
    let mut written = 0;
    let busy = Answer::Refused(Refusal::Busy(BusyReason::LogMemory));
    loop {
        let answer = put(&mut cluster, shards[written % 4], written);
        if answer == busy {
            break;
        }
        assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
        written += 1;
        assert!(written < 1000, "nothing bounds the logs");
    }
    assert!(written * 1024 > BUDGET / 2, "{written} KiB were written: too early");
    for node in &cluster.nodes {
        let bytes = node.multi.log_bytes();
        assert!(bytes < BUDGET + SLACK, "{}: {bytes} bytes", node.addr);
    }
    cluster.nodes.iter_mut().for_each(|node| node.dumps_stuck = false);
    cluster.run(1000);
    put_all(&mut cluster, &shards, 50);
    cluster.run(1000);
    for shard in shards {
        cluster.assert_equal_states(shard);
    }
}

#[test]
fn a_follower_that_can_not_dump_refuses_and_the_others_write_on() {
    let mut cluster = cluster(1);
    let shard = shards(&cluster)[0];
    let leader = cluster.leader_of(shard).unwrap();
    let [stuck, _] = others(leader);
    cluster.nodes[stuck].dumps_stuck = true;
    for number in 0..1000 {
        let answer = put(&mut cluster, shard, number);
        assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
        let bytes = cluster.nodes[stuck].multi.log_bytes();
        assert!(bytes < BUDGET + SLACK, "{bytes} bytes of log on the follower, put {number}");
    }
    cluster.nodes[stuck].dumps_stuck = false;
    cluster.run(3000);
    cluster.assert_equal_states(shard);
}

/// Two nodes lead, the third is away: each commits what the other takes. Both are full of what isn't committed.
#[test]
fn two_leaders_full_of_what_waits_for_each_other_both_go_on() {
    let mut cluster = cluster(3);
    let shards = shards(&cluster);
    cluster.isolated.insert(2);
    cluster.run(1000);
    let mut led = [0, 1].map(|node| shards.iter().copied().find(|&shard| cluster.leads(node, shard)));
    let [Some(one), Some(other)] = &mut led else { panic!("both lead something: {led:?}") };
    cluster.cut_both_ways(0, 1);
    let mut asked = Vec::new();
    for number in 0..BUDGET >> 10 {
        for (node, shard) in [(0, *one), (1, *other)] {
            let key = key(&cluster, shard, number);
            asked.push((node, cluster.submit(node, write(shard, &key, &[1; 1024]))));
        }
        if number % 8 == 7 {
            cluster.turn();
        }
    }
    let full = cluster.nodes[..2].iter().all(|node| node.multi.log_bytes() > BUDGET / 4 * 3);
    assert!(full, "{:?}", [0, 1].map(|node| cluster.nodes[node].multi.log_bytes()));
    cluster.cut.clear();
    let begun = cluster.now;
    cluster.run_until("answered", |cluster| {
        asked.iter().all(|(node, id)| cluster.nodes[*node].answers.contains_key(id))
    });
    assert!(cluster.now - begun < 1000 * MS, "{} ns", cluster.now - begun);
    let written =
        |(node, id): &(usize, RequestId)| matches!(cluster.nodes[*node].answers[id], Answer::Written { .. });
    let count = asked.iter().filter(|asked| written(asked)).count();
    assert!(count * 1024 > BUDGET, "{count} of {} written", asked.len());
}

/// One of three nodes has gone, and the one that is left to commit with needs a dump that takes longer than a beat. What
/// waits to be committed fills the leader's memory: giving up the dump would free nothing of it.
#[test]
fn a_leader_full_of_what_waits_for_a_dump_to_arrive_goes_on_with_the_dump() {
    let mut cluster = cluster(1);
    let shard = shards(&cluster)[0];
    let leader = cluster.leader_of(shard).unwrap();
    let [behind, gone] = others(leader);
    cluster.isolated.insert(behind);
    cluster.run(1000);
    for number in 0..1000 {
        let key = format!("{number:04}");
        let answer = cluster.put(leader, shard, key.as_bytes(), &[number as u8; 1024]);
        assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
    }
    cluster.isolated = [gone].into();
    let asked: Vec<_> = (0..BUDGET >> 10)
        .map(|number| cluster.submit(leader, write(shard, &key(&cluster, shard, number), &[1; 1024])))
        .collect();
    let begun = cluster.now;
    cluster.run_until("answered", |cluster| {
        asked.iter().all(|id| cluster.nodes[leader].answers.contains_key(id))
    });
    assert!(cluster.now - begun > 100 * MS, "{} ns: the dump came within a beat or two", cluster.now - begun);
    let first = &cluster.nodes[leader].answers[&asked[0]];
    assert!(matches!(first, Answer::Written { .. }), "{first:?}");
    assert_eq!(cluster.nodes[behind].multi.stats().installs, 1, "it began anew");
}
