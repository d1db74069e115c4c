//! What a seed is about. Among more than two dozen kinds of faults, what takes three or four of them in a row is rare.
//! So a share of the seeds draws only what one part of Floe is broken by, and sets what makes that likely: slow
//! links for elections, narrow timeouts for leases, many frames in flight for the log.

use crate::random::Random;
use crate::sim::clock::{MS, SEC, US};
use crate::sim::plan::{FaultKind, Plan};

/// What a seed is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Everything, or a few kinds of it.
    Anything,
    /// Leaders that are struck as soon as they are elected.
    Elections,
    /// Followers that help elect another leader while the old one may still read.
    Leases,
    /// Members that come and go while leaders are cut off.
    Members,
    /// Power that fails while much is on its way to the disk.
    Log,
    /// Processes that end while they start, and come back with other cores.
    Restarts,
    /// Followers that fall behind, and the states that they are sent.
    Transfers,
    /// Disks that return other bytes than were written.
    Damage,
    /// Reads that may be stale within a bound, of replicas that lag, or whose leader was replaced or is new.
    StaleReads,
}

impl Theme {
    pub(crate) fn draw(random: &mut Random) -> Self {
        match random.below(100) {
            0..26 => Self::Anything,
            26..40 => Self::Elections,
            40..58 => Self::Leases,
            58..67 => Self::Members,
            67..73 => Self::Log,
            73..79 => Self::Restarts,
            79..88 => Self::Transfers,
            88..94 => Self::Damage,
            _ => Self::StaleReads,
        }
    }

    /// The kinds of faults that a seed draws: always the first ones, and some of the others.
    pub(crate) fn kinds(self, random: &mut Random) -> Vec<FaultKind> {
        use FaultKind as F;
        let (always, others): (&[F], &[F]) = match self {
            Self::Anything => return anything(random),
            Self::Elections => (&[F::NewLeader], &[F::IsolateLeader, F::Kill, F::Partition, F::OneWay]),
            Self::Leases => (
                &[F::Usurp, F::IsolateLeader, F::Pause, F::Drift],
                &[F::Transfer, F::NewLeader, F::OneWay, F::Kill],
            ),
            Self::Members => (&[F::Members], &[F::NewLeader, F::IsolateLeader, F::Transfer, F::Kill]),
            Self::Log => (
                &[F::PowerCutAll],
                &[
                    F::PowerCut,
                    F::StuckDisk,
                    F::SlowDisk,
                    F::WriteErrors,
                    F::FailedCall,
                    F::FullDisk,
                    F::Members,
                ],
            ),
            Self::Restarts => {
                (&[F::OtherCores], &[F::PowerCut, F::Kill, F::Shutdown, F::FailedCall, F::Members])
            }
            Self::Transfers => (&[F::NewState], &[F::Kill, F::PowerCut, F::IsolateLeader, F::Members]),
            Self::Damage => {
                (&[F::BitRot, F::Kill, F::Members], &[F::LostWrite, F::Misdirected, F::NewState, F::PowerCut])
            }
            Self::StaleReads => {
                (&[F::Partition, F::NewLeader, F::SlowDisk], &[F::IsolateLeader, F::OneWay, F::Kill])
            }
        };
        let others = others.iter().filter(|_| random.percent(50));
        always.iter().chain(others).copied().collect()
    }

