//! The follower's side of a transfer; see `transfer.rs`.

use crate::dump_file::{DumpFile, DumpHead, DumpReader};
use crate::ids::{CoreAddr, ShardId};
use crate::multi_raft::MultiRaft;
use crate::output::{DumpSave, LogWrite, Output};
use crate::peer::PeerMessage;
use crate::replica::Replica;
use crate::request::{Answer, UnknownReason};
use crate::state_machine::{Dump, JobDone};
use crate::transfer::{Arrived, INCOMING_MAX, InStage, Incoming, Install, IntoFiles, Taking};
use bytes::Bytes;
use floe_raft::{Body, LeaderStamp, Mark, Message, ReplicaId, SnapshotInstall, WriteId};
use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU64;

/// Parts asked for at a time.
const PULLS_IN_FLIGHT: u64 = 2;

impl MultiRaft {
    pub(crate) fn on_dump_offer(&mut self, addr: CoreAddr, message: PeerMessage) {
        let PeerMessage::DumpOffer { shard, from, to, term, generation, mark, len } = message else { return };
        let Some(slot) = self.running(shard).filter(|&slot| self.replicas[slot].id == to) else { return };
        let replica = &self.replicas[slot];
        let is_members = replica.route(from) == Some(addr);
        if !is_members || term < replica.raft.term() || replica.install.is_some() {
            return;
        }
        if mark.index <= replica.raft.commit() {
            return self.send_pull(slot, from, generation, len, 0);
        }
        match replica.incoming.as_ref().map(|incoming| (&incoming.stage, incoming.term)) {
            None => {}
            Some((InStage::Pulling { .. }, other)) if term >= other => self.drop_incoming(slot),
            Some(_) => return,
        }
        if self.incoming >= INCOMING_MAX {
            return;
        }
        let Some(taking) = self.replicas[slot].begin_taking(len) else { return };
        let (reader, ahead) = (Box::new(DumpReader::new(len)), BTreeMap::new());
        let stage = InStage::Pulling { reader, taking, ahead, pulled: 0, heard_at: self.now };
        let incoming = Incoming { from, term, generation, mark, len, stage };
        self.replicas[slot].incoming = Some(Box::new(incoming));
        self.incoming += 1;
        self.watched.insert(slot);
        self.pull(slot);
    }

    pub(crate) fn on_dump_chunk(&mut self, message: PeerMessage) {
        let PeerMessage::DumpChunk { shard, from, to, generation, offset, data } = message else { return };
        let Some(slot) = self.running(shard).filter(|&slot| self.replicas[slot].id == to) else { return };
        let now = self.now;
        let Some(incoming) = self.replicas[slot].incoming.as_mut() else { return };
        if incoming.from != from || incoming.generation != generation {
            return;
        }
        let chunk = u64::from(self.config.dump_chunk_bytes);
        let len = chunk.min(incoming.len.saturating_sub(offset));
        let InStage::Pulling { pulled, heard_at, .. } = &mut incoming.stage else { return };
        // Exactly a part that was asked for: other cuts of the same bytes could wait here without bound.
        let was_asked_for = offset < *pulled && offset.is_multiple_of(chunk) && data.len() as u64 == len;
        if !was_asked_for {
            return self.drop_incoming(slot);
        }
        *heard_at = now;
        if incoming.take_part(offset, data, shard).is_none() {
            return self.drop_bad_dump(slot);
        }
        self.go_on_taking(slot);
    }

    /// Parts have come, or were taken in: further ones are asked for, until all are here and in place.
    fn go_on_taking(&mut self, slot: usize) {
        let Some(incoming) = self.replicas[slot].incoming.as_mut() else { return };
        let len = incoming.len;
        let InStage::Pulling { reader, taking, .. } = &mut incoming.stage else { return };
        let is_whole = reader.read() == len;
        match taking {
            Taking::Whole(_) if is_whole => self.save_whole(slot),
            Taking::Files(files) if files.job.is_none() && (is_whole || !files.waiting.is_empty()) => {
                self.take_next(slot);
            }
            _ => {}
        }
        self.pull(slot);
    }

