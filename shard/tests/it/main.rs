//! The promises of `MultiRaft`, on three nodes in memory.

mod allocator;
mod cluster;
mod connectivity;
mod decoders;
mod faulty_peer;
mod free_bases;
mod jobs;
mod laggards;
mod log_budget;
mod members;
mod memory;
mod quiescence;
mod reads;
mod staging;
mod whole_dumps;

use bytes::Bytes;
use cluster::{Cluster, MS, get, value_of, write};
use floe_shard::*;

const S1: ShardId = ShardId(1);

fn one_shard() -> Cluster {
    Cluster::new(ShardConfig::default(), 1)
}

/// Dumps after 64 KiB of log, keeps at most 128 KiB of it.
fn small_logs() -> Cluster {
    let config = ShardConfig {
        flush_log_bytes: 64 << 10,
        log_bytes_max: 128 << 10,
        dump_chunk_bytes: 16 << 10,
        ..ShardConfig::default()
    };
    Cluster::new(config, 1)
}

fn others(node: usize) -> [usize; 2] {
    [(node + 1) % 3, (node + 2) % 3]
}

/// 1 KiB puts under many keys.
fn fill(cluster: &mut Cluster, leader: usize, puts: usize) {
    for put in 0..puts {
        let answer = cluster.put(leader, S1, format!("k{}", put % 50).as_bytes(), &[put as u8; 1024]);
        assert!(matches!(answer, Answer::Written { .. }), "{answer:?}");
    }
}

#[test]
fn puts_gets_and_scans_round_trip() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    let Answer::Written { version } = cluster.put(leader, S1, b"a", b"1") else { panic!() };
    cluster.put(leader, S1, b"b", b"2");
    let expected = Versioned { version, value: Bytes::from_static(b"1") };
    assert_eq!(cluster.get(leader, S1, b"a"), Answer::Value(Some(expected)));
    assert_eq!(cluster.get(leader, S1, b"c"), Answer::Value(None));
    let query = Query::Scan {
        start: Bytes::new(),
        end: Bytes::new(),
        limit: 1,
        bytes_max: 1000,
        reverse: true,
        view: None,
    };
    let scan = Request::Read { shard: S1, range_epoch: 1, query, consistency: Consistency::Linearizable };
    let Answer::Rows { rows, rest } = cluster.ask(leader, scan) else { panic!() };
    assert!(rest == Rest::More && rows.len() == 1 && rows[0].key == "b", "its limit is reached: {rest:?}");
    cluster.run(100);
    cluster.assert_equal_states(S1);
    for node in others(leader) {
        let stale = cluster.ask(node, get(S1, b"b", Consistency::ANY_AGE));
        assert_eq!(value_of(&stale), Some(&b"2"[..]));
        let hint = Some(cluster.nodes[leader].addr.node);
        assert_eq!(cluster.get(node, S1, b"b"), Answer::Refused(Refusal::NotLeader { leader: hint }));
    }
}

#[test]
fn first_leaders_are_where_the_descriptors_put_them() {
    let mut cluster = Cluster::new(ShardConfig::default(), 12);
    cluster.run(140);
    for descriptor in cluster.map.iter() {
        let leader = cluster.leader_of(descriptor.shard).expect("elected before any timeout");
        assert_eq!(cluster.nodes[leader].addr.node, descriptor.replicas[0].node, "{}", descriptor.shard);
    }
    assert!(cluster.nodes.iter().all(|node| node.multi.leaders() == 4));
}

#[test]
fn one_beat_per_interval_goes_to_each_peer_whatever_the_number_of_groups() {
    for shards in [1, 32] {
        let mut cluster = Cluster::new(ShardConfig::default(), shards);
        cluster.run(1000);
        let before: Vec<_> = cluster.nodes.iter().map(|node| node.beats_sent).collect();
        cluster.run(300);
        for (node, before) in cluster.nodes.iter().zip(before) {
            let sent = node.beats_sent - before;
            assert!((18..=22).contains(&sent), "{sent} beats to 2 peers in 10 intervals");
        }
    }
}

