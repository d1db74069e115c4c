//! States of shards that this node holds for scans that take more than one page, so that all pages of a shard are of
//! one snapshot.
//!
//! Who reads a first page, a core or a caller's thread, holds the state that it was read from; the answer names it
//! ([`ViewId`]). Later pages are read from it wherever they are asked for on this node, without a lease and whoever leads
//! the shard by then; other nodes, and remote clients, send them here. It is let go with the last page, and at the latest
//! [`HELD_NS_MAX`] after it was taken: what writers have replaced since stays in memory for its sake. Writers come first:
//! while they are refused because the write buffer is full, nothing is held.
//!
//! Bounds: [`VIEWS_MAX`] states, and their age. What is let go is freed in the background (`Running::housekeep`).

use floe_raft::Nanos;
use floe_shard::request::{Answer, BusyReason, Query, Refusal, Rest};
use floe_shard::{NodeId, StateView, ViewId};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// States held at once, by all scans on this node together; a scan beyond is refused as busy when it needs a second page.
pub const VIEWS_MAX: usize = 256;
/// How long a state is held at most.
pub const HELD_NS_MAX: Nanos = 30_000_000_000;

/// The states that a node holds.
pub struct HeldViews {
    node: NodeId,
    held: Mutex<Held>,
}

struct Held {
    /// By number, and so by age; each with when it was taken.
    states: BTreeMap<u64, (Nanos, StateView)>,
    last: u64,
    /// Let go, and not freed yet.
    gone: Vec<StateView>,
}

impl HeldViews {
    /// None yet. No two boots of a node may have the same `seed`, so that a view of an earlier one is known to be gone.
    pub fn new(node: NodeId, seed: u64) -> Self {
        // The low half counts; 0 is no number.
        let last = (seed << 32).max(1 << 32);
        Self { node, held: Mutex::new(Held { states: BTreeMap::new(), last, gone: Vec::new() }) }
    }

    /// Whose states these are.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What becomes of an answer that was read here: if a scan goes on in its state, that is held. `of` is the view that
    /// the page was read from, unless it is the first; after its last page it is let go.
    pub fn hold_rest(&self, now: Nanos, of: Option<ViewId>, answer: Answer) -> Answer {
        let Answer::Rows { rows, rest } = answer else { return answer };
        let rest = match (rest, of) {
            (Rest::In(_), Some(view)) => Rest::Held(view),
            (Rest::In(state), None) => match self.hold(now, state) {
                Some(view) => Rest::Held(view),
                None => return Answer::Refused(Refusal::Busy(BusyReason::Views)),
            },
            (rest, of) => {
                if let Some(view) = of {
                    self.let_go(view);
                }
                rest
            }
        };
        Answer::Rows { rows, rest }
    }

    fn hold(&self, now: Nanos, state: StateView) -> Option<ViewId> {
        let mut held = self.held.lock();
        held.expire(now);
        if held.states.len() >= VIEWS_MAX {
            return None;
        }
        held.last += 1;
        let number = held.last;
        held.states.insert(number, (now, state));
        Some(ViewId { node: self.node, number })
    }

    /// A state that is held here.
    pub fn get(&self, now: Nanos, view: ViewId) -> Option<StateView> {
        let mut held = self.held.lock();
        held.expire(now);
        held.states.get(&view.number).filter(|_| view.node == self.node).map(|(_, state)| state.clone())
    }

    /// The page of a scan that goes on in a view held here, read on this thread.
    pub fn read(&self, now: Nanos, view: ViewId, query: &Query) -> Answer {
        let Some(state) = self.get(now, view) else { return Answer::Refused(Refusal::ViewGone) };
        match state.read(query) {
            Ok(answer) => self.hold_rest(now, Some(view), answer),
            Err(reason) => Answer::Refused(Refusal::Unavailable { reason }),
        }
    }

    /// Nobody reads it any more.
    pub fn let_go(&self, view: ViewId) {
        let mut held = self.held.lock();
        if view.node == self.node
            && let Some((_, state)) = held.states.remove(&view.number)
        {
            held.gone.push(state);
        }
    }

