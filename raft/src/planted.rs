//! Bugs planted on purpose, to prove that the checkers find them. Only with the feature `planted`,
//! which nothing enables by default; without it [`is`] is constantly false and compiled away.

/// One known way to break Raft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
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
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Planted>> = const { std::cell::Cell::new(None) };
}

/// Plants one bug in every replica that runs on this thread, or none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Planted>) {
    PLANTED.set(bug);
}

/// Whether `bug` is planted on this thread.
#[cfg(feature = "planted")]
pub(crate) fn is(bug: Planted) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether `bug` is planted: never.
#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_bug: Planted) -> bool {
    false
}
