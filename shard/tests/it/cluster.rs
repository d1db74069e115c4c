//! Three nodes in memory: messages take a turn, disks take as long as a test says, both can be cut.

#![allow(clippy::unwrap_used, reason = "a fixture: what fails here is a failed test")]

use bytes::Bytes;
use floe_raft::{Mark, Nanos};
use floe_shard::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const MS: Nanos = 1_000_000;

/// One group commit on its way to the disk.
struct Commit {
    due_at: Nanos,
    writes: Vec<LogWrite>,
    persists: Vec<PersistToken>,
    sends_after: Vec<(CoreAddr, PeerMessage)>,
}

pub struct Node {
    pub addr: CoreAddr,
    pub multi: MultiRaft,
    in_flight: VecDeque<Commit>,
    pub disk: BTreeMap<ShardId, ShardState>,
    pub dumps: BTreeMap<(ShardId, u64), Bytes>,
    /// Lowest replicas that may come, of destroyed ones.
    pub tombstones: BTreeMap<ShardId, u64>,
    saved: Vec<(ShardId, floe_raft::ReplicaId, u64, u64)>,
    /// Shards whose whole state was written, as it became durable.
    pub resets: Vec<ShardId>,
    /// Dumps aren't saved for the time being.
    pub dumps_stuck: bool,
    pub answers: BTreeMap<RequestId, Answer>,
    pub beats_sent: u64,
    /// Messages of groups and rows of beats.
    pub words_sent: u64,
    /// Most messages of groups that one turn sent, apart from beats.
    pub messages_per_turn: usize,
    /// Turns in which there was something to do.
    pub turns: u64,
    /// Until when its last turn takes.
    pub busy_until: Nanos,
    /// What has come in meanwhile.
    inbox: Vec<(CoreAddr, PeerBatch)>,
    /// Most entries that one turn of one shard wrote.
    pub entries_per_turn: usize,
    /// Most entries that one turn applied.
    pub applied_per_turn: u64,
}

pub struct Cluster {
    pub now: Nanos,
    pub nodes: Vec<Node>,
    pub config: ShardConfig,
    pub map: ShardMap,
    /// Nodes that nobody hears, and that hear nobody.
    pub isolated: BTreeSet<usize>,
    /// Nodes of which others hear nothing but that they live.
    pub beats_only: BTreeSet<usize>,
    /// From whom to whom nothing arrives.
    pub cut: BTreeSet<(usize, usize)>,
    pub disk_latency: Nanos,
    /// Nodes whose disks are slower, and by how much.
    pub slow_disks: BTreeMap<usize, Nanos>,
    /// How long a turn takes for each replica that is stepped in it; what it sends leaves at its end.
    pub replica_turn: Nanos,
    /// With when they leave.
    network: Vec<(Nanos, CoreAddr, CoreAddr, PeerBatch)>,
    next_id: u64,
}

pub fn addr(node: usize) -> CoreAddr {
    CoreAddr { node: NodeId(node as u64 + 1), core: 0 }
}

impl Cluster {
    pub fn new(config: ShardConfig, shards: u32) -> Self {
        Self::with_spares(config, shards, 0)
    }

    /// With `spares` nodes that have no replica at first.
    pub fn with_spares(config: ShardConfig, shards: u32, spares: usize) -> Self {
        Self::of(3, spares, config, shards)
    }

    /// One node that is every shard's only voter.
    pub fn alone(shards: u32) -> Self {
        Self::of(1, 0, ShardConfig::default(), shards)
    }

    /// One shard of five replicas.
    pub fn of_five() -> Self {
        Self::of(5, 0, ShardConfig::default(), 1)
    }

    fn of(members: usize, spares: usize, config: ShardConfig, shards: u32) -> Self {
        let ids: Vec<_> = (0..members).map(|node| addr(node).node).collect();
        let descriptors = pre_split(&ids, shards, members);
        let nodes = (0..members + spares).map(|node| Node::new(node, &config, 1)).collect();
        let mut cluster = Self {
            now: MS,
            nodes,
            config,
            map: ShardMap::new(descriptors.clone()),
            isolated: BTreeSet::new(),
            cut: BTreeSet::new(),
            beats_only: BTreeSet::new(),
            disk_latency: 2 * MS,
            slow_disks: BTreeMap::new(),
            replica_turn: 0,
            network: Vec::new(),
            next_id: 1,
        };
        for node in 0..members {
            for descriptor in &descriptors {
                let machine = Box::new(MemoryStore::new());
                cluster.nodes[node].multi.bootstrap(cluster.now, descriptor.clone(), machine);
            }
        }
        (0..members + spares).for_each(|node| cluster.connect(node));
        cluster
    }