#[test]
fn stale_epoch_is_refused_with_the_new_descriptor() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"old");
    let mut descriptor = cluster.map.get(S1).unwrap().clone();
    descriptor.epoch.range = 2;
    let change = RequestId(1 << 40);
    let now = cluster.now;
    cluster.nodes[leader].multi.change_descriptor(now, change, descriptor.clone()).unwrap();
    // Behind it in the log, with the epoch that was right when it entered.
    let refused = Answer::Refused(Refusal::WrongEpoch { descriptor: Box::new(descriptor) });
    assert_eq!(cluster.put(leader, S1, b"a", b"new"), refused);
    assert_eq!(cluster.nodes[leader].answers[&change], Answer::Done);
    // At the door.
    assert_eq!(cluster.put(leader, S1, b"a", b"new"), refused);
    assert_eq!(cluster.get(leader, S1, b"a"), refused);
    cluster.run(100);
    cluster.assert_equal_states(S1);
}

#[test]
fn what_can_not_be_applied_is_refused_at_the_door() {
    let mut cluster = Cluster::new(ShardConfig::default(), 2);
    let leader = cluster.await_leader(S1);
    let descriptor = Box::new(cluster.map.get(S1).unwrap().clone());
    let outside = cluster.put(leader, S1, b"\xff", b"");
    assert_eq!(outside, Answer::Refused(Refusal::OutOfRange { descriptor }));
    for command in [&b""[..], &[1, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 9, 9, 9]] {
        let command = Bytes::copy_from_slice(command);
        let answer = cluster.ask(leader, Request::Write { shard: S1, command });
        assert!(matches!(answer, Answer::Refused(Refusal::BadCommand { .. })), "{answer:?}");
    }
    let nowhere = cluster.put(leader, ShardId(99), b"a", b"");
    assert_eq!(nowhere, Answer::Refused(Refusal::NoSuchShard { shard: ShardId(99) }));
    cluster.nodes[leader].multi.refuse_proposals(Some(BusyReason::DiskFull));
    let busy = cluster.put(leader, S1, b"a", b"");
    assert_eq!(busy, Answer::Refused(Refusal::Busy(BusyReason::DiskFull)));
}

#[test]
fn a_wedged_leader_steps_down_and_its_callers_are_told() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.run(100);
    cluster.isolated.insert(leader);
    let id = cluster.submit(leader, write(S1, b"a", b"1"));
    cluster.turn();
    cluster.nodes[leader].multi.set_wedged(cluster.now, true);
    cluster.turn();
    let answer = &cluster.nodes[leader].answers[&id];
    assert_eq!(*answer, Answer::Unknown(UnknownReason::LeadershipLost));
    let beats = cluster.nodes[leader].beats_sent;
    cluster.isolated.clear();
    cluster.run_until("another leader", |cluster| cluster.leader_of(S1).is_some_and(|next| next != leader));
    cluster.run(100);
    assert_eq!(cluster.nodes[leader].beats_sent, beats, "a wedged core beats");
    cluster.nodes[leader].multi.set_wedged(cluster.now, false);
    cluster.run(100);
    assert!(cluster.nodes[leader].beats_sent > beats, "it has forgotten to beat");
    cluster.assert_equal_states(S1);
}

#[test]
fn a_follower_on_a_full_disk_takes_no_commands_until_there_is_room() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 5);
    cluster.run(100);
    let [full, _] = others(leader);
    cluster.nodes[full].multi.refuse_proposals(Some(BusyReason::DiskFull));
    let last = |cluster: &Cluster, node: usize| cluster.nodes[node].multi.status(S1).unwrap().last.index;
    let before = last(&cluster, full);
    fill(&mut cluster, leader, 20);
    cluster.run(1000);
    assert_eq!(last(&cluster, full), before, "it takes what it has no room for");
    assert_eq!(cluster.leader_of(S1), Some(leader), "a full follower is led on");
    cluster.nodes[full].multi.refuse_proposals(None);
    cluster.run(500);
    assert_eq!(last(&cluster, full), last(&cluster, leader));
    cluster.assert_equal_states(S1);
}

#[test]
fn overwritten_proposal_is_answered_overwritten() {
    let mut cluster = one_shard();
    let old = cluster.await_leader(S1);
    cluster.put(old, S1, b"a", b"1");
    cluster.isolated.insert(old);
    let lost = cluster.submit(old, write(S1, b"a", b"lost"));
    let new = cluster.await_leader(S1);
    cluster.put(new, S1, b"a", b"2");
    assert!(!cluster.nodes[old].answers.contains_key(&lost), "its fate is open while it may come back");
    cluster.isolated.clear();
    cluster.run_until("an answer", |cluster| cluster.nodes[old].answers.contains_key(&lost));
    assert_eq!(cluster.nodes[old].answers[&lost], Answer::Refused(Refusal::Overwritten));
    let value = cluster.get(new, S1, b"a");
    assert_eq!(value_of(&value), Some(&b"2"[..]));
}

