//! Plants each known bug until a checker of safety finds it. That a run doesn't get anywhere says little: it could be
//! anything, and the next change of what seeds mean makes it go away.

use crate::Options;
use crate::change::Change;
use crate::runs::run_all;
use floe_tests::sim::plan::Bug;
use std::process::ExitCode;
use std::time::Instant;

/// What fails when a run gets nowhere, or when the checker doesn't: none of the planted bugs is of that kind.
const WEAK: [&str; 4] = ["load", "liveness", "convergence", "linearizability unknown"];

/// Prints a table: bug, seeds needed, who found it. Fails if one isn't found.
pub fn run_planted(options: &Options) -> ExitCode {
    if !cfg!(feature = "planted") {
        eprintln!("build with `--features planted` to plant bugs");
        return ExitCode::FAILURE;
    }
    println!("{:<24} {:>8} {:>10}  found by", "planted bug", "seeds", "seconds");
    let mut missed = 0;
    for bug in Bug::ALL {
        let started = Instant::now();
        let change = Change { bug: Some(bug), ..options.change.clone() };
        let plans = (0..options.planted_seeds).map(|seed| change.plan(seed)).collect();
        let mut all = (1..=options.planted_seeds).zip(run_all(options.jobs, plans));
        let found = all.find_map(|(runs, finished)| {
            let (property, _) = finished.failure().filter(|(property, _)| !WEAK.contains(&&**property))?;
            // A seed that fails anyway says nothing of the bug.
            passes_without(&options.change, finished.seed).then_some((runs, finished.seed, property))
        });
        let seconds = started.elapsed().as_secs_f64();
        let name = format!("{bug:?}");
        match found {
            Some((runs, seed, property)) => {
                println!("{name:<24} {runs:>8} {seconds:>10.1}  {property} (seed {seed})")
            }
            None => {
                missed += 1;
                println!("{name:<24} {:>8} {seconds:>10.1}  NOT FOUND", options.planted_seeds);
            }
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes_without(change: &Change, seed: u64) -> bool {
    let plan = Change { bug: None, ..change.clone() }.plan(seed);
    run_all(1, vec![plan]).recv().is_ok_and(|finished| finished.failure().is_none())
}
