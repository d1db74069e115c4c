//! A dump as a file: a head that says what it is, then the state machine's own bytes.
//!
//! ```text
//!  0  magic "FLOEDUMP"
//!  8  version u32 = 1 | head_len u32
//! 16  shard u64
//! 24  mark.term u64 | mark.index u64
//! 40  body_len u64
//! 48  checksum u64: CRC-64/NVME over the whole file with these eight bytes as zeros
//! 56  descriptor_len u32 | membership_len u32
//! 64  descriptor | membership | zeros up to head_len, a multiple of 8
//! ..  body: what the state machine's `Dump` wrote
//! ```
//! The same bytes travel to a follower and become its file: neither replica nor generation is in them.

use crate::cursor::Cursor;
use crate::descriptor::Descriptor;
use crate::ids::ShardId;
use crate::state_machine::Dump;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use floe_raft::{Mark, Membership, Planted, is_planted};
use std::fmt;

const MAGIC: &[u8; 8] = b"FLOEDUMP";
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 64;
const BODY_LEN_AT: usize = 40;
const CHECKSUM_AT: usize = 48;
const _: () = assert!(FIXED_BYTES.is_multiple_of(8) && CHECKSUM_AT + 8 <= FIXED_BYTES);

/// What a dump says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpHead {
    /// Whose state it is.
    pub shard: ShardId,
    /// Where the state stands: everything up to this mark is in it.
    pub mark: Mark,
    /// The descriptor in force there.
    pub descriptor: Descriptor,
    /// The membership in force there.
    pub membership: Membership,
}

/// Why bytes are not a dump. In every case nothing of them may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DumpError {
    /// It doesn't begin as a dump does.
    NotADump,
    /// Written by another version.
    Version(u32),
    /// Its length isn't what its head says; bytes there and bytes said.
    Length {
        /// Bytes that are there.
        is: u64,
        /// Bytes that the head asks for.
        should: u64,
    },
    /// Some byte is not what was written.
    Checksum {
        /// Checksum of what is there.
        is: u64,
        /// Checksum that was written.
        should: u64,
    },
    /// The checksum is right but the head makes no sense: a bug of its writer.
    Head,
}

impl fmt::Display for DumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotADump => write!(f, "not a dump"),
            Self::Version(version) => write!(f, "a dump of version {version}, not known here"),
            Self::Length { is, should } => write!(f, "{is} bytes instead of {should}"),
            Self::Checksum { is, should } => write!(f, "checksum {is:016x} instead of {should:016x}"),
            Self::Head => write!(f, "the head of the dump makes no sense"),
        }
    }
}

impl std::error::Error for DumpError {}

/// A whole dump file, to be encoded in the background.
pub(crate) struct DumpFile {
    head: Vec<u8>,
    body: Box<dyn Dump>,
}

impl DumpFile {
    pub(crate) fn new(head: &DumpHead, body: Box<dyn Dump>) -> Self {
        Self { head: encode_head(head), body }
    }
}

impl Dump for DumpFile {
    fn prepare(&mut self) -> Result<(), String> {
        self.body.prepare()
    }

    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    fn encode_into(&self, buffer: &mut [u8]) {
        assert_eq!(buffer.len(), self.len(), "a dump is encoded into exactly its length");
        let (head, body) = buffer.split_at_mut(self.head.len());
        head.copy_from_slice(&self.head);
        head[BODY_LEN_AT..BODY_LEN_AT + 8].copy_from_slice(&(body.len() as u64).to_le_bytes());
        self.body.encode_into(body);
        let mut sum = FileSum::default();
        sum.add(buffer);
        buffer[CHECKSUM_AT..CHECKSUM_AT + 8].copy_from_slice(&sum.value().to_le_bytes());
    }
}

/// A dump that came from elsewhere, byte for byte.
pub(crate) struct RawDump(pub(crate) Bytes);

