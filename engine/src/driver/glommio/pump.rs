//! The one task in which a core works: take what waits, step the worker once, carry out its effects, park.

use super::super::background::Background;
use super::super::hub::Hub;
use super::CoreSetup;
use super::files::Files;
use super::inbox::Inbox;
use super::net::Connection;
use crate::clock;
use crate::disk::{DiskCall, DiskError, OpId};
use crate::seam::Input;
use crate::transport::Hello;
use ::glommio::timer::{Timer, sleep};
use ::glommio::{Task, spawn_local};
use floe_raft::Nanos;
use floe_shard::CoreAddr;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

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
    hub: Hub,
    inbox: Rc<Inbox>,
    /// Taken at the end.
    ticker: Option<Task<()>>,
    files: Rc<Files>,
    connections: BTreeMap<CoreAddr, Connection>,
    connections_made: u64,
    send_queue_bytes_max: usize,
}

impl Pump {
    /// Prepares the disk, then makes the worker.
    pub(super) async fn new(setup: CoreSetup, background: Background) -> Result<Self, DiskError> {
        let inbox = Rc::<Inbox>::default();
        let ticker = spawn_local(tick(Rc::clone(&inbox)));
        let files = Files::new(setup.data_dir.clone(), setup.me.core).await?;
        Ok(Self {
            inbox,
            ticker: Some(ticker),
            files: Rc::new(files),
            connections: BTreeMap::new(),
            connections_made: 0,
            send_queue_bytes_max: setup.send_queue_bytes_max,
            hub: Hub::new(setup, background),
        })
    }

    /// Until the worker reports that it has stopped.
    pub(super) async fn run(mut self) {
        self.carry_out();
        while !self.hub.stopped {
            self.collect();
            if self.hub.turn() {
                self.inbox.active.set(true);
                self.carry_out();
            }
            if !self.inbox.is_empty() || self.hub.must_go_on() {
                sleep(MOMENT).await;
            } else {
                self.park().await;
            }
        }
        self.finish().await;
    }

    fn collect(&mut self) {
        self.inbox.take(&mut self.hub.inputs);
        self.connections.values().for_each(Connection::on_taken);
        for ended in self.inbox.take_ended() {
            let of = |c: &Connection| c.number() == ended.number;
            let peer = self.connections.iter().find(|(_, c)| of(c)).map(|(peer, _)| *peer);
            if let Some(peer) = peer {
                self.disconnect(peer, &ended.reason);
            }
        }
        let collected = self.hub.collect();
        collected.names.into_iter().for_each(|change| self.files.on_name_change(change));
        for (socket, hello) in collected.accepted {
            self.connect(socket, &hello);
        }
    }

    fn connect(&mut self, socket: OwnedFd, hello: &Hello) {
        let peer = CoreAddr { node: hello.node, core: hello.core };
        // The old one is dead and nobody has noticed, or the peer has restarted.
        self.disconnect(peer, "replaced by a new connection");
        self.connections_made += 1;
        let (number, inbox) = (self.connections_made, Rc::clone(&self.inbox));
        match Connection::start(socket, peer, number, self.send_queue_bytes_max, inbox) {
            Ok(connection) => {
                self.connections.insert(peer, connection);
                self.hub.on_connected(peer, hello.cores);
            }
            Err(error) => self.hub.on_unusable(peer, &error),
        }
    }

    fn disconnect(&mut self, peer: CoreAddr, reason: &str) {
        if let Some(connection) = self.connections.remove(&peer) {
            self.hub.on_disconnected(peer, reason, connection.dropped());
        }
    }

    /// Frames first: followers write while this core's own disk does.
    fn carry_out(&mut self) {
        let hub = &mut self.hub;
        let mut dropped = 0;
        for (peer, frame) in hub.effects.sends.drain(..) {
            let connection = self.connections.get(&peer);
            dropped += u64::from(connection.is_some_and(|connection| !connection.send(frame)));
        }
        hub.count_dropped_frames(dropped);
        for (op, call) in hub.effects.disk.drain(..) {
            start_call(&self.files, &hub.background, &self.inbox, op, call);
        }
        for (peer, reason) in hub.effects.disconnects.drain(..) {
            tracing::warn!(%peer, %reason, "disconnecting");
            if let Some(connection) = self.connections.get(&peer) {
                connection.end(reason.to_string());
            }
        }
        hub.carry_out();
    }

    /// Sleeps until something comes in or the worker's deadline.
    async fn park(&mut self) {
        let now = clock::now();
        self.hub.rest(now);
        let mut timer = timer_at(self.hub.deadline(), now);
        let Hub { mailbox, background, .. } = &self.hub;
        poll_fn(|context| {
            self.inbox.sleep(context.waker());
            // In this order: what is pushed after the mailbox knows that the core sleeps wakes it.
            if !self.inbox.is_empty() || !mailbox.sleep(context.waker()) || background.has_done() {
                return Poll::Ready(());
            }
            match &mut timer {
                Some(timer) => Pin::new(timer).poll(context).map(drop),
                None => Poll::Pending,
            }
        })
        .await;
        mailbox.awake();
    }

    /// The worker has stopped: sends what is left, closes everything.
    async fn finish(mut self) {
        self.hub.mailbox.close();
        for _ in 0..FLUSH_TURNS {
            if self.files.writing.get() == 0 && !self.connections.values().any(Connection::has_queue) {
                break;
            }
            sleep(TICK).await;
        }
        self.hub.close();
        self.connections.clear();
        self.files.close().await;
        if let Some(ticker) = self.ticker.take() {
            ticker.cancel().await;
        }
        // Cancelled tasks let go of their sockets when they are next scheduled.
        sleep(MOMENT).await;
    }
}

fn timer_at(deadline: Nanos, now: Nanos) -> Option<Timer> {
    let wait = Duration::from_nanos(deadline.saturating_sub(now));
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
