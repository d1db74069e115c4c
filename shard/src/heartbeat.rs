//! Beats: one per core pair and interval, whatever the number of groups; and what comes in from peers.
//!
//! A leader's heartbeats to one core and the answers to them are packed in rows. A beat goes to every
//! connected core each interval, empty if need be: it is the sign of life of the core itself. Rounds of
//! ReadIndex don't wait for it: their heartbeats go out with the turn's beat at once.

use crate::ids::{CoreAddr, Epoch, ShardId};
use crate::multi_raft::MultiRaft;
use crate::output::{Fault, Output, RefusedMessage};
use crate::peer::{Beat, BeatReply, GroupBeat, GroupBeatReply, GroupQuiet, PeerBatch, PeerMessage};
use floe_raft::{Body, Message, Nanos, ReplicaId};

/// Refused messages of one turn that are reported one by one.
const REFUSED_TOLD_MAX: usize = 4;

/// Puts one message of a group into a batch: heartbeats and their answers into its rows.
pub(crate) fn post(batch: &mut PeerBatch, boot_epoch: u64, shard: ShardId, epoch: Epoch, message: Message) {
    let Message { from, to, term, body } = message;
    match body {
        Body::Heartbeat { commit, read_round, stamp } => {
            let beat = batch.beat.get_or_insert_with(|| Beat::of(boot_epoch));
            beat.groups.push(GroupBeat { shard, from, to, term, commit, read_round, stamp });
        }
        Body::Quiesce { last } => {
            let beat = batch.beat.get_or_insert_with(|| Beat::of(boot_epoch));
            beat.quiet.push(GroupQuiet { shard, from, to, term, last });
        }
        Body::HeartbeatReply { read_round, stamp } => {
            let reply = batch.beat_reply.get_or_insert_with(|| BeatReply { boot_epoch, groups: Vec::new() });
            reply.groups.push(GroupBeatReply { shard, from, to, term, read_round, stamp });
        }
        body => {
            let message = Message { from, to, term, body };
            batch.messages.push(PeerMessage::Raft { shard, epoch, message });
        }
    }
}

impl MultiRaft {
    /// Takes everything that one core of another node sent in one turn. Messages for shards or replicas that
    /// aren't here are dropped. Forwarded requests and their answers are the worker's: they are ignored.
    pub fn receive(&mut self, now: Nanos, sender: CoreAddr, batch: PeerBatch) {
        self.advance_clock(now);
        if let Some(beat) = batch.beat {
            self.receive_beat(sender, beat);
        }
        for row in batch.beat_reply.into_iter().flat_map(|reply| reply.groups) {
            let GroupBeatReply { shard, from, to, term, read_round, stamp } = row;
            let body = Body::HeartbeatReply { read_round, stamp };
            self.step(sender, shard, Message { from, to, term, body });
        }
        for message in batch.messages {
            self.receive_one(sender, message);
        }
    }

    fn receive_beat(&mut self, sender: CoreAddr, beat: Beat) {
        self.hear(sender, beat.boot_epoch);
        for GroupBeat { shard, from, to, term, commit, read_round, stamp } in beat.groups {
            let body = Body::Heartbeat { commit, read_round, stamp };
            self.step(sender, shard, Message { from, to, term, body });
        }
        for GroupQuiet { shard, from, to, term, last } in beat.quiet {
            self.step(sender, shard, Message { from, to, term, body: Body::Quiesce { last } });
            self.depend_on(sender, beat.boot_epoch, shard);
        }
    }

    fn receive_one(&mut self, addr: CoreAddr, message: PeerMessage) {
        match message {
            PeerMessage::DumpOffer { shard, from, .. }
            | PeerMessage::DumpPull { shard, from, .. }
            | PeerMessage::DumpChunk { shard, from, .. }
            | PeerMessage::Placement { shard, from, .. }
                if !self.may_speak_for(addr, shard, from) => {}
            PeerMessage::Raft { shard, message, .. } => self.step(addr, shard, message),
            PeerMessage::DumpOffer { .. } => self.on_dump_offer(addr, message),
            PeerMessage::DumpPull { .. } => self.on_dump_pull(message),
            PeerMessage::DumpChunk { .. } => self.on_dump_chunk(message),
            PeerMessage::Placement { .. } => self.on_placement(addr, message),
            PeerMessage::Request { .. } | PeerMessage::Answer { .. } => {}
        }
    }

    /// A state is installed only from a dump that this replica pulled itself: a message that says otherwise
    /// is no message of a peer.
    fn step(&mut self, peer: CoreAddr, shard: ShardId, message: Message) {
        if matches!(message.body, Body::InstallSnapshot { .. }) {
            return;
        }
        let from = message.from;
        if let Some(slot) = self.running(shard)
            && self.may_speak_for(peer, shard, from)
        {
            if matches!(message.body, Body::PreVote { .. }) {
                self.tell_removed(slot, peer, from);
            }
            self.replicas[slot].learn_route(from, peer);
            self.wake_by(slot, from);
            if let Err(nonsense) = self.replicas[slot].raft.step(self.now, message) {
                let why = Fault::Nonsense(nonsense);
                return self.refuse(RefusedMessage { peer, shard, from, why });
            }
            self.touch(slot);
        }
    }

    /// A node speaks only for the replicas that the membership places there: else one faulty node could vote and
    /// acknowledge in the name of all others. A replica that isn't known here may be newer than the
    /// descriptor; what it may say is Raft's affair.
    fn may_speak_for(&mut self, peer: CoreAddr, shard: ShardId, from: ReplicaId) -> bool {
        let placed_on = self.descriptor(shard).and_then(|descriptor| descriptor.node_of(from));
        let Some(node) = placed_on.filter(|&node| node != peer.node) else { return true };
        self.refuse(RefusedMessage { peer, shard, from, why: Fault::ForeignReplica { node } });
        false
    }

    /// Counts what no working peer sends, and has the first few of each turn reported.
    pub(crate) fn refuse(&mut self, refused: RefusedMessage) {
        self.stats.messages_refused += 1;
        if self.outbox.refused.len() < REFUSED_TOLD_MAX {
            self.outbox.refused.push(refused);
        }
    }

    /// One timer for all groups of the core.
    pub(crate) fn beat(&mut self) {
        self.beat_at = self.now + self.config.raft.heartbeat_interval_ns;
        if self.wedged {
            return; // a beat says that this core can do its work
        }
        self.beat_owed = true;
        for slot in std::mem::take(&mut self.leaders) {
            if !self.maybe_quiesce(slot) {
                self.replicas[slot].raft.beat(self.now);
                self.queue.push(slot);
                self.leaders.insert(slot);
                self.order_placements(slot);
            }
        }
        self.ask_members();
        self.queue_head_starts();
        self.look_after_transfers();
        self.relieve_logs();
        self.queue.shrink();
        self.timers.shrink();
        self.elections.shrink();
    }

    /// Makes sure that every connected core gets a beat.
    pub(crate) fn post_beats(&mut self, out: &mut Output) {
        if !std::mem::take(&mut self.beat_owed) {
            return;
        }
        let boot_epoch = self.boot_epoch;
        for addr in self.peers.connected() {
            let batch = out.sends.entry(addr).or_default();
            batch.beat.get_or_insert_with(|| Beat::of(boot_epoch));
        }
    }
}
