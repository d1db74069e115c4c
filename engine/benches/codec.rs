//! What the wire codec costs: encode and decode of a typical frame under load, and its checksums.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use floe::codec::{HEADER_LEN, check_body, decode, encode, parse_header};
use floe_raft::{Body, Entry, EntryKind, LeaderStamp, Mark, Message, ReplicaId};
use floe_shard::peer::{Beat, GroupBeat, PeerBatch, PeerMessage};
use floe_shard::{Epoch, ShardId};
use rkyv::util::AlignedVec;
use std::hint::black_box;

const APPENDS: u64 = 16;
const ENTRIES: u64 = 20;
const ENTRY_LEN: usize = 128;

fn replica(id: u64) -> ReplicaId {
    ReplicaId::new(id).expect("ids here start at 1")
}

fn append(shard: u64) -> PeerMessage {
    let entries = (1..=ENTRIES).map(|n| Entry {
        mark: Mark::new(5, 1000 + n),
        kind: EntryKind::Command,
        version: 1,
        data: Bytes::from(vec![n as u8; ENTRY_LEN]),
    });
    let body = Body::Append {
        prev: Mark::new(5, 1000),
        commit: 990,
        held_by_all: 980,
        entries: entries.collect(),
        stamp: LeaderStamp { sent_at_ns: 1, echo: 2 },
    };
    let message = Message { from: replica(1), to: replica(2), term: 5, body };
    PeerMessage::Raft { shard: ShardId(shard), epoch: Epoch { range: 1, membership: 1 }, message }
}

fn appends() -> PeerBatch {
    PeerBatch { messages: (0..APPENDS).map(append).collect(), ..PeerBatch::default() }
}

fn beat() -> PeerBatch {
    let row = |shard| GroupBeat {
        shard: ShardId(shard),
        from: replica(1),
        to: replica(2),
        term: 5,
        commit: 7,
        read_round: 0,
        stamp: LeaderStamp { sent_at_ns: 1, echo: 2 },
    };
    let beat = Beat { boot_epoch: 3, groups: (0..1000).map(row).collect(), quiet: Vec::new() };
    PeerBatch { beat: Some(beat), ..PeerBatch::default() }
}

/// Header and body as a reader has them.
fn received(batch: &PeerBatch) -> ([u8; HEADER_LEN], Bytes) {
    let wire = encode(batch).parts.concat();
    let header = *wire.first_chunk().expect("a frame is longer than its header");
    let mut body = AlignedVec::<16>::new();
    body.extend_from_slice(&wire[HEADER_LEN..]);
    (header, Bytes::from_owner(body))
}

fn bench(criterion: &mut Criterion) {
    for (name, batch, items) in
        [("16 appends of 20 x 128 B", appends(), APPENDS * ENTRIES), ("beat of 1000", beat(), 1000)]
    {
        let (header, body) = received(&batch);
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(items));
        group.bench_function("encode", |b| b.iter_with_large_drop(|| encode(black_box(&batch))));
        group.bench_function("decode", |b| {
            b.iter_batched(
                || body.clone(),
                |body| decode(body).expect("an encoded frame decodes"),
                BatchSize::SmallInput,
            );
        });
        group.bench_function("check", |b| {
            b.iter(|| {
                let head = parse_header(black_box(&header)).expect("an encoded header is right");
                check_body(&head, black_box(&body))
            });
        });
        group.bench_function("encode, check, decode and drop", |b| {
            b.iter(|| {
                let frame = encode(black_box(&batch));
                let head = parse_header(&header).expect("an encoded header is right");
                check_body(&head, &body).expect("an encoded body is right");
                (frame.len(), decode(body.clone()).expect("an encoded frame decodes").messages.len())
            });
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
