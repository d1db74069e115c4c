//! One concurrent caller: a plain loop of operations, each awaited, on keys of its own.
//!
//! A phase deals all keys out to its callers ([`Book::deal`]) and takes them back, with what became
//! known of them, at its end. While it lasts nobody else touches a caller's keys, so that each read can
//! be judged at once.

use crate::executor::Timers;
use crate::options::{Route, Workload};
use crate::tally::{ErrorKind, Operation, Tally};
use crate::workload::{KeyState, Random, UnknownWrites, Verdict, fill_value, key};
use floe::{Client, ReadError, WriteError};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a caller waits after a failed operation.
const BACK_OFF: Duration = Duration::from_millis(1);
/// In [`Workload::Mixed`], one operation of so many is a write.
const MIXED_ONE_PUT_IN: u32 = 10;

/// The cluster as callers see it.
pub struct Site {
    /// A client of each node.
    pub clients: Vec<Client>,
    /// The leading node of each shard, as its place in `clients`. Kept fresh during phases.
    pub leaders: Vec<AtomicU8>,
    /// Where requests enter.
    pub route: Route,
    /// Bytes of a value.
    pub payload: usize,
}

impl Site {
    fn client(&self, shard: u16, turn: &mut usize) -> &Client {
        let node = match self.route {
            Route::Leader => usize::from(self.leaders[usize::from(shard)].load(Ordering::Relaxed)),
            Route::Any => {
                *turn += 1;
                *turn % self.clients.len()
            }
        };
        &self.clients[node]
    }
}

/// What a phase lets its callers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Write every key that was never written, trying again until the window's end.
    Load,
    /// Read every key once, trying again until the window's end.
    Verify,
    /// Operations until the window's end.
    Work(Workload),
}

/// When a phase begins, when its measured part does, and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The first operation.
    pub start: Instant,
    /// The end of the warm-up.
    pub begin: Instant,
    /// The end; nothing new begins.
    pub end: Instant,
}

/// The times at which an open loop's operations are due, of one thread: evenly spaced, taken by
/// whichever caller is free.
pub struct Pacer {
    next: Cell<u64>,
    start: Instant,
    end: Instant,
    interval: Duration,
}

impl Pacer {
    /// `rate` operations per second from `start` to `end`; those of thread number `thread` lie
    /// between the others'.
    pub fn new(window: &Window, rate: f64, thread: usize, threads: usize) -> Self {
        let interval = Duration::from_secs_f64(threads as f64 / rate);
        let start = window.start + interval.mul_f64(thread as f64 / threads as f64);
        Self { next: Cell::new(0), start, end: window.end, interval }
    }

    /// The next operation's time, unless it lies behind the end.
    pub fn take(&self) -> Option<Instant> {
        let number = self.next.get();
        let due = self.start + self.interval.mul_f64(number as f64);
        self.next.set(number + 1);
        (due < self.end).then_some(due)
    }
}

/// One thread's part of a phase, shared by its callers.
pub struct Shift<'a> {
    /// The cluster.
    pub site: &'a Site,
    /// Of this thread.
    pub timers: &'a Timers,
    /// Of this thread.
    pub tally: &'a RefCell<Tally>,
    /// Steps done, for the progress bar; only this thread writes it.
    pub steps: &'a AtomicU64,
    /// Of the phase.
    pub window: Window,
    /// In an open loop, when operations are due.
    pub pacer: Option<Pacer>,
}

impl Shift<'_> {
    fn step(&self) {
        self.steps.store(self.steps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.window.end
    }

    /// Counts a success. Throughput counts what was done within the window. Latency belongs, in a closed
    /// loop, to the same operations; in an open one to all that were due in the window.
    fn record(&self, operation: Operation, due: Instant, done: Instant) {
        let in_window = done >= self.window.begin && done <= self.window.end;
        let mut tally = self.tally.borrow_mut();
        if in_window {
            tally.done(operation);
        }
        if if self.pacer.is_some() { due >= self.window.begin } else { in_window } {
            tally.latency(operation, done - due);
        }
    }
}

