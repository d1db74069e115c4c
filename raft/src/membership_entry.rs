//! A membership as the payload of an entry: the one kind of payload that Raft reads itself.
//!
//! ```text
//!  0  auto_leave u8: 0 or 1
//!  1  voters | voters_outgoing | learners | learners_next, each: count u32, count x replica u64
//!     context: the rest, for the layer above; opaque here
//! ```
//! All numbers little-endian, no padding; each list is sorted and free of duplicates. An entry holds the
//! whole configuration, not the change that led to it: so what is in force at an entry doesn't depend on
//! any other entry, and a log that was cut needs nothing undone.

use crate::membership::Membership;
use crate::types::ReplicaId;
use bytes::Bytes;

/// Version byte of entries of kind [`crate::EntryKind::Membership`].
pub(crate) const MEMBERSHIP_VERSION: u8 = 1;

impl Membership {
    /// The membership as bytes, with `context` after it. Linear in the members.
    pub fn encode(&self, context: &[u8]) -> Bytes {
        let lists = [&self.voters, &self.voters_outgoing, &self.learners, &self.learners_next];
        let ids: usize = lists.iter().map(|list| list.len()).sum();
        let mut out = Vec::with_capacity(1 + 4 * lists.len() + 8 * ids + context.len());
        out.push(u8::from(self.auto_leave));
        for list in lists {
            out.extend_from_slice(&(list.len() as u32).to_le_bytes());
            list.iter().for_each(|id| out.extend_from_slice(&id.get().to_le_bytes()));
        }
        out.extend_from_slice(context);
        Bytes::from(out)
    }

    /// The membership that `data` begins with, and the context after it. `None` for bytes that
    /// [`Membership::encode`] didn't write, and for a membership that breaks a rule of
    /// [`Membership::broken_rule`].
    pub fn decode(data: &Bytes) -> Option<(Self, Bytes)> {
        let mut rest = &data[..];
        let (&flag, tail) = rest.split_first()?;
        rest = tail;
        let auto_leave = match flag {
            0 => false,
            1 => true,
            _ => return None,
        };
        let membership = Self {
            voters: take_ids(&mut rest)?,
            voters_outgoing: take_ids(&mut rest)?,
            learners: take_ids(&mut rest)?,
            learners_next: take_ids(&mut rest)?,
            auto_leave,
        };
        let is_sound = membership.broken_rule().is_none();
        is_sound.then(|| (membership, data.slice(data.len() - rest.len()..)))
    }
}

fn take_ids(rest: &mut &[u8]) -> Option<Vec<ReplicaId>> {
    let (count, tail) = rest.split_first_chunk::<4>()?;
    let (ids, tail) = tail.split_at_checked((u32::from_le_bytes(*count) as usize).checked_mul(8)?)?;
    *rest = tail;
    ids.as_chunks::<8>().0.iter().map(|id| ReplicaId::new(u64::from_le_bytes(*id))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u64]) -> Vec<ReplicaId> {
        numbers.iter().map(|&number| ReplicaId::new(number).expect("not 0")).collect()
    }

    fn sample() -> Membership {
        Membership {
            voters: ids(&[1, 2, 300]),
            voters_outgoing: ids(&[1, 2, 4]),
            learners: ids(&[5]),
            learners_next: ids(&[4]),
            auto_leave: true,
        }
    }

    #[test]
    fn what_is_encoded_comes_back_with_its_context() {
        for context in [&b""[..], b"c", b"a longer context"] {
            let (membership, rest) = Membership::decode(&sample().encode(context)).expect("sound");
            assert_eq!((membership, &rest[..]), (sample(), context));
        }
    }

    #[test]
    fn cut_and_unsound_bytes_are_refused() {
        let bytes = sample().encode(b"");
        for len in 0..bytes.len() {
            assert_eq!(Membership::decode(&bytes.slice(..len)), None, "cut at {len}");
        }
        let spoiled = |at: usize, to: u8| {
            let mut copy = bytes.to_vec();
            copy[at] = to;
            Membership::decode(&Bytes::from(copy))
        };
        assert_eq!(spoiled(0, 2), None, "the flag");
        assert_eq!(spoiled(4, 255), None, "a count beyond the end");
        assert_eq!(spoiled(5, 0), None, "replica 0");
        assert_eq!(spoiled(5, 9), None, "an unsorted list");
    }
}
