//! Which request waits for which mark.
//!
//! A proposal is settled when an entry is *applied* at its index: with its own mark it has happened, with
//! another it surely hasn't and never will. Or when one of a later term is applied before its index: terms
//! never fall along a log, and every later leader's log holds what was committed (paper §5.4.3). Nothing
//! else settles it: after a lost leadership its entry may still come back through a later leader's log and
//! be committed. So one replica may hold several proposals of different terms at one index; at most one of
//! them comes true.

use crate::request::RequestId;
use floe_raft::{Index, Mark, Planted, Term, is_planted};
use std::collections::VecDeque;

/// What came of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Its own entry was applied.
    Applied,
    /// Another leader's entry took its index.
    Overwritten,
    /// A snapshot passed its index: it can't be told.
    Unknown,
}

/// Proposals without an answer, in order of index.
pub(crate) struct Proposals {
    waiting: VecDeque<(Mark, RequestId)>,
    /// No proposal of an earlier term waits any more.
    settled_before: Term,
}

impl Default for Proposals {
    fn default() -> Self {
        Self::new()
    }
}

impl Proposals {
    pub(crate) const fn new() -> Self {
        Self { waiting: VecDeque::new(), settled_before: 0 }
    }

    /// O(1), except for the first proposals after a lost and regained leadership.
    pub(crate) fn push(&mut self, mark: Mark, id: RequestId) {
        let at = match self.waiting.back() {
            Some((last, _)) if last.index > mark.index => {
                self.waiting.partition_point(|(other, _)| other.index <= mark.index)
            }
            _ => self.waiting.len(),
        };
        self.waiting.insert(at, (mark, id));
    }

    /// An entry was applied: the next proposal that this settles. Call until `None`.
    pub(crate) fn settle(&mut self, applied: Mark) -> Option<(RequestId, Fate)> {
        let Some(&(mark, id)) = self.waiting.front().filter(|(mark, _)| mark.index <= applied.index) else {
            return self.settle_older_term(applied.term).map(|id| (id, Fate::Overwritten));
        };
        self.waiting.pop_front();
        assert!(mark.index == applied.index, "proposal {mark} was passed over, {applied} is applied");
        let is_own = mark == applied || is_planted(Planted::AnswerByIndex);
        Some((id, if is_own { Fate::Applied } else { Fate::Overwritten }))
    }

    /// Looks through what waits once per term.
    fn settle_older_term(&mut self, term: Term) -> Option<RequestId> {
        if term <= self.settled_before {
            return None;
        }
        let older = self.waiting.iter().position(|(mark, _)| mark.term < term);
        if older.is_none() {
            self.settled_before = term;
        }
        self.waiting.remove(older?).map(|(_, id)| id)
    }

    /// The state jumped to `to`: the next proposal that was passed over. Call until `None`.
    pub(crate) fn skip(&mut self, to: Index) -> Option<(RequestId, Fate)> {
        self.waiting.pop_front_if(|(mark, _)| mark.index <= to).map(|(_, id)| (id, Fate::Unknown))
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_later_term_replaced_is_settled_without_waiting_for_its_index() {
        let mut proposals = Proposals::default();
        for (term, index) in [(2, 9), (2, 10), (2, 11), (2, 12), (5, 10), (5, 11)] {
            proposals.push(Mark::new(term, index), RequestId(term * 100 + index));
        }
        let mut settle = |applied| {
            let settled = std::iter::from_fn(|| proposals.settle(applied));
            settled.map(|(id, fate)| (id.0, fate)).collect::<Vec<_>>()
        };
        assert_eq!(settle(Mark::new(2, 9)), [(209, Fate::Applied)]);
        let replaced = [210, 211, 212].map(|id| (id, Fate::Overwritten));
        let mut at_10 = settle(Mark::new(5, 10));
        at_10.sort_unstable_by_key(|(id, _)| *id);
        assert_eq!(at_10, [&replaced[..], &[(510, Fate::Applied)]].concat());
        assert_eq!(settle(Mark::new(5, 11)), [(511, Fate::Applied)]);
        assert_eq!(proposals.len(), 0);
    }
}