/// A caller and its keys.
pub struct Caller {
    keys: Vec<KeyState>,
    unknown: UnknownWrites,
    random: Random,
    turn: usize,
    value: Vec<u8>,
}

impl Caller {
    /// Does `job` to its end.
    pub async fn run(&mut self, job: Job, shift: &Shift<'_>) {
        match job {
            Job::Load => self.load(shift).await,
            Job::Verify => self.verify(shift).await,
            Job::Work(workload) => match &shift.pacer {
                None => self.closed_loop(workload, shift).await,
                Some(pacer) => self.open_loop(workload, shift, pacer).await,
            },
        }
    }

    async fn closed_loop(&mut self, workload: Workload, shift: &Shift<'_>) {
        let mut begun = Instant::now();
        while begun < shift.window.end {
            let outcome = self.operate(workload, shift).await;
            let done = Instant::now();
            begun = self.conclude(outcome, begun, done, shift).await;
        }
    }

    async fn open_loop(&mut self, workload: Workload, shift: &Shift<'_>, pacer: &Pacer) {
        while !shift.is_over() {
            let Some(due) = pacer.take() else { return };
            shift.timers.sleep_until(due).await;
            let outcome = self.operate(workload, shift).await;
            self.conclude(outcome, due, Instant::now(), shift).await;
        }
    }

    /// Records an operation, or waits a little if it failed. Returns when the next one may begin.
    async fn conclude(
        &self,
        outcome: Result<Operation, ErrorKind>,
        due: Instant,
        done: Instant,
        shift: &Shift<'_>,
    ) -> Instant {
        shift.step();
        match outcome {
            Ok(operation) => {
                shift.record(operation, due, done);
                done
            }
            Err(_) => {
                shift.timers.sleep_until(done + BACK_OFF).await;
                Instant::now()
            }
        }
    }

    async fn operate(&mut self, workload: Workload, shift: &Shift<'_>) -> Result<Operation, ErrorKind> {
        let count = u32::try_from(self.keys.len()).expect("--keys is a u32");
        let place = self.random.below(count) as usize;
        let writes = match workload {
            Workload::Put => true,
            Workload::Get => false,
            Workload::Mixed => self.random.below(MIXED_ONE_PUT_IN) == 0,
        };
        if writes { self.put(place, shift).await } else { self.get(place, shift).await }
    }

    async fn put(&mut self, place: usize, shift: &Shift<'_>) -> Result<Operation, ErrorKind> {
        let state = &mut self.keys[place];
        state.issued += 1;
        let version = state.issued;
        fill_value(state.id, version, &mut self.value);
        let client = shift.site.client(state.shard, &mut self.turn);
        match client.put(key(state.id), &self.value).await {
            Ok(_) => {
                state.current = version;
                Ok(Operation::Put)
            }
            Err(error) => {
                let kind = write_error_kind(&error);
                if kind == ErrorKind::Unknown {
                    self.unknown.entry(state.id).or_default().push(version);
                }
                shift.tally.borrow_mut().error(kind, &error);
                Err(kind)
            }
        }
    }

    async fn get(&mut self, place: usize, shift: &Shift<'_>) -> Result<Operation, ErrorKind> {
        let state = &mut self.keys[place];
        let client = shift.site.client(state.shard, &mut self.turn);
        match client.get(key(state.id)).await {
            Ok(value) => {
                let before = *state;
                let verdict = state.judge(value.as_deref(), shift.site.payload, &mut self.unknown);
                let describe = || format!("{before:?} but a read showed {}", head(value.as_deref()));
                shift.tally.borrow_mut().verdict(verdict, describe);
                Ok(Operation::Get)
            }
            Err(error) => {
                let kind = read_error_kind(&error);
                shift.tally.borrow_mut().error(kind, &error);
                Err(kind)
            }
        }
    }

    async fn load(&mut self, shift: &Shift<'_>) {
        for place in 0..self.keys.len() {
            while self.keys[place].current == 0 && !shift.is_over() {
                if self.put(place, shift).await.is_err() {
                    shift.timers.sleep_until(Instant::now() + BACK_OFF).await;
                }
            }
            shift.step();
        }
    }

