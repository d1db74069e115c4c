//! Dumping a shard so that its log can be cut.
//!
//! A machine with files of its own makes its state durable in them instead, and its dump only names them: it is good
//! for this node alone, and has no length that could be offered to a follower (`base.dump_len`). When a follower
//! needs one, a whole dump is made for it, which no record names: it goes when the follower has it, or with the process.
//! That takes as long as the state is large, so such dumps have a queue of their own, and no other shard's flush waits.
//!
//! A picture of the state is taken at the applied mark and saved in the background; when it is durable, a
//! `TruncatePrefix` record names it, and the log in memory is dropped as far as nobody needs it. The dump
//! before it is removed once that record is durable, and nobody is being fed from it.
//!
//! Invariants: one dump of a shard is under way at a time; a dump that a later state has overtaken
//! (an installed snapshot) is removed, never named.

use crate::dump_file::{DumpFile, DumpHead};
use crate::ids::ShardId;
use crate::multi_raft::MultiRaft;
use crate::output::{DumpRemove, DumpSave, LogWrite, Output};
use crate::replica::{OnDurable, Replica};
use crate::state_machine::Pressure;
use bytes::Bytes;
use floe_raft::{Entry, Mark, Nanos, Planted, ReplicaId, is_planted};
use std::num::NonZeroU64;

/// A shard with at most this much log since its last dump is copied forward once, before it is dumped.
const RESET_BYTES_MAX: usize = 1 << 20;
/// Shards that one pass copies forward at most. With a pass every 20 ms ten thousand cold ones take less than a second.
const RESETS_PER_PASS: usize = 256;
/// Bytes of log after which a pass copies no further shard.
const RESET_BYTES_PER_PASS: usize = 4 << 20;
/// Whole dumps of machines with files that are made at a time.
const WHOLES_MAX: usize = 1;
/// Pause after a dump that couldn't be saved, or a flush that the machine doesn't want now.
const RETRY_AFTER_NS: Nanos = 1_000_000_000;

/// Where a replica stands with its dumps.
#[derive(Default)]
pub(crate) struct Flush {
    /// Applied since the mark of the last dump.
    pub(crate) unflushed_bytes: usize,
    pub(crate) running: Option<Box<RunningFlush>>,
    /// It is in one of the core's queues.
    pub(crate) queued: bool,
    /// Not before this time, after a failure.
    pub(crate) not_before: Nanos,
    /// Write the whole state anew once the dump is named.
    pub(crate) reset_after: bool,
    /// What was applied since the last dump was copied forward once: if it pins the log again, it is dumped.
    pub(crate) copied: bool,
}

/// A dump that is being saved.
pub(crate) struct RunningFlush {
    pub(crate) generation: u64,
    mark: Mark,
    descriptor: Bytes,
    /// Of `unflushed_bytes`, what the dump covers.
    covered_bytes: usize,
    what: What,
}

/// What kind of dump is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    /// The whole state, of a machine without files: the log names it, and followers take it.
    State,
    /// The names of files.
    Names,
    /// The whole state, of a machine with files: for followers alone.
    ForFollowers,
}

impl MultiRaft {
    /// A dump of so many bytes was saved durably, or couldn't be.
    pub fn dump_saved(
        &mut self,
        shard: ShardId,
        replica: ReplicaId,
        generation: u64,
        ok: Result<u64, String>,
    ) {
        let Some(slot) = self.slot_of(shard, replica) else {
            // Of a replica that was destroyed meanwhile: nothing will ever name it.
            return self.outbox.dump_removes.push(DumpRemove { shard, replica, generation });
        };
        let flush = &mut self.replicas[slot].flush;
        match flush.running.take_if(|running| running.generation == generation) {
            Some(running) => {
                *self.running_count(running.what) -= 1;
                self.replicas[slot].machine.flush_ended();
                self.finish_flush(slot, *running, ok);
            }
            None => self.on_transfer_saved(slot, generation, ok),
        }
        self.touch(slot);
    }

    /// The WAL wants its oldest segment free, and these shards pin it. Each is written anew with the log since its last
    /// dump, if that is little and wasn't copied before; else it is dumped first. What would be too much for one call is
    /// left for the next: many cold shards must not be rewritten in a storm. O(shards given).
    pub fn free_bases(&mut self, pinning: &[ShardId]) {
        let (mut resets, mut bytes) = (0, 0);
        for &shard in pinning {
            if let Some(copied) = self.free_base(shard) {
                resets += 1;
                bytes += copied;
            }
            if resets == RESETS_PER_PASS || bytes >= RESET_BYTES_PER_PASS {
                return;
            }
        }
    }

    /// How much log is copied; `None` = no record is written now.
    fn free_base(&mut self, shard: ShardId) -> Option<usize> {
        let slot = self.running(shard)?;
        let replica = &mut self.replicas[slot];
        if let (None, Some(bytes)) = (&replica.install, replica.copyable_bytes()) {
            replica.flush.copied = replica.flush.unflushed_bytes > 0;
            replica.write_reset();
            self.touch(slot);
            return Some(bytes);
        }
        replica.flush.reset_after = true;
        if replica.install.is_none() && replica.flush.not_before <= self.now {
            self.want_flush(slot);
        }
        None
    }

