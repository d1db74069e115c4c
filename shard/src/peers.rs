//! Which cores of which nodes can be reached, and where on a node a shard lives.

use crate::ids::{CoreAddr, NodeId, ShardId};
use floe_raft::Nanos;
use std::collections::{BTreeMap, BTreeSet};

/// The cores that this core talks to.
pub(crate) struct Peers {
    me: CoreAddr,
    cores: u16,
    cores_of: BTreeMap<NodeId, u16>,
    connected: BTreeSet<CoreAddr>,
    /// Kept when a connection breaks.
    lives: BTreeMap<CoreAddr, Life>,
}

/// The newest sign of life of a core.
#[derive(Clone, Copy)]
pub(crate) struct Life {
    pub(crate) boot_epoch: u64,
    pub(crate) heard_at: Nanos,
}

impl Peers {
    pub(crate) fn new(me: CoreAddr, cores: u16) -> Self {
        assert!(me.core < cores, "{me} on a node of {cores} cores");
        Self { me, cores, cores_of: BTreeMap::new(), connected: BTreeSet::new(), lives: BTreeMap::new() }
    }

    /// Notes a sign of life, unless it is of an earlier boot. Returns the one before.
    pub(crate) fn heard(&mut self, core: CoreAddr, boot_epoch: u64, now: Nanos) -> Option<Life> {
        let before = self.lives.get(&core).copied();
        if before.is_none_or(|before| before.boot_epoch <= boot_epoch) {
            self.lives.insert(core, Life { boot_epoch, heard_at: now });
        }
        before
    }

    /// When a core was last heard; 0 = never.
    pub(crate) fn heard_at(&self, core: CoreAddr) -> Nanos {
        self.lives.get(&core).map_or(0, |life| life.heard_at)
    }

    /// Under which boot epoch a core was last heard.
    pub(crate) fn boot_epoch(&self, core: CoreAddr) -> Option<u64> {
        self.lives.get(&core).map(|life| life.boot_epoch)
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
