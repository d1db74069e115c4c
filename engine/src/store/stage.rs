//! A whole dump from a leader goes into a tree of its own before it is installed: on a background thread, part by part as
//! it comes, without a memtable. So installing it takes the core no time, and no memory that writes need.
//!
//! Rows are collected up to [`BATCH_BYTES`] and then ingested together; the tables of all batches are disjoint, so they
//! form one run. The last batch brings the head along: until then the tree can't be opened.
//!
//! The tree is kept only once the store has swapped it in. Until then it belongs to whoever holds it, the store or the
//! thread that writes it, and the last of them removes it: a transfer that is given up leaves nothing behind. (What a
//! crash leaves, no dump names: the next start removes it.)

use super::flush::body;
use super::image::RowReader;
use super::stores::{Home, Stores};
use bytes::Bytes;
use floe_shard::{DumpHead, Job, JobDone, Stage, encode_dump};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Rows of so many bytes are ingested at a time: a few syncs for each batch.
const BATCH_BYTES: usize = 16 << 20;
/// What usually comes beyond that with the last part.
const ROOM_FOR_PARTS: usize = 1 << 20;

/// A tree that no record names yet.
pub(super) struct StagedTree {
    stores: Arc<Stores>,
    home: Arc<Home>,
    is_kept: AtomicBool,
}

impl StagedTree {
    pub(super) fn new(stores: &Arc<Stores>) -> Arc<Self> {
        let (stores, home) = (stores.clone(), stores.new_home());
        Arc::new(Self { stores, home, is_kept: AtomicBool::new(false) })
    }

    pub(super) fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// It is the store's own from now on.
    pub(super) fn keep(&self) -> Arc<Home> {
        self.is_kept.store(true, Ordering::Relaxed);
        self.home.clone()
    }

    /// Ingests the rows that wait, with `meta` if these are the last ones.
    fn ingest(&self, rows: &mut RowReader, meta: Option<&[u8]>) -> Result<(), String> {
        let tree = self.home.tree_or_new(&self.stores)?;
        tree.ingest(|out| rows.read(|key, version, value| out.put(key, version, value)), meta)
    }
}

impl Drop for StagedTree {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Relaxed) {
            self.stores.remove(self.home.clone());
        }
    }
}

/// Puts a dump's rows into the tree.
pub(super) struct Staging {
    tree: Arc<StagedTree>,
    /// Of the job that is under way; there is one at a time.
    rows: Arc<Mutex<RowReader>>,
    batch_bytes: usize,
}

impl Staging {
    pub(super) fn new(tree: Arc<StagedTree>) -> Self {
        let rows = Arc::new(Mutex::new(RowReader::with_room(BATCH_BYTES + ROOM_FOR_PARTS)));
        Self { tree, rows, batch_bytes: BATCH_BYTES }
    }

    #[cfg(test)]
    pub(super) fn in_batches_of(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }
}

impl Stage for Staging {
    fn take(&mut self, part: Bytes) -> Job {
        let (tree, rows, batch_bytes) = (self.tree.clone(), self.rows.clone(), self.batch_bytes);
        Box::new(move || {
            let mut rows = rows.lock();
            rows.add(&part)?;
            if rows.waiting() >= batch_bytes {
                tree.ingest(&mut rows, None)?;
            }
            Ok(JobDone::Done)
        })
    }

    fn finish(&mut self, head: &DumpHead) -> Job {
        let (tree, rows, head) = (self.tree.clone(), self.rows.clone(), head.clone());
        Box::new(move || {
            let mut rows = rows.lock();
            // The hash is in the first bytes of all, so the name is known before the last row is read.
            let body = body(rows.hash()?, tree.home());
            tree.ingest(&mut rows, Some(&encode_dump(&head, &body)))?;
            rows.finish()?;
            tree.stores.compact(tree.home());
            Ok(JobDone::Staged(body))
        })
    }
}
