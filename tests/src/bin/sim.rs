//! Runs the simulator: one seed with `--seed N [--trace]`, or many with `--seeds A..B`.
//!
//! `check-history FILE` judges what another store's clients recorded instead of running anything.
//!
//! A failing seed is printed with what it broke; the exit status says whether there was one. With the
//! cargo feature `planted`, `--planted` plants each known bug until a checker finds it.

use clap::Parser;
use floe_tests::checker::history::{History, Judgement, Model};
use floe_tests::sim::cluster::Found;
use floe_tests::sim::plan::{Bug, Plan};
use floe_tests::sim::run::{FAULTS_MIN, Report, run};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::panic;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// Deterministic simulation of Floe clusters.
#[derive(Parser, Clone, Debug)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Options {
    /// What to do instead of simulating.
    #[command(subcommand)]
    command: Option<Command>,
    /// Run this seed.
    #[arg(long, conflicts_with_all = ["seeds", "planted"])]
    seed: Option<u64>,
    /// Run these seeds: `A..B`, without B.
    #[arg(long, value_parser = parse_range)]
    seeds: Option<(u64, u64)>,
    /// Print a line for everything that happens (with --seed).
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Write the reports of all runs to this file, one JSON object per line.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Client operations per run, instead of what the plan says.
    #[arg(long)]
    ops: Option<u64>,
    /// Nodes, instead of what the plan says.
    #[arg(long)]
    nodes: Option<usize>,
    /// Run every seed twice and compare the hashes.
    #[arg(long)]
    twice: bool,
    /// Fail if a kind of fault struck one of its victims (leaders, followers, many nodes) less often.
    #[arg(long, default_value_t = 0)]
    coverage: u64,
    /// Plant each known bug and see after how many seeds it is found (feature `planted`).
    #[arg(long)]
    planted: bool,
    /// Give up on a planted bug after so many seeds.
    #[arg(long, default_value_t = 500)]
    planted_seeds: u64,
}

/// What else than simulating this can do.
#[derive(clap::Subcommand, Clone, Debug)]
enum Command {
    /// Judge a recorded history of a register or a map: is it linearizable?
    #[command(after_help = CHECK_HISTORY_HELP)]
    CheckHistory {
        /// One operation per line, EDN as Jepsen prints it or JSON, or a vector of them.
        file: PathBuf,
        /// What the store claims to be.
        #[arg(long, value_enum, default_value_t = Model::Register)]
        model: Model,
        /// Give up after so many seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
}

const CHECK_HISTORY_HELP: &str = r#"Example, a register whose second reader finds an older value than the first:

