//! Three replicas in memory, a network without delay and disks without latency: the smallest driver there
//! is, and what the core costs by itself. For tests and benchmarks, of other crates too.

use bytes::Bytes;
use floe_raft::{Config, EntryKind, HardState, Mark, Membership, Message, Raft, Ready, ReplicaId, Restored};
use std::collections::VecDeque;

const REPLICAS: u64 = 3;
/// Entries after which a replica compacts its log.
const COMPACT_EVERY: u64 = 4096;

/// A replica that holds nothing, of a group of three.
pub fn start(number: u64) -> Raft {
    let id = |number| ReplicaId::new(number).expect("numbers start at 1");
    let restored = Restored {
        hard_state: HardState::default(),
        snapshot: Mark::ZERO,
        membership: Membership::of_voters((1..=REPLICAS).map(id)),
        entries: Vec::new(),
        applied: 0,
    };
    Raft::new(id(number), Config::default(), restored, 0, 1)
}

/// Three replicas, of which the first leads.
pub struct Trio {
    replicas: Vec<Raft>,
    net: VecDeque<Message>,
    ready: Ready,
    /// Bytes that each has applied: all there is of a state machine.
    applied_bytes: [u64; REPLICAS as usize],
    proposed: u64,
}

impl Trio {
    /// A group that has elected its first replica.
    #[allow(clippy::new_without_default, reason = "it runs an election")]
    pub fn new() -> Self {
        let mut trio = Self {
            replicas: (1..=REPLICAS).map(start).collect(),
            net: VecDeque::new(),
            ready: Ready::default(),
            applied_bytes: [0; REPLICAS as usize],
            proposed: 0,
        };
        trio.replicas[0].campaign(0);
        trio.settle();
        assert!(trio.replicas[0].is_leader(), "nobody else stands");
        trio
    }

    /// Proposes so many entries at once, and returns when all three have applied them.
    pub fn batch(&mut self, entries: u64, payload: &Bytes) {
        for _ in 0..entries {
            let proposed = self.replicas[0].propose(0, EntryKind::Command, 0, payload.clone());
            proposed.expect("the leader stays, and all before it is committed");
        }
        self.proposed += entries;
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            (0..self.replicas.len()).for_each(|at| self.turn(at));
            if self.net.is_empty() {
                return;
            }
            while let Some(message) = self.net.pop_front() {
                let to = message.to.get() as usize - 1;
                self.replicas[to].step(0, message).expect("working replicas make sense");
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let (raft, ready) = (&mut self.replicas[at], &mut self.ready);
        while raft.has_ready() {
            self.applied_bytes[at] += carry_out(raft, ready);
            self.net.extend(ready.messages.drain(..));
            self.net.extend(ready.messages_after_persist.drain(..));
        }
    }

    /// Entries proposed so far.
    pub fn proposed(&self) -> u64 {
        self.proposed
    }

    /// Whether all three have applied so many entries of `payload_len` bytes, and each leader's first one.
    pub fn all_have_applied(&self, entries: u64, payload_len: usize) -> bool {
        let bytes = entries * payload_len as u64;
        let is_level = |raft: &Raft| raft.applied_index() == entries + 1;
        self.replicas.iter().all(is_level) && self.applied_bytes.iter().all(|applied| *applied == bytes)
    }
}

/// Persists and applies what a replica has ready; returns the bytes of what was applied.
pub fn carry_out(raft: &mut Raft, ready: &mut Ready) -> u64 {
    raft.ready(ready);
    ready.write.into_iter().for_each(|write| raft.persisted(write));
    if ready.committed.is_empty() {
        return 0;
    }
    let committed = raft.slice(ready.committed.clone()).expect("not compacted yet");
    let bytes = committed.map(|entry| entry.data.len() as u64).sum();
    raft.applied(ready.committed.end - 1);
    if raft.applied_index() + 1 - raft.first_index() >= COMPACT_EVERY {
        raft.compact(raft.applied_index());
    }
    bytes
}
