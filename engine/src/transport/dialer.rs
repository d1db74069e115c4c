//! The connecting side: one thread per core and peer node, asleep while its connections are up.

use super::{
    HELLO_TIMEOUT, Hello, HelloIdentity, HelloReply, PeerStores, REPLY_LEN, RefusalCode, hand_over,
    read_within,
};
use crate::boot::cluster_text;
use crate::mailbox::{Control, Mailbox};
use floe_shard::NodeId;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A connection that lived for so long starts over with the shortest back-off.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// What a dialer needs to know.
pub struct DialSetup {
    /// The node to connect to.
    pub peer: NodeId,
    /// Its address, a name or number with a port; resolved at every attempt.
    pub address: String,
    /// The core that the connections are for.
    pub core: u16,
    /// Who this node is.
    pub own: HelloIdentity,
    /// The stores of the node's peers.
    pub stores: Arc<PeerStores>,
    /// The core's mailbox, where sockets go.
    pub mailbox: Arc<Mailbox>,
}

/// Keeps one core connected to the cores of one peer node that it should be connected to. Its thread ends
/// soon after this is dropped.
pub struct Dialer {
    lost: Sender<u16>,
}

impl Dialer {
    /// Starts the thread.
    ///
    /// # Errors
    /// If there can't be one.
    pub fn start(setup: DialSetup) -> io::Result<Self> {
        let (lost, commands) = channel();
        let name = format!("floe-{}-c{}-dial-{}", setup.own.node, setup.core, setup.peer);
        let thread = std::thread::Builder::new().name(name).stack_size(256 << 10);
        thread.spawn(move || DialLoop::new(setup, commands).run())?;
        Ok(Self { lost })
    }

    /// The connection to this core of the peer is gone: make a new one.
    pub fn lost(&self, core: u16) {
        // An error means that the thread has ended, as it does when the core stops.
        let _ = self.lost.send(core);
    }
}

/// One core of the peer's.
struct Target {
    /// When to try next; `None` while connected.
    due: Option<Instant>,
    backoff: Duration,
    connected_at: Instant,
}

struct DialLoop {
    setup: DialSetup,
    commands: Receiver<u16>,
    targets: BTreeMap<u16, Target>,
    prng: u64,
    /// What the last attempt died of, so that the log says it once.
    complaint: String,
}

/// Why an attempt failed.
#[derive(Debug)]
pub enum DialError {
    /// The system, at what.
    Io(&'static str, io::Error),
    /// The other end refuses, and why.
    Refused(RefusalCode, String),
    /// Something else answers than was expected.
    Wrong(String),
}

impl std::fmt::Display for DialError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(what, error) => write!(f, "{what}: {error}"),
            Self::Refused(code, text) => write!(f, "refused ({code:?}): {text}"),
            Self::Wrong(text) => f.write_str(text),
        }
    }
}

impl DialLoop {
    fn new(setup: DialSetup, commands: Receiver<u16>) -> Self {
        let prng = setup.own.node.0 ^ setup.peer.0.rotate_left(24) ^ (u64::from(setup.core) << 48);
        Self { setup, commands, targets: BTreeMap::new(), prng, complaint: String::new() }
    }