    /// Nothing is held any more.
    pub fn let_all_go(&self) {
        let mut held = self.held.lock();
        let states = std::mem::take(&mut held.states);
        held.gone.extend(states.into_values().map(|(_, state)| state));
    }

    /// All that was let go since the last time, or is too old; to be freed.
    pub fn take_gone(&self, now: Nanos) -> Vec<StateView> {
        let mut held = self.held.lock();
        held.expire(now);
        std::mem::take(&mut held.gone)
    }
}

impl Held {
    fn expire(&mut self, now: Nanos) {
        while let Some(oldest) = self.states.first_entry()
            && now.saturating_sub(oldest.get().0) > HELD_NS_MAX
        {
            let (_, state) = oldest.remove();
            self.gone.push(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use floe_shard::{KeyRange, MemoryStore, StateMachine};

    fn state() -> StateView {
        StateView { view: MemoryStore::new().view().expect("it has views"), range: KeyRange::all() }
    }

    fn page(rest: Rest) -> Answer {
        Answer::Rows { rows: Vec::new(), rest }
    }

    fn hold(views: &HeldViews, now: Nanos) -> Option<ViewId> {
        match views.hold_rest(now, None, page(Rest::In(state()))) {
            Answer::Rows { rest: Rest::Held(view), .. } => Some(view),
            Answer::Refused(Refusal::Busy(BusyReason::Views)) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_state_is_held_until_the_last_page() {
        let views = HeldViews::new(NodeId(3), 1);
        let view = hold(&views, 1).expect("there is room");
        let next = views.hold_rest(2, Some(view), page(Rest::In(state())));
        assert_eq!(next, page(Rest::Held(view)), "the same view for all pages");
        assert!(views.get(2, view).is_some() && views.take_gone(2).is_empty());
        assert_eq!(views.hold_rest(3, Some(view), page(Rest::Nothing)), page(Rest::Nothing));
        assert!(views.get(3, view).is_none());
        assert_eq!(views.take_gone(3).len(), 1, "it is handed out to be freed, once");
        assert!(views.take_gone(3).is_empty());
    }

    #[test]
    fn states_are_bounded_in_number_and_age() {
        let views = HeldViews::new(NodeId(3), 1);
        let all: Vec<_> =
            (0..VIEWS_MAX as u64).map(|now| hold(&views, now).expect("there is room")).collect();
        assert_eq!(hold(&views, VIEWS_MAX as u64), None);
        assert!(views.get(HELD_NS_MAX, all[0]).is_some());
        assert!(views.get(HELD_NS_MAX + 1, all[0]).is_none() && views.get(HELD_NS_MAX + 1, all[1]).is_some());
        assert!(hold(&views, HELD_NS_MAX + 1).is_some(), "there is room again");
        assert_eq!(views.take_gone(2 * HELD_NS_MAX).len(), VIEWS_MAX);
    }

    #[test]
    fn writers_who_need_the_memory_get_it() {
        let views = HeldViews::new(NodeId(3), 1);
        let view = hold(&views, 1).expect("there is room");
        views.let_all_go();
        assert!(views.get(1, view).is_none());
        assert_eq!(views.take_gone(1).len(), 1, "it is handed out to be freed");
        assert!(hold(&views, 1).is_some_and(|next| next > view), "no number comes twice");
    }

    #[test]
    fn a_view_of_another_node_or_boot_is_gone() {
        let (before, after) = (HeldViews::new(NodeId(3), 1), HeldViews::new(NodeId(3), 2));
        let view = hold(&before, 1).expect("there is room");
        hold(&after, 1).expect("there is room");
        let (start, end) = (Bytes::new(), Bytes::new());
        let query = Query::Scan { start, end, limit: 0, bytes_max: 1, reverse: false, view: Some(view) };
        assert_eq!(after.read(1, view, &query), Answer::Refused(Refusal::ViewGone));
        assert_eq!(
            before.read(1, ViewId { node: NodeId(4), ..view }, &query),
            Answer::Refused(Refusal::ViewGone)
        );
        assert!(matches!(before.read(1, view, &query), Answer::Rows { .. }));
    }
}
