//! Elections as seen from the one that stands: PreVote, Vote, counting.
//!
//! A pre-candidate counts itself at once; a candidate counts itself only when its vote is durable,
//! like any other vote.

use crate::message::{Body, Message};
use crate::planted::{self, Planted};
use crate::quorum::{self, VoteResult};
use crate::raft::{Raft, Role};
use crate::types::{Nanos, ReplicaId, Term};
use crate::writes::Ballot;

/// Answers to a campaign so far; each voter once.
#[derive(Debug, Default)]
pub(crate) struct Votes(Vec<(ReplicaId, bool)>);

impl Votes {
    /// Notes an answer. The first one of a voter counts.
    fn record(&mut self, from: ReplicaId, granted: bool) {
        if self.of(from).is_none() {
            self.0.push((from, granted));
        }
    }

    fn of(&self, voter: ReplicaId) -> Option<bool> {
        self.0.iter().find(|(from, _)| *from == voter).map(|(_, granted)| *granted)
    }
}

impl Raft {
    /// The replica's log can't be made durable for the time being (its disk doesn't answer), or can again.
    ///
    /// While wedged, a replica doesn't campaign, and one that leads steps down: it could append, but never
    /// apply, so its callers would wait for as long as it leads, while another voter could serve them. It goes
    /// on following, and its acks and votes wait for the disk as always. A sole voter keeps leading: there is
    /// nobody else to take over.
    pub fn set_wedged(&mut self, now: Nanos, wedged: bool) {
        self.advance_clock(now);
        self.wedged = wedged;
        if wedged && !self.is_only_voter() && !matches!(self.role, Role::Follower(_)) {
            self.wake(now, now);
            self.become_follower(self.term, None);
        }
    }

    fn other_voters(&self) -> Vec<ReplicaId> {
        let is_other_voter = |id: &ReplicaId| *id != self.id && self.members.current.is_voter(*id);
        let mut voters: Vec<_> = self.members.current.members().into_iter().filter(is_other_voter).collect();
        if planted::is(Planted::RemovedVoteCounted) {
            let gone = self.members.removed_voters();
            voters.extend(gone.into_iter().filter(|id| *id != self.id));
        }
        voters
    }

    /// Asks about the next term without entering it: no state changes, so nothing has to be durable.
    pub(crate) fn ask_for_pre_votes(&mut self) {
        let (id, last) = (self.id, self.log.last_mark());
        for to in self.other_voters() {
            let body = Body::PreVote { last };
            self.outbox.messages.push(Message { from: id, to, term: self.term + 1, body });
        }
    }

    /// Requests votes in the current term; they leave when our own vote is durable.
    pub(crate) fn ask_for_votes(&mut self, transfer: bool) {
        let last = self.log.last_mark();
        for to in self.other_voters() {
            self.send(to, Body::Vote { last, transfer });
        }
    }

    /// An answer about the next term, or a refusal in ours.
    pub(crate) fn on_pre_vote_reply(&mut self, from: ReplicaId, term: Term, granted: bool) {
        let Role::PreCandidate(votes) = &mut self.role else { return };
        if term != self.term + u64::from(granted) {
            return;
        }
        votes.record(from, granted);
        let (id, votes) = (self.id, &*votes);
        let vote = |voter| if voter == id { Some(true) } else { votes.of(voter) };
        match quorum::vote_result_joint(&self.members.current, vote) {
            VoteResult::Won => self.become_candidate(false),
            VoteResult::Lost => self.become_follower(self.term, None),
            VoteResult::Pending => {}
        }
    }

    /// An answer in our term.
    pub(crate) fn on_vote_reply(&mut self, from: ReplicaId, granted: bool) {
        if let Role::Candidate(votes) = &mut self.role {
            votes.record(from, granted);
            self.maybe_win();
        }
    }

    /// Whether a planted bug lets votes of replicas that were removed win.
    fn is_won_by_the_removed(&self, votes: &Votes) -> bool {
        let yes = 1 + votes.0.iter().filter(|(_, granted)| *granted).count();
        planted::is(Planted::RemovedVoteCounted) && yes >= quorum::majority(self.members.current.voters.len())
    }

    /// Counts the votes: called on every answer, and when a ballot became durable.
    pub(crate) fn maybe_win(&mut self) {
        let Role::Candidate(votes) = &self.role else { return };
        let own = Ballot { term: self.term, vote: Some(self.id) };
        let own_is_durable = self.writes.durable_ballot() == own;
        let vote = |voter| if voter == self.id { own_is_durable.then_some(true) } else { votes.of(voter) };
        let result = quorum::vote_result_joint(&self.members.current, vote);
        match if self.is_won_by_the_removed(votes) { VoteResult::Won } else { result } {
            VoteResult::Won if own_is_durable => self.become_leader(),
            VoteResult::Lost => self.become_follower(self.term, None),
            VoteResult::Won | VoteResult::Pending => {}
        }
    }
}
