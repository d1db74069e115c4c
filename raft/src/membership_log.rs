//! Which membership is in force at which place of the log.
//!
//! A membership is in force from the moment its entry is *in* the log, committed or not (paper §6); when
//! that entry is cut away, the one before comes back. At a start it is the newest in the log, else the
//! one that was stored with the state.
//!
//! Replicas with equal memberships may share one copy ([`crate::Raft::share_membership`]).
//!
//! Invariants: `replaced` ascends by index and ends below `since`; its first, or the current one if it is
//! empty, was in force at the log's base.

use crate::lazy::Lazy;
use crate::membership::Membership;
use crate::planted::{self, Planted};
use crate::types::{Entry, EntryKind, Index, ReplicaId};
use std::sync::Arc;

/// The membership in force, and those that a cut of the log can bring back.
#[derive(Debug)]
pub(crate) struct MembershipLog {
    /// In force now.
    pub(crate) current: Arc<Membership>,
    /// Index of its entry; that of the state it was stored with, if it has none.
    pub(crate) since: Index,
    /// Older ones, with where they began.
    replaced: Lazy<Vec<(Index, Arc<Membership>)>>,
}

/// The membership in an entry that was checked before.
fn membership_in(entry: &Entry) -> Membership {
    match Membership::decode(&entry.data) {
        Some((membership, _)) => membership,
        None => panic!("{entry:?} holds no membership, and was let in"),
    }
}

impl MembershipLog {
    /// `stored` was in force at `base`; `entries` follow that.
    pub(crate) fn new(stored: Membership, base: Index, entries: &[Entry]) -> Self {
        let mut log = Self { current: Arc::new(stored), since: base, replaced: Lazy::default() };
        entries.iter().for_each(|entry| {
            log.note(entry);
        });
        log
    }

    /// An entry was appended. Returns whether another membership is in force now.
    pub(crate) fn note(&mut self, entry: &Entry) -> bool {
        if entry.kind != EntryKind::Membership {
            return false;
        }
        let index = entry.mark.index;
        assert!(index > self.since, "{entry:?} comes after the membership of {}", self.since);
        let before = std::mem::replace(&mut self.current, Arc::new(membership_in(entry)));
        self.replaced.push((self.since, before));
        self.since = index;
        true
    }

    /// The log was cut from `from` on: whatever had come into force there is rolled back.
    pub(crate) fn truncated(&mut self, from: Index) {
        while self.since >= from && !planted::is(Planted::MembershipNotRolledBack) {
            let Some((since, membership)) = self.replaced.pop() else {
                panic!("the log is cut from {from}, and nothing is known from before {}", self.since);
            };
            (self.since, self.current) = (since, membership);
        }
    }

    /// The log begins after `base` now.
    pub(crate) fn compacted(&mut self, base: Index) {
        let still = self.replaced.iter().skip(1).filter(|(since, _)| *since <= base).count();
        let obsolete = if self.since <= base { self.replaced.len() } else { still };
        if obsolete > 0 {
            self.replaced.drain(..obsolete);
            self.replaced.give_back();
        }
    }

    /// A state with `stored` at `base` is in place. What the log holds after it stays in force, if
    /// `keep_suffix` says that it stays in the log.
    pub(crate) fn installed(&mut self, stored: Membership, base: Index, keep_suffix: bool) {
        if !keep_suffix || self.since <= base {
            *self = Self { current: Arc::new(stored), since: base, replaced: Lazy::default() };
            return;
        }
        self.replaced.retain(|(since, _)| *since > base);
        self.replaced.insert(0, (base, Arc::new(stored)));
    }

    /// Voters of the memberships that were replaced, but not of the one in force. For a planted bug.
    pub(crate) fn removed_voters(&self) -> Vec<ReplicaId> {
        let mut gone: Vec<_> = self.replaced.iter().flat_map(|(_, old)| old.voters.clone()).collect();
        gone.retain(|id| !self.current.is_voter(*id));
        gone.sort_unstable();
        gone.dedup();
        gone
    }

    /// Where memberships after `after`, which isn't below the log's base, came into force.
    pub(crate) fn indices_after(&self, after: Index) -> impl Iterator<Item = Index> {
        let all = self.replaced.iter().map(|(since, _)| *since).chain([self.since]);
        all.filter(move |since| *since > after)
    }

