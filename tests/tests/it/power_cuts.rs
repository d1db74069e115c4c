//! Three node processes whose disks lose their power under load, one by one and all at once, or become full.

use crate::loop_disk::{LoopDisk, with_mounts};
use crate::process_faults::{TABLES, await_agreement};
use crate::processes::{GUARD, Process, floe};

use floe::{BusyReason, Client, Consistency, ScanOptions, WriteError};
use floe_tests::ports::free_ports;
use floe_tests::random::Random;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const NODES: usize = 3;
const WRITERS: u64 = 4;
/// Writes that a writer has under way.
const BURST: u64 = 24;
const DEADLINE: Duration = Duration::from_secs(2);
/// The state in memory, dumped whenever some ten commands are in a shard's log.
const DUMPS: &str = "flush_log_bytes = \"16 KiB\"\n";
const SMALL_LOG: &str =
    "[wal]\nsegment_bytes_min = \"256 KiB\"\nsegment_bytes_max = \"1 MiB\"\nbytes_max = \"8 MiB\"\n";

struct Node {
    disk: LoopDisk,
    file: PathBuf,
    address: String,
    process: Option<Process>,
}

struct Cluster(Vec<Node>);

impl Cluster {
    /// `settings` of every node come before its sections.
    fn start(dir: &Path, disk_mib: u64, settings: &str) -> Self {
        let addresses: Vec<_> = free_ports(NODES).iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let member = |(node, address): (u64, &String)| {
            format!("[[members]]\nnode = {node}\naddress = \"{address}\"\n")
        };
        let members: String = (1..).zip(&addresses).map(member).collect();
        let node = |(number, address): (u64, &String)| {
            let disk = LoopDisk::create(&dir.join(format!("disk-{number}")), disk_mib).unwrap();
            let data = disk.path().join("node");
            let text = format!("node = {number}\nshards = 4\ndir = {data:?}\n{settings}{SMALL_LOG}{members}");
            let file = dir.join(format!("{number}.toml"));
            std::fs::write(&file, text).unwrap();
            Node { disk, file, address: address.clone(), process: None }
        };
        let mut cluster = Self((1..).zip(&addresses).map(node).collect());
        cluster.0.iter_mut().for_each(Node::start);
        cluster
    }

    fn addresses(&self) -> Vec<String> {
        self.0.iter().map(|node| node.address.clone()).collect()
    }

    fn client(&self) -> Client {
        Client::connect(&self.addresses()).unwrap().with_timeout(DEADLINE)
    }

    /// The power of these nodes goes, all of it before anybody reacts, and comes back.
    fn cut(&mut self, victims: &[usize], dark: Duration) {
        victims.iter().for_each(|&at| self.0[at].disk.cut());
        thread::sleep(dark);
        for &at in victims {
            // A node that still runs has seen its disk fail, and acknowledges nothing more.
            self.0[at].process = None;
            self.0[at].disk.restore();
        }
        victims.iter().for_each(|&at| self.0[at].start());
    }

    /// What each node holds by itself: once all replicas agree, the others are stopped and it is asked alone.
    fn check(&self, book: &Book) {
        await_agreement(&self.addresses());
        for at in 0..NODES {
            let others =
                || (0..NODES).filter(|other| *other != at).filter_map(|other| self.0[other].process.as_ref());
            others().for_each(|other| other.signal("STOP"));
            let client = Client::connect(&[&self.0[at].address]).unwrap();
            let client = client.with_timeout(GUARD).with_consistency(Consistency::ANY_AGE);
            let rows = client.scan_blocking(ScanOptions::default()).unwrap();
            book.check(at, rows.iter().map(|row| (&row.key[..], &row.value.value[..])));
            others().for_each(|other| other.signal("CONT"));
        }
    }
}

impl Node {
    fn start(&mut self) {
        let mut command = floe();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.file.with_extension("log"));
        command.env("RUST_LOG", "info").stderr(log.unwrap()).arg("node").arg("--config").arg(&self.file);
        let mut process = Process::start(&mut command);
        process.await_line("serves on");
        self.process = Some(process);
    }
}

/// What was written: every key once, so that a write whose outcome is unknown can't hide another one.
#[derive(Default)]
struct Book {
    tried: AtomicU64,
    acknowledged: Mutex<BTreeSet<u64>>,
    unknown: AtomicU64,
    busy: AtomicU64,
}

/// The first byte spreads them over the shards.
fn key_of(number: u64) -> Vec<u8> {
    [&[number.wrapping_mul(37) as u8][..], &number.to_be_bytes()].concat()
}

/// Of different lengths, and no two alike.
fn value_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + (number % 100) as usize)
}

fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

