//! A node whose data directory is lost, in real processes: nobody takes what comes back under its number with an empty one,
//! and what its peers say then leads back to three full replicas.

use crate::processes::{GUARD, Process, floe, temp_dir};
use floe::remote::{ask_status, ask_to_forget_store};
use floe::{Client, NodeId, ScanOptions};
use floe_tests::ports::free_ports;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::{Duration, Instant};

const SHARDS: usize = 16;

struct Cluster {
    dir: PathBuf,
    addresses: Vec<String>,
    nodes: Vec<Option<Process>>,
}

impl Cluster {
    fn start(dir: &Path) -> Self {
        let addresses: Vec<_> = free_ports(3).iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let members = |(node, address)| format!("[[members]]\nnode = {node}\naddress = \"{address}\"\n");
        let members: String = (1..).zip(&addresses).map(members).collect();
        for node in 1..=3 {
            let data = dir.join(format!("data-{node}"));
            let text = format!("node = {node}\nshards = {SHARDS}\ndir = {data:?}\n{members}");
            fs::write(dir.join(format!("{node}.toml")), text).unwrap();
        }
        let mut cluster = Self { dir: dir.to_owned(), addresses, nodes: vec![None, None, None] };
        (1..=3).for_each(|node| cluster.restart(node));
        cluster
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node - 1] = None;
    }

    fn restart(&mut self, node: usize) {
        self.kill(node);
        let log =
            File::options().create(true).append(true).open(self.dir.join(format!("{node}.log"))).unwrap();
        let mut command = floe();
        command.env("RUST_LOG", "warn").stderr(log).arg("node").arg("--config");
        let mut process = Process::start(command.arg(self.dir.join(format!("{node}.toml"))));
        process.await_line("serves on");
        self.nodes[node - 1] = Some(process);
    }

    fn log(&self, node: usize) -> String {
        fs::read_to_string(self.dir.join(format!("{node}.log"))).unwrap()
    }

    fn run(&self, command: &[&str]) -> Output {
        floe().args(command).args(["--endpoints", &self.addresses.join(",")]).output().unwrap()
    }

    /// What it prints; it must succeed.
    fn says(&self, command: &[&str]) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it complains of; it must fail.
    fn fails(&self, command: &[&str]) -> String {
        let output = self.run(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn client(&self) -> Client {
        Client::connect(&self.addresses).unwrap().with_timeout(GUARD)
    }

    /// Writes a row into each part of the key space, and reads all rows that such calls have written.
    fn write_and_read(&self, round: u8) {
        let client = self.client();
        for first in 0..=255 {
            // Nobody knows what became of a write that was on its way to a node that is killed; again does no harm.
            while let Err(error) = client.put_blocking([first, round], [round; 300]) {
                assert!(!error.is_surely_not_done(), "{first} of round {round}: {error}");
            }
        }
        let rows = client.scan_blocking(ScanOptions::default()).unwrap();
        assert_eq!(rows.len(), 256 * (usize::from(round) + 1), "after round {round}");
        assert!(rows.iter().all(|row| row.value.value[..] == [row.key[1]; 300]));
    }
}

fn await_that(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + GUARD;
    while !holds() {
        assert!(Instant::now() < until, "it never comes about that {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_node_whose_directory_is_lost_is_refused_and_what_is_said_then_brings_it_back() {
    let dir = temp_dir();
    let mut cluster = Cluster::start(dir.path());
    cluster.write_and_read(0);
    cluster.kill(3);
    fs::remove_dir_all(dir.path().join("data-3")).unwrap();
    cluster.restart(3);
    for node in [1, 2] {
        // Three words of the sentence are all that the log may break.
        let said = || {
            ["another store than before", "floe evict 3", "floe admit 3"]
                .map(|part| cluster.log(node).contains(part))
        };
        await_that("its peers say what to do", || said() == [true; 3]);
        let early = ask_to_forget_store(&cluster.addresses[node - 1], NodeId(3), GUARD).unwrap_err();
        assert!(early.contains("has node 3 as a member of shard"), "{early}");
    }
    // Whoever can't ask another node at first isn't kept waiting by one that is cut off.
    let client = Client::connect(&cluster.addresses[2..]).unwrap().with_timeout(GUARD);
    let begun = Instant::now();
    for first in [0, 64, 128, 192] {
        client.delete_blocking([first, 9]).unwrap();
    }
    assert!(begun.elapsed() < GUARD / 2, "four writes took {:?}", begun.elapsed());
    cluster.write_and_read(1);
    let status = cluster.fails(&["status"]);
    assert!(status.contains("node 3 hears of no leader of 16 shards"), "{status}");
    let lost = ask_status(&cluster.addresses[2], GUARD).unwrap();
    assert!(
        lost.shards.iter().all(|shard| shard.leader == 0 && shard.commit <= 1),
        "nobody talks to it: {lost:?}"
    );
    let early = cluster.fails(&["admit", "--patience", "1", "3"]);
    assert!(
        early.contains("node 3 is a member of shard") && early.contains("`floe evict 3` comes first"),
        "{early}"
    );

    assert!(cluster.says(&["evict", "3"]).contains("member of no shard; each has 2 of its 3 replicas"));
    cluster.write_and_read(2);
    assert!(cluster.says(&["status"]).contains("16 shards have fewer than 3 voters: `floe admit NODE`"));
    cluster.says(&["admit", "3"]);
    let admitted = ask_status(&cluster.addresses[2], GUARD).unwrap();
    assert!(
        admitted.shards.iter().all(|shard| shard.applied > 1),
        "each votes once it has caught up: {admitted:?}"
    );
    assert!(cluster.says(&["admit", "3"]).contains("no shard lacks a replica"));
    assert!(!cluster.says(&["status"]).contains("fewer than"));

    // A majority that needs it: it votes, has all rows, and is known under its new store.
    cluster.restart(3);
    cluster.kill(1);
    cluster.write_and_read(3);
    let refused = cluster.fails(&["evict", "--patience", "1", "3"]);
    for part in ["16 shards are left, and nothing moves", "node 1 doesn't answer at", "start it"] {
        assert!(refused.contains(part), "two of three can't lose one: {refused}");
    }
    assert!(cluster.fails(&["admit", "1"]).contains("start it first"));
    assert!(cluster.fails(&["evict", "9"]).contains("there is no node 9; the cluster's are 1, 2, 3"));
    cluster.write_and_read(4);
}
