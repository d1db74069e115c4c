//! The five safety properties of Raft (paper, Figure 3), checked after every step of a core, and one
//! canonical committed history per shard.
//!
//! Everything is incremental: a replica that didn't change costs a few comparisons; otherwise only the
//! entries that are new to its log, its commit index or its state are looked at. What is remembered:
//! - per shard, every entry that was ever in anybody's log, by mark: its hash and the term of the entry
//!   before it. Two logs that hold the same mark then agree on everything before it, by induction (Log
//!   Matching), and a log read back from disk must agree with what it was.
//! - per shard, the committed entries by index (State Machine Safety), with the lowest term in which each
//!   is known to have been committed (Leader Completeness).
//! - per replica and incarnation, what must not go back: term, commit, applied, a leader's log.
//! - per entry, which replicas ever held it: what a leader commits, a majority holds, of each half of a
//!   membership that was in force.
//!
//! Of memberships: the newest in a replica's log is in force there, and no other (paper §6).

use crate::checker::Violation;
use crate::hash::Hash64;
use floe_raft::{Entry, EntryKind, Index, Mark, Membership, Raft, ReplicaId, Term};
use floe_shard::{NodeId, ShardId};
use std::collections::BTreeMap;

/// A replica as it stands after a step.
pub struct View<'a> {
    /// Which it is: a node may have several of a shard, one after another.
    pub replica: ReplicaId,
    /// Its term.
    pub term: Term,
    /// Whether it leads it.
    pub is_leader: bool,
    /// Its commit index.
    pub commit: Index,
    /// Where its state machine stands, and the state's hash there.
    pub state: (Mark, u64),
    /// First index of its log.
    pub first: Index,
    /// End of its log.
    pub last: Mark,
    /// The membership in force, and the index that it is in force from.
    pub membership: (Index, &'a Membership),
    /// Term of the entry at an index; also right before the first.
    pub term_at: &'a dyn Fn(Index) -> Option<Term>,
    /// Entries of a range, both ends included.
    pub entries: &'a dyn Fn(Index, Index) -> Vec<Entry>,
}

/// A committed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its term.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// Hash of its kind and data: [`entry_hash`].
    pub hash: u64,
    /// A term in which it is known to have been committed, or a later one.
    pub seen_in: Term,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    kind: EntryKind,
    hash: u64,
    term_before: Term,
    /// Replicas that ever held it.
    holders: Replicas,
}

/// A set of replicas of one shard, by their ids.
#[derive(Clone, Copy, Debug, Default)]
struct Replicas(u128);

impl Replicas {
    /// 0 for ids that don't fit: of those nothing is known.
    fn bit(id: ReplicaId) -> u128 {
        u32::try_from(id.get()).ok().and_then(|id| 1_u128.checked_shl(id)).unwrap_or(0)
    }

    fn insert(&mut self, id: ReplicaId) {
        self.0 |= Self::bit(id);
    }

    fn may_contain(self, id: ReplicaId) -> bool {
        Self::bit(id) == 0 || self.0 & Self::bit(id) != 0
    }
}

/// Whether those of whom `agrees` holds are a majority, of each half. Not Raft's own function: that one is on
/// trial.
pub(crate) fn is_quorum(membership: &Membership, agrees: impl Fn(ReplicaId) -> bool) -> bool {
    let wins = |voters: &[ReplicaId]| {
        voters.is_empty() || 2 * voters.iter().filter(|id| agrees(**id)).count() > voters.len()
    };
    wins(&membership.voters) && wins(&membership.voters_outgoing)
}

#[derive(Debug, Default)]
struct Shard {
    entries: BTreeMap<(Index, Term), Known>,
    committed: BTreeMap<Index, Committed>,
    states: BTreeMap<Mark, u64>,
    /// Who led each term, where its log ended when that was seen first, and what had been committed in earlier
    /// terms by then.
    leaders: BTreeMap<Term, (ReplicaId, Mark, Index)>,
    /// Memberships in entries.
    memberships: BTreeMap<(Index, Term), Membership>,
    /// What replicas hold without having had its entries: a transferred state.
    bases: BTreeMap<ReplicaId, Index>,
}

