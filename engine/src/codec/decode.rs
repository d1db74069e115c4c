//! From a frame's body to a batch. Everything in it is a claim of a peer's until it is checked here.

use super::wire::*;
use super::{CodecError, PROLOGUE_LEN, u32_at};
use bytes::Bytes;
use floe_raft::{Body, Entry, EntryKind, FollowerStamp, LeaderStamp, Mark, Membership, Message, ReplicaId};
use floe_shard::descriptor::{Descriptor, KeyRange, ReplicaPlace, ReplicaRole};
use floe_shard::peer::{Beat, BeatReply, GroupBeat, GroupBeatReply, GroupQuiet, PeerBatch, PeerMessage};
use floe_shard::request::{
    Answer, BusyReason, Consistency, MEMBER_CHANGES_MAX, MemberChange, Query, Refusal, Request, Rest, Row,
    Seat, UnknownReason, Versioned, ViewId,
};
use floe_shard::{Epoch, NodeId, ShardId};
use rkyv::rend::u64_le;
use std::time::Duration;

type Result<T> = std::result::Result<T, CodecError>;

/// Decodes a body whose checksum was checked. Payloads are slices of `body`, aligned to 8.
///
/// # Errors
/// Names the first thing that is wrong; the connection it came from should be closed.
pub fn decode(body: Bytes) -> Result<PeerBatch> {
    if body.len() < PROLOGUE_LEN {
        return Err(CodecError::BodyLength { expected: PROLOGUE_LEN, got: body.len() });
    }
    if !(body.as_ptr() as usize).is_multiple_of(8) {
        return Err(CodecError::Misaligned);
    }
    let (meta_len, payload_len) = (u32_at(&body, 0) as usize, u32_at(&body, 4) as usize);
    let payload_at = PROLOGUE_LEN + meta_len;
    if payload_at + payload_len != body.len() {
        return Err(CodecError::BodyLength { expected: payload_at + payload_len, got: body.len() });
    }
    if !meta_len.is_multiple_of(8) {
        return Err(CodecError::Inconsistent("metadata length is not a multiple of 8"));
    }
    let meta = rkyv::access::<ArchivedWireBatch, rkyv::rancor::Error>(&body[PROLOGUE_LEN..payload_at])
        .map_err(|error| CodecError::Metadata(error.to_string()))?;
    Columns::new(meta, &body, payload_at)?.batch()
}

/// Where in the columns and payloads the decoder stands.
struct Columns<'a> {
    meta: &'a ArchivedWireBatch,
    body: &'a Bytes,
    payload_at: usize,
    len_at: usize,
    run_at: usize,
    entry_at: usize,
    version_at: usize,
    place_at: usize,
    member_at: usize,
}

/// The next `count` items of a column at `at`, which moves.
fn take<'a, T>(column: &'a [T], at: &mut usize, count: usize) -> Result<&'a [T]> {
    let items = column[*at..].get(..count).ok_or(CodecError::Inconsistent("a column is too short"))?;
    *at += count;
    Ok(items)
}

impl<'a> Columns<'a> {
    fn new(meta: &'a ArchivedWireBatch, body: &'a Bytes, payload_at: usize) -> Result<Self> {
        let parallel = meta.run_terms.len() == meta.run_counts.len()
            && meta.entry_kinds.len() == meta.entry_versions.len()
            && meta.place_replicas.len() == meta.place_nodes.len()
            && meta.place_replicas.len() == meta.place_roles.len();
        if !parallel {
            return Err(CodecError::Inconsistent("parallel columns differ in length"));
        }
        Ok(Self {
            meta,
            body,
            payload_at,
            len_at: 0,
            run_at: 0,
            entry_at: 0,
            version_at: 0,
            place_at: 0,
            member_at: 0,
        })
    }

    fn batch(mut self) -> Result<PeerBatch> {
        let mut messages = Vec::with_capacity(self.meta.messages.len());
        for row in self.meta.messages.iter() {
            messages.push(self.message(row)?);
        }
        self.check_used_up()?;
        Ok(PeerBatch {
            beat: self.meta.beat.as_ref().map(beat).transpose()?,
            beat_reply: self.meta.beat_reply.as_ref().map(beat_reply).transpose()?,
            messages,
        })
    }

