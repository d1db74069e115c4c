//! Is a seed one run? Each is run in two processes of their own, and the hashes of the traces compared:
//! addresses, the hash keys of a process and the order of threads differ between two processes.

use crate::Options;
use crate::batch::{cpu_seconds, progress};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::Instant;

/// What two processes said of a seed.
struct Pair {
    seed: u64,
    said: [String; 2],
}

/// Runs every seed twice. Fails if two hashes differ, or if a run fails.
pub fn run_twice(options: &Options, (from, to): (u64, u64)) -> ExitCode {
    let started = Instant::now();
    let seeds = Mutex::new(from..to);
    let (send, pairs) = std::sync::mpsc::channel::<Pair>();
    let (mut differ, mut failed) = (0, 0);
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            let (send, seeds) = (send.clone(), &seeds);
            scope.spawn(move || {
                let next = || seeds.lock().ok()?.next();
                while let Some(seed) = next() {
                    let said = [hash_of(options, seed), hash_of(options, seed)];
                    if send.send(Pair { seed, said }).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for (done, Pair { seed, said: [first, second] }) in (1..).zip(pairs) {
            if first != second {
                differ += 1;
                println!("seed {seed} DIFFERS: {first}, then {second}");
            } else if !is_passed(&first, seed) {
                failed += 1;
                println!("seed {first}");
            }
            if done % 10 == 0 || done == to - from {
                progress(done, to - from, differ + failed, started);
            }
        }
    });
    eprintln!();
    let count = to - from;
    println!(
        "{} of {count} seeds had the same hash in two processes; {failed} of those failed otherwise",
        count - differ as u64
    );
    println!("{:.1} s, {:.1} CPU s", started.elapsed().as_secs_f64(), cpu_seconds());
    if differ + failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether a line of `--hashes` is of a run that passed: the seed and sixteen digits.
fn is_passed(line: &str, seed: u64) -> bool {
    let hash = line.strip_prefix(&format!("{seed} "));
    hash.is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// The line that a process of its own prints for a seed.
fn hash_of(options: &Options, seed: u64) -> String {
    let program = std::env::current_exe();
    let run = |program| {
        let range = format!("{seed}..{}", seed + 1);
        Command::new(program)
            .args(["--hashes", "--jobs", "1", "--seeds", &range])
            .args(options.change.flags())
            .output()
    };
    match program.and_then(run) {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) => format!("{seed} did not run: {error}"),
    }
}
