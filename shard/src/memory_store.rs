//! The built-in state machine: an ordered map in memory (`row_tree.rs`), read by `memory_view.rs`.
//!
//! Its durable half are the dumps that the shard layer takes of it; between two dumps the Raft log is
//! what survives. Keys and values are copied once, out of the command, so that a small slice never
//! pins the big buffer that a command arrived in.
//!
//! ```text
//! body of a dump:
//!  0  magic "FLOEMEM2"
//!  8  rows u64
//! 16  rows x { key_len u32, value_len u32, version u64, key, value }, keys ascending
//! ```
//! Whether they are the bytes that were written is said by the dump's file, which has a checksum.
//!
//! Invariant: `hash` is the wrapping sum of the rows' hashes and `bytes` that of their sizes, so both cost
//! nothing to ask for; the sum doesn't depend on the order in which rows came.

use crate::archive::{CommandView, ConditionView, EffectView};
use crate::command::{check_limits, with_command};
use crate::cursor::Cursor;
use crate::descriptor::KeyRange;
use crate::memory_view::clip;
use crate::request::Query;
use crate::row_tree::{RowTree, Slot};
use crate::state_machine::{BadPayload, CommandResult, Dump, QueryResult, StateMachine, View};
use crate::stored_key::StoredKey;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use floe_raft::{Mark, Planted, is_planted};
use std::io::{self, Write};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"FLOEMEM2";
/// What a row costs in memory besides its bytes, roughly.
const ROW_OVERHEAD_BYTES: u64 = 128;

/// An ordered map of keys to versioned values.
#[derive(Default)]
pub struct MemoryStore {
    rows: RowTree<Slot>,
    /// Keys and values, without overhead.
    bytes: u64,
    hash: u64,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows in it.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    fn put(&mut self, key: &[u8], value: &[u8], version: u64) {
        let hash = row_hash(key, version, value);
        let slot = Slot { version, value: Bytes::copy_from_slice(value), hash };
        self.bytes += (key.len() + value.len()) as u64;
        self.hash = self.hash.wrapping_add(hash);
        if let Some(old) = self.rows.insert(StoredKey::new(key), slot) {
            self.forget(key.len(), &old);
        }
    }

    fn delete(&mut self, key: &[u8]) {
        if let Some(old) = self.rows.remove(&StoredKey::new(key)) {
            self.forget(key.len(), &old);
        }
    }

    fn delete_range(&mut self, start: &[u8], end: &[u8], range: &KeyRange) {
        let Some((low, high)) = clip(start, end, range) else { return };
        for (key, old) in self.rows.remove_range(&low, high.as_ref()) {
            self.forget(key.len(), &old);
        }
    }

    fn forget(&mut self, key_len: usize, slot: &Slot) {
        self.bytes -= (key_len + slot.value.len()) as u64;
        self.hash = self.hash.wrapping_sub(slot.hash);
    }

    fn holds(&self, condition: &ConditionView) -> bool {
        let slot = |key: &[u8]| self.rows.get(&StoredKey::new(key));
        match condition {
            ConditionView::Equals { key, value } => slot(key).is_some_and(|slot| slot.value == value.get()),
            ConditionView::Absent { key } => slot(key).is_none(),
            ConditionView::Version { key, version } => {
                slot(key).is_some_and(|slot| slot.version == version.to_native())
            }
        }
    }

    fn apply_command(&mut self, at: Mark, command: &CommandView, range: &KeyRange) -> CommandResult {
        if !is_within(command, range) {
            return CommandResult::OutOfRange;
        }
        if let Some(failed) = command.conditions.iter().position(|one| !self.holds(one)) {
            return CommandResult::ConditionFailed(failed as u32);
        }
        for effect in command.effects.iter() {
            match effect {
                EffectView::Put { key, value } => self.put(key, value, at.index),
                EffectView::Delete { key } => self.delete(key),
                EffectView::DeleteRange { start, end } => self.delete_range(start, end, range),
            }
        }
        CommandResult::Written
    }

