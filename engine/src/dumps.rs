//! Files of state machine dumps: `dump/s<shard>-r<replica>-g<generation>`; and the jobs of state machines, which read
//! files of their own.
//!
//! A dump is saved under a temporary name, renamed, and its directory synced; only then may a WAL
//! record name it. A file that no record names is a stray and is removed at start.

use crate::disk::{DiskCall, DiskCalls, DiskDone, DiskPath, DiskResult, OpId, OpOwner};
use bytes::Bytes;
use floe_raft::{Planted, ReplicaId, is_planted};
use floe_shard::output::{DumpRead, DumpRemove, DumpSave};
use floe_shard::state_machine::Job;
use floe_shard::{MultiRaft, ShardId};
use std::collections::BTreeMap;

/// The directory, below the node's.
pub const DUMP_DIR: &str = "dump";

/// A dump's file.
pub fn dump_path(shard: ShardId, replica: ReplicaId, generation: u64) -> DiskPath {
    format!("{DUMP_DIR}/{}", dump_name(shard, replica, generation)).into()
}

/// A dump's file name without the directory.
pub fn dump_name(shard: ShardId, replica: ReplicaId, generation: u64) -> String {
    format!("s{:016x}-r{:x}-g{generation:x}", shard.0, replica.get())
}

/// Which shard a file in the directory belongs to; also for temporary names.
pub fn dump_shard(name: &str) -> Option<ShardId> {
    let id = name.strip_prefix('s')?.get(..16)?;
    u64::from_str_radix(id, 16).ok().map(ShardId)
}

#[derive(Clone, Copy)]
enum Step {
    Save,
    /// So many bytes are saved.
    Rename(u64),
    Sync(u64),
}

enum Op {
    Save { shard: ShardId, replica: ReplicaId, generation: u64, step: Step },
    Read { token: u64, len: usize },
    Remove,
    Job { token: u64 },
}

/// Carries the dumps of one core to and from the disk.
#[derive(Default)]
pub struct Dumps {
    ops: BTreeMap<u64, Op>,
    next: u64,
}

impl Dumps {
    /// Begins to save a dump.
    pub fn save(&mut self, save: DumpSave, calls: &mut DiskCalls) {
        let DumpSave { shard, replica, generation, data, is_long } = save;
        let path = temporary(shard, replica, generation);
        let op = Op::Save { shard, replica, generation, step: Step::Save };
        self.issue(op, DiskCall::Save { path, data, is_long }, calls);
    }

    /// Begins to read a part of a dump.
    pub fn read(&mut self, read: DumpRead, calls: &mut DiskCalls) {
        let DumpRead { token, shard, replica, generation, offset, len } = read;
        let (path, len) = (dump_path(shard, replica, generation), len as usize);
        self.issue(Op::Read { token, len }, DiskCall::Read { path, offset, len }, calls);
    }

    /// Removes a dump; nobody waits for it.
    pub fn remove(&mut self, remove: DumpRemove, calls: &mut DiskCalls) {
        let path = dump_path(remove.shard, remove.replica, remove.generation);
        self.issue(Op::Remove, DiskCall::Remove { path }, calls);
    }

    /// Begins a state machine's job.
    pub fn run(&mut self, (token, job): (u64, Job), is_long: bool, calls: &mut DiskCalls) {
        self.issue(Op::Job { token }, DiskCall::Run { job, is_long }, calls);
    }

    /// Takes a call's outcome and tells the replicas.
    pub fn on_disk(&mut self, number: u64, result: DiskResult, multi: &mut MultiRaft, calls: &mut DiskCalls) {
        match self.ops.remove(&number).expect("a completion names a call in flight") {
            Op::Save { shard, replica, generation, step } => match result {
                Ok(done) => self.advance(shard, replica, generation, (step, done), multi, calls),
                Err(error) => {
                    tracing::warn!(%shard, generation, %error, "a dump could not be saved; it will be tried again");
                    multi.dump_saved(shard, replica, generation, Err(error.to_string()));
                }
            },
            Op::Read { token, len } => multi.dump_read(token, read_bytes(result, len)),
            Op::Job { token } => {
                let done = match result {
                    Ok(DiskDone::Ran(done)) => Ok(done),
                    Ok(other) => panic!("a job was answered by {other:?}"),
                    Err(error) => Err(error.to_string()),
                };
                if let Err(error) = &done {
                    tracing::error!(%error, "a state machine's files can't be read or written");
                }
                multi.job_done(token, done);
            }
            Op::Remove => {
                if let Err(error) = result {
                    tracing::warn!(%error, "an old dump could not be removed; the next start tries again");
                }
            }
        }
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty()
    }

    fn advance(
        &mut self,
        shard: ShardId,
        replica: ReplicaId,
        generation: u64,
        done: (Step, DiskDone),
        multi: &mut MultiRaft,
        calls: &mut DiskCalls,
    ) {
        let (step, call) = match done {
            (Step::Save, DiskDone::Saved(len)) => {
                let (from, to) =
                    (temporary(shard, replica, generation), dump_path(shard, replica, generation));
                (Step::Rename(len), DiskCall::Rename { from, to })
            }
            (Step::Rename(len), _) if is_planted(Planted::DumpNameNotSynced) => {
                return multi.dump_saved(shard, replica, generation, Ok(len));
            }
            (Step::Rename(len), _) => (Step::Sync(len), DiskCall::SyncDir { dir: DUMP_DIR.into() }),
            (Step::Sync(len), _) => return multi.dump_saved(shard, replica, generation, Ok(len)),
            (Step::Save, other) => panic!("saving a dump was answered by {other:?}"),
        };
        self.issue(Op::Save { shard, replica, generation, step }, call, calls);
    }

    fn issue(&mut self, op: Op, call: DiskCall, calls: &mut DiskCalls) {
        self.next += 1;
        self.ops.insert(self.next, op);
        calls.push((OpId { owner: OpOwner::Store, number: self.next }, call));
    }
}

fn temporary(shard: ShardId, replica: ReplicaId, generation: u64) -> DiskPath {
    format!("{DUMP_DIR}/{}.new", dump_name(shard, replica, generation)).into()
}

fn read_bytes(result: DiskResult, len: usize) -> Result<Bytes, String> {
    match result {
        Ok(DiskDone::Read(bytes)) if bytes.len() <= len => Ok(bytes),
        Ok(other) => Err(format!("a read answered {other:?}")),
        Err(error) => Err(error.to_string()),
    }
}
