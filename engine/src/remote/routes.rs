//! The requests of a remote client, and where each of them goes. Plain data: time is an argument, and nothing here
//! touches a socket.

use super::link::Wire;
use crate::codec::MapInfo;
use crate::mailbox::Slot;
use floe_raft::Nanos;
use floe_shard::request::{Answer, Refusal, Request, UnknownReason};
use floe_shard::{Descriptor, NodeId, ShardId, ShardMap};
use parking_lot::Condvar;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const MS: Nanos = 1_000_000;
/// How often each node is asked for the map while requests are under way: who leads, and whether it answers.
const ASK_EVERY_NS: Nanos = 500 * MS;
/// A node that hasn't answered that for so long gets nothing new, and its reads go elsewhere.
const SILENT_AFTER_NS: Nanos = 1_000 * MS;
/// And after so long its connection is given up.
const DEAD_AFTER_NS: Nanos = 10_000 * MS;
/// The node itself answers at the deadline, and knows more about the outcome: it has so long for it.
const GRACE_NS: Nanos = 50 * MS;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: no node is in reach.
    Parked,
    /// In the queue of a connection: nobody has seen it.
    Queued(usize),
    /// On its way to a node, or there.
    Sent(usize),
}

/// A request without an answer.
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) deadline: Nanos,
    pub(super) slot: Arc<Slot>,
    pub(super) place: Place,
    /// The connection where it was refused or lost last.
    pub(super) avoid: Option<usize>,
    /// Why it was refused last: it surely had no effect there.
    pub(super) refusal: Option<Refusal>,
}

impl Pending {
    fn changes_something(&self) -> bool {
        !matches!(self.request, Request::Read { .. })
    }
}

/// One connection, up or not.
pub(super) struct Link {
    pub(super) address: String,
    /// Who was there last.
    pub(super) node: Option<NodeId>,
    /// Present while it is up.
    pub(super) wire: Option<Wire>,
    /// Why it was not to be had, last time; empty again when it is.
    pub(super) failure: Option<String>,
    pub(super) queue: VecDeque<u64>,
    /// The map is to be asked for.
    pub(super) asks: bool,
    /// Since when an answer to that is awaited.
    pub(super) asked_at: Option<Nanos>,
    asked_last: Nanos,
    /// Its receiving thread has ended.
    pub(super) broken: bool,
    /// Wakes its sending thread.
    wake: Arc<Condvar>,
}

impl Link {
    fn is_silent(&self, now: Nanos, limit: Nanos) -> bool {
        self.asked_at.is_some_and(|at| now.saturating_sub(at) > limit)
    }

    pub(super) fn wake(&self) {
        self.wake.notify_all();
    }

    /// Ends it, whatever its threads are waiting for.
    pub(super) fn cut(&self) {
        if let Some(wire) = &self.wire {
            wire.cut();
        }
        self.wake();
    }
}

/// Everything that a client knows and waits for.
#[derive(Default)]
pub(super) struct Table {
    pub(super) requests: BTreeMap<u64, Pending>,
    pub(super) bytes: usize,
    pub(super) links: Vec<Link>,
    pub(super) closed: bool,
    /// The cluster of the first node that answered; 0 = none has.
    pub(super) cluster: u128,
    leaders: BTreeMap<ShardId, NodeId>,
    members: Vec<(NodeId, String)>,
    next_id: u64,
    /// The version of the shards that are known; 0 = none.
    pub(super) version: u64,
    /// When the clock was looked at last.
    now: Nanos,
    /// Lower bound of all deadlines.
    earliest: Nanos,
    /// Whether a request may be parked.
    has_parked: bool,
    turn: usize,
}

type Done = (Arc<Slot>, Answer);

impl Table {
    pub(super) fn add_link(&mut self, address: String, wake: Arc<Condvar>) -> usize {
        self.links.push(Link {
            address,
            node: None,
            wire: None,
            failure: None,
            queue: VecDeque::new(),
            asks: false,
            asked_at: None,
            asked_last: 0,
            broken: false,
            wake,
        });
        self.links.len() - 1
    }

