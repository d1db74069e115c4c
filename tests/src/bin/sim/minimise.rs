//! Shrinks a failing run: fewer faults, operations, clients, keys, shards and nodes, as long as the same
//! checker still fails.
//!
//! Greedy, as delta debugging is (Zeller & Hildebrandt 2002): of all ways to make the case a little smaller,
//! big steps first, the first that still fails is taken, until none does. A smaller case is another run from
//! the first difference on, so what fails is the same promise, perhaps broken in another place.

use crate::Options;
use crate::change::{Change, FaultNumbers, kinds};
use crate::runs::{Finished, run_all};
use floe_tests::sim::run::Report;
use std::collections::BTreeSet;
use std::process::ExitCode;

/// What is made smaller. Ordered only to remember what was tried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    faults: Vec<u64>,
    operations: u64,
    clients: u32,
    keys: u32,
    shards: u32,
    nodes: usize,
}

impl Case {
    /// The whole case of a seed: every fault that was drawn before it failed.
    fn whole(change: &Change, seed: u64, report: Option<&Report>) -> Self {
        let plan = change.plan(seed);
        // After a panic nobody knows how many there were: far more than there could be.
        let drawn = report.map_or(1_000, |report| report.faults_drawn);
        let faults = plan.faults_only.clone().unwrap_or_else(|| (0..drawn).collect());
        Self {
            faults: faults.into_iter().filter(|number| *number < drawn).collect(),
            operations: report.map_or(plan.load.operations, |report| report.operations.begun),
            clients: plan.load.clients,
            keys: plan.load.keys,
            shards: plan.shards,
            nodes: plan.cores.len(),
        }
    }

    fn change(&self, base: &Change) -> Change {
        Change {
            ops: Some(self.operations),
            clients: Some(self.clients),
            keys: Some(self.keys),
            shards: Some(self.shards),
            nodes: Some(self.nodes),
            only_faults: Some(FaultNumbers(self.faults.iter().copied().collect())),
            bug: base.bug,
        }
    }

    /// Ways to make it smaller, big steps first.
    fn smaller(&self) -> Vec<Self> {
        let mut cases = Vec::new();
        let with = |change: &dyn Fn(&mut Self)| {
            let mut case = self.clone();
            change(&mut case);
            case
        };
        let mut chunk = self.faults.len();
        while chunk > 0 {
            for from in (0..self.faults.len()).step_by(chunk) {
                let to = (from + chunk).min(self.faults.len());
                cases.push(with(&|case| drop(case.faults.drain(from..to))));
            }
            // Between big chunks and small ones, everything else.
            if chunk == self.faults.len() || chunk == 1 {
                for (part, of) in [(1, 4), (1, 2), (3, 4), (9, 10)] {
                    cases.push(with(&|case| case.operations = (case.operations * part / of).max(1)));
                    cases.push(with(&|case| case.clients = (case.clients * part as u32 / of as u32).max(1)));
                    cases.push(with(&|case| case.keys = (case.keys * part as u32 / of as u32).max(1)));
                }
                cases.push(with(&|case| case.shards = 1));
                cases.push(with(&|case| case.shards = (case.shards - 1).max(1)));
                cases.push(with(&|case| case.nodes = case.nodes.min(3)));
            }
            chunk /= 2;
        }
        if self.faults.is_empty() {
            for (part, of) in [(1, 4), (1, 2), (3, 4), (9, 10)] {
                cases.push(with(&|case| case.operations = (case.operations * part / of).max(1)));
            }
        }
        // A shard without a key has nothing to fail with.
        cases.retain(|case| case != self && case.keys >= case.shards);
        cases
    }
}

/// The smallest failing case that is found in about `runs` runs. `first_failing` runs cases and answers
/// which of them, the first in order, fails; it is given at most `at_once`.
fn minimise(
    whole: Case,
    runs: usize,
    at_once: usize,
    first_failing: &mut dyn FnMut(&[Case]) -> Option<usize>,
) -> Case {
    let (mut smallest, mut tried, mut left) = (whole, BTreeSet::new(), runs);
    'smaller: loop {
        let mut cases = smallest.smaller();
        cases.retain(|case| tried.insert(case.clone()));
        for some in cases.chunks(at_once) {
            if left == 0 {
                return smallest;
            }
            left = left.saturating_sub(some.len());
            if let Some(failing) = first_failing(some) {
                smallest = some[failing].clone();
                continue 'smaller;
            }
        }
        return smallest;
    }
}

