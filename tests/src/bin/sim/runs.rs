//! Runs plans on threads, and makes a failure of the plan that panics.

use floe_tests::sim::plan::Plan;
use floe_tests::sim::run::{Report, run};
use std::cell::Cell;
use std::panic;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// A run that ended.
pub struct Finished {
    /// Which of the plans, from 0.
    pub number: usize,
    pub seed: u64,
    /// A report, or what it panicked with.
    pub report: Result<Report, String>,
    /// The thread that ran it goes on to the next plan.
    lives: bool,
}

impl Finished {
    /// The name of the check that failed, and the whole story.
    pub fn failure(&self) -> Option<(String, String)> {
        match &self.report {
            Ok(report) => report.failure.clone(),
            Err(panic) => Some(("panic".into(), panic.clone())),
        }
    }
}

thread_local! {
    /// What runs on this thread, by number and seed, and where to say so if it panics.
    static RUNNING: Cell<Option<(usize, u64, Sender<Finished>)>> = const { Cell::new(None) };
}

/// Reports a panic as the failure of the plan that runs. Where panics abort, the thread is parked for
/// ever instead: whoever hands out plans starts another.
pub fn report_panics() {
    panic::set_hook(Box::new(|info| {
        let Some((number, seed, sender)) = RUNNING.take() else {
            return eprintln!("{info}");
        };
        let trace = std::backtrace::Backtrace::force_capture().to_string();
        let is_ours = |line: &&str| {
            ["raft/src", "shard/src", "engine/src", "tests/src"].iter().any(|dir| line.contains(dir))
        };
        let ours = trace.lines().filter(is_ours).take(12).collect::<Vec<_>>().join("\n");
        let lives = cfg!(panic = "unwind");
        // The receiver is gone only when the process ends anyway.
        let _ = sender.send(Finished { number, seed, report: Err(format!("{info}\n{ours}")), lives });
        if !lives {
            loop {
                std::thread::park();
            }
        }
    }));
}

/// Runs plans on so many threads; each result comes as it is ready. Dropping the receiver ends it.
pub fn run_all(jobs: usize, plans: Vec<Plan>) -> Receiver<Finished> {
    let (results, receiver) = channel();
    let queue = Arc::new(Mutex::new(plans.into_iter().enumerate()));
    let (back, finished) = channel();
    let spawn = move || {
        let (back, queue) = (back.clone(), queue.clone());
        std::thread::spawn(move || {
            let next = || queue.lock().ok()?.next();
            while next().is_some_and(|(number, plan)| run_one(number, plan, &back)) {}
        });
    };
    (0..jobs.max(1)).for_each(|_| spawn());
    std::thread::spawn(move || {
        // `spawn` holds a sender: the loop ends when the receiver of the results is gone.
        for done in finished {
            if !done.lives {
                spawn();
            }
            if results.send(done).is_err() {
                break;
            }
        }
    });
    receiver
}

/// Runs one plan and sends what came of it. Answers whether anybody wants to know more.
fn run_one(number: usize, plan: Plan, back: &Sender<Finished>) -> bool {
    let seed = plan.seed;
    RUNNING.set(Some((number, seed, back.clone())));
    let outcome = panic::catch_unwind(|| run(plan));
    RUNNING.set(None);
    // A panic has been reported by the hook.
    outcome
        .map_or(true, |report| back.send(Finished { number, seed, report: Ok(report), lives: true }).is_ok())
}
