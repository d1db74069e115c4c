//! What a replicated state machine must do. Everything but a [`Job`] and [`Dump::write`] is called on the core and
//! does no I/O; only `restore` may read the machine's own files, at start.
//!
//! A machine keeps its state in memory, and then its whole picture is saved from time to time; or it has files of its own
//! ([`StateMachine::has_files`]), and then it answers `flush` and `stage`, too.

use crate::descriptor::KeyRange;
use crate::dump_file::DumpHead;
use crate::request::{Query, Row, Versioned};
use bytes::Bytes;
use floe_raft::Mark;
use std::io::{self, Write};
use std::sync::Arc;

/// A shard's state. Everything it does must be a function of the commands applied so far.
pub trait StateMachine: Send {
    /// Checks a command's payload where it enters a node: that it is well-formed, within the limits
    /// and within `range`. What passes here is applied without further doubt on every replica of
    /// the same version.
    ///
    /// # Errors
    /// Says what is wrong; the caller gets it as `BadCommand` or `OutOfRange`.
    fn check(&self, payload: &[u8], range: &KeyRange) -> Result<(), BadPayload>;

    /// Applies one committed command. Deterministic; never panics on any payload. [`CommandResult::Pending`] says that
    /// nothing was changed and the same command is to be applied again once [`StateMachine::fetch`]'s job is done.
    fn apply(&mut self, at: Mark, payload: &[u8], range: &KeyRange) -> CommandResult;

    /// What brings into memory what the command that was `Pending` needs. Asked for only after one was.
    fn fetch(&mut self) -> Job {
        panic!("a machine that answers `Pending` says what it waits for")
    }

    /// Reads the state as it is now, within `range`. Not asked for what `read_job` takes over.
    fn read(&self, query: &Query, range: &KeyRange) -> QueryResult;

    /// A read that may have to wait for the disk, for a background thread; it sees the state as it is now. `None` =
    /// `read` answers from memory.
    fn read_job(&self, _query: &Query, _range: &KeyRange) -> Option<Job> {
        None
    }

    /// The state as it is now, for readers on any thread: taken quickly, and unchanged by later commands.
    /// `None` = not possible; then every read goes through the core, and each page of a scan (1 MiB of rows) is a
    /// snapshot of its own.
    fn view(&self) -> Option<Arc<dyn View>> {
        None
    }

    /// An immutable picture of the whole state, taken quickly and written elsewhere.
    fn dump(&self) -> Box<dyn Dump>;

    /// Whether the machine keeps its state in files of its own. Never changes.
    fn has_files(&self) -> bool {
        false
    }

    /// Makes the state durable in the machine's own files, together with `head`, which says where it stands: in
    /// [`Dump::write`]. The dump merely names them, for this node; what an earlier dump named may go once this one
    /// is about to be written. `None` = not now: it is asked for again a second later. Asked for only if there are files.
    fn flush(&mut self, _head: &DumpHead) -> Option<Box<dyn Dump>> {
        panic!("a machine with files flushes into them")
    }

    /// A whole dump is about to come from elsewhere: what puts it, part by part, into files that
    /// [`StateMachine::restore`] only has to swap in. Asked for only if there are files.
    fn stage(&mut self) -> Box<dyn Stage> {
        panic!("a machine with files puts dumps into them")
    }

    /// What was staged last isn't going to be restored: its files may go, even while they are being written.
    fn unstage(&mut self) {}

    /// Memory that a flush would free, for choosing what to flush. 0 for a machine without files.
    fn unflushed_bytes(&self) -> u64 {
        0
    }

    /// The dump that [`StateMachine::flush`] gave is saved, or couldn't be: memory of what its files hold now can be let
    /// go. Commands may not come before that memory is free again.
    fn flush_ended(&mut self) {}

    /// How short memory for what isn't flushed runs, on this node as a whole.
    fn pressure(&self) -> Pressure {
        Pressure::None
    }

