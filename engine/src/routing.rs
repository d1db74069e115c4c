//! Where a request goes: to the replicas of this core, to the node that leads, or back with a refusal.
//!
//! A request that was forwarded here is never forwarded on: its origin is told who leads and tries
//! there. So no request travels in circles, and at most one copy of a write is ever under way.

use crate::metrics::add;
use crate::requests::{Origin, Pending, Place};
use crate::running::{HOUSEKEEPING_NS, Running};
use crate::seam::Effects;
use crate::worker::WorkerConfig;
use floe_raft::{Nanos, Planted, is_planted};
use floe_shard::peer::PeerMessage;
use floe_shard::request::{Answer, BusyReason, Refusal, Request, RequestId, UnknownReason};
use floe_shard::{CoreAddr, NodeId, ShardId, ViewId};

impl Running {
    /// What was forwarded there is in doubt if it writes; reads are tried again.
    pub(crate) fn peer_down(&mut self, now: Nanos, peer: CoreAddr, effects: &mut Effects) {
        self.connections.down(peer);
        // What was for it must not reach its next process, which counts its requests anew.
        self.batches.remove(&peer);
        self.held.iter_mut().for_each(|held| held.sends.retain(|(to, _)| *to != peer));
        self.multi.peer_down(now, peer);
        let there = |pending: &Pending| pending.place == Place::Forwarded(peer);
        let lost: Vec<_> =
            self.requests.iter().filter(|(_, pending)| there(pending)).map(|(id, _)| id).collect();
        for id in lost {
            self.retry_or(id, Answer::Unknown(UnknownReason::Disconnected), effects, now);
        }
        // Nobody is there to take the answers to what that peer forwarded here.
        let from_there = |pending: &Pending| matches!(pending.origin, Origin::Peer(from, _) if from == peer);
        let orphans: Vec<_> =
            self.requests.iter().filter(|(_, pending)| from_there(pending)).map(|(id, _)| id).collect();
        for id in orphans {
            self.multi.abandon(id);
            self.requests.remove(id);
        }
    }

    pub(crate) fn admit(
        &mut self,
        now: Nanos,
        origin: Origin,
        deadline: Nanos,
        park_until: Nanos,
        request: Request,
        effects: &mut Effects,
    ) {
        let refusal = if self.draining_until.is_some() {
            Some(Refusal::Unavailable { reason: "the node is shutting down".into() })
        } else if deadline <= now {
            Some(Refusal::DeadlinePassed)
        } else if self.requests.len() >= self.config.requests_max {
            Some(Refusal::Busy(BusyReason::Requests))
        } else if self.wal.queued_bytes() > self.config.wal.queued_bytes_max && is_write(&request) {
            Some(Refusal::Busy(BusyReason::UncommittedBytes))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return self.deliver(origin, Answer::Refused(refusal), effects);
        }
        let place = Place::Parked;
        let id = self.requests.insert(Pending { origin, deadline, park_until, since: now, place, request });
        self.try_once(now, id, effects);
    }

    /// Hands a request to the replicas here, or else to the node that leads, or else parks it.
    pub(crate) fn try_once(&mut self, now: Nanos, id: RequestId, effects: &mut Effects) {
        let Some(pending) = self.requests.get_mut(id) else { return };
        if let Some(view) = pending.request.view() {
            return self.go_on_in(now, id, view, effects);
        }
        pending.place = Place::Submitted;
        if let Err(answer) = self.multi.submit(now, id, pending.request.clone()) {
            self.on_answer(now, id, answer, None, effects);
        }
    }

    /// The next page of a scan: read from the view that it names, here or on the node that holds it.
    fn go_on_in(&mut self, now: Nanos, id: RequestId, view: ViewId, effects: &mut Effects) {
        let Some(pending) = self.requests.get_mut(id) else { return };
        if let Some(state) = self.config.cells.views.get(now, view)
            && let Request::Read { query, .. } = &pending.request
        {
            pending.place = Place::Submitted;
            return self.multi.read_in(id, query.clone(), state);
        }
        let is_local = matches!(pending.origin, Origin::Local(_));
        if is_local && view.node != self.config.me.node && self.connections.reaches(view.node) {
            return self.forward(now, id, Some(view.node));
        }
        self.finish(now, id, Answer::Refused(Refusal::ViewGone), effects);
    }

