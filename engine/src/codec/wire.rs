//! The archived metadata of a frame: rows of fixed size, and columns shared by all rows of a batch.
//!
//! A row says how many items of a column it takes; columns are consumed from the front, in the order of
//! the messages, and must be used up exactly. Numbers of small enums travel as `u8`. An id of 0 where
//! a replica is meant is refused by the decoder.

use rkyv::{Archive, Serialize};

/// The root.
#[derive(Archive, Serialize, Default)]
pub(super) struct WireBatch {
    pub(super) beat: Option<WireBeat>,
    pub(super) beat_reply: Option<WireBeatReply>,
    pub(super) messages: Vec<WireMessage>,
    /// Lengths of all payloads, in order.
    pub(super) lens: Vec<u32>,
    /// Terms of entries as runs; parallel to `run_counts`.
    pub(super) run_terms: Vec<u64>,
    pub(super) run_counts: Vec<u32>,
    /// Parallel: one per entry.
    pub(super) entry_kinds: Vec<u8>,
    pub(super) entry_versions: Vec<u8>,
    /// Versions of the rows of scans.
    pub(super) row_versions: Vec<u64>,
    /// Replicas of descriptors: ids and nodes, roles.
    pub(super) place_replicas: Vec<u64>,
    pub(super) place_nodes: Vec<u64>,
    pub(super) place_roles: Vec<u8>,
    /// Replica ids of memberships.
    pub(super) members: Vec<u64>,
}

/// A beat, one column per field of its rows.
#[derive(Archive, Serialize, Default)]
pub(super) struct WireBeat {
    pub(super) boot_epoch: u64,
    pub(super) shards: Vec<u64>,
    pub(super) from: Vec<u64>,
    pub(super) to: Vec<u64>,
    pub(super) terms: Vec<u64>,
    pub(super) commits: Vec<u64>,
    pub(super) read_rounds: Vec<u64>,
    pub(super) sent_at_ns: Vec<u64>,
    pub(super) echoes: Vec<u64>,
    pub(super) quiet: WireQuiet,
}

/// Groups that go quiet, one column per field of their rows.
#[derive(Archive, Serialize, Default)]
pub(super) struct WireQuiet {
    pub(super) shards: Vec<u64>,
    pub(super) from: Vec<u64>,
    pub(super) to: Vec<u64>,
    pub(super) terms: Vec<u64>,
    pub(super) last_terms: Vec<u64>,
    pub(super) last_indices: Vec<u64>,
}

/// Answers to beats, one column per field of their rows.
#[derive(Archive, Serialize, Default)]
pub(super) struct WireBeatReply {
    pub(super) boot_epoch: u64,
    pub(super) shards: Vec<u64>,
    pub(super) from: Vec<u64>,
    pub(super) to: Vec<u64>,
    pub(super) terms: Vec<u64>,
    pub(super) read_rounds: Vec<u64>,
    pub(super) echo_ns: Vec<u64>,
    pub(super) promise_ns: Vec<u64>,
    pub(super) stamps: Vec<u64>,
}

#[derive(Archive, Serialize, Clone, Copy)]
pub(super) struct WireMark {
    pub(super) term: u64,
    pub(super) index: u64,
}

#[derive(Archive, Serialize, Clone, Copy)]
pub(super) struct WireLeaderStamp {
    pub(super) sent_at_ns: u64,
    pub(super) echo: u64,
}

#[derive(Archive, Serialize, Clone, Copy)]
pub(super) struct WireFollowerStamp {
    pub(super) echo_ns: u64,
    pub(super) promise_ns: u64,
    pub(super) stamp: u64,
}

/// Sender, receiver and group of a message.
#[derive(Archive, Serialize, Clone, Copy)]
pub(super) struct WireRoute {
    pub(super) shard: u64,
    pub(super) from: u64,
    pub(super) to: u64,
}

#[derive(Archive, Serialize)]
pub(super) enum WireMessage {
    Raft { route: WireRoute, epoch_range: u64, epoch_membership: u64, term: u64, body: WireBody },
    DumpOffer { route: WireRoute, term: u64, generation: u64, mark: WireMark, len: u64 },
    DumpPull { route: WireRoute, generation: u64, offset: u64, len: u32 },
    DumpChunk { route: WireRoute, generation: u64, offset: u64 },
    Request { id: u64, origin: u64, remaining_ns: u64, request: WireRequest },
    Answer { id: u64, answer: WireAnswer },
    Placement { route: WireRoute, descriptor: WireDescriptor },
}

