//! Which replicas have something to do, each at most once, in order of arrival: round-robin is what
//! keeps a hot group from starving others.

use std::collections::VecDeque;

/// A queue of slots without duplicates.
#[derive(Default)]
pub(crate) struct ReadyQueue {
    order: VecDeque<usize>,
    queued: Vec<bool>,
}

impl ReadyQueue {
    /// O(1).
    pub(crate) fn push(&mut self, slot: usize) {
        if slot >= self.queued.len() {
            self.queued.resize(slot + 1, false);
        }
        if !std::mem::replace(&mut self.queued[slot], true) {
            self.order.push_back(slot);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<usize> {
        let slot = self.order.pop_front()?;
        self.queued[slot] = false;
        Some(slot)
    }

    /// Gives back half of the memory, if most of it is unused.
    pub(crate) fn shrink(&mut self) {
        if self.order.capacity() > 1024.max(4 * self.order.len()) {
            self.order.shrink_to(self.order.capacity() / 2);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}
