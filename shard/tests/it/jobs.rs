//! Machines that keep files of their own: what waits for the disk, what doesn't, and dumps that only name files.

use bytes::Bytes;
use floe_raft::Mark;
use floe_shard::output::{LogWrite, Output};
use floe_shard::*;

const MS: u64 = 1_000_000;

/// A memory store that behaves as if nothing of it were in memory: each command waits once, and reads are jobs.
#[derive(Default)]
struct Shelf {
    rows: MemoryStore,
    /// The command at this index has what it needs.
    fetched: Option<u64>,
    wanted: u64,
    /// Memory of what was flushed.
    is_held: bool,
}

impl StateMachine for Shelf {
    fn check(&self, payload: &[u8], range: &KeyRange) -> Result<(), BadPayload> {
        self.rows.check(payload, range)
    }
    fn apply(&mut self, at: Mark, payload: &[u8], range: &KeyRange) -> CommandResult {
        if self.fetched != Some(at.index) {
            self.wanted = at.index;
            return CommandResult::Pending;
        }
        self.rows.apply(at, payload, range)
    }
    fn fetch(&mut self) -> Job {
        self.fetched = Some(self.wanted);
        let fails = self.wanted == 5;
        Box::new(move || if fails { Err("table 9 is damaged".into()) } else { Ok(JobDone::Done) })
    }
    fn read(&self, _: &Query, _: &KeyRange) -> QueryResult {
        panic!("it has a job for that")
    }
    fn read_job(&self, query: &Query, range: &KeyRange) -> Option<Job> {
        let found = self.rows.read(query, range);
        Some(Box::new(|| Ok(JobDone::Read(found))))
    }
    fn dump(&self) -> Box<dyn Dump> {
        self.rows.dump()
    }
    fn has_files(&self) -> bool {
        true
    }
    fn flush(&mut self, _: &DumpHead) -> Option<Box<dyn Dump>> {
        self.is_held = true;
        Some(MemoryStore::new().dump())
    }
    fn flush_ended(&mut self) {
        self.is_held = false;
    }
    fn pressure(&self) -> Pressure {
        if self.is_held { Pressure::Full } else { Pressure::None }
    }
    fn unflushed_bytes(&self) -> u64 {
        self.rows.size_bytes()
    }
    fn restore(&mut self, dump: &Bytes) -> Result<(), BadPayload> {
        self.rows.restore(dump)
    }
    fn size_bytes(&self) -> u64 {
        self.rows.size_bytes()
    }
    fn state_hash(&self) -> u64 {
        self.rows.state_hash()
    }
}

/// One node that leads two shards, each with one replica; its log is durable at once.
struct Node {
    multi: MultiRaft,
    shards: Vec<ShardId>,
    jobs: Vec<(u64, Job)>,
    answers: Vec<(RequestId, Answer)>,
    saves: Vec<(ShardId, floe_raft::ReplicaId, u64)>,
    flushed: Vec<ShardId>,
    now: u64,
}

impl Node {
    fn new() -> Self {
        let me = CoreAddr { node: NodeId(1), core: 0 };
        let mut multi = MultiRaft::new(me, ShardConfig::default(), 1, 7);
        let descriptors = pre_split(&[NodeId(1)], 2, 1);
        let shards = descriptors.iter().map(|descriptor| descriptor.shard).collect();
        for descriptor in descriptors {
            multi.bootstrap(0, descriptor, Box::new(Shelf::default()));
        }
        let (jobs, answers, saves, flushed) = Default::default();
        let mut node = Self { multi, shards, jobs, answers, saves, flushed, now: 0 };
        while node.multi.leaders() < 2 {
            node.now += 10 * MS;
            node.multi.tick(node.now);
            node.turns();
        }
        node
    }

    /// Turns until there is nothing to do but jobs.
    fn turns(&mut self) {
        while self.multi.has_work() {
            let mut out = Output::default();
            self.multi.collect(self.now, &mut out);
            self.multi.persisted(&out.persists);
            self.jobs.append(&mut out.jobs);
            self.answers.append(&mut out.answers);
            self.saves.extend(out.dump_saves.iter().map(|save| (save.shard, save.replica, save.generation)));
            self.flushed.extend(out.writes.iter().filter_map(|write| match write {
                LogWrite::TruncatePrefix { shard, .. } => Some(*shard),
                _ => None,
            }));
        }
    }

    fn put(&mut self, id: u64, shard: usize, value: &'static str) {
        let key: &[u8] = if shard == 0 { b"a" } else { &[0xF0] };
        let command = encode_put(1, key, value.as_bytes()).expect("a small put");
        let request = Request::Write { shard: self.shards[shard], command };
        self.multi.submit(self.now, RequestId(id), request).expect("it leads");
        self.turns();
    }

    fn run_job(&mut self, at: usize) {
        let (token, job) = self.jobs.remove(at);
        self.multi.job_done(token, job());
        self.turns();
    }

    fn answered(&mut self) -> Vec<u64> {
        self.answers.drain(..).map(|(id, _)| id.0).collect()
    }
}

#[test]
fn a_command_that_waits_for_the_disk_holds_up_its_own_shard_alone_and_in_order() {
    let mut node = Node::new();
    node.put(1, 0, "one");
    node.put(2, 0, "two");
    node.put(3, 1, "other");
    assert_eq!((node.jobs.len(), node.answered()), (2, vec![]), "one job per shard, nobody is answered");
    node.run_job(1);
    assert_eq!(node.answered(), [3], "the other shard goes on");
    node.run_job(0);
    assert_eq!(node.answered(), [1]);
    node.run_job(0);
    assert_eq!(node.answered(), [2]);
    let query = Query::Get { key: Bytes::from_static(b"a") };
    let read = Request::Read {
        shard: node.shards[0],
        range_epoch: 1,
        query,
        consistency: Consistency::Linearizable,
    };
    node.multi.submit(node.now, RequestId(4), read).unwrap();
    node.turns();
    assert!(node.answered().is_empty());
    node.run_job(0);
    let (_, Answer::Value(Some(value))) = node.answers.remove(0) else { panic!() };
    assert_eq!(value.value, "two");
    assert_eq!(node.multi.open_requests(), 0);
}

#[test]
fn what_cannot_be_fetched_breaks_its_replica_and_says_why() {
    let mut node = Node::new();
    // Marks 1 and 2 are the founding one and the leader's first entry.
    for id in 3..=5 {
        node.put(id, 0, "x");
        node.run_job(0);
    }
    assert_eq!(node.answered(), [3, 4]);
    let status = node.multi.status(node.shards[0]).unwrap();
    assert_eq!(status.fault.as_deref(), Some("table 9 is damaged"));
    assert_eq!(node.multi.status(node.shards[1]).unwrap().fault, None);
}

#[test]
fn short_of_memory_the_machine_with_the_most_unflushed_bytes_is_flushed_and_lets_go_of_them() {
    let mut node = Node::new();
    node.put(1, 1, "small");
    node.put(2, 0, "much, much bigger than the other one");
    node.run_job(0);
    node.run_job(0);
    node.multi.flush_largest();
    node.turns();
    let [(shard, replica, generation)] = node.saves[..] else { panic!("{:?}", node.saves) };
    assert_eq!((shard, node.multi.pressure()), (node.shards[0], Pressure::Full));
    node.multi.dump_saved(shard, replica, generation, Ok(24));
    // Without another command: none is taken in while there is no memory.
    assert_eq!(node.multi.pressure(), Pressure::None);
    node.turns();
    assert_eq!(node.flushed, [shard]);
}
