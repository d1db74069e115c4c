//! Reads on callers' threads: what a core lets others read of a shard.
//!
//! The core publishes one [`Open`] per shard: a view of the replica's state, the range it covers, the time as of which
//! the view is known to be, and a shared *grant* with the time at which the lease ends.
//!
//! - A linearizable reader takes the `Open`, *then* looks at its clock, *then* at the grant's end: before that, nobody
//!   else led when the view was taken, so it held every write that was acknowledged (see `raft/src/lease.rs`). A grant
//!   is of one term and one range epoch and is never used for another: it is extended while both last and ends for
//!   good, at once, with either. So a view that was loaded under an older term can't pass by the time of a newer one.
//! - A reader to whom a stale state is good enough compares its clock, read after the load, with the time as of which
//!   this view is. That is the view's own and moves on only as long as no newer view is there
//!   (`raft/src/freshness.rs` says where it comes from). Any replica has such views, without a lease, too.
//!
//! The core publishes before anything of its turn leaves: before writers are answered, and before anybody
//! can make use of a vote, a TimeoutNow or a new descriptor that ends the grant.
//!
//! A view makes later writes copy what it shares with the state. So it is kept up to date only while
//! somebody reads: one that wasn't used since it was published is withdrawn with the next write; a reader
//! who finds none goes to the core, and says so.

use crate::held_views::HeldViews;
use arc_swap::{ArcSwapOption, Guard};
use floe_raft::{Index, Nanos, Planted, Term, is_planted};
use floe_shard::descriptor::Descriptor;
use floe_shard::request::{Answer, Consistency, Query, Request, Versioned};
use floe_shard::{MultiRaft, NodeId, Readable, ShardId, StateView, ViewId};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// When linearizable reading ends, of one shard in one term and range epoch.
struct Grant {
    /// 0 = there is no lease, and never will be under this grant.
    term: Term,
    range_epoch: u64,
    /// By this node's clock; 0 once and for all when it has ended.
    until: AtomicU64,
}

impl Grant {
    fn new(now: &Readable) -> Arc<Self> {
        let until = AtomicU64::new(until(now));
        Arc::new(Self { term: term(now), range_epoch: now.range_epoch, until })
    }

    fn is_of(&self, now: &Readable) -> bool {
        let same_term = self.term == term(now) || is_planted(Planted::GrantOutlivesTerm);
        same_term && self.range_epoch == now.range_epoch
    }
}

fn term(now: &Readable) -> Term {
    now.lease.map_or(0, |lease| lease.term)
}

fn until(now: &Readable) -> Nanos {
    now.lease.map_or(0, |lease| lease.until)
}

/// A shard's state as it may be read now.
pub struct Open {
    grant: Arc<Grant>,
    state: StateView,
    /// Where the state stands.
    applied: Index,
    /// As of when the view is, by this node's clock; 0 = that isn't known.
    fresh_at: AtomicU64,
    /// Somebody has read it.
    used: AtomicBool,
    /// Somebody has read it under the lease since the core last looked.
    read_lately: AtomicBool,
}

/// Where one shard's core and its readers meet.
#[derive(Default)]
struct Cell {
    open: ArcSwapOption<Open>,
    /// Somebody found nothing to read linearizably.
    wanted_leased: AtomicBool,
    /// Somebody found nothing to read at all.
    wanted: AtomicBool,
}

/// The cells of a node's shards. Each is written by the shard's core alone.
pub struct ReadCells {
    /// In order of the shards.
    cells: Vec<(ShardId, Cell)>,
    /// What scans under way go on in.
    pub views: HeldViews,
}

impl ReadCells {
    /// Cells, all empty, of these shards; others are always read through their cores. `seed`: see [`HeldViews::new`].
    pub fn new(node: NodeId, seed: u64, shards: &[Descriptor]) -> Arc<Self> {
        let mut cells: Vec<_> = shards.iter().map(|descriptor| (descriptor.shard, Cell::default())).collect();
        cells.sort_unstable_by_key(|(shard, _)| *shard);
        Arc::new(Self { cells, views: HeldViews::new(node, seed) })
    }

