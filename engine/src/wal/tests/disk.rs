//! A disk in memory that keeps apart what reads see and what a power failure leaves.

use crate::disk::{
    BLOCK, DirEntry, DiskCall, DiskCalls, DiskDone, DiskError, DiskErrorKind, DiskResult, OpId,
};
use bytes::Bytes;
use std::collections::BTreeMap;

const SECTOR: usize = 512;

/// xorshift64*; the tests' only source of chance.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Default)]
pub struct File {
    pub live: Vec<u8>,
    pub durable: Vec<u8>,
}

#[derive(Clone)]
pub enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String),
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Link(name, file) => drop(names.insert(name.clone(), *file)),
        NameChange::Unlink(name) => drop(names.remove(name)),
        NameChange::Rename(from, to) => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
    }
}

/// A call in flight; the data of writes is encoded already.
pub struct Pending {
    pub id: OpId,
    pub call: DiskCall,
    pub data: Vec<u8>,
}

#[derive(Clone, Default)]
pub struct Disk {
    pub files: Vec<File>,
    pub names: BTreeMap<String, usize>,
    pub names_durable: BTreeMap<String, usize>,
    pub changes: Vec<NameChange>,
    /// Bytes that may be used in all; 0 = no limit.
    pub capacity: u64,
    /// Calls executed so far, and which of them fails how.
    pub calls: u64,
    pub fail: Option<(u64, DiskErrorKind)>,
    pub renames: u64,
    pub creates: u64,
}

/// Takes calls over from a state machine, encoding what is to be written, last call first: encoders must not depend on
/// the order.
pub fn take(calls: &mut DiskCalls, pending: &mut Vec<Pending>) {
    let first = pending.len();
    for (id, call) in calls.drain(..).rev() {
        let mut data = Vec::new();
        if let DiskCall::Write { data: recipe, offset, .. } = &call {
            assert!(recipe.len().is_multiple_of(BLOCK) && offset.is_multiple_of(BLOCK as u64), "{call:?}");
            data = vec![0xEE; recipe.len()];
            recipe.encode_into(&mut data);
        }
        pending.insert(first, Pending { id, call, data });
    }
}

fn error(kind: DiskErrorKind, message: String) -> DiskResult {
    Err(DiskError { kind, message })
}

impl Disk {
    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.changes.push(change);
    }

    pub fn used(&self) -> u64 {
        self.names.values().map(|&file| self.files[file].live.len() as u64).sum()
    }

    pub fn execute(&mut self, call: &DiskCall, data: &[u8]) -> DiskResult {
        self.calls += 1;
        if let Some((at, kind)) = self.fail
            && at == self.calls
        {
            return error(kind, format!("call {at} fails: {call:?}"));
        }
        match call {
            DiskCall::List { dir } => Ok(DiskDone::Listed(self.list(dir))),
            DiskCall::Create { path, len } => {
                self.creates += 1;
                if self.capacity > 0 && self.used() + len > self.capacity {
                    self.create(path, *len as usize / 2);
                    return error(DiskErrorKind::Full, format!("{path}: no space"));
                }
                self.create(path, *len as usize);
                Ok(DiskDone::Done)
            }
            DiskCall::Rename { from, to } => {
                assert!(self.names.contains_key(&**from), "{call:?}");
                self.renames += 1;
                self.change(NameChange::Rename(from.to_string(), to.to_string()));
                Ok(DiskDone::Done)
            }
            DiskCall::Remove { path } => {
                self.change(NameChange::Unlink(path.to_string()));
                Ok(DiskDone::Done)
            }
            DiskCall::SyncDir { .. } => {
                self.names_durable = self.names.clone();
                self.changes.clear();
                Ok(DiskDone::Done)
            }
            DiskCall::Read { path, offset, len } => {
                let bytes = &self.files[self.names[&**path]].live;
                let from = (*offset as usize).min(bytes.len());
                let to = (from + len).min(bytes.len());
                Ok(DiskDone::Read(Bytes::copy_from_slice(&bytes[from..to])))
            }
            DiskCall::Write { path, offset, .. } => {
                let file = self.names[&**path];
                let (at, file) = (*offset as usize, &mut self.files[file]);
                file.live[at..at + data.len()].copy_from_slice(data);
                file.durable[at..at + data.len()].copy_from_slice(data);
                Ok(DiskDone::Done)
            }
            DiskCall::Run { .. } => unreachable!("the log runs no jobs"),
            DiskCall::Save { .. } => panic!("the log doesn't save files"),
        }
    }

    fn create(&mut self, path: &str, len: usize) {
        self.files.push(File { live: vec![0; len], durable: vec![0; len] });
        self.change(NameChange::Link(path.to_string(), self.files.len() - 1));
    }

    fn list(&self, dir: &str) -> Vec<DirEntry> {
        let inside = self.names.iter().filter_map(|(name, &file)| {
            let name = name.strip_prefix(dir)?.strip_prefix('/')?.to_string();
            Some(DirEntry { name, len: self.files[file].live.len() as u64, is_dir: false })
        });
        inside.collect()
    }

    /// The process ends: any sectors of writes in flight have reached the device, but maybe only its cache.
    pub fn kill(&mut self, pending: Vec<Pending>, rng: &mut Rng) {
        for Pending { call, data, .. } in pending {
            match &call {
                DiskCall::Write { path, offset, .. } => self.tear(&call, path, *offset as usize, &data, rng),
                DiskCall::Create { path, len } if rng.one_in(2) => {
                    self.create(path, rng.below(*len + 1) as usize);
                }
                DiskCall::Rename { .. } | DiskCall::Remove { .. } if rng.one_in(2) => {
                    self.execute(&call, &[]).expect("names can always be changed");
                }
                _ => {}
            }
        }
        self.fail = None;
    }

    fn tear(&mut self, call: &DiskCall, path: &str, at: usize, data: &[u8], rng: &mut Rng) {
        let file = self.names.get(path).copied();
        let file = &mut self.files[file.unwrap_or_else(|| panic!("{call:?} into a file that isn't there"))];
        let style = rng.below(4);
        let cut = rng.below(data.len() as u64 + 1) as usize;
        for (number, sector) in data.chunks(SECTOR).enumerate() {
            let lands = match style {
                0 => false,
                1 => number * SECTOR < cut,
                2 => true,
                _ => rng.one_in(2),
            };
            if lands {
                let at = at + number * SECTOR;
                file.live[at..at + sector.len()].copy_from_slice(sector);
            }
        }
    }

    /// The power fails: of what is not durable any part may be lost.
    pub fn power_failure(&mut self, pending: Vec<Pending>, rng: &mut Rng) {
        self.kill(pending, rng);
        let kept = rng.below(self.changes.len() as u64 + 1) as usize;
        let mut names = self.names_durable.clone();
        for change in &self.changes[..kept] {
            apply(&mut names, change);
        }
        self.changes.clear();
        (self.names, self.names_durable) = (names.clone(), names);
        let all = rng.one_in(2);
        for file in &mut self.files {
            for (live, durable) in file.live.chunks_mut(SECTOR).zip(file.durable.chunks_mut(SECTOR)) {
                if live != durable && (all || rng.one_in(2)) {
                    live.copy_from_slice(durable);
                }
                durable.copy_from_slice(live);
            }
        }
    }

    pub fn paths(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    /// What is on the medium, to be looked at or damaged.
    pub fn bytes(&mut self, path: &str) -> &mut Vec<u8> {
        &mut self.files[self.names[path]].live
    }

    pub fn remove(&mut self, path: &str) {
        self.names.remove(path);
        self.names_durable.remove(path);
    }
}