    pub fn cut_both_ways(&mut self, one: usize, other: usize) {
        self.cut.extend([(one, other), (other, one)]);
    }

    pub fn leads(&self, node: usize, shard: ShardId) -> bool {
        self.nodes[node].multi.raft(shard).is_some_and(|raft| raft.is_leader())
    }

    pub fn connect(&mut self, node: usize) {
        for peer in (0..self.nodes.len()).filter(|&peer| peer != node) {
            self.nodes[node].multi.peer_up(self.now, addr(peer).node, 1);
        }
    }

    /// One millisecond passes.
    pub fn turn(&mut self) {
        self.now += MS;
        let (left, on_its_way) =
            std::mem::take(&mut self.network).into_iter().partition(|(leaves_at, ..)| *leaves_at < self.now);
        self.network = on_its_way;
        self.deliver(left);
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if self.now < node.busy_until {
                continue;
            }
            let slower = self.slow_disks.get(&at).copied().unwrap_or(0);
            let (sends, stepped) = node.turn(self.now, self.disk_latency + slower);
            node.busy_until = self.now + stepped as Nanos * self.replica_turn;
            let (from, leaves_at) = (node.addr, node.busy_until);
            self.network.extend(sends.into_iter().map(|(to, batch)| (leaves_at, from, to, batch)));
        }
    }

    fn deliver(&mut self, left: Vec<(Nanos, CoreAddr, CoreAddr, PeerBatch)>) {
        for (_, from, to, mut batch) in left {
            let ends = [from, to].map(|end| end.node.0 as usize - 1);
            if self.beats_only.contains(&ends[0]) {
                batch = PeerBatch { beat: batch.beat, ..PeerBatch::default() };
            }
            let is_cut = self.cut.contains(&(ends[0], ends[1]));
            if !is_cut && !ends.iter().any(|end| self.isolated.contains(end)) {
                self.nodes[ends[1]].inbox.push((from, batch));
            }
        }
    }

    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.turn();
        }
    }

    /// Runs until `done`, at most 10 seconds.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..10_000 {
            if done(self) {
                return;
            }
            self.turn();
        }
        panic!("{what}: not within 10 s");
    }

    pub fn leader_of(&self, shard: ShardId) -> Option<usize> {
        let leads = |node: &usize| !self.isolated.contains(node) && self.leads(*node, shard);
        (0..self.nodes.len()).find(leads)
    }

    pub fn await_leader(&mut self, shard: ShardId) -> usize {
        self.run_until("a leader", |cluster| cluster.leader_of(shard).is_some());
        self.leader_of(shard).unwrap()
    }

    /// Submits to a node; the answer is there at once or in `Node::answers` later.
    pub fn submit(&mut self, node: usize, request: Request) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        if let Err(answer) = self.nodes[node].multi.submit(self.now, id, request) {
            self.nodes[node].answers.insert(id, answer);
        }
        id
    }

    /// Submits and waits for the answer.
    pub fn ask(&mut self, node: usize, request: Request) -> Answer {
        let id = self.submit(node, request);
        self.run_until("an answer", |cluster| cluster.nodes[node].answers.contains_key(&id));
        self.nodes[node].answers.remove(&id).unwrap()
    }

    pub fn put(&mut self, node: usize, shard: ShardId, key: &[u8], value: &[u8]) -> Answer {
        self.ask(node, write(shard, key, value))
    }

    pub fn get(&mut self, node: usize, shard: ShardId, key: &'static [u8]) -> Answer {
        self.ask(node, get(shard, key, Consistency::Linearizable))
    }

    /// Power failure: only what is durable comes back.
    pub fn restart(&mut self, node: usize, rehome: bool) {
        let before = std::mem::replace(&mut self.nodes[node], Node::new(node, &self.config, 2));
        for (shard, lowest) in before.tombstones {
            self.nodes[node].multi.forbid(shard, lowest);
            self.nodes[node].tombstones.insert(shard, lowest);
        }
        for (_, mut state) in before.disk {
            let mut machine = MemoryStore::new();
            if state.generation > 0 {
                let (head, body) = open_dump(&before.dumps[&(state.shard, state.generation)]).unwrap();
                assert_eq!(head.mark, state.flushed);
                machine.restore(&body).unwrap();
                state.descriptor = head.descriptor.encode();
            }
            self.nodes[node].disk.insert(state.shard, state.clone());
            self.nodes[node].multi.restore(self.now, state, Box::new(machine), rehome);
        }
        self.nodes[node].dumps = before.dumps;
        self.connect(node);
    }

    pub fn assert_equal_states(&self, shard: ShardId) {
        let hashes: Vec<_> = self.nodes.iter().map(|node| node.multi.state_hash(shard).unwrap()).collect();
        assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    }
}