    /// Dumps a shard whose applied log has grown beyond its bound.
    pub(crate) fn maybe_want_flush(&mut self, slot: usize) {
        let flush = &self.replicas[slot].flush;
        let floor = self.config.flush_log_bytes;
        if flush.unflushed_bytes < floor
            || flush.queued
            || flush.running.is_some()
            || self.now < flush.not_before
        {
            return;
        }
        let half = (self.replicas[slot].machine.size_bytes() / 2) as usize;
        let bound = floor.max(half).min(self.config.log_bytes_max);
        if self.replicas[slot].flush.unflushed_bytes >= bound {
            self.want_flush(slot);
        }
    }

    pub(crate) fn want_flush(&mut self, slot: usize) {
        let replica = &mut self.replicas[slot];
        if !replica.flush.queued && replica.flush.running.is_none() {
            replica.flush.queued = true;
            let is_whole = replica.machine.has_files() && replica.awaits_dump();
            let queue = if is_whole { &mut self.whole_queue } else { &mut self.flush_queue };
            queue.push_back(slot);
        }
    }

    fn may_start_whole(&self) -> bool {
        self.wholes_running < WHOLES_MAX && !self.whole_queue.is_empty()
    }

    pub(crate) fn may_start_flush(&self) -> bool {
        self.dumps_running < self.config.dumps_in_flight && !self.flush_queue.is_empty()
            || self.may_start_whole()
    }

    pub(crate) fn start_flushes(&mut self, out: &mut Output) {
        while self.may_start_flush() {
            let is_whole = self.may_start_whole();
            let queue = if is_whole { &mut self.whole_queue } else { &mut self.flush_queue };
            let Some(slot) = queue.pop_front() else { return };
            self.replicas[slot].flush.queued = false;
            let replica = &self.replicas[slot];
            if !replica.may_flush() || is_whole && !replica.awaits_dump() {
                self.offer_or_give_up(slot, None);
                continue;
            }
            let what = match self.replicas[slot].machine.has_files() {
                false => What::State,
                true if is_whole => What::ForFollowers,
                true => What::Names,
            };
            match self.replicas[slot].start_flush(what) {
                Some(save) => {
                    out.dump_saves.push(save);
                    *self.running_count(what) += 1;
                }
                None => {
                    self.replicas[slot].flush.not_before = self.now.saturating_add(RETRY_AFTER_NS);
                    self.stats.flushes_postponed += 1;
                }
            }
        }
    }

    /// The replica goes: nobody waits for its dump any more.
    pub(crate) fn forget_flush(&mut self, slot: usize) {
        if let Some(running) = self.replicas[slot].flush.running.take() {
            *self.running_count(running.what) -= 1;
        }
    }

    fn running_count(&mut self, what: What) -> &mut usize {
        match what {
            What::ForFollowers => &mut self.wholes_running,
            What::State | What::Names => &mut self.dumps_running,
        }
    }

    fn finish_flush(&mut self, slot: usize, running: RunningFlush, ok: Result<u64, String>) {
        let replica = &mut self.replicas[slot];
        let is_overtaken = replica.install.is_some() || running.mark.index < replica.base.flushed.index;
        if is_overtaken {
            return self.push_remove(slot, running.generation);
        }
        let Ok(len) = ok else {
            replica.flush.not_before = self.now.saturating_add(RETRY_AFTER_NS);
            self.push_remove(slot, running.generation);
            return self.offer_or_give_up(slot, None);
        };
        if running.what == What::ForFollowers {
            return self.hand_out(slot, running.generation, running.mark, len);
        }
        replica.name_dump(running, len);
        if std::mem::take(&mut replica.flush.reset_after) && replica.install.is_none() {
            replica.write_reset();
        }
        replica.maybe_compact(Some(self.config.log_bytes_max));
        if replica.base.dump_len.is_some() {
            self.offer_base_or_give_up(slot);
        } else if replica.awaits_dump() {
            self.want_flush(slot);
        }
    }

    /// A dump that no record names was made for followers: it goes with the last of them that takes it.
    fn hand_out(&mut self, slot: usize, generation: u64, mark: Mark, len: u64) {
        self.offer_or_give_up(slot, Some((generation, mark, len)));
        self.remove_dump(slot, generation);
        if std::mem::take(&mut self.replicas[slot].flush.reset_after) {
            self.want_flush(slot);
        }
    }

    /// How short memory runs for states that aren't in files yet. All machines of a node share it, so one is asked.
    pub fn pressure(&self) -> Pressure {
        let first = self.slots.values().next();
        first.map_or(Pressure::None, |&slot| self.replicas[slot].machine.pressure())
    }

