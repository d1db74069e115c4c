//! Runs all callers for one phase, and measures around them.

use crate::caller::{Book, Caller, Job, Pacer, Shift, Site, Window};
use crate::executor::{self, Task, Timers};
use crate::members::{Members, WalCounters};
use crate::tally::Tally;
use crate::usage;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often leaders are looked up and the progress is shown.
const TICK: Duration = Duration::from_millis(50);

/// What a phase is.
pub struct Plan {
    /// What callers do.
    pub job: Job,
    /// How many there are.
    pub callers: usize,
    /// Threads that drive them.
    pub threads: usize,
    /// Time before the measured part.
    pub warmup: Duration,
    /// Length of the measured part, or how long to try.
    pub length: Duration,
    /// Operations per second of an open loop.
    pub rate: Option<f64>,
}

/// What came of a phase.
pub struct Outcome {
    /// What callers counted.
    pub tally: Tally,
    /// Real length of the measured part.
    pub elapsed: Duration,
    /// Processor time in it, of the whole process.
    pub cpu: Duration,
    /// What the logs did in it.
    pub wal: WalCounters,
    /// Resident memory at its end.
    pub rss_bytes: u64,
}

/// A reading of everything that is measured around callers.
struct Gauges {
    at: Instant,
    cpu: Duration,
    wal: WalCounters,
}

impl Gauges {
    fn read(members: &Members) -> Self {
        Self { at: Instant::now(), cpu: usage::cpu_time(), wal: members.wal() }
    }
}

/// Runs a phase. `progress` is told the time since the start and the steps done.
pub fn run(
    plan: &Plan,
    book: &mut Book,
    site: &Site,
    members: &Members,
    progress: &mut dyn FnMut(Duration, u64),
) -> Outcome {
    let mut callers = book.deal(plan.callers, site.payload);
    let start = Instant::now();
    let begin = start + plan.warmup;
    let window = Window { start, begin, end: begin + plan.length };
    let crew = callers.len().div_ceil(plan.threads);
    let steps: Vec<_> = callers.chunks(crew).map(|_| AtomicU64::new(0)).collect();
    let outcome = std::thread::scope(|scope| {
        let threads: Vec<_> = callers
            .chunks_mut(crew)
            .zip(&steps)
            .enumerate()
            .map(|(number, (crew, own))| {
                let pacer = plan.rate.map(|rate| Pacer::new(&window, rate, number, steps.len()));
                scope.spawn(move || work(crew, plan.job, site, own, window, pacer))
            })
            .collect();
        let mut watch = Watch { members, site, steps: &steps, window, progress };
        let (before, after) = watch.until(&|| threads.iter().all(|thread| thread.is_finished()));
        let mut tally = Tally::default();
        for thread in threads {
            tally.add(&thread.join().expect("a caller doesn't panic"));
        }
        let (elapsed, cpu) = (after.at - before.at, after.cpu - before.cpu);
        Outcome { tally, elapsed, cpu, wal: after.wal.since(&before.wal), rss_bytes: usage::rss_bytes() }
    });
    book.collect(callers);
    outcome
}

/// The main thread during a phase.
struct Watch<'a> {
    members: &'a Members,
    site: &'a Site,
    steps: &'a [AtomicU64],
    window: Window,
    progress: &'a mut dyn FnMut(Duration, u64),
}

impl Watch<'_> {
    /// Returns the readings at the window's begin and end, or at the end of the work if that is earlier.
    fn until(&mut self, is_finished: &dyn Fn() -> bool) -> (Gauges, Gauges) {
        let before = self.wait(self.window.begin, is_finished);
        let after = self.wait(self.window.end, is_finished);
        while !is_finished() {
            self.tick(Instant::now() + TICK);
        }
        (before, after)
    }

    fn wait(&mut self, until: Instant, is_finished: &dyn Fn() -> bool) -> Gauges {
        while Instant::now() < until && !is_finished() {
            self.tick(until);
        }
        Gauges::read(self.members)
    }

    fn tick(&mut self, until: Instant) {
        std::thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
        self.members.refresh(self.site);
        let steps = self.steps.iter().map(|own| own.load(Ordering::Relaxed)).sum();
        (self.progress)(self.window.start.elapsed(), steps);
    }
}

/// One client thread's phase.
fn work(
    crew: &mut [Caller],
    job: Job,
    site: &Site,
    steps: &AtomicU64,
    window: Window,
    pacer: Option<Pacer>,
) -> Tally {
    usage::precise_timers();
    let timers = Timers::default();
    let tally = RefCell::new(Tally::default());
    let shift = Shift { site, timers: &timers, tally: &tally, steps, window, pacer };
    let tasks = crew.iter_mut().map(|caller| -> Task<'_> { Box::pin(caller.run(job, &shift)) });
    executor::run(tasks, &timers);
    count_unserved(&shift);
    tally.into_inner()
}

/// Operations that nobody was free for: their latency is at least their age at the end.
fn count_unserved(shift: &Shift<'_>) {
    let Some(pacer) = &shift.pacer else { return };
    let mut tally = shift.tally.borrow_mut();
    while let Some(due) = pacer.take() {
        if due >= shift.window.begin {
            tally.unserved(shift.window.end - due);
        }
    }
}
