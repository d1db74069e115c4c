//! One turn of a core: every replica that may have something to do is stepped once, and what comes of
//! it goes into one [`Output`]. This is where batching comes from: one WAL append for all of them, and one
//! batch per peer.

use crate::command::COMMAND_VERSION;
use crate::heartbeat::post;
use crate::ids::ShardId;
use crate::multi_raft::MultiRaft;
use crate::output::{DumpRemove, LogWrite, Output, PersistToken};
use crate::peer::PeerMessage;
use crate::proposal::Fate;
use crate::replica::{Applied, Replica};
use crate::request::{Answer, BusyReason, Refusal, UnknownReason};
use crate::submit::Served;
use floe_raft::{EntryKind, Leadership, Message, Nanos, Planted, Ready, is_planted};

impl MultiRaft {
    /// Steps ready replicas, each once at the most, and adds what they want done to `out`. What the caps leave over is
    /// there for the next call: see [`MultiRaft::has_work`].
    pub fn collect(&mut self, now: Nanos, out: &mut Output) {
        self.advance_clock(now);
        self.applied_bytes = 0;
        for _ in 0..self.queue.len() {
            if self.applied_bytes >= self.config.turn_apply_bytes_max {
                break;
            }
            if let Some(slot) = self.queue.pop() {
                self.turn(slot, out);
            }
        }
        self.weigh_logs();
        self.start_flushes(out);
        self.post_beats(out);
        self.drain_outbox(out);
    }

    /// Whether [`MultiRaft::collect`] would do something.
    pub fn has_work(&self) -> bool {
        !self.queue.is_empty() || self.beat_owed || !self.outbox.is_empty() || self.may_start_flush()
    }

    fn turn(&mut self, slot: usize, out: &mut Output) {
        write_own_records(&mut self.replicas[slot], out);
        out.turned.push(self.replicas[slot].shard);
        if !self.replicas[slot].raft.is_candidate() {
            self.elections.on_settled(slot);
        } else if self.replicas[slot].is_unled() {
            self.unled.entry(slot).or_insert(1);
        }
        if !self.replicas[slot].takes_part() {
            return;
        }
        self.note_awake(slot);
        self.propose_held(slot, out);
        self.ask_reads(slot);
        let mut ready = std::mem::take(&mut self.ready);
        self.replicas[slot].raft.ready(&mut ready);
        self.replicas[slot].work.turn_bytes = 0;
        if let Some(leadership) = ready.leadership {
            self.note_leadership(slot, leadership, out);
        }
        self.write(slot, &mut ready, out);
        self.send(slot, &mut ready, out);
        self.apply(slot, &ready, out);
        self.answer_reads(slot, &ready, out);
        for &follower in &ready.snapshots_needed {
            self.feed_dump(slot, follower);
        }
        self.ready = ready;
        self.end_turn(slot);
    }

    fn end_turn(&mut self, slot: usize) {
        self.maybe_want_flush(slot);
        let replica = &mut self.replicas[slot];
        if replica.routes_since != replica.raft.membership_index() {
            replica.refresh_routes(&self.peers, &mut self.shared);
        }
        replica.maybe_compact(Some(self.config.log_bytes_max));
        self.count_log(slot);
        let replica = &mut self.replicas[slot];
        if replica.raft.has_ready() || !replica.work.held.is_empty() || !replica.work.own_records.is_empty() {
            self.queue.push(slot);
        }
        if replica.quiet_on.is_some() {
            replica.shrink();
        }
        self.timers.arm(slot, self.replicas[slot].raft.deadline());
        if self.replicas[slot].is_to_leave() {
            self.leave(slot);
        }
    }

    /// Proposes what earlier turns had no room for, as far as this one has.
    fn propose_held(&mut self, slot: usize, out: &mut Output) {
        let Self { replicas, config, callers, stats, now, .. } = self;
        let replica = &mut replicas[slot];
        while let Some(held) = replica.work.held.front() {
            let len = held.command.len();
            let has_room =
                replica.work.turn_bytes == 0 || replica.work.turn_bytes + len <= config.turn_bytes_max;
            if !has_room && replica.raft.is_leader() {
                break;
            }
            let held = replica.work.held.pop_front().expect("the front was just looked at");
            replica.work.held_bytes -= len;
            replica.work.turn_bytes += len;
            let proposed = replica.propose(*now, held.id, EntryKind::Command, COMMAND_VERSION, held.command);
            match proposed {
                Ok(()) => stats.proposals += 1,
                Err(refusal) => callers.answer(held.id, Answer::Refused(refusal), &mut out.answers),
            }
        }
    }

