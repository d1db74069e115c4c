//! What one run is like: everything drawn from its seed before it begins.
//!
//! Swarm testing (Groce et al. 2012): each seed draws its own cluster, load and mix of faults, with some
//! kinds of faults missing altogether. A mix of everything at once hides what a few kinds would show.

use crate::random::Random;
use crate::sim::clock::{MS, SEC, US};
use crate::sim::disk::DiskProfile;
use crate::sim::network::NetworkProfile;
use floe::WalSettings;
use floe_raft::Nanos;
use floe_shard::ShardConfig;
use std::collections::BTreeSet;

use crate::sim::theme::Theme;

pub use floe_raft::Planted as Bug;

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum FaultKind {
    /// A process is killed.
    Kill,
    /// The power of one node fails.
    PowerCut,
    /// The power of all nodes fails at once.
    PowerCutAll,
    /// A shard's leader is cut off, in one direction or both.
    IsolateLeader,
    /// The nodes fall into two sides.
    Partition,
    /// One node doesn't reach one other.
    OneWay,
    /// Connections of a node break.
    CutConnections,
    /// Everything takes longer.
    Delay,
    /// Messages between replicas are lost, repeated and come out of order.
    Chaos,
    /// A node's process stands still for a while.
    Pause,
    /// A node's clock begins to run at another rate.
    Drift,
    /// Far more requests at once than a node takes.
    Overload,
    /// A node's disk is slow.
    SlowDisk,
    /// No call to a node's disk returns for a while.
    StuckDisk,
    /// Writes of a node's disk fail.
    WriteErrors,
    /// One call to a node's disk fails: the n-th of its kind.
    FailedCall,
    /// A node's disk is full.
    FullDisk,
    /// Stored bits of a node's disk flip.
    BitRot,
    /// An acknowledged write to a node's disk never landed.
    LostWrite,
    /// An acknowledged write to a node's disk landed elsewhere.
    Misdirected,
    /// A node is shut down cleanly and started again.
    Shutdown,
    /// A node ends somehow and comes back with another number of cores.
    OtherCores,
    /// Leadership of a shard is handed over.
    Transfer,
    /// A node's seat in a shard changes: it joins, is promoted, demoted, removed, or swapped for another.
    Members,
    /// Leaders are cut off or killed soon after their election: what Figure 8 of the paper is made of.
    NewLeader,
    /// A leader loses a follower, then the others, which restart at once: who promised the leader time may have
    /// forgotten it.
    Usurp,
    /// Nodes are cut off until they fall behind, and struck when they have just taken a transferred state.
    NewState,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 27] = [
        Self::Kill,
        Self::PowerCut,
        Self::PowerCutAll,
        Self::IsolateLeader,
        Self::Partition,
        Self::OneWay,
        Self::CutConnections,
        Self::Delay,
        Self::Chaos,
        Self::Pause,
        Self::Drift,
        Self::Overload,
        Self::SlowDisk,
        Self::StuckDisk,
        Self::WriteErrors,
        Self::FailedCall,
        Self::FullDisk,
        Self::BitRot,
        Self::LostWrite,
        Self::Misdirected,
        Self::Shutdown,
        Self::OtherCores,
        Self::Transfer,
        Self::Members,
        Self::NewLeader,
        Self::Usurp,
        Self::NewState,
    ];
}

