//! Records: what one replica (or the stream as a whole) writes into a frame.
//!
//! The drawing is at the head of [`super`]. A record's checksum is seeded with its place, so that one
//! record can be read and checked alone. Parsing never panics and allocates nothing that was not
//! measured against the bytes at hand.

use super::layout::{aligned, checksum, put_u32, put_u64, u32_at, u64_at};
use super::{Record, ShardState};
use bytes::Bytes;
use floe_raft::{Entry, EntryKind, HardState, Mark, ReplicaId};
use floe_shard::ShardId;

/// Length of a record's fixed head.
pub const RECORD_HEAD: usize = 48;
/// Length of one row of an entry table.
pub const TABLE_ROW: usize = 16;
/// No log gets this long; indices up to here can be counted on from without overflow.
pub(super) const INDEX_MAX: u64 = u64::MAX / 2;
const RESET_FIXED: usize = 80;
const MUST_UNDERSTAND: u8 = 1;

/// Kind numbers; part of the format. `CheckpointLease` and `SegmentFooter` are reserved.
mod kind {
    pub const ENTRIES: u8 = 1;
    pub const HARD_STATE: u8 = 2;
    pub const TRUNCATE_PREFIX: u8 = 3;
    pub const SNAPSHOT_INSTALL: u8 = 4;
    pub const SHARD_RESET: u8 = 5;
    pub const SHARD_TOMBSTONE: u8 = 6;
    #[expect(dead_code, reason = "reserved for the checkpoint leases of STORE.md")]
    pub const CHECKPOINT_LEASE: u8 = 7;
    pub const PROMISE: u8 = 8;
    #[expect(dead_code, reason = "reserved for an index of sealed segments")]
    pub const SEGMENT_FOOTER: u8 = 9;
    pub const SEAL: u8 = 10;
}

/// What a frame holds: a caller's record, a part of a shard's complete state, or the writer's own mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Any record but `ShardReset`.
    Record(Record),
    /// One part of a `ShardReset`; void until the last part is there.
    Reset(Box<ResetPart>),
    /// Everything before it in the stream is durable.
    Seal,
    /// A record of a later version which says that it may be skipped.
    Skipped,
}

impl Item {
    /// Its kind, as the format names it.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::Record(record) => record.kind_name(),
            Self::Reset(_) => "ShardReset",
            Self::Seal => "Seal",
            Self::Skipped => "of a later version",
        }
    }
}

/// One part of a `ShardReset`. Part 0 holds the descriptor; all parts repeat the fixed fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetPart {
    /// The fixed fields, and this part's share of the entries.
    pub state: ShardState,
    /// The same in all parts of one reset, and different from the shard's other resets.
    pub id: u64,
    /// Counted from 0.
    pub part: u32,
    /// Whether the reset is complete with this part.
    pub last: bool,
}

/// Why a record can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// Its bytes are not what was written.
    Damaged(&'static str),
    /// Sound, but a later version wrote it and this one must not skip it.
    Unknown(String),
}

use RecordFault::Damaged;

/// Length of the entries of a record: table and payloads, each padded to 8.
pub(super) fn entries_len(entries: &[Entry]) -> usize {
    entries.iter().map(entry_len).sum()
}

/// What one entry takes in a record.
pub(super) fn entry_len(entry: &Entry) -> usize {
    TABLE_ROW + aligned(entry.data.len())
}

/// Length of a record, a multiple of 8.
pub fn item_len(item: &Item) -> usize {
    RECORD_HEAD
        + match item {
            Item::Record(Record::Entries { entries, .. }) => entries_len(entries),
            Item::Record(Record::SnapshotInstall { descriptor, .. }) => 16 + aligned(descriptor.len()),
            Item::Reset(part) => {
                RESET_FIXED + aligned(part.state.descriptor.len()) + entries_len(&part.state.entries)
            }
            Item::Record(
                Record::HardState { .. }
                | Record::TruncatePrefix { .. }
                | Record::ShardTombstone { .. }
                | Record::Promise { .. },
            ) => 8,
            Item::Seal => 0,
            Item::Record(Record::ShardReset(_)) | Item::Skipped => unreachable!("{item:?} is never written"),
        }
}

