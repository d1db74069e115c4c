//! A machine with files makes a whole dump for a follower that the log has left behind: no record names it, no other
//! shard's flush waits for it, and it goes when the follower has it.

use crate::cluster::addr;
use crate::staging::Filing;
use bytes::Bytes;
use floe_raft::{Body, FollowerStamp, Mark, Message, ReplicaId};
use floe_shard::output::{DumpRemove, DumpSave, LogWrite, Output};
use floe_shard::*;
use std::collections::BTreeMap;

const MS: u64 = 1_000_000;

/// The only voter of two shards. Each has a learner, which answers as a test says.
struct Leader {
    multi: MultiRaft,
    descriptors: Vec<Descriptor>,
    /// What each shard's learner was asked last to append after.
    asked: BTreeMap<ShardId, Mark>,
    now: u64,
}

impl Leader {
    fn new() -> Self {
        let (flush_log_bytes, log_bytes_max, dumps_in_flight) = (4096, 4096, 1);
        let config =
            ShardConfig { flush_log_bytes, log_bytes_max, dumps_in_flight, ..ShardConfig::default() };
        let mut multi = MultiRaft::new(addr(0), config, 1, 7);
        let mut descriptors = pre_split(&[addr(0).node, addr(1).node], 2, 2);
        for descriptor in &mut descriptors {
            let mut places = descriptor.replicas.to_vec();
            let learner = places.iter_mut().find(|place| place.node == addr(1).node).expect("it has one");
            learner.role = ReplicaRole::Learner;
            descriptor.replicas = places.into();
            multi.bootstrap(0, descriptor.clone(), Box::new(Filing::default()));
        }
        multi.peer_up(0, addr(1).node, 1);
        let mut leader = Self { multi, descriptors, asked: BTreeMap::new(), now: 0 };
        while leader.multi.leaders() < 2 {
            leader.now += 10 * MS;
            leader.multi.tick(leader.now);
            leader.turns();
        }
        leader
    }

    /// Turns until there is nothing to do; the log is durable at once.
    fn turns(&mut self) -> Output {
        let mut all = Output::default();
        while self.multi.has_work() {
            let mut out = Output::default();
            self.multi.collect(self.now, &mut out);
            self.multi.persisted(&out.persists);
            all.writes.append(&mut out.writes);
            all.dump_saves.append(&mut out.dump_saves);
            all.dump_removes.append(&mut out.dump_removes);
            all.dump_reads.append(&mut out.dump_reads);
            for (to, mut batch) in out.sends {
                for message in &batch.messages {
                    if let PeerMessage::Raft { shard, message, .. } = message
                        && let Body::Append { prev, .. } = message.body
                    {
                        self.asked.insert(*shard, prev);
                    }
                }
                all.sends.entry(to).or_default().messages.append(&mut batch.messages);
            }
        }
        all
    }

    /// Puts so many bytes into a shard.
    fn fill(&mut self, shard: usize, bytes: usize) -> Output {
        let key: &[u8] = if shard == 0 { b"a" } else { &[0xF0] };
        let command = encode_put(1, key, &vec![7; bytes]).expect("a small put");
        let request = Request::Write { shard: self.descriptors[shard].shard, command };
        self.multi.submit(self.now, RequestId(self.now), request).expect("it leads");
        self.now += MS;
        self.turns()
    }

    fn replica(&self, shard: usize, node: usize) -> ReplicaId {
        self.descriptors[shard].replica_on(addr(node).node).expect("it has one").replica
    }

    /// Fills a shard's log, and flushes: the log goes. Its writes.
    fn leave_behind(&mut self, shard: usize) -> Vec<LogWrite> {
        let out = self.fill(shard, 5000);
        let [DumpSave { is_long: false, generation, .. }] = out.dump_saves[..] else {
            panic!("{} dumps", out.dump_saves.len())
        };
        self.saved(shard, generation, 100).writes
    }

