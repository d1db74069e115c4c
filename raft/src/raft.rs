//! The replica: its state, its inputs, and the transitions between roles.
//!
//! Invariants, asserted wherever they could break: `applied <= commit`; what is handed out to apply
//! is `<= min(commit, durable)`; `durable <= last`; the term and the commit index never fall; only
//! the `become_*` functions assign `role`.

use crate::candidate::Votes;
use crate::config::Config;
use crate::error::Refused;
use crate::follower::{Follower, Installing};
use crate::freshness::Freshness;
use crate::lazy::Lazy;
use crate::leader::{Leader, View};
use crate::lease::Promise;
use crate::log::Log;
use crate::membership::Membership;
use crate::membership_log::MembershipLog;
use crate::message::{Body, FollowerStamp, Message};
use crate::output::Outbox;
use crate::planted::{self, Planted};
use crate::read_index::{Asked, Forwarded};
use crate::status::RoleKind;
use crate::timer::ElectionTimer;
use crate::types::{Entry, EntryKind, HardState, Index, Mark, Nanos, ReplicaId, Term, WriteId};
use crate::validation::Nonsense;
use crate::writes::{Ballot, Writes};
use bytes::Bytes;
use std::sync::Arc;

/// What a replica starts from: everything in it is durable.
#[derive(Clone, Debug)]
pub struct Restored {
    /// Term, vote, and a hint of the commit index.
    pub hard_state: HardState,
    /// The log starts after it; the state machine holds it.
    pub snapshot: Mark,
    /// The membership at `snapshot`; the newest in `entries`, if there is one, is in force.
    pub membership: Membership,
    /// Contiguous from `snapshot.index + 1`.
    pub entries: Vec<Entry>,
    /// At least `snapshot.index`, and normally that.
    pub applied: Index,
}

/// What a replica is, with what only that role has.
#[derive(Debug)]
pub(crate) enum Role {
    /// Follows, or waits for, a leader.
    Follower(Follower),
    /// Asks around whether it could win, without raising any term.
    PreCandidate(Votes),
    /// Stands for election in its term.
    Candidate(Votes),
    /// Leads its term.
    Leader(Box<Leader>),
}

impl Role {
    /// The role without its data.
    pub(crate) fn kind(&self) -> RoleKind {
        match self {
            Self::Follower(_) => RoleKind::Follower,
            Self::PreCandidate(_) => RoleKind::PreCandidate,
            Self::Candidate(_) => RoleKind::Candidate,
            Self::Leader(_) => RoleKind::Leader,
        }
    }
}

/// One replica of one group. See the crate's head for how it is driven.
#[derive(Debug)]
pub struct Raft {
    pub(crate) id: ReplicaId,
    pub(crate) config: Arc<Config>,
    pub(crate) members: MembershipLog,
    pub(crate) term: Term,
    pub(crate) vote: Option<ReplicaId>,
    pub(crate) role: Role,
    pub(crate) log: Log,
    pub(crate) writes: Writes,
    /// Highest index known to be committed.
    pub(crate) commit: Index,
    /// Highest index the caller has applied.
    pub(crate) applied: Index,
    /// Highest index handed out to apply.
    pub(crate) applying: Index,
    /// What the last leader said of it, this replica included; see [`Raft::held_by_all`].
    pub(crate) held_by_all: Index,
    /// The latest time seen.
    pub(crate) now: Nanos,
    pub(crate) timer: ElectionTimer,
    /// When a leader of this term was last heard; the base of stickiness.
    pub(crate) leader_heard_at: Option<Nanos>,
    /// The log can't be made durable at the moment: see [`Raft::set_wedged`].
    pub(crate) wedged: bool,
    /// It has neither timers nor anything to say; see `quiescence.rs`.
    pub(crate) quiet: bool,
    /// What this replica has promised to leaders.
    pub(crate) promise: Promise,
    /// How old its applied state is.
    pub(crate) freshness: Freshness,
    /// There is no room for commands: see [`Raft::set_full`].
    pub(crate) full: bool,
    /// Memory for logs runs short: see [`Raft::set_pressed`].
    pub(crate) pressed: bool,
    /// A snapshot that was handed out and isn't in place yet. Until it is, the log doesn't change.
    pub(crate) installing: Option<Box<Installing>>,
    pub(crate) outbox: Lazy<Outbox>,
    /// The term and the leader that [`crate::Ready::leadership`] last said.
    pub(crate) announced: (Term, Option<ReplicaId>),
}

