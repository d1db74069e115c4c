//! The handle by which any thread and any async runtime talks to a node of the same process, or to a cluster in others.
//!
//! A call encodes its command once, finds the shard by key, and posts it to the core that owns the
//! shard, or ([`Client::connect`], `remote.rs`) to a node that can serve it; the future it returns is a plain one. A
//! linearizable read of a shard that this node leads under a lease, or a stale one of a replica that is fresh enough,
//! is done on the caller's thread instead (`read_cell.rs`), before the call returns. Every call has a deadline,
//! enforced by the core.
//! Dropping a future abandons the wait, not the command.

use crate::clock;
use crate::error::{ReadError, TransferError, WriteError, WriteOutcome};
use crate::mailbox::{Mailbox, Post, Slot, Wait};
use crate::read_cell::ReadCells;
use crate::remote::{ConnectError, Remote};
use crate::scan::{Collected, Pages, ScanOptions};
use bytes::Bytes;
use floe_raft::Nanos;
use floe_shard::command::{BATCH_BYTES_MAX, COMMAND_HEAD_BYTES};
use floe_shard::descriptor::Descriptor;
use floe_shard::request::{
    Answer, Consistency, MemberChange, Query, Refusal, Request, Row, UnknownReason, Versioned,
};
use floe_shard::{
    CommandError, KEY_BYTES_MAX, NodeId, ShardId, ShardMap, WriteBatch, encode, encode_delete, encode_put,
};
use std::cell::Cell;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub(crate) struct Shared {
    pub mailboxes: Vec<Arc<Mailbox>>,
    pub map: ShardMap,
    pub cores: u16,
    pub cells: Arc<ReadCells>,
}

/// Whom a client talks to.
#[derive(Clone)]
pub(crate) enum Backend {
    /// The node in this process.
    Node(Arc<Shared>),
    /// Nodes in other processes.
    Remote(Arc<Remote>),
}

/// The shard map of a back end.
pub(crate) enum Map<'a> {
    Of(&'a ShardMap),
    Learned(arc_swap::Guard<Arc<ShardMap>>),
}

impl Deref for Map<'_> {
    type Target = ShardMap;

    fn deref(&self) -> &ShardMap {
        match self {
            Self::Of(map) => map,
            Self::Learned(map) => map,
        }
    }
}

impl Shared {
    /// Answers a read on this thread, if it may be; `None` = ask the core.
    pub(crate) fn read_here(&self, request: &Request) -> Option<Answer> {
        self.cells.read(request, clock::now)
    }

    /// Posts a request to the core that owns its shard.
    /// Hands a request to the core that owns its shard. Until `park_until` it may wait there for a leader to be known.
    pub(crate) fn post(
        &self,
        request: Request,
        deadline: Nanos,
        park_until: Nanos,
        slot: Arc<Slot>,
    ) -> Result<(), Refusal> {
        let mailbox = &self.mailboxes[usize::from(request.shard().core(self.cores))];
        mailbox.post(Post { request, deadline, park_until, slot })
    }
}

/// Deadline of a remote client's calls, unless it is told another.
const REMOTE_TIMEOUT: Duration = Duration::from_secs(10);

/// A clonable handle to a node; cheap to clone, usable from any thread.
#[derive(Clone)]
pub struct Client {
    pub(crate) backend: Backend,
    timeout: Duration,
    consistency: Consistency,
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
    fn new(started: Result<Wait, E>, decide: fn(Answer) -> Result<T, E>) -> Self {
        let state = match started {
            Ok(wait) => State::Waits(wait),
            Err(error) => State::Known(Err(error)),
        };
        Self { state, decide }
    }

    fn known(outcome: T, decide: fn(Answer) -> Result<T, E>) -> Self {
        Self { state: State::Known(Ok(outcome)), decide }
    }

    /// Waits on this thread, without an executor. Ends a second after the deadline even if the core that was asked hangs;
    /// the future itself has no clock, and is woken by that core alone.
    ///
    /// # Errors
    /// As the call that it is.
    ///
    /// # Panics
    /// If it was polled to its end before.
    pub fn wait(self) -> Result<T, E> {
        match self.state {
            State::Known(outcome) => outcome,
            State::Waits(wait) => (self.decide)(wait.wait()),
            State::Taken => panic!("a call is awaited again after it was done"),
        }
    }
}

/// Calls of one thread that may be ready at once before one of them lets the executor's other tasks run. A
/// call that does so is as slow as a round of all tasks, so it had better be fewer than one in a hundred.
const READY_MAX: u32 = 128;

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

