//! The handle by which any thread and any async runtime talks to the node.
//!
//! A call encodes its command once, finds the shard by key, and posts it to the core that owns the
//! shard; the future it returns is a plain one. A linearizable read of a shard that this node leads under a
//! lease is done on the caller's thread instead (`read_cell.rs`), before the call returns. Every call has a deadline, enforced by the core.
//! Dropping a future abandons the wait, not the command.

use crate::clock;
use crate::error::{ReadError, TransferError, WriteError, WriteOutcome};
use crate::mailbox::{Mailbox, Post, Slot, Wait};
use crate::read_cell::ReadCells;
use bytes::Bytes;
use floe_raft::Nanos;
use floe_shard::descriptor::{Descriptor, KeyRange};
use floe_shard::request::{
    Answer, BusyReason, Consistency, MemberChange, Query, Refusal, Request, Row, UnknownReason, Versioned,
};
use floe_shard::{
    CommandError, KEY_BYTES_MAX, NodeId, ShardId, ShardMap, WriteBatch, encode, encode_delete, encode_put,
};
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Bytes of rows that one core answers at once in a scan.
const SCAN_PAGE_BYTES: u32 = 1 << 20;

pub(crate) struct Shared {
    pub mailboxes: Vec<Arc<Mailbox>>,
    pub map: ShardMap,
    pub cores: u16,
    pub cells: Arc<ReadCells>,
}

/// A clonable handle to a node; cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    timeout: Duration,
    consistency: Consistency,
}

/// Which rows a scan returns, in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// First key, inclusive; empty = from the first.
    pub start: Bytes,
    /// First key after the range; empty = to the last.
    pub end: Bytes,
    /// At most so many rows; 0 = all.
    pub limit: usize,
    /// From the end of the range towards its start.
    pub reverse: bool,
}

impl ScanOptions {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        while end.last() == Some(&0xFF) {
            end.pop();
        }
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self { start, end: end.into(), ..Self::default() }
    }

    /// Keys from `start`, inclusive, to `end`, exclusive.
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: start.into(), end: end.into(), ..Self::default() }
    }

    /// At most so many rows.
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// In descending order.
    pub fn reverse(self) -> Self {
        Self { reverse: true, ..self }
    }
}

/// A call under way: a plain future for any executor. Dropping it abandons the wait, not the command.
#[must_use = "a call does its work either way, but only awaiting it tells the outcome"]
pub struct Call<T, E> {
    state: State<T, E>,
    decide: fn(Answer) -> Result<T, E>,
}

enum State<T, E> {
    /// Its outcome is known: the call could not even begin, or was done on this thread.
    Known(Result<T, E>),
    /// A core will answer.
    Waits(Wait),
    /// The outcome was taken.
    Taken,
}

impl<T, E> Call<T, E> {
    fn new(started: Result<Arc<Slot>, E>, decide: fn(Answer) -> Result<T, E>) -> Self {
        let state = match started {
            Ok(slot) => State::Waits(Wait(slot)),
            Err(error) => State::Known(Err(error)),
        };
        Self { state, decide }
    }

    fn known(outcome: T, decide: fn(Answer) -> Result<T, E>) -> Self {
        Self { state: State::Known(Ok(outcome)), decide }
    }

    /// Waits on this thread, without an executor.
    fn block(self) -> Result<T, E> {
        match self.state {
            State::Known(outcome) => outcome,
            State::Waits(wait) => (self.decide)(wait.0.wait()),
            State::Taken => panic!("a call is awaited again after it was done"),
        }
    }
}

/// Calls of one thread that may be ready at once before one of them lets the executor's other tasks run.
const READY_MAX: u32 = 32;

/// Whether a call that could be ready should let others go first. A task that awaits one such call after the
/// other never returns to its executor otherwise, and tasks that wait for a core are never polled.
fn others_are_due() -> bool {
    thread_local!(static READY: Cell<u32> = const { Cell::new(0) });
    READY.with(|ready| {
        let due = ready.get() >= READY_MAX;
        ready.set(if due { 0 } else { ready.get() + 1 });
        due
    })
}

