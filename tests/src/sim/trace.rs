//! The trace of a run: a hash over everything that was delivered to cores and that they wanted done, and
//! readable lines if asked for. Equal seeds give equal hashes; a difference is a loss of determinism.

use crate::hash::{Hash64, hash_bytes};
use crate::sim::clock::US;
use crate::sim::disk::op_number;
use floe::seam::Input;
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

    /// Notes what came in at a core.
    pub(crate) fn input(&mut self, now: Nanos, me: CoreAddr, input: &Input) {
        let words: [u64; 3] = match input {
            Input::Request { id, .. } => [10, id.0, 0],
            Input::PeerUp { peer, cores } => [11, peer.node.0, u64::from(*cores)],
            Input::PeerDown { peer } => [12, peer.node.0, u64::from(peer.core)],
            Input::Frame { from, body } => [13, from.node.0, hash_bytes(body)],
            Input::Disk { op, result } => [14, op_number(*op), u64::from(result.is_ok())],
            Input::Core { from, .. } => [15, u64::from(*from), 0],
            Input::Shutdown => [16, 0, 0],
        };
        self.core(now, me, &words, || match input {
            Input::Frame { from, body } => match floe::codec::decode(body.clone()) {
                Ok(batch) => format!("<- {from} {batch:?}"),
                Err(error) => format!("<- {from} {error}"),
            },
            Input::Disk { op, result: Ok(_) } => format!("<- {op:?} done"),
            other => format!("<- {other:?}"),
        });
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