pub(crate) type Started = Result<Wait, Refusal>;

impl Client {
    pub(crate) fn new(backend: Backend, timeout: Duration) -> Self {
        Self { backend, timeout, consistency: Consistency::Linearizable }
    }

    /// A client of a cluster in other processes: `endpoints` are addresses (`host:port`) of some of its nodes; the
    /// others are found. Same calls, same semantics as on a node: deadlines (10 s; [`Client::with_timeout`]), errors
    /// that say whether a write may have been done, `Busy` at a bound (65,536 requests or 256 MiB under way).
    /// It connects again by itself, finds who leads, and sends nothing a second time that may have been
    /// done. Returns once a node has told where the shards are, within 5 s.
    ///
    /// ```no_run
    /// let client = floe::Client::connect(&["10.0.0.1:7401", "10.0.0.2:7401"])?;
    /// client.put_blocking("ice/floe", "drifts")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// No endpoint answers; says what came of each.
    pub fn connect(endpoints: &[impl AsRef<str>]) -> Result<Self, ConnectError> {
        let endpoints: Vec<_> = endpoints.iter().map(|endpoint| endpoint.as_ref().to_owned()).collect();
        let remote = Remote::connect(&endpoints)?;
        Ok(Self::new(Backend::Remote(Arc::new(remote)), REMOTE_TIMEOUT))
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
        self.put(key, value).wait()
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
        self.delete(key).wait()
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
        self.write(batch).wait()
    }

    /// Replicates a command of your own state machine ([`crate::Engine::open_with`]): `payload` is what its `apply` gets, on
    /// the shard that owns `key`. At most 16 MiB.
    pub fn command(&self, key: impl AsRef<[u8]>, payload: &[u8]) -> Call<WriteOutcome, WriteError> {
        Call::new(self.start_command(key.as_ref(), payload), decide_write)
    }

