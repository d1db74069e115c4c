//! From a batch to the parts of a frame.

use super::wire::*;
use super::{COPY_BYTES_MAX, FRAME_BYTES_MAX, HEADER_LEN, KIND_BATCH, PROLOGUE_LEN, write_header};
use crate::seam::OutFrame;
use bytes::Bytes;
use floe_raft::{Body, Entry, FollowerStamp, LeaderStamp, Mark, Membership, Message, ReplicaId};
use floe_shard::ShardId;
use floe_shard::descriptor::Descriptor;
use floe_shard::peer::{Beat, BeatReply, GroupQuiet, PeerBatch, PeerMessage};
use floe_shard::request::{Answer, Consistency, Query, Refusal, Request, Rest, ViewId};
use std::ops::Range;
use std::time::Duration;

/// Encodes a batch. Normally one frame; a batch over [`FRAME_BYTES_MAX`] becomes several, back to back, in
/// order. A single message over that bound can't be sent: it is left out and reported in the log.
///
/// Entries of an append must be contiguous from `prev.index + 1`, with terms that don't go back and
/// don't exceed the message's: the receiver refuses anything else.
pub fn encode(batch: &PeerBatch) -> OutFrame {
    let mut out = OutFrame::default();
    let mut beats = true;
    let mut from = 0;
    loop {
        let (range, next) = next_frame(batch, beats, from);
        let gather = Gather::new(batch, beats, &batch.messages[range]);
        gather.write(&mut out.parts);
        beats = false;
        from = next;
        if from >= batch.messages.len() {
            return out;
        }
    }
}

/// The messages that go into the next frame, and where the one after that begins.
fn next_frame(batch: &PeerBatch, beats: bool, from: usize) -> (Range<usize>, usize) {
    let mut size = PROLOGUE_LEN + ROOT_BYTES + 2 * BEAT_BYTES;
    if beats {
        let rows = batch.beat.as_ref().map_or(0, |beat| beat.groups.len() + beat.quiet.len())
            + batch.beat_reply.as_ref().map_or(0, |reply| reply.groups.len());
        size += rows * BEAT_ROW_BYTES;
    }
    for (at, message) in batch.messages.iter().enumerate().skip(from) {
        let more = message_bytes(message);
        if size + more > FRAME_BYTES_MAX {
            if at == from && !beats {
                tracing::error!(bytes = more, "a message over the frame limit is not sent");
                return (at..at, at + 1);
            }
            return (from..at, at);
        }
        size += more;
    }
    (from..batch.messages.len(), batch.messages.len())
}

const BEAT_BYTES: usize = 120;
const BEAT_ROW_BYTES: usize = 64;
/// Per entry at most: kind, version, length, a term run of its own; rounded up for alignment.
const ENTRY_BYTES: usize = 24;
const ITEM_BYTES: usize = 32;

