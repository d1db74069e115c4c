//! The seam: a core is a function from [`Input`]s to [`Effects`].
//!
//! Three kinds of driver carry these to and from the world: the simulator, a bare io_uring loop, and
//! glommio. Everything on the core's side is deterministic: the same inputs at the same times give the same
//! effects. See [`crate::worker::Worker`].

use crate::codec::CodecError;
use crate::disk::{DiskCalls, DiskResult, OpId};
use bytes::Bytes;
use floe_raft::Nanos;
use floe_shard::request::{Answer, Request, RequestId};
use floe_shard::{CoreAddr, NodeId};
use std::sync::Arc;

/// Something that happened to a core.
#[derive(Debug)]
pub enum Input {
    /// A client of this node asks for something. The answer comes as `Effects::answers` with this id.
    Request {
        /// The driver's number for it; never reused while unanswered.
        id: RequestId,
        /// When the caller stops waiting.
        deadline: Nanos,
        /// Until when it may wait here for a leader to be known.
        park_until: Nanos,
        /// What is asked.
        request: Request,
    },
    /// A connection to a core of another node is up, hellos exchanged and accepted.
    PeerUp {
        /// The other end.
        peer: CoreAddr,
        /// How many cores its node has.
        cores: u16,
    },
    /// The connection is gone; frames in either direction may be lost.
    PeerDown {
        /// The other end.
        peer: CoreAddr,
    },
    /// A whole frame whose header and checksum are right ([`crate::codec`]).
    Frame {
        /// Who sent it.
        from: CoreAddr,
        /// The frame's body, aligned to 8 bytes.
        body: Bytes,
    },
    /// A disk call came back.
    Disk {
        /// Which.
        op: OpId,
        /// With what.
        result: DiskResult,
    },
    /// Another core of this node says something.
    Core {
        /// Which core.
        from: u16,
        /// What.
        message: CoreMessage,
    },
    /// Shut down cleanly: refuse new requests, seal the log, then report `Event::Stopped`.
    Shutdown,
}

/// What cores of one node say to each other. Always delivered, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoreMessage {
    /// Core 0 to the others: the node's boot record is durable; recover and start.
    Boot(Arc<crate::boot::BootRecord>),
    /// To core 0: every shard whose home this core is stands durably in this core's own stream.
    Settled,
}

/// A frame to send: its parts in order, to be written back to back.
#[derive(Clone, Debug, Default)]
pub struct OutFrame {
    /// Header, metadata and small payloads are in few parts; big payloads stand alone.
    pub parts: Vec<Bytes>,
}

impl OutFrame {
    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.parts.iter().all(Bytes::is_empty)
    }
}

/// What a core wants done. Buffers are drained and reused by the driver. The kinds are independent:
/// whatever must wait for a disk call is held back by the core itself.
#[derive(Default)]
pub struct Effects {
    /// Disk calls to start.
    pub disk: DiskCalls,
    /// Frames to send, at most one per peer and turn; in order per peer. Dropped if it isn't connected.
    pub sends: Vec<(CoreAddr, OutFrame)>,
    /// Answers for this node's clients.
    pub answers: Vec<(RequestId, Answer)>,
    /// For other cores of this node.
    pub to_cores: Vec<(u16, CoreMessage)>,
    /// Connections to close.
    pub disconnects: Vec<(CoreAddr, DisconnectReason)>,
    /// What whoever runs the node should know.
    pub events: Vec<Event>,
}

/// Why a connection is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DisconnectReason {
    /// What came in on it is no frame of a peer's.
    #[error(transparent)]
    BadFrame(#[from] CodecError),
    /// Nothing has come in for long, while the peer should beat: it or the connection is stuck.
    #[error("nothing has come in for five election timeouts: is it stuck?")]
    Silent,
}

/// A turn in a core's life that its node must know.
#[derive(Clone, Debug)]
pub enum Event {
    /// Recovery is done; requests are served from now on.
    Started(StartReport),
    /// A shard has a new leader as seen from here.
    Leader {
        /// The shard.
        shard: floe_shard::ShardId,
        /// The leading node, if known.
        leader: Option<NodeId>,
    },
    /// Shut down; nothing is in flight any more.
    Stopped,
    /// This core can't start or go on; it acknowledges nothing from now on. Reads and writes are
    /// refused.
    Failed(Failure),
}

/// What a core found at start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartReport {
    /// Replicas restored from the log.
    pub shards: usize,
    /// Frames and bytes replayed.
    pub frames: u64,
    /// Bytes of log read.
    pub bytes: u64,
    /// Bytes of a torn tail that were cut off (never acknowledged).
    pub torn_bytes: u64,
    /// Replicas that came from streams of another core count.
    pub rehomed: usize,
    /// Boot epoch of this start.
    pub boot_epoch: u64,
    /// Identity of the data directory.
    pub store_uuid: u128,
}

impl StartReport {
    /// Adds what another core of the same node found.
    pub fn add(&mut self, other: &StartReport) {
        self.shards += other.shards;
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.torn_bytes += other.torn_bytes;
        self.rehomed += other.rehomed;
        self.boot_epoch = other.boot_epoch;
        self.store_uuid = other.store_uuid;
    }
}

/// Why a core can't go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The data directory belongs to another cluster or node, or is damaged.
    #[error("{0}")]
    Boot(String),
    /// The log is damaged: which file, where, whose data, and what to do.
    #[error("{0}")]
    Corrupt(String),
    /// A write or sync failed. What was not acknowledged may be lost; what was is not.
    #[error("{0}")]
    Disk(String),
}