    /// Replaces the whole state by a dump's bytes; a machine with files, by those that they name.
    ///
    /// # Errors
    /// The bytes are not a dump, or name files that don't hold what they should; the state is then empty.
    fn restore(&mut self, dump: &Bytes) -> Result<(), BadPayload>;

    /// A durable record names the transferred dump that was restored last: files of the states before it may go.
    fn installed(&mut self) {}

    /// Where the state stands that was found in files which are *ahead* of the dump restored from: a crash came
    /// between a flush and the record that names it. `None` = where the dump says.
    fn newer(&self) -> Option<DumpHead> {
        None
    }

    /// The replica is gone for good: its files may go, too.
    fn destroy(&mut self) {}

    /// Rough size of the state in bytes.
    fn size_bytes(&self) -> u64;

    /// A hash of the whole state, equal on every replica at the same mark.
    fn state_hash(&self) -> u64;
}

/// How short memory for what isn't flushed runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// It doesn't.
    None,
    /// The machines that hold the most are to be flushed.
    Tight,
    /// And no commands are to be taken in meanwhile.
    Full,
}

/// Work for a background thread; it may wait for the disk. An error says which file is to blame.
pub type Job = Box<dyn FnOnce() -> Result<JobDone, String> + Send>;

/// What a [`Job`] brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobDone {
    /// What was to be done is: what a command waits for is in memory, a part of a dump is taken in.
    Done,
    /// What a query found.
    Read(QueryResult),
    /// The bytes that name the files which a whole dump was put into.
    Staged(Bytes),
}

/// A state at one moment, read on any thread; reads may wait for the disk.
pub trait View: Send + Sync {
    /// The value of a key that lies in the shard's range.
    ///
    /// # Errors
    /// A file of the machine's can't be read, or is damaged.
    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, String>;

    /// What [`StateMachine::read`] would have answered at that moment.
    ///
    /// # Errors
    /// As for [`View::get`].
    fn read(&self, query: &Query, range: &KeyRange) -> Result<QueryResult, String>;
}

/// Puts a whole dump from elsewhere into a machine's own files. One job at a time is under way. When it is dropped, or the
/// machine is told to [`StateMachine::unstage`], before what it staged is restored, nothing is left of it.
pub trait Stage: Send {
    /// The job that takes in the next part of the dump's body; cuts lie anywhere. It brings [`JobDone::Done`]. Of what was
    /// taken in, a bounded part may lie in memory.
    fn take(&mut self, part: Bytes) -> Job;

    /// All parts were taken in, and are what was sent: the job that makes them durable, together with `head`. It brings
    /// [`JobDone::Staged`].
    fn finish(&mut self, head: &DumpHead) -> Job;
}

/// A picture of a state, to be written on another thread.
pub trait Dump: Send {
    /// Does what has to be durable before the dump is, then writes it in pieces of any length. Takes memory for a few
    /// pieces, however large the state is.
    ///
    /// # Errors
    /// That of `out`; or it can't be done now: nothing is saved, and the dump is tried again later.
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()>;
}

/// Bytes that are a dump already.
impl Dump for Bytes {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self)
    }
}

/// A payload that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadPayload {
    /// A key lies outside of the range.
    OutOfRange,
    /// Not a command of this state machine, or over a limit.
    Malformed(String),
}

/// What came of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandResult {
    /// Its effects are in the state.
    Written,
    /// The condition with this number, counted from 0, didn't hold: no effects.
    ConditionFailed(u32),
    /// A key lies outside of the range: no effects.
    OutOfRange,
    /// Not a command: no effects.
    Malformed,
    /// Not applied yet: something isn't in memory.
    Pending,
}

/// What a query found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryResult {
    /// A get's value.
    Value(Option<Versioned>),
    /// A scan's rows, and whether a limit ended it early.
    Rows(Vec<Row>, bool),
}
