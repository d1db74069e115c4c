//! What a replicated state machine must do. Everything but a [`Job`] and [`Dump::prepare`] is called on the core and
//! does no I/O; only `restore` may read the machine's own files, at start.

use crate::descriptor::KeyRange;
use crate::dump_file::DumpHead;
use crate::request::{Query, Row, Versioned};
use bytes::Bytes;
use floe_raft::Mark;
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

    /// An immutable picture of the whole state, taken quickly and encoded elsewhere.
    fn dump(&self) -> Box<dyn Dump>;

    /// Makes the state durable in files of the machine's own, together with `head`, which says where it stands: in
    /// [`Dump::prepare`]. The dump merely names them, for this node; what an earlier dump named may go once this one
    /// is prepared. `None` = the machine has no files, and its whole picture is saved.
    fn flush(&mut self, _head: &DumpHead) -> Option<Box<dyn Dump>> {
        None
    }

    /// A whole dump that came from elsewhere, before it takes the place of the state: a machine with files of its own puts
    /// it into some, in [`Dump::prepare`], together with `head`, so that [`StateMachine::restore`] only has to swap them
    /// in. `None` = the machine has no files, and the dump is saved as it came.
    fn stage(&mut self, _head: &DumpHead, _body: &Bytes) -> Option<Staged> {
        None
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

    /// Replaces the whole state by a dump's bytes, or by what was staged, which its [`Staged::body`] names.
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
    /// What a command waits for is in memory.
    Fetched,
    /// What a query found.
    Read(QueryResult),
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

/// A dump from elsewhere on its way into a machine's own files.
pub struct Staged {
    /// Puts it there, and then encodes to `body`.
    pub dump: Box<dyn Dump>,
    /// The bytes that name the files.
    pub body: Bytes,
}

/// A picture of a state, to be encoded on another thread.
pub trait Dump: Send {
    /// Does what has to be durable before the dump is; called once, before the other methods, in the background.
    ///
    /// # Errors
    /// It can't be done now; nothing is saved, and the flush is tried again later.
    fn prepare(&mut self) -> Result<(), String> {
        Ok(())
    }
    /// Exactly how many bytes `encode_into` writes.
    fn len(&self) -> usize;
    /// Whether it encodes to nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buffer`, whose length is exactly `len()`.
    fn encode_into(&self, buffer: &mut [u8]);
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
