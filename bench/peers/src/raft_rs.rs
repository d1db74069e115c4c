//! The crate `raft` (raft-rs), driven as its documentation says: three replicas in memory, a network without
//! delay and disks without latency.

use raft::eraftpb::{Entry, Message};
use raft::storage::MemStorage;
use raft::{Config, RawNode};
use std::collections::VecDeque;

const REPLICAS: usize = 3;
/// Entries after which a replica compacts its log; as for Floe.
const COMPACT_EVERY: u64 = 4096;

struct Replica {
    node: RawNode<MemStorage>,
    applied: u64,
    applied_bytes: u64,
    compacted: u64,
}

/// Three replicas, of which the first leads.
pub struct Trio {
    replicas: Vec<Replica>,
    net: VecDeque<Message>,
    proposed: u64,
}

impl Trio {
    /// A group that has elected its first replica. With `batch_append`, proposals made between two turns
    /// leave as one append.
    pub fn new(batch_append: bool) -> Self {
        let start = |id| {
            let config = Config {
                id,
                election_tick: 10,
                heartbeat_tick: 1,
                max_inflight_msgs: 64,
                max_size_per_msg: 1 << 20,
                batch_append,
                ..Config::default()
            };
            let voters: Vec<u64> = (1..=REPLICAS as u64).collect();
            let storage = MemStorage::new_with_conf_state((voters, vec![]));
            let logger = slog::Logger::root(slog::Discard, slog::o!());
            let node = RawNode::new(&config, storage, &logger).expect("a sound configuration");
            Replica { node, applied: 0, applied_bytes: 0, compacted: 0 }
        };
        let replicas = (1..=REPLICAS as u64).map(start).collect();
        let mut trio = Self { replicas, net: VecDeque::new(), proposed: 0 };
        trio.replicas[0].node.campaign().expect("nobody leads yet");
        trio.settle();
        trio
    }

    /// Proposes so many entries at once, and returns when all three have applied them.
    pub fn batch(&mut self, entries: u64, payload: &[u8]) {
        for _ in 0..entries {
            let proposed = self.replicas[0].node.propose(Vec::new(), payload.to_vec());
            proposed.expect("the leader stays");
        }
        self.proposed += entries;
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            for replica in &mut self.replicas {
                replica.turn(&mut self.net);
            }
            if self.net.is_empty() {
                return;
            }
            while let Some(message) = self.net.pop_front() {
                let to = message.to as usize - 1;
                self.replicas[to].node.step(message).expect("working replicas make sense");
            }
        }
    }

    /// Entries proposed so far.
    pub fn proposed(&self) -> u64 {
        self.proposed
    }

    /// Whether all three have applied all that was proposed, of `payload_len` bytes each.
    pub fn all_have_applied_all(&self, payload_len: usize) -> bool {
        let bytes = self.proposed * payload_len as u64;
        self.replicas.iter().all(|replica| replica.applied_bytes == bytes)
    }
}

impl Replica {
    fn turn(&mut self, net: &mut VecDeque<Message>) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            net.extend(ready.take_messages());
            self.apply(ready.take_committed_entries());
            if !ready.entries().is_empty() {
                self.node.mut_store().wl().append(ready.entries()).expect("in order");
            }
            if let Some(state) = ready.hs() {
                self.node.mut_store().wl().set_hardstate(state.clone());
            }
            net.extend(ready.take_persisted_messages());
            let mut light = self.node.advance(ready);
            net.extend(light.take_messages());
            self.apply(light.take_committed_entries());
            self.node.advance_apply();
        }
        if self.applied - self.compacted >= COMPACT_EVERY {
            self.node.mut_store().wl().compact(self.applied).expect("all of it is applied");
            self.compacted = self.applied;
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            self.applied = entry.index;
            self.applied_bytes += entry.data.len() as u64;
        }
    }
}
