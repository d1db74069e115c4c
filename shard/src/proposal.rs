//! Which request waits for which mark.
//!
//! A proposal is settled when an entry is *applied* at its index: with its own mark it has happened, with
//! another it surely hasn't and never will. Nothing earlier settles it: after a lost leadership
//! its entry may still come back through a later leader's log and be committed. So one replica may hold
//! several proposals of different terms at one index; at most one of them comes true.

use crate::request::RequestId;
use floe_raft::{Index, Mark, Planted, is_planted};
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
#[derive(Default)]
pub(crate) struct Proposals {
    waiting: VecDeque<(Mark, RequestId)>,
}

impl Proposals {
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
        let &(mark, id) = self.waiting.front().filter(|(mark, _)| mark.index <= applied.index)?;
        self.waiting.pop_front();
        assert!(mark.index == applied.index, "proposal {mark} was passed over, {applied} is applied");
        let is_own = mark == applied || is_planted(Planted::AnswerByIndex);
        Some((id, if is_own { Fate::Applied } else { Fate::Overwritten }))
    }

    /// The state jumped to `to`: the next proposal that was passed over. Call until `None`.
    pub(crate) fn skip(&mut self, to: Index) -> Option<(RequestId, Fate)> {
        self.waiting.pop_front_if(|(mark, _)| mark.index <= to).map(|(_, id)| (id, Fate::Unknown))
    }

    /// Gives back the memory that holds nothing.
    pub(crate) fn shrink(&mut self) {
        self.waiting.shrink_to_fit();
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_terms_at_one_index_the_applied_one_comes_true() {
        let mut proposals = Proposals::default();
        for (term, index) in [(2, 9), (2, 10), (2, 11), (5, 10), (5, 11)] {
            proposals.push(Mark::new(term, index), RequestId(term * 100 + index));
        }
        let mut settled = Vec::new();
        for applied in [Mark::new(2, 9), Mark::new(5, 10), Mark::new(2, 11)] {
            while let Some((id, fate)) = proposals.settle(applied) {
                settled.push((id.0, fate));
            }
        }
        let expected = [
            (209, Fate::Applied),
            (210, Fate::Overwritten),
            (510, Fate::Applied),
            (211, Fate::Applied),
            (511, Fate::Overwritten),
        ];
        assert_eq!(settled, expected);
        assert_eq!(proposals.len(), 0);
    }
}