struct Head {
    kind: u8,
    count: u32,
    shard: ShardId,
    replica: u64,
    mark: Mark,
}

/// Writes a record into exactly [`item_len`] bytes and returns its checksum.
pub fn encode_item(item: &Item, seed: u64, out: &mut [u8]) -> u32 {
    let head = encode_body(item, out);
    out[4] = head.kind;
    out[5] = MUST_UNDERSTAND;
    out[6..8].fill(0);
    put_u32(out, 8, u32::try_from(out.len()).expect("a record is at most 17 MiB long"));
    put_u32(out, 12, head.count);
    put_u64(out, 16, head.shard.0);
    put_u64(out, 24, head.replica);
    put_u64(out, 32, head.mark.index);
    put_u64(out, 40, head.mark.term);
    let crc = checksum(seed, &out[4..]);
    put_u32(out, 0, crc);
    crc
}

fn encode_body(item: &Item, out: &mut [u8]) -> Head {
    let body = &mut out[RECORD_HEAD..];
    match item {
        Item::Record(record) => encode_record(record, body),
        Item::Reset(part) => encode_reset(part, body),
        Item::Seal => Head::of_stream(kind::SEAL),
        Item::Skipped => unreachable!("a skipped record is never written"),
    }
}

impl Head {
    fn of_stream(kind: u8) -> Self {
        Self { kind, count: 0, shard: ShardId(0), replica: 0, mark: Mark::ZERO }
    }

    fn of(kind: u8, shard: ShardId, replica: ReplicaId, mark: Mark) -> Self {
        Self { kind, count: 0, shard, replica: replica.get(), mark }
    }
}

fn encode_record(record: &Record, body: &mut [u8]) -> Head {
    match record {
        Record::Entries { shard, replica, entries } => {
            let mark = Mark::new(entries[entries.len() - 1].mark.term, entries[0].mark.index);
            encode_entries(entries, body);
            Head { count: entries.len() as u32, ..Head::of(kind::ENTRIES, *shard, *replica, mark) }
        }
        Record::HardState { shard, replica, state } => {
            put_u64(body, 0, state.vote.map_or(0, ReplicaId::get));
            Head::of(kind::HARD_STATE, *shard, *replica, Mark::new(state.term, state.commit))
        }
        Record::TruncatePrefix { shard, replica, flushed, generation } => {
            put_u64(body, 0, *generation);
            Head::of(kind::TRUNCATE_PREFIX, *shard, *replica, *flushed)
        }
        Record::SnapshotInstall { shard, replica, mark, generation, descriptor, keep_suffix } => {
            put_u64(body, 0, *generation);
            put_u32(body, 8, u32::from(*keep_suffix));
            put_u32(body, 12, descriptor.len() as u32);
            put_padded(descriptor, &mut body[16..]);
            Head::of(kind::SNAPSHOT_INSTALL, *shard, *replica, *mark)
        }
        Record::ShardTombstone { shard, lowest_replica } => {
            put_u64(body, 0, *lowest_replica);
            Head { shard: *shard, ..Head::of_stream(kind::SHARD_TOMBSTONE) }
        }
        Record::Promise { largest_ns } => {
            put_u64(body, 0, *largest_ns);
            Head::of_stream(kind::PROMISE)
        }
        Record::ShardReset(_) => unreachable!("a reset is written in parts"),
    }
}

fn encode_reset(part: &ResetPart, body: &mut [u8]) -> Head {
    let state = &part.state;
    put_u64(body, 0, part.id);
    put_u32(body, 8, part.part);
    put_u32(body, 12, u32::from(part.last));
    put_u64(body, 16, state.generation);
    put_u64(body, 24, state.home_epoch);
    put_u64(body, 32, state.hard_state.term);
    put_u64(body, 40, state.hard_state.vote.map_or(0, ReplicaId::get));
    put_u64(body, 48, state.hard_state.commit);
    put_u64(body, 56, state.lowest_replica);
    put_u64(body, 64, state.entries.first().map_or(0, |entry| entry.mark.index));
    put_u32(body, 72, state.descriptor.len() as u32);
    put_u32(body, 76, 0);
    let rest = &mut body[RESET_FIXED..];
    put_padded(&state.descriptor, rest);
    encode_entries(&state.entries, &mut rest[aligned(state.descriptor.len())..]);
    let count = state.entries.len() as u32;
    Head { count, ..Head::of(kind::SHARD_RESET, state.shard, state.replica, state.flushed) }
}

