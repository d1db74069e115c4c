//! The leader's side of a transfer; see `transfer.rs`.

use crate::config::DUMP_PULL_BYTES_MAX;
use crate::multi_raft::MultiRaft;
use crate::output::DumpRead;
use crate::peer::PeerMessage;
use crate::replica::Base;
use crate::transfer::{OutStage, Outgoing, ReadOfDump};
use bytes::Bytes;
use floe_raft::{Mark, ReplicaId};

/// Parts of a dump being read for one follower; further pulls are dropped, and asked for again.
const READS_MAX: usize = 4;

impl MultiRaft {
    /// A part of a dump was read, or couldn't be.
    pub fn dump_read(&mut self, token: u64, part: Result<Bytes, String>) {
        let Some(ReadOfDump { slot, to, generation, offset }) = self.dump_reads.remove(&token) else {
            return;
        };
        let now = self.now;
        let outgoing = &mut self.replicas[slot].work.outgoing;
        let Some(at) = outgoing.iter().position(|one| one.to == to && one.feeds_from(generation)) else {
            return;
        };
        if let OutStage::Offered { heard_at, .. } = &mut outgoing[at].stage {
            *heard_at = now;
        }
        let data = part.unwrap_or_default();
        if data.is_empty() {
            self.end_outgoing_at(slot, at, Some(false));
        }
        self.send_chunk(slot, to, generation, offset, data);
    }

    /// A follower needs the state: offers the newest dump if the log goes on from there, else makes one. (A machine with
    /// files has none that is good for others.)
    pub(crate) fn feed_dump(&mut self, slot: usize, to: ReplicaId) {
        if let Some(at) = self.replicas[slot].work.outgoing.iter().position(|outgoing| outgoing.to == to) {
            self.end_outgoing_at(slot, at, None);
        }
        let replica = &mut self.replicas[slot];
        if replica.route(to).is_none() {
            return replica.raft.report_snapshot(to, false);
        }
        replica.work.outgoing.push(Outgoing { to, stage: OutStage::AwaitsFlush, remove_after: false });
        let reaches_log = replica.base.flushed.index + 1 >= replica.raft.first_index();
        let has_dump = replica.base.dump_len.is_some();
        self.watched.insert(slot);
        if has_dump && reaches_log {
            self.offer_base_or_give_up(slot);
        } else {
            self.want_flush(slot);
        }
    }

    /// Whoever waits for a dump is offered the one that the log names, if it is good for others, or given up for now.
    pub(crate) fn offer_base_or_give_up(&mut self, slot: usize) {
        let Base { generation, flushed, dump_len, .. } = self.replicas[slot].base;
        self.offer_or_give_up(slot, dump_len.map(|len| (generation, flushed, len.get())));
    }

    /// Whoever waits for a dump is offered this one (number, mark, length), or given up for now.
    pub(crate) fn offer_or_give_up(&mut self, slot: usize, dump: Option<(u64, Mark, u64)>) {
        let awaits = |outgoing: &Outgoing| matches!(outgoing.stage, OutStage::AwaitsFlush);
        while let Some(at) = self.replicas[slot].work.outgoing.iter().position(awaits) {
            match dump {
                Some(dump) => self.offer(slot, at, dump),
                None => self.end_outgoing_at(slot, at, Some(false)),
            }
        }
    }

    fn offer(&mut self, slot: usize, at: usize, (generation, mark, len): (u64, Mark, u64)) {
        let replica = &mut self.replicas[slot];
        let to = replica.work.outgoing[at].to;
        replica.work.outgoing[at].stage = OutStage::Offered { generation, mark, len, heard_at: self.now };
        let Some(addr) = replica.route(to) else {
            return self.end_outgoing_at(slot, at, Some(false));
        };
        let (shard, from, term) = (replica.shard, replica.id, replica.raft.term());
        let offer = PeerMessage::DumpOffer { shard, from, to, term, generation, mark, len };
        self.outbox.sends.push((addr, offer));
    }

    pub(crate) fn on_dump_pull(&mut self, message: PeerMessage) {
        let PeerMessage::DumpPull { shard, from, to, generation, offset, len } = message else { return };
        let Some(slot) = self.running(shard).filter(|&slot| self.replicas[slot].id == to) else { return };
        let outgoing = &mut self.replicas[slot].work.outgoing;
        let at = outgoing.iter().position(|one| one.to == from && one.feeds_from(generation));
        let Some(at) = at else {
            if len > 0 {
                self.send_chunk(slot, from, generation, offset, Bytes::new());
            }
            return;
        };
        let OutStage::Offered { len: total, heard_at, .. } = &mut outgoing[at].stage else { return };
        *heard_at = self.now;
        let total = *total;
        if offset >= total {
            return self.end_outgoing_at(slot, at, Some(true));
        }
        // Counted where they are: reads of an earlier offer to the same follower may still be under way.
        let reads = self.dump_reads.values().filter(|read| read.slot == slot && read.to == from).count();
        if len > 0 && len <= DUMP_PULL_BYTES_MAX && offset.is_multiple_of(4096) && reads < READS_MAX {
            let len = u64::from(len).min(total - offset) as u32;
            self.read_dump(ReadOfDump { slot, to: from, generation, offset }, len);
        }
    }

    fn read_dump(&mut self, read: ReadOfDump, len: u32) {
        let token = self.dump_read_next;
        self.dump_read_next += 1;
        let replica = &self.replicas[read.slot];
        self.outbox.dump_reads.push(DumpRead {
            token,
            shard: replica.shard,
            replica: replica.id,
            generation: read.generation,
            offset: read.offset,
            len,
        });
        self.dump_reads.insert(token, read);
    }

    fn send_chunk(&mut self, slot: usize, to: ReplicaId, generation: u64, offset: u64, data: Bytes) {
        let replica = &self.replicas[slot];
        let (shard, from) = (replica.shard, replica.id);
        if let Some(addr) = replica.route(to) {
            let chunk = PeerMessage::DumpChunk { shard, from, to, generation, offset, data };
            self.outbox.sends.push((addr, chunk));
        }
    }

    /// Leadership is lost: the new leader's Raft asks for what is needed.
    pub(crate) fn end_outgoing(&mut self, slot: usize) {
        while !self.replicas[slot].work.outgoing.is_empty() {
            self.end_outgoing_at(slot, 0, None);
        }
    }

    /// A transfer is over; what Raft is told of it, if anything.
    pub(crate) fn end_outgoing_at(&mut self, slot: usize, at: usize, delivered: Option<bool>) {
        let replica = &mut self.replicas[slot];
        let ended = replica.work.outgoing.remove(at);
        if let Some(delivered) = delivered {
            replica.raft.report_snapshot(ended.to, delivered);
        }
        if let OutStage::Offered { generation, .. } = ended.stage
            && ended.remove_after
        {
            self.remove_dump(slot, generation);
        }
        self.touch(slot);
    }
}
