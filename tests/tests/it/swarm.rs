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

/// Seeds that found a bug, and what it was. A change of what seeds draw turns them into mere seeds: a bug that
/// matters has a test of its own beside the code as well.
const REGRESSIONS: [(u64, &str); 8] = [
    (1033, "a flush that ended while an install was pending took its bytes off an emptied counter"),
    (1052, "the same, by another way"),
    (1158, "the same, after a power cut"),
    (1234, "a flush begun beside a staged transfer got the higher generation"),
    (2250, "a request sent by an outdated core count was refused instead of tried elsewhere"),
    (2284, "the same"),
    (5256, "the removal of a stray dump overtook the save of a new one with its name"),
    (2010, "no fresh write after healing: a core that had failed did not shut down"),
];

#[test]
fn seeds_that_found_a_bug_pass() {
    for (seed, bug) in REGRESSIONS {
        let report = run(Plan::draw(seed));
        assert!(report.failure.is_none(), "seed {seed} ({bug}): {:?}", report.failure);
    }
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
