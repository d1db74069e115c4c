//! What the durable store's dumps hold: either all rows, for a follower, or the name of a tree on this node.
//!
//! ```text
//!  0  magic "FLOELSM2"
//!  8  kind u32: 1 = rows, 2 = a tree | 0 u32
//! 16  state hash u64
//! 24  rows: 0 u64  | a tree: its number u64
//! 32  rows x { key_len u32, value_len u32, version u64, key, value }, keys ascending, to the end
//! ```
//! Whether they are the bytes that were written is said by the dump's file, which has a checksum.

use super::view::LsmView;
use bytes::Bytes;
use floe_shard::{Dump, KEY_BYTES_MAX, VALUE_BYTES_MAX, Versioned};
use std::io::{self, Write};

const MAGIC: &[u8; 8] = b"FLOELSM2";
const HEAD_BYTES: usize = 32;
/// A row's bytes besides key and value.
const ROW_HEAD_BYTES: usize = 16;
const ROWS: u32 = 1;
const TREE: u32 = 2;

/// A dump's bytes that name a tree.
pub(super) fn of_tree(hash: u64, tree: u64) -> [u8; HEAD_BYTES] {
    head(TREE, hash, tree)
}

fn head(kind: u32, hash: u64, number: u64) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&kind.to_le_bytes());
    bytes[16..24].copy_from_slice(&hash.to_le_bytes());
    bytes[24..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// State hash and number that a head of this kind holds; `None` if the bytes are none.
fn open(kind: u32, bytes: &[u8; HEAD_BYTES]) -> Option<(u64, u64)> {
    let u64_at = |at: usize| bytes[at..at + 8].first_chunk().map(|chunk| u64::from_le_bytes(*chunk));
    let (hash, number) = (u64_at(16)?, u64_at(24)?);
    (head(kind, hash, number) == *bytes).then_some((hash, number))
}

/// State hash and number of the tree that a dump's bytes name; `None` if they don't.
pub(super) fn tree_of(bytes: &[u8]) -> Option<(u64, u64)> {
    open(TREE, bytes.try_into().ok()?)
}

/// The rows of a whole dump as they come in, in parts that are cut anywhere.
#[derive(Default)]
pub(super) struct RowReader {
    hash: Option<u64>,
    /// What has come and isn't read.
    bytes: Vec<u8>,
    last_key: Option<Vec<u8>>,
}

impl RowReader {
    /// With room for so many bytes that wait; more is made when it is needed.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// Bytes that wait to be read.
    pub(super) fn waiting(&self) -> usize {
        self.bytes.len()
    }

    /// The next part.
    ///
    /// # Errors
    /// It isn't the begin of a whole dump.
    pub(super) fn add(&mut self, part: &[u8]) -> Result<(), String> {
        self.bytes.extend_from_slice(part);
        if self.hash.is_none()
            && let Some(head) = self.bytes.first_chunk()
        {
            let (hash, _) = open(ROWS, head).ok_or("what came holds no rows of the durable store")?;
            self.hash = Some(hash);
            self.bytes.drain(..HEAD_BYTES);
        }
        Ok(())
    }

    /// Shows each whole row that waits, in ascending order of the keys, to `see` (key, version, value). Ends with its
    /// first error.
    ///
    /// # Errors
    /// That of `see`, or a row makes no sense.
    pub(super) fn read(
        &mut self,
        mut see: impl FnMut(&[u8], u64, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.hash.is_none() {
            return Ok(());
        }
        let mut rest = &self.bytes[..];
        while let Some((key, version, value)) = split_row(&mut rest)? {
            let is_first = self.last_key.is_none();
            let last_key = self.last_key.get_or_insert_default();
            if !is_first && key <= &last_key[..] {
                return Err("the rows of a dump are not in order".into());
            }
            last_key.clear();
            last_key.extend_from_slice(key);
            see(key, version, value)?;
        }
        let read = self.bytes.len() - rest.len();
        self.bytes.drain(..read);
        Ok(())
    }

    /// The state's hash.
    ///
    /// # Errors
    /// It hasn't come.
    pub(super) fn hash(&self) -> Result<u64, String> {
        self.hash.ok_or_else(|| format!("what came are {} bytes, no dump of rows", self.bytes.len()))
    }

    /// All parts have come, and all rows were read.
    ///
    /// # Errors
    /// They end within a row.
    pub(super) fn finish(&self) -> Result<(), String> {
        let left = self.bytes.len();
        if left == 0 { Ok(()) } else { Err(format!("a dump's rows end {left} bytes into one")) }
    }
}

/// Key, version and value of a row.
type RawRow<'a> = (&'a [u8], u64, &'a [u8]);

/// The first row of these bytes, which are then those after it; `None` = there is no whole one.
fn split_row<'a>(rest: &mut &'a [u8]) -> Result<Option<RawRow<'a>>, String> {
    let Some((head, after)) = rest.split_first_chunk::<ROW_HEAD_BYTES>() else { return Ok(None) };
    let len_at = |at: usize| head[at..].first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
    let (key_len, value_len) = (len_at(0), len_at(4));
    if key_len > KEY_BYTES_MAX || value_len > VALUE_BYTES_MAX {
        return Err(format!("a row of a dump has a key of {key_len} bytes and a value of {value_len}"));
    }
    let Some((row, after)) = after.split_at_checked(key_len + value_len) else { return Ok(None) };
    let version = head[8..].first_chunk().map_or(0, |version| u64::from_le_bytes(*version));
    *rest = after;
    Ok(Some((&row[..key_len], version, &row[key_len..])))
}

