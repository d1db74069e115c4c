//! What a leader knows of one follower, and how it may feed it (thesis §10.2.1).
//!
//! - *Probe*: where the logs agree is a guess. One append at a time, until one is accepted.
//! - *Replicate*: the logs agree up to `next - 1`, if nothing got lost. Appends are pipelined without
//!   waiting, within a window in messages and in bytes.
//! - *Snapshot*: the next entry is no longer in the log; a transfer runs in the layer above.
//!
//! Invariant: `matched < next`; `matched` never falls within a term.

use crate::config::Config;
use crate::freshness::Stamps;
use crate::types::{Index, Nanos, ReplicaId};
use std::collections::VecDeque;

/// One follower, as its leader sees it.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Who it is.
    pub(crate) id: ReplicaId,
    /// Highest index known to be durable there and equal to the leader's.
    pub(crate) matched: Index,
    /// The next entry to send. Probe: a guess. Replicate: right after what was sent. Snapshot: not
    /// used.
    pub(crate) next: Index,
    /// How it may be fed.
    pub(crate) feed: Feed,
    /// When a message of this term last came from it (or the leader's start).
    pub(crate) heard_at: Nanos,
    /// It has answered since this replica leads, or was woken.
    pub(crate) has_answered: bool,
    /// When anything that proves a live leader was last sent to it.
    pub(crate) sent_at: Nanos,
    /// The newest ReadIndex round it has confirmed.
    pub(crate) read_round: u64,
    /// The highest commit index that was told to it.
    pub(crate) told_commit: Index,
    /// The stamps it has sent, to be echoed back to it.
    pub(crate) stamps: Stamps,
    /// When the newest message of this term that it has answered was sent; 0 = it has answered none.
    pub(crate) answered_at: Nanos,
    /// Until when, by our clock, it surely helps to elect nobody else; 0 = no promise (`lease.rs`).
    pub(crate) promised_until: Nanos,
    /// No snapshot transfer starts before this time (back-off after a failed one).
    pub(crate) snapshot_not_before: Nanos,
    /// It has no room for commands; it is asked again from this time on, without any.
    pub(crate) full_until: Option<Nanos>,
}

/// How a follower is fed, with what only that state has.
#[derive(Debug)]
pub(crate) enum Feed {
    /// One append at a time.
    Probe {
        /// When the outstanding probe left; `None` if one may leave now.
        sent_at: Option<Nanos>,
        /// The last probe went unanswered: the next one carries no entries.
        bare: bool,
    },
    /// Pipelined.
    Replicate {
        /// Appends with entries that are not acknowledged yet.
        window: Window,
        /// When `matched` last advanced, or something was last sent to find out why it doesn't.
        progressed_at: Nanos,
        /// Nothing was acknowledged for too long: an empty append has to ask.
        nudge: bool,
    },
    /// A snapshot transfer was asked for.
    Snapshot,
}

/// How a follower is fed; see [`crate::PeerStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedState {
    /// Where the logs agree is not known: one append at a time.
    Probe,
    /// Appends are pipelined.
    Replicate,
    /// Waits for a snapshot transfer.
    Snapshot,
}

/// Appends in flight to one follower, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Window {
    appends: VecDeque<(Index, usize)>,
    bytes: usize,
}

impl Window {
    /// Notes an append whose last entry is `last`.
    pub(crate) fn push(&mut self, last: Index, bytes: usize) {
        let newest = self.appends.back().map_or(0, |&(newest, _)| newest);
        assert!(newest < last, "append up to {last} while one up to {newest} is in flight");
        self.appends.push_back((last, bytes));
        self.bytes += bytes;
    }

    /// Everything up to `matched` is acknowledged.
    pub(crate) fn free(&mut self, matched: Index) {
        while let Some(&(last, bytes)) = self.appends.front() {
            if last > matched {
                break;
            }
            self.appends.pop_front();
            self.bytes -= bytes;
        }
    }

    /// Whether no further append may leave. The bytes may be exceeded by one append, so that one of
    /// any size is always admitted to an empty window.
    pub(crate) fn is_full(&self, config: &Config) -> bool {
        self.appends.len() >= config.inflight_messages_max || self.bytes >= config.inflight_bytes_max
    }

    /// Messages and bytes in flight.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        (self.appends.len(), self.bytes)
    }
}

impl Progress {
    /// A follower of which nothing is known yet; the log ends before `next`.
    pub(crate) fn new(id: ReplicaId, next: Index, now: Nanos) -> Self {
        Self {
            id,
            matched: 0,
            next,
            feed: Feed::Probe { sent_at: None, bare: false },
            heard_at: now,
            has_answered: false,
            sent_at: 0,
            read_round: 0,
            told_commit: 0,
            stamps: Stamps::NONE,
            answered_at: 0,
            promised_until: 0,
            snapshot_not_before: 0,
            full_until: None,
        }
    }

    /// Back to one append at a time, from `next` on.
    pub(crate) fn become_probe(&mut self, next: Index) {
        assert!(next > self.matched, "{} probes at {next}, not after {}", self.id, self.matched);
        self.next = next;
        self.feed = Feed::Probe { sent_at: None, bare: false };
    }

    /// The logs agree up to `matched`: from here on appends are pipelined.
    pub(crate) fn become_replicate(&mut self, now: Nanos) {
        assert!(!matches!(self.feed, Feed::Replicate { .. }), "{} is in Replicate already", self.id);
        self.next = self.matched + 1;
        self.feed = Feed::Replicate { window: Window::default(), progressed_at: now, nudge: false };
    }

