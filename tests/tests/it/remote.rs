//! Clients in other processes, or so it seems to the nodes: over real sockets, with what can go wrong there.

use crate::processes::{GUARD, temp_dir};
use floe::codec::{Info, encode_info};
use floe::remote::ask_status;
use floe::transport::Hello;
use floe::{
    Client, Config, Engine, Member, NodeId, ScanOptions, UnknownReason, WriteBatch, WriteError, WriteOutcome,
};
use floe_tests::ports::free_ports;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

fn members(nodes: usize) -> Vec<Member> {
    let member = |(node, port)| Member { node: NodeId(node), address: format!("127.0.0.1:{port}") };
    (1..).zip(free_ports(nodes)).map(member).collect()
}

fn open(dir: &Path, members: &[Member], node: usize, change: impl Fn(&mut Config)) -> Engine {
    let own = members[node].node;
    let mut config = Config::member(dir.join(format!("node-{own}")), own, members.to_vec());
    config.shards = 8;
    config.cores = 2;
    change(&mut config);
    Engine::open(config).unwrap()
}

fn cluster(dir: &Path, members: &[Member]) -> Vec<Engine> {
    (0..members.len()).map(|node| open(dir, members, node, |_| {})).collect()
}

fn addresses(members: &[Member]) -> Vec<&str> {
    members.iter().map(|member| member.address.as_str()).collect()
}

fn keys(count: u8) -> impl Iterator<Item = Vec<u8>> {
    // The first byte spreads them over the shards.
    (0..count).map(|at| vec![at.wrapping_mul(37), b'k', at])
}

/// Says a client's hello and takes the reply.
fn greeted(address: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(GUARD)).unwrap();
    socket.write_all(&Hello::of_client(0).encode()).unwrap();
    let mut reply = [0; floe::transport::REPLY_LEN];
    socket.read_exact(&mut reply).unwrap();
    assert_eq!(reply[8..10], [0, 0], "accepted");
    socket
}