  $ cat history.edn
  {:process 0 :type :invoke :f :write :value 3}
  {:process 1 :type :invoke :f :read :value nil}
  {:process 1 :type :ok :f :read :value 3}
  {:process 1 :type :invoke :f :read :value nil}
  {:process 1 :type :ok :f :read :value nil}
  $ sim check-history history.edn
  NOT linearizable: the register: no order of its operations explains line 5
  ...

The same as JSON:   {"process": 0, "type": "invoke", "f": "write", "value": 3}
A conditional write: {:process 0 :type :invoke :f :cas :value [3 4]}, which expects 3 and sets 4
With --model map:   {:process 0 :type :invoke :f :append :key "x" :value "a"}, also :put and :get,
                    or :value ["x" "a"] without :key

:ok happened, :fail surely did not. :info, or no completion: unknown, it may happen later or never.

Exit status: 0 linearizable, 1 not linearizable, 2 unknown within the time, or bad input."#;

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("not of the form A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let (from, to) = (number(from)?, number(to)?);
    if from < to { Ok((from, to)) } else { Err(format!("{from}..{to} is empty")) }
}

fn plan(options: &Options, seed: u64, bug: Option<Bug>) -> Plan {
    let mut plan = Plan::draw(seed);
    plan.bug = bug;
    plan.prints = options.trace;
    if let Some(operations) = options.ops {
        plan.load.operations = operations;
    }
    if let Some(nodes) = options.nodes {
        plan.cores.resize(nodes, plan.cores[0]);
        plan.replication = plan.replication.min(nodes);
    }
    plan
}

thread_local! {
    /// The seed that runs on this thread, and where to say so if it panics.
    static RUNNING: Cell<Option<(u64, Sender<Finished>)>> = const { Cell::new(None) };
}

/// A run that ended.
struct Finished {
    seed: u64,
    /// A report, or what it panicked with.
    report: Result<Report, String>,
    /// The thread that ran it goes on to the next seed.
    lives: bool,
}

/// Reports a panic as the failure of the seed that runs. Where panics abort, the thread is parked for
/// ever instead: whoever hands out seeds starts another.
fn report_panics() {
    panic::set_hook(Box::new(|info| {
        let Some((seed, sender)) = RUNNING.take() else {
            return eprintln!("{info}");
        };
        let trace = std::backtrace::Backtrace::force_capture().to_string();
        let is_ours = |line: &&str| {
            ["raft/src", "shard/src", "engine/src", "tests/src"].iter().any(|dir| line.contains(dir))
        };
        let ours = trace.lines().filter(is_ours).take(12).collect::<Vec<_>>().join("\n");
        let lives = cfg!(panic = "unwind");
        // The receiver is gone only when the process ends anyway.
        let _ = sender.send(Finished { seed, report: Err(format!("{info}\n{ours}")), lives });
        if !lives {
            loop {
                std::thread::park();
            }
        }
    }));
}

/// Runs seeds on threads; each result comes as it is ready.
fn run_all(options: &Options, seeds: Vec<u64>, bug: Option<Bug>) -> Receiver<Finished> {
    let (results, receiver) = channel();
    let (give, queue) = channel::<u64>();
    let queue = std::sync::Arc::new(std::sync::Mutex::new(queue));
    seeds.into_iter().for_each(|seed| give.send(seed).expect("the receiver is in scope"));
    drop(give);
    let (back, finished) = channel();
    let spawn =
        {
            let (options, back) = (options.clone(), back);
            move || {
                let (options, back, queue) = (options.clone(), back.clone(), queue.clone());
                std::thread::spawn(move || {
                    while next(&queue).is_some_and(|seed| run_one(&options, seed, bug, &back)) {}
                });
            }
        };
    (0..options.jobs.max(1)).for_each(|_| spawn());
    std::thread::spawn(move || {
        // `spawn` holds a sender: the loop ends when the receiver of the results is gone.
        for done in finished {
            if !done.lives {
                spawn();
            }
            if results.send(done).is_err() {
                break;
            }
        }
    });
    receiver
}

fn next(queue: &std::sync::Mutex<Receiver<u64>>) -> Option<u64> {
    queue.lock().ok()?.try_recv().ok()
}

/// Runs one seed and sends what came of it. Answers whether anybody wants to know more.
fn run_one(options: &Options, seed: u64, bug: Option<Bug>, back: &Sender<Finished>) -> bool {
    RUNNING.set(Some((seed, back.clone())));
    let outcome = panic::catch_unwind(|| {
        let first = run(plan(options, seed, bug));
        if !options.twice {
            return first;
        }
        let second = run(plan(options, seed, bug));
        let mut report = first;
        if report.hash != second.hash {
            report.failure = Some(("determinism".into(), format!("{} then {}", report.hash, second.hash)));
        }
        report
    });
    RUNNING.set(None);
    // A panic has been reported by the hook.
    outcome.map_or(true, |report| back.send(Finished { seed, report: Ok(report), lives: true }).is_ok())
}

/// The name of the check that failed, and the whole story.
fn failure(finished: &Finished) -> Option<(String, String)> {
    match &finished.report {
        Ok(report) => report.failure.clone(),
        Err(panic) => Some(("panic".into(), panic.clone())),
    }
}

/// Sums over many runs.
#[derive(Default)]
struct Totals {
    failures: BTreeMap<u64, String>,
    time_ns: u64,
    steps: u64,
    operations: u64,
    few_faults: u64,
    found: Found,
    faults: BTreeMap<String, u64>,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.time_ns += report.time_ns;
        self.steps += report.steps;
        self.operations += report.operations.begun;
        self.few_faults += u64::from(report.faults.values().sum::<u64>() < FAULTS_MIN);
        self.found += report.found;
        for (kind, count) in &report.faults {
            *self.faults.entry(kind.clone()).or_default() += count;
        }
    }

    fn print(&self, count: u64, elapsed: f64) {
        let Self { operations, steps, few_faults, found, faults, .. } = self;
        let simulated = self.time_ns as f64 / 1e9;
        println!(
            "{count} seeds, {operations} operations, {steps} steps, {simulated:.0} simulated s in {elapsed:.1} s"
        );
        println!("{found:?}; runs with fewer than {FAULTS_MIN} faults: {few_faults}");
        println!("faults: {faults:?}");
        if !self.failures.is_empty() {
            println!("{} failed: {:?}", self.failures.len(), self.failures);
        }
    }
}

