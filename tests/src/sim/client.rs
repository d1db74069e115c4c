//! Closed-loop clients: each has one operation under way, on a small key space, to a drawn node. What they
//! ask and learn is the history that the checkers judge.
//!
//! A refused operation surely had no effect and is forgotten; an operation without an outcome stays open
//! in the history. Every value written is unique and says which write it came from. Who doesn't learn the outcome of a
//! write may try again, as applications do, by another write: both may come to be. Some ask the wrong shard,
//! or by an outdated epoch, as with an old map, and must be told so.

use self::scans::Page;
use crate::checker::Violation;
use crate::checker::durability::{Condition, Durability, Intent, Outcome, Stored};
use crate::checker::raft_safety::RaftSafety;
use crate::checker::snapshots::{Seen, Snapshots};
use crate::random::Random;
use crate::sim::clock::{MS, SEC};
use crate::sim::plan::Load;
use bytes::Bytes;
use floe_checker::linearizability::{Action, Operation};
use floe_raft::Nanos;
use floe_shard::{
    Answer, Consistency, Descriptor, MemberChange, NodeId, Query, Request, ShardId, ShardMap, Versioned,
    WriteBatch,
};
use std::collections::BTreeMap;
use std::time::Duration;

mod scans;
mod strays;

/// A client's number.
pub type ClientId = u32;

/// Range version of the pre-split shards' descriptors.
const RANGE_EPOCH: u64 = 1;

/// How long after its deadline a request is surely dropped: what clocks drift and queues delay.
const SLACK_NS: Nanos = 500 * MS;

/// An operation under way.
#[derive(Clone, Debug)]
enum Doing {
    Write {
        intent: Intent,
        expected: Option<Option<u64>>,
        command: u64,
    },
    Get {
        key: u32,
        consistency: Consistency,
    },
    Scan(Page),
    /// Asked of a shard that doesn't serve the key, or not by this epoch; a write has a command.
    Stray {
        command: Option<u64>,
    },
    Transfer,
    Members,
}

#[derive(Clone, Debug)]
struct Pending {
    called: Nanos,
    patience_ns: Nanos,
    shard: ShardId,
    doing: Doing,
}

#[derive(Debug, Default)]
struct Client {
    pending: Option<Pending>,
    /// What it last saw of each key; `None` = that it doesn't exist.
    seen: BTreeMap<u32, Option<Stored>>,
    /// The scan that it goes on with.
    scan: Option<(ShardId, Page)>,
    /// What its scan has seen so far.
    scanned: Seen,
    /// A write whose outcome it doesn't know, and will try again; with what must be there before, if it is conditional.
    again: Option<(Intent, Option<Option<u64>>)>,
}

/// What a client sends.
#[derive(Debug)]
pub struct Call {
    /// The request.
    pub request: Request,
    /// How long the client waits for the answer.
    pub patience_ns: Nanos,
}

/// What operations came to, over all clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Begun, bursts left out.
    pub begun: u64,
    /// Begun in bursts.
    pub burst: u64,
    /// Reads answered.
    pub read: u64,
    /// Writes applied.
    pub written: u64,
    /// Conditions that failed.
    pub failed_conditions: u64,
    /// Refused.
    pub refused: u64,
    /// Of these, because whoever was asked had too much to do.
    pub busy: u64,
    /// Without an outcome.
    pub unknown: u64,
    /// Pages of scans after which another is asked for.
    pub pages: u64,
    /// Changes of members that were carried out.
    pub changed_members: u64,
    /// Writes tried again after an unknown outcome.
    pub retried: u64,
    /// Requests to the wrong shard, or by a wrong epoch, that were refused for it.
    pub rerouted: u64,
}

/// All clients, the keys, and the history.
#[derive(Debug)]
pub struct Clients {
    random: Random,
    load: Load,
    clients: BTreeMap<ClientId, Client>,
    /// Keys in order, each with its shard.
    keys: Vec<(Bytes, ShardId)>,
    /// Writers of values: key, command.
    values: BTreeMap<u64, (u32, u64)>,
    value_next: u64,
    /// Until when a write whose outcome isn't known may still be on its way to a log.
    pub open_until: Nanos,
    /// Per key, what was asked and answered.
    pub history: BTreeMap<u32, Vec<Operation>>,
    /// What every client learned about writes.
    pub durability: Durability,
    /// What scans saw.
    pub snapshots: Snapshots,
    /// Sums.
    pub counts: Counts,
}

