//! What every driver of a real node has beside its runtime: a core's worker and what goes in and out of it
//! that is neither file nor socket.
//!
//! A driver's loop is: put what its runtime brings into `inputs`; [`Hub::collect`]; [`Hub::turn`]; send
//! `effects.sends` and start `effects.disk`; [`Hub::carry_out`]; unless [`Hub::must_go_on`], [`Hub::rest`] and sleep.

use super::CoreSetup;
use super::background::{Background, NameChange};
use super::requests::Requests;
use crate::clock;
use crate::mailbox::{Control, Mailbox, Post};
use crate::metrics::CoreMetrics;
use crate::seam::{Effects, Event, Input};
use crate::transport::{DialSetup, Dialer, Hello, HelloIdentity, PeerStores};
use crate::worker::Worker;
use floe_raft::Nanos;
use floe_shard::request::{Answer, BusyReason, Refusal};
use floe_shard::{CoreAddr, NodeId};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

/// Requests taken in one turn.
const POSTS_MAX: usize = 4096;

/// What came in that only the driver can deal with.
#[derive(Default)]
pub(super) struct Collected {
    /// Names of files that have changed.
    pub(super) names: Vec<NameChange>,
    /// Connections whose hellos were exchanged.
    pub(super) accepted: Vec<(OwnedFd, Hello)>,
}

/// See the head of this file.
pub(super) struct Hub {
    // Dropped first of all: whoever waits is answered.
    requests: Requests,
    worker: Worker,
    pub(super) inputs: Vec<Input>,
    pub(super) effects: Effects,
    me: CoreAddr,
    pub(super) mailbox: Arc<Mailbox>,
    siblings: Vec<Arc<Mailbox>>,
    events: Sender<(u16, Event)>,
    pub(super) background: Background,
    /// Empty until the node has booted.
    dialers: BTreeMap<NodeId, Dialer>,
    peers: Vec<(NodeId, String)>,
    identity: Arc<OnceLock<HelloIdentity>>,
    stores: Arc<PeerStores>,
    metrics: Arc<CoreMetrics>,
    /// Of the turn under way.
    turn_began: Option<Nanos>,
    /// The worker has reported that it has stopped.
    pub(super) stopped: bool,
}

impl Hub {
    /// Makes the worker; its first effects wait to be carried out.
    pub(super) fn new(setup: CoreSetup, background: Background) -> Self {
        let mut effects = Effects::default();
        let worker = (setup.worker)(&mut effects, clock::now());
        Self {
            requests: Requests::new(setup.requests_max),
            worker,
            inputs: Vec::new(),
            effects,
            me: setup.me,
            mailbox: setup.mailbox,
            siblings: setup.siblings,
            events: setup.events,
            background,
            dialers: BTreeMap::new(),
            peers: setup.peers,
            identity: setup.identity,
            stores: setup.stores,
            metrics: setup.metrics,
            turn_began: None,
            stopped: false,
        }
    }

    /// Takes everything that waits; of requests a bounded number.
    pub(super) fn collect(&mut self) -> Collected {
        let mut collected = Collected::default();
        while let Some(done) = self.background.take_done() {
            collected.names.push(done.change);
            self.inputs.push(Input::Disk { op: done.op, result: done.result });
        }
        while let Some(control) = self.mailbox.take_control() {
            match control {
                Control::Core { from, message } => self.inputs.push(Input::Core { from, message }),
                Control::Accepted { socket, hello } => collected.accepted.push((socket, hello)),
                Control::Connect => self.start_dialers(),
                Control::Status(reply) => {
                    if let Some(statuses) = self.worker.statuses() {
                        // Whoever asked may have stopped waiting.
                        let _ = reply.send(statuses);
                    }
                }
                Control::Shutdown => {
                    self.mailbox.close();
                    self.inputs.push(Input::Shutdown);
                }
            }
        }
        for _ in 0..POSTS_MAX {
            let Some(post) = self.mailbox.take_post() else { break };
            self.on_post(post);
        }
        collected
    }

