//! The commands that talk to a cluster, as their users type them.

use crate::documents::named_in_table;
use crate::processes::{Process, floe, temp_dir};
use floe_tests::ports::free_ports;
use serde_json::Value;
use std::path::Path;
use std::process::Output;

/// A node of its own, which serves on the address that comes with it.
fn node(dir: &Path) -> (Process, String) {
    let address = format!("127.0.0.1:{}", free_ports(1)[0]);
    let file = dir.join("node.toml");
    let text =
        format!("dir = {:?}\nshards = 4\n[[members]]\nnode = 1\naddress = \"{address}\"\n", dir.join("data"));
    std::fs::write(&file, text).unwrap();
    let mut node = Process::start(floe().env("RUST_LOG", "error").arg("node").arg("--config").arg(&file));
    node.await_line("serves on");
    (node, address)
}

fn run(address: &str, command: &[&str]) -> Output {
    floe().args(command).args(["--endpoints", address]).output().unwrap()
}

/// What it prints; it must succeed.
fn says(address: &str, command: &[&str]) -> String {
    let output = run(address, command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it complains of; it must fail.
fn fails(address: &str, command: &[&str]) -> String {
    let output = run(address, command);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn single_rows_are_written_read_scanned_and_removed() {
    let dir = temp_dir();
    let (_node, address) = node(dir.path());
    for (key, value) in [("ice/berg", "towers\tup"), ("ice/floe", "drifts"), ("snow", "falls")] {
        says(&address, &["put", key, value]);
    }
    assert_eq!(says(&address, &["get", "ice/floe"]), "drifts\n");
    assert_eq!(says(&address, &["get", "--raw", "snow"]), "falls");
    assert_eq!(says(&address, &["scan", "--prefix", "ice/"]), "ice/berg\ttowers\\tup\nice/floe\tdrifts\n");
    assert_eq!(says(&address, &["scan", "--reverse", "--limit", "1"]), "snow\tfalls\n");
    says(&address, &["delete", "snow"]);
    assert!(fails(&address, &["get", "snow"]).contains("there is no key \"snow\""));
    assert!(fails(&address, &["put", "", "value"]).contains("at least one byte"));
    let last = fails(&address, &["evict", "1"]);
    assert!(
        last.contains("only node 1 has what shard s") && last.contains("`floe admit` another node"),
        "{last}"
    );
    assert_eq!(says(&address, &["get", "ice/floe"]), "drifts\n");
}

#[test]
fn status_shows_nodes_and_leaders() {
    let dir = temp_dir();
    let (_node, address) = node(dir.path());
    says(&address, &["put", "key", "value"]);
    let text = says(&address, &["status", "--shards"]);
    assert!(text.contains(&address) && text.contains("4 of 4 shards have a leader"), "{text}");
    let json: Value = serde_json::from_str(&says(&address, &["status", "--json"])).unwrap();
    assert_eq!(json["nodes"][0]["up"], true, "{json}");
    assert_eq!(json["shards"].as_array().unwrap().len(), 4);
    assert!(json["shards"].as_array().unwrap().iter().all(|shard| shard["leader"] == 1), "{json}");
}

#[test]
fn who_makes_a_mistake_is_told_what_to_do() {
    let nobody = format!("127.0.0.1:{}", free_ports(1)[0]);
    let at_nobody = ["--endpoints", &nobody];
    for (command, names) in [
        (&["get", "key"][..], &["Name some of its nodes: --endpoints HOST:PORT"][..]),
        (&["status"], &["set FLOE_ENDPOINTS"]),
        (&["get", "key", "--endpoints", "127.0.0.1"], &["an address is HOST:PORT"]),
        (&["get", "key", "--endpoints", "127.0.0.1:7401,127.0.0.1:99999"], &["a port of 1 to 65535"]),
        (&[&["get", "key"], &at_nobody[..]].concat(), &[&nobody, "is `floe node` running there"]),
        (&[&["status"], &at_nobody[..]].concat(), &[&nobody, "is `floe node` running there"]),
        (&[&["export"], &at_nobody[..]].concat(), &[&nobody, "is `floe node` running there"]),
        (&[&["import", "--key", "1", "none.tsv"], &at_nobody[..]].concat(), &["can't open", "none.tsv"]),
        (&[&["import", "--key", "1", "Cargo.toml"], &at_nobody[..]].concat(), &["--format tsv"]),
        (
            &[&["import", "--key", "1", "-"], &at_nobody[..]].concat(),
            &["- is no regular file", "write the rows into one"],
        ),
        (
            &[&["import", "--key", "1", "/dev/stdin"], &at_nobody[..]].concat(),
            &["/dev/stdin is no regular file"],
        ),
        (&[&["import", "--key", "1", "/"], &at_nobody[..]].concat(), &["/ is no regular file"]),
        (&["evict", "one"], &["a node's number is 1 or more; `floe status` shows them"]),
        (&["wal", "verify", "nowhere"], &["no data directory of a node"]),
        (&["wal", "verify", "/dev/null"], &["no data directory of a node"]),
    ] {
        let output = floe().env_remove("FLOE_ENDPOINTS").args(command).output().unwrap();
        assert!(!output.status.success(), "{command:?}: {output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(names.iter().all(|name| said.contains(name)), "{command:?}: {said}");
    }
}

#[test]
fn an_export_of_an_import_is_the_file_again() {
    let dir = temp_dir();
    let (_node, address) = node(dir.path());
    let lines: String = (0..5000).map(|row| format!("x\t{row:06}\tvälue {row}\n")).collect();
    let file = dir.path().join("rows.tsv");
    std::fs::write(&file, &lines).unwrap();
    let file = file.to_str().unwrap();
    says(&address, &["import", "--key", "2", file]);
    assert_eq!(says(&address, &["export", "--values"]), lines);
    let backup = dir.path().join("backup.ndjson");
    let backup = backup.to_str().unwrap();
    says(&address, &["export", "--output", backup]);

    let table = dir.path().join("backup.tsv");
    says(&address, &["export", "--output", table.to_str().unwrap()]);
    let table = std::fs::read_to_string(table).unwrap();
    assert!(table.starts_with("000000\tx\\t000000\\tvälue 0\n"), "by the file's ending: {table:.60}");

    let other_dir = temp_dir();
    let (_other, other) = node(other_dir.path());
    says(&other, &["import", "--key", "key", "--value", "value", backup]);
    assert_eq!(says(&other, &["export", "--values"]), lines);
}

#[test]
fn bad_rows_are_listed_with_their_lines_and_the_others_imported() {
    let dir = temp_dir();
    let (_node, address) = node(dir.path());
    let file = dir.path().join("rows.ndjson");
    std::fs::write(&file, "{\"id\": \"a\"}\nnonsense\n\n{\"no\": 1}\n{\"id\": \"\"}\n{\"id\": \"b\"}")
        .unwrap();
    let complaint = fails(&address, &["import", "--key", "id", file.to_str().unwrap()]);
    for part in ["line 2: it is no JSON", "line 4: it has no field \"id\"", "line 5: a key needs", "3 lines"]
    {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    assert_eq!(says(&address, &["scan"]).lines().count(), 2);
}

#[test]
fn marks_and_line_ends_of_other_systems_are_no_part_of_keys() {
    let dir = temp_dir();
    let (_node, address) = node(dir.path());
    let import = |name: &str, text: &str, options: &[&str]| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        says(&address, &[&["import", file.to_str().unwrap(), "--key"], options].concat());
    };
    import("a.tsv", "\u{feff}a1\tx\r\na2\ty\r\n\r\na3\tz", &["1", "--value", "2"]);
    import("b.tsv", "one\tb1\r\ntwo\tb2\r\n", &["2"]);
    import("c.ndjson", "\u{feff}{\"k\": \"c1\"}\r\n{\"k\": \"c\\u0032\", \"v\": \"\\\"\"}\r\n", &["k"]);
    let rows = says(&address, &["scan"]);
    // A whole line is a value as it stands, so that an export of it is the file again.
    let whole = "b1\tone\\tb1\\r\nb2\ttwo\\tb2\\r\nc1\t{\"k\": \"c1\"}\\r\n";
    assert!(rows.starts_with(&format!("a1\tx\na2\ty\na3\tz\n{whole}c2\t{{")), "{rows}");
}

#[test]
fn an_import_that_was_cut_goes_on_where_it_was() {
    let dir = temp_dir();
    let (running, address) = node(dir.path());
    let rows = dir.path().join("rows.tsv");
    let rows_of = |from: u32, to: u32| (from..to).map(|row| format!("{row:08}\tvalue\n")).collect::<String>();
    // Long enough that the node is killed before the end, however fast it is.
    let all = rows_of(0, 3_000_000);
    std::fs::write(&rows, &all).unwrap();
    let rows = rows.to_str().unwrap();
    let import = ["import", "--key", "1", "--patience", "1", "--timeout", "1", rows];
    let mut importing = floe();
    importing.args(import).args(["--endpoints", &address]).stderr(std::process::Stdio::piped());
    let importing = importing.spawn().unwrap();
    let sidecar = dir.path().join("rows.tsv.floe-import");
    while !sidecar.exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    drop(running);
    let output = importing.wait_with_output().unwrap();
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && complaint.contains("goes on after line"), "{complaint}");
    let done: Value = serde_json::from_slice(&std::fs::read(&sidecar).unwrap()).unwrap();
    let lines = done["done"]["lines"].as_u64().unwrap() as u32;
    assert!((1..3_000_000).contains(&lines), "{done}");

    // What it says is done isn't sent again: the file has something else there by now, of the same length.
    let other = rows_of(0, lines).replace("value", "other") + &rows_of(lines, lines + 1000);
    std::fs::write(rows, other).unwrap();
    let mut node = Process::start(floe().arg("node").arg("--config").arg(dir.path().join("node.toml")));
    node.await_line("serves on");
    let with_other_settings = ["import", "--key", "2", rows];
    assert!(fails(&address, &with_other_settings).contains("--restart"));
    says(&address, &import);
    assert!(!sidecar.exists());
    let rest = says(&address, &["export", "--values"]);
    assert!(
        rest.starts_with(&rows_of(0, lines + 1000)),
        "every row that counted as done is there, with its value"
    );
}

#[test]
fn an_import_into_a_cluster_that_was_begun_anew_skips_nothing() {
    let dir = temp_dir();
    let (_node, address) = node(dir.path());
    let text = "\u{feff}one\t1\r\ntwo\t2\r\nno row\r\n\r\nthree\t3\n";
    let file = dir.path().join("rows.tsv");
    std::fs::write(&file, text).unwrap();
    // As if a former cluster had the rows before line `lines + 1`.
    let claim = |lines: usize| {
        let request = serde_json::json!({ "format": "tsv", "key": "1", "value": "2", "escaped": false,
            "header": false, "endpoints": [address] });
        let offset: usize = text.split_inclusive('\n').take(lines).map(str::len).sum();
        let done = serde_json::json!({ "offset": offset, "lines": lines, "rows": lines.min(2), "bad": 0 });
        let sidecar = serde_json::json!({ "request": request, "done": done }).to_string();
        std::fs::write(dir.path().join("rows.tsv.floe-import"), sidecar).unwrap();
    };
    let import = ["import", "--key", "1", "--value", "2", file.to_str().unwrap()];
    let held = || says(&address, &["scan"]);
    for lines in [1, 4] {
        claim(lines);
        let complaint = fails(&address, &import);
        assert!(complaint.contains("beginning anew") && complaint.contains("line 3"), "{complaint}");
        assert_eq!(held(), "one\t1\nthree\t3\ntwo\t2\n");
        // The row is there now, and what comes before it isn't sent again.
        says(&address, &["put", "one", "other"]);
        says(&address, &["delete", "three"]);
        claim(4);
        says(&address, &import);
        assert_eq!(held(), "one\tother\nthree\t3\ntwo\t2\n");
        ["one", "two", "three"].iter().for_each(|key| drop(says(&address, &["delete", key])));
    }
}

#[test]
fn help_teaches_and_shells_can_complete() {
    for command in ["node", "local", "status", "put", "get", "scan", "import", "export"] {
        let help = floe().args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains("Example") && help.contains(&format!("floe {command}")), "{help}");
    }
    let script = floe().args(["completions", "bash"]).output().unwrap();
    assert!(String::from_utf8(script.stdout).unwrap().contains("import"));
}

/// What an HTTP server says to a GET, its head included.
fn fetch(address: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: floe\r\n\r\n").as_bytes()).unwrap();
    let mut said = String::new();
    socket.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn metrics_and_health_are_served_where_asked_for() {
    let dir = temp_dir();
    let ports = free_ports(2);
    let (address, metrics) = (format!("127.0.0.1:{}", ports[0]), format!("127.0.0.1:{}", ports[1]));
    let file = dir.path().join("node.toml");
    let text =
        format!("dir = {:?}\n[[members]]\nnode = 1\naddress = \"{address}\"\n", dir.path().join("data"));
    std::fs::write(&file, text).unwrap();
    let mut node =
        Process::start(floe().arg("node").arg("--config").arg(&file).args(["--metrics", &metrics]));
    node.await_line("serves on");
    (0..5).for_each(|row| drop(says(&address, &["put", &format!("key {row}"), "value"])));
    let said = fetch(&metrics, "/metrics");
    for line in [
        "# TYPE floe_requests counter",
        "# TYPE floe_requests_pending gauge",
        "floe_shards_led 1",
        "floe_shards_without_leader 0",
        "floe_request_seconds{quantile=\"0.99\"}",
        "# TYPE floe_core_turn_seconds histogram",
        "floe_core_turn_seconds_bucket{core=\"0\",le=\"0.0001\"} ",
        "floe_core_turn_seconds_sum{core=\"0\"} ",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    for name in named_in_table("operating.md").filter(|name| name.starts_with("floe_")) {
        assert!(said.contains(&format!("# TYPE {name} ")), "the guide names {name}: {said}");
    }
    let requests = said.lines().find_map(|line| line.strip_prefix("floe_requests ")).unwrap();
    assert!(requests.parse::<u64>().unwrap() >= 5, "{said}");
    let turns = |of: &str| -> u64 {
        let line =
            said.lines().find_map(|line| line.strip_prefix("floe_core_turn_seconds_")?.strip_prefix(of));
        line.unwrap().parse().unwrap()
    };
    let (below_100_us, below_1_s) =
        (turns("bucket{core=\"0\",le=\"0.0001\"} "), turns("bucket{core=\"0\",le=\"1\"} "));
    let (all, counted) = (turns("bucket{core=\"0\",le=\"+Inf\"} "), turns("count{core=\"0\"} "));
    assert!(below_100_us <= below_1_s && below_1_s <= all && all == counted && all >= 5, "{said}");
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains(&format!("Content-Length: {}", body.len())));
    assert!(fetch(&metrics, "/health").ends_with("ok: 1 cores, 1 replicas\n"));
    assert!(fetch(&metrics, "/elsewhere").starts_with("HTTP/1.1 404"));
    node.signal("TERM");
    assert!(node.rest().1.success());
}