    fn ask_reads(&mut self, slot: usize) {
        let replica = &mut self.replicas[slot];
        if replica.work.reads.are_unasked()
            && replica.work.reads.ask(&mut replica.raft, self.now, &mut self.read_context_next)
        {
            self.stats.read_rounds += 1;
        }
    }

    fn note_leadership(&mut self, slot: usize, leadership: Leadership, out: &mut Output) {
        if leadership.is_self {
            self.leaders.insert(slot);
            self.stats.elections += 1;
        } else if self.leaders.remove(&slot) {
            self.end_outgoing(slot);
        }
        let replica = &mut self.replicas[slot];
        let leader_node = leadership.leader.and_then(|leader| replica.descriptor.node_of(leader));
        out.leaders.push((replica.shard, leader_node));
        if leadership.leader.is_none() {
            return;
        }
        replica.head_starts = 0;
        replica.active_at = replica.active_at.filter(|_| !leadership.is_self);
        let other = |leader| Answer::Refused(replica.not_leader(leader));
        let settled = match replica.work.handing_over {
            Some((_, target)) if leadership.leader == Some(target) => Answer::Done,
            _ => other(leadership.leader),
        };
        if let Some((id, _)) = replica.work.handing_over.take_if(|_| !leadership.is_self) {
            self.callers.answer(id, settled, &mut out.answers);
        }
    }

    /// Raft's writes. The snapshot's record comes after the entries: it keeps those after its mark.
    fn write(&mut self, slot: usize, ready: &mut Ready, out: &mut Output) {
        let install = ready.snapshot.take();
        self.drop_unwanted_dump(slot, install.is_some());
        let Some(write) = ready.write else { return };
        let (shard, replica) = (self.replicas[slot].shard, self.replicas[slot].id);
        if let Some(state) = ready.hard_state {
            out.writes.push(LogWrite::HardState { shard, replica, state });
        }
        if !ready.entries.is_empty() {
            let entries = ready.entries.drain(..).collect();
            out.writes.push(LogWrite::Entries { shard, replica, entries });
        }
        if let Some(install) = install {
            self.install_dump(slot, write, install, out);
            if is_planted(Planted::InstallBeforeRecord) {
                self.finish_install(slot);
            }
        }
        out.persists.push(PersistToken { shard, write });
    }

    fn send(&mut self, slot: usize, ready: &mut Ready, out: &mut Output) {
        let Self { replicas, boot_epoch, .. } = self;
        let replica = &replicas[slot];
        let (shard, epoch) = (replica.shard, replica.descriptor.epoch);
        for message in ready.messages.drain(..) {
            if let Some(addr) = replica.route(message.to) {
                let batch = out.sends.entry(addr).or_default();
                post(batch, *boot_epoch, shard, epoch, message);
            }
        }
        let routed = |message: Message| Some((replica.route(message.to)?, message));
        let late = ready.messages_after_persist.drain(..).filter_map(routed);
        out.sends_after
            .extend(late.map(|(addr, message)| (addr, PeerMessage::Raft { shard, epoch, message })));
    }

