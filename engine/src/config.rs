//! What can be set of a node, with its defaults and bounds.

use crate::boot::Founding;
use crate::driver::Driver;
use floe_raft::ConfigError;
use floe_shard::{NodeId, ShardConfig};
use std::path::PathBuf;
use std::time::Duration;

/// One node of a cluster and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// `host:port`. Names are resolved when a connection is made.
    pub address: String,
}

/// Where the shards' state lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// In memory, dumped whole from time to time. For tests, and for states that are small against the memory.
    Memory,
    /// In tables on disk, with recent writes in memory.
    Lsm(LsmSettings),
}

impl Default for Store {
    fn default() -> Self {
        Self::Lsm(LsmSettings::default())
    }
}

/// Bounds of the durable store, for all shards of a node together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LsmSettings {
    /// Bytes of memory for what isn't in tables yet. From half of it on the largest are flushed; at all of it writers get
    /// `Busy` until there is room. Default 256 MiB.
    pub write_buffer_bytes: u64,
    /// Bytes of memory for blocks of tables that were read. Default 64 MiB.
    pub cache_bytes: u64,
    /// Files of tables kept open. Default 256.
    pub open_files_max: usize,
    /// Bytes of rows that flushes and compaction together write per second at the most; flushes go beyond while memory is
    /// short. Default 128 MiB.
    pub background_bytes_per_second: u64,
}

impl Default for LsmSettings {
    fn default() -> Self {
        Self {
            write_buffer_bytes: 256 << 20,
            cache_bytes: 64 << 20,
            open_files_max: 256,
            background_bytes_per_second: 128 << 20,
        }
    }
}

/// Settings of a node. Start from [`Config::embedded`] or [`Config::member`] and change what you need;
/// [`crate::Engine::open`] checks every bound and names the field that breaks one.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names the cluster; nodes of different clusters refuse each other. Any number.
    pub cluster: u128,
    /// This node; above 0.
    pub node: NodeId,
    /// Its data directory; made if missing. One process at a time.
    pub dir: PathBuf,
    /// All nodes of the cluster, this one included; empty for a single node without a port. Who they are is the same at
    /// every start; where they are may change.
    pub members: Vec<Member>,
    /// Where to listen, `host:port`, if not at this node's address in `members`.
    pub listen: Option<String>,
    /// Where the shards' state lies; the same at each start of a node. Default [`Store::Lsm`].
    pub store: Store,
    /// What does a core's input and output. Default [`Driver::Ring`].
    pub driver: Driver,
    /// Threads that own shards. May change between starts. Default 1.
    pub cores: u16,
    /// Shards into which the key space is split evenly when the cluster first starts; the same on all
    /// nodes and at every start. Default 1.
    pub shards: u32,
    /// Replicas that a shard begins with, at most the number of nodes; the same on all nodes and at every start.
    /// Default 3.
    pub replication: usize,
    /// Pin each core's thread to a processor. Default off.
    pub pin_cores: bool,
    /// Spin so long before sleeping: wake-ups in 5 us instead of 25-55 us, for a busy processor.
    /// Default 0.
    pub spin_before_park: Duration,
    /// Lower bound of the randomized election timeout. Default 150 ms.
    pub election_timeout_min: Duration,
    /// Upper bound of the randomized election timeout. Default 300 ms.
    pub election_timeout_max: Duration,
    /// How often a leader is heard at the least. Default 30 ms; below half of `election_timeout_min`.
    pub heartbeat_interval: Duration,
    /// A shard that nobody has written to, or read from linearizably, for so long goes quiet: it costs neither
    /// messages nor processor time until somebody does. Default 1 s; `Duration::MAX` = never.
    pub quiet_after: Duration,
    /// Read under leader leases: without a round over the network, on the caller's own thread. Default on. Off:
    /// each turn's reads take one round (ReadIndex). Turn it off where machines may be suspended and their
    /// monotonic clocks stand still meanwhile, or run more than 1 % apart.
    pub leases: bool,
    /// Deadline of calls that name none. Default 10 s.
    pub timeout: Duration,
    /// Requests under way per core; beyond it they are refused as `Busy`. Default 65,536.
    pub requests_max: usize,
    /// Remote clients at once; further ones are refused. Each takes two threads. Default 128.
    pub clients_max: usize,
    /// Bytes that may wait to be sent to one peer core; beyond it frames are dropped, and Raft sends
    /// again. Default 64 MiB.
    pub send_queue_bytes_max: usize,
    /// In-memory log of a shard that makes it flush its state. Default 4 MiB.
    pub flush_log_bytes: usize,
    /// In-memory log of a shard beyond which slow followers are left to catch up by a dump, unless it is less than
    /// half of the shard's state. Default 32 MiB.
    pub log_bytes_max: usize,
    /// In-memory logs of all shards of this node; each core has an equal part. From half of it on slow followers are fed
    /// less and what only they need is dropped: they catch up by a dump. At all of it writes are refused as
    /// [`BusyReason::LogMemory`](crate::BusyReason). At least twice `flush_log_bytes` per core. Default 512 MiB.
    pub log_memory_bytes: usize,
    /// The log.
    pub wal: WalSettings,
}