/// An upper bound of what a message takes.
fn message_bytes(message: &PeerMessage) -> usize {
    let payload = |len: usize| len + ITEM_BYTES;
    let descriptor = |d: &Descriptor| {
        payload(d.range.start.len()) + payload(d.range.end.len()) + ITEM_BYTES * d.replicas.len()
    };
    let extra = match message {
        PeerMessage::Raft { message, .. } => match &message.body {
            Body::Append { entries, .. } => {
                entries.iter().map(|entry| padded(entry.data.len()) + ENTRY_BYTES).sum()
            }
            Body::InstallSnapshot { membership: m, .. } => {
                let lists = [&m.voters, &m.voters_outgoing, &m.learners, &m.learners_next];
                ITEM_BYTES + 8 * lists.iter().map(|list| list.len()).sum::<usize>()
            }
            _ => 0,
        },
        PeerMessage::DumpOffer { .. } | PeerMessage::DumpPull { .. } => 0,
        PeerMessage::Placement { descriptor: d, .. } => descriptor(d),
        PeerMessage::DumpChunk { data, .. } => payload(data.len()),
        PeerMessage::Request { request, .. } => payload(request.size()) + ITEM_BYTES,
        PeerMessage::Answer { answer, .. } => match answer {
            Answer::Value(Some(value)) => payload(value.value.len()),
            Answer::Rows { rows, .. } => {
                let row = |row: &floe_shard::request::Row| row.key.len() + row.value.value.len();
                rows.iter().map(|r| row(r) + 2 * ITEM_BYTES).sum()
            }
            Answer::Refused(
                Refusal::WrongEpoch { descriptor: d } | Refusal::OutOfRange { descriptor: d },
            ) => descriptor(d),
            Answer::Refused(
                Refusal::BadCommand { reason }
                | Refusal::Unavailable { reason }
                | Refusal::BadChange { reason },
            ) => payload(reason.len()),
            _ => 0,
        },
    };
    ROW_BYTES + ITEM_BYTES + extra
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// A length that was bounded by `next_frame`.
fn narrow(len: usize) -> u32 {
    u32::try_from(len).expect("bounded by FRAME_BYTES_MAX when the frame was planned")
}

enum Payload<'a> {
    Shared(&'a Bytes),
    Text(&'a str),
}

impl Payload<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Text(text) => text.as_bytes(),
        }
    }
}

/// The metadata and the payloads of one frame.
struct Gather<'a> {
    meta: WireBatch,
    payloads: Vec<Payload<'a>>,
}

impl<'a> Gather<'a> {
    fn new(batch: &'a PeerBatch, beats: bool, messages: &'a [PeerMessage]) -> Self {
        let mut meta = WireBatch::default();
        if beats {
            meta.beat = batch.beat.as_ref().map(wire_beat);
            meta.beat_reply = batch.beat_reply.as_ref().map(wire_beat_reply);
        }
        meta.messages.reserve_exact(messages.len());
        let mut gather = Self { meta, payloads: Vec::new() };
        for message in messages {
            let row = gather.message(message);
            gather.meta.messages.push(row);
        }
        gather
    }

    fn shared(&mut self, bytes: &'a Bytes) {
        self.meta.lens.push(narrow(bytes.len()));
        self.payloads.push(Payload::Shared(bytes));
    }

    fn text(&mut self, text: &'a str) {
        self.meta.lens.push(narrow(text.len()));
        self.payloads.push(Payload::Text(text));
    }

    fn message(&mut self, message: &'a PeerMessage) -> WireMessage {
        match message {
            PeerMessage::Raft { shard, epoch, message } => self.raft(*shard, *epoch, message),
            PeerMessage::DumpOffer { shard, from, to, term, generation, mark, len } => {
                WireMessage::DumpOffer {
                    route: route(*shard, *from, *to),
                    term: *term,
                    generation: *generation,
                    mark: wire_mark(*mark),
                    len: *len,
                }
            }
            PeerMessage::DumpPull { shard, from, to, generation, offset, len } => WireMessage::DumpPull {
                route: route(*shard, *from, *to),
                generation: *generation,
                offset: *offset,
                len: *len,
            },
            PeerMessage::DumpChunk { shard, from, to, generation, offset, data } => {
                self.shared(data);
                WireMessage::DumpChunk {
                    route: route(*shard, *from, *to),
                    generation: *generation,
                    offset: *offset,
                }
            }
            PeerMessage::Placement { shard, from, to, descriptor } => WireMessage::Placement {
                route: route(*shard, *from, *to),
                descriptor: self.descriptor(descriptor),
            },
            PeerMessage::Request { id, origin, remaining_ns, request } => WireMessage::Request {
                id: *id,
                origin: origin.0,
                remaining_ns: *remaining_ns,
                request: self.request(request),
            },
            PeerMessage::Answer { id, answer } => {
                WireMessage::Answer { id: *id, answer: self.answer(answer) }
            }
        }
    }

