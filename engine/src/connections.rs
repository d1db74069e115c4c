//! The connections of a core that are up, and which of them bring nothing any more.
//!
//! A core beats to each core that it is connected to, or, while its disk doesn't answer, sends an empty frame now and then:
//! so on each connection something comes in all the time. TCP notices a peer that is gone, but not a connection that is stuck: Linux doesn't send a segment that is larger than
//! the window of a receiver that was short of buffers (on a loopback device segments have up to 64 KiB), and tries no
//! smaller one as long as the other direction is busy. A connection that has been silent for too long is closed, and the
//! dialing side makes a new one.
//!
//! Silence is counted in looks at it, not in time: a process that was stopped, or a thread that had no processor, has
//! heard nothing for long, and what was sent meanwhile waits in its sockets.

use floe_raft::Nanos;
use floe_shard::{CoreAddr, NodeId};
use std::collections::BTreeMap;

/// What a core is connected to.
pub(crate) struct Connections {
    up: BTreeMap<CoreAddr, Connection>,
    /// Looks until a silent one counts as stuck.
    looks_max: u64,
}

struct Connection {
    /// Of the peer's node.
    cores: u16,
    /// Looks since something came in.
    silent_looks: u64,
    /// Looks since something was sent.
    unsaid_looks: u64,
}

/// What a look found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Nothing has come in for long. Reported once per silence.
    pub(crate) stuck: Vec<CoreAddr>,
    /// Nothing has been sent for so long that the peer could soon think so.
    pub(crate) owed: Vec<CoreAddr>,
}

impl Connections {
    /// None. They are looked at every `interval_ns`; silent for five election timeouts they count as stuck.
    pub(crate) fn new(election_timeout_max_ns: Nanos, interval_ns: Nanos) -> Self {
        let looks_max = (5 * election_timeout_max_ns).div_ceil(interval_ns).max(4);
        Self { up: BTreeMap::new(), looks_max }
    }

    pub(crate) fn up(&mut self, peer: CoreAddr, cores: u16) {
        self.up.insert(peer, Connection { cores, silent_looks: 0, unsaid_looks: 0 });
    }

    pub(crate) fn down(&mut self, peer: CoreAddr) {
        self.up.remove(&peer);
    }

    /// A frame has come in.
    pub(crate) fn heard(&mut self, peer: CoreAddr) {
        if let Some(connection) = self.up.get_mut(&peer) {
            connection.silent_looks = 0;
        }
    }

    /// A frame leaves.
    pub(crate) fn said(&mut self, peer: CoreAddr) {
        if let Some(connection) = self.up.get_mut(&peer) {
            connection.unsaid_looks = 0;
        }
    }

    /// Whether even an empty frame should leave.
    pub(crate) fn is_owed(&self, peer: CoreAddr) -> bool {
        self.up.get(&peer).is_some_and(|connection| connection.unsaid_looks >= self.looks_max / 4)
    }

    /// Called regularly.
    pub(crate) fn look(&mut self) -> Found {
        let mut found = Found::default();
        for (peer, connection) in &mut self.up {
            connection.silent_looks += 1;
            connection.unsaid_looks += 1;
            if connection.silent_looks == self.looks_max {
                found.stuck.push(*peer);
            }
            if connection.unsaid_looks >= self.looks_max / 4 {
                found.owed.push(*peer);
            }
        }
        found
    }

    pub(crate) fn is_up(&self, peer: CoreAddr) -> bool {
        self.up.contains_key(&peer)
    }

    pub(crate) fn reaches(&self, node: NodeId) -> bool {
        self.cores_of(node).is_some()
    }

    /// Cores of a node that some connection leads to.
    pub(crate) fn cores_of(&self, node: NodeId) -> Option<u16> {
        let first = CoreAddr { node, core: 0 };
        let (peer, connection) = self.up.range(first..).next()?;
        (peer.node == node).then_some(connection.cores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_brings_nothing_is_stuck_and_what_gets_nothing_is_owed_something() {
        let [silent, working] = [(NodeId(2), 1), (NodeId(3), 0)].map(|(node, core)| CoreAddr { node, core });
        let mut connections = Connections::new(800, 500);
        connections.up(silent, 4);
        connections.up(working, 1);
        for look in 1..10 {
            connections.heard(working);
            connections.said(silent);
            let stuck = if look == 8 { vec![silent] } else { vec![] };
            let owed = if look >= 2 { vec![working] } else { vec![] };
            assert_eq!(connections.look(), Found { stuck, owed }, "look {look}");
        }
        assert_eq!((connections.cores_of(NodeId(2)), connections.cores_of(NodeId(1))), (Some(4), None));
        connections.down(silent);
        assert!(connections.is_up(working) && !connections.is_up(silent) && !connections.reaches(NodeId(2)));
    }
}