    /// Applies what is committed, up to a command that has to wait for the disk.
    fn apply(&mut self, slot: usize, ready: &Ready, out: &mut Output) {
        let Self { replicas, callers, stats, peers, shared, jobs, outbox, now, applied_bytes, .. } = self;
        let replica = &mut replicas[slot];
        if let Some(last) = ready.committed.clone().last() {
            replica.apply_to = last;
        }
        if replica.apply_to <= replica.applied.index || replica.fetching {
            return;
        }
        let members_before = replica.descriptor.epoch.membership;
        for index in replica.applied.index + 1..replica.apply_to + 1 {
            let entry = replica.raft.slice(index..index + 1).map(|mut entries| entries.next().cloned());
            let Ok(Some(entry)) = entry else {
                panic!("{}: {index} is gone from the log, and not applied: {entry:?}", replica.shard);
            };
            let applied = replica.apply(&entry);
            if matches!(applied, Applied::Pending) {
                jobs.fetch(replica, outbox);
                break;
            }
            stats.applied += 1;
            *applied_bytes += entry.size();
            if entry.kind != EntryKind::Noop {
                replica.active_at = Some(*now);
            }
            while let Some((id, fate)) = replica.work.proposals.settle(entry.mark) {
                let answer = match fate {
                    Fate::Applied => {
                        stats.commits += 1;
                        replica.answer_for(&applied)
                    }
                    Fate::Overwritten => Answer::Refused(Refusal::Overwritten),
                    Fate::Unknown => Answer::Unknown(UnknownReason::LeadershipLost),
                };
                callers.answer(id, answer, &mut out.answers);
            }
        }
        replica.raft.applied(replica.applied.index);
        if replica.descriptor.epoch.membership != members_before {
            replica.refresh_routes(peers, shared);
        }
    }

    /// Serves the reads whose round is confirmed and applied, and turns away those whose round was dropped.
    pub(crate) fn answer_reads(&mut self, slot: usize, ready: &Ready, out: &mut Output) {
        let Self { replicas, callers, stats, jobs, outbox, now, .. } = self;
        let replica = &mut replicas[slot];
        for read in &ready.reads {
            replica.active_at = Some(*now);
            replica.work.reads.confirm(read.context, read.index);
        }
        for &context in &ready.reads_dropped {
            replica.work.reads.drop_round(context);
        }
        while replica.work.reads.len() > 0
            && let Some((read, may_serve)) = replica.work.reads.pop(replica.applied.index)
        {
            if !callers.wants(read.id) {
                callers.close(read.id);
                continue;
            }
            let served = if may_serve {
                replica.serve(&read.query, read.range_epoch)
            } else {
                Served::Now(Answer::Refused(replica.read_refusal(read.consistency, *now)))
            };
            match served {
                Served::Now(answer) => {
                    stats.reads += u64::from(may_serve);
                    callers.answer(read.id, answer, &mut out.answers);
                }
                Served::Later(job, state) => jobs.read((read.id, read.query), (job, state), outbox),
            }
        }
    }

    /// A transfer that Raft has given up leaves its asker refused.
    pub(crate) fn check_hand_over(&mut self, slot: usize) {
        let replica = &mut self.replicas[slot];
        let runs = replica.raft.status().transfer_to.is_some();
        if let Some((id, _)) = replica.work.handing_over.take_if(|_| replica.raft.is_leader() && !runs) {
            let answer = Answer::Refused(Refusal::Busy(BusyReason::Transfer));
            self.callers.answer(id, answer, &mut self.outbox.answers);
        }
    }

    /// Nothing names this dump any more.
    pub(crate) fn push_remove(&mut self, slot: usize, generation: u64) {
        let Replica { shard, id, .. } = *self.replicas[slot];
        self.outbox.dump_removes.push(DumpRemove { shard, replica: id, generation });
    }

    fn drain_outbox(&mut self, out: &mut Output) {
        for (addr, message) in self.outbox.sends.drain(..) {
            out.sends.entry(addr).or_default().messages.push(message);
        }
        out.answers.append(&mut self.outbox.answers);
        out.dump_saves.append(&mut self.outbox.dump_saves);
        out.dump_reads.append(&mut self.outbox.dump_reads);
        out.dump_removes.append(&mut self.outbox.dump_removes);
        out.jobs.append(&mut self.outbox.jobs);
        out.stagings.append(&mut self.outbox.stagings);
        out.creates.append(&mut self.outbox.creates);
        out.refused.append(&mut self.outbox.refused);
    }

    /// The shards with a replica on this core, in order.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.slots.keys().copied()
    }
}

/// The shard layer's own records, in the order in which they came up.
fn write_own_records(replica: &mut Replica, out: &mut Output) {
    if replica.work.own_records.is_empty() {
        return;
    }
    out.writes.append(&mut replica.work.own_records);
    if let Some(&(write, _)) = replica.work.own_writes.back() {
        out.persists.push(PersistToken { shard: replica.shard, write });
    }
}
