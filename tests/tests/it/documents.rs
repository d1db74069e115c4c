//! What is written for readers: links lead somewhere, and examples run and are shown as they are.

use crate::processes::{floe, temp_dir};
use std::path::{Path, PathBuf};
use std::process::Command;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// All pages: of the guide, and beside it.
fn pages() -> Vec<PathBuf> {
    let root = workspace();
    let mut pages: Vec<_> = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "bench/results/README.md"]
        .map(|page| root.join(page))
        .into();
    let guide = std::fs::read_dir(root.join("docs/src")).unwrap();
    pages.extend(guide.map(|entry| entry.unwrap().path()).filter(|path| path.extension().unwrap() == "md"));
    assert!(pages.len() > 8, "{pages:?}");
    pages
}

/// Targets of `[text](target)` outside of code.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        in_code ^= line.trim_start().starts_with("```");
        if in_code {
            continue;
        }
        // Every second piece between backticks is code.
        for piece in line.split('`').step_by(2) {
            let targets = piece.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| target.to_owned()));
        }
    }
    links
}

/// A heading's anchor, as the usual renderers make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().chars();
    let kept = kept.filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// What a page of the guide has between backticks in the first columns of its tables.
pub fn named_in_table(page: &str) -> impl Iterator<Item = String> {
    let text = std::fs::read_to_string(workspace().join("docs/src").join(page)).unwrap();
    let cells = text.lines().filter_map(|line| Some(line.strip_prefix("| ")?.split_once(" |")?.0.to_owned()));
    let names: Vec<_> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    assert!(names.len() > 4, "{page}: {names:?}");
    names.into_iter()
}

#[test]
fn the_settings_that_the_guide_names_exist() {
    let printed = floe().arg("config").output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    for name in named_in_table("tuning.md") {
        let (section, key) = name.split_once('.').unwrap_or(("", &name));
        let section_start =
            if section.is_empty() { 0 } else { printed.find(&format!("\n[{section}]")).unwrap() };
        assert!(printed[section_start..].contains(&format!("\n{key} = ")), "{name}: {printed}");
    }
}

fn is_dead(page: &Path, link: &str) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return false;
    }
    let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() { page.to_path_buf() } else { page.parent().unwrap().join(file) };
    if !target.exists() {
        return true;
    }
    !fragment.is_empty() && {
        let text = std::fs::read_to_string(target).unwrap();
        !text.lines().any(|line| line.starts_with('#') && anchor(line) == fragment)
    }
}

#[test]
fn no_link_is_dead() {
    let mut dead = Vec::new();
    let mut count = 0;
    for page in pages() {
        for link in links(&std::fs::read_to_string(&page).unwrap()) {
            count += 1;
            if is_dead(&page, &link) {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
    assert!(count > 20, "only {count} links were found");
}

#[test]
fn dead_links_are_recognised() {
    let page = workspace().join("docs/src/operating.md");
    assert_eq!(links("[a](b.md) `[c](d)` [e](f#g)\n```\n[h](i)\n```\n[j](k)"), ["b.md", "f#g", "k"]);
    for (link, dead) in [
        ("tuning.md", false),
        ("#watching-it", false),
        ("promises.md#what-is-promised", false),
        ("https://example.com/none", false),
        ("nowhere.md", true),
        ("#no-such-heading", true),
        ("tuning.md#no-such-heading", true),
    ] {
        assert_eq!(is_dead(&page, link), dead, "{link}");
    }
}

#[test]
fn the_summary_names_every_page_of_the_guide() {
    let guide = workspace().join("docs/src");
    let summary = std::fs::read_to_string(guide.join("SUMMARY.md")).unwrap();
    for entry in std::fs::read_dir(&guide).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name == "SUMMARY.md" || summary.contains(&format!("({name})")),
            "{name} is not in the summary"
        );
    }
}

/// What an example prints, run where it can't be in anybody's way.
fn run(example: &str) -> String {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("examples").join(example);
    assert!(built.exists(), "{} isn't there: cargo build -p floe --examples", built.display());
    let dir = temp_dir();
    let output = Command::new(built).current_dir(dir.path()).output().unwrap();
    assert!(output.status.success(), "{example}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn examples_do_what_they_say_and_are_shown_as_they_are() {
    assert_eq!(run("embed"), "ice/berg towers\nice/floe drifts\n");
    assert_eq!(run("cluster"), "read on node 3: Some(\"world\")\n");
    assert_eq!(run("custom"), "visits: 3\nweight: 60\n");
    let code = std::fs::read_to_string(workspace().join("engine/examples/embed.rs")).unwrap();
    let shown = std::fs::read_to_string(workspace().join("docs/src/embedding.md")).unwrap();
    assert!(shown.contains(&code), "docs/src/embedding.md shows another engine/examples/embed.rs");
}