impl Restored {
    /// What is wrong with the memberships in it, if anything is: one that can't be a group's, or an entry
    /// that holds none. [`Raft::new`] panics on it, so bytes from outside are to be checked first. Linear
    /// in the entries.
    pub fn membership_flaw(&self) -> Option<String> {
        if let Some(rule) = self.membership.broken_rule() {
            return Some(format!("{rule}: {:?}", self.membership));
        }
        let is_bad =
            |entry: &&Entry| entry.kind == EntryKind::Membership && Membership::decode(&entry.data).is_none();
        let bad = self.entries.iter().find(is_bad);
        bad.map(|entry| format!("entry {} holds no sound membership", entry.mark))
    }
}

impl Raft {
    /// Starts a replica as a follower of nobody. The only voter of a group is due at once.
    ///
    /// `seed` feeds the randomized election timeout; it is mixed with `id`, so all replicas may get
    /// the same. Replicas may share one `config`.
    ///
    /// # Panics
    /// If `config` isn't valid or `restored` contradicts itself.
    pub fn new(
        id: ReplicaId,
        config: impl Into<Arc<Config>>,
        restored: Restored,
        now: Nanos,
        seed: u64,
    ) -> Self {
        let config = config.into();
        if let Err(error) = config.validate() {
            panic!("{id}: {error}");
        }
        if let Some(flaw) = restored.membership_flaw() {
            panic!("{id}: {flaw}");
        }
        let Restored { hard_state, snapshot, membership, entries, applied } = restored;
        let members = MembershipLog::new(membership, snapshot.index, &entries);
        let log = Log::new(snapshot, entries);
        let last = log.last_mark();
        assert!(last.term <= hard_state.term, "{id}: log ends at {last}, above term {}", hard_state.term);
        assert!(
            (snapshot.index..=last.index).contains(&applied),
            "{id}: applied {applied} outside of the log {snapshot}..={last}"
        );
        let seed = seed ^ id.get().rotate_left(32);
        let ballot = Ballot { term: hard_state.term, vote: hard_state.vote };
        let commit = hard_state.commit.min(last.index).max(applied);
        let mut raft = Self {
            id,
            members,
            term: hard_state.term,
            vote: hard_state.vote,
            role: Role::Follower(Follower::new(None)),
            log,
            writes: Writes::new(last.index, ballot),
            commit,
            applied,
            applying: applied,
            held_by_all: 0,
            now,
            timer: ElectionTimer::new(now, seed, &config),
            leader_heard_at: None,
            wedged: false,
            quiet: false,
            promise: Promise::default(),
            freshness: Freshness::new(now, seed),
            full: false,
            pressed: false,
            installing: None,
            outbox: Lazy::default(),
            announced: (hard_state.term, None),
            config,
        };
        if raft.is_only_voter() {
            raft.timer.set_length(0);
        }
        raft
    }

    // --- inputs

    /// Fires what is due: an election, the leader's CheckQuorum, the end of a transfer, reads that got
    /// no answer.
    pub fn tick(&mut self, now: Nanos) {
        self.advance_clock(now);
        if self.quiet {
            return;
        }
        match &mut self.role {
            Role::Leader(_) => self.tick_leader(),
            Role::Follower(follower) => {
                let patience = self.config.election_timeout_max_ns;
                follower.drop_overdue_reads(self.now, patience, &mut self.outbox.reads_dropped);
                self.maybe_campaign();
            }
            Role::PreCandidate(_) | Role::Candidate(_) => self.maybe_campaign(),
        }
        // Whoever calls this until nothing is due would never come to an end.
        let (now, due_at, role) = (self.now, self.deadline(), self.role.kind());
        assert!(due_at > now, "{}: a tick at {now} leaves what was due at {due_at}: {role:?}", self.id);
    }

