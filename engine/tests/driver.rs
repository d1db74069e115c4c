//! The drivers with scripted workers instead of the real one: its sources are compiled into this test,
//! below a `worker` module of the test's own.

#![allow(clippy::unwrap_used)]

use floe::{clock, codec, disk, mailbox, metrics, probe, seam, transport};
use src::driver;

#[allow(dead_code, unused_imports, reason = "a test has no use for all of it")]
#[path = "../src"]
mod src {
    pub mod driver;
}

mod worker {
    use crate::seam::{Effects, Input};
    use floe_raft::Nanos;

    /// What a test has its core do.
    pub trait Script {
        fn start(&mut self, _effects: &mut Effects) {}
        fn step(&mut self, now: Nanos, inputs: &mut Vec<Input>, effects: &mut Effects);
        fn deadline(&self) -> Nanos {
            Nanos::MAX
        }
        fn has_work(&self) -> bool {
            false
        }
    }

    /// Stands in for the engine's worker.
    pub struct Worker(pub Box<dyn Script>);

    impl Worker {
        pub fn step(&mut self, now: Nanos, inputs: &mut Vec<Input>, effects: &mut Effects) {
            self.0.step(now, inputs, effects);
        }
        pub fn deadline(&self) -> Nanos {
            self.0.deadline()
        }
        pub fn has_work(&self) -> bool {
            self.0.has_work()
        }
        pub fn statuses(&self) -> Option<Vec<floe_shard::ShardStatus>> {
            None
        }
    }
}

#[path = "driver/calls.rs"]
mod calls;

use bytes::Bytes;
use calls::{Calls, disk_steps, done, write_call};
use disk::{BLOCK, DiskCall, OpId, OpOwner};
use driver::{CoreSetup, Driver, spawn};
use floe_raft::Nanos;
use floe_shard::peer::{PeerBatch, PeerMessage};
use floe_shard::request::{Answer, BusyReason, Refusal, Request, UnknownReason};
use floe_shard::{CoreAddr, NodeId, ShardId};
use mailbox::{Control, Mailbox, Post, Slot};
use metrics::{CoreMetrics, TURN_BOUNDS_NS};
use seam::{Effects, Event, Input};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use transport::{Acceptor, HelloIdentity, PeerStores};
use worker::{Script, Worker};

/// Generous: only a hang takes so long.
const GUARD: Duration = Duration::from_secs(30);

