//! A node: its disk stays, its process comes and goes.

use crate::random::Random;
use crate::sim::client::ClientId;
use crate::sim::clock::{NodeClock, SEC};
use crate::sim::disk::Disk;
use crate::sim::plan::Plan;
use floe::boot::Founding;
use floe::metrics::CoreMetrics;
use floe::read_cell::ReadCells;
use floe::seam::{Effects, Input};
use floe::worker::{Worker, WorkerConfig};
use floe_raft::Nanos;
use floe_shard::{CoreAddr, Descriptor, MemoryStore, NodeId, RequestId, ShardConfig};
use std::collections::BTreeMap;
use std::sync::Arc;

/// One core of a running process.
pub struct Core {
    /// The production code.
    pub worker: Worker,
    /// What it will be given at its next step.
    pub inbox: Vec<Input>,
    /// What it wants done; reused.
    pub effects: Effects,
    /// Whether its next step is in the queue.
    pub is_scheduled: bool,
    /// When its timer is due; `MAX` = not set.
    pub timer_at: Nanos,
    /// Until when its last step takes.
    pub free_at: Nanos,
    /// Who waits for which answer.
    pub clients: BTreeMap<RequestId, ClientId>,
    /// The next request's number.
    pub request_next: u64,
}

/// A running process.
pub struct Process {
    /// Its cores.
    pub cores: Vec<Core>,
    /// What its clients read without them.
    pub cells: Arc<ReadCells>,
    /// How many have started.
    pub started: usize,
    /// How many have stopped.
    pub stopped: usize,
    /// It has failed or is being shut down.
    pub is_ending: bool,
    /// Disk errors before it began: more since then explain a failure.
    pub disk_errors_before: u64,
}

/// One node.
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Cores of its next process.
    pub cores_next: u16,
    /// Its disk.
    pub disk: Disk,
    /// Its clock, a new one with each process.
    pub clock: NodeClock,
    /// Counts processes.
    pub incarnation: u64,
    /// The process, if it runs.
    pub process: Option<Process>,
    /// No core takes a step before this.
    pub paused_until: Nanos,
    /// It refused its disk as damaged, and never starts again.
    pub is_condemned: bool,
    /// Transferred states that the process was seen to have taken.
    pub installs_seen: u64,
    /// Boot epoch of each incarnation that started.
    pub boot_epoch: BTreeMap<u64, u64>,
    random: Random,
}

impl Node {
    /// A node without a process.
    pub fn new(id: NodeId, cores: u16, disk: Disk, random: Random) -> Self {
        Self {
            id,
            cores_next: cores,
            disk,
            clock: NodeClock::new(0, SEC, 0),
            incarnation: 0,
            process: None,
            paused_until: 0,
            is_condemned: false,
            installs_seen: 0,
            boot_epoch: BTreeMap::new(),
            random,
        }
    }

    /// The process, if it is still this one.
    pub fn process_of(&mut self, incarnation: u64) -> Option<&mut Process> {
        self.process.as_mut().filter(|_| self.incarnation == incarnation)
    }

    /// Mostly as far off as it may be.
    fn draw_drift(&mut self, ppm_max: u64) -> i64 {
        let anywhere = self.random.between(0, 2 * ppm_max);
        *self.random.pick(&[anywhere, 0, 2 * ppm_max]) as i64 - ppm_max as i64
    }

    /// From now on its clock runs at another rate.
    pub fn change_drift(&mut self, now: Nanos, ppm_max: u64) {
        let drift = self.draw_drift(ppm_max);
        self.set_drift(now, drift);
    }

    /// From now on its clock runs so many millionths too fast.
    pub fn set_drift(&mut self, now: Nanos, ppm: i64) {
        self.clock = NodeClock::new(now, self.clock.local(now), ppm);
    }

    /// Whether all cores run and mean to.
    pub fn is_started(&self) -> bool {
        let runs = |process: &Process| !process.is_ending && process.started == process.cores.len();
        self.process.as_ref().is_some_and(runs)
    }
}

impl Process {
    /// Transferred dumps that its replicas have installed.
    pub fn installs(&self) -> u64 {
        self.cores.iter().filter_map(|core| core.worker.multi()).map(|multi| multi.stats().installs).sum()
    }

    /// A new process of a node; its cores' first effects wait to be carried out.
    pub fn start(node: &mut Node, now: Nanos, plan: &Plan, shards: &Arc<Vec<Descriptor>>) -> Self {
        node.incarnation += 1;
        node.installs_seen = 0;
        let drift = node.draw_drift(plan.drift_ppm_max);
        node.clock = NodeClock::new(now, node.random.between(1, 1_000) * SEC, drift);
        let cores = node.cores_next;
        let uuid = u128::from(node.random.next_u64()) << 64 | u128::from(node.id.0);
        // Each start may be with another setting, and so with other promises.
        let mut shard = plan.shard.clone();
        let least = 2 * shard.raft.heartbeat_interval_ns + 1;
        let tuned = &mut shard.raft.election_timeout_min_ns;
        let other = if plan.retunes { (*tuned * 2 / 3).max(least) } else { *tuned };
        *tuned = *node.random.pick(&[*tuned, other]);
        let cells = ReadCells::new(node.id, node.incarnation, shards);
        let members = (1..=plan.cores.len() as u64).map(NodeId).collect();
        let founding = Founding { members, shards: plan.shards, replication: plan.replication as u32 };
        let start = |core| {
            let config = WorkerConfig {
                me: CoreAddr { node: node.id, core },
                cores,
                cluster: 0xF10E,
                new_store_uuid: uuid,
                founding: founding.clone(),
                shard: ShardConfig { cores, ..shard.clone() },
                wal: plan.wal.clone(),
                bootstrap: shards.clone(),
                machines: Arc::new(|_| Box::new(MemoryStore::new())),
                requests_max: plan.requests_max,
                cells: cells.clone(),
                metrics: Arc::new(CoreMetrics::default()),
            };
            let mut effects = Effects::default();
            let seed = node.random.next_u64();
            let worker = Worker::new(config, seed, node.clock.local(now), &mut effects);
            Core {
                worker,
                inbox: Vec::new(),
                effects,
                is_scheduled: false,
                timer_at: Nanos::MAX,
                free_at: now,
                clients: BTreeMap::new(),
                request_next: 0,
            }
        };
        let cores = (0..cores).map(start).collect();
        Self { cores, cells, started: 0, stopped: 0, is_ending: false, disk_errors_before: node.disk.errors }
    }
}