    /// [`Client::command`] on this thread.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn command_blocking(
        &self,
        key: impl AsRef<[u8]>,
        payload: &[u8],
    ) -> Result<WriteOutcome, WriteError> {
        self.command(key, payload).wait()
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
        self.get(key).wait()
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
        self.get_versioned(key).wait()
    }

    /// Reads a range into memory: the rows of one shard are one consistent snapshot; shards are not one snapshot
    /// together. A range of unknown size is better read with [`Client::pages`]. One deadline holds for all of it.
    pub fn scan(
        &self,
        options: ScanOptions,
    ) -> impl Future<Output = Result<Vec<Row>, ReadError>> + Send + 'static + use<> {
        Collected::new(self, options).all()
    }

    /// [`Client::scan`] on this thread.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn scan_blocking(&self, options: ScanOptions) -> Result<Vec<Row>, ReadError> {
        Collected::new(self, options).all_blocking()
    }

    /// Reads a range in pages of up to 1 MiB: what is in memory at once is one page. The rows of one shard are one
    /// consistent snapshot, which is held for up to 30 s; shards are not one snapshot together. Each page has this
    /// client's deadline.
    ///
    /// ```no_run
    /// # let client = floe::Client::connect(&["10.0.0.1:7401"])?;
    /// let mut pages = client.pages(floe::ScanOptions::prefix("ice/"));
    /// while let Some(rows) = pages.next_blocking() {
    ///     for row in rows? {
    ///         println!("{:?}", row.key);
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn pages(&self, options: ScanOptions) -> Pages {
        Pages::new(self, options, None)
    }

    /// Hands the leadership of a shard to a node. Whatever comes of it, nothing is lost.
    pub fn transfer_leadership(&self, shard: ShardId, to: NodeId) -> Call<(), TransferError> {
        let started = self.post(Request::TransferLeadership { shard, to });
        Call::new(started.map_err(TransferError::from_refusal), decide_transfer)
    }

    /// [`Client::transfer_leadership`] on this thread.
    ///
    /// # Errors
    /// See [`TransferError`].
    pub fn transfer_leadership_blocking(&self, shard: ShardId, to: NodeId) -> Result<(), TransferError> {
        self.transfer_leadership(shard, to).wait()
    }

    /// Changes the members of a shard: adds a learner, promotes, demotes or removes a node's replica; several changes
    /// at once go through a joint configuration, so that a replacement is never a voter short. Done once
    /// the change is committed. A new replica is created and fed afterwards. Unless `force` is set, a change is refused
    /// after which the voters that are alive and have caught up would be no majority. That is no promise that a newcomer
    /// has caught up when it is promoted: where the others are a majority, whoever wants that looks at
    /// [`Engine::status`](crate::Engine::status) of its node first, as `floe admit` does. At most
    /// [`MEMBER_CHANGES_MAX`](floe_shard::MEMBER_CHANGES_MAX) changes, about different nodes; data of a removed
    /// replica is destroyed. [`WriteError::Busy`] with
    /// [`BusyReason::MemberChange`](crate::BusyReason::MemberChange) if an earlier change isn't finished.
    pub fn change_members(
        &self,
        shard: ShardId,
        changes: &[MemberChange],
        force: bool,
    ) -> Call<(), WriteError> {
        let request = Request::ChangeMembers { shard, changes: changes.to_vec(), force };
        Call::new(self.post(request).map_err(WriteError::from_refusal), decide_change)
    }

    /// [`Client::change_members`] on this thread.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn change_members_blocking(
        &self,
        shard: ShardId,
        changes: &[MemberChange],
        force: bool,
    ) -> Result<(), WriteError> {
        self.change_members(shard, changes, force).wait()
    }

    /// The shard that owns a key.
    pub fn shard_of(&self, key: impl AsRef<[u8]>) -> ShardId {
        self.at_shard_of(key.as_ref(), |descriptor| descriptor.shard)
    }

    pub(crate) fn map(&self) -> Map<'_> {
        match &self.backend {
            Backend::Node(shared) => Map::Of(&shared.map),
            Backend::Remote(remote) => Map::Learned(remote.map()),
        }
    }

    fn at_shard_of<T>(&self, key: &[u8], look: impl FnOnce(&Descriptor) -> T) -> T {
        let map = self.map();
        look(map.locate(key).expect("the map covers every key, and empty keys lie in the first shard"))
    }

    /// The shard that owns a key, and the epoch of its range.
    fn locate(&self, key: &[u8]) -> (ShardId, u64) {
        self.at_shard_of(key, |descriptor| (descriptor.shard, descriptor.epoch.range))
    }

    pub(crate) fn deadline(&self) -> Nanos {
        clock::now().saturating_add(u64::try_from(self.timeout.as_nanos()).unwrap_or(u64::MAX))
    }

    fn start_put(&self, key: &[u8], value: &[u8]) -> Result<Wait, WriteError> {
        let (shard, range_epoch) = self.locate(key);
        self.start_write(shard, encode_put(range_epoch, key, value)?)
    }

    fn start_delete(&self, key: &[u8]) -> Result<Wait, WriteError> {
        let (shard, range_epoch) = self.locate(key);
        self.start_write(shard, encode_delete(range_epoch, key)?)
    }

    fn start_batch(&self, batch: &WriteBatch) -> Result<Wait, WriteError> {
        let first = batch.first_key().ok_or(CommandError::EmptyBatch)?;
        let descriptor = self.at_shard_of(first, Descriptor::clone);
        if let Some(outside) = batch.keys().find(|key| !descriptor.range.contains(key)) {
            let below = outside < &descriptor.range.start;
            let boundary = if below { descriptor.range.start.clone() } else { descriptor.range.end.clone() };
            return Err(WriteError::SpansShards { boundary });
        }
        self.start_write(descriptor.shard, encode(batch, descriptor.epoch.range)?)
    }

    fn start_command(&self, key: &[u8], payload: &[u8]) -> Result<Wait, WriteError> {
        let len = payload.len() + COMMAND_HEAD_BYTES;
        if len > BATCH_BYTES_MAX {
            return Err(CommandError::BatchTooLarge(len).into());
        }
        let (shard, range_epoch) = self.locate(key);
        let command = [&range_epoch.to_le_bytes()[..], payload].concat();
        self.start_write(shard, command.into())
    }

    fn start_write(&self, shard: ShardId, command: Bytes) -> Result<Wait, WriteError> {
        self.post(Request::Write { shard, command }).map_err(WriteError::from_refusal)
    }

    /// A get on this thread; `None` = ask the core.
    fn get_here(&self, key: &[u8]) -> Option<Option<Versioned>> {
        if key.is_empty() {
            return None;
        }
        let Backend::Node(shared) = &self.backend else { return None };
        shared.cells.get(self.locate(key), key, self.consistency, clock::now)
    }

    fn start_get(&self, key: &[u8]) -> Result<Wait, ReadError> {
        match key.len() {
            0 => return Err(CommandError::EmptyKey.into()),
            len if len > KEY_BYTES_MAX => return Err(CommandError::KeyTooLong(len).into()),
            _ => {}
        }
        let query = Query::Get { key: Bytes::copy_from_slice(key) };
        let (shard, range_epoch) = self.locate(key);
        self.post(self.read(shard, range_epoch, query)).map_err(ReadError::from_refusal)
    }

    /// A read of this client's consistency.
    pub(crate) fn read(&self, shard: ShardId, range_epoch: u64, query: Query) -> Request {
        Request::Read { shard, range_epoch, query, consistency: self.consistency }
    }

    fn post(&self, request: Request) -> Started {
        self.post_by(request, self.deadline())
    }

    pub(crate) fn post_by(&self, request: Request, deadline: Nanos) -> Started {
        let slot = Slot::new();
        match &self.backend {
            Backend::Node(shared) => shared.post(request, deadline, deadline, slot.clone())?,
            Backend::Remote(remote) => remote.post(request, deadline, slot.clone())?,
        }
        Ok(Wait { slot, deadline })
    }
}

