//! What a replica has under way besides Raft. An idle one has none of it, and keeps no memory for it.

use crate::members::{AskedChange, Farewell};
use crate::output::LogWrite;
use crate::proposal::Proposals;
use crate::reads::Reads;
use crate::replica::{Held, OnDurable};
use crate::request::RequestId;
use crate::transfer::Outgoing;
use floe_raft::{Part, ReplicaId, WriteId};
use std::collections::VecDeque;

/// A replica's unfinished business.
#[derive(Default)]
pub(crate) struct Work {
    /// Records of the shard layer's own for the next turn, in order.
    pub(crate) own_records: Vec<LogWrite>,
    /// What waits for own records that are on their way, oldest first.
    pub(crate) own_writes: VecDeque<(WriteId, OnDurable)>,
    /// Proposals whose fate isn't known.
    pub(crate) proposals: Proposals,
    /// Reads that wait for their index.
    pub(crate) reads: Reads,
    /// Commands whose turn hasn't come, and their bytes.
    pub(crate) held: VecDeque<Held>,
    pub(crate) held_bytes: usize,
    /// Why the replica is [`crate::replica::Stage::Broken`], if it is.
    pub(crate) broken: String,
    /// Bytes proposed since the last turn.
    pub(crate) turn_bytes: usize,
    /// Who waits for a leadership transfer, and its target.
    pub(crate) handing_over: Option<(RequestId, ReplicaId)>,
    /// A change of members that waits for its voters to be heard.
    pub(crate) asked_change: Option<AskedChange>,
    /// Dumps on their way to followers.
    pub(crate) outgoing: Vec<Outgoing>,
    /// Removed replicas that are still to be told so, by whoever leads; see `members.rs`.
    pub(crate) farewells: Vec<Farewell>,
}

impl Part for Work {
    fn empty() -> &'static Self {
        static EMPTY: Work = Work {
            own_records: Vec::new(),
            own_writes: VecDeque::new(),
            proposals: Proposals::new(),
            reads: Reads::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            broken: String::new(),
            turn_bytes: 0,
            handing_over: None,
            asked_change: None,
            outgoing: Vec::new(),
            farewells: Vec::new(),
        };
        &EMPTY
    }

    fn is_empty(&self) -> bool {
        self.own_records.is_empty()
            && self.own_writes.is_empty()
            && self.proposals.len() == 0
            && self.reads.len() == 0
            && self.held.is_empty()
            && self.broken.is_empty()
            && self.turn_bytes == 0
            && self.handing_over.is_none()
            && self.asked_change.is_none()
            && self.outgoing.is_empty()
            && self.farewells.is_empty()
    }
}
