//! Many seeds: a progress line, sums, and a summary in JSON.

use crate::Options;
use crate::runs::{Finished, run_all};
use floe_tests::sim::cluster::Found;
use floe_tests::sim::coverage::{self, Coverage};
use floe_tests::sim::run::{FAULTS_MIN, Report};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Sums over many runs.
#[derive(Default)]
struct Totals {
    failures: BTreeMap<u64, String>,
    time_ns: u64,
    steps: u64,
    operations: u64,
    few_faults: u64,
    found: Found,
    busy: u64,
    faults: Coverage,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.time_ns += report.time_ns;
        self.steps += report.steps;
        self.operations += report.operations.begun;
        self.few_faults += u64::from(report.faults.strikes() < FAULTS_MIN);
        self.found += report.found;
        self.busy += report.operations.busy;
        self.faults.add(&report.faults);
    }

    fn simulated_seconds(&self) -> f64 {
        self.time_ns as f64 / 1e9
    }

    fn print(&self, count: u64, elapsed: f64, cpu: f64) {
        let Self { operations, steps, few_faults, found, busy, faults, .. } = self;
        let simulated = self.simulated_seconds();
        println!("{count} seeds, {operations} operations, {steps} steps, {simulated:.0} simulated s");
        println!(
            "{elapsed:.1} s, {cpu:.1} CPU s: {:.1} simulated s and {:.2} seeds per CPU s",
            simulated / cpu,
            count as f64 / cpu
        );
        println!("{found:?}; {busy} times busy; runs with fewer than {FAULTS_MIN} faults: {few_faults}");
        print!("{faults}");
        if !self.failures.is_empty() {
            println!("{} failed: {:?}", self.failures.len(), self.failures);
        }
    }

    /// The same for programs.
    fn json(&self, (from, to): (u64, u64), elapsed: f64, cpu: f64) -> serde_json::Value {
        serde_json::json!({
            "commit": crate::commit(),
            "first": from,
            "seeds": to - from,
            "passed": to - from - self.failures.len() as u64,
            "failed": self.failures.iter().collect::<Vec<_>>(),
            "simulated_seconds": self.simulated_seconds(),
            "cpu_seconds": cpu,
            "elapsed_seconds": elapsed,
            "operations": self.operations,
            "steps": self.steps,
            "runs_with_few_faults": self.few_faults,
            "found": self.found,
            "busy": self.busy,
            "faults": self.faults.by_kind(),
            "coverage": self.faults,
        })
    }
}

/// Runs the seeds from the first to before the last.
pub fn run_seeds(options: &Options, (from, to): (u64, u64)) -> ExitCode {
    let started = Instant::now();
    let count = to - from;
    let results = run_all(options.jobs, (from..to).map(|seed| options.change.plan(seed)).collect());
    let mut totals = Totals::default();
    for (done, finished) in (1..=count).zip(results) {
        let failure = finished.failure();
        if options.hashes {
            println!("{}", hash_line(&finished));
        } else if let Some((property, detail)) = &failure {
            println!("seed {} FAILED: {property}: {detail}", finished.seed);
        }
        totals.failures.extend(failure.map(|(property, _)| (finished.seed, property)));
        if let Ok(report) = &finished.report {
            totals.add(report);
        }
        if count > 1 && (done % 10 == 0 || done == count) {
            progress(done, count, totals.failures.len(), started);
        }
    }
    if options.hashes {
        return if totals.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    eprintln!();
    let (elapsed, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds());
    totals.print(count, elapsed, cpu);
    if let Some(path) = &options.json
        && let Err(error) = write_json(path, &totals.json((from, to), elapsed, cpu))
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    let least = options.coverage.unwrap_or(u64::from(count >= coverage::BATCH_MIN));
    let rare = totals.faults.rarer_than(least);
    if !rare.is_empty() {
        println!("met less than {least} times: {rare:?}");
    }
    if totals.failures.is_empty() && rare.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Says on standard error how far a batch is.
pub fn progress(done: u64, count: u64, failed: usize, started: Instant) {
    eprint!("\r{done}/{count} seeds, {failed} failed, {} s ", started.elapsed().as_secs());
}

/// A seed and the hash of its trace, or `panic`; what failed comes after it.
fn hash_line(finished: &Finished) -> String {
    let hash = finished.report.as_ref().map_or("panic", |report| &report.hash);
    let failed = finished.failure().map(|(property, _)| format!(" FAILED {property}"));
    format!("{} {hash}{}", finished.seed, failed.unwrap_or_default())
}

fn write_json(path: &Path, summary: &serde_json::Value) -> std::io::Result<()> {
    std::fs::write(path, format!("{summary:#}\n"))
}

/// Processor seconds that this process and the children that it waited for have used; 0 where Linux's
/// `/proc` isn't.
pub fn cpu_seconds() -> f64 {
    // Always so on Linux, whatever the kernel's own tick is.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold blanks. After it, the 12th to 15th field are user and system ticks,
    // own ones first.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / TICKS_PER_SECOND
}