impl Clients {
    /// Clients of these shards.
    pub fn new(random: Random, load: Load, shards: &[Descriptor]) -> Self {
        let map = ShardMap::new(shards.to_vec());
        let key = |number: u32| {
            let prefix = (u64::from(number) * 65_536 / u64::from(load.keys)) as u16;
            let key = [&prefix.to_be_bytes()[..], format!("k{number}").as_bytes()].concat();
            let shard = map.locate(&key).expect("the shards cover every key").shard;
            (Bytes::from(key), shard)
        };
        Self {
            random,
            clients: BTreeMap::new(),
            keys: (0..load.keys).map(key).collect(),
            load,
            values: BTreeMap::new(),
            value_next: 0,
            open_until: 0,
            history: BTreeMap::new(),
            durability: Durability::default(),
            snapshots: Snapshots::default(),
            counts: Counts::default(),
        }
    }

    /// How many keys there are.
    pub fn keys(&self) -> u32 {
        self.keys.len() as u32
    }

    /// A key's shard.
    pub fn shard_of(&self, key: u32) -> ShardId {
        self.keys[key as usize].1
    }

    /// Whether this client waits for an answer.
    pub fn is_waiting(&self, client: ClientId) -> bool {
        self.clients.get(&client).is_some_and(|client| client.pending.is_some())
    }

    /// Clients that wait, and since when.
    pub fn waiting(&self) -> impl Iterator<Item = (ClientId, Nanos)> {
        let since = |(id, client): (&ClientId, &Client)| Some((*id, client.pending.as_ref()?.called));
        self.clients.iter().filter_map(since)
    }

    /// Time until the next operation.
    pub fn think(&mut self) -> Nanos {
        self.random.skewed(self.load.think_ns)
    }

    /// The next operation of a client that waits for nothing.
    pub fn begin(&mut self, now: Nanos, client: ClientId) -> Call {
        let state = self.clients.entry(client).or_default();
        if let Some((shard, page)) = state.scan.take() {
            return self.page(now, client, shard, page);
        }
        if let Some((intent, expected)) = state.again.take() {
            self.counts.retried += 1;
            let value = intent.value.map(|_| self.next_value());
            return self.send(now, client, Intent { value, ..intent }, expected);
        }
        let key = self.random.below(self.keys.len() as u64) as u32;
        if self.random.percent(self.load.stale_percent) {
            return self.stale(now, client, key);
        }
        match self.random.below(100) {
            0..1 => self.stray(now, client, key),
            1..24 => self.get(now, client, key),
            24..34 => self.read(now, client, key, Consistency::LinearizableLocal),
            34..38 => self.stale(now, client, key),
            38..40 => self.read(now, client, key, Consistency::ANY_AGE),
            40..44 => self.scan(now, client, key),
            44..76 => self.write(now, client, key, Condition::None, None, true),
            76..82 => self.write(now, client, key, Condition::None, None, false),
            _ => self.conditional(now, client, key),
        }
    }

    /// The only operation of a client that comes with many others: a write, as reads may pass the core by.
    pub fn begin_in_burst(&mut self, now: Nanos, client: ClientId) -> Call {
        let key = self.random.below(self.keys.len() as u64) as u32;
        let call = self.put(now, client, key);
        self.counts.begun -= 1;
        self.counts.burst += 1;
        call
    }

    /// A linearizable read of one key.
    pub fn get(&mut self, now: Nanos, client: ClientId, key: u32) -> Call {
        self.read(now, client, key, Consistency::Linearizable)
    }

    /// An unconditional write of a new value.
    pub fn put(&mut self, now: Nanos, client: ClientId, key: u32) -> Call {
        self.write(now, client, key, Condition::None, None, true)
    }

    /// Asks for another leader.
    pub fn transfer(&mut self, now: Nanos, client: ClientId, shard: ShardId, to: NodeId) -> Call {
        self.call(now, client, shard, Doing::Transfer, Request::TransferLeadership { shard, to })
    }

    /// Asks for other members.
    pub fn change_members(
        &mut self,
        now: Nanos,
        client: ClientId,
        shard: ShardId,
        changes: Vec<MemberChange>,
        force: bool,
    ) -> Call {
        let request = Request::ChangeMembers { shard, changes, force };
        self.call(now, client, shard, Doing::Members, request)
    }

    /// A read that may be a little stale.
    fn stale(&mut self, now: Nanos, client: ClientId, key: u32) -> Call {
        let max = Duration::from_millis(*self.random.pick(&[10, 80, 150, 400]));
        self.read(now, client, key, Consistency::Stale { max })
    }

    fn read(&mut self, now: Nanos, client: ClientId, key: u32, consistency: Consistency) -> Call {
        let (name, shard) = self.keys[key as usize].clone();
        let query = Query::Get { key: name };
        let request = Request::Read { shard, range_epoch: RANGE_EPOCH, query, consistency };
        self.call(now, client, shard, Doing::Get { key, consistency }, request)
    }

