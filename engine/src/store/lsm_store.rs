//! The durable state machine: memtables above one tree of tables per shard.
//!
//! A command changes the memtable alone. A flush seals it (`flush.rs`); once it lies in published tables it is let go.
//! Reads take a view (`view.rs`). A condition on a key that no memtable knows makes the command `Pending`: a
//! background thread reads the key, and the command is applied again with what was found.
//!
//! State hash: a chain over every command that was applied and what came of it, kept in flushes and dumps. So it is equal
//! on replicas that applied the same commands with the same results; unlike the memory store's it doesn't look
//! at the rows, which would take a read per write.

use super::flush::{TreeFlush, body};
use super::image::{self, WholeDump};
use super::memtable::{Charge, Entry, Fetched, Memtable, Sealed, value};
use super::stage::{StagedTree, Staging};
use super::stores::{Home, Stores};
use super::view::{LsmView, clip};
use crate::clock;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use floe_raft::Mark;
use floe_shard::{
    BadPayload, CommandResult, CommandView, ConditionView, Dump, DumpHead, EffectView, Job, JobDone,
    KeyRange, Pressure, Query, QueryResult, ShardId, Stage, StateMachine, StoredKey, View, check_command,
    is_within, open_dump, with_command,
};
use std::sync::Arc;

/// One of so many commands has its time taken: looking at the clock twice costs a percent of a small one.
const APPLIED_PER_MEASURED: u64 = 8;

/// One shard's state, on disk.
pub struct LsmStore {
    shard: ShardId,
    stores: Arc<Stores>,
    active: Memtable,
    /// Of `active`.
    charge: Charge,
    /// On their way into the tables, from new to old.
    sealed: Vec<Arc<Sealed>>,
    home: Arc<Home>,
    /// Trees that the last durable dump may still name; they go once another one is named, or with the next flush.
    retired: Vec<Arc<Home>>,
    /// A dump from a leader, not installed yet.
    staged: Option<Arc<StagedTree>>,
    hash: u64,
    /// Where the state stands that was found in the tree.
    found: Option<DumpHead>,
    /// What the command that is `Pending` asked for, and what came of it.
    wanted: Vec<StoredKey>,
    fetched: Arc<Fetched>,
}

impl LsmStore {
    /// An empty state. Takes no disk before its first flush.
    pub fn new(shard: ShardId, stores: &Arc<Stores>) -> Self {
        Self {
            shard,
            stores: stores.clone(),
            active: Memtable::default(),
            charge: Charge::new(stores.budget()),
            sealed: Vec::new(),
            home: stores.new_home(),
            retired: Vec::new(),
            staged: None,
            hash: 0,
            found: None,
            wanted: Vec::new(),
            fetched: Arc::default(),
        }
    }

    /// The state as it is. Tables are taken last: they hold whatever was let go before.
    fn snapshot(&self) -> LsmView {
        let sealed = self.sealed.clone();
        LsmView { active: self.active.clone(), sealed, tables: self.home.tables() }
    }

    /// Lets go of what the published tables hold.
    fn release_flushed(&mut self) {
        while let Some(oldest) = self.sealed.pop_if(|oldest| oldest.is_flushed()) {
            self.stores.free(oldest);
        }
    }

    /// A key's value, if it is known without the disk.
    fn get_in_memory(&self, key: &StoredKey) -> Option<Entry> {
        let sealed = || self.sealed.iter().find_map(|sealed| sealed.memtable.get(key));
        let known = self.active.get(key).or_else(sealed).cloned().or_else(|| self.fetched.get(key));
        known.or_else(|| self.home.tables().is_none().then_some(None))
    }

    fn apply_command(&mut self, at: Mark, command: &CommandView, range: &KeyRange) -> CommandResult {
        if !is_within(command, range) {
            return CommandResult::OutOfRange;
        }
        let known: Vec<_> = command.conditions.iter().map(|one| self.get_in_memory(&key_of(one))).collect();
        if known.iter().any(Option::is_none) {
            let unknown = command.conditions.iter().zip(&known).filter(|(_, known)| known.is_none());
            self.wanted = unknown.map(|(one, _)| key_of(one)).collect();
            return CommandResult::Pending;
        }
        let failed =
            command.conditions.iter().zip(known.iter().flatten()).position(|(one, entry)| !holds(one, entry));
        if let Some(failed) = failed {
            return CommandResult::ConditionFailed(failed as u32);
        }
        self.apply_effects(at, command, range);
        CommandResult::Written
    }