/// The load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Clients, each with one operation at a time.
    pub clients: u32,
    /// Keys, spread evenly over the shards.
    pub keys: u32,
    /// Operations to begin before the faults end.
    pub operations: u64,
    /// Usual time between an answer and the next operation.
    pub think_ns: Nanos,
    /// Longest value.
    pub value_bytes_max: u64,
    /// How many more of the operations are reads that may be stale within a bound, in percent.
    pub stale_percent: u64,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What everything was drawn from.
    pub seed: u64,
    /// Cores of each node; as many as there are nodes.
    pub cores: Vec<u16>,
    /// Shards.
    pub shards: u32,
    /// Replicas of each.
    pub replication: usize,
    /// The load.
    pub load: Load,
    /// Kinds of faults and how often each is drawn, relative to the others.
    pub faults: Vec<(FaultKind, u64)>,
    /// Which of the faults that are drawn strike, by number from 0; `None` = all.
    pub faults_only: Option<BTreeSet<u64>>,
    /// Whether some faults wait until a replica stands for election.
    pub aims_at_candidates: bool,
    /// Whether a new leader that is struck gives way to whoever was cut off before it.
    pub alternates: bool,
    /// Usual time between two faults.
    pub fault_every_ns: Nanos,
    /// Usual duration of a fault.
    pub fault_for_ns: Nanos,
    /// How the network is when nothing is wrong.
    pub network: NetworkProfile,
    /// How disks are when nothing is wrong.
    pub disk: DiskProfile,
    /// Bound of the clocks' drift.
    pub drift_ppm_max: u64,
    /// Whether processes start with lower election timeouts now and then, and so with shorter promises.
    pub retunes: bool,
    /// Whether a clock that changes its rate is a leader's, which gets as slow as it may be, while all others get as fast;
    /// and so does, in every second case, that of a leader that is cut off.
    pub drifts_apart: bool,
    /// Requests that a core takes in at once.
    pub requests_max: usize,
    /// Raft and shard settings; `cores` is set per node.
    pub shard: ShardConfig,
    /// The log's settings.
    pub wal: WalSettings,
    /// What is planted.
    pub bug: Option<Bug>,
    /// Whether to print a line for everything that happens.
    pub prints: bool,
}