    fn check_used_up(&self) -> Result<()> {
        let all = self.payload_at == self.body.len()
            && self.len_at == self.meta.lens.len()
            && self.run_at == self.meta.run_terms.len()
            && self.entry_at == self.meta.entry_kinds.len()
            && self.version_at == self.meta.row_versions.len()
            && self.place_at == self.meta.place_replicas.len()
            && self.member_at == self.meta.members.len();
        if all { Ok(()) } else { Err(CodecError::Inconsistent("something is left over")) }
    }

    fn slice(&mut self, len: usize) -> Result<Bytes> {
        // `payload_at` is within the body, and `len` below 2^32: neither sum overflows.
        let (start, end) = (self.payload_at, self.payload_at + len);
        let next = end.next_multiple_of(8);
        if next > self.body.len() {
            return Err(CodecError::Inconsistent("a payload ends after the body"));
        }
        self.payload_at = next;
        Ok(self.body.slice(start..end))
    }

    fn payload(&mut self) -> Result<Bytes> {
        let len = take(&self.meta.lens, &mut self.len_at, 1)?[0];
        self.slice(len.to_native() as usize)
    }

    fn text(&mut self) -> Result<String> {
        let bytes = self.payload()?;
        let text = std::str::from_utf8(&bytes);
        Ok(text.map_err(|_| CodecError::Inconsistent("a text is not UTF-8"))?.to_owned())
    }

    fn message(&mut self, row: &ArchivedWireMessage) -> Result<PeerMessage> {
        use ArchivedWireMessage as Row;
        Ok(match row {
            Row::Raft { route, epoch_range, epoch_membership, term, body } => {
                let (shard, from, to) = ids(route)?;
                let (range, membership) = (epoch_range.to_native(), epoch_membership.to_native());
                let term = term.to_native();
                let message = Message { from, to, term, body: self.body(body, term)? };
                PeerMessage::Raft { shard, epoch: Epoch { range, membership }, message }
            }
            Row::DumpOffer { route, term, generation, mark: at, len } => {
                let (shard, from, to) = ids(route)?;
                let (term, generation, len) = (term.to_native(), generation.to_native(), len.to_native());
                PeerMessage::DumpOffer { shard, from, to, term, generation, mark: mark(at), len }
            }
            Row::DumpPull { route, generation, offset, len } => {
                let (shard, from, to) = ids(route)?;
                let (generation, offset) = (generation.to_native(), offset.to_native());
                PeerMessage::DumpPull { shard, from, to, generation, offset, len: len.to_native() }
            }
            Row::DumpChunk { route, generation, offset } => {
                let (shard, from, to) = ids(route)?;
                let (generation, offset) = (generation.to_native(), offset.to_native());
                PeerMessage::DumpChunk { shard, from, to, generation, offset, data: self.payload()? }
            }
            Row::Request { id, origin, remaining_ns, request } => PeerMessage::Request {
                id: id.to_native(),
                origin: NodeId(origin.to_native()),
                remaining_ns: remaining_ns.to_native(),
                request: self.request(request)?,
            },
            Row::Placement { route, descriptor } => {
                let (shard, from, to) = ids(route)?;
                let descriptor = Box::new(self.descriptor(descriptor)?);
                PeerMessage::Placement { shard, from, to, descriptor }
            }
            Row::Answer { id, answer } => {
                PeerMessage::Answer { id: id.to_native(), answer: self.answer(answer)? }
            }
        })
    }

