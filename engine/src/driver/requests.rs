//! Callers that wait for an answer of their core.

use crate::mailbox::Slot;
use floe_shard::request::{Answer, Refusal, Request, RequestId, UnknownReason};
use std::sync::Arc;

/// The callers of one core. When it is dropped, on a panic too, everybody who still waits is answered.
pub(super) struct Requests {
    places: Vec<Place>,
    free: Vec<u32>,
    waiting_max: usize,
}

struct Place {
    /// Part of the id, so that a second answer to an old request can't reach a new one.
    round: u32,
    waiting: Option<Waiting>,
}

struct Waiting {
    slot: Arc<Slot>,
    changes_something: bool,
}

impl Requests {
    pub(super) fn new(waiting_max: usize) -> Self {
        Self { places: Vec::new(), free: Vec::new(), waiting_max }
    }

    /// A number for a request; `None` if too many wait already.
    pub(super) fn insert(&mut self, request: &Request, slot: Arc<Slot>) -> Option<RequestId> {
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.places.len() < self.waiting_max => {
                self.places.push(Place { round: 0, waiting: None });
                u32::try_from(self.places.len() - 1).expect("far fewer than 2^32 callers fit in memory")
            }
            None => return None,
        };
        let place = &mut self.places[at as usize];
        place.waiting = Some(Waiting { slot, changes_something: !matches!(request, Request::Read { .. }) });
        Some(RequestId(u64::from(place.round) << 32 | u64::from(at)))
    }

    /// Answers a request. An answer to one that was answered is dropped.
    pub(super) fn answer(&mut self, id: RequestId, answer: Answer) {
        let at = id.0 as u32;
        let place = self.places.get_mut(at as usize).filter(|place| place.round == (id.0 >> 32) as u32);
        let Some((place, waiting)) = place.and_then(|place| {
            let waiting = place.waiting.take()?;
            Some((place, waiting))
        }) else {
            tracing::error!(id = id.0, "answer to a request that doesn't wait");
            return;
        };
        place.round = place.round.wrapping_add(1);
        self.free.push(at);
        waiting.slot.answer(answer);
    }

    /// How many wait.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        for waiting in self.places.iter_mut().filter_map(|place| place.waiting.take()) {
            let reason = "the core has stopped".to_owned();
            waiting.slot.answer(match waiting.changes_something {
                true => Answer::Unknown(UnknownReason::ShuttingDown),
                false => Answer::Refused(Refusal::Unavailable { reason }),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use floe_raft::Nanos;
    use floe_shard::request::{Consistency, Query};
    use floe_shard::{NodeId, ShardId};

    fn write() -> Request {
        Request::Write { shard: ShardId(1), command: Bytes::new() }
    }

    fn read() -> Request {
        let query = Query::Get { key: Bytes::new() };
        Request::Read { shard: ShardId(1), range_epoch: 1, query, consistency: Consistency::ANY_AGE }
    }

    #[test]
    fn nobody_waits_for_ever_for_a_core_that_is_gone() {
        let (a, b) = (Slot::new(), Slot::new());
        let c = Slot::new();
        let mut requests = Requests::new(3);
        requests.insert(&write(), Arc::clone(&a)).unwrap();
        let transfer = Request::TransferLeadership { shard: ShardId(1), to: NodeId(1) };
        requests.insert(&transfer, Arc::clone(&b)).unwrap();
        requests.insert(&read(), Arc::clone(&c)).unwrap();
        assert!(requests.insert(&write(), Slot::new()).is_none());
        drop(requests);
        assert_eq!(a.wait(Nanos::MAX), Answer::Unknown(UnknownReason::ShuttingDown));
        assert_eq!(b.wait(Nanos::MAX), Answer::Unknown(UnknownReason::ShuttingDown));
        assert!(matches!(c.wait(Nanos::MAX), Answer::Refused(Refusal::Unavailable { .. })));
    }

    #[test]
    fn a_second_answer_never_reaches_the_next_request() {
        let mut requests = Requests::new(1);
        let first = requests.insert(&write(), Slot::new()).unwrap();
        requests.answer(first, Answer::Done);
        let slot = Slot::new();
        let second = requests.insert(&write(), Arc::clone(&slot)).unwrap();
        requests.answer(first, Answer::Done);
        assert_eq!(requests.len(), 1);
        requests.answer(second, Answer::Written { version: 7 });
        assert_eq!(slot.wait(Nanos::MAX), Answer::Written { version: 7 });
    }
}
