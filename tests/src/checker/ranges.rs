//! Every key belongs to one shard: at the newest range version that any replica knows of each shard, no two ranges
//! share a key. (That one *replica* of a shard answers at a time is the leases' and the elections' affair.)

use crate::checker::Violation;
use floe_shard::{Descriptor, KeyRange, ShardId};
use std::collections::BTreeMap;

/// The checker.
#[derive(Debug, Default)]
pub struct Ranges {
    newest: BTreeMap<ShardId, (u64, KeyRange)>,
}

impl Ranges {
    /// Looks at a replica's descriptor; a few comparisons unless it is news.
    ///
    /// # Errors
    /// A range that shares keys with another shard's, or differs from what this version of it was.
    pub fn observe(&mut self, descriptor: &Descriptor) -> Result<(), Violation> {
        let (shard, version) = (descriptor.shard, descriptor.epoch.range);
        let broken = |detail: String| Err(Violation::new("one shard per key", detail));
        match self.newest.get(&shard) {
            Some((known, range)) if *known == version && *range != descriptor.range => {
                return broken(format!("{shard}, version {version}: {range:?} and {:?}", descriptor.range));
            }
            Some((known, _)) if *known >= version => return Ok(()),
            _ => {}
        }
        let mut others = self.newest.iter().filter(|(other, _)| **other != shard);
        if let Some((other, (_, range))) = others.find(|(_, (_, range))| overlap(range, &descriptor.range)) {
            return broken(format!("{shard} has {:?}, {other} has {range:?}", descriptor.range));
        }
        self.newest.insert(shard, (version, descriptor.range.clone()));
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
    }
}