impl Plan {
    /// The swarm's plan of a seed.
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut plan = Self::quiet(seed, 3);
        let nodes = *random.pick(&[3, 3, 3, 3, 5]);
        plan.cores = vec![random.between(1, 3) as u16; nodes];
        if random.percent(20) {
            plan.cores.iter_mut().for_each(|cores| *cores = random.between(1, 3) as u16);
        }
        plan.shards = random.between(1, 6) as u32;
        plan.replication = if random.percent(70) { 3 } else { nodes };
        plan.load = Load {
            clients: random.between(10, 50) as u32,
            keys: random.between(6, 40) as u32,
            operations: 2_000,
            think_ns: *random.pick(&[MS, 10 * MS, 50 * MS]),
            value_bytes_max: *random.pick(&[16, 200, 2_000, 20_000]),
            stale_percent: 0,
        };
        let theme = Theme::draw(&mut random);
        let kinds = theme.kinds(&mut random);
        if kinds.contains(&FaultKind::Members) {
            plan.replication = 3;
            if random.percent(80) {
                plan.cores.resize(*random.pick(&[4, 5]), plan.cores[0]);
            }
        }
        plan.faults = kinds.into_iter().map(|kind| (kind, random.between(1, 8))).collect();
        plan.aims_at_candidates = random.percent(40);
        plan.fault_every_ns = *random.pick(&[50 * MS, 200 * MS, 600 * MS]);
        plan.fault_for_ns = *random.pick(&[20 * MS, 200 * MS, SEC]);
        (plan.shard.raft.election_timeout_min_ns, plan.shard.raft.election_timeout_max_ns) = *random.pick(&[
            (150 * MS, 300 * MS),
            (150 * MS, 300 * MS),
            (70 * MS, 300 * MS),
            (270 * MS, 300 * MS),
        ]);
        plan.network.latency_ns = *random.pick(&[50 * US, 200 * US, 2 * MS]);
        plan.network.loss_ppm = *random.pick(&[0, 0, 100, 2_000]);
        plan.network.chaos_ppm = *random.pick(&[0, 0, 1_000, 30_000]);
        plan.disk.latency_ns = *random.pick(&[20 * US, 100 * US, MS, 5 * MS]);
        plan.shard.flush_log_bytes = *random.pick(&[4 << 10, 32 << 10, 256 << 10]);
        plan.shard.log_bytes_max = plan.shard.flush_log_bytes * *random.pick(&[1, 2, 8]);
        plan.shard.dump_chunk_bytes = *random.pick(&[4 << 10, 64 << 10]);
        plan.shard.raft.append_bytes_max = *random.pick(&[1, 1 << 10, 1 << 20]);
        plan.shard.raft.inflight_messages_max = *random.pick(&[1, 1, 4, 64]);
        if plan.shard.raft.inflight_messages_max == 1 {
            // One message per round trip: with a slow disk and a long tail that nobody else holds, a new leader
            // takes longer to commit its first entry than liveness allows.
            plan.disk.latency_ns = plan.disk.latency_ns.min(MS);
            plan.shard.raft.uncommitted_bytes_max = 32 << 10;
        }
        plan.requests_max = *random.pick(&[60, 100, 200]);
        plan.wal.segment_bytes_min = *random.pick(&[64 << 10, 128 << 10]);
        plan.wal.segment_bytes_max = plan.wal.segment_bytes_min * *random.pick(&[1, 4]);
        plan.wal.frames_in_flight = *random.pick(&[1, 2, 4, 8]);
        plan.wal.bytes_max = plan.wal.segment_bytes_max * random.between(4, 12);
        // Groups that go quiet and are woken all the time, now and then, and hardly ever.
        plan.shard.quiet_after_ns = *random.pick(&[0, 50 * MS, 300 * MS, SEC]);
        theme.sharpen(&mut random, &mut plan);
        // From a budget for all logs that two shards can fill to one that nobody notices.
        plan.shard.core_log_bytes_max = plan.shard.flush_log_bytes * [2, 8, 1 << 12][(seed % 3) as usize];
        // From a turn that ends with the first command to one that takes all there are.
        plan.shard.turn_apply_bytes_max = [1, 4 << 10, 1 << 20][(seed / 3 % 3) as usize];
        plan
    }

    /// A small cluster without faults, for scenarios.
    pub fn quiet(seed: u64, nodes: usize) -> Self {
        let mut shard =
            ShardConfig { flush_log_bytes: 64 << 10, log_bytes_max: 256 << 10, ..ShardConfig::default() };
        shard.dump_chunk_bytes = 64 << 10;
        Self {
            seed,
            cores: vec![2; nodes],
            shards: 4,
            replication: 3,
            load: Load {
                clients: 20,
                keys: 16,
                operations: 1_000,
                think_ns: MS,
                value_bytes_max: 200,
                stale_percent: 0,
            },
            faults: Vec::new(),
            faults_only: None,
            aims_at_candidates: false,
            alternates: false,
            fault_every_ns: 200 * MS,
            fault_for_ns: 200 * MS,
            network: NetworkProfile::default(),
            disk: DiskProfile::default(),
            // Two clocks, one as much too fast as the other is too slow, are as far apart as leases allow for.
            drift_ppm_max: 5_000,
            retunes: true,
            drifts_apart: false,
            requests_max: 1_000,
            shard,
            wal: WalSettings {
                segment_bytes_min: 128 << 10,
                segment_bytes_max: 256 << 10,
                frames_in_flight: 4,
                frame_bytes_max: 64 << 10,
                spares: 2,
                bytes_max: 2 << 20,
                queued_bytes_max: 1 << 20,
                stuck_after: None,
            },
            bug: None,
            prints: false,
        }
    }

    /// Whether the run must meet a number of faults; not if some of them were taken away.
    pub fn demands_faults(&self) -> bool {
        !self.faults.is_empty() && self.faults_only.is_none()
    }

    /// The upper bound of the randomized election timeout, which figures are stated in.
    pub fn election_timeout_ns(&self) -> Nanos {
        self.shard.raft.election_timeout_max_ns
    }
}
