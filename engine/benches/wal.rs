//! How fast frames are built: records appended, issued, and encoded into a buffer, without any disk.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use floe::disk::{DiskCall, DiskCalls, DiskDone};
use floe::wal::{Record, ShardState, Wal, WalConfig};
use floe_raft::{Entry, EntryKind, HardState, Mark, ReplicaId};
use floe_shard::ShardId;
use std::hint::black_box;

const ENTRIES: u64 = 2048;

/// A writer over a disk that is always done at once.
struct Stream {
    wal: Wal,
    calls: DiskCalls,
    buffer: Vec<u8>,
    last: Vec<u64>,
}

fn replica() -> ReplicaId {
    ReplicaId::new(1).expect("not 0")
}

impl Stream {
    fn new(shards: u64) -> Self {
        let mut calls = DiskCalls::new();
        let config = WalConfig::new("wal/00000001".into(), 1, 7, 1);
        let wal = Wal::new(config, None, 0, &mut calls);
        let mut stream = Self { wal, calls, buffer: vec![0; 5 << 20], last: vec![0; shards as usize] };
        for shard in 0..shards {
            stream.wal.append(Record::ShardReset(Box::new(ShardState {
                shard: ShardId(shard),
                replica: replica(),
                home_epoch: 1,
                descriptor: Bytes::new(),
                hard_state: HardState::default(),
                flushed: Mark::ZERO,
                generation: 0,
                entries: Vec::new(),
                lowest_replica: 0,
            })));
        }
        stream.turn();
        stream
    }

    /// Issues, encodes and completes everything.
    fn turn(&mut self) {
        self.wal.submit(0, &mut self.calls);
        while let Some((id, call)) = self.calls.pop() {
            if let DiskCall::Write { data, .. } = &call {
                data.encode_into(&mut self.buffer[..data.len()]);
                black_box(&self.buffer);
            }
            self.wal
                .on_disk(0, id.number, Ok(DiskDone::Done), &mut self.calls)
                .expect("this disk never fails");
            self.wal.submit(0, &mut self.calls);
        }
    }

    fn records(&mut self, per_record: u64, payload: &Bytes) -> Vec<Record> {
        let shards = self.last.len() as u64;
        let record = |number: u64| {
            let shard = number % shards;
            let last = &mut self.last[shard as usize];
            let entry = |index| Entry {
                mark: Mark::new(1, index),
                kind: EntryKind::Command,
                version: 0,
                data: payload.clone(),
            };
            let entries = (*last + 1..=*last + per_record).map(entry).collect();
            *last += per_record;
            Record::Entries { shard: ShardId(shard), replica: replica(), entries }
        };
        (0..ENTRIES / per_record).map(record).collect()
    }
}

fn frame_building(c: &mut Criterion) {
    let mut group = c.benchmark_group("wal_frame_building");
    group.throughput(Throughput::Elements(ENTRIES));
    for (per_record, len) in [(1, 128), (8, 128), (64, 128), (8, 4096)] {
        let payload = Bytes::from(vec![7; len]);
        let mut stream = Stream::new(64);
        group.bench_function(format!("{len}B_{per_record}_per_record"), |bencher| {
            bencher.iter_custom(|rounds| {
                // Only appending, issuing and encoding is measured, not the making of the entries.
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..rounds {
                    let records = stream.records(per_record, &payload);
                    let start = std::time::Instant::now();
                    for record in records {
                        stream.wal.append(record);
                    }
                    stream.turn();
                    spent += start.elapsed();
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, frame_building);
criterion_main!(benches);
