//! The connections of one core: a reader and a writer task each.
//!
//! Frames for a peer are sent from the pump itself when nothing is queued; what the socket doesn't take waits
//! in a queue with a bound, for the writer. Bytes that came in and that the pump hasn't taken yet are
//! bounded too: the reader stops reading. A connection that ends, for whatever reason, is reported once.

use super::inbox::{EndedConnection, Inbox};
use crate::codec::{self, CodecError, HEADER_LEN};
use crate::driver::sys;
use crate::seam::{Input, OutFrame};
use ::glommio::net::TcpStream;
use ::glommio::{Task, spawn_local};
use bytes::{Buf, Bytes};
use floe_shard::CoreAddr;
use futures_io::{AsyncRead, AsyncWrite};
use rkyv::util::AlignedVec;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Bytes of frames that wait for the pump, per connection; one frame is always admitted.
const INBOUND_BYTES_MAX: usize = 1 << 20;
const READ_BUFFER: usize = 64 << 10;

/// A live connection. Dropping it cancels its tasks and closes the socket.
pub(super) struct Connection {
    link: Rc<Link>,
    _tasks: [Task<()>; 2],
}

/// What the pump and the tasks of a connection share.
struct Link {
    peer: CoreAddr,
    number: u64,
    /// A second descriptor of the socket, for calls that glommio doesn't have.
    socket: OwnedFd,
    stream: RefCell<TcpStream>,
    inbox: Rc<Inbox>,
    ended: Cell<bool>,
    /// Parts of frames in order; the first may be sent in part.
    queue: RefCell<VecDeque<Bytes>>,
    queue_bytes: Cell<usize>,
    queue_bytes_max: usize,
    writer: RefCell<Option<Waker>>,
    inbound_bytes: Cell<usize>,
    reader: RefCell<Option<Waker>>,
    dropped: Cell<u64>,
}

impl Connection {
    /// Takes over a socket after the hellos. `number` is unique per core.
    pub(super) fn start(
        socket: OwnedFd,
        peer: CoreAddr,
        number: u64,
        queue_bytes_max: usize,
        inbox: Rc<Inbox>,
    ) -> io::Result<Self> {
        sys::watch_connection(socket.as_fd())?;
        let stream: TcpStream = sys::adopt(socket.try_clone()?);
        stream.set_nodelay(true).map_err(io::Error::from)?;
        let link = Rc::new(Link {
            peer,
            number,
            socket,
            stream: RefCell::new(stream),
            inbox,
            ended: Cell::new(false),
            queue: RefCell::default(),
            queue_bytes: Cell::new(0),
            queue_bytes_max,
            writer: RefCell::new(None),
            inbound_bytes: Cell::new(0),
            reader: RefCell::new(None),
            dropped: Cell::new(0),
        });
        let tasks = [spawn_local(read(Rc::clone(&link))), spawn_local(write(Rc::clone(&link)))];
        Ok(Self { link, _tasks: tasks })
    }

    pub(super) fn number(&self) -> u64 {
        self.link.number
    }

    /// Sends a frame, or queues what can't be sent now. Over the bound the frame is dropped: false.
    pub(super) fn send(&self, frame: OutFrame) -> bool {
        let link = &self.link;
        let queued = link.queue_bytes.get();
        if queued > 0 && queued + frame.len() > link.queue_bytes_max {
            let dropped = link.dropped.get() + 1;
            link.dropped.set(dropped);
            if dropped.is_power_of_two() {
                tracing::warn!(peer = %link.peer, dropped, "queue to a peer is full: frames dropped");
            }
            return false;
        }
        link.queue_bytes.set(queued + frame.len());
        link.queue.borrow_mut().extend(frame.parts.into_iter().filter(|part| !part.is_empty()));
        if queued > 0 {
            return true; // The writer is at it.
        }
        match link.send_now() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wake(&link.writer),
            Err(error) => link.end(format!("sending: {error}")),
        }
        true
    }

    /// Whether something waits to be sent.
    pub(super) fn has_queue(&self) -> bool {
        self.link.queue_bytes.get() > 0 && !self.link.ended.get()
    }

    /// Frames dropped because the queue was full.
    pub(super) fn dropped(&self) -> u64 {
        self.link.dropped.get()
    }

    /// The pump has taken everything that came in.
    pub(super) fn on_taken(&self) {
        if self.link.inbound_bytes.replace(0) >= INBOUND_BYTES_MAX {
            wake(&self.link.reader);
        }
    }

    /// Ends it; reported through the inbox like any other end.
    pub(super) fn end(&self, reason: String) {
        self.link.end(reason);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.ended.set(true);
        sys::shutdown(self.link.socket.as_fd());
    }
}

