//! What can be counted about the source code (STYLE): lengths of functions and files, where glommio and
//! `unsafe` may be, and what must not be there.

use std::fs;
use std::path::{Path, PathBuf};

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;

/// One source file: its path below the workspace, and its lines without tests.
struct Source {
    path: String,
    /// Lines of production code, with their numbers from 1.
    lines: Vec<(usize, String)>,
    is_test: bool,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate is a member of a workspace")
        .to_path_buf()
}

fn sources() -> Vec<Source> {
    let root = workspace();
    let mut sources = Vec::new();
    for member in ["raft", "shard", "engine", "bench", "tests"] {
        collect(&root, &root.join(member), &mut sources);
    }
    assert!(sources.len() > 30, "only {} files found below {}", sources.len(), root.display());
    sources
}

fn collect(root: &Path, dir: &Path, into: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && !path.ends_with("target") {
            collect(root, &path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("source code is UTF-8");
            let path = path.strip_prefix(root).expect("found below it").to_string_lossy().into_owned();
            let in_test_dir =
                path.split('/').any(|part| part == "tests.rs" || part == "tests" || part == "benches");
            let is_test =
                in_test_dir && !path.starts_with("tests/src/") && !path.starts_with("tests/checker/src/");
            let all = text.lines().map(str::to_owned).enumerate().map(|(at, line)| (at + 1, line));
            // Unit tests are the last item of a file.
            let lines =
                all.take_while(|(_, line)| is_test || line != "#[cfg(test)]" || is_followed(&text)).collect();
            into.push(Source { path, lines, is_test });
        }
    }
}

/// Whether `#[cfg(test)]` marks a module in another file, so that production code may follow it.
fn is_followed(text: &str) -> bool {
    text.contains("#[cfg(test)]\nmod tests;")
}

#[test]
fn files_are_short() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| !source.is_test && source.lines.len() > FILE_LINES_MAX)
        .map(|source| format!("{}: {} lines", source.path, source.lines.len()))
        .collect();
    assert!(long.is_empty(), "at most {FILE_LINES_MAX} lines without tests: {long:#?}");
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for source in sources() {
        // rustfmt closes a function with a brace at the column of its `fn`.
        let mut open: Option<(usize, String, usize)> = None;
        for (number, line) in &source.lines {
            let trimmed = line.trim_start();
            let indent = line.len() - trimmed.len();
            let begins = [
                "fn ",
                "pub fn ",
                "pub(crate) fn ",
                "pub(super) fn ",
                "const fn ",
                "pub const fn ",
                "async fn ",
                "pub async fn ",
                "unsafe fn ",
            ];
            match &open {
                Some((at, name, column)) if indent == *column && trimmed.starts_with('}') => {
                    let lines = number - at + 1;
                    if lines > FUNCTION_LINES_MAX {
                        long.push(format!("{}:{at}: {name} has {lines} lines", source.path));
                    }
                    open = None;
                }
                None if begins.iter().any(|begin| trimmed.starts_with(begin))
                    && !line.ends_with('}')
                    && !line.ends_with(';') =>
                {
                    open = Some((*number, trimmed.split('(').next().unwrap_or(trimmed).to_owned(), indent));
                }
                _ => {}
            }
        }
    }
    assert!(long.is_empty(), "at most {FUNCTION_LINES_MAX} lines: {long:#?}");
}

/// Lines of production code that `is_bad` says something about.
fn offenders(is_bad: impl Fn(&Source, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources() {
        for (number, line) in &source.lines {
            let code = line.split("//").next().unwrap_or(line);
            if is_bad(&source, code) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    found
}

#[test]
fn glommio_stays_in_its_driver() {
    let found = offenders(|source, code| {
        let names_it = code.contains("glommio::") || code.contains("use glommio");
        names_it
            && !source.path.starts_with("engine/src/driver")
            && !source.path.starts_with("tests/tests/it/tidy")
    });
    assert!(found.is_empty(), "glommio is imported outside of engine/src/driver: {found:#?}");
}

#[test]
fn unsafe_says_why_it_is_safe() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !source.path.ends_with("tidy.rs")) {
        for (at, (number, line)) in source.lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            let before = &source.lines[at.saturating_sub(6)..at];
            if !before.iter().any(|(_, line)| line.contains("SAFETY:")) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "a SAFETY: comment is missing: {found:#?}");
}

#[test]
fn nothing_is_left_to_do_without_a_reason() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !source.path.ends_with("tidy.rs")) {
        for (number, line) in &source.lines {
            let marks = ["TODO", "FIXME", "XXX"].iter().find_map(|mark| line.split_once(mark));
            // "TODO(#12): why" names an issue.
            if marks.is_some_and(|(_, rest)| !rest.starts_with("(#")) {
                found.push(format!("{}:{number}: {}", source.path, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "no TODO without an issue: {found:#?}");
}

#[test]
fn raft_and_shard_are_deterministic() {
    let words = ["HashMap", "HashSet", "Instant", "SystemTime", "thread::spawn", "rand::"];
    let found = offenders(|source, code| {
        let is_pure = source.path.starts_with("raft/src/") || source.path.starts_with("shard/src/");
        is_pure && words.iter().any(|word| code.contains(word))
    });
    assert!(found.is_empty(), "raft and shard know no clock, thread or unordered map: {found:#?}");
}

#[test]
fn planted_bugs_are_never_a_default() {
    for member in ["raft", "shard", "engine", "tests"] {
        let manifest =
            fs::read_to_string(workspace().join(member).join("Cargo.toml")).expect("a member has a manifest");
        let defaults = manifest.lines().find(|line| line.trim_start().starts_with("default"));
        assert!(defaults.is_none_or(|line| !line.contains("planted")), "{member}: {defaults:?}");
    }
}