/// One test per driver and rule.
macro_rules! on_both_drivers {
    ($($rule:ident)*) => {
        mod ring {
            $(#[test] fn $rule() { super::$rule(super::Driver::Ring); })*
        }
        mod glommio {
            $(#[test] fn $rule() { super::$rule(super::Driver::Glommio); })*
        }
    };
}

on_both_drivers! {
    what_is_written_is_read_back_through_create_write_and_rename
    a_file_system_in_memory_works_too
    disk_and_network_make_progress_beside_a_worker_that_is_never_idle
    no_wake_up_from_a_foreign_thread_is_lost
    everybody_is_answered_when_the_bound_is_reached_and_when_the_core_stops
    a_bad_frame_closes_its_connection_and_nothing_else
    frames_of_all_sizes_arrive_whole_and_in_order
    a_panic_on_a_core_ends_the_process_with_a_report
    a_stopped_core_keeps_no_descriptors_open
    turns_are_counted_by_their_length_and_sleep_is_none_of_them
}

struct Node {
    mailbox: Arc<Mailbox>,
    events: Receiver<(u16, Event)>,
    metrics: Arc<CoreMetrics>,
    thread: Option<JoinHandle<()>>,
    /// Accepts as long as the node is there.
    _acceptor: Option<Acceptor>,
    _stores_dir: tempfile::TempDir,
}

struct Options {
    driver: Driver,
    node: u64,
    requests_max: usize,
    peers: Vec<(NodeId, String)>,
    listener: Option<TcpListener>,
}

impl Options {
    fn of(driver: Driver) -> Self {
        Self { driver, node: 1, requests_max: 1000, peers: Vec::new(), listener: None }
    }
}

fn identity(node: u64) -> HelloIdentity {
    HelloIdentity { cluster: 5, node: NodeId(node), store_uuid: u128::from(node), boot_epoch: 1, cores: 1 }
}

fn start(dir: &Path, options: Options, script: impl Script + Send + 'static) -> Node {
    let mailbox = Arc::new(Mailbox::new(10_000));
    let (sender, events) = channel();
    let known = options.peers.iter().map(|(peer, _)| *peer).collect();
    let stores_dir = tempfile::tempdir().unwrap();
    let stores = Arc::new(PeerStores::open(stores_dir.path()).unwrap());
    let metrics = Arc::<CoreMetrics>::default();
    let setup = CoreSetup {
        worker: Box::new(move |effects, _now| {
            let mut script = script;
            script.start(effects);
            Worker(Box::new(script))
        }),
        me: CoreAddr { node: NodeId(options.node), core: 0 },
        cores: 1,
        data_dir: dir.to_owned(),
        mailbox: mailbox.clone(),
        siblings: vec![mailbox.clone()],
        peers: options.peers,
        identity: Arc::new(OnceLock::from(identity(options.node))),
        stores: stores.clone(),
        events: sender,
        metrics: metrics.clone(),
        pin: None,
        spin_before_park: None,
        io_memory: None,
        send_queue_bytes_max: 16 << 20,
        requests_max: options.requests_max,
    };
    let thread = Some(spawn(options.driver, setup).unwrap());
    mailbox.control(Control::Connect);
    let acceptor = options.listener.map(|listener| {
        Acceptor::start(listener, identity(options.node), known, vec![mailbox.clone()], None, stores).unwrap()
    });
    Node { mailbox, events, metrics, thread, _acceptor: acceptor, _stores_dir: stores_dir }
}

impl Node {
    /// Waits until [`Server`] tells that a connection came or went.
    fn await_connection(&self, what: ShardId) {
        let event = self.events.recv_timeout(GUARD).expect("every connection is told of").1;
        assert!(matches!(event, Event::Leader { shard, .. } if shard == what), "{event:?}, not {what}");
    }

    /// Waits until the script reports that it is through.
    fn await_stopped(&mut self) {
        let until = Instant::now() + GUARD;
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((_, Event::Stopped)) => break,
                Ok((_, Event::Failed(failure))) => panic!("{failure}"),
                Ok(_) => {}
                Err(error) => panic!("the core hangs: {error}"),
            }
        }
        self.thread.take().unwrap().join().unwrap();
    }

    fn post(&self, request: Request) -> Arc<Slot> {
        let slot = Slot::new();
        let post = Post {
            request,
            deadline: clock::now() + 1_000_000_000,
            park_until: u64::MAX,
            slot: slot.clone(),
        };
        assert!(self.mailbox.post(post).is_ok(), "mailbox is full or closed");
        slot
    }
}

fn write_request(command: &'static [u8]) -> Request {
    Request::Write { shard: ShardId(1), command: Bytes::from_static(command) }
}

fn op(number: u64) -> OpId {
    OpId { owner: OpOwner::Wal, number }
}

fn fill(byte: u8, blocks: usize) -> Box<Bytes> {
    Box::new(Bytes::from(vec![byte; blocks * BLOCK]))
}

fn spin(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

fn what_is_written_is_read_back_through_create_write_and_rename(driver: Driver) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script = Calls { steps: disk_steps(), at: 0, missing: 0 };
    start(&dir.path().join("made/by/the/driver"), Options::of(driver), script).await_stopped();
}

fn a_file_system_in_memory_works_too(driver: Driver) {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let script = Calls { steps: disk_steps(), at: 0, missing: 0 };
    start(dir.path(), Options::of(driver), script).await_stopped();
}

fn frame(id: u64) -> seam::OutFrame {
    let messages = vec![PeerMessage::Answer { id, answer: Answer::Done }];
    codec::encode(&PeerBatch { messages, ..PeerBatch::default() })
}

/// Works in every turn until it is told to stop; meanwhile writes to disk and plays ping-pong with its peer.
struct NeverIdle {
    peer: CoreAddr,
    serves: bool,
    rounds: u64,
    written: u64,
    heard: u64,
    goal: u64,
    finished: bool,
}

