//! Reads on callers' threads: what a core lets others read of a shard while it holds a lease.
//!
//! The core publishes one [`Open`] per shard: a view of its state, the range it covers, and a shared
//! *grant* with the time at which the lease ends. A reader takes the `Open`, *then* looks at its clock, *then* at
//! the grant's end: before that, nobody else led when the view was taken, so it held every write that was
//! acknowledged (see `raft/src/lease.rs`). A grant is of one term and one range epoch and is never used for
//! another: it is extended while both last and ends for good, at once, with either. So a view that was
//! loaded under an older term can't pass by the time of a newer one.
//!
//! The core publishes before anything of its turn leaves: before writers are answered, and before anybody
//! can make use of a vote, a TimeoutNow or a new descriptor that ends the grant.
//!
//! A view makes later writes copy what it shares with the state. So it is kept up to date only while
//! somebody reads: one that wasn't used since it was published is withdrawn with the next write; a reader
//! who finds none goes to the core, and says so.

use arc_swap::ArcSwapOption;
use floe_raft::{Index, Nanos, Term};
use floe_shard::descriptor::{Descriptor, KeyRange};
use floe_shard::request::{Answer, Query, Versioned};
use floe_shard::state_machine::{QueryResult, View};
use floe_shard::{MultiRaft, Readable, ShardId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// When reading ends, of one shard in one term and range epoch.
struct Grant {
    term: Term,
    range_epoch: u64,
    /// By this node's clock; 0 once and for all when it has ended.
    until: AtomicU64,
}

/// A shard's state as it may be read now.
pub struct Open {
    grant: Arc<Grant>,
    range: KeyRange,
    /// Where the state stands.
    applied: Index,
    view: Arc<dyn View>,
    /// Somebody has read it.
    used: AtomicBool,
}

/// Where one shard's core and its readers meet.
#[derive(Default)]
struct Cell {
    open: ArcSwapOption<Open>,
    /// Somebody found nothing to read.
    wanted: AtomicBool,
}

/// The cells of a node's shards. Each is written by the shard's core alone.
pub struct ReadCells(BTreeMap<ShardId, Cell>);

impl ReadCells {
    /// Cells, all empty, of these shards; others are always read through their cores.
    pub fn new(shards: &[Descriptor]) -> Arc<Self> {
        Arc::new(Self(shards.iter().map(|descriptor| (descriptor.shard, Cell::default())).collect()))
    }

    /// What may be read of a shard. The caller looks at its clock after this, and hands it to [`Open::get`] or
    /// [`Open::read`]. `None` = ask the core.
    pub fn load(&self, shard: ShardId) -> Option<Arc<Open>> {
        let cell = self.0.get(&shard)?;
        let open = cell.open.load_full();
        if open.is_none() && !cell.wanted.load(Ordering::Relaxed) {
            cell.wanted.store(true, Ordering::Relaxed);
        }
        open
    }

    /// Publishes how a shard of this core stands after a turn, before anything of that turn leaves.
    pub fn refresh(&self, shard: ShardId, multi: &MultiRaft) {
        let Some(cell) = self.0.get(&shard) else { return };
        let open = cell.open.load_full();
        let Some(now) = multi.readable(shard) else { return cell.close(open) };
        match open {
            Some(open) if open.is_of(&now) => {
                open.grant.until.store(now.lease.until, Ordering::SeqCst);
                if open.applied == now.applied {
                    return;
                }
                if open.used.load(Ordering::Relaxed) {
                    return cell.publish(multi, shard, &now, open.grant.clone());
                }
                cell.close(Some(open));
            }
            open => cell.close(open),
        }
        if cell.wanted.swap(false, Ordering::Relaxed) {
            let (term, range_epoch) = (now.lease.term, now.range_epoch);
            let until = AtomicU64::new(now.lease.until);
            cell.publish(multi, shard, &now, Arc::new(Grant { term, range_epoch, until }));
        }
    }

    /// A core has ended: nothing is read past it any more.
    pub fn close(&self, shards: impl Iterator<Item = ShardId>) {
        for cell in shards.filter_map(|shard| self.0.get(&shard)) {
            cell.close(cell.open.load_full());
        }
    }
}

impl Cell {
    fn publish(&self, multi: &MultiRaft, shard: ShardId, now: &Readable, grant: Arc<Grant>) {
        let Some((view, range)) = multi.view(shard) else { return };
        let used = AtomicBool::new(false);
        self.open.store(Some(Arc::new(Open { grant, range, applied: now.applied, view, used })));
    }

    fn close(&self, open: Option<Arc<Open>>) {
        if let Some(open) = open {
            open.grant.until.store(0, Ordering::SeqCst);
            self.open.store(None);
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Grant { term, range_epoch, until } = &*self.grant;
        write!(f, "state at {} of term {term}, epoch {range_epoch}, until {until:?}", self.applied)
    }
}

impl Open {
    fn is_of(&self, now: &Readable) -> bool {
        (self.grant.term, self.grant.range_epoch) == (now.lease.term, now.range_epoch)
    }

    /// Whether it may be read at `now`, a time after it was loaded.
    fn may_be_read(&self, range_epoch: u64, now: Nanos) -> bool {
        let may = range_epoch == self.grant.range_epoch && now < self.grant.until.load(Ordering::SeqCst);
        if may && !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        may
    }

    /// A key's value. `now` was read from the clock after this was loaded; `None` = ask the core.
    pub fn get(&self, range_epoch: u64, key: &[u8], now: Nanos) -> Option<Option<Versioned>> {
        let may = self.range.contains(key) && self.may_be_read(range_epoch, now);
        // What can't be read here is refused by the core, which says why.
        may.then(|| self.view.get(key).ok()).flatten()
    }

    /// The answer to a query. `now` was read from the clock after this was loaded; `None` = ask the core.
    pub fn read(&self, range_epoch: u64, query: &Query, now: Nanos) -> Option<Answer> {
        if let Query::Get { key } = query {
            return self.get(range_epoch, key, now).map(Answer::Value);
        }
        let may = self.may_be_read(range_epoch, now);
        may.then(|| self.view.read(query, &self.range).ok().map(QueryResult::into_answer)).flatten()
    }
}