impl Dump for RawDump {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn encode_into(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

/// The file of a dump whose body is at hand.
pub fn encode_dump(head: &DumpHead, body: &Bytes) -> Vec<u8> {
    let file = DumpFile::new(head, Box::new(RawDump(body.clone())));
    let mut bytes = vec![0; file.len()];
    file.encode_into(&mut bytes);
    bytes
}

/// All of the head but the body's length and the checksum.
fn encode_head(head: &DumpHead) -> Vec<u8> {
    let descriptor = head.descriptor.encode();
    let membership = head.membership.encode(b"");
    let head_len = (FIXED_BYTES + descriptor.len() + membership.len()).next_multiple_of(8);
    let mut out = Vec::with_capacity(head_len);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(head_len as u32).to_le_bytes());
    for number in [head.shard.0, head.mark.term, head.mark.index, 0, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&(descriptor.len() as u32).to_le_bytes());
    out.extend_from_slice(&(membership.len() as u32).to_le_bytes());
    assert_eq!(out.len(), FIXED_BYTES, "the fixed part of a dump's head");
    out.extend_from_slice(&descriptor);
    out.extend_from_slice(&membership);
    out.resize(head_len, 0);
    out
}

/// Checks every byte of a dump and takes it apart without copying its body. Needs the whole file;
/// reads it once.
///
/// # Errors
/// See [`DumpError`]: anything but exactly what was written is refused.
pub fn open_dump(bytes: &Bytes) -> Result<(DumpHead, Bytes), DumpError> {
    let mut sum = FileSum::default();
    sum.add(bytes);
    open_summed(bytes, &sum)
}

/// [`open_dump`] of a file that was summed up as it came in: O(1).
pub(crate) fn open_summed(bytes: &Bytes, sum: &FileSum) -> Result<(DumpHead, Bytes), DumpError> {
    assert_eq!(sum.len, bytes.len(), "the whole file was summed up");
    let mut cursor = Cursor::new(bytes);
    if cursor.array::<8>().as_ref() != Some(MAGIC) || bytes.len() < FIXED_BYTES {
        return Err(DumpError::NotADump);
    }
    let mut u32_ = || cursor.u32().ok_or(DumpError::NotADump);
    let (version, head_len) = (u32_()?, u32_()? as usize);
    if version != VERSION {
        return Err(DumpError::Version(version));
    }
    let mut u64_ = || cursor.u64().ok_or(DumpError::NotADump);
    let shard = ShardId(u64_()?);
    let mark = Mark::new(u64_()?, u64_()?);
    let (body_len, checksum) = (u64_()?, u64_()?);
    let should = body_len.saturating_add(head_len as u64);
    if bytes.len() as u64 != should || head_len < FIXED_BYTES {
        return Err(DumpError::Length { is: bytes.len() as u64, should });
    }
    let is = sum.value();
    if is != checksum && !is_planted(Planted::DumpNotChecked) {
        return Err(DumpError::Checksum { is, should: checksum });
    }
    let parts = read_parts(&mut cursor).ok_or(DumpError::Head)?;
    let descriptor = Descriptor::decode(parts.0).map_err(|_| DumpError::Head)?;
    let membership = decode_membership(parts.1).ok_or(DumpError::Head)?;
    if descriptor.shard != shard {
        return Err(DumpError::Head);
    }
    Ok((DumpHead { shard, mark, descriptor, membership }, bytes.slice(head_len..)))
}

/// The encoded descriptor and membership.
fn read_parts<'a>(cursor: &mut Cursor<'a>) -> Option<(&'a [u8], &'a [u8])> {
    let (descriptor, membership) = (cursor.len32()?, cursor.len32()?);
    Some((cursor.take(descriptor)?, cursor.take(membership)?))
}

/// The checksum of a dump file, part by part from its begin.
pub(crate) struct FileSum {
    digest: Digest,
    len: usize,
}

impl Default for FileSum {
    fn default() -> Self {
        Self { digest: Digest::new(CrcAlgorithm::Crc64Nvme), len: 0 }
    }
}

impl FileSum {
    /// The next part, of any length.
    pub(crate) fn add(&mut self, part: &[u8]) {
        let before = CHECKSUM_AT.saturating_sub(self.len).min(part.len());
        let own = (CHECKSUM_AT + 8).saturating_sub(self.len + before).min(part.len() - before);
        self.digest.update(&part[..before]);
        self.digest.update(&[0; 8][..own]);
        self.digest.update(&part[before + own..]);
        self.len += part.len();
    }

    fn value(&self) -> u64 {
        self.digest.finalize()
    }
}

/// A membership as in an entry ([`Membership::encode`]), with nothing after it.
fn decode_membership(bytes: &[u8]) -> Option<Membership> {
    let (membership, rest) = Membership::decode(&Bytes::copy_from_slice(bytes))?;
    rest.is_empty().then_some(membership)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard_map::pre_split;
    use crate::{MemoryStore, NodeId, StateMachine};

    fn sample() -> (DumpHead, Bytes) {
        let descriptor = pre_split(&[NodeId(1), NodeId(2)], 1, 2).remove(0);
        let membership = descriptor.membership();
        let head = DumpHead { shard: descriptor.shard, mark: Mark::new(3, 17), descriptor, membership };
        let file = DumpFile::new(&head, MemoryStore::new().dump());
        let mut bytes = vec![0; file.len()];
        file.encode_into(&mut bytes);
        (head, Bytes::from(bytes))
    }

    #[test]
    fn what_is_saved_comes_back() {
        let (head, bytes) = sample();
        let (opened, body) = open_dump(&bytes).unwrap();
        assert_eq!(opened, head);
        MemoryStore::new().restore(&body).unwrap();
    }

    #[test]
    fn parts_of_any_length_sum_up_to_the_whole() {
        let (_, bytes) = sample();
        for first in 0..bytes.len() {
            for second in [first, first + 3, first + 9].map(|at| at.min(bytes.len())) {
                let mut sum = FileSum::default();
                for part in [0..first, first..second, second..bytes.len()].map(|part| bytes.slice(part)) {
                    sum.add(&part);
                }
                assert!(open_summed(&bytes, &sum).is_ok(), "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_a_typed_error() {
        let (_, bytes) = sample();
        for at in 0..bytes.len() {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x10;
            assert!(open_dump(&Bytes::from(damaged)).is_err(), "byte {at} flipped");
            assert!(open_dump(&bytes.slice(..at)).is_err(), "cut at {at}");
        }
        let mut damaged = bytes.to_vec();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(matches!(open_dump(&Bytes::from(damaged)), Err(DumpError::Checksum { .. })));
        assert_eq!(open_dump(&Bytes::new()), Err(DumpError::NotADump));
    }
}
