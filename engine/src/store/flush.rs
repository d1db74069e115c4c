//! Making a shard's memtables durable in its tree, on a background thread: they are ingested together with the bytes of
//! the dump that names the tree (mark, descriptor, membership, state hash), all at once. Then the dump is saved and
//! a record in the log names it. Whatever a crash cuts off of that, what was durable before is still whole.
//!
//! A deleted range becomes a tombstone for each key that the tables hold in it, found while writing, one at a time: so
//! there is no bound on how many keys a range may cover, only time.

use super::image;
use super::memtable::{Memtable, Sealed};
use super::stores::{Home, Stores};
use super::tree::{Rows, Tables};
use bytes::Bytes;
use floe_shard::{Dump, DumpHead, StoredKey, encode_dump};
use std::io::{self, Write};
use std::sync::Arc;

/// A flush, and the dump that comes of it.
pub(super) struct TreeFlush {
    pub(super) stores: Arc<Stores>,
    pub(super) home: Arc<Home>,
    /// From new to old.
    pub(super) sealed: Vec<Arc<Sealed>>,
    pub(super) head: DumpHead,
    /// Trees that nothing names any more.
    pub(super) retired: Vec<Arc<Home>>,
    pub(super) body: Bytes,
}

impl TreeFlush {
    fn ingest(&self) -> Result<(), String> {
        let tree = self.home.tree_or_new(&self.stores)?;
        let tables = tree.tables();
        let memtable = Sealed::merged(&self.sealed);
        tree.ingest(|rows| write(&memtable, &tables, rows), Some(&encode_dump(&self.head, &self.body)))
    }
}

impl Dump for TreeFlush {
    fn write(mut self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        self.ingest().map_err(io::Error::other)?;
        self.sealed.iter().for_each(|sealed| sealed.set_flushed());
        self.stores.compact(&self.home);
        self.retired.drain(..).for_each(|home| self.stores.remove(home));
        out.write_all(&self.body)
    }
}

/// The dump's bytes for a tree.
pub(super) fn body(hash: u64, home: &Home) -> Bytes {
    Bytes::copy_from_slice(&image::of_tree(hash, home.number()))
}

/// Writes a memtable's rows, and tombstones for what its ranges cover in the tables, in ascending order.
fn write(memtable: &Memtable, tables: &Tables, rows: &mut Rows<'_>) -> Result<(), String> {
    let covered = memtable.ranges().iter().flat_map(|(low, high)| {
        let (low, high) = (low.to_bytes(), high.as_ref().map(StoredKey::to_bytes));
        tables.rows(&low, high.as_deref(), false).map(|row| row.map(|(key, _)| key))
    });
    let mut covered = covered.peekable();
    let mut delete_below = |key: Option<&[u8]>, rows: &mut Rows<'_>| {
        while let Some(next) = covered.next_if(|next| {
            let Ok(next) = next else { return true };
            key.is_none_or(|key| &next[..] <= key)
        }) {
            let next = next?;
            // A row of the same key says more.
            if key != Some(&next) {
                rows.delete(&next)?;
            }
        }
        Ok::<_, String>(())
    };
    let (mut result, mut bytes) = (Ok(()), Vec::new());
    memtable.rows().visit(&StoredKey::new(b""), None, false, &mut |key, entry| {
        bytes.clear();
        key.write_to(|part| bytes.extend_from_slice(part));
        result = delete_below(Some(&bytes), rows).and_then(|()| match entry {
            Some(versioned) => rows.put(&bytes, versioned.version, &versioned.value),
            None if tables.is_empty() => Ok(()),
            None => rows.delete(&bytes),
        });
        result.is_ok()
    });
    result?;
    delete_below(None, rows)
}