impl Node {
    fn new(node: usize, config: &ShardConfig, boot_epoch: u64) -> Self {
        Self {
            addr: addr(node),
            multi: MultiRaft::new(addr(node), config.clone(), boot_epoch, 7 + node as u64),
            in_flight: VecDeque::new(),
            disk: BTreeMap::new(),
            dumps: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            saved: Vec::new(),
            resets: Vec::new(),
            dumps_stuck: false,
            answers: BTreeMap::new(),
            beats_sent: 0,
            words_sent: 0,
            messages_per_turn: 0,
            turns: 0,
            busy_until: 0,
            inbox: Vec::new(),
            entries_per_turn: 0,
            applied_per_turn: 0,
        }
    }

    /// Whether the shard's whole state is on its way to the disk.
    pub fn is_resetting(&self, shard: ShardId) -> bool {
        let is_reset = |write: &LogWrite| matches!(write, LogWrite::Reset(state) if state.shard == shard);
        self.in_flight.iter().any(|commit| commit.writes.iter().any(is_reset))
    }

    /// What is sent, and how many replicas were stepped.
    fn turn(&mut self, now: Nanos, disk_latency: Nanos) -> (BTreeMap<CoreAddr, PeerBatch>, usize) {
        for (from, batch) in std::mem::take(&mut self.inbox) {
            self.multi.receive(now, from, batch);
        }
        let mut sends: BTreeMap<CoreAddr, PeerBatch> = BTreeMap::new();
        while let Some(commit) = self.in_flight.pop_front_if(|commit| commit.due_at <= now) {
            commit.writes.into_iter().for_each(|write| self.make_durable(write));
            self.multi.persisted(&commit.persists);
            for (to, message) in commit.sends_after {
                sends.entry(to).or_default().messages.push(message);
            }
        }
        let saved = if self.dumps_stuck { Vec::new() } else { std::mem::take(&mut self.saved) };
        for (shard, replica, generation, len) in saved {
            self.multi.dump_saved(shard, replica, generation, Ok(len));
        }
        let is_due = self.multi.deadline() <= now;
        self.turns += u64::from(is_due || self.multi.has_work());
        if is_due {
            self.multi.tick(now);
        }
        let mut out = Output { sends, ..Output::default() };
        let mut turns = 0;
        while self.multi.has_work() {
            let written = out.writes.len();
            let applied = self.multi.stats().applied;
            self.multi.collect(now, &mut out);
            self.applied_per_turn = self.applied_per_turn.max(self.multi.stats().applied - applied);
            let entries = out.writes[written..].iter().map(entries_of).max().unwrap_or(0);
            self.entries_per_turn = self.entries_per_turn.max(entries);
            turns += 1;
            assert!(turns < 1000, "a turn never ends");
        }
        let stepped = out.turned.len();
        (self.carry_out(now + disk_latency, out), stepped)
    }