/// Bounds and sizes of a core's log.
#[derive(Clone, Debug)]
pub struct WalSettings {
    /// Bytes of a stream's first segment; doubles up to `segment_bytes_max`.
    pub segment_bytes_min: u64,
    /// Bytes of a segment at the most.
    pub segment_bytes_max: u64,
    /// Frames in flight at once.
    pub frames_in_flight: u32,
    /// Bytes of one frame at the most, but for one oversized record.
    pub frame_bytes_max: usize,
    /// Zeroed segments kept ready.
    pub spares: u32,
    /// Bytes of segments in use, of a node, beyond which shards that pin old ones are flushed or copied forward. Each core has
    /// its part of it, but at least four segments; at four times as many its writes are refused as
    /// [`BusyReason::LogSpace`](crate::BusyReason). A restart reads them all. Up to five segments more per core lie ready.
    /// Default 512 MiB.
    pub bytes_max: u64,
    /// Bytes that may wait for the log before new requests are refused.
    pub queued_bytes_max: usize,
    /// A core whose write has not come back after so long stops beating and leading until it does; at least
    /// `heartbeat_interval`. Default: the upper election timeout. What another node needs to take over is
    /// about that long, too: a shorter wait moves leaders for a stall that would have ended sooner than
    /// the move, a longer one makes callers wait more than twice as long as the best choice in hindsight.
    pub stuck_after: Option<Duration>,
}

impl Default for WalSettings {
    fn default() -> Self {
        Self {
            segment_bytes_min: 4 << 20,
            segment_bytes_max: 64 << 20,
            frames_in_flight: 4,
            frame_bytes_max: 4 << 20,
            spares: 2,
            bytes_max: 512 << 20,
            queued_bytes_max: 64 << 20,
            stuck_after: None,
        }
    }
}

impl Config {
    /// A single node that needs nothing but a directory.
    pub fn embedded(dir: impl Into<PathBuf>) -> Self {
        Self {
            cluster: 1,
            node: NodeId(1),
            dir: dir.into(),
            members: Vec::new(),
            listen: None,
            store: Store::default(),
            driver: Driver::default(),
            cores: 1,
            shards: 1,
            replication: 3,
            pin_cores: false,
            spin_before_park: Duration::ZERO,
            election_timeout_min: Duration::from_millis(150),
            election_timeout_max: Duration::from_millis(300),
            heartbeat_interval: Duration::from_millis(30),
            quiet_after: Duration::from_secs(1),
            leases: true,
            timeout: Duration::from_secs(10),
            requests_max: 1 << 16,
            clients_max: 128,
            send_queue_bytes_max: 64 << 20,
            flush_log_bytes: 4 << 20,
            log_bytes_max: 32 << 20,
            log_memory_bytes: 512 << 20,
            wal: WalSettings::default(),
        }
    }

