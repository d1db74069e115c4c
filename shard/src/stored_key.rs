//! A key as the memory store keeps it: its first bytes lie beside the reference to the whole.
//!
//! A lookup in a map of a million keys compares some twenty of them. Were each behind a pointer, each would be
//! a cache miss; most comparisons are decided by the first 16 bytes alone.

use bytes::Bytes;

/// A key, ordered as its bytes are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
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
        let mut head = [0; 16];
        let len = bytes.len().min(16);
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
