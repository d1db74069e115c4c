//! The real engine on real disks and sockets, given bad input on purpose. Nothing here depends on how
//! fast the machine is; waiting is bounded by deadlines of the engine's own.

use floe::boot::BootRecord;
use floe::codec::encode;
use floe::transport::{HelloIdentity, HelloReply, REPLY_LEN};
use floe::{
    BusyReason, Client, CommandError, Config, Consistency, Engine, LsmSettings, Member, MemberChange, NodeId,
    OpenError, ReadError, ScanOptions, Seat, ShardId, Store, UnknownReason, WriteBatch, WriteError,
    WriteOutcome,
};
use floe_shard::{Answer, PeerBatch, PeerMessage};
use floe_tests::ports::free_ports;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn temp_dir() -> TempDir {
    // Beside the build's own files: a temporary directory of the system may not be on a real disk.
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::tempdir_in(base).unwrap()
}

fn small(mut config: Config) -> Config {
    config.wal.segment_bytes_min = 256 << 10;
    config.wal.segment_bytes_max = 1 << 20;
    config.wal.bytes_max = 4 << 20;
    config.flush_log_bytes = 64 << 10;
    config
}

fn members() -> Vec<Member> {
    members_of(3)
}

fn members_of(nodes: usize) -> Vec<Member> {
    let member = |(node, port)| Member { node: NodeId(node), address: format!("127.0.0.1:{port}") };
    (1..).zip(free_ports(nodes)).map(member).collect()
}

fn open_cluster(dir: &Path, members: &[Member], cores: u16) -> Vec<Engine> {
    open_cluster_on(dir, members, cores, &Store::default())
}

fn open_cluster_on(dir: &Path, members: &[Member], cores: u16, store: &Store) -> Vec<Engine> {
    let open = |member: &Member| {
        let dir = dir.join(format!("node-{}", member.node));
        let mut config = small(Config::member(dir, member.node, members.to_vec()));
        config.shards = 8;
        config.cores = cores;
        config.store = store.clone();
        Engine::open(config).unwrap()
    };
    members.iter().map(open).collect()
}

fn keys(count: u8) -> impl Iterator<Item = Vec<u8>> {
    // The first byte spreads them over the shards.
    (0..count).map(|at| vec![at.wrapping_mul(37), b'k', at])
}

fn write_all(client: &Client, value: &[u8]) {
    for key in keys(64) {
        client.put_blocking(&key, value).unwrap();
    }
}