    /// Until the core drops the other end of `commands`.
    fn run(mut self) {
        self.want(self.setup.core, Instant::now());
        loop {
            let now = Instant::now();
            let due = self.targets.iter().filter_map(|(core, t)| Some((t.due?, *core))).min();
            match due {
                Some((at, core)) if at <= now => {
                    if self.dial(core).is_err() {
                        return;
                    }
                }
                due => {
                    let wait = due.map_or(Duration::from_secs(3600), |(at, _)| at - now);
                    match self.commands.recv_timeout(wait) {
                        Ok(core) => self.on_lost(core),
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            }
        }
    }

    fn want(&mut self, core: u16, due: Instant) {
        let target = Target { due: Some(due), backoff: BACKOFF_MIN, connected_at: due };
        self.targets.entry(core).or_insert(target);
    }

    fn on_lost(&mut self, core: u16) {
        if let Some(target) = self.targets.get_mut(&core) {
            if target.connected_at.elapsed() >= STABLE_AFTER {
                target.backoff = BACKOFF_MIN;
            }
            self.retry_later(core);
        }
    }

    /// Between half of the back-off and all of it, which then doubles.
    fn retry_later(&mut self, core: u16) {
        self.prng = self.prng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if let Some(target) = self.targets.get_mut(&core) {
            let half = target.backoff / 2;
            let jitter = half.mul_f64((self.prng >> 40) as f64 / (1u64 << 24) as f64);
            target.due = Some(Instant::now() + half + jitter);
            target.backoff = (target.backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// One attempt. An error means that the core has stopped.
    fn dial(&mut self, core: u16) -> Result<(), ()> {
        let result = self.connect(core);
        if let Err(TryRecvError::Disconnected) = self.commands.try_recv().map(|lost| self.on_lost(lost)) {
            return Err(());
        }
        match result {
            Ok((socket, hello)) => self.on_connected(core, socket, hello),
            Err(DialError::Refused(RefusalCode::NoSuchCore, _)) if core != 0 => {
                // The peer has fewer cores: core 0 exists and tells how many.
                self.targets.remove(&core);
                self.want(0, Instant::now());
            }
            Err(error) => {
                self.complain(error.to_string());
                self.retry_later(core);
            }
        }
        Ok(())
    }

    fn complain(&mut self, complaint: String) {
        if self.complaint != complaint {
            let DialSetup { peer, address, core, .. } = &self.setup;
            tracing::warn!(%peer, address, core, reason = complaint, "no connection; trying on");
            self.complaint = complaint;
        }
    }

    fn on_connected(&mut self, core: u16, socket: OwnedFd, hello: Hello) {
        self.complaint.clear();
        let now = Instant::now();
        if hello.cores == self.setup.own.cores {
            let own = self.setup.core;
            self.targets.retain(|other, target| *other == own || target.due.is_none());
            self.want(own, now);
        } else {
            self.targets.retain(|other, target| *other < hello.cores || target.due.is_none());
            (0..hello.cores).for_each(|other| self.want(other, now));
        }
        if let Some(target) = self.targets.get_mut(&core) {
            target.due = None;
            target.connected_at = now;
            self.setup.mailbox.control(Control::Accepted { socket, hello });
        }
    }

    /// Exchanges hellos with the peer that it should be.
    fn connect(&self, core: u16) -> Result<(OwnedFd, Hello), DialError> {
        let own = self.setup.own.hello(self.setup.core, core);
        let (socket, hello) = connect(&self.setup.address, &own)?;
        self.check(&own, &hello)?;
        Ok((socket, hello))
    }

    fn check(&self, own: &Hello, hello: &Hello) -> Result<(), DialError> {
        let wrong = |text: String| Err(DialError::Wrong(text));
        if hello.node != self.setup.peer {
            return wrong(format!("{} answers at this address", hello.node));
        }
        if hello.cluster != own.cluster {
            return wrong(format!("{} belongs to cluster {}", hello.node, cluster_text(hello.cluster)));
        }
        if hello.core != own.target_core || hello.target_core != own.core {
            return wrong(format!("core {} answers core {}", hello.core, hello.target_core));
        }
        if own.common_version(hello).is_none() {
            let (min, max) = (hello.protocol_min, hello.protocol_max);
            return wrong(format!("{} speaks protocol versions {min} to {max}", hello.node));
        }
        self.setup.stores.judge(own, hello).map_err(|(_, text)| DialError::Wrong(text))
    }
}

/// Connects and says hello; the socket and what the other end said if it accepts.
pub(crate) fn connect(address: &str, own: &Hello) -> Result<(OwnedFd, Hello), DialError> {
    let mut socket = open(address)?;
    let io = |what| move |error| DialError::Io(what, error);
    socket.set_write_timeout(Some(HELLO_TIMEOUT)).map_err(io("socket"))?;
    socket.write_all(&own.encode()).map_err(io("sending a hello"))?;
    let bytes: [u8; REPLY_LEN] =
        read_within(&socket, HELLO_TIMEOUT).map_err(io("waiting for the answer to a hello"))?;
    match HelloReply::parse(&bytes).map_err(|error| DialError::Wrong(error.to_string()))? {
        HelloReply::Refused { code, text } => Err(DialError::Refused(code, text)),
        HelloReply::Accepted(hello) => Ok((hand_over(socket).map_err(io("socket"))?, hello)),
    }
}

/// Tries every address that the name stands for.
fn open(address: &str) -> Result<TcpStream, DialError> {
    let all = address.to_socket_addrs().map_err(|error| DialError::Io("resolving the name", error))?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for one in all {
        match TcpStream::connect_timeout(&one, CONNECT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(DialError::Io("connecting", last))
}
