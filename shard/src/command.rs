//! Commands of the built-in state machine: a batch of conditions and effects, atomic in one shard.
//!
//! ```text
//!  0  range epoch u64, little-endian: the descriptor by which the caller chose the shard
//!  8  rkyv archive of `Command`, its root at the end; 8-aligned if the whole is
//! ```
//! The first eight bytes belong to the shard layer and are in front of *every* state machine's payload; the
//! rest is the state machine's. A batch is encoded once ([`encode`]), copying each key and value
//! once, and from then on read in place, validated, on every replica.

use crate::archive::{Command, CommandView, Condition, ConditionView, Effect, EffectView};
use bytes::Bytes;
use rkyv::api::high::to_bytes_in;
use rkyv::rancor::Failure;
use rkyv::util::AlignedVec;
use std::fmt;

/// Version byte of entries of kind `Command`.
pub const COMMAND_VERSION: u8 = 1;
/// Bytes in front of a state machine's payload.
pub const COMMAND_HEAD_BYTES: usize = 8;
/// Longest key.
pub const KEY_BYTES_MAX: usize = 16 << 10;
/// Longest value.
pub const VALUE_BYTES_MAX: usize = 8 << 20;
/// Largest command, its head included.
pub const BATCH_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(COMMAND_HEAD_BYTES.is_multiple_of(8), "the archive behind it stays aligned");
const _: () = assert!(BATCH_BYTES_MAX + 4096 < floe_raft::ENTRY_BYTES_MAX, "a follower takes any command");
const _: () = assert!(VALUE_BYTES_MAX + KEY_BYTES_MAX < BATCH_BYTES_MAX, "one largest put fits");

/// Why a batch is not a command. Nothing was sent anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandError {
    /// A key without bytes.
    EmptyKey,
    /// A key longer than [`KEY_BYTES_MAX`]; its length.
    KeyTooLong(usize),
    /// A value longer than [`VALUE_BYTES_MAX`]; its length.
    ValueTooLong(usize),
    /// A batch larger than [`BATCH_BYTES_MAX`]; its size.
    BatchTooLarge(usize),
    /// A batch with neither conditions nor effects.
    EmptyBatch,
    /// A range delete whose end isn't above its start.
    EmptyRange,
    /// The bytes are not an archived command.
    Malformed,
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyKey => write!(f, "a key needs at least one byte"),
            Self::KeyTooLong(len) => write!(f, "a key of {len} bytes; at most {KEY_BYTES_MAX}"),
            Self::ValueTooLong(len) => write!(f, "a value of {len} bytes; at most {VALUE_BYTES_MAX}"),
            Self::BatchTooLarge(len) => write!(f, "a batch of {len} bytes; at most {BATCH_BYTES_MAX}"),
            Self::EmptyBatch => write!(f, "a batch without conditions and effects"),
            Self::EmptyRange => write!(f, "a range delete whose end is not above its start"),
            Self::Malformed => write!(f, "the bytes are not a command"),
        }
    }
}

impl std::error::Error for CommandError {}

/// A batch being built. Keys and values are reference-counted; they are copied once, by [`encode`].
///
/// ```
/// use floe_shard::WriteBatch;
/// let mut batch = WriteBatch::new();
/// batch.if_absent("lock").put("lock", "me").delete("queue/7");
/// let command = floe_shard::encode(&batch, 1)?;
/// # Ok::<(), floe_shard::CommandError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    conditions: Vec<OwnedCondition>,
    effects: Vec<OwnedEffect>,
}

#[derive(Clone, Debug)]
enum OwnedCondition {
    Equals(Bytes, Bytes),
    Absent(Bytes),
    Version(Bytes, u64),
}

#[derive(Clone, Debug)]
enum OwnedEffect {
    Put(Bytes, Bytes),
    Delete(Bytes),
    DeleteRange(Bytes, Bytes),
}

