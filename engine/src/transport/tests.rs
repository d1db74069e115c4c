use super::*;
use crate::mailbox::{Control, Mailbox};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

const GUARD: Duration = Duration::from_secs(30);

fn identity(node: u64, cores: u16) -> HelloIdentity {
    HelloIdentity {
        cluster: 0xC1,
        node: NodeId(node),
        store_uuid: 100 + u128::from(node),
        boot_epoch: 3,
        cores,
    }
}

/// An acceptor, and a directory for whoever notes stores.
struct Accepting {
    acceptor: Acceptor,
    dir: tempfile::TempDir,
}

impl Accepting {
    fn address(&self) -> SocketAddr {
        self.acceptor.address()
    }
}

fn acceptor(cores: u16, known: &[u64]) -> (Accepting, Vec<Arc<Mailbox>>) {
    let mailboxes: Vec<_> = (0..cores).map(|_| Arc::new(Mailbox::new(4))).collect();
    let known = known.iter().map(|id| NodeId(*id)).collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stores = Arc::new(PeerStores::open(dir.path()).unwrap());
    let started = Acceptor::start(listener, identity(9, cores), known, mailboxes.clone(), None, stores);
    (Accepting { acceptor: started.unwrap(), dir }, mailboxes)
}

fn say(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(to).unwrap();
    socket.write_all(bytes).unwrap();
    socket
}

fn ask(to: SocketAddr, hello: &Hello) -> HelloReply {
    let socket = say(to, &hello.encode());
    HelloReply::parse(&read_within(&socket, GUARD).unwrap()).unwrap()
}

fn await_accepted(mailbox: &Mailbox) -> (std::os::fd::OwnedFd, Hello) {
    let until = Instant::now() + GUARD;
    loop {
        if let Some(Control::Accepted { socket, hello }) = mailbox.take_control() {
            return (socket, hello);
        }
        assert!(Instant::now() < until, "no connection was handed over");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn noise(seed: &mut u64) -> u8 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*seed >> 56) as u8
}

