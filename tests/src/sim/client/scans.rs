//! Scans of a few keys of one shard, some of them in many pages: between two of them others write. All pages must be of
//! the state that the first was read from, which is checked twice over: each row as a read that was done when the first
//! page was ([`floe_checker`]), and all of them together as a snapshot ([`crate::checker::snapshots`]).

use super::{Call, ClientId, Clients, Doing, Pending, RANGE_EPOCH};
use crate::checker::Violation;
use crate::checker::raft_safety::RaftSafety;
use bytes::Bytes;
use floe_raft::Nanos;
use floe_shard::{Consistency, Query, Request, Rest, ShardId, Versioned, ViewId};
use std::collections::BTreeMap;

/// A page of a scan: what is left of its keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    from: u32,
    to: u32,
    limit: u32,
    /// The view that earlier pages were read from, and between when and when it was taken.
    earlier: Option<(ViewId, Nanos, Nanos)>,
}

impl Clients {
    pub(super) fn scan(&mut self, now: Nanos, client: ClientId, key: u32) -> Call {
        let shard = self.keys[key as usize].1;
        let mut to = key;
        while to < self.keys() && to < key + 5 && self.shard_of(to) == shard {
            to += 1;
        }
        let limit = self.random.between(1, 6) as u32;
        self.page(now, client, shard, Page { from: key, to, limit, earlier: None })
    }

    /// With an odd limit, each row is a page.
    pub(super) fn page(&mut self, now: Nanos, client: ClientId, shard: ShardId, page: Page) -> Call {
        let Page { from, to, limit, earlier } = page;
        let end = if self.keys.get(to as usize).is_some_and(|(_, of)| *of == shard) {
            self.keys[to as usize].0.clone()
        } else {
            Bytes::new()
        };
        let start = self.keys[from as usize].0.clone();
        let bytes_max = if limit % 2 == 1 { 1 } else { 1 << 20 };
        let view = earlier.map(|(view, ..)| view);
        let query = Query::Scan { start, end, limit, bytes_max, reverse: false, view };
        let consistency = Consistency::Linearizable;
        let request = Request::Read { shard, range_epoch: RANGE_EPOCH, query, consistency };
        self.call(now, client, shard, Doing::Scan(page), request)
    }

    /// All pages of a scan are as of some moment of its first one.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn end_page(
        &mut self,
        now: Nanos,
        client: ClientId,
        mut pending: Pending,
        page: Page,
        rows: BTreeMap<Bytes, Versioned>,
        rest: Rest,
        history: &RaftSafety,
    ) -> Result<(), Violation> {
        self.counts.read += 1;
        let Page { from, to, limit, earlier } = page;
        let names: Vec<Bytes> =
            self.keys[from as usize..to as usize].iter().map(|(name, _)| name.clone()).collect();
        if let Some(stray) = rows.keys().find(|name| !names.contains(name)) {
            return Err(Violation::new("read", format!("a scan of {from}..{to} found {stray:?}")));
        }
        let taken_by = earlier.map_or(now, |(_, called, answered)| {
            pending.called = called;
            answered
        });
        let last = rows.keys().next_back().cloned();
        for (key, name) in (from..to).zip(&names) {
            // Beyond the last row of a page after which something follows, nothing is known.
            if rest == Rest::Nothing || last.as_ref().is_some_and(|last| name <= last) {
                let row = rows.get(name);
                self.saw(taken_by, client, &pending, key, row, Consistency::Linearizable, history)?;
                let state = self.clients.entry(client).or_default();
                state.scanned.insert(key, state.seen[&key]);
            }
        }
        if let Rest::Held(view) = rest {
            let at = names.iter().position(|name| Some(name) == last.as_ref());
            let at = at.ok_or_else(|| Violation::new("read", "a page without rows has a rest"))?;
            let earlier = Some((view, pending.called, taken_by));
            let (from, limit) = (from + at as u32 + 1, limit - rows.len() as u32);
            // The shard's end is no key.
            if from < to {
                self.counts.pages += 1;
                let page = Page { from, to, limit: limit | 1, earlier };
                self.clients.entry(client).or_default().scan = Some((pending.shard, page));
                return Ok(());
            }
        }
        self.scan_ended(client, pending.shard);
        Ok(())
    }

    pub(super) fn scan_ended(&mut self, client: ClientId, shard: ShardId) {
        let seen = std::mem::take(&mut self.clients.entry(client).or_default().scanned);
        if seen.len() > 1 {
            self.snapshots.saw(shard, seen);
        }
    }
}