impl Script for NeverIdle {
    fn start(&mut self, effects: &mut Effects) {
        let path = "log".into();
        effects.disk.push((op(0), DiskCall::Create { path, len: 16 * BLOCK as u64 }));
    }
    fn step(&mut self, _now: Nanos, inputs: &mut Vec<Input>, effects: &mut Effects) {
        for input in inputs.drain(..) {
            match input {
                Input::Disk { op: OpId { number, .. }, result } => {
                    assert!(result.is_ok(), "{result:?}");
                    self.written = number;
                    let write = write_call("log", (number % 16) as usize, number as u8);
                    effects.disk.push((op(number + 1), write));
                }
                Input::PeerUp { peer, cores } => {
                    assert_eq!((peer, cores), (self.peer, 1));
                    if self.serves {
                        effects.sends.push((peer, frame(1)));
                    }
                }
                Input::Frame { from, body } => {
                    let batch = codec::decode(body).unwrap();
                    let PeerMessage::Answer { id, .. } = batch.messages[0] else { panic!("{batch:?}") };
                    assert!(id > self.heard);
                    self.heard = id;
                    effects.sends.push((from, frame(id + 1)));
                }
                Input::Shutdown => effects.events.push(Event::Stopped),
                _ => {}
            }
        }
        spin(Duration::from_micros(20));
        self.rounds += 1;
        if self.written > self.goal && self.heard > self.goal && !self.finished {
            self.finished = true;
            effects.events.push(Event::Leader { shard: ShardId(self.rounds), leader: None });
        }
    }
    fn has_work(&self) -> bool {
        true
    }
}

fn disk_and_network_make_progress_beside_a_worker_that_is_never_idle(driver: Driver) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let script = |node: u64| NeverIdle {
        peer: CoreAddr { node: NodeId(3 - node), core: 0 },
        serves: node == 1,
        rounds: 0,
        written: 0,
        heard: 0,
        goal: 300,
        finished: false,
    };
    let options = Options { peers: vec![(NodeId(2), address)], ..Options::of(driver) };
    let one = start(&dir.path().join("1"), options, script(1));
    let peers = vec![(NodeId(1), String::new())];
    let options = Options { node: 2, peers, listener: Some(listener), ..Options::of(driver) };
    let two = start(&dir.path().join("2"), options, script(2));
    for node in [&one, &two] {
        let event = node.events.recv_timeout(GUARD).expect("disk or network stand still");
        assert!(matches!(event.1, Event::Leader { .. }), "{event:?}");
    }
    // A shutdown gets through to such a core, too.
    for mut node in [one, two] {
        node.mailbox.control(Control::Shutdown);
        node.await_stopped();
    }
}

/// Answers requests; keeps those whose command says so.
struct Server;

/// How [`Server`] tells that a connection came or went.
const UP: ShardId = ShardId(1);
const DOWN: ShardId = ShardId(0);

impl Script for Server {
    fn step(&mut self, _now: Nanos, inputs: &mut Vec<Input>, effects: &mut Effects) {
        for input in inputs.drain(..) {
            match input {
                Input::Request { id, request: Request::Write { command, .. }, .. }
                    if &command[..] != b"keep" =>
                {
                    effects.answers.push((id, Answer::Written { version: id.0 }));
                }
                Input::PeerUp { .. } => effects.events.push(Event::Leader { shard: UP, leader: None }),
                Input::PeerDown { .. } => effects.events.push(Event::Leader { shard: DOWN, leader: None }),
                Input::Frame { from, body } => {
                    if let Err(error) = codec::decode(body) {
                        effects.disconnects.push((from, error.into()));
                    }
                }
                Input::Shutdown => effects.events.push(Event::Stopped),
                _ => {}
            }
        }
    }
}

fn no_wake_up_from_a_foreign_thread_is_lost(driver: Driver) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut node = start(dir.path(), Options::of(driver), Server);
    let (finished, finish) = channel();
    for thread in 0..6u64 {
        let mailbox = node.mailbox.clone();
        let finished = finished.clone();
        std::thread::spawn(move || {
            for round in 0..3000 {
                let slot = Slot::new();
                let request = write_request(b"answer");
                assert!(
                    mailbox.post(Post { request, deadline: 0, park_until: 0, slot: slot.clone() }).is_ok()
                );
                assert!(matches!(slot.wait(Nanos::MAX), Answer::Written { .. }));
                if (round * 7 + thread) % 97 == 0 {
                    // Long enough for the core to fall asleep.
                    std::thread::sleep(Duration::from_micros(300));
                }
            }
            finished.send(()).unwrap();
        });
    }
    for _ in 0..6 {
        finish.recv_timeout(GUARD).expect("a request was never taken in");
    }
    node.mailbox.control(Control::Shutdown);
    node.await_stopped();
}

