//! A key as stores keep it in memory: its first 16 bytes in place, only the rest behind a pointer.
//!
//! A lookup in a map of a million keys compares some twenty of them. Were each behind a pointer, each
//! would be a cache miss; most comparisons are decided by the first 16 bytes alone. A key that has no
//! more than these costs no allocation, not when it is stored and not when it is looked up.

use bytes::Bytes;
use std::cmp::Ordering;
use std::sync::Arc;

const HEAD_BYTES: usize = 16;

/// A key, ordered as its bytes are.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredKey {
    /// The first 16 bytes, big-endian, padded with zeros: where two differ they order as the keys do,
    /// because a shorter key is padded with the smallest byte.
    head: [u64; 2],
    /// What comes after them, if anything does; copies share it.
    rest: Option<Arc<[u8]>>,
    len: u32,
}

impl StoredKey {
    /// A copy of the key; at most 16 KiB.
    pub fn new(key: &[u8]) -> Self {
        let (first, rest) = key.split_at(key.len().min(HEAD_BYTES));
        let mut head = [0; HEAD_BYTES];
        head[..first.len()].copy_from_slice(first);
        let head = u128::from_be_bytes(head);
        let len = u32::try_from(key.len()).expect("keys are 16 KiB at the most");
        let rest = (!rest.is_empty()).then(|| rest.into());
        Self { head: [(head >> 64) as u64, head as u64], rest, len }
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether it is the empty key.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The key in one piece.
    pub fn to_bytes(&self) -> Bytes {
        let mut key = Vec::with_capacity(self.len());
        self.write_to(|part| key.extend_from_slice(part));
        key.into()
    }

    /// Hands out the key's bytes in order, in two parts.
    pub fn write_to(&self, mut write: impl FnMut(&[u8])) {
        let head = u128::from(self.head[0]) << 64 | u128::from(self.head[1]);
        write(&head.to_be_bytes()[..self.len().min(HEAD_BYTES)]);
        write(self.rest.as_deref().unwrap_or_default());
    }
}

impl StoredKey {
    /// Orders keys of equal heads: if one has no rest, it is the shorter one, or they differ in padding only.
    fn cmp_rest(&self, other: &Self) -> Ordering {
        self.rest.cmp(&other.rest).then(self.len.cmp(&other.len))
    }
}

impl Ord for StoredKey {
    /// Half of what inserting a row costs: two numbers, compared in place.
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.head[0].cmp(&other.head[0]), self.head[1].cmp(&other.head[1])) {
            (Ordering::Equal, Ordering::Equal) => self.cmp_rest(other),
            (Ordering::Equal, second) => second,
            (first, _) => first,
        }
    }
}

impl PartialOrd for StoredKey {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_their_bytes_are_and_come_back_whole() {
        let long = [7; 40];
        let mut other = long;
        other[20] = 8;
        let keys: [&[u8]; 12] =
            [b"", b"\0", b"\0\0", b"a", b"a\0", b"ab", b"b", &[0; 16], &[0; 17], &long[..16], &long, &other];
        for one in keys {
            assert_eq!(StoredKey::new(one).to_bytes(), one);
            for two in keys {
                assert_eq!(StoredKey::new(one).cmp(&StoredKey::new(two)), one.cmp(two), "{one:?} {two:?}");
            }
        }
    }
}