/// Copies `data` to the front of `out`, with zeros up to the next multiple of 8.
fn put_padded(data: &[u8], out: &mut [u8]) {
    out[..data.len()].copy_from_slice(data);
    out[data.len()..aligned(data.len())].fill(0);
}

fn encode_entries(entries: &[Entry], out: &mut [u8]) {
    let (table, mut payloads) = out.split_at_mut(entries.len() * TABLE_ROW);
    for (row, entry) in table.chunks_exact_mut(TABLE_ROW).zip(entries) {
        put_u64(row, 0, entry.mark.term);
        put_u32(row, 8, entry.data.len() as u32);
        put_u32(row, 12, u32::from(entry.kind as u8) | u32::from(entry.version) << 8);
        let (payload, rest) = payloads.split_at_mut(aligned(entry.data.len()));
        put_padded(&entry.data, payload);
        payloads = rest;
    }
    assert!(payloads.is_empty(), "a record was measured {} bytes too long", payloads.len());
}

/// The length that the record at the front of `bytes` claims, if it can be true.
pub(super) fn claimed_len(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < RECORD_HEAD {
        return None;
    }
    let len = u32_at(bytes, 8) as usize;
    (len >= RECORD_HEAD && len.is_multiple_of(8) && len <= bytes.len()).then_some(len)
}

/// The shard that a record names, if it is about one and not about its whole stream. Only as trustworthy as
/// the record.
pub(super) fn claimed_shard(bytes: &[u8]) -> Option<ShardId> {
    let is_of_a_shard = !matches!(bytes[4], kind::SEAL | kind::PROMISE);
    is_of_a_shard.then(|| shard_field(bytes))
}

fn shard_field(bytes: &[u8]) -> ShardId {
    ShardId(u64_at(bytes, 16))
}

/// Reads the record at the front of `bytes`. Returns it, its checksum and its length.
///
/// # Errors
/// If its bytes are damaged, or of a kind that this version must not skip.
pub fn parse_item(bytes: &[u8], seed: u64) -> Result<(Item, u32, usize), RecordFault> {
    let len = claimed_len(bytes).ok_or(Damaged("a record's length is impossible"))?;
    let bytes = &bytes[..len];
    let crc = checksum(seed, &bytes[4..]);
    if u32_at(bytes, 0) != crc {
        return Err(Damaged("a record's checksum is wrong"));
    }
    Ok((parse_sound(bytes)?, crc, len))
}

fn parse_sound(bytes: &[u8]) -> Result<Item, RecordFault> {
    let shard = shard_field(bytes);
    let mark = Mark::new(u64_at(bytes, 40), u64_at(bytes, 32));
    let body = &bytes[RECORD_HEAD..];
    let record = match bytes[4] {
        kind::SEAL => return Ok(Item::Seal),
        kind::PROMISE => Record::Promise { largest_ns: number(body, 0)? },
        kind::SHARD_TOMBSTONE => Record::ShardTombstone { shard, lowest_replica: number(body, 0)? },
        kind::ENTRIES => {
            let entries = parse_entries(body, u32_at(bytes, 12), mark.index)?;
            Record::Entries { shard, replica: replica(bytes)?, entries }
        }
        kind::HARD_STATE => {
            let vote = ReplicaId::new(number(body, 0)?);
            let state = HardState { term: mark.term, vote, commit: mark.index };
            Record::HardState { shard, replica: replica(bytes)?, state }
        }
        kind::TRUNCATE_PREFIX => {
            let generation = number(body, 0)?;
            Record::TruncatePrefix { shard, replica: replica(bytes)?, flushed: mark, generation }
        }
        kind::SNAPSHOT_INSTALL => parse_install(body, shard, replica(bytes)?, mark)?,
        kind::SHARD_RESET => return parse_reset(bytes, shard, mark),
        _ if bytes[5] & MUST_UNDERSTAND == 0 => return Ok(Item::Skipped),
        other => return Err(RecordFault::Unknown(format!("record kind {other}"))),
    };
    Ok(Item::Record(record))
}