fn run_seeds(options: &Options, (from, to): (u64, u64)) -> ExitCode {
    let started = Instant::now();
    let count = to - from;
    let results = run_all(options, (from..to).collect(), None);
    let mut json =
        options.json.as_ref().map(|path| std::fs::File::create(path).expect("the file can be made"));
    let mut totals = Totals::default();
    for (done, finished) in (1..=count).zip(results) {
        if let Some((property, detail)) = failure(&finished) {
            println!("seed {} FAILED: {property}: {detail}", finished.seed);
            totals.failures.insert(finished.seed, property);
        }
        if let Ok(report) = &finished.report {
            totals.add(report);
            if let Some(file) = &mut json {
                let line = serde_json::to_string(report).expect("a report is plain data");
                writeln!(file, "{line}").expect("the file can be written");
            }
        }
        if done % 10 == 0 || done == count {
            let (failed, elapsed) = (totals.failures.len(), started.elapsed().as_secs());
            eprint!("\r{done}/{count} seeds, {failed} failed, {elapsed} s ");
        }
    }
    eprintln!();
    totals.print(count, started.elapsed().as_secs_f64());
    let rare: Vec<_> = totals.faults.iter().filter(|(_, count)| **count < options.coverage).collect();
    if !rare.is_empty() {
        println!("faults that struck less than {} times: {rare:?}", options.coverage);
    }
    if totals.failures.is_empty() && rare.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_seed(options: &Options, seed: u64) -> ExitCode {
    let started = Instant::now();
    let one = Options { jobs: 1, ..options.clone() };
    let finished = run_all(&one, vec![seed], None).recv().expect("a run ends");
    if let Ok(report) = &finished.report {
        println!("{}", serde_json::to_string_pretty(report).expect("a report is plain data"));
        let simulated = report.time_ns as f64 / 1e9;
        println!(
            "seed {seed} hash {} ({simulated:.1} simulated s in {:.1} s)",
            report.hash,
            started.elapsed().as_secs_f64()
        );
    }
    match failure(&finished) {
        None => ExitCode::SUCCESS,
        Some((property, detail)) => {
            println!("seed {seed} FAILED: {property}: {detail}");
            ExitCode::FAILURE
        }
    }
}

fn run_planted(options: &Options) -> ExitCode {
    if !cfg!(feature = "planted") {
        eprintln!("build with `--features planted` to plant bugs");
        return ExitCode::FAILURE;
    }
    println!("{:<24} {:>8} {:>10}  found by", "planted bug", "seeds", "seconds");
    let mut missed = 0;
    for bug in Bug::ALL {
        let started = Instant::now();
        let results = run_all(options, (0..options.planted_seeds).collect(), Some(bug));
        let all = (1..=options.planted_seeds).zip(results);
        let found =
            all.into_iter().find_map(|(runs, finished)| Some((runs, finished.seed, failure(&finished)?.0)));
        let seconds = started.elapsed().as_secs_f64();
        let name = format!("{bug:?}");
        match found {
            Some((runs, seed, property)) => {
                println!("{name:<24} {runs:>8} {seconds:>10.1}  {property} (seed {seed})")
            }
            None => {
                missed += 1;
                println!("{name:<24} {:>8} {seconds:>10.1}  NOT FOUND", options.planted_seeds);
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

/// Judges a history from outside; see [`CHECK_HISTORY_HELP`].
fn check_history(file: &Path, model: Model, seconds: u64) -> ExitCode {
    const NO_VERDICT: u8 = 2;
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            return ExitCode::from(NO_VERDICT);
        }
    };
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            eprintln!("{}:{line}: expected UTF-8", file.display());
            return ExitCode::from(NO_VERDICT);
        }
    };
    let history = match History::read(text, model) {
        Ok(history) => history,
        Err(bad) => {
            eprintln!("{}:{}: {}", file.display(), bad.line, bad.expected);
            return ExitCode::from(NO_VERDICT);
        }
    };
    println!("{}", history.summary());
    match history.judge(std::time::Duration::from_secs(seconds)) {
        Judgement::Linearizable => {
            println!("linearizable");
            ExitCode::SUCCESS
        }
        Judgement::NotLinearizable(why) => {
            println!("NOT linearizable: {why}");
            ExitCode::FAILURE
        }
        Judgement::Unknown(why) => {
            println!("unknown: {why}");
            ExitCode::from(NO_VERDICT)
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Command::CheckHistory { file, model, seconds }) = &options.command {
        return check_history(file, *model, *seconds);
    }
    report_panics();
    println!("commit {}", commit().unwrap_or_else(|| "unknown".into()));
    match (options.seed, options.seeds) {
        _ if options.planted => run_planted(&options),
        (Some(seed), _) => run_seed(&options, seed),
        (None, Some(range)) => run_seeds(&options, range),
        (None, None) => run_seeds(&options, (0, 100)),
    }
}