    /// A member of a cluster.
    pub fn member(dir: impl Into<PathBuf>, node: NodeId, members: Vec<Member>) -> Self {
        Self { node, members, ..Self::embedded(dir) }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// Names the first field that breaks its bound, and the bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |field, ok: bool, reason: &str| {
            if ok { Ok(()) } else { Err(ConfigError { field, reason: reason.into() }) }
        };
        check("node", self.node.0 > 0, "must be above 0")?;
        check("dir", !self.dir.as_os_str().is_empty(), "must name a directory")?;
        check("cores", (1..=1024).contains(&self.cores), "must be 1 to 1024")?;
        check("shards", (1..=65_536).contains(&self.shards), "must be 1 to 65,536")?;
        check("replication", (1..=7).contains(&self.replication), "must be 1 to 7")?;
        check("timeout", !self.timeout.is_zero(), "must be above 0")?;
        check("requests_max", (1..=1 << 24).contains(&self.requests_max), "must be 1 to 16,777,216")?;
        check("clients_max", self.clients_max <= 4096, "must be 0 to 4096")?;
        check(
            "send_queue_bytes_max",
            self.send_queue_bytes_max >= 32 << 20,
            "must be at least 32 MiB, or a largest frame doesn't fit",
        )?;
        check("flush_log_bytes", self.flush_log_bytes > 0, "must be above 0")?;
        check(
            "log_bytes_max",
            self.log_bytes_max >= self.flush_log_bytes,
            "must be at least flush_log_bytes",
        )?;
        check(
            "log_memory_bytes",
            self.log_memory_bytes / usize::from(self.cores) / 2 >= self.flush_log_bytes,
            "must be at least twice flush_log_bytes for each core",
        )?;
        check("wal.frames_in_flight", (1..=64).contains(&self.wal.frames_in_flight), "must be 1 to 64")?;
        check("wal.segment_bytes_min", self.wal.segment_bytes_min >= 64 << 10, "must be at least 64 KiB")?;
        check(
            "wal.segment_bytes_min",
            self.wal.segment_bytes_min.is_multiple_of(4096),
            "must be a multiple of 4096",
        )?;
        check(
            "wal.segment_bytes_max",
            self.wal.segment_bytes_max >= self.wal.segment_bytes_min,
            "must be at least wal.segment_bytes_min",
        )?;
        check(
            "wal.segment_bytes_max",
            self.wal.segment_bytes_max.is_multiple_of(4096),
            "must be a multiple of 4096",
        )?;
        check(
            "wal.frame_bytes_max",
            (16 << 10..=4 << 20).contains(&self.wal.frame_bytes_max),
            "must be 16 KiB to 4 MiB",
        )?;
        check(
            "wal.bytes_max",
            self.wal.bytes_max >= 4 * self.wal.segment_bytes_max,
            "must be at least four times wal.segment_bytes_max",
        )?;
        check(
            "wal.stuck_after",
            self.wal.stuck_after.is_none_or(|after| after >= self.heartbeat_interval),
            "must be at least heartbeat_interval, or writes that are merely slow cost leaderships",
        )?;
        check("listen", self.listen.as_deref().is_none_or(has_port), "must be host:port")?;
        if let Store::Lsm(settings) = &self.store {
            settings.validate()?;
        }
        self.validate_members()?;
        self.shard_config().raft.validate().map_err(rename_raft_field)
    }

    fn validate_members(&self) -> Result<(), ConfigError> {
        let fail = |reason: String| Err(ConfigError { field: "members", reason });
        if !self.members.is_empty() && !self.members.iter().any(|member| member.node == self.node) {
            return fail(format!("must name this node, {}, too", self.node));
        }
        for (at, member) in self.members.iter().enumerate() {
            if self.members[..at].iter().any(|other| other.node == member.node) {
                return fail(format!("names node {} twice", member.node));
            }
            if member.node.0 == 0 {
                return fail("a node's id must be above 0".into());
            }
            if !has_port(&member.address) {
                return fail(format!(
                    "address `{}` of node {} is not host:port",
                    member.address, member.node
                ));
            }
        }
        Ok(())
    }

    /// Settings of the layers below.
    /// The log's settings of one core.
    pub(crate) fn core_wal(&self) -> WalSettings {
        let part = self.wal.bytes_max / u64::from(self.cores);
        WalSettings { bytes_max: part.max(4 * self.wal.segment_bytes_max), ..self.wal.clone() }
    }

    pub(crate) fn shard_config(&self) -> ShardConfig {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        ShardConfig {
            raft: floe_raft::Config {
                election_timeout_min_ns: nanos(self.election_timeout_min),
                election_timeout_max_ns: nanos(self.election_timeout_max),
                heartbeat_interval_ns: nanos(self.heartbeat_interval),
                leases: self.leases,
                ..floe_raft::Config::default()
            },
            cores: self.cores,
            flush_log_bytes: self.flush_log_bytes,
            log_bytes_max: self.log_bytes_max,
            core_log_bytes_max: self.log_memory_bytes / usize::from(self.cores),
            quiet_after_ns: nanos(self.quiet_after),
            ..ShardConfig::default()
        }
    }

    /// Where this node listens, if it has a port: for other nodes and for clients.
    pub fn listen_address(&self) -> Option<&str> {
        let own = self.members.iter().find(|member| member.node == self.node);
        own.map(|own| self.listen.as_ref().unwrap_or(&own.address).as_str())
    }

    /// What the shards are made from.
    pub(crate) fn founding(&self) -> Founding {
        let mut members: Vec<_> = self.members.iter().map(|member| member.node).collect();
        if members.is_empty() {
            members.push(self.node);
        }
        members.sort_unstable();
        let replication = self.replication.min(members.len()) as u32;
        Founding { members, shards: self.shards, replication }
    }
}

