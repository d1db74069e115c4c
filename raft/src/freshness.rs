//! How old the applied state is at most: the base of reads that may be stale, within a bound.
//!
//! A follower stamps what it answers with its own clock, and its leader echoes the stamp together with the commit
//! index that followers may know: what the leader was handed to apply. Whatever had been acknowledged when the
//! stamp was made lies at or below that index: so, once that is applied here, the state is no older than the stamp. No clock is compared with another's. The rules:
//!
//! 1. A stamp is echoed only when a quorum has answered something that was sent after the stamp came in
//!    ([`Leader::led_at`]): then nobody else led when it was made. A leader that was replaced and doesn't know
//!    would otherwise vouch for what it hasn't heard of.
//! 2. No stamp is echoed before that index has reached the leader's own term: until then it may
//!    be behind what earlier leaders have acknowledged (paper §8).
//! 3. The index beside it is the whole of what may be told. A heartbeat to a follower that lags tells less, and
//!    echoes nothing.
//! 4. A stamp counts only for the incarnation that made it: the clock of the next one may begin anew. Each
//!    shifts its stamps by a number of its own, so that an earlier one's don't look like times.
//! 5. It counts once the index is applied.
//!
//! An answered read index is worth as much, counted from when it was asked for. And a leader knows the same of its own
//! state from when a quorum last confirmed it, lease or not.

use crate::leader::{Leader, View};
use crate::planted::{self, Planted};
use crate::raft::Raft;
use crate::types::{Index, Nanos};

/// What a replica knows of the age of its state.
#[derive(Debug)]
pub(crate) struct Freshness {
    /// When this incarnation began, by its own clock.
    since: Nanos,
    /// What its stamps are shifted by.
    shift: u64,
    /// The applied state holds everything that had been acknowledged at this time; 0 = nothing is known.
    at: Nanos,
    /// Once this index is applied, the same holds of this time. The next one has to wait for it, or under load none
    /// would ever be reached.
    next: (Index, Nanos),
}

impl Freshness {
    /// Nothing is known. `seed` differs from incarnation to incarnation.
    pub(crate) fn new(now: Nanos, seed: u64) -> Self {
        let shift = seed.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(32) ^ seed;
        Self { since: now, shift, at: 0, next: (0, 0) }
    }

    /// What stands for `now` on the wire.
    pub(crate) fn stamp(&self, now: Nanos) -> u64 {
        let shift = if planted::is(Planted::StampOfFormerLife) { 0 } else { self.shift };
        now.wrapping_add(shift)
    }

    /// When this incarnation made the stamp, if it did.
    fn made_at(&self, stamp: u64, now: Nanos) -> Option<Nanos> {
        let at = stamp.wrapping_sub(self.stamp(0));
        (self.since..=now).contains(&at).then_some(at)
    }

    fn note(&mut self, index: Index, at: Nanos, applied: Index) {
        let (waiting, then) = self.next;
        if waiting <= applied {
            self.at = self.at.max(then);
            self.next = (index, at);
        }
    }

    fn known(&self, applied: Index) -> Nanos {
        let (waiting, then) = self.next;
        let counts = waiting <= applied || planted::is(Planted::FreshBeforeApplied);
        if counts { self.at.max(then) } else { self.at }
    }
}

/// A stamp and when it came in.
#[derive(Clone, Copy, Debug)]
struct Stamp {
    value: u64,
    came_at: Nanos,
}

impl Stamp {
    const NONE: Self = Self { value: 0, came_at: Nanos::MAX };
}

/// One follower's stamps on their way back to it: one waits for the proof that its leader led, and doesn't give
/// way to newer ones meanwhile, of which the newest is next.
#[derive(Debug)]
pub(crate) struct Stamps {
    /// May be echoed; 0 = none.
    pub(crate) echo: u64,
    waiting: Stamp,
    next: Stamp,
}

impl Stamps {
    /// None yet.
    pub(crate) const NONE: Self = Self { echo: 0, waiting: Stamp::NONE, next: Stamp::NONE };

    /// A stamp has come in.
    pub(crate) fn take(&mut self, value: u64, now: Nanos) {
        let is_free = self.waiting.came_at == Nanos::MAX;
        *(if is_free { &mut self.waiting } else { &mut self.next }) = Stamp { value, came_at: now };
    }

    /// Nobody else led until `led_at`.
    fn prove(&mut self, led_at: Nanos) {
        assert!(led_at < Nanos::MAX, "it is at most the present");
        while self.waiting.came_at <= led_at {
            self.echo = self.waiting.value;
            self.waiting = std::mem::replace(&mut self.next, Stamp::NONE);
        }
    }
}

impl Leader {
    /// Until when, by our clock, surely nobody else led.
    fn led_at(&self, view: &View<'_>) -> Nanos {
        let unproven = planted::is(Planted::StampOfDeposedLeader);
        if unproven {
            view.now
        } else {
            self.quorum_of(view, view.now, |peer| peer.answered_at).min(view.now)
        }
    }

    /// Lets stamps go back that may. Answers until when surely nobody else led, if the commit index is worth
    /// something; else 0.
    pub(crate) fn prove_stamps(&mut self, view: &View<'_>) -> Nanos {
        if view.tellable < self.term_start && !planted::is(Planted::StampBeforeOwnCommit) {
            return 0;
        }
        let led_at = self.led_at(view);
        self.peers.iter_mut().for_each(|peer| peer.stamps.prove(led_at));
        led_at
    }
}

impl Raft {
    /// The applied state holds everything that had been acknowledged, by whichever leader, at this time of this
    /// replica's clock; 0 = nothing is known. It goes forward with what is heard from the leader.
    pub fn fresh_at(&self) -> Nanos {
        self.freshness.known(self.applied)
    }

    /// The leader has echoed a stamp beside its commit index.
    pub(crate) fn note_echo(&mut self, commit: Index, echo: u64) {
        if let Some(at) = self.freshness.made_at(echo, self.now) {
            self.note_fresh(commit, at);
        }
    }

    /// What is committed up to `index` holds everything that had been acknowledged at this time.
    pub(crate) fn note_fresh(&mut self, index: Index, at: Nanos) {
        if at > 0 {
            self.freshness.note(index, at, self.applied);
        }
    }
}
