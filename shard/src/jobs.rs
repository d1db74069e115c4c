//! Work of state machines that may have to wait for the disk, and what waits for it: the next command of one replica
//! (only that replica's applying stands still), or a read. The core itself never waits.

use crate::ids::ShardId;
use crate::multi_raft::{MultiRaft, Outbox};
use crate::replica::{Replica, Stage};
use crate::request::{Answer, Refusal, RequestId};
use crate::state_machine::{Job, JobDone, QueryResult};
use floe_raft::ReplicaId;
use std::collections::BTreeMap;

/// Who waits for a job.
enum Waits {
    /// A replica, with its next command.
    Command { shard: ShardId, replica: ReplicaId },
    /// A caller.
    Read { id: RequestId },
}

/// The jobs of one core that are under way.
#[derive(Default)]
pub(crate) struct Jobs {
    waiting: BTreeMap<u64, Waits>,
    next: u64,
}

impl Jobs {
    fn start(&mut self, waits: Waits, job: Job, outbox: &mut Outbox) {
        self.waiting.insert(self.next, waits);
        outbox.jobs.push((self.next, job));
        self.next += 1;
    }

    /// The replica's next command waits for something that isn't in memory.
    pub(crate) fn fetch(&mut self, replica: &mut Replica, outbox: &mut Outbox) {
        assert!(!replica.fetching, "{}: one command at a time waits", replica.shard);
        replica.fetching = true;
        let waits = Waits::Command { shard: replica.shard, replica: replica.id };
        self.start(waits, replica.machine.fetch(), outbox);
    }

    /// A read goes on in the background.
    pub(crate) fn read(&mut self, id: RequestId, job: Job, outbox: &mut Outbox) {
        self.start(Waits::Read { id }, job, outbox);
    }
}

impl MultiRaft {
    /// A job of [`crate::Output::jobs`] is done, or can't be: then a read is refused, and a replica whose command
    /// waited for it takes part no more.
    pub fn job_done(&mut self, token: u64, done: Result<JobDone, String>) {
        match self.jobs.waiting.remove(&token) {
            Some(Waits::Command { shard, replica }) => self.fetched(shard, replica, done),
            Some(Waits::Read { id }) => {
                let answer = match done {
                    Ok(JobDone::Read(found)) => found.into_answer(),
                    Ok(JobDone::Fetched) => panic!("a read was answered by a fetch"),
                    Err(reason) => Answer::Refused(Refusal::Unavailable { reason }),
                };
                self.stats.reads += 1;
                self.callers.answer(id, answer, &mut self.outbox.answers);
            }
            None => panic!("job {token} was never asked for"),
        }
    }

    fn fetched(&mut self, shard: ShardId, replica: ReplicaId, done: Result<JobDone, String>) {
        let slot = self.slots.get(&shard).copied().filter(|&slot| self.replicas[slot].id == replica);
        // Without one: it was destroyed meanwhile.
        let Some(slot) = slot else { return };
        let replica = &mut self.replicas[slot];
        replica.fetching = false;
        if let Err(why) = done {
            replica.stage = Stage::Broken(why);
        }
        self.touch(slot);
    }
}

impl QueryResult {
    /// The answer to whoever asked.
    pub fn into_answer(self) -> Answer {
        match self {
            Self::Value(value) => Answer::Value(value),
            Self::Rows(rows, more) => Answer::Rows { rows, more },
        }
    }
}
