//! A whole dump from a leader goes into a tree of its own before it is installed: on a background thread, row by row from
//! the bytes that came, without a memtable. So installing it takes the core no time, and no memory that writes need.
//!
//! The tree is kept only once the store has swapped it in. Until then it belongs to whoever holds it, the store or the
//! thread that writes it, and the last of them removes it: a transfer that is given up leaves nothing behind. (What a
//! crash leaves, no dump names: the next start removes it.)

use super::image::{self, Content};
use super::stores::{Home, Stores};
use bytes::Bytes;
use floe_shard::{Dump, DumpHead, encode_dump};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    pub(super) tree: Arc<StagedTree>,
    pub(super) head: DumpHead,
    /// The leader's bytes, until they lie in the tree.
    pub(super) rows: Bytes,
    /// Names the tree.
    pub(super) body: Bytes,
}

impl Dump for Staging {
    fn prepare(&mut self) -> Result<(), String> {
        let bytes = std::mem::take(&mut self.rows);
        let Some(Content::Rows(rows)) = image::open(&bytes).map(|image| image.content) else {
            return Err(format!(
                "what came for shard {} holds no rows of the durable store",
                self.head.shard
            ));
        };
        let StagedTree { stores, home, .. } = &*self.tree;
        let meta = encode_dump(&self.head, &self.body);
        home.tree_or_new(stores)?
            .ingest(|out| rows.visit(&mut |row| out.put(row.key, row.version, row.value)), &meta)?;
        stores.compact(home);
        Ok(())
    }

    fn len(&self) -> usize {
        self.body.len()
    }

    fn encode_into(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}