impl Shard {
    /// The term of the entry at `index` in every log that holds the entry `end`, at or after it. Follows the
    /// entries back one by one; `None` if there is none.
    fn term_before(&self, end: Mark, index: Index) -> Option<Term> {
        let mut at = end;
        while at.index > index {
            let entry = self.entries.get(&(at.index, at.term))?;
            at = Mark::new(entry.term_before, at.index - 1);
        }
        (at.index == index).then_some(at.term)
    }

    /// The membership of the newest committed entry up to `index`; `None` if there is none.
    fn membership_at(&self, index: Index) -> Option<&Membership> {
        let is_committed = |((index, term), _): &(&(Index, Term), &Membership)| {
            self.committed.get(index).is_some_and(|committed| committed.term == *term)
        };
        self.memberships.range(..=(index, Term::MAX)).rev().find(is_committed).map(|(_, found)| found)
    }
}

/// What a replica's log was when it was last looked at, and what must not go back.
#[derive(Debug, Default)]
struct Replica {
    id: Option<ReplicaId>,
    /// In force when it was looked at, and since which index.
    membership: (Index, Membership),
    /// Where its log holds memberships.
    changes: Vec<Index>,
    term: Term,
    is_leader: bool,
    commit: Index,
    applied: Index,
    base: Index,
    terms: Vec<Term>,
}

impl Replica {
    fn last(&self) -> Index {
        self.base + self.terms.len() as u64
    }

    fn term_at(&self, index: Index) -> Option<Term> {
        let at = index.checked_sub(self.base + 1)?;
        self.terms.get(at as usize).copied()
    }
}

/// The checker.
#[derive(Debug, Default)]
pub struct RaftSafety {
    shards: BTreeMap<ShardId, Shard>,
    replicas: BTreeMap<(NodeId, ShardId), Replica>,
    /// Entries looked at, to see that the checker works.
    pub checked: u64,
    /// Elections won.
    pub elections: u64,
}

/// What is compared of entries.
pub fn entry_hash(kind: EntryKind, data: &[u8]) -> u64 {
    let mut hash = Hash64::default();
    hash.word(kind as u64);
    hash.bytes(data);
    hash.get()
}

impl RaftSafety {
    /// Looks at a group's replica.
    ///
    /// # Errors
    /// The property that doesn't hold.
    pub fn observe_raft(
        &mut self,
        node: NodeId,
        shard: ShardId,
        raft: &Raft,
        state: (Mark, u64),
    ) -> Result<(), Violation> {
        let view = View {
            replica: raft.id(),
            membership: (raft.membership_index(), raft.membership()),
            term: raft.term(),
            is_leader: raft.is_leader(),
            commit: raft.commit(),
            state,
            first: raft.first_index(),
            last: raft.last_mark(),
            term_at: &|index| raft.term_at(index),
            entries: &|from, to| raft.entries(from, to, usize::MAX),
        };
        self.observe(node, shard, &view)
    }

    /// Looks at a replica.
    ///
    /// # Errors
    /// The property that doesn't hold.
    pub fn observe(&mut self, node: NodeId, shard: ShardId, view: &View<'_>) -> Result<(), Violation> {
        let replica = self.replicas.entry((node, shard)).or_default();
        let fresh = replica.id != Some(view.replica);
        if fresh {
            // It has started, or it is another one than was here before.
            *replica = Replica { id: Some(view.replica), ..Replica::default() };
        }
        let history = self.shards.entry(shard).or_default();
        let (checked, elections) = (&mut self.checked, &mut self.elections);
        let mut look = Look { node, shard, view, replica, history, checked, elections };
        if !fresh {
            look.nothing_goes_back()?;
        }
        look.log(fresh)?;
        look.commit(fresh)?;
        look.state()?;
        look.leader()?;
        look.membership()?;
        let replica = look.replica;
        if replica.membership.0 != view.membership.0 || fresh {
            replica.membership = (view.membership.0, view.membership.1.clone());
        }
        replica.term = view.term;
        replica.is_leader = view.is_leader;
        replica.commit = view.commit;
        replica.applied = view.state.0.index;
        Ok(())
    }

