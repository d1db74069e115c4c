//! `floe-bench raft`: what the consensus core costs by itself. Three replicas in memory, a network without
//! delay and disks without latency, on one thread: propose -> replicated -> committed -> applied on all three.
//!
//! The figure is entries per second of *processor time*, so that it means the same on a busy machine.

use crate::error::BenchError;
use crate::machine::{self, Machine};
use crate::options::RaftOptions;
use crate::usage;
use bytes::Bytes;
use floe_raft::{Config, EntryKind, HardState, Mark, Membership, Message, Raft, Ready, ReplicaId, Restored};
use serde::Serialize;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

const REPLICAS: u64 = 3;
/// Entries after which a replica compacts its log.
const COMPACT_EVERY: u64 = 4096;
/// Batches between two looks at the clock.
const BATCHES: u64 = 500;

/// A run.
#[derive(Serialize)]
struct Report {
    benchmark: &'static str,
    machine: Machine,
    commit: String,
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
        let mut group = Group::new();
        group.measure(options, &payload, Duration::from_millis(300));
        let rate = group.measure(options, &payload, Duration::from_secs_f64(options.seconds));
        if !group.all_have_applied_all() {
            return Ok(false);
        }
        println!("run {run}: {rate:>12.0} entries per CPU-second, {:.0} ns each", 1e9 / rate);
        rates.push(rate);
    }
    let (batch, payload) = (options.batch, options.payload);
    let mut sorted = rates.clone();
    sorted.sort_by(f64::total_cmp);
    println!("median {:.2} million, batches of {batch} of {payload} B", sorted[sorted.len() / 2] / 1e6);
    if let Some(path) = &options.json {
        let (machine, commit) = (Machine::this(Path::new(".")), machine::commit());
        let entries_per_cpu_second = rates;
        let report = Report { benchmark: "raft", machine, commit, batch, payload, entries_per_cpu_second };
        let json = serde_json::to_string_pretty(&report).expect("plain data");
        std::fs::write(path, json + "\n").map_err(BenchError::file(path))?;
    }
    Ok(true)
}

/// Three replicas, of which the first leads.
struct Group {
    replicas: Vec<Raft>,
    net: VecDeque<Message>,
    ready: Ready,
    proposed: u64,
}

impl Group {
    fn new() -> Self {
        let id = |number| ReplicaId::new(number).expect("numbers start at 1");
        let membership = Membership::of_voters((1..=REPLICAS).map(id));
        let start = |number| {
            let restored = Restored {
                hard_state: HardState::default(),
                snapshot: Mark::ZERO,
                membership: membership.clone(),
                entries: Vec::new(),
                applied: 0,
            };
            Raft::new(id(number), &Config::default(), restored, 0, 1)
        };
        let replicas = (1..=REPLICAS).map(start).collect();
        let mut group = Self { replicas, net: VecDeque::new(), ready: Ready::default(), proposed: 0 };
        group.replicas[0].campaign(0);
        group.settle();
        group
    }

    /// Entries per second of processor time, over about `time` of it.
    fn measure(&mut self, options: &RaftOptions, payload: &Bytes, time: Duration) -> f64 {
        let (begun, first) = (usage::cpu_time(), self.proposed);
        loop {
            for _ in 0..BATCHES {
                self.batch(options.batch, payload);
            }
            let used = usage::cpu_time() - begun;
            if used >= time {
                return (self.proposed - first) as f64 / used.as_secs_f64();
            }
        }
    }

    fn batch(&mut self, entries: u32, payload: &Bytes) {
        for _ in 0..entries {
            let proposed = self.replicas[0].propose(0, EntryKind::Command, 0, payload.clone());
            proposed.expect("the leader stays, and all before it is committed");
            self.proposed += 1;
        }
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            (0..self.replicas.len()).for_each(|at| self.turn(at));
            if self.net.is_empty() {
                return;
            }
            while let Some(message) = self.net.pop_front() {
                let to = message.to.get() as usize - 1;
                self.replicas[to].step(0, message).expect("working replicas make sense");
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let (raft, ready) = (&mut self.replicas[at], &mut self.ready);
        while raft.has_ready() {
            raft.ready(ready);
            ready.write.into_iter().for_each(|write| raft.persisted(write));
            ready.committed.last().into_iter().for_each(|entry| raft.applied(entry.mark.index));
            self.net.extend(ready.messages.drain(..));
            self.net.extend(ready.messages_after_persist.drain(..));
        }
        if raft.applied_index() + 1 - raft.first_index() >= COMPACT_EVERY {
            raft.compact(raft.applied_index());
        }
    }

    /// All proposals, and the leader's own first entry.
    fn all_have_applied_all(&self) -> bool {
        self.replicas.iter().all(|raft| raft.applied_index() == self.proposed + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_applied_on_all_replicas() {
        let options = RaftOptions { batch: 8, payload: 16, seconds: 0.01, runs: 1, json: None };
        let mut group = Group::new();
        assert!(group.measure(&options, &Bytes::new(), Duration::ZERO) > 0.0);
        assert_eq!(group.proposed, 8 * BATCHES);
        assert!(group.all_have_applied_all());
        group.proposed += 1;
        assert!(!group.all_have_applied_all());
    }
}