    fn body(&mut self, body: &ArchivedWireBody, term: u64) -> Result<Body> {
        use ArchivedWireBody as Row;
        Ok(match body {
            Row::PreVote { last } => Body::PreVote { last: mark(last) },
            Row::PreVoteReply { granted } => Body::PreVoteReply { granted: *granted },
            Row::Vote { last, transfer } => Body::Vote { last: mark(last), transfer: *transfer },
            Row::VoteReply { granted } => Body::VoteReply { granted: *granted },
            Row::Append { prev, commit, held_by_all, entries, runs, stamp } => {
                let prev = mark(prev);
                let (count, runs) = (entries.to_native() as usize, runs.to_native() as usize);
                Body::Append {
                    prev,
                    commit: commit.to_native(),
                    held_by_all: held_by_all.to_native(),
                    entries: self.entries(prev, count, runs, term)?,
                    stamp: leader_stamp(stamp),
                }
            }
            Row::AppendAccepted { matched, stamp } => {
                Body::AppendAccepted { matched: matched.to_native(), stamp: follower_stamp(stamp) }
            }
            Row::AppendRejected { prev, hint, stamp } => {
                Body::AppendRejected { prev: mark(prev), hint: mark(hint), stamp: follower_stamp(stamp) }
            }
            Row::Heartbeat { commit, read_round, stamp } => Body::Heartbeat {
                commit: commit.to_native(),
                read_round: read_round.to_native(),
                stamp: leader_stamp(stamp),
            },
            Row::HeartbeatReply { read_round, stamp } => {
                Body::HeartbeatReply { read_round: read_round.to_native(), stamp: follower_stamp(stamp) }
            }
            Row::Quiesce { last } => Body::Quiesce { last: mark(last) },
            Row::TimeoutNow => Body::TimeoutNow,
            Row::ReadIndex { context } => Body::ReadIndex { context: context.to_native() },
            Row::ReadIndexReply { context, index } => {
                Body::ReadIndexReply { context: context.to_native(), index: index.to_native() }
            }
            Row::AppendRefused { matched, stamp } => {
                Body::AppendRefused { matched: matched.to_native(), stamp: follower_stamp(stamp) }
            }
            Row::ReadIndexRefused { context } => Body::ReadIndexRefused { context: context.to_native() },
            Row::InstallSnapshot { mark: at, lists, auto_leave, stamp } => Body::InstallSnapshot {
                mark: mark(at),
                membership: Membership {
                    voters: self.members(lists[0].to_native())?,
                    voters_outgoing: self.members(lists[1].to_native())?,
                    learners: self.members(lists[2].to_native())?,
                    learners_next: self.members(lists[3].to_native())?,
                    auto_leave: *auto_leave,
                },
                stamp: leader_stamp(stamp),
            },
        })
    }

    /// Entries from `prev` on: contiguous, their terms in order and not above the message's.
    fn entries(&mut self, prev: Mark, count: usize, runs: usize, term: u64) -> Result<Vec<Entry>> {
        let meta = self.meta;
        let mut run_at = self.run_at;
        let terms = take(&meta.run_terms, &mut run_at, runs)?;
        let counts = take(&meta.run_counts, &mut self.run_at, runs)?;
        let mut entry_at = self.entry_at;
        let kinds = take(&meta.entry_kinds, &mut entry_at, count)?;
        let versions = take(&meta.entry_versions, &mut self.entry_at, count)?;
        let lens = take(&meta.lens, &mut self.len_at, count)?;
        if prev.index.checked_add(count as u64).is_none() {
            return Err(CodecError::Inconsistent("an entry's index overflows"));
        }
        let mut entries = Vec::with_capacity(count);
        let mut last = prev.term;
        for (run_term, run) in terms.iter().zip(counts) {
            let (run_term, run) = (run_term.to_native(), run.to_native() as usize);
            let from = entries.len();
            if run_term < last || run_term > term || run > count - from {
                return Err(CodecError::Inconsistent("terms of entries are out of order"));
            }
            last = run_term;
            for at in from..from + run {
                let mark = Mark::new(run_term, prev.index + 1 + at as u64);
                let kind = EntryKind::from_u8(kinds[at]).ok_or(unknown("entry kind", kinds[at]))?;
                let data = self.slice(lens[at].to_native() as usize)?;
                entries.push(Entry { mark, kind, version: versions[at], data });
            }
        }
        if entries.len() != count {
            return Err(CodecError::Inconsistent("term runs and entries differ in number"));
        }
        Ok(entries)
    }

    fn members(&mut self, count: u32) -> Result<Vec<ReplicaId>> {
        let ids = take(&self.meta.members, &mut self.member_at, count as usize)?;
        ids.iter().map(|id| replica(*id)).collect()
    }