    /// A node's process is gone: what it keeps in memory may go back.
    pub fn forget(&mut self, node: NodeId) {
        self.replicas.retain(|(of, _), _| *of != node);
    }

    /// The committed entry at an index.
    pub fn committed(&self, shard: ShardId, index: Index) -> Option<Committed> {
        self.shards.get(&shard)?.committed.get(&index).copied()
    }

    /// The latest term of a shard that is known to have had a leader, and up to where entries had been committed
    /// before the leader of `term` came.
    pub fn leadership(&self, shard: ShardId, term: Term) -> (Term, Index) {
        let leaders = self.shards.get(&shard).map(|shard| &shard.leaders);
        let latest = leaders.and_then(|leaders| leaders.last_key_value()).map_or(0, |(latest, _)| *latest);
        let committed =
            leaders.and_then(|leaders| leaders.get(&term)).map_or(0, |(.., committed)| *committed);
        (latest, committed)
    }

    /// The newest membership of a shard that is committed; `None` if it has never changed.
    pub fn members(&self, shard: ShardId) -> Option<&Membership> {
        self.shards.get(&shard)?.membership_at(Index::MAX)
    }

    /// The committed history of a shard.
    pub fn history(&self, shard: ShardId) -> impl Iterator<Item = (Index, Committed)> {
        self.shards.get(&shard).into_iter().flat_map(|shard| &shard.committed).map(|(i, c)| (*i, *c))
    }
}

/// One look at one replica.
struct Look<'a> {
    node: NodeId,
    shard: ShardId,
    view: &'a View<'a>,
    replica: &'a mut Replica,
    history: &'a mut Shard,
    checked: &'a mut u64,
    elections: &'a mut u64,
}

