//! One shard's tables on disk, kept by lsm-tree: the only file (with `limiter.rs`) that knows this library.
//!
//! The library *writes*: tables by ingestion, new ones by compaction, each with seven syncs or so, on background threads
//! only. It isn't asked to *read*: its `get` takes a lock that it holds across those syncs. Instead the tables of
//! its newest version are published after each change ([`Tables`]); who has them reads them without a lock, for as
//! long as they like: a table that compaction has replaced is unlinked when its last holder lets go. So nothing
//! needs old versions inside the tree, and every compaction may drop them.
//!
//! ```text
//! key    as the user's; one that begins      0xFF 0x01: sorts after every user's key as it is stored
//!        with 0xFF has a 0x00 behind that
//! value  version u64 LE | the user's bytes   the flush's dump file: mark, descriptor, membership, state hash
//! ```
//!
//! Invariant: published tables hold every ingestion that has returned: they are read from the tree and stored under
//! one lock.

use super::limiter::{Limiter, Reason, Throttle, Writing};
use super::memtable::Budget;
use crate::config::LsmSettings;
use arc_swap::ArcSwap;
use bytes::Bytes;
use floe_shard::Versioned;
use lsm_tree::checksum::ChecksummedWriter;
use lsm_tree::compaction::Leveled;
use lsm_tree::merge::{BoxedIterator, Merger};
use lsm_tree::mvcc_stream::MvccStream;
use lsm_tree::table::filter::standard_bloom::Builder;
use lsm_tree::{
    AbstractTree, AnyIngestion, AnyTree, Cache, Config, DescriptorTable, InternalValue, SeqNo,
    SequenceNumberCounter, Slice, Table,
};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a flush's dump file lies among the rows.
///
/// Short, because an open table has its last key in memory several times. Without those that begin with 0xFF being stored in
/// another way it would have to be longer than any user's.
const META_KEY: [u8; 2] = [0xFF, 1];
/// Above every sequence number that a tree gives.
const NEWEST: SeqNo = SeqNo::MAX >> 1;
/// Runs of level 0 beyond which nothing is flushed until compaction has caught up. (From 255 on a tree can't be read.)
pub(super) const LEVEL0_RUNS_MAX: usize = 30;
/// What names the newest version in a tree's directory; without it the library would begin with an empty tree.
const CURRENT: &str = "current";

/// What the trees of a node share.
pub(super) struct Shared {
    cache: Arc<Cache>,
    files: Arc<DescriptorTable>,
    limiter: Arc<Limiter>,
}

impl Shared {
    pub(super) fn new(settings: &LsmSettings, memory: &Arc<Budget>) -> Self {
        Self {
            cache: Arc::new(Cache::with_capacity_bytes(settings.cache_bytes)),
            files: Arc::new(DescriptorTable::new(settings.open_files_max)),
            limiter: Arc::new(Limiter::new(settings.background_bytes_per_second, memory.clone())),
        }
    }

    fn config(&self, dir: &Path, next: &SequenceNumberCounter) -> Config {
        Config::new(dir, next.clone(), SequenceNumberCounter::default())
            .use_cache(self.cache.clone())
            .use_descriptor_table(Some(self.files.clone()))
            .with_compaction_filter_factory(Some(Arc::new(Throttle::new(self.limiter.clone(), dir))))
    }
}

/// A tree.
pub(super) struct Tree {
    tree: AnyTree,
    dir: PathBuf,
    tables: ArcSwap<Tables>,
    publishing: Mutex<()>,
    limiter: Arc<Limiter>,
}

impl Tree {
    /// Makes an empty one in a directory that doesn't exist. Seven syncs.
    pub(super) fn create(dir: &Path, shared: &Shared) -> Result<Self, String> {
        if dir.exists() {
            return Err(format!("{} exists already", dir.display()));
        }
        let tree = Self::load(dir, shared)?;
        let parent = dir.parent().unwrap_or(Path::new("."));
        let synced = fs::File::open(parent).and_then(|parent| parent.sync_all());
        synced.map_err(|error| format!("syncing {}: {error}", parent.display()))?;
        Ok(tree)
    }

    /// Opens one that was made.
    pub(super) fn open(dir: &Path, shared: &Shared) -> Result<Self, String> {
        if !dir.join(CURRENT).exists() {
            return Err(format!("{} is missing", dir.join(CURRENT).display()));
        }
        check_manifest(dir)?;
        Self::load(dir, shared)
    }