    /// The earliest time at which [`Raft::tick`] would do something; [`Nanos::MAX`] if never. May move
    /// later at any time, earlier only across a call that takes `now`.
    pub fn deadline(&self) -> Nanos {
        if self.quiet {
            return Nanos::MAX;
        }
        let election = if self.may_campaign() { self.campaign_due_at() } else { Nanos::MAX };
        match &self.role {
            Role::Leader(leader) => leader.deadline(),
            Role::Follower(follower) => {
                election.min(follower.reads_deadline(self.config.election_timeout_max_ns))
            }
            Role::PreCandidate(_) | Role::Candidate(_) => election,
        }
    }

    /// Takes one message from another replica. One that isn't for this incarnation, or is the answer of
    /// a stranger, is dropped: it may just be late. Leaders and candidates are heard even if they are
    /// strangers: the membership that makes them members may not have arrived here yet (thesis §4.1).
    ///
    /// # Errors
    /// No working member says this. It changed nothing; its sender is worth a look.
    pub fn step(&mut self, now: Nanos, message: Message) -> Result<(), Nonsense> {
        self.advance_clock(now);
        let Message { from, to, term, .. } = message;
        if to != self.id || from == self.id || !self.may_speak(&message) {
            return Ok(());
        }
        if let Some(nonsense) = self.nonsense(&message) {
            return Err(nonsense);
        }
        self.wake_by(from);
        if !self.meet_term(&message) {
            return Ok(());
        }
        match message.body {
            Body::PreVote { last } => self.on_pre_vote(from, term, last),
            Body::PreVoteReply { granted } => self.on_pre_vote_reply(from, term, granted),
            Body::Vote { last, transfer } => self.on_vote(from, last, transfer),
            Body::VoteReply { granted } => self.on_vote_reply(from, granted),
            Body::Append { prev, commit, held_by_all, entries, stamp } => {
                self.on_append(from, prev, commit, held_by_all, entries, stamp)
            }
            Body::AppendAccepted { matched, stamp } => self.on_append_accepted(from, matched, stamp),
            Body::AppendRefused { matched, stamp } => self.on_append_refused(from, matched, stamp),
            Body::AppendRejected { prev, hint, stamp } => self.on_append_rejected(from, prev, hint, stamp),
            Body::Heartbeat { commit, read_round, stamp } => {
                self.on_heartbeat(from, commit, read_round, stamp)
            }
            Body::HeartbeatReply { read_round, stamp } => self.on_heartbeat_reply(from, read_round, stamp),
            Body::TimeoutNow => self.on_timeout_now(from),
            Body::ReadIndex { context } => self.on_read_index(from, context),
            Body::ReadIndexReply { context, index } => self.on_read_index_reply(from, context, index),
            Body::ReadIndexRefused { context } => self.on_read_index_refused(from, context),
            Body::InstallSnapshot { mark, membership, stamp } => {
                self.on_install_snapshot(from, mark, membership, stamp);
            }
            Body::Quiesce { last } => self.on_quiesce(from, last),
        }
        Ok(())
    }

    /// Appends a proposal to the leader's log. It leaves with the next [`Raft::ready`]; many proposals
    /// between two calls leave as one append per follower.
    ///
    /// # Errors
    /// Nothing was done: not the leader, a transfer in progress, or too many uncommitted bytes.
    ///
    /// # Panics
    /// For [`EntryKind::Membership`], which goes through [`Raft::propose_membership`].
    pub fn propose(
        &mut self,
        now: Nanos,
        kind: EntryKind,
        version: u8,
        data: Bytes,
    ) -> Result<Mark, Refused> {
        assert!(kind != EntryKind::Membership, "{}: that goes through propose_membership", self.id);
        self.wake(now, now);
        let hint = self.leader();
        let Role::Leader(leader) = &mut self.role else {
            return Err(Refused::NotLeader { leader: hint });
        };
        let mark = Mark::new(self.term, self.log.last_index() + 1);
        let entry = Entry { mark, kind, version, data };
        leader.admit(&entry, &self.config)?;
        self.append(entry);
        Ok(mark)
    }

