//! What is asked of a core and what it answers. These cross the wire when a request is forwarded.

use crate::descriptor::Descriptor;
use crate::ids::{NodeId, ShardId};
use crate::readable::StateView;
use bytes::Bytes;
use floe_raft::Nanos;
use std::fmt;
use std::time::Duration;

/// Names one request in flight at one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Sees every write that was acknowledged before the read began. The default.
    #[default]
    Linearizable,
    /// As `Linearizable`, but read from the replica on this node: a follower or learner asks the leader only how far
    /// it must have applied, once for all reads of a turn, waits until it has, and reads its own state.
    LinearizableLocal,
    /// From the replica on this node, without asking anybody if it can: sees every write that was acknowledged `max`
    /// before the read began, and may miss later ones. A replica that doesn't know that it is fresh enough asks the
    /// leader, as for `LinearizableLocal`; without an answer within an election timeout the read is refused as
    /// [`Refusal::TooStale`]. [`Consistency::ANY_AGE`] takes whatever there is.
    Stale {
        /// How old what is read may be.
        max: Duration,
    },
}

impl Consistency {
    /// Whatever the replica on this node has applied, however old.
    pub const ANY_AGE: Self = Self::Stale { max: Duration::MAX };

    /// Whether a state suffices that is known to be at most so old; `None` = nothing is known.
    pub fn allows(self, age_ns: Option<Nanos>) -> bool {
        let Self::Stale { max } = self else { return false };
        max == Duration::MAX || age_ns.is_some_and(|age| Duration::from_nanos(age) <= max)
    }

    /// Whether such a read sees every write that was acknowledged before it began.
    pub const fn is_linearizable(self) -> bool {
        matches!(self, Self::Linearizable | Self::LinearizableLocal)
    }
}

/// A view of a shard's state that a node holds for the further pages of a scan: see [`Rest::Held`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId {
    /// The node.
    pub node: NodeId,
    /// Its number there, not used by another boot; above 0.
    pub number: u64,
}

/// A request to one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Replicate and apply a command.
    Write {
        /// The shard that owns every key of the command.
        shard: ShardId,
        /// The encoded command: see [`crate::command`].
        command: Bytes,
    },
    /// Read from the state machine.
    Read {
        /// The shard that owns every key of the query.
        shard: ShardId,
        /// Range version of the descriptor by which the caller chose the shard.
        range_epoch: u64,
        /// What to read.
        query: Query,
        /// How fresh.
        consistency: Consistency,
    },
    /// Hand the leadership of a shard over.
    TransferLeadership {
        /// The shard.
        shard: ShardId,
        /// The node whose replica is to lead.
        to: NodeId,
    },
    /// Change the members of a shard: one change by itself, several at once through a joint configuration
    /// that the leader leaves by itself. Answered with `Done` once the change is committed; for several,
    /// once the joint configuration is.
    ChangeMembers {
        /// The shard.
        shard: ShardId,
        /// 1 to [`MEMBER_CHANGES_MAX`], about different nodes.
        changes: Vec<MemberChange>,
        /// Even if too few of the resulting voters are known to be alive and caught up.
        force: bool,
    },
}

/// Changes in one request.
pub const MEMBER_CHANGES_MAX: usize = 16;

/// What is to become of a node's replica of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberChange {
    /// The node.
    pub node: NodeId,
    /// Its seat in the shard from now on.
    pub to: Seat,
}

/// What a node can have in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Seat {
    /// No replica: the one there is removed, and its data destroyed.
    Vacant = 0,
    /// A replica that gets the log and doesn't vote: a new one, or a voter that is demoted.
    Learner = 1,
    /// A replica that votes: a learner that is promoted. A newcomer joins as a learner first.
    Voter = 2,
}

impl Seat {
    /// The one with this number; `None` if this version doesn't know it.
    pub const fn from_u8(seat: u8) -> Option<Self> {
        match seat {
            0 => Some(Self::Vacant),
            1 => Some(Self::Learner),
            2 => Some(Self::Voter),
            _ => None,
        }
    }
}

impl Request {
    /// The shard that is asked.
    pub fn shard(&self) -> ShardId {
        match self {
            Self::Write { shard, .. }
            | Self::Read { shard, .. }
            | Self::TransferLeadership { shard, .. }
            | Self::ChangeMembers { shard, .. } => *shard,
        }
    }