    /// The next part of a dump goes into the machine's files, or all have gone: then they are made durable, if they are what
    /// the leader sent.
    fn take_next(&mut self, slot: usize) {
        let replica = &mut self.replicas[slot];
        let (shard, id) = (replica.shard, replica.id);
        let Some(incoming) = replica.incoming.as_mut() else { return };
        let InStage::Pulling { reader, taking: Taking::Files(files), .. } = &mut incoming.stage else {
            return;
        };
        let (ends_at, job) = match (files.waiting.pop_front(), reader.finish()) {
            (Some((ends_at, part)), _) => (ends_at, files.stage.take(part)),
            (None, Ok(head)) => (incoming.len, files.stage.finish(head)),
            (None, Err(_)) => return self.drop_bad_dump(slot),
        };
        files.job = Some((self.jobs.stage(shard, id, job, &mut self.outbox), ends_at));
    }

    /// A part of a dump is in the machine's files, or couldn't be put there; or all of it lies there, and is named.
    pub(crate) fn part_taken(&mut self, token: u64, slot: usize, done: Result<JobDone, String>) {
        let Some(incoming) = self.replicas[slot].incoming.as_mut() else { return };
        let InStage::Pulling { reader, taking: Taking::Files(files), heard_at, .. } = &mut incoming.stage
        else {
            return;
        };
        let Some((_, ends_at)) = files.job.take_if(|(job, _)| *job == token) else { return };
        files.taken = ends_at;
        *heard_at = self.now;
        match done {
            Ok(JobDone::Staged(body)) => {
                let head = reader.head().expect("it was read before all was staged").clone();
                let data = Box::new(DumpFile::new(&head, Box::new(body.clone())));
                self.save_dump(slot, data, (head, body), None);
            }
            Ok(_) => self.go_on_taking(slot),
            Err(_) => self.drop_incoming(slot),
        }
    }

    /// Asks for further parts, as far as the window goes.
    fn pull(&mut self, slot: usize) {
        let chunk = u64::from(self.config.dump_chunk_bytes);
        let Some(incoming) = self.replicas[slot].incoming.as_mut() else { return };
        let (from, generation, total) = (incoming.from, incoming.generation, incoming.len);
        let mut wanted = Vec::new();
        if let InStage::Pulling { reader, taking, pulled, .. } = &mut incoming.stage {
            let done_to = taking.done_to(reader.read());
            while *pulled < total && *pulled - done_to < PULLS_IN_FLIGHT * chunk {
                let len = chunk.min(total - *pulled);
                wanted.push((*pulled, len as u32));
                *pulled += len;
            }
        }
        for (offset, len) in wanted {
            self.send_pull(slot, from, generation, offset, len);
        }
    }

    pub(crate) fn send_pull(
        &mut self,
        slot: usize,
        leader: ReplicaId,
        generation: u64,
        offset: u64,
        len: u32,
    ) {
        let replica = &self.replicas[slot];
        let (shard, from, to) = (replica.shard, replica.id, leader);
        if let Some(addr) = replica.route(leader) {
            let pull = PeerMessage::DumpPull { shard, from, to, generation, offset, len };
            self.outbox.sends.push((addr, pull));
        }
    }

    /// All parts are here. What isn't exactly what the leader offered is dropped; it will offer again.
    fn save_whole(&mut self, slot: usize) {
        let Some(incoming) = self.replicas[slot].incoming.as_mut() else { return };
        let InStage::Pulling { reader, taking: Taking::Whole(buffer), .. } = &mut incoming.stage else {
            return;
        };
        let Ok(head) = reader.finish().cloned() else { return self.drop_bad_dump(slot) };
        let bytes = Bytes::from(std::mem::take(buffer));
        let (body, len) = (reader.body_of(&bytes), NonZeroU64::new(incoming.len));
        self.save_dump(slot, Box::new(bytes), (head, body), len);
    }