    pub(super) fn insert(&mut self, pending: Pending) -> u64 {
        self.bytes += pending.request.size();
        self.earliest =
            if self.requests.is_empty() { pending.deadline } else { self.earliest.min(pending.deadline) };
        self.next_id += 1;
        self.requests.insert(self.next_id, pending);
        self.next_id
    }

    fn remove(&mut self, id: u64) -> Option<Pending> {
        let pending = self.requests.remove(&id)?;
        self.bytes -= pending.request.size();
        Some(pending)
    }

    /// Puts a request into the queue that suits, or parks it.
    pub(super) fn route(&mut self, id: u64) {
        let Some(pending) = self.requests.get(&id) else { return };
        let (shard, avoid) = (pending.request.shard(), pending.avoid);
        let best = pending.request.view().map(|view| view.node).or_else(|| self.leaders.get(&shard).copied());
        let target = self.choose(best, avoid);
        let pending = self.requests.get_mut(&id).expect("looked up right above");
        pending.place = Place::Parked;
        self.has_parked |= target.is_none();
        if let Some(at) = target {
            pending.place = Place::Queued(at);
            let link = &mut self.links[at];
            link.queue.push_back(id);
            if link.queue.len() == 1 {
                link.wake();
            }
        }
    }

    /// The connection of the `best` node, the leader or who holds the view, else any that works.
    fn choose(&mut self, best: Option<NodeId>, avoid: Option<usize>) -> Option<usize> {
        let (links, now) = (&self.links, self.now);
        let works = |at: &usize| links[*at].wire.is_some() && !links[*at].is_silent(now, SILENT_AFTER_NS);
        let all = || (0..links.len()).filter(works).filter(|at| avoid != Some(*at));
        let is_best = |at: &usize| best.is_some() && links[*at].node == best;
        if let Some(at) = all().find(is_best) {
            return Some(at);
        }
        self.turn = self.turn.wrapping_add(1);
        let count = all().count();
        all().nth(self.turn % count.max(1)).or_else(|| avoid.filter(works))
    }

    pub(super) fn up(&mut self, at: usize, wire: Wire) {
        let link = &mut self.links[at];
        link.node = Some(wire.node());
        link.wire = Some(wire);
        (link.failure, link.broken) = (None, false);
        link.asks = true;
        link.asked_at = None;
        self.route_parked();
    }

    /// The connection is gone: what has not left goes elsewhere, reads are tried again, and of writes nobody knows.
    pub(super) fn down(&mut self, at: usize, reason: String) -> Vec<Done> {
        let link = &mut self.links[at];
        (link.wire, link.asked_at, link.asks) = (None, None, false);
        link.failure = Some(reason);
        link.queue.clear();
        let gone: Vec<_> = self.of(|place| place == Place::Queued(at) || place == Place::Sent(at));
        gone.into_iter().filter_map(|id| self.lose(id, at)).collect()
    }

    fn lose(&mut self, id: u64, at: usize) -> Option<Done> {
        let pending = self.requests.get_mut(&id)?;
        if pending.place == Place::Sent(at) && pending.changes_something() {
            let Pending { slot, .. } = self.remove(id)?;
            return Some((slot, Answer::Unknown(UnknownReason::Disconnected)));
        }
        pending.avoid = Some(at);
        self.route(id);
        None
    }

    fn of(&self, is_there: impl Fn(Place) -> bool) -> Vec<u64> {
        self.requests.iter().filter(|(_, pending)| is_there(pending.place)).map(|(id, _)| *id).collect()
    }

    fn route_parked(&mut self) {
        if !std::mem::take(&mut self.has_parked) {
            return;
        }
        for id in self.of(|place| place == Place::Parked) {
            self.route(id);
        }
    }