/// Whether the other end closes the connection, whatever it still sends.
fn is_closed(mut socket: TcpStream) -> bool {
    let mut rest = Vec::new();
    !matches!(socket.read_to_end(&mut rest), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn a_remote_client_does_what_one_on_a_node_does() {
    let (dir, members) = (temp_dir(), members(3));
    let engines = cluster(dir.path(), &members);
    // One endpoint: the others are found.
    let client = Client::connect(&addresses(&members)[..1]).unwrap();
    let calls: Vec<_> = keys(64).map(|key| client.put(key, b"one")).collect();
    assert!(calls.into_iter().all(|call| call.wait().unwrap() > 0), "versions begin above 0");
    for key in keys(64) {
        assert_eq!(client.get_blocking(&key).unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(client.shard_of(&key), engines[0].client().shard_of(&key));
    }
    let rows = client.scan_blocking(ScanOptions::default()).unwrap();
    assert_eq!(rows, engines[1].client().scan_blocking(ScanOptions::default()).unwrap());
    assert!(rows.len() == 64 && rows.is_sorted_by_key(|row| row.key.clone()));
    let key = keys(1).next().unwrap();
    let mut batch = WriteBatch::new();
    batch.if_equals(key.clone(), "other").put(key.clone(), "two");
    assert_eq!(client.write_blocking(&batch), Ok(WriteOutcome::ConditionFailed { condition: 0 }));
    client.delete_blocking(&key).unwrap();
    assert_eq!(client.get_blocking(&key).unwrap(), None);
    let big = vec![7; 3 << 20];
    client.put_blocking("big", &big).unwrap();
    assert_eq!(client.get_blocking("big").unwrap().as_deref(), Some(&big[..]));
    assert!(matches!(client.put_blocking("", "no key"), Err(WriteError::Invalid(_))));
}

#[test]
fn a_remote_client_outlives_its_nodes_and_finds_them_again() {
    let (dir, members) = (temp_dir(), members(3));
    let mut engines: Vec<_> = cluster(dir.path(), &members).into_iter().map(Some).collect();
    let client = Client::connect(&addresses(&members)).unwrap().with_timeout(GUARD);
    for round in 0..6_u8 {
        let node = usize::from(round) % 3;
        drop(engines[node].take());
        for key in keys(16) {
            // Whatever was under way at a node that went is unknown to the client, and here harmless to repeat.
            while let Err(error) = client.put_blocking(&key, [round]) {
                assert!(matches!(error, WriteError::OutcomeUnknown(_)), "{error}");
            }
            assert_eq!(client.get_blocking(&key).unwrap().as_deref(), Some(&[round][..]));
        }
        engines[node] = Some(open(dir.path(), &members, node, |_| {}));
    }
}

#[test]
fn a_write_whose_connection_breaks_is_unknown_and_one_that_never_left_is_surely_not_done() {
    let (dir, members) = (temp_dir(), members(3));
    let engines = cluster(dir.path(), &members);
    // A node that says hello, tells the map of another, and never answers a request.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let real = members[0].address.clone();
    let mute_address = mute.local_addr().unwrap().to_string();
    let broken = thread::spawn(move || {
        let (mut client, _) = mute.accept().unwrap();
        let mut node = TcpStream::connect(real).unwrap();
        let mut hello = [0; floe::transport::HELLO_LEN];
        client.read_exact(&mut hello).unwrap();
        node.write_all(&hello).unwrap();
        let mut reply = [0; floe::transport::REPLY_LEN];
        node.read_exact(&mut reply).unwrap();
        client.write_all(&reply).unwrap();
        let ask = encode_info(&Info::AskMap { known: 0 }).unwrap();
        let mut asked = vec![0; ask.len()];
        client.read_exact(&mut asked).unwrap();
        // A map of this node alone, so that the client finds no other.
        let map = floe::remote::ask_map(&node.peer_addr().unwrap().to_string(), GUARD).unwrap();
        let alone = floe::MapInfo { nodes: vec![1], addresses: vec!["127.0.0.1:1".into()], ..map };
        client.write_all(&encode_info(&Info::Map(alone)).unwrap()).unwrap();
        // The first bytes of a request: it has left.
        client.read_exact(&mut [0; 64]).unwrap();
    });
    let client = Client::connect(&[mute_address]).unwrap().with_timeout(Duration::from_secs(2));
    let lost = client.put_blocking("key", "value");
    assert_eq!(lost, Err(WriteError::OutcomeUnknown(UnknownReason::Disconnected)));
    broken.join().unwrap();
    let begun = Instant::now();
    let never_left = client.put_blocking("key", "value");
    assert_eq!(never_left, Err(WriteError::TimedOut));
    assert!(begun.elapsed() < GUARD / 4, "a deadline of 2 s took {:?}", begun.elapsed());
    drop(engines);
}

#[test]
fn what_a_client_may_not_send_ends_its_connection_and_nothing_else() {
    let (dir, members) = (temp_dir(), members(3));
    let engines = cluster(dir.path(), &members);
    let address = &members[0].address;
    let client = Client::connect(&[address]).unwrap();
    client.put_blocking("key", "value").unwrap();
    let frame = |messages| {
        let batch = floe_shard::peer::PeerBatch { messages, ..Default::default() };
        floe::codec::encode(&batch).parts.concat()
    };
    let beat =
        floe_shard::peer::PeerBatch { beat: Some(floe_shard::peer::Beat::of(1)), ..Default::default() };
    let replica = floe_raft::ReplicaId::new(1).unwrap();
    let vote = floe_raft::Message {
        from: replica,
        to: replica,
        term: 1000,
        body: floe_raft::Body::Vote { last: floe_raft::Mark { term: 999, index: 999 }, transfer: true },
    };
    let (shard, epoch) = (floe::ShardId(1), floe_shard::Epoch { range: 1, membership: 1 });
    let good = encode_info(&Info::AskMap { known: 0 }).unwrap();
    let mut spoiled = good.clone();
    *spoiled.last_mut().unwrap() ^= 1;
    let bad = [
        floe::codec::encode(&beat).parts.concat(),
        frame(vec![floe_shard::peer::PeerMessage::Raft { shard, epoch, message: vote }]),
        frame(vec![floe_shard::peer::PeerMessage::Answer {
            id: 1,
            answer: floe_shard::request::Answer::Done,
        }]),
        encode_info(&Info::Status(floe::NodeStatus::default())).unwrap(),
        vec![0xFF; 4096],
        spoiled,
    ];
    for (at, bytes) in bad.iter().enumerate() {
        let mut socket = greeted(address);
        socket.write_all(bytes).unwrap();
        assert!(is_closed(socket), "kind {at} of bad bytes ends the connection");
        assert_eq!(client.get_blocking("key").unwrap().as_deref(), Some(&b"value"[..]));
    }
    let refused: u64 = engines.iter().map(|engine| engine.metrics().messages_refused).sum();
    assert_eq!(refused, 0, "none of it came as far as a replica");
    let mut socket = greeted(address);
    socket.write_all(&good).unwrap();
    socket.read_exact(&mut [0; 32]).unwrap();
}

#[test]
fn clients_beyond_the_bound_are_refused_by_name_until_another_one_goes() {
    let (dir, members) = (temp_dir(), members(1));
    let engine = open(dir.path(), &members, 0, |config| config.clients_max = 2);
    let address = &members[0].address;
    let held = [greeted(address), greeted(address)];
    let error = Client::connect(&[address]).err().unwrap().to_string();
    assert!(error.contains("as many clients as it may"), "{error}");
    drop(held);
    let until = Instant::now() + GUARD;
    while let Err(error) = Client::connect(&[address]) {
        assert!(Instant::now() < until, "{error}");
    }
    engine.shutdown();
}

#[test]
fn a_node_tells_how_it_stands_and_a_wrong_address_what_to_do() {
    let (dir, members) = (temp_dir(), members(3));
    let engines = cluster(dir.path(), &members);
    let client = Client::connect(&addresses(&members)).unwrap();
    assert!(keys(64).all(|key| client.put_blocking(key, "value").is_ok()));
    let statuses: Vec<_> =
        addresses(&members).into_iter().map(|address| ask_status(address, GUARD).unwrap()).collect();
    let leads: usize =
        statuses.iter().flat_map(|status| &status.shards).filter(|shard| shard.is_leader).count();
    assert_eq!(leads, 8, "each shard has a leader");
    for (status, number) in statuses.iter().zip(1..) {
        assert_eq!((status.node, status.cores.len(), status.shards.len()), (number, 2, 8));
        assert!(status.cores.iter().any(|core| core.log_disk_bytes > 0));
        assert!(status.shards.iter().all(|shard| shard.commit >= 1 && shard.fault.is_empty()), "{status:?}");
    }
    drop(engines);
    let error = Client::connect(&addresses(&members)).err().unwrap().to_string();
    assert!(error.contains("floe node") && error.contains(&members[2].address), "{error}");
}
