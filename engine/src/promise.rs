//! A core's largest lease promise on disk: what its voters may have given word of is known to the next boot
//! (rule 4 of `raft/src/lease.rs`).
//!
//! It is raised in the log before any replica promises so much, and lowered only when what an earlier boot may
//! have promised has run out.

use crate::start::FoundAll;
use crate::wal::{FrameSeq, Record, Wal};
use floe_raft::Nanos;
use floe_shard::MultiRaft;

/// The promise in the log, and what it should be.
pub(crate) struct DurablePromise {
    wanted_ns: Nanos,
    /// By the latest record.
    logged_ns: Nanos,
    /// Replicas may promise once the log is durable up to here; `None` = they may.
    until: Option<FrameSeq>,
    /// What an earlier boot promised has run out.
    lower_at: Nanos,
}

impl DurablePromise {
    /// Binds the replicas that are about to be restored to what was found, and logs what is to be promised. 0
    /// means none.
    pub(crate) fn start(
        now: Nanos,
        wanted_ns: Nanos,
        found: &FoundAll,
        wal: &mut Wal,
        multi: &mut MultiRaft,
    ) -> Self {
        multi.owe_promises(found.promise_ns);
        let own = found.own.as_ref().map_or(0, |own| own.promise_ns);
        let logged_ns = wanted_ns.max(found.promise_ns);
        if own != logged_ns {
            wal.append(Record::Promise { largest_ns: logged_ns });
        }
        let until = Some(wal.barrier());
        Self { wanted_ns, logged_ns, until, lower_at: now.saturating_add(found.promise_ns) }
    }

    /// Looks at what has become durable, and at the time.
    pub(crate) fn turn(&mut self, now: Nanos, wal: &mut Wal, multi: &mut MultiRaft) {
        if self.until.take_if(|until| *until <= wal.durable()).is_some() {
            multi.allow_promises(self.wanted_ns);
        }
        if self.logged_ns > self.wanted_ns && now >= self.lower_at {
            self.logged_ns = self.wanted_ns;
            wal.append(Record::Promise { largest_ns: self.wanted_ns });
        }
    }
}
