//! What a leader does: feed followers, commit, confirm reads, hand over, step down.
//!
//! Appends are built in [`Leader::flush`], called by `ready`, never when something is proposed: so
//! everything proposed since the last `ready` leaves as one append per follower.

use crate::config::Config;
use crate::error::Refused;
use crate::follower::can_wait_for_room;
use crate::lease;
use crate::log::Log;
use crate::membership::Membership;
use crate::message::{Body, FollowerStamp, LeaderStamp};
use crate::output::Outbox;
use crate::planted::{self, Planted};
use crate::progress::{Feed, FeedState, Progress};
use crate::quiescence::Asleep;
use crate::quorum;
use crate::raft::{Raft, Role};
use crate::read_index::{Asked, Reads};
use crate::ready::ReadState;
use crate::types::{Entry, EntryKind, Index, Mark, Nanos, ReplicaId, Term};

/// What a leader's functions see of the replica.
pub(crate) struct View<'a> {
    pub(crate) id: ReplicaId,
    pub(crate) term: Term,
    pub(crate) now: Nanos,
    pub(crate) commit: Index,
    /// What followers may be told is committed: what this leader was itself handed to apply. Else they could
    /// show what a read under its lease doesn't yet.
    pub(crate) tellable: Index,
    pub(crate) log: &'a Log,
    pub(crate) config: &'a Config,
    pub(crate) pressed: bool,
    pub(crate) membership: &'a Membership,
}

/// Leadership that is being handed over.
#[derive(Debug)]
struct Transfer {
    to: ReplicaId,
    /// When it is given up.
    abort_at: Nanos,
    /// TimeoutNow has left.
    told: bool,
}

/// A leader's own data.
#[derive(Debug)]
pub(crate) struct Leader {
    /// Everybody else, in order of id; while it is quiet, nobody.
    pub(crate) peers: Vec<Progress>,
    /// While it is quiet, everybody else, in order of id.
    pub(crate) asleep: Box<[Asleep]>,
    pub(crate) reads: Reads,
    /// Index of the first entry of this term. Committed = this leader knows what is committed.
    pub(crate) term_start: Index,
    /// What followers were told at most is committed; 0 = nothing.
    pub(crate) told: Index,
    /// TimeoutNow has left in this term: to whomever, and whatever came of it.
    pub(crate) has_told_successor: bool,
    transfer: Option<Transfer>,
    /// When CheckQuorum is due; it may then turn out to be due later.
    pub(crate) check_quorum_at: Nanos,
    /// Sizes of the proposals that are not committed yet.
    uncommitted_bytes: usize,
    /// `flush` may have something to do.
    pub(crate) needs_flush: bool,
}

impl Leader {
    /// A leader whose first entry is about to be appended.
    pub(crate) fn new(view: &View<'_>) -> Self {
        let next = view.log.last_index() + 1;
        let others = view.membership.members().into_iter().filter(|id| *id != view.id);
        let inherited = view.log.slice(view.commit + 1, next, usize::MAX);
        Self {
            peers: others.map(|id| Progress::new(id, next, view.now)).collect(),
            asleep: Box::default(),
            reads: Reads::default(),
            term_start: next,
            told: 0,
            has_told_successor: false,
            transfer: None,
            check_quorum_at: view.now.saturating_add(view.config.election_timeout_max_ns),
            uncommitted_bytes: inherited.map(proposal_size).sum(),
            needs_flush: true,
        }
    }

    /// Admits a proposal to the log, or says why not.
    pub(crate) fn admit(&mut self, entry: &Entry, config: &Config) -> Result<(), Refused> {
        if let Some(transfer) = &self.transfer {
            return Err(Refused::TransferInProgress { target: transfer.to });
        }
        let size = proposal_size(entry);
        if self.uncommitted_bytes > 0 && self.uncommitted_bytes + size > config.uncommitted_bytes_max {
            return Err(Refused::TooManyUncommittedBytes);
        }
        self.uncommitted_bytes += size;
        self.needs_flush = true;
        Ok(())
    }

    /// Takes a read into the next round.
    pub(crate) fn ask_read(&mut self, asked: Asked) {
        self.reads.ask(asked);
        self.needs_flush = true;
    }