    /// Asks for a read index: the answer comes as a [`crate::ReadState`] or in `reads_dropped`. A
    /// follower forwards to its leader. `context` must not be reused while an answer to an earlier
    /// use, even by an earlier incarnation, may be on its way.
    ///
    /// # Errors
    /// Nothing was done: no leader is known, or too many reads wait for it already.
    pub fn read_index(&mut self, now: Nanos, context: u64) -> Result<(), Refused> {
        self.wake(now, now);
        match &mut self.role {
            Role::Leader(leader) => leader.ask_read(Asked { context, from: None }),
            Role::Follower(Follower { leader: Some(leader), forwarded, .. }) => {
                let leader = *leader;
                if forwarded.len() >= self.config.peer_reads_max {
                    return Err(Refused::TooManyReads);
                }
                forwarded.push_back(Forwarded { context, asked_at: self.now });
                self.send(leader, Body::ReadIndex { context });
            }
            _ => return Err(Refused::NotLeader { leader: None }),
        }
        Ok(())
    }

    /// Campaigns now, without waiting for the election timeout. Others still ask themselves whether
    /// they hear a live leader. Does nothing on a leader, a learner, while a snapshot is installed, or while
    /// a promise to a leader runs ([`Raft::is_bound`]).
    pub fn campaign(&mut self, now: Nanos) {
        self.wake(now, now);
        if self.may_campaign() && !self.is_leader() && !self.is_bound() {
            self.become_pre_candidate();
        }
    }

    /// Sets the randomized election timeout in force, until the next one is drawn (at a new term or
    /// campaign). For harnesses.
    pub fn set_election_timeout(&mut self, ns: Nanos) {
        self.timer.set_length(ns);
    }

    /// All writes up to and with `write` are durable.
    pub fn persisted(&mut self, write: WriteId) {
        self.writes.complete(write);
        let durable = self.writes.durable();
        assert!(
            durable <= self.log.last_index(),
            "{}: durable {durable} > {}",
            self.id,
            self.log.last_mark()
        );
        match &mut self.role {
            Role::Follower(follower) => follower.log_persisted(durable, self.commit),
            Role::PreCandidate(_) => {}
            Role::Candidate(_) => self.maybe_win(),
            Role::Leader(_) => self.maybe_commit(),
        }
    }

    /// The caller has applied everything up to and with `index`.
    pub fn applied(&mut self, index: Index) {
        assert!(index <= self.applying.max(self.applied), "{}: applied {index} > {}", self.id, self.applying);
        self.applied = self.applied.max(index);
        assert!(
            self.applied <= self.commit,
            "{}: applied {} > commit {}",
            self.id,
            self.applied,
            self.commit
        );
    }

    /// Drops the entries up to and with `to`, which must be applied. O(entries dropped).
    pub fn compact(&mut self, to: Index) {
        assert!(to <= self.applied, "{}: compacting to {to} above applied {}", self.id, self.applied);
        if to > self.log.base().index && self.installing.is_none() {
            self.log.compact(to);
            self.members.compacted(to);
        }
    }

    // --- what all roles share

    /// Time never goes back.
    pub(crate) fn advance_clock(&mut self, now: Nanos) {
        /// What a planted bug takes for the longest time between two turns.
        const STEP_NS: Nanos = 10_000_000;
        let step = if planted::is(Planted::TimeInSteps) { STEP_NS } else { Nanos::MAX };
        self.now = self.now.max(now.min(self.now.saturating_add(step)));
    }

