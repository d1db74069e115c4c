//! What of a shard may be read without its core: on a view of its state, under a lease or as of some time.

use crate::descriptor::KeyRange;
use crate::ids::ShardId;
use crate::multi_raft::MultiRaft;
use crate::replica::Replica;
use crate::request::{Answer, Query, Rest};
use crate::state_machine::{QueryResult, View};
use floe_raft::{Index, Lease, Nanos};
use std::fmt;
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

/// A shard's state as of one moment, to be read on any thread. Two are equal if they are the same one.
#[derive(Clone)]
pub struct StateView {
    /// The rows.
    pub view: Arc<dyn View>,
    /// The shard's range then.
    pub range: KeyRange,
}

impl PartialEq for StateView {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.view, &other.view)
    }
}

impl Eq for StateView {}

impl fmt::Debug for StateView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a state of {:?}", self.range)
    }
}

impl StateView {
    /// The answer to a query. A scan that goes on does so in this state.
    ///
    /// # Errors
    /// As for [`View::read`].
    pub fn read(&self, query: &Query) -> Result<Answer, String> {
        Ok(self.view.read(query, &self.range)?.into_answer(query, || Some(self.clone())))
    }
}

impl QueryResult {
    /// The answer to whoever asked; `state` is what it was read from, if that can go on being read.
    pub fn into_answer(self, query: &Query, state: impl FnOnce() -> Option<StateView>) -> Answer {
        match self {
            Self::Value(value) => Answer::Value(value),
            Self::Rows(rows, false) => Answer::Rows { rows, rest: Rest::Nothing },
            Self::Rows(rows, true) => {
                let state = if query.goes_on_after(rows.len()) { state() } else { None };
                Answer::Rows { rows, rest: state.map_or(Rest::More, Rest::In) }
            }
        }
    }
}

impl Replica {
    /// The state as it is now; `None` if the machine has no views.
    pub(crate) fn view(&self) -> Option<StateView> {
        Some(StateView { view: self.machine.view()?, range: self.descriptor.range.clone() })
    }
}

impl MultiRaft {
    /// How the shard may be read without the core; `None` if no replica takes part here.
    pub fn readable(&self, shard: ShardId) -> Option<Readable> {
        let replica = &self.replicas[self.running(shard)?];
        let (lease, fresh_at) = (replica.raft.lease(), replica.raft.fresh_at());
        let (range_epoch, applied) = (replica.descriptor.epoch.range, replica.applied.index);
        Some(Readable { lease, fresh_at, range_epoch, applied })
    }

    /// The shard's state as it is now; `None` if it isn't here, or its machine has no views.
    pub fn view(&self, shard: ShardId) -> Option<StateView> {
        self.replicas[self.running(shard)?].view()
    }
}