impl Book {
    fn write_some(&self, client: &Client) {
        let first = self.tried.fetch_add(BURST, Ordering::SeqCst);
        let numbers = first..first + BURST;
        let calls: Vec<_> =
            numbers.clone().map(|number| client.put(key_of(number), value_of(number))).collect();
        for (number, call) in numbers.zip(calls) {
            match call.wait() {
                Ok(_) => {
                    self.acknowledged.lock().unwrap().insert(number);
                }
                Err(WriteError::OutcomeUnknown(_)) => count(&self.unknown),
                Err(WriteError::Busy(BusyReason::DiskFull)) => count(&self.busy),
                Err(error) => assert!(error.is_surely_not_done(), "{error}"),
            }
        }
    }

    fn check<'a>(&self, at: usize, rows: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let tried = self.tried.load(Ordering::SeqCst);
        let mut held = BTreeSet::new();
        for (key, value) in rows {
            let number = u64::from_be_bytes(key[1..].try_into().unwrap());
            assert!(number < tried && key == key_of(number), "node {at} holds {key:?}, which nobody wrote");
            assert!(value == value_of(number), "node {at} holds another value of {number}: {value:?}");
            held.insert(number);
        }
        let acknowledged = self.acknowledged.lock().unwrap();
        let lost: Vec<_> = acknowledged.difference(&held).collect();
        assert!(lost.is_empty(), "node {at} lost {} of {}: {lost:?}", lost.len(), acknowledged.len());
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }
}

/// Writers write while `faults` happen.
fn under_load(client: &Client, book: &Book, faults: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    book.write_some(client);
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
        let outcome = catch_unwind(AssertUnwindSafe(faults));
        done.store(true, Ordering::Release);
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// Every other cut is of all nodes at once.
fn cut_power(dir: &Path, settings: &str, cuts: u64) {
    let mut cluster = Cluster::start(dir, 256, settings);
    let seed = std::env::var("FLOE_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |seed| seed.parse().unwrap());
    println!("FLOE_SEED={seed}");
    let mut random = Random::new(seed);
    let (client, book) = (cluster.client(), Book::default());
    for cut in 0..cuts {
        let one = [random.below(NODES as u64) as usize];
        let victims: &[usize] = if cut % 2 == 0 { &one } else { &[0, 1, 2] };
        let before = book.acknowledged();
        under_load(&client, &book, || {
            thread::sleep(Duration::from_millis(random.between(150, 500)));
            cluster.cut(victims, Duration::from_millis(random.below(40)));
            thread::sleep(Duration::from_millis(200));
        });
        assert!(book.acknowledged() > before, "cut {cut} met no load");
        cluster.check(&book);
    }
    let (kept, unknown) = (book.acknowledged(), book.unknown.into_inner());
    println!("{cuts} power cuts: {kept} acknowledged writes on every node, {unknown} unknown");
}

#[test]
fn what_was_acknowledged_survives_power_cuts_with_tables_on_disk() {
    with_mounts(|dir| cut_power(dir, TABLES, 4));
}

#[test]
fn what_was_acknowledged_survives_power_cuts_with_the_state_in_memory() {
    with_mounts(|dir| cut_power(dir, DUMPS, 2));
}

#[test]
#[ignore = "some minutes long: cargo test -p floe-tests --test it -- --ignored --nocapture many_power_cuts"]
fn many_power_cuts() {
    with_mounts(|dir| {
        cut_power(&dir.join("tables"), TABLES, 50);
        cut_power(&dir.join("memory"), DUMPS, 50);
    });
}

/// Takes all that a disk has left.
fn fill(disk: &LoopDisk) -> PathBuf {
    let ballast = disk.path().join("ballast");
    let error = std::fs::write(&ballast, vec![7; 64 << 20]).expect_err("64 MiB don't fit");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    ballast
}

#[test]
fn full_disks_refuse_writes_by_name_lose_nothing_and_recover() {
    with_mounts(|dir| {
        let mut cluster = Cluster::start(dir, 64, TABLES);
        let (client, book) = (cluster.client(), Book::default());
        book.write_some(&client);
        let ballast: Vec<_> = cluster.0.iter().map(|node| fill(&node.disk)).collect();
        write_until(&client, &book, "no disk was said to be full", || book.busy.load(Ordering::Relaxed) > 0);
        let kept = *book.acknowledged.lock().unwrap().first().unwrap();
        assert_eq!(client.get_blocking(key_of(kept)).unwrap().as_deref(), Some(&value_of(kept)[..]));
        ballast.iter().for_each(|file| std::fs::remove_file(file).unwrap());
        let before = book.acknowledged();
        write_until(&client, &book, "it doesn't recover", || book.acknowledged() > before + 500);
        cluster.check(&book);
        cluster.cut(&[0, 1, 2], Duration::ZERO);
        cluster.check(&book);
    });
}

fn write_until(client: &Client, book: &Book, failure: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + GUARD;
    while !is_so() {
        assert!(Instant::now() < until, "{failure}");
        book.write_some(client);
        thread::sleep(Duration::from_millis(5));
    }
}
