//! `floe-bench lsm`: how long lsm-tree makes others wait while one hot shard flushes into it, used as the
//! durable store means to use it: recent rows in a memtable of our own, ingested by a background thread.
//!
//! One thread reads random keys; another ingests row after row of sealed memtables and compacts. The reader takes
//! turns between three ways, so that all see the same machine: the tree's own `get`, which takes the lock that an
//! ingestion holds across its syncs; the tables of a version that was taken beforehand, which takes none; and
//! arithmetic of about the same length, which shows what the machine itself takes away. Only differences between the three, and between
//! the quiet and the flushing part, mean something on a machine that isn't idle.
//!
//! At the end the store itself is measured as a core uses it: one thread applies puts, takes a view every now and then,
//! and begins a flush as soon as the last one is done, which another thread carries out; the store's own compacts.

use crate::error::BenchError;
use crate::home::Home;
use crate::options::LsmOptions;
use crate::report::{Head, Latency, latency, micros, write_json};
use crate::usage;
use arc_swap::ArcSwap;
use floe::store::{LsmStore, Stores};
use floe::{LsmSettings, NodeId};
use floe_raft::Mark;
use floe_shard::{COMMAND_HEAD_BYTES, CommandResult, DumpHead, StateMachine, encode_put, pre_split};
use hdrhistogram::Histogram;
use lsm_tree::compaction::Leveled;
use lsm_tree::table::filter::standard_bloom::Builder;
use lsm_tree::{AbstractTree, AnyTree, Cache, Config, DescriptorTable, SeqNo, SequenceNumberCounter, Table};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Above every sequence number that a tree gives.
const NEWEST: SeqNo = SeqNo::MAX >> 1;
const CACHE_BYTES: u64 = 64 << 20;
const FILES_MAX: usize = 256;
/// As long as the shard layer waits with a flush that was put off.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// As many as take two microseconds or so.
const ARITHMETIC_STEPS: u32 = 800;

/// A run.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    keys: u32,
    payload: u32,
    flush_rows: u32,
    /// Nobody writes.
    quiet: Gets,
    /// One ingestion after another, and compaction.
    flushing: Gets,
    /// Of sealed rows into the tree, syncs included.
    ingest_us: Latency,
    ingestions: u64,
    compact_us: Latency,
    /// Most runs of level 0 that a read met.
    level0_runs_max: usize,
    /// The durable store's `apply` of one put, while it flushes and compacts all the time.
    apply_us: Latency,
    applied: u64,
    /// Of this process, applying, flushing and compacting together.
    applied_per_cpu_second: f64,
    flushes: u64,
    /// Flushes that were put off because compaction lagged.
    put_off: u64,
}

/// Microseconds per way of reading.
#[derive(Serialize)]
struct Gets {
    /// `get` of the tree.
    tree_us: Latency,
    /// The tables of a published version.
    tables_us: Latency,
    /// Arithmetic alone: the machine.
    arithmetic_us: Latency,
}

/// The tables of one version of a tree: runs from new to old, tables of a run disjoint and ascending.
struct Tables(Vec<Vec<Table>>);

impl Tables {
    fn of(tree: &AnyTree) -> Self {
        let version = tree.current_version();
        Self(version.iter_levels().flat_map(|level| level.iter()).map(|run| run.to_vec()).collect())
    }

    fn get(&self, key: &[u8]) -> lsm_tree::Result<bool> {
        let hash = Builder::get_hash(key);
        for run in &self.0 {
            let at = run.partition_point(|table| &**table.metadata.key_range.max() < key);
            let table = run.get(at).filter(|table| &**table.metadata.key_range.min() <= key);
            if let Some(table) = table
                && let Some(found) = table.get(key, NEWEST, hash)?
            {
                return Ok(!found.is_tombstone());
            }
        }
        Ok(false)
    }
}

