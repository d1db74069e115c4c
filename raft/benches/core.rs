//! How fast the core itself is: three replicas in memory, whose writes are durable at once. What it
//! costs per entry to propose, replicate, commit and apply it on all three, and to take it on a follower.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use floe_raft::{Body, Entry, EntryKind, LeaderStamp, Mark, Message, Ready, ReplicaId};
use std::hint::black_box;
use trio::Trio;

#[path = "../tests/trio/mod.rs"]
mod trio;

const BATCH: u64 = 64;
const PAYLOAD: usize = 128;

fn replica(number: u64) -> ReplicaId {
    ReplicaId::new(number).expect("not 0")
}

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(BATCH));
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let mut trio = Trio::new();
    group.bench_function("propose_to_applied_on_three/64x128B", |b| {
        b.iter(|| trio.batch(BATCH, &payload));
    });
    assert!(trio.all_have_applied(trio.proposed(), PAYLOAD), "all have applied all");
    group.finish();
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("core");
    group.throughput(Throughput::Elements(BATCH));
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let mut follower = trio::start(2);
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
            let body = Body::Append { prev, commit: prev.index, held_by_all: prev.index, entries, stamp };
            Message { from: replica(1), to: replica(2), term: 1, body }
        };
        b.iter_batched(
            make,
            |message| {
                follower.step(0, message).expect("sense");
                while follower.has_ready() {
                    black_box(trio::carry_out(&mut follower, &mut ready));
                }
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, commit, append);
criterion_main!(benches);