    fn saved(&mut self, shard: usize, generation: u64, len: u64) -> Output {
        let id = self.descriptors[shard].shard;
        self.multi.dump_saved(id, self.replica(shard, 0), generation, Ok(len));
        self.turns()
    }

    /// What the learner says.
    fn hear(&mut self, message: PeerMessage) -> Output {
        let batch = PeerBatch { messages: vec![message], ..PeerBatch::default() };
        self.multi.receive(self.now, addr(1), batch);
        self.turns()
    }

    /// The learner has nothing.
    fn hear_nothing_is_there(&mut self, at: usize) -> Output {
        let Descriptor { shard, epoch, .. } = self.descriptors[at];
        let status = self.multi.status(shard).expect("it is here");
        let prev = self.asked[&shard];
        let body = Body::AppendRejected { prev, hint: Mark::ZERO, stamp: FollowerStamp::default() };
        let (from, to) = (self.replica(at, 1), self.replica(at, 0));
        let message = Message { from, to, term: status.term, body };
        self.hear(PeerMessage::Raft { shard, epoch, message })
    }

    fn hear_pull(&mut self, at: usize, generation: u64, offset: u64, len: u32) -> Output {
        let (shard, from, to) = (self.descriptors[at].shard, self.replica(at, 1), self.replica(at, 0));
        self.hear(PeerMessage::DumpPull { shard, from, to, generation, offset, len })
    }
}

fn names(writes: &[LogWrite], wanted: u64) -> bool {
    writes.iter().any(|write| match write {
        LogWrite::TruncatePrefix { generation, .. } => *generation == wanted,
        LogWrite::Reset(state) => state.generation == wanted,
        _ => false,
    })
}

#[test]
fn a_whole_dump_is_for_the_follower_alone() {
    let mut leader = Leader::new();
    assert!(names(&leader.leave_behind(0), 1));
    let out = leader.hear_nothing_is_there(0);
    let [DumpSave { is_long: true, generation, .. }] = out.dump_saves[..] else {
        panic!("{} dumps", out.dump_saves.len())
    };
    // The other shard's flush doesn't wait for it.
    leader.leave_behind(1);
    let out = leader.saved(0, generation, 9000);
    assert!(!names(&out.writes, generation), "{:?}", out.writes);
    let offers =
        |message: &PeerMessage| matches!(message, PeerMessage::DumpOffer { generation: 2, len: 9000, .. });
    assert!(out.sends.values().any(|batch| batch.messages.iter().any(offers)));
    assert!(out.dump_removes.is_empty());
    // While it is fed, the log goes on and is flushed; what it begins with stays.
    let out = leader.hear_pull(0, generation, 0, 4096);
    let read = out.dump_reads.first().expect("a part is read");
    assert_eq!((read.generation, read.len), (generation, 4096));
    leader.multi.dump_read(read.token, Ok(Bytes::from(vec![0; 4096])));
    leader.turns();
    assert!(names(&leader.leave_behind(0), 3));
    let first = leader.multi.status(leader.descriptors[0].shard).expect("it is here").first;
    // Marks 1 and 2 are the founding one and the leader's first entry.
    assert_eq!(first, 4, "the dump stands at 3");
    let out = leader.hear_pull(0, generation, 9000, 0);
    let (shard, replica) = (leader.descriptors[0].shard, leader.replica(0, 0));
    assert_eq!(out.dump_removes, [DumpRemove { shard, replica, generation }]);
}

#[test]
fn a_whole_dump_that_nobody_waits_for_any_more_goes_at_once() {
    let mut leader = Leader::new();
    leader.leave_behind(0);
    let generation = leader.hear_nothing_is_there(0).dump_saves[0].generation;
    leader.multi.peer_down(leader.now, addr(1));
    leader.turns();
    let out = leader.saved(0, generation, 9000);
    let (shard, replica) = (leader.descriptors[0].shard, leader.replica(0, 0));
    assert_eq!(out.dump_removes, [DumpRemove { shard, replica, generation }]);
}
