//! Drives one thread's callers.
//!
//! A caller is one boxed future for a whole phase, with one waker, so that an operation costs no
//! allocation here. A waker puts its caller's number into a list, once, and unparks the thread
//! only if it sleeps; the thread takes the whole list at a time.
//!
//! Invariant: a caller's number stands in the list at most once (`Wakeup::queued`), so the list is
//! never longer than there are callers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

/// One caller's whole phase.
pub type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Whose turn it is.
struct Ready {
    list: Mutex<Vec<u32>>,
    asleep: AtomicBool,
    thread: Thread,
}

impl Ready {
    fn list(&self) -> MutexGuard<'_, Vec<u32>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, index: u32) {
        self.list().push(index);
        // The sleeper says so before it looks at the list: either it sees the entry, or we see it.
        if self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    /// Sleeps until the list isn't empty or `until` is reached. May return early.
    fn sleep(&self, until: Option<Instant>) {
        self.asleep.store(true, Ordering::SeqCst);
        if self.list().is_empty() {
            match until {
                None => std::thread::park(),
                Some(until) => std::thread::park_timeout(until.saturating_duration_since(Instant::now())),
            }
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

struct Wakeup {
    index: u32,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.index);
        }
    }
}

/// The sleeping callers of one thread, by the time they want to be woken.
#[derive(Default)]
pub struct Timers {
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
}

impl Timers {
    /// Completes at `at`.
    pub fn sleep_until(&self, at: Instant) -> Sleep<'_> {
        Sleep { timers: self, at, armed: false }
    }

    fn add(&self, at: Instant, waker: Waker) {
        let mut waiting = self.waiting.borrow_mut();
        // Behind the others of the same instant.
        let last = waiting.range((at, 0)..=(at, u64::MAX)).next_back().map(|((_, order), _)| *order);
        waiting.insert((at, last.map_or(0, |order| order + 1)), waker);
    }

    /// Wakes who is due; the next one's time.
    fn wake_due(&self) -> Option<Instant> {
        let mut waiting = self.waiting.borrow_mut();
        let now = if waiting.is_empty() { return None } else { Instant::now() };
        while let Some(first) = waiting.first_entry() {
            if first.key().0 > now {
                return Some(first.key().0);
            }
            first.remove().wake();
        }
        None
    }
}

/// A wait for a time, on a thread that runs [`run`] with the same [`Timers`].
pub struct Sleep<'a> {
    timers: &'a Timers,
    at: Instant,
    armed: bool,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.at {
            return Poll::Ready(());
        }
        if !self.armed {
            self.armed = true;
            self.timers.add(self.at, context.waker().clone());
        }
        Poll::Pending
    }
}

struct Slot<'a> {
    task: Option<Task<'a>>,
    wakeup: Arc<Wakeup>,
    waker: Waker,
}

impl<'a> Slot<'a> {
    fn new(index: usize, task: Task<'a>, ready: &Arc<Ready>) -> Self {
        let index = u32::try_from(index).expect("--concurrency is a u32");
        let wakeup = Arc::new(Wakeup { index, queued: AtomicBool::new(true), ready: ready.clone() });
        Self { task: Some(task), waker: wakeup.clone().into(), wakeup }
    }

    /// Whether the task finished in this turn.
    fn poll(&mut self) -> bool {
        // Before the poll: a wake-up during it must queue the task again.
        self.wakeup.queued.store(false, Ordering::Release);
        let Some(task) = &mut self.task else { return false };
        let done = task.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready();
        if done {
            self.task = None;
        }
        done
    }
}

/// Runs all tasks to their end on this thread.
pub fn run<'a>(tasks: impl Iterator<Item = Task<'a>>, timers: &Timers) {
    let ready = Arc::new(Ready {
        list: Mutex::new(Vec::new()),
        asleep: AtomicBool::new(false),
        thread: std::thread::current(),
    });
    let mut slots: Vec<_> = tasks.enumerate().map(|(index, task)| Slot::new(index, task, &ready)).collect();
    let mut running = slots.len();
    let mut turn: Vec<u32> = slots.iter().map(|slot| slot.wakeup.index).collect();
    while running > 0 {
        for index in turn.drain(..) {
            running -= usize::from(slots[index as usize].poll());
        }
        let next_timer = timers.wake_due();
        std::mem::swap(&mut turn, &mut *ready.list());
        if turn.is_empty() && running > 0 {
            ready.sleep(next_timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Ready when polled the second time; the waker goes to another thread in between.
    struct Elsewhere(Option<mpsc::Sender<Waker>>);

    impl Future for Elsewhere {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            match self.0.take() {
                None => Poll::Ready(()),
                Some(sender) => {
                    sender.send(context.waker().clone()).expect("the thread below receives");
                    Poll::Pending
                }
            }
        }
    }

    #[test]
    fn no_wake_up_from_another_thread_is_missed() {
        let (sender, receiver) = mpsc::channel::<Waker>();
        let waking = std::thread::spawn(move || receiver.into_iter().for_each(Waker::wake));
        let rounds = Cell::new(0);
        let timers = Timers::default();
        let task = |sender: mpsc::Sender<Waker>| {
            let rounds = &rounds;
            async move {
                for _ in 0..2000 {
                    Elsewhere(Some(sender.clone())).await;
                    rounds.set(rounds.get() + 1);
                }
            }
        };
        run((0..8).map(|_| Box::pin(task(sender.clone())) as Task<'_>), &timers);
        drop(sender);
        waking.join().expect("the other thread doesn't panic");
        assert_eq!(rounds.get(), 16_000);
    }

    #[test]
    fn sleepers_wake_in_order_of_their_times_and_not_early() {
        let timers = Timers::default();
        let order = RefCell::new(Vec::new());
        let start = Instant::now();
        let task = |place: u64| {
            let (timers, order) = (&timers, &order);
            async move {
                let at = start + Duration::from_millis(20 - 2 * (place / 2));
                timers.sleep_until(at).await;
                assert!(Instant::now() >= at);
                order.borrow_mut().push(place);
            }
        };
        run((0..10).map(|place| Box::pin(task(place)) as Task<'_>), &timers);
        assert_eq!(*order.borrow(), [8, 9, 6, 7, 4, 5, 2, 3, 0, 1]);
    }
}
