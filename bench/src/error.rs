//! Why a measurement couldn't be made.

use std::path::PathBuf;

/// Why a measurement couldn't be made. Errors of single operations are counted, not raised.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum BenchError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("no {count} free ports on the loopback interface: {source}")]
    Ports { count: usize, source: std::io::Error },
    #[error("the loopback round trip couldn't be measured: {0}")]
    Loopback(std::io::Error),
    #[error("node {node} doesn't start: {source}")]
    Open { node: u64, source: floe::OpenError },
    #[error(
        "after {seconds} s, {missing} of {shards} shards have no leader; see the log with RUST_LOG=floe=debug"
    )]
    NoLeaders { seconds: u64, missing: usize, shards: usize },
    #[error("--keys {keys} is less than --concurrency {concurrency}: every caller writes keys of its own")]
    TooFewKeys { keys: u32, concurrency: u32 },
    #[error("--soak={every} takes fewer than {least} samples in --seconds {seconds}: too few to show growth")]
    TooFewSamples { every: f64, seconds: f64, least: usize },
    #[error("the table library failed: {0}")]
    Tables(#[from] lsm_tree::Error),
    #[error("there is no command floe at {path}: cargo build --release -p floe, or --floe PATH")]
    NoCommand { path: PathBuf },
    #[error("{said}")]
    Command { said: String },
    #[error("node {node} has ended: {said}")]
    Node { node: usize, said: String },
    #[error(
        "the import was over after {kills} kills, of {nodes} nodes: more --rows, or a shorter --kill-every"
    )]
    TooFewKills { kills: usize, nodes: usize },
    #[error("the reopened cluster has other shards than before")]
    ShardsChanged,
    #[error("{missing} of {keys} keys couldn't be written before the reading phase: {reason}")]
    Load { missing: u64, keys: u64, reason: String },
}

impl BenchError {
    /// For `map_err` on calls to the file system.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { path: path.into(), source }
    }
}
