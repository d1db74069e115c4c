//! Keys, values, and what a key may hold.
//!
//! A value is a function of its key and its version, so that verification needs to remember one
//! number per key:
//!
//! ```text
//! +-----------+----------+------------------------------------------+
//! | version 4 | key id 4 | filler, a hash of key id, version, place |
//! +-----------+----------+------------------------------------------+
//! ```
//!
//! Versions count a key's writes from 1. A key belongs to one caller, which has one operation under
//! way at a time: so the order of a key's writes is known, and a linearizable read has exactly one
//! right answer, but for writes whose outcome isn't known.

use std::collections::BTreeMap;

/// Bytes of a key.
pub const KEY_LEN: usize = 16;
/// Bytes of a value before its filler.
const HEAD_LEN: usize = 8;
/// Odd, with a good spread of bits: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of splitmix64, a bijection.
pub const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A caller's choices: splitmix64.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// A number below `bound`, which isn't 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(GOLDEN);
        (((mix(self.0) >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// The bytes of a key: spread evenly over the key space, so that every shard has its part.
pub fn key(id: u32) -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    key[..8].copy_from_slice(&mix(u64::from(id).wrapping_add(GOLDEN)).to_be_bytes());
    key[8..].copy_from_slice(&u64::from(id).to_be_bytes());
    key
}

fn filler(id: u32, version: u32) -> impl Iterator<Item = u64> {
    let seed = mix(u64::from(id) << 32 | u64::from(version));
    (1u64..).map(move |place| {
        let word = seed.wrapping_add(place.wrapping_mul(GOLDEN));
        (word ^ word >> 32).wrapping_mul(GOLDEN)
    })
}

/// Writes the value of `version` over `value`, whose length stays.
pub fn fill_value(id: u32, version: u32, value: &mut [u8]) {
    let (head, rest) = value.split_at_mut(HEAD_LEN);
    head[..4].copy_from_slice(&version.to_le_bytes());
    head[4..].copy_from_slice(&id.to_le_bytes());
    for (chunk, word) in rest.chunks_mut(8).zip(filler(id, version)) {
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// The version of a value, or `None` if these bytes were never written to this key.
fn version_of(id: u32, value: &[u8], payload: usize) -> Option<u32> {
    if value.len() != payload {
        return None;
    }
    let (head, rest) = value.split_at(HEAD_LEN);
    let version = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let same = head[4..] == id.to_le_bytes() && is_filler(rest, filler(id, version));
    same.then_some(version)
}

/// Word by word: compared as slices these were a third of what a get costs.
fn is_filler(bytes: &[u8], mut words: impl Iterator<Item = u64>) -> bool {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let whole = chunks.iter().zip(&mut words).all(|(chunk, word)| u64::from_le_bytes(*chunk) == word);
    whole && words.next().is_some_and(|word| *rest == word.to_le_bytes()[..rest.len()])
}

/// What a read showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What had to be there.
    Right,
    /// Less than what was acknowledged: an older version, or nothing.
    Lost,
    /// What nobody wrote, or what surely wasn't to be written.
    Wrong,
}

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
pub struct KeyState {
    /// Its number.
    pub id: u32,
    /// Its shard's place in the cluster's table of shards.
    pub shard: u16,
    /// The version it holds, unless a write of unknown outcome took effect since; 0 = none.
    pub current: u32,
    /// The highest version ever sent.
    pub issued: u32,
}

/// Per key, the versions of which it isn't known whether, or when, they take effect. Seldom any.
pub type UnknownWrites = BTreeMap<u32, Vec<u32>>;

impl KeyState {
    /// A key that was never written.
    pub fn new(id: u32, shard: u16) -> Self {
        Self { id, shard, current: 0, issued: 0 }
    }

    /// Judges what a linearizable read found. A version of unknown outcome that shows is known from
    /// then on: what was there before it must not come back.
    pub fn judge(&mut self, value: Option<&[u8]>, payload: usize, unknown: &mut UnknownWrites) -> Verdict {
        let Some(value) = value else {
            return if self.current == 0 { Verdict::Right } else { Verdict::Lost };
        };
        match version_of(self.id, value, payload) {
            None | Some(0) => Verdict::Wrong,
            Some(version) if version == self.current => Verdict::Right,
            Some(version) if self.settle(version, unknown) => Verdict::Right,
            Some(version) if version < self.current => Verdict::Lost,
            Some(_) => Verdict::Wrong,
        }
    }

    /// If `version` was of unknown outcome: it took effect.
    fn settle(&mut self, version: u32, unknown: &mut UnknownWrites) -> bool {
        let Some(versions) = unknown.get_mut(&self.id) else { return false };
        let Some(place) = versions.iter().position(|&other| other == version) else { return false };
        versions.swap_remove(place);
        self.current = version;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: usize = 21;

    fn value(id: u32, version: u32) -> Vec<u8> {
        let mut value = vec![0; PAYLOAD];
        fill_value(id, version, &mut value);
        value
    }

    fn written(current: u32, issued: u32) -> KeyState {
        KeyState { current, issued, ..KeyState::new(7, 0) }
    }

    #[test]
    fn a_value_tells_its_version_and_any_changed_byte_shows() {
        let good = value(7, 3);
        assert_eq!(version_of(7, &good, PAYLOAD), Some(3));
        assert_eq!(version_of(8, &good, PAYLOAD), None);
        assert_eq!(version_of(7, &good[..PAYLOAD - 1], PAYLOAD), None);
        for place in 0..PAYLOAD {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert_ne!(version_of(7, &bad, PAYLOAD), Some(3), "byte {place}");
        }
    }

    #[test]
    fn a_missing_or_older_value_is_lost_and_a_refused_or_foreign_one_is_wrong() {
        let mut none = UnknownWrites::new();
        let mut judge = |found: Option<Vec<u8>>| written(3, 5).judge(found.as_deref(), PAYLOAD, &mut none);
        assert_eq!(judge(Some(value(7, 3))), Verdict::Right);
        assert_eq!(judge(None), Verdict::Lost);
        assert_eq!(judge(Some(value(7, 2))), Verdict::Lost);
        assert_eq!(judge(Some(value(7, 5))), Verdict::Wrong);
        assert_eq!(judge(Some(value(8, 3))), Verdict::Wrong);
        assert_eq!(written(0, 0).judge(None, PAYLOAD, &mut none), Verdict::Right);
    }

    #[test]
    fn a_write_of_unknown_outcome_may_show_but_not_vanish_again() {
        let mut unknown = UnknownWrites::from([(7, vec![4])]);
        let mut key = written(3, 4);
        assert_eq!(key.judge(Some(&value(7, 3)), PAYLOAD, &mut unknown), Verdict::Right);
        assert_eq!(key.judge(Some(&value(7, 4)), PAYLOAD, &mut unknown), Verdict::Right);
        assert_eq!(key.judge(Some(&value(7, 3)), PAYLOAD, &mut unknown), Verdict::Lost);
    }

    #[test]
    fn keys_are_distinct_and_spread_over_the_key_space() {
        let mut quarter = [0u32; 4];
        for id in 0..4000 {
            quarter[usize::from(key(id)[0] >> 6)] += 1;
        }
        assert!(quarter.iter().all(|count| (900..1100).contains(count)), "{quarter:?}");
    }
}