    /// An answer from a connection: what the caller gets, or nothing if the request is tried elsewhere.
    pub(super) fn on_answer(&mut self, at: usize, id: u64, answer: Answer) -> Option<Done> {
        let pending = self.requests.get_mut(&id).filter(|pending| pending.place == Place::Sent(at))?;
        let answer = match answer {
            answer if !pending.request.accepts(&answer) => bad_answer(pending),
            Answer::Refused(refusal @ (Refusal::Unavailable { .. } | Refusal::NotLeader { .. })) => {
                pending.avoid = Some(at);
                // Without a leader in reach of anybody it is the deadline that ends it.
                pending.refusal = Some(refusal).filter(|why| matches!(why, Refusal::Unavailable { .. }));
                // Not at once: were it the only node, it would be asked without a pause.
                pending.place = Place::Parked;
                self.has_parked = true;
                return None;
            }
            Answer::Unknown(_) if !pending.changes_something() => {
                (pending.avoid, pending.place) = (Some(at), Place::Parked);
                self.has_parked = true;
                return None;
            }
            answer => answer,
        };
        if let Answer::Refused(Refusal::WrongEpoch { .. } | Refusal::OutOfRange { .. }) = answer {
            self.links[at].asks = true;
            self.links[at].wake();
        }
        self.remove(id).map(|pending| (pending.slot, answer))
    }

    /// Time passes. Returns what nobody answered in time.
    pub(super) fn tick(&mut self, now: Nanos) -> Vec<Done> {
        self.now = now;
        let busy = !self.requests.is_empty();
        for link in &mut self.links {
            if busy && link.wire.is_some() && link.asked_at.is_none() && now >= link.asked_last + ASK_EVERY_NS
            {
                (link.asks, link.asked_at, link.asked_last) = (true, Some(now), now);
                link.wake();
            }
            if link.is_silent(now, DEAD_AFTER_NS) {
                link.cut();
            }
        }
        self.leave_silent(now);
        self.route_parked();
        self.expire(now)
    }

    /// Reads don't wait for a node that has fallen silent, and what it was to get goes elsewhere.
    fn leave_silent(&mut self, now: Nanos) {
        for at in 0..self.links.len() {
            if !self.links[at].is_silent(now, SILENT_AFTER_NS) {
                continue;
            }
            self.links[at].queue.clear();
            for id in self.of(|place| place == Place::Queued(at) || place == Place::Sent(at)) {
                let pending = self.requests.get_mut(&id).expect("listed right above");
                if pending.place == Place::Queued(at) || !pending.changes_something() {
                    (pending.place, pending.avoid) = (Place::Parked, Some(at));
                    self.has_parked = true;
                }
            }
        }
    }

    fn expire(&mut self, now: Nanos) -> Vec<Done> {
        if self.requests.is_empty() || now < self.earliest {
            return Vec::new();
        }
        let is_late = |pending: &Pending| {
            let grace = if matches!(pending.place, Place::Sent(_)) { GRACE_NS } else { 0 };
            pending.deadline.saturating_add(grace) <= now
        };
        let late: Vec<_> =
            self.requests.iter().filter(|(_, pending)| is_late(pending)).map(|(id, _)| *id).collect();
        let late = late.into_iter().filter_map(|id| self.remove(id)).map(unanswered).collect();
        self.earliest = self.requests.values().map(|pending| pending.deadline).min().unwrap_or(Nanos::MAX);
        late
    }

    /// All that has no answer yet: the client is dropped.
    pub(super) fn take_all(&mut self) -> Vec<Done> {
        let ids: Vec<_> = self.requests.keys().copied().collect();
        ids.into_iter().filter_map(|id| self.remove(id)).map(unanswered).collect()
    }

