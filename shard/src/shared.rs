//! What the replicas of one core have in common, held once. Most shards of a core have the same members at the same
//! places; a copy for each would be a good part of what an idle replica costs.
//!
//! Sharing changes no value, so nothing depends on who shares with whom.

use crate::descriptor::ReplicaPlace;
use crate::ids::CoreAddr;
use crate::replica::Replica;
use floe_raft::{Membership, ReplicaId};
use std::collections::BTreeSet;
use std::sync::Arc;

/// So many values may be held before those that nobody uses any more are looked for.
const SWEEP_MIN: usize = 64;

/// Equal values, one of each. Held are at most twice as many as are used, or [`SWEEP_MIN`].
struct Pool<T: ?Sized> {
    held: BTreeSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized + Ord> Pool<T> {
    fn new() -> Self {
        Self { held: BTreeSet::new(), sweep_at: SWEEP_MIN }
    }

    /// The one that is equal to `value`: itself, if it is the first. O(log values).
    fn one(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(one) = self.held.get(&**value) {
            return Arc::clone(one);
        }
        if self.held.len() >= self.sweep_at {
            self.held.retain(|held| Arc::strong_count(held) > 1);
            self.sweep_at = SWEEP_MIN.max(2 * self.held.len());
        }
        self.held.insert(Arc::clone(value));
        Arc::clone(value)
    }
}

/// All that is shared.
pub(crate) struct Shared {
    memberships: Pool<Membership>,
    places: Pool<[ReplicaPlace]>,
    routes: Pool<[(ReplicaId, CoreAddr)]>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self { memberships: Pool::new(), places: Pool::new(), routes: Pool::new() }
    }

    /// The replica's members, their places and the ways to them may have changed.
    pub(crate) fn share(&mut self, replica: &mut Replica) {
        let membership = self.memberships.one(replica.raft.shared_membership());
        replica.raft.share_membership(membership);
        replica.descriptor.replicas = self.places.one(&replica.descriptor.replicas);
        replica.routes = self.routes.one(&replica.routes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_held_once() {
        let mut pool = Pool::<[u64]>::new();
        let first = pool.one(&Arc::from([1, 2]));
        assert!(Arc::ptr_eq(&first, &pool.one(&Arc::from([1, 2]))));
        assert_eq!(*pool.one(&Arc::from([1, 3])), [1, 3]);
    }

    #[test]
    fn values_that_nobody_uses_go_and_the_others_stay() {
        let mut pool = Pool::<u64>::new();
        let used: Vec<_> = (0..100).map(|value| pool.one(&Arc::new(value))).collect();
        (100..1000).for_each(|value| drop(pool.one(&Arc::new(value))));
        assert!(pool.held.len() <= 200, "{} of 100 in use", pool.held.len());
        assert!(used.iter().all(|used| Arc::ptr_eq(used, &pool.one(used))), "those in use are still shared");
    }
}
