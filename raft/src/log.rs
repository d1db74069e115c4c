//! The part of the log that is in memory: a base mark and every entry after it.
//!
//! Invariants, asserted on every change: entries are contiguous from `base.index + 1`; terms never
//! fall from one entry to the next, nor below the base's. So the conflict hint is a binary search over
//! the entries themselves. (Once cold entries are left on disk, where each term begins must stay here.)

use crate::types::{Entry, Index, Mark, Term};
use std::collections::VecDeque;

/// One replica's log after its snapshot.
#[derive(Debug)]
pub(crate) struct Log {
    /// The state machine's durable snapshot holds everything up to here.
    base: Mark,
    /// Entries from `base.index + 1` on.
    entries: VecDeque<Entry>,
    /// Sum of [`Entry::size`] over `entries`.
    bytes: usize,
}

impl Log {
    /// A log that starts after `base` with these entries.
    pub(crate) fn new(base: Mark, entries: Vec<Entry>) -> Self {
        let buffer = VecDeque::with_capacity(entries.len());
        let mut log = Self { base, entries: buffer, bytes: 0 };
        log.extend(entries);
        log
    }

    /// The mark right before the first entry.
    pub(crate) fn base(&self) -> Mark {
        self.base
    }

    /// Index of the first entry, or of the one that comes next if there is none.
    pub(crate) fn first_index(&self) -> Index {
        self.base.index + 1
    }

    /// Index of the last entry, or of the base if there is none.
    pub(crate) fn last_index(&self) -> Index {
        self.base.index + self.entries.len() as u64
    }

    /// Mark of the last entry, or the base if there is none.
    pub(crate) fn last_mark(&self) -> Mark {
        self.entries.back().map_or(self.base, |entry| entry.mark)
    }

