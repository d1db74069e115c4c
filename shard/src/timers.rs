//! Deadlines of all replicas, lazily.
//!
//! A replica's deadline moves later with every message it hears, and earlier only seldom. So a replica
//! has one entry that counts, at or before its deadline; when it comes up too early it is put back.
//! Entries that no longer count are dropped when they come up.

use floe_raft::Nanos;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A lazy heap of deadlines.
#[derive(Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Nanos, usize)>>,
    /// Per slot the time of the entry that counts; `Nanos::MAX` = none.
    armed: Vec<Nanos>,
}

impl Timers {
    /// The replica's deadline is `at` now. O(1) unless it moved earlier.
    pub(crate) fn arm(&mut self, slot: usize, at: Nanos) {
        if slot >= self.armed.len() {
            self.armed.resize(slot + 1, Nanos::MAX);
        }
        if at < self.armed[slot] {
            self.armed[slot] = at;
            self.heap.push(Reverse((at, slot)));
        }
    }

    /// The next slot whose entry has come up; the caller looks at its real deadline and arms it again.
    pub(crate) fn pop_due(&mut self, now: Nanos) -> Option<usize> {
        while let Some(&Reverse((at, slot))) = self.heap.peek()
            && at <= now
        {
            self.heap.pop();
            if self.armed[slot] == at {
                self.armed[slot] = Nanos::MAX;
                return Some(slot);
            }
        }
        None
    }

    /// Gives back half of the memory, if most of it is unused.
    pub(crate) fn shrink(&mut self) {
        if self.heap.capacity() > 1024.max(4 * self.heap.len()) {
            self.heap.shrink_to(self.heap.capacity() / 2);
        }
    }

    /// No deadline is before this.
    pub(crate) fn next(&self) -> Nanos {
        self.heap.peek().map_or(Nanos::MAX, |&Reverse((at, _))| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_moved_earlier_comes_up_once() {
        let mut timers = Timers::default();
        timers.arm(3, 100);
        timers.arm(3, 50);
        timers.arm(3, 200);
        assert_eq!(timers.next(), 50);
        assert_eq!(timers.pop_due(49), None);
        assert_eq!(timers.pop_due(150), Some(3));
        assert_eq!(timers.pop_due(150), None, "the entry at 100 no longer counts");
        timers.arm(3, 200);
        assert_eq!(timers.pop_due(200), Some(3));
    }
}
