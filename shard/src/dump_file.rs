//! A dump as a file: a head that says what it is, the state machine's own bytes, and a foot that tells whether all of them
//! are there. So it can be written, sent and taken apart piece by piece, however large it is.
//!
//! ```text
//!  0  magic "FLOEDUMP"
//!  8  version u32 = 2 | head_len u32
//! 16  shard u64
//! 24  mark.term u64 | mark.index u64
//! 40  descriptor_len u32 | membership_len u32
//! 48  descriptor | membership | zeros up to head_len, a multiple of 8
//! ..  body: what the state machine's `Dump` wrote
//! end-8  checksum u64: CRC-64/NVME over all before it
//! ```
//! The same bytes travel to a follower and may become its file: neither replica nor generation is in them.

use crate::cursor::Cursor;
use crate::descriptor::Descriptor;
use crate::ids::ShardId;
use crate::state_machine::Dump;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use floe_raft::{Mark, Membership, Planted, is_planted};
use std::fmt;
use std::io::{self, Write};

const MAGIC: &[u8; 8] = b"FLOEDUMP";
const VERSION: u32 = 2;
const FIXED_BYTES: usize = 48;
const FOOT_BYTES: usize = 8;
/// More than any descriptor and membership take: two keys and some tens of replicas.
const HEAD_BYTES_MAX: usize = 1 << 20;

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
    /// It ends within its head, or before its checksum.
    Length {
        /// Bytes that are there.
        is: u64,
    },
    /// Some byte is not what was written, or some are missing.
    Checksum {
        /// Checksum of what is there.
        is: u64,
        /// Checksum that was written.
        should: u64,
    },
    /// The head makes no sense.
    Head,
}

impl fmt::Display for DumpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotADump => write!(f, "not a dump"),
            Self::Version(version) => write!(f, "a dump of version {version}, not known here"),
            Self::Length { is } => write!(f, "{is} bytes are too few for a dump"),
            Self::Checksum { is, should } => write!(f, "checksum {is:016x} instead of {should:016x}"),
            Self::Head => write!(f, "the head of the dump makes no sense"),
        }
    }
}

impl std::error::Error for DumpError {}

/// A whole dump file, to be written in the background.
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
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        let mut summed = Summed { out, digest: new_digest() };
        summed.write_all(&self.head)?;
        self.body.write(&mut summed)?;
        let sum = summed.digest.finalize();
        out.write_all(&sum.to_le_bytes())
    }
}

/// Sums up what is written through it.
struct Summed<'a> {
    out: &'a mut dyn Write,
    digest: Digest,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn new_digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc64Nvme)
}

/// The file of a dump whose body is at hand.
pub fn encode_dump(head: &DumpHead, body: &Bytes) -> Vec<u8> {
    let file = Box::new(DumpFile::new(head, Box::new(body.clone())));
    let mut bytes = Vec::new();
    file.write(&mut bytes).expect("memory takes what it is given");
    bytes
}

fn encode_head(head: &DumpHead) -> Vec<u8> {
    let descriptor = head.descriptor.encode();
    let membership = head.membership.encode(b"");
    let head_len = (FIXED_BYTES + descriptor.len() + membership.len()).next_multiple_of(8);
    assert!(head_len <= HEAD_BYTES_MAX, "a dump's head of {head_len} bytes");
    let mut out = Vec::with_capacity(head_len);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(head_len as u32).to_le_bytes());
    for number in [head.shard.0, head.mark.term, head.mark.index] {
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
    let mut reader = DumpReader::new(bytes.len() as u64);
    let body = reader.take(bytes)?;
    Ok((reader.finish()?.clone(), body))
}

/// Takes a dump file of a known length apart as it comes in, in parts that are cut anywhere. Of the head at most
/// [`HEAD_BYTES_MAX`] lie in memory.
pub(crate) struct DumpReader {
    len: u64,
    read: u64,
    /// Of the head, until it is whole.
    head_bytes: Vec<u8>,
    head: Option<DumpHead>,
    head_len: usize,
    digest: Digest,
    foot: Vec<u8>,
}

impl DumpReader {
    pub(crate) fn new(len: u64) -> Self {
        let (head_bytes, foot) = (Vec::new(), Vec::new());
        Self { len, read: 0, head_bytes, head: None, head_len: 0, digest: new_digest(), foot }
    }

    /// Bytes taken in so far.
    pub(crate) fn read(&self) -> u64 {
        self.read
    }

    /// What the dump says about itself, once that has come. Whether it is true is told by [`DumpReader::finish`] alone.
    pub(crate) fn head(&self) -> Option<&DumpHead> {
        self.head.as_ref()
    }

    /// The next part; answers what of the body it holds, as a slice of it.
    ///
    /// # Errors
    /// It can't be a dump.
    pub(crate) fn take(&mut self, part: &Bytes) -> Result<Bytes, DumpError> {
        let left = self.len.saturating_sub(FOOT_BYTES as u64).saturating_sub(self.read);
        let summed = part.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.digest.update(&part[..summed]);
        self.foot.extend_from_slice(&part[summed..]);
        self.read += part.len() as u64;
        let of_head = if self.head.is_none() { self.take_head(&part[..summed])? } else { 0 };
        Ok(part.slice(of_head..summed))
    }

