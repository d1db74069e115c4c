//! What one thread's callers count during a phase.

use crate::workload::Verdict;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// How many errors and wrong values are kept as text.
const SAMPLES_MAX: usize = 5;
/// Bounds of a latency, in nanoseconds.
const LATENCY_NS: (u64, u64) = (1_000, 1_000_000_000_000);

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A write of one key.
    Put,
    /// A linearizable read of one key.
    Get,
}

/// How an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// A bound was reached: surely not done.
    Busy,
    /// A write that was surely not done, for any other reason.
    Refused,
    /// A write that may or may not have been, or be, done.
    Unknown,
    /// A read that gave no answer.
    Read,
}

impl ErrorKind {
    /// The name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Read => "read",
        }
    }
}

/// Counts and latencies; of several threads, added up with [`Tally::add`].
pub struct Tally {
    /// Latencies of puts, in nanoseconds.
    pub puts: Histogram<u64>,
    /// Latencies of gets, in nanoseconds.
    pub gets: Histogram<u64>,
    /// Puts that were acknowledged in the measured window.
    pub puts_done: u64,
    /// Gets that were answered in the measured window.
    pub gets_done: u64,
    /// Ages, at its end, of operations that fell due in the measured window of an open loop and never got a
    /// caller, in nanoseconds: the least that their latencies would have been.
    pub unserved: Histogram<u64>,
    /// Failed operations of the whole phase, warm-up included.
    pub errors: BTreeMap<ErrorKind, u64>,
    /// Values read that were right.
    pub verified: u64,
    /// Reads that showed less than what was acknowledged, and keys that couldn't be read at all.
    pub lost: u64,
    /// Reads that showed what was never written, or surely not.
    pub wrong: u64,
    /// Some of the errors, and of what was lost or wrong, as text.
    pub samples: Vec<String>,
}

impl Default for Tally {
    fn default() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(LATENCY_NS.0, LATENCY_NS.1, 3)
                .expect("the bounds are constants in order")
        };
        Self {
            puts: histogram(),
            gets: histogram(),
            puts_done: 0,
            gets_done: 0,
            unserved: histogram(),
            errors: BTreeMap::new(),
            verified: 0,
            lost: 0,
            wrong: 0,
            samples: Vec::new(),
        }
    }
}

impl Tally {
    /// Counts an operation done in the measured window.
    pub fn done(&mut self, operation: Operation) {
        match operation {
            Operation::Put => self.puts_done += 1,
            Operation::Get => self.gets_done += 1,
        }
    }

    /// Records a latency.
    pub fn latency(&mut self, operation: Operation, latency: Duration) {
        match operation {
            Operation::Put => self.puts.saturating_record(nanos(latency)),
            Operation::Get => self.gets.saturating_record(nanos(latency)),
        }
    }

    /// Counts an operation that never got a caller.
    pub fn unserved(&mut self, age: Duration) {
        self.unserved.saturating_record(nanos(age));
    }

    /// Counts a failed operation.
    pub fn error(&mut self, kind: ErrorKind, error: &dyn fmt::Display) {
        let count = self.errors.entry(kind).or_default();
        *count += 1;
        if *count == 1 {
            self.sample(|| format!("{}: {error}", kind.name()));
        }
    }

    /// Counts what a read showed; `describe` says of what, if it wasn't right.
    pub fn verdict(&mut self, verdict: Verdict, describe: impl FnOnce() -> String) {
        match verdict {
            Verdict::Right => self.verified += 1,
            Verdict::Lost => self.lost += 1,
            Verdict::Wrong => self.wrong += 1,
        }
        if verdict != Verdict::Right {
            self.sample(|| format!("{verdict:?}: {}", describe()));
        }
    }

    fn sample(&mut self, text: impl FnOnce() -> String) {
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(text());
        }
    }

    /// All latencies together.
    pub fn latencies(&self) -> Histogram<u64> {
        let mut sum = self.puts.clone();
        for part in [&self.gets, &self.unserved] {
            sum.add(part).expect("all have the same bounds");
        }
        sum
    }

    /// Operations done in the measured window.
    pub fn ops(&self) -> u64 {
        self.puts_done + self.gets_done
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        self.puts.add(&other.puts).expect("all have the same bounds");
        self.gets.add(&other.gets).expect("all have the same bounds");
        self.puts_done += other.puts_done;
        self.gets_done += other.gets_done;
        self.unserved.add(&other.unserved).expect("all have the same bounds");
        for (kind, count) in &other.errors {
            *self.errors.entry(*kind).or_default() += count;
        }
        self.add_checks(other);
    }

    /// Adds another's verification only.
    pub fn add_checks(&mut self, other: &Self) {
        self.verified += other.verified;
        self.lost += other.lost;
        self.wrong += other.wrong;
        for sample in &other.samples {
            self.sample(|| sample.clone());
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
