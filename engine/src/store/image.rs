//! What the durable store's dumps hold: either all rows, for a follower, or the name of a tree on this node.
//!
//! ```text
//!  0  magic "FLOELSM1"
//!  8  kind u32: 1 = rows, 2 = a tree | 0 u32
//! 16  state hash u64
//! 24  rows: how many u64            | a tree: its number u64
//! 32  CRC-64/NVME over all before and all after
//! 40  rows x { key_len u32, value_len u32, version u64, key, value }, keys ascending
//! ```

use super::memtable::{Memtable, value};
use super::view::LsmView;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use floe_shard::{Dump, KEY_BYTES_MAX, StoredKey};

const MAGIC: &[u8; 8] = b"FLOELSM1";
const HEAD_BYTES: usize = 40;
const CRC_AT: usize = 32;
const ROWS: u32 = 1;
const TREE: u32 = 2;

/// A dump's content, taken apart.
pub(super) struct Image<'a> {
    pub(super) hash: u64,
    pub(super) content: Content<'a>,
}

pub(super) enum Content<'a> {
    Rows(DumpedRows<'a>),
    Tree(u64),
}

/// The state hash that a dump's bytes claim, nothing checked.
pub(super) fn claimed_hash(bytes: &[u8]) -> u64 {
    bytes.get(16..24).and_then(<[u8]>::first_chunk).map_or(0, |hash| u64::from_le_bytes(*hash))
}

/// A dump's bytes that name a tree.
pub(super) fn of_tree(hash: u64, tree: u64) -> Vec<u8> {
    finish(head(TREE, hash, tree))
}

fn head(kind: u32, hash: u64, number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    for number in [hash, number, 0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn finish(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc(&bytes);
    bytes[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn crc(bytes: &[u8]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(&bytes[..CRC_AT]);
    digest.update(&bytes[HEAD_BYTES..]);
    digest.finalize()
}

/// Takes a dump's bytes apart; `None` if they are not exactly what was written. Reads them once.
pub(super) fn open(bytes: &[u8]) -> Option<Image<'_>> {
    if bytes.len() < HEAD_BYTES || &bytes[..8] != MAGIC {
        return None;
    }
    let u64_at = |at: usize| bytes[at..at + 8].first_chunk().map(|chunk| u64::from_le_bytes(*chunk));
    let (hash, number) = (u64_at(16)?, u64_at(24)?);
    if u64_at(CRC_AT)? != crc(bytes) {
        return None;
    }
    let content = match u32::from_le_bytes(*bytes[8..].first_chunk()?) {
        ROWS => Content::Rows(DumpedRows { count: number, bytes: &bytes[HEAD_BYTES..] }),
        TREE if bytes.len() == HEAD_BYTES => Content::Tree(number),
        _ => return None,
    };
    Some(Image { hash, content })
}

/// All rows of a dump.
pub(super) struct DumpedRows<'a> {
    count: u64,
    bytes: &'a [u8],
}

/// One of them.
pub(super) struct DumpedRow<'a> {
    pub(super) key: &'a [u8],
    pub(super) version: u64,
    pub(super) value: &'a [u8],
}

impl<'a> DumpedRows<'a> {
    /// Shows each row; keys ascend. Ends with the first error of `see`.
    ///
    /// # Errors
    /// That of `see`, or they are no rows: a writer's bug, for the bytes were what was written.
    pub(super) fn visit(
        self,
        see: &mut dyn FnMut(DumpedRow<'a>) -> Result<(), String>,
    ) -> Result<(), String> {
        let no_row = || "a row of the dump makes no sense".to_owned();
        let (mut rest, mut last) = (self.bytes, &b""[..]);
        for _ in 0..self.count {
            let row = DumpedRow::split_off(&mut rest).filter(|row| row.key > last).ok_or_else(no_row)?;
            last = row.key;
            see(row)?;
        }
        if rest.is_empty() { Ok(()) } else { Err(no_row()) }
    }

    pub(super) fn into_memtable(self) -> Result<Memtable, String> {
        let mut rows = Vec::new();
        self.visit(&mut |row| {
            rows.push((StoredKey::new(row.key), value(row.version, row.value)));
            Ok(())
        })?;
        let mut memtable = Memtable::default();
        memtable.set_all(rows);
        Ok(memtable)
    }
}

impl<'a> DumpedRow<'a> {
    fn split_off(rest: &mut &'a [u8]) -> Option<Self> {
        let (lens, after) = rest.split_first_chunk::<16>()?;
        let len_at = |at: usize| lens[at..].first_chunk().map(|len| u32::from_le_bytes(*len) as usize);
        let version = u64::from_le_bytes(*lens[8..].first_chunk()?);
        let (key, after) =
            after.split_at_checked(len_at(0)?).filter(|(key, _)| key.len() <= KEY_BYTES_MAX)?;
        let (value, after) = after.split_at_checked(len_at(4)?)?;
        *rest = after;
        Some(Self { key, version, value })
    }
}

/// All rows of a view.
pub(super) struct WholeDump {
    view: Option<LsmView>,
    hash: u64,
    bytes: Bytes,
}

impl WholeDump {
    pub(super) fn new(view: LsmView, hash: u64) -> Self {
        Self { view: Some(view), hash, bytes: Bytes::new() }
    }
}

impl Dump for WholeDump {
    /// How long it is isn't known before all of it was read.
    fn prepare(&mut self) -> Result<(), String> {
        let view = self.view.take().expect("prepared once");
        let (mut bytes, mut count) = (head(ROWS, self.hash, 0), 0_u64);
        view.visit((b"", None), false, &mut |key, found| {
            bytes.extend_from_slice(&(key.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&(found.value.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&found.version.to_le_bytes());
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(&found.value);
            count += 1;
            true
        })?;
        bytes[24..32].copy_from_slice(&count.to_le_bytes());
        self.bytes = finish(bytes).into();
        Ok(())
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn encode_into(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_of_a_dump_is_refused() {
        let mut active = Memtable::default();
        let rows = [("a", value(3, b"one")), ("b", value(4, b"")), ("c", None)];
        active.set_all(rows.map(|(key, entry)| (StoredKey::new(key.as_bytes()), entry)).into());
        let mut whole = WholeDump::new(LsmView { active, sealed: Vec::new(), tables: None }, 77);
        whole.prepare().unwrap();
        for bytes in [whole.bytes.to_vec(), of_tree(77, 5)] {
            let image = open(&bytes).unwrap();
            match image.content {
                Content::Rows(rows) => {
                    assert_eq!((image.hash, rows.into_memtable().unwrap().rows().len()), (77, 2));
                }
                Content::Tree(number) => assert_eq!((image.hash, number), (77, 5)),
            }
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x20;
                assert!(open(&damaged).is_none(), "byte {at} flipped");
                assert!(open(&bytes[..at]).is_none(), "cut at {at}");
            }
        }
    }
}
