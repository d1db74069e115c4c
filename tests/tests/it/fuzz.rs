//! Every reader of foreign bytes, with examples that are damaged at random: what libFuzzer does better, on any
//! toolchain and for a few seconds. The same functions as in `fuzz/`.

use floe_tests::fuzz::{TARGETS, Target};
use floe_tests::random::Random;
use std::panic::{AssertUnwindSafe, catch_unwind};

const ROUNDS: u64 = 4_000;

fn some_bytes(random: &mut Random) -> Vec<u8> {
    const TOKENS: [&[u8]; 12] = [
        b"[",
        b"{",
        b"#_",
        b"\\",
        b"\"",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x7f",
        b"99999999999",
        b"=",
        b"\n",
        b"\t",
    ];
    match random.below(3) {
        0 => vec![random.next_u64() as u8],
        1 => TOKENS[random.below(12) as usize].to_vec(),
        _ => TOKENS[random.below(12) as usize].repeat(1 + random.below(600) as usize),
    }
}

/// Flips, overwrites, inserts, removes or doubles something.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(bytes.len() as u64 + 1) as usize;
    let end = (at + 1 + random.below(16) as usize).min(bytes.len());
    match random.below(5) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 => drop(bytes.splice(at..end, some_bytes(random))),
        2 => drop(bytes.splice(at..at, some_bytes(random))),
        3 => drop(bytes.drain(at..end)),
        _ => {
            let part = bytes[at..end].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

#[test]
fn no_bytes_make_a_reader_panic_or_forget_what_it_has_read() {
    let seed = std::env::var("FLOE_SEED").map_or(1, |seed| seed.parse().unwrap());
    let failures: Vec<_> = TARGETS.iter().filter_map(|target| try_out(target, seed)).collect();
    assert!(failures.is_empty(), "seed {seed}: {failures:#?}");
}

/// What the target can't take, if anything.
fn try_out(target: &Target, seed: u64) -> Option<String> {
    let examples = (target.examples)();
    let mut random = Random::new(seed);
    for round in 0..ROUNDS {
        let mut bytes = examples[(round % examples.len() as u64) as usize].clone();
        // First the examples as they are.
        if round >= examples.len() as u64 {
            (0..=random.below(4)).for_each(|_| damage(&mut bytes, &mut random));
        }
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes))).is_err() {
            return Some(format!("{}: \"{}\"", target.name, bytes.escape_ascii()));
        }
    }
    None
}