/// Runs it. False if a key that was written isn't found.
pub fn run(options: &LsmOptions) -> Result<bool, BenchError> {
    let home = Home::new(options.output.dir.as_deref(), false)?;
    let tree = Config::new(home.path(), SequenceNumberCounter::default(), SequenceNumberCounter::default())
        .use_cache(Arc::new(Cache::with_capacity_bytes(CACHE_BYTES)))
        .use_descriptor_table(Some(Arc::new(DescriptorTable::new(FILES_MAX))))
        .open()?;
    ingest(&tree, (0..options.keys).collect(), options.payload)?;
    let tables = ArcSwap::from_pointee(Tables::of(&tree));
    let time = Duration::from_secs_f64(options.seconds);
    let mut found_all = true;
    let quiet = read_for(time, &tree, &tables, options.keys, &mut found_all)?;
    let stop = AtomicBool::new(false);
    let (flushes, flushing) = std::thread::scope(|scope| {
        let flusher = scope.spawn(|| flush_until(&stop, &tree, &tables, options));
        let gets = read_for(time, &tree, &tables, options.keys, &mut found_all);
        stop.store(true, Ordering::Relaxed);
        (flusher.join().expect("a panic of it is a bug here"), gets)
    });
    let (flushes, flushing) = (flushes?, flushing?);
    let store = apply_for(time, &home.path().join("node"), options)?;
    let report = Report {
        head: Head::new("lsm", home.path()),
        keys: options.keys,
        payload: options.payload,
        flush_rows: options.flush_rows,
        quiet,
        flushing,
        ingest_us: latency(&flushes.ingest),
        ingestions: flushes.ingest.len(),
        compact_us: latency(&flushes.compact),
        level0_runs_max: flushes.level0_runs_max,
        apply_us: latency(&store.apply),
        applied: store.apply.len(),
        applied_per_cpu_second: store.apply.len() as f64 / store.cpu.as_secs_f64(),
        flushes: store.flushes,
        put_off: store.put_off,
    };
    print(&report);
    write_json(&report, options.output.json.as_deref())?;
    drop((tables, tree));
    home.close(!found_all);
    Ok(found_all)
}

fn print(report: &Report) {
    let line = |name: &str, one: &Latency| {
        let [p50, p99, p999, max] = [one.p50, one.p99, one.p999, one.max].map(micros);
        println!("{name:<26}{p50:>12}{p99:>12}{p999:>12}{max:>12}");
    };
    println!("{:<26}{:>12}{:>12}{:>12}{:>12}", "", "p50", "p99", "p99.9", "max");
    for (when, gets) in [("quiet", &report.quiet), ("flushing", &report.flushing)] {
        line(&format!("{when}: tree's get"), &gets.tree_us);
        line(&format!("{when}: tables' get"), &gets.tables_us);
        line(&format!("{when}: arithmetic"), &gets.arithmetic_us);
    }
    line("one ingestion", &report.ingest_us);
    line("one compaction", &report.compact_us);
    line("the store's apply", &report.apply_us);
    println!(
        "{} ingestions of {} rows, {} runs on level 0 at the most",
        report.ingestions, report.flush_rows, report.level0_runs_max
    );
    println!(
        "{} puts applied ({:.0} per CPU second), {} flushes meanwhile, {} put off",
        report.applied, report.applied_per_cpu_second, report.flushes, report.put_off
    );
}

/// What the durable store did.
struct Applied {
    apply: Histogram<u64>,
    cpu: Duration,
    flushes: u64,
    put_off: u64,
}

/// Puts of random keys into one shard's store.
fn apply_for(time: Duration, dir: &Path, options: &LsmOptions) -> Result<Applied, BenchError> {
    let (stores, _janitor) = Stores::open(dir, &LsmSettings::default()).map_err(BenchError::file(dir))?;
    let descriptor = pre_split(&[NodeId(1)], 1, 1).remove(0);
    let membership = descriptor.membership();
    let mut store = LsmStore::new(descriptor.shard, &stores);
    let value = vec![7; options.payload as usize];
    let (mut apply, mut random, mut flushes, mut put_off) = (histogram(), Random(3), 0, 0);
    let mut not_before = Instant::now();
    let mut flush: Option<JoinHandle<std::io::Result<()>>> = None;
    let (begun, cpu) = (Instant::now(), usage::cpu_time());
    for index in (1..).take_while(|_| begun.elapsed() < time) {
        let command = encode_put(1, &key_bytes(random.below(options.keys)), &value).expect("a small put");
        let at = Mark::new(1, index);
        let before = Instant::now();
        let result = store.apply(at, &command[COMMAND_HEAD_BYTES..], &descriptor.range);
        record(&mut apply, before);
        assert_eq!(result, CommandResult::Written, "an unconditional put");
        if index % 64 == 0 {
            drop(std::hint::black_box(store.view()));
        }
        let enough = store.unflushed_bytes() > u64::from(options.flush_rows) * u64::from(options.payload);
        if enough && flush.as_ref().is_none_or(JoinHandle::is_finished) {
            if let Some(flush) = flush.take() {
                flush.join().expect("a panic of it is a bug here").map_err(BenchError::file(dir))?;
                flushes += 1;
            }
            if Instant::now() < not_before {
                continue;
            }
            let head = DumpHead {
                shard: descriptor.shard,
                mark: at,
                descriptor: descriptor.clone(),
                membership: membership.clone(),
            };
            match store.flush(&head) {
                Some(dump) => flush = Some(std::thread::spawn(move || dump.write(&mut std::io::sink()))),
                None => {
                    put_off += 1;
                    not_before = Instant::now() + RETRY_AFTER;
                }
            }
        }
    }
    if let Some(flush) = flush {
        flush.join().expect("a panic of it is a bug here").map_err(BenchError::file(dir))?;
        flushes += 1;
    }
    Ok(Applied { apply, cpu: usage::cpu_time() - cpu, flushes, put_off })
}