    /// An answer, from the replicas here or (`from`) from the core it was forwarded to.
    pub(crate) fn on_answer(
        &mut self,
        now: Nanos,
        id: RequestId,
        answer: Answer,
        from: Option<CoreAddr>,
        effects: &mut Effects,
    ) {
        let Some(pending) = self.requests.get_mut(id) else { return };
        if from.is_some_and(|from| pending.place != Place::Forwarded(from)) {
            return; // of an earlier try
        }
        if let Some(peer) = from
            && !pending.request.accepts(&answer)
        {
            let in_its_place = bad_answer(&self.config, peer, &pending.request, &answer);
            return self.finish(now, id, in_its_place, effects);
        }
        let answer = match from {
            Some(_) => answer,
            None => self.config.cells.views.hold_rest(now, pending.request.view(), answer),
        };
        let is_local = matches!(pending.origin, Origin::Local(_));
        match answer {
            // Its replica finds a leader to ask, or the one that it asked answers, before long.
            Answer::Refused(Refusal::NotLeader { .. })
                if is_local && pending.request.is_for_local_replica() =>
            {
                self.park(id);
            }
            Answer::Refused(Refusal::NotLeader { leader }) if is_local => self.forward(now, id, leader),
            Answer::Refused(Refusal::NoSuchShard { shard }) if is_local => {
                match self.member_of(shard, now) {
                    Some(node) if from.is_none() => self.forward(now, id, Some(node)),
                    // It was not at home there: that node has just started, with another core count say.
                    Some(_) => self.park(id),
                    None => self.finish(now, id, Answer::Refused(Refusal::NoSuchShard { shard }), effects),
                }
            }
            Answer::Refused(Refusal::Overwritten) if is_local => self.park(id),
            Answer::Unknown(reason) => self.retry_or(id, Answer::Unknown(reason), effects, now),
            answer => self.finish(now, id, answer, effects),
        }
    }

    fn forward(&mut self, now: Nanos, id: RequestId, leader: Option<NodeId>) {
        let me = self.config.me;
        let Some(pending) = self.requests.get_mut(id) else { return };
        let target = leader.filter(|&node| node != me.node).and_then(|node| {
            let cores = self.connections.cores_of(node)?;
            let peer = CoreAddr { node, core: pending.request.shard().core(cores) };
            self.connections.is_up(peer).then_some(peer)
        });
        // A second refusal from the same place means that it doesn't know better: wait a little.
        let Some(peer) = target.filter(|&peer| pending.place != Place::Forwarded(peer)) else {
            return self.park(id);
        };
        pending.place = Place::Forwarded(peer);
        let message = PeerMessage::Request {
            id: id.0,
            origin: me.node,
            remaining_ns: pending.deadline.saturating_sub(now),
            request: pending.request.clone(),
        };
        add(&self.config.metrics.forwarded, 1);
        self.batches.entry(peer).or_default().messages.push(message);
    }

    /// A node that should have a replica of a shard which has none here: another one at each try.
    fn member_of(&self, shard: ShardId, now: Nanos) -> Option<NodeId> {
        let hint = self.config.bootstrap.iter().find(|descriptor| descriptor.shard == shard)?;
        let nodes = hint.replicas.iter().map(|place| place.node).filter(|&node| node != self.config.me.node);
        let nodes: Vec<_> = nodes.collect();
        nodes.get((now / HOUSEKEEPING_NS) as usize % nodes.len().max(1)).copied()
    }

    fn park(&mut self, id: RequestId) {
        if let Some(pending) = self.requests.get_mut(id) {
            pending.place = Place::Parked;
            self.parked.push(id);
        }
    }