#[test]
fn hellos_and_replies_come_back_exactly_and_damage_is_noticed() {
    let hello = identity(7, 4).hello(3, 1);
    let bytes = hello.encode();
    assert_eq!(Hello::parse(&bytes), Ok(hello));
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes;
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Hello::parse(&damaged).is_err(), "bit {bit}");
    }
    let text = "é".repeat(100);
    let refused = HelloReply::Refused { code: RefusalCode::Version, text: text.clone() };
    let HelloReply::Refused { code, text: cut } = HelloReply::parse(&refused.encode()).unwrap() else {
        panic!()
    };
    assert_eq!((code, cut.as_str()), (RefusalCode::Version, &text[..160]));
    for reply in [HelloReply::Accepted(hello), refused] {
        let bytes = reply.encode();
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(HelloReply::parse(&damaged).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn random_bytes_with_a_right_checksum_never_make_a_parser_panic() {
    let mut seed = 5;
    for _ in 0..20_000 {
        let mut hello: [u8; HELLO_LEN] = std::array::from_fn(|_| noise(&mut seed));
        hello[..8].copy_from_slice(&HELLO_MAGIC);
        let crc = checksum(&hello[..76]);
        hello[76..].copy_from_slice(&crc.to_le_bytes());
        let _ = Hello::parse(&hello);
        let mut reply: [u8; REPLY_LEN] = std::array::from_fn(|_| noise(&mut seed));
        reply[..8].copy_from_slice(&REPLY_MAGIC);
        reply[8..12].copy_from_slice(&[noise(&mut seed) % 12, 0, noise(&mut seed), 0]);
        let crc = checksum(&reply[..REPLY_LEN - 4]);
        reply[REPLY_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        let _ = HelloReply::parse(&reply);
    }
}

#[test]
fn silent_cut_and_nonsense_connections_leave_the_acceptor_serving() {
    let (acceptor, mailboxes) = acceptor(1, &[1]);
    let hello = identity(1, 1).hello(0, 0);
    let mut seed = 77;
    let mut held: Vec<TcpStream> = (0..20).map(|_| say(acceptor.address(), b"")).collect();
    for round in 0..20 {
        let junk: Vec<u8> = (0..HELLO_LEN).map(|_| noise(&mut seed)).collect();
        held.push(say(acceptor.address(), &junk));
        drop(say(acceptor.address(), &hello.encode()[..round * 4]));
    }
    let reply = ask(acceptor.address(), &hello);
    assert_eq!(reply, HelloReply::Accepted(identity(9, 1).hello(0, 0)));
    assert_eq!(await_accepted(&mailboxes[0]).1, hello);
    acceptor.acceptor.stop();
}

#[test]
fn every_reason_to_refuse_is_named() {
    let (acceptor, mailboxes) = acceptor(2, &[1, 2, 10]);
    let good = identity(1, 2).hello(0, 0);
    let refused = |hello: Hello| match ask(acceptor.address(), &hello) {
        HelloReply::Refused { code, .. } => code,
        HelloReply::Accepted(_) => panic!("accepted {hello:?}"),
    };
    assert_eq!(refused(Hello { cluster: 1, ..good }), RefusalCode::WrongCluster);
    assert_eq!(refused(Hello { protocol_min: 9, protocol_max: 9, ..good }), RefusalCode::Version);
    assert_eq!(refused(Hello { node: NodeId(3), ..good }), RefusalCode::UnknownNode);
    assert_eq!(refused(Hello { node: NodeId(9), ..good }), RefusalCode::OwnNode);
    assert_eq!(refused(Hello { node: NodeId(10), ..good }), RefusalCode::WrongDirection);
    assert_eq!(refused(Hello { target_core: 2, ..good }), RefusalCode::NoSuchCore);
    assert_eq!(refused(Hello { store_uuid: 109, ..good }), RefusalCode::DuplicateStore);
    assert!(matches!(ask(acceptor.address(), &good), HelloReply::Accepted(_)));
    assert_eq!(refused(Hello { node: NodeId(2), ..good }), RefusalCode::DuplicateStore);
    assert_eq!(refused(Hello { store_uuid: 77, ..good }), RefusalCode::OtherStore);
    mailboxes[1].close();
    assert_eq!(refused(Hello { target_core: 1, ..good }), RefusalCode::NotReady);
}

fn dial(acceptor: &Accepting, core: u16, cores: u16) -> (Dialer, Arc<Mailbox>) {
    let dir = acceptor.dir.path().join(format!("{core} of {cores}"));
    std::fs::create_dir(&dir).unwrap();
    dial_knowing(PeerStores::open(&dir).unwrap(), acceptor, core, cores)
}

fn dial_knowing(stores: PeerStores, acceptor: &Accepting, core: u16, cores: u16) -> (Dialer, Arc<Mailbox>) {
    let mailbox = Arc::new(Mailbox::new(1));
    let dialer = Dialer::start(DialSetup {
        peer: NodeId(9),
        address: acceptor.address().to_string(),
        core,
        own: identity(1, cores),
        stores: Arc::new(stores),
        mailbox: Arc::clone(&mailbox),
    });
    (dialer.unwrap(), mailbox)
}

#[test]
fn a_dialer_takes_no_peer_that_has_another_store_than_before() {
    let (acceptor, _mailboxes) = acceptor(1, &[1]);
    let elsewhere = tempfile::tempdir().unwrap();
    let stores = PeerStores::open(elsewhere.path()).unwrap();
    let own = identity(1, 1).hello(0, 0);
    stores.judge(&own, &Hello { store_uuid: 77, ..identity(9, 1).hello(0, 0) }).unwrap();
    let (_dialer, refusing) = dial_knowing(stores, &acceptor, 0, 1);
    let (_other, taking) = dial(&acceptor, 0, 1);
    await_accepted(&taking);
    std::thread::sleep(Duration::from_millis(100));
    assert!(refusing.take_control().is_none(), "its directory isn't the one before");
}

fn cores_of(mailbox: &Mailbox, count: usize) -> Vec<u16> {
    let mut cores: Vec<u16> = (0..count).map(|_| await_accepted(mailbox).1.core).collect();
    cores.sort_unstable();
    cores
}

#[test]
fn a_core_connects_to_its_like_or_to_all_when_the_counts_differ() {
    let (acceptor, mailboxes) = acceptor(3, &[1]);
    let (_like, to_like) = dial(&acceptor, 2, 3);
    assert_eq!(cores_of(&to_like, 1), [2]);
    assert_eq!(await_accepted(&mailboxes[2]).1.core, 2);
    let (_fewer, to_fewer) = dial(&acceptor, 0, 1);
    assert_eq!(cores_of(&to_fewer, 3), [0, 1, 2]);
    // Core 4 of 5: the acceptor has no core 4, and core 0 tells how many there are.
    let (_more, to_more) = dial(&acceptor, 4, 5);
    assert_eq!(cores_of(&to_more, 3), [0, 1, 2]);
    std::thread::sleep(Duration::from_millis(20));
    assert!(to_like.take_control().is_none(), "one connection per core pair");
}

#[test]
fn a_lost_connection_is_made_again() {
    let (acceptor, _mailboxes) = acceptor(1, &[1]);
    let (dialer, mailbox) = dial(&acceptor, 0, 1);
    for _ in 0..3 {
        drop(await_accepted(&mailbox));
        dialer.lost(0);
    }
    await_accepted(&mailbox);
}

#[test]
fn a_client_has_no_node_id_and_a_core_has_one() {
    let client = Hello::of_client(7);
    assert_eq!(Hello::parse(&client.encode()), Ok(client));
    let core = identity(1, 1).hello(0, 0);
    for wrong in [Hello { node: NodeId(1), ..client }, Hello { node: NodeId(0), ..core }] {
        assert_eq!(Hello::parse(&wrong.encode()), Err(HelloError::Field("node id")));
    }
    let (acceptor, _) = acceptor(1, &[1]);
    let refused = ask(acceptor.address(), &Hello::of_client(0xC1));
    assert!(matches!(refused, HelloReply::Refused { code: RefusalCode::ManyClients, .. }), "{refused:?}");
    let refused = ask(acceptor.address(), &Hello::of_client(7));
    assert!(matches!(refused, HelloReply::Refused { code: RefusalCode::WrongCluster, .. }), "{refused:?}");
}