    fn load(dir: &Path, shared: &Shared) -> Result<Self, String> {
        let next = SequenceNumberCounter::default();
        let tree = shared.config(dir, &next).open().map_err(|error| failure(dir, &error))?;
        // The library counts from 0 again; a new table must be newer than every old one.
        next.fetch_max(tree.get_highest_persisted_seqno().map_or(0, |highest| highest + 1));
        let tables = ArcSwap::from_pointee(Tables::of(&tree, dir));
        Ok(Self {
            tree,
            dir: dir.into(),
            tables,
            publishing: Mutex::new(()),
            limiter: shared.limiter.clone(),
        })
    }

    /// The newest published tables.
    pub(super) fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    /// Adds rows in ascending order, and `meta` if there is any, all at once and durably.
    pub(super) fn ingest(
        &self,
        write: impl FnOnce(&mut Rows) -> Result<(), String>,
        meta: Option<&[u8]>,
    ) -> Result<(), String> {
        let fail = |error| failure(&self.dir, &error);
        let ingestion = self.tree.ingestion().map_err(fail)?;
        let writing = Writing::begin(&self.limiter, Reason::Flush, &self.dir)
            .map_err(|error| format!("{}: {error}", self.dir.display()))?;
        let mut rows = Rows { ingestion, writing, dir: &self.dir, row: Vec::new() };
        write(&mut rows)?;
        if let Some(meta) = meta {
            rows.ingestion.write(META_KEY.as_slice(), meta).map_err(fail)?;
        }
        rows.ingestion.finish().map_err(fail)?;
        self.publish();
        Ok(())
    }

    /// One step of compaction; false if none is due.
    pub(super) fn compact(&self) -> Result<bool, String> {
        let before = self.tree.current_version().id();
        self.tree
            .compact(Arc::new(Leveled::default()), NEWEST)
            .map_err(|error| failure(&self.dir, &error))?;
        self.publish();
        Ok(self.tree.current_version().id() != before)
    }

    fn publish(&self) {
        let _one_at_a_time = self.publishing.lock();
        self.tables.store(Arc::new(Tables::of(&self.tree, &self.dir)));
    }
}

/// Rows on their way into a tree.
pub(super) struct Rows<'a> {
    ingestion: AnyIngestion<'a>,
    writing: Writing,
    dir: &'a Path,
    /// Reused.
    row: Vec<u8>,
}

impl Rows<'_> {
    pub(super) fn put(&mut self, key: &[u8], version: u64, value: &[u8]) -> Result<(), String> {
        self.row.clear();
        self.row.extend_from_slice(&version.to_le_bytes());
        self.row.extend_from_slice(value);
        self.ingestion
            .write(&*stored(key), self.row.as_slice())
            .map_err(|error| failure(self.dir, &error))?;
        self.wrote(key.len() + self.row.len())
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> Result<(), String> {
        self.ingestion.write_tombstone(&*stored(key)).map_err(|error| failure(self.dir, &error))?;
        self.wrote(key.len())
    }

    fn wrote(&mut self, bytes: usize) -> Result<(), String> {
        let waited = self.writing.wrote(bytes as u64);
        waited.map_err(|error| format!("{}: {error}", self.dir.display()))
    }
}

/// The tables of one version of a tree: runs from new to old; the tables of a run are disjoint and ascend.
pub(super) struct Tables {
    runs: Vec<Vec<Table>>,
    level0_runs: usize,
    dir: PathBuf,
    bytes: u64,
}

/// A row of the tables.
pub(super) type TableRow = Result<(Bytes, Versioned), String>;

impl Tables {
    fn of(tree: &AnyTree, dir: &Path) -> Self {
        let version = tree.current_version();
        let runs: Vec<Vec<Table>> =
            version.iter_levels().flat_map(|level| level.iter()).map(|run| run.to_vec()).collect();
        let bytes = runs.iter().flatten().map(|table| table.metadata.file_size).sum();
        let level0_runs = version.iter_levels().next().map_or(0, |level| level.iter().count());
        Self { runs, level0_runs, dir: dir.into(), bytes }
    }

    /// Whether flushes must wait for compaction.
    pub(super) fn are_piled_up(&self) -> bool {
        self.level0_runs >= LEVEL0_RUNS_MAX
    }