    fn raft(&mut self, shard: ShardId, epoch: floe_shard::Epoch, message: &'a Message) -> WireMessage {
        WireMessage::Raft {
            route: route(shard, message.from, message.to),
            epoch_range: epoch.range,
            epoch_membership: epoch.membership,
            term: message.term,
            body: self.body(&message.body),
        }
    }

    fn body(&mut self, body: &'a Body) -> WireBody {
        match body {
            Body::PreVote { last } => WireBody::PreVote { last: wire_mark(*last) },
            Body::PreVoteReply { granted } => WireBody::PreVoteReply { granted: *granted },
            Body::Vote { last, transfer } => WireBody::Vote { last: wire_mark(*last), transfer: *transfer },
            Body::VoteReply { granted } => WireBody::VoteReply { granted: *granted },
            Body::Append { prev, commit, held_by_all, entries, stamp } => WireBody::Append {
                prev: wire_mark(*prev),
                commit: *commit,
                held_by_all: *held_by_all,
                entries: narrow(entries.len()),
                runs: self.entries(*prev, entries),
                stamp: leader_stamp(*stamp),
            },
            Body::AppendAccepted { matched, stamp } => {
                WireBody::AppendAccepted { matched: *matched, stamp: follower_stamp(*stamp) }
            }
            Body::AppendRejected { prev, hint, stamp } => WireBody::AppendRejected {
                prev: wire_mark(*prev),
                hint: wire_mark(*hint),
                stamp: follower_stamp(*stamp),
            },
            Body::Heartbeat { commit, read_round, stamp } => {
                WireBody::Heartbeat { commit: *commit, read_round: *read_round, stamp: leader_stamp(*stamp) }
            }
            Body::Quiesce { last } => WireBody::Quiesce { last: wire_mark(*last) },
            Body::HeartbeatReply { read_round, stamp } => {
                WireBody::HeartbeatReply { read_round: *read_round, stamp: follower_stamp(*stamp) }
            }
            Body::TimeoutNow => WireBody::TimeoutNow,
            Body::ReadIndex { context } => WireBody::ReadIndex { context: *context },
            Body::ReadIndexReply { context, index } => {
                WireBody::ReadIndexReply { context: *context, index: *index }
            }
            Body::AppendRefused { matched, stamp } => {
                WireBody::AppendRefused { matched: *matched, stamp: follower_stamp(*stamp) }
            }
            Body::ReadIndexRefused { context } => WireBody::ReadIndexRefused { context: *context },
            Body::InstallSnapshot { mark, membership, stamp } => WireBody::InstallSnapshot {
                mark: wire_mark(*mark),
                lists: self.membership(membership),
                auto_leave: membership.auto_leave,
                stamp: leader_stamp(*stamp),
            },
        }
    }

    /// Puts entries into the columns; returns the number of term runs.
    fn entries(&mut self, prev: Mark, entries: &'a [Entry]) -> u32 {
        let meta = &mut self.meta;
        meta.entry_kinds.reserve(entries.len());
        meta.entry_versions.reserve(entries.len());
        meta.lens.reserve(entries.len());
        self.payloads.reserve(entries.len());
        let mut runs = 0;
        let mut term = None;
        for (entry, index) in entries.iter().zip(prev.index.wrapping_add(1)..) {
            debug_assert_eq!(entry.mark.index, index, "entries of an append are contiguous");
            if term != Some(entry.mark.term) {
                term = Some(entry.mark.term);
                meta.run_terms.push(entry.mark.term);
                meta.run_counts.push(0);
                runs += 1;
            }
            if let Some(count) = meta.run_counts.last_mut() {
                *count += 1;
            }
            meta.entry_kinds.push(entry.kind as u8);
            meta.entry_versions.push(entry.version);
            meta.lens.push(narrow(entry.data.len()));
            self.payloads.push(Payload::Shared(&entry.data));
        }
        runs
    }

    fn membership(&mut self, membership: &Membership) -> [u32; 4] {
        [&membership.voters, &membership.voters_outgoing, &membership.learners, &membership.learners_next]
            .map(|list| {
                self.meta.members.extend(list.iter().map(|id| id.get()));
                narrow(list.len())
            })
    }