impl WriteBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key's value.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> &mut Self {
        self.effects.push(OwnedEffect::Put(key.into(), value.into()));
        self
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<Bytes>) -> &mut Self {
        self.effects.push(OwnedEffect::Delete(key.into()));
        self
    }

    /// Removes every key from `start`, inclusive, to `end`, exclusive; an empty `end` is the shard's end.
    /// Both must lie in one shard.
    pub fn delete_range(&mut self, start: impl Into<Bytes>, end: impl Into<Bytes>) -> &mut Self {
        self.effects.push(OwnedEffect::DeleteRange(start.into(), end.into()));
        self
    }

    /// Takes effect only if `key` has exactly this value.
    pub fn if_equals(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> &mut Self {
        self.conditions.push(OwnedCondition::Equals(key.into(), value.into()));
        self
    }

    /// Takes effect only if `key` doesn't exist.
    pub fn if_absent(&mut self, key: impl Into<Bytes>) -> &mut Self {
        self.conditions.push(OwnedCondition::Absent(key.into()));
        self
    }

    /// Takes effect only if `key` was last written by the command at log index `version`.
    pub fn if_version(&mut self, key: impl Into<Bytes>, version: u64) -> &mut Self {
        self.conditions.push(OwnedCondition::Version(key.into(), version));
        self
    }

    /// Whether it has neither conditions nor effects.
    pub fn is_empty(&self) -> bool {
        self.conditions.is_empty() && self.effects.is_empty()
    }

    /// Any key of the batch; with it the caller finds the shard. `None` if the batch is empty.
    pub fn first_key(&self) -> Option<&Bytes> {
        self.keys().next()
    }

    /// Every key that the batch names, a range delete by its start.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        let conditions = self.conditions.iter().map(|condition| match condition {
            OwnedCondition::Equals(key, _)
            | OwnedCondition::Absent(key)
            | OwnedCondition::Version(key, _) => key,
        });
        let effects = self.effects.iter().map(|effect| match effect {
            OwnedEffect::Put(key, _) | OwnedEffect::Delete(key) | OwnedEffect::DeleteRange(key, _) => key,
        });
        conditions.chain(effects)
    }
}

impl OwnedCondition {
    fn borrow(&self) -> Condition<'_> {
        match self {
            Self::Equals(key, value) => Condition::Equals { key, value },
            Self::Absent(key) => Condition::Absent { key },
            Self::Version(key, version) => Condition::Version { key, version: *version },
        }
    }
}

impl OwnedEffect {
    fn borrow(&self) -> Effect<'_> {
        match self {
            Self::Put(key, value) => Effect::Put { key, value },
            Self::Delete(key) => Effect::Delete { key },
            Self::DeleteRange(start, end) => Effect::DeleteRange { start, end },
        }
    }
}

/// Encodes a batch for the shard whose descriptor has this range version.
///
/// # Errors
/// Names the limit that the batch breaks.
pub fn encode(batch: &WriteBatch, range_epoch: u64) -> Result<Bytes, CommandError> {
    let conditions: Vec<_> = batch.conditions.iter().map(OwnedCondition::borrow).collect();
    let effects: Vec<_> = batch.effects.iter().map(OwnedEffect::borrow).collect();
    encode_command(&Command { conditions: &conditions, effects: &effects }, range_epoch)
}

/// Encodes one put without a [`WriteBatch`].
///
/// # Errors
/// Names the limit that key or value break.
pub fn encode_put(range_epoch: u64, key: &[u8], value: &[u8]) -> Result<Bytes, CommandError> {
    let effects = &[Effect::Put { key, value }];
    encode_command(&Command { conditions: &[], effects }, range_epoch)
}

/// Encodes one delete without a [`WriteBatch`].
///
/// # Errors
/// Names the limit that the key breaks.
pub fn encode_delete(range_epoch: u64, key: &[u8]) -> Result<Bytes, CommandError> {
    encode_command(&Command { conditions: &[], effects: &[Effect::Delete { key }] }, range_epoch)
}

