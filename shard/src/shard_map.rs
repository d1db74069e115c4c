//! Which shard owns which key. A map is a hint: every request carries the epoch it went by, and a
//! stale one gets the new descriptor back, which [`ShardMap::update`] takes in.

use crate::descriptor::{Descriptor, KeyRange, ReplicaPlace, ReplicaRole};
use crate::ids::{Epoch, NodeId, ShardId};
use bytes::Bytes;
use floe_raft::ReplicaId;

/// Descriptors in order of their start key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardMap {
    shards: Vec<Descriptor>,
    /// The start of each by its first bytes: a lookup rarely has to follow a pointer.
    heads: Vec<u64>,
}

/// The first eight bytes, padded with zeros: where two differ they order as the keys do.
fn head(key: &[u8]) -> u64 {
    let mut head = [0; 8];
    let len = key.len().min(head.len());
    head[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(head)
}

impl ShardMap {
    /// A map of these shards.
    pub fn new(mut shards: Vec<Descriptor>) -> Self {
        shards.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        let heads = shards.iter().map(|shard| head(&shard.range.start)).collect();
        Self { shards, heads }
    }

    /// The shard that owns `key`, as far as the map knows. O(log shards).
    pub fn locate(&self, key: &[u8]) -> Option<&Descriptor> {
        let head = head(key);
        let mut after = self.heads.partition_point(|start| *start < head);
        if self.heads.get(after) == Some(&head) {
            let alike = self.heads[after..].partition_point(|start| *start == head);
            after += self.shards[after..after + alike].partition_point(|shard| shard.range.start <= *key);
        }
        self.shards.get(after.checked_sub(1)?).filter(|shard| shard.range.contains(key))
    }

    /// The shards that hold a part of `range`, in order of their keys.
    pub fn covering(&self, range: &KeyRange) -> impl Iterator<Item = &Descriptor> {
        let ends_before = |shard: &Descriptor| !shard.range.end.is_empty() && shard.range.end <= range.start;
        let first = self.shards.partition_point(ends_before);
        let end = range.end.clone();
        let begins_within = move |shard: &&Descriptor| end.is_empty() || shard.range.start < end;
        self.shards[first..].iter().take_while(begins_within)
    }

    /// The shard with this id. O(shards).
    pub fn get(&self, shard: ShardId) -> Option<&Descriptor> {
        self.shards.iter().find(|known| known.shard == shard)
    }

    /// Takes in a descriptor unless a newer one of that shard is known. Returns whether it did.
    pub fn update(&mut self, descriptor: Descriptor) -> bool {
        match self.shards.iter_mut().find(|known| known.shard == descriptor.shard) {
            Some(known) if !is_newer(descriptor.epoch, known.epoch) => return false,
            Some(known) => *known = descriptor,
            None => self.shards.push(descriptor),
        }
        *self = Self::new(std::mem::take(&mut self.shards));
        true
    }

    /// Every shard, in order of its keys.
    pub fn iter(&self) -> impl Iterator<Item = &Descriptor> {
        self.shards.iter()
    }

    /// How many shards it knows.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }
}

/// Neither half of an epoch ever falls.
pub(crate) fn is_newer(one: Epoch, other: Epoch) -> bool {
    one != other && one.range >= other.range && one.membership >= other.membership
}

/// A static, uniform split of the whole key space by the first two bytes of keys: shards 1 to `shards`,
/// each with `replication` replicas 1, 2, ... Replica 1, which gets a head start at the first
/// election, is on the next node for each next shard, so leaders spread.
///
/// # Panics
/// If there are no nodes or no shards, more than 65,536 shards, or fewer nodes than replicas.
pub fn pre_split(nodes: &[NodeId], shards: u32, replication: usize) -> Vec<Descriptor> {
    assert!((1..=1 << 16).contains(&shards), "{shards} shards: two bytes can be split into 1 to 65536");
    assert!(
        (1..=nodes.len()).contains(&replication),
        "{replication} replicas on {} nodes: each needs its own",
        nodes.len()
    );
    let bound = |shard: u32| match shard {
        0 => Bytes::new(),
        shard if shard == shards => Bytes::new(),
        shard => {
            let at = (u64::from(shard) << 16) / u64::from(shards);
            Bytes::copy_from_slice(&(at as u16).to_be_bytes())
        }
    };
    let place = |shard: u32, replica: usize| ReplicaPlace {
        replica: ReplicaId::new(replica as u64 + 1).expect("counted from 1"),
        node: nodes[(shard as usize + replica) % nodes.len()],
        role: ReplicaRole::Voter,
    };
    let descriptor = |shard: u32| Descriptor {
        shard: ShardId(u64::from(shard) + 1),
        range: KeyRange { start: bound(shard), end: bound(shard + 1) },
        epoch: Epoch { range: 1, membership: 1 },
        replicas: (0..replication).map(|replica| place(shard, replica)).collect(),
        next_replica_id: replication as u64 + 1,
        feature_level: 0,
    };
    (0..shards).map(descriptor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Vec<NodeId> {
        (1..=3).map(NodeId).collect()
    }

    #[test]
    fn every_key_has_exactly_one_shard() {
        for count in [1, 2, 3, 7, 256, 1000] {
            let map = ShardMap::new(pre_split(&nodes(), count, 3));
            for key in [&b"\0"[..], b"a", b"user1", b"\x7f\xff\xff", b"\x80", b"\xff\xff\xff"] {
                let owners = map.iter().filter(|shard| shard.range.contains(key)).count();
                assert_eq!(owners, 1, "{key:?} of {count}");
                assert!(map.locate(key).unwrap().range.contains(key));
            }
        }
    }

    /// Bounds that differ late, or in trailing zeros only.
    #[test]
    fn keys_that_begin_alike_are_told_apart() {
        let bounds: [&[u8]; 8] =
            [b"", b"a", b"a\0", b"a\0\0\0\0\0\0\0", b"a\0\0\0\0\0\0\0\0", b"sameheads", b"sameheadt", b"t"];
        let one = pre_split(&nodes(), 1, 1).remove(0);
        let bound = |at: usize| bounds.get(at).map_or(Bytes::new(), |bound| Bytes::copy_from_slice(bound));
        let shards = (0..bounds.len()).map(|at| Descriptor {
            shard: ShardId(at as u64 + 1),
            range: KeyRange { start: bound(at), end: bound(at + 1) },
            ..one.clone()
        });
        let map = ShardMap::new(shards.collect());
        for (at, bound) in bounds.iter().enumerate() {
            let owner = |key: &[u8]| map.locate(key).map(|shard| shard.shard.0 as usize);
            assert_eq!(owner(bound), Some(at + 1), "{bound:?}");
            let beyond = [bound, &b"\0\0\0\0\0\0\0\0\0\0"[..]].concat();
            let expected = map.iter().find(|shard| shard.range.contains(&beyond)).expect("all are covered");
            assert_eq!(owner(&beyond), Some(expected.shard.0 as usize), "{beyond:?}");
        }
    }

    #[test]
    fn covering_lists_the_shards_of_a_range_in_order() {
        let map = ShardMap::new(pre_split(&nodes(), 4, 1));
        let range = |start: &'static [u8], end: &'static [u8]| KeyRange {
            start: Bytes::from_static(start),
            end: Bytes::from_static(end),
        };
        let ids = |range| map.covering(&range).map(|shard| shard.shard.0).collect::<Vec<_>>();
        assert_eq!(ids(KeyRange::all()), [1, 2, 3, 4]);
        assert_eq!(ids(range(b"\x40", b"\x80")), [1, 2]);
        assert_eq!(ids(range(b"\x40\0", b"\x80\0")), [2]);
        assert_eq!(ids(range(b"\x90", b"")), [3, 4]);
    }

    #[test]
    fn first_leaders_spread_over_the_nodes() {
        let mut led = [0; 3];
        for shard in pre_split(&nodes(), 30, 3) {
            led[shard.replicas[0].node.0 as usize - 1] += 1;
        }
        assert_eq!(led, [10, 10, 10]);
    }

    #[test]
    fn a_map_never_goes_back_to_an_older_descriptor() {
        let mut map = ShardMap::new(pre_split(&nodes(), 2, 1));
        let mut newer = map.get(ShardId(1)).unwrap().clone();
        let older = newer.clone();
        newer.epoch.range = 2;
        assert!(map.update(newer.clone()));
        assert!(!map.update(older));
        assert_eq!(map.get(ShardId(1)), Some(&newer));
    }
}
