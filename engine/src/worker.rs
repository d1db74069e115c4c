//! One core: the replicas, the log and the requests of one thread, as a function from inputs to
//! effects.
//!
//! A *turn* ([`Worker::step`]) drains everything that has come in, steps each touched replica once,
//! and then makes one pass: one WAL frame for all replicas (group commit) and one frame per peer
//! with everything for it. That is where batching comes from; no timer is needed for it.
//!
//! Invariants, each asserted or held by construction:
//! - What depends on durability (acks, votes, `persisted`) leaves only when the frame that holds
//!   everything appended before it is in the contiguous durable prefix of the stream.
//! - A request that was taken in is answered exactly once, by its deadline at the latest.
//! - After a failed write the core acknowledges nothing and sends nothing any more.

use crate::boot::{Boot, BootRecord, Founding, Identity};
use crate::config::WalSettings;
use crate::disk::OpOwner;
use crate::metrics::{CoreMetrics, add};
use crate::read_cell::ReadCells;
use crate::running::{Progress, Running};
use crate::seam::{CoreMessage, Effects, Event, Failure, Input};
use crate::start::{FoundAll, Start};
use floe_raft::Nanos;
use floe_shard::descriptor::Descriptor;
use floe_shard::request::{Answer, Refusal};
use floe_shard::state_machine::StateMachine;
use floe_shard::{CoreAddr, MultiRaft, ShardConfig, ShardId, ShardStatus};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Makes an empty state machine for a shard.
pub type MachineFactory = Arc<dyn Fn(ShardId) -> Box<dyn StateMachine> + Send + Sync>;

/// Everything a core must know.
#[derive(Clone)]
pub struct WorkerConfig {
    /// Which core of which node.
    pub me: CoreAddr,
    /// Cores of this node.
    pub cores: u16,
    /// The cluster.
    pub cluster: u128,
    /// Taken if the directory is new.
    pub new_store_uuid: u128,
    /// What `bootstrap` was made from; must be the same at every start.
    pub founding: Founding,
    /// Raft and shard settings.
    pub shard: ShardConfig,
    /// The log's settings; its bound is this core's part.
    pub wal: WalSettings,
    /// Shards of a new cluster; used until all of them stand in the log once, and as routing hints.
    pub bootstrap: Arc<Vec<Descriptor>>,
    /// Makes state machines.
    pub machines: MachineFactory,
    /// Requests under way at once; beyond it they are refused as `Busy`.
    pub requests_max: usize,
    /// Where callers' threads read under a lease.
    pub cells: Arc<ReadCells>,
    /// Where the core counts.
    pub metrics: Arc<CoreMetrics>,
}

enum Phase {
    /// Core 0 reads and raises the boot record; the others wait for it.
    Booting(Option<Boot>),
    /// Reading the log and the dumps.
    Starting(Box<Start>, Arc<BootRecord>),
    Running(Box<Running>),
    /// Fenced by a failure, or shut down.
    Ended(String),
}

/// One core.
pub struct Worker {
    config: WorkerConfig,
    seed: u64,
    phase: Phase,
    /// Connections that came up before the core runs.
    early_peers: BTreeMap<CoreAddr, u16>,
    early_core_messages: Vec<CoreMessage>,
}

impl Worker {
    /// A core at its start. The same configuration, seed and inputs give the same effects.
    pub fn new(config: WorkerConfig, seed: u64, _now: Nanos, effects: &mut Effects) -> Self {
        let boot = (config.me.core == 0).then(|| {
            let identity = Identity {
                cluster: config.cluster,
                node: config.me.node,
                founding: config.founding.clone(),
                cores: config.cores,
                new_store_uuid: config.new_store_uuid,
            };
            Boot::new(identity, &mut effects.disk)
        });
        let phase = Phase::Booting(boot);
        Self { config, seed, phase, early_peers: BTreeMap::new(), early_core_messages: Vec::new() }
    }

    /// One turn: takes all inputs, and adds what is to be done to the effects.
    pub fn step(&mut self, now: Nanos, inputs: &mut Vec<Input>, effects: &mut Effects) {
        add(&self.config.metrics.turns, 1);
        for input in inputs.drain(..) {
            if let Err(failure) = self.take(now, input, effects) {
                self.fail(failure, effects);
            }
        }
        if let Phase::Running(running) = &mut self.phase {
            match running.turn(now, effects) {
                Ok(Progress::Running) => {}
                Ok(Progress::Stopped) => {
                    self.config.cells.close(running.multi().shards());
                    effects.events.push(Event::Stopped);
                    self.phase = Phase::Ended("the node has shut down".into());
                }
                Err(failure) => self.fail(failure, effects),
            }
        }
    }

