//! One connection: what waits to be sent, what was received in part. One receive and at most one send are in
//! flight; a send takes the whole queue.
//!
//! What has come in and was not handed to the worker yet is bounded by construction: one receive per connection
//! completes between two turns, and a turn takes all there is.

use super::assembler::{Assembler, Landing};
use super::uring::{Parts, Uring, Work};
use crate::codec::CodecError;
use crate::driver::sys;
use crate::seam::OutFrame;
use bytes::{Buf, Bytes};
use floe_shard::CoreAddr;
use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

/// Parts of one send; the kernel's bound is 1024.
const PARTS_MAX: usize = 256;

/// Names a connection in completions that may come when it has been replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnectionId {
    pub(super) peer: CoreAddr,
    /// Unique per core.
    pub(super) number: u64,
}

/// A live connection. Dropping it ends what is in flight, and with that the socket.
pub(super) struct Connection {
    id: ConnectionId,
    socket: Rc<OwnedFd>,
    assembler: Assembler,
    /// Parts of frames in order; none is empty.
    queue: VecDeque<Bytes>,
    /// With those that are being sent.
    queue_bytes: usize,
    queue_bytes_max: usize,
    /// `None` while they are being sent.
    parts: Option<Box<Parts>>,
    dropped: u64,
}

/// Why a connection can't go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("closed by the other end")]
    Closed,
    #[error("receiving: {0}")]
    Receive(io::Error),
    #[error("sending: {0}")]
    Send(io::Error),
    #[error(transparent)]
    Frame(#[from] CodecError),
}

impl Connection {
    /// Takes over a socket after the hellos.
    pub(super) fn new(socket: OwnedFd, id: ConnectionId, queue_bytes_max: usize) -> io::Result<Self> {
        sys::watch_connection(socket.as_fd())?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        // The ring answers for a socket that doesn't block with EAGAIN instead of waiting.
        stream.set_nonblocking(false)?;
        Ok(Self {
            id,
            socket: Rc::new(stream.into()),
            assembler: Assembler::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            queue_bytes_max,
            parts: Some(Box::default()),
            dropped: 0,
        })
    }

    pub(super) fn id(&self) -> ConnectionId {
        self.id
    }

    /// Queues a frame. Over the bound it is dropped: false.
    pub(super) fn queue(&mut self, frame: OutFrame) -> bool {
        if self.queue_bytes > 0 && self.queue_bytes + frame.len() > self.queue_bytes_max {
            self.dropped += 1;
            if self.dropped.is_power_of_two() {
                let (peer, dropped) = (self.id.peer, self.dropped);
                tracing::warn!(%peer, dropped, "queue to a peer is full: frames dropped");
            }
            return false;
        }
        self.queue_bytes += frame.len();
        self.queue.extend(frame.parts.into_iter().filter(|part| !part.is_empty()));
        true
    }

    /// Sends what waits, unless something is being sent.
    pub(super) fn send(&mut self, ring: &mut Uring) {
        if self.queue.is_empty() {
            return;
        }
        if let Some(mut parts) = self.parts.take() {
            let count = self.queue.len().min(PARTS_MAX);
            parts.bytes.extend(self.queue.drain(..count));
            ring.start(Work::Send { of: self.id, socket: Rc::clone(&self.socket), parts });
        }
    }

    /// A send is over; what it left goes first in the next one.
    pub(super) fn on_sent(
        &mut self,
        mut parts: Box<Parts>,
        result: io::Result<usize>,
    ) -> Result<(), ConnectionError> {
        let mut sent = match result {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(ConnectionError::Send(error)),
        };
        self.queue_bytes -= sent;
        let mut left = parts.bytes.drain(..).filter_map(|mut part| {
            let gone = sent.min(part.len());
            part.advance(gone);
            sent -= gone;
            (!part.is_empty()).then_some(part)
        });
        if let Some(first) = left.next() {
            let rest: Vec<_> = left.collect();
            rest.into_iter().rev().for_each(|part| self.queue.push_front(part));
            self.queue.push_front(first);
        } else {
            drop(left);
        }
        self.parts = Some(parts);
        Ok(())
    }

    /// Receives into where the bytes belong. `wait`: nothing is in the socket, as far as is known.
    pub(super) fn receive(&mut self, ring: &mut Uring, wait: bool) {
        let Landing { buffer, from, whole } = self.assembler.lend();
        let socket = Rc::clone(&self.socket);
        ring.start(Work::Receive { of: self.id, socket, buffer, from, whole, wait });
    }

    /// Bytes have come in: hands each frame that is complete to `each`.
    pub(super) fn on_received(
        &mut self,
        landing: Landing,
        result: io::Result<usize>,
        each: &mut impl FnMut(Bytes),
    ) -> Result<(), ConnectionError> {
        let got = match result {
            Ok(0) => return Err(ConnectionError::Closed),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(ConnectionError::Receive(error)),
        };
        Ok(self.assembler.take_back(landing, got, each)?)
    }

    /// Whether something waits to be sent or is being sent.
    pub(super) fn has_queue(&self) -> bool {
        self.queue_bytes > 0
    }

    /// Frames dropped because the queue was full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        sys::shutdown(self.socket.as_fd());
    }
}
