//! Requests from callers: checked where they enter, so that what is in the log can be applied.

use crate::command::{COMMAND_VERSION, split_head};
use crate::descriptor::Descriptor;
use crate::ids::{NodeId, ShardId};
use crate::members::AskedChange;
use crate::multi_raft::MultiRaft;
use crate::readable::StateView;
use crate::reads::PendingRead;
use crate::replica::{ADMIN_VERSION, Held, Replica, Stage};
use crate::request::{Answer, BusyReason, Consistency, Query, Refusal, Request, RequestId};
use crate::shard_map::is_newer;
use crate::state_machine::{BadPayload, Job};
use bytes::Bytes;
use floe_raft::{EntryKind, Nanos, Planted, Refused, is_planted};
use std::time::Duration;

impl MultiRaft {
    /// Takes a request. The answer follows in [`crate::Output::answers`].
    ///
    /// # Errors
    /// What is answered at once: every refusal that is known here, and stale reads.
    pub fn submit(&mut self, now: Nanos, id: RequestId, request: Request) -> Result<(), Answer> {
        self.advance_clock(now);
        let shard = request.shard();
        let slot = *self.slots.get(&shard).ok_or(Answer::Refused(Refusal::NoSuchShard { shard }))?;
        match self.replicas[slot].stage {
            Stage::Running => {}
            Stage::Leaving => return Err(Answer::Refused(Refusal::NoSuchShard { shard })),
            Stage::Booting => return Err(Answer::Refused(Refusal::NotLeader { leader: None })),
            Stage::Broken => {
                let reason = self.replicas[slot].work.broken.clone();
                return Err(Answer::Refused(Refusal::Unavailable { reason }));
            }
        }
        if self.replicas[slot].is_unled() {
            self.unled.entry(slot).or_insert(1);
        }
        match request {
            Request::Write { command, .. } => {
                self.submit_write(slot, id, command).map_err(Answer::Refused)?;
                if is_planted(Planted::AnswerBeforeCommit) {
                    self.callers.opened();
                    self.callers.abandon(id);
                    self.touch(slot);
                    let version = self.replicas[slot].raft.last_mark().index;
                    return Err(Answer::Written { version });
                }
            }
            Request::Read { range_epoch, query, consistency, .. } => {
                self.submit_read(slot, PendingRead { id, query, range_epoch, consistency })?;
            }
            Request::TransferLeadership { to, .. } => self.hand_over(slot, id, to)?,
            Request::ChangeMembers { changes, force, .. } => {
                self.ask_change(slot, AskedChange { id, changes, force }).map_err(Answer::Refused)?;
            }
        }
        self.callers.opened();
        self.touch(slot);
        Ok(())
    }

    /// Nobody waits for the answer any more; what was begun goes on. Cheap: the request stays where it
    /// waits and its answer is dropped. An answer that is in an [`crate::Output`] already is not taken back.
    pub fn abandon(&mut self, id: RequestId) {
        self.callers.abandon(id);
    }

    /// Replaces the shard's descriptor by a newer one with the same members (a new range epoch, range or feature
    /// level), through the log. Answered with `Done` once applied.
    ///
    /// # Errors
    /// As [`MultiRaft::submit`]; `WrongEpoch` if the descriptor isn't newer, or changes members.
    pub fn change_descriptor(
        &mut self,
        now: Nanos,
        id: RequestId,
        descriptor: Descriptor,
    ) -> Result<(), Answer> {
        self.advance_clock(now);
        let shard = descriptor.shard;
        let slot = self.running(shard).ok_or(Answer::Refused(Refusal::NoSuchShard { shard }))?;
        let replica = &mut self.replicas[slot];
        let current = &replica.descriptor;
        if !is_newer(descriptor.epoch, current.epoch) || descriptor.replicas != current.replicas {
            return Err(Answer::Refused(replica.wrong_epoch()));
        }
        let data = descriptor.encode();
        replica.propose(self.now, id, EntryKind::Admin, ADMIN_VERSION, data).map_err(Answer::Refused)?;
        self.callers.opened();
        self.touch(slot);
        Ok(())
    }

