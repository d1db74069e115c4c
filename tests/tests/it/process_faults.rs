//! Three node processes under faults, clients over sockets, and the linearizability checker as the judge: with the
//! state in memory under all faults, and in tables on disk under `kill -9`.

use crate::processes::{GUARD, Process, floe, temp_dir};
use floe::remote::ask_status;
use floe::{Client, ReadError, WriteBatch, WriteError, WriteOutcome};
use floe_checker::linearizability::{Action, BUDGET, Operation, Verdict, check_keys};
use floe_tests::ports::free_ports;
use floe_tests::proxy::{Proxy, Spoil};
use floe_tests::random::Random;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const NODES: usize = 3;
const CLIENTS: u32 = 6;
const KEYS: u64 = 4;
/// Longer than elections take, shorter than most faults.
const DEADLINE: Duration = Duration::from_secs(2);
/// Kinds of faults that meet one node, numbered from 0.
const KINDS: u64 = 7;
/// `kill -9` of one node.
const KILL: u64 = 0;
/// `kill -9` of all nodes at once.
const KILL_ALL: u64 = KINDS;
/// The state in tables on disk, of which a shard writes new ones after some ten commands.
pub const TABLES: &str =
    "flush_log_bytes = \"4 KiB\"\nstore.kind = \"lsm\"\nstore.write_buffer_bytes = \"1 MiB\"\n";

/// The processes, and a proxy on each way between two of them and from clients to each.
struct Cluster {
    files: Vec<PathBuf>,
    nodes: Vec<Option<Process>>,
    links: Vec<Proxy>,
    doors: Vec<Proxy>,
    /// Where the nodes listen in fact.
    addresses: Vec<String>,
}

impl Cluster {
    /// `settings` of every node come before its sections.
    fn start(dir: &Path, settings: &str) -> Self {
        let addresses: Vec<_> = free_ports(NODES).iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let proxy =
            |target: &String| Proxy::start(&format!("127.0.0.1:{}", free_ports(1)[0]), target).unwrap();
        let doors = addresses.iter().map(proxy).collect();
        let mut links = Vec::new();
        let mut files = Vec::new();
        for (node, own) in (1..).zip(&addresses) {
            let mut text = format!("node = {node}\nshards = 4\nlisten = \"{own}\"\n{settings}");
            text +=
                &format!("dir = {:?}\n[wal]\nsegment_bytes_min = \"256 KiB\"\n", dir.join(format!("{node}")));
            for (other, address) in (1..).zip(&addresses) {
                // The lower id connects; each way has a proxy of its own.
                let seen = if other > node {
                    links.push(proxy(address));
                    links.last().unwrap().address()
                } else {
                    address.clone()
                };
                text += &format!("[[members]]\nnode = {other}\naddress = \"{seen}\"\n");
            }
            let file = dir.join(format!("{node}.toml"));
            std::fs::write(&file, text).unwrap();
            files.push(file);
        }
        let mut cluster = Self { files, nodes: Vec::new(), links, doors, addresses };
        for node in 0..NODES {
            cluster.nodes.push(None);
            cluster.restart(node);
        }
        cluster
    }

    fn restart(&mut self, node: usize) {
        // The process before it is gone before another one takes its directory.
        self.nodes[node] = None;
        let mut process = Process::start(
            floe().env("RUST_LOG", "error").arg("node").arg("--config").arg(&self.files[node]),
        );
        process.await_line("serves on");
        self.nodes[node] = Some(process);
    }

    fn signal(&self, node: usize, name: &str) {
        self.nodes[node].as_ref().unwrap().signal(name);
    }

    /// One fault from beginning to end.
    fn fault(&mut self, kind: u64, node: usize, random: &mut Random) {
        let length = Duration::from_millis(200 + random.below(800));
        match kind {
            KILL => {
                self.signal(node, "KILL");
                thread::sleep(length / 2);
                self.restart(node);
            }
            1 => {
                self.signal(node, "STOP");
                thread::sleep(length);
                self.signal(node, "CONT");
            }
            2 => {
                let (there, back) = [(true, false), (false, true), (true, true)][random.below(3) as usize];
                self.links[node].cut(there, back);
                thread::sleep(length);
                self.links[node].heal();
            }
            3 => {
                self.doors[node].cut(random.below(2) == 0, true);
                thread::sleep(length);
                self.doors[node].heal();
            }
            4 => {
                self.links[node].delay(Duration::from_millis(30));
                thread::sleep(length);
                self.links[node].heal();
            }
            KILL_ALL => {
                (0..NODES).for_each(|node| self.signal(node, "KILL"));
                (0..NODES).for_each(|node| self.restart(node));
            }
            5 => {
                self.links[node].reset();
                self.doors[(node + 1) % NODES].reset();
            }
            _ => {
                let how = [Spoil::Lost, Spoil::Repeated, Spoil::Damaged][random.below(3) as usize];
                self.links.iter().chain(&self.doors).for_each(|proxy| proxy.spoil_next(how));
            }
        }
    }
}

/// What clients saw.
#[derive(Default)]
struct History {
    operations: Mutex<BTreeMap<u64, Vec<Operation>>>,
    answered: AtomicU64,
    unknown: AtomicU64,
    next_value: AtomicU64,
}

impl History {
    fn note(&self, key: u64, operation: Operation) {
        let counter = if operation.answered.is_some() { &self.answered } else { &self.unknown };
        counter.fetch_add(1, Ordering::Relaxed);
        self.operations.lock().unwrap().entry(key).or_default().push(operation);
    }
}

fn name(key: u64) -> Vec<u8> {
    // The first byte spreads them over the shards.
    vec![(key * 64) as u8, b'k']
}

