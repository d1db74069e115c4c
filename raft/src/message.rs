//! What replicas of one group say to each other. One variant per meaning; no field has two.
//!
//! Every message carries the sender's term; the receiver steps up to a higher one, except for
//! [`Body::PreVote`] and its granted reply, whose term is the one the sender *would* campaign in.

use crate::membership::Membership;
use crate::types::{Entry, Index, Mark, Nanos, ReplicaId, Term};

/// One message between two replicas of the same group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The replica that sent it.
    pub from: ReplicaId,
    /// The incarnation it is meant for; any other drops it.
    pub to: ReplicaId,
    /// The sender's term (but see the module's head on PreVote).
    pub term: Term,
    /// What is said.
    pub body: Body,
}

/// Stamps on everything a leader says in order to be heard: the base of leases and of bounded stale
/// reads. Times are each side's own; they are only ever echoed, never compared across nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LeaderStamp {
    /// Leader's `now` when the message was made; the follower echoes it.
    pub sent_at_ns: Nanos,
    /// A [`FollowerStamp::stamp`] of the receiver's own; 0 = none. All that had been acknowledged when it was made
    /// lies at or below the commit index beside it (`freshness.rs`).
    pub echo: u64,
}

/// Stamps on everything a follower answers to a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FollowerStamp {
    /// `sent_at_ns` of the message that this answers.
    pub echo_ns: Nanos,
    /// The follower's promise: for how long from its receipt of that message it helps elect nobody
    /// else. 0 = no promise (learners, and voters before their promise is durable).
    pub promise_ns: Nanos,
    /// Follower's `now` when it answered, shifted by a number of its incarnation's own; the leader echoes it.
    pub stamp: u64,
}

/// The kinds of messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// "Would you vote for me in this term?" Changes nobody's state (thesis §9.6).
    PreVote {
        /// The sender's last mark.
        last: Mark,
    },
    /// Answer to `PreVote`. If granted, the message's term is the one asked about.
    PreVoteReply {
        /// Whether the sender would vote for the receiver.
        granted: bool,
    },
    /// RequestVote (paper §5.2).
    Vote {
        /// The candidate's last mark.
        last: Mark,
        /// The candidate was told to campaign by the leader (TimeoutNow), which bypasses stickiness.
        transfer: bool,
    },
    /// Answer to `Vote`, sent only when the vote is durable.
    VoteReply {
        /// Whether the vote was given.
        granted: bool,
    },
    /// AppendEntries (paper §5.3).
    Append {
        /// The mark right before the first entry.
        prev: Mark,
        /// The leader's commit index.
        commit: Index,
        /// Up to here every replica that the leader feeds from its log is known to hold everything: whoever may have to
        /// feed them next needs no more of it. How much log is kept is all that depends on it.
        held_by_all: Index,
        /// Contiguous, from `prev.index + 1`; may be empty (a probe, or news of the commit index).
        entries: Vec<Entry>,
        /// Lease and stale-read stamps.
        stamp: LeaderStamp,
    },
    /// The log matches the leader's up to `matched`, durably.
    AppendAccepted {
        /// Last index that is both durable here and known to be the leader's.
        matched: Index,
        /// Lease and stale-read stamps.
        stamp: FollowerStamp,
    },
    /// As `AppendAccepted`, but there is no room for more: the disk is full, and no commands are taken
    /// ([`crate::Raft::set_full`]).
    AppendRefused {
        /// Last index that is both durable here and known to be the leader's.
        matched: Index,
        /// Lease and stale-read stamps.
        stamp: FollowerStamp,
    },
    /// `prev` of an append is not in the log.
    AppendRejected {
        /// The `prev` that was refused.
        prev: Mark,
        /// The receiver's best guess of where the logs agree: its last mark at or below
        /// `prev.index` whose term is not above `prev.term`.
        hint: Mark,
        /// Lease and stale-read stamps.
        stamp: FollowerStamp,
    },
    /// The leader is alive; sent when no append went to this replica in the last interval. The layer
    /// above packs these of all groups into one beat per core pair.
    Heartbeat {
        /// The leader's commit index, never above what is known to match on the receiver.
        commit: Index,
        /// Round number of the newest ReadIndex round that waits for confirmation; 0 = none.
        read_round: u64,
        /// Lease and stale-read stamps.
        stamp: LeaderStamp,
    },
    /// The leader has nothing more to say: its log ends at `last`, all of it is committed, and whoever holds
    /// it goes quiet until something is said. Who watches the leader meanwhile: `quiescence.rs`.
    Quiesce {
        /// The leader's last mark.
        last: Mark,
    },
    /// Answer to `Heartbeat`.
    HeartbeatReply {
        /// `read_round` of the heartbeat.
        read_round: u64,
        /// Lease and stale-read stamps.
        stamp: FollowerStamp,
    },
    /// "Campaign now" (thesis §3.10): the leader hands over.
    TimeoutNow,
    /// A follower asks the leader for a read index (thesis §6.4).
    ReadIndex {
        /// The asker's own number for it.
        context: u64,
    },
    /// Answer to `ReadIndex`: the asker may read once it has applied `index`.
    ReadIndexReply {
        /// The asker's number.
        context: u64,
        /// Where the leader's commit index stood when its leadership was confirmed.
        index: Index,
    },
    /// Refusal of `ReadIndex`: too many reads of this asker wait already
    /// ([`crate::Config::peer_reads_max`]). Ask again later.
    ReadIndexRefused {
        /// The asker's number.
        context: u64,
    },
    /// The state up to `mark` has been transferred and staged on the receiver (the layer above moves
    /// the data); the receiver installs it unless it is behind its own commit index.
    InstallSnapshot {
        /// Where the state stands.
        mark: Mark,
        /// The membership in force there.
        membership: Membership,
        /// Lease and stale-read stamps.
        stamp: LeaderStamp,
    },
}
