//! The figures: a table for people, one JSON object for machines.

use crate::error::BenchError;
use crate::floor::Floor;
use crate::machine::{self, Machine};
use crate::members::WalCounters;
use crate::options::{ClusterOptions, Driver, Mode, Route, Store, Workload};
use crate::phase::Outcome;
use crate::soak::Soak;
use crate::tally::{ErrorKind, Tally};
use crate::workload::KEY_LEN;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Of what the figures are: the head of every report.
#[derive(Serialize)]
pub struct Head {
    /// Which benchmark.
    benchmark: &'static str,
    /// On which machine.
    pub machine: Machine,
    /// Of which source.
    commit: String,
    /// Called how.
    command: String,
}

impl Head {
    /// Of this process, whose data lies in `dir`.
    pub fn new(benchmark: &'static str, dir: &Path) -> Self {
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        Self { benchmark, machine: Machine::this(dir), commit: machine::commit(), command }
    }
}

/// A run of the cluster benchmark.
#[derive(Serialize)]
pub struct Report {
    /// Of what the figures are.
    #[serde(flatten)]
    pub head: Head,
    /// What disk and loopback cost by themselves, in the same run.
    pub floor: Floor,
    /// How many shards each node led at the start.
    pub leaders_per_node: Vec<usize>,
    /// In the order they ran.
    pub phases: Vec<PhaseReport>,
    /// Reading everything back from the cluster closed and opened again.
    pub after_reopen: Option<Check>,
}

/// A verification.
#[derive(Clone, Copy, Serialize)]
pub struct Check {
    /// From the opening of the cluster to its last leader elected.
    pub open_seconds: f64,
    /// Keys that held what they had to.
    pub verified: u64,
    /// Keys that held less than what was acknowledged.
    pub lost: u64,
    /// Keys that held what they could not.
    pub wrong: u64,
}

impl Check {
    /// The counts of a verification.
    pub fn new(open_seconds: f64, tally: &Tally) -> Self {
        Self { open_seconds, verified: tally.verified, lost: tally.lost, wrong: tally.wrong }
    }
}

/// Percentiles in microseconds; all 0 if nothing was measured.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Percentiles of a histogram of nanoseconds.
pub fn latency(nanos: &Histogram<u64>) -> Latency {
    let micros = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
    let at = |quantile: f64| micros(nanos.value_at_quantile(quantile));
    Latency { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: micros(nanos.max()) }
}

/// One phase and its circumstances.
#[derive(Serialize)]
pub struct PhaseReport {
    /// What callers did.
    pub workload: Workload,
    /// What an acknowledgement means: `synced` = on the disks of a majority, synced.
    pub durability: &'static str,
    /// What did the nodes' input and output.
    pub driver: Driver,
    /// State machine.
    pub store: Store,
    /// Nodes, all in this process.
    pub nodes: u8,
    /// Replicas of each shard.
    pub replicas: u8,
    /// Cores per node.
    pub cores: u16,
    /// Shards.
    pub shards: u32,
    /// Bytes of a key.
    pub key_bytes: usize,
    /// Bytes of a value.
    pub payload_bytes: u32,
    /// Different keys.
    pub keys: u32,
    /// Callers.
    pub concurrency: u32,
    /// Threads that drive them.
    pub client_threads: usize,
    /// Closed or open loop.
    pub mode: Mode,
    /// Operations per second that fell due, in an open loop.
    pub offered_per_second: Option<f64>,
    /// Where requests entered.
    pub route: Route,
    /// Length of the measured part.
    pub seconds: f64,
    /// Operations done in it.
    pub ops: u64,
    /// Per second.
    pub ops_per_second: f64,
    /// Per second of processor time of this whole process: nodes, callers and verification.
    pub ops_per_cpu_second: f64,
    /// That processor time.
    pub cpu_seconds: f64,
    /// From the call (closed) or the due time (open) to the answer.
    pub latency_us: Latency,
    /// Of puts alone.
    pub put_latency_us: Option<Latency>,
    /// Of gets alone.
    pub get_latency_us: Option<Latency>,
    /// Operations that fell due and never got a caller.
    pub unserved: u64,
    /// Synced writes of all logs.
    pub wal_writes_per_second: f64,
    /// Log entries per synced write; each put is an entry of every replica.
    pub entries_per_wal_write: Option<f64>,
    /// Bytes of all logs per byte of key and value put.
    pub wal_bytes_per_user_byte: Option<f64>,
    /// Of a synced write.
    pub wal_write_us: Latency,
    /// Of a command on a core, with the durable store: how long it kept the core. Of every eighth command.
    pub apply_us: Latency,
    /// Elections begun; 0 unless something was too slow.
    pub elections: u64,
    /// Resident memory of this process at the phase's end.
    pub rss_bytes: u64,
    /// Failed operations, warm-up included.
    pub errors: u64,
    /// By kind.
    pub errors_by_kind: BTreeMap<&'static str, u64>,
    /// Reads that were right: of the phase, and of all keys after it.
    pub verified: u64,
    /// Reads that showed less than what was acknowledged.
    pub lost: u64,
    /// Reads that showed what they could not.
    pub wrong: u64,
    /// Memory and log space over the phase, with `--soak`.
    pub soak: Option<Soak>,
}

