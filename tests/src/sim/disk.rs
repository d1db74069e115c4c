//! A node's disk: files and directories with live and durable contents apart.
//!
//! What survives a power cut, by kind:
//! - A `Write` is durable when it completes. In flight, each of its 512-byte sectors may have landed.
//! - What landed of a write in flight when the *process* was killed can be read by the next process, but
//!   is not durable: a power cut may still take it away, sector by sector. (A device's volatile cache.)
//! - A `Create` or `Save` syncs the file's bytes, not its directory entry.
//! - Directory entries (of creations, renames, removals) are durable after a `SyncDir` that was issued
//!   when they were complete. Until then any subset may have landed; a rename lands as a whole.
//!
//! Calls take effect when they complete. Contracts of [`DiskCall`] that a caller breaks (alignment, overlapping
//! writes in flight) are panics: they are bugs of the caller.

use crate::random::Random;
use crate::sim::content::{Content, SECTOR, SECTOR_U64, encoded, written};
use crate::sim::damage::FrameLog;
use bytes::Bytes;
use floe::disk::{
    BLOCK, DirEntry, DiskCall, DiskDone, DiskError, DiskErrorKind, DiskPath, DiskResult, OpId, OpOwner,
};
use floe_shard::state_machine::JobDone;
use std::collections::{BTreeMap, BTreeSet};

/// How a disk behaves; faults change it while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskProfile {
    /// Usual latency of a call in nanoseconds; larger ones have a long tail, and size counts on top.
    pub latency_ns: u64,
    /// Every latency is multiplied by it.
    pub slowness: u64,
    /// Of a million writes, creations, saves and syncs, how many fail with an I/O error.
    pub write_error_ppm: u64,
    /// Whether creations and saves fail for lack of space.
    pub full: bool,
    /// Whether no call returns until this ends.
    pub stuck: bool,
}

/// Calls of one kind, of which one can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Writes into files.
    Write,
    /// Creations of files and saves of whole ones.
    Create,
    /// Renames.
    Rename,
    /// Syncs of directories.
    Sync,
    /// Reads.
    Read,
    /// Listings and removals.
    Other,
}

impl CallKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Write, Self::Create, Self::Rename, Self::Sync, Self::Read, Self::Other];

    fn of(call: &DiskCall) -> Self {
        match call {
            DiskCall::Write { .. } => Self::Write,
            DiskCall::Create { .. } | DiskCall::Save { .. } => Self::Create,
            DiskCall::Rename { .. } => Self::Rename,
            DiskCall::SyncDir { .. } => Self::Sync,
            DiskCall::Read { .. } => Self::Read,
            DiskCall::List { .. } | DiskCall::Remove { .. } | DiskCall::Run { .. } => Self::Other,
        }
    }
}

impl Default for DiskProfile {
    fn default() -> Self {
        Self { latency_ns: 100_000, slowness: 1, write_error_ppm: 0, full: false, stuck: false }
    }
}

pub(super) type Inode = u64;

#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) live: Content,
    pub(super) durable: Content,
    /// Sectors in which the two may differ.
    unsynced: BTreeSet<u64>,
}

/// A change of one directory that isn't durable yet.
#[derive(Clone, Debug)]
enum DirChange {
    Link { path: DiskPath, inode: Inode },
    Unlink { path: DiskPath },
    Rename { from: DiskPath, to: DiskPath, inode: Inode },
}

impl DirChange {
    fn dir(&self) -> &str {
        match self {
            Self::Link { path, .. } | Self::Unlink { path } => parent(path),
            Self::Rename { to, .. } => parent(to),
        }
    }

    fn apply(&self, names: &mut BTreeMap<DiskPath, Inode>) {
        match self {
            Self::Link { path, inode } => {
                names.insert(path.clone(), *inode);
            }
            Self::Unlink { path } => {
                names.remove(path);
            }
            Self::Rename { from, to, inode } => {
                if names.get(from) == Some(inode) {
                    names.remove(from);
                }
                names.insert(to.clone(), *inode);
            }
        }
    }
}

