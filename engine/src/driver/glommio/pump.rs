//! The one task in which a core works: take what waits, step the worker once, carry out its effects, park.

use super::super::background::Background;
use super::super::requests::Requests;
use super::CoreSetup;
use super::files::Files;
use super::inbox::Inbox;
use super::net::Connection;
use crate::clock;
use crate::disk::{DiskCall, DiskError, OpId};
use crate::mailbox::{Control, Mailbox, Post};
use crate::metrics::CoreMetrics;
use crate::seam::{Effects, Event, Input};
use crate::transport::{DialSetup, Dialer, Hello, HelloIdentity};
use crate::worker::Worker;
use ::glommio::timer::{Timer, sleep};
use ::glommio::{Task, spawn_local};
use floe_raft::Nanos;
use floe_shard::request::{Answer, BusyReason, Refusal};
use floe_shard::{CoreAddr, NodeId};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

/// Requests taken in one turn.
const POSTS_MAX: usize = 4096;
/// The shortest sleep during which I/O is polled for sure.
const MOMENT: Duration = Duration::from_micros(1);
const TICK: Duration = Duration::from_millis(2);
const TICK_IDLE: Duration = Duration::from_millis(20);
/// Ticks without any input after which they get rarer.
const TICKS_UNTIL_IDLE: u32 = 50;
/// For how long a stopping core waits for its last frames to be sent.
const FLUSH_TURNS: u32 = 100;

pub(super) struct Pump {
    // Dropped first of all: whoever waits is answered.
    requests: Requests,
    worker: Worker,
    inputs: Vec<Input>,
    effects: Effects,
    me: CoreAddr,
    mailbox: Arc<Mailbox>,
    siblings: Vec<Arc<Mailbox>>,
    events: Sender<(u16, Event)>,
    inbox: Rc<Inbox>,
    /// Taken at the end.
    ticker: Option<Task<()>>,
    files: Rc<Files>,
    background: Background,
    connections: BTreeMap<CoreAddr, Connection>,
    connections_made: u64,
    /// Empty until the node has booted.
    dialers: BTreeMap<NodeId, Dialer>,
    peers: Vec<(NodeId, String)>,
    identity: Arc<OnceLock<HelloIdentity>>,
    metrics: Arc<CoreMetrics>,
    send_queue_bytes_max: usize,
    stopped: bool,
}

impl Pump {
    /// Prepares the disk, then makes the worker.
    pub(super) async fn new(setup: CoreSetup, background: Background) -> Result<Self, DiskError> {
        let inbox = Rc::<Inbox>::default();
        let ticker = spawn_local(tick(Rc::clone(&inbox)));
        let files = Files::new(setup.data_dir.clone(), setup.me.core).await?;
        let mut effects = Effects::default();
        let worker = (setup.worker)(&mut effects, clock::now());
        Ok(Self {
            requests: Requests::new(setup.requests_max),
            worker,
            inputs: Vec::new(),
            effects,
            me: setup.me,
            mailbox: setup.mailbox,
            siblings: setup.siblings,
            events: setup.events,
            inbox,
            ticker: Some(ticker),
            files: Rc::new(files),
            background,
            connections: BTreeMap::new(),
            connections_made: 0,
            dialers: BTreeMap::new(),
            peers: setup.peers,
            identity: setup.identity,
            metrics: setup.metrics,
            send_queue_bytes_max: setup.send_queue_bytes_max,
            stopped: false,
        })
    }

    /// Until the worker reports that it has stopped.
    pub(super) async fn run(mut self) {
        self.carry_out();
        while !self.stopped {
            self.turn();
            if self.must_go_on() {
                sleep(MOMENT).await;
            } else {
                self.park().await;
            }
        }
        self.finish().await;
    }

    fn turn(&mut self) {
        self.collect();
        let now = clock::now();
        if self.inputs.is_empty() && !self.worker.has_work() && self.worker.deadline() > now {
            return;
        }
        self.inbox.active.set(true);
        self.worker.step(now, &mut self.inputs, &mut self.effects);
        self.inputs.clear();
        self.carry_out();
    }

    /// Takes everything that waits; of requests a bounded number.
    fn collect(&mut self) {
        self.inbox.take(&mut self.inputs);
        self.connections.values().for_each(Connection::on_taken);
        while let Some(done) = self.background.take_done() {
            self.files.on_name_change(done.change);
            self.inputs.push(Input::Disk { op: done.op, result: done.result });
        }
        for ended in self.inbox.take_ended() {
            let of = |c: &Connection| c.number() == ended.number;
            let peer = self.connections.iter().find(|(_, c)| of(c)).map(|(peer, _)| *peer);
            if let Some(peer) = peer {
                self.disconnect(peer, &ended.reason);
            }
        }
        while let Some(control) = self.mailbox.take_control() {
            self.on_control(control);
        }
        for _ in 0..POSTS_MAX {
            let Some(post) = self.mailbox.take_post() else { break };
            self.on_post(post);
        }
    }

    fn on_control(&mut self, control: Control) {
        match control {
            Control::Core { from, message } => self.inputs.push(Input::Core { from, message }),
            Control::Accepted { socket, hello } => self.connect(socket, &hello),
            Control::Connect => self.start_dialers(),
            Control::Shutdown => {
                self.mailbox.close();
                self.inputs.push(Input::Shutdown);
            }
        }
    }

