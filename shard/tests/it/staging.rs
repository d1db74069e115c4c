//! A machine with files of its own and a dump from a leader: it is put into files part by part, named, and installed; or
//! nothing is left of it. And the dump that such a machine makes for a follower.

use crate::cluster::addr;
use bytes::Bytes;
use floe_raft::{Body, LeaderStamp, Mark, Message, ReplicaId};
use floe_shard::output::{LogWrite, Output};
use floe_shard::*;
use std::sync::{Arc, Mutex};

const NAMES_FILES: &[u8] = b"names files";
const CHUNK: usize = 4096;

type Calls = Arc<Mutex<Vec<&'static str>>>;

/// Says what it was asked to do.
#[derive(Default)]
pub struct Filing {
    rows: MemoryStore,
    calls: Calls,
    /// Of the dump that is staged.
    taken: Arc<Mutex<Vec<u8>>>,
}

fn note(calls: &Calls, call: &'static str) {
    calls.lock().expect("nobody panics with it").push(call);
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
    fn has_files(&self) -> bool {
        true
    }
    fn flush(&mut self, _: &DumpHead) -> Option<Box<dyn Dump>> {
        Some(Box::new(Bytes::from_static(NAMES_FILES)))
    }
    fn stage(&mut self) -> Box<dyn Stage> {
        note(&self.calls, "stage");
        Box::new(Parts(self.taken.clone()))
    }
    fn unstage(&mut self) {
        note(&self.calls, "unstage");
    }
    fn restore(&mut self, dump: &Bytes) -> Result<(), BadPayload> {
        assert_eq!(dump, NAMES_FILES);
        note(&self.calls, "restore");
        Ok(())
    }
    fn installed(&mut self) {
        note(&self.calls, "installed");
    }
    fn size_bytes(&self) -> u64 {
        0
    }
    fn state_hash(&self) -> u64 {
        0
    }
}

struct Parts(Arc<Mutex<Vec<u8>>>);

impl Stage for Parts {
    fn take(&mut self, part: Bytes) -> Job {
        let taken = self.0.clone();
        Box::new(move || {
            taken.lock().expect("nobody panics with it").extend_from_slice(&part);
            Ok(JobDone::Done)
        })
    }
    fn finish(&mut self, head: &DumpHead) -> Job {
        assert_eq!(head.mark, OFFERED);
        Box::new(|| Ok(JobDone::Staged(Bytes::from_static(NAMES_FILES))))
    }
}

const OFFERED: Mark = Mark { term: 1, index: 1000 };

/// Node 2, a follower that is sent a dump by node 1.
struct Follower {
    multi: MultiRaft,
    descriptor: Descriptor,
    calls: Calls,
    taken: Arc<Mutex<Vec<u8>>>,
    /// The dump's file.
    file: Bytes,
    /// Offsets and lengths that were asked for.
    pulled: Vec<(u64, u32)>,
    stagings: Vec<(u64, Job)>,
}

impl Follower {
    fn new() -> Self {
        let config = ShardConfig { dump_chunk_bytes: CHUNK as u32, ..ShardConfig::default() };
        let mut multi = MultiRaft::new(addr(1), config, 1, 7);
        let descriptor = pre_split(&[0, 1, 2].map(|node| addr(node).node), 1, 3).remove(0);
        let machine = Filing::default();
        let (calls, taken) = (machine.calls.clone(), machine.taken.clone());
        multi.bootstrap(0, descriptor.clone(), Box::new(machine));
        [0, 2].into_iter().for_each(|node| multi.peer_up(0, addr(node).node, 1));
        let file = dump_at(OFFERED, &descriptor);
        let (pulled, stagings) = Default::default();
        let mut follower = Self { multi, descriptor, calls, taken, file, pulled, stagings };
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
            self.stagings.append(&mut out.stagings);
            let messages = out.sends.values().flat_map(|batch| &batch.messages);
            self.pulled.extend(messages.filter_map(|message| match message {
                PeerMessage::DumpPull { offset, len, .. } => Some((*offset, *len)),
                _ => None,
            }));
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

    fn offer(&mut self) {
        let (shard, from, to) = (self.descriptor.shard, self.replica(0), self.replica(1));
        let (len, generation) = (self.file.len() as u64, 9);
        self.hear(0, PeerMessage::DumpOffer { shard, from, to, term: 1, generation, mark: OFFERED, len });
    }

    /// Sends all that was asked for.
    fn send_pulled(&mut self) {
        let (shard, from, to) = (self.descriptor.shard, self.replica(0), self.replica(1));
        for (offset, len) in std::mem::take(&mut self.pulled) {
            let data = self.file.slice(offset as usize..offset as usize + len as usize);
            self.hear(0, PeerMessage::DumpChunk { shard, from, to, generation: 9, offset, data });
        }
    }

    /// Carries out the one job that there is to put a part into files.
    fn run_staging(&mut self) -> Output {
        assert_eq!(self.stagings.len(), 1, "one part at a time");
        let (token, job) = self.stagings.remove(0);
        self.multi.job_done(token, job());
        self.turns()
    }

    /// Takes in the whole dump; its number.
    fn take(&mut self) -> u64 {
        self.offer();
        assert_eq!(self.calls(), ["stage"]);
        loop {
            self.send_pulled();
            let out = self.run_staging();
            if let [save] = &out.dump_saves[..] {
                return save.generation;
            }
        }
    }

    fn saved(&mut self, generation: u64, ok: Result<u64, String>) -> Output {
        self.multi.dump_saved(self.descriptor.shard, self.replica(1), generation, ok);
        self.turns()
    }

    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.calls.lock().expect("nobody panics with it"))
    }

    fn taken(&self) -> Vec<u8> {
        std::mem::take(&mut *self.taken.lock().expect("nobody panics with it"))
    }
}

