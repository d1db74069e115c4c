//! What has been handed out to be persisted, and what of it is known to be durable.
//!
//! Writes complete in order, but many may be in flight, and the same index may be overwritten, even
//! by an entry of the same term again, while an older write of it is still in flight (the ABA case):
//! then the older write's completion says nothing about the entry that is in the log now. So when the
//! log is cut at `i`, every write in flight is *cut back too*: it can only vouch for what lies below
//! `i`, and only the write that carries the replacement vouches for the rest.
//!
//! Invariants: `durable <= handed`; every write in flight vouches for at most `handed`.

use crate::lazy::Lazy;
use crate::types::{Index, ReplicaId, Term, WriteId};
use std::collections::VecDeque;

/// The part of the hard state that elections depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ballot {
    pub(crate) term: Term,
    pub(crate) vote: Option<ReplicaId>,
}

/// One write in flight.
#[derive(Debug)]
struct Write {
    id: WriteId,
    /// Once complete, the log up to here is durable and is what the log holds now; 0 = nothing.
    vouches_to: Index,
    /// If it carries a ballot: the one before, which is durable until this write is.
    replaces: Option<Ballot>,
}

/// Tracks writes from `ready` to `persisted`.
#[derive(Debug)]
pub(crate) struct Writes {
    last_id: WriteId,
    in_flight: Lazy<VecDeque<Write>>,
    handed: Index,
    durable: Index,
    handed_ballot: Ballot,
}

impl Writes {
    /// After a start: everything up to `last` and the ballot are durable.
    pub(crate) fn new(last: Index, ballot: Ballot) -> Self {
        Self {
            last_id: WriteId(0),
            in_flight: Lazy::default(),
            handed: last,
            durable: last,
            handed_ballot: ballot,
        }
    }

    /// Highest index that is durable and not replaced since.
    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    /// Highest index that was handed out and not replaced since.
    pub(crate) fn handed(&self) -> Index {
        self.handed
    }

    /// The last ballot that was handed out.
    pub(crate) fn handed_ballot(&self) -> Ballot {
        self.handed_ballot
    }

    /// The newest ballot that is durable. Linear in the writes in flight.
    pub(crate) fn durable_ballot(&self) -> Ballot {
        self.in_flight.iter().find_map(|write| write.replaces).unwrap_or(self.handed_ballot)
    }

    /// The log was cut: nothing from `from` on is what the log holds any more.
    pub(crate) fn truncated(&mut self, from: Index) {
        let keep = from - 1;
        self.handed = self.handed.min(keep);
        self.durable = self.durable.min(keep);
        if !self.in_flight.is_empty() {
            let vouches = self.in_flight.iter_mut().map(|write| &mut write.vouches_to);
            vouches.for_each(|to| *to = keep.min(*to));
        }
    }

    /// A snapshot at `index` is in place: the log up to it needs no write. With `all`, whatever lay
    /// after it is gone.
    pub(crate) fn installed(&mut self, index: Index, all: bool) {
        if all {
            self.truncated(index + 1);
        }
        self.handed = self.handed.max(index);
        self.durable = self.durable.max(index);
    }

    /// Hands out a write that makes the log durable up to `last` and carries `ballot`, if any.
    pub(crate) fn begin(&mut self, last: Index, ballot: Option<Ballot>) -> WriteId {
        assert!(last >= self.handed, "write up to {last} after {} was handed out", self.handed);
        self.last_id.0 += 1;
        self.handed = last;
        let replaces = ballot.map(|ballot| std::mem::replace(&mut self.handed_ballot, ballot));
        self.in_flight.push_back(Write { id: self.last_id, vouches_to: last, replaces });
        self.last_id
    }

    /// Gives back the memory for writes, if none is in flight.
    pub(crate) fn shrink(&mut self) {
        self.in_flight.give_back();
    }

    /// All writes up to and with `id` are durable.
    pub(crate) fn complete(&mut self, id: WriteId) {
        assert!(id <= self.last_id, "write {id:?} was never handed out; the last was {:?}", self.last_id);
        while self.in_flight.front().is_some_and(|write| write.id <= id) {
            let Some(write) = self.in_flight.pop_front() else { break };
            self.durable = self.durable.max(write.vouches_to);
        }
        assert!(self.durable <= self.handed, "durable {} is above handed out {}", self.durable, self.handed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_write_vouches_for_nothing_that_was_overwritten_twice() {
        let ballot = Ballot { term: 1, vote: None };
        let mut writes = Writes::new(4, ballot);
        let first = writes.begin(6, None);
        writes.truncated(5); // 5 and 6 get replaced ...
        let second = writes.begin(5, None);
        writes.truncated(5); // ... and 5 gets back what it was
        let third = writes.begin(6, None);
        writes.complete(first);
        assert_eq!(writes.durable(), 4);
        writes.complete(second);
        assert_eq!(writes.durable(), 4);
        writes.complete(third);
        assert_eq!(writes.durable(), 6);
    }

    #[test]
    fn completion_covers_all_earlier_writes() {
        let ballot = Ballot { term: 1, vote: None };
        let mut writes = Writes::new(0, ballot);
        writes.begin(1, Some(Ballot { term: 2, vote: None }));
        let second = writes.begin(3, None);
        writes.complete(second);
        assert_eq!((writes.durable(), writes.durable_ballot().term), (3, 2));
    }

    #[test]
    fn a_ballot_is_durable_with_its_own_write_and_not_before() {
        let of_term = |term| Ballot { term, vote: None };
        let mut writes = Writes::new(0, of_term(1));
        let ballots = [None, Some(2), None, Some(3), None];
        let ids = ballots.map(|term| writes.begin(0, term.map(of_term)));
        assert_eq!((writes.handed_ballot().term, writes.durable_ballot().term), (3, 1));
        for (id, term) in ids.into_iter().zip([1, 2, 2, 3, 3]) {
            writes.complete(id);
            assert_eq!(writes.durable_ballot().term, term, "after {id:?}");
        }
    }
}