    /// Whether `id` votes in the membership at `commit`, which isn't below the log's base, or in a later one. After a restart
    /// several of them may be committed.
    pub(crate) fn is_voter_from(&self, commit: Index, id: ReplicaId) -> bool {
        let later =
            self.replaced.iter().filter(|(since, _)| *since > commit).map(|(_, membership)| &**membership);
        later.chain([self.at(commit), &*self.current]).any(|membership| membership.is_voter(id))
    }

    /// Holds `same` in place of its own copy of the one in force.
    pub(crate) fn share(&mut self, same: Arc<Membership>) {
        assert!(self.current == same, "{same:?} can't stand for {:?}", self.current);
        self.current = same;
    }

    /// The one in force at `index`, which isn't below the log's base.
    pub(crate) fn at(&self, index: Index) -> &Membership {
        if self.since <= index {
            return &self.current;
        }
        match self.replaced.iter().rev().find(|(since, _)| *since <= index) {
            Some((_, membership)) => membership,
            None => panic!("no membership is known at {index}; the oldest is later"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Mark;

    fn of(voter: u64) -> Membership {
        Membership::of_voters([ReplicaId::new(voter).expect("not 0")])
    }

    fn entry(index: Index) -> Entry {
        let data = of(index).encode(b"");
        Entry { mark: Mark::new(1, index), kind: EntryKind::Membership, version: 1, data }
    }

    /// Stored at 3, changed at 5, 6 and 9; each named after its index.
    fn sample() -> MembershipLog {
        MembershipLog::new(of(3), 3, &[entry(5), entry(6), entry(9)])
    }

    #[test]
    fn the_newest_at_or_before_an_index_is_in_force_there() {
        let expected = [3, 3, 5, 6, 6, 6, 9, 9];
        for (index, since) in (3..).zip(expected) {
            assert_eq!(*sample().at(index), of(since), "at {index}");
        }
    }

    #[test]
    fn whoever_votes_at_the_commit_index_or_later_is_found() {
        for (commit, voters) in [(3, &[3, 5, 6, 9][..]), (5, &[5, 6, 9]), (8, &[6, 9]), (9, &[9])] {
            let is_found = |id: &u64| sample().is_voter_from(commit, ReplicaId::new(*id).expect("not 0"));
            assert_eq!(
                [3, 5, 6, 9].into_iter().filter(is_found).collect::<Vec<_>>(),
                voters,
                "from {commit}"
            );
        }
    }

    #[test]
    fn the_places_of_memberships_are_those_of_their_entries() {
        for (after, expected) in [(3, &[5, 6, 9][..]), (5, &[6, 9]), (8, &[9]), (9, &[])] {
            assert_eq!(sample().indices_after(after).collect::<Vec<_>>(), expected, "after {after}");
        }
    }

    #[test]
    fn a_cut_brings_back_what_was_in_force_before_it() {
        for (from, since) in [(10, 9), (9, 6), (7, 6), (6, 5), (5, 3), (4, 3)] {
            let mut log = sample();
            log.truncated(from);
            assert_eq!((log.since, &*log.current), (since, &of(since)), "cut from {from}");
        }
    }

    #[test]
    fn compaction_forgets_only_what_no_cut_can_bring_back() {
        for base in 3..12 {
            let mut log = sample();
            log.compacted(base);
            for index in base..12 {
                assert_eq!(log.at(index), sample().at(index), "at {index}, compacted to {base}");
            }
            let kept = [5, 6, 9].into_iter().filter(|since| *since > base).count();
            assert_eq!(log.replaced.len(), kept, "compacted to {base}: {log:?}");
        }
    }

    #[test]
    fn an_installed_state_replaces_what_lies_before_it() {
        let mut log = sample();
        log.installed(of(7), 7, true);
        assert_eq!((log.at(7), log.at(8), &*log.current), (&of(7), &of(7), &of(9)));
        log.installed(of(20), 20, true);
        assert_eq!((log.since, &*log.current, log.replaced.len()), (20, &of(20), 0));
        let mut log = sample();
        log.installed(of(7), 7, false);
        assert_eq!((log.since, &*log.current, log.replaced.len()), (7, &of(7), 0));
    }
}