impl PhaseReport {
    /// Puts a phase's figures and circumstances together.
    pub fn new(workload: Workload, options: &ClusterOptions, outcome: &Outcome, soak: Option<Soak>) -> Self {
        let Outcome { tally, elapsed, cpu, wal, rss_bytes } = outcome;
        let (seconds, cpu_seconds) = (elapsed.as_secs_f64(), cpu.as_secs_f64());
        let ops = tally.ops();
        Self {
            workload,
            durability: "synced",
            driver: options.driver,
            store: options.store,
            nodes: options.nodes,
            replicas: options.replicas(),
            cores: options.cores,
            shards: options.shards,
            key_bytes: KEY_LEN,
            payload_bytes: options.payload,
            keys: options.keys,
            concurrency: options.concurrency,
            client_threads: options.client_threads(),
            mode: options.mode,
            offered_per_second: options.rate.filter(|_| options.mode == Mode::Open),
            route: options.route,
            seconds,
            ops,
            ops_per_second: ratio(ops, seconds).unwrap_or(0.0),
            ops_per_cpu_second: ratio(ops, cpu_seconds).unwrap_or(0.0),
            cpu_seconds,
            latency_us: latency(&tally.latencies()),
            put_latency_us: (!tally.puts.is_empty()).then(|| latency(&tally.puts)),
            get_latency_us: (!tally.gets.is_empty()).then(|| latency(&tally.gets)),
            unserved: tally.unserved.len(),
            wal_writes_per_second: ratio(wal.writes, seconds).unwrap_or(0.0),
            entries_per_wal_write: ratio(wal.entries, wal.writes as f64),
            wal_bytes_per_user_byte: bytes_per_user_byte(wal, tally, options),
            wal_write_us: latency(&wal.latency),
            apply_us: latency(&wal.apply),
            elections: wal.elections,
            rss_bytes: *rss_bytes,
            errors: tally.errors.values().sum(),
            errors_by_kind: tally
                .errors
                .iter()
                .map(|(kind, count)| (ErrorKind::name(*kind), *count))
                .collect(),
            verified: tally.verified,
            lost: tally.lost,
            wrong: tally.wrong,
            soak,
        }
    }

    /// Whether the phase did something, everything was there, and nothing grew without end.
    pub fn is_sound(&self) -> bool {
        let is_bounded = self.soak.as_ref().is_none_or(|soak| soak.bounded);
        self.ops > 0 && self.lost == 0 && self.wrong == 0 && is_bounded
    }
}

fn ratio(count: u64, per: f64) -> Option<f64> {
    (per > 0.0).then(|| count as f64 / per)
}

fn bytes_per_user_byte(wal: &WalCounters, tally: &Tally, options: &ClusterOptions) -> Option<f64> {
    ratio(wal.bytes, tally.puts_done as f64 * (KEY_LEN as f64 + f64::from(options.payload)))
}