/// What the flushing thread did.
struct Flushes {
    ingest: Histogram<u64>,
    compact: Histogram<u64>,
    level0_runs_max: usize,
}

fn flush_until(
    stop: &AtomicBool,
    tree: &AnyTree,
    tables: &ArcSwap<Tables>,
    options: &LsmOptions,
) -> lsm_tree::Result<Flushes> {
    let mut flushes = Flushes { ingest: histogram(), compact: histogram(), level0_runs_max: 0 };
    let mut random = Random(7);
    while !stop.load(Ordering::Relaxed) {
        let mut keys: Vec<u32> = (0..options.flush_rows).map(|_| random.below(options.keys)).collect();
        keys.sort_unstable();
        keys.dedup();
        let begun = Instant::now();
        ingest(tree, keys, options.payload)?;
        record(&mut flushes.ingest, begun);
        tables.store(Arc::new(Tables::of(tree)));
        flushes.level0_runs_max = flushes.level0_runs_max.max(tree.l0_run_count());
        let begun = Instant::now();
        // Views hold the tables that they read: nothing older than now has to stay in the tree itself.
        tree.compact(Arc::new(Leveled::default()), NEWEST)?;
        record(&mut flushes.compact, begun);
        tables.store(Arc::new(Tables::of(tree)));
    }
    Ok(flushes)
}

fn ingest(tree: &AnyTree, keys: Vec<u32>, payload: u32) -> lsm_tree::Result<()> {
    let value = vec![7; payload as usize];
    let mut ingestion = tree.ingestion()?;
    for key in keys {
        ingestion.write(key_bytes(key).as_slice(), value.as_slice())?;
    }
    ingestion.finish()
}

fn read_for(
    time: Duration,
    tree: &AnyTree,
    tables: &ArcSwap<Tables>,
    keys: u32,
    found_all: &mut bool,
) -> lsm_tree::Result<Gets> {
    let [mut by_tree, mut by_tables, mut by_arithmetic] = [histogram(), histogram(), histogram()];
    let (mut random, mut arithmetic) = (Random(1), Random(2));
    let until = Instant::now() + time;
    loop {
        let key = key_bytes(random.below(keys));
        let begun = Instant::now();
        let in_tree = tree.get(key, NEWEST)?.is_some();
        record(&mut by_tree, begun);
        let begun = Instant::now();
        let in_tables = tables.load().get(&key)?;
        record(&mut by_tables, begun);
        let begun = Instant::now();
        for _ in 0..ARITHMETIC_STEPS {
            std::hint::black_box(arithmetic.below(keys));
        }
        record(&mut by_arithmetic, begun);
        *found_all &= in_tree && in_tables;
        if begun >= until {
            let [tree_us, tables_us, arithmetic_us] = [&by_tree, &by_tables, &by_arithmetic].map(latency);
            return Ok(Gets { tree_us, tables_us, arithmetic_us });
        }
    }
}

fn key_bytes(key: u32) -> [u8; 16] {
    let mut bytes = [b'k'; 16];
    bytes[12..].copy_from_slice(&key.to_be_bytes());
    bytes
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(10, 100_000_000_000, 3).expect("the bounds are constants in order")
}

fn record(histogram: &mut Histogram<u64>, begun: Instant) {
    histogram.saturating_record(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
}

/// A small generator, so that two runs read the same keys.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(bound)) as u32
    }
}
