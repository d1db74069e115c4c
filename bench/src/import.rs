//! `floe-bench import`: a data set into three processes while one after another is killed with `kill -9`, and out again.
//!
//! The commands `floe node`, `floe import` and `floe export` are run as their users run them. After the import all nodes
//! are killed at once, so that what is exported is what they recover; it is compared byte for byte.

use crate::error::BenchError;
use crate::home::Home;
use crate::options::{ImportOptions, Store};
use crate::processes::{Floe, Nodes};
use crate::progress::Progress;
use crate::report::{Head, whole, write_json};
use crate::rows::{Comparison, Rows};
use crate::usage;
use serde::Serialize;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const NODES: usize = 3;
/// How long a killed node stays away.
const AWAY: Duration = Duration::from_millis(500);
/// How often it is looked whether the import is over.
const POLL: Duration = Duration::from_millis(10);
/// How often it is looked what the nodes take.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A run.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    /// Processes on this machine; each shard has a replica on each.
    nodes: usize,
    shards: u32,
    store: Store,
    rows: u32,
    /// Of the file.
    bytes: u64,
    /// From the end of one restart to the next kill.
    kill_every_seconds: f64,
    /// Nodes killed while the import ran.
    kills: usize,
    import_seconds: f64,
    import_mb_per_second: f64,
    import_rows_per_second: f64,
    /// The most resident memory of any node meanwhile.
    node_memory_peak_bytes: u64,
    /// The most that any node's log took on disk meanwhile.
    node_log_peak_bytes: u64,
    /// From the restart of all nodes, which were killed at once, until all serve.
    recovery_seconds: f64,
    export_seconds: f64,
    /// Processor time of all processes from start to end.
    cpu_seconds: f64,
    #[serde(flatten)]
    found: Comparison,
}

/// Runs it. False if a row is lost or wrong.
pub fn run(options: &ImportOptions) -> Result<bool, BenchError> {
    let floe = Floe::find(options.floe.as_deref())?;
    let home = Home::new(options.output.dir.as_deref(), false)?;
    let rows = Rows::new(options.seed, options.rows);
    let file = home.path().join("rows.tsv");
    let out = File::create(&file).map_err(BenchError::file(&file))?;
    let bytes = rows.write(&mut BufWriter::new(out)).map_err(BenchError::file(&file))?;
    let report = measure(options, &floe, home.path(), &rows, bytes)?;
    print(&report);
    write_json(&report, options.output.json.as_deref())?;
    let Comparison { lost, wrong, .. } = report.found;
    let is_sound = lost == 0 && wrong == 0;
    home.close(!is_sound);
    Ok(is_sound)
}

fn measure(
    options: &ImportOptions,
    floe: &Floe,
    dir: &Path,
    rows: &Rows,
    bytes: u64,
) -> Result<Report, BenchError> {
    let mut nodes = Nodes::start(floe, dir, NODES, options.shards, options.store)?;
    let Imported { kills, took, memory_peak, log_peak } = import(&mut nodes, floe, dir, options.kill_every)?;
    if options.kill_every > 0.0 && kills < NODES {
        return Err(BenchError::TooFewKills { kills, nodes: NODES });
    }
    (1..=NODES).try_for_each(|node| nodes.kill(node))?;
    let begun = Instant::now();
    nodes.restart(1..=NODES)?;
    let recovered = begun.elapsed();
    let begun = Instant::now();
    let exported = dir.join("exported.tsv");
    let endpoints = nodes.endpoints();
    let output = exported.to_string_lossy();
    floe.run(&["export", "--values", "--endpoints", &endpoints, "--output", &output])?;
    let export_seconds = begun.elapsed().as_secs_f64();
    // Processor time is known of processes that have ended.
    drop(nodes);
    let file = File::open(&exported).map_err(BenchError::file(&exported))?;
    let found = rows.compare(&mut BufReader::new(file)).map_err(BenchError::file(&exported))?;
    let import_seconds = took.as_secs_f64();
    Ok(Report {
        head: Head::new("import", dir),
        nodes: NODES,
        shards: options.shards,
        store: options.store,
        rows: options.rows,
        bytes,
        kill_every_seconds: options.kill_every,
        kills,
        import_seconds,
        import_mb_per_second: bytes as f64 / 1e6 / import_seconds,
        import_rows_per_second: f64::from(options.rows) / import_seconds,
        node_memory_peak_bytes: memory_peak,
        node_log_peak_bytes: log_peak,
        recovery_seconds: recovered.as_secs_f64(),
        export_seconds,
        cpu_seconds: usage::cpu_time_of_ended_children().as_secs_f64(),
        found,
    })
}

/// How an import went.
struct Imported {
    kills: usize,
    took: Duration,
    memory_peak: u64,
    log_peak: u64,
}

/// Imports the file, and kills nodes in turn until that is done.
fn import(nodes: &mut Nodes<'_>, floe: &Floe, dir: &Path, kill_every: f64) -> Result<Imported, BenchError> {
    let (file, endpoints) = (dir.join("rows.tsv"), nodes.endpoints());
    let file = file.to_string_lossy();
    let progress = Progress::new("import", 1);
    thread::scope(|scope| {
        let importing = scope.spawn(|| {
            let begun = Instant::now();
            let done = floe.run(&["import", "--key", "1", "--endpoints", &endpoints, &file]);
            done.map(|said| (said, begun.elapsed()))
        });
        let (mut kills, mut next) = (0, Instant::now() + Duration::from_secs_f64(kill_every));
        let (mut memory_peak, mut log_peak, mut look) = (0, 0, Instant::now());
        while !importing.is_finished() {
            thread::sleep(POLL);
            if Instant::now() >= look {
                let (memory, log) = nodes.peaks();
                (memory_peak, log_peak) = (memory_peak.max(memory), log_peak.max(log));
                look = Instant::now() + LOOK_EVERY;
            }
            if kill_every > 0.0 && Instant::now() >= next {
                let node = kills % NODES + 1;
                nodes.kill(node)?;
                thread::sleep(AWAY);
                nodes.restart(node..=node)?;
                kills += 1;
                progress.at(0, || format!("{kills} kills"));
                next = Instant::now() + Duration::from_secs_f64(kill_every);
            }
        }
        let (said, took) = importing.join().expect("a panic of it is a bug here")?;
        progress.finish(&said);
        Ok(Imported { kills, took, memory_peak, log_peak })
    })
}

fn print(report: &Report) {
    let Report { rows, kills, found, .. } = report;
    println!(
        "imported {rows} rows, {:.1} MB, in {:.1} s with {kills} kills: {:.2} MB/s, {} rows/s",
        report.bytes as f64 / 1e6,
        report.import_seconds,
        report.import_mb_per_second,
        whole(report.import_rows_per_second)
    );
    println!(
        "all killed, recovered in {:.1} s, exported in {:.1} s; {:.1} CPU seconds in all",
        report.recovery_seconds, report.export_seconds, report.cpu_seconds
    );
    println!(
        "at the most {:.0} MB of memory and {:.0} MB of log on one node",
        report.node_memory_peak_bytes as f64 / 1e6,
        report.node_log_peak_bytes as f64 / 1e6
    );
    println!("{} rows right, {} lost, {} wrong", found.right, found.lost, found.wrong);
}