/// Whether an address ends with a port.
fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok())
}

impl LsmSettings {
    fn validate(&self) -> Result<(), ConfigError> {
        let at_least = |field, is: u64, least: u64| {
            let reason = format!("{is} must be at least {least}");
            if is >= least { Ok(()) } else { Err(ConfigError { field, reason }) }
        };
        at_least("store.write_buffer_bytes", self.write_buffer_bytes, 1 << 20)?;
        at_least("store.cache_bytes", self.cache_bytes, 1 << 20)?;
        at_least("store.open_files_max", self.open_files_max as u64, 16)?;
        at_least("store.background_bytes_per_second", self.background_bytes_per_second, 1 << 20)
    }
}

/// Raft's settings are in nanoseconds; a node's are durations of the same names without the unit.
fn rename_raft_field(error: ConfigError) -> ConfigError {
    let field = error.field.strip_suffix("_ns").unwrap_or(error.field);
    ConfigError { field, reason: error.reason.replace("_ns", "") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_election_timeout_below_the_heartbeat_is_refused_by_name() {
        let mut config = Config::embedded("d");
        config.election_timeout_min = Duration::from_millis(20);
        let error = config.validate().unwrap_err();
        assert_eq!(error.field, "election_timeout_min");
        assert!(error.reason.starts_with("20ms must be above twice heartbeat_interval (30ms)"), "{error}");
    }

    #[test]
    fn a_write_buffer_without_room_is_refused_by_name() {
        let mut config = Config::embedded("d");
        config.store = Store::Lsm(LsmSettings { write_buffer_bytes: 100, ..LsmSettings::default() });
        assert_eq!(config.validate().unwrap_err().field, "store.write_buffer_bytes");
        config.store = Store::Lsm(LsmSettings::default());
        config.validate().unwrap();
    }

    #[test]
    fn the_defaults_are_valid() {
        Config::embedded("d").validate().unwrap();
    }

    #[test]
    fn a_member_without_itself_or_with_a_bad_address_is_refused() {
        let other = Member { node: NodeId(2), address: "127.0.0.1:1".into() };
        let own = Member { node: NodeId(1), address: "nonsense".into() };
        for members in [vec![other.clone()], vec![own, other]] {
            let error = Config::member("d", NodeId(1), members).validate().unwrap_err();
            assert_eq!(error.field, "members");
        }
    }
}