impl<T: Unpin, E: Unpin> Future for Call<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let decide = self.decide;
        if let State::Waits(wait) = &mut self.state {
            return Pin::new(wait).poll(context).map(decide);
        }
        if others_are_due() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Known(outcome) => Poll::Ready(outcome),
            _ => panic!("a call is awaited again after it was done"),
        }
    }
}

type Started = Result<Arc<Slot>, Refusal>;

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, timeout: Duration) -> Self {
        Self { shared, timeout, consistency: Consistency::Linearizable }
    }

    /// The same client with another deadline, counted from each call.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same client with another consistency of its reads.
    pub fn with_consistency(&self, consistency: Consistency) -> Self {
        Self { consistency, ..self.clone() }
    }

    /// Writes a value; its new version. Done when it is durable on a majority and applied.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Call<u64, WriteError> {
        Call::new(self.start_put(key.as_ref(), value.as_ref()), decide_unconditional)
    }

    /// [`Client::put`] on this thread.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn put_blocking(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<u64, WriteError> {
        self.put(key, value).block()
    }

    /// Removes a key; one that doesn't exist is fine.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Call<u64, WriteError> {
        Call::new(self.start_delete(key.as_ref()), decide_unconditional)
    }

    /// [`Client::delete`] on this thread.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn delete_blocking(&self, key: impl AsRef<[u8]>) -> Result<u64, WriteError> {
        self.delete(key).block()
    }

    /// Applies a batch: all of it if all of its conditions hold, or nothing. All keys must belong to
    /// one shard.
    pub fn write(&self, batch: &WriteBatch) -> Call<WriteOutcome, WriteError> {
        Call::new(self.start_batch(batch), decide_write)
    }

    /// [`Client::write`] on this thread.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn write_blocking(&self, batch: &WriteBatch) -> Result<WriteOutcome, WriteError> {
        self.write(batch).block()
    }

    /// Reads a value.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Call<Option<Bytes>, ReadError> {
        let value = |found: Option<Versioned>| found.map(|found| found.value);
        let decide = |answer| Ok(decide_get(answer)?.map(|found| found.value));
        match self.get_here(key.as_ref()) {
            Some(found) => Call::known(value(found), decide),
            None => Call::new(self.start_get(key.as_ref()), decide),
        }
    }

    /// [`Client::get`] on this thread.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn get_blocking(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, ReadError> {
        self.get(key).block()
    }

    /// Reads a value together with its version, which a condition can name.
    pub fn get_versioned(&self, key: impl AsRef<[u8]>) -> Call<Option<Versioned>, ReadError> {
        match self.get_here(key.as_ref()) {
            Some(found) => Call::known(found, decide_get),
            None => Call::new(self.start_get(key.as_ref()), decide_get),
        }
    }

    /// [`Client::get_versioned`] on this thread.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn get_versioned_blocking(&self, key: impl AsRef<[u8]>) -> Result<Option<Versioned>, ReadError> {
        self.get_versioned(key).block()
    }

    /// Reads a range. Each page within one shard is one consistent snapshot; pages and shards are
    /// not one snapshot together.
    pub fn scan(
        &self,
        options: ScanOptions,
    ) -> impl Future<Output = Result<Vec<Row>, ReadError>> + Send + 'static + use<> {
        let client = self.clone();
        async move {
            let mut scan = Scan::new(options);
            while let Some(page) = scan.next_page(&client) {
                let answer = match page? {
                    Page::Read(answer) => answer,
                    Page::Asked(slot) => Wait(slot).await,
                };
                scan.take_page(answer)?;
            }
            Ok(scan.rows)
        }
    }

    /// [`Client::scan`] on this thread.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn scan_blocking(&self, options: ScanOptions) -> Result<Vec<Row>, ReadError> {
        let mut scan = Scan::new(options);
        while let Some(page) = scan.next_page(self) {
            let answer = match page? {
                Page::Read(answer) => answer,
                Page::Asked(slot) => slot.wait(),
            };
            scan.take_page(answer)?;
        }
        Ok(scan.rows)
    }

    /// Hands the leadership of a shard to a node.
    ///
    /// # Errors
    /// See [`TransferError`]. Whatever comes of it, nothing is lost.
    pub fn transfer_leadership_blocking(&self, shard: ShardId, to: NodeId) -> Result<(), TransferError> {
        let started = self.post(shard, Request::TransferLeadership { shard, to });
        match started.map_err(TransferError::from_refusal)?.wait() {
            Answer::Done => Ok(()),
            Answer::Refused(refusal) => Err(TransferError::from_refusal(refusal)),
            Answer::Unknown(reason) => Err(TransferError::OutcomeUnknown(reason)),
            _ => Err(TransferError::OutcomeUnknown(UnknownReason::BadAnswer)),
        }
    }

    /// Changes the members of a shard: adds a learner, promotes, demotes or removes a node's replica; several changes
    /// at once go through a joint configuration, so that a replacement is never a voter short. Returns once
    /// the change is committed. A new replica is created and fed afterwards: a promotion is refused until it
    /// has caught up, and so is whatever would leave too few live voters, unless `force` is set. At most
    /// [`MEMBER_CHANGES_MAX`](floe_shard::MEMBER_CHANGES_MAX) changes, about different nodes; data of a removed
    /// replica is destroyed.
    ///
    /// # Errors
    /// See [`WriteError`]. [`WriteError::Busy`] with [`BusyReason::MemberChange`] if an earlier change isn't finished.
    pub fn change_members_blocking(
        &self,
        shard: ShardId,
        changes: &[MemberChange],
        force: bool,
    ) -> Result<(), WriteError> {
        let request = Request::ChangeMembers { shard, changes: changes.to_vec(), force };
        match self.post(shard, request).map_err(WriteError::from_refusal)?.wait() {
            Answer::Done => Ok(()),
            Answer::Refused(refusal) => Err(WriteError::from_refusal(refusal)),
            Answer::Unknown(reason) => Err(WriteError::OutcomeUnknown(reason)),
            _ => Err(WriteError::OutcomeUnknown(UnknownReason::BadAnswer)),
        }
    }

    /// The shard that owns a key.
    pub fn shard_of(&self, key: impl AsRef<[u8]>) -> ShardId {
        self.locate(key.as_ref()).shard
    }

    fn locate(&self, key: &[u8]) -> &Descriptor {
        self.shared.map.locate(key).expect("the map covers every key, and empty keys lie in the first shard")
    }

    fn deadline(&self) -> Nanos {
        clock::now().saturating_add(u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX))
    }

    fn start_put(&self, key: &[u8], value: &[u8]) -> Result<Arc<Slot>, WriteError> {
        let descriptor = self.locate(key);
        let command = encode_put(descriptor.epoch.range, key, value)?;
        self.start_write(descriptor.shard, command)
    }

    fn start_delete(&self, key: &[u8]) -> Result<Arc<Slot>, WriteError> {
        let descriptor = self.locate(key);
        let command = encode_delete(descriptor.epoch.range, key)?;
        self.start_write(descriptor.shard, command)
    }

    fn start_batch(&self, batch: &WriteBatch) -> Result<Arc<Slot>, WriteError> {
        let first = batch.first_key().ok_or(CommandError::EmptyBatch)?;
        let descriptor = self.locate(first);
        if let Some(outside) = batch.keys().find(|key| !descriptor.range.contains(key)) {
            let below = outside < &descriptor.range.start;
            let boundary = if below { descriptor.range.start.clone() } else { descriptor.range.end.clone() };
            return Err(WriteError::SpansShards { boundary });
        }
        self.start_write(descriptor.shard, encode(batch, descriptor.epoch.range)?)
    }

    fn start_write(&self, shard: ShardId, command: Bytes) -> Result<Arc<Slot>, WriteError> {
        self.post(shard, Request::Write { shard, command }).map_err(WriteError::from_refusal)
    }

    /// A linearizable get on this thread; `None` = ask the core. The clock comes after the load.
    fn get_here(&self, key: &[u8]) -> Option<Option<Versioned>> {
        if key.is_empty() || !self.consistency.is_linearizable() {
            return None;
        }
        let Descriptor { shard, epoch, .. } = self.locate(key);
        let open = self.shared.cells.load(*shard)?;
        open.get(epoch.range, key, clock::now())
    }

    /// A page of a linearizable scan on this thread; `None` = ask the core.
    fn scan_here(&self, descriptor: &Descriptor, query: &Query) -> Option<Answer> {
        if !self.consistency.is_linearizable() {
            return None;
        }
        let open = self.shared.cells.load(descriptor.shard)?;
        open.read(descriptor.epoch.range, query, clock::now())
    }

    fn start_get(&self, key: &[u8]) -> Result<Arc<Slot>, ReadError> {
        match key.len() {
            0 => return Err(CommandError::EmptyKey.into()),
            len if len > KEY_BYTES_MAX => return Err(CommandError::KeyTooLong(len).into()),
            _ => {}
        }
        let query = Query::Get { key: Bytes::copy_from_slice(key) };
        self.read(self.locate(key), query).map_err(ReadError::from_refusal)
    }

    fn read(&self, descriptor: &Descriptor, query: Query) -> Started {
        let (shard, range_epoch) = (descriptor.shard, descriptor.epoch.range);
        self.post(shard, Request::Read { shard, range_epoch, query, consistency: self.consistency })
    }

    fn post(&self, shard: ShardId, request: Request) -> Started {
        let mailbox = &self.shared.mailboxes[usize::from(shard.core(self.shared.cores))];
        let slot = Slot::new();
        match mailbox.post(Post { request, deadline: self.deadline(), slot: slot.clone() }) {
            Ok(()) => Ok(slot),
            Err(_) if mailbox.is_closed() => {
                Err(Refusal::Unavailable { reason: "the node has shut down".into() })
            }
            Err(_) => Err(Refusal::Busy(BusyReason::Requests)),
        }
    }
}

