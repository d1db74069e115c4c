//! A key as the memory store keeps it: its first bytes lie beside the reference to the whole.
//!
//! A lookup in a map of a million keys compares some twenty of them. Were each behind a pointer, each would be
//! a cache miss; most comparisons are decided by the first 16 bytes alone.

use bytes::Bytes;
use std::cmp::Ordering;

const HEAD_BYTES: usize = 16;

/// A key, ordered as its bytes are.
#[derive(Clone)]
pub(crate) struct StoredKey {
    /// The first 16 bytes, big-endian, padded with zeros: where two differ they order as the keys do,
    /// because a shorter key is padded with the smallest byte.
    head: u128,
    bytes: Bytes,
}

impl StoredKey {
    /// Copies the key, so that it pins no bigger buffer.
    pub(crate) fn copy(key: &[u8]) -> Self {
        Self::of(Bytes::copy_from_slice(key))
    }

    /// Takes the key as it is.
    pub(crate) fn of(bytes: Bytes) -> Self {
        let mut head = [0; HEAD_BYTES];
        let len = bytes.len().min(HEAD_BYTES);
        head[..len].copy_from_slice(&bytes[..len]);
        Self { head: u128::from_be_bytes(head), bytes }
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Ord for StoredKey {
    /// Touches the bytes behind the reference only if both keys are longer than their equal heads.
    fn cmp(&self, other: &Self) -> Ordering {
        let by_rest = || match (self.bytes.get(HEAD_BYTES..), other.bytes.get(HEAD_BYTES..)) {
            (Some(one), Some(two)) if !one.is_empty() && !two.is_empty() => one.cmp(two),
            _ => self.len().cmp(&other.len()),
        };
        self.head.cmp(&other.head).then_with(by_rest)
    }
}

impl PartialOrd for StoredKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for StoredKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for StoredKey {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_their_bytes_are() {
        let long = [7; 40];
        let mut other = long;
        other[20] = 8;
        let keys: [&[u8]; 10] = [b"", b"\0", b"\0\0", b"a", b"a\0", b"ab", b"b", &long[..16], &long, &other];
        for one in keys {
            for two in keys {
                assert_eq!(StoredKey::copy(one).cmp(&StoredKey::copy(two)), one.cmp(two), "{one:?} {two:?}");
            }
        }
    }
}
