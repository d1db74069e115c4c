//! Scans of the real engine whose rows take more than one page.

use crate::processes::{GUARD, temp_dir};
use floe::{
    Client, Config, Consistency, Engine, LsmSettings, Member, NodeId, ReadError, ScanOptions, ShardId, Store,
    WriteBatch, WriteError,
};
use floe_tests::ports::free_ports;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake};

/// The only shard.
const SHARD: ShardId = ShardId(1);
/// Three of them are more than a page.
const VALUE_BYTES: usize = 400 << 10;
const ROWS: u8 = 8;

fn members() -> Vec<Member> {
    let member = |(node, port)| Member { node: NodeId(node), address: format!("127.0.0.1:{port}") };
    (1..).zip(free_ports(3)).map(member).collect()
}

fn cluster(dir: &Path, members: &[Member], store: &Store) -> Vec<Engine> {
    let open = |member: &Member| {
        let dir = dir.join(format!("node-{}", member.node));
        let mut config = Config::member(dir, member.node, members.to_vec());
        (config.shards, config.cores, config.store) = (1, 1, store.clone());
        Engine::open(config).unwrap()
    };
    members.iter().map(open).collect()
}

/// Writes every row anew, all in one step, and one more that wasn't there. Again, if a busy machine lets the leader lose
/// its office meanwhile.
fn write(client: &Client, version: u8) {
    let mut batch = WriteBatch::new();
    for row in 0..ROWS {
        batch.put(vec![row], vec![version; VALUE_BYTES]);
    }
    batch.put(vec![ROWS, version], "new");
    while let Err(error) = client.write_blocking(&batch) {
        assert!(matches!(error, WriteError::OutcomeUnknown(_)), "{error}");
    }
}

/// Of all the rows that are there at first.
fn rows() -> ScanOptions {
    ScanOptions::range(vec![0], vec![ROWS])
}

/// Whom to ask: each leader's own node, the others, and clients from outside.
fn clients(engines: &[Engine], members: &[Member]) -> Vec<Client> {
    let own = engines.iter().map(Engine::client);
    let local = engines.iter().map(|engine| engine.client().with_consistency(Consistency::LinearizableLocal));
    let remote = members.iter().map(|member| Client::connect(&[&member.address]).unwrap());
    own.chain(local).chain(remote).map(|client| client.with_timeout(GUARD)).collect()
}

/// The versions of the rows of a page.
fn versions(page: Option<Result<Vec<floe::Row>, ReadError>>) -> Vec<u8> {
    page.unwrap().unwrap().iter().filter(|row| row.key.len() == 1).map(|row| row.value.value[0]).collect()
}

fn pages_are_one_snapshot(store: &Store) {
    let (dir, members) = (temp_dir(), members());
    let engines = cluster(dir.path(), &members, store);
    let writer = engines[0].client().with_timeout(GUARD);
    write(&writer, 0);
    for (round, client) in (1..).zip(clients(&engines, &members)) {
        for reverse in [false, true] {
            let options = ScanOptions { reverse, ..rows() };
            let mut pages = client.pages(options);
            let first = versions(pages.next_blocking());
            assert!(!first.is_empty() && first.len() < 4, "a page is at most 1 MiB: {first:?}");
            let version = first[0];
            write(&writer, 2 * round + u8::from(reverse));
            let mut rest = Vec::new();
            while let Some(page) = pages.next_blocking() {
                rest.extend(versions(Some(page)));
            }
            assert_eq!(
                [first, rest].concat(),
                [version; ROWS as usize],
                "client {round}: all of one snapshot"
            );
            let fresh = versions(client.pages(rows()).next_blocking());
            assert!(fresh[0] != version, "client {round}: another scan sees what was written meanwhile");
        }
    }
    let all = writer.scan_blocking(ScanOptions::default()).unwrap();
    let [.., last] = &all[..] else { panic!() };
    assert!(all.len() > usize::from(ROWS) && last.value.value == "new", "a scan has all pages");
}

#[test]
fn pages_of_a_shard_are_one_snapshot_whoever_reads_them() {
    pages_are_one_snapshot(&Store::Memory);
}

#[test]
fn pages_of_a_shard_in_tables_are_one_snapshot() {
    pages_are_one_snapshot(&Store::Lsm(LsmSettings::default()));
}

#[test]
fn a_snapshot_outlives_its_leader_and_goes_with_its_node() {
    let (dir, members) = (temp_dir(), members());
    let mut engines = cluster(dir.path(), &members, &Store::Memory);
    let writer = engines[0].client().with_timeout(GUARD);
    write(&writer, 1);
    let leader = engines[0].leaders()[&SHARD].unwrap();
    let at = members.iter().position(|member| member.node == leader).unwrap();
    let other = (at + 1) % 3;
    let client = engines[other].client().with_timeout(GUARD);
    let mut pages = client.pages(rows());
    assert_eq!(versions(pages.next_blocking()), [1; 2]);
    engines[at].client().transfer_leadership_blocking(SHARD, members[other].node).unwrap();
    write(&client, 2);
    assert_eq!(versions(pages.next_blocking()), [1; 2], "who leads doesn't matter");
    engines.remove(at).shutdown();
    assert_eq!(pages.next_blocking(), Some(Err(ReadError::SnapshotGone)));
    let mut rest = Vec::new();
    while let Some(page) = pages.next_blocking() {
        rest.extend(versions(Some(page)));
    }
    assert_eq!(rest, [2; ROWS as usize - 4], "behind the last row, in a newer snapshot");
}

#[test]
fn pages_that_are_read_on_the_callers_thread_let_the_executors_other_tasks_run() {
    struct Woken(AtomicU32);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dir = temp_dir();
    let engine = Engine::open(Config::embedded(dir.path().join("node"))).unwrap();
    let client = engine.client().with_timeout(GUARD);
    write(&client, 1);
    let asked = || engine.metrics().requests;
    // Until it is read without the core.
    while let before = asked()
        && client.get_blocking([0]).unwrap().is_some()
        && asked() > before
    {}
    let (woken, before) = (Arc::new(Woken(AtomicU32::new(0))), asked());
    let waker = woken.clone().into();
    let mut context = Context::from_waker(&waker);
    let mut pages = client.pages(rows());
    for page in 1..=4 {
        let mut next = pin!(pages.next());
        assert!(next.as_mut().poll(&mut context).is_pending(), "others go first");
        assert_eq!(woken.0.load(Ordering::Relaxed), page, "who waits for nobody wakes itself");
        assert!(matches!(next.poll(&mut context), Poll::Ready(Some(Ok(rows))) if rows.len() == 2));
    }
    assert_eq!(asked(), before, "no core was asked");
}