/// All rows of a view.
pub(super) struct WholeDump {
    view: LsmView,
    hash: u64,
}

impl WholeDump {
    pub(super) fn new(view: LsmView, hash: u64) -> Self {
        Self { view, hash }
    }
}

impl Dump for WholeDump {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&head(ROWS, self.hash, 0))?;
        let mut written = Ok(());
        let read = self.view.visit((b"", None), false, &mut |key, found| {
            written = write_row(out, key, found);
            written.is_ok()
        });
        written.and(read.map_err(io::Error::other))
    }
}

fn write_row(out: &mut dyn Write, key: &Bytes, row: &Versioned) -> io::Result<()> {
    out.write_all(&(key.len() as u32).to_le_bytes())?;
    out.write_all(&(row.value.len() as u32).to_le_bytes())?;
    out.write_all(&row.version.to_le_bytes())?;
    out.write_all(key)?;
    out.write_all(&row.value)
}

#[cfg(test)]
mod tests {
    use super::super::memtable::{Memtable, value};
    use super::*;
    use floe_shard::StoredKey;

    fn whole(rows: Vec<(StoredKey, super::super::memtable::Entry)>) -> Box<WholeDump> {
        let mut active = Memtable::default();
        active.set_all(rows);
        Box::new(WholeDump::new(LsmView { active, sealed: Vec::new(), tables: None }, 77))
    }

    fn sample() -> Vec<u8> {
        let rows = [("", value(2, b"no key")), ("a", value(3, b"one")), ("b", value(4, b"")), ("c", None)];
        let rows = rows.map(|(key, entry)| (StoredKey::new(key.as_bytes()), entry));
        let mut bytes = Vec::new();
        whole(rows.into()).write(&mut bytes).unwrap();
        bytes
    }

    type Row = (Vec<u8>, u64, Vec<u8>);

    /// State hash and rows.
    fn read<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Result<(u64, Vec<Row>), String> {
        let (mut reader, mut rows) = (RowReader::default(), Vec::new());
        for part in parts {
            reader.add(part)?;
            reader.read(|key, version, value| {
                rows.push((key.to_vec(), version, value.to_vec()));
                Ok(())
            })?;
        }
        reader.finish()?;
        reader.hash().map(|hash| (hash, rows))
    }

    #[test]
    fn rows_come_back_whatever_the_cuts() {
        let bytes = sample();
        let row = |key: &str, version, value: &str| (key.into(), version, value.into());
        let rows = vec![row("", 2, "no key"), row("a", 3, "one"), row("b", 4, "")];
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let parts = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                assert_eq!(read(parts), Ok((77, rows.clone())), "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn what_ends_too_early_or_is_something_else_is_refused() {
        let bytes = sample();
        let row_ends = |at: &usize| [32, 54, 74, bytes.len()].contains(at);
        for at in (0..bytes.len()).filter(|at| !row_ends(at)) {
            assert!(read([&bytes[..at]]).is_err(), "cut at {at}");
        }
        assert!(read([&of_tree(77, 5)[..]]).is_err(), "a tree");
        let swapped = [&bytes[..32], &bytes[54..74], &bytes[32..54], &bytes[74..]].concat();
        assert!(read([&swapped[..]]).is_err(), "not in order");
        let mut endless = bytes[..40].to_vec();
        endless[36..40].fill(0xFF);
        endless.extend_from_slice(&[0; 8]);
        assert!(read([&endless[..]]).unwrap_err().contains("4294967295"), "one row without end");
    }

    #[test]
    fn a_tree_is_named_by_exactly_its_bytes() {
        let bytes = of_tree(77, 5);
        assert_eq!(tree_of(&bytes), Some((77, 5)));
        assert_eq!(tree_of(&sample()[..32]), None);
        for at in 0..16 {
            let mut damaged = bytes;
            damaged[at] ^= 0x20;
            assert_eq!(tree_of(&damaged), None, "byte {at} flipped");
            assert_eq!(tree_of(&bytes[..at]), None, "cut at {at}");
        }
    }

    /// Takes a few bytes, and counts how often it is asked to.
    struct Narrow {
        room: usize,
        asked: usize,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.asked += 1;
            self.room = self.room.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_row_is_written_before_the_next_one_is_read() {
        let key = |at: u64| (StoredKey::new(&at.to_be_bytes()), value(at, &[7; 100]));
        let mut out = Narrow { room: 1000, asked: 0 };
        let error = whole((0..10_000).map(key).collect()).write(&mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(out.asked < 50, "{} pieces were handed over, of which 1,000 bytes found room", out.asked);
    }
}
