//! Virtual time: one queue of events in order of (time, sequence), and each node's own clock.

use floe_raft::Nanos;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One microsecond.
pub const US: Nanos = 1_000;
/// One millisecond.
pub const MS: Nanos = 1_000_000;
/// One second.
pub const SEC: Nanos = 1_000_000_000;

#[derive(Debug)]
struct Entry<E> {
    at: (Nanos, u64),
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// What will happen, and true time, which no node knows.
#[derive(Debug)]
pub struct Queue<E> {
    now: Nanos,
    sequence: u64,
    heap: BinaryHeap<Reverse<Entry<E>>>,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { now: 0, sequence: 0, heap: BinaryHeap::new() }
    }
}

impl<E> Queue<E> {
    /// True time.
    pub fn now(&self) -> Nanos {
        self.now
    }

    /// Adds an event at a time; one that has passed means now.
    pub fn at(&mut self, at: Nanos, event: E) {
        let at = (at.max(self.now), self.sequence);
        self.sequence += 1;
        self.heap.push(Reverse(Entry { at, event }));
    }

    /// Adds an event `delay` from now.
    pub fn after(&mut self, delay: Nanos, event: E) {
        self.at(self.now.saturating_add(delay), event);
    }

    /// Takes the next event and moves time to it.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(Entry { at, event }) = self.heap.pop()?;
        self.now = at.0;
        Some(event)
    }
}

/// A node's monotonic clock: it starts anywhere and runs a little too fast or too slow.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    started_at: Nanos,
    origin: Nanos,
    drift_ppm: i64,
}

const MILLION: i128 = 1_000_000;

impl NodeClock {
    /// A clock that reads `origin` at true time `now` and runs `drift_ppm` too fast.
    pub fn new(now: Nanos, origin: Nanos, drift_ppm: i64) -> Self {
        assert!(drift_ppm.abs() < 100_000, "no clock is {drift_ppm} ppm off");
        Self { started_at: now, origin, drift_ppm }
    }

    /// What the clock reads at true time `now`.
    pub fn local(&self, now: Nanos) -> Nanos {
        let elapsed = i128::from(now.saturating_sub(self.started_at));
        self.origin + (elapsed * (MILLION + i128::from(self.drift_ppm)) / MILLION) as u64
    }

    /// The first true time at which the clock reads at least `local`; `MAX` stays.
    pub fn true_time(&self, local: Nanos) -> Nanos {
        if local == Nanos::MAX {
            return local;
        }
        let elapsed = i128::from(local.saturating_sub(self.origin));
        let rate = MILLION + i128::from(self.drift_ppm);
        let elapsed = (elapsed * MILLION + rate - 1) / rate;
        self.started_at.saturating_add(elapsed.min(i128::from(u64::MAX)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time_and_then_of_arrival() {
        let mut queue = Queue::default();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            queue.at(at, event);
        }
        let order: String = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!((order.as_str(), queue.now()), ("abcd", 5));
    }

    #[test]
    fn a_timer_in_local_time_is_due_when_the_clock_shows_it() {
        for drift in [-4000, 0, 3999] {
            let clock = NodeClock::new(77, SEC, drift);
            for local in [SEC, SEC + 1, SEC + 12_345, 1000 * SEC] {
                let due = clock.true_time(local);
                assert!(clock.local(due) >= local, "{drift} {local}");
                assert!(due == 77 || clock.local(due - 1) < local, "{drift} {local}");
            }
        }
    }
}