    /// A dump is whole and right: it is saved under a number of this replica's own.
    fn save_dump(
        &mut self,
        slot: usize,
        data: Box<dyn Dump>,
        (head, body): (DumpHead, Bytes),
        dump_len: Option<NonZeroU64>,
    ) {
        let replica = &mut self.replicas[slot];
        let saved_as = replica.take_generation();
        let (shard, id) = (replica.shard, replica.id);
        let incoming = replica.incoming.as_mut().expect("it has just arrived");
        incoming.stage = InStage::Saving(Arrived { saved_as, head: Box::new(head), body, dump_len });
        self.outbox.dump_saves.push(DumpSave {
            shard,
            replica: id,
            generation: saved_as,
            data,
            is_long: false,
        });
    }

    /// What came is not what was offered; the leader will offer again.
    fn drop_bad_dump(&mut self, slot: usize) {
        self.stats.bad_dumps += 1;
        self.drop_incoming(slot);
    }

    /// A transferred dump was saved, or couldn't be: Raft is told, or the transfer given up.
    pub(crate) fn on_transfer_saved(&mut self, slot: usize, generation: u64, ok: Result<u64, String>) {
        let replica = &mut self.replicas[slot];
        match replica.incoming.take() {
            Some(mut incoming) if incoming.is_saving(generation) => {
                if ok.is_err() {
                    self.incoming -= 1;
                    replica.machine.unstage();
                    return self.push_remove(slot, generation);
                }
                let message = incoming.install_message(replica.id);
                incoming.become_staged();
                replica.incoming = Some(incoming);
                if replica.raft.step(self.now, message).is_err() {
                    self.stats.bad_dumps += 1;
                    self.drop_incoming(slot);
                }
            }
            other => {
                replica.incoming = other;
                let is_named = replica.base.generation == generation
                    || replica.install.as_ref().is_some_and(|install| install.saved_as == generation);
                if !is_named {
                    self.push_remove(slot, generation);
                }
            }
        }
    }

    /// Raft was told of a staged dump and doesn't want it any more: the log has got there by itself, or
    /// another leader rules. The old leader is told that nothing more is needed.
    pub(crate) fn drop_unwanted_dump(&mut self, slot: usize, is_wanted: bool) {
        let Some(incoming) = &self.replicas[slot].incoming else { return };
        if is_wanted || !matches!(incoming.stage, InStage::Staged(_)) {
            return;
        }
        let (from, generation, len) = (incoming.from, incoming.generation, incoming.len);
        self.drop_incoming(slot);
        self.send_pull(slot, from, generation, len, 0);
    }

    pub(crate) fn drop_incoming(&mut self, slot: usize) {
        if let Some(incoming) = self.replicas[slot].incoming.take() {
            self.incoming -= 1;
            self.replicas[slot].machine.unstage();
            // One that is being saved is removed when that is reported.
            if let InStage::Staged(arrived) = incoming.stage {
                self.push_remove(slot, arrived.saved_as);
            }
        }
    }

    /// Swaps the state and writes the record that makes it count.
    pub(crate) fn install_dump(
        &mut self,
        slot: usize,
        write: WriteId,
        install: SnapshotInstall,
        out: &mut Output,
    ) {
        let SnapshotInstall { mark, keep_suffix, .. } = install;
        let replica = &mut self.replicas[slot];
        let incoming = replica.incoming.take().expect("Raft installs only what was staged");
        self.incoming -= 1;
        assert!(
            incoming.mark == mark,
            "{}: staged {}, but {mark} is installed",
            replica.shard,
            incoming.mark
        );
        let Incoming { from, generation, len, stage, .. } = *incoming;
        let InStage::Staged(Arrived { saved_as, head, body, dump_len }) = stage else {
            panic!("{}: {mark} is installed before it is saved", replica.shard)
        };
        if let Err(why) = replica.machine.restore(&body) {
            replica.break_down(format!("the dump at {mark} can't be restored: {why:?}"));
            return;
        }
        let descriptor = head.descriptor.encode();
        // What waited to be applied, and the job it waited for, belong to the state that is gone.
        replica.apply_to = mark.index;
        replica.applied = mark;
        replica.change_descriptor(head.descriptor);
        (replica.flush.unflushed_bytes, replica.flush.copied) = (0, false);
        replica.refresh_routes(&self.peers, &mut self.shared);
        replica.install = Some(Box::new(Install {
            write,
            mark,
            saved_as,
            dump_len,
            descriptor: descriptor.clone(),
            from,
            generation,
            len,
        }));
        out.writes.push(LogWrite::SnapshotInstall {
            shard: replica.shard,
            replica: replica.id,
            mark,
            generation: saved_as,
            descriptor,
            keep_suffix,
        });
        self.skip_proposals(slot, mark, out);
    }

