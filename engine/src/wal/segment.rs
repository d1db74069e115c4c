//! Segment files: their names and the header in two copies.
//!
//! The header is durable before any frame is issued to the segment, so a file without a sound header
//! holds no frame that counts; one that does is damaged (see `recovery`). The name's id gives the
//! salt; a header that states another id belongs to the file's former life and counts as absent.

use super::layout::{checksum, put_u32, put_u64, put_u128, u32_at, u64_at, u128_at};
use super::{FrameSeq, StreamEnd};
use crate::disk::{BLOCK, DirEntry, DiskPath, Recipe};

/// Version of everything this module tree writes.
pub const FORMAT: u32 = 1;
/// Where the first frame of a segment lies: behind the two header copies.
pub const FRAMES_AT: u64 = 2 * BLOCK as u64;
/// Feature bits of the segment header that this version understands.
pub const FEATURES: u32 = 0;

const MAGIC: u64 = u64::from_le_bytes(*b"floewal\x01");
const CRC_AT: usize = BLOCK - 4;
const FLAG_BOOT_START: u32 = 1;

/// What a segment says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Length of the file.
    pub bytes: u64,
    /// The store it belongs to.
    pub store_uuid: u128,
    /// The stream it belongs to.
    pub stream: u32,
    /// Its id; never reused once a frame was issued to it.
    pub segment: u64,
    /// The boot that wrote it.
    pub boot_epoch: u64,
    /// No frame in it has a lower sequence. Exact in the first segment of a boot; elsewhere a bound,
    /// since headers are written ahead of need.
    pub first_seq: FrameSeq,
    /// Segments below this id were no longer needed when the header was written.
    pub oldest: u64,
    /// The limit K of the boot.
    pub frames_in_flight: u32,
    /// Only in the first segment of a boot: where recovery found the log of all earlier boots to end. Exact.
    pub boot_start: Option<StreamEnd>,
}

/// Why a header copy can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Not there, torn or damaged.
    Absent,
    /// Sound, but of a format this version doesn't know.
    Unknown(String),
}

fn place_seed(copy: usize) -> u64 {
    assert!(copy < 2, "a segment has two header copies, not a copy {copy}");
    super::layout::mix(MAGIC, copy as u64)
}

impl SegmentHeader {
    /// Writes copy 0 or 1 into its block.
    pub fn encode(&self, copy: usize, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK, "a header copy fills one block");
        block.fill(0);
        put_u64(block, 0, MAGIC);
        put_u32(block, 8, FORMAT);
        put_u32(block, 12, BLOCK as u32);
        put_u64(block, 16, self.bytes);
        put_u128(block, 24, self.store_uuid);
        put_u32(block, 40, self.stream);
        put_u32(block, 44, FEATURES);
        put_u64(block, 56, self.segment);
        put_u64(block, 64, self.boot_epoch);
        put_u64(block, 72, self.first_seq);
        put_u64(block, 80, self.oldest);
        put_u32(block, 88, self.frames_in_flight);
        if let Some(end) = self.boot_start {
            put_u32(block, 92, FLAG_BOOT_START);
            put_u64(block, 96, end.segment);
            put_u64(block, 104, end.offset);
            put_u64(block, 112, end.seq);
            put_u32(block, 120, end.link);
        }
        let crc = checksum(place_seed(copy), &block[..CRC_AT]);
        put_u32(block, CRC_AT, crc);
    }
}

/// Reads copy 0 or 1 of a header. Never panics, whatever the bytes.
pub fn parse_segment_header(copy: usize, block: &[u8]) -> Result<SegmentHeader, HeaderFault> {
    if block.len() != BLOCK || u64_at(block, 0) != MAGIC {
        return Err(HeaderFault::Absent);
    }
    if u32_at(block, CRC_AT) != checksum(place_seed(copy), &block[..CRC_AT]) {
        return Err(HeaderFault::Absent);
    }
    check_format(block)?;
    let boot_start = (u32_at(block, 92) & FLAG_BOOT_START != 0).then(|| StreamEnd {
        segment: u64_at(block, 96),
        offset: u64_at(block, 104),
        seq: u64_at(block, 112),
        link: u32_at(block, 120),
    });
    Ok(SegmentHeader {
        bytes: u64_at(block, 16),
        store_uuid: u128_at(block, 24),
        stream: u32_at(block, 40),
        segment: u64_at(block, 56),
        boot_epoch: u64_at(block, 64),
        first_seq: u64_at(block, 72),
        oldest: u64_at(block, 80),
        frames_in_flight: u32_at(block, 88),
        boot_start,
    })
}