    /// Index of the first entry of the term.
    pub(crate) fn term_start(&self) -> Index {
        self.term_start
    }

    /// Whether leadership is being handed over.
    pub(crate) fn is_handing_over(&self) -> bool {
        self.transfer.is_some()
    }

    /// Begins to hand over.
    pub(crate) fn hand_over(&mut self, to: ReplicaId, abort_at: Nanos) {
        assert!(self.transfer.is_none(), "a transfer to {to} while another runs: {:?}", self.transfer);
        self.transfer = Some(Transfer { to, abort_at, told: false });
        self.needs_flush = true;
    }

    /// Gives up a transfer to a replica that doesn't vote any more.
    pub(crate) fn drop_transfer_to_nonvoter(&mut self, view: &View<'_>) {
        self.transfer.take_if(|transfer| !view.membership.is_voter(transfer.to));
    }

    /// When a tick is due.
    pub(crate) fn deadline(&self) -> Nanos {
        let abort_at = self.transfer.as_ref().map_or(Nanos::MAX, |transfer| transfer.abort_at);
        self.check_quorum_at.min(abort_at)
    }

    /// Nobody waits for anything but entries.
    pub(crate) fn is_idle(&self) -> bool {
        self.transfer.is_none() && self.reads.are_none()
    }

    fn peer(&mut self, id: ReplicaId) -> Option<&mut Progress> {
        self.peers.iter_mut().find(|peer| peer.id == id)
    }

    /// Up to here all that are fed from the log hold it; `None` = nobody is.
    pub(crate) fn held_by_all(&self) -> Option<Index> {
        let fed = self.peers.iter().filter(|peer| peer.feed_state() != FeedState::Snapshot);
        let asleep = self.asleep.iter().map(|peer| peer.matched);
        fed.map(|peer| peer.matched).chain(asleep).min()
    }

    /// What a quorum has reached, each peer's part given by `of`, ours by `own`.
    pub(crate) fn quorum_of(&self, view: &View<'_>, own: u64, of: impl Fn(&Progress) -> u64) -> u64 {
        quorum::committed_index_joint(view.membership, |id| {
            if id == view.id {
                return own;
            }
            self.peers.iter().find(|peer| peer.id == id).map_or(0, &of)
        })
    }

    /// Sends everything that is due to everybody. Answers what [`Leader::prove_stamps`] does.
    pub(crate) fn flush(&mut self, view: &View<'_>, outbox: &mut Outbox) -> Nanos {
        self.needs_flush = false;
        self.told = self.told.max(view.tellable);
        let led_at = self.prove_stamps(view);
        self.maybe_begin_read_round(view, outbox);
        // Where nobody is fed, nobody is told.
        let held = self.held_by_all().unwrap_or(0);
        for peer in &mut self.peers {
            match peer.feed {
                Feed::Probe { .. } => feed_probe(peer, held, view, outbox),
                Feed::Replicate { .. } => feed_replicate(peer, held, view, outbox),
                Feed::Snapshot => {}
            }
        }
        self.maybe_tell_successor(view, outbox);
        led_at
    }

    /// One round for everybody who waits, once an entry of this term is committed.
    fn maybe_begin_read_round(&mut self, view: &View<'_>, outbox: &mut Outbox) {
        let may = view.commit >= self.term_start || planted::is(Planted::ReadBeforeOwnCommit);
        if !self.reads.is_waiting() || !may {
            return;
        }
        self.reads.begin_round(view.commit);
        let round = self.reads.pending_round();
        for peer in self.peers.iter_mut().filter(|peer| view.membership.is_voter(peer.id)) {
            send_heartbeat(peer, round, view, outbox);
        }
        self.confirm_reads(view, outbox);
    }

    /// Answers the rounds that a quorum has confirmed.
    pub(crate) fn confirm_reads(&mut self, view: &View<'_>, outbox: &mut Outbox) {
        let newest = self.reads.newest_round();
        let confirmed = if planted::is(Planted::ReadWithoutRound) {
            newest
        } else {
            self.quorum_of(view, newest, |peer| peer.read_round)
        };
        while let Some(round) = self.reads.pop_confirmed(confirmed) {
            for Asked { context, from } in round.asked {
                let index = round.index;
                match from {
                    None => outbox.reads.push(ReadState { context, index }),
                    Some(to) => outbox.send(view, to, Body::ReadIndexReply { context, index }),
                }
            }
        }
    }

