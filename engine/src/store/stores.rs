//! What the durable stores of a node share: memory for memtables, caches, the directory that the trees lie in, and the
//! threads that compact and clean up behind them. Cleaning up has a thread of its own: memtables that were flushed count
//! against the budget until they are freed, which must not wait for a compaction of seconds.
//!
//! Compaction goes on where most tables wait for it, step by step: a tree in which they pile up takes no flushes, and so holds up the
//! log of all shards of its core. (In turns, one waited 50 s behind the others.)
//!
//! Trees lie in `store/t<number>`; numbers are not used twice while the process lives, and begin above all that lie
//! there. Which trees count is said by the dumps that the log names; at start, what none of them names is removed.

use super::memtable::Budget;
use super::tree::{Shared, Tables, Tree};
use crate::config::LsmSettings;
use crate::driver::sys;
use crate::metrics::Latency;
use parking_lot::{Condvar, Mutex};
use std::any::Any;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;

/// Below the node's directory.
const DIR: &str = "store";
/// Trees that are compacted at a time. Two come up to the rate that is the default.
const COMPACTORS: usize = 2;

/// What is cleaned up.
enum Task {
    Remove(PathBuf),
    /// Freed here rather than where it was held: a memtable takes milliseconds.
    Drop(Box<dyn Any + Send>),
}

/// The stores of a node.
pub struct Stores {
    dir: PathBuf,
    shared: Shared,
    budget: Arc<Budget>,
    /// Nanoseconds of some of the commands that were applied.
    apply_latency: Latency,
    next: AtomicU64,
    /// Trees that lay here at start and that nothing has named yet.
    strays: Mutex<BTreeSet<u64>>,
    /// `None` once its thread is to end.
    cleanup: Mutex<Option<Sender<Task>>>,
    due: Arc<Due>,
}

/// Trees that are to be compacted.
#[derive(Default)]
struct Due {
    trees: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    /// In the order in which they came.
    homes: Vec<Weak<Home>>,
    /// The threads are to end.
    stops: bool,
}

/// Ends the threads behind the stores of a node when it is dropped.
pub struct Janitor {
    stores: Arc<Stores>,
    threads: Vec<JoinHandle<()>>,
}

impl Stores {
    /// Those of the node in `dir`, whose lock is held.
    ///
    /// # Errors
    /// The directory can't be made or listed, or there can't be a thread.
    pub fn open(dir: &Path, settings: &LsmSettings) -> io::Result<(Arc<Self>, Janitor)> {
        let dir = dir.join(DIR);
        let is_new = !dir.exists();
        fs::create_dir_all(&dir)?;
        if is_new && let Some(parent) = dir.parent() {
            fs::File::open(parent)?.sync_all()?;
        }
        let mut strays = BTreeSet::new();
        for entry in fs::read_dir(&dir)? {
            let name = entry?.file_name();
            strays.extend(name.to_str().and_then(|name| name.strip_prefix('t')?.parse::<u64>().ok()));
        }
        let (cleanup, tasks) = channel();
        let budget = Budget::new(settings.write_buffer_bytes);
        let stores = Arc::new(Self {
            dir,
            shared: Shared::new(settings, &budget),
            budget,
            apply_latency: Latency::default(),
            next: AtomicU64::new(strays.last().map_or(1, |last| last + 1)),
            strays: Mutex::new(strays),
            cleanup: Mutex::new(Some(cleanup)),
            due: Arc::default(),
        });
        let mut threads = vec![background("floe-store".into(), move || clean_up(&tasks))?];
        for number in 0..COMPACTORS {
            let due = stores.due.clone();
            threads.push(background(format!("floe-compact{number}"), move || compact_all(&due))?);
        }
        Ok((stores.clone(), Janitor { stores, threads }))
    }

    /// What memtables take, and may take.
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(super) fn apply_latency(&self) -> &Latency {
        &self.apply_latency
    }

    /// A tree to be, made when something is flushed into it.
    pub(super) fn new_home(&self) -> Arc<Home> {
        Arc::new(Home::new(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// A tree that a dump names.
    pub(super) fn open_home(&self, number: u64) -> Result<Arc<Home>, String> {
        let tree = Tree::open(&self.path(number), &self.shared)?;
        self.strays.lock().remove(&number);
        let home = Home::new(number);
        assert!(home.tree.set(tree).is_ok(), "tree {number} was just made");
        Ok(Arc::new(home))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("t{number}"))
    }

    /// Nothing names this tree any more: it goes when nobody writes into it, nor compacts it. Views that still hold tables
    /// of it can read what they have open.
    pub(super) fn remove(self: &Arc<Self>, home: Arc<Home>) {
        assert!(home.removed_by.set(Arc::downgrade(self)).is_ok(), "tree {} is removed once", home.number);
        self.free(home);
    }

    /// Compacts a tree if that is due.
    pub(super) fn compact(&self, home: &Arc<Home>) {
        self.due.add(home);
    }

    /// Drops something big elsewhere.
    pub(super) fn free(&self, what: impl Send + 'static) {
        self.hand_over(Task::Drop(Box::new(what)));
    }

    fn hand_over(&self, task: Task) {
        // Without a receiver the process is about to end: strays wait for the next start.
        let _ = self.cleanup.lock().as_ref().map(|cleanup| cleanup.send(task));
    }
}

impl Janitor {
    /// How long commands took to apply, of some.
    pub(crate) fn apply_latency(&self) -> &Latency {
        self.stores.apply_latency()
    }

    /// What memtables take now.
    pub(crate) fn write_buffer_bytes(&self) -> u64 {
        self.stores.budget.used()
    }

    /// Every shard is restored: what no dump names goes.
    pub fn remove_strays(&self) {
        for number in std::mem::take(&mut *self.stores.strays.lock()) {
            self.stores.hand_over(Task::Remove(self.stores.path(number)));
        }
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        self.stores.due.stop();
        *self.stores.cleanup.lock() = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the stores panicked");
            }
        }
    }
}

