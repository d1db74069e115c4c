//! `floe-bench cluster`: a whole cluster under load, and every value verified.
//!
//! Open the cluster, wait for leaders; per phase: run it, then read every key back; at the end close
//! the cluster, open it again and read every key back once more.

use crate::caller::{Book, Job, Site};
use crate::error::BenchError;
use crate::floor;
use crate::home::Home;
use crate::members::{Members, Places};
use crate::options::{ClusterOptions, Mode, Workload};
use crate::phase::{self, Outcome, Plan};
use crate::progress::Progress;
use crate::report::{Check, Head, PhaseReport, Report, micros, whole, write_json};
use crate::soak::{SAMPLES_MIN, Sample, Sampler, Soak};
use crate::tally::Tally;
use std::path::Path;
use std::time::{Duration, Instant};

/// For how long loading and verification try.
const PATIENCE: Duration = Duration::from_secs(60);
/// Callers for loading and verification, where nothing is measured.
const HELPERS: usize = 1024;

/// Runs it. False if anything was lost or wrong, or a phase got nothing done.
pub fn run(options: &ClusterOptions) -> Result<bool, BenchError> {
    let &ClusterOptions { keys, concurrency, .. } = options;
    if keys < concurrency {
        return Err(BenchError::TooFewKeys { keys, concurrency });
    }
    if let Some(every) = options.soak.filter(|every| options.seconds / every < SAMPLES_MIN as f64) {
        return Err(BenchError::TooFewSamples { every, seconds: options.seconds, least: SAMPLES_MIN });
    }
    let home = Home::new(options.output.dir.as_deref(), options.keep)?;
    let mut report = new_report(options, home.path())?;
    let mut bench = Bench::open(options, home.path())?;
    report.leaders_per_node = bench.members.spread();
    eprintln!("{:>14}  {:?} per node", "leaders", report.leaders_per_node);
    for &workload in &options.phases {
        report.phases.push(bench.phase(workload)?);
    }
    report.after_reopen = Some(bench.reopen()?);
    println!("\n{}", report.table());
    write_json(&report, options.output.json.as_deref())?;
    home.close(options.keep || !report.is_sound());
    Ok(report.is_sound())
}

fn new_report(options: &ClusterOptions, dir: &Path) -> Result<Report, BenchError> {
    let head = Head::new("cluster", dir);
    let machine = &head.machine;
    let disk = &machine.disk;
    eprintln!("{:>14}  {}, {} cores, Linux {}", "machine", machine.cpu, machine.cores, machine.kernel);
    eprintln!("{:>14}  {} on {} ({})", "data", dir.display(), disk.device, disk.file_system);
    if disk.is_memory() {
        eprintln!("{:>14}  {} keeps files in memory: syncs cost nothing here", "WARNING", disk.file_system);
    }
    let floor = floor::measure(dir, usize::from(options.nodes) * usize::from(options.cores))?;
    let (disk_us, loopback_us) = (floor.disk_write_us.p50, floor.loopback_round_trip_us.p50);
    eprintln!(
        "{:>14}  synced 4 KiB write {} with {} writers, loopback round trip {} (p50)",
        "floor",
        micros(disk_us),
        floor.writers,
        micros(loopback_us)
    );
    Ok(Report { head, floor, leaders_per_node: Vec::new(), phases: Vec::new(), after_reopen: None })
}

/// The running benchmark.
struct Bench<'a> {
    options: &'a ClusterOptions,
    places: Places,
    members: Members,
    site: Site,
    book: Book,
}

impl<'a> Bench<'a> {
    fn open(options: &'a ClusterOptions, dir: &Path) -> Result<Self, BenchError> {
        let places = Places::choose(dir, options.nodes)?;
        let (members, _) = open_members(&places, options, "opening")?;
        let site = members.site(options);
        let book = Book::new(options.keys, |key| members.shard_of(key));
        Ok(Self { options, places, members, site, book })
    }

    /// Loads what is missing, runs the phase, and reads everything back.
    fn phase(&mut self, workload: Workload) -> Result<PhaseReport, BenchError> {
        if workload != Workload::Put && self.book.unwritten() > 0 {
            self.load()?;
        }
        let (mut outcome, soak) = self.work(workload);
        let checks = self.verify(&format!("verify {workload}"));
        outcome.tally.add_checks(&checks);
        outcome.tally.samples.iter().for_each(|sample| eprintln!("{:>14}  {sample}", ""));
        Ok(PhaseReport::new(workload, self.options, &outcome, soak))
    }