/// Runs changed plans of a seed; in order.
fn run_changed(options: &Options, seed: u64, changes: &[Change]) -> Vec<Finished> {
    let plans: Vec<_> = changes.iter().map(|change| change.plan(seed)).collect();
    let mut finished: Vec<_> = run_all(options.jobs, plans).into_iter().take(changes.len()).collect();
    finished.sort_by_key(|finished| finished.number);
    finished
}

/// Shrinks the failing run of a seed and says how to replay it.
pub fn run_minimise(options: &Options, seed: u64) -> ExitCode {
    let base = &options.change;
    let first = run_changed(options, seed, std::slice::from_ref(base)).remove(0);
    let Some((property, detail)) = first.failure() else {
        println!("seed {seed} passes: there is nothing to minimise");
        return ExitCode::FAILURE;
    };
    println!("seed {seed} FAILED: {property}: {detail}");
    let whole = Case::whole(base, seed, first.report.as_ref().ok());
    let mut runs = 0;
    let smallest = minimise(whole.clone(), options.minimise_runs, options.jobs.max(1), &mut |cases| {
        runs += cases.len();
        let changes: Vec<_> = cases.iter().map(|case| case.change(base)).collect();
        eprint!("\r{runs} runs, {} faults, {} operations ", cases[0].faults.len(), cases[0].operations);
        let finished = run_changed(options, seed, &changes);
        finished.iter().position(|finished| finished.failure().is_some_and(|(which, _)| which == property))
    });
    eprintln!();
    report(options, seed, &property, &whole, &smallest)
}

/// Replays the smallest case, so that what is printed is what was seen.
fn report(options: &Options, seed: u64, property: &str, whole: &Case, smallest: &Case) -> ExitCode {
    let change = smallest.change(&options.change);
    let last = run_changed(options, seed, std::slice::from_ref(&change)).remove(0);
    let detail = last.failure().filter(|(which, _)| which == property).map(|(_, detail)| detail);
    println!("\nfrom\n  {}\nto\n  {}", describe(whole), describe(smallest));
    println!("kinds of faults drawn from: {:?}", kinds(&change.plan(seed)));
    if let Ok(report) = &last.report {
        println!("faults that struck: {:?}", report.faults);
    }
    let planted = if change.bug.is_some() { " --features planted" } else { "" };
    let flags = change.flags().join(" ");
    println!("\nreplay: cargo run -p floe-tests{planted} --bin sim -- --seed {seed} {flags} --trace");
    match detail {
        Some(detail) => println!("{property}: {detail}"),
        None => {
            println!("NOT DETERMINISTIC: the smallest case did not fail again with {property}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn describe(case: &Case) -> String {
    let Case { faults, operations, clients, keys, shards, nodes } = case;
    format!(
        "{} faults, {operations} operations of {clients} clients on {keys} keys in {shards} shards of {nodes} nodes",
        faults.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Case {
        Case { faults: (0..200).collect(), operations: 2_000, clients: 30, keys: 40, shards: 6, nodes: 5 }
    }

    fn minimised(runs: usize, fails: &dyn Fn(&Case) -> bool) -> Case {
        minimise(whole(), runs, 2, &mut |cases| cases.iter().position(fails))
    }

    #[test]
    fn what_matters_stays_and_the_rest_goes() {
        let needs = |case: &Case| {
            case.faults.contains(&17)
                && case.faults.contains(&99)
                && case.operations >= 100
                && case.clients >= 2
        };
        let smallest = minimised(5_000, &needs);
        assert!(needs(&smallest), "{smallest:?}");
        assert_eq!(smallest.faults, [17, 99]);
        assert!(smallest.operations < 112, "{smallest:?}");
        assert_eq!((smallest.clients, smallest.keys, smallest.shards, smallest.nodes), (2, 1, 1, 3));
    }

    #[test]
    fn what_fails_by_itself_needs_no_fault() {
        let smallest = minimised(5_000, &|_| true);
        assert_eq!((smallest.faults.len(), smallest.operations), (0, 1));
    }

    #[test]
    fn the_number_of_runs_is_bounded() {
        let mut runs = 0;
        minimise(whole(), 50, 2, &mut |cases| {
            runs += cases.len();
            None
        });
        assert!((50..=51).contains(&runs), "{runs}");
    }
}