    /// Runs that wait for compaction.
    pub(super) fn level0_runs(&self) -> usize {
        self.level0_runs
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    #[cfg(test)]
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Bytes on disk.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The dump file that the last flush brought along.
    pub(super) fn meta(&self) -> Result<Option<Bytes>, String> {
        Ok(self.find(&META_KEY)?.map(|found| Bytes::copy_from_slice(&found)))
    }

    /// A key's value. May wait for the disk.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Versioned>, String> {
        self.find(&stored(key))?.map(|value| self.versioned(&value)).transpose()
    }

    fn find(&self, key: &[u8]) -> Result<Option<Slice>, String> {
        let hash = Builder::get_hash(key);
        for run in &self.runs {
            let at = run.partition_point(|table| &**table.metadata.key_range.max() < key);
            let table = run.get(at).filter(|table| &**table.metadata.key_range.min() <= key);
            let Some(table) = table else { continue };
            let found = table.get(key, NEWEST, hash).map_err(|error| failure(&table.path, &error))?;
            if let Some(found) = found {
                return Ok((!found.is_tombstone()).then_some(found.value));
            }
        }
        Ok(None)
    }

    /// The rows from `low`, inclusive, to `high`, exclusive (`None` = all), in order or in reverse.
    pub(super) fn rows(
        &self,
        low: &[u8],
        high: Option<&[u8]>,
        reverse: bool,
    ) -> Box<dyn Iterator<Item = TableRow> + '_> {
        let high = high.map_or(Slice::from(&META_KEY), |high| Slice::from(&*stored(high)));
        let bounds = (Bound::Included(Slice::from(&*stored(low))), Bound::Excluded(high));
        let runs = self.runs.iter().map(|run| {
            let tables = run.clone().into_iter();
            let bounds = bounds.clone();
            Box::new(tables.flat_map(move |table| table.range(bounds.clone()))) as BoxedIterator<'_>
        });
        let mut newest = MvccStream::new(Merger::new(runs.collect()));
        let next = std::iter::from_fn(move || if reverse { newest.next_back() } else { newest.next() });
        Box::new(next.filter_map(|item| self.row(item)))
    }

    fn row(&self, item: lsm_tree::Result<InternalValue>) -> Option<TableRow> {
        match item {
            Ok(item) if item.is_tombstone() => None,
            Ok(item) => {
                let versioned = self.versioned(&item.value);
                Some(versioned.map(|versioned| (users(&item.key.user_key), versioned)))
            }
            Err(error) => Some(Err(failure(&self.dir, &error))),
        }
    }

    fn versioned(&self, value: &[u8]) -> Result<Versioned, String> {
        let short = || format!("{}: a value of {} bytes has no version", self.dir.display(), value.len());
        let (version, value) = value.split_first_chunk().ok_or_else(short)?;
        Ok(Versioned { version: u64::from_le_bytes(*version), value: Bytes::copy_from_slice(value) })
    }
}

/// A user's key as it is stored. Keeps the order.
fn stored(key: &[u8]) -> Cow<'_, [u8]> {
    match key {
        [0xFF, rest @ ..] => Cow::Owned([&[0xFF, 0], rest].concat()),
        _ => Cow::Borrowed(key),
    }
}

/// A stored key as it is the user's.
fn users(key: &[u8]) -> Bytes {
    match key {
        [0xFF, 0, rest @ ..] => [&[0xFF], rest].concat().into(),
        _ => Bytes::copy_from_slice(key),
    }
}

/// The list of a tree's tables must be what was written: the library stores its checksum beside the number of its file, but
/// doesn't look at it.
///
/// ```text
/// current  number u64 LE | xxh3-128 of the file v<number> u128 LE | kind of checksum u8: 0
/// ```
fn check_manifest(dir: &Path) -> Result<(), String> {
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let path = dir.join(CURRENT);
    let current = read(&path)?;
    let damaged = || format!("{} is damaged", path.display());
    let (number, rest) = current.split_first_chunk().ok_or_else(damaged)?;
    let (checksum, kind) = rest.split_first_chunk().ok_or_else(damaged)?;
    if kind != [0] {
        return Err(damaged());
    }
    let manifest = dir.join(format!("v{}", u64::from_le_bytes(*number)));
    let mut sum = ChecksummedWriter::new(io::sink());
    sum.write_all(&read(&manifest)?).map_err(|error| format!("{}: {error}", manifest.display()))?;
    if sum.checksum().into_u128() != u128::from_le_bytes(*checksum) {
        return Err(format!("{} isn't what {} says it is", manifest.display(), path.display()));
    }
    Ok(())
}

fn failure(path: &Path, error: &lsm_tree::Error) -> String {
    format!("{}: {error}", path.display())
}