    fn request(&mut self, request: &ArchivedWireRequest) -> Result<Request> {
        use ArchivedWireRequest as Row;
        Ok(match request {
            Row::Write { shard } => {
                Request::Write { shard: ShardId(shard.to_native()), command: self.payload()? }
            }
            Row::Get { shard, range_epoch, consistency } => Request::Read {
                shard: ShardId(shard.to_native()),
                range_epoch: range_epoch.to_native(),
                query: Query::Get { key: self.payload()? },
                consistency: consistency_of(consistency),
            },
            Row::Scan { shard, range_epoch, consistency, limit, bytes_max, reverse, view } => Request::Read {
                shard: ShardId(shard.to_native()),
                range_epoch: range_epoch.to_native(),
                query: Query::Scan {
                    start: self.payload()?,
                    end: self.payload()?,
                    limit: limit.to_native(),
                    bytes_max: bytes_max.to_native(),
                    reverse: *reverse,
                    view: view_of(view),
                },
                consistency: consistency_of(consistency),
            },
            Row::TransferLeadership { shard, to } => {
                Request::TransferLeadership { shard: ShardId(shard.to_native()), to: NodeId(to.to_native()) }
            }
            Row::ChangeMembers { shard, changes, force } => Request::ChangeMembers {
                shard: ShardId(shard.to_native()),
                changes: self.member_changes(changes.to_native() as usize)?,
                force: *force,
            },
        })
    }

    fn member_changes(&mut self, count: usize) -> Result<Vec<MemberChange>> {
        if count > MEMBER_CHANGES_MAX {
            return Err(CodecError::Inconsistent("too many changes of members"));
        }
        let (rows, _) = take(&self.meta.members, &mut self.member_at, 2 * count)?.as_chunks::<2>();
        let change = |[node, to]: &[u64_le; 2]| {
            let number = to.to_native();
            let to = u8::try_from(number).ok().and_then(Seat::from_u8);
            let to = to.ok_or(CodecError::Unknown { what: "seat", number })?;
            Ok(MemberChange { node: NodeId(node.to_native()), to })
        };
        rows.iter().map(change).collect()
    }

    fn answer(&mut self, answer: &ArchivedWireAnswer) -> Result<Answer> {
        use ArchivedWireAnswer as Row;
        let refusal = match answer {
            Row::Written { version } => return Ok(Answer::Written { version: version.to_native() }),
            Row::ConditionFailed { condition } => {
                return Ok(Answer::ConditionFailed { condition: condition.to_native() });
            }
            Row::NoValue => return Ok(Answer::Value(None)),
            Row::Value { version } => {
                let (version, value) = (version.to_native(), self.payload()?);
                return Ok(Answer::Value(Some(Versioned { version, value })));
            }
            Row::Rows { rows, more, view } => {
                let rest = match view_of(view) {
                    Some(view) => Rest::Held(view),
                    None if *more => Rest::More,
                    None => Rest::Nothing,
                };
                return Ok(Answer::Rows { rows: self.rows(rows.to_native())?, rest });
            }
            Row::Done => return Ok(Answer::Done),
            Row::Unknown { reason } => return Ok(Answer::Unknown(unknown_reason(*reason)?)),
            Row::Busy { reason } => Refusal::Busy(busy_reason(*reason)?),
            Row::NotLeader { leader } => {
                Refusal::NotLeader { leader: leader.as_ref().map(|node| NodeId(node.to_native())) }
            }
            Row::WrongEpoch { descriptor } => {
                Refusal::WrongEpoch { descriptor: Box::new(self.descriptor(descriptor)?) }
            }
            Row::OutOfRange { descriptor } => {
                Refusal::OutOfRange { descriptor: Box::new(self.descriptor(descriptor)?) }
            }
            Row::NoSuchShard { shard } => Refusal::NoSuchShard { shard: ShardId(shard.to_native()) },
            Row::BadCommand => Refusal::BadCommand { reason: self.text()? },
            Row::Overwritten => Refusal::Overwritten,
            Row::DeadlinePassed => Refusal::DeadlinePassed,
            Row::Unavailable => Refusal::Unavailable { reason: self.text()? },
            Row::TooStale { age_ns } => Refusal::TooStale { age: age_of(age_ns.to_native()) },
            Row::ViewGone => Refusal::ViewGone,
            Row::BadChange => Refusal::BadChange { reason: self.text()? },
            Row::NotAMember { node } => Refusal::NotAMember { node: NodeId(node.to_native()) },
        };
        Ok(Answer::Refused(refusal))
    }