    fn conditional(&mut self, now: Nanos, client: ClientId, key: u32) -> Call {
        let seen = self.clients.entry(client).or_default().seen.get(&key).copied();
        let (condition, expected) = match seen {
            Some(Some((value, version))) => (Condition::Version(version), Some(value)),
            _ => (Condition::Absent, None),
        };
        let sets = self.random.percent(85);
        self.write(now, client, key, condition, Some(expected), sets)
    }

    fn write(
        &mut self,
        now: Nanos,
        client: ClientId,
        key: u32,
        condition: Condition,
        expected: Option<Option<u64>>,
        sets: bool,
    ) -> Call {
        let value = sets.then(|| self.next_value());
        self.send(now, client, Intent { key, condition, value, is_at_home: true }, expected)
    }

    /// A number that no write has used. Who tries again takes another one, too: conditions are on versions, and of two
    /// writes of one value the checker couldn't tell which of them a condition was on.
    fn next_value(&mut self) -> u64 {
        self.value_next += 1;
        self.value_next
    }

    fn send(&mut self, now: Nanos, client: ClientId, intent: Intent, expected: Option<Option<u64>>) -> Call {
        let Intent { key, condition, value, .. } = intent;
        let (name, shard) = self.keys[key as usize].clone();
        let mut batch = WriteBatch::new();
        let batch = match condition {
            Condition::None => &mut batch,
            Condition::Absent => batch.if_absent(name.clone()),
            Condition::Version(version) => batch.if_version(name.clone(), version),
        };
        let batch = match value {
            Some(value) => batch.put(name, value_bytes(value, self.load.value_bytes_max)),
            None => batch.delete(name),
        };
        let command = floe_shard::encode(batch, RANGE_EPOCH).expect("far below every limit");
        let number = self.durability.sent(shard, &command, intent);
        if let Some(value) = value {
            self.values.insert(value, (key, number));
        }
        let doing = Doing::Write { intent, expected, command: number };
        self.call(now, client, shard, doing, Request::Write { shard, command })
    }

    fn call(&mut self, now: Nanos, client: ClientId, shard: ShardId, doing: Doing, request: Request) -> Call {
        let state = self.clients.entry(client).or_default();
        assert!(state.pending.is_none(), "client {client} waits for an answer already");
        let patience_ns = *self.random.pick(&[100 * MS, SEC, 3 * SEC]);
        state.pending = Some(Pending { called: now, patience_ns, shard, doing });
        self.counts.begun += 1;
        Call { request, patience_ns }
    }

    /// A client has its answer, or (`None`) lost whom it asked. Answers whether the operation was
    /// carried out, one way or the other.
    ///
    /// # Errors
    /// An answer that can't be right.
    pub fn end(
        &mut self,
        now: Nanos,
        client: ClientId,
        answer: Option<Answer>,
        history: &RaftSafety,
    ) -> Result<bool, Violation> {
        let state = self.clients.get_mut(&client).expect("only what was begun ends");
        let pending = state.pending.take().expect("an answer ends one operation");
        self.expected_refusal(&pending, &answer)?;
        let done = matches!(
            answer,
            Some(
                Answer::Written { .. }
                    | Answer::ConditionFailed { .. }
                    | Answer::Value(_)
                    | Answer::Rows { .. }
                    | Answer::Done
            )
        );
        match &pending.doing {
            Doing::Write { .. } => self.end_write(now, client, &pending, answer, history)?,
            Doing::Get { key, consistency } => {
                if let Some(Answer::Value(value)) = answer {
                    self.saw(now, client, &pending, *key, value.as_ref(), *consistency, history)?;
                    self.counts.read += 1;
                } else if done {
                    return Err(odd(&pending, &answer));
                }
            }
            Doing::Scan(page) => match answer {
                Some(Answer::Rows { rows, rest }) => {
                    let rows = rows.into_iter().map(|row| (row.key, row.value)).collect();
                    self.end_page(now, client, pending.clone(), *page, rows, rest, history)?;
                }
                answer if done => return Err(odd(&pending, &answer)),
                _ => self.scan_ended(client, pending.shard),
            },
            Doing::Stray { .. } if done => return Err(odd(&pending, &answer)),
            Doing::Stray { command } => self.end_stray(&pending, *command, &answer, history)?,
            Doing::Transfer => {}
            Doing::Members => self.counts.changed_members += u64::from(done),
        }
        Ok(done)
    }

