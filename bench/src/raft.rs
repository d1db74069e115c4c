//! `floe-bench raft`: what the consensus core costs by itself. Three replicas in memory, a network without
//! delay and disks without latency, on one thread: propose -> replicated -> committed -> applied on all three.
//!
//! The figure is entries per second of *processor time*, so that it means the same on a busy machine.

use crate::error::BenchError;
use crate::options::RaftOptions;
use crate::report::{Head, write_json};
use crate::usage;
use bytes::Bytes;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use trio::Trio;

#[path = "../../raft/tests/trio/mod.rs"]
mod trio;

/// Batches between two looks at the clock.
const BATCHES: u64 = 500;

/// A run.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    batch: u32,
    payload: u32,
    /// Entries applied on all replicas per second of processor time, one figure per run, in order.
    entries_per_cpu_second: Vec<f64>,
}

/// Runs it. False if the replicas disagree.
pub fn run(options: &RaftOptions) -> Result<bool, BenchError> {
    let payload = Bytes::from(vec![7; options.payload as usize]);
    let mut rates = Vec::new();
    for run in 1..=options.runs {
        let mut trio = Trio::new();
        measure(&mut trio, options.batch, &payload, Duration::from_millis(300));
        let rate = measure(&mut trio, options.batch, &payload, Duration::from_secs_f64(options.seconds));
        if !trio.all_have_applied(trio.proposed(), payload.len()) {
            return Ok(false);
        }
        println!("run {run}: {rate:>12.0} entries per CPU-second, {:.0} ns each", 1e9 / rate);
        rates.push(rate);
    }
    let (batch, payload) = (options.batch, options.payload);
    let mut sorted = rates.clone();
    sorted.sort_by(f64::total_cmp);
    println!("median {:.2} million, batches of {batch} of {payload} B", sorted[sorted.len() / 2] / 1e6);
    let head = Head::new("raft", Path::new("."));
    let report = Report { head, batch, payload, entries_per_cpu_second: rates };
    write_json(&report, options.json.as_deref())?;
    Ok(true)
}

/// Entries per second of processor time, over about `time` of it.
fn measure(trio: &mut Trio, batch: u32, payload: &Bytes, time: Duration) -> f64 {
    let (begun, first) = (usage::cpu_time(), trio.proposed());
    loop {
        for _ in 0..BATCHES {
            trio.batch(u64::from(batch), payload);
        }
        let used = usage::cpu_time() - begun;
        if used >= time {
            return (trio.proposed() - first) as f64 / used.as_secs_f64();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_applied_on_all_replicas() {
        let mut trio = Trio::new();
        let payload = Bytes::from_static(&[7; 16]);
        assert!(measure(&mut trio, 8, &payload, Duration::ZERO) > 0.0);
        assert_eq!(trio.proposed(), 8 * BATCHES);
        assert!(trio.all_have_applied(8 * BATCHES, 16));
        assert!(!trio.all_have_applied(8 * BATCHES + 1, 16));
        assert!(!trio.all_have_applied(8 * BATCHES, 17));
    }
}