impl Report {
    /// Whether everything was there, now and after reopening.
    pub fn is_sound(&self) -> bool {
        self.phases.iter().all(PhaseReport::is_sound)
            && self.after_reopen.is_none_or(|check| check.lost == 0 && check.wrong == 0)
    }

    /// The table: a column per phase.
    pub fn table(&self) -> String {
        let mut table = String::new();
        let mut row = |name: &str, cell: &dyn Fn(&PhaseReport) -> String| {
            write!(table, "{name:<26}").expect("a String takes everything");
            for phase in &self.phases {
                write!(table, "{:>14}", cell(phase)).expect("a String takes everything");
            }
            table.push('\n');
        };
        row("", &|phase| phase.workload.to_string());
        row("ops/s", &|phase| whole(phase.ops_per_second));
        row("ops per CPU second", &|phase| whole(phase.ops_per_cpu_second));
        row("CPU seconds", &|phase| format!("{:.1}", phase.cpu_seconds));
        row("latency p50", &|phase| micros(phase.latency_us.p50));
        row("latency p99", &|phase| micros(phase.latency_us.p99));
        row("latency p99.9", &|phase| micros(phase.latency_us.p999));
        row("latency max", &|phase| micros(phase.latency_us.max));
        row("synced WAL writes/s", &|phase| whole(phase.wal_writes_per_second));
        row("WAL write p50", &|phase| micros(phase.wal_write_us.p50));
        row("entries per WAL write", &|phase| optional(phase.entries_per_wal_write));
        row("WAL bytes per user byte", &|phase| optional(phase.wal_bytes_per_user_byte));
        row("apply p99.9", &|phase| micros(phase.apply_us.p999));
        row("apply max", &|phase| micros(phase.apply_us.max));
        row("resident memory", &|phase| format!("{} MiB", phase.rss_bytes >> 20));
        row("elections", &|phase| phase.elections.to_string());
        row("errors", &|phase| errors(phase));
        row("unserved", &|phase| whole(phase.unserved as f64));
        row("reads verified", &|phase| whole(phase.verified as f64));
        row("lost", &|phase| phase.lost.to_string());
        row("wrong", &|phase| phase.wrong.to_string());
        table
    }
}

/// Writes a report as JSON, if a file is named.
pub fn write_json(report: &impl Serialize, path: Option<&Path>) -> Result<(), BenchError> {
    let Some(path) = path else { return Ok(()) };
    let mut text = serde_json::to_string_pretty(report).expect("numbers and strings always serialize");
    text.push('\n');
    std::fs::write(path, text).map_err(BenchError::file(path))
}

fn errors(phase: &PhaseReport) -> String {
    match phase.errors_by_kind.iter().max_by_key(|(_, count)| **count) {
        None => "0".into(),
        Some((kind, _)) if phase.errors_by_kind.len() == 1 => format!("{} {kind}", phase.errors),
        Some((kind, _)) => format!("{} {kind}, ..", phase.errors),
    }
}

fn optional(number: Option<f64>) -> String {
    number.map_or_else(|| "-".into(), |number| format!("{number:.2}"))
}

/// "1,234,567".
pub fn whole(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "12.3 us", "1.23 ms", "4.56 s".
pub fn micros(micros: f64) -> String {
    match micros {
        small if small < 1e3 => format!("{small:.1} us"),
        middle if middle < 1e6 => format!("{:.2} ms", middle / 1e3),
        big => format!("{:.2} s", big / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(["0", "999", "1,000", "1,234,567"], [0.0, 999.0, 1e3, 1_234_567.0].map(whole));
        assert_eq!(["12.3 us", "1.50 ms", "2.00 s"], [12.34, 1500.0, 2e6].map(micros));
    }

    #[test]
    fn operations_nobody_was_free_for_raise_the_percentiles() {
        let mut tally = Tally::default();
        tally.latency(crate::tally::Operation::Get, Duration::from_millis(1));
        (0..9).for_each(|_| tally.unserved(Duration::from_secs(1)));
        let shown = latency(&tally.latencies());
        assert!(shown.p50 > 990_000.0, "{shown:?}");
        assert!(latency(&tally.gets).max < 1010.0);
    }
}
