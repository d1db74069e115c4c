//! `floe wal` on a real directory.

use floe::{Config, Engine};
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Output};

fn floe_wal(verb: &str, dir: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floe"));
    command.args(["wal", verb]).arg(dir).args(options).output().expect("the command was just built")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("--json prints JSON")
}

/// Adds 1 to a byte of a file.
fn spoil(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("it is there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("it is that long");
    file.write_all_at(&[byte[0].wrapping_add(1)], offset).expect("it can be written");
}

#[test]
fn verify_tells_a_sound_log_from_a_damaged_one_and_inspect_shows_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let engine = Engine::open(Config::embedded(dir.path())).expect("nothing is wrong");
    for key in 0..20 {
        engine.client().put_blocking(format!("key {key}"), [7; 500]).expect("nothing is wrong");
    }
    let busy = floe_wal("verify", dir.path(), &[]);
    assert_eq!(busy.status.code(), Some(2), "a running node's log can't be judged");
    assert!(String::from_utf8_lossy(&busy.stderr).contains("in use by process"), "{busy:?}");
    engine.shutdown();

    let sound = floe_wal("verify", dir.path(), &["--json"]);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    assert_eq!(json(&sound)["sound"], true);
    let shown = floe_wal("inspect", dir.path(), &[]);
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(text.contains("shard s1: replica r1") && text.contains("Entries records"), "{text}");

    let segment = json(&sound)["streams"][0]["segments"][0]["file"].as_str().expect("a path").to_owned();
    spoil(&dir.path().join(&segment), 8192 + 100);
    let damaged = floe_wal("verify", dir.path(), &["--json"]);
    assert_eq!(damaged.status.code(), Some(1), "{damaged:?}");
    let finding = &json(&damaged)["streams"][0]["findings"][0];
    assert_eq!((finding["file"].as_str(), finding["offset"].as_u64()), (Some(&*segment), Some(8192)));
    assert_eq!(finding["shards"][0], 1, "{finding}");
    let text = floe_wal("verify", dir.path(), &[]);
    assert!(String::from_utf8_lossy(&text.stdout).contains(&format!("DAMAGED: {segment} at offset 8192")));

    fs::remove_file(dir.path().join("node.floe")).expect("it is there");
    let nobodys = floe_wal("verify", dir.path(), &[]);
    assert_eq!(nobodys.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nobodys.stderr).contains("node.floe"), "{nobodys:?}");
}

#[test]
fn help_teaches() {
    let help = floe_wal("verify", Path::new("--help"), &[]);
    let text = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(text.contains("Exit status") && text.contains("--json"), "{text}");
}
