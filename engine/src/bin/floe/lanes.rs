//! Rows on their way into a cluster, in batches: a lane per shard, in which one batch is under way while the next one fills.
//!
//! What a row costs beside its bytes is thus shared by hundreds of them. And since the rows of a key are of one shard, they
//! are written in the order in which they came, whatever has to be tried again: a batch is, until it is acknowledged.
//! That is harmless, as it would write the same again. Within a batch rows are sorted: nodes insert them faster then.

use bytes::Bytes;
use floe::{Call, Client, ShardId, WriteBatch, WriteError, WriteOutcome};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Bytes of a batch that isn't worth waiting for more.
const BATCH_BYTES_MIN: usize = 64 << 10;
/// Bytes beyond which nothing is added to a batch; more would hold up the shard's other writers.
const BATCH_BYTES_MAX: usize = 512 << 10;
const _: () = assert!(BATCH_BYTES_MAX + floe::VALUE_BYTES_MAX + floe::KEY_BYTES_MAX < floe::BATCH_BYTES_MAX);
/// What a row takes besides its bytes, on the wire as in memory, roughly.
const ROW_BYTES: usize = 64;
/// A pause before a batch is tried a third time, or again after that.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// All lanes of an import.
pub struct Lanes {
    client: Client,
    patience: Duration,
    lanes: BTreeMap<ShardId, Lane>,
    /// Of rows that are not acknowledged.
    bytes: usize,
    /// Rows that were acknowledged and not taken yet.
    done: Vec<u64>,
    /// Why something was tried again, if that was so.
    trouble: Option<String>,
}

#[derive(Default)]
struct Lane {
    open: Open,
    state: State,
}

/// A batch that fills.
#[derive(Default)]
struct Open {
    /// Keys and values, one after the other: memory of its own for each would cost more than the rest.
    text: Vec<u8>,
    /// Where in `text` a row's key begins, its value begins, and its value ends.
    rows: Vec<(usize, usize, usize)>,
    numbers: Vec<u64>,
    bytes: usize,
}

/// One that was sent.
struct Batch {
    writes: WriteBatch,
    numbers: Vec<u64>,
    bytes: usize,
}

impl Open {
    /// Returns how many bytes it counts for.
    fn add(&mut self, number: u64, key: &[u8], value: &[u8]) -> usize {
        let at = self.text.len();
        self.text.extend_from_slice(key);
        self.text.extend_from_slice(value);
        self.rows.push((at, at + key.len(), self.text.len()));
        self.numbers.push(number);
        let bytes = key.len() + value.len() + ROW_BYTES;
        self.bytes += bytes;
        bytes
    }

    fn close(mut self) -> Batch {
        let text = Bytes::from(self.text);
        // Equal keys keep their order.
        self.rows.sort_by_key(|&(key, value, _)| &text[key..value]);
        let mut writes = WriteBatch::new();
        for (key, value, end) in self.rows {
            writes.put(text.slice(key..value), text.slice(value..end));
        }
        Batch { writes, numbers: self.numbers, bytes: self.bytes }
    }
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    UnderWay {
        batch: Batch,
        call: Call<WriteOutcome, WriteError>,
        /// Since when it has failed.
        failing: Option<Instant>,
    },
    Failed {
        batch: Batch,
        since: Instant,
        again_at: Instant,
    },
}

/// A row that can't be written.
pub struct GivenUp {
    /// The first one of its batch.
    pub row: u64,
    pub reason: String,
}

impl Lanes {
    /// Nothing is tried again for longer than `patience`.
    pub fn new(client: Client, patience: Duration) -> Self {
        Self { client, patience, lanes: BTreeMap::new(), bytes: 0, done: Vec::new(), trouble: None }
    }

