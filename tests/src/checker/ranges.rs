//! Every key belongs to one shard: at the newest range version that any replica knows of each shard, no two ranges
//! share a key. (That one *replica* of a shard answers at a time is the leases' and the elections' affair.)

use crate::checker::Violation;
use bytes::Bytes;
use floe_shard::{Descriptor, KeyRange, ShardId};
use std::collections::BTreeMap;

/// The checker.
#[derive(Debug, Default)]
pub struct Ranges {
    newest: BTreeMap<ShardId, (u64, KeyRange)>,
    /// Where each of those begins, and whose it is. They share no key, so that another one meets its neighbours or none.
    starts: BTreeMap<Bytes, ShardId>,
}

impl Ranges {
    /// Looks at a replica's descriptor; a few comparisons unless it is news.
    ///
    /// # Errors
    /// A range that shares keys with another shard's, or differs from what this version of it was.
    pub fn observe(&mut self, descriptor: &Descriptor) -> Result<(), Violation> {
        let (shard, version) = (descriptor.shard, descriptor.epoch.range);
        let range = &descriptor.range;
        let broken = |detail: String| Err(Violation::new("one shard per key", detail));
        match self.newest.get(&shard) {
            Some((known, was)) if *known == version && was != range => {
                return broken(format!("{shard}, version {version}: {was:?} and {range:?}"));
            }
            Some((known, _)) if *known >= version => return Ok(()),
            Some((_, was)) => self.starts.remove(&was.start),
            None => None,
        };
        let before = self.starts.range::<Bytes, _>(..=&range.start).next_back();
        let after = self.starts.range::<Bytes, _>(&range.start..).next();
        for other in before.into_iter().chain(after).map(|(_, other)| other) {
            let other_range = &self.newest[other].1;
            if overlap(other_range, range) {
                return broken(format!("{shard} has {range:?}, {other} has {other_range:?}"));
            }
        }
        self.starts.insert(range.start.clone(), shard);
        self.newest.insert(shard, (version, range.clone()));
        Ok(())
    }
}

fn overlap(one: &KeyRange, other: &KeyRange) -> bool {
    let begins_in = |start: &[u8], range: &KeyRange| {
        start >= &range.start[..] && (range.end.is_empty() || start < &range.end[..])
    };
    begins_in(&one.start, other) || begins_in(&other.start, one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_shard::{NodeId, pre_split};

    #[test]
    fn ranges_that_share_a_key_are_found_and_neighbours_pass() {
        let shards = pre_split(&[NodeId(1)], 3, 1);
        let sound = || {
            let mut ranges = Ranges::default();
            shards.iter().for_each(|shard| ranges.observe(shard).expect("they were split"));
            ranges
        };
        let mut newer = shards[1].clone();
        newer.epoch.range += 1;
        newer.range.end = [&newer.range.end[..], b"a"].concat().into();
        assert!(sound().observe(&newer).is_err(), "it reaches into the next one");
        newer.range.end = shards[1].range.start.iter().copied().chain([1]).collect::<Vec<_>>().into();
        assert!(sound().observe(&newer).is_ok(), "it became smaller");
        let mut other = shards[1].clone();
        other.range.start = shards[0].range.start.clone();
        assert!(sound().observe(&other).is_err(), "one version has one range");
        let mut ranges = sound();
        newer.range.start = newer.range.end.clone();
        newer.range.end = shards[1].range.end.clone();
        ranges.observe(&newer).expect("it gives up its first keys");
        other.shard = ShardId(77);
        other.range = KeyRange { start: shards[1].range.start.clone(), end: newer.range.start.clone() };
        ranges.observe(&other).expect("another one takes them");
        other.epoch.range += 1;
        other.range.start = Bytes::from_static(b"\0");
        assert!(ranges.observe(&other).is_err(), "it takes keys of the one before, too");
    }
}