    /// CheckQuorum (thesis §6.2) and the end of a transfer. Returns whether leadership is lost.
    fn tick(&mut self, view: &View<'_>) -> bool {
        let heard_at = self.quorum_of(view, view.now, |peer| peer.heard_at);
        self.check_quorum_at = heard_at.saturating_add(view.config.election_timeout_max_ns);
        let gave_up = self.transfer.take_if(|transfer| transfer.abort_at <= view.now).is_some();
        // Who doesn't vote any more led on only to hand over.
        let is_out = gave_up && !view.membership.is_voter(view.id);
        is_out || self.check_quorum_at <= view.now
    }

    /// The new commit index, if it rises: what a quorum holds durably, but only through an entry of
    /// this term (paper §5.4.2).
    fn newly_committed(&mut self, view: &View<'_>, durable: Index) -> Option<Index> {
        let held = self.quorum_of(view, durable, |peer| peer.matched);
        let is_own_term = held >= self.term_start || planted::is(Planted::OldTermCommitCounted);
        if held <= view.commit || !is_own_term {
            return None;
        }
        let newly = view.log.slice(view.commit + 1, held, usize::MAX);
        self.uncommitted_bytes -= newly.map(proposal_size).sum::<usize>();
        self.needs_flush = true;
        Some(held)
    }

    /// TimeoutNow, as soon as the successor holds the whole log durably.
    fn maybe_tell_successor(&mut self, view: &View<'_>, outbox: &mut Outbox) {
        let Some(Transfer { to, told: false, .. }) = self.transfer else { return };
        let last = view.log.last_index();
        if self.peer(to).is_some_and(|peer| peer.matched == last) {
            outbox.send(view, to, Body::TimeoutNow);
            self.has_told_successor = true;
            self.transfer.iter_mut().for_each(|transfer| transfer.told = true);
        }
    }
}

/// What an entry counts for in the bound on uncommitted bytes. A leader's own entry is free, so that
/// it can't be what keeps the first proposal out; so is a membership, which may be what is needed to go on.
fn proposal_size(entry: &Entry) -> usize {
    match entry.kind {
        EntryKind::Noop | EntryKind::Membership => 0,
        EntryKind::Command | EntryKind::Admin => entry.size(),
    }
}

fn stamp_for(peer: &Progress, view: &View<'_>) -> LeaderStamp {
    LeaderStamp { sent_at_ns: view.now, echo: peer.stamps.echo }
}

fn send_heartbeat(peer: &mut Progress, read_round: u64, view: &View<'_>, outbox: &mut Outbox) {
    let commit = view.tellable.min(peer.matched);
    peer.told_commit = peer.told_commit.max(commit);
    peer.sent_at = view.now;
    let mut stamp = stamp_for(peer, view);
    if commit < view.tellable && !planted::is(Planted::StampBesideLess) {
        stamp.echo = 0;
    }
    outbox.send(view, peer.id, Body::Heartbeat { commit, read_round, stamp });
}

/// Sends entries from `peer.next` on, at most `max_bytes` of them (`None` = no entries). Returns the
/// last index sent and the bytes; `None` if the entry before is no longer in the log.
fn send_append(
    peer: &mut Progress,
    held_by_all: Index,
    max_bytes: Option<usize>,
    view: &View<'_>,
    outbox: &mut Outbox,
) -> Option<(Index, usize)> {
    let prev = Mark::new(view.log.term_at(peer.next - 1)?, peer.next - 1);
    let to = if max_bytes.is_some() { view.log.last_index() } else { prev.index };
    let slice = view.log.slice(peer.next, to, max_bytes.unwrap_or(0));
    let is_full = peer.full_until.is_some();
    let can_wait = |entry: &Entry| can_wait_for_room(entry, view.term, view.tellable);
    let first_to_wait = || view.log.slice(peer.next, to, usize::MAX).position(can_wait);
    let room = is_full.then(first_to_wait).flatten().unwrap_or(usize::MAX);
    let entries: Vec<_> = slice.take(room).cloned().collect();
    let sent = (prev.index + entries.len() as u64, entries.iter().map(Entry::size).sum());
    peer.told_commit = view.tellable;
    peer.sent_at = view.now;
    let stamp = stamp_for(peer, view);
    let commit = view.tellable;
    outbox.send(view, peer.id, Body::Append { prev, commit, held_by_all, entries, stamp });
    Some(sent)
}