    /// Bytes of rows that are not acknowledged.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Numbers of rows that have been acknowledged since it was asked last.
    pub fn take_done(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.done)
    }

    /// Why something was tried again since it was asked last.
    pub fn take_trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Adds a row, within the limits of keys and values; tells its shard. Waits if the shard's lane is full.
    pub fn add(&mut self, row: u64, key: &[u8], value: &[u8]) -> Result<ShardId, GivenUp> {
        let shard = self.client.shard_of(key);
        while self.lanes.get(&shard).is_some_and(|lane| lane.open.bytes >= BATCH_BYTES_MAX) {
            self.await_lane(shard)?;
        }
        let lane = self.lanes.entry(shard).or_default();
        self.bytes += lane.open.add(row, key, value);
        if lane.open.bytes >= BATCH_BYTES_MIN {
            self.advance(shard, BATCH_BYTES_MIN)?;
        }
        Ok(shard)
    }

    /// Waits until something has come of what is under way in a lane; meanwhile all others are sent what waits for them.
    pub fn await_lane(&mut self, shard: ShardId) -> Result<(), GivenUp> {
        let shards: Vec<_> = self.lanes.keys().copied().collect();
        shards.into_iter().try_for_each(|shard| self.advance(shard, 1))?;
        let lane = self.lanes.entry(shard).or_default();
        match std::mem::take(&mut lane.state) {
            State::Idle => Ok(()),
            State::UnderWay { batch, call, failing } => {
                let outcome = call.wait();
                self.settle(shard, batch, failing, outcome)
            }
            State::Failed { batch, since, again_at } => {
                lane.state = State::Failed { batch, since, again_at };
                std::thread::sleep(again_at.saturating_duration_since(Instant::now()));
                Ok(())
            }
        }
    }

    /// Does without waiting what can be done in a lane, and sends the open batch if it has so many bytes.
    fn advance(&mut self, shard: ShardId, bytes_min: usize) -> Result<(), GivenUp> {
        let lane = self.lanes.entry(shard).or_default();
        match std::mem::take(&mut lane.state) {
            State::Idle => {}
            State::UnderWay { batch, mut call, failing } => {
                match Pin::new(&mut call).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(outcome) => self.settle(shard, batch, failing, outcome)?,
                    Poll::Pending => lane.state = State::UnderWay { batch, call, failing },
                }
            }
            State::Failed { batch, since, again_at } if again_at > Instant::now() => {
                lane.state = State::Failed { batch, since, again_at };
            }
            State::Failed { batch, since, .. } => {
                let call = self.client.write(&batch.writes);
                lane.state = State::UnderWay { batch, call, failing: Some(since) };
            }
        }
        let lane = self.lanes.entry(shard).or_default();
        if matches!(lane.state, State::Idle) && lane.open.bytes >= bytes_min {
            let batch = std::mem::take(&mut lane.open).close();
            let call = self.client.write(&batch.writes);
            lane.state = State::UnderWay { batch, call, failing: None };
        }
        Ok(())
    }

    /// Something came of the batch that was under way in a lane.
    fn settle(
        &mut self,
        shard: ShardId,
        batch: Batch,
        failing: Option<Instant>,
        outcome: Result<WriteOutcome, WriteError>,
    ) -> Result<(), GivenUp> {
        let error = match outcome {
            Ok(_) => {
                self.bytes -= batch.bytes;
                self.done.extend(batch.numbers);
                return Ok(());
            }
            Err(error) => error,
        };
        let (now, row) = (Instant::now(), batch.numbers[0]);
        let since = failing.unwrap_or(now);
        let is_hopeless = matches!(error, WriteError::Invalid(_)) || since + self.patience < now;
        let again_at = if failing.is_some() { now + RETRY_AFTER } else { now };
        self.lanes.entry(shard).or_default().state = State::Failed { batch, since, again_at };
        if is_hopeless {
            return Err(GivenUp { row, reason: error.to_string() });
        }
        self.trouble = Some(error.to_string());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe::{Config, Engine};

    fn all(lanes: &mut Lanes, shard: ShardId) -> Vec<u64> {
        while lanes.bytes() > 0 {
            assert!(lanes.await_lane(shard).is_ok());
        }
        lanes.take_done()
    }

    #[test]
    fn rows_of_a_key_are_written_in_order_over_many_batches() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(Config::embedded(dir.path())).unwrap();
        let mut lanes = Lanes::new(engine.client(), Duration::from_secs(30));
        let value = |row: u64| [&row.to_le_bytes()[..], &[7; 5000]].concat();
        let rows = 400;
        let mut shard = ShardId(0);
        for row in 0..rows {
            assert!(
                lanes.add(row, format!("k{}", row % 3).as_bytes(), &value(row)).map(|at| shard = at).is_ok()
            );
        }
        assert!(lanes.bytes() <= 2 * BATCH_BYTES_MAX + value(0).len() * 3, "{}", lanes.bytes());
        let mut done = all(&mut lanes, shard);
        assert!(done.is_sorted(), "one shard, one batch after the other");
        done.dedup();
        assert_eq!(done.len() as u64, rows);
        for last in rows - 3..rows {
            let found = engine.client().get_blocking(format!("k{}", last % 3)).unwrap();
            assert_eq!(found.unwrap(), value(last));
        }
    }

    #[test]
    fn a_batch_that_cannot_be_written_is_tried_until_patience_ends_and_named_by_its_first_row() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(Config::embedded(dir.path())).unwrap();
        let client = engine.client();
        engine.shutdown();
        let mut lanes = Lanes::new(client, Duration::from_millis(200));
        let begun = Instant::now();
        let given_up = loop {
            let shard = match lanes.add(41, b"key", &[1; BATCH_BYTES_MIN]) {
                Ok(shard) => shard,
                Err(given_up) => break given_up,
            };
            if let Err(given_up) = lanes.await_lane(shard) {
                break given_up;
            }
        };
        assert_eq!(given_up.row, 41);
        assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
        assert!(lanes.take_done().is_empty() && lanes.take_trouble().is_some());
    }
}