    /// The proposals that the new state has passed over: nobody can tell what became of them.
    fn skip_proposals(&mut self, slot: usize, to: Mark, out: &mut Output) {
        while let Some((id, _)) = self.replicas[slot].work.proposals.skip(to.index) {
            let answer = Answer::Unknown(UnknownReason::LeadershipLost);
            self.callers.answer(id, answer, &mut out.answers);
        }
    }

    /// The record is durable: the transfer has happened.
    pub(crate) fn finish_install(&mut self, slot: usize) {
        let replica = &mut self.replicas[slot];
        let Some(install) = replica.install.take() else { return };
        let Install { mark, saved_as, dump_len, descriptor, from, generation, len, .. } = *install;
        replica.raft.snapshot_installed(mark);
        let before = std::mem::replace(&mut replica.base.generation, saved_as);
        replica.base.flushed = mark;
        replica.set_base_descriptor(descriptor);
        replica.base.dump_len = dump_len;
        replica.machine.installed();
        if std::mem::take(&mut replica.flush.reset_after) {
            replica.write_reset();
        }
        if before > 0 {
            self.remove_dump(slot, before);
        }
        self.stats.installs += 1;
        self.send_pull(slot, from, generation, len, 0);
    }
}

impl Replica {
    /// Where the parts of a dump of `len` bytes are going to go; `None` = there is no room.
    fn begin_taking(&mut self, len: u64) -> Option<Taking> {
        if self.machine.has_files() {
            let (stage, waiting) = (self.machine.stage(), VecDeque::new());
            return Some(Taking::Files(IntoFiles { stage, waiting, job: None, taken: 0 }));
        }
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(usize::try_from(len).ok()?).ok()?;
        Some(Taking::Whole(buffer))
    }
}

impl Incoming {
    /// Takes in a part; one that is ahead of its turn waits, one that is here already is dropped. `None` = it isn't what
    /// was offered.
    fn take_part(&mut self, offset: u64, data: Bytes, shard: ShardId) -> Option<()> {
        let InStage::Pulling { reader, taking, ahead, .. } = &mut self.stage else { return Some(()) };
        if offset < reader.read() {
            return Some(());
        }
        ahead.insert(offset, data);
        while let Some(data) = ahead.remove(&reader.read()) {
            let of_body = reader.take(&data).ok()?;
            match taking {
                Taking::Whole(buffer) => buffer.extend_from_slice(&data),
                Taking::Files(_) if of_body.is_empty() => {}
                Taking::Files(files) => files.waiting.push_back((reader.read(), of_body)),
            }
        }
        let is_offered = |head: &DumpHead| head.shard == shard && head.mark == self.mark;
        reader.head().is_none_or(is_offered).then_some(())
    }

    /// Whether it has a number among this replica's dumps: it is being saved, or was.
    pub(crate) fn has_generation(&self) -> bool {
        matches!(self.stage, InStage::Saving(_) | InStage::Staged(_))
    }

    fn is_saving(&self, generation: u64) -> bool {
        matches!(&self.stage, InStage::Saving(arrived) if arrived.saved_as == generation)
    }

    fn become_staged(&mut self) {
        let InStage::Saving(arrived) = &self.stage else {
            panic!("{}: only what is being saved becomes staged", self.mark)
        };
        self.stage = InStage::Staged(arrived.clone());
    }

    /// What the replica's own Raft is told. The leader didn't send it now: it says nothing about when the
    /// leader was last alive.
    fn install_message(&self, to: ReplicaId) -> Message {
        let InStage::Saving(Arrived { head, .. }) = &self.stage else {
            panic!("{}: told to Raft before it is saved", self.mark)
        };
        let (mark, membership) = (self.mark, head.membership.clone());
        let body = Body::InstallSnapshot { mark, membership, stamp: LeaderStamp::default() };
        Message { from: self.from, to, term: self.term, body }
    }
}