    fn on_post(&mut self, post: Post) {
        let Post { request, deadline, park_until, slot } = post;
        match self.requests.insert(&request, Arc::clone(&slot)) {
            Some(id) => self.inputs.push(Input::Request { id, deadline, park_until, request }),
            None => {
                self.metrics.busy.fetch_add(1, Ordering::Relaxed);
                slot.answer(Answer::Refused(Refusal::Busy(BusyReason::Requests)));
            }
        }
    }

    /// A dialer for every peer with a higher id.
    fn start_dialers(&mut self) {
        let Some(own) = self.identity.get() else {
            tracing::error!("told to connect before the node's identity was set");
            return;
        };
        for (peer, address) in self.peers.iter().filter(|(peer, _)| *peer > self.me.node) {
            let dialer = Dialer::start(DialSetup {
                peer: *peer,
                address: address.clone(),
                core: self.me.core,
                own: own.clone(),
                stores: Arc::clone(&self.stores),
                mailbox: Arc::clone(&self.mailbox),
            });
            match dialer {
                Ok(dialer) => drop(self.dialers.insert(*peer, dialer)),
                Err(error) => tracing::error!(%peer, %error, "no thread that connects to this peer"),
            }
        }
    }

    /// A connection works: the worker may send.
    pub(super) fn on_connected(&mut self, peer: CoreAddr, cores: u16) {
        tracing::info!(%peer, "connected");
        self.inputs.push(Input::PeerUp { peer, cores });
    }

    /// A connection that worked is gone; `dropped` frames didn't fit into its queue.
    pub(super) fn on_disconnected(&mut self, peer: CoreAddr, reason: &str, dropped: u64) {
        tracing::info!(%peer, reason, dropped, "disconnected");
        self.inputs.push(Input::PeerDown { peer });
        self.redial(peer);
    }

    /// A connection never came to work.
    pub(super) fn on_unusable(&self, peer: CoreAddr, error: &std::io::Error) {
        tracing::warn!(%peer, %error, "a new connection can't be used");
        self.redial(peer);
    }

    fn redial(&self, peer: CoreAddr) {
        if let Some(dialer) = self.dialers.get(&peer.node) {
            dialer.lost(peer.core);
        }
    }

    /// Steps the worker if there is a reason to; tells whether there was one.
    pub(super) fn turn(&mut self) -> bool {
        let now = clock::now();
        self.rest(now);
        if self.inputs.is_empty() && !self.worker.has_work() && self.worker.deadline() > now {
            return false;
        }
        self.turn_began = Some(now);
        self.worker.step(now, &mut self.inputs, &mut self.effects);
        self.inputs.clear();
        true
    }

    /// The turn is over, if one was under way: the core has time for what comes in.
    pub(super) fn rest(&mut self, now: Nanos) {
        if let Some(began) = self.turn_began.take() {
            self.metrics.turn_lengths.record(now.saturating_sub(began));
        }
    }

    /// Frames were dropped because too much waits for their peers.
    pub(super) fn count_dropped_frames(&self, count: u64) {
        if count > 0 {
            self.metrics.frames_dropped.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Carries out what needs neither file nor socket.
    pub(super) fn carry_out(&mut self) {
        for (id, answer) in self.effects.answers.drain(..) {
            self.requests.answer(id, answer);
        }
        let from = self.me.core;
        for (core, message) in self.effects.to_cores.drain(..) {
            match self.siblings.get(usize::from(core)) {
                Some(sibling) => sibling.control(Control::Core { from, message }),
                None => tracing::error!(core, "a message to a core that doesn't exist"),
            }
        }
        for event in self.effects.events.drain(..) {
            self.stopped |= matches!(event, Event::Stopped);
            // Nobody may be interested.
            let _ = self.events.send((from, event));
        }
    }

    /// Whether the next turn must come at once.
    pub(super) fn must_go_on(&self) -> bool {
        self.stopped || !self.mailbox.is_empty() || self.background.has_done() || self.worker.has_work()
    }

    /// When the worker wants a turn without input; `Nanos::MAX` = never.
    pub(super) fn deadline(&self) -> Nanos {
        self.worker.deadline()
    }

    /// The worker has stopped: takes no requests any more, makes no new connections.
    pub(super) fn close(&mut self) {
        self.mailbox.close();
        self.dialers.clear();
    }
}