    fn carry_out(&mut self, due_at: Nanos, out: Output) -> BTreeMap<CoreAddr, PeerBatch> {
        for save in out.dump_saves {
            let mut bytes = Vec::new();
            save.data.write(&mut bytes).expect("memory takes what it is given");
            self.saved.push((save.shard, save.replica, save.generation, bytes.len() as u64));
            self.dumps.insert((save.shard, save.generation), Bytes::from(bytes));
        }
        for remove in out.dump_removes {
            self.dumps.remove(&(remove.shard, remove.generation)).expect("removed once");
        }
        for read in out.dump_reads {
            let (offset, len) = (read.offset as usize, read.len as usize);
            let part =
                self.dumps.get(&(read.shard, read.generation)).map(|dump| dump.slice(offset..offset + len));
            self.multi.dump_read(read.token, part.ok_or("gone".to_owned()));
        }
        for (id, answer) in out.answers {
            assert!(self.answers.insert(id, answer).is_none(), "{id:?} is answered twice");
        }
        for descriptor in out.creates {
            self.multi.create(due_at, descriptor, Box::new(MemoryStore::new()));
        }
        self.beats_sent += out.sends.values().filter(|batch| batch.beat.is_some()).count() as u64;
        self.words_sent += out.sends.values().map(words).sum::<u64>();
        let messages = out.sends.values().map(|batch| batch.messages.len()).sum();
        self.messages_per_turn = self.messages_per_turn.max(messages);
        self.in_flight.push_back(Commit {
            due_at,
            writes: out.writes,
            persists: out.persists,
            sends_after: out.sends_after,
        });
        out.sends
    }

    fn at(&mut self, shard: ShardId) -> &mut ShardState {
        self.disk.get_mut(&shard).expect("a shard begins with a Reset")
    }

    /// What a WAL's recovery makes of its records.
    fn make_durable(&mut self, write: LogWrite) {
        match write {
            LogWrite::Tombstone { shard, lowest_replica } => {
                let before = self.disk.remove(&shard).expect("what is destroyed was there");
                assert!(before.replica.get() < lowest_replica, "a tombstone leaves what it is for");
                self.tombstones.insert(shard, lowest_replica);
            }
            LogWrite::Reset(state) => {
                self.tombstones.remove(&state.shard);
                self.resets.push(state.shard);
                self.disk.insert(state.shard, *state);
            }
            LogWrite::HardState { shard, state, .. } => self.at(shard).hard_state = state,
            LogWrite::Entries { shard, entries, .. } => {
                let (log, first) = (&mut self.at(shard).entries, entries[0].mark.index);
                log.retain(|entry| entry.mark.index < first);
                log.extend(entries);
            }
            LogWrite::TruncatePrefix { shard, flushed, generation, .. } => {
                self.at(shard).cut(flushed, generation, true)
            }
            LogWrite::SnapshotInstall { shard, mark, generation, keep_suffix, .. } => {
                self.at(shard).cut(mark, generation, keep_suffix);
            }
        }
    }
}

fn words(batch: &PeerBatch) -> u64 {
    let beat = batch.beat.as_ref().map_or(0, |beat| beat.groups.len() + beat.quiet.len());
    let reply = batch.beat_reply.as_ref().map_or(0, |reply| reply.groups.len());
    (beat + reply + batch.messages.len()) as u64
}

fn entries_of(write: &LogWrite) -> usize {
    match write {
        LogWrite::Entries { entries, .. } => entries.len(),
        _ => 0,
    }
}

trait Cut {
    fn cut(&mut self, flushed: Mark, generation: u64, keep_suffix: bool);
}

impl Cut for ShardState {
    fn cut(&mut self, flushed: Mark, generation: u64, keep_suffix: bool) {
        (self.flushed, self.generation) = (flushed, generation);
        self.entries.retain(|entry| keep_suffix && entry.mark.index > flushed.index);
    }
}

pub fn write(shard: ShardId, key: &[u8], value: &[u8]) -> Request {
    Request::Write { shard, command: encode_put(1, key, value).unwrap() }
}

pub fn get(shard: ShardId, key: &'static [u8], consistency: Consistency) -> Request {
    Request::Read { shard, range_epoch: 1, query: Query::Get { key: Bytes::from_static(key) }, consistency }
}

/// The value of an answered get.
pub fn value_of(answer: &Answer) -> Option<&[u8]> {
    match answer {
        Answer::Value(value) => value.as_ref().map(|value| &value.value[..]),
        other => panic!("not a value: {other:?}"),
    }
}