impl Look<'_> {
    fn broken(&self, property: &'static str, detail: String) -> Violation {
        Violation::new(property, format!("{} on {}: {detail}", self.shard, self.node))
    }

    fn nothing_goes_back(&self) -> Result<(), Violation> {
        let (view, old) = (self.view, &*self.replica);
        let pairs = [
            ("term", old.term, view.term),
            ("commit", old.commit, view.commit),
            ("applied", old.applied, view.state.0.index),
        ];
        for (what, old, new) in pairs {
            if new < old {
                return Err(self.broken("monotony", format!("{what} went from {old} back to {new}")));
            }
        }
        Ok(())
    }

    /// Log Matching, and Leader Append-Only.
    fn log(&mut self, fresh: bool) -> Result<(), Violation> {
        let view = self.view;
        let base = view.first - 1;
        let unchanged = !fresh
            && self.replica.last() == view.last.index
            && self.replica.base == base
            && self.replica.term_at(view.last.index).is_none_or(|term| term == view.last.term);
        if unchanged {
            return Ok(());
        }
        let mut common = self.replica.last().min(view.last.index);
        while common > base && self.replica.term_at(common) != (view.term_at)(common) {
            common -= 1;
        }
        let leads_on = self.replica.is_leader && view.is_leader && self.replica.term == view.term;
        if leads_on && common < self.replica.last() {
            let (end, last) = (self.replica.last(), view.last);
            return Err(self.broken(
                "leader append-only",
                format!("the leader of term {} had entries to {end}, now its log ends at {last} and agrees to {common}", view.term),
            ));
        }
        self.replica.changes.retain(|index| *index <= common);
        self.new_entries(common.max(base))?;
        let keep = common.saturating_sub(self.replica.base) as usize;
        self.replica.terms.truncate(keep);
        for index in self.replica.last().max(base) + 1..=view.last.index {
            let term = (view.term_at)(index).unwrap_or_default();
            if self.replica.terms.is_empty() {
                self.replica.base = index - 1;
            }
            self.replica.terms.push(term);
        }
        let gone = base.saturating_sub(self.replica.base).min(self.replica.terms.len() as u64);
        self.replica.terms.drain(..gone as usize);
        self.replica.base = base;
        self.replica.changes.retain(|index| *index > base);
        let held = self.history.bases.entry(view.replica).or_default();
        *held = base.max(*held);
        Ok(())
    }

    fn new_entries(&mut self, after: Index) -> Result<(), Violation> {
        let view = self.view;
        if after >= view.last.index {
            return Ok(());
        }
        let entries = (view.entries)(after + 1, view.last.index);
        self.replica.changes.retain(|index| *index <= after);
        let mut before = Mark::new((view.term_at)(after).unwrap_or_default(), after);
        for entry in &entries {
            *self.checked += 1;
            let Mark { term, index } = entry.mark;
            if index != before.index + 1 || term < before.term {
                return Err(self.broken("log matching", format!("entry {} follows {before}", entry.mark)));
            }
            let (kind, holders) = (entry.kind, Replicas::default());
            let new = Known { kind, hash: entry_hash(kind, &entry.data), term_before: before.term, holders };
            let known = self.history.entries.entry((index, term)).or_insert(new);
            known.holders.insert(view.replica);
            let known = *known;
            if kind == EntryKind::Membership {
                self.replica.changes.push(index);
                if let Some((membership, _)) = Membership::decode(&entry.data) {
                    self.history.memberships.insert((index, term), membership);
                }
            }
            if known.hash != new.hash || known.term_before != new.term_before {
                return Err(self.broken(
                    "log matching",
                    format!("entry {} is {new:x?} here and {known:x?} elsewhere or earlier", entry.mark),
                ));
            }
            before = entry.mark;
        }
        if before != view.last {
            let last = view.last;
            return Err(self
                .broken("log matching", format!("the log says it ends at {last}, but it ends at {before}")));
        }
        Ok(())
    }

    /// State Machine Safety: one history of what is committed.
    fn commit(&mut self, fresh: bool) -> Result<(), Violation> {
        let view = self.view;
        if view.commit > view.last.index {
            return Err(self.broken(
                "state machine safety",
                format!("commit index {} is beyond the log's end {}", view.commit, view.last),
            ));
        }
        let known = if fresh { 0 } else { self.replica.commit };
        self.commit_has_a_quorum()?;
        // The base is committed too: what lies before it was applied.
        let base = view.first - 1;
        if base > known {
            self.base_is_committed(base)?;
        }
        for index in known.max(base) + 1..=view.commit {
            let Some(term) = (view.term_at)(index) else {
                return Err(self.broken("log matching", format!("no term at committed index {index}")));
            };
            let Some(entry) = self.history.entries.get(&(index, term)) else {
                return Err(self.broken("log matching", format!("entry {index}@{term} was never in a log")));
            };
            let new = Committed { term, kind: entry.kind, hash: entry.hash, seen_in: view.term };
            let known =
                *self.history.committed.get(&index).unwrap_or(&Committed { seen_in: Term::MAX, ..new });
            if (known.term, known.hash) != (new.term, new.hash) {
                return Err(self.broken(
                    "state machine safety",
                    format!("{index}@{term} is committed, but {index}@{} was before", known.term),
                ));
            }
            if new.seen_in < known.seen_in {
                self.history.committed.insert(index, new);
                self.later_leaders_have(index, term)?;
            }
        }
        Ok(())
    }

    /// What a leader has committed since the last look, a majority holds: of each half of a membership that
    /// was in force since then.
    fn commit_has_a_quorum(&self) -> Result<(), Violation> {
        let (view, old) = (self.view, &*self.replica);
        let leads_on = old.is_leader && view.is_leader && old.term == view.term;
        if !leads_on || view.commit <= old.commit {
            return Ok(());
        }
        let index = view.commit;
        let term = (view.term_at)(index).unwrap_or_default();
        let holders = self.history.entries.get(&(index, term)).map(|entry| entry.holders).unwrap_or_default();
        let holds =
            |id| holders.may_contain(id) || self.history.bases.get(&id).is_some_and(|base| *base >= index);
        let since = old.changes.iter().filter(|at| **at > old.membership.0);
        let between = since.filter_map(|at| self.history.memberships.get(&(*at, (view.term_at)(*at)?)));
        let mut all = between.chain([&old.membership.1, view.membership.1]);
        if all.any(|membership| is_quorum(membership, holds)) {
            return Ok(());
        }
        let detail = format!("{index}@{term} is committed, held by {holders:x?} of {:?}", view.membership.1);
        Err(self.broken("commit without a quorum", detail))
    }

    /// The newest membership in the log is in force, or else the one that was at its base.
    fn membership(&self) -> Result<(), Violation> {
        let (since, is) = self.view.membership;
        let base = self.view.first - 1;
        let newest = self.replica.changes.last().copied();
        if newest.map_or(since > base, |newest| since != newest) {
            let detail =
                format!("the membership of {since} is in force, the log after {base} has {newest:?}");
            return Err(self.broken("membership in force", detail));
        }
        if self.replica.membership.0 == since && self.replica.membership.1 == *is {
            return Ok(());
        }
        let term = (self.view.term_at)(since).unwrap_or_default();
        let known = match newest {
            Some(_) => self.history.memberships.get(&(since, term)),
            None => self.history.membership_at(base),
        };
        if known.is_some_and(|known| known != is) {
            let detail = format!("{is:?} is in force, {known:?} is in the log at {since}");
            return Err(self.broken("membership in force", detail));
        }
        Ok(())
    }

    /// Leader Completeness, for a commit that becomes known when a later term has its leader already.
    fn later_leaders_have(&self, index: Index, term: Term) -> Result<(), Violation> {
        for (&later, &(leader, end, _)) in self.history.leaders.range(self.view.term + 1..) {
            if self.history.term_before(end, index) != Some(term) {
                return Err(self.broken(
                    "leader completeness",
                    format!(
                        "{index}@{term} is committed in term {}, but {leader} leads term {later} with a log to {end} without it",
                        self.view.term
                    ),
                ));
            }
        }
        Ok(())
    }

    fn base_is_committed(&self, base: Index) -> Result<(), Violation> {
        let term = (self.view.term_at)(base);
        match self.history.committed.get(&base) {
            Some(known) if term == Some(known.term) => Ok(()),
            // Where the shard was founded, or nothing at all: no leader has put anything there.
            None if term == Some(0) => Ok(()),
            known => Err(self.broken(
                "state machine safety",
                format!("the log starts after {base} of term {term:?}, committed there is {known:?}"),
            )),
        }
    }

    /// Equal states at equal marks, of committed entries only.
    fn state(&mut self) -> Result<(), Violation> {
        let (mark, hash) = self.view.state;
        // Term 0: the empty state that the shard was founded with, or that of a replica which holds nothing.
        if mark.index == self.replica.applied || mark.term == 0 {
            return Ok(());
        }
        // A transferred state may stand before the commit index while its record is being written.
        let committed = self.history.committed.get(&mark.index).map(|committed| committed.term);
        if committed != Some(mark.term) {
            return Err(self.broken(
                "state machine safety",
                format!("applied {mark}, but committed at that index is term {committed:?}"),
            ));
        }
        let known = *self.history.states.entry(mark).or_insert(hash);
        if known != hash {
            return Err(self.broken(
                "state machine safety",
                format!("the state at {mark} is {hash:016x} here and {known:016x} elsewhere or earlier"),
            ));
        }
        Ok(())
    }

    /// Election Safety and Leader Completeness.
    fn leader(&mut self) -> Result<(), Violation> {
        let view = self.view;
        if !view.is_leader {
            return Ok(());
        }
        let first_seen = !self.history.leaders.contains_key(&view.term);
        let (leader, ..) = *self.history.leaders.entry(view.term).or_insert((view.replica, view.last, 0));
        if leader != view.replica {
            return Err(self.broken("election safety", format!("{leader} leads term {} already", view.term)));
        }
        if !first_seen {
            return Ok(());
        }
        *self.elections += 1;
        let earlier = |(_, committed): &(&Index, &Committed)| committed.seen_in < view.term;
        let newest = self.history.committed.iter().rev().find(earlier);
        let Some((&index, &committed)) = newest else {
            return Ok(());
        };
        self.history.leaders.insert(view.term, (view.replica, view.last, index));
        let has = index < view.first || (view.term_at)(index) == Some(committed.term);
        if !has {
            return Err(self.broken(
                "leader completeness",
                format!(
                    "the leader of term {} lacks {index}@{}, which was committed before",
                    view.term, committed.term
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