    fn restore_rows(&mut self, dump: &[u8]) -> Option<()> {
        let mut cursor = Cursor::new(dump);
        if &cursor.array::<8>()? != MAGIC {
            return None;
        }
        let count = cursor.u64()?;
        for _ in 0..count {
            let (key, value) = (cursor.len32()?, cursor.len32()?);
            let version = cursor.u64()?;
            self.put(cursor.take(key)?, cursor.take(value)?, version);
        }
        (cursor.is_empty() && self.rows.len() as u64 == count).then_some(())
    }
}

impl StateMachine for MemoryStore {
    fn check(&self, payload: &[u8], range: &KeyRange) -> Result<(), BadPayload> {
        check_command(payload, range)
    }

    fn apply(&mut self, at: Mark, payload: &[u8], range: &KeyRange) -> CommandResult {
        with_command(payload, |command| self.apply_command(at, command, range))
            .unwrap_or(CommandResult::Malformed)
    }

    fn read(&self, query: &Query, range: &KeyRange) -> QueryResult {
        self.rows.read(query, range)
    }

    fn view(&self) -> Option<Arc<dyn View>> {
        Some(Arc::new(self.rows.clone()))
    }

    /// Shares the rows: what is put before the dump is written copies what it touches.
    fn dump(&self) -> Box<dyn Dump> {
        let mut rows = self.rows.clone();
        if is_planted(Planted::DumpLosesRow)
            && let Some((key, _)) = self.rows.last()
        {
            rows.remove(key);
        }
        Box::new(Picture(rows))
    }

    fn restore(&mut self, dump: &Bytes) -> Result<(), BadPayload> {
        *self = Self::default();
        if self.restore_rows(dump).is_none() {
            *self = Self::default();
            return Err(BadPayload::Malformed("not a dump of a memory store".to_owned()));
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.bytes + self.rows.len() as u64 * ROW_OVERHEAD_BYTES
    }

    fn state_hash(&self) -> u64 {
        self.hash
    }
}

/// The rows at one moment.
struct Picture(RowTree<Slot>);

impl Dump for Picture {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        out.write_all(&(self.0.len() as u64).to_le_bytes())?;
        let mut result = Ok(());
        self.0.visit(&StoredKey::new(b""), None, false, &mut |key, slot| {
            result = write_row(out, key, slot);
            result.is_ok()
        });
        result
    }
}

fn write_row(out: &mut dyn Write, key: &StoredKey, slot: &Slot) -> io::Result<()> {
    out.write_all(&(key.len() as u32).to_le_bytes())?;
    out.write_all(&(slot.value.len() as u32).to_le_bytes())?;
    out.write_all(&slot.version.to_le_bytes())?;
    let mut written = Ok(());
    key.write_to(|part| {
        if written.is_ok() {
            written = out.write_all(part);
        }
    });
    written?;
    out.write_all(&slot.value)
}

/// [`StateMachine::check`] of every machine whose commands are [`crate::WriteBatch`]es.
///
/// # Errors
/// As there.
pub fn check_command(payload: &[u8], range: &KeyRange) -> Result<(), BadPayload> {
    let checked = with_command(payload, |command| {
        check_limits(command)?;
        Ok(is_within(command, range))
    });
    match checked.and_then(|checked| checked) {
        Ok(true) => Ok(()),
        Ok(false) => Err(BadPayload::OutOfRange),
        Err(error) => Err(BadPayload::Malformed(error.to_string())),
    }
}

