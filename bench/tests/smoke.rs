//! The benchmark as a user runs it, short: it must verify what it wrote, and say so in its JSON.

use std::process::Command;

fn run(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_floe-bench"))
        .args(arguments)
        .args(["--dir", env!("CARGO_TARGET_TMPDIR")])
        .output()
        .expect("the benchmark was built for this test");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

#[test]
fn a_short_run_loses_nothing_and_reports_every_phase() {
    for driver in ["ring", "glommio"] {
        short_run(driver);
    }
}

#[allow(
    clippy::unwrap_used,
    reason = "a helper of a test, which clippy.toml excepts only in tests themselves"
)]
fn short_run(driver: &str) {
    let json = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("smoke-{driver}.json"));
    let path = json.to_str().unwrap();
    let (ok, text) = run(&[
        "cluster",
        "--seconds",
        "1",
        "--warmup",
        "0.2",
        "--concurrency",
        "64",
        "--keys",
        "2000",
        "--shards",
        "6",
        "--driver",
        driver,
        "--json",
        path,
    ]);
    assert!(ok, "{text}");
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let phases = report["phases"].as_array().unwrap();
    assert_eq!(phases.len(), 3, "{report}");
    for phase in phases {
        assert_eq!(phase["driver"], driver);
        assert!(phase["ops"].as_u64().unwrap() > 0, "{phase}");
        assert!(phase["verified"].as_u64().unwrap() > 0, "{phase}");
        assert_eq!((phase["lost"].as_u64(), phase["wrong"].as_u64()), (Some(0), Some(0)), "{phase}");
    }
}

#[test]
fn a_soak_samples_memory_and_logs_and_says_whether_they_are_bounded() {
    let json = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("smoke-soak.json");
    let path = json.to_str().unwrap();
    let load = ["--phases", "put", "--concurrency", "16", "--keys", "200", "--shards", "2", "--warmup", "0"];
    let short = [&["cluster", "--seconds", "1", "--soak"][..], &load].concat();
    let (ok, text) = run(&short);
    assert!(!ok && text.contains("--soak=10"), "{text}");
    let (_, text) = run(&[&["cluster", "--seconds", "1", "--soak=0.1", "--json", path][..], &load].concat());
    assert!(text.contains("second half against first"), "{text}");
    let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let soak = &report["phases"][0]["soak"];
    assert!(soak["bounded"].is_boolean(), "{soak}");
    let samples = soak["samples"].as_array().unwrap();
    assert!(samples.len() >= 6, "{soak}");
    for what in ["rss_bytes", "wal_bytes"] {
        assert!(samples.iter().all(|sample| sample[what].as_u64() > Some(0)), "{what}: {soak}");
    }
}

#[test]
fn reads_of_a_flushing_tree_find_every_key_in_both_ways() {
    let (ok, text) = run(&["lsm", "--keys", "2000", "--flush-rows", "200", "--seconds", "0.3"]);
    assert!(ok, "{text}");
    for line in ["flushing: tree's get", "flushing: tables' get", "one ingestion", "the store's apply"] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn an_import_into_processes_comes_out_again_after_all_were_killed() {
    let (ok, text) = run(&["import", "--rows", "3000", "--shards", "6", "--kill-every", "0"]);
    assert!(ok && text.contains("3000 rows right, 0 lost, 0 wrong"), "{text}");
}

#[test]
fn what_cannot_be_measured_is_refused_with_a_reason() {
    let (ok, text) = run(&["cluster", "--nodes", "0"]);
    assert!(!ok);
    assert!(text.contains("nodes"), "{text}");
    let (ok, text) = run(&["import", "--floe", "nowhere/floe"]);
    assert!(!ok && text.contains("cargo build --release -p floe"), "{text}");
}