    fn rows(&mut self, count: u32) -> Result<Vec<Row>> {
        let versions = take(&self.meta.row_versions, &mut self.version_at, count as usize)?;
        let mut rows = Vec::with_capacity(versions.len());
        for version in versions {
            let (key, value) = (self.payload()?, self.payload()?);
            rows.push(Row { key, value: Versioned { version: version.to_native(), value } });
        }
        Ok(rows)
    }

    fn descriptor(&mut self, row: &ArchivedWireDescriptor) -> Result<Descriptor> {
        let range = KeyRange { start: self.payload()?, end: self.payload()? };
        let count = row.places.to_native() as usize;
        let from = self.place_at;
        let ids = take(&self.meta.place_replicas, &mut self.place_at, count)?;
        let nodes = &self.meta.place_nodes[from..from + count];
        let roles = &self.meta.place_roles[from..from + count];
        let mut replicas = Vec::with_capacity(count);
        for ((id, node), role) in ids.iter().zip(nodes).zip(roles) {
            let role = ReplicaRole::from_u8(*role).ok_or(unknown("replica role", *role))?;
            replicas.push(ReplicaPlace { replica: replica(*id)?, node: NodeId(node.to_native()), role });
        }
        let descriptor = Descriptor {
            shard: ShardId(row.shard.to_native()),
            range,
            epoch: Epoch { range: row.epoch_range.to_native(), membership: row.epoch_membership.to_native() },
            replicas: replicas.into(),
            next_replica_id: row.next_replica_id.to_native(),
            feature_level: row.feature_level.to_native(),
        };
        match descriptor.membership().broken_rule() {
            None => Ok(descriptor),
            Some(rule) => Err(CodecError::Inconsistent(rule)),
        }
    }
}

fn view_of(view: &ArchivedWireView) -> Option<ViewId> {
    let (node, number) = (NodeId(view.node.to_native()), view.number.to_native());
    (number > 0).then_some(ViewId { node, number })
}

fn unknown(what: &'static str, number: u8) -> CodecError {
    CodecError::Unknown { what, number: u64::from(number) }
}

fn replica(id: u64_le) -> Result<ReplicaId> {
    ReplicaId::new(id.to_native()).ok_or(CodecError::Unknown { what: "replica", number: 0 })
}

fn ids(route: &ArchivedWireRoute) -> Result<(ShardId, ReplicaId, ReplicaId)> {
    Ok((ShardId(route.shard.to_native()), replica(route.from)?, replica(route.to)?))
}

fn mark(mark: &ArchivedWireMark) -> Mark {
    Mark::new(mark.term.to_native(), mark.index.to_native())
}

fn leader_stamp(stamp: &ArchivedWireLeaderStamp) -> LeaderStamp {
    LeaderStamp { sent_at_ns: stamp.sent_at_ns.to_native(), echo: stamp.echo.to_native() }
}

fn follower_stamp(stamp: &ArchivedWireFollowerStamp) -> FollowerStamp {
    FollowerStamp {
        echo_ns: stamp.echo_ns.to_native(),
        promise_ns: stamp.promise_ns.to_native(),
        stamp: stamp.stamp.to_native(),
    }
}

fn consistency_of(consistency: &ArchivedWireConsistency) -> Consistency {
    match consistency {
        ArchivedWireConsistency::Linearizable => Consistency::Linearizable,
        ArchivedWireConsistency::LinearizableLocal => Consistency::LinearizableLocal,
        ArchivedWireConsistency::Stale { max_ns } => {
            let max = age_of(max_ns.to_native()).unwrap_or(Duration::MAX);
            Consistency::Stale { max }
        }
    }
}

/// `u64::MAX` stands for none.
fn age_of(ns: u64) -> Option<Duration> {
    (ns < u64::MAX).then(|| Duration::from_nanos(ns))
}