    fn request(&mut self, request: &'a Request) -> WireRequest {
        match request {
            Request::Write { shard, command } => {
                self.shared(command);
                WireRequest::Write { shard: shard.0 }
            }
            Request::Read { shard, range_epoch, query, consistency } => {
                let (shard, range_epoch, consistency) =
                    (shard.0, *range_epoch, wire_consistency(*consistency));
                match query {
                    Query::Get { key } => {
                        self.shared(key);
                        WireRequest::Get { shard, range_epoch, consistency }
                    }
                    Query::Scan { start, end, limit, bytes_max, reverse, view } => {
                        self.shared(start);
                        self.shared(end);
                        WireRequest::Scan {
                            shard,
                            range_epoch,
                            consistency,
                            limit: *limit,
                            bytes_max: *bytes_max,
                            reverse: *reverse,
                            view: wire_view(*view),
                        }
                    }
                }
            }
            Request::TransferLeadership { shard, to } => {
                WireRequest::TransferLeadership { shard: shard.0, to: to.0 }
            }
            Request::ChangeMembers { shard, changes, force } => {
                let numbers = changes.iter().flat_map(|change| [change.node.0, change.to as u64]);
                self.meta.members.extend(numbers);
                WireRequest::ChangeMembers { shard: shard.0, changes: narrow(changes.len()), force: *force }
            }
        }
    }

    fn answer(&mut self, answer: &'a Answer) -> WireAnswer {
        match answer {
            Answer::Written { version } => WireAnswer::Written { version: *version },
            Answer::ConditionFailed { condition } => WireAnswer::ConditionFailed { condition: *condition },
            Answer::Value(None) => WireAnswer::NoValue,
            Answer::Value(Some(value)) => {
                self.shared(&value.value);
                WireAnswer::Value { version: value.version }
            }
            Answer::Rows { rows, rest } => {
                for row in rows {
                    self.shared(&row.key);
                    self.shared(&row.value.value);
                    self.meta.row_versions.push(row.value.version);
                }
                let view = match rest {
                    Rest::Held(view) => Some(*view),
                    Rest::Nothing | Rest::More | Rest::In(_) => None,
                };
                let more = *rest != Rest::Nothing;
                WireAnswer::Rows { rows: narrow(rows.len()), more, view: wire_view(view) }
            }
            Answer::Done => WireAnswer::Done,
            Answer::Refused(refusal) => self.refusal(refusal),
            Answer::Unknown(reason) => WireAnswer::Unknown { reason: *reason as u8 },
        }
    }

    fn refusal(&mut self, refusal: &'a Refusal) -> WireAnswer {
        match refusal {
            Refusal::Busy(reason) => WireAnswer::Busy { reason: *reason as u8 },
            Refusal::NotLeader { leader } => WireAnswer::NotLeader { leader: leader.map(|node| node.0) },
            Refusal::WrongEpoch { descriptor } => {
                WireAnswer::WrongEpoch { descriptor: self.descriptor(descriptor) }
            }
            Refusal::OutOfRange { descriptor } => {
                WireAnswer::OutOfRange { descriptor: self.descriptor(descriptor) }
            }
            Refusal::NoSuchShard { shard } => WireAnswer::NoSuchShard { shard: shard.0 },
            Refusal::BadCommand { reason } => {
                self.text(reason);
                WireAnswer::BadCommand
            }
            Refusal::Overwritten => WireAnswer::Overwritten,
            Refusal::DeadlinePassed => WireAnswer::DeadlinePassed,
            Refusal::Unavailable { reason } => {
                self.text(reason);
                WireAnswer::Unavailable
            }
            Refusal::NotAMember { node } => WireAnswer::NotAMember { node: node.0 },
            Refusal::TooStale { age } => {
                WireAnswer::TooStale { age_ns: age.map_or(u64::MAX, narrow_duration) }
            }
            Refusal::ViewGone => WireAnswer::ViewGone,
            Refusal::BadChange { reason } => {
                self.text(reason);
                WireAnswer::BadChange
            }
            other => {
                // A reason of a later version of the shard crate: the request surely had no effect.
                tracing::error!(?other, "a refusal without an encoding is sent as 'unavailable'");
                self.text("refused for a reason that this version can't send");
                WireAnswer::Unavailable
            }
        }
    }

