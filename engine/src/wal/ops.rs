//! The writer's disk calls in flight, by number.

use crate::disk::{DiskCall, DiskCalls, DiskPath, OpId, OpOwner};
use std::collections::BTreeMap;

/// What a call was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The frame with this sequence.
    Frame(u64),
    /// A step of making a segment.
    Supply,
    /// A file that is no longer needed, of this many bytes.
    Remove(u64),
}

/// A call in flight.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub purpose: Purpose,
    pub path: DiskPath,
    pub offset: u64,
}

/// Hands out numbers and remembers what they stand for.
#[derive(Debug, Default)]
pub(super) struct Ops {
    last: u64,
    open: BTreeMap<u64, Op>,
}

impl Ops {
    pub fn issue(&mut self, purpose: Purpose, call: DiskCall, calls: &mut DiskCalls) {
        self.last += 1;
        let (path, offset) = target(&call);
        self.open.insert(self.last, Op { purpose, path, offset });
        calls.push((OpId { owner: OpOwner::Wal, number: self.last }, call));
    }

    /// # Panics
    /// If no call with this number is in flight.
    pub fn complete(&mut self, number: u64) -> Op {
        self.open.remove(&number).unwrap_or_else(|| panic!("the log has no call {number} in flight"))
    }
}

fn target(call: &DiskCall) -> (DiskPath, u64) {
    match call {
        DiskCall::List { dir: path }
        | DiskCall::SyncDir { dir: path }
        | DiskCall::Create { path, .. }
        | DiskCall::Rename { to: path, .. }
        | DiskCall::Remove { path }
        | DiskCall::Save { path, .. } => (path.clone(), 0),
        DiskCall::Run { .. } => unreachable!("the log runs no jobs"),
        DiskCall::Read { path, offset, .. } | DiskCall::Write { path, offset, .. } => (path.clone(), *offset),
    }
}
