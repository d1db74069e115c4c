//! Which cores of which nodes can be reached, and where on a node a shard lives.

use crate::ids::{CoreAddr, NodeId, ShardId};
use std::collections::{BTreeMap, BTreeSet};

/// The cores that this core talks to.
pub(crate) struct Peers {
    me: CoreAddr,
    cores: u16,
    cores_of: BTreeMap<NodeId, u16>,
    connected: BTreeSet<CoreAddr>,
}

impl Peers {
    pub(crate) fn new(me: CoreAddr, cores: u16) -> Self {
        assert!(me.core < cores, "{me} on a node of {cores} cores");
        Self { me, cores, cores_of: BTreeMap::new(), connected: BTreeSet::new() }
    }

    /// With equal core counts a core talks only to its twin; otherwise to every core.
    pub(crate) fn up(&mut self, node: NodeId, cores: u16) {
        assert!(cores > 0, "{node} says that it has no cores");
        self.cores_of.insert(node, cores);
        let twin = self.me.core..self.me.core + 1;
        let talked_to = if cores == self.cores { twin } else { 0..cores };
        self.connected.extend(talked_to.map(|core| CoreAddr { node, core }));
    }

    pub(crate) fn down(&mut self, peer: CoreAddr) {
        self.connected.remove(&peer);
    }

    /// The core of `node` that owns `shard`, if it can be reached.
    pub(crate) fn route(&self, node: NodeId, shard: ShardId) -> Option<CoreAddr> {
        let core = shard.core(*self.cores_of.get(&node)?);
        Some(CoreAddr { node, core }).filter(|addr| self.connected.contains(addr))
    }

    pub(crate) fn connected(&self) -> impl Iterator<Item = CoreAddr> {
        self.connected.iter().copied()
    }
}