/// Sends one append, or asks for a snapshot, if nothing is outstanding.
fn feed_probe(peer: &mut Progress, held_by_all: Index, view: &View<'_>, outbox: &mut Outbox) {
    let Feed::Probe { sent_at: None, bare } = peer.feed else { return };
    if peer.full_until.is_some_and(|until| view.now < until) {
        return;
    }
    let max_bytes = (!bare).then_some(view.config.append_bytes_max);
    if send_append(peer, held_by_all, max_bytes, view, outbox).is_some() {
        peer.feed = Feed::Probe { sent_at: Some(view.now), bare };
    } else if is_worth_a_snapshot(peer, view) {
        peer.become_snapshot();
        outbox.snapshots_needed.push(peer.id);
    }
}

/// A transfer is expensive: not to a replica that is silent, nor right after one that failed.
fn is_worth_a_snapshot(peer: &Progress, view: &View<'_>) -> bool {
    let silent_at = peer.heard_at.saturating_add(view.config.election_timeout_max_ns);
    view.now >= peer.snapshot_not_before && view.now < silent_at
}

/// Sends all there is, within the window; else news of the commit index, if there is any. While memory runs short, who
/// holds less than what is committed without it gets one append at a time.
fn feed_replicate(peer: &mut Progress, held_by_all: Index, view: &View<'_>, outbox: &mut Outbox) {
    let is_paced = view.pressed && peer.matched < view.commit;
    let mut sent = false;
    loop {
        let Feed::Replicate { window, nudge, .. } = &mut peer.feed else { return };
        let room = if is_paced { window.in_flight().0 == 0 } else { !window.is_full(view.config) };
        let has_entries = room && peer.next <= view.log.last_index();
        let has_news = room && peer.told_commit < view.tellable;
        if !has_entries && (sent || !(has_news || *nudge)) {
            return;
        }
        *nudge = false;
        let max_bytes = has_entries.then_some(view.config.append_bytes_max);
        let Some((last, bytes)) = send_append(peer, held_by_all, max_bytes, view, outbox) else {
            peer.become_probe(peer.next);
            return feed_probe(peer, held_by_all, view, outbox);
        };
        sent = true;
        if has_entries {
            peer.sent_entries(last, bytes, view.now);
        }
    }
}

impl Raft {
    /// The leader's part of a tick.
    pub(crate) fn tick_leader(&mut self) {
        let is_deposed = self.with_leader(|leader, view, _| leader.tick(view));
        if is_deposed {
            self.become_follower(self.term, None);
        } else {
            self.after_membership_commit();
        }
    }

    /// Emits a heartbeat to every follower to which nothing was sent for a heartbeat interval, or of
    /// which a read round waits. The layer above calls it once per interval for all groups; does
    /// nothing unless this replica leads.
    pub fn beat(&mut self, now: Nanos) {
        self.advance_clock(now);
        if self.quiet {
            return;
        }
        self.with_leader(|leader, view, outbox| {
            let round = leader.reads.pending_round();
            leader.prove_stamps(view);
            for peer in &mut leader.peers {
                let idle_ns = view.now.saturating_sub(peer.sent_at);
                let is_asked = peer.read_round < round && view.membership.is_voter(peer.id);
                if is_asked || idle_ns >= view.config.heartbeat_interval_ns {
                    send_heartbeat(peer, round, view, outbox);
                }
                // Waits for the end of a back-off, or for a sign of life.
                leader.needs_flush |= matches!(peer.feed, Feed::Probe { sent_at: None, .. });
            }
        });
    }