fn encode_command(command: &Command<'_>, range_epoch: u64) -> Result<Bytes, CommandError> {
    let len = checked_len(command)?;
    let mut buffer = AlignedVec::<16>::with_capacity(len);
    buffer.extend_from_slice(&range_epoch.to_le_bytes());
    let buffer = to_bytes_in::<_, Failure>(command, buffer)
        .expect("writing into memory fails only on lengths above what was just checked");
    if buffer.len() > BATCH_BYTES_MAX {
        return Err(CommandError::BatchTooLarge(buffer.len()));
    }
    Ok(Bytes::from_owner(buffer))
}

/// Checks every limit; an upper bound of the encoded length, so that it is allocated once.
fn checked_len(command: &Command<'_>) -> Result<usize, CommandError> {
    if command.conditions.is_empty() && command.effects.is_empty() {
        return Err(CommandError::EmptyBatch);
    }
    let mut len = COMMAND_HEAD_BYTES + size_of::<CommandView>() + 16;
    for condition in command.conditions {
        len += size_of::<ConditionView>()
            + match condition {
                Condition::Equals { key, value } => check_pair(key, value)?,
                Condition::Absent { key } | Condition::Version { key, .. } => check_key(key)?,
            };
    }
    for effect in command.effects {
        len += size_of::<EffectView>()
            + match effect {
                Effect::Put { key, value } => check_pair(key, value)?,
                Effect::Delete { key } => check_key(key)?,
                Effect::DeleteRange { start, end } => check_bounds(start, end)?,
            };
    }
    if len > BATCH_BYTES_MAX { Err(CommandError::BatchTooLarge(len)) } else { Ok(len) }
}

fn check_key(key: &[u8]) -> Result<usize, CommandError> {
    match key.len() {
        0 => Err(CommandError::EmptyKey),
        len if len > KEY_BYTES_MAX => Err(CommandError::KeyTooLong(len)),
        len => Ok(len),
    }
}

fn check_pair(key: &[u8], value: &[u8]) -> Result<usize, CommandError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(CommandError::ValueTooLong(value.len()));
    }
    Ok(check_key(key)? + value.len())
}

/// An empty start is allowed: the first shard begins there.
fn check_bounds(start: &[u8], end: &[u8]) -> Result<usize, CommandError> {
    for bound in [start, end] {
        if bound.len() > KEY_BYTES_MAX {
            return Err(CommandError::KeyTooLong(bound.len()));
        }
    }
    if !end.is_empty() && end <= start { Err(CommandError::EmptyRange) } else { Ok(start.len() + end.len()) }
}

/// The range epoch and the state machine's payload of an entry of kind `Command`; `None` if it is too
/// short to be one.
pub fn split_head(command: &[u8]) -> Option<(u64, &[u8])> {
    let (head, payload) = command.split_first_chunk::<COMMAND_HEAD_BYTES>()?;
    Some((u64::from_le_bytes(*head), payload))
}

/// Validates a payload (a command without its head) and gives a view of it. Reads it in place if
/// it is 8-aligned, else from one copy.
///
/// # Errors
/// [`CommandError::Malformed`] for bytes that are no archived command.
pub fn with_command<T>(payload: &[u8], read: impl FnOnce(&CommandView) -> T) -> Result<T, CommandError> {
    if payload.as_ptr().addr().is_multiple_of(align_of::<ConditionView>()) {
        return access(payload).map(read);
    }
    let mut aligned = AlignedVec::<16>::with_capacity(payload.len());
    aligned.extend_from_slice(payload);
    access(&aligned).map(read)
}

fn access(payload: &[u8]) -> Result<&CommandView, CommandError> {
    rkyv::access::<CommandView, Failure>(payload).map_err(|_| CommandError::Malformed)
}

