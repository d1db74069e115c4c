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
use crc_fast::{CrcAlgorithm, Digest};
use floe_shard::{Dump, KEY_BYTES_MAX, StoredKey};

const MAGIC: &[u8; 8] = b"FLOELSM1";
const HEAD_BYTES: usize = 40;
const CRC_AT: usize = 32;
/// A row's bytes besides key and value.
const ROW_HEAD_BYTES: usize = 16;
/// Rows are collected in pieces of so many bytes; one that is longer is a piece of its own.
const PIECE_BYTES: usize = 1 << 20;
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
    head(TREE, hash, tree, &[])
}

fn head(kind: u32, hash: u64, number: u64, rows: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&hash.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    let crc = crc(&bytes, rows.iter().map(|rows| &rows[..]));
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

fn crc<'a>(head: &[u8], rows: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    digest.update(&head[..CRC_AT]);
    rows.into_iter().for_each(|rows| digest.update(rows));
    digest.finalize()
}

/// Takes a dump's bytes apart; `None` if they are not exactly what was written. Reads them once.
pub(super) fn open(bytes: &[u8]) -> Option<Image<'_>> {
    if bytes.len() < HEAD_BYTES || &bytes[..8] != MAGIC {
        return None;
    }
    let u64_at = |at: usize| bytes[at..at + 8].first_chunk().map(|chunk| u64::from_le_bytes(*chunk));
    let (hash, number) = (u64_at(16)?, u64_at(24)?);
    if u64_at(CRC_AT)? != crc(bytes, [&bytes[HEAD_BYTES..]]) {
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
        let (lens, after) = rest.split_first_chunk::<ROW_HEAD_BYTES>()?;
        let len_at = |at: usize| lens[at..].first_chunk().map(|len| u32::from_le_bytes(*len) as usize);
        let version = u64::from_le_bytes(*lens[8..].first_chunk()?);
        let (key, after) =
            after.split_at_checked(len_at(0)?).filter(|(key, _)| key.len() <= KEY_BYTES_MAX)?;
        let (value, after) = after.split_at_checked(len_at(4)?)?;
        *rest = after;
        Some(Self { key, version, value })
    }
}

/// All rows of a view. They are collected in pieces: nobody knows beforehand how many bytes they are, and one buffer that
/// grows would be copied again and again, and for a moment be there twice.
pub(super) struct WholeDump {
    view: Option<LsmView>,
    hash: u64,
    head: Vec<u8>,
    pieces: Vec<Vec<u8>>,
}

impl WholeDump {
    pub(super) fn new(view: LsmView, hash: u64) -> Self {
        Self { view: Some(view), hash, head: Vec::new(), pieces: Vec::new() }
    }

    /// Room for so many bytes more, in one piece.
    fn room(&mut self, len: usize) -> &mut Vec<u8> {
        let is_full = |last: &Vec<u8>| last.capacity() - last.len() < len;
        if self.pieces.last().is_none_or(is_full) {
            self.pieces.push(Vec::with_capacity(len.max(PIECE_BYTES)));
        }
        self.pieces.last_mut().expect("there is one by now")
    }
}

impl Dump for WholeDump {
    fn prepare(&mut self) -> Result<(), String> {
        let view = self.view.take().expect("prepared once");
        let mut count = 0_u64;
        view.visit((b"", None), false, &mut |key, found| {
            let piece = self.room(ROW_HEAD_BYTES + key.len() + found.value.len());
            piece.extend_from_slice(&(key.len() as u32).to_le_bytes());
            piece.extend_from_slice(&(found.value.len() as u32).to_le_bytes());
            piece.extend_from_slice(&found.version.to_le_bytes());
            piece.extend_from_slice(key);
            piece.extend_from_slice(&found.value);
            count += 1;
            true
        })?;
        self.head = head(ROWS, self.hash, count, &self.pieces);
        Ok(())
    }

    fn len(&self) -> usize {
        self.head.len() + self.pieces.iter().map(Vec::len).sum::<usize>()
    }

    fn encode_into(&self, buffer: &mut [u8]) {
        let mut rest = buffer;
        for piece in std::iter::once(&self.head).chain(&self.pieces) {
            let (now, later) = rest.split_at_mut(piece.len());
            now.copy_from_slice(piece);
            rest = later;
        }
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
        let mut whole_bytes = vec![0; whole.len()];
        whole.encode_into(&mut whole_bytes);
        for bytes in [whole_bytes, of_tree(77, 5)] {
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
    #[test]
    fn rows_of_any_length_come_back_from_pieces_that_never_grow() {
        let lens = [1, 600_000, 600_000, 3 << 20, 0, PIECE_BYTES];
        let rows = lens.iter().zip(1..).map(|(&len, version)| {
            (StoredKey::new(format!("{version}").as_bytes()), value(version, &vec![version as u8; len]))
        });
        let mut active = Memtable::default();
        active.set_all(rows.collect());
        let mut whole = WholeDump::new(LsmView { active, sealed: Vec::new(), tables: None }, 77);
        whole.prepare().unwrap();
        assert!(whole.pieces.iter().all(|piece| piece.capacity() <= (3 << 20) + 100), "none grew");
        assert!(whole.pieces.len() > 3);
        let mut bytes = vec![0; whole.len()];
        whole.encode_into(&mut bytes);
        let Some(Content::Rows(rows)) = open(&bytes).map(|image| image.content) else { panic!() };
        let mut back = Vec::new();
        rows.visit(&mut |row| {
            assert!(row.value.iter().all(|&byte| u64::from(byte) == row.version));
            back.push(row.value.len());
            Ok(())
        })
        .unwrap();
        assert_eq!(back, lens);
    }
}