    /// Hands leadership to `to`: proposals stop, `to` catches up, TimeoutNow, and it campaigns at once
    /// (thesis §3.10). Given up after an election timeout.
    ///
    /// # Errors
    /// Nothing was done: not the leader, another transfer runs, or `to` isn't another voter.
    pub fn transfer_leadership(&mut self, now: Nanos, to: ReplicaId) -> Result<(), Refused> {
        self.wake(now, now);
        let hint = self.leader();
        let may_lead = to != self.id && self.members.current.is_voter(to);
        let Role::Leader(leader) = &mut self.role else {
            return Err(Refused::NotLeader { leader: hint });
        };
        if !may_lead {
            return Err(Refused::NotAVoter);
        }
        match &leader.transfer {
            Some(transfer) if transfer.to == to => return Ok(()),
            Some(transfer) => return Err(Refused::TransferInProgress { target: transfer.to }),
            None => {}
        }
        let abort_at = self.now.saturating_add(self.config.election_timeout_max_ns);
        leader.hand_over(to, abort_at);
        Ok(())
    }

    /// Memory for logs runs short on this node, or doesn't any more. Meanwhile a leader feeds followers less that hold
    /// less than what is committed: a quorum goes on without them. Those that make up the quorum are fed as ever.
    pub fn set_pressed(&mut self, pressed: bool) {
        self.pressed = pressed;
        self.with_leader(|leader, _, _| leader.needs_flush = true);
    }

    /// Messages to `peer` may have got lost: goes back to one append at a time.
    pub fn report_unreachable(&mut self, peer: ReplicaId) {
        self.with_leader(|leader, _, _| {
            if let Some(peer) = leader.peer(peer)
                && peer.feed_state() == FeedState::Replicate
            {
                peer.become_probe(peer.matched + 1);
                leader.needs_flush = true;
            }
        });
    }

    /// The transfer asked for in [`crate::Ready::snapshots_needed`] has ended. A failed one is asked
    /// for again after a back-off of the minimum election timeout.
    pub fn report_snapshot(&mut self, peer: ReplicaId, delivered: bool) {
        self.with_leader(|leader, view, _| {
            let Some(peer) = leader.peer(peer).filter(|peer| peer.feed_state() == FeedState::Snapshot) else {
                return;
            };
            if delivered {
                peer.become_probe(peer.matched.max(view.log.base().index) + 1);
            } else {
                peer.become_probe(peer.matched + 1);
                peer.snapshot_not_before = view.now.saturating_add(view.config.election_timeout_min_ns);
            }
            leader.needs_flush = delivered;
        });
    }

    /// Up to here every other replica that is fed from the log (not by a snapshot) is known to hold everything durably:
    /// compacting up to here costs nobody a snapshot. Its own durable index if there is nobody else. O(members).
    ///
    /// A leader knows it. The others know what they were last told in an append, or when they led last: an election
    /// changes nothing, so that whoever wins it has the log that laggards need. 0 = nobody has said anything yet; who keeps
    /// what follows is on the safe side. A quiet follower keeps nothing for others. What it says may come from a faulty
    /// peer: how much log is kept is all that may depend on it.
    pub fn held_by_all(&self) -> Index {
        match &self.role {
            Role::Leader(leader) => leader.held_by_all().unwrap_or(self.writes.durable()),
            _ => self.held_by_all,
        }
    }

    /// The target of the transfer that runs, if any.
    pub(crate) fn transfer_target(&self) -> Option<ReplicaId> {
        match &self.role {
            Role::Leader(leader) => leader.transfer.as_ref().map(|transfer| transfer.to),
            _ => None,
        }
    }