    fn end_write(
        &mut self,
        now: Nanos,
        client: ClientId,
        pending: &Pending,
        answer: Option<Answer>,
        history: &RaftSafety,
    ) -> Result<(), Violation> {
        let Doing::Write { intent, expected, command } = pending.doing else { return Ok(()) };
        let outcome = match &answer {
            Some(Answer::Written { version }) => Outcome::Written(*version),
            Some(Answer::ConditionFailed { condition: 0 }) if expected.is_some() => Outcome::ConditionFailed,
            Some(Answer::Refused(_)) => Outcome::Refused,
            None | Some(Answer::Unknown(_)) => Outcome::Unknown,
            _ => return Err(odd(pending, &answer)),
        };
        self.durability.answered(pending.shard, command, outcome, history)?;
        let seen = &mut self.clients.entry(client).or_default().seen;
        match outcome {
            Outcome::Written(version) => {
                self.counts.written += 1;
                seen.insert(intent.key, intent.value.map(|value| (value, version)));
            }
            Outcome::ConditionFailed => {
                self.counts.failed_conditions += 1;
                seen.remove(&intent.key);
            }
            Outcome::Refused => return Ok(()),
            Outcome::Unknown => {
                seen.remove(&intent.key);
                let again = self.random.percent(30).then_some((intent, expected));
                self.clients.entry(client).or_default().again = again;
                self.open_until = self.open_until.max(pending.called + pending.patience_ns + SLACK_NS);
            }
        }
        let action = match (expected, outcome) {
            (Some(expected), Outcome::ConditionFailed) => Action::CasFailed { expected },
            (Some(expected), _) => Action::Cas { expected, new: intent.value },
            (None, _) => Action::Write(intent.value),
        };
        let answered = (outcome != Outcome::Unknown).then_some(now);
        self.record(client, pending.called, answered, intent.key, action);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn saw(
        &mut self,
        now: Nanos,
        client: ClientId,
        pending: &Pending,
        key: u32,
        value: Option<&Versioned>,
        consistency: Consistency,
        history: &RaftSafety,
    ) -> Result<(), Violation> {
        let stored = match value {
            Some(versioned) => Some(self.stored(pending.shard, key, versioned, history)?),
            None => None,
        };
        if consistency.is_linearizable() {
            self.clients.entry(client).or_default().seen.insert(key, stored);
        }
        if consistency != Consistency::ANY_AGE {
            let action = Action::Read(stored.map(|(value, _)| value));
            // What a stale read returns was current at some moment from so long before the call on.
            let called = match consistency {
                Consistency::Stale { max } => pending.called.saturating_sub(stale_ns(max)),
                Consistency::Linearizable | Consistency::LinearizableLocal => pending.called,
            };
            self.record(client, called, Some(now), key, action);
        }
        Ok(())
    }

    /// Which write a value came from: it must be committed, whole, and of this key and version.
    fn stored(
        &mut self,
        shard: ShardId,
        key: u32,
        versioned: &Versioned,
        history: &RaftSafety,
    ) -> Result<Stored, Violation> {
        let wrong = |why: String| Violation::new("read", format!("{shard}, key {key}: {why}"));
        let Some(number) = versioned.value.first_chunk().map(|first| u64::from_le_bytes(*first)) else {
            return Err(wrong(format!("a value of {} bytes", versioned.value.len())));
        };
        let Some(&(written_to, command)) = self.values.get(&number) else {
            return Err(wrong(format!("a value {number} that nobody wrote")));
        };
        if written_to != key || versioned.value != value_bytes(number, self.load.value_bytes_max) {
            return Err(wrong(format!("value {number} of key {written_to}, or damaged")));
        }
        let version = versioned.version;
        self.durability.must_be_committed(shard, version, command, history)?;
        Ok((number, version))
    }

    fn record(&mut self, client: ClientId, called: Nanos, answered: Option<Nanos>, key: u32, action: Action) {
        let operation = Operation { client, called, answered, action };
        self.history.entry(key).or_default().push(operation);
    }

    /// What a client last saw of a key, for the final comparison.
    pub fn last_seen(&self, client: ClientId, key: u32) -> Option<Option<Stored>> {
        self.clients.get(&client)?.seen.get(&key).copied()
    }
}

fn odd(pending: &Pending, answer: &Option<Answer>) -> Violation {
    Violation::new("answer", format!("{:?} was answered with {answer:?}", pending.doing))
}

/// How old what is read may be in true time, if by the nodes' clocks it is `max` old: each of them
/// drifts by up to 0.5 %, so two differ by 1 % at most; twice that is allowed.
fn stale_ns(max: Duration) -> Nanos {
    let ns = u64::try_from(max.as_nanos()).unwrap_or(Nanos::MAX);
    ns.saturating_add(ns / 50)
}

/// The bytes of a value: its number, and a tail that can be checked.
fn value_bytes(value: u64, bytes_max: u64) -> Bytes {
    let mut bytes = value.to_le_bytes().to_vec();
    let tail = (value.wrapping_mul(0x9E37_79B9) >> 7) % bytes_max.max(1);
    bytes.resize(8 + tail as usize, value as u8);
    bytes.into()
}