    /// When the core wants a turn even without input; `Nanos::MAX` = never.
    pub fn deadline(&self) -> Nanos {
        match &self.phase {
            Phase::Running(running) => running.deadline(),
            _ => Nanos::MAX,
        }
    }

    /// Whether another turn would do something at once, without input.
    pub fn has_work(&self) -> bool {
        matches!(&self.phase, Phase::Running(running) if running.has_work())
    }

    /// The replicas, for checkers and status; `None` unless the core runs.
    pub fn multi(&self) -> Option<&MultiRaft> {
        match &self.phase {
            Phase::Running(running) => Some(running.multi()),
            _ => None,
        }
    }

    /// Whose replicas the last step may have changed, for checkers; of a core that doesn't run, none.
    pub fn turned(&self) -> &[ShardId] {
        match &self.phase {
            Phase::Running(running) => running.turned(),
            _ => &[],
        }
    }

    /// How each replica stands; `None` unless the core runs.
    pub fn statuses(&self) -> Option<Vec<ShardStatus>> {
        Some(self.multi()?.statuses().collect())
    }

    fn take(&mut self, now: Nanos, input: Input, effects: &mut Effects) -> Result<(), Failure> {
        match (&mut self.phase, input) {
            (Phase::Running(running), input) => running.take(now, input, effects),
            (_, Input::PeerUp { peer, cores }) => {
                self.early_peers.insert(peer, cores);
                Ok(())
            }
            (_, Input::PeerDown { peer }) => {
                self.early_peers.remove(&peer);
                Ok(())
            }
            (phase, Input::Request { id, .. }) => {
                let reason = match phase {
                    Phase::Ended(reason) => reason.clone(),
                    _ => "the node is starting".into(),
                };
                effects.answers.push((id, Answer::Refused(Refusal::Unavailable { reason })));
                Ok(())
            }
            (Phase::Booting(Some(boot)), Input::Disk { op, result }) if op.owner == OpOwner::Boot => {
                if let Some(record) = boot.on_disk(result, &mut effects.disk).map_err(Failure::Boot)? {
                    let record = Arc::new(record);
                    for core in 1..self.config.cores {
                        effects.to_cores.push((core, CoreMessage::Boot(record.clone())));
                    }
                    self.start(record, effects);
                }
                Ok(())
            }
            (Phase::Booting(None), Input::Core { message: CoreMessage::Boot(record), .. }) => {
                self.start(record, effects);
                Ok(())
            }
            (Phase::Starting(start, record), Input::Disk { op, result }) => {
                let record = record.clone();
                if let Some(found) = start.on_disk(op, result, &mut effects.disk)? {
                    self.run(now, &record, found, effects)?;
                }
                Ok(())
            }
            (Phase::Booting(_) | Phase::Starting(..), Input::Core { message, .. }) => {
                self.early_core_messages.push(message);
                Ok(())
            }
            (phase, Input::Shutdown) => {
                effects.events.push(Event::Stopped);
                *phase = Phase::Ended("the node has shut down".into());
                Ok(())
            }
            // Frames before the start are lost, as on a network; the rest concerns nobody any more.
            _ => Ok(()),
        }
    }

    fn start(&mut self, record: Arc<BootRecord>, effects: &mut Effects) {
        let start = Start::new(self.config.me.core, self.config.cores, &record, &mut effects.disk);
        self.phase = Phase::Starting(Box::new(start), record);
    }

    fn run(
        &mut self,
        now: Nanos,
        record: &Arc<BootRecord>,
        found: FoundAll,
        effects: &mut Effects,
    ) -> Result<(), Failure> {
        let mut running = Running::new(now, &self.config, self.seed, record, found, effects)?;
        for (peer, cores) in std::mem::take(&mut self.early_peers) {
            running.peer_up(now, peer, cores);
        }
        for message in std::mem::take(&mut self.early_core_messages) {
            running.on_core(&message, effects);
        }
        self.phase = Phase::Running(Box::new(running));
        Ok(())
    }

    /// Stops this core for good: answers everything that waits and says why.
    fn fail(&mut self, failure: Failure, effects: &mut Effects) {
        let reason = failure.to_string();
        tracing::error!(core = %self.config.me, %reason, "this core stops");
        if let Phase::Running(running) = &mut self.phase {
            self.config.cells.close(running.multi().shards());
            running.answer_all(effects);
        }
        // Nothing that this turn prepared may leave: it could rest on what did not become durable.
        effects.disk.clear();
        effects.sends.clear();
        effects.events.push(Event::Failed(failure));
        self.phase = Phase::Ended(reason);
    }
}
