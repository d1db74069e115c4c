//! The connections of a core that are up, and which of them bring nothing any more.
//!
//! A working core beats to each core that it is connected to, so on each connection something comes in all the time. TCP
//! notices a peer that is gone, but not a connection that is stuck: Linux doesn't send a segment that is larger than
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
#[derive(Default)]
pub(crate) struct Connections(BTreeMap<CoreAddr, Connection>);

struct Connection {
    /// Of the peer's node.
    cores: u16,
    /// Looks since something came in.
    silent_looks: u64,
}

impl Connections {
    pub(crate) fn up(&mut self, peer: CoreAddr, cores: u16) {
        self.0.insert(peer, Connection { cores, silent_looks: 0 });
    }

    pub(crate) fn down(&mut self, peer: CoreAddr) {
        self.0.remove(&peer);
    }

    /// A frame has come in.
    pub(crate) fn heard(&mut self, peer: CoreAddr) {
        if let Some(connection) = self.0.get_mut(&peer) {
            connection.silent_looks = 0;
        }
    }

    /// Those that have been silent for so many looks, of which this is one. Each is reported once per silence.
    pub(crate) fn look(&mut self, looks_max: u64) -> Vec<CoreAddr> {
        let mut silent = Vec::new();
        for (peer, connection) in &mut self.0 {
            connection.silent_looks += 1;
            if connection.silent_looks == looks_max {
                silent.push(*peer);
            }
        }
        silent
    }

    pub(crate) fn is_up(&self, peer: CoreAddr) -> bool {
        self.0.contains_key(&peer)
    }

    pub(crate) fn reaches(&self, node: NodeId) -> bool {
        self.cores_of(node).is_some()
    }

    /// Cores of a node that some connection leads to.
    pub(crate) fn cores_of(&self, node: NodeId) -> Option<u16> {
        let first = CoreAddr { node, core: 0 };
        let (peer, connection) = self.0.range(first..).next()?;
        (peer.node == node).then_some(connection.cores)
    }
}

/// Looks until a connection counts as stuck: five election timeouts, so that a peer whose disk doesn't answer for a moment,
/// and that doesn't beat meanwhile, keeps its connections.
pub(crate) fn silent_looks_max(election_timeout_max_ns: Nanos, interval_ns: Nanos) -> u64 {
    (5 * election_timeout_max_ns).div_ceil(interval_ns).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_brings_nothing_is_reported_and_one_that_does_is_not() {
        let [silent, working] = [(NodeId(2), 1), (NodeId(3), 0)].map(|(node, core)| CoreAddr { node, core });
        let mut connections = Connections::default();
        connections.up(silent, 4);
        connections.up(working, 1);
        for look in 1..10 {
            connections.heard(working);
            let expected = if look == 5 { vec![silent] } else { vec![] };
            assert_eq!(connections.look(5), expected, "look {look}");
        }
        assert_eq!((connections.cores_of(NodeId(2)), connections.cores_of(NodeId(1))), (Some(4), None));
        connections.down(silent);
        assert!(connections.is_up(working) && !connections.is_up(silent) && !connections.reaches(NodeId(2)));
    }
}