    /// The next entry is no longer in the log.
    pub(crate) fn become_snapshot(&mut self) {
        assert!(matches!(self.feed, Feed::Probe { .. }), "{} goes to Snapshot only from Probe", self.id);
        self.feed = Feed::Snapshot;
    }

    /// An append with entries up to `last` left, in Replicate.
    pub(crate) fn sent_entries(&mut self, last: Index, bytes: usize, now: Nanos) {
        assert!(last >= self.next, "{}: sent up to {last}, but {} was next", self.id, self.next);
        let Feed::Replicate { window, progressed_at, .. } = &mut self.feed else { return };
        if window.appends.is_empty() {
            *progressed_at = now;
        }
        window.push(last, bytes);
        self.next = last + 1;
    }

    /// The follower acknowledged `matched`; the leader's log starts at `first_index`. Returns whether
    /// that is news.
    pub(crate) fn accepted(&mut self, matched: Index, first_index: Index, now: Nanos) -> bool {
        let advanced = matched > self.matched;
        self.matched = self.matched.max(matched);
        self.full_until = None;
        match &mut self.feed {
            // An ack of something older than the probe says nothing about the probe.
            Feed::Probe { .. } if matched + 1 >= self.next => self.become_replicate(now),
            Feed::Snapshot if matched + 1 >= first_index => {
                self.become_probe(self.matched + 1);
                self.become_replicate(now);
            }
            Feed::Replicate { window, progressed_at, .. } => {
                window.free(matched);
                if advanced {
                    *progressed_at = now;
                }
            }
            Feed::Probe { .. } | Feed::Snapshot => {}
        }
        self.next = self.next.max(self.matched + 1);
        advanced
    }

    /// The follower acknowledged `matched`, and has no room for commands: what was sent since is lost, and it is
    /// asked again after `pause`, or at once if it gets on. Returns whether `matched` is news.
    pub(crate) fn refused(&mut self, matched: Index, now: Nanos, pause: Nanos) -> bool {
        let advanced = matched > self.matched;
        self.matched = self.matched.max(matched);
        if matches!(self.feed, Feed::Snapshot) {
            self.next = self.next.max(self.matched + 1);
        } else {
            self.become_probe(self.matched + 1);
        }
        self.full_until = Some(if advanced { now } else { now.saturating_add(pause) });
        advanced
    }

    /// Whether a rejection of an append at `prev_index` is about what is believed now: not one that
    /// was overtaken by a later probe or ack.
    pub(crate) fn rejection_is_current(&self, prev_index: Index) -> bool {
        prev_index > self.matched
            && match &self.feed {
                Feed::Probe { .. } => prev_index + 1 == self.next,
                Feed::Replicate { .. } => prev_index < self.next,
                Feed::Snapshot => false,
            }
    }

    /// The follower lives. If what was sent to it went unanswered for `patience`, something got lost:
    /// allows another probe, or an empty append that makes it accept or reject. Returns whether
    /// there is something to send.
    pub(crate) fn alive(&mut self, now: Nanos, patience: Nanos) -> bool {
        let overdue = |since: Nanos| now.saturating_sub(since) >= patience;
        match &mut self.feed {
            Feed::Probe { sent_at: None, .. } => true,
            Feed::Probe { sent_at: Some(since), .. } if overdue(*since) => {
                self.feed = Feed::Probe { sent_at: None, bare: true };
                true
            }
            Feed::Replicate { progressed_at, nudge, .. }
                if self.matched + 1 < self.next && overdue(*progressed_at) =>
            {
                *progressed_at = now;
                *nudge = true;
                true
            }
            _ => false,
        }
    }

    /// Whether it holds all up to `last`, and knows it to be committed.
    pub(crate) fn is_level(&self, last: Index) -> bool {
        let is_fed = matches!(self.feed, Feed::Replicate { .. });
        is_fed && self.matched == last && self.told_commit == last
    }

    /// The kind of state it is in.
    pub(crate) fn feed_state(&self) -> FeedState {
        match self.feed {
            Feed::Probe { .. } => FeedState::Probe,
            Feed::Replicate { .. } => FeedState::Replicate,
            Feed::Snapshot => FeedState::Snapshot,
        }
    }

    /// Messages and bytes in flight.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        match &self.feed {
            Feed::Probe { sent_at, .. } => (usize::from(sent_at.is_some()), 0),
            Feed::Replicate { window, .. } => window.in_flight(),
            Feed::Snapshot => (0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress::new(ReplicaId::new(2).expect("not 0"), 10, 0)
    }

    #[test]
    fn the_window_admits_one_append_of_any_size() {
        let config = Config { inflight_bytes_max: 10, inflight_messages_max: 2, ..Config::default() };
        let mut window = Window::default();
        assert!(!window.is_full(&config));
        window.push(5, 100);
        assert!(window.is_full(&config));
        window.free(4);
        assert!(window.is_full(&config));
        window.free(5);
        window.push(6, 1);
        assert!(!window.is_full(&config));
        window.push(7, 1);
        assert!(window.is_full(&config));
    }

    #[test]
    fn only_an_ack_of_the_probe_ends_probing() {
        let mut progress = progress();
        progress.accepted(3, 1, 0);
        assert_eq!((progress.feed_state(), progress.next), (FeedState::Probe, 10));
        progress.accepted(9, 1, 0);
        assert_eq!((progress.feed_state(), progress.next), (FeedState::Replicate, 10));
    }

    #[test]
    fn stale_rejections_are_not_current() {
        let mut progress = progress();
        assert!(progress.rejection_is_current(9));
        assert!(!progress.rejection_is_current(8));
        progress.accepted(9, 1, 0);
        progress.next = 20;
        assert!(!progress.rejection_is_current(9));
        assert!(progress.rejection_is_current(12));
    }
}
