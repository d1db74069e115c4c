//! One io_uring, and everything that the kernel reads or writes on its behalf: the only unsafe code of this driver.
//!
//! Invariant: memory and descriptor of an operation belong to the operation from [`Uring::start`] on, and come
//! back with its completion. Nobody else can reach them meanwhile. A ring that is dropped with operations in
//! flight leaks what belongs to them.

#![allow(unsafe_code)]

use super::connection::ConnectionId;
use super::files::DiskWrite;
use bytes::Bytes;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, opcode, squeue};
use rkyv::util::AlignedVec;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Operations submitted with one call; more wait for the next.
const ENTRIES: u32 = 256;
/// `IORING_RECVSEND_POLL_FIRST`: nothing is expected in the socket, so wait before the first try.
const POLL_FIRST: u16 = 1;

/// One operation with all that it needs.
pub(super) enum Work {
    /// Takes the count out of an eventfd once it isn't 0.
    Wake { event: Arc<File>, count: AlignedVec<8> },
    /// Receives into `buffer[from..]`; all of it with `whole`.
    Receive {
        of: ConnectionId,
        socket: Rc<OwnedFd>,
        buffer: AlignedVec,
        from: usize,
        whole: bool,
        wait: bool,
    },
    /// Sends the parts back to back.
    Send { of: ConnectionId, socket: Rc<OwnedFd>, parts: Box<Parts> },
    /// Writes what is left of a write of the log.
    Write(DiskWrite),
}

/// Parts of frames, and the kernel's description of them.
pub(super) struct Parts {
    pub(super) bytes: Vec<Bytes>,
    slots: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl Default for Parts {
    fn default() -> Self {
        // SAFETY: all-zero bytes are a valid msghdr: no name, no control data, null pointers.
        let header = unsafe { std::mem::zeroed() };
        Self { bytes: Vec::new(), slots: Vec::new(), header }
    }
}

/// An operation that is over.
pub(super) struct Completion {
    pub(super) work: Work,
    /// Bytes moved.
    pub(super) result: io::Result<usize>,
    /// Received: more is in the socket.
    pub(super) more: bool,
}

/// See the head of this file.
pub(super) struct Uring {
    ring: IoUring,
    /// The operations in flight; an operation's place is its number for the kernel.
    places: Vec<Option<Work>>,
    free: Vec<usize>,
    /// Places of those that the kernel doesn't know yet.
    unsubmitted: VecDeque<usize>,
    /// The kernel is new enough for hints on receiving (5.19), as it has deferred task work (6.1).
    takes_hints: bool,
}

/// How completions reach the thread, by what its kernel can do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Linux 6.1: only when the thread asks.
    Deferred,
    /// Linux 5.19: when it is in the kernel anyway.
    Cooperative,
    /// By interrupting it.
    Plain,
}

impl Level {
    fn builder(self) -> Builder {
        let mut builder = IoUring::builder();
        if self != Self::Plain {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if self == Self::Deferred {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        builder
    }
}

impl Uring {
    /// A ring for the calling thread alone, with as much as the kernel has of what saves interruptions.
    pub(super) fn new() -> io::Result<Self> {
        let mut refused = None;
        for level in [Level::Deferred, Level::Cooperative, Level::Plain] {
            match level.builder().build(ENTRIES) {
                Ok(ring) => {
                    let (places, free, unsubmitted) = (Vec::new(), Vec::new(), VecDeque::new());
                    let takes_hints = level == Level::Deferred;
                    return Ok(Self { ring, places, free, unsubmitted, takes_hints });
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(refused.expect("three attempts were made, and each that didn't return has set it"))
    }

    /// Takes an operation over; it is submitted by the next [`Uring::enter`].
    pub(super) fn start(&mut self, work: Work) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[at] = Some(work);
        self.unsubmitted.push_back(at);
    }

    /// Operations that have not come back.
    pub(super) fn in_flight(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Submits what was started. With a pause, waits for so long until something completes.
    ///
    /// # Errors
    /// Only if the ring can't be used any more.
    pub(super) fn enter(&mut self, pause: Option<Duration>) -> io::Result<()> {
        self.fill_queue();
        let pause = pause.filter(|_| self.unsubmitted.is_empty());
        let submitter = self.ring.submitter();
        let result = match pause {
            None => submitter.submit(),
            Some(Duration::MAX) => submitter.submit_and_wait(1),
            Some(pause) => {
                let limit = Timespec::from(pause);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        match result.map_err(|error| (error.raw_os_error(), error)) {
            // The time is over, a signal came, or the completions want to be taken first: what was not
            // submitted is with the next call.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => Ok(()),
            Err((_, error)) => Err(error),
        }
    }

    fn fill_queue(&mut self) {
        let mut queue = self.ring.submission();
        while !queue.is_full()
            && let Some(at) = self.unsubmitted.pop_front()
        {
            let work = self.places[at].as_mut().expect("a place is freed only by a completion");
            let entry = describe(work, self.takes_hints).user_data(at as u64);
            // SAFETY: what the entry points to is owned by `places[at]` and lies on the heap, so it stays where it
            // is until the completion is taken, or for ever if the ring is dropped before. The descriptor is
            // open for as long.
            unsafe { queue.push(&entry) }.expect("the queue was not full");
        }
    }

    /// Moves what has completed to the end of `into`.
    pub(super) fn take_completed(&mut self, into: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let at = entry.user_data() as usize;
            let work = self.places.get_mut(at).and_then(Option::take).expect("one completion per operation");
            self.free.push(at);
            let result = match entry.result() {
                error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
                count => Ok(count as usize),
            };
            into.push(Completion { work, result, more: cqueue::sock_nonempty(entry.flags()) });
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let left = self.in_flight();
        if left > 0 {
            tracing::error!(left, "a ring is closed with operations in flight; their memory is not freed");
            // The kernel may still write to it, and cancels only after the descriptor is closed.
            std::mem::forget(std::mem::take(&mut self.places));
        }
    }
}

/// The kernel's form of an operation.
fn describe(work: &mut Work, takes_hints: bool) -> squeue::Entry {
    match work {
        Work::Wake { event, count } => {
            opcode::Read::new(Fd(event.as_raw_fd()), count.as_mut_ptr(), len(count.len())).build()
        }
        Work::Receive { socket, buffer, from, whole, wait, .. } => {
            let into = &mut buffer[*from..];
            let flags = if *whole { libc::MSG_WAITALL } else { 0 };
            let hints = if *wait && takes_hints { POLL_FIRST } else { 0 };
            let receive = opcode::Recv::new(Fd(socket.as_raw_fd()), into.as_mut_ptr(), len(into.len()));
            receive.flags(flags).ioprio(hints).build()
        }
        Work::Send { socket, parts, .. } => {
            let Parts { bytes, slots, header } = &mut **parts;
            slots.clear();
            slots.extend(
                bytes.iter().map(|part| libc::iovec {
                    iov_base: part.as_ptr().cast_mut().cast(),
                    iov_len: part.len(),
                }),
            );
            header.msg_iov = slots.as_mut_ptr();
            header.msg_iovlen = slots.len() as _;
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            opcode::SendMsg::new(Fd(socket.as_raw_fd()), header).flags(flags).build()
        }
        Work::Write(write) => {
            let (offset, rest) = write.rest();
            opcode::Write::new(Fd(write.file().as_raw_fd()), rest.as_ptr(), len(rest.len()))
                .offset(offset)
                .build()
        }
    }
}

fn len(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("frames and buffers are far below 4 GiB")
}