    fn apply_effects(&mut self, at: Mark, command: &CommandView, range: &KeyRange) {
        let mut rows = Vec::with_capacity(command.effects.len());
        for effect in command.effects.iter() {
            match effect {
                EffectView::Put { key, value: bytes } => {
                    rows.push((StoredKey::new(key), value(at.index, bytes)));
                }
                EffectView::Delete { key } => rows.push((StoredKey::new(key), None)),
                EffectView::DeleteRange { start, end } => {
                    self.active.set_all(std::mem::take(&mut rows));
                    if let Some((low, high)) = clip(start, end, range) {
                        self.active.delete_range(StoredKey::new(low), high.map(StoredKey::new));
                    }
                }
            }
        }
        self.active.set_all(rows);
    }

    /// Takes the tree that a dump names, staged or on the disk.
    fn take_tree(&mut self, number: u64, hash: u64) -> Result<(), BadPayload> {
        let staged = self.staged.take_if(|staged| staged.home().number() == number);
        (self.home, self.found, self.hash) = match staged {
            Some(staged) => (staged.keep(), None, hash),
            None => {
                let (home, head, hash) = self.open_tree(number).map_err(BadPayload::Malformed)?;
                (home, Some(head), hash)
            }
        };
        Ok(())
    }

    /// The state that a tree holds, and where it stands.
    fn open_tree(&self, number: u64) -> Result<(Arc<Home>, DumpHead, u64), String> {
        let home = self.stores.open_home(number)?;
        let meta = home.tables().expect("it is open").meta()?;
        let meta = meta.ok_or_else(|| format!("tree {number} holds no flush"))?;
        let (head, body) =
            open_dump(&meta).map_err(|error| format!("tree {number}: its flush is {error}"))?;
        let named = image::tree_of(&body).filter(|_| head.shard == self.shard);
        let (hash, _) = named.ok_or_else(|| format!("tree {number} is not one of shard {}", self.shard))?;
        Ok((home, head, hash))
    }

    fn retire_home(&mut self) {
        let home = std::mem::replace(&mut self.home, self.stores.new_home());
        if home.tables().is_some() {
            self.retired.push(home);
        }
    }
}

#[cfg(test)]
impl LsmStore {
    /// One step of compaction on this thread; false if none was due.
    pub(super) fn compact_now(&self) -> bool {
        self.home.tree_or_new(&self.stores).and_then(|tree| tree.compact()).expect("the disk works")
    }

    pub(super) fn stage_in_batches_of(&mut self, bytes: usize) -> Staging {
        let tree = StagedTree::new(&self.stores);
        self.staged = Some(tree.clone());
        Staging::new(tree).in_batches_of(bytes)
    }

    pub(super) fn table_runs(&self) -> usize {
        self.home.tables().map_or(0, |tables| tables.runs())
    }
}

impl StateMachine for LsmStore {
    fn check(&self, payload: &[u8], range: &KeyRange) -> Result<(), BadPayload> {
        check_command(payload, range)
    }

    fn apply(&mut self, at: Mark, payload: &[u8], range: &KeyRange) -> CommandResult {
        let begun = at.index.is_multiple_of(APPLIED_PER_MEASURED).then(clock::now);
        self.release_flushed();
        let applied = with_command(payload, |command| self.apply_command(at, command, range));
        let result = applied.unwrap_or(CommandResult::Malformed);
        if result != CommandResult::Pending {
            if !self.wanted.is_empty() {
                self.wanted.clear();
                self.fetched = Arc::default();
            }
            self.hash = chain(self.hash, at, payload, result);
            self.charge.set(self.active.bytes());
        }
        if let Some(begun) = begun {
            self.stores.apply_latency().record_all([clock::now().saturating_sub(begun)]);
        }
        result
    }

    fn fetch(&mut self) -> Job {
        assert!(!self.wanted.is_empty(), "shard {}: nothing is waited for", self.shard);
        let (wanted, fetched, view) = (self.wanted.clone(), self.fetched.clone(), self.snapshot());
        Box::new(move || {
            let row = |key: StoredKey| view.get(&key.to_bytes()).map(|entry| (key, entry));
            fetched.fill(wanted.into_iter().map(row).collect::<Result<_, _>>()?);
            Ok(JobDone::Done)
        })
    }

    fn read(&self, query: &Query, range: &KeyRange) -> QueryResult {
        self.snapshot().read(query, range).expect("only what is in memory is asked for here")
    }

