//! One connection of a remote client: it is made again and again, one thread sends what is queued for it, another
//! one takes in the answers.

use super::routes::{Place, Table};
use super::{Inner, TICK};
use crate::clock;
use crate::codec::{self, Info, MapInfo, NodeStatus};
use crate::driver::sys;
use crate::frames::{Frame, FrameReader, write_frame};
use crate::seam::OutFrame;
use crate::transport::{self, Hello, HelloKind};
use floe_shard::NodeId;
use floe_shard::peer::{PeerBatch, PeerMessage};
use parking_lot::{Condvar, MutexGuard};
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Requests in one frame: a bigger batch would only make the first one wait.
const BATCH_MAX: usize = 1024;

/// Why a client has no connection to a cluster.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The list of endpoints is empty.
    #[error("no endpoints: name at least one node's address, as 127.0.0.1:7401")]
    NoEndpoints,
    /// None of the endpoints answered as a node of Floe.
    #[error("no node answers at {}; is `floe node` running there, and is it the address that it serves on?", listed(.0))]
    NoNode(
        /// Each endpoint, and what came of it.
        Vec<(String, String)>,
    ),
    /// The system gives no thread.
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
}

impl ConnectError {
    /// What came of the endpoint, if it was one: the short form of the sentence.
    pub fn reason(&self) -> String {
        match self {
            Self::NoNode(failures) if failures.len() == 1 => failures[0].1.clone(),
            other => other.to_string(),
        }
    }
}