fn busy_reason(number: u8) -> Result<BusyReason> {
    match number {
        0 => Ok(BusyReason::Requests),
        1 => Ok(BusyReason::UncommittedBytes),
        2 => Ok(BusyReason::DiskFull),
        3 => Ok(BusyReason::Transfer),
        4 => Ok(BusyReason::Transport),
        5 => Ok(BusyReason::MemberChange),
        6 => Ok(BusyReason::WriteBuffer),
        7 => Ok(BusyReason::Views),
        8 => Ok(BusyReason::LogMemory),
        9 => Ok(BusyReason::LogSpace),
        _ => Err(unknown("busy reason", number)),
    }
}

fn unknown_reason(number: u8) -> Result<UnknownReason> {
    match number {
        0 => Ok(UnknownReason::DeadlinePassed),
        1 => Ok(UnknownReason::Disconnected),
        2 => Ok(UnknownReason::LeadershipLost),
        3 => Ok(UnknownReason::ShuttingDown),
        4 => Ok(UnknownReason::BadAnswer),
        _ => Err(unknown("reason of an unknown outcome", number)),
    }
}

fn beat(wire: &ArchivedWireBeat) -> Result<Beat> {
    let columns =
        [&wire.from, &wire.to, &wire.terms, &wire.commits, &wire.read_rounds, &wire.sent_at_ns, &wire.echoes];
    let rows = wire.shards.len();
    if columns.iter().any(|column| column.len() != rows) {
        return Err(CodecError::Inconsistent("columns of a beat differ in length"));
    }
    let mut groups = Vec::with_capacity(rows);
    for at in 0..rows {
        groups.push(GroupBeat {
            shard: ShardId(wire.shards[at].to_native()),
            from: replica(wire.from[at])?,
            to: replica(wire.to[at])?,
            term: wire.terms[at].to_native(),
            commit: wire.commits[at].to_native(),
            read_round: wire.read_rounds[at].to_native(),
            stamp: LeaderStamp {
                sent_at_ns: wire.sent_at_ns[at].to_native(),
                echo: wire.echoes[at].to_native(),
            },
        });
    }
    Ok(Beat { boot_epoch: wire.boot_epoch.to_native(), groups, quiet: quiet(&wire.quiet)? })
}

fn quiet(wire: &ArchivedWireQuiet) -> Result<Vec<GroupQuiet>> {
    let rows = wire.shards.len();
    let columns = [&wire.from, &wire.to, &wire.terms, &wire.last_terms, &wire.last_indices];
    if columns.iter().any(|column| column.len() != rows) {
        return Err(CodecError::Inconsistent("columns of quiet groups differ in length"));
    }
    let row = |at: usize| {
        Ok(GroupQuiet {
            shard: ShardId(wire.shards[at].to_native()),
            from: replica(wire.from[at])?,
            to: replica(wire.to[at])?,
            term: wire.terms[at].to_native(),
            last: Mark::new(wire.last_terms[at].to_native(), wire.last_indices[at].to_native()),
        })
    };
    (0..rows).map(row).collect()
}

fn beat_reply(wire: &ArchivedWireBeatReply) -> Result<BeatReply> {
    let columns =
        [&wire.from, &wire.to, &wire.terms, &wire.read_rounds, &wire.echo_ns, &wire.promise_ns, &wire.stamps];
    let rows = wire.shards.len();
    if columns.iter().any(|column| column.len() != rows) {
        return Err(CodecError::Inconsistent("columns of a beat's answer differ in length"));
    }
    let mut groups = Vec::with_capacity(rows);
    for at in 0..rows {
        groups.push(GroupBeatReply {
            shard: ShardId(wire.shards[at].to_native()),
            from: replica(wire.from[at])?,
            to: replica(wire.to[at])?,
            term: wire.terms[at].to_native(),
            read_round: wire.read_rounds[at].to_native(),
            stamp: FollowerStamp {
                echo_ns: wire.echo_ns[at].to_native(),
                promise_ns: wire.promise_ns[at].to_native(),
                stamp: wire.stamps[at].to_native(),
            },
        });
    }
    Ok(BeatReply { boot_epoch: wire.boot_epoch.to_native(), groups })
}