/// A call in flight, resolved when it was issued.
#[derive(Debug)]
enum Work {
    List { dir: DiskPath },
    Create { path: DiskPath, len: u64 },
    Rename { from: DiskPath, to: DiskPath },
    Remove { path: DiskPath },
    SyncDir { dir: DiskPath, changes: u64 },
    Read { inode: Inode, offset: u64, len: usize },
    Write { path: DiskPath, inode: Inode, offset: u64, data: Bytes },
    Save { path: DiskPath, data: Bytes },
    Ran(JobDone),
    Fail(DiskError),
}

/// What is known of a call in flight.
#[derive(Debug)]
struct InFlight {
    core: u16,
    op: OpId,
    work: Work,
    fault: Option<DiskErrorKind>,
}

/// How a process ends, as its disk sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process alone: the machine and its caches go on.
    Process,
    /// The power: what wasn't synced may be gone.
    Power,
}

/// One node's disk.
#[derive(Debug)]
pub struct Disk {
    pub(super) random: Random,
    /// How it behaves now.
    pub profile: DiskProfile,
    /// The n-th call of this kind from now on fails.
    pub fails_at: Option<(CallKind, u64)>,
    pub(super) names: BTreeMap<DiskPath, Inode>,
    durable_names: BTreeMap<DiskPath, Inode>,
    dirs: BTreeSet<DiskPath>,
    /// Changes of directories that aren't durable, numbered in order.
    changes: BTreeMap<u64, DirChange>,
    change_next: u64,
    pub(super) files: BTreeMap<Inode, File>,
    inode_next: Inode,
    /// Errors injected so far.
    pub errors: u64,
    in_flight: BTreeMap<u64, InFlight>,
    ticket_next: u64,
    /// Calls that would be done if the disk weren't stuck.
    held: Vec<u64>,
    pub(super) frames: FrameLog,
    pub(super) damaged: BTreeSet<Inode>,
}

impl Disk {
    /// An empty disk.
    pub fn new(random: Random, profile: DiskProfile) -> Self {
        Self {
            random,
            profile,
            fails_at: None,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dirs: BTreeSet::from(["".into()]),
            changes: BTreeMap::new(),
            change_next: 0,
            files: BTreeMap::new(),
            inode_next: 1,
            errors: 0,
            in_flight: BTreeMap::new(),
            ticket_next: 0,
            held: Vec::new(),
            frames: FrameLog::default(),
            damaged: BTreeSet::new(),
        }
    }

    /// Starts a call. Answers its ticket and after how many nanoseconds [`Self::complete`] is due.
    pub fn issue(&mut self, core: u16, op: OpId, call: DiskCall) -> (u64, u64) {
        let mut latency = self.latency(&call);
        let fault = self.draw_fault(&call);
        let work = self.resolve(call);
        if let Work::Save { data, .. } = &work {
            latency += self.time_of_bytes(data.len() as u64);
        }
        self.assert_no_overlap(&work);
        let ticket = self.ticket_next;
        self.ticket_next += 1;
        self.in_flight.insert(ticket, InFlight { core, op, work, fault });
        (ticket, latency)
    }

    /// Completes a call: it takes effect now. `None` if a crash took it, or the disk is stuck: then it is
    /// among those of [`Self::take_held`].
    pub fn complete(&mut self, ticket: u64) -> Option<(u16, OpId, DiskResult)> {
        if self.profile.stuck {
            self.held.push(ticket);
            return None;
        }
        let InFlight { core, op, work, fault } = self.in_flight.remove(&ticket)?;
        let result = match fault {
            Some(kind) => {
                self.errors += 1;
                self.land_partly(work, Crash::Process);
                Err(DiskError { kind, message: format!("injected {kind:?}") })
            }
            None => self.perform(work),
        };
        Some((core, op, result))
    }