    /// Takes in what a node says of the cluster, whose shards are those of `map`. A node knows best what it leads itself.
    pub(super) fn learn(&mut self, at: usize, info: MapInfo, map: &ShardMap) {
        self.links[at].asked_at = None;
        let teller = self.links[at].node;
        let leaders = info.leaders.iter().map(|&node| (node > 0).then_some(NodeId(node)));
        for (descriptor, leader) in map.iter().zip(leaders) {
            let known = self.leaders.get(&descriptor.shard).copied();
            if let Some(leader) = leader
                && (Some(leader) == teller || known.is_none() || known == teller)
            {
                self.leaders.insert(descriptor.shard, leader);
            }
        }
        self.members = info.nodes.into_iter().map(NodeId).zip(info.addresses).collect();
    }

    /// Addresses of nodes that no connection goes to. None before each endpoint was tried: it may be one of them.
    pub(super) fn take_found(&mut self) -> Vec<String> {
        if self.links.iter().any(|link| link.wire.is_none() && link.failure.is_none()) {
            return Vec::new();
        }
        let members = std::mem::take(&mut self.members);
        let is_new = |(node, address): &(NodeId, String)| {
            !self.links.iter().any(|link| link.node == Some(*node) || link.address == *address)
        };
        members.into_iter().filter(is_new).map(|(_, address)| address).collect()
    }

    /// Each endpoint that was not to be had, with the reason.
    pub(super) fn failures(&self) -> Vec<(String, String)> {
        let reason = |link: &Link| link.failure.clone().unwrap_or_else(|| "no answer in time".into());
        self.links.iter().map(|link| (link.address.clone(), reason(link))).collect()
    }
}

/// A request whose time is over.
fn unanswered(pending: Pending) -> Done {
    let may_be_done = matches!(pending.place, Place::Sent(_)) && pending.changes_something();
    let answer = match pending.refusal {
        _ if may_be_done => Answer::Unknown(UnknownReason::DeadlinePassed),
        Some(refusal) => Answer::Refused(refusal),
        None => Answer::Refused(Refusal::DeadlinePassed),
    };
    (pending.slot, answer)
}

/// For an answer that is none to the request: nobody knows what the node did with it.
fn bad_answer(pending: &Pending) -> Answer {
    tracing::warn!(shard = %pending.request.shard(), "a node's answer doesn't fit the request; is it faulty?");
    match pending.changes_something() {
        true => Answer::Unknown(UnknownReason::BadAnswer),
        false => Answer::Refused(Refusal::Unavailable { reason: "the node's answer is no answer".into() }),
    }
}

/// The shards that a node tells of, which cover every key; `None` if it tells of none, as the client knows them.
///
/// # Errors
/// They don't cover every key, or can't be read.
pub(super) fn map_of(info: &MapInfo, known: u64) -> Result<Option<ShardMap>, String> {
    let is_known = info.shards.is_empty() && info.version == known;
    if info.nodes.len() != info.addresses.len() || !(is_known || info.shards.len() == info.leaders.len()) {
        return Err("a map's columns differ in length".into());
    }
    if is_known {
        return Ok(None);
    }
    let decode = |bytes: &Vec<u8>| Descriptor::decode(bytes).map_err(|error| error.to_string());
    let shards = info.shards.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
    let joins = shards.windows(2).all(|pair| {
        let end = &pair[0].range.end;
        !end.is_empty() && *end == pair[1].range.start
    });
    let whole =
        |first: &Descriptor, last: &Descriptor| first.range.start.is_empty() && last.range.end.is_empty();
    match (shards.first(), shards.last()) {
        (Some(first), Some(last)) if joins && whole(first, last) => Ok(Some(ShardMap::new(shards))),
        _ => Err("a map's shards don't cover every key once".into()),
    }
}

/// Whether `new` is to take the place of `old`: it is the first, or some shard's range has changed since.
pub(super) fn is_news(old: &ShardMap, new: &ShardMap) -> bool {
    let newest = |map: &ShardMap| map.iter().map(|descriptor| descriptor.epoch.range).max();
    newest(new) > newest(old)
}