/// Writes while leaders are replaced: what is refused or unknown because of that is written again, which does no harm.
fn write_all_among_changes(client: &Client, value: &[u8]) {
    for key in keys(64) {
        let mut tries = 0;
        while let Err(error) = client.put_blocking(&key, value) {
            let unknown = WriteError::OutcomeUnknown(UnknownReason::LeadershipLost);
            assert!(error == unknown || error == WriteError::Busy(BusyReason::Transfer), "{key:?}: {error}");
            tries += 1;
            assert!(tries < 100, "{key:?}: {error}, still");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn read_all(client: &Client, value: &[u8]) {
    for key in keys(64) {
        assert_eq!(client.get_blocking(&key).unwrap().as_deref(), Some(value), "{key:?}");
    }
}

#[test]
fn every_operation_works_on_every_node() {
    let dir = temp_dir();
    let engines = open_cluster(dir.path(), &members(), 1);
    write_all(&engines[0].client(), b"one");
    for engine in &engines {
        read_all(&engine.client(), b"one");
    }
    let client = engines[1].client();
    let rows = client.scan_blocking(ScanOptions::default()).unwrap();
    assert_eq!(rows.len(), 64);
    assert!(rows.is_sorted_by_key(|row| row.key.clone()));
    let backwards = client.scan_blocking(ScanOptions::default().reverse().limit(5)).unwrap();
    let last: Vec<_> = rows.iter().rev().take(5).cloned().collect();
    assert_eq!(backwards, last);
    let key = keys(1).next().unwrap();
    let mut batch = WriteBatch::new();
    batch.if_equals(key.clone(), "other").put(key.clone(), "two");
    assert_eq!(client.write_blocking(&batch).unwrap(), WriteOutcome::ConditionFailed { condition: 0 });
    client.delete_blocking(&key).unwrap();
    assert_eq!(client.get_blocking(&key).unwrap(), None);
}

#[test]
fn local_reads_see_every_write_and_are_not_forwarded() {
    let dir = temp_dir();
    let engines = open_cluster(dir.path(), &members(), 2);
    let locals: Vec<_> = engines
        .iter()
        .map(|engine| engine.client().with_consistency(Consistency::LinearizableLocal))
        .collect();
    write_all(&engines[0].client(), b"zero");
    let forwarded = || engines.iter().map(|engine| engine.metrics().forwarded).collect::<Vec<_>>();
    for round in 0..5 {
        let value = format!("{round}").into_bytes();
        write_all(&engines[round % 3].client(), &value);
        let before = forwarded();
        locals.iter().for_each(|client| read_all(client, &value));
        let rows = locals[round % 3].scan_blocking(ScanOptions::default()).unwrap();
        assert!(rows.len() == 64 && rows.iter().all(|row| row.value.value == value), "{rows:?}");
        assert_eq!(forwarded(), before, "each node reads its own replicas");
    }
}

/// Within a bound that any healthy replica keeps nobody is asked; no bound at all leaves nothing out.
#[test]
fn stale_reads_within_their_bound_ask_nobody_and_beyond_it_see_every_write() {
    let dir = temp_dir();
    let engines = open_cluster(dir.path(), &members(), 2);
    let client = |engine: &Engine, max| engine.client().with_consistency(Consistency::Stale { max });
    write_all(&engines[0].client(), b"first");
    let exact: Vec<_> = engines.iter().map(|engine| client(engine, Duration::ZERO)).collect();
    exact.iter().for_each(|client| read_all(client, b"first"));
    let minutes: Vec<_> = engines.iter().map(|engine| client(engine, Duration::from_secs(120))).collect();
    let asked = || {
        let sums = engines.iter().map(|engine| engine.metrics());
        sums.map(|sum| sum.read_rounds + sum.forwarded).sum::<u64>()
    };
    let before = asked();
    (0..20).for_each(|_| minutes.iter().for_each(|client| read_all(client, b"first")));
    assert_eq!(asked(), before);
    write_all(&engines[1].client(), b"second");
    exact.iter().for_each(|client| read_all(client, b"second"));
}

#[test]
fn reads_under_a_lease_take_no_round_and_see_every_write_and_end_with_the_engine() {
    let dir = temp_dir();
    let mut engines = open_cluster(dir.path(), &members(), 2);
    let client = engines[0].client();
    write_all(&client, b"first");
    read_all(&client, b"first");
    let led: Vec<_> = {
        let leaders = engines[0].leaders();
        keys(64).filter(|key| leaders[&client.shard_of(key)] == Some(NodeId(1))).collect()
    };
    let read = |value: &[u8]| {
        for key in &led {
            assert_eq!(client.get_blocking(key).unwrap().as_deref(), Some(value), "{key:?}");
        }
    };
    let began = engines[0].metrics();
    (0..50).for_each(|_| read(b"first"));
    let rounds = engines[0].metrics().read_rounds - began.read_rounds;
    // Were there one per read, it would be fifty times as many; an unsteady machine may lose a few leases.
    let most = 10 * led.len() as u64;
    assert!(!led.is_empty() && rounds <= most, "{rounds} rounds for {} reads", 50 * led.len());
    for round in 0..20 {
        let value = format!("{round}").into_bytes();
        write_all(&client, &value);
        read(&value);
    }
    engines.remove(0).shutdown();
    assert!(led.iter().all(|key| client.get_blocking(key).is_err()), "nobody is there to read from");
}

#[test]
fn a_restart_with_another_core_count_loses_nothing() {
    let dir = temp_dir();
    let members = members();
    for (round, cores) in [1_u16, 3, 2, 2, 1].into_iter().enumerate() {
        let engines = open_cluster(dir.path(), &members, cores);
        if round > 0 {
            read_all(&engines[round % 3].client(), &[round as u8; 200]);
        }
        write_all(&engines[0].client(), &[round as u8 + 1; 200]);
        engines.into_iter().for_each(Engine::shutdown);
    }
}

/// Asks until no earlier change is in the way, and what is to be promoted was heard of and has caught up.
fn change_members(client: &Client, shard: ShardId, changes: &[MemberChange]) {
    for _ in 0..600 {
        match client.change_members_blocking(shard, changes, false) {
            Ok(()) => return,
            Err(WriteError::Busy(BusyReason::MemberChange)) => {}
            Err(WriteError::Unavailable(why))
                if why.contains("caught up") || why.contains("promote it later") => {}
            Err(error) => panic!("{shard}, {changes:?}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{shard}: {changes:?} is never taken");
}

#[test]
fn shards_move_to_another_node_and_stay_there_after_a_restart() {
    shards_move(&Store::Memory);
}

#[test]
fn shards_in_tables_move_to_another_node_as_whole_dumps() {
    shards_move(&Store::Lsm(LsmSettings::default()));
}

fn shards_move(store: &Store) {
    let dir = temp_dir();
    let members = members_of(4);
    let engines = open_cluster_on(dir.path(), &members, 1, store);
    let client = engines[0].client();
    write_all(&client, b"before");
    // Of each shard one replica moves to the node that has none of it: with 4 nodes and 3 replicas, that is one.
    for shard in (1..=8).map(ShardId) {
        let of_founder = |at: u64| NodeId((shard.0 - 1 + at) % 4 + 1);
        let seat = |node, to| MemberChange { node, to };
        change_members(&client, shard, &[seat(of_founder(3), Seat::Learner)]);
        let swap = [seat(of_founder(3), Seat::Voter), seat(of_founder(1), Seat::Vacant)];
        change_members(&client, shard, &swap);
    }
    write_all_among_changes(&client, b"after");
    for engine in &engines {
        read_all(&engine.client(), b"after");
    }
    engines.into_iter().for_each(Engine::shutdown);
    let engines = open_cluster_on(dir.path(), &members, 2, store);
    read_all(&engines[3].client(), b"after");
    write_all(&engines[1].client(), b"again");
    read_all(&engines[2].client(), b"again");
}

#[test]
fn a_dump_larger_than_the_write_buffer_reaches_a_new_replica_without_filling_it() {
    let (dir, members) = (temp_dir(), members_of(4));
    let settings = LsmSettings { write_buffer_bytes: 4 << 20, ..LsmSettings::default() };
    let open = |member: &Member| {
        let mut config = Config::member(dir.path().join(&member.address), member.node, members.clone());
        (config.cores, config.shards) = (1, 1);
        config.store = Store::Lsm(settings);
        Engine::open(config).unwrap()
    };
    let engines: Vec<Engine> = members.iter().map(open).collect();
    let client = engines[0].client();
    let (key, value) = (|at: u32| format!("{at:03}").into_bytes(), vec![7; 64 << 10]);
    for at in 0..320 {
        while let Err(error) = client.put_blocking(key(at), &value) {
            assert_eq!(error, WriteError::Busy(BusyReason::WriteBuffer), "{at}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // Nodes 1 to 3 have the only shard.
    change_members(&client, ShardId(1), &[MemberChange { node: NodeId(4), to: Seat::Learner }]);
    let (begun, mut buffered_max) = (Instant::now(), 0);
    while engines[3].metrics().dumps_installed == 0 {
        buffered_max = buffered_max.max(engines[3].metrics().write_buffer_bytes);
        assert!(begun.elapsed() < Duration::from_secs(60), "no dump came");
        std::thread::sleep(Duration::from_millis(1));
    }
    buffered_max = buffered_max.max(engines[3].metrics().write_buffer_bytes);
    assert!(buffered_max <= settings.write_buffer_bytes, "{buffered_max} bytes were buffered");
    let local = engines[3].client().with_consistency(Consistency::LinearizableLocal);
    (0..320).for_each(|at| assert_eq!(local.get_blocking(key(at)).unwrap().unwrap(), value, "{at}"));
    // It was made for the learner alone: on no node a dump stays that holds rows.
    let holds_rows = |member: &Member| {
        let dumps = std::fs::read_dir(dir.path().join(&member.address).join("dump")).unwrap();
        dumps.flatten().any(|dump| dump.metadata().is_ok_and(|metadata| metadata.len() > 64 << 10))
    };
    while members.iter().any(holds_rows) {
        assert!(begun.elapsed() < Duration::from_secs(60), "a whole dump stays");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_shard_in_tables_answers_cold_conditions_and_reads_and_restarts_from_its_tables() {
    let dir = temp_dir();
    let mut config = small(Config::embedded(dir.path()));
    config.store = Store::Lsm(LsmSettings { write_buffer_bytes: 1 << 20, ..LsmSettings::default() });
    let mut engine = Engine::open(config.clone()).unwrap();
    let key = |at: u32| format!("key-{at:05}").into_bytes();
    let versions: Vec<u64> =
        (0..3000).map(|at| engine.client().put_blocking(key(at), [at as u8; 700]).unwrap()).collect();
    for round in 0..2 {
        let client = engine.client();
        let stale = client.with_consistency(Consistency::ANY_AGE);
        for at in (0..3000).step_by(173) {
            let found = client.get_versioned_blocking(key(at)).unwrap().unwrap();
            assert_eq!((found.version, &found.value[..]), (versions[at as usize], &[at as u8; 700][..]));
            assert_eq!(stale.get_blocking(key(at)).unwrap().unwrap(), found.value);
            let moved =
                WriteBatch::new().if_version(key(at), found.version + 1).put(key(at), "wrong").clone();
            assert_eq!(
                client.write_blocking(&moved).unwrap(),
                WriteOutcome::ConditionFailed { condition: 0 }
            );
        }
        let rows = client.scan_blocking(ScanOptions::default()).unwrap();
        assert_eq!(rows.len(), 3000, "round {round}");
        engine.shutdown();
        assert!(
            dir.path().join("store").read_dir().unwrap().count() >= 1,
            "2 MiB don't fit in half of 1 MiB"
        );
        engine = Engine::open(config.clone()).unwrap();
    }
    let client = engine.client();
    client.write_blocking(WriteBatch::new().delete_range(key(100), key(2900))).unwrap();
    assert_eq!(client.scan_blocking(ScanOptions::default()).unwrap().len(), 200);
}

#[test]
fn random_bytes_on_the_port_stop_nothing() {
    let dir = temp_dir();
    let members = members();
    let engines = open_cluster(dir.path(), &members, 1);
    let mut random = floe_tests::random::Random::new(0xBAD);
    for at in 0..40 {
        let mut socket = TcpStream::connect(&members[at % 3].address).unwrap();
        let bytes: Vec<u8> = (0..random.below(300)).map(|_| random.below(256) as u8).collect();
        socket.write_all(&bytes).unwrap();
        if at % 4 == 0 {
            // A client that says nothing more but stays: it must not keep others out.
            std::mem::forget(socket);
        } else if at % 4 == 1 {
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let _ = socket.read(&mut [0; 64]);
        }
    }
    write_all(&engines[2].client(), b"still here");
    read_all(&engines[0].client(), b"still here");
}

/// Connects as core 0 of the node whose directory this is, says hello, and is accepted.
fn connect_as(dir: &Path, to: &str) -> TcpStream {
    let record = BootRecord::decode(&std::fs::read(dir.join("node.floe")).unwrap()).unwrap();
    let BootRecord { cluster, node, store_uuid, boot_epoch, .. } = record;
    let hello = HelloIdentity { cluster, node, store_uuid, boot_epoch, cores: 1 }.hello(0, 0);
    let mut socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.write_all(&hello.encode()).unwrap();
    let mut reply = [0; REPLY_LEN];
    socket.read_exact(&mut reply).unwrap();
    let reply = HelloReply::parse(&reply).unwrap();
    assert!(matches!(reply, HelloReply::Accepted(_)), "{reply:?}");
    socket
}

#[test]
fn a_frame_that_is_cut_anywhere_after_a_valid_hello_ends_its_connection_alone() {
    let dir = temp_dir();
    let members = members();
    let mut engines = open_cluster(dir.path(), &members, 1);
    write_all(&engines[2].client(), b"before");
    let first = dir.path().join(format!("node-{}", members[0].node));
    // In whose place others speak now; were it there, it would take its connection back.
    engines.remove(0).shutdown();
    let messages = vec![PeerMessage::Answer { id: u64::MAX, answer: Answer::Done }];
    let frame = encode(&PeerBatch { messages, ..PeerBatch::default() }).parts.concat();
    let mut fastest = Duration::MAX;
    for cut in (1..frame.len()).step_by(3) {
        let mut socket = connect_as(&first, &members[2].address);
        let begun = Instant::now();
        socket.write_all(&frame).unwrap();
        socket.write_all(&frame[..cut]).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        let end = socket.read_to_end(&mut rest).map_err(|error| error.kind());
        assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "cut at {cut}: still open, {end:?}");
        fastest = fastest.min(begun.elapsed());
    }
    let silent = 5 * Config::embedded("").election_timeout_max;
    assert!(
        fastest < silent,
        "closed because they ended, not because they were silent for {silent:?}: {fastest:?}"
    );
    assert!(engines.iter().all(|engine| engine.status().cores.iter().all(|core| core.runs)));
    write_all_among_changes(&engines[1].client(), b"after");
    read_all(&engines[0].client(), b"after");
}

#[test]
fn a_node_of_another_cluster_is_kept_out() {
    let dir = temp_dir();
    let members = members();
    let open = |node: u64, cluster| {
        let config = Config::member(dir.path().join(format!("n{node}")), NodeId(node), members.clone());
        Engine::open(Config { cluster, ..small(config) }).unwrap()
    };
    let stranger = open(3, 2);
    let first = open(1, 1);
    // Ten election timeouts: with the stranger it would be a quorum, and each would lead some shard.
    let until = Instant::now() + 10 * Config::embedded("").election_timeout_max;
    while Instant::now() < until {
        for node in [&first, &stranger] {
            let leaders = node.leaders();
            assert!(!leaders.is_empty() && leaders.values().all(Option::is_none), "no quorum: {leaders:?}");
            assert_eq!(node.metrics().frames_received, 0, "nothing that a stranger says is heard");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let alone = first.client().with_timeout(Duration::from_millis(300)).put_blocking("k", "v");
    assert!(matches!(alone, Err(WriteError::TimedOut)), "no quorum with a stranger: {alone:?}");
    let second = open(2, 1);
    first.client().put_blocking("k", "v").unwrap();
    assert_eq!(second.client().get_blocking("k").unwrap().as_deref(), Some(&b"v"[..]));
    drop(stranger);
}

#[test]
fn a_directory_of_another_cluster_or_node_is_refused_by_name() {
    let dir = temp_dir();
    Engine::open(small(Config::embedded(dir.path()))).unwrap().shutdown();
    let other = Engine::open(Config { cluster: 7, ..small(Config::embedded(dir.path())) }).err().unwrap();
    assert!(other.to_string().contains("belongs to cluster 1, not 7"), "{other}");
    let other =
        Engine::open(Config { node: NodeId(9), ..small(Config::embedded(dir.path())) }).err().unwrap();
    assert!(other.to_string().contains("belongs to node 1, not 9"), "{other}");
    let more = Config { shards: 2, ..small(Config::embedded(dir.path())) };
    let other = Engine::open(more).err().unwrap();
    assert!(other.to_string().contains("founded with members n1, 1 shards, 1 replicas"), "{other}");
    Engine::open(small(Config::embedded(dir.path()))).unwrap().shutdown();
}

#[test]
fn another_list_of_members_is_refused_and_other_addresses_are_not() {
    let dir = temp_dir();
    let of = |members: Vec<Member>| small(Config::member(dir.path(), NodeId(2), members));
    Engine::open(of(members())).unwrap().shutdown();
    for nodes in [2, 4] {
        let error = Engine::open(of(members_of(nodes))).err().unwrap().to_string();
        assert!(
            error.contains("founded with members n1 n2 n3") && error.contains("Put that back"),
            "{error}"
        );
    }
    Engine::open(of(members())).unwrap().shutdown();
}

#[test]
fn tables_without_a_log_are_no_new_node() {
    let dir = temp_dir();
    let mut config = small(Config::embedded(dir.path()));
    config.store = Store::Lsm(LsmSettings { write_buffer_bytes: 1 << 20, ..LsmSettings::default() });
    let engine = Engine::open(config.clone()).unwrap();
    for at in 0..2000_u32 {
        engine.client().put_blocking(at.to_be_bytes(), [1; 700]).unwrap();
    }
    engine.shutdown();
    let trees = || dir.path().join("store").read_dir().unwrap().count();
    let before = trees();
    assert!(before > 0, "1.4 MB don't fit in half of 1 MiB");
    std::fs::remove_file(dir.path().join("node.floe")).unwrap();
    for lost in ["wal", "dump"] {
        std::fs::remove_dir_all(dir.path().join(lost)).unwrap();
    }
    for _ in 0..2 {
        let error = Engine::open(config.clone()).err().expect("its log is lost").to_string();
        assert!(error.contains("node.floe is missing but `store` is there"), "{error}");
        assert_eq!(trees(), before, "nothing is removed");
    }
}

#[test]
fn a_second_open_of_a_directory_is_refused_and_names_the_holder() {
    let dir = temp_dir();
    let engine = Engine::open(small(Config::embedded(dir.path()))).unwrap();
    let second = Engine::open(small(Config::embedded(dir.path()))).err().unwrap();
    assert!(matches!(&second, OpenError::Locked { .. }), "{second}");
    assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");
    engine.client().put_blocking("k", "v").unwrap();
}

#[test]
fn limits_are_named_and_what_breaks_one_does_nothing() {
    let dir = temp_dir();
    let engine = Engine::open(small(Config::embedded(dir.path()))).unwrap();
    let client = engine.client();
    let invalid = |outcome: Result<u64, WriteError>| match outcome {
        Err(WriteError::Invalid(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(invalid(client.put_blocking("", "v")), CommandError::EmptyKey);
    assert_eq!(invalid(client.put_blocking([1; 16_385], "v")), CommandError::KeyTooLong(16_385));
    let big = vec![1; (8 << 20) + 1];
    assert_eq!(invalid(client.put_blocking("k", &big)), CommandError::ValueTooLong(big.len()));
    assert_eq!(client.get_blocking(""), Err(ReadError::Invalid(CommandError::EmptyKey)));
    let empty = client.write_blocking(&WriteBatch::new());
    assert_eq!(empty, Err(WriteError::Invalid(CommandError::EmptyBatch)));
    // The largest that is allowed goes through, and survives a restart.
    let (key, value) = (vec![7; 16_384], vec![9; 8 << 20]);
    client.put_blocking(&key, &value).unwrap();
    engine.shutdown();
    let engine = Engine::open(small(Config::embedded(dir.path()))).unwrap();
    assert_eq!(engine.client().get_blocking(&key).unwrap().as_deref(), Some(&value[..]));
}

/// A file system of its own that can be filled or made read-only. Needs root.
struct Mount(TempDir);

impl Mount {
    fn new(bytes: u64) -> Option<Self> {
        let mount = Self(temp_dir());
        let size = format!("size={bytes}");
        if run("mount", &["-t", "tmpfs", "-o", &size, "floe-test", mount.path()]) {
            return Some(mount);
        }
        let required = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!required, "can't mount a file system, which CI must be able to");
        eprintln!("skipped: mounting a small file system needs root");
        None
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &["-l", self.path()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
}

#[test]
fn a_full_disk_refuses_writes_and_serves_reads_until_there_is_space_again() {
    let Some(mount) = Mount::new(6 << 20) else { return };
    let engine = Engine::open(small(Config::embedded(mount.path()))).unwrap();
    let client = engine.client().with_timeout(Duration::from_secs(5));
    client.put_blocking("first", "value").unwrap();
    let filler = Path::new(mount.path()).join("filler");
    // Takes all that is left; the write is cut short there.
    let _ = std::fs::write(&filler, vec![0; 6 << 20]);
    let mut is_refused = false;
    for at in 0..4_000_u32 {
        match client.put_blocking(at.to_be_bytes(), vec![1; 4096]) {
            // Caught in the log when the space ran out, before anybody knew that it would.
            Ok(_) | Err(WriteError::OutcomeUnknown(_)) => {}
            Err(WriteError::Busy(BusyReason::DiskFull)) => {
                is_refused = true;
                break;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(is_refused, "16 MiB don't fit");
    assert_eq!(client.get_blocking("first").unwrap().as_deref(), Some(&b"value"[..]));
    std::fs::remove_file(&filler).unwrap();
    let again = (0..100).find_map(|_| match client.put_blocking("again", "value") {
        Err(WriteError::Busy(_) | WriteError::OutcomeUnknown(_)) => {
            std::thread::sleep(Duration::from_millis(100));
            None
        }
        other => Some(other),
    });
    assert!(matches!(again, Some(Ok(_))), "{again:?}");
    engine.shutdown();
}

#[test]
fn a_start_on_a_full_disk_is_refused_by_name_and_loses_nothing() {
    let Some(mount) = Mount::new(16 << 20) else { return };
    let config = || small(Config::embedded(Path::new(mount.path()).join("data")));
    let filler = Path::new(mount.path()).join("filler");
    let fill = || {
        let _ = std::fs::write(&filler, vec![0; 16 << 20]);
    };
    // One that was never opened.
    fill();
    let error = Engine::open(config()).err().expect("not even a boot record has room").to_string();
    assert!(error.contains("space"), "{error}");
    std::fs::remove_file(&filler).unwrap();
    let engine = Engine::open(config()).unwrap();
    engine.client().put_blocking("k", "v").unwrap();
    engine.shutdown();
    for _ in 0..2 {
        fill();
        match Engine::open(config()) {
            Err(error) => assert!(error.to_string().contains("space"), "{error}"),
            // What the process before had let go of became free when the disk was full already.
            Ok(engine) => engine.shutdown(),
        }
        std::fs::remove_file(&filler).unwrap();
        let engine = Engine::open(config()).unwrap();
        assert_eq!(engine.client().get_blocking("k").unwrap().as_deref(), Some(&b"v"[..]));
        engine.client().put_blocking("k", "v").unwrap();
        engine.shutdown();
    }
}

#[test]
fn a_read_only_directory_is_refused_by_name() {
    let Some(mount) = Mount::new(16 << 20) else { return };
    let config = || small(Config::embedded(Path::new(mount.path()).join("data")));
    Engine::open(config()).unwrap().shutdown();
    assert!(run("mount", &["-o", "remount,ro", mount.path()]));
    let error = Engine::open(config()).err().unwrap();
    assert!(error.to_string().contains(mount.path()), "{error}");
    assert!(error.to_string().contains("ead-only"), "{error}");
    assert!(run("mount", &["-o", "remount,rw", mount.path()]));
    Engine::open(config()).unwrap().shutdown();
}
