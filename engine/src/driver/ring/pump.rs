//! A core's loop: take what waits, step the worker once, start what it wants, enter the ring.

use super::super::background::Background;
use super::super::hub::Hub;
use super::super::sys;
use super::CoreSetup;
use super::assembler::Landing;
use super::connection::{Connection, ConnectionError, ConnectionId};
use super::files::Files;
use super::uring::{Completion, Uring, Work};
use crate::clock;
use crate::disk::{DiskCall, DiskError, DiskErrorKind};
use crate::seam::Input;
use crate::transport::Hello;
use floe_raft::Nanos;
use floe_shard::CoreAddr;
use rkyv::util::AlignedVec;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Duration;

/// Bytes of an eventfd's count.
const COUNT_LEN: usize = 8;
/// For how long a stopping core waits for its last frames to be sent and writes to end.
const FLUSH_LIMIT: Duration = Duration::from_millis(200);
/// For how long it waits for everything in flight to come back, of which all has been told to.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(2);

/// Wakes the core out of its ring.
struct Bell(Arc<File>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // It can't fail: the count would have to reach 2^64.
        let _ = (&*self.0).write(&1_u64.to_ne_bytes());
    }
}

pub(super) struct Pump {
    // Dropped first of all: whoever waits is answered.
    hub: Hub,
    connections: BTreeMap<CoreAddr, Connection>,
    connections_made: u64,
    send_queue_bytes_max: usize,
    spin: Duration,
    files: Files,
    bell: Arc<File>,
    waker: Waker,
    ring: Uring,
    /// Empty between turns.
    completed: Vec<Completion>,
}

impl Pump {
    /// Prepares the disk, then makes the worker.
    pub(super) fn new(ring: Uring, setup: CoreSetup, background: Background) -> Result<Self, DiskError> {
        let files = Files::new(setup.data_dir.clone(), setup.me.core)?;
        let bell = sys::event_counter().map(|counter| Arc::new(File::from(counter))).map_err(|error| {
            DiskError { kind: DiskErrorKind::Io, message: format!("making an eventfd: {error}") }
        })?;
        let mut pump = Self {
            connections: BTreeMap::new(),
            connections_made: 0,
            send_queue_bytes_max: setup.send_queue_bytes_max,
            spin: setup.spin_before_park.unwrap_or_default(),
            files,
            waker: Arc::new(Bell(Arc::clone(&bell))).into(),
            bell,
            ring,
            completed: Vec::new(),
            hub: Hub::new(setup, background),
        };
        pump.listen_to_bell();
        Ok(pump)
    }

    fn listen_to_bell(&mut self) {
        let mut count = AlignedVec::with_capacity(COUNT_LEN);
        count.resize(COUNT_LEN, 0);
        self.ring.start(Work::Wake { event: Arc::clone(&self.bell), count });
    }

    /// Until the worker reports that it has stopped.
    pub(super) fn run(mut self) -> io::Result<()> {
        self.carry_out();
        while !self.hub.stopped {
            self.collect();
            if self.hub.turn() {
                self.carry_out();
            }
            self.enter()?;
            self.reap();
        }
        self.finish()
    }