/// Checks the limits of a command that came from a caller: what [`encode`] guarantees of its own.
///
/// # Errors
/// Names the limit that it breaks.
pub fn check_limits(command: &CommandView) -> Result<(), CommandError> {
    if command.conditions.is_empty() && command.effects.is_empty() {
        return Err(CommandError::EmptyBatch);
    }
    for condition in command.conditions.iter() {
        match condition {
            ConditionView::Equals { key, value } => check_pair(key, value)?,
            ConditionView::Absent { key } | ConditionView::Version { key, .. } => check_key(key)?,
        };
    }
    for effect in command.effects.iter() {
        match effect {
            EffectView::Put { key, value } => check_pair(key, value)?,
            EffectView::Delete { key } => check_key(key)?,
            EffectView::DeleteRange { start, end } => check_bounds(start, end)?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_back_as_it_was_built() {
        let mut batch = WriteBatch::new();
        batch.if_equals("k", "v").if_absent("n").if_version("w", 9);
        batch.put("a", vec![7; 1000]).delete("b").delete_range("c", "d");
        let bytes = encode(&batch, 5).unwrap();
        let (epoch, payload) = split_head(&bytes).unwrap();
        assert_eq!(epoch, 5);
        let check = |command: &CommandView| {
            assert_eq!((command.conditions.len(), command.effects.len()), (3, 3));
            let ConditionView::Version { key, version } = &command.conditions[2] else { panic!() };
            assert_eq!((key.get(), version.to_native()), (&b"w"[..], 9));
            let EffectView::Put { key, value } = &command.effects[0] else { panic!() };
            assert_eq!((key.get(), value.get()), (&b"a"[..], &[7; 1000][..]));
            check_limits(command)
        };
        assert_eq!(with_command(payload, check), Ok(Ok(())));
        for shift in 0..16 {
            let mut shifted = vec![0; shift];
            shifted.extend_from_slice(payload);
            assert_eq!(with_command(&shifted[shift..], check), Ok(Ok(())), "shifted by {shift}");
        }
    }

    #[test]
    fn every_limit_is_named() {
        let key = vec![1; KEY_BYTES_MAX + 1];
        let value = vec![1; VALUE_BYTES_MAX + 1];
        assert_eq!(encode_put(1, b"", b""), Err(CommandError::EmptyKey));
        assert_eq!(encode_put(1, &key, b""), Err(CommandError::KeyTooLong(KEY_BYTES_MAX + 1)));
        assert_eq!(encode_delete(1, &key), Err(CommandError::KeyTooLong(KEY_BYTES_MAX + 1)));
        assert_eq!(encode_put(1, b"k", &value), Err(CommandError::ValueTooLong(VALUE_BYTES_MAX + 1)));
        assert_eq!(encode(&WriteBatch::new(), 1), Err(CommandError::EmptyBatch));
        assert_eq!(encode(WriteBatch::new().delete_range("b", "a"), 1), Err(CommandError::EmptyRange));
        let mut batch = WriteBatch::new();
        let value = Bytes::from(vec![1; VALUE_BYTES_MAX]);
        batch.put("a", value.clone()).put("b", value);
        assert!(matches!(encode(&batch, 1), Err(CommandError::BatchTooLarge(_))));
        assert!(encode_put(1, &key[1..], &[1; 100]).is_ok());
    }

    #[test]
    fn no_bytes_make_the_reader_panic() {
        let bytes = encode(WriteBatch::new().if_absent("n").put("a", "b").delete_range("c", "d"), 1).unwrap();
        let payload = &bytes[COMMAND_HEAD_BYTES..];
        let touch = |command: &CommandView| check_limits(command).is_ok();
        for at in 0..payload.len() {
            let _ = with_command(&payload[..at], touch);
            for bit in 0..8 {
                let mut damaged = payload.to_vec();
                damaged[at] ^= 1 << bit;
                let _ = with_command(&damaged, touch);
            }
        }
    }
}