fn body() -> Bytes {
    (0..10 * CHUNK + 7).map(|at| (at / 100) as u8).collect()
}

/// The file of a dump that stands there.
fn dump_at(mark: Mark, descriptor: &Descriptor) -> Bytes {
    let (descriptor, membership) = (descriptor.clone(), descriptor.membership());
    let head = DumpHead { shard: descriptor.shard, mark, descriptor, membership };
    encode_dump(&head, &body()).into()
}

#[test]
fn a_staged_dump_is_installed_by_the_name_of_its_files() {
    let mut follower = Follower::new();
    let generation = follower.take();
    assert_eq!(follower.taken(), body());
    let out = follower.saved(generation, Ok(100));
    let installs =
        |write: &LogWrite| matches!(write, LogWrite::SnapshotInstall { mark, .. } if *mark == OFFERED);
    assert!(out.writes.iter().any(installs), "{:?}", out.writes);
    assert_eq!((follower.calls(), out.dump_removes), (vec!["restore", "installed"], vec![]));
    assert_eq!(follower.multi.stats().installs, 1);
}

#[test]
fn no_more_is_asked_for_than_the_disk_takes() {
    let mut follower = Follower::new();
    follower.offer();
    let chunk = CHUNK as u64;
    assert_eq!(follower.pulled, [(0, CHUNK as u32), (chunk, CHUNK as u32)]);
    follower.send_pulled();
    assert_eq!(follower.pulled, [], "two parts are here, and none of them on the disk");
    for at in 2..6 {
        follower.run_staging();
        assert_eq!(follower.pulled, [(at * chunk, CHUNK as u32)], "one is");
        follower.send_pulled();
    }
}

#[test]
fn a_disk_that_is_slow_is_no_leader_that_is_silent() {
    let mut follower = Follower::new();
    follower.offer();
    follower.send_pulled();
    let patience = 100 * ShardConfig::default().raft.election_timeout_max_ns;
    follower.multi.tick(patience);
    follower.turns();
    assert_eq!(follower.pulled, [(0, 0)], "the leader is told that it goes on");
    follower.pulled.clear();
    follower.run_staging();
    assert_eq!(follower.pulled, [(2 * CHUNK as u64, CHUNK as u32)]);
}

#[test]
fn what_can_not_be_put_into_files_is_given_up() {
    let mut follower = Follower::new();
    follower.offer();
    follower.send_pulled();
    let (token, _) = follower.stagings.remove(0);
    follower.multi.job_done(token, Err("the disk is full".into()));
    follower.turns();
    assert_eq!(follower.calls(), ["stage", "unstage"]);
    // And the next offer is taken.
    follower.pulled.clear();
    follower.take();
}

#[test]
fn a_part_of_a_dump_that_was_given_up_counts_for_no_other() {
    let mut follower = Follower::new();
    follower.offer();
    follower.send_pulled();
    let (token, _) = follower.stagings.remove(0);
    follower.offer();
    assert_eq!(follower.calls(), ["stage", "unstage", "stage"]);
    follower.send_pulled();
    follower.multi.job_done(token, Ok(JobDone::Done));
    follower.turns();
    assert_eq!((follower.stagings.len(), &follower.pulled[..]), (1, &[][..]), "its own first part waits");
}

#[test]
fn a_dump_with_a_byte_that_was_not_written_is_not_named() {
    let mut follower = Follower::new();
    let mut bytes = follower.file.to_vec();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    follower.file = bytes.into();
    follower.offer();
    while follower.multi.stats().bad_dumps == 0 {
        follower.send_pulled();
        let out = follower.run_staging();
        assert_eq!(out.dump_saves.len(), 0);
    }
    assert_eq!(follower.calls(), ["stage", "unstage"]);
}

#[test]
fn another_dump_than_the_one_that_was_offered_is_given_up_when_it_begins() {
    let mut follower = Follower::new();
    follower.file = dump_at(Mark::new(1, OFFERED.index + 1), &follower.descriptor);
    follower.offer();
    follower.send_pulled();
    assert_eq!((follower.multi.stats().bad_dumps, follower.calls()), (1, vec!["stage", "unstage"]));
}

#[test]
fn what_could_not_be_saved_is_given_up() {
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
