//! A node's side of its remote clients: one `Session` per connection, with a thread that reads and one that writes.
//!
//! A client's requests go the way of a local caller's: first a read under the lease on the session's own thread, else
//! into the mailbox of the core that owns the shard, which forwards it to the node that leads if need be. So a client
//! may ask any node for anything, no core knows of clients' sockets, and a client that is slow or sends nonsense
//! costs the threads of its own session.
//!
//! Bounds: sessions per node ([`crate::Config::clients_max`]); requests and bytes under way per session, beyond which
//! they are refused as `Busy`; bytes of answers that the client doesn't take, beyond which reads' answers become
//! `Busy(Transport)` and nothing more is read from it.
//!
//! A client may send requests and questions. Anything else ends its session, and is named in the log.

use crate::client::Shared;
use crate::clock;
use crate::codec::{self, CoreStatus, Info, MapInfo, NodeStatus, ReplicaStatus};
use crate::config::{Config, Member};
use crate::driver::sys;
use crate::frames::{Frame, FrameError, FrameReader, write_frame};
use crate::mailbox::{Control, Mailbox, Slot};
use crate::metrics::CoreMetrics;
use crate::seam::OutFrame;
use crate::transport::{HelloIdentity, PeerStores};
use floe_raft::Nanos;
use floe_shard::peer::{PeerBatch, PeerMessage};
use floe_shard::request::{Answer, BusyReason, Query, Refusal, Request};
use floe_shard::{NodeId, ReplicaPlace, ReplicaRole, ShardStatus};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Requests of one session under way.
const REQUESTS_MAX: usize = 16_384;
/// Bytes of them.
const REQUEST_BYTES_MAX: usize = 64 << 20;
/// Bytes of answers that wait for the client to take them.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// No client waits longer; a later deadline would let forgotten requests stay.
const REMAINING_MAX_NS: Nanos = 3_600_000_000_000;
/// How long a request may wait for a leader to be known here: longer than an election takes. The client can ask a node that
/// isn't cut off from the others.
const PARK_NS: Nanos = 1_000_000_000;
/// Bytes of rows in one answer: what a scan asks for beyond that comes in pages.
const PAGE_BYTES_MAX: u32 = 1 << 20;
/// How long a core may take to say how its replicas stand.
const STATUS_LIMIT: Duration = Duration::from_secs(2);
/// How long the last answers may take at shutdown.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
const CLOSE_POLL: Duration = Duration::from_millis(5);

/// All sessions of a node.
pub struct Gateway {
    node: NodeId,
    boot_epoch: u64,
    started: Nanos,
    members: Vec<Member>,
    /// The shards, encoded, and a number for them.
    shards: Vec<Vec<u8>>,
    version: u64,
    replication: u32,
    stores: Arc<PeerStores>,
    shared: Arc<Shared>,
    metrics: Vec<Arc<CoreMetrics>>,
    sessions_max: usize,
    sessions: Mutex<BTreeMap<u64, Arc<Session>>>,
    opened: AtomicU64,
}

/// One client's connection.
struct Session {
    socket: TcpStream,
    outbox: Mutex<Outbox>,
    changed: Condvar,
}

/// What waits to be sent to the client, and what is still under way for it.
#[derive(Default)]
struct Outbox {
    answers: Vec<PeerMessage>,
    infos: Vec<Info>,
    /// Of answers that wait or are being sent.
    answer_bytes: usize,
    requests: usize,
    request_bytes: usize,
    /// Nothing more is read: what waits is sent, and that is it.
    closed: bool,
}

impl Gateway {
    pub(crate) fn new(
        own: &HelloIdentity,
        config: &Config,
        stores: Arc<PeerStores>,
        shared: Arc<Shared>,
        metrics: Vec<Arc<CoreMetrics>>,
    ) -> Arc<Self> {
        let shards: Vec<_> = shared.map.iter().map(|descriptor| descriptor.encode().to_vec()).collect();
        let version =
            shards.iter().fold(0, |sum: u64, shard| sum.rotate_left(1) ^ u64::from(codec::checksum(shard)));
        Arc::new(Self {
            version: version.max(1),
            shards,
            node: own.node,
            boot_epoch: own.boot_epoch,
            started: clock::now(),
            members: config.members.clone(),
            replication: config.founding().replication,
            stores,
            shared,
            metrics,
            sessions_max: config.clients_max,
            sessions: Mutex::default(),
            opened: AtomicU64::new(0),
        })
    }