/// Its first answer is lost with the leader; by the condition the second attempt finds the first one done.
#[test]
fn a_conditional_write_that_is_asked_again_after_its_leader_crashed_is_applied_once() {
    let mut cluster = one_shard();
    let old = cluster.await_leader(S1);
    cluster.run(100);
    let mut batch = WriteBatch::new();
    batch.if_absent("lock").put("lock", "mine");
    let claim = Request::Write { shard: S1, command: encode(&batch, 1).unwrap() };
    let commit = |cluster: &Cluster| cluster.nodes[old].multi.raft(S1).unwrap().commit();
    let before = commit(&cluster);
    cluster.submit(old, claim.clone());
    cluster.run_until("a commit", |cluster| commit(cluster) > before);
    cluster.restart(old, false);
    cluster.isolated.insert(old);
    let new = cluster.await_leader(S1);
    assert_eq!(cluster.ask(new, claim), Answer::ConditionFailed { condition: 0 });
    let Answer::Value(Some(found)) = cluster.get(new, S1, b"lock") else { panic!("the claim is lost") };
    assert_eq!((&found.value[..], found.version), (&b"mine"[..], before + 1), "it is the first attempt's");
    cluster.isolated.clear();
    cluster.run(500);
    cluster.assert_equal_states(S1);
}

#[test]
fn isolated_leader_serves_no_stale_read() {
    let mut cluster = one_shard();
    let old = cluster.await_leader(S1);
    cluster.put(old, S1, b"a", b"1");
    cluster.isolated.insert(old);
    let read = cluster.submit(old, get(S1, b"a", Consistency::Linearizable));
    let new = cluster.await_leader(S1);
    cluster.put(new, S1, b"a", b"2");
    cluster.run(1000);
    let answer = cluster.nodes[old].answers.get(&read);
    assert!(matches!(answer, Some(Answer::Refused(Refusal::NotLeader { .. }))), "{answer:?}");
}

#[test]
fn a_read_sees_every_write_answered_before_it_began() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    for round in 0..20_u8 {
        cluster.put(leader, S1, b"a", &[round]);
        let answer = cluster.get(leader, S1, b"a");
        assert_eq!(value_of(&answer), Some(&[round][..]));
    }
    let stats = cluster.nodes[leader].multi.stats();
    let ids: Vec<_> =
        (0..50).map(|_| cluster.submit(leader, get(S1, b"a", Consistency::Linearizable))).collect();
    cluster.run_until("reads", |cluster| ids.iter().all(|id| cluster.nodes[leader].answers.contains_key(id)));
    let after = cluster.nodes[leader].multi.stats();
    assert_eq!(
        (after.reads - stats.reads, after.read_rounds - stats.read_rounds),
        (50, 1),
        "one round for all"
    );
}

#[test]
fn nothing_is_answered_before_it_is_durable_on_a_majority() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.run(50);
    cluster.disk_latency = 40 * MS;
    let began = cluster.now;
    cluster.put(leader, S1, b"a", b"1");
    assert!(cluster.now - began >= 40 * MS, "answered after {} ns", cluster.now - began);
}

#[test]
fn a_dump_cuts_the_log_and_the_one_before_it_goes() {
    let mut cluster = small_logs();
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 400);
    cluster.run(200);
    for node in &cluster.nodes {
        let status = node.multi.status(S1).unwrap();
        assert!(status.generation >= 2, "{status:?}");
        assert!(status.log_bytes < 128 << 10, "{status:?}");
        assert!(node.disk[&S1].entries.len() < 200, "{} entries left", node.disk[&S1].entries.len());
        assert_eq!(node.dumps.keys().collect::<Vec<_>>(), [&(S1, status.generation)]);
    }
    cluster.assert_equal_states(S1);
}