    fn on_post(&mut self, post: Post) {
        let Post { request, deadline, slot } = post;
        match self.requests.insert(&request, Arc::clone(&slot)) {
            Some(id) => self.inputs.push(Input::Request { id, deadline, request }),
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
                mailbox: Arc::clone(&self.mailbox),
            });
            match dialer {
                Ok(dialer) => drop(self.dialers.insert(*peer, dialer)),
                Err(error) => tracing::error!(%peer, %error, "no thread that connects to this peer"),
            }
        }
    }

    fn connect(&mut self, socket: OwnedFd, hello: &Hello) {
        let peer = CoreAddr { node: hello.node, core: hello.core };
        // The old one is dead and nobody has noticed, or the peer has restarted.
        if self.connections.contains_key(&peer) {
            self.disconnect(peer, "replaced by a new connection");
        }
        self.connections_made += 1;
        let (number, inbox) = (self.connections_made, Rc::clone(&self.inbox));
        match Connection::start(socket, peer, number, self.send_queue_bytes_max, inbox) {
            Ok(connection) => {
                tracing::info!(%peer, "connected");
                self.connections.insert(peer, connection);
                self.inputs.push(Input::PeerUp { peer, cores: hello.cores });
            }
            Err(error) => {
                tracing::warn!(%peer, %error, "a new connection can't be used");
                self.redial(peer);
            }
        }
    }

    fn disconnect(&mut self, peer: CoreAddr, reason: &str) {
        if let Some(connection) = self.connections.remove(&peer) {
            tracing::info!(%peer, reason, dropped = connection.dropped(), "disconnected");
            self.inputs.push(Input::PeerDown { peer });
            self.redial(peer);
        }
    }

    fn redial(&self, peer: CoreAddr) {
        if let Some(dialer) = self.dialers.get(&peer.node) {
            dialer.lost(peer.core);
        }
    }

    /// Frames first: followers write while this core's own disk does.
    fn carry_out(&mut self) {
        for (peer, frame) in self.effects.sends.drain(..) {
            let connection = self.connections.get(&peer);
            if connection.is_some_and(|connection| !connection.send(frame)) {
                self.metrics.frames_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        for (op, call) in self.effects.disk.drain(..) {
            start_call(&self.files, &self.background, &self.inbox, op, call);
        }
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
        for (peer, reason) in self.effects.disconnects.drain(..) {
            tracing::warn!(%peer, reason, "disconnecting");
            if let Some(connection) = self.connections.get(&peer) {
                connection.end(reason);
            }
        }
        for event in self.effects.events.drain(..) {
            self.stopped |= matches!(event, Event::Stopped);
            // Nobody may be interested.
            let _ = self.events.send((from, event));
        }
    }

    fn must_go_on(&self) -> bool {
        self.stopped
            || !self.inbox.is_empty()
            || !self.mailbox.is_empty()
            || self.background.has_done()
            || self.worker.has_work()
    }

    /// Sleeps until something comes in or the worker's deadline.
    async fn park(&self) {
        let deadline = self.worker.deadline();
        let mut timer = timer_at(deadline);
        poll_fn(|context| {
            self.inbox.sleep(context.waker());
            // In this order: what is pushed after the mailbox knows that the core sleeps wakes it.
            if !self.inbox.is_empty() || !self.mailbox.sleep(context.waker()) || self.background.has_done() {
                return Poll::Ready(());
            }
            match &mut timer {
                Some(timer) => Pin::new(timer).poll(context).map(drop),
                None => Poll::Pending,
            }
        })
        .await;
        self.mailbox.awake();
    }

    /// The worker has stopped: sends what is left, closes everything.
    async fn finish(mut self) {
        self.mailbox.close();
        for _ in 0..FLUSH_TURNS {
            if self.files.writing.get() == 0 && !self.connections.values().any(Connection::has_queue) {
                break;
            }
            sleep(TICK).await;
        }
        self.dialers.clear();
        self.connections.clear();
        self.files.close().await;
        if let Some(ticker) = self.ticker.take() {
            ticker.cancel().await;
        }
        // Cancelled tasks let go of their sockets when they are next scheduled.
        sleep(MOMENT).await;
    }
}

fn timer_at(deadline: Nanos) -> Option<Timer> {
    let wait = Duration::from_nanos(deadline.saturating_sub(clock::now()));
    (deadline != Nanos::MAX).then(|| Timer::new(wait.max(MOMENT)))
}

fn start_call(files: &Rc<Files>, background: &Background, inbox: &Rc<Inbox>, op: OpId, call: DiskCall) {
    match call {
        DiskCall::Write { path, offset, data } if files.direct => {
            let (files, inbox) = (Rc::clone(files), Rc::clone(inbox));
            files.writing.set(files.writing.get() + 1);
            spawn_local(async move {
                let result = files.write(path, offset, data).await;
                files.writing.set(files.writing.get() - 1);
                inbox.push(Input::Disk { op, result });
            })
            .detach();
        }
        other => background.start_call(op, other),
    }
}

/// Bounds for how long the executor can sleep with work to do.
async fn tick(inbox: Rc<Inbox>) {
    let mut quiet = 0;
    loop {
        sleep(if quiet < TICKS_UNTIL_IDLE { TICK } else { TICK_IDLE }).await;
        quiet = if inbox.active.replace(false) { 0 } else { quiet.saturating_add(1) };
    }
}
