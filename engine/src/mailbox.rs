//! How callers' threads hand requests to a core and wait for the answers.
//!
//! A [`Mailbox`] is bounded and lock-free on the way in. A core that is about to sleep says so;
//! whoever posts then wakes it, once per batch and not once per item. An answer travels back through
//! a [`Slot`], which is a plain future and can be waited for without any executor.

use crate::clock;
use crate::seam::CoreMessage;
use crossbeam_queue::{ArrayQueue, SegQueue};
use floe_raft::Nanos;
use floe_shard::ShardStatus;
use floe_shard::request::{Answer, BusyReason, Refusal, Request, UnknownReason};
use parking_lot::{Condvar, Mutex};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A caller's request.
pub struct Post {
    /// What is asked.
    pub request: Request,
    /// When the caller stops waiting, by [`crate::clock::now`].
    pub deadline: Nanos,
    /// Until when it may wait here for a leader to be known; then it is refused as [`Refusal::NotLeader`].
    pub park_until: Nanos,
    /// Where the answer goes.
    pub slot: Arc<Slot>,
}

/// What doesn't come from callers; unbounded, but bounded by its senders.
pub enum Control {
    /// Another core of this node.
    Core {
        /// Which.
        from: u16,
        /// What it says.
        message: CoreMessage,
    },
    /// A connection whose hello named this core.
    Accepted {
        /// The socket, both hellos exchanged.
        socket: OwnedFd,
        /// Who is at the other end.
        hello: crate::transport::Hello,
    },
    /// How do this core's replicas stand? Unless the core runs, the sender is dropped without an answer.
    Status(Sender<Vec<ShardStatus>>),
    /// The node has booted and its identity is set: connect to the peers.
    Connect,
    /// Shut down cleanly.
    Shutdown,
}

/// The way into one core.
pub struct Mailbox {
    posts: ArrayQueue<Post>,
    control: SegQueue<Control>,
    asleep: AtomicBool,
    closed: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Mailbox {
    /// A mailbox that holds up to `capacity` requests.
    pub fn new(capacity: usize) -> Self {
        Self {
            posts: ArrayQueue::new(capacity),
            control: SegQueue::new(),
            asleep: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    /// Hands a request in.
    ///
    /// # Errors
    /// The mailbox is full (`Busy`) or closed (`Unavailable`).
    pub fn post(&self, post: Post) -> Result<(), Refusal> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Refusal::Unavailable { reason: "the node has shut down".into() });
        }
        self.posts.push(post).map_err(|_| Refusal::Busy(BusyReason::Requests))?;
        self.wake();
        if self.is_closed() {
            // Closed in between: the core may have looked for the last time already.
            self.refuse_posts();
        }
        Ok(())
    }

    /// Answers whatever request still waits in a closed mailbox.
    pub fn refuse_posts(&self) {
        while let Some(post) = self.take_post() {
            let reason = "the core has stopped".to_owned();
            post.slot.answer(Answer::Refused(Refusal::Unavailable { reason }));
        }
    }

    /// Hands in something that isn't a request.
    pub fn control(&self, control: Control) {
        self.control.push(control);
        self.wake();
    }

    /// Next request, for the core.
    pub fn take_post(&self) -> Option<Post> {
        self.posts.pop()
    }

    /// Next of the rest, for the core.
    pub fn take_control(&self) -> Option<Control> {
        self.control.pop()
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.posts.len()
    }

    /// Whether nothing at all waits.
    pub fn is_empty(&self) -> bool {
        self.posts.is_empty() && self.control.is_empty()
    }

    /// Refuses requests from now on. What is already in stays to be taken.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Whether `close` was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The core is about to sleep: from now on, whoever posts wakes `waker`. Returns false, and
    /// nothing is registered, if something already waits.
    pub fn sleep(&self, waker: &Waker) -> bool {
        {
            let mut slot = self.waker.lock();
            match &*slot {
                Some(old) if old.will_wake(waker) => {}
                _ => *slot = Some(waker.clone()),
            }
        }
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if self.is_empty() {
            return true;
        }
        self.asleep.store(false, Ordering::SeqCst);
        false
    }

