//! Runs the simulator: one seed with `--seed N [--trace]`, or many with `--seeds A..B`.
//!
//! A failing seed is printed with what it broke; the exit status says whether there was one.
//!
//! - `--seeds A..B --json FILE` writes a summary for programs, `--hashes` a line per seed.
//! - `--seeds A..B --twice` runs each seed in two processes and compares the hashes of their traces.
//! - `--minimise N` shrinks a failing seed.
//! - `--planted` plants each known bug until a checker finds it (cargo feature `planted`).
//! - `check-history FILE` judges what another store's clients recorded, `check-random` checks the checker.

mod batch;
mod change;
mod judge;
mod minimise;
mod planted;
mod runs;
mod twice;

use change::Change;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Deterministic simulation of Floe clusters.
#[derive(Parser, Clone, Debug)]
#[command(version, args_conflicts_with_subcommands = true, after_help = HELP)]
struct Options {
    /// What to do instead of simulating.
    #[command(subcommand)]
    command: Option<Command>,
    /// Run this seed and print its report and the hash of its trace.
    #[arg(long, conflicts_with_all = ["seeds", "planted"])]
    seed: Option<u64>,
    /// Run these seeds: `A..B`, without B.
    #[arg(long, value_parser = parse_range)]
    seeds: Option<(u64, u64)>,
    /// Shrink the failing run of this seed: fewer faults, operations, clients, as long as the same check fails.
    #[arg(long, conflicts_with_all = ["seed", "seeds", "planted"])]
    minimise: Option<u64>,
    /// About how many runs that may take.
    #[arg(long, default_value_t = 600)]
    minimise_runs: usize,
    /// Print a line for everything that happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Threads, or processes with --twice.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Write a summary of all runs to this file (with --seeds).
    #[arg(long)]
    json: Option<PathBuf>,
    /// Print only the hash of each seed's trace, a line each (with --seeds).
    #[arg(long)]
    hashes: bool,
    /// Run every seed in two processes and compare the hashes (with --seeds).
    #[arg(long, conflicts_with_all = ["seed", "hashes", "json"])]
    twice: bool,
    /// Fail if a kind of fault met some role (leader, follower, candidate, learner) less often, though it can. By
    /// default once for a batch of 200 seeds or more.
    #[arg(long)]
    coverage: Option<u64>,
    /// Plant each known bug and see after how many seeds it is found (feature `planted`).
    #[arg(long)]
    planted: bool,
    /// Give up on a planted bug after so many seeds.
    #[arg(long, default_value_t = 500)]
    planted_seeds: u64,
    #[command(flatten)]
    change: Change,
}

/// What else than simulating this can do.
#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Judge a recorded history of a register or a map: is it linearizable?
    #[command(after_help = judge::CHECK_HISTORY_HELP)]
    CheckHistory {
        /// One operation per line, EDN as Jepsen prints it or JSON, or a vector of them.
        file: PathBuf,
        /// What the store claims to be.
        #[arg(long, value_enum, default_value_t = judge::Claim::Register)]
        model: judge::Claim,
        /// Give up after so many seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Check the checker: random histories of up to 10,000 operations and 50 clients, every second one spoilt.
    CheckRandom {
        /// How many.
        #[arg(long, default_value_t = 1_000)]
        histories: u64,
        /// Begin with the history of this seed.
        #[arg(long, default_value_t = 0)]
        first: u64,
        /// Give up on one after so many seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Threads.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
}

const HELP: &str = "\
A seed stands for a whole run: cluster, load and faults are drawn from it, and nothing else decides what
happens. So a seed that fails, fails again, at the commit that is printed with it.

From a failure to its cause:
  sim --seeds 0..1000 --json summary.json   find a seed that fails
  sim --minimise 77                         shrink it; prints how to replay the smaller run
  sim --seed 77 --ops 60 --only-faults 3,9 --trace
                                            see everything that happens in it, in order

Is a seed really one run?
  sim --seeds 0..1000 --twice               each in two processes; compares the hashes of the traces

The summary: {seeds, passed, failed: [[seed, reason], ...], simulated_seconds, cpu_seconds,
faults: {kind: how often}, coverage: {kind: {role: how often}}, ...}

Exit status: 0 all passed (with --planted: all found; with --minimise: shrunk), else 1.";

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("not of the form A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok((from, to)) } else { Err(format!("{from}..{to} is empty")) }
}

fn run_seed(options: &Options, seed: u64) -> ExitCode {
    let started = Instant::now();
    let mut plan = options.change.plan(seed);
    plan.prints = options.trace;
    let finished = runs::run_all(1, vec![plan]).recv().expect("a run ends");
    if let Ok(report) = &finished.report {
        println!("{}", serde_json::to_string_pretty(report).expect("a report is plain data"));
        let simulated = report.time_ns as f64 / 1e9;
        println!(
            "seed {seed} hash {} ({simulated:.1} simulated s in {:.1} s)",
            report.hash,
            started.elapsed().as_secs_f64()
        );
    }
    match finished.failure() {
        None => ExitCode::SUCCESS,
        Some((property, detail)) => {
            println!("seed {seed} FAILED: {property}: {detail}");
            ExitCode::FAILURE
        }
    }
}

/// The commit that is checked out where this was built; a seed means nothing without it.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git")
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        output.ok().filter(|output| output.status.success())
    };
    let head = String::from_utf8(git(&["rev-parse", "--short=12", "HEAD"])?.stdout).ok()?;
    let is_clean = git(&["diff", "--quiet", "HEAD"]).is_some();
    Some(format!("{}{}", head.trim(), if is_clean { "" } else { " with changes" }))
}

fn main() -> ExitCode {
    let options = Options::parse();
    match &options.command {
        Some(Command::CheckHistory { file, model, seconds }) => {
            return judge::check_history(file, *model, *seconds);
        }
        Some(Command::CheckRandom { histories, first, seconds, jobs }) => {
            return judge::check_random(*first..first.saturating_add(*histories), *seconds, *jobs);
        }
        None => {}
    }
    runs::report_panics();
    if !options.hashes {
        println!("commit {}", commit().unwrap_or_else(|| "unknown".into()));
    }
    let range = options.seeds.unwrap_or((0, 100));
    match (options.seed, options.minimise) {
        _ if options.planted => planted::run_planted(&options),
        (_, Some(seed)) => minimise::run_minimise(&options, seed),
        (Some(seed), _) => run_seed(&options, seed),
        (None, None) if options.twice => twice::run_twice(&options, range),
        (None, None) => batch::run_seeds(&options, range),
    }
}
