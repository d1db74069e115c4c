//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  floe-bench                                    three nodes, 48 shards, put, get and 9:1 mixed
  floe-bench cluster --payload 1024 --shards 8  bigger values, fewer shards
  floe-bench cluster --concurrency 1            latency of one caller at a time
  floe-bench cluster --mode open --rate 50000   latency at a given load, without coordinated omission
  floe-bench cluster --route any                two of three requests are forwarded to the leader
  floe-bench raft                               the consensus core alone, in memory
  floe-bench idle                               what 1,000 idle shards cost: processor, frames, memory
  floe-bench lsm                                reads of one hot shard's tables while it flushes
  floe-bench import                             rows into processes that are killed meanwhile, and out again
  floe-bench cluster --soak --phases put --seconds 600  memory and log space over ten minutes of puts
  floe-bench cluster --json run.json            the figures as JSON, with machine, commit and command

Logs of the nodes: RUST_LOG=floe=debug floe-bench ...
Exit status: 0 all values were there, 1 something was lost, wrong or not bounded, 2 it couldn't be measured.";

/// Benchmarks of Floe. Without a subcommand: `cluster` with its defaults.
#[derive(Parser)]
#[command(name = "floe-bench", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    benchmark: Option<Benchmark>,
}

impl Cli {
    /// The chosen benchmark.
    pub fn benchmark(self) -> Benchmark {
        self.benchmark.unwrap_or_else(|| Benchmark::Cluster(Box::default()))
    }
}

/// One benchmark each.
#[derive(Subcommand)]
pub enum Benchmark {
    /// A whole cluster in this process: real logs with syncs, real TCP on loopback, verified data
    #[command(after_help = EXAMPLES)]
    Cluster(Box<ClusterOptions>),
    /// The consensus core alone: three replicas in memory, entries per CPU-second
    Raft(RaftOptions),
    /// The library below the durable store: how long reads wait while one hot shard flushes
    Lsm(LsmOptions),
    /// Three processes that are killed one after another while rows are imported; needs the command `floe`
    Import(ImportOptions),
    /// Shards in which nothing happens: processor time, frames and memory of three nodes in this process
    Idle(IdleOptions),
}

/// Where figures and data go.
#[derive(Args, Clone, Debug)]
pub struct Output {
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Directory for the data [default: a new one in ./target, or in . if there is none]
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// What `import` runs with.
#[derive(Args, Clone, Debug)]
pub struct ImportOptions {
    /// Rows, of 109 bytes on average
    #[arg(long, default_value_t = 700_000, value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    pub rows: u32,
    /// Which rows: others for each seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Shards that the key space is split into
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub shards: u32,
    /// State machine of the shards
    #[arg(long, value_enum, default_value_t = Store::Lsm)]
    pub store: Store,
    /// Seconds from the end of one node's restart to the next one's kill; 0 = kill none while the import lasts
    #[arg(long, default_value = "1", value_name = "SECONDS", value_parser = not_negative)]
    pub kill_every: f64,
    /// The command [default: the one beside this program]
    #[arg(long)]
    pub floe: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

/// What `idle` runs with.
#[derive(Args, Clone, Debug)]
pub struct IdleOptions {
    /// Numbers of shards, measured in ascending order; memory per replica is what comes on top of the first
    #[arg(long, value_delimiter = ',', default_value = "1,1000", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub shards: Vec<u32>,
    /// Measured time of each
    #[arg(long, default_value = "10", value_parser = positive)]
    pub seconds: f64,
    #[command(flatten)]
    pub output: Output,
}

/// What `lsm` runs with.
#[derive(Args, Clone, Debug)]
pub struct LsmOptions {
    /// Different keys; all are there from the start
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub keys: u32,
    /// Bytes of a value; keys have 16 bytes
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=1 << 16))]
    pub payload: u32,
    /// Rows of one flush
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub flush_rows: u32,
    /// Length of each of the two parts
    #[arg(long, default_value = "10", value_parser = positive)]
    pub seconds: f64,
    #[command(flatten)]
    pub output: Output,
}

/// What `raft` runs with.
#[derive(Args, Clone, Debug)]
pub struct RaftOptions {
    /// Entries proposed at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// Bytes of an entry
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=1 << 12))]
    pub payload: u32,
    /// Processor time of each run
    #[arg(long, default_value = "2", value_parser = positive)]
    pub seconds: f64,
    /// How often it is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: u32,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// What `cluster` runs with.