#[test]
fn a_follower_behind_the_log_gets_the_dump_and_goes_on() {
    let mut cluster = small_logs();
    let leader = cluster.await_leader(S1);
    cluster.put(leader, S1, b"a", b"1");
    let behind = others(leader)[0];
    cluster.isolated.insert(behind);
    fill(&mut cluster, leader, 400);
    assert!(cluster.nodes[leader].multi.raft(S1).unwrap().first_index() > 100);
    cluster.isolated.clear();
    let leader = cluster.await_leader(S1);
    cluster.run_until("the dump", |cluster| cluster.nodes[behind].multi.stats().installs == 1);
    cluster.put(leader, S1, b"b", b"2");
    cluster.run(200);
    cluster.assert_equal_states(S1);
    for node in &cluster.nodes {
        let generation = node.multi.status(S1).unwrap().generation;
        assert_eq!(node.dumps.keys().collect::<Vec<_>>(), [&(S1, generation)], "only what is named stays");
    }
    cluster.restart(behind, false);
    cluster.run(500);
    cluster.assert_equal_states(S1);
}

#[test]
fn log_of_less_than_half_the_state_is_kept_for_a_slow_follower() {
    let mut cluster = small_logs();
    let leader = cluster.await_leader(S1);
    for key in 0..800 {
        cluster.put(leader, S1, format!("state {key}").as_bytes(), &[1; 1024]);
    }
    cluster.run(100);
    let behind = others(leader)[0];
    cluster.isolated.insert(behind);
    // Twice `log_bytes_max`, and dumped on the way.
    fill(&mut cluster, leader, 256);
    let raft = cluster.nodes[leader].multi.raft(S1).unwrap();
    assert!(raft.log_bytes() > 256 << 10 && raft.first_index() > 1, "{} bytes of log", raft.log_bytes());
    cluster.isolated.clear();
    cluster.await_leader(S1);
    cluster.run(2000);
    cluster.assert_equal_states(S1);
    assert_eq!(cluster.nodes[behind].multi.stats().installs, 0);
    // Nobody needs it any more.
    let leader = cluster.await_leader(S1);
    assert!(cluster.nodes[leader].multi.raft(S1).unwrap().log_bytes() < 256 << 10);
}

#[test]
fn a_proposal_that_a_dump_passed_over_is_unknown() {
    let mut cluster = small_logs();
    let old = cluster.await_leader(S1);
    cluster.put(old, S1, b"a", b"1");
    cluster.isolated.insert(old);
    let lost = cluster.submit(old, write(S1, b"a", b"lost"));
    let new = cluster.await_leader(S1);
    fill(&mut cluster, new, 400);
    cluster.isolated.clear();
    cluster.run_until("an answer", |cluster| cluster.nodes[old].answers.contains_key(&lost));
    assert_eq!(cluster.nodes[old].answers[&lost], Answer::Unknown(UnknownReason::LeadershipLost));
    cluster.run(200);
    cluster.assert_equal_states(S1);
}

#[test]
fn a_rotten_dump_is_refused_and_the_next_one_taken() {
    let mut cluster = small_logs();
    let leader = cluster.await_leader(S1);
    let behind = others(leader)[0];
    cluster.isolated.insert(behind);
    fill(&mut cluster, leader, 400);
    cluster.run(50);
    let rot = |dump: &Bytes| {
        let mut bytes = dump.to_vec();
        bytes[30_000] ^= 1;
        Bytes::from(bytes)
    };
    cluster.nodes[leader].dumps.values_mut().for_each(|dump| *dump = rot(dump));
    cluster.isolated.clear();
    let stats = |cluster: &Cluster| cluster.nodes[behind].multi.stats();
    cluster.run_until("a refusal", |cluster| stats(cluster).bad_dumps > 0);
    assert_eq!(stats(&cluster).installs, 0);
    fill(&mut cluster, leader, 200);
    cluster.run_until("a dump", |cluster| stats(cluster).installs == 1);
    cluster.run(1000);
    cluster.assert_equal_states(S1);
}

#[test]
fn what_was_acknowledged_survives_the_power_failing_everywhere() {
    for rehome in [false, true] {
        let mut cluster = small_logs();
        let leader = cluster.await_leader(S1);
        fill(&mut cluster, leader, 150);
        cluster.put(leader, S1, b"last", b"word");
        (0..3).for_each(|node| cluster.restart(node, rehome));
        let leader = cluster.await_leader(S1);
        let answer = cluster.get(leader, S1, b"last");
        assert_eq!(value_of(&answer), Some(&b"word"[..]));
        cluster.run(200);
        cluster.assert_equal_states(S1);
        let homes: Vec<_> = cluster.nodes.iter().map(|node| node.disk[&S1].home_epoch).collect();
        assert_eq!(homes, [1 + u64::from(rehome); 3]);
    }
}