#[derive(Archive, Serialize)]
pub(super) enum WireBody {
    PreVote {
        last: WireMark,
    },
    PreVoteReply {
        granted: bool,
    },
    Vote {
        last: WireMark,
        transfer: bool,
    },
    VoteReply {
        granted: bool,
    },
    /// Takes `entries` entries (kinds, versions, lengths) and `runs` term runs.
    Append {
        prev: WireMark,
        commit: u64,
        held_by_all: u64,
        entries: u32,
        runs: u32,
        stamp: WireLeaderStamp,
    },
    AppendAccepted {
        matched: u64,
        stamp: WireFollowerStamp,
    },
    AppendRejected {
        prev: WireMark,
        hint: WireMark,
        stamp: WireFollowerStamp,
    },
    Heartbeat {
        commit: u64,
        read_round: u64,
        stamp: WireLeaderStamp,
    },
    HeartbeatReply {
        read_round: u64,
        stamp: WireFollowerStamp,
    },
    TimeoutNow,
    ReadIndex {
        context: u64,
    },
    ReadIndexReply {
        context: u64,
        index: u64,
    },
    /// Takes the four lists of a membership from `members`.
    InstallSnapshot {
        mark: WireMark,
        lists: [u32; 4],
        auto_leave: bool,
        stamp: WireLeaderStamp,
    },
    ReadIndexRefused {
        context: u64,
    },
    Quiesce {
        last: WireMark,
    },
    AppendRefused {
        matched: u64,
        stamp: WireFollowerStamp,
    },
}

#[derive(Archive, Serialize)]
pub(super) enum WireConsistency {
    Linearizable,
    LinearizableLocal,
    /// `u64::MAX` = of any age.
    Stale {
        max_ns: u64,
    },
}

/// A view that a node holds; all 0 = none.
#[derive(Archive, Serialize)]
pub(super) struct WireView {
    pub(super) node: u64,
    pub(super) number: u64,
}

#[derive(Archive, Serialize)]
pub(super) enum WireRequest {
    Write {
        shard: u64,
    },
    Get {
        shard: u64,
        range_epoch: u64,
        consistency: WireConsistency,
    },
    Scan {
        shard: u64,
        range_epoch: u64,
        consistency: WireConsistency,
        limit: u32,
        bytes_max: u32,
        reverse: bool,
        view: WireView,
    },
    TransferLeadership {
        shard: u64,
        to: u64,
    },
    /// Takes two numbers per change from `members`: the node, and what it is to be.
    ChangeMembers {
        shard: u64,
        changes: u32,
        force: bool,
    },
}

#[derive(Archive, Serialize)]
pub(super) enum WireAnswer {
    Written {
        version: u64,
    },
    ConditionFailed {
        condition: u32,
    },
    NoValue,
    Value {
        version: u64,
    },
    /// Takes `rows` versions and twice as many payloads.
    Rows {
        rows: u32,
        more: bool,
        view: WireView,
    },
    Done,
    Busy {
        reason: u8,
    },
    NotLeader {
        leader: Option<u64>,
    },
    WrongEpoch {
        descriptor: WireDescriptor,
    },
    OutOfRange {
        descriptor: WireDescriptor,
    },
    NoSuchShard {
        shard: u64,
    },
    BadCommand,
    Overwritten,
    DeadlinePassed,
    Unavailable,
    NotAMember {
        node: u64,
    },
    Unknown {
        reason: u8,
    },
    BadChange,
    /// `u64::MAX` = nothing is known.
    TooStale {
        age_ns: u64,
    },
    ViewGone,
}

/// Takes two payloads (start and end of the range) and `places` replicas.
#[derive(Archive, Serialize)]
pub(super) struct WireDescriptor {
    pub(super) shard: u64,
    pub(super) epoch_range: u64,
    pub(super) epoch_membership: u64,
    pub(super) next_replica_id: u64,
    pub(super) feature_level: u32,
    pub(super) places: u32,
}

/// The archived layout is the wire format: a change here needs a new protocol version.
macro_rules! pin {
    ($($archived:ty = $size:literal, $align:literal;)*) => {
        $(const _: () = assert!(
            size_of::<$archived>() == $size && align_of::<$archived>() == $align,
            "the archived layout is the wire format"
        );)*
    };
}

pin! {
    ArchivedWireBatch = 296, 8;
    ArchivedWireBeat = 120, 8;
    ArchivedWireQuiet = 48, 4;
    ArchivedWireBeatReply = 72, 8;
    ArchivedWireMark = 16, 8;
    ArchivedWireLeaderStamp = 16, 8;
    ArchivedWireFollowerStamp = 24, 8;
    ArchivedWireRoute = 24, 8;
    ArchivedWireMessage = 120, 8;
    ArchivedWireBody = 64, 8;
    ArchivedWireConsistency = 16, 8;
    ArchivedWireRequest = 72, 8;
    ArchivedWireView = 16, 8;
    ArchivedWireAnswer = 48, 8;
    ArchivedWireDescriptor = 40, 8;
}

/// Bytes that a row of each kind takes at most; for the sender's estimate of a frame's size.
pub(super) const ROW_BYTES: usize = size_of::<ArchivedWireMessage>();
/// Likewise the root.
pub(super) const ROOT_BYTES: usize = size_of::<ArchivedWireBatch>();