fn decide_write(answer: Answer) -> Result<WriteOutcome, WriteError> {
    match answer {
        Answer::Written { version } => Ok(WriteOutcome::Written { version }),
        Answer::ConditionFailed { condition } => Ok(WriteOutcome::ConditionFailed { condition }),
        Answer::Refused(refusal) => Err(WriteError::from_refusal(refusal)),
        Answer::Unknown(reason) => Err(WriteError::OutcomeUnknown(reason)),
        // Checked where a peer's answer comes in; a caller's thread is the last place to stop at one.
        _ => Err(WriteError::OutcomeUnknown(UnknownReason::BadAnswer)),
    }
}

fn decide_unconditional(answer: Answer) -> Result<u64, WriteError> {
    match decide_write(answer)? {
        WriteOutcome::Written { version } => Ok(version),
        // It had none: a faulty peer made that up.
        WriteOutcome::ConditionFailed { .. } => Err(WriteError::OutcomeUnknown(UnknownReason::BadAnswer)),
    }
}

fn decide_get(answer: Answer) -> Result<Option<Versioned>, ReadError> {
    match answer {
        Answer::Value(value) => Ok(value),
        Answer::Refused(refusal) => Err(ReadError::from_refusal(refusal)),
        Answer::Unknown(_) => Err(ReadError::TimedOut),
        _ => Err(no_answer()),
    }
}