    /// How many clients are connected.
    pub(crate) fn len(&self) -> usize {
        self.sessions.lock().len()
    }

    /// Whether another client may come.
    pub(crate) fn has_room(&self) -> bool {
        self.len() < self.sessions_max
    }

    /// Serves a client, both hellos exchanged, until it goes; on this thread and another one.
    ///
    /// # Errors
    /// Why it ended, if the client is to blame or the system failed.
    pub(crate) fn serve(self: &Arc<Self>, socket: TcpStream) -> Result<(), String> {
        let io = |error: io::Error| error.to_string();
        sys::watch_connection(socket.as_fd()).map_err(io)?;
        let reader = FrameReader::new(socket.try_clone().map_err(io)?);
        let session = Arc::new(Session { socket, outbox: Mutex::default(), changed: Condvar::new() });
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        {
            let mut sessions = self.sessions.lock();
            // Several may have been let in at the same moment.
            if sessions.len() >= self.sessions_max {
                return Err("more clients than the node serves came at once".into());
            }
            sessions.insert(number, Arc::clone(&session));
        }
        let writer = std::thread::Builder::new().name("floe-client-out".into()).spawn({
            let session = Arc::clone(&session);
            move || session.write_all()
        });
        let ended = match &writer {
            Ok(_) => self.read_all(&session, reader),
            Err(error) => Err(format!("no thread for a client: {error}")),
        };
        session.close();
        if let Ok(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the thread that writes to a client panicked");
        }
        self.sessions.lock().remove(&number);
        ended
    }

    /// Sends what clients are still owed and ends all sessions. The cores must have ended: nothing is under way.
    pub(crate) fn close(&self) {
        self.sessions.lock().values().for_each(|session| session.close());
        let until = clock::now() + CLOSE_LIMIT.as_nanos() as Nanos;
        while self.len() > 0 && clock::now() < until {
            std::thread::sleep(CLOSE_POLL);
        }
        self.sessions.lock().values().for_each(|session| session.cut());
    }

    fn read_all(&self, session: &Arc<Session>, mut reader: FrameReader) -> Result<(), String> {
        loop {
            match reader.next() {
                Ok(Frame::Batch(batch)) => self.on_batch(session, batch)?,
                Ok(Frame::Info(Info::AskMap { known })) => session.tell(Info::Map(self.map(known))),
                Ok(Frame::Info(Info::AskStatus)) => session.tell(Info::Status(self.status())),
                Ok(Frame::Info(Info::ForgetStore { node })) => {
                    let refusal = self.forget_store(NodeId(node)).err().unwrap_or_default();
                    session.tell(Info::Forgotten { refusal });
                }
                Ok(Frame::Info(_)) => return Err("a client told what only nodes tell".into()),
                Err(FrameError::Closed | FrameError::Io(_)) => return Ok(()),
                Err(FrameError::Codec(error)) => return Err(error.to_string()),
            }
            if !session.await_room() {
                return Ok(());
            }
        }
    }

    fn on_batch(&self, session: &Arc<Session>, batch: PeerBatch) -> Result<(), String> {
        if batch.beat.is_some() || batch.beat_reply.is_some() {
            return Err("a client sent a beat, as only nodes do".into());
        }
        for message in batch.messages {
            match message {
                PeerMessage::Request { id, remaining_ns, request, .. } => {
                    self.on_request(session, id, remaining_ns, request);
                }
                PeerMessage::Answer { .. } => return Err("a client sent an answer".into()),
                _ => return Err("a client sent a message of a replica".into()),
            }
        }
        Ok(())
    }

    fn on_request(&self, session: &Arc<Session>, id: u64, remaining_ns: Nanos, mut request: Request) {
        if let Request::Read { query: Query::Scan { bytes_max, .. }, .. } = &mut request {
            *bytes_max = (*bytes_max).min(PAGE_BYTES_MAX);
        }
        let bytes = request.size();
        if let Some(refusal) = session.begin(bytes) {
            return session.answer(id, 0, Answer::Refused(refusal));
        }
        if let Some(answer) = self.shared.read_here(&request) {
            return session.end(id, bytes, answer);
        }
        let now = clock::now();
        let deadline = now.saturating_add(remaining_ns.min(REMAINING_MAX_NS));
        let slot = Slot::calling({
            let session = Arc::clone(session);
            Box::new(move |answer| session.end(id, bytes, answer))
        });
        if let Err(refusal) = self.shared.post(request, deadline, now + PARK_NS, slot) {
            session.end(id, bytes, Answer::Refused(refusal));
        }
    }

