//! Frames: one group commit, one aligned write.
//!
//! A frame is encoded once, by the driver, straight into its aligned buffer, and drivers may do that in
//! any order. So the chain from frame to frame goes over what is known when a frame is issued: its
//! *link* is the checksum of its header without the two fields that depend on the encoded records.

use super::FrameSeq;
use super::layout::{all_zero, checksum, mix, put_u32, put_u64, u32_at, u64_at};
use super::record::{self, Item, RECORD_HEAD, RecordFault};
use crate::disk::{BLOCK, Recipe};
use floe_shard::ShardId;

/// Length of a frame's header; records follow it at once.
pub const FRAME_HEAD: usize = 72;
const MAGIC: u32 = u32::from_le_bytes(*b"floe");
const LINK_AT: std::ops::Range<usize> = 8..68;
const _: () = assert!(FRAME_HEAD.is_multiple_of(8), "records are 8-aligned");

/// The header of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The segment it was written to.
    pub segment: u64,
    /// Its own sequence.
    pub seq: FrameSeq,
    /// The highest contiguous sequence known durable when it was issued.
    pub durable: FrameSeq,
    /// The boot that wrote it.
    pub boot_epoch: u64,
    /// Segments below this id were no longer needed; they may be gone once this frame is durable.
    pub oldest: u64,
    /// Length of the records, without padding.
    pub body_bytes: u32,
    /// How many records.
    pub records: u32,
    /// The limit K in force: `seq <= durable + K`.
    pub frames_in_flight: u32,
    /// None known yet; any bit set must be understood.
    pub flags: u32,
    /// The link of the frame before; for a boot's first frame that of the previous boot's last one.
    pub previous: u32,
    /// Checksum of the records' checksums.
    pub records_crc: u32,
}

impl FrameHeader {
    /// Length of the frame in the file, padding included.
    pub fn frame_bytes(&self) -> u64 {
        frame_bytes(self.body_bytes as usize)
    }

    /// What the next frame states as `previous`.
    pub fn link(&self, salt: u64, offset: u64) -> u32 {
        let mut bytes = [0; FRAME_HEAD];
        self.put(&mut bytes);
        checksum(mix(salt, offset), &bytes[LINK_AT])
    }

    fn put(&self, out: &mut [u8]) {
        put_u32(out, 0, MAGIC);
        put_u64(out, 8, self.segment);
        put_u64(out, 16, self.seq);
        put_u64(out, 24, self.durable);
        put_u64(out, 32, self.boot_epoch);
        put_u64(out, 40, self.oldest);
        put_u32(out, 48, self.body_bytes);
        put_u32(out, 52, self.records);
        put_u32(out, 56, self.frames_in_flight);
        put_u32(out, 60, self.flags);
        put_u32(out, 64, self.previous);
        put_u32(out, 68, self.records_crc);
    }
}

/// Length in the file of a frame with `body` bytes of records.
pub fn frame_bytes(body: usize) -> u64 {
    (FRAME_HEAD + body).next_multiple_of(BLOCK) as u64
}

fn record_seed(salt: u64, seq: FrameSeq, offset: u64) -> u64 {
    mix(mix(salt, seq), offset)
}

/// Reads a header at `offset` of the segment with this salt. `None` if there is no sound one. Never panics.
pub fn parse_frame_header(salt: u64, offset: u64, bytes: &[u8]) -> Option<FrameHeader> {
    if bytes.len() < FRAME_HEAD || u32_at(bytes, 0) != MAGIC {
        return None;
    }
    if u32_at(bytes, 4) != checksum(mix(salt, offset), &bytes[8..FRAME_HEAD]) {
        return None;
    }
    let header = FrameHeader {
        segment: u64_at(bytes, 8),
        seq: u64_at(bytes, 16),
        durable: u64_at(bytes, 24),
        boot_epoch: u64_at(bytes, 32),
        oldest: u64_at(bytes, 40),
        body_bytes: u32_at(bytes, 48),
        records: u32_at(bytes, 52),
        frames_in_flight: u32_at(bytes, 56),
        flags: u32_at(bytes, 60),
        previous: u32_at(bytes, 64),
        records_crc: u32_at(bytes, 68),
    };
    let room = header.body_bytes as usize / RECORD_HEAD;
    let sound = header.durable < header.seq
        && header.seq - header.durable <= u64::from(header.frames_in_flight)
        && header.records as usize <= room;
    sound.then_some(header)
}