    /// A read can be tried again whatever happened to it; a write can't.
    fn retry_or(&mut self, id: RequestId, answer: Answer, effects: &mut Effects, now: Nanos) {
        match self.requests.get_mut(id) {
            Some(pending)
                if (matches!(pending.request, Request::Read { .. })
                    || is_planted(Planted::DoubleForward))
                    && matches!(pending.origin, Origin::Local(_)) =>
            {
                self.park(id);
            }
            Some(_) => self.finish(now, id, answer, effects),
            None => {}
        }
    }

    pub(crate) fn finish(&mut self, now: Nanos, id: RequestId, answer: Answer, effects: &mut Effects) {
        if let Some(pending) = self.requests.remove(id) {
            self.latencies.push(now.saturating_sub(pending.since));
            self.deliver(pending.origin, answer, effects);
        }
    }

    pub(crate) fn deliver(&mut self, origin: Origin, answer: Answer, effects: &mut Effects) {
        if matches!(answer, Answer::Refused(Refusal::Busy(_))) {
            add(&self.config.metrics.busy, 1);
        }
        match origin {
            Origin::Local(id) => effects.answers.push((id, answer)),
            Origin::Peer(peer, id) => {
                self.batches.entry(peer).or_default().messages.push(PeerMessage::Answer { id, answer });
            }
        }
    }

    pub(crate) fn expire(&mut self, now: Nanos, effects: &mut Effects) {
        let mut expired = std::mem::take(&mut self.expired);
        self.requests.expired(now, &mut expired);
        for id in expired.drain(..) {
            let Some(pending) = self.requests.get_mut(id) else { continue };
            let executing = pending.place != Place::Parked && changes_something(&pending.request);
            let answer = if executing {
                Answer::Unknown(UnknownReason::DeadlinePassed)
            } else {
                Answer::Refused(Refusal::DeadlinePassed)
            };
            self.multi.abandon(id);
            self.finish(now, id, answer, effects);
        }
        self.expired = expired;
    }

    pub(crate) fn answer_all(&mut self, effects: &mut Effects) {
        let ids: Vec<_> = self.requests.iter().map(|(id, _)| id).collect();
        for id in ids {
            let Some(pending) = self.requests.remove(id) else { continue };
            let answer = if changes_something(&pending.request) && pending.place != Place::Parked {
                Answer::Unknown(UnknownReason::ShuttingDown)
            } else {
                Answer::Refused(Refusal::Unavailable { reason: "the node is shutting down".into() })
            };
            self.deliver(pending.origin, answer, effects);
        }
    }
}

/// A peer answered with what is no answer to the request: nobody knows what it did with it. To ask the same
/// peer again would bring the same.
fn bad_answer(config: &WorkerConfig, peer: CoreAddr, request: &Request, answer: &Answer) -> Answer {
    add(&config.metrics.answers_refused, 1);
    tracing::warn!(
        core = %config.me, %peer, shard = %request.shard(), answer = kind_of(answer),
        "a peer's answer doesn't fit the request; is it faulty?"
    );
    match request {
        Request::Write { .. } | Request::TransferLeadership { .. } | Request::ChangeMembers { .. } => {
            Answer::Unknown(UnknownReason::BadAnswer)
        }
        Request::Read { .. } => {
            let reason = format!("node {} answered with something that is no answer", peer.node);
            Answer::Refused(Refusal::Unavailable { reason })
        }
    }
}

/// The kind of an answer, without a caller's data.
fn kind_of(answer: &Answer) -> &'static str {
    match answer {
        Answer::Written { .. } => "written",
        Answer::ConditionFailed { .. } => "condition failed",
        Answer::Value(_) => "value",
        Answer::Rows { .. } => "rows",
        Answer::Done => "done",
        Answer::Refused(_) => "refused",
        Answer::Unknown(_) => "unknown",
    }
}

/// Whether its outcome isn't known once it was handed on.
fn changes_something(request: &Request) -> bool {
    !matches!(request, Request::Read { .. })
}

fn is_write(request: &Request) -> bool {
    matches!(request, Request::Write { .. })
}