fn everybody_is_answered_when_the_bound_is_reached_and_when_the_core_stops(driver: Driver) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = Options { requests_max: 3, ..Options::of(driver) };
    let mut node = start(dir.path(), options, Server);
    let kept: Vec<_> = (0..3).map(|_| node.post(write_request(b"keep"))).collect();
    let busy = node.post(write_request(b"keep")).wait(Nanos::MAX);
    assert_eq!(busy, Answer::Refused(Refusal::Busy(BusyReason::Requests)));
    node.mailbox.control(Control::Shutdown);
    node.await_stopped();
    for slot in kept {
        assert_eq!(slot.wait(Nanos::MAX), Answer::Unknown(UnknownReason::ShuttingDown));
    }
    let post = Post { request: write_request(b"late"), deadline: 0, park_until: 0, slot: Slot::new() };
    assert!(node.mailbox.post(post).is_err());
}

/// Says hello as node 1, by hand.
fn shake_hands(to: std::net::SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(GUARD)).unwrap();
    socket.write_all(&identity(1).hello(0, 0).encode()).unwrap();
    let mut reply = [0; transport::REPLY_LEN];
    socket.read_exact(&mut reply).unwrap();
    let reply = transport::HelloReply::parse(&reply).unwrap();
    assert!(matches!(reply, transport::HelloReply::Accepted(_)), "{reply:?}");
    socket
}

fn await_closed(mut socket: TcpStream) {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "still open"),
    }
}

fn a_bad_frame_closes_its_connection_and_nothing_else(driver: Driver) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let peers = vec![(NodeId(1), String::new())];
    let options = Options { node: 2, peers, listener: Some(listener), ..Options::of(driver) };
    let mut node = start(dir.path(), options, Server);
    let good = frame(1).parts.concat();
    for at in [0, 5, 7, 8, 12, 20, 30, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let mut socket = shake_hands(address);
        node.await_connection(UP);
        socket.write_all(&[&good[..], &bad[..]].concat()).unwrap();
        await_closed(socket);
        node.await_connection(DOWN);
    }
    // A second connection of the same core replaces the first. The core may take two that are accepted at once
    // in any order: each is handed over by a thread of its own, after the reply.
    let first = shake_hands(address);
    node.await_connection(UP);
    let second = shake_hands(address);
    await_closed(first);
    node.await_connection(DOWN);
    node.await_connection(UP);
    assert!(matches!(node.post(write_request(b"answer")).wait(Nanos::MAX), Answer::Written { .. }));
    node.mailbox.control(Control::Shutdown);
    node.await_stopped();
    await_closed(second);
}

/// Sends many frames of all sizes each way, more than sockets take at once.
struct Flood {
    peer: CoreAddr,
    sent: u64,
    heard: u64,
    goal: u64,
    told: bool,
}

fn flood_frame(id: u64) -> seam::OutFrame {
    let len = [3, 100, 5000, 200_000, 0, 70_000][(id % 6) as usize];
    let data = Bytes::from(vec![id as u8; len]);
    let from = floe_raft::ReplicaId::new(1).unwrap();
    let chunk = PeerMessage::DumpChunk { shard: ShardId(1), from, to: from, generation: 1, offset: id, data };
    codec::encode(&PeerBatch { messages: vec![chunk], ..PeerBatch::default() })
}

impl Script for Flood {
    fn step(&mut self, _now: Nanos, inputs: &mut Vec<Input>, effects: &mut Effects) {
        for input in inputs.drain(..) {
            match input {
                Input::PeerUp { .. } => {
                    for _ in 0..40 {
                        self.sent += 1;
                        effects.sends.push((self.peer, flood_frame(self.sent)));
                    }
                }
                Input::Frame { body, .. } => {
                    let batch = codec::decode(body).unwrap();
                    let PeerMessage::DumpChunk { offset, data, .. } = &batch.messages[0] else { panic!() };
                    self.heard += 1;
                    assert_eq!(*offset, self.heard, "frames of one peer stay in order");
                    assert!(data.iter().all(|byte| *byte == *offset as u8));
                    if self.sent < self.goal {
                        self.sent += 1;
                        effects.sends.push((self.peer, flood_frame(self.sent)));
                    }
                }
                Input::Shutdown => effects.events.push(Event::Stopped),
                _ => {}
            }
        }
        if self.heard == self.goal && !self.told {
            self.told = true;
            effects.events.push(Event::Leader { shard: ShardId(0), leader: None });
        }
    }
}

