//! What of a shard isn't in its tables yet: the newest row per key, and the ranges that were deleted below them.
//!
//! Rows lie in the same tree of shared nodes as the memory store's: a copy is a snapshot, taken in no time, and only a
//! copy that somebody holds makes the next writes copy what they touch. So there is one version per key, as a flush
//! wants it, and a hot key doesn't make the memtable grow.
//!
//! Invariant: a row is newer than every range that covers it: deleting a range removes the rows in it. So what a
//! memtable says of a key is its row, or else "deleted" if a range covers it, or else nothing: ask what lies below.
//! Ranges are disjoint, ascending, and not empty.

use bytes::Bytes;
use floe_shard::{Pressure, RowTree, StoredKey, Versioned};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a row or a range takes besides its bytes, roughly.
const OVERHEAD_BYTES: u64 = 128;

/// A row: a value, or `None` for a key that was deleted.
pub(super) type Entry = Option<Versioned>;

/// From the first key, inclusive, to the second, exclusive; `None` = to the end of the key space.
type Range = (StoredKey, Option<StoredKey>);

/// A memtable. Copies are snapshots.
#[derive(Clone, Default)]
pub(super) struct Memtable {
    rows: RowTree<Entry>,
    ranges: Arc<Vec<Range>>,
    bytes: u64,
}

impl Memtable {
    /// Whether it says nothing of any key.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.ranges.is_empty()
    }

    /// What it takes in memory, roughly.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn rows(&self) -> &RowTree<Entry> {
        &self.rows
    }

    pub(super) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Of equal keys the last one stays.
    pub(super) fn set_all(&mut self, rows: Vec<(StoredKey, Entry)>) {
        self.bytes += rows.iter().map(|(key, entry)| row_bytes(key.len(), entry)).sum::<u64>();
        let bytes = &mut self.bytes;
        self.rows.insert_all(rows, &mut |key, old| *bytes -= row_bytes(key.len(), &old));
    }

    /// Everything from `low` to `high` is deleted, here and below. O(rows in it).
    pub(super) fn delete_range(&mut self, low: StoredKey, high: Option<StoredKey>) {
        for (key, old) in self.rows.remove_range(&low, high.as_ref()) {
            self.bytes -= row_bytes(key.len(), &old);
        }
        self.add_range(low, high);
    }

    /// Ranges that touch become one.
    fn add_range(&mut self, mut low: StoredKey, mut high: Option<StoredKey>) {
        let ranges = Arc::make_mut(&mut self.ranges);
        let from = ranges.partition_point(|(_, end)| end.as_ref().is_some_and(|end| *end < low));
        let to = ranges.partition_point(|(start, _)| high.as_ref().is_none_or(|high| start <= high));
        for (start, end) in ranges.drain(from..to.max(from)) {
            self.bytes -= range_bytes(&start, end.as_ref());
            low = low.min(start);
            high = high.zip(end).map(|(one, other)| one.max(other));
        }
        self.bytes += range_bytes(&low, high.as_ref());
        ranges.insert(from, (low, high));
    }

    /// What it says of a key; `None` = nothing.
    pub(super) fn get(&self, key: &StoredKey) -> Option<&Entry> {
        self.rows.get(key).or_else(|| self.deletes(key).then_some(&None))
    }

    /// Whether a range covers the key.
    pub(super) fn deletes(&self, key: &StoredKey) -> bool {
        let at = self.ranges.partition_point(|(start, _)| start <= key);
        let range = at.checked_sub(1).map(|at| &self.ranges[at]);
        range.is_some_and(|(_, end)| end.as_ref().is_none_or(|end| key < end))
    }

    /// Lays a newer memtable over this one.
    fn lay_over(&mut self, newer: &Self) {
        for (low, high) in newer.ranges.iter() {
            self.delete_range(low.clone(), high.clone());
        }
        let mut rows = Vec::with_capacity(newer.rows.len());
        newer.rows.visit(&StoredKey::new(b""), None, false, &mut |key, entry| {
            rows.push((key.clone(), entry.clone()));
            true
        });
        self.set_all(rows);
    }
}

fn row_bytes(key_len: usize, entry: &Entry) -> u64 {
    let value = entry.as_ref().map_or(0, |versioned| versioned.value.len());
    (key_len + value) as u64 + OVERHEAD_BYTES
}

fn range_bytes(low: &StoredKey, high: Option<&StoredKey>) -> u64 {
    (low.len() + high.map_or(0, StoredKey::len)) as u64 + OVERHEAD_BYTES
}

/// A row's value, in memory of its own: a small slice never pins the big buffer that a command arrived in.
pub(super) fn value(version: u64, value: &[u8]) -> Entry {
    Some(Versioned { version, value: Bytes::copy_from_slice(value) })
}

/// A memtable that nobody writes any more. Its memory counts until the last view of it is gone.
pub(super) struct Sealed {
    pub(super) memtable: Memtable,
    /// All of it is in the published tables.
    is_flushed: AtomicBool,
    _charge: Charge,
}

impl Sealed {
    pub(super) fn new(memtable: Memtable, charge: Charge) -> Arc<Self> {
        Arc::new(Self { memtable, is_flushed: AtomicBool::new(false), _charge: charge })
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.is_flushed.load(Ordering::Acquire)
    }