fn check_format(block: &[u8]) -> Result<(), HeaderFault> {
    let (format, block_bytes) = (u32_at(block, 8), u32_at(block, 12));
    let (features, key) = (u32_at(block, 44), u64_at(block, 48));
    if format != FORMAT {
        return Err(HeaderFault::Unknown(format!("format version {format}")));
    }
    if block_bytes != BLOCK as u32 {
        return Err(HeaderFault::Unknown(format!("block size {block_bytes}")));
    }
    if features & !FEATURES != 0 {
        return Err(HeaderFault::Unknown(format!("feature bits {features:#x}")));
    }
    if key != 0 {
        return Err(HeaderFault::Unknown(format!("encryption key id {key}")));
    }
    Ok(())
}

/// Both copies of a header in one write.
pub(super) struct HeaderRecipe(pub SegmentHeader);

impl Recipe for HeaderRecipe {
    fn len(&self) -> usize {
        2 * BLOCK
    }

    fn encode_into(&self, buffer: &mut [u8]) {
        let (first, second) = buffer.split_at_mut(BLOCK);
        self.0.encode(0, first);
        self.0.encode(1, second);
    }
}

/// A segment file of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// The id in its name.
    pub id: u64,
    /// The file.
    pub path: DiskPath,
    /// Its length in bytes.
    pub bytes: u64,
}

/// The file of a segment.
pub fn segment_path(dir: &DiskPath, id: u64) -> DiskPath {
    format!("{dir}/{id:016x}.seg").into()
}

/// The id in a file's name; `None` if the file is no segment.
pub fn segment_id(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let plain = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let id = plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()?;
    (id > 0).then_some(id)
}

/// The segments among a directory's entries, ascending.
pub(super) fn segment_files(dir: &DiskPath, listed: &[DirEntry]) -> Vec<SegmentFile> {
    let files = listed.iter().filter(|entry| !entry.is_dir).filter_map(|entry| {
        let id = segment_id(&entry.name)?;
        Some(SegmentFile { id, path: segment_path(dir, id), bytes: entry.len })
    });
    let mut files: Vec<_> = files.collect();
    files.sort_by_key(|file| file.id);
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            bytes: 1 << 20,
            store_uuid: 0x0123_4567_89ab_cdef_0011_2233_4455_6677,
            stream: 3,
            segment: 9,
            boot_epoch: 4,
            first_seq: 77,
            oldest: 5,
            frames_in_flight: 4,
            boot_start: Some(StreamEnd { segment: 8, offset: 12_288, seq: 73, link: 0xabcd }),
        }
    }

    #[test]
    fn a_header_copy_is_valid_in_its_own_place_only() {
        let mut block = vec![1; BLOCK];
        for copy in 0..2 {
            header().encode(copy, &mut block);
            assert_eq!(parse_segment_header(copy, &block), Ok(header()));
            assert_eq!(parse_segment_header(1 - copy, &block), Err(HeaderFault::Absent));
        }
    }

    #[test]
    fn every_flipped_byte_of_a_header_is_noticed() {
        let mut block = vec![0; BLOCK];
        header().encode(0, &mut block);
        for at in 0..BLOCK {
            block[at] ^= 0x40;
            assert_eq!(parse_segment_header(0, &block), Err(HeaderFault::Absent), "byte {at}");
            block[at] ^= 0x40;
        }
    }

    #[test]
    fn only_names_we_write_are_segments() {
        let dir: DiskPath = "wal/00000001".into();
        assert_eq!(&*segment_path(&dir, 0x2a), "wal/00000001/000000000000002a.seg");
        assert_eq!(segment_id("000000000000002a.seg"), Some(0x2a));
        for name in ["000000000000002A.seg", "2a.seg", "0000000000000000.seg", "x", "+00000000000002a.seg"] {
            assert_eq!(segment_id(name), None, "{name}");
        }
    }
}