    /// Whether `answer` is one to this request. A peer's may not be, and nothing after this check expects
    /// that: an answer of another kind, or rows that would let a scan jump or never end.
    pub fn accepts(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Refused(_) | Answer::Unknown(_) => true,
            Answer::Written { .. } | Answer::ConditionFailed { .. } => matches!(self, Self::Write { .. }),
            Answer::Value(_) => matches!(self, Self::Read { query: Query::Get { .. }, .. }),
            Answer::Rows { rows, rest } => match self {
                Self::Read { query: Query::Scan { start, end, reverse, .. }, .. } => {
                    are_rows_of(rows, *rest != Rest::Nothing, start, end, *reverse)
                }
                _ => false,
            },
            Answer::Done => matches!(self, Self::TransferLeadership { .. } | Self::ChangeMembers { .. }),
        }
    }

    /// The view that a scan goes on in, which the node that holds it reads, whoever leads.
    pub fn view(&self) -> Option<ViewId> {
        match self {
            Self::Read { query: Query::Scan { view, .. }, .. } => *view,
            _ => None,
        }
    }

    /// Whether it is to be served by the replica that is asked, whoever leads.
    pub fn is_for_local_replica(&self) -> bool {
        matches!(self, Self::Read { consistency: Consistency::LinearizableLocal, .. })
    }

    /// What the request counts for in byte budgets.
    pub fn size(&self) -> usize {
        std::mem::size_of::<Self>()
            + match self {
                Self::Write { command, .. } => command.len(),
                Self::Read { query: Query::Get { key }, .. } => key.len(),
                Self::Read { query: Query::Scan { start, end, .. }, .. } => start.len() + end.len(),
                Self::TransferLeadership { .. } => 0,
                Self::ChangeMembers { changes, .. } => size_of_val(&changes[..]),
            }
    }
}

/// Whether rows lie in the range, in the order asked for, and at least one is there if more may follow.
fn are_rows_of(rows: &[Row], more: bool, start: &Bytes, end: &Bytes, reverse: bool) -> bool {
    let is_inside = |row: &Row| row.key >= *start && (end.is_empty() || row.key < *end);
    let in_order = |one: &Row, next: &Row| if reverse { one.key > next.key } else { one.key < next.key };
    !(more && rows.is_empty()) && rows.iter().all(is_inside) && rows.is_sorted_by(in_order)
}

/// A read of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// One key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// A range of keys, one consistent snapshot of the shard.
    Scan {
        /// First key, inclusive.
        start: Bytes,
        /// First key after the range; empty = to the shard's end.
        end: Bytes,
        /// At most so many rows; 0 = no limit.
        limit: u32,
        /// At most so many bytes of keys and values; one row is always admitted.
        bytes_max: u32,
        /// From the end of the range towards its start.
        reverse: bool,
        /// The state that its earlier pages were read from; `None` = this is the first page of this shard.
        view: Option<ViewId>,
    },
}

impl Query {
    /// Whether a scan wants more after a page of so many rows that its end isn't reached with.
    pub(crate) fn goes_on_after(&self, rows: usize) -> bool {
        matches!(self, Self::Scan { limit, .. } if *limit == 0 || rows < *limit as usize)
    }
}

/// A value and the version of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Log index of the key's last write; a condition can name it.
    pub version: u64,
    /// The value.
    pub value: Bytes,
}

/// One row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// Its value and version.
    pub value: Versioned,
}

/// What follows after a page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: these were the last rows of the range in this shard.
    Nothing,
    /// More rows may follow: the limit of rows ended the page, or the state machine has no views.
    More,
    /// More rows follow in this state. Only within the node that has read it, which holds it and says `Held`.
    In(StateView),
    /// More rows follow in this view, which is held for a while. A scan that names it goes on in the same state.
    Held(ViewId),
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The command was applied and all of its conditions held; its index is the new version of every
    /// key that it wrote.
    Written {
        /// Log index of the command.
        version: u64,
    },
    /// A condition of the command didn't hold: it changed nothing.
    ConditionFailed {
        /// Which condition, counted from 0.
        condition: u32,
    },
    /// A get's value.
    Value(Option<Versioned>),
    /// A scan's rows.
    Rows {
        /// In the order asked for.
        rows: Vec<Row>,
        /// What follows.
        rest: Rest,
    },
    /// Something without a result of its own was done.
    Done,
    /// The request surely had no effect.
    Refused(Refusal),
    /// It isn't known whether the command has been, or will be, applied.
    Unknown(UnknownReason),
}

/// Why a request surely had no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A bound is reached; which one. Try again later, slower.
    Busy(BusyReason),
    /// This node doesn't lead the shard; the node that does, if known.
    NotLeader {
        /// A hint.
        leader: Option<NodeId>,
    },
    /// The caller's descriptor is stale; the current one.
    WrongEpoch {
        /// The shard's descriptor now.
        descriptor: Box<Descriptor>,
    },
    /// A key lies outside of the shard's range; the shard's descriptor.
    OutOfRange {
        /// The shard's descriptor now.
        descriptor: Box<Descriptor>,
    },
    /// This node has no replica of the shard.
    NoSuchShard {
        /// The shard asked for.
        shard: ShardId,
    },
    /// The bytes are not a command, or one over a limit.
    BadCommand {
        /// What is wrong with them.
        reason: String,
    },
    /// Another command took its place in the log after a change of leader.
    Overwritten,
    /// The deadline passed before anything was begun.
    DeadlinePassed,
    /// The node is shutting down or its core is fenced.
    Unavailable {
        /// Why.
        reason: String,
    },
    /// The shard has no replica on the node that should lead it.
    NotAMember {
        /// That node.
        node: NodeId,
    },
    /// The replica may be older than the read allows, and no leader told it more.
    TooStale {
        /// How old it is at most; `None` = nothing is known.
        age: Option<Duration>,
    },
    /// The view that the scan goes on in isn't held any more, or its node is gone.
    ViewGone,
    /// The change isn't one that the shard's members can make now.
    BadChange {
        /// What is wrong with it.
        reason: String,
    },
}