    /// Sum of [`Entry::size`] over the entries in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Term of the entry at `index`, or of the base; `None` below the base and after the last. O(1).
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        match index.checked_sub(self.base.index)? {
            0 => Some(self.base.term),
            at => self.entries.get(at as usize - 1).map(|entry| entry.mark.term),
        }
    }

    /// Whether the log holds exactly this mark (the base counts).
    pub(crate) fn contains(&self, mark: Mark) -> bool {
        self.term_at(mark.index) == Some(mark.term)
    }

    /// The last mark at or below `index` whose term is not above `term`; `None` if that would be
    /// before the base. Both sides of the conflict search use it (paper §5.3, end). O(log entries).
    pub(crate) fn last_not_above(&self, index: Index, term: Term) -> Option<Mark> {
        let below = index.checked_sub(self.base.index)? as usize;
        let count = below.min(self.entries.partition_point(|entry| entry.mark.term <= term));
        let found = count.checked_sub(1).map_or(self.base, |at| self.entries[at].mark);
        (found.term <= term).then_some(found)
    }

    /// Appends entries in order.
    pub(crate) fn extend(&mut self, entries: Vec<Entry>) {
        let mut last = self.last_mark();
        for entry in &entries {
            self.note(last, entry);
            last = entry.mark;
        }
        self.entries.extend(entries);
    }

    /// Appends one entry.
    pub(crate) fn push(&mut self, entry: Entry) {
        self.note(self.last_mark(), &entry);
        self.entries.push_back(entry);
    }

    /// An entry comes after `last`.
    fn note(&mut self, last: Mark, entry: &Entry) {
        assert!(
            entry.mark.index == last.index + 1 && entry.mark.term >= last.term,
            "entry {} can't follow {last} (base {})",
            entry.mark,
            self.base
        );
        self.bytes += entry.size();
    }

    /// Drops the entries from `from` on.
    pub(crate) fn truncate_from(&mut self, from: Index) {
        assert!(from > self.base.index, "truncating from {from} would cut the base {}", self.base);
        while self.last_index() >= from {
            let Some(entry) = self.entries.pop_back() else { break };
            self.bytes -= entry.size();
        }
    }

    /// Drops the entries up to and with `to`, which becomes the base. O(entries dropped).
    pub(crate) fn compact(&mut self, to: Index) {
        let Some(term) = self.term_at(to) else {
            panic!("compacting to {to} outside of the log {}..={}", self.base, self.last_mark());
        };
        let held = self.entries.len();
        for entry in self.entries.drain(..(to - self.base.index) as usize) {
            self.bytes -= entry.size();
        }
        self.base = Mark::new(term, to);
        // By what it held before: a log that grows and is compacted in turns keeps its buffer.
        if held < self.entries.capacity() / 4 {
            self.entries.shrink_to(held * 2);
        }
    }

    /// Gives back the memory that holds no entry.
    pub(crate) fn shrink(&mut self) {
        self.entries.shrink_to_fit();
    }

    /// Drops everything; the log starts after `base`.
    pub(crate) fn reset(&mut self, base: Mark) {
        assert!(base.index > self.base.index, "a snapshot at {base} can't replace the base {}", self.base);
        *self = Self::new(base, Vec::new());
    }

    /// Entries `from..=to`, cut where their sizes would exceed `max_bytes`; the first one is always
    /// admitted. Empty if `from > to` or `from` isn't in memory.
    pub(crate) fn slice(
        &self,
        from: Index,
        to: Index,
        max_bytes: usize,
    ) -> impl ExactSizeIterator<Item = &Entry> {
        let to = to.min(self.last_index());
        if from <= self.base.index || from > to {
            return self.entries.range(0..0);
        }
        let (start, end) = ((from - self.base.index - 1) as usize, (to - self.base.index) as usize);
        // Most slices can't exceed the bound, whatever is in them.
        if self.bytes <= max_bytes {
            return self.entries.range(start..end);
        }
        let (mut count, mut bytes) = (0, 0);
        for entry in self.entries.range(start..end) {
            bytes += entry.size();
            if count > 0 && bytes > max_bytes {
                break;
            }
            count += 1;
        }
        self.entries.range(start..start + count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::EntryKind;
    use bytes::Bytes;

    fn log_of(base: Mark, terms: &[Term]) -> Log {
        let entry = |(i, &term): (usize, &Term)| Entry {
            mark: Mark::new(term, base.index + 1 + i as u64),
            kind: EntryKind::Command,
            version: 0,
            data: Bytes::from_static(b"x"),
        };
        Log::new(base, terms.iter().enumerate().map(entry).collect())
    }

    #[test]
    fn terms_stay_with_their_entries_through_truncation_and_compaction() {
        let terms = [1, 1, 2, 5, 5, 5, 7];
        for compact_to in 3..=10 {
            for truncate_from in compact_to + 1..=11 {
                let mut log = log_of(Mark::new(1, 3), &terms);
                log.truncate_from(truncate_from);
                if compact_to <= log.last_index() {
                    log.compact(compact_to);
                }
                for index in log.first_index()..=log.last_index() {
                    assert_eq!(log.term_at(index), Some(terms[index as usize - 4]), "{log:?}");
                }
                assert_eq!(log.bytes(), log.entries.iter().map(Entry::size).sum());
                assert_eq!(log.term_at(log.base().index), Some(log.base().term));
                assert_eq!(log.term_at(log.last_index() + 1), None);
            }
        }
    }

    #[test]
    fn the_hint_is_the_last_mark_whose_term_is_not_above() {
        let log = log_of(Mark::new(1, 3), &[1, 1, 2, 5, 5, 5, 7]);
        assert_eq!(log.last_not_above(10, 6), Some(Mark::new(5, 9)));
        assert_eq!(log.last_not_above(8, 6), Some(Mark::new(5, 8)));
        assert_eq!(log.last_not_above(99, 9), Some(Mark::new(7, 10)));
        assert_eq!(log.last_not_above(10, 4), Some(Mark::new(2, 6)));
        assert_eq!(log.last_not_above(10, 0), None);
        assert_eq!(log.last_not_above(2, 9), None);
    }

    /// Against a search entry by entry.
    #[test]
    fn the_hint_is_found_in_every_log() {
        let terms = [1, 1, 2, 5, 5, 5, 7];
        for compact_to in 3..=10 {
            let mut log = log_of(Mark::new(1, 3), &terms);
            log.compact(compact_to);
            for (index, term) in (0..14).flat_map(|index| (0..9).map(move |term| (index, term))) {
                let marks = (log.base().index..=log.last_index()).map(|at| (log.term_at(at), at));
                let fits = |&(of, at): &(Option<Term>, Index)| of <= Some(term) && at <= index;
                let expected = marks.rev().find(fits).map(|(of, at)| Mark::new(of.expect("held"), at));
                assert_eq!(log.last_not_above(index, term), expected, "{index} {term} {log:?}");
            }
        }
    }

    #[test]
    fn a_slice_admits_one_entry_whatever_its_size() {
        let log = log_of(Mark::ZERO, &[1, 1, 1]);
        let size = log.bytes() / 3;
        assert_eq!(log.slice(1, 3, 0).len(), 1);
        assert_eq!(log.slice(1, 3, 2 * size).len(), 2);
        assert_eq!(log.slice(2, 9, usize::MAX).len(), 2);
        assert_eq!(log.slice(4, 9, usize::MAX).len(), 0);
    }

    #[test]
    #[should_panic(expected = "can't follow")]
    fn a_gap_is_refused() {
        let mut log = log_of(Mark::ZERO, &[1]);
        let mut entry = log.slice(1, 1, 0).next().expect("one entry").clone();
        entry.mark.index = 3;
        log.push(entry);
    }
}
