//! Leader leases (thesis §6.4.1): reads without a round, as long as nobody else can have been elected.
//!
//! Every answer to a leader carries the voter's *promise*: for so long from the receipt of what it answers
//! it helps to elect nobody else. Once a quorum has promised, no other leader can be elected before the
//! first of these promises ends, and until then this leader's applied state is the newest. Nothing here
//! compares clocks of two machines; that they run at nearly the same *rate* is assumed, within
//! [`Config::lease_drift_ppm`]. The rules, each of which closes a hole:
//!
//! 1. A lease ends at the quorum, in both halves of a joint membership, of (time sent + promise) - drift -
//!    slack ([`Leader::lease_end`]). Each voter promises by its own settings; learners' words don't count.
//! 2. While its promise runs a voter votes for nobody, not for itself either, and doesn't campaign, forced
//!    or not ([`Raft::is_bound`]). Only TimeoutNow bypasses that, for the one term that it starts.
//! 3. Once TimeoutNow has left, the leader has no lease for the rest of the term, whatever becomes of the
//!    transfer: its target may wake late, and its votes bypass promises.
//! 4. A promise outlives its process. The largest one is durable before it is first given
//!    ([`Raft::allow_promises`]), and for so long a restarted voter is bound ([`Raft::owe_promise`]). Only
//!    voters can forget a promise that matters: whoever is the only voter is exempt.
//! 5. Elapsed time comes from the clock. A reader looks at the clock after it has taken the state that it
//!    reads; a system that is suspended with its monotonic clock stopped needs leases off
//!    ([`Config::leases`]).
//! 6. From its proposal until it is applied a membership change leaves no lease; and a leader that doesn't vote
//!    itself any more has none, because whoever is left may be an only voter. Splits and merges, to which the
//!    same will apply, aren't there yet.
//! 7. A lease begins when the first entry of the leader's own term is applied: before that the state may
//!    lack what was acknowledged in earlier terms.
//!
//! And one more, for reads elsewhere: a quorum without this disk can commit. Were followers told at once, they
//! would apply, and show, what a read under the lease doesn't see yet. So they are told only what this leader
//! was handed to apply, and until it *is* applied there is no lease.

use crate::config::Config;
use crate::leader::{Leader, View};
use crate::planted::{self, Planted};
use crate::raft::{Raft, Role};
use crate::types::{Index, Nanos, Term};

/// The right to read the applied state without asking anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The term in which this replica leads.
    pub term: Term,
    /// While its own clock reads less, nobody else leads. [`Nanos::MAX`] for an only voter: until it says
    /// otherwise.
    pub until: Nanos,
}

/// A voter's word.
#[derive(Debug, Default)]
pub(crate) struct Promise {
    /// Durable, so that it may be given; 0 = none may.
    allowed_ns: Nanos,
    /// By our clock, when the last promise given here or by an earlier incarnation ends.
    until: Nanos,
}

impl Raft {
    /// Promises of up to so long are durable: a restarted replica will be told of them by
    /// [`Raft::owe_promise`]. Before this is called none is given.
    pub fn allow_promises(&mut self, ns: Nanos) {
        self.promise.allowed_ns = ns;
    }

    /// An earlier incarnation may have promised, up to its end, not to help elect anyone for so long: until
    /// then this one neither votes nor campaigns.
    pub fn owe_promise(&mut self, now: Nanos, ns: Nanos) {
        self.advance_clock(now);
        if !self.is_only_voter() && !planted::is(Planted::PromiseForgotten) {
            self.promise.until = self.promise.until.max(self.now.saturating_add(ns));
        }
    }

    /// The lease in force; `None` unless this replica leads and may read its applied state. A quiet leader has none,
    /// unless it is the only voter: it has forgotten what it was promised. Ask again after
    /// every input: it may end early at any of them.
    pub fn lease(&self) -> Option<Lease> {
        let Role::Leader(leader) = &self.role else { return None };
        if self.members.since > self.applied || !self.members.current.is_voter(self.id) {
            return None;
        }
        let until = leader.lease_end(&self.view(), self.applied)?;
        (until > self.now).then_some(Lease { term: self.term, until })
    }

    /// Whether a promise runs: no vote, no campaign.
    pub fn is_bound(&self) -> bool {
        self.now < self.bound_until()
    }

    /// When the last promise ends.
    pub(crate) fn bound_until(&self) -> Nanos {
        if planted::is(Planted::PromiseBroken) { 0 } else { self.promise.until }
    }

    /// What is promised to the leader that was just heard, which binds from now on; 0 = nothing.
    pub(crate) fn promise_ns(&self) -> Nanos {
        let may = self.config.leases && self.members.current.is_voter(self.id);
        if may { self.promise.allowed_ns.min(self.config.election_timeout_min_ns) } else { 0 }
    }

    /// The leader was heard.
    pub(crate) fn renew_promise(&mut self) {
        let until = self.now.saturating_add(self.promise_ns());
        self.promise.until = self.promise.until.max(until);
    }
}

impl Leader {
    /// Until when nobody else can lead; `None` if this leader mustn't read by itself.
    fn lease_end(&self, view: &View<'_>, applied: Index) -> Option<Nanos> {
        let handed_over = self.has_told_successor && !planted::is(Planted::LeaseOutlivesTransfer);
        let is_behind = applied < self.term_start.max(self.told);
        if !view.config.leases || handed_over || (is_behind && !planted::is(Planted::LeaseBeforeNoop)) {
            return None;
        }
        // Ourselves we help as long as we lead.
        let end = self.quorum_of(view, Nanos::MAX, |peer| peer.promised_until);
        if end == Nanos::MAX { Some(end) } else { end.checked_sub(view.config.lease_slack_ns) }
    }
}

/// Until when, by the clock of the leader, a voter is surely bound that answered something sent at
/// `sent_at` with this promise.
pub(crate) fn promised_until(sent_at: Nanos, promise_ns: Nanos, config: &Config) -> Nanos {
    const MILLION: u128 = 1_000_000;
    let drift = u128::from(promise_ns) * u128::from(config.lease_drift_ppm);
    let drift = if planted::is(Planted::LeaseWithoutDrift) { 0 } else { drift.div_ceil(MILLION) };
    let drift = u64::try_from(drift).expect("the drift is at most half of the promise");
    sent_at.saturating_add(promise_ns.saturating_sub(drift))
}