fn listed(failures: &[(String, String)]) -> String {
    let one = |(endpoint, reason): &(String, String)| format!("{endpoint} ({reason})");
    failures.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// An open connection, to be ended from any thread.
pub(super) struct Wire {
    socket: Arc<TcpStream>,
    hello: Hello,
}

impl Wire {
    pub(super) fn node(&self) -> NodeId {
        self.hello.node
    }

    pub(super) fn cut(&self) {
        sys::shutdown(self.socket.as_fd());
    }
}

/// Connects and exchanges hellos.
fn dial(address: &str, cluster: u128) -> Result<Wire, String> {
    let (socket, hello) =
        transport::connect(address, &Hello::of_client(cluster)).map_err(|e| e.to_string())?;
    if hello.kind != HelloKind::Core || (cluster != 0 && hello.cluster != cluster) {
        return Err(format!("{} belongs to another cluster, {:032x}", hello.node, hello.cluster));
    }
    let socket = TcpStream::from(socket);
    sys::watch_connection(socket.as_fd()).map_err(|error| error.to_string())?;
    Ok(Wire { socket: Arc::new(socket), hello })
}

/// Keeps the connection up until the client is dropped.
pub(super) fn run(inner: &Arc<Inner>, at: usize, address: &str, wake: &Arc<Condvar>) {
    let mut backoff = BACKOFF_MIN;
    while !inner.table.lock().closed {
        let cluster = inner.table.lock().cluster;
        let begun = Instant::now();
        let reason = match dial(address, cluster) {
            Ok(wire) => serve(inner, at, wire, wake),
            Err(reason) => reason,
        };
        tracing::debug!(address, reason, "no connection; trying on");
        inner.on_down(at, reason);
        if begun.elapsed() > BACKOFF_MAX {
            backoff = BACKOFF_MIN;
        }
        pause(&mut inner.table.lock(), wake, backoff);
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Waits, but not longer than the client lives.
fn pause(table: &mut MutexGuard<'_, Table>, wake: &Condvar, length: Duration) {
    let until = Instant::now() + length;
    while !table.closed && !wake.wait_until(table, until).timed_out() {}
}

/// Sends and receives until the connection ends; says why it did.
fn serve(inner: &Arc<Inner>, at: usize, wire: Wire, wake: &Condvar) -> String {
    let socket = Arc::clone(&wire.socket);
    let reader = match socket.try_clone() {
        Ok(socket) => FrameReader::new(socket),
        Err(error) => return error.to_string(),
    };
    {
        let mut table = inner.table.lock();
        if table.cluster == 0 {
            table.cluster = wire.hello.cluster;
        } else if table.cluster != wire.hello.cluster {
            return format!("{} belongs to another cluster", wire.hello.node);
        }
    }
    inner.on_up(at, wire);
    let receiver = thread::Builder::new().name("floe-client-in".into()).spawn({
        let (inner, socket) = (Arc::clone(inner), Arc::clone(&socket));
        move || {
            let reason = receive_all(&inner, at, reader);
            sys::shutdown(socket.as_fd());
            inner.table.lock().links[at].broken = true;
            inner.table.lock().links[at].wake();
            reason
        }
    });
    let sent = send_all(inner, at, &socket, wake);
    sys::shutdown(socket.as_fd());
    match receiver.map(thread::JoinHandle::join) {
        Ok(Ok(reason)) => sent.err().map_or(reason, |error| error.to_string()),
        Ok(Err(_)) => "the receiving thread panicked".into(),
        Err(error) => format!("no thread to receive with: {error}"),
    }
}

/// Sends what is queued, until the connection breaks or the client is dropped.
fn send_all(inner: &Inner, at: usize, socket: &TcpStream, wake: &Condvar) -> io::Result<()> {
    loop {
        let mut table = inner.table.lock();
        loop {
            let link = &table.links[at];
            if table.closed || link.broken {
                return Ok(());
            }
            if link.asks || !link.queue.is_empty() {
                break;
            }
            wake.wait(&mut table);
        }
        let asks = std::mem::take(&mut table.links[at].asks).then_some(Info::AskMap { known: table.version });
        let messages = take_batch(&mut table, at);
        drop(table);
        let mut frame = OutFrame::default();
        if !messages.is_empty() {
            frame = codec::encode(&PeerBatch { messages, ..PeerBatch::default() });
        }
        if let Some(question) = asks {
            frame.parts.extend(codec::encode_info(&question).map(Into::into));
        }
        write_frame(socket, &frame)?;
    }
}

/// What goes into the next frame; from now on it counts as sent.
fn take_batch(table: &mut Table, at: usize) -> Vec<PeerMessage> {
    let now = clock::now();
    let count = table.links[at].queue.len().min(BATCH_MAX);
    let ids: Vec<_> = table.links[at].queue.drain(..count).collect();
    let mut messages = Vec::with_capacity(ids.len());
    for id in ids {
        let Some(pending) = table.requests.get_mut(&id) else { continue };
        if pending.place != Place::Queued(at) {
            continue;
        }
        pending.place = Place::Sent(at);
        messages.push(PeerMessage::Request {
            id,
            origin: NodeId(0),
            remaining_ns: pending.deadline.saturating_sub(now),
            request: pending.request.clone(),
        });
    }
    messages
}

/// Takes answers in until the connection ends; says why it did.
fn receive_all(inner: &Inner, at: usize, mut reader: FrameReader) -> String {
    loop {
        let nonsense = match reader.next() {
            Ok(Frame::Batch(batch)) => {
                let answers = batch.messages.into_iter().filter_map(|message| match message {
                    PeerMessage::Answer { id, answer } => Some((id, answer)),
                    _ => None,
                });
                inner.on_answers(at, answers);
                continue;
            }
            Ok(Frame::Info(Info::Map(info))) => inner.on_map(at, info).err(),
            Ok(Frame::Info(_)) => Some("it told what wasn't asked".into()),
            Err(error) => return error.to_string(),
        };
        if let Some(reason) = nonsense {
            return reason;
        }
    }
}

/// Asks one node how it stands, over a connection of its own.
///
/// # Errors
/// It can't be reached, or doesn't answer within `limit`.
pub fn ask_status(endpoint: &str, limit: Duration) -> Result<NodeStatus, ConnectError> {
    let told = ask(endpoint, &Info::AskStatus, limit)?;
    let Info::Status(status) = told else { return Err(no_answer(endpoint)) };
    Ok(status)
}

/// Asks one node who is in its cluster and which shards there are, over a connection of its own.
///
/// # Errors
/// As [`ask_status`].
pub fn ask_map(endpoint: &str, limit: Duration) -> Result<MapInfo, ConnectError> {
    let told = ask(endpoint, &Info::AskMap { known: 0 }, limit)?;
    let Info::Map(map) = told else { return Err(no_answer(endpoint)) };
    Ok(map)
}

/// Asks one node to let `node`, which has lost its store, come with another one. Every other node has to be asked. Each
/// consents as soon as none of its replicas counts `node` as a member.
///
/// # Errors
/// It can't be reached, doesn't answer within `limit`, or refuses: why.
pub fn ask_to_forget_store(endpoint: &str, node: NodeId, limit: Duration) -> Result<(), String> {
    match ask(endpoint, &Info::ForgetStore { node: node.0 }, limit).map_err(|error| error.reason())? {
        Info::Forgotten { refusal } if refusal.is_empty() => Ok(()),
        Info::Forgotten { refusal } => Err(refusal),
        _ => Err("it told what wasn't asked".into()),
    }
}

fn no_answer(endpoint: &str) -> ConnectError {
    ConnectError::NoNode(vec![(endpoint.to_owned(), "it told what wasn't asked".into())])
}

fn ask(endpoint: &str, question: &Info, limit: Duration) -> Result<Info, ConnectError> {
    let fail = |reason: String| ConnectError::NoNode(vec![(endpoint.to_owned(), reason)]);
    let wire = dial(endpoint, 0).map_err(fail)?;
    let io = |error: io::Error| fail(error.to_string());
    wire.socket.set_read_timeout(Some(limit.max(TICK))).map_err(io)?;
    let mut reader = FrameReader::new(wire.socket.try_clone().map_err(io)?);
    let ask = codec::encode_info(question).into_iter().map(Into::into).collect();
    write_frame(&wire.socket, &OutFrame { parts: ask }).map_err(io)?;
    match reader.next() {
        Ok(Frame::Info(info)) => Ok(info),
        Ok(_) => Err(no_answer(endpoint)),
        Err(error) => Err(fail(error.to_string())),
    }
}