    /// The tables that hold all of it are published.
    pub(super) fn set_flushed(&self) {
        self.is_flushed.store(true, Ordering::Release);
    }

    /// Several as one, given from the newest to the oldest.
    pub(super) fn merged(newest_first: &[Arc<Self>]) -> Memtable {
        let mut oldest_first = newest_first.iter().rev();
        let mut all = oldest_first.next().map(|oldest| oldest.memtable.clone()).unwrap_or_default();
        oldest_first.for_each(|newer| all.lay_over(&newer.memtable));
        all
    }
}

/// What all memtables of a node may take together.
pub(crate) struct Budget {
    used: AtomicU64,
    max: u64,
    /// Memtables beyond half of it are flushed, the largest of each core first.
    flush_above: u64,
}

impl Budget {
    pub(crate) fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), max, flush_above: max / 2 })
    }

    /// What they take now.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// How short it runs.
    pub(super) fn pressure(&self) -> Pressure {
        match self.used() {
            used if used >= self.max => Pressure::Full,
            used if used > self.flush_above => Pressure::Tight,
            _ => Pressure::None,
        }
    }
}

/// A memtable's share of the budget, given back when it is dropped.
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Charge {
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), bytes: 0 }
    }

    pub(super) fn set(&mut self, bytes: u64) {
        // Wraps around when it shrinks, and so does the sum.
        self.budget.used.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Values that a command's conditions need and that were read from the tables for it.
#[derive(Default)]
pub(super) struct Fetched(Mutex<Vec<(StoredKey, Entry)>>);

impl Fetched {
    pub(super) fn fill(&self, rows: Vec<(StoredKey, Entry)>) {
        *self.0.lock() = rows;
    }

    /// The value, if it was asked for.
    pub(super) fn get(&self, key: &StoredKey) -> Option<Entry> {
        self.0.lock().iter().find(|(held, _)| held == key).map(|(_, entry)| entry.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Memtable {
        fn set(&mut self, key: &[u8], entry: Entry) {
            self.set_all(vec![(StoredKey::new(key), entry)]);
        }
    }

    fn key(text: &str) -> StoredKey {
        StoredKey::new(text.as_bytes())
    }

    fn ranges(memtable: &Memtable) -> Vec<(Bytes, Option<Bytes>)> {
        let bytes = |key: &StoredKey| key.to_bytes();
        memtable.ranges().iter().map(|(low, high)| (bytes(low), high.as_ref().map(bytes))).collect()
    }

    #[test]
    fn a_deleted_range_hides_what_is_below_and_not_what_came_later() {
        let mut memtable = Memtable::default();
        memtable.set(b"b", value(1, b"old"));
        memtable.delete_range(key("a"), Some(key("d")));
        memtable.set(b"c", value(3, b"new"));
        assert_eq!(memtable.get(&key("b")), Some(&None));
        assert_eq!(memtable.get(&key("c")).unwrap().as_ref().unwrap().version, 3);
        assert_eq!(memtable.get(&key("d")), None, "the end is not in it");
        assert_eq!(memtable.get(&key("A")), None);
    }

    #[test]
    fn ranges_that_touch_become_one_and_bytes_go_back_to_nothing() {
        let mut memtable = Memtable::default();
        for (low, high) in [("c", "e"), ("g", "i"), ("e", "f"), ("a", "b")] {
            memtable.delete_range(key(low), Some(key(high)));
        }
        let some = |text: &'static str| Some(Bytes::from(text));
        let expected: Vec<(Bytes, _)> =
            vec![("a".into(), some("b")), ("c".into(), some("f")), ("g".into(), some("i"))];
        assert_eq!(ranges(&memtable), expected);
        memtable.delete_range(key("d"), Some(key("h")));
        assert_eq!(ranges(&memtable), [("a".into(), some("b")), ("c".into(), some("i"))]);
        memtable.set(b"x", value(1, b"y"));
        memtable.delete_range(key(""), None);
        assert_eq!(ranges(&memtable), [("".into(), None)]);
        assert_eq!(memtable.bytes(), OVERHEAD_BYTES);
    }

    #[test]
    fn the_budget_counts_what_views_still_hold() {
        let budget = Budget::new(1000);
        let mut charge = Charge::new(&budget);
        charge.set(600);
        charge.set(510);
        assert_eq!(budget.pressure(), Pressure::Tight);
        let sealed = Sealed::new(Memtable::default(), charge);
        let view = sealed.clone();
        drop(sealed);
        assert_eq!(budget.used(), 510);
        drop(view);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn merging_keeps_the_newest_of_each_key() {
        let charge = || Charge::new(&Budget::new(1));
        let (mut old, mut new) = (Memtable::default(), Memtable::default());
        old.set(b"a", value(1, b"1"));
        old.set(b"b", value(2, b"2"));
        old.set(b"c", value(3, b"3"));
        new.set(b"a", None);
        new.delete_range(key("b"), Some(key("c")));
        let all = Sealed::merged(&[Sealed::new(new, charge()), Sealed::new(old, charge())]);
        assert_eq!((all.get(&key("a")), all.get(&key("b"))), (Some(&None), Some(&None)));
        assert_eq!(all.get(&key("c")).unwrap().as_ref().unwrap().version, 3);
    }
}