    /// What a leader's functions see of the rest.
    pub(crate) fn view(&self) -> View<'_> {
        View {
            id: self.id,
            term: self.term,
            now: self.now,
            commit: self.commit,
            tellable: self.applying,
            log: &self.log,
            config: &self.config,
            pressed: self.pressed,
            membership: &self.members.current,
        }
    }

    /// Sends a message that reveals the term, and possibly the vote: it waits until they are durable.
    pub(crate) fn send(&mut self, to: ReplicaId, body: Body) {
        self.outbox.revealing.push(Message { from: self.id, to, term: self.term, body });
    }

    /// Raises the commit index to `to`, if that is news.
    pub(crate) fn commit_to(&mut self, to: Index) {
        if to > self.commit {
            assert!(to <= self.log.last_index(), "{}: commit {to} beyond {}", self.id, self.log.last_mark());
            self.commit = to;
        }
    }

    /// Whether the message counts although its sender may be no member, as far as is known here.
    fn may_speak(&self, message: &Message) -> bool {
        let is_answer = match message.body {
            Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendAccepted { .. }
            | Body::AppendRefused { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatReply { .. } => !planted::is(Planted::RemovedVoteCounted),
            _ => false,
        };
        !is_answer || self.members.current.contains(message.from)
    }

    pub(crate) fn is_only_voter(&self) -> bool {
        let membership = &self.members.current;
        let is_me = |id: &ReplicaId| *id == self.id;
        membership.is_voter(self.id) && membership.voters.iter().chain(&membership.voters_outgoing).all(is_me)
    }

    /// A voter may; so may one that a change takes the vote from that it doesn't know to be committed: its log may be the
    /// only one that the others can follow. It doesn't count itself then (thesis §4.2.2).
    pub(crate) fn may_campaign(&self) -> bool {
        self.members.is_voter_from(self.commit, self.id) && self.installing.is_none() && !self.wedged
    }

    /// A campaign waits for its timer, and for the end of every promise.
    fn campaign_due_at(&self) -> Nanos {
        self.timer.due_at().max(self.bound_until())
    }

    fn maybe_campaign(&mut self) {
        if !self.may_campaign() || self.now < self.campaign_due_at() {
            return;
        }
        if self.is_only_voter() && matches!(self.role, Role::Candidate(_)) {
            // Waits for its own disk alone: another term would only make it wait longer.
            return self.timer.restart(self.now);
        }
        self.become_pre_candidate();
    }

    /// Settles how the message's term relates to ours (paper §5.1). Returns whether its body counts.
    fn meet_term(&mut self, message: &Message) -> bool {
        if message.term < self.term {
            self.answer_stale(message);
            return false;
        }
        if message.term == self.term {
            return true;
        }
        match message.body {
            Body::PreVote { .. } | Body::Vote { transfer: false, .. } if self.hears_a_leader() => false,
            Body::PreVote { .. } | Body::PreVoteReply { granted: true } => true,
            Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::Quiesce { .. }
            | Body::InstallSnapshot { .. } => {
                self.become_follower(message.term, Some(message.from));
                true
            }
            _ => {
                self.become_follower(message.term, None);
                true
            }
        }
    }

    /// Tells the sender of a message from an old term about ours: a candidate that it lost, a leader
    /// that it is no longer one. Without the latter a replica that came back with a higher term could
    /// neither be led nor, PreVote being on, depose the leader.
    fn answer_stale(&mut self, message: &Message) {
        match message.body {
            Body::PreVote { .. } => self.send(message.from, Body::PreVoteReply { granted: false }),
            Body::Vote { .. } => self.send(message.from, Body::VoteReply { granted: false }),
            Body::Append { .. }
            | Body::Heartbeat { .. }
            | Body::Quiesce { .. }
            | Body::InstallSnapshot { .. } => {
                // Nothing of this leader's is answered, so nothing is promised.
                let stamp = FollowerStamp::default();
                self.send(message.from, Body::HeartbeatReply { read_round: 0, stamp });
            }
            _ => {}
        }
    }

    /// Leader stickiness (thesis §4.2.3): a live leader was heard within the minimum election timeout, or a
    /// promise to one runs.
    fn hears_a_leader(&self) -> bool {
        let recently = |at: Nanos| self.now < at.saturating_add(self.config.election_timeout_min_ns);
        self.is_leader() || self.quiet || self.is_bound() || self.leader_heard_at.is_some_and(recently)
    }

    // --- transitions: nothing else assigns `role`

    /// Follows `leader`, or waits for one, in `term`.
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<ReplicaId>) {
        assert!(term >= self.term, "{}: term {} can't fall to {term}", self.id, self.term);
        assert!(leader != Some(self.id), "{}: can't follow itself in term {term}", self.id);
        let led = self.is_leader();
        self.leave_role();
        if term > self.term {
            (self.term, self.vote) = (term, None);
            self.timer.redraw(&self.config);
        }
        if led || leader.is_some() {
            self.timer.restart(self.now);
        }
        self.leader_heard_at = leader.map(|_| self.now);
        self.role = Role::Follower(Follower::new(leader));
    }

    /// Asks whether a campaign would be won (thesis §9.6). A sole voter skips the question.
    fn become_pre_candidate(&mut self) {
        assert!(!self.is_leader(), "{}: leads term {} already", self.id, self.term);
        assert!(self.may_campaign(), "{}: is no voter of {:?}", self.id, self.members.current);
        if self.is_only_voter() {
            return self.become_candidate(false);
        }
        self.leave_role();
        self.timer.redraw(&self.config);
        self.timer.restart(self.now);
        self.role = Role::PreCandidate(Votes::default());
        self.ask_for_pre_votes();
    }

    /// Stands for election in the next term (paper §5.2).
    pub(crate) fn become_candidate(&mut self, transfer: bool) {
        assert!(!self.is_leader(), "{}: leads term {} already", self.id, self.term);
        assert!(self.may_campaign(), "{}: is no voter of {:?}", self.id, self.members.current);
        let (now, bound_until) = (self.now, self.bound_until());
        assert!(transfer || now >= bound_until, "{}: stands at {now}, bound until {bound_until}", self.id);
        self.leave_role();
        (self.term, self.vote) = (self.term + 1, Some(self.id));
        self.leader_heard_at = None;
        self.timer.redraw(&self.config);
        self.timer.restart(self.now);
        self.role = Role::Candidate(Votes::default());
        self.ask_for_votes(transfer);
    }

    /// Leads the term, beginning with an entry of its own (paper §8, thesis §6.4).
    pub(crate) fn become_leader(&mut self) {
        assert!(matches!(self.role, Role::Candidate(_)), "{}: only a candidate can win", self.id);
        let ballot = self.writes.durable_ballot();
        assert!(
            ballot == (Ballot { term: self.term, vote: Some(self.id) }),
            "{}: leads term {} but only {ballot:?} is durable",
            self.id,
            self.term
        );
        let mark = Mark::new(self.term, self.log.last_index() + 1);
        let leader = Leader::new(&self.view());
        self.append(Entry { mark, kind: EntryKind::Noop, version: 0, data: Bytes::new() });
        self.role = Role::Leader(Box::new(leader));
    }

    /// What has to be answered when a role ends: reads.
    fn leave_role(&mut self) {
        assert!(!self.quiet, "{}: changes its role in term {} while quiet", self.id, self.term);
        let role = std::mem::replace(&mut self.role, Role::Follower(Follower::new(None)));
        match role {
            Role::Leader(leader) => {
                self.held_by_all = leader.held_by_all().unwrap_or(self.writes.durable());
                self.outbox.reads_dropped.extend(leader.reads.own_contexts());
            }
            Role::Follower(follower) => {
                self.outbox.reads_dropped.extend(follower.forwarded.iter().map(|read| read.context));
            }
            Role::PreCandidate(_) | Role::Candidate(_) => {}
        }
    }
}