/// Whether everything that the command touches lies in the range.
pub fn is_within(command: &CommandView, range: &KeyRange) -> bool {
    let conditions = command.conditions.iter().all(|condition| match condition {
        ConditionView::Equals { key, .. }
        | ConditionView::Absent { key }
        | ConditionView::Version { key, .. } => range.contains(key),
    });
    let effects = command.effects.iter().all(|effect| match effect {
        EffectView::Put { key, .. } | EffectView::Delete { key } => range.contains(key),
        EffectView::DeleteRange { start, end } => {
            let ends_within = end.is_empty() || range.end.is_empty() || end.get() <= &range.end[..];
            range.contains(start) && ends_within
        }
    });
    conditions && effects
}

/// A bijective mix, so that the sum over rows has no structure that CRCs would leave in it.
fn mix(number: u64) -> u64 {
    let z = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn row_hash(key: &[u8], version: u64, value: &[u8]) -> u64 {
    let crc = |bytes| checksum(CrcAlgorithm::Crc64Nvme, bytes);
    mix(mix(crc(key).wrapping_add(mix(version.wrapping_add(1)))) ^ crc(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{COMMAND_HEAD_BYTES, WriteBatch, encode};
    use crate::request::Versioned;

    fn apply(store: &mut MemoryStore, index: u64, batch: &WriteBatch) -> CommandResult {
        let command = encode(batch, 1).unwrap();
        store.apply(Mark::new(1, index), &command[COMMAND_HEAD_BYTES..], &KeyRange::all())
    }

    fn put(store: &mut MemoryStore, index: u64, key: &'static str, value: &'static str) {
        let result = apply(store, index, WriteBatch::new().put(key, value));
        assert_eq!(result, CommandResult::Written);
    }

    fn keys(store: &MemoryStore, query: &Query, range: &KeyRange) -> (Vec<Bytes>, bool) {
        let QueryResult::Rows(rows, more) = store.read(query, range) else { panic!() };
        (rows.into_iter().map(|row| row.key).collect(), more)
    }

    fn scan(start: &'static str, end: &'static str, limit: u32, reverse: bool) -> Query {
        let (start, end) = (Bytes::from(start), Bytes::from(end));
        Query::Scan { start, end, limit, bytes_max: 1 << 20, reverse, view: None }
    }

    #[test]
    fn a_failed_condition_changes_nothing_and_is_named() {
        let mut store = MemoryStore::new();
        put(&mut store, 7, "a", "1");
        let before = store.state_hash();
        let mut fails = |batch: &mut WriteBatch| apply(&mut store, 8, batch.put("a", "2"));
        assert_eq!(fails(WriteBatch::new().if_absent("a")), CommandResult::ConditionFailed(0));
        assert_eq!(
            fails(WriteBatch::new().if_absent("b").if_equals("a", "2")),
            CommandResult::ConditionFailed(1)
        );
        assert_eq!(fails(WriteBatch::new().if_equals("b", "")), CommandResult::ConditionFailed(0));
        assert_eq!(fails(WriteBatch::new().if_version("a", 6)), CommandResult::ConditionFailed(0));
        assert_eq!(store.state_hash(), before);
        let mut holds = WriteBatch::new();
        holds.if_version("a", 7).if_equals("a", "1").if_absent("b").put("a", "2");
        assert_eq!(apply(&mut store, 9, &holds), CommandResult::Written);
        let expected = Versioned { version: 9, value: Bytes::from("2") };
        let read = store.read(&Query::Get { key: Bytes::from("a") }, &KeyRange::all());
        assert_eq!(read, QueryResult::Value(Some(expected)));
    }

    #[test]
    fn scans_keep_to_bounds_limits_and_the_range() {
        let mut store = MemoryStore::new();
        for (index, key) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
            put(&mut store, index as u64 + 1, key, "v");
        }
        let all = KeyRange::all();
        assert_eq!(keys(&store, &scan("b", "d", 9, false), &all), (vec!["b".into(), "c".into()], false));
        assert_eq!(keys(&store, &scan("", "", 2, true), &all), (vec!["e".into(), "d".into()], true));
        assert_eq!(keys(&store, &scan("d", "", 0, false), &all), (vec!["d".into(), "e".into()], false));
        assert_eq!(keys(&store, &scan("d", "b", 9, false), &all), (vec![], false));
        let narrow = KeyRange { start: Bytes::from("b"), end: Bytes::from("d") };
        assert_eq!(keys(&store, &scan("", "", 9, false), &narrow), (vec!["b".into(), "c".into()], false));
        let one_row = Query::Scan {
            start: Bytes::new(),
            end: Bytes::new(),
            limit: 9,
            bytes_max: 0,
            reverse: false,
            view: None,
        };
        assert_eq!(keys(&store, &one_row, &all), (vec!["a".into()], true));
    }

    #[test]
    fn the_hash_depends_on_the_state_and_not_on_its_history() {
        let (mut one, mut other) = (MemoryStore::new(), MemoryStore::new());
        put(&mut one, 1, "x", "gone");
        put(&mut one, 2, "a", "old");
        put(&mut one, 3, "a", "1");
        put(&mut one, 4, "b", "2");
        assert_eq!(
            apply(&mut one, 5, WriteBatch::new().delete("x").delete_range("y", "")),
            CommandResult::Written
        );
        put(&mut other, 4, "b", "2");
        put(&mut other, 3, "a", "1");
        assert_eq!((one.state_hash(), one.size_bytes()), (other.state_hash(), other.size_bytes()));
        put(&mut other, 6, "a", "1");
        assert_ne!(one.state_hash(), other.state_hash(), "a version is part of the state");
        let all_gone = apply(&mut one, 7, WriteBatch::new().delete_range("", ""));
        assert_eq!((all_gone, one.state_hash(), one.size_bytes()), (CommandResult::Written, 0, 0));
    }

    #[test]
    fn a_dump_brings_back_the_state_and_what_is_none_an_empty_one() {
        let mut store = MemoryStore::new();
        put(&mut store, 1, "a", "1");
        put(&mut store, 2, "b", "22");
        let picture = store.dump();
        put(&mut store, 3, "b", "later");
        let mut bytes = Vec::new();
        picture.write(&mut bytes).unwrap();
        let mut restored = MemoryStore::new();
        restored.restore(&Bytes::from(bytes.clone())).unwrap();
        let row = View::get(&restored.rows, b"b").unwrap().unwrap();
        assert_eq!((row.version, &row.value[..]), (2, &b"22"[..]));
        let refuses = |bytes: Vec<u8>, restored: &mut MemoryStore| {
            let is_refused = restored.restore(&Bytes::from(bytes)).is_err();
            is_refused && restored.is_empty() && restored.state_hash() == 0
        };
        for at in 0..bytes.len() {
            assert!(refuses(bytes[..at].to_vec(), &mut restored), "cut at {at}");
        }
        // Magic, number and lengths.
        for at in 0..24 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(refuses(damaged, &mut restored), "byte {at}");
        }
    }

    #[test]
    fn nothing_outside_of_the_range_is_touched() {
        let narrow = KeyRange { start: Bytes::from("b"), end: Bytes::from("d") };
        let store = MemoryStore::new();
        let refused = |batch: &mut WriteBatch| {
            let command = encode(batch, 1).unwrap();
            let payload = &command[COMMAND_HEAD_BYTES..];
            let applied = MemoryStore::new().apply(Mark::new(1, 1), payload, &narrow);
            let checked = store.check(payload, &narrow);
            assert_eq!(applied == CommandResult::OutOfRange, checked == Err(BadPayload::OutOfRange));
            checked.is_err()
        };
        assert!(refused(WriteBatch::new().put("a", "")));
        assert!(refused(WriteBatch::new().put("d", "")));
        assert!(refused(WriteBatch::new().if_absent("e").put("b", "")));
        assert!(refused(WriteBatch::new().delete_range("b", "e")));
        assert!(refused(WriteBatch::new().delete_range("a", "c")));
        assert!(!refused(WriteBatch::new().delete_range("b", "d").put("c", "")));
    }
}