    fn read_job(&self, query: &Query, range: &KeyRange) -> Option<Job> {
        let view = self.snapshot();
        let in_memory = match query {
            Query::Get { key } => view.get_in_memory(&StoredKey::new(key)).is_some(),
            Query::Scan { .. } => view.tables.is_none(),
        };
        if in_memory {
            return None;
        }
        let (query, range) = (query.clone(), range.clone());
        Some(Box::new(move || view.read(&query, &range).map(JobDone::Read)))
    }

    fn view(&self) -> Option<Arc<dyn View>> {
        Some(Arc::new(self.snapshot()))
    }

    fn dump(&self) -> Box<dyn Dump> {
        Box::new(WholeDump::new(self.snapshot(), self.hash))
    }

    fn has_files(&self) -> bool {
        true
    }

    /// Not while tables wait for compaction. Nothing is sealed then: it is tried again with what is there by then.
    fn flush(&mut self, head: &DumpHead) -> Option<Box<dyn Dump>> {
        self.release_flushed();
        if self.home.tables().is_some_and(|tables| tables.are_piled_up()) {
            self.stores.compact(&self.home);
            return None;
        }
        if !self.active.is_empty() {
            let charge = std::mem::replace(&mut self.charge, Charge::new(self.stores.budget()));
            self.sealed.insert(0, Sealed::new(std::mem::take(&mut self.active), charge));
        }
        Some(Box::new(TreeFlush {
            stores: self.stores.clone(),
            home: self.home.clone(),
            sealed: self.sealed.clone(),
            head: head.clone(),
            retired: std::mem::take(&mut self.retired),
            body: body(self.hash, &self.home),
        }))
    }

    fn flush_ended(&mut self) {
        self.release_flushed();
    }

    fn stage(&mut self) -> Box<dyn Stage> {
        let tree = StagedTree::new(&self.stores);
        self.staged = Some(tree.clone());
        Box::new(Staging::new(tree))
    }

    fn unstage(&mut self) {
        self.staged = None;
    }

    fn unflushed_bytes(&self) -> u64 {
        self.active.bytes()
    }

    fn pressure(&self) -> Pressure {
        self.stores.budget().pressure()
    }

    fn restore(&mut self, dump: &Bytes) -> Result<(), BadPayload> {
        self.active = Memtable::default();
        self.sealed.clear();
        self.retire_home();
        (self.hash, self.found, self.fetched) = (0, None, Arc::default());
        self.wanted.clear();
        self.charge.set(self.active.bytes());
        let no_name = || BadPayload::Malformed("not the name of a tree of the durable store".to_owned());
        let (hash, number) = image::tree_of(dump).ok_or_else(no_name)?;
        self.take_tree(number, hash)
    }

    fn installed(&mut self) {
        self.retired.drain(..).for_each(|home| self.stores.remove(home));
    }

    fn newer(&self) -> Option<DumpHead> {
        self.found.clone()
    }

    fn destroy(&mut self) {
        self.unstage();
        self.retire_home();
        self.retired.drain(..).for_each(|home| self.stores.remove(home));
    }

    fn size_bytes(&self) -> u64 {
        let sealed: u64 = self.sealed.iter().map(|sealed| sealed.memtable.bytes()).sum();
        self.active.bytes() + sealed + self.home.tables().map_or(0, |tables| tables.bytes())
    }

    fn state_hash(&self) -> u64 {
        self.hash
    }
}

fn key_of(condition: &ConditionView) -> StoredKey {
    match condition {
        ConditionView::Equals { key, .. }
        | ConditionView::Absent { key }
        | ConditionView::Version { key, .. } => StoredKey::new(key),
    }
}

fn holds(condition: &ConditionView, entry: &Entry) -> bool {
    match condition {
        ConditionView::Equals { value, .. } => entry.as_ref().is_some_and(|found| found.value == value.get()),
        ConditionView::Absent { .. } => entry.is_none(),
        ConditionView::Version { version, .. } => {
            entry.as_ref().is_some_and(|found| found.version == version.to_native())
        }
    }
}

/// The hash after one more command.
fn chain(hash: u64, at: Mark, payload: &[u8], result: CommandResult) -> u64 {
    let outcome = match result {
        CommandResult::Written => 1,
        CommandResult::OutOfRange => 2,
        CommandResult::Malformed => 3,
        CommandResult::ConditionFailed(number) => 4 + u64::from(number),
        CommandResult::Pending => unreachable!("it isn't applied"),
    };
    let mut z = hash.rotate_left(23) ^ checksum(CrcAlgorithm::Crc64Nvme, payload);
    z = (z ^ at.index.rotate_left(32) ^ outcome).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 29)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 32)
}
