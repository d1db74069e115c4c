//! The deterministic simulator of whole Floe clusters, and the checkers that judge its runs.
//!
//! - [`sim`] runs real workers on a simulated disk, network and clock; one seed is one run.
//! - [`checker`] holds what must be true of every run, apart from production code; the crate `floe-checker` judges
//!   whether histories are linearizable.
//! - [`fuzz`] has what is fuzzed, for libFuzzer and for a test.
//!
//! `cargo run --release -p floe-tests --bin sim -- --seed 7` runs one seed; see `--help`.

pub mod checker;
pub mod fuzz;
pub mod hash;
pub mod ports;
pub mod proxy;
pub mod sim;

pub use floe_checker::random;