    /// The cluster as it is known here.
    fn map(&self, known: u64) -> MapInfo {
        let leaders: BTreeMap<_, _> =
            self.metrics.iter().flat_map(|core| core.leaders.lock().clone()).collect();
        let leader = |shard| leaders.get(shard).copied().flatten().map_or(0, |node: NodeId| node.0);
        MapInfo {
            nodes: self.members.iter().map(|member| member.node.0).collect(),
            addresses: self.members.iter().map(|member| member.address.clone()).collect(),
            version: self.version,
            shards: if known == self.version { Vec::new() } else { self.shards.clone() },
            leaders: self.shared.map.iter().map(|descriptor| leader(&descriptor.shard)).collect(),
            replication: self.replication,
        }
    }

    /// Lets a node that has lost its store come with another one, as soon as nothing here depends on what it has
    /// promised: none of the replicas here counts it as a member any more, by a change that is applied. From then on
    /// no candidate here takes its vote, and its own replicas, founded anew, win nobody's: all others' logs
    /// hold that change, and end after theirs.
    fn forget_store(&self, node: NodeId) -> Result<(), String> {
        let status = self.status();
        if let Some(core) = status.cores.iter().position(|core| !core.runs) {
            return Err(format!("core {core} of node {} doesn't run", self.node.0));
        }
        let counts_it =
            |replica: &&ReplicaStatus| replica.voters.iter().chain(&replica.others).any(|&n| n == node.0);
        if let Some(replica) = status.shards.iter().find(counts_it) {
            return Err(format!(
                "node {} still has node {} as a member of shard {}: `floe evict` it first",
                self.node.0, node.0, replica.shard
            ));
        }
        self.stores.forget(node).map_err(|error| format!("node {} can't write: {error}", self.node.0))
    }

    /// How the node stands. A core that doesn't answer in time counts as one that doesn't run.
    pub(crate) fn status(&self) -> NodeStatus {
        let ask = |mailbox: &Arc<Mailbox>| {
            let (reply, replied) = channel();
            mailbox.control(Control::Status(reply));
            replied
        };
        let asked: Vec<_> = self.shared.mailboxes.iter().map(ask).collect();
        let (mut shards, mut cores) = (Vec::new(), Vec::new());
        for ((core, replied), metrics) in (0..).zip(asked).zip(&self.metrics) {
            let replied = replied.recv_timeout(STATUS_LIMIT);
            cores.push(core_status(metrics, replied.is_ok()));
            let statuses = replied.into_iter().flatten();
            shards.extend(statuses.map(|status| replica_status(core, status)));
        }
        shards.sort_by_key(|shard| shard.shard);
        NodeStatus {
            node: self.node.0,
            boot_epoch: self.boot_epoch,
            uptime_ms: (clock::now() - self.started) / 1_000_000,
            cores,
            shards,
        }
    }
}

impl Session {
    /// Counts a request in, or says why not.
    fn begin(&self, bytes: usize) -> Option<Refusal> {
        let mut outbox = self.outbox.lock();
        if outbox.requests >= REQUESTS_MAX {
            return Some(Refusal::Busy(BusyReason::Requests));
        }
        if outbox.request_bytes > 0 && outbox.request_bytes + bytes > REQUEST_BYTES_MAX {
            return Some(Refusal::Busy(BusyReason::Transport));
        }
        outbox.requests += 1;
        outbox.request_bytes += bytes;
        None
    }

    /// A request that was counted in is answered. Runs on cores' threads.
    fn end(&self, id: u64, bytes: usize, answer: Answer) {
        {
            let mut outbox = self.outbox.lock();
            outbox.requests -= 1;
            outbox.request_bytes -= bytes;
        }
        let size = answer_bytes(&answer);
        self.answer(id, size, answer);
    }

    fn answer(&self, id: u64, size: usize, answer: Answer) {
        let mut outbox = self.outbox.lock();
        let too_much = size > 0 && outbox.answer_bytes > 0 && outbox.answer_bytes + size > ANSWER_BYTES_MAX;
        let (answer, size) = match too_much {
            // It was a read, and can be asked again.
            true => (Answer::Refused(Refusal::Busy(BusyReason::Transport)), 0),
            false => (answer, size),
        };
        outbox.answer_bytes += size;
        outbox.answers.push(PeerMessage::Answer { id, answer });
        let is_first = outbox.answers.len() == 1;
        drop(outbox);
        if is_first {
            self.changed.notify_all();
        }
    }

