//! A machine with files of its own and a dump from a leader: staged before it is installed, unstaged if it isn't.

use crate::cluster::addr;
use bytes::Bytes;
use floe_raft::{Body, LeaderStamp, Mark, Message, ReplicaId};
use floe_shard::output::{LogWrite, Output};
use floe_shard::*;
use std::sync::{Arc, Mutex};

const NAMES_FILES: &[u8] = b"names files";

/// Says what it was asked to do.
#[derive(Default)]
struct Filing {
    rows: MemoryStore,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl StateMachine for Filing {
    fn check(&self, payload: &[u8], range: &KeyRange) -> Result<(), BadPayload> {
        self.rows.check(payload, range)
    }
    fn apply(&mut self, at: Mark, payload: &[u8], range: &KeyRange) -> CommandResult {
        self.rows.apply(at, payload, range)
    }
    fn read(&self, query: &Query, range: &KeyRange) -> QueryResult {
        self.rows.read(query, range)
    }
    fn dump(&self) -> Box<dyn Dump> {
        self.rows.dump()
    }
    fn stage(&mut self, head: &DumpHead, body: &Bytes) -> Option<Staged> {
        assert_eq!((head.mark, &body[..]), (OFFERED, &b"rows"[..]));
        self.calls.lock().expect("nobody panics with it").push("stage");
        Some(Staged { dump: MemoryStore::new().dump(), body: Bytes::from_static(NAMES_FILES) })
    }
    fn unstage(&mut self) {
        self.calls.lock().expect("nobody panics with it").push("unstage");
    }
    fn restore(&mut self, dump: &Bytes) -> Result<(), BadPayload> {
        assert_eq!(dump, NAMES_FILES);
        self.calls.lock().expect("nobody panics with it").push("restore");
        Ok(())
    }
    fn installed(&mut self) {
        self.calls.lock().expect("nobody panics with it").push("installed");
    }
    fn size_bytes(&self) -> u64 {
        0
    }
    fn state_hash(&self) -> u64 {
        0
    }
}

const OFFERED: Mark = Mark { term: 1, index: 1000 };

/// Node 2, a follower that is sent a dump by node 1.
struct Follower {
    multi: MultiRaft,
    descriptor: Descriptor,
    calls: Arc<Mutex<Vec<&'static str>>>,
}

impl Follower {
    fn new() -> Self {
        let mut multi = MultiRaft::new(addr(1), ShardConfig::default(), 1, 7);
        let descriptor = pre_split(&[0, 1, 2].map(|node| addr(node).node), 1, 3).remove(0);
        let machine = Filing::default();
        let calls = machine.calls.clone();
        multi.bootstrap(0, descriptor.clone(), Box::new(machine));
        [0, 2].into_iter().for_each(|node| multi.peer_up(0, addr(node).node, 1));
        let mut follower = Self { multi, descriptor, calls };
        follower.turns();
        follower
    }

    /// Turns until there is nothing to do; the log is durable at once.
    fn turns(&mut self) -> Output {
        let mut all = Output::default();
        while self.multi.has_work() {
            let mut out = Output::default();
            self.multi.collect(0, &mut out);
            self.multi.persisted(&out.persists);
            all.writes.append(&mut out.writes);
            all.dump_saves.append(&mut out.dump_saves);
            all.dump_removes.append(&mut out.dump_removes);
        }
        all
    }

    fn replica(&self, node: usize) -> ReplicaId {
        self.descriptor.replica_on(addr(node).node).expect("it has one").replica
    }

    fn hear(&mut self, peer: usize, message: PeerMessage) -> Output {
        let batch = PeerBatch { messages: vec![message], ..PeerBatch::default() };
        self.multi.receive(0, addr(peer), batch);
        self.turns()
    }

    /// Takes in the whole dump; its number.
    fn take(&mut self) -> u64 {
        let (descriptor, membership) = (self.descriptor.clone(), self.descriptor.membership());
        let (shard, from, to, generation) = (descriptor.shard, self.replica(0), self.replica(1), 9);
        let head = DumpHead { shard, mark: OFFERED, descriptor, membership };
        let data = Bytes::from(encode_dump(&head, &Bytes::from_static(b"rows")));
        let len = data.len() as u64;
        self.hear(0, PeerMessage::DumpOffer { shard, from, to, term: 1, generation, mark: OFFERED, len });
        let out = self.hear(0, PeerMessage::DumpChunk { shard, from, to, generation, offset: 0, data });
        assert_eq!((out.dump_saves.len(), self.calls()), (1, vec!["stage"]));
        out.dump_saves[0].generation
    }

    fn saved(&mut self, generation: u64, ok: Result<u64, String>) -> Output {
        self.multi.dump_saved(self.descriptor.shard, self.replica(1), generation, ok);
        self.turns()
    }

    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().expect("nobody panics with it"))
    }
}

#[test]
fn a_staged_dump_is_installed_by_the_name_of_its_files() {
    let mut follower = Follower::new();
    let generation = follower.take();
    let out = follower.saved(generation, Ok(100));
    let installs =
        |write: &LogWrite| matches!(write, LogWrite::SnapshotInstall { mark, .. } if *mark == OFFERED);
    assert!(out.writes.iter().any(installs), "{:?}", out.writes);
    assert_eq!((follower.calls(), out.dump_removes), (vec!["restore", "installed"], vec![]));
    assert_eq!(follower.multi.stats().installs, 1);
}

#[test]
fn what_could_not_be_staged_is_given_up() {
    let mut follower = Follower::new();
    let generation = follower.take();
    let out = follower.saved(generation, Err("the disk is full".into()));
    assert_eq!((follower.calls(), out.dump_removes.len()), (vec!["unstage"], 1));
    // And the next offer is taken.
    follower.take();
}

#[test]
fn what_was_staged_for_a_leader_of_old_is_given_up() {
    let mut follower = Follower::new();
    let generation = follower.take();
    let (shard, epoch) = (follower.descriptor.shard, follower.descriptor.epoch);
    let body = Body::Heartbeat { commit: 0, read_round: 0, stamp: LeaderStamp::default() };
    let message = Message { from: follower.replica(2), to: follower.replica(1), term: 2, body };
    follower.hear(2, PeerMessage::Raft { shard, epoch, message });
    let out = follower.saved(generation, Ok(100));
    assert_eq!((follower.calls(), out.dump_removes.len()), (vec!["unstage"], 1));
    assert_eq!(follower.multi.stats().installs, 0);
}
