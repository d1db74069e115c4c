//! Requests under way at one core: those of this node's clients, and those that other nodes forwarded.
//!
//! A request is in one of three places: with the replicas (`Submitted`), on its way to the node that
//! leads (`Forwarded`), or waiting for a leader to be known (`Parked`). Each has a deadline; a lower
//! bound of all deadlines is kept, so that looking for expired ones costs nothing until one can be.

use floe_raft::{Nanos, Planted, is_planted};
use floe_shard::CoreAddr;
use floe_shard::request::{Request, RequestId};

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client of this node.
    Local(RequestId),
    /// A core of another node, by its own number.
    Peer(CoreAddr, u64),
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// With the replicas of this core.
    Submitted,
    /// At the core that leads, as far as is known.
    Forwarded(CoreAddr),
    /// Waiting for a leader to be known or connected.
    Parked,
}

/// One request under way.
#[derive(Debug)]
pub struct Pending {
    /// Who asked.
    pub origin: Origin,
    /// When the caller stops waiting.
    pub deadline: Nanos,
    /// Until when it may be parked: whoever asked can ask another node then.
    pub park_until: Nanos,
    /// When it came in.
    pub since: Nanos,
    /// Where it is.
    pub place: Place,
    /// What is asked, kept for another try.
    pub request: Request,
}

#[allow(clippy::large_enum_variant, reason = "a place that was used once is there to be used again")]
enum Entry {
    Free { next: Option<u32> },
    Used(Pending),
}

/// A slab of requests; an id names a slot and the use of it, so that a late answer meets nobody else.
pub struct Requests {
    slots: Vec<(u32, Entry)>,
    free: Option<u32>,
    len: usize,
    earliest: Nanos,
}

impl Requests {
    /// An empty table.
    pub fn new() -> Self {
        Self { slots: Vec::new(), free: None, len: 0, earliest: Nanos::MAX }
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one.
    pub fn insert(&mut self, pending: Pending) -> RequestId {
        self.earliest = self.earliest.min(pending.deadline);
        self.len += 1;
        let Some(at) = self.free else {
            let at = u32::try_from(self.slots.len()).expect("requests_max is far below 2^32");
            self.slots.push((0, Entry::Used(pending)));
            return id(at, 0);
        };
        let (usage, entry) = &mut self.slots[at as usize];
        let Entry::Free { next } = *entry else { panic!("slot {at} of the free list is in use") };
        self.free = next;
        *entry = Entry::Used(pending);
        id(at, *usage)
    }

    /// The request with this id, if it is still under way.
    pub fn get_mut(&mut self, request: RequestId) -> Option<&mut Pending> {
        let (at, usage) = parts(request);
        match self.slots.get_mut(at as usize) {
            Some((current, Entry::Used(pending))) if *current == usage => Some(pending),
            _ => None,
        }
    }

    /// Takes the request out.
    pub fn remove(&mut self, request: RequestId) -> Option<Pending> {
        self.get_mut(request)?;
        let (at, _) = parts(request);
        let (usage, entry) = &mut self.slots[at as usize];
        let taken = std::mem::replace(entry, Entry::Free { next: self.free });
        if !is_planted(Planted::RequestNumberReused) {
            *usage = usage.wrapping_add(1);
        }
        self.free = Some(at);
        self.len -= 1;
        match taken {
            Entry::Used(pending) => Some(pending),
            Entry::Free { .. } => unreachable!("get_mut found it in use"),
        }
    }

    /// Lower bound of when a deadline passes.
    pub fn earliest(&self) -> Nanos {
        if self.is_empty() { Nanos::MAX } else { self.earliest }
    }

    /// Collects the ids of requests whose deadline has passed. O(1) while none can have.
    pub fn expired(&mut self, now: Nanos, out: &mut Vec<RequestId>) {
        if now < self.earliest() {
            return;
        }
        let mut earliest = Nanos::MAX;
        for (request, pending) in self.iter() {
            if pending.deadline <= now {
                out.push(request);
            } else {
                earliest = earliest.min(pending.deadline);
            }
        }
        self.earliest = earliest;
    }

    /// All requests in order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (RequestId, &Pending)> {
        self.slots.iter().enumerate().filter_map(|(at, (usage, entry))| match entry {
            Entry::Used(pending) => Some((id(at as u32, *usage), pending)),
            Entry::Free { .. } => None,
        })
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

fn id(at: u32, usage: u32) -> RequestId {
    RequestId(u64::from(usage) << 32 | u64::from(at))
}

fn parts(RequestId(id): RequestId) -> (u32, u32) {
    (id as u32, (id >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_shard::{NodeId, ShardId};

    fn pending(deadline: Nanos) -> Pending {
        let request = Request::TransferLeadership { shard: ShardId(1), to: NodeId(1) };
        let origin = Origin::Local(RequestId(0));
        Pending { origin, deadline, park_until: deadline, since: 0, place: Place::Parked, request }
    }

    #[test]
    fn a_late_answer_meets_nobody_else() {
        let mut requests = Requests::new();
        let first = requests.insert(pending(10));
        assert!(requests.remove(first).is_some());
        let second = requests.insert(pending(10));
        assert_ne!(first, second);
        assert!(requests.remove(first).is_none());
        assert!(requests.remove(second).is_some());
        assert!(requests.is_empty());
    }

    #[test]
    fn each_deadline_is_noticed_once_it_has_passed() {
        let mut requests = Requests::new();
        let ids: Vec<_> = [30, 10, 20].map(|deadline| requests.insert(pending(deadline))).into();
        let mut expired = Vec::new();
        requests.expired(9, &mut expired);
        assert!(expired.is_empty());
        requests.expired(10, &mut expired);
        assert_eq!(expired, [ids[1]]);
        requests.remove(ids[1]);
        assert_eq!(requests.earliest(), 20);
    }
}
