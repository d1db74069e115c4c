//! What a replicated state machine must do. `apply` is called on the core and does no I/O.

use crate::descriptor::KeyRange;
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

    /// Applies one committed command. Deterministic; never panics on any payload.
    fn apply(&mut self, at: Mark, payload: &[u8], range: &KeyRange) -> CommandResult;

    /// Reads the state as it is now, within `range`.
    fn read(&self, query: &Query, range: &KeyRange) -> QueryResult;

    /// The state as it is now, for readers on any thread: taken quickly, and unchanged by later commands.
    /// `None` = not possible; then every read goes through the core.
    fn view(&self) -> Option<Arc<dyn View>> {
        None
    }

    /// An immutable picture of the whole state, taken quickly and encoded elsewhere.
    fn dump(&self) -> Box<dyn Dump>;

    /// Replaces the whole state by a dump's bytes.
    ///
    /// # Errors
    /// The bytes are not a dump; the state is then empty.
    fn restore(&mut self, dump: &Bytes) -> Result<(), BadPayload>;

    /// Rough size of the state in bytes.
    fn size_bytes(&self) -> u64;

    /// A hash of the whole state, equal on every replica at the same mark.
    fn state_hash(&self) -> u64;
}

/// A state at one moment, read on any thread.
pub trait View: Send + Sync {
    /// The value of a key that lies in the shard's range.
    fn get(&self, key: &[u8]) -> Option<Versioned>;

    /// What [`StateMachine::read`] would have answered at that moment.
    fn read(&self, query: &Query, range: &KeyRange) -> QueryResult;
}

/// A picture of a state, to be encoded on another thread.
pub trait Dump: Send {
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
}

/// What a query found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryResult {
    /// A get's value.
    Value(Option<Versioned>),
    /// A scan's rows, and whether a limit ended it early.
    Rows(Vec<Row>, bool),
}
