//! Bugs planted on purpose, to prove that the checkers find them: in all layers, since what they share is
//! this crate. Only with the feature `planted`, which nothing enables by default; without it [`is`] is
//! constantly false and compiled away.

/// One known way to break the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Planted {
    // --- consensus
    /// A vote is neither handed out to be persisted nor waited for: after a crash the same replica
    /// votes twice in one term (breaks Election Safety, paper §5.2).
    VoteNotPersisted,
    /// Entries of older terms are committed by counting replicas (breaks Leader Completeness, paper
    /// §5.4.2, Figure 8).
    OldTermCommitCounted,
    /// A vote goes to any log, however old (breaks Leader Completeness, paper §5.4.1).
    VoteForStaleLog,
    /// A vote goes to every candidate of a term (breaks Election Safety, paper §5.2).
    VoteGivenTwice,
    /// A read is answered without the round that proves leadership: a leader that was replaced
    /// meanwhile serves old values (breaks linearizability, thesis §6.4).
    ReadWithoutRound,
    /// A second membership change is taken while the first is uncommitted: majorities of the first and
    /// the last configuration need not intersect (breaks Election Safety, thesis §4.1).
    SecondChangeUncommitted,
    /// A membership stays in force although its entry was cut from the log (paper §6).
    MembershipNotRolledBack,
    /// A joint configuration decides by one majority of all voters of both halves together (paper §6).
    JointAsUnion,
    /// A candidate also asks, and counts, voters that the membership in force has removed (paper §6).
    RemovedVoteCounted,
    /// A new leader serves reads before an entry of its own term is committed (paper §8).
    ReadBeforeOwnCommit,
    /// A follower keeps entries that contradict the leader's (breaks Log Matching, paper §5.3).
    ConflictKept,
    /// A follower acknowledges whatever it holds, also what the leader never sent (paper §5.3).
    AckOfUnknown,
    /// A follower commits beyond the last entry that it knows to be the leader's (paper §5.3).
    CommitBeyondMatch,
    // --- leases
    /// A lease goes on after TimeoutNow has left (lease rule 3): the successor is elected while voters'
    /// promises run.
    LeaseOutlivesTransfer,
    /// A restarted voter doesn't know that it has promised anything (lease rule 4).
    PromiseForgotten,
    /// A voter votes and campaigns while its promise runs (lease rule 2).
    PromiseBroken,
    /// A lease is as long as the promises that it rests on (lease rule 1): a leader with a slow clock reads
    /// after a voter with a fast one is free.
    LeaseWithoutDrift,
    /// A lease begins before the leader's first own entry is applied (lease rule 7).
    LeaseBeforeNoop,
    /// However late a replica gets a turn, little time has passed for it (lease rule 5): the ticks that it has missed then
    /// end its promises at once.
    TimeInSteps,
    /// What readers may go by is extended although its term is over: whoever took a state under the older term passes
    /// by the lease of the newer one.
    GrantOutlivesTerm,
    // --- freshness
    /// A leader echoes stamps without proof that it leads (rule 1 of `freshness.rs`).
    StampOfDeposedLeader,
    /// A leader echoes stamps before its first own entry is committed (rule 2).
    StampBeforeOwnCommit,
    /// A heartbeat to a lagging follower echoes a stamp beside a lower commit index (rule 3).
    StampBesideLess,
    /// A stamp of an earlier incarnation counts (rule 4).
    StampOfFormerLife,
    /// A stamp counts before the index beside it is applied (rule 5).
    FreshBeforeApplied,
    // --- shards
    /// A write is answered when it is in the leader's log.
    AnswerBeforeCommit,
    /// A proposal counts as done when anything is applied at its index.
    AnswerByIndex,
    /// A write whose outcome isn't known is sent again.
    DoubleForward,
    /// Another request gets the number of one that is still under way elsewhere.
    RequestNumberReused,
    /// A shard takes commands for keys outside of its range.
    RangeNotChecked,
    /// A later page of a scan is read from the state of now, not from the one that its first page was read from.
    PageOfCurrentState,
    /// A dump lacks the last row.
    DumpLosesRow,
    /// A dump says that it is older than it is: what it holds is applied again.
    DumpMarkTooOld,
    /// The log is cut before the dump's name is durable.
    DumpNameNotSynced,
    /// A transferred dump counts before its record is durable.
    InstallBeforeRecord,
    /// Nobody checks a dump's checksums.
    DumpNotChecked,
    // --- the write-ahead log
    /// Frames count as durable when they are issued.
    AckBeforeDurable,
    /// With several frames in flight, the highest that is done counts for all before it.
    OutOfOrderDurable,
    /// More frames are in flight than their headers say.
    FrameBeyondLimit,
    /// A failed write counts as done.
    FailedWriteIgnored,
    /// Every bad frame is taken for a torn tail.
    TornTailIgnored,
    /// Nothing ties a frame to its segment: those of a recycled file's former life count.
    StaleFramesReplayed,
    /// Recovery takes the term of a hard state, and not its vote.
    HardStateIgnored,
    /// Segments are freed although shards need them.
    FreedTooEarly,
    /// A segment is used before its name is durable.
    SegmentNameNotSynced,
    /// Streams of an older core count go when the first core has settled.
    SettledEarly,
}

impl Planted {
    /// Those that the simulator hunts: all but [`Planted::StampOfFormerLife`], which needs a clock that begins anew
    /// where the one before ended, and has a test of its own.
    pub const ALL: [Self; 45] = [
        Self::VoteNotPersisted,
        Self::OldTermCommitCounted,
        Self::VoteForStaleLog,
        Self::VoteGivenTwice,
        Self::ReadWithoutRound,
        Self::SecondChangeUncommitted,
        Self::MembershipNotRolledBack,
        Self::JointAsUnion,
        Self::RemovedVoteCounted,
        Self::ReadBeforeOwnCommit,
        Self::ConflictKept,
        Self::AckOfUnknown,
        Self::CommitBeyondMatch,
        Self::LeaseOutlivesTransfer,
        Self::PromiseForgotten,
        Self::PromiseBroken,
        Self::LeaseWithoutDrift,
        Self::LeaseBeforeNoop,
        Self::TimeInSteps,
        Self::GrantOutlivesTerm,
        Self::StampOfDeposedLeader,
        Self::StampBeforeOwnCommit,
        Self::StampBesideLess,
        Self::FreshBeforeApplied,
        Self::AnswerBeforeCommit,
        Self::AnswerByIndex,
        Self::DoubleForward,
        Self::RequestNumberReused,
        Self::RangeNotChecked,
        Self::PageOfCurrentState,
        Self::DumpLosesRow,
        Self::DumpMarkTooOld,
        Self::DumpNameNotSynced,
        Self::InstallBeforeRecord,
        Self::DumpNotChecked,
        Self::AckBeforeDurable,
        Self::OutOfOrderDurable,
        Self::FrameBeyondLimit,
        Self::FailedWriteIgnored,
        Self::TornTailIgnored,
        Self::StaleFramesReplayed,
        Self::HardStateIgnored,
        Self::FreedTooEarly,
        Self::SegmentNameNotSynced,
        Self::SettledEarly,
    ];
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Planted>> = const { std::cell::Cell::new(None) };
}

/// Plants one bug in everything that runs on this thread, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Planted>) {
    PLANTED.set(bug);
}

/// Whether `bug` is planted on this thread.
#[cfg(feature = "planted")]
pub fn is(bug: Planted) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether `bug` is planted: never.
#[cfg(not(feature = "planted"))]
pub const fn is(_bug: Planted) -> bool {
    false
}