    fn collect(&mut self) {
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
        let id = ConnectionId { peer, number: self.connections_made };
        match Connection::new(socket, id, self.send_queue_bytes_max) {
            Ok(mut connection) => {
                connection.receive(&mut self.ring, false);
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
        let mut dropped = 0;
        for (peer, frame) in self.hub.effects.sends.drain(..) {
            let Some(connection) = self.connections.get_mut(&peer) else { continue };
            dropped += u64::from(!connection.queue(frame));
            connection.send(&mut self.ring);
        }
        self.hub.count_dropped_frames(dropped);
        for (op, call) in self.hub.effects.disk.drain(..) {
            match call {
                DiskCall::Write { path, offset, data } if self.files.direct => {
                    if let Err(error) = self.files.write(&mut self.ring, op, path, offset, &*data) {
                        self.hub.inputs.push(Input::Disk { op, result: Err(error) });
                    }
                }
                other => self.hub.background.start_call(op, other),
            }
        }
        for (peer, reason) in std::mem::take(&mut self.hub.effects.disconnects) {
            tracing::warn!(%peer, %reason, "disconnecting");
            self.disconnect(peer, &reason.to_string());
        }
        self.hub.carry_out();
    }

    /// Submits what was started, and sleeps if there is nothing to do: until something comes in or the worker's
    /// deadline.
    fn enter(&mut self) -> io::Result<()> {
        if self.must_go_on() {
            return self.ring.enter(None);
        }
        if !self.spin.is_zero() && self.spin()? {
            return Ok(());
        }
        // In this order: whatever comes after the mailbox knows that the core sleeps rings the bell.
        let rest = self.hub.mailbox.sleep(&self.waker) && !self.hub.background.has_done();
        let now = clock::now();
        self.hub.rest(now);
        let result = self.ring.enter(rest.then(|| until(self.hub.deadline(), now)));
        self.hub.mailbox.awake();
        result
    }

    fn must_go_on(&self) -> bool {
        !self.hub.inputs.is_empty() || self.hub.must_go_on()
    }

    /// Looks for work without sleeping; true if there is some.
    fn spin(&mut self) -> io::Result<bool> {
        let now = clock::now();
        self.hub.rest(now);
        let end = now + self.spin.as_nanos() as Nanos;
        loop {
            self.ring.enter(None)?;
            self.ring.take_completed(&mut self.completed);
            let now = clock::now();
            if !self.completed.is_empty() || self.hub.must_go_on() || self.hub.deadline() <= now {
                return Ok(true);
            }
            if now >= end {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Takes what the ring has brought.
    fn reap(&mut self) {
        let mut completed = std::mem::take(&mut self.completed);
        self.ring.take_completed(&mut completed);
        for Completion { work, result, more } in completed.drain(..) {
            match work {
                Work::Wake { event, count } if !self.hub.stopped => {
                    self.ring.start(Work::Wake { event, count });
                }
                Work::Wake { .. } => {}
                Work::Receive { of, buffer, from, whole, .. } => {
                    self.on_received(of, Landing { buffer, from, whole }, result, more);
                }
                Work::Send { of, parts, .. } => self.on_connection(of, |connection, ring, _| {
                    connection.on_sent(parts, result)?;
                    connection.send(ring);
                    Ok(())
                }),
                Work::Write(write) => {
                    if let Some((op, result)) = self.files.on_written(&mut self.ring, write, result) {
                        self.hub.inputs.push(Input::Disk { op, result });
                    }
                }
            }
        }
        self.completed = completed;
    }

    fn on_received(&mut self, of: ConnectionId, landing: Landing, result: io::Result<usize>, more: bool) {
        let from = of.peer;
        self.on_connection(of, |connection, ring, inputs| {
            let each = &mut |body| inputs.push(Input::Frame { from, body });
            connection.on_received(landing, result, each)?;
            connection.receive(ring, !more);
            Ok(())
        });
    }

    /// Goes on with a connection, unless it is gone; ends it if it can't go on.
    fn on_connection(
        &mut self,
        of: ConnectionId,
        go_on: impl FnOnce(&mut Connection, &mut Uring, &mut Vec<Input>) -> Result<(), ConnectionError>,
    ) {
        let connection = self.connections.get_mut(&of.peer).filter(|connection| connection.id() == of);
        let Some(connection) = connection else { return };
        if let Err(error) = go_on(connection, &mut self.ring, &mut self.hub.inputs) {
            if let ConnectionError::Frame(_) = error {
                tracing::warn!(peer = %of.peer, %error, "connection closed");
            }
            self.disconnect(of.peer, &error.to_string());
        }
    }

    /// The worker has stopped: sends what is left, closes everything, waits for what is in flight.
    fn finish(mut self) -> io::Result<()> {
        self.hub.close();
        let is_flushed =
            |pump: &Self| pump.files.writing() == 0 && !pump.connections.values().any(Connection::has_queue);
        self.wait_for(FLUSH_LIMIT, is_flushed)?;
        self.connections.clear();
        self.waker.wake_by_ref();
        self.wait_for(DRAIN_LIMIT, |pump| pump.ring.in_flight() == 0)
    }

    fn wait_for(&mut self, limit: Duration, is_done: impl Fn(&Self) -> bool) -> io::Result<()> {
        let end = clock::now() + limit.as_nanos() as Nanos;
        while !is_done(self) && clock::now() < end {
            self.ring.enter(Some(TICK))?;
            self.reap();
        }
        Ok(())
    }
}

/// How long to sleep for a deadline.
fn until(deadline: Nanos, now: Nanos) -> Duration {
    match deadline {
        Nanos::MAX => Duration::MAX,
        deadline => Duration::from_nanos(deadline.saturating_sub(now)),
    }
}