#[derive(Args, Clone, Debug)]
pub struct ClusterOptions {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=15))]
    pub nodes: u8,
    /// Replicas of each shard, at most one per node
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    pub replicas: u8,
    /// Cores (threads with their own log) per node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub cores: u16,
    /// Shards that the key space is split into
    #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub shards: u32,
    /// Bytes of a value; keys have 16 bytes
    #[arg(long, default_value_t = 128, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(16..=1 << 20))]
    pub payload: u32,
    /// Callers; each has one operation under way at a time, on keys of its own
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub concurrency: u32,
    /// Different keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub keys: u32,
    /// What does the nodes' input and output
    #[arg(long, value_enum, default_value_t = Driver::DEFAULT)]
    pub driver: Driver,
    /// State machine of the shards
    #[arg(long, value_enum, default_value_t = Store::Lsm)]
    pub store: Store,
    /// closed: a caller goes on when its operation is done; open: operations are due at --rate
    #[arg(long, value_enum, default_value_t = Mode::Closed)]
    pub mode: Mode,
    /// Operations per second with --mode open; latency counts from the moment each was due
    #[arg(long, required_if_eq("mode", "open"), value_parser = positive)]
    pub rate: Option<f64>,
    /// Where a request enters: leader = the node that leads the key's shard, any = round robin
    #[arg(long, value_enum, default_value_t = Route::Leader)]
    pub route: Route,
    /// Measured length of each phase
    #[arg(long, default_value = "10", value_parser = positive)]
    pub seconds: f64,
    /// Unmeasured (but verified) start of each phase, in seconds
    #[arg(long, default_value = "1", value_parser = not_negative)]
    pub warmup: f64,
    /// Phases in order: put, get, mixed (nine reads to one write)
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get,mixed")]
    pub phases: Vec<Workload>,
    /// Sample memory and log space every so many seconds (10 without a number), and fail if one of them still grows in the second
    /// half of a phase
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "10", value_parser = positive)]
    pub soak: Option<f64>,
    /// Threads that drive the callers [default: a quarter of the processors, at least 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub client_threads: Option<u16>,
    /// Seconds after which a caller gives an operation up
    #[arg(long, default_value = "10", value_parser = positive)]
    pub timeout: f64,
    /// Microseconds for which an idle core looks for work before it sleeps
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS")]
    pub spin: u64,
    /// Bind each core's thread to a processor
    #[arg(long)]
    pub pin_cores: bool,
    #[command(flatten)]
    pub output: Output,
    /// Leave the data behind; done in any case if something was lost or wrong
    #[arg(long)]
    pub keep: bool,
}

impl Default for ClusterOptions {
    /// What the command line's defaults say.
    fn default() -> Self {
        match Cli::parse_from(["floe-bench", "cluster"]).benchmark {
            Some(Benchmark::Cluster(options)) => *options,
            _ => unreachable!("the line above names the subcommand"),
        }
    }
}

impl ClusterOptions {
    /// How many threads drive the callers.
    pub fn client_threads(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let wanted = self.client_threads.map_or(processors / 4, usize::from);
        wanted.clamp(1, self.concurrency as usize)
    }

    /// Replicas of each shard, as far as there are nodes for them.
    pub fn replicas(&self) -> u8 {
        self.replicas.min(self.nodes)
    }

    /// The operation timeout.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

/// Up to 11 days, so that it always fits a `Duration`.
const NUMBER_MAX: f64 = 1e6;

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=NUMBER_MAX * 1e3).contains(&number) => Ok(number),
        _ => Err("a number that isn't negative is expected".into()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    not_negative(text)
        .ok()
        .filter(|number| *number > 0.0)
        .ok_or_else(|| "a number above 0 is expected".into())
}

/// What callers do in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Writes only.
    Put,
    /// Linearizable reads only.
    Get,
    /// Nine reads to one write.
    Mixed,
}

/// When an operation begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// When the caller's previous one is done.
    Closed,
    /// At its time, evenly spaced.
    Open,
}

/// Which node a request enters at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Route {
    /// The one that leads the key's shard.
    Leader,
    /// Each in turn.
    Any,
}

/// What does the nodes' input and output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// A bare io_uring per core.
    Ring,
    /// A glommio executor per core.
    Glommio,
}

impl Driver {
    /// The engine's own default.
    const DEFAULT: Self = Self::Ring;

    /// The engine's name for it.
    pub fn of_engine(self) -> floe::Driver {
        match self {
            Self::Ring => floe::Driver::Ring,
            Self::Glommio => floe::Driver::Glommio,
        }
    }
}

/// State machine of the shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// In memory, with dumps.
    Memory,
    /// In tables on disk.
    Lsm,
}

impl Store {
    /// The engine's setting for it.
    pub fn of_engine(self) -> floe::Store {
        match self {
            Self::Memory => floe::Store::Memory,
            Self::Lsm => floe::Store::Lsm(floe::LsmSettings::default()),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn no_arguments_mean_the_cluster_benchmark_with_its_defaults() {
        Cli::command().debug_assert();
        let Benchmark::Cluster(options) = Cli::parse_from(["floe-bench"]).benchmark() else { panic!() };
        assert_eq!((options.nodes, options.cores, options.shards), (3, 1, 48));
        assert_eq!((options.payload, options.concurrency), (128, 1024));
        assert_eq!(options.driver.of_engine(), floe::Driver::default());
        assert_eq!(options.store.of_engine(), floe::Store::default());
        assert_eq!(options.phases, [Workload::Put, Workload::Get, Workload::Mixed]);
    }

    #[test]
    fn an_open_loop_needs_a_rate() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("floe-bench cluster --mode open").is_err());
        assert!(parse("floe-bench cluster --mode open --rate 0").is_err());
        assert!(parse("floe-bench cluster --mode open --rate 1000").is_ok());
    }
}
