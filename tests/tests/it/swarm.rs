//! A budget of seeds with everything drawn: fixed ones, so that a change can be compared, and fresh ones.
//! `FLOE_SIM_SEEDS` sets how many of each.

use floe_tests::sim::plan::Plan;
use floe_tests::sim::run::{Report, run};

/// Fewer operations than the `sim` binary's: many short runs find more than few long ones.
fn run_seed(seed: u64) -> Report {
    let mut plan = Plan::draw(seed);
    plan.load.operations = 500;
    run(plan)
}

fn budget() -> u64 {
    std::env::var("FLOE_SIM_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(20)
}

fn all_pass(seeds: impl Iterator<Item = u64>) {
    let failed: Vec<Report> = seeds.map(run_seed).filter(|report| report.failure.is_some()).collect();
    let failures: Vec<_> = failed.iter().map(|report| (report.seed, &report.failure)).collect();
    assert!(
        failures.is_empty(),
        "replay with `cargo run -p floe-tests --bin sim -- --ops 500 --seed N`: {failures:#?}"
    );
}

#[test]
fn same_seed_same_hash() {
    for seed in [1, 2, 3, 50] {
        let (first, second) = (run_seed(seed), run_seed(seed));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.operations, second.operations, "seed {seed}");
    }
    assert_ne!(run_seed(1).hash, run_seed(2).hash);
}

#[test]
fn fixed_seeds_pass() {
    all_pass(1_000..1_000 + budget());
}

#[test]
fn fresh_seeds_pass() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = clock.expect("the clock is past 1970").as_millis() as u64;
    println!("fresh seeds {first}..{}", first + budget());
    all_pass(first..first + budget());
}
