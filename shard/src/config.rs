//! What can be set of one core's replicas.

use floe_raft::{ConfigError, Nanos};

/// Most that one `DumpPull` may ask for.
pub const DUMP_PULL_BYTES_MAX: u32 = 4 << 20;

/// Settings of one core's [`crate::MultiRaft`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardConfig {
    /// Settings of every group.
    pub raft: floe_raft::Config,
    /// Cores of this node.
    pub cores: u16,
    /// A shard is dumped when this much was applied since its last dump, or half of its state's size, if
    /// that is more (big states aren't dumped all the time), but never more than `log_bytes_max`.
    /// Default 4 MiB.
    pub flush_log_bytes: usize,
    /// Beyond this much log in memory, and beyond half of its state's size, a shard drops what is dumped, even if a
    /// follower still needs it: that follower gets the dump. Default 32 MiB.
    pub log_bytes_max: usize,
    /// What the logs in memory of all shards of this core may take together: a part of the node's budget, see
    /// `log_budget.rs`. At least twice `flush_log_bytes`. Default 256 MiB.
    pub core_log_bytes_max: usize,
    /// How much of a dump a follower asks for at a time; a multiple of 4096, at most
    /// [`DUMP_PULL_BYTES_MAX`]. Default 1 MiB.
    pub dump_chunk_bytes: u32,
    /// Dumps of this core's own states being saved at the same time; a whole one that a machine with files makes for
    /// followers comes on top. Default 2.
    pub dumps_in_flight: usize,
    /// A group in which nothing was written or read for so long goes quiet; `Nanos::MAX` = never. Default 1 s.
    pub quiet_after_ns: Nanos,
    /// Bytes of proposals that one replica may put into one turn; one is always admitted. Default 1 MiB.
    pub turn_bytes_max: usize,
    /// Bytes of committed entries after which a turn of the core ends, so that beats aren't late where many replicas
    /// have much to apply: each is in a turn soon, and a turn goes beyond by one replica's part at the most
    /// ([`floe_raft::Config::apply_bytes_max`]). Default 1 MiB.
    pub turn_apply_bytes_max: usize,
    /// Replicas that begin to campaign in one turn, and that campaign at a time if they reach a majority; the next
    /// ones do as these end. Default 64.
    pub campaigns_per_turn_max: usize,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            raft: floe_raft::Config::default(),
            cores: 1,
            flush_log_bytes: 4 << 20,
            log_bytes_max: 32 << 20,
            core_log_bytes_max: 256 << 20,
            dump_chunk_bytes: 1 << 20,
            dumps_in_flight: 2,
            quiet_after_ns: 1_000_000_000,
            turn_bytes_max: 1 << 20,
            turn_apply_bytes_max: 1 << 20,
            campaigns_per_turn_max: 64,
        }
    }
}

impl ShardConfig {
    /// Checks every bound.
    ///
    /// # Errors
    /// Names the first field that breaks its bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.raft.validate()?;
        let fail = |field, reason: String| Err(ConfigError { field, reason });
        let chunk = self.dump_chunk_bytes;
        if chunk == 0 || !chunk.is_multiple_of(4096) || chunk > DUMP_PULL_BYTES_MAX {
            return fail(
                "dump_chunk_bytes",
                format!("{chunk} must be a multiple of 4096, from 4096 to {DUMP_PULL_BYTES_MAX}"),
            );
        }
        if self.flush_log_bytes > self.log_bytes_max {
            return fail(
                "flush_log_bytes",
                format!("{} must not exceed log_bytes_max ({})", self.flush_log_bytes, self.log_bytes_max),
            );
        }
        if self.core_log_bytes_max / 2 < self.flush_log_bytes {
            return fail(
                "core_log_bytes_max",
                format!("{} must be at least twice {}", self.core_log_bytes_max, self.flush_log_bytes),
            );
        }
        for (field, value) in [
            ("cores", usize::from(self.cores)),
            ("flush_log_bytes", self.flush_log_bytes),
            ("dumps_in_flight", self.dumps_in_flight),
            ("turn_bytes_max", self.turn_bytes_max),
            ("turn_apply_bytes_max", self.turn_apply_bytes_max),
            ("campaigns_per_turn_max", self.campaigns_per_turn_max),
        ] {
            if value == 0 {
                return fail(field, "must be above 0".into());
            }
        }
        Ok(())
    }
}