/// Which bound made a request be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BusyReason {
    /// The core's mailbox or request table is full.
    Requests = 0,
    /// The shard has too many uncommitted bytes.
    UncommittedBytes = 1,
    /// The log's disk is full.
    DiskFull = 2,
    /// Leadership of the shard is being handed over.
    Transfer = 3,
    /// The connection to the leader is full.
    Transport = 4,
    /// An earlier change of the shard's members, or the leader's first entry, isn't committed yet.
    MemberChange = 5,
    /// Memory for what isn't in the store's tables yet is used up: they are written as fast as the disk takes them.
    WriteBuffer = 6,
    /// Too many scans that take more than a page are under way.
    Views = 7,
    /// Memory for the logs of this core's shards is used up: they are dumped as fast as the disk takes them.
    LogMemory = 8,
    /// The log takes twice the disk space that it should: shards are flushed, so that it can be cut.
    LogSpace = 9,
}

impl fmt::Display for BusyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "too many requests are under way",
            Self::UncommittedBytes => "too much of the shard waits to be replicated",
            Self::DiskFull => "the disk of the node that leads the shard is full; free some space",
            Self::Transfer => "the shard's leadership is being handed over",
            Self::Transport => "too much waits to be sent",
            Self::MemberChange => "another change of the shard's members is under way",
            Self::WriteBuffer => "the write buffer is full until more of it is in tables",
            Self::Views => "too many scans hold views of the shards' state",
            Self::LogMemory => "the memory for logs is full until shards were dumped",
            Self::LogSpace => "the log takes too much disk space until shards were flushed",
        })
    }
}

/// Why an outcome isn't known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum UnknownReason {
    /// The deadline passed while the command was under way.
    DeadlinePassed = 0,
    /// The connection to the node that executes it broke.
    Disconnected = 1,
    /// The replica that was asked lost its leadership with the command in its log.
    LeadershipLost = 2,
    /// The node shut down with the command under way.
    ShuttingDown = 3,
    /// The node that executes it answered with something that is no answer to it.
    BadAnswer = 4,
}

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeadlinePassed => "the deadline passed while it was under way",
            Self::Disconnected => "the connection to the node that does it broke",
            Self::LeadershipLost => "the leader was replaced meanwhile",
            Self::ShuttingDown => "the node stopped meanwhile",
            Self::BadAnswer => "the node's answer made no sense",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(reverse: bool) -> Request {
        let (start, end) = (Bytes::from_static(b"b"), Bytes::from_static(b"f"));
        let query = Query::Scan { start, end, limit: 0, bytes_max: 0, reverse, view: None };
        Request::Read { shard: ShardId(1), range_epoch: 1, query, consistency: Consistency::ANY_AGE }
    }

    fn rows(keys: &[&'static str], more: bool) -> Answer {
        let value = || Versioned { version: 1, value: Bytes::new() };
        let row = |key: &&'static str| Row { key: Bytes::from_static(key.as_bytes()), value: value() };
        let rest = if more { Rest::More } else { Rest::Nothing };
        Answer::Rows { rows: keys.iter().map(row).collect(), rest }
    }

    #[test]
    fn rows_answer_a_scan_only_if_it_can_go_on_after_them() {
        let (up, down) = (scan(false), scan(true));
        assert!(up.accepts(&rows(&["b", "c"], true)) && down.accepts(&rows(&["e", "b"], true)));
        assert!(up.accepts(&rows(&[], false)));
        assert!(!up.accepts(&rows(&[], true)), "it would ask for the same again, for ever");
        for keys in [&["c", "b"][..], &["a", "c"], &["c", "f"], &["c", "c"]] {
            assert!(!up.accepts(&rows(keys, false)), "{keys:?}");
        }
        assert!(!down.accepts(&rows(&["b", "c"], false)));
    }

    #[test]
    fn each_request_has_its_kind_of_answer() {
        let write = Request::Write { shard: ShardId(1), command: Bytes::new() };
        let transfer = Request::TransferLeadership { shard: ShardId(1), to: NodeId(1) };
        let written = Answer::Written { version: 1 };
        assert!(write.accepts(&written) && !scan(false).accepts(&written) && !transfer.accepts(&written));
        assert!(transfer.accepts(&Answer::Done) && !write.accepts(&Answer::Done));
        assert!(!scan(false).accepts(&Answer::Value(None)) && !write.accepts(&Answer::Value(None)));
        assert!(write.accepts(&Answer::Refused(Refusal::Overwritten)), "anything can be refused");
    }
}