    /// How much of this part belongs to the head.
    fn take_head(&mut self, part: &[u8]) -> Result<usize, DumpError> {
        let before = self.head_bytes.len();
        self.head_bytes.extend_from_slice(&part[..part.len().min(HEAD_BYTES_MAX - before)]);
        let Some(head_len) = head_len(&self.head_bytes)?.filter(|&len| len <= self.head_bytes.len()) else {
            return Ok(part.len());
        };
        self.head_bytes.truncate(head_len);
        self.head = Some(decode_head(&self.head_bytes).ok_or(DumpError::Head)?);
        self.head_len = head_len;
        self.head_bytes = Vec::new();
        Ok(head_len - before)
    }

    /// The body of a file of which all parts were taken in.
    pub(crate) fn body_of(&self, file: &Bytes) -> Bytes {
        file.slice(self.head_len..file.len() - FOOT_BYTES)
    }

    /// All parts were taken in: what they are, if they are exactly what was written.
    ///
    /// # Errors
    /// They aren't.
    pub(crate) fn finish(&self) -> Result<&DumpHead, DumpError> {
        let Some(should) = self.foot.first_chunk().filter(|_| self.foot.len() == FOOT_BYTES) else {
            return Err(DumpError::Length { is: self.read });
        };
        let head = self.head.as_ref().ok_or(DumpError::Length { is: self.read })?;
        let (is, should) = (self.digest.finalize(), u64::from_le_bytes(*should));
        if is != should && !is_planted(Planted::DumpNotChecked) {
            return Err(DumpError::Checksum { is, should });
        }
        Ok(head)
    }
}

/// Length of the head that begins so; `None` = its first bytes aren't there yet.
fn head_len(bytes: &[u8]) -> Result<Option<usize>, DumpError> {
    if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
        return Err(DumpError::NotADump);
    }
    let mut cursor = Cursor::new(bytes);
    let (Some(_), Some(version), Some(len)) = (cursor.take(MAGIC.len()), cursor.u32(), cursor.len32()) else {
        return Ok(None);
    };
    match (version, len) {
        (VERSION, FIXED_BYTES..=HEAD_BYTES_MAX) => Ok(Some(len)),
        (VERSION, _) => Err(DumpError::Head),
        _ => Err(DumpError::Version(version)),
    }
}

/// A whole head, whose first bytes are right.
fn decode_head(bytes: &[u8]) -> Option<DumpHead> {
    let mut cursor = Cursor::new(bytes);
    cursor.take(MAGIC.len() + 8)?;
    let shard = ShardId(cursor.u64()?);
    let mark = Mark::new(cursor.u64()?, cursor.u64()?);
    let (descriptor_len, membership_len) = (cursor.len32()?, cursor.len32()?);
    let descriptor = Descriptor::decode(cursor.take(descriptor_len)?).ok()?;
    let membership = decode_membership(cursor.take(membership_len)?)?;
    let pads = cursor.rest().len() < 8 && cursor.rest().iter().all(|&byte| byte == 0);
    (pads && descriptor.shard == shard).then_some(DumpHead { shard, mark, descriptor, membership })
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
        let mut bytes = Vec::new();
        Box::new(DumpFile::new(&head, MemoryStore::new().dump())).write(&mut bytes).unwrap();
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
    fn parts_of_any_length_come_to_the_whole() {
        let (head, bytes) = sample();
        let whole = open_dump(&bytes).unwrap().1;
        for first in 0..bytes.len() {
            for second in [first, first + 3, first + 9].map(|at| at.min(bytes.len())) {
                let mut reader = DumpReader::new(bytes.len() as u64);
                let parts = [0..first, first..second, second..bytes.len()].map(|part| bytes.slice(part));
                let body: Vec<u8> = parts.iter().flat_map(|part| reader.take(part).unwrap()).collect();
                assert_eq!((reader.read(), reader.head()), (bytes.len() as u64, Some(&head)));
                assert_eq!(reader.body_of(&bytes), whole);
                assert_eq!((reader.finish(), body), (Ok(&head), whole.to_vec()), "{first} {second}");
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
        let longer = Bytes::from([&bytes[..], &[0]].concat());
        assert!(matches!(open_dump(&longer), Err(DumpError::Checksum { .. })));
        assert_eq!(open_dump(&Bytes::new()), Err(DumpError::Length { is: 0 }));
        assert_eq!(open_dump(&bytes.slice(..50)), Err(DumpError::Length { is: 50 }));
        assert_eq!(open_dump(&Bytes::from_static(b"something else")), Err(DumpError::NotADump));
    }

    #[test]
    fn a_head_without_end_is_refused_when_it_begins() {
        let (_, bytes) = sample();
        let mut endless = bytes.to_vec();
        endless[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut reader = DumpReader::new(u64::MAX);
        assert_eq!(reader.take(&Bytes::from(endless).slice(..16)), Err(DumpError::Head));
    }
}
