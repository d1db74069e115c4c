//! The cluster's nodes, embedded in this process: each with its own directory, log and port.

use crate::caller::Site;
use crate::error::BenchError;
use crate::options::ClusterOptions;
use floe::{Config, Engine, Member, NodeId, ShardId};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const CLUSTER_ID: u128 = 0xF10E;
const LEADERS_WAIT: Duration = Duration::from_secs(30);
const LEADERS_POLL: Duration = Duration::from_millis(20);
/// Below the range from which the kernel takes ports of outgoing connections: a node's own reconnecting
/// neighbour could otherwise sit on its port.
const PORTS: std::ops::Range<u16> = 17_000..32_000;

/// Where the nodes live, for as long as the data does.
pub struct Places {
    /// One directory per node.
    dirs: Vec<PathBuf>,
    /// One address per node; none if there is only one.
    members: Vec<Member>,
}

impl Places {
    /// Directories below `dir` and free ports on the loopback interface.
    pub fn choose(dir: &Path, nodes: u8) -> Result<Self, BenchError> {
        let ports = if nodes == 1 { Vec::new() } else { free_ports(usize::from(nodes))? };
        let member = |(number, port): (u64, &u16)| Member {
            node: NodeId(number),
            address: format!("127.0.0.1:{port}"),
        };
        Ok(Self {
            dirs: (1..=nodes).map(|node| dir.join(format!("node-{node}"))).collect(),
            members: (1..).zip(&ports).map(member).collect(),
        })
    }

    /// The nodes' directories.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    fn config(&self, place: usize, options: &ClusterOptions) -> Config {
        let mut config = Config::embedded(&self.dirs[place]);
        config.node = node_id(place);
        config.cluster = CLUSTER_ID;
        config.members = self.members.clone();
        config.driver = options.driver.of_engine();
        config.store = options.store.of_engine();
        config.cores = options.cores;
        config.shards = options.shards;
        config.replication = usize::from(options.replicas());
        config.pin_cores = options.pin_cores;
        config.spin_before_park = Duration::from_micros(options.spin);
        config
    }
}

/// Nodes are numbered from 1, their places in tables from 0.
fn node_id(place: usize) -> NodeId {
    NodeId(place as u64 + 1)
}

