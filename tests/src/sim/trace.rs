//! The trace of a run: a hash over everything that was delivered to cores and that they wanted done, and
//! readable lines if asked for. Equal seeds give equal hashes; a difference is a loss of determinism.

use crate::hash::Hash64;
use crate::sim::clock::US;
use floe_raft::Nanos;
use floe_shard::CoreAddr;

/// The trace of one run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: Hash64,
    prints: bool,
    /// Things noted.
    pub count: u64,
}

impl Trace {
    /// A trace that also prints lines, or not.
    pub fn new(prints: bool) -> Self {
        Self { prints, ..Self::default() }
    }

    /// Notes that something happened at a core; `line` is only made if lines are printed.
    pub fn core(&mut self, now: Nanos, core: CoreAddr, words: &[u64], line: impl FnOnce() -> String) {
        self.hash.word(now);
        self.hash.word(core.node.0 << 16 | u64::from(core.core));
        words.iter().for_each(|word| self.hash.word(*word));
        self.count += 1;
        if self.prints {
            println!("{:>12} {core} {}", now / US, line());
        }
    }

    /// Notes something that concerns no single core.
    pub fn note(&mut self, now: Nanos, words: &[u64], line: impl FnOnce() -> String) {
        self.hash.word(now);
        words.iter().for_each(|word| self.hash.word(*word));
        self.count += 1;
        if self.prints {
            println!("{:>12} ** {}", now / US, line());
        }
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash.get()
    }
}