    fn submit_write(&mut self, slot: usize, id: RequestId, command: Bytes) -> Result<(), Refusal> {
        let replica = &mut self.replicas[slot];
        if !replica.raft.is_leader() {
            return Err(replica.not_leader(replica.raft.leader()));
        }
        let out_of_memory = self.log_budget.is_full().then_some(BusyReason::LogMemory);
        if let Some(reason) = self.refuses_proposals.or(out_of_memory) {
            return Err(Refusal::Busy(reason));
        }
        replica.check_command(&command)?;
        let len = command.len();
        let is_full =
            replica.work.turn_bytes > 0 && replica.work.turn_bytes + len > self.config.turn_bytes_max;
        if is_full || !replica.work.held.is_empty() {
            return replica.hold(Held { id, command }, self.config.raft.uncommitted_bytes_max);
        }
        replica.work.turn_bytes += len;
        replica.propose(self.now, id, EntryKind::Command, COMMAND_VERSION, command)?;
        self.stats.proposals += 1;
        Ok(())
    }

    fn submit_read(&mut self, slot: usize, read: PendingRead) -> Result<(), Answer> {
        let replica = &mut self.replicas[slot];
        if read.consistency.allows(replica.age_ns(self.now)) {
            match replica.serve(&read.query, read.range_epoch) {
                Served::Now(answer) => {
                    self.stats.reads += 1;
                    return Err(answer);
                }
                Served::Later(job, state) => {
                    self.jobs.read((read.id, read.query), (job, state), &mut self.outbox);
                }
            }
            return Ok(());
        }
        let may_ask = match read.consistency {
            Consistency::Linearizable => replica.raft.is_leader(),
            Consistency::LinearizableLocal | Consistency::Stale { .. } => replica.raft.leader().is_some(),
        };
        if !may_ask {
            return Err(Answer::Refused(replica.read_refusal(read.consistency, self.now)));
        }
        replica.check_read(&read.query, read.range_epoch).map_err(Answer::Refused)?;
        replica.work.reads.push(read);
        self.wake_by(slot, self.replicas[slot].id);
        Ok(())
    }

    fn hand_over(&mut self, slot: usize, id: RequestId, to: NodeId) -> Result<(), Answer> {
        let replica = &mut self.replicas[slot];
        if !replica.raft.is_leader() {
            return Err(Answer::Refused(replica.not_leader(replica.raft.leader())));
        }
        let Some(target) = replica.descriptor.replica_on(to).map(|place| place.replica) else {
            return Err(Answer::Refused(Refusal::NotAMember { node: to }));
        };
        if target == replica.id {
            return Err(Answer::Done);
        }
        if replica.work.handing_over.is_some() {
            return Err(Answer::Refused(Refusal::Busy(BusyReason::Transfer)));
        }
        let began = replica.raft.transfer_leadership(self.now, target);
        began.map_err(|why| match why {
            Refused::NotAVoter => Answer::Refused(Refusal::NotAMember { node: to }),
            why => Answer::Refused(replica.refusal(why)),
        })?;
        replica.work.handing_over = Some((id, target));
        self.watched.insert(slot);
        Ok(())
    }

    /// A descriptor of a shard whose replica is here.
    pub fn descriptor(&self, shard: ShardId) -> Option<&Descriptor> {
        self.slots.get(&shard).map(|&slot| &self.replicas[slot].descriptor)
    }
}

impl Replica {
    /// Epoch, form, limits and range of a command.
    fn check_command(&self, command: &[u8]) -> Result<(), Refusal> {
        let malformed = |reason| Refusal::BadCommand { reason };
        let Some((epoch, payload)) = split_head(command) else {
            return Err(malformed("shorter than a command's head".to_owned()));
        };
        if epoch != self.descriptor.epoch.range {
            return Err(self.wrong_epoch());
        }
        self.machine.check(payload, &self.descriptor.range).or_else(|bad| match bad {
            BadPayload::OutOfRange if is_planted(Planted::RangeNotChecked) => Ok(()),
            BadPayload::OutOfRange => Err(self.out_of_range()),
            BadPayload::Malformed(reason) => Err(malformed(reason)),
        })
    }