/// Ports that nobody listens on at the moment. All are held until all are found, so that they differ.
pub fn free_ports(count: usize) -> Result<Vec<u16>, BenchError> {
    let span = PORTS.end - PORTS.start;
    // Runs side by side have numbers close to each other: they start far apart.
    let first = (std::process::id().wrapping_mul(97) % u32::from(span)) as u16;
    let candidates = (0..span).map(|step| PORTS.start + (first + step) % span);
    let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
    let held: Vec<_> = candidates.filter_map(|port| Some((port, bind(port).ok()?))).take(count).collect();
    if held.len() < count {
        let source = std::io::ErrorKind::AddrInUse.into();
        return Err(BenchError::Ports { count, source });
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// What the logs of all nodes did.
pub struct WalCounters {
    /// Synced writes.
    pub writes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Log entries in them.
    pub entries: u64,
    /// Nanoseconds per write.
    pub latency: Histogram<u64>,
    /// Nanoseconds per command that the durable store applied, of every eighth.
    pub apply: Histogram<u64>,
    /// Elections begun.
    pub elections: u64,
}

impl WalCounters {
    /// What was added since `before`.
    pub fn since(mut self, before: &Self) -> Self {
        self.writes -= before.writes;
        self.bytes -= before.bytes;
        self.entries -= before.entries;
        self.elections -= before.elections;
        self.latency.subtract(&before.latency).expect("an earlier reading of the same histogram");
        self.apply.subtract(&before.apply).expect("an earlier reading of the same histogram");
        self
    }
}

/// What all nodes have sent so far, and how often they woke up.
#[derive(Clone, Copy)]
pub struct Stir {
    /// Frames to other nodes.
    pub frames: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Turns of all cores.
    pub turns: u64,
    /// Elections begun.
    pub elections: u64,
}

/// The running cluster.
pub struct Members {
    engines: Vec<Engine>,
    /// In order; a shard's place here is its number in tables.
    shards: Vec<ShardId>,
}

impl Members {
    /// Starts every node, side by side, and waits until every shard has a leader. `progress` is told how
    /// many of how many have.
    pub fn open(
        places: &Places,
        options: &ClusterOptions,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, BenchError> {
        let open = |place: usize| {
            let node = node_id(place).0;
            Engine::open(places.config(place, options)).map_err(|source| BenchError::Open { node, source })
        };
        let engines = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..places.dirs.len()).map(|place| scope.spawn(move || open(place))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().expect("Engine::open doesn't panic"));
            joined.collect::<Result<Vec<_>, _>>()
        })?;
        let mut members = Self { engines, shards: Vec::new() };
        members.await_leaders(options.shards as usize, &mut progress)?;
        Ok(members)
    }

    fn await_leaders(
        &mut self,
        shards: usize,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(), BenchError> {
        let start = Instant::now();
        loop {
            let leaders = self.leaders();
            let led = leaders.values().flatten().count();
            progress(led.min(shards), shards);
            if leaders.len() >= shards && led == leaders.len() {
                self.shards = leaders.into_keys().collect();
                return Ok(());
            }
            if start.elapsed() > LEADERS_WAIT {
                let missing = shards.saturating_sub(led).max(1);
                return Err(BenchError::NoLeaders { seconds: LEADERS_WAIT.as_secs(), missing, shards });
            }
            std::thread::sleep(LEADERS_POLL);
        }
    }

    /// The leading node's place per shard: the one that says so of itself, else the one that another
    /// takes for it.
    fn leaders(&self) -> BTreeMap<ShardId, Option<usize>> {
        let mut leaders = BTreeMap::new();
        for (place, engine) in self.engines.iter().enumerate() {
            for (shard, leader) in engine.leaders() {
                let leader = leader.map(|node| node.0 as usize - 1);
                let known = leaders.entry(shard).or_insert(leader);
                if known.is_none() || leader == Some(place) {
                    *known = leader;
                }
            }
        }
        leaders
    }

    /// What callers need.
    pub fn site(&self, options: &ClusterOptions) -> Site {
        let site = Site {
            clients: self
                .engines
                .iter()
                .map(|engine| engine.client().with_timeout(options.timeout()))
                .collect(),
            leaders: self.shards.iter().map(|_| AtomicU8::new(0)).collect(),
            route: options.route,
            payload: options.payload as usize,
        };
        self.refresh(&site);
        site
    }

    /// Brings the site's table of leaders up to date.
    pub fn refresh(&self, site: &Site) {
        for (slot, leader) in site.leaders.iter().zip(self.leaders().into_values()) {
            if let Some(place) = leader.and_then(|place| u8::try_from(place).ok()) {
                slot.store(place, Ordering::Relaxed);
            }
        }
    }

    /// How many shards each node leads.
    pub fn spread(&self) -> Vec<usize> {
        let mut spread = vec![0; self.engines.len()];
        for place in self.leaders().into_values().flatten() {
            spread[place] += 1;
        }
        spread
    }

    /// The place of the shard that owns `key`.
    pub fn shard_of(&self, key: &[u8]) -> u16 {
        let shard = self.engines[0].client().shard_of(key);
        let place = self.shards.binary_search(&shard).expect("leaders() names every shard");
        u16::try_from(place).expect("--shards is limited to a u16")
    }

    /// The shards, in the order of their numbers.
    pub fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// What the logs did so far.
    pub fn wal(&self) -> WalCounters {
        let mut sum: Option<WalCounters> = None;
        for metrics in self.engines.iter().map(Engine::metrics) {
            let one = WalCounters {
                writes: metrics.wal_writes,
                bytes: metrics.wal_bytes,
                entries: metrics.wal_entries,
                latency: metrics.wal_write_latency,
                apply: metrics.apply_latency,
                elections: metrics.elections,
            };
            let Some(sum) = &mut sum else {
                sum = Some(one);
                continue;
            };
            sum.writes += one.writes;
            sum.bytes += one.bytes;
            sum.entries += one.entries;
            sum.elections += one.elections;
            sum.latency.add(&one.latency).expect("all have the same bounds");
            sum.apply.add(&one.apply).expect("all have the same bounds");
        }
        sum.expect("there is at least one node")
    }

    /// What the nodes have sent and done so far.
    pub fn stir(&self) -> Stir {
        let mut sum = Stir { frames: 0, bytes: 0, turns: 0, elections: 0 };
        for metrics in self.engines.iter().map(Engine::metrics) {
            sum.frames += metrics.frames_sent;
            sum.bytes += metrics.bytes_sent;
            sum.turns += metrics.turns;
            sum.elections += metrics.elections;
        }
        sum
    }

    /// Stops every node, side by side.
    pub fn close(self) {
        std::thread::scope(|scope| {
            for engine in self.engines {
                scope.spawn(move || engine.shutdown());
            }
        });
    }
}