fn frames_of_all_sizes_arrive_whole_and_in_order(driver: Driver) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let script = |node: u64| Flood {
        peer: CoreAddr { node: NodeId(3 - node), core: 0 },
        sent: 0,
        heard: 0,
        goal: 2000,
        told: false,
    };
    let options = Options { peers: vec![(NodeId(2), address)], ..Options::of(driver) };
    let one = start(&dir.path().join("1"), options, script(1));
    let peers = vec![(NodeId(1), String::new())];
    let options = Options { node: 2, peers, listener: Some(listener), ..Options::of(driver) };
    let two = start(&dir.path().join("2"), options, script(2));
    for node in [&one, &two] {
        let event = node.events.recv_timeout(GUARD).expect("frames are missing");
        assert!(matches!(event.1, Event::Leader { .. }), "{event:?}");
    }
    for mut node in [one, two] {
        node.mailbox.control(Control::Shutdown);
        node.await_stopped();
    }
}

/// Panics at the first request.
struct Panicking;

impl Script for Panicking {
    fn step(&mut self, _now: Nanos, inputs: &mut Vec<Input>, _effects: &mut Effects) {
        for input in inputs.drain(..) {
            assert!(!matches!(input, Input::Request { .. }), "an invariant is broken");
        }
    }
}

const CHILD: &str = "FLOE_TEST_PANICKING_CHILD";

fn a_panic_on_a_core_ends_the_process_with_a_report(driver: Driver) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if std::env::var_os(CHILD).is_some() {
        let node = start(dir.path(), Options::of(driver), Panicking);
        node.post(write_request(b"x")).wait(Nanos::MAX);
        std::thread::sleep(GUARD);
        return;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let name = format!("{driver:?}::a_panic_on_a_core_ends_the_process_with_a_report").to_lowercase();
    child.args(["--exact", &name, "--nocapture"]);
    let output = child.env(CHILD, "1").output().unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(report.contains("an invariant is broken") && report.contains("core n1/c0 panicked"), "{report}");
}

fn a_stopped_core_keeps_no_descriptors_open(driver: Driver) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mine = || {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let is_mine = |path: std::path::PathBuf| path.starts_with(dir.path());
        open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
            .filter(|to| is_mine(to.clone()))
            .count()
    };
    for _ in 0..5 {
        let create = DiskCall::Create { path: "log".into(), len: 8 * BLOCK as u64 };
        let steps = vec![done(vec![create]), done(vec![write_call("log", 0, 1)])];
        start(dir.path(), Options::of(driver), Calls { steps, at: 0, missing: 0 }).await_stopped();
        assert_eq!(mine(), 0);
    }
}

/// Takes a given time for each request, in a turn of its own, and stops with the last one.
struct Slow {
    turns: usize,
}

impl Slow {
    const LENGTHS: [Duration; 4] =
        [Duration::ZERO, Duration::from_millis(40), Duration::from_millis(200), Duration::ZERO];
}

impl Script for Slow {
    fn step(&mut self, _now: Nanos, inputs: &mut Vec<Input>, effects: &mut Effects) {
        for input in inputs.drain(..) {
            let Input::Request { id, .. } = input else { continue };
            spin(Self::LENGTHS[self.turns]);
            self.turns += 1;
            effects.answers.push((id, Answer::Done));
            if self.turns == Self::LENGTHS.len() {
                effects.events.push(Event::Stopped);
            }
        }
    }
}

fn turns_are_counted_by_their_length_and_sleep_is_none_of_them(driver: Driver) {
    let dir = tempfile::tempdir().unwrap();
    let mut node = start(dir.path(), Options::of(driver), Slow { turns: 0 });
    let begun = Instant::now();
    for turn in 0..Slow::LENGTHS.len() {
        assert_eq!(
            node.post(write_request(b"slow")).wait(clock::now() + 10_000_000_000),
            Answer::Done,
            "{turn}"
        );
        std::thread::sleep(Duration::from_millis(400));
    }
    let metrics = node.metrics.clone();
    node.await_stopped();
    let took = begun.elapsed().as_nanos() as u64;
    let turns = metrics.turn_lengths.read();
    let longer_than = |ms: u64| {
        let first = TURN_BOUNDS_NS.iter().position(|&bound| bound == ms * 1_000_000).unwrap() + 1;
        turns.counts[first..].iter().sum::<u64>()
    };
    assert!(longer_than(30) >= 2 && longer_than(150) >= 1, "one took 40 ms, one 200 ms: {turns:?}");
    assert!(turns.counts.iter().sum::<u64>() >= 3, "{turns:?}");
    assert!(
        (240_000_000..took - 800_000_000).contains(&turns.sum_ns),
        "of {took} ns it slept half: {turns:?}"
    );
}