fn decide_write(answer: Answer) -> Result<WriteOutcome, WriteError> {
    match answer {
        Answer::Written { version } => Ok(WriteOutcome::Written { version }),
        Answer::ConditionFailed { condition } => Ok(WriteOutcome::ConditionFailed { condition }),
        other => Err(failure(other, WriteError::from_refusal, WriteError::OutcomeUnknown)),
    }
}

fn decide_unconditional(answer: Answer) -> Result<u64, WriteError> {
    match decide_write(answer)? {
        WriteOutcome::Written { version } => Ok(version),
        // It had none: a faulty peer made that up.
        WriteOutcome::ConditionFailed { .. } => Err(WriteError::OutcomeUnknown(UnknownReason::BadAnswer)),
    }
}

fn decide_transfer(answer: Answer) -> Result<(), TransferError> {
    match answer {
        Answer::Done => Ok(()),
        other => Err(failure(other, TransferError::from_refusal, TransferError::OutcomeUnknown)),
    }
}

fn decide_change(answer: Answer) -> Result<(), WriteError> {
    match answer {
        Answer::Done => Ok(()),
        other => Err(failure(other, WriteError::from_refusal, WriteError::OutcomeUnknown)),
    }
}

fn decide_get(answer: Answer) -> Result<Option<Versioned>, ReadError> {
    match answer {
        Answer::Value(value) => Ok(value),
        other => Err(read_failure(other)),
    }
}

/// Why a read has no result.
pub(crate) fn read_failure(answer: Answer) -> ReadError {
    failure(answer, ReadError::from_refusal, ReadError::from_unknown)
}

/// The error that an answer is which isn't what was asked for.
fn failure<E>(answer: Answer, refused: fn(Refusal) -> E, unknown: fn(UnknownReason) -> E) -> E {
    match answer {
        Answer::Refused(refusal) => refused(refusal),
        Answer::Unknown(reason) => unknown(reason),
        // Checked where a peer's answer comes in; a caller's thread is the last place to stop at one.
        _ => unknown(UnknownReason::BadAnswer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_shard::request::Rest;
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
        let rows = || Answer::Rows { rows: vec![row("a")], rest: Rest::Nothing };
        let unknown = WriteError::OutcomeUnknown(UnknownReason::BadAnswer);
        assert!(!unknown.is_surely_not_done());
        for answer in [rows(), Answer::Value(None), Answer::Done] {
            assert_eq!(decide_write(answer.clone()), Err(unknown.clone()), "{answer:?}");
        }
        assert_eq!(decide_unconditional(Answer::ConditionFailed { condition: 0 }), Err(unknown.clone()));
        for answer in [rows(), Answer::Written { version: 1 }, Answer::Done] {
            assert_eq!(
                decide_get(answer.clone()),
                Err(ReadError::from_unknown(UnknownReason::BadAnswer)),
                "{answer:?}"
            );
        }
        let (shard, to) = (decide_change(Answer::Value(None)), decide_transfer(Answer::Value(None)));
        let bad = UnknownReason::BadAnswer;
        assert_eq!((shard, to), (Err(unknown), Err(TransferError::OutcomeUnknown(bad))));
    }

    #[test]
    fn a_read_that_nobody_answered_says_why() {
        let read = |reason| decide_get(Answer::Unknown(reason)).expect_err("it is no answer");
        assert_eq!(read(UnknownReason::DeadlinePassed), ReadError::TimedOut);
        for reason in [UnknownReason::ShuttingDown, UnknownReason::Disconnected] {
            assert!(matches!(read(reason), ReadError::Unavailable(_)), "{reason:?} is no matter of time");
        }
    }
}