    /// A key's value, read on this thread; `None` = ask the core. `clock` is called once, after the view was taken.
    pub fn get(
        &self,
        (shard, range_epoch): (ShardId, u64),
        key: &[u8],
        consistency: Consistency,
        clock: impl FnOnce() -> Nanos,
    ) -> Option<Option<Versioned>> {
        let open = self.look(shard, consistency)?;
        open.as_ref()?.get(range_epoch, key, consistency, clock())
    }

    /// The answer to a read on this thread; `None` = ask the core. `clock` is called once, after the view was taken.
    pub fn read(&self, request: &Request, clock: impl FnOnce() -> Nanos) -> Option<Answer> {
        let Request::Read { shard, range_epoch, query, consistency } = request else { return None };
        if let Some(view) = request.view() {
            return (view.node == self.views.node()).then(|| self.go_on_in(*shard, view, query, clock()));
        }
        let open = self.look(*shard, *consistency)?;
        let now = clock();
        let answer = open.as_ref()?.read(*range_epoch, query, *consistency, now)?;
        Some(self.views.hold_rest(now, None, answer))
    }

    /// A later page of a scan, from the view that it names.
    fn go_on_in(&self, shard: ShardId, view: ViewId, query: &Query, now: Nanos) -> Answer {
        if is_planted(Planted::PageOfCurrentState)
            && let Some(open) = self.load(shard, Consistency::ANY_AGE)
            && let Ok(answer) = open.state.read(query)
        {
            return self.views.hold_rest(now, Some(view), answer);
        }
        self.views.read(now, view, query)
    }

    /// What may be read of a shard. The caller looks at its clock after this, and hands it to [`Open::get`] or
    /// [`Open::read`], as [`ReadCells::get`] and [`ReadCells::read`] do. `None` = ask the core.
    pub fn load(&self, shard: ShardId, consistency: Consistency) -> Option<Arc<Open>> {
        Guard::into_inner(self.look(shard, consistency)?)
    }

    fn cell(&self, shard: ShardId) -> Option<&Cell> {
        let at = self.cells.binary_search_by_key(&shard, |(shard, _)| *shard).ok()?;
        Some(&self.cells[at].1)
    }

    /// [`ReadCells::load`] without a share of its own: readers of many threads would fight for its count.
    fn look(&self, shard: ShardId, consistency: Consistency) -> Option<Guard<Option<Arc<Open>>>> {
        let cell = self.cell(shard)?;
        let open = cell.open.load();
        let is_linearizable = consistency.is_linearizable();
        if open.as_ref().is_none_or(|open| is_linearizable && open.grant.term == 0) {
            let wanted = if is_linearizable { &cell.wanted_leased } else { &cell.wanted };
            raise(wanted);
        }
        Some(open)
    }

    /// Publishes how a shard of this core stands after a turn, before anything of that turn leaves. Returns whether
    /// somebody has read it under its lease since the last time: then it is to be kept awake
    /// ([`MultiRaft::note_read`]), or it would go quiet, lose its lease and have every reader ask the core.
    pub fn refresh(&self, shard: ShardId, multi: &MultiRaft) -> bool {
        let Some(cell) = self.cell(shard) else { return false };
        let open = cell.open.load_full();
        let Some(now) = multi.readable(shard) else {
            cell.close(open);
            return false;
        };
        match open {
            Some(open) => cell.renew(multi, shard, &now, open),
            None if cell.is_wanted(&now) => {
                cell.publish(multi, shard, &now, Grant::new(&now));
                false
            }
            None => false,
        }
    }

    /// A core has ended: nothing is read past it any more.
    pub fn close(&self, shards: impl Iterator<Item = ShardId>) {
        for cell in shards.filter_map(|shard| self.cell(shard)) {
            cell.close(cell.open.load_full());
        }
    }
}

impl Cell {
    /// Brings what is published up to date. Returns whether it was read under its lease since the last time.
    fn renew(&self, multi: &MultiRaft, shard: ShardId, now: &Readable, open: Arc<Open>) -> bool {
        let was_read = open.read_lately.load(Ordering::Relaxed);
        if was_read {
            open.read_lately.store(false, Ordering::Relaxed);
        }
        let goes_on = open.grant.is_of(now);
        open.grant.until.store(if goes_on { until(now) } else { 0 }, Ordering::SeqCst);
        if goes_on && open.applied == now.applied {
            open.fresh_at.store(now.fresh_at, Ordering::Relaxed);
        } else if open.used.load(Ordering::Relaxed) || self.is_wanted(now) {
            let grant = if goes_on { open.grant.clone() } else { Grant::new(now) };
            self.publish(multi, shard, now, grant);
        } else {
            self.close(Some(open));
        }
        was_read
    }