    async fn verify(&mut self, shift: &Shift<'_>) {
        for place in 0..self.keys.len() {
            while self.get(place, shift).await.is_err() {
                if shift.is_over() {
                    let describe = || format!("{:?} can't be read", self.keys[place]);
                    shift.tally.borrow_mut().verdict(Verdict::Lost, describe);
                    break;
                }
                shift.timers.sleep_until(Instant::now() + BACK_OFF).await;
            }
            shift.step();
        }
    }
}

fn write_error_kind(error: &WriteError) -> ErrorKind {
    match error {
        WriteError::Busy { .. } => ErrorKind::Busy,
        error if error.is_surely_not_done() => ErrorKind::Refused,
        _ => ErrorKind::Unknown,
    }
}

fn read_error_kind(error: &ReadError) -> ErrorKind {
    match error {
        ReadError::Busy { .. } => ErrorKind::Busy,
        _ => ErrorKind::Read,
    }
}

/// A value's first bytes, for a message.
fn head(value: Option<&[u8]>) -> String {
    match value {
        None => "no value".into(),
        Some(value) => format!("{} bytes: {:02x?}...", value.len(), &value[..value.len().min(16)]),
    }
}

/// All keys, between phases.
pub struct Book {
    keys: Vec<KeyState>,
    unknown: UnknownWrites,
}

impl Book {
    /// `count` keys that were never written; `shard_of` gives a key's place in the table of shards.
    pub fn new(count: u32, shard_of: impl Fn(&[u8]) -> u16) -> Self {
        let keys = (0..count).map(|id| KeyState::new(id, shard_of(&key(id)))).collect();
        Self { keys, unknown: UnknownWrites::new() }
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// How many of them aren't known to have a value.
    pub fn unwritten(&self) -> usize {
        self.keys.iter().filter(|key| key.current == 0).count()
    }

    /// Deals the keys out to `count` callers, as evenly as possible.
    pub fn deal(&mut self, count: usize, payload: usize) -> Vec<Caller> {
        let keys = std::mem::take(&mut self.keys);
        let mut callers: Vec<_> = (0..count.clamp(1, keys.len().max(1)))
            .map(|number| Caller {
                keys: Vec::with_capacity(keys.len() / count + 1),
                unknown: UnknownWrites::new(),
                random: Random::new(number as u64),
                turn: number,
                value: vec![0; payload],
            })
            .collect();
        let callers_count = callers.len();
        for (place, key) in keys.into_iter().enumerate() {
            let caller = &mut callers[place % callers_count];
            if let Some(versions) = self.unknown.remove(&key.id) {
                caller.unknown.insert(key.id, versions);
            }
            caller.keys.push(key);
        }
        callers
    }

    /// Takes them back.
    pub fn collect(&mut self, callers: Vec<Caller>) {
        for mut caller in callers {
            self.keys.append(&mut caller.keys);
            self.unknown.append(&mut caller.unknown);
        }
        self.keys.sort_unstable_by_key(|key| key.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dealing_and_collecting_keeps_every_key_and_its_unknown_writes() {
        let mut book = Book::new(10, |_| 0);
        book.unknown.insert(4, vec![9]);
        let callers = book.deal(3, 16);
        assert_eq!(callers.iter().map(|caller| caller.keys.len()).collect::<Vec<_>>(), [4, 3, 3]);
        assert_eq!(callers[1].unknown, UnknownWrites::from([(4, vec![9])]));
        book.collect(callers);
        assert_eq!((book.len(), book.unwritten()), (10, 10));
        assert_eq!(book.unknown, UnknownWrites::from([(4, vec![9])]));
    }

    #[test]
    fn threads_share_the_rate_without_a_gap() {
        let start = Instant::now();
        let window = Window { start, begin: start, end: start + Duration::from_secs(1) };
        let mut due: Vec<_> = (0..4)
            .flat_map(|thread| {
                let pacer = Pacer::new(&window, 1000.0, thread, 4);
                std::iter::from_fn(move || pacer.take())
            })
            .collect();
        due.sort();
        assert!((999..=1001).contains(&due.len()), "{}", due.len());
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] < Duration::from_micros(1010)));
    }
}