    /// Runs `act` if this replica leads.
    pub(crate) fn with_leader<T: Default>(
        &mut self,
        act: impl FnOnce(&mut Leader, &View<'_>, &mut Outbox) -> T,
    ) -> T {
        let Role::Leader(leader) = &mut self.role else { return T::default() };
        let view = View {
            id: self.id,
            term: self.term,
            now: self.now,
            commit: self.commit,
            tellable: self.applying,
            log: &self.log,
            config: &self.config,
            pressed: self.pressed,
            membership: &self.members.current,
        };
        act(leader, &view, &mut self.outbox)
    }

    /// Commits what a quorum holds durably; the leader counts itself like anybody else.
    pub(crate) fn maybe_commit(&mut self) {
        let durable = self.writes.durable();
        let commit = self.with_leader(|leader, view, _| leader.newly_committed(view, durable));
        if let Some(commit) = commit {
            self.commit_to(commit);
            self.after_membership_commit();
        }
    }

    /// A follower answered in our term.
    fn heard(&mut self, from: ReplicaId, stamp: FollowerStamp) -> Option<&mut Progress> {
        let now = self.now;
        let Role::Leader(leader) = &mut self.role else { return None };
        let peer = leader.peer(from)?;
        (peer.heard_at, peer.has_answered) = (now, true);
        let sent_at = stamp.echo_ns.min(now);
        let promised_until = lease::promised_until(sent_at, stamp.promise_ns, &self.config);
        peer.promised_until = peer.promised_until.max(promised_until);
        peer.answered_at = peer.answered_at.max(sent_at);
        peer.stamps.take(stamp.stamp, now);
        Some(peer)
    }

    /// A follower's log equals ours up to `matched`, durably.
    pub(crate) fn on_append_accepted(&mut self, from: ReplicaId, matched: Index, stamp: FollowerStamp) {
        let (now, first, last) = (self.now, self.log.first_index(), self.log.last_index());
        let Some(peer) = self.heard(from, stamp) else { return };
        let state = peer.feed_state();
        let advanced = peer.accepted(matched, first, now);
        let has_more = peer.next <= last || peer.feed_state() != state;
        self.with_leader(|leader, _, _| leader.needs_flush |= has_more || leader.transfer.is_some());
        if advanced {
            self.maybe_commit();
        }
    }

    /// A follower has no room for commands. It gets none until it says otherwise, so that neither it nor
    /// the network is flooded with what would be refused.
    pub(crate) fn on_append_refused(&mut self, from: ReplicaId, matched: Index, stamp: FollowerStamp) {
        let (now, pause) = (self.now, self.config.election_timeout_min_ns);
        let Some(peer) = self.heard(from, stamp) else { return };
        if peer.refused(matched, now, pause) {
            self.with_leader(|leader, _, _| leader.needs_flush = true);
            self.maybe_commit();
        }
    }

    /// A follower doesn't hold `prev`: steps back to where the logs may agree. Both sides skip a
    /// whole term per round trip (paper §5.3).
    pub(crate) fn on_append_rejected(
        &mut self,
        from: ReplicaId,
        prev: Mark,
        hint: Mark,
        stamp: FollowerStamp,
    ) {
        let base = self.log.base();
        let agree = self.log.last_not_above(hint.index, hint.term);
        let Some(peer) = self.heard(from, stamp).filter(|peer| peer.rejection_is_current(prev.index)) else {
            return;
        };
        // No common mark in memory: at the base's index nothing can be sent, so a snapshot is due.
        let next = agree.map_or(hint.index.min(base.index.saturating_sub(1)), |mark| mark.index) + 1;
        peer.become_probe(next.min(prev.index).max(peer.matched + 1));
        self.with_leader(|leader, _, _| leader.needs_flush = true);
    }

    /// A follower lives, and confirms a read round.
    pub(crate) fn on_heartbeat_reply(&mut self, from: ReplicaId, read_round: u64, stamp: FollowerStamp) {
        let (now, patience) = (self.now, 2 * self.config.heartbeat_interval_ns);
        let Some(peer) = self.heard(from, stamp) else { return };
        peer.read_round = peer.read_round.max(read_round);
        let needs_flush = peer.alive(now, patience);
        self.with_leader(|leader, view, outbox| {
            leader.needs_flush |= needs_flush;
            leader.confirm_reads(view, outbox);
        });
    }

    /// A follower forwards a read. What one follower may have waiting is bounded, so that it can neither fill
    /// this leader's memory nor crowd the others out.
    pub(crate) fn on_read_index(&mut self, from: ReplicaId, context: u64) {
        let waiting_max = self.config.peer_reads_max;
        let Role::Leader(leader) = &mut self.role else { return };
        if leader.reads.waiting_of(from) >= waiting_max {
            return self.send(from, Body::ReadIndexRefused { context });
        }
        leader.ask_read(Asked { context, from: Some(from) });
    }
}
