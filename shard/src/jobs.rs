//! Work of state machines that may have to wait for the disk, and what waits for it: the next command of one replica
//! (only that replica's applying stands still), or a read. The core itself never waits.

use crate::ids::ShardId;
use crate::multi_raft::{MultiRaft, Outbox};
use crate::readable::StateView;
use crate::replica::Replica;
use crate::request::{Answer, Query, Refusal, RequestId};
use crate::state_machine::{Job, JobDone};
use floe_raft::ReplicaId;
use std::collections::BTreeMap;

/// Who waits for a job.
enum Waits {
    /// A replica, with its next command.
    Command { shard: ShardId, replica: ReplicaId },
    /// A caller, with this query to the state that it is read from, if that can go on being read.
    Read { id: RequestId, query: Query, state: Option<StateView> },
    /// A replica that takes a dump in, with the next part.
    Part { shard: ShardId, replica: ReplicaId },
    /// Nobody.
    Nobody,
}

/// The jobs of one core that are under way.
#[derive(Default)]
pub(crate) struct Jobs {
    waiting: BTreeMap<u64, Waits>,
    next: u64,
}

impl Jobs {
    fn start(&mut self, waits: Waits, job: Job, outbox: &mut Outbox) {
        let token = self.await_by(waits);
        outbox.jobs.push((token, job));
    }

    /// A number for a job.
    fn await_by(&mut self, waits: Waits) -> u64 {
        self.next += 1;
        self.waiting.insert(self.next, waits);
        self.next
    }

    /// A part of a dump goes into the files of a replica's machine; the job's number.
    pub(crate) fn stage(&mut self, shard: ShardId, replica: ReplicaId, job: Job, outbox: &mut Outbox) -> u64 {
        let token = self.await_by(Waits::Part { shard, replica });
        outbox.stagings.push((token, job));
        token
    }

    /// The replica's next command waits for something that isn't in memory.
    pub(crate) fn fetch(&mut self, replica: &mut Replica, outbox: &mut Outbox) {
        assert!(!replica.fetching, "{}: one command at a time waits", replica.shard);
        replica.fetching = true;
        let waits = Waits::Command { shard: replica.shard, replica: replica.id };
        self.start(waits, replica.machine.fetch(), outbox);
    }

    /// A read goes on in the background. `state` is what it reads, if that can go on being read.
    pub(crate) fn read(
        &mut self,
        (id, query): (RequestId, Query),
        (job, state): (Job, Option<StateView>),
        outbox: &mut Outbox,
    ) {
        self.start(Waits::Read { id, query, state }, job, outbox);
    }
}

impl MultiRaft {
    /// Reads in a state that was taken earlier, in the background: it may have to wait for the disk. The answer
    /// follows in [`crate::Output::answers`].
    pub fn read_in(&mut self, id: RequestId, query: Query, state: StateView) {
        let (asked, view) = (query.clone(), state.clone());
        let job = Box::new(move || view.view.read(&asked, &view.range).map(JobDone::Read));
        self.callers.opened();
        self.jobs.read((id, query), (job, Some(state)), &mut self.outbox);
    }

    /// Lets states go that nobody reads any more, in the background: what they alone hold may be much to free.
    pub fn free(&mut self, states: Vec<StateView>) {
        let job = Box::new(move || {
            drop(states);
            Ok(JobDone::Done)
        });
        self.jobs.start(Waits::Nobody, job, &mut self.outbox);
    }

    /// A job of [`crate::Output::jobs`] or [`crate::Output::stagings`] is done, or can't be: then a read is refused, a replica
    /// whose command waited for it takes part no more, and a dump that was coming is given up.
    pub fn job_done(&mut self, token: u64, done: Result<JobDone, String>) {
        match self.jobs.waiting.remove(&token) {
            Some(Waits::Command { shard, replica }) => self.fetched(shard, replica, done),
            Some(Waits::Nobody) => {}
            Some(Waits::Part { shard, replica }) => {
                // Without a replica: it was destroyed meanwhile.
                if let Some(slot) = self.slot_of(shard, replica) {
                    self.part_taken(token, slot, done);
                    self.touch(slot);
                }
            }
            Some(Waits::Read { id, query, state }) => {
                let answer = match done {
                    Ok(JobDone::Read(found)) => found.into_answer(&query, || state),
                    Ok(other) => panic!("a read was answered by {other:?}"),
                    Err(reason) => Answer::Refused(Refusal::Unavailable { reason }),
                };
                self.stats.reads += 1;
                self.callers.answer(id, answer, &mut self.outbox.answers);
            }
            None => panic!("job {token} was never asked for"),
        }
    }

    fn fetched(&mut self, shard: ShardId, replica: ReplicaId, done: Result<JobDone, String>) {
        // Without one: it was destroyed meanwhile.
        let Some(slot) = self.slot_of(shard, replica) else { return };
        let replica = &mut self.replicas[slot];
        replica.fetching = false;
        if let Err(why) = done {
            replica.break_down(why);
        }
        self.touch(slot);
    }
}