    fn descriptor(&mut self, descriptor: &'a Descriptor) -> WireDescriptor {
        self.shared(&descriptor.range.start);
        self.shared(&descriptor.range.end);
        for place in &*descriptor.replicas {
            self.meta.place_replicas.push(place.replica.get());
            self.meta.place_nodes.push(place.node.0);
            self.meta.place_roles.push(place.role as u8);
        }
        WireDescriptor {
            shard: descriptor.shard.0,
            epoch_range: descriptor.epoch.range,
            epoch_membership: descriptor.epoch.membership,
            next_replica_id: descriptor.next_replica_id,
            feature_level: descriptor.feature_level,
            places: narrow(descriptor.replicas.len()),
        }
    }

    /// Writes the frame: a contiguous buffer, cut where a big payload stands between.
    fn write(self, parts: &mut Vec<Bytes>) {
        let mut buffer = self.start();
        let meta_len = buffer.len() - HEADER_LEN - PROLOGUE_LEN;
        let mut cuts: Vec<(usize, &Bytes)> = Vec::new();
        let mut payload_len = 0;
        for payload in &self.payloads {
            let bytes = payload.bytes();
            payload_len += padded(bytes.len());
            match payload {
                Payload::Shared(big) if big.len() >= COPY_BYTES_MAX => cuts.push((buffer.len(), big)),
                _ => buffer.extend_from_slice(bytes),
            }
            buffer.extend_from_slice(&[0; 8][..padded(bytes.len()) - bytes.len()]);
        }
        let (meta_len, payload_len) = (narrow(meta_len), narrow(payload_len));
        buffer[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&meta_len.to_le_bytes());
        buffer[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&payload_len.to_le_bytes());
        let crc = body_checksum(&buffer, &cuts);
        write_header(&mut buffer[..HEADER_LEN], KIND_BATCH, meta_len, payload_len, crc);
        cut(Bytes::from(buffer), &cuts, parts);
    }

    /// A buffer with room for everything that is copied, with the metadata behind the (empty) header.
    fn start(&self) -> Vec<u8> {
        let small = |payload: &Payload<'_>| match payload {
            Payload::Shared(big) if big.len() >= COPY_BYTES_MAX => 8,
            other => padded(other.bytes().len()),
        };
        let meta = &self.meta;
        let rows = meta.messages.len() * ROW_BYTES + ROOT_BYTES;
        let columns = meta.lens.len() * 8 + meta.run_terms.len() * 12 + meta.entry_kinds.len() * 2;
        let guess = rows + columns + 256 + self.payloads.iter().map(small).sum::<usize>();
        let mut buffer = Vec::with_capacity(HEADER_LEN + PROLOGUE_LEN + guess);
        buffer.resize(HEADER_LEN + PROLOGUE_LEN, 0);
        rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Panic>(&self.meta, buffer)
            .unwrap_or_else(|never| match never {})
    }
}

fn body_checksum(buffer: &[u8], cuts: &[(usize, &Bytes)]) -> u32 {
    if cuts.is_empty() {
        return super::checksum(&buffer[HEADER_LEN..]);
    }
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    let mut from = HEADER_LEN;
    for (at, big) in cuts {
        digest.update(&buffer[from..*at]);
        digest.update(big);
        from = *at;
    }
    digest.update(&buffer[from..]);
    digest.finalize() as u32
}