fn number(body: &[u8], at: usize) -> Result<u64, RecordFault> {
    if body.len() < at + 8 {
        return Err(Damaged("a record is too short for its kind"));
    }
    Ok(u64_at(body, at))
}

fn replica(bytes: &[u8]) -> Result<ReplicaId, RecordFault> {
    ReplicaId::new(u64_at(bytes, 24)).ok_or(Damaged("a record names no replica"))
}

fn parse_install(body: &[u8], shard: ShardId, replica: ReplicaId, mark: Mark) -> Result<Record, RecordFault> {
    let generation = number(body, 0)?;
    let keep_suffix = u32::try_from(number(body, 8)? & 0xffff_ffff).is_ok_and(|flags| flags & 1 != 0);
    let descriptor = slice(&body[16..], u32_at(body, 12))?;
    let descriptor = Bytes::copy_from_slice(descriptor);
    Ok(Record::SnapshotInstall { shard, replica, mark, generation, descriptor, keep_suffix })
}

fn slice(bytes: &[u8], len: u32) -> Result<&[u8], RecordFault> {
    bytes.get(..len as usize).ok_or(Damaged("a record's inner length is impossible"))
}

fn parse_reset(bytes: &[u8], shard: ShardId, flushed: Mark) -> Result<Item, RecordFault> {
    let body = &bytes[RECORD_HEAD..];
    if body.len() < RESET_FIXED {
        return Err(Damaged("a reset is too short"));
    }
    let rest = &body[RESET_FIXED..];
    let descriptor = slice(rest, u32_at(body, 72))?;
    let entries = rest.get(aligned(descriptor.len())..).ok_or(Damaged("a reset's padding is missing"))?;
    let hard_state = HardState {
        term: u64_at(body, 32),
        vote: ReplicaId::new(u64_at(body, 40)),
        commit: u64_at(body, 48),
    };
    let state = ShardState {
        shard,
        replica: replica(bytes)?,
        home_epoch: u64_at(body, 24),
        descriptor: Bytes::copy_from_slice(descriptor),
        hard_state,
        flushed,
        generation: u64_at(body, 16),
        entries: parse_entries(entries, u32_at(bytes, 12), u64_at(body, 64))?,
        lowest_replica: u64_at(body, 56),
    };
    let (id, part, last) = (u64_at(body, 0), u32_at(body, 8), u32_at(body, 12) & 1 != 0);
    Ok(Item::Reset(Box::new(ResetPart { state, id, part, last })))
}

/// Reads a table and its payloads. All payloads of a record share one copy, so that the buffer they
/// were read into is free at once and a live entry pins its own record at most.
fn parse_entries(body: &[u8], count: u32, first: u64) -> Result<Vec<Entry>, RecordFault> {
    let count = count as usize;
    if count > body.len() / TABLE_ROW {
        return Err(Damaged("an entry table is longer than its record"));
    }
    if first > INDEX_MAX {
        return Err(Damaged("an entry's index is impossible"));
    }
    let (table, payloads) = body.split_at(count * TABLE_ROW);
    let payloads = Bytes::copy_from_slice(payloads);
    let mut entries = Vec::with_capacity(count);
    let mut at = 0;
    for (index, row) in (first..).zip(table.chunks_exact(TABLE_ROW)) {
        let len = u32_at(row, 8) as usize;
        if len > payloads.len() - at || aligned(len) > payloads.len() - at {
            return Err(Damaged("an entry is longer than its record"));
        }
        let kind = EntryKind::from_u8(row[12])
            .ok_or_else(|| RecordFault::Unknown(format!("entry kind {}", row[12])))?;
        let data = payloads.slice(at..at + len);
        entries.push(Entry { mark: Mark::new(u64_at(row, 0), index), kind, version: row[13], data });
        at += aligned(len);
    }
    if at != payloads.len() {
        return Err(Damaged("a record holds more than its entries"));
    }
    Ok(entries)
}