/// For a read whose answer is none.
fn no_answer() -> ReadError {
    ReadError::Unavailable("the answer doesn't fit the request".into())
}

/// A page of a scan.
enum Page {
    /// Read on this thread.
    Read(Answer),
    /// A core will answer.
    Asked(Arc<Slot>),
}

/// A scan over shards in order, page by page.
struct Scan {
    /// What is left of the range.
    start: Bytes,
    end: Bytes,
    limit: usize,
    reverse: bool,
    done: bool,
    /// The shard whose page is awaited.
    current: Option<Descriptor>,
    rows: Vec<Row>,
}

impl Scan {
    fn new(options: ScanOptions) -> Self {
        let ScanOptions { start, end, limit, reverse } = options;
        let done = !end.is_empty() && start >= end;
        Self { start, end, limit, reverse, done, current: None, rows: Vec::new() }
    }

    fn next_page(&mut self, client: &Client) -> Option<Result<Page, ReadError>> {
        if self.done {
            return None;
        }
        let left = KeyRange { start: self.start.clone(), end: self.end.clone() };
        let mut shards = client.shared.map.covering(&left);
        let next = if self.reverse { shards.last() } else { shards.next() };
        let descriptor = next.expect("the map covers every key");
        let left = if self.limit == 0 { 0 } else { self.limit - self.rows.len() };
        let query = Query::Scan {
            start: self.start.clone(),
            end: self.end.clone(),
            limit: u32::try_from(left).unwrap_or(u32::MAX),
            bytes_max: SCAN_PAGE_BYTES,
            reverse: self.reverse,
        };
        self.current = Some(descriptor.clone());
        Some(match client.scan_here(descriptor, &query) {
            Some(answer) => Ok(Page::Read(answer)),
            None => client.read(descriptor, query).map(Page::Asked).map_err(ReadError::from_refusal),
        })
    }

