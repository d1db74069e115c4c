//! The archived layout of a command: what is in the log, on the wire, and read in place.
//!
//! Keys and values are borrowed while encoding, so that their bytes are copied once.

// The derive makes types for the variants' fields without carrying the docs over; every field here has its own.
#![allow(missing_docs)]

use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};

/// What must hold for a batch to take effect.
#[derive(Archive, Serialize, Clone, Copy, Debug)]
pub enum Condition<'a> {
    /// The key has exactly this value.
    Equals {
        /// The key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
        /// Its value.
        #[rkyv(with = InlineAsBox)]
        value: &'a [u8],
    },
    /// The key doesn't exist.
    Absent {
        /// The key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
    },
    /// The key exists and was last written by the command at this log index.
    Version {
        /// The key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
        /// Its version.
        version: u64,
    },
}

/// What a batch does. Effects take place in order.
#[derive(Archive, Serialize, Clone, Copy, Debug)]
pub enum Effect<'a> {
    /// Sets a key's value.
    Put {
        /// The key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
        /// Its value from now on.
        #[rkyv(with = InlineAsBox)]
        value: &'a [u8],
    },
    /// Removes a key, if it is there.
    Delete {
        /// The key.
        #[rkyv(with = InlineAsBox)]
        key: &'a [u8],
    },
    /// Removes every key from `start`, inclusive, to `end`, exclusive.
    DeleteRange {
        /// First key.
        #[rkyv(with = InlineAsBox)]
        start: &'a [u8],
        /// First key after the range; empty = to the shard's end.
        #[rkyv(with = InlineAsBox)]
        end: &'a [u8],
    },
}

/// A command as it is archived.
#[derive(Archive, Serialize, Clone, Copy, Debug)]
pub struct Command<'a> {
    /// All must hold, or nothing takes effect.
    #[rkyv(with = InlineAsBox)]
    pub conditions: &'a [Condition<'a>],
    /// In order.
    #[rkyv(with = InlineAsBox)]
    pub effects: &'a [Effect<'a>],
}

/// A command read in place.
pub type CommandView = ArchivedCommand<'static>;
/// A condition read in place.
pub type ConditionView = ArchivedCondition<'static>;
/// An effect read in place.
pub type EffectView = ArchivedEffect<'static>;

// The archived layout is the wire and log format: a change here is a new COMMAND_VERSION.
const _: () = assert!(size_of::<CommandView>() == 16 && align_of::<CommandView>() == 4);
const _: () = assert!(size_of::<EffectView>() == 20 && align_of::<EffectView>() == 4);
const _: () = assert!(size_of::<ConditionView>() == 24 && align_of::<ConditionView>() == 8);
