//! The checkers: what must hold of every run. They live outside of production code and know nothing of
//! how it works, only what it promises. Whether what clients saw is linearizable is judged by `floe-checker`.

pub mod durability;
pub mod raft_safety;
pub mod ranges;
pub mod recovery;
pub mod snapshots;
pub mod votes;

use std::fmt;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise: a short name, the same for every way to break it.
    pub property: &'static str,
    /// What was seen.
    pub detail: String,
}

impl Violation {
    /// A violation of `property`.
    pub fn new(property: &'static str, detail: impl Into<String>) -> Self {
        Self { property, detail: detail.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.detail)
    }
}