fn cut(buffer: Bytes, cuts: &[(usize, &Bytes)], parts: &mut Vec<Bytes>) {
    let mut from = 0;
    for (at, big) in cuts {
        if *at > from {
            parts.push(buffer.slice(from..*at));
        }
        parts.push((*big).clone());
        from = *at;
    }
    if from < buffer.len() {
        parts.push(buffer.slice(from..));
    }
}

fn route(shard: ShardId, from: ReplicaId, to: ReplicaId) -> WireRoute {
    WireRoute { shard: shard.0, from: from.get(), to: to.get() }
}

fn wire_mark(mark: Mark) -> WireMark {
    WireMark { term: mark.term, index: mark.index }
}

fn wire_view(view: Option<ViewId>) -> WireView {
    let (node, number) = view.map_or((0, 0), |view| (view.node.0, view.number));
    WireView { node, number }
}

fn wire_consistency(consistency: Consistency) -> WireConsistency {
    match consistency {
        Consistency::Linearizable => WireConsistency::Linearizable,
        Consistency::LinearizableLocal => WireConsistency::LinearizableLocal,
        Consistency::ANY_AGE => WireConsistency::Stale { max_ns: u64::MAX },
        Consistency::Stale { max } => WireConsistency::Stale { max_ns: narrow_duration(max) },
    }
}

/// In nanoseconds; longer than 584 years is cut to that, since `u64::MAX` has a meaning of its own.
fn narrow_duration(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).map_or(u64::MAX - 1, |ns| ns.min(u64::MAX - 1))
}

fn leader_stamp(stamp: LeaderStamp) -> WireLeaderStamp {
    WireLeaderStamp { sent_at_ns: stamp.sent_at_ns, echo: stamp.echo }
}

fn follower_stamp(stamp: FollowerStamp) -> WireFollowerStamp {
    WireFollowerStamp { echo_ns: stamp.echo_ns, promise_ns: stamp.promise_ns, stamp: stamp.stamp }
}

fn wire_beat(beat: &Beat) -> WireBeat {
    let rows = &beat.groups;
    WireBeat {
        boot_epoch: beat.boot_epoch,
        shards: rows.iter().map(|row| row.shard.0).collect(),
        from: rows.iter().map(|row| row.from.get()).collect(),
        to: rows.iter().map(|row| row.to.get()).collect(),
        terms: rows.iter().map(|row| row.term).collect(),
        commits: rows.iter().map(|row| row.commit).collect(),
        read_rounds: rows.iter().map(|row| row.read_round).collect(),
        sent_at_ns: rows.iter().map(|row| row.stamp.sent_at_ns).collect(),
        echoes: rows.iter().map(|row| row.stamp.echo).collect(),
        quiet: wire_quiet(&beat.quiet),
    }
}

fn wire_quiet(rows: &[GroupQuiet]) -> WireQuiet {
    WireQuiet {
        shards: rows.iter().map(|row| row.shard.0).collect(),
        from: rows.iter().map(|row| row.from.get()).collect(),
        to: rows.iter().map(|row| row.to.get()).collect(),
        terms: rows.iter().map(|row| row.term).collect(),
        last_terms: rows.iter().map(|row| row.last.term).collect(),
        last_indices: rows.iter().map(|row| row.last.index).collect(),
    }
}

fn wire_beat_reply(reply: &BeatReply) -> WireBeatReply {
    let rows = &reply.groups;
    WireBeatReply {
        boot_epoch: reply.boot_epoch,
        shards: rows.iter().map(|row| row.shard.0).collect(),
        from: rows.iter().map(|row| row.from.get()).collect(),
        to: rows.iter().map(|row| row.to.get()).collect(),
        terms: rows.iter().map(|row| row.term).collect(),
        read_rounds: rows.iter().map(|row| row.read_round).collect(),
        echo_ns: rows.iter().map(|row| row.stamp.echo_ns).collect(),
        promise_ns: rows.iter().map(|row| row.stamp.promise_ns).collect(),
        stamps: rows.iter().map(|row| row.stamp.stamp).collect(),
    }
}