    pub(crate) fn propose(
        &mut self,
        now: Nanos,
        id: RequestId,
        kind: EntryKind,
        version: u8,
        data: Bytes,
    ) -> Result<(), Refusal> {
        match self.raft.propose(now, kind, version, data) {
            Ok(mark) => {
                self.work.proposals.push(mark, id);
                Ok(())
            }
            Err(why) => Err(self.refusal(why)),
        }
    }

    /// Keeps a command for a later turn, within bounds.
    fn hold(&mut self, held: Held, bytes_max: usize) -> Result<(), Refusal> {
        if self.work.held_bytes + held.command.len() > bytes_max {
            return Err(Refusal::Busy(BusyReason::UncommittedBytes));
        }
        self.work.held_bytes += held.command.len();
        self.work.held.push_back(held);
        Ok(())
    }

    pub(crate) fn refusal(&self, why: Refused) -> Refusal {
        match why {
            Refused::NotLeader { leader } => self.not_leader(leader),
            Refused::TransferInProgress { .. } => Refusal::Busy(BusyReason::Transfer),
            Refused::TooManyUncommittedBytes => Refusal::Busy(BusyReason::UncommittedBytes),
            Refused::TooManyReads => Refusal::Busy(BusyReason::Requests),
            Refused::ChangePending { .. } | Refused::NothingCommittedYet | Refused::VotersUnheard => {
                Refusal::Busy(BusyReason::MemberChange)
            }
            Refused::Change(_) | Refused::LosesQuorum => Refusal::BadChange { reason: why.to_string() },
            why => Refusal::Unavailable { reason: why.to_string() },
        }
    }

    /// How old the applied state is at most; `None` = nothing is known.
    fn age_ns(&self, now: Nanos) -> Option<Nanos> {
        // While its lease runs nobody else acknowledges anything; a quiet replica's clock may be behind `now`.
        let leased_to = self.raft.lease().map_or(0, |lease| lease.until.min(now));
        let fresh_at = leased_to.max(self.raft.fresh_at());
        (fresh_at > 0).then(|| now.saturating_sub(fresh_at))
    }

    /// Why a read can't be served that nobody gave an index for.
    pub(crate) fn read_refusal(&self, consistency: Consistency, now: Nanos) -> Refusal {
        match consistency {
            Consistency::Stale { .. } => {
                Refusal::TooStale { age: self.age_ns(now).map(Duration::from_nanos) }
            }
            Consistency::Linearizable | Consistency::LinearizableLocal => self.not_leader(self.raft.leader()),
        }
    }

    fn check_read(&self, query: &Query, range_epoch: u64) -> Result<(), Refusal> {
        if range_epoch != self.descriptor.epoch.range {
            return Err(self.wrong_epoch());
        }
        match query {
            Query::Get { key } if !self.descriptor.range.contains(key) => Err(self.out_of_range()),
            _ => Ok(()),
        }
    }

    /// Reads the state as it is.
    pub(crate) fn serve(&self, query: &Query, range_epoch: u64) -> Served {
        if let Err(refusal) = self.check_read(query, range_epoch) {
            return Served::Now(Answer::Refused(refusal));
        }
        let range = &self.descriptor.range;
        match self.machine.read_job(query, range) {
            Some(job) => {
                let goes_on = query.goes_on_after(0);
                Served::Later(job, if goes_on { self.view() } else { None })
            }
            None => Served::Now(self.machine.read(query, range).into_answer(query, || self.view())),
        }
    }
}

/// How a read is answered.
pub(crate) enum Served {
    /// From memory.
    Now(Answer),
    /// In the background; what is read, if it is a scan and that can go on being read.
    Later(Job, Option<StateView>),
}
