//! One budget for the logs in memory of all shards of a core: a node's budget is divided among its cores.
//!
//! A log is kept in memory until it is dumped and every follower has it. So one slow follower per shard would fill a node
//! of many shards, each within its own bound. When memory runs short, it is taken back in this order:
//!
//! 1. *From half of the budget on* (pressed) leaders feed followers less that hold less than what is committed without
//!    them ([`floe_raft::Raft::set_pressed`]), and what only such followers still need is dropped: first where it is
//!    most, which is where the slowest are. They get a dump. What isn't dumped yet is dumped, the largest first. From
//!    three quarters on, dumps on their way to followers hold up nothing either.
//! 2. *At all of it* (full) callers are told `Busy`, and
//! 3. followers here take no further commands, and say so; but only if what is committed takes half of the budget. That
//!    much this core can get rid of by itself, by dumping it. Of what isn't committed other cores must be rid
//!    first, which may be full of what waits for this one: if each waited for the others, none would go on.
//!
//! Both levels end at three quarters of where they begin, so that they don't come and go with every entry. The count
//! follows each replica's turn; levels follow each turn, 3. and the search for what to drop each beat.

use crate::flush::Flush;
use crate::multi_raft::MultiRaft;
use crate::replica::Replica;
use crate::transfer::Outgoing;
use std::cmp::Reverse;

/// What the logs take, and what follows from it.
#[derive(Debug, Default)]
pub(crate) struct LogBudget {
    /// Of all replicas, as of their last turns.
    bytes: usize,
    is_pressed: bool,
    is_full: bool,
    /// Followers take no commands.
    pub(crate) refuses: bool,
}

impl LogBudget {
    /// Callers' proposals are refused.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Laggards are fed less.
    pub(crate) fn is_pressed(&self) -> bool {
        self.is_pressed
    }
}

/// Whether a level is reached, if it was before or wasn't.
fn is_above(was: bool, bytes: usize, level: usize) -> bool {
    bytes >= if was { level / 4 * 3 } else { level }
}

impl MultiRaft {
    /// Bytes of the logs in memory of all shards of this core.
    pub fn log_bytes(&self) -> usize {
        self.log_budget.bytes
    }

    /// The replica's log may have changed.
    pub(crate) fn count_log(&mut self, slot: usize) {
        let replica = &mut self.replicas[slot];
        let now = replica.raft.log_bytes();
        let before = std::mem::replace(&mut replica.log_bytes_counted, now);
        let all = self.log_budget.bytes.checked_sub(before);
        let all = all.unwrap_or_else(|| panic!("{}: {before} of {:?}", replica.shard, self.log_budget));
        self.log_budget.bytes = all + now;
    }

    /// The replica is gone.
    pub(crate) fn uncount_log(&mut self, slot: usize) {
        let counted = std::mem::take(&mut self.replicas[slot].log_bytes_counted);
        self.log_budget.bytes -= counted;
    }

    /// Follows the count. O(shards of this core) when memory begins or ceases to be short.
    pub(crate) fn weigh_logs(&mut self) {
        let (budget, max) = (&mut self.log_budget, self.config.core_log_bytes_max);
        budget.is_full = is_above(budget.is_full, budget.bytes, max);
        let is_pressed = is_above(budget.is_pressed, budget.bytes, max / 2);
        if std::mem::replace(&mut budget.is_pressed, is_pressed) != is_pressed {
            for &slot in self.slots.values() {
                self.replicas[slot].raft.set_pressed(is_pressed);
                self.queue.push(slot);
            }
        }
    }

    /// Takes memory back, if it is short. O(shards of this core) then.
    pub(crate) fn relieve_logs(&mut self) {
        if !self.log_budget.is_pressed && !self.log_budget.refuses {
            return;
        }
        self.drop_for_laggards();
        self.give_up_a_transfer();
        if self.log_budget.bytes > self.log_aim() {
            self.flush_where_most(|replica| replica.flush.unflushed_bytes as u64);
        }
        self.refuse_or_take_commands();
    }

    /// Down to this memory is taken back.
    fn log_aim(&self) -> usize {
        self.config.core_log_bytes_max / 8 * 3
    }

    /// Drops what is dumped and only laggards need, where it is most first.
    fn drop_for_laggards(&mut self) {
        let dumped = self.slots.values().map(|&slot| (self.replicas[slot].dumped_bytes(), slot));
        let mut dumped: Vec<_> = dumped.filter(|(bytes, _)| *bytes > 0).collect();
        dumped.sort_unstable_by_key(|&(bytes, slot)| (Reverse(bytes), slot));
        for (_, slot) in dumped {
            if self.log_budget.bytes <= self.log_aim() {
                return;
            }
            self.replicas[slot].maybe_compact(None);
            self.count_log(slot);
        }
    }

    /// Close to the end of the budget the log that waits for a dump to arrive isn't kept any more, if it is the most: a
    /// follower whose disk doesn't take its dump must not stop the others. It begins anew with a newer one.
    fn give_up_a_transfer(&mut self) {
        if self.log_budget.bytes < self.config.core_log_bytes_max / 4 * 3 {
            return;
        }
        let holds = |outgoing: &Outgoing| outgoing.holds_from().is_some();
        let holding =
            self.slots.values().filter(|slot| self.replicas[**slot].work.outgoing.iter().any(holds));
        let held = holding.map(|&slot| (self.replicas[slot].dumped_bytes(), slot));
        // Where nothing is held, giving up would gain nothing, and what isn't committed may wait for just this follower.
        let Some((_, slot)) = held.filter(|(bytes, _)| *bytes > 0).max_by_key(|(bytes, _)| *bytes) else {
            return;
        };
        while let Some(at) = self.replicas[slot].work.outgoing.iter().position(holds) {
            self.end_outgoing_at(slot, at, Some(false));
        }
        self.replicas[slot].maybe_compact(None);
        self.count_log(slot);
    }

    fn refuse_or_take_commands(&mut self) {
        let mut refuses = self.log_budget.is_full;
        if refuses {
            let uncommitted: usize =
                self.slots.values().map(|&slot| self.replicas[slot].raft.uncommitted_log_bytes()).sum();
            let committed = self.log_budget.bytes.saturating_sub(uncommitted);
            refuses = committed >= self.config.core_log_bytes_max / 2;
        }
        self.log_budget.refuses = refuses;
        self.tell_whether_full();
    }

    /// Dumps the replica of which `bytes` is the most. O(shards of this core).
    pub(crate) fn flush_where_most(&mut self, bytes: impl Fn(&Replica) -> u64) {
        let may = |replica: &Replica| {
            let Flush { queued, running, not_before, .. } = &replica.flush;
            replica.takes_part() && !queued && running.is_none() && *not_before <= self.now
        };
        let sized = self.slots.values().map(|&slot| (bytes(&self.replicas[slot]), slot));
        let largest = sized.filter(|&(bytes, slot)| bytes > 0 && may(&self.replicas[slot])).max();
        if let Some((_, slot)) = largest {
            self.want_flush(slot);
        }
    }
}

impl Replica {
    /// Bytes of the log that are dumped already; roughly, as entries that aren't applied count among them.
    fn dumped_bytes(&self) -> usize {
        let is_any_dumped = self.raft.first_index() <= self.base.flushed.index;
        if is_any_dumped { self.raft.log_bytes().saturating_sub(self.flush.unflushed_bytes) } else { 0 }
    }
}
