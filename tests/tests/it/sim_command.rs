//! The simulator's command as a user and a CI job meet it: summary, hashes, replay, shrinking.

use std::process::Command;

/// Exit status and standard output.
fn sim(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(arguments).output().expect("sim runs");
    (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn the_summary_says_what_a_program_needs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("summary.json");
    let (status, text) = sim(&["--seeds", "3..5", "--ops", "40", "--json", path.to_str().expect("UTF-8")]);
    assert_eq!(status, Some(0), "{text}");
    let summary = std::fs::read_to_string(&path).expect("it was written");
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!((&summary["seeds"], &summary["passed"]), (&2.into(), &2.into()), "{summary}");
    assert_eq!(summary["failed"], serde_json::json!([]));
    let simulated = summary["simulated_seconds"].as_f64().expect("a number");
    let cpu = summary["cpu_seconds"].as_f64().expect("a number");
    assert!(simulated > 0.1 && cpu > 0.0 && cpu < 100.0, "{summary}");
    let faults = summary["faults"].as_object().expect("by kind");
    let struck: u64 = faults.values().filter_map(serde_json::Value::as_u64).sum();
    assert!(struck >= 40 && faults.keys().all(|kind| !kind.contains('/')), "{faults:?}");
}

#[test]
fn every_process_has_the_same_hash_for_a_seed() {
    let hashes = || sim(&["--seeds", "7..9", "--ops", "40", "--hashes"]);
    let (status, text) = hashes();
    assert_eq!(status, Some(0), "{text}");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert!(
        matches!(lines[..], [a, b] if a.starts_with("7 ") && b.starts_with("8 ") && a[2..] != b[2..]),
        "{text}"
    );
    let (status, text) = sim(&["--seeds", "7..9", "--ops", "40", "--twice"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("2 of 2 seeds had the same hash in two processes"), "{text}");
}

#[test]
fn only_the_chosen_faults_strike() {
    let report = |faults: &str| {
        let (status, text) = sim(&["--seed", "11", "--ops", "60", "--only-faults", faults]);
        assert_eq!(status, Some(0), "{text}");
        let json = &text[text.find('{').expect("a report")..=text.rfind('}').expect("its end")];
        let report: serde_json::Value = serde_json::from_str(json).expect("JSON");
        report["faults"]
            .as_object()
            .expect("by kind")
            .values()
            .filter_map(|hits| hits["strikes"].as_u64())
            .sum::<u64>()
    };
    assert_eq!((report("none"), report("0,1")), (0, 2));
}

#[test]
fn what_passes_is_not_minimised() {
    let (status, text) = sim(&["--minimise", "1", "--ops", "20"]);
    assert_eq!(status, Some(1));
    assert!(text.contains("seed 1 passes"), "{text}");
}

#[test]
fn random_histories_are_judged_right() {
    let (status, text) = sim(&["check-random", "--histories", "10"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("judged right: 10, wrong: 0, unknown after 60 s: 0"), "{text}");
}

/// The first seed that finds the bug, shrunk, fails in the same way as the whole run, when replayed as told.
#[cfg(feature = "planted")]
#[test]
fn a_planted_bug_is_shrunk_and_replayed() {
    let bug = ["--bug", "VoteGivenTwice"];
    let failing = (0..200)
        .map(|seed: u32| seed.to_string())
        .find(|seed| sim(&[&["--seed", seed], &bug[..]].concat()).0 == Some(1));
    let seed = failing.expect("the bug is found");
    let (status, text) = sim(&[&["--minimise", &seed, "--minimise-runs", "100"], &bug[..]].concat());
    assert_eq!(status, Some(0), "{text}");
    let count = |line: &str| line.trim().split(' ').next().and_then(|count| count.parse::<u64>().ok());
    let after = |word: &str| text.lines().skip_while(|line| *line != word).nth(1).and_then(count);
    assert!(after("to").expect("a count") < after("from").expect("a count"), "{text}");
    let replay = text.lines().find_map(|line| line.strip_prefix("replay: ")).expect("how to replay");
    let flags: Vec<&str> =
        replay.split(" -- ").nth(1).expect("flags").split(' ').filter(|flag| *flag != "--trace").collect();
    let (status, again) = sim(&flags);
    assert_eq!(status, Some(1), "{again}");
    let property = text.lines().last().and_then(|line| line.split(':').next()).expect("what fails");
    assert!(again.contains(&format!("FAILED: {property}:")), "{property}: {again}");
}