    /// Whether somebody has looked for what could be published now.
    fn is_wanted(&self, now: &Readable) -> bool {
        let leased = now.lease.is_some() && self.wanted_leased.swap(false, Ordering::Relaxed);
        self.wanted.swap(false, Ordering::Relaxed) || leased
    }

    fn publish(&self, multi: &MultiRaft, shard: ShardId, now: &Readable, grant: Arc<Grant>) {
        let Some(state) = multi.view(shard) else { return };
        let (applied, fresh_at) = (now.applied, AtomicU64::new(now.fresh_at));
        let (used, read_lately) = (AtomicBool::new(false), AtomicBool::new(false));
        self.open.store(Some(Arc::new(Open { grant, state, applied, fresh_at, used, read_lately })));
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
        let Self { applied, fresh_at, .. } = self;
        write!(
            f,
            "state at {applied} as of {fresh_at:?}, of term {term}, epoch {range_epoch}, until {until:?}"
        )
    }
}

/// Most readers find it set, and so share the cache line.
fn raise(flag: &AtomicBool) {
    if !flag.load(Ordering::Relaxed) {
        flag.store(true, Ordering::Relaxed);
    }
}

impl Open {
    /// Whether it may be read so at `now`, a time after it was loaded.
    fn may_be_read(&self, range_epoch: u64, consistency: Consistency, now: Nanos) -> bool {
        if range_epoch != self.grant.range_epoch {
            return false;
        }
        let is_leased = now < self.grant.until.load(Ordering::SeqCst);
        let may = is_leased || consistency.allows(self.age_ns(now));
        if may {
            raise(&self.used);
        }
        if is_leased && consistency.is_linearizable() {
            raise(&self.read_lately);
        }
        may
    }

    /// How old it is at most; `None` = nothing is known.
    fn age_ns(&self, now: Nanos) -> Option<Nanos> {
        let fresh_at = self.fresh_at.load(Ordering::Relaxed);
        (fresh_at > 0).then(|| now.saturating_sub(fresh_at))
    }

    /// A key's value. `now` was read from the clock after this was loaded; `None` = ask the core.
    pub fn get(
        &self,
        range_epoch: u64,
        key: &[u8],
        consistency: Consistency,
        now: Nanos,
    ) -> Option<Option<Versioned>> {
        let may = self.state.range.contains(key) && self.may_be_read(range_epoch, consistency, now);
        // What can't be read here is refused by the core, which says why.
        may.then(|| self.state.view.get(key).ok()).flatten()
    }