#[test]
fn leadership_moves_where_it_is_asked_to() {
    let mut cluster = one_shard();
    let old = cluster.await_leader(S1);
    cluster.put(old, S1, b"a", b"1");
    let target = others(old)[1];
    let to = cluster.nodes[target].addr.node;
    assert_eq!(cluster.ask(old, Request::TransferLeadership { shard: S1, to }), Answer::Done);
    assert_eq!(cluster.await_leader(S1), target);
    let nobody = Request::TransferLeadership { shard: S1, to: NodeId(77) };
    assert_eq!(cluster.ask(target, nobody), Answer::Refused(Refusal::NotAMember { node: NodeId(77) }));
}

#[test]
fn an_abandoned_request_gets_no_answer() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    let put = cluster.submit(leader, write(S1, b"a", b"1"));
    let read = cluster.submit(leader, get(S1, b"a", Consistency::Linearizable));
    cluster.nodes[leader].multi.abandon(put);
    cluster.nodes[leader].multi.abandon(read);
    cluster.run(200);
    assert!(cluster.nodes[leader].answers.is_empty());
    assert_eq!(cluster.nodes[leader].multi.open_requests(), 0);
    let value = cluster.get(leader, S1, b"a");
    assert_eq!(value_of(&value), Some(&b"1"[..]), "what was begun went on");
}

#[test]
fn one_replica_puts_no_more_than_its_share_into_a_turn() {
    let config = ShardConfig { turn_bytes_max: 4096, ..ShardConfig::default() };
    let mut cluster = Cluster::new(config, 1);
    let leader = cluster.await_leader(S1);
    cluster.run(50);
    let ids: Vec<_> = (0..20).map(|_| cluster.submit(leader, write(S1, b"a", &[0; 1000]))).collect();
    cluster
        .run_until("answers", |cluster| ids.iter().all(|id| cluster.nodes[leader].answers.contains_key(id)));
    let largest = cluster.nodes[leader].entries_per_turn;
    assert!((1..=4).contains(&largest), "{largest} entries of 1 KB in a turn of 4 KiB");
}

#[test]
fn what_many_replicas_have_to_apply_is_spread_over_turns() {
    let config = ShardConfig { turn_apply_bytes_max: 4096, ..ShardConfig::default() };
    let mut cluster = Cluster::new(config, 32);
    let shards: Vec<_> = cluster.map.iter().map(|shard| (shard.shard, shard.range.start.to_vec())).collect();
    for (shard, _) in &shards {
        cluster.await_leader(*shard);
    }
    cluster.run(50);
    let applied = |cluster: &Cluster| cluster.nodes.iter().map(|node| node.applied_per_turn).max().unwrap();
    assert!(applied(&cluster) > 10, "no-ops have no bytes: {}", applied(&cluster));
    cluster.nodes.iter_mut().for_each(|node| node.applied_per_turn = 0);
    let ids: Vec<_> = shards
        .iter()
        .map(|(shard, start)| {
            let leader = cluster.leader_of(*shard).unwrap();
            (leader, cluster.submit(leader, write(*shard, &[&start[..], b"x"].concat(), &[0; 1000])))
        })
        .collect();
    cluster.run_until("answers", |cluster| {
        ids.iter().all(|(leader, id)| cluster.nodes[*leader].answers.contains_key(id))
    });
    cluster.run(100);
    let largest = applied(&cluster);
    assert!((3..=4).contains(&largest), "{largest} entries of 1 KB in a turn of 4 KiB");
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let trace = || {
        let mut cluster = Cluster::new(ShardConfig::default(), 8);
        cluster.run(300);
        let mut trace = Vec::new();
        for shard in cluster.map.iter().map(|shard| shard.shard).collect::<Vec<_>>() {
            let leader = cluster.await_leader(shard);
            let key = cluster.map.get(shard).unwrap().range.start.to_vec();
            let answer = cluster.put(leader, shard, &[&key[..], b"x"].concat(), b"1");
            trace.push((leader, cluster.now, format!("{answer:?}")));
        }
        trace
    };
    assert_eq!(trace(), trace());
}