    /// The core is awake again.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Wakes the core whether it said that it sleeps or not. For a watchdog: a runtime may have lost a
    /// wake-up of its own, and its thread sleeps with work to do.
    pub fn nudge(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes the core if it sleeps; for drivers that have something else for it.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            let waker = self.waker.lock().clone();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

enum SlotState {
    Empty,
    Waiting(Waker),
    /// Nobody waits: this is called with the answer.
    Calls(Box<dyn FnOnce(Answer) + Send>),
    Answered(Answer),
    Taken,
}

/// Where one answer arrives.
pub struct Slot {
    state: Mutex<SlotState>,
    arrived: Condvar,
}

impl Slot {
    /// An empty slot.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(SlotState::Empty), arrived: Condvar::new() })
    }

    /// A slot that nobody waits for: its answer is handed to `call`, on whichever thread brings it; so it must be quick.
    pub fn calling(call: Box<dyn FnOnce(Answer) + Send>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(SlotState::Calls(call)), arrived: Condvar::new() })
    }

    /// Puts the answer in and wakes who waits. Only the first answer counts.
    pub fn answer(&self, answer: Answer) {
        let mut state = self.state.lock();
        let waker = match std::mem::replace(&mut *state, SlotState::Taken) {
            before @ (SlotState::Answered(_) | SlotState::Taken) => {
                *state = before;
                return;
            }
            SlotState::Calls(call) => {
                drop(state);
                return call(answer);
            }
            SlotState::Waiting(waker) => Some(waker),
            SlotState::Empty => None,
        };
        *state = SlotState::Answered(answer);
        drop(state);
        self.arrived.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits on this thread, without an executor, until `until` by [`crate::clock::now`] at the latest: then nobody
    /// knows what came of the request, and the answer is `Unknown`.
    pub fn wait(&self, until: Nanos) -> Answer {
        let mut state = self.state.lock();
        loop {
            match std::mem::replace(&mut *state, SlotState::Taken) {
                SlotState::Answered(answer) => return answer,
                other => *state = other,
            }
            let left = until.saturating_sub(clock::now());
            if left == 0 {
                return Answer::Unknown(UnknownReason::DeadlinePassed);
            }
            self.arrived.wait_for(&mut state, Duration::from_nanos(left));
        }
    }

    fn poll(&self, waker: &Waker) -> Poll<Answer> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, SlotState::Taken) {
            SlotState::Answered(answer) => Poll::Ready(answer),
            SlotState::Waiting(old) if old.will_wake(waker) => {
                *state = SlotState::Waiting(old);
                Poll::Pending
            }
            SlotState::Empty | SlotState::Waiting(_) => {
                *state = SlotState::Waiting(waker.clone());
                Poll::Pending
            }
            SlotState::Taken | SlotState::Calls(_) => {
                panic!("an answer is awaited that was taken, or that nobody waits for")
            }
        }
    }
}

/// How long a thread waits beyond the deadline of its request: the core answers at the deadline and knows more about
/// the outcome, but it may be late, or hang.
const GRACE_NS: Nanos = 1_000_000_000;

/// Waits for a slot's answer. Dropping it abandons the wait, not the command.
pub struct Wait {
    /// Where the answer arrives.
    pub slot: Arc<Slot>,
    /// Of the request.
    pub deadline: Nanos,
}

impl Wait {
    /// Waits on this thread: for the core's answer, or, should it never come, until a second after the deadline.
    pub fn wait(&self) -> Answer {
        self.slot.wait(self.deadline.saturating_add(GRACE_NS))
    }
}

impl Future for Wait {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        self.slot.poll(context.waker())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_waits_for_a_core_that_hangs_until_the_deadline_and_a_grace_and_no_longer() {
        let (slot, deadline) = (Slot::new(), clock::now());
        let unknown = Answer::Unknown(UnknownReason::DeadlinePassed);
        assert_eq!(Wait { slot: slot.clone(), deadline }.wait(), unknown, "nobody answers");
        assert!(clock::now() >= deadline + GRACE_NS, "the core may be late");
        slot.answer(Answer::Done);
        assert_eq!(Wait { slot, deadline }.wait(), Answer::Done, "what is there is taken at any time");
    }
}