/// Why the rest of a frame with a sound header can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameFault {
    /// What is wrong.
    pub fault: RecordFault,
    /// Shards named by the records in question, as far as they can be read.
    pub shards: Vec<ShardId>,
}

/// Reads the records of a frame from all of its bytes. Never panics.
///
/// # Errors
/// If any byte of it, padding included, is not what was written, or of a later version.
pub fn parse_frame(
    header: &FrameHeader,
    salt: u64,
    offset: u64,
    bytes: &[u8],
) -> Result<Vec<Item>, FrameFault> {
    let body_end = FRAME_HEAD + header.body_bytes as usize;
    let damaged = |reason, shards| Err(FrameFault { fault: RecordFault::Damaged(reason), shards });
    if bytes.len() as u64 != header.frame_bytes() {
        return damaged("the file ends within a frame", Vec::new());
    }
    if header.flags != 0 {
        let fault = RecordFault::Unknown(format!("frame flags {:#x}", header.flags));
        return Err(FrameFault { fault, shards: Vec::new() });
    }
    if !all_zero(&bytes[body_end..]) {
        return damaged("a frame's padding is not zero", Vec::new());
    }
    let mut items = Vec::with_capacity(header.records as usize);
    let mut crcs = Vec::with_capacity(header.records as usize * 4);
    let mut at = FRAME_HEAD;
    while at < body_end {
        let seed = record_seed(salt, header.seq, offset + at as u64);
        let (item, crc, len) = record::parse_item(&bytes[at..body_end], seed)
            .map_err(|fault| FrameFault { fault, shards: claimed_shards(&bytes[at..body_end]) })?;
        items.push(item);
        crcs.extend_from_slice(&crc.to_le_bytes());
        at += len;
    }
    if items.len() != header.records as usize || checksum(salt, &crcs) != header.records_crc {
        return damaged("a frame's records are not those it was written with", Vec::new());
    }
    Ok(items)
}

/// How many shards a report of damage names at most.
const SHARDS_NAMED_MAX: usize = 64;

/// The shards named from a damaged record on; a best effort for the report, capped.
pub(super) fn claimed_shards(mut bytes: &[u8]) -> Vec<ShardId> {
    let mut shards = Vec::new();
    while let Some(len) = record::claimed_len(bytes) {
        let shard = record::claimed_shard(bytes).filter(|shard| !shards.contains(shard));
        shards.extend(shard.filter(|_| shards.len() < SHARDS_NAMED_MAX));
        bytes = &bytes[len..];
    }
    shards
}

/// A frame on its way to the disk.
pub(super) struct FrameRecipe {
    pub header: FrameHeader,
    pub salt: u64,
    pub offset: u64,
    pub items: Vec<Item>,
}

impl Recipe for FrameRecipe {
    fn len(&self) -> usize {
        self.header.frame_bytes() as usize
    }

    fn encode_into(&self, buffer: &mut [u8]) {
        assert_eq!(buffer.len(), self.len(), "the buffer is as long as the frame");
        let mut crcs = Vec::with_capacity(self.items.len() * 4);
        let mut at = FRAME_HEAD;
        for item in &self.items {
            let end = at + record::item_len(item);
            let seed = record_seed(self.salt, self.header.seq, self.offset + at as u64);
            let crc = record::encode_item(item, seed, &mut buffer[at..end]);
            crcs.extend_from_slice(&crc.to_le_bytes());
            at = end;
        }
        assert_eq!(
            at,
            FRAME_HEAD + self.header.body_bytes as usize,
            "the body is as long as it was measured"
        );
        buffer[at..].fill(0);
        self.header.put(buffer);
        put_u32(buffer, 68, checksum(self.salt, &crcs));
        let crc = checksum(mix(self.salt, self.offset), &buffer[8..FRAME_HEAD]);
        put_u32(buffer, 4, crc);
    }
}
