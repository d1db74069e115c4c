//! A peer that sends what no working node sends.

use crate::cluster::{Cluster, addr};
use crate::{S1, fill, one_shard, others, small_logs};
use bytes::Bytes;
use floe_raft::{Body, Entry, EntryKind, LeaderStamp, Mark, Message, Nonsense};
use floe_shard::*;

/// Lets `node` hear a message of `peer`, and takes what it wants done.
fn hear(cluster: &mut Cluster, node: usize, peer: usize, message: PeerMessage) -> Output {
    let multi = &mut cluster.nodes[node].multi;
    multi.receive(cluster.now, addr(peer), PeerBatch { messages: vec![message], ..PeerBatch::default() });
    let mut out = Output::default();
    multi.collect(cluster.now, &mut out);
    out
}

/// The offsets that are pulled.
fn pulls(out: &Output) -> Vec<u64> {
    let messages = out.sends.values().flat_map(|batch| &batch.messages);
    let offset = |message: &PeerMessage| match message {
        PeerMessage::DumpPull { offset, .. } => Some(*offset),
        _ => None,
    };
    messages.filter_map(offset).collect()
}

#[test]
fn a_part_of_a_dump_that_was_not_asked_for_ends_the_transfer() {
    const PART: u64 = 16 << 10;
    let mut cluster = small_logs();
    let leader = cluster.await_leader(S1);
    let behind = others(leader)[0];
    cluster.run(100);
    let status = |node: usize| cluster.nodes[node].multi.status(S1).unwrap();
    let (from, to, term) = (status(leader).replica, status(behind).replica, status(leader).term);
    let descriptor = pre_split(&[0, 1, 2].map(|node| addr(node).node), 1, 3).remove(0);
    let membership = descriptor.membership();
    let mark = Mark::new(term, 1000);
    let head = DumpHead { shard: S1, mark, descriptor, membership };
    let file = Bytes::from(encode_dump(&head, &Bytes::from(vec![0; 1 << 20])));
    let len = file.len() as u64;
    let chunk = |offset: u64, len: u64| {
        let data = file.slice(offset.min(PART) as usize..(offset.min(PART) + len) as usize);
        PeerMessage::DumpChunk { shard: S1, from, to, generation: 9, offset, data }
    };
    let offer = PeerMessage::DumpOffer { shard: S1, from, to, term, generation: 9, mark, len };
    for odd in [chunk(PART + 8, 8), chunk(PART, 8), chunk(u64::MAX, PART), chunk(3 * PART, PART)] {
        let out = hear(&mut cluster, behind, leader, offer.clone());
        assert_eq!(pulls(&out), [0, PART]);
        let out = hear(&mut cluster, behind, leader, chunk(0, PART));
        assert_eq!(pulls(&out), [2 * PART]);
        hear(&mut cluster, behind, leader, odd.clone());
        let out = hear(&mut cluster, behind, leader, chunk(PART, PART));
        assert_eq!(pulls(&out), [0; 0], "goes on after {odd:?}");
    }
}

#[test]
fn a_node_speaks_only_for_its_own_replicas() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    cluster.run(100);
    let [faulty, victim] = others(leader);
    let status = |node: usize| cluster.nodes[node].multi.status(S1).unwrap();
    let (from, to, term, epoch) =
        (status(leader).replica, status(victim).replica, status(leader).term, status(leader).epoch);
    let before = status(victim);
    let body = Body::Heartbeat { commit: 0, read_round: 0, stamp: LeaderStamp::default() };
    let raised = Message { from, to, term: term + 7, body };
    let mark = Mark::new(term, 1000);
    let lies = [
        PeerMessage::Raft { shard: S1, epoch, message: Message { body: Body::TimeoutNow, ..raised.clone() } },
        PeerMessage::Raft { shard: S1, epoch, message: raised },
        PeerMessage::DumpOffer { shard: S1, from, to, term, generation: 9, mark, len: 1 << 20 },
        PeerMessage::DumpPull { shard: S1, from, to, generation: 9, offset: 0, len: 4096 },
        PeerMessage::DumpChunk { shard: S1, from, to, generation: 9, offset: 0, data: Bytes::new() },
    ];
    let why = Fault::ForeignReplica { node: addr(leader).node };
    for (count, lie) in (1..).zip(lies) {
        let out = hear(&mut cluster, victim, faulty, lie);
        assert_eq!(out.refused, [RefusedMessage { peer: addr(faulty), shard: S1, from, why }]);
        assert!(out.sends.values().all(|batch| batch.messages.is_empty()), "it is answered");
        assert_eq!(cluster.nodes[victim].multi.stats().messages_refused, count);
    }
    assert_eq!(cluster.nodes[victim].multi.status(S1).unwrap(), before, "it changed nothing");
}

#[test]
fn a_message_that_contradicts_what_is_committed_is_counted_and_its_sender_named() {
    let mut cluster = one_shard();
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 20);
    let [faulty, victim] = others(leader);
    cluster.run(100);
    let status = |node: usize| cluster.nodes[node].multi.status(S1).unwrap();
    let (from, to, term, epoch) =
        (status(faulty).replica, status(victim).replica, status(leader).term + 7, status(leader).epoch);
    let before = status(victim);
    let mark = Mark::new(term, 1);
    let entry = Entry { mark, kind: EntryKind::Command, version: 0, data: Bytes::new() };
    let (entries, stamp) = (vec![entry], LeaderStamp::default());
    let body = Body::Append { prev: Mark::ZERO, commit: 1, held_by_all: 0, entries, stamp };
    let message = PeerMessage::Raft { shard: S1, epoch, message: Message { from, to, term, body } };
    let out = hear(&mut cluster, victim, faulty, message);
    let why = Fault::Nonsense(Nonsense::ContradictsCommitted(mark));
    assert_eq!(out.refused, [RefusedMessage { peer: addr(faulty), shard: S1, from, why }]);
    assert_eq!(cluster.nodes[victim].multi.stats().messages_refused, 1);
    assert_eq!(cluster.nodes[victim].multi.status(S1).unwrap(), before, "it changed nothing");
    fill(&mut cluster, leader, 20);
    cluster.run(200);
    cluster.assert_equal_states(S1);
    let refused: Vec<_> = cluster.nodes.iter().map(|node| node.multi.stats().messages_refused).collect();
    assert_eq!(refused.iter().sum::<u64>(), 1, "working peers are taken for faulty ones: {refused:?}");
}
