//! `floe-bench`: measures Floe, and verifies every value that it wrote while measuring.
//!
//! Each benchmark is one file with a `run`; [`cluster`] is the one that runs without arguments, [`raft`]
//! measures the consensus core alone, [`lsm`] the library that the durable store keeps its tables in, [`import`]
//! moves a data set ([`rows`]) through processes that are killed ([`processes`]), [`idle`] looks at shards in which
//! nothing happens. The parts that benchmarks share:
//!
//! - [`options`]: the command line;
//! - [`workload`]: keys, values, and what a key may hold ([`workload::KeyState`]);
//! - [`caller`]: one concurrent caller, a plain loop of `await`ed operations;
//! - [`executor`]: drives a thread's callers without an allocation per operation;
//! - [`members`]: the cluster's nodes, embedded in this process;
//! - [`phase`]: runs all callers for a while and measures around them;
//! - [`soak`]: whether memory and log space stay bounded;
//! - [`allocator`]: the allocator and its options;
//! - [`floor`], [`usage`], [`machine`]: what disk, network, processor and machine are worth;
//! - [`report`]: the table and the JSON.
//!
//! Exit status: 0 = measured and everything was there; 1 = something acknowledged was lost or a
//! value was wrong, or memory or log space grew without end; 2 = it couldn't be measured.

mod allocator;
mod caller;
mod cluster;
mod error;
mod executor;
mod floor;
mod home;
mod idle;
mod import;
mod lsm;
mod machine;
mod members;
mod options;
mod phase;
mod processes;
mod progress;
mod raft;
mod report;
mod rows;
mod soak;
mod tally;
mod usage;
mod workload;

use clap::Parser;
use options::{Benchmark, Cli};
use std::process::ExitCode;

/// Something acknowledged was lost, a value was wrong, or something grew without end.
const EXIT_UNSOUND: u8 = 1;
/// The measurement couldn't be made.
const EXIT_FAILED: u8 = 2;

fn main() -> ExitCode {
    allocator::configure();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let measured = match Cli::parse().benchmark() {
        Benchmark::Cluster(options) => cluster::run(&options),
        Benchmark::Raft(options) => raft::run(&options),
        Benchmark::Lsm(options) => lsm::run(&options),
        Benchmark::Import(options) => import::run(&options),
        Benchmark::Idle(options) => idle::run(&options),
    };
    match measured {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!(
                "floe-bench: FAILED: data was lost or wrong, a phase got nothing done, or memory or log space isn't bounded; see above"
            );
            ExitCode::from(EXIT_UNSOUND)
        }
        Err(error) => {
            eprintln!("floe-bench: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