    fn take_page(&mut self, answer: Answer) -> Result<(), ReadError> {
        let (rows, more) = match answer {
            Answer::Rows { rows, more } => (rows, more),
            Answer::Refused(refusal) => return Err(ReadError::from_refusal(refusal)),
            Answer::Unknown(_) => return Err(ReadError::TimedOut),
            _ => return Err(no_answer()),
        };
        let range = self.current.take().expect("set when the page was asked for").range;
        if more {
            let last = &rows.last().ok_or_else(no_answer)?.key;
            if self.reverse { self.end = last.clone() } else { self.start = successor(last) }
        } else if self.reverse {
            self.done = range.start.is_empty() || range.start <= self.start;
            self.end = range.start;
        } else {
            self.done = range.end.is_empty() || (!self.end.is_empty() && range.end >= self.end);
            self.start = range.end;
        }
        self.rows.extend(rows);
        self.done |= self.limit > 0 && self.rows.len() >= self.limit;
        Ok(())
    }
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    fn row(key: &'static str) -> Row {
        let value = Versioned { version: 1, value: Bytes::new() };
        Row { key: Bytes::from_static(key.as_bytes()), value }
    }

    #[test]
    fn calls_that_are_ready_at_once_let_the_executors_other_tasks_run() {
        struct Woken(AtomicU32);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken(AtomicU32::new(0)));
        let waker = woken.clone().into();
        let mut context = Context::from_waker(&waker);
        let mut waits = 0;
        for answer in 0..10 * (READY_MAX + 1) {
            let mut call = Call::<u32, ReadError>::known(answer, |_| unreachable!("nobody was asked"));
            while let outcome = Pin::new(&mut call).poll(&mut context)
                && outcome != Poll::Ready(Ok(answer))
            {
                waits += 1;
                assert_eq!(woken.0.load(Ordering::Relaxed), waits, "who waits for nobody wakes itself");
            }
        }
        assert!((9..=11).contains(&waits), "every {READY_MAX} calls, not {waits} times");
    }

    #[test]
    fn an_answer_of_another_kind_is_an_error_and_no_panic() {
        let rows = || Answer::Rows { rows: vec![row("a")], more: false };
        let unknown = WriteError::OutcomeUnknown(UnknownReason::BadAnswer);
        assert!(!unknown.is_surely_not_done());
        for answer in [rows(), Answer::Value(None), Answer::Done] {
            assert_eq!(decide_write(answer.clone()), Err(unknown.clone()), "{answer:?}");
        }
        assert_eq!(decide_unconditional(Answer::ConditionFailed { condition: 0 }), Err(unknown));
        for answer in [rows(), Answer::Written { version: 1 }, Answer::Done] {
            assert_eq!(decide_get(answer.clone()), Err(no_answer()), "{answer:?}");
        }
        let no_rows = Answer::Rows { rows: Vec::new(), more: true };
        for answer in [no_rows, Answer::Value(None), Answer::Written { version: 1 }, Answer::Done] {
            let mut scan = Scan::new(ScanOptions::default());
            scan.current = floe_shard::pre_split(&[NodeId(1)], 1, 1).pop();
            assert_eq!(scan.take_page(answer.clone()), Err(no_answer()), "{answer:?}");
        }
    }
}