fn value_of(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// One operation; noted unless it surely did and said nothing.
fn operate(client: &Client, number: u32, origin: Instant, random: &mut Random, history: &History) {
    let key = random.below(KEYS);
    let now = || origin.elapsed().as_nanos() as u64;
    let new = history.next_value.fetch_add(1, Ordering::Relaxed) + 1;
    let called = now();
    let (action, unknown) = match random.below(4) {
        0 => match client.put_blocking(name(key), new.to_le_bytes()) {
            Ok(_) => (Action::Write(Some(new)), false),
            Err(WriteError::OutcomeUnknown(_)) => (Action::Write(Some(new)), true),
            Err(_) => return,
        },
        1 => {
            let Ok(found) = client.get_blocking(name(key)) else { return };
            let read = Operation {
                client: number,
                called,
                answered: Some(now()),
                action: Action::Read(found.as_deref().map(value_of)),
            };
            history.note(key, read);
            return compare_and_set(client, (number, key, new), found.as_deref(), &now, history);
        }
        _ => match client.get_blocking(name(key)) {
            Ok(found) => (Action::Read(found.as_deref().map(value_of)), false),
            Err(ReadError::Invalid(error)) => panic!("{error}"),
            Err(_) => return,
        },
    };
    history.note(key, Operation { client: number, called, answered: (!unknown).then(now), action });
}

fn compare_and_set(
    client: &Client,
    (number, key, new): (u32, u64, u64),
    found: Option<&[u8]>,
    now: &dyn Fn() -> u64,
    history: &History,
) {
    let mut batch = WriteBatch::new();
    match found {
        Some(found) => batch.if_equals(name(key), found.to_vec()),
        None => batch.if_absent(name(key)),
    };
    batch.put(name(key), new.to_le_bytes().to_vec());
    let (expected, called) = (found.map(value_of), now());
    let (action, unknown) = match client.write_blocking(&batch) {
        Ok(WriteOutcome::Written { .. }) => (Action::Cas { expected, new: Some(new) }, false),
        Ok(WriteOutcome::ConditionFailed { .. }) => (Action::CasFailed { expected }, false),
        Err(WriteError::OutcomeUnknown(_)) => (Action::Cas { expected, new: Some(new) }, true),
        Err(_) => return,
    };
    history.note(key, Operation { client: number, called, answered: (!unknown).then(now), action });
}

#[test]
fn clients_of_killed_stopped_and_cut_off_processes_see_a_linearizable_store() {
    let dir = temp_dir();
    // Each kind twice.
    judge_under(dir.path(), "", (0..2 * KINDS).map(|at| at % KINDS).collect());
}

#[test]
fn killed_processes_with_tables_on_disk_lose_nothing() {
    let dir = temp_dir();
    judge_under(dir.path(), TABLES, vec![KILL, KILL, KILL, KILL, KILL, KILL_ALL, KILL_ALL]);
    for node in 1..=NODES {
        let trees = std::fs::read_dir(dir.path().join(format!("{node}/store"))).unwrap().count();
        assert!(trees > 0, "node {node} has written no tables");
    }
}

/// Clients read and write under these faults, in an order of the seed's, and what they saw is judged.
fn judge_under(dir: &Path, settings: &str, mut kinds: Vec<u64>) {
    let mut cluster = Cluster::start(dir, settings);
    let doors: Vec<_> = cluster.doors.iter().map(Proxy::address).collect();
    let (history, done, origin) = (History::default(), AtomicBool::new(false), Instant::now());
    let seed = std::env::var("FLOE_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("FLOE_SEED={seed}");
    let mut random = Random::new(seed);
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            // Before the first fault, which may be that nobody is there.
            let client = Client::connect(&doors).unwrap().with_timeout(DEADLINE);
            let (history, done) = (&history, &done);
            scope.spawn(move || {
                let mut random = Random::new(seed.wrapping_add(u64::from(number) + 1));
                while !done.load(Ordering::Acquire) {
                    operate(&client, number, origin, &mut random, history);
                    thread::sleep(Duration::from_millis(random.below(4)));
                }
            });
        }
        for at in (1..kinds.len()).rev() {
            kinds.swap(at, random.below(at as u64 + 1) as usize);
        }
        for kind in kinds {
            cluster.fault(kind, random.below(NODES as u64) as usize, &mut random);
            thread::sleep(Duration::from_millis(300));
        }
        done.store(true, Ordering::Release);
    });
    let operations = history.operations.into_inner().unwrap();
    let (answered, unknown) = (history.answered.into_inner(), history.unknown.into_inner());
    println!("{answered} operations answered, {unknown} unknown");
    assert!(answered > 200, "only {answered} operations were answered");
    assert_eq!(check_keys(&operations, BUDGET), Verdict::Linearizable);
    await_agreement(&cluster.addresses);
}

/// Healed, every replica comes to hold all that is committed.
pub fn await_agreement(addresses: &[String]) {
    let until = Instant::now() + GUARD;
    loop {
        let asked: Vec<_> = addresses.iter().map(|address| ask_status(address, GUARD)).collect();
        // The end of the log beside it: right after a restart all may have applied as much, and too little.
        let mut applied = BTreeMap::<u64, Vec<(u64, u64)>>::new();
        for shard in asked.iter().flatten().flat_map(|status| &status.shards) {
            applied.entry(shard.shard).or_default().push((shard.applied, shard.last));
        }
        let agree = |marks: &Vec<(u64, u64)>| {
            marks.len() == NODES && marks.iter().all(|mark| *mark == (marks[0].0, marks[0].0))
        };
        if applied.len() == 4 && applied.values().all(agree) {
            return;
        }
        assert!(Instant::now() < until, "replicas don't come to agree: {applied:?}\n{asked:?}");
        thread::sleep(Duration::from_millis(100));
    }
}
