//! Ids of nodes, shards and cores, and the epoch of a shard's descriptor.

use std::fmt;

/// One process with one data directory. Chosen by the operator, unique in the cluster, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// One key range = one Raft group. Shard 0 is the meta shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u64);

/// One core of one node: the end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreAddr {
    /// The node.
    pub node: NodeId,
    /// The core on it, counted from 0.
    pub core: u16,
}

/// Version of a shard's descriptor. Data commands are checked against `range` only, so that a
/// membership change fails no write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch {
    /// Raised by every split and merge.
    pub range: u64,
    /// Raised by every membership change.
    pub membership: u64,
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Debug for CoreAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}/c{}", self.node.0, self.core)
    }
}

impl fmt::Display for CoreAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}/c{}", self.node.0, self.core)
    }
}

/// The finaliser of splitmix64: a bijection that spreads neighbouring ids.
const fn splitmix64(id: u64) -> u64 {
    let mut z = id.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl ShardId {
    /// The core that owns this shard on a node with `cores` cores. Frozen: both ends of a connection
    /// and the recovery after a restart compute it.
    ///
    /// # Panics
    /// If `cores` is 0.
    pub fn core(self, cores: u16) -> u16 {
        assert!(cores > 0, "a node has at least one core");
        (splitmix64(self.0) % u64::from(cores)) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_on_cores_is_frozen() {
        let placed: Vec<u16> = (0..12).map(|id| ShardId(id).core(4)).collect();
        assert_eq!(placed, PLACED, "changing this loses every shard of every existing node");
    }

    const PLACED: [u16; 12] = [3, 1, 2, 1, 2, 2, 0, 3, 2, 0, 2, 1];
}
