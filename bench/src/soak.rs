//! `--soak`: whether memory and log space stay bounded while a phase lasts.
//!
//! Both grow at first: logs in memory up to their bounds, segments up to theirs. So the two halves of the
//! measured part are compared: the second one's highest sample may exceed the first one's by [`GROWTH_MAX`] and
//! [`SLACK_BYTES`]. What leaks by more than that in half a run is found; the longer the run, the slower a leak.

use crate::usage;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Growth that is put up with, as a part of the first half's highest sample.
const GROWTH_MAX: f64 = 0.10;
/// And in bytes: an allocator's or a log's step.
const SLACK_BYTES: u64 = 32 << 20;
/// Fewer samples show no trend.
pub const SAMPLES_MIN: usize = 6;

/// What was in use at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Since the phase's start, warm-up included.
    pub seconds: f64,
    /// Steps done until then.
    pub ops: u64,
    /// Resident memory of this process.
    pub rss_bytes: u64,
    /// Bytes of all files of all nodes' logs.
    pub wal_bytes: u64,
}

/// Takes samples of one phase.
pub struct Sampler {
    dirs: Vec<PathBuf>,
    every: Duration,
    next: Duration,
    samples: Vec<Sample>,
}

impl Sampler {
    /// Samples the nodes in these directories, first after `warmup`.
    pub fn new(dirs: Vec<PathBuf>, every: Duration, warmup: Duration) -> Self {
        Self { dirs, every, next: warmup, samples: Vec::new() }
    }

    /// Takes a sample if one is due.
    pub fn at(&mut self, elapsed: Duration, ops: u64) -> Option<Sample> {
        if elapsed < self.next {
            return None;
        }
        self.next = elapsed + self.every;
        let wal_bytes = self.dirs.iter().map(|dir| bytes_below(&dir.join("wal"))).sum();
        let sample = Sample { seconds: elapsed.as_secs_f64(), ops, rss_bytes: usage::rss_bytes(), wal_bytes };
        self.samples.push(sample);
        Some(sample)
    }

    /// The verdict.
    pub fn finish(self) -> Soak {
        Soak::judge(self.samples)
    }
}

/// What the samples of a phase showed.
#[derive(Clone, Debug, Serialize)]
pub struct Soak {
    /// In order.
    pub samples: Vec<Sample>,
    /// Growth that is put up with: this part of the first half's highest sample,
    pub growth_max: f64,
    /// and these bytes.
    pub slack_bytes: u64,
    /// Highest of the second half over highest of the first.
    pub rss_growth: f64,
    /// The same of the logs.
    pub wal_growth: f64,
    /// Whether both stayed within their bounds, and there were samples enough to tell.
    pub bounded: bool,
}

impl Soak {
    fn judge(samples: Vec<Sample>) -> Self {
        let halves = samples.split_at(samples.len() / 2);
        let highest = |of: fn(&Sample) -> u64| {
            let max = |half: &[Sample]| half.iter().map(of).max().unwrap_or(0);
            (max(halves.0), max(halves.1))
        };
        let (rss, wal) = (highest(|sample| sample.rss_bytes), highest(|sample| sample.wal_bytes));
        let within = |(first, second): (u64, u64)| {
            second as f64 <= first as f64 * (1.0 + GROWTH_MAX) + SLACK_BYTES as f64
        };
        let growth = |(first, second): (u64, u64)| second as f64 / first.max(1) as f64 - 1.0;
        Self {
            growth_max: GROWTH_MAX,
            slack_bytes: SLACK_BYTES,
            rss_growth: growth(rss),
            wal_growth: growth(wal),
            bounded: samples.len() >= SAMPLES_MIN && within(rss) && within(wal),
            samples,
        }
    }
}

/// Bytes of the files in a directory and those below it. A file that goes meanwhile counts for nothing.
fn bytes_below(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(mib: impl IntoIterator<Item = (u64, u64)>) -> Soak {
        let sample = |(at, (rss, wal)): (u32, (u64, u64))| Sample {
            seconds: f64::from(at),
            ops: 0,
            rss_bytes: rss << 20,
            wal_bytes: wal << 20,
        };
        Soak::judge((0..).zip(mib).map(sample).collect())
    }

    #[test]
    fn growth_that_ends_in_the_first_half_is_bounded() {
        let grows = [100, 400, 900, 1000, 990, 1010, 1000, 950];
        assert!(soak(grows.map(|mib| (mib, 3 * mib))).bounded);
    }

    #[test]
    fn growth_in_the_second_half_is_found_in_memory_and_in_logs() {
        let leaks = (0..60).map(|at| 1000 + 10 * at);
        assert!(!soak(leaks.clone().map(|mib| (mib, 500))).bounded);
        assert!(!soak(leaks.map(|mib| (500, mib))).bounded);
    }

    #[test]
    fn too_few_samples_show_nothing() {
        assert!(!soak([(100, 100); SAMPLES_MIN - 1]).bounded);
        assert!(soak([(100, 100); SAMPLES_MIN]).bounded);
    }

    #[test]
    fn files_of_a_log_are_counted_in_every_depth() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("wal/0")).unwrap();
        fs::write(dir.path().join("wal/0/segment"), [0; 1000]).unwrap();
        fs::write(dir.path().join("wal/other"), [0; 10]).unwrap();
        fs::write(dir.path().join("beside"), [0; 5]).unwrap();
        let mut sampler = Sampler::new(vec![dir.path().into()], Duration::from_secs(10), Duration::ZERO);
        let sample = sampler.at(Duration::ZERO, 3).expect("the first is due at once");
        assert_eq!((sample.wal_bytes, sample.ops), (1010, 3));
        assert_eq!(sampler.at(Duration::from_secs(9), 4), None);
        assert!(sampler.at(Duration::from_secs(10), 5).is_some());
    }
}