    /// The answer to a query. `now` was read from the clock after this was loaded; `None` = ask the core.
    pub fn read(
        &self,
        range_epoch: u64,
        query: &Query,
        consistency: Consistency,
        now: Nanos,
    ) -> Option<Answer> {
        if let Query::Get { key } = query {
            return self.get(range_epoch, key, consistency, now).map(Answer::Value);
        }
        let may = self.may_be_read(range_epoch, consistency, now);
        may.then(|| self.state.read(query).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use floe_shard::output::Output;
    use floe_shard::{CoreAddr, MemoryStore, RequestId, ShardConfig, encode_put, pre_split};
    use std::ops::Range;

    const SHARD: ShardId = ShardId(1);

    /// The only replica of a shard, which leads.
    fn sole_leader(descriptors: &[Descriptor]) -> MultiRaft {
        let me = CoreAddr { node: NodeId(1), core: 0 };
        let mut multi = MultiRaft::new(me, ShardConfig::default(), 1, 7);
        multi.allow_promises(1);
        multi.bootstrap(1, descriptors[0].clone(), Box::new(MemoryStore::new()));
        run(&mut multi, 1..20);
        multi
    }

    fn run(multi: &mut MultiRaft, times: Range<Nanos>) {
        for now in times {
            let mut output = Output::default();
            multi.tick(now);
            multi.collect(now, &mut output);
            multi.persisted(&output.persists);
        }
    }

    /// What a leader without another voter lets others read, linearizably, too.
    fn opened() -> (MultiRaft, Arc<ReadCells>) {
        let descriptors = pre_split(&[NodeId(1)], 1, 1);
        let (multi, cells) = (sole_leader(&descriptors), ReadCells::new(NodeId(1), 1, &descriptors));
        assert!(cells.load(SHARD, Consistency::Linearizable).is_none());
        cells.refresh(SHARD, &multi);
        assert_eq!(get(&cells, || 20), Some(None));
        (multi, cells)
    }

    fn get(cells: &ReadCells, clock: impl FnOnce() -> Nanos) -> Option<Option<Versioned>> {
        cells.get((SHARD, 1), b"a", Consistency::Linearizable, clock)
    }

    fn read(cells: &ReadCells, clock: impl FnOnce() -> Nanos) -> Option<Answer> {
        let query = Query::Get { key: Bytes::from_static(b"a") };
        let consistency = Consistency::Linearizable;
        cells.read(&Request::Read { shard: SHARD, range_epoch: 1, query, consistency }, clock)
    }

    /// A write is published while the reader looks at its clock.
    fn put(multi: &mut MultiRaft, cells: &ReadCells, at: Nanos) -> Nanos {
        let command = encode_put(1, b"a", b"1").expect("it is small");
        let id = RequestId(at);
        multi.submit(at, id, Request::Write { shard: SHARD, command }).expect("it leads");
        run(multi, at..at + 10);
        cells.refresh(SHARD, multi);
        at + 10
    }

    #[test]
    fn every_shard_has_its_cell_in_whatever_order_they_come() {
        let mut descriptors = pre_split(&[NodeId(1)], 9, 1);
        descriptors.reverse();
        let cells = ReadCells::new(NodeId(1), 1, &descriptors);
        assert!(descriptors.iter().all(|descriptor| cells.cell(descriptor.shard).is_some()));
        assert!(cells.cell(ShardId(0)).is_none() && cells.cell(ShardId(10)).is_none());
    }

    #[test]
    fn a_reader_takes_its_view_first_and_the_clock_after() {
        let (mut multi, cells) = opened();
        assert_eq!(get(&cells, || put(&mut multi, &cells, 30)), Some(None), "the view before the write");
        let Some(Some(first)) = get(&cells, || 40) else { panic!("the write isn't there") };
        let before = read(&cells, || put(&mut multi, &cells, 50));
        assert_eq!(before, Some(Answer::Value(Some(first.clone()))), "the view before the second write");
        let Some(Some(second)) = get(&cells, || 60) else { panic!("the write isn't there") };
        assert!(second.version > first.version, "{second:?} after {first:?}");
    }

    #[test]
    fn a_lease_that_ends_while_a_reader_looks_at_its_clock_serves_it_nothing() {
        for has_ended in [false, true] {
            let (_multi, cells) = opened();
            let until = |ns| {
                let open = cells.load(SHARD, Consistency::Linearizable).expect("it was published");
                open.grant.until.store(ns, Ordering::SeqCst);
            };
            until(100);
            assert_eq!(get(&cells, || 99), Some(None));
            let late = || {
                if has_ended {
                    until(0);
                    return 99;
                }
                100
            };
            assert_eq!(get(&cells, late), None, "ended early: {has_ended}");
            assert_eq!(read(&cells, late), None, "ended early: {has_ended}");
        }
    }

    #[test]
    fn the_core_learns_once_that_somebody_has_read_under_the_lease() {
        let descriptors = pre_split(&[NodeId(1)], 1, 1);
        let (multi, cells) = (sole_leader(&descriptors), ReadCells::new(NodeId(1), 1, &descriptors));
        let linearizable = Consistency::Linearizable;
        assert!(cells.load(SHARD, linearizable).is_none());
        assert!(!cells.refresh(SHARD, &multi), "it was looked for, not read");
        let open = cells.load(SHARD, linearizable).expect("it was looked for");
        assert!(!cells.refresh(SHARD, &multi));
        assert_eq!(open.get(1, b"a", Consistency::ANY_AGE, 20), Some(None));
        assert!(!cells.refresh(SHARD, &multi), "that needs no lease");
        assert_eq!(open.get(1, b"a", linearizable, 20), Some(None));
        assert!(cells.refresh(SHARD, &multi));
        assert!(!cells.refresh(SHARD, &multi), "not since");
    }
}
