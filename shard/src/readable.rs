//! What of a shard may be read without its core: on a view of its state, under a lease or as of some time.

use crate::descriptor::KeyRange;
use crate::ids::ShardId;
use crate::multi_raft::MultiRaft;
use crate::state_machine::View;
use floe_raft::{Index, Lease, Nanos};
use std::sync::Arc;

/// How a replica's newest view may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readable {
    /// Until when linearizably, and in which term; `None` = not so.
    pub lease: Option<Lease>,
    /// The view holds everything that had been acknowledged at this time; 0 = nothing is known.
    pub fresh_at: Nanos,
    /// Range version of the descriptor in force.
    pub range_epoch: u64,
    /// Where the state stands.
    pub applied: Index,
}

impl MultiRaft {
    /// How the shard may be read without the core; `None` if no replica takes part here.
    pub fn readable(&self, shard: ShardId) -> Option<Readable> {
        let replica = &self.replicas[self.running(shard)?];
        let (lease, fresh_at) = (replica.raft.lease(), replica.raft.fresh_at());
        let (range_epoch, applied) = (replica.descriptor.epoch.range, replica.applied.index);
        Some(Readable { lease, fresh_at, range_epoch, applied })
    }

    /// The shard's state as it is now and its range; `None` if it isn't here, or its machine has no views.
    pub fn view(&self, shard: ShardId) -> Option<(Arc<dyn View>, KeyRange)> {
        let replica = &self.replicas[self.running(shard)?];
        Some((replica.machine.view()?, replica.descriptor.range.clone()))
    }
}
