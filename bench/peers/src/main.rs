//! Floe's consensus core beside raft-rs: the same work, in turns, in one process, on one thread. Propose ->
//! replicated -> committed -> applied on all three replicas, in memory. `floe-bench-peers [JSON]` prints a table, and
//! writes the same figures to a file if one is named.
//!
//! The figure is entries per second of *processor time*. The runs take turns because machines drift.

use bytes::Bytes;
use std::time::Duration;

mod raft_rs;
#[path = "../../../raft/tests/trio/mod.rs"]
mod trio;

const RUNS: usize = 7;
const BATCH: u64 = 64;
const PAYLOAD: usize = 128;
/// Batches of one run; the first tenth isn't counted.
const BATCHES: u64 = 20_000;
const NAMES: [&str; 3] = ["floe-raft", "raft-rs 0.7.0, batch_append", "raft-rs 0.7.0"];

/// Processor time of this process.
fn cpu_time() -> Duration {
    // SAFETY: `rusage` is plain numbers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live `rusage` of ours, which the call fills.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    assert_eq!(result, 0, "getrusage of this process fails only on a bad pointer");
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// Entries per CPU-second of one run.
fn rate(mut batch: impl FnMut()) -> f64 {
    (0..BATCHES / 10).for_each(|_| batch());
    let begun = cpu_time();
    (0..BATCHES).for_each(|_| batch());
    (BATCHES * BATCH) as f64 / (cpu_time() - begun).as_secs_f64()
}

fn floe(payload: &Bytes) -> f64 {
    let mut trio = trio::Trio::new();
    let rate = rate(|| trio.batch(BATCH, payload));
    assert!(trio.all_have_applied(trio.proposed(), PAYLOAD), "all have applied all");
    rate
}

fn raft_rs(payload: &Bytes, batch_append: bool) -> f64 {
    let mut trio = raft_rs::Trio::new(batch_append);
    let rate = rate(|| trio.batch(BATCH, payload));
    assert!(trio.all_have_applied_all(PAYLOAD), "all have applied all {}", trio.proposed());
    rate
}

fn main() {
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let mut rates = [const { Vec::new() }; NAMES.len()];
    for run in 1..=RUNS {
        rates[0].push(floe(&payload));
        rates[1].push(raft_rs(&payload, true));
        rates[2].push(raft_rs(&payload, false));
        eprintln!("run {run} of {RUNS}");
    }
    println!("entries of {PAYLOAD} B in batches of {BATCH}, millions per CPU-second, {RUNS} runs in turns");
    println!("{:<30}{:>8}{:>8}{:>8}", "", "median", "least", "most");
    let mut rows = Vec::new();
    for (name, rates) in NAMES.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let [median, least, most] = [rates[RUNS / 2], rates[0], rates[RUNS - 1]].map(|rate| rate / 1e6);
        println!("{name:<30}{median:>8.2}{least:>8.2}{most:>8.2}");
        rows.push(format!(
            "    {{ \"name\": \"{name}\", \"median\": {median:.3}, \"least\": {least:.3}, \"most\": {most:.3} }}"
        ));
    }
    if let Some(path) = std::env::args().nth(1) {
        let json = format!(
            "{{\n  \"benchmark\": \"raft beside peers\",\n  \"unit\": \"million entries per CPU-second\",\n  \
             \"batch\": {BATCH},\n  \"payload\": {PAYLOAD},\n  \"runs\": {RUNS},\n  \"rates\": [\n{}\n  ]\n}}\n",
            rows.join(",\n")
        );
        if let Err(error) = std::fs::write(&path, json) {
            eprintln!("{path}: {error}");
            std::process::exit(1);
        }
    }
}