    /// Flushes the machine that holds the most of that memory on this core. O(shards of this core).
    pub fn flush_largest(&mut self) {
        self.flush_where_most(|replica| replica.machine.unflushed_bytes());
    }

    /// A dump is no longer named by any record: it goes, at once or when the last follower has it.
    pub(crate) fn remove_dump(&mut self, slot: usize, generation: u64) {
        let replica = &mut self.replicas[slot];
        match replica.work.outgoing.iter_mut().find(|outgoing| outgoing.feeds_from(generation)) {
            Some(outgoing) => outgoing.remove_after = true,
            None => self.push_remove(slot, generation),
        }
    }
}

impl Replica {
    /// A transferred dump that is on its way in has its number already, and must stay the newest.
    fn may_flush(&self) -> bool {
        self.takes_part()
            && self.install.is_none()
            && !self.incoming.as_ref().is_some_and(|incoming| incoming.has_generation())
            && self.applied.index > 0
    }

    /// `None` = the machine doesn't want to now.
    fn start_flush(&mut self, what: What) -> Option<DumpSave> {
        let mark = self.dump_mark();
        let membership = self.raft.membership_at(self.applied.index).clone();
        assert!(
            membership == self.descriptor.membership(),
            "{}: {membership:?} at {}, but the descriptor says {:?}",
            self.shard,
            self.applied,
            self.descriptor
        );
        let head = DumpHead { shard: self.shard, mark, descriptor: self.descriptor.clone(), membership };
        let body = if what == What::Names { self.machine.flush(&head)? } else { self.machine.dump() };
        let generation = self.take_generation();
        let data = Box::new(DumpFile::new(&head, body));
        self.flush.running = Some(Box::new(RunningFlush {
            generation,
            mark,
            descriptor: self.descriptor.encode(),
            covered_bytes: self.flush.unflushed_bytes,
            what,
        }));
        let is_long = what == What::ForFollowers;
        Some(DumpSave { shard: self.shard, replica: self.id, generation, data, is_long })
    }

    /// Where the state that is dumped stands.
    fn dump_mark(&self) -> Mark {
        let before = self.applied.index - 1;
        match self.raft.term_at(before) {
            Some(term) if is_planted(Planted::DumpMarkTooOld) => Mark::new(term, before),
            _ => self.applied,
        }
    }

    /// The dump is durable: from now on it is the shard's base.
    fn name_dump(&mut self, running: RunningFlush, len: u64) {
        let RunningFlush { generation, mark, descriptor, covered_bytes, what } = running;
        let before = std::mem::replace(&mut self.base.generation, generation);
        self.base.flushed = mark;
        self.set_base_descriptor(descriptor);
        self.base.dump_len = NonZeroU64::new(len).filter(|_| what == What::State);
        self.flush.unflushed_bytes -= covered_bytes;
        self.flush.copied = false;
        let record =
            LogWrite::TruncatePrefix { shard: self.shard, replica: self.id, flushed: mark, generation };
        self.write_own(record, (before > 0).then_some(OnDurable::Remove(before)));
    }

    pub(crate) fn write_reset(&mut self) {
        let record = LogWrite::Reset(Box::new(self.state()));
        self.write_own(record, None);
    }

    /// Bytes of the log since the last dump, if that is to be copied forward: because it is little and wasn't before,
    /// or because another dump would stand where the last one does.
    fn copyable_bytes(&self) -> Option<usize> {
        let bytes_max = match &self.flush {
            Flush { unflushed_bytes: 0, .. } => usize::MAX,
            Flush { copied: true, .. } => return None,
            _ => RESET_BYTES_MAX,
        };
        let log = self.base.flushed.index + 1..self.raft.last_mark().index + 1;
        let add = |sum: usize, entry: &Entry| Some(sum + entry.size()).filter(|&sum| sum <= bytes_max);
        let mut entries = self.raft.slice(log).expect("nothing that isn't flushed leaves the log");
        entries.try_fold(0, add)
    }

    /// Drops the log that is dumped and that nobody is going to be sent: up to what every follower has and
    /// every running transfer ends at; up to the dump alone if the log is beyond `log_bytes_max` and beyond half of the
    /// state, up to which a dump would cost a slow follower more. `None` = nothing is kept for slow followers. Followers do
    /// as leaders do, since one of them leads next.
    pub(crate) fn maybe_compact(&mut self, log_bytes_max: Option<usize>) {
        let flushed = self.base.flushed.index;
        if self.raft.first_index() > flushed || self.install.is_some() {
            return;
        }
        let mut to = flushed;
        let log_bytes = self.raft.log_bytes();
        let is_worth_it = |max| log_bytes <= max || log_bytes as u64 <= self.machine.size_bytes() / 2;
        if log_bytes_max.is_some_and(is_worth_it) {
            to = to.min(self.raft.held_by_all());
        }
        for outgoing in &self.work.outgoing {
            to = to.min(outgoing.holds_from().unwrap_or(flushed));
        }
        if to >= self.raft.first_index() {
            self.raft.compact(to);
        }
    }
}