/// Starts a thread of the lowest priority.
fn background(name: String, serve: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(move || {
        if let Err(error) = sys::lower_priority() {
            tracing::debug!(%error, "the stores' threads keep their priority");
        }
        serve();
    })
}

fn clean_up(tasks: &Receiver<Task>) {
    while let Ok(task) = tasks.recv() {
        match task {
            Task::Remove(path) => match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a tree that nothing names could not be removed");
                }
                _ => {}
            },
            Task::Drop(what) => drop(what),
        }
    }
}

impl Due {
    fn add(&self, home: &Arc<Home>) {
        if !home.awaits_compaction.swap(true, Ordering::Relaxed) {
            self.trees.lock().homes.push(Arc::downgrade(home));
            self.changed.notify_one();
        }
    }

    fn stop(&self) {
        self.trees.lock().stops = true;
        self.changed.notify_all();
    }

    /// The tree with the most tables that wait, as soon as there is one; `None` = no more. O(trees that wait).
    fn next(&self) -> Option<Arc<Home>> {
        let mut waiting = self.trees.lock();
        loop {
            if waiting.stops {
                return None;
            }
            if let Some(home) = waiting.take() {
                // A flush after this asks anew.
                home.awaits_compaction.store(false, Ordering::Relaxed);
                return Some(home);
            }
            self.changed.wait(&mut waiting);
        }
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Arc<Home>> {
        self.homes.retain(|home| home.strong_count() > 0);
        let runs = |home: &Weak<Home>| home.upgrade().map_or(0, |home| home.level0_runs());
        let most = (0..self.homes.len()).max_by_key(|&at| (runs(&self.homes[at]), Reverse(at)))?;
        self.homes.remove(most).upgrade().or_else(|| self.take())
    }
}

/// Compacts, one step after another.
fn compact_all(due: &Due) {
    while let Some(home) = due.next() {
        match home.tree.get().map_or(Ok(false), Tree::compact) {
            Ok(true) => due.add(&home),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "a tree could not be compacted; it will be tried again");
            }
        }
    }
}

/// Where a shard's tree is, or will be.
pub(super) struct Home {
    number: u64,
    tree: OnceLock<Tree>,
    /// It is in the queue.
    awaits_compaction: AtomicBool,
    /// Its directory goes with its last holder.
    removed_by: OnceLock<Weak<Stores>>,
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(stores) = self.removed_by.get().and_then(Weak::upgrade) {
            stores.hand_over(Task::Remove(stores.path(self.number)));
        }
    }
}

impl Home {
    fn new(number: u64) -> Self {
        let (tree, removed_by) = (OnceLock::new(), OnceLock::new());
        Self { number, tree, awaits_compaction: AtomicBool::new(false), removed_by }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Runs of level 0, which wait for compaction.
    fn level0_runs(&self) -> usize {
        self.tables().map_or(0, |tables| tables.level0_runs())
    }

    /// Its published tables, if it was made.
    pub(super) fn tables(&self) -> Option<Arc<Tables>> {
        self.tree.get().map(Tree::tables)
    }

    /// The tree; made now, if it wasn't before. Only a shard's one flush at a time calls this.
    pub(super) fn tree_or_new(&self, stores: &Stores) -> Result<&Tree, String> {
        if self.tree.get().is_none() {
            let path = stores.path(self.number);
            // Of an attempt that failed half-way: nothing names it yet.
            if path.exists() {
                fs::remove_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            }
            let tree = Tree::create(&path, &stores.shared)?;
            assert!(self.tree.set(tree).is_ok(), "tree {}: two flushes at a time", self.number);
        }
        Ok(self.tree.get().expect("made above"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tree::LEVEL0_RUNS_MAX;

    #[test]
    fn the_tree_in_which_most_waits_is_compacted_first_and_one_that_is_gone_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (stores, janitor) = Stores::open(dir.path(), &LsmSettings::default()).unwrap();
        // Nobody compacts any more.
        drop(janitor);
        let home_with = |runs: usize| {
            let home = stores.new_home();
            let tree = home.tree_or_new(&stores).unwrap();
            // Their keys overlap, or they would be one run.
            let put =
                |key: &[u8]| tree.ingest(|rows| rows.put(key, 1, b"").and(rows.put(b"x", 1, b"")), None);
            (0..runs).for_each(|_| put(b"a").unwrap());
            home
        };
        let homes = [2, 3, LEVEL0_RUNS_MAX, 3].map(home_with);
        let due = Due::default();
        homes.iter().for_each(|home| due.add(home));
        homes.iter().for_each(|home| due.add(home));
        let [least, first, most, second] = homes;
        let number = |home: Option<Arc<Home>>| home.unwrap().number();
        assert_eq!(number(due.next()), most.number());
        assert_eq!(number(due.next()), first.number(), "of equals the one that came first");
        drop(second);
        assert_eq!(number(due.next()), least.number());
        // One that is taken may be added again, but is there once.
        due.add(&least);
        due.add(&least);
        assert_eq!((number(due.next()), due.trees.lock().homes.len()), (least.number(), 0));
        due.stop();
        assert!(due.next().is_none());
    }
}
