//! `sim check-history` as a user meets it: what it prints and its exit status.

use std::io::Write;
use std::process::Command;

/// Exit status, standard output, standard error.
fn sim(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sim")).args(arguments).output().expect("sim runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn check(content: &[u8], more: &[&str]) -> (Option<i32>, String) {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(content).expect("it can be written");
    let path = file.path().to_str().expect("UTF-8");
    let (status, out, err) = sim(&[&["check-history", path], more].concat());
    (status, (out + &err).replace(path, "FILE"))
}

const WRITE: &str =
    "{:process 0 :type :invoke :f :write :value 3}\n{:process 0 :type :ok :f :write :value 3}\n";

fn read(value: &str) -> String {
    format!(
        "{WRITE}{{:process 1 :type :invoke :f :read :value nil}}\n{{:process 1 :type :ok :f :read :value {value}}}\n"
    )
}

#[test]
fn the_exit_status_tells_the_verdict() {
    let (status, text) = check(read("3").as_bytes(), &[]);
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(text, "operations: 2, keys: 1, unknown outcomes: 0\nlinearizable\n");
    let (status, text) = check(read("4").as_bytes(), &["--seconds", "5"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("\nNOT linearizable: the register: no order of its operations explains line 4\n"));
    let map = "{\"process\": 0, \"type\": \"invoke\", \"f\": \"put\", \"key\": \"x\", \"value\": \"a\"}\n";
    let (status, text) = check(map.as_bytes(), &["--model", "map"]);
    assert_eq!((status, text.lines().last()), (Some(0), Some("linearizable")), "{text}");
}

#[test]
fn bad_input_names_the_file_and_the_line() {
    let (status, text) = check(format!("{WRITE}{{:process 1}}\n").as_bytes(), &[]);
    assert_eq!((status, text.as_str()), (Some(2), "FILE:3: expected :type in this operation\n"));
    let (status, text) = check(b"{:process 0\n\xff}", &[]);
    assert_eq!((status, text.as_str()), (Some(2), "FILE:2: expected UTF-8\n"));
    let (status, _, error) = sim(&["check-history", "no such file"]);
    assert_eq!(status, Some(2));
    assert!(error.starts_with("no such file: "), "{error}");
}

#[test]
fn its_help_teaches_by_a_true_example() {
    let (status, help, _) = sim(&["check-history", "--help"]);
    assert_eq!(status, Some(0));
    let example: String = help
        .lines()
        .skip_while(|line| !line.contains("cat history.edn"))
        .skip(1)
        .take_while(|line| !line.contains('$'))
        .map(|line| format!("{line}\n"))
        .collect();
    let promised = help.lines().find(|line| line.trim().starts_with("NOT linearizable")).expect("a verdict");
    let (status, text) = check(example.as_bytes(), &[]);
    assert_eq!(status, Some(1), "{example}{text}");
    assert!(text.contains(&format!("\n{}\n", promised.trim())), "{text}");
}

#[test]
fn the_flags_of_the_simulator_work_without_it() {
    let (status, text, error) = sim(&["--seed", "1", "--ops", "20"]);
    assert_eq!(status, Some(0), "{text}{error}");
    assert!(text.starts_with("commit ") && text.contains("seed 1 hash "), "{text}");
}
