//! What a core counts. Written by the core, read by anybody; no figure steers anything.

use floe_shard::{NodeId, ShardId};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// One core's counters. All only grow, apart from those whose text says "now".
        #[derive(Default)]
        pub struct CoreMetrics {
            $($(#[doc = $doc])* pub $name: AtomicU64,)*
            /// Nanoseconds from request to answer, as the core sees it.
            pub request_latency: Latency,
            /// Nanoseconds from the issue of a WAL write to its completion.
            pub wal_write_latency: Latency,
            /// How long its turns took.
            pub turn_lengths: TurnLengths,
            /// The leading node per shard as seen from here.
            pub leaders: Mutex<BTreeMap<ShardId, Option<NodeId>>>,
        }

        /// Counters of all cores of a node added up at one moment.
        #[derive(Clone, Debug)]
        #[non_exhaustive]
        pub struct Metrics {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// Nanoseconds from request to answer, as the cores see it.
            pub request_latency: Histogram<u64>,
            /// Nanoseconds from the issue of a WAL write to its completion.
            pub wal_write_latency: Histogram<u64>,
            /// Nanoseconds that the durable store kept a core with a command, of every eighth command; empty with another store.
            pub apply_latency: Histogram<u64>,
            /// How long each core's turns took, in order of the cores.
            pub turn_lengths: Vec<TurnsCounted>,
        }

        impl Metrics {
            /// Every number with its name and its meaning.
            pub fn counters(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($doc),*).trim_ascii(), self.$name),)*]
            }

            /// Whether a number with this meaning can fall again.
            pub fn is_gauge(meaning: &str) -> bool {
                meaning.ends_with(" now.")
            }

            /// Adds the cores up.
            pub fn sum<'a>(cores: impl IntoIterator<Item = &'a CoreMetrics>) -> Self {
                let mut sum = Self {
                    $($name: 0,)*
                    request_latency: new_histogram(),
                    wal_write_latency: new_histogram(),
                    apply_latency: new_histogram(),
                    turn_lengths: Vec::new(),
                };
                for core in cores {
                    $(sum.$name += core.$name.load(Ordering::Relaxed);)*
                    core.request_latency.add_to(&mut sum.request_latency);
                    core.wal_write_latency.add_to(&mut sum.wal_write_latency);
                    sum.turn_lengths.push(core.turn_lengths.read());
                }
                sum
            }
        }
    };
}

counters! {
    /// Requests of this node's clients taken in.
    requests,
    /// Requests under way now.
    requests_pending,
    /// Requests refused because a bound was reached.
    busy,
    /// Requests forwarded to another node.
    forwarded,
    /// Commands proposed to the replicas that lead here.
    proposals,
    /// Entries that became committed on this node's replicas.
    commits,
    /// Entries applied to this node's state machines.
    applied,
    /// Elections that replicas of this node began.
    elections,
    /// Leaders' dumps installed here, by replicas that fell behind the log.
    dumps_installed,
    /// Flushes put off by a second because tables waited for compaction.
    flushes_postponed,
    /// Linearizable reads served.
    reads,
    /// ReadIndex rounds that confirmed them.
    read_rounds,
    /// How often a core stopped leading because its log's disk didn't answer.
    wal_stuck,
    /// WAL frames written: each is one synced write.
    wal_writes,
    /// Bytes of those frames.
    wal_bytes,
    /// Log entries in them.
    wal_entries,
    /// Bytes that wait for their WAL write, now.
    wal_queued_bytes,
    /// Bytes of segment files, now.
    wal_disk_bytes,
    /// Bytes of shards' logs in memory, now.
    log_memory_bytes,
    /// Bytes of what isn't in tables yet, and of what views of it hold, now.
    write_buffer_bytes,
    /// Frames sent to peers.
    frames_sent,
    /// Bytes of those frames.
    bytes_sent,
    /// Frames received from peers.
    frames_received,
    /// Raft messages of peers that no working replica sends: one of them is faulty.
    messages_refused,
    /// Peers' answers to forwarded requests that don't fit the request: one of them is faulty.
    answers_refused,
    /// Frames dropped because a peer's send queue was full.
    frames_dropped,
    /// Turns of the worker.
    turns,
}

/// Upper bounds of the buckets in which turns are counted, in nanoseconds; one more holds what is longer. By the defaults a
/// leader should be heard every 30 ms, and is replaced after 150 to 300 ms.
pub const TURN_BOUNDS_NS: [u64; 9] = [
    100_000,
    1_000_000,
    3_000_000,
    10_000_000,
    30_000_000,
    100_000_000,
    150_000_000,
    300_000_000,
    1_000_000_000,
];
const TURN_BUCKETS: usize = TURN_BOUNDS_NS.len() + 1;

/// How long a core's turns took: from when it began to look at what had come in until it could look again or went to
/// sleep, in which time it hears nobody. Fixed buckets, so that readers can come as they like and take differences.
#[derive(Default)]
pub struct TurnLengths {
    counts: [AtomicU64; TURN_BUCKETS],
    sum_ns: AtomicU64,
}

/// What [`TurnLengths`] had counted at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TurnsCounted {
    /// Turns no longer than each of [`TURN_BOUNDS_NS`] and longer than the bound before; the last: all others.
    pub counts: [u64; TURN_BUCKETS],
    /// How long all of them took, in nanoseconds.
    pub sum_ns: u64,
}

impl TurnLengths {
    /// Counts a turn. Only the core does.
    pub fn record(&self, ns: u64) {
        add(&self.counts[TURN_BOUNDS_NS.partition_point(|&bound| bound < ns)], 1);
        add(&self.sum_ns, ns);
    }

    /// What has been counted.
    pub fn read(&self) -> TurnsCounted {
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        TurnsCounted { counts, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

/// A latency histogram, 1 us to 100 s at two digits.
pub struct Latency(Mutex<Histogram<u64>>);

impl Default for Latency {
    fn default() -> Self {
        Self(Mutex::new(new_histogram()))
    }
}

impl Latency {
    /// Records many values under one lock.
    pub fn record_all(&self, nanos: impl IntoIterator<Item = u64>) {
        let mut histogram = self.0.lock();
        for value in nanos {
            histogram.saturating_record(value);
        }
    }

    pub(crate) fn add_to(&self, sum: &mut Histogram<u64>) {
        sum.add(&*self.0.lock()).expect("all histograms have the same bounds");
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 100_000_000_000, 2).expect("the bounds are constants in order")
}

/// Adds to a counter that only this core writes.
pub fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

/// Sets a counter that only this core writes.
pub fn set(counter: &AtomicU64, to: u64) {
    counter.store(to, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_as_long_as_a_bound_is_counted_below_it_and_a_longer_one_above() {
        for (at, bound) in TURN_BOUNDS_NS.into_iter().enumerate() {
            let lengths = TurnLengths::default();
            lengths.record(bound);
            lengths.record(bound + 1);
            let mut counted = TurnsCounted { sum_ns: 2 * bound + 1, ..TurnsCounted::default() };
            (counted.counts[at], counted.counts[at + 1]) = (1, 1);
            assert_eq!(lengths.read(), counted);
        }
        assert!(TURN_BOUNDS_NS.is_sorted());
    }
}