    /// Calls that a stuck disk held back, to be completed now that it isn't any more.
    pub fn take_held(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.held)
    }

    /// Ends every call in flight; at a power cut, what wasn't synced too.
    pub fn crash(&mut self, crash: Crash) {
        for (_, call) in std::mem::take(&mut self.in_flight) {
            self.land_partly(call.work, crash);
        }
        if crash == Crash::Power {
            self.lose_unsynced();
        }
        self.forget_unlinked();
    }

    /// Drops files that no name, change or call can reach.
    fn forget_unlinked(&mut self) {
        let names = self.names.values().chain(self.durable_names.values()).copied();
        let changes = self.changes.values().filter_map(inode_of);
        let calls = self.in_flight.values().filter_map(|call| match call.work {
            Work::Read { inode, .. } | Work::Write { inode, .. } => Some(inode),
            _ => None,
        });
        let reachable: BTreeSet<Inode> = names.chain(changes).chain(calls).collect();
        self.files.retain(|inode, _| reachable.contains(inode));
    }

    /// Tickets of calls in flight.
    pub fn in_flight(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.in_flight.keys().copied()
    }

    /// Live files and their lengths, for reports.
    pub fn listing(&self) -> Vec<(String, u64)> {
        let len = |inode| self.files.get(inode).map_or(0, |file| file.live.len);
        self.names.iter().map(|(path, inode)| (path.to_string(), len(inode))).collect()
    }

    fn latency(&mut self, call: &DiskCall) -> u64 {
        let bytes = match call {
            DiskCall::Create { len, .. } => *len,
            DiskCall::Read { len, .. } => *len as u64,
            DiskCall::Write { data, .. } => data.len() as u64,
            _ => 0,
        };
        let usual = self.profile.latency_ns;
        let own = (usual / 2 + self.random.skewed(usual)).saturating_mul(self.profile.slowness);
        own.saturating_add(self.time_of_bytes(bytes))
    }

    fn time_of_bytes(&self, bytes: u64) -> u64 {
        (bytes / 2).saturating_mul(self.profile.slowness)
    }

    fn draw_fault(&mut self, call: &DiskCall) -> Option<DiskErrorKind> {
        if let Some((kind, left)) = &mut self.fails_at
            && *kind == CallKind::of(call)
        {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.fails_at = None;
                return Some(DiskErrorKind::Io);
            }
        }
        let grows = matches!(call, DiskCall::Create { .. } | DiskCall::Save { .. });
        let writes = grows || matches!(call, DiskCall::Write { .. } | DiskCall::SyncDir { .. });
        if grows && self.profile.full {
            return Some(DiskErrorKind::Full);
        }
        (writes && self.random.chance_ppm(self.profile.write_error_ppm)).then_some(DiskErrorKind::Io)
    }

    fn resolve(&self, call: DiskCall) -> Work {
        let inode_of = |path: &DiskPath| self.names.get(path).copied();
        let missing = |path: &DiskPath| Work::Fail(not_found(path));
        match call {
            DiskCall::List { dir } => Work::List { dir },
            DiskCall::Create { path, len } => {
                assert!(
                    len.is_multiple_of(BLOCK as u64),
                    "creating {path} with {len} bytes, not whole blocks"
                );
                Work::Create { path, len }
            }
            DiskCall::Rename { from, to } => Work::Rename { from, to },
            DiskCall::Remove { path } => Work::Remove { path },
            DiskCall::SyncDir { dir } => Work::SyncDir { dir, changes: self.change_next },
            DiskCall::Read { path, offset, len } => {
                assert!(
                    offset.is_multiple_of(BLOCK as u64),
                    "reading {path} at {offset}, not a block's start"
                );
                inode_of(&path).map_or_else(|| missing(&path), |inode| Work::Read { inode, offset, len })
            }
            DiskCall::Write { path, offset, data } => {
                let aligned = offset.is_multiple_of(BLOCK as u64) && data.len().is_multiple_of(BLOCK);
                assert!(aligned, "writing {path} at {offset}+{}, not whole blocks", data.len());
                let data = encoded(&*data);
                match inode_of(&path) {
                    Some(inode) => Work::Write { path, inode, offset, data },
                    None => missing(&path),
                }
            }
            DiskCall::Save { path, data, .. } => Work::Save { path, data: written(data) },
            DiskCall::Run { job, .. } => match job() {
                Ok(done) => Work::Ran(done),
                Err(message) => Work::Fail(DiskError { kind: DiskErrorKind::Io, message }),
            },
        }
    }

    /// Two different writes in flight to the same bytes would leave either: no caller may rely on that.
    fn assert_no_overlap(&self, new: &Work) {
        let Work::Write { inode, offset, data, .. } = new else { return };
        let end = offset + data.len() as u64;
        for other in self.in_flight.values() {
            let Work::Write { inode: other_inode, offset: other_offset, data: other_data, .. } = &other.work
            else {
                continue;
            };
            let (from, to) = (*offset.max(other_offset), end.min(other_offset + other_data.len() as u64));
            if inode == other_inode && from < to {
                let part =
                    |data: &Bytes, offset: u64| data.slice((from - offset) as usize..(to - offset) as usize);
                let same = part(data, *offset) == part(other_data, *other_offset);
                assert!(same, "different writes in flight to bytes {from}..{to}: {:?}", other.op);
            }
        }
    }

    fn perform(&mut self, work: Work) -> DiskResult {
        match work {
            Work::List { dir } => return Ok(DiskDone::Listed(self.list(&dir))),
            Work::Read { inode, offset, len } => {
                return Ok(DiskDone::Read(self.files[&inode].live.read(offset, len)));
            }
            Work::Fail(error) => return Err(error),
            Work::Create { path, len } => self.replace(&path, Content::zeros(len)),
            Work::Save { path, data } => {
                self.replace(&path, Content::of(&data));
                return Ok(DiskDone::Saved(data.len() as u64));
            }
            Work::Ran(done) => return Ok(DiskDone::Ran(done)),
            Work::Rename { from, to } => {
                let inode = *self.names.get(&from).ok_or_else(|| not_found(&from))?;
                self.existing_dir(parent(&to))?;
                self.change(DirChange::Rename { from, to, inode });
            }
            Work::Remove { path } => {
                if self.names.contains_key(&path) {
                    self.change(DirChange::Unlink { path });
                }
            }
            Work::SyncDir { dir, changes } => {
                self.existing_dir(&dir)?;
                self.sync_dir(&dir, changes);
            }
            Work::Write { path, inode, offset, data } => {
                if let Some(file) = self.files.get(&inode) {
                    self.frames.written(parent(&path), inode, offset, &data, &file.live);
                }
                self.write(inode, offset, &data, |_| (true, true));
            }
        }
        Ok(DiskDone::Done)
    }

    fn list(&self, dir: &str) -> Vec<DirEntry> {
        let files = self.names.iter().filter(|(path, _)| parent(path) == dir).map(|(path, inode)| DirEntry {
            name: name(path).into(),
            len: self.files[inode].live.len,
            is_dir: false,
        });
        let dirs = self.dirs.iter().filter(|path| !path.is_empty() && parent(path) == dir);
        let dirs = dirs.map(|path| DirEntry { name: name(path).into(), len: 0, is_dir: true });
        let mut entries: Vec<DirEntry> = files.chain(dirs).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    fn existing_dir(&self, dir: &str) -> Result<(), DiskError> {
        if self.dirs.contains(dir) { Ok(()) } else { Err(not_found(dir)) }
    }

    fn make_dirs(&mut self, path: &str) {
        let mut dir = parent(path);
        while !dir.is_empty() {
            self.dirs.insert(dir.into());
            dir = parent(dir);
        }
    }

    /// The file's inode, made and linked if it isn't there.
    fn open(&mut self, path: &DiskPath) -> Inode {
        if let Some(&inode) = self.names.get(path) {
            return inode;
        }
        self.make_dirs(path);
        let inode = self.inode_next;
        self.inode_next += 1;
        self.files.insert(inode, File::default());
        self.change(DirChange::Link { path: path.clone(), inode });
        inode
    }

    fn change(&mut self, change: DirChange) {
        match &change {
            DirChange::Rename { inode, .. } => self.frames.forget(*inode),
            DirChange::Unlink { path } => {
                self.names.get(path).into_iter().for_each(|inode| self.frames.forget(*inode));
            }
            DirChange::Link { .. } => {}
        }
        change.apply(&mut self.names);
        self.changes.insert(self.change_next, change);
        self.change_next += 1;
    }

    fn replace(&mut self, path: &DiskPath, content: Content) {
        let inode = self.open(path);
        self.frames.forget(inode);
        self.damaged.remove(&inode);
        let file = File { live: content.clone(), durable: content, unsynced: BTreeSet::new() };
        self.files.insert(inode, file);
    }

    fn sync_dir(&mut self, dir: &str, changes: u64) {
        let synced: Vec<u64> = self
            .changes
            .range(..changes)
            .filter(|(_, change)| change.dir() == dir)
            .map(|(number, _)| *number)
            .collect();
        for number in synced {
            if let Some(change) = self.changes.remove(&number) {
                change.apply(&mut self.durable_names);
            }
        }
        self.forget_unlinked();
    }

    /// Writes the sectors for which `lands` says so, live and durable.
    fn write(
        &mut self,
        inode: Inode,
        offset: u64,
        data: &[u8],
        mut lands: impl FnMut(&mut Random) -> (bool, bool),
    ) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        for (sector, bytes) in (offset / SECTOR_U64..).zip(data.chunks(SECTOR)) {
            let (live, durable) = lands(&mut self.random);
            if live {
                file.live.set(sector, bytes);
                file.live.len = file.live.len.max(sector * SECTOR_U64 + bytes.len() as u64);
                file.unsynced.insert(sector);
            }
            if live && durable {
                file.durable.copy_sector(&file.live, sector);
                file.durable.len = file.durable.len.max(sector * SECTOR_U64 + bytes.len() as u64);
                file.unsynced.remove(&sector);
            }
        }
    }

    /// What a crash or an error leaves of a call in flight.
    fn land_partly(&mut self, work: Work, crash: Crash) {
        // All, nothing, or a drawn share of it.
        let percent = *self.random.pick(&[0, 100, 50, 10, 90]);
        match work {
            Work::List { .. } | Work::Read { .. } | Work::SyncDir { .. } | Work::Ran(_) | Work::Fail(_) => {}
            Work::Rename { .. } | Work::Remove { .. } => {
                if self.random.percent(percent) {
                    // An error is a call that came too early or too late: it then did nothing.
                    let _ = self.perform(work);
                }
            }
            Work::Write { inode, offset, data, .. } => {
                let durable = if crash == Crash::Power { 100 } else { *self.random.pick(&[0, 50, 100]) };
                self.write(inode, offset, &data, |random| (random.percent(percent), random.percent(durable)));
            }
            Work::Create { path, len } => {
                let begun = self.random.percent(percent).then(|| Content::zeros(len));
                self.land_file(&path, begun);
            }
            Work::Save { path, data } => {
                let landed = self.random.between(0, data.len() as u64) as usize;
                let mut content = Content::of(&data[..landed]);
                content.sectors.retain(|_, _| self.random.percent(percent));
                self.land_file(&path, Some(content));
            }
        }
    }

    /// A file that was being replaced: untouched, empty, or with `content` cut anywhere.
    fn land_file(&mut self, path: &DiskPath, content: Option<Content>) {
        if self.random.percent(25) {
            return;
        }
        let mut content = content.unwrap_or_default();
        content.len = self.random.between(0, content.len);
        let last = content.len.div_ceil(SECTOR_U64);
        content.sectors.retain(|sector, _| *sector < last);
        self.replace(path, content);
    }

    /// A power cut: each sector and directory change that isn't durable lands or doesn't.
    fn lose_unsynced(&mut self) {
        for file in self.files.values_mut() {
            for sector in std::mem::take(&mut file.unsynced) {
                if self.random.percent(50) {
                    file.durable.copy_sector(&file.live, sector);
                    file.durable.len = file.durable.len.max((sector + 1) * SECTOR_U64).min(file.live.len);
                }
            }
            file.live = file.durable.clone();
        }
        let percent = *self.random.pick(&[0, 50, 100]);
        for (_, change) in std::mem::take(&mut self.changes) {
            if self.random.percent(percent) {
                change.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
    }
}

fn inode_of(change: &DirChange) -> Option<Inode> {
    match change {
        DirChange::Link { inode, .. } | DirChange::Rename { inode, .. } => Some(*inode),
        DirChange::Unlink { .. } => None,
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn not_found(path: &str) -> DiskError {
    DiskError { kind: DiskErrorKind::NotFound, message: format!("{path}: no such file or directory") }
}

/// A number for an op id, for traces.
pub fn op_number(op: OpId) -> u64 {
    let owner = match op.owner {
        OpOwner::Boot => 0,
        OpOwner::Recovery(stream) => 1 << 32 | u64::from(stream),
        OpOwner::Wal => 2 << 32,
        OpOwner::Store => 3 << 32,
    };
    owner ^ op.number.rotate_left(40)
}

#[cfg(test)]
mod tests;
