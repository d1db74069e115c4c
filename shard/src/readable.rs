//! What of a shard may be read without its core: under a lease, on a view of its state.

use crate::descriptor::KeyRange;
use crate::ids::ShardId;
use crate::multi_raft::MultiRaft;
use crate::state_machine::View;
use floe_raft::{Index, Lease};
use std::sync::Arc;

/// A shard that its replica here may be read of, linearizably, by whoever has its newest view, until the
/// lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readable {
    /// Until when, and in which term.
    pub lease: Lease,
    /// Range version of the descriptor in force.
    pub range_epoch: u64,
    /// Where the state stands.
    pub applied: Index,
}

impl MultiRaft {
    /// How the shard may be read without the core; `None` if it must not be.
    pub fn readable(&self, shard: ShardId) -> Option<Readable> {
        let replica = &self.replicas[self.running(shard)?];
        let lease = replica.raft.lease()?;
        let applied = replica.applied.index;
        Some(Readable { lease, range_epoch: replica.descriptor.epoch.range, applied })
    }

    /// The shard's state as it is now and its range; `None` if it isn't here, or its machine has no views.
    pub fn view(&self, shard: ShardId) -> Option<(Arc<dyn View>, KeyRange)> {
        let replica = &self.replicas[self.running(shard)?];
        Some((replica.machine.view()?, replica.descriptor.range.clone()))
    }
}
