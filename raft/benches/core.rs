//! How fast the core itself is: three replicas in memory, whose writes are durable at once. What it
//! costs per entry to propose, replicate, commit and apply it on all three, and to take it on a follower.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use floe_raft::{
    Body, Config, Entry, EntryKind, HardState, LeaderStamp, Mark, Membership, Message, Raft, Ready,
    ReplicaId, Restored,
};
use std::collections::VecDeque;
use std::hint::black_box;

const BATCH: u64 = 64;
const PAYLOAD: usize = 128;
/// How often a replica's log is compacted, in entries.
const COMPACT_EVERY: u64 = 4096;

fn replica(number: u64) -> ReplicaId {
    ReplicaId::new(number).expect("not 0")
}

fn start(number: u64) -> Raft {
    let restored = Restored {
        hard_state: HardState::default(),
        snapshot: Mark::ZERO,
        membership: Membership::of_voters((1..=3).map(replica)),
        entries: Vec::new(),
        applied: 0,
    };
    Raft::new(replica(number), &Config::default(), restored, 0, 1)
}

/// Three replicas, a network without delay and disks without latency.
struct Trio {
    replicas: Vec<Raft>,
    net: VecDeque<Message>,
    ready: Ready,
}

impl Trio {
    fn new() -> Self {
        let replicas = (1..=3).map(start).collect();
        let mut trio = Self { replicas, net: VecDeque::new(), ready: Ready::default() };
        trio.replicas[0].campaign(0);
        trio.settle();
        assert!(trio.replicas[0].is_leader());
        trio
    }

    fn settle(&mut self) {
        loop {
            (0..3).for_each(|at| self.turn(at));
            if self.net.is_empty() {
                return;
            }
            while let Some(message) = self.net.pop_front() {
                self.replicas[message.to.get() as usize - 1].step(0, message).expect("sense");
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let (raft, ready) = (&mut self.replicas[at], &mut self.ready);
        while raft.has_ready() {
            raft.ready(ready);
            if let Some(write) = ready.write {
                raft.persisted(write);
            }
            if let Some(last) = ready.committed.last() {
                raft.applied(last.mark.index);
            }
            self.net.extend(ready.messages.drain(..));
            self.net.extend(ready.messages_after_persist.drain(..));
        }
        let applied = raft.applied_index();
        if applied - (raft.first_index() - 1) > COMPACT_EVERY {
            raft.compact(applied);
        }
    }
}

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(BATCH));
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let mut trio = Trio::new();
    group.bench_function("propose_to_applied_on_three/64x128B", |b| {
        b.iter(|| {
            for _ in 0..BATCH {
                let mark = trio.replicas[0].propose(0, EntryKind::Command, 0, payload.clone());
                black_box(mark.expect("it leads"));
            }
            trio.settle();
        });
    });
    let last = trio.replicas[0].last_mark().index;
    assert!(trio.replicas.iter().all(|raft| raft.applied_index() == last), "all have applied {last}");
    group.finish();
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(BATCH));
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let mut follower = start(2);
    let mut ready = Ready::default();
    let mut next = 1;
    group.bench_function("append_on_a_follower/64x128B", |b| {
        let make = || {
            let entry = |index| Entry {
                mark: Mark::new(1, index),
                kind: EntryKind::Command,
                version: 0,
                data: payload.clone(),
            };
            let prev = if next == 1 { Mark::ZERO } else { Mark::new(1, next - 1) };
            let entries = (next..next + BATCH).map(entry).collect();
            next += BATCH;
            let stamp = LeaderStamp::default();
            let body = Body::Append { prev, commit: prev.index, entries, stamp };
            Message { from: replica(1), to: replica(2), term: 1, body }
        };
        b.iter_batched(
            make,
            |message| {
                follower.step(0, message).expect("sense");
                while follower.has_ready() {
                    follower.ready(&mut ready);
                    if let Some(write) = ready.write {
                        follower.persisted(write);
                    }
                    if let Some(last) = ready.committed.last() {
                        follower.applied(last.mark.index);
                    }
                    black_box(&ready);
                }
                let applied = follower.applied_index();
                if applied > follower.first_index() + COMPACT_EVERY {
                    follower.compact(applied);
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, commit, append);
criterion_main!(benches);
