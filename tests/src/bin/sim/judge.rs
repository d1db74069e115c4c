//! The linearizability checker by itself: on histories from outside, and on random ones to check it.

use floe_checker::history::{History, Judgement, Model};
use floe_checker::linearizability::{Verdict, check_keys_while};
use floe_checker::random::Random;
use floe_checker::random_history::{Shape, Spoilt, draw, spoil};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Shown below the options of `check-history`.
pub const CHECK_HISTORY_HELP: &str = r#"Example, a register whose second reader finds an older value than the first:

  $ cat history.edn
  {:process 0 :type :invoke :f :write :value 3}
  {:process 1 :type :invoke :f :read :value nil}
  {:process 1 :type :ok :f :read :value 3}
  {:process 1 :type :invoke :f :read :value nil}
  {:process 1 :type :ok :f :read :value nil}
  $ sim check-history history.edn
  NOT linearizable: the register: no order of its operations explains line 5
  ...

The same as JSON:   {"process": 0, "type": "invoke", "f": "write", "value": 3}
A conditional write: {:process 0 :type :invoke :f :cas :value [3 4]}, which expects 3 and sets 4
With --model map:   {:process 0 :type :invoke :f :append :key "x" :value "a"}, also :put and :get,
                    or :value ["x" "a"] without :key

:ok happened, :fail surely did not. :info, or no completion: unknown, it may happen later or never.

Exit status: 0 linearizable, 1 not linearizable, 2 unknown within the time, or bad input."#;

/// What a store claims to be.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Claim {
    /// A register, or one for each `:key`: `:read`, `:write 3`, `:cas [3 4]`; nil at first.
    Register,
    /// A map of texts: `:get`, `:put`, `:append`, with `:key` and `:value` or with `:value ["key" "value"]`.
    Map,
}

impl From<Claim> for Model {
    fn from(claim: Claim) -> Self {
        match claim {
            Claim::Register => Self::Register,
            Claim::Map => Self::Map,
        }
    }
}

/// Judges a history from outside; see [`CHECK_HISTORY_HELP`].
pub fn check_history(file: &Path, claim: Claim, seconds: u64) -> ExitCode {
    const NO_VERDICT: u8 = 2;
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{}: {error}", file.display());
            return ExitCode::from(NO_VERDICT);
        }
    };
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            eprintln!("{}:{line}: expected UTF-8", file.display());
            return ExitCode::from(NO_VERDICT);
        }
    };
    let history = match History::read(text, claim.into()) {
        Ok(history) => history,
        Err(bad) => {
            eprintln!("{}:{}: {}", file.display(), bad.line, bad.expected);
            return ExitCode::from(NO_VERDICT);
        }
    };
    println!("{}", history.summary());
    match history.judge(std::time::Duration::from_secs(seconds)) {
        Judgement::Linearizable => {
            println!("linearizable");
            ExitCode::SUCCESS
        }
        Judgement::NotLinearizable(why) => {
            println!("NOT linearizable: {why}");
            ExitCode::FAILURE
        }
        Judgement::Unknown(why) => {
            println!("unknown: {why}");
            ExitCode::from(NO_VERDICT)
        }
    }
}

/// What came of random histories.
#[derive(Default)]
struct Tally {
    right: u64,
    wrong: u64,
    unknown: u64,
    operations: u64,
    slowest: (Duration, u64),
    spoilt: BTreeMap<Spoilt, u64>,
}

/// Judges the random histories of these seeds, of up to 10,000 operations and 50 clients, every second one spoilt. Fails if a
/// verdict is wrong, or unknown after so many seconds.
pub fn check_random(seeds: Range<u64>, seconds: u64, jobs: usize) -> ExitCode {
    let count = seeds.end - seeds.start;
    let (started, tally, seeds) = (Instant::now(), Mutex::new(Tally::default()), Mutex::new(seeds));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                let next = || seeds.lock().ok()?.next();
                while let Some(seed) = next() {
                    judge_random(seed, Duration::from_secs(seconds), &tally);
                }
            });
        }
    });
    let Tally { right, wrong, unknown, operations, slowest, spoilt } =
        tally.into_inner().expect("no thread of the scope panicked");
    println!("{count} random histories, {operations} operations; spoilt ones: {spoilt:?}");
    println!("judged right: {right}, wrong: {wrong}, unknown after {seconds} s: {unknown}");
    let (slowest, seed) = slowest;
    println!(
        "{:.1} s, {:.1} CPU s; the slowest, {seed}, took {:.2} s",
        started.elapsed().as_secs_f64(),
        crate::batch::cpu_seconds(),
        slowest.as_secs_f64()
    );
    if right == count { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn judge_random(seed: u64, limit: Duration, tally: &Mutex<Tally>) {
    const STEPS_BETWEEN_LOOKS: u64 = 20_000;
    let mut random = Random::new(seed);
    let shape = Shape::draw(&mut random, 10_000, 50);
    let mut keys = draw(&mut random, shape);
    let spoilt = if seed % 2 == 1 { spoil(&mut random, &mut keys) } else { None };
    let started = Instant::now();
    let verdict = check_keys_while(&keys, STEPS_BETWEEN_LOOKS, &mut |_| started.elapsed() < limit);
    let took = started.elapsed();
    let mut tally = tally.lock().expect("no other thread panicked");
    match (&verdict, spoilt) {
        (Verdict::Linearizable, None) | (Verdict::NotLinearizable { .. }, Some(_)) => tally.right += 1,
        (Verdict::Unknown, _) => {
            tally.unknown += 1;
            println!("{seed}: unknown; spoilt: {spoilt:?}, {shape:?}");
        }
        _ => {
            tally.wrong += 1;
            println!("{seed}: WRONG, {verdict:?}; spoilt: {spoilt:?}, {shape:?}");
        }
    }
    tally.operations += shape.operations;
    tally.slowest = tally.slowest.max((took, seed));
    if let Some(way) = spoilt {
        *tally.spoilt.entry(way).or_default() += 1;
    }
}