    fn tell(&self, info: Info) {
        self.outbox.lock().infos.push(info);
        self.changed.notify_all();
    }

    /// Waits while the client doesn't take what it is sent; false if the session has ended.
    fn await_room(&self) -> bool {
        let mut outbox = self.outbox.lock();
        while !outbox.closed && (outbox.answers.len() > REQUESTS_MAX || outbox.infos.len() > 1) {
            self.changed.wait(&mut outbox);
        }
        !outbox.closed
    }

    /// Until the session is closed and everything is sent, or the connection breaks.
    fn write_all(&self) {
        while let Some((frame, bytes)) = self.take() {
            if let Err(error) = write_frame(&self.socket, &frame) {
                tracing::debug!(%error, "a client is gone");
                break;
            }
            self.outbox.lock().answer_bytes -= bytes;
            self.changed.notify_all();
        }
        self.close();
        self.cut();
    }

    /// The next frames to send, with the bytes of their answers; `None` = it is over.
    fn take(&self) -> Option<(OutFrame, usize)> {
        let mut outbox = self.outbox.lock();
        while outbox.answers.is_empty() && outbox.infos.is_empty() {
            if outbox.closed {
                return None;
            }
            self.changed.wait(&mut outbox);
        }
        let messages = std::mem::take(&mut outbox.answers);
        let infos = std::mem::take(&mut outbox.infos);
        // What is being sent still counts: it is memory.
        let bytes = messages.iter().map(message_bytes).sum();
        drop(outbox);
        let mut frame = OutFrame::default();
        if !messages.is_empty() {
            frame = codec::encode(&PeerBatch { messages, ..PeerBatch::default() });
        }
        for info in &infos {
            match codec::encode_info(info) {
                Some(bytes) => frame.parts.push(bytes.into()),
                None => tracing::error!("what a client asked for doesn't fit into a frame"),
            }
        }
        Some((frame, bytes))
    }

    fn close(&self) {
        self.outbox.lock().closed = true;
        self.changed.notify_all();
        // The reader wakes up; what is left can still be written.
        if let Err(error) = self.socket.shutdown(std::net::Shutdown::Read) {
            tracing::debug!(%error, "a client was gone already");
        }
    }

    fn cut(&self) {
        sys::shutdown(self.socket.as_fd());
    }
}

fn message_bytes(message: &PeerMessage) -> usize {
    match message {
        PeerMessage::Answer { answer, .. } => answer_bytes(answer),
        _ => 0,
    }
}

/// What a read brought; other answers are small, and as many as there are requests at the most.
fn answer_bytes(answer: &Answer) -> usize {
    match answer {
        Answer::Value(Some(value)) => value.value.len(),
        Answer::Rows { rows, .. } => {
            rows.iter().map(|row| row.key.len() + row.value.value.len() + size_of_val(row)).sum()
        }
        _ => 0,
    }
}

fn core_status(core: &CoreMetrics, runs: bool) -> CoreStatus {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    CoreStatus {
        runs,
        log_disk_bytes: read(&core.wal_disk_bytes),
        log_queued_bytes: read(&core.wal_queued_bytes),
        requests_pending: read(&core.requests_pending),
        requests: read(&core.requests),
        busy: read(&core.busy),
        elections: read(&core.elections),
    }
}

fn replica_status(core: u16, status: ShardStatus) -> ReplicaStatus {
    let (voters, others): (Vec<_>, Vec<_>) =
        status.members.iter().partition(|place| place.role == ReplicaRole::Voter);
    let nodes = |places: Vec<&ReplicaPlace>| places.into_iter().map(|place| place.node.0).collect();
    ReplicaStatus {
        voters: nodes(voters),
        others: nodes(others),
        shard: status.shard.0,
        core,
        replica: status.replica.get(),
        term: status.term,
        leader: status.leader_node.map_or(0, |node| node.0),
        is_leader: status.is_leader,
        commit: status.commit,
        applied: status.applied.index,
        last: status.last.index,
        flushed: status.flushed.index,
        log_bytes: status.log_bytes as u64,
        size_bytes: status.size_bytes,
        fault: status.fault.unwrap_or_default(),
    }
}