    fn work(&mut self, workload: Workload) -> (Outcome, Option<Soak>) {
        let (warmup, length) = (self.options.warmup, self.options.seconds);
        let plan = Plan {
            job: Job::Work(workload),
            callers: self.options.concurrency as usize,
            threads: self.options.client_threads(),
            warmup: Duration::from_secs_f64(warmup),
            length: Duration::from_secs_f64(length),
            rate: self.options.rate.filter(|_| self.options.mode == Mode::Open),
        };
        let progress = Progress::new(workload.to_string(), millis(plan.warmup + plan.length));
        let mut sampler = self.options.soak.map(|every| {
            Sampler::new(self.places.dirs().to_vec(), Duration::from_secs_f64(every), plan.warmup)
        });
        let outcome = self.run(&plan, &mut |elapsed, steps| {
            progress.at(millis(elapsed), || per_second(steps, elapsed));
            if let Some(sample) = sampler.as_mut().and_then(|sampler| sampler.at(elapsed, steps)) {
                progress.say(&describe(&sample));
            }
        });
        progress.finish(&per_second(outcome.tally.ops(), outcome.elapsed));
        let soak = sampler.map(Sampler::finish);
        if let Some(soak) = &soak {
            say_verdict(soak);
        }
        (outcome, soak)
    }

    fn load(&mut self) -> Result<(), BenchError> {
        let outcome = self.helpers(Job::Load, "load");
        match self.book.unwritten() {
            0 => Ok(()),
            missing => Err(BenchError::Load {
                missing: missing as u64,
                keys: self.book.len() as u64,
                reason: outcome.samples.first().cloned().unwrap_or_else(|| "it took too long".into()),
            }),
        }
    }

    fn verify(&mut self, label: &str) -> Tally {
        self.helpers(Job::Verify, label)
    }

    /// An unmeasured job over all keys.
    fn helpers(&mut self, job: Job, label: &str) -> Tally {
        let plan = Plan {
            job,
            callers: HELPERS,
            threads: self.options.client_threads(),
            warmup: Duration::ZERO,
            length: PATIENCE,
            rate: None,
        };
        let start = Instant::now();
        let progress = Progress::new(label, self.book.len() as u64);
        let outcome =
            self.run(&plan, &mut |elapsed, steps| progress.at(steps, || per_second(steps, elapsed)));
        let Tally { verified, lost, wrong, .. } = outcome.tally;
        let seconds = start.elapsed().as_secs_f64();
        progress.finish(&match job {
            Job::Verify => format!("{verified} right, {lost} lost, {wrong} wrong in {seconds:.1} s"),
            _ => format!("{} keys in {seconds:.1} s", self.book.len()),
        });
        outcome.tally
    }

    fn run(&mut self, plan: &Plan, progress: &mut dyn FnMut(Duration, u64)) -> Outcome {
        phase::run(plan, &mut self.book, &self.site, &self.members, progress)
    }

    /// Closes the cluster, opens it again and reads everything back.
    fn reopen(self) -> Result<Check, BenchError> {
        let Self { options, places, members, site, book } = self;
        let shards = members.shards().to_vec();
        drop(site);
        members.close();
        let (members, open_seconds) = open_members(&places, options, "reopening")?;
        if members.shards() != shards {
            return Err(BenchError::ShardsChanged);
        }
        let site = members.site(options);
        let mut again = Self { options, places, members, site, book };
        let tally = again.verify("verify again");
        tally.samples.iter().for_each(|sample| eprintln!("{:>14}  {sample}", ""));
        let Self { members, site, .. } = again;
        drop(site);
        members.close();
        Ok(Check::new(open_seconds, &tally))
    }
}

/// The cluster, and how long it took until every shard had a leader.
pub fn open_members(
    places: &Places,
    options: &ClusterOptions,
    label: &str,
) -> Result<(Members, f64), BenchError> {
    let start = Instant::now();
    let progress = Progress::new(label, u64::from(options.shards));
    let shown =
        |led: usize, shards: usize| progress.at(led as u64, || format!("{led} of {shards} shards led"));
    let members = Members::open(places, options, shown)?;
    let seconds = start.elapsed().as_secs_f64();
    let (nodes, shards) = (options.nodes, options.shards);
    progress.finish(&format!("{nodes} nodes, {shards} shards, every one led after {seconds:.2} s"));
    Ok((members, seconds))
}

fn describe(sample: &Sample) -> String {
    let Sample { seconds, ops, rss_bytes, wal_bytes } = sample;
    let ops = whole(*ops as f64);
    format!("{seconds:.0} s, {ops} ops: {} MiB of memory, {} MiB of logs", rss_bytes >> 20, wal_bytes >> 20)
}

fn say_verdict(soak: &Soak) {
    eprintln!(
        "{:>14}  second half against first: memory {:+.1} %, logs {:+.1} %; up to {:+.0} % and {} MiB are bounded: {}",
        "soak",
        soak.rss_growth * 100.0,
        soak.wal_growth * 100.0,
        soak.growth_max * 100.0,
        soak.slack_bytes >> 20,
        if soak.bounded { "yes" } else { "NO" }
    );
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn per_second(steps: u64, elapsed: Duration) -> String {
    format!("{} ops/s", whole(steps as f64 / elapsed.as_secs_f64().max(1e-9)))
}