    /// Sets what makes likely what the seed is about.
    pub(crate) fn sharpen(self, random: &mut Random, plan: &mut Plan) {
        match self {
            Self::Anything => {}
            Self::Elections if random.percent(75) => {
                strike_new_leaders(plan);
            }
            Self::Elections => {}
            Self::Leases => {
                // Whoever may vote does so at once, and a lease is long for what is taken from it.
                let (least, most) =
                    *random.pick(&[(1_500 * MS, 1_510 * MS), (600 * MS, 605 * MS), (150 * MS, 300 * MS)]);
                let raft = &mut plan.shard.raft;
                (raft.election_timeout_min_ns, raft.election_timeout_max_ns) = (least, most);
                raft.lease_slack_ns = *random.pick(&[0, MS]);
                plan.retunes = random.percent(30);
                plan.drifts_apart = true;
                // Followers show their states only to who asks for stale ones.
                plan.load.stale_percent = 20;
                plan.network.latency_ns = 50 * US;
                plan.disk.latency_ns = 20 * US;
                plan.shards = plan.shards.min(3);
                plan.load.keys = plan.load.keys.min(12);
                plan.load.think_ns = MS;
                // Long enough for an election, and the next fault when it is over.
                plan.fault_every_ns = most;
                plan.fault_for_ns = 2 * most;
                plan.shard.quiet_after_ns = 0;
            }
            Self::Members => plan.fault_every_ns = 50 * MS,
            Self::Log => {
                plan.wal.frames_in_flight = *random.pick(&[4, 8]);
                plan.disk.latency_ns = *random.pick(&[MS, 5 * MS]);
                plan.shard.raft.inflight_messages_max = 64;
                plan.load.think_ns = MS;
                plan.load.clients = 50;
                plan.fault_for_ns = 20 * MS;
            }
            Self::Restarts => {
                plan.cores.iter_mut().for_each(|cores| *cores = random.between(2, 3) as u16);
                plan.disk.latency_ns = MS;
                plan.fault_every_ns = 50 * MS;
                plan.fault_for_ns = 20 * MS;
            }
            Self::StaleReads => {
                // A minority of two, of which one leads for a while; others are elected soon, and commit slowly.
                plan.cores.resize(5, plan.cores[0]);
                plan.replication = *random.pick(&[3, 5, 5]);
                let raft = &mut plan.shard.raft;
                (raft.election_timeout_min_ns, raft.election_timeout_max_ns) = (70 * MS, 300 * MS);
                (raft.append_bytes_max, raft.inflight_messages_max) = (1 << 20, 64);
                plan.disk.latency_ns = *random.pick(&[MS, 10 * MS]);
                plan.network.latency_ns = 200 * US;
                plan.shards = plan.shards.min(2);
                plan.load.keys = plan.load.keys.min(8);
                plan.load.think_ns = MS;
                plan.load.stale_percent = 40;
                plan.fault_every_ns = 200 * MS;
                plan.fault_for_ns = 600 * MS;
                plan.shard.quiet_after_ns = 0;
            }
            Self::Transfers | Self::Damage => {
                plan.shard.flush_log_bytes = 4 << 10;
                plan.shard.log_bytes_max = 4 << 10;
                plan.load.value_bytes_max = *random.pick(&[200, 2_000]);
                plan.disk.latency_ns = *random.pick(&[MS, 5 * MS]);
                plan.shard.raft.inflight_messages_max = 64;
                plan.load.think_ns = MS;
            }
        }
    }
}

fn strike_new_leaders(plan: &mut Plan) {
    // A new leader that commits what older ones left, entry by entry, is struck meanwhile, and whoever was
    // struck before it takes over.
    plan.alternates = true;
    plan.shards = plan.shards.min(2);
    plan.shard.raft.append_bytes_max = 1;
    plan.shard.raft.inflight_messages_max = 1;
    plan.network.latency_ns = 2 * MS;
    plan.load.think_ns = MS;
    // Elections have time between them; who is cut off comes back when its successor is struck.
    plan.fault_every_ns = 600 * MS;
    plan.fault_for_ns = SEC;
    plan.disk.latency_ns = plan.disk.latency_ns.min(MS);
}

/// Few kinds at a time show what many would hide, and the other way round.
fn anything(random: &mut Random) -> Vec<FaultKind> {
    let share = *random.pick(&[8, 20, 45]);
    let mut kinds: Vec<_> = FaultKind::ALL.into_iter().filter(|_| random.percent(share)).collect();
    if kinds.is_empty() {
        kinds.push(*random.pick(&FaultKind::ALL));
    }
    // Members that come and go among all other faults, in many seeds.
    if !kinds.contains(&FaultKind::Members) && random.percent(40) {
        kinds.push(FaultKind::Members);
    }
    kinds
}