fn wake(waker: &RefCell<Option<Waker>>) {
    let waker = waker.borrow_mut().take();
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Link {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn end(&self, reason: String) {
        if !self.ended.replace(true) {
            sys::shutdown(self.socket());
            self.inbox.push_ended(EndedConnection { number: self.number, reason });
            wake(&self.writer);
            wake(&self.reader);
        }
    }

    /// Sends as much of the queue as the socket takes.
    fn send_now(&self) -> io::Result<()> {
        loop {
            let sent = {
                let queue = self.queue.borrow();
                if queue.is_empty() {
                    return Ok(());
                }
                sys::send_parts(self.socket(), queue.iter())?
            };
            self.on_sent(sent);
        }
    }

    fn on_sent(&self, sent: usize) {
        self.queue_bytes.set(self.queue_bytes.get() - sent);
        let mut queue = self.queue.borrow_mut();
        let mut left = sent;
        while let Some(part) = queue.front_mut() {
            if part.len() > left {
                part.advance(left);
                return;
            }
            left -= part.len();
            queue.pop_front();
        }
    }

    /// Waits until the socket takes bytes again, and sends the first.
    async fn send_first(&self, part: &Bytes) -> io::Result<usize> {
        poll_fn(|context| {
            let mut stream = self.stream.borrow_mut();
            Pin::new(&mut *stream).poll_write(context, part)
        })
        .await
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|context| {
            let mut stream = self.stream.borrow_mut();
            Pin::new(&mut *stream).poll_read(context, buffer)
        })
        .await
    }

    /// Waits until the pump has taken enough of what came in.
    async fn room(&self) {
        poll_fn(|context| {
            if self.inbound_bytes.get() < INBOUND_BYTES_MAX || self.ended.get() {
                return Poll::Ready(());
            }
            *self.reader.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    async fn queue_filled(&self) {
        poll_fn(|context| {
            if self.queue_bytes.get() > 0 || self.ended.get() {
                return Poll::Ready(());
            }
            *self.writer.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

async fn write(link: Rc<Link>) {
    while !link.ended.get() {
        link.queue_filled().await;
        let result = match link.send_now() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let first = link.queue.borrow().front().cloned();
                match first {
                    Some(part) => link.send_first(&part).await.map(|sent| link.on_sent(sent)),
                    None => Ok(()),
                }
            }
            other => other,
        };
        if let Err(error) = result {
            link.end(format!("sending: {error}"));
        }
    }
}

/// Why reading ends.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("closed by the peer")]
    Closed,
    #[error("receiving: {0}")]
    Io(#[from] io::Error),
    #[error("bad frame: {0}")]
    Frame(#[from] CodecError),
}

async fn read(link: Rc<Link>) {
    let mut buffer = ReadBuffer { bytes: vec![0; READ_BUFFER], head: 0, tail: 0 };
    loop {
        link.room().await;
        let frame = read_frame(&link, &mut buffer).await;
        if link.ended.get() {
            return;
        }
        match frame {
            Ok(body) => {
                link.inbound_bytes.set(link.inbound_bytes.get() + body.len());
                link.inbox.push(Input::Frame { from: link.peer, body });
            }
            Err(error) => {
                if let ReadError::Frame(_) = error {
                    tracing::warn!(peer = %link.peer, %error, "connection closed");
                }
                return link.end(error.to_string());
            }
        }
    }
}

/// Reads one frame and checks it. Nothing is allocated before the header is known to be good.
async fn read_frame(link: &Link, buffer: &mut ReadBuffer) -> Result<Bytes, ReadError> {
    let mut header = [0; HEADER_LEN];
    buffer.read(link, &mut header).await?;
    let head = codec::parse_header(&header)?;
    let mut body = AlignedVec::<16>::with_capacity(head.body_len());
    body.resize(head.body_len(), 0);
    buffer.read(link, &mut body).await?;
    codec::check_body(&head, &body)?;
    Ok(Bytes::from_owner(body))
}

/// Lets many small frames share one system call; big bodies go past it.
struct ReadBuffer {
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
}

impl ReadBuffer {
    async fn read(&mut self, link: &Link, out: &mut [u8]) -> Result<(), ReadError> {
        let mut have = 0;
        while have < out.len() {
            let missing = out.len() - have;
            if self.head < self.tail {
                let n = missing.min(self.tail - self.head);
                out[have..have + n].copy_from_slice(&self.bytes[self.head..self.head + n]);
                self.head += n;
                have += n;
                continue;
            }
            let direct = missing >= self.bytes.len();
            let got = match direct {
                true => link.receive(&mut out[have..]).await?,
                false => link.receive(&mut self.bytes).await?,
            };
            match (got, direct) {
                (0, _) => return Err(ReadError::Closed),
                (_, true) => have += got,
                (_, false) => (self.head, self.tail) = (0, got),
            }
        }
        Ok(())
    }
}
