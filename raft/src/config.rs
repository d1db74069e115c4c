//! What can be set of one group, with bounds that are checked once, at construction.

use crate::types::Nanos;
use std::fmt;
use std::time::Duration;

/// Settings of one replica. All replicas of a group may differ: safety never depends on equality.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Lower bound of the randomized election timeout. Default 150 ms.
    pub election_timeout_min_ns: Nanos,
    /// Upper bound, exclusive. Default 300 ms. "Election timeout" in any figure means this one.
    pub election_timeout_max_ns: Nanos,
    /// How often a leader is heard at the least. Default 30 ms. Must be below half of the election
    /// timeout's lower bound (`broadcast time << election timeout`, paper §5.6).
    pub heartbeat_interval_ns: Nanos,
    /// Payload and overhead bytes of one append message; one entry is always admitted. Default 1 MiB.
    pub append_bytes_max: usize,
    /// Append messages in flight to one follower. Default 64.
    pub inflight_messages_max: usize,
    /// Bytes in flight to one follower; one message is always admitted. Default 8 MiB.
    pub inflight_bytes_max: usize,
    /// Bytes of proposals that are not committed yet; one is always admitted. Default 32 MiB.
    pub uncommitted_bytes_max: usize,
    /// Bytes of committed entries handed out in one `Ready`; one entry is always admitted. Default 1 MiB.
    pub apply_bytes_max: usize,
    /// ReadIndex requests of one follower that may wait at a time, on the follower and on its leader; more
    /// are refused. Default 1,024.
    pub peer_reads_max: usize,
    /// Higher priority tends to campaign earlier: the election timeout is the least of
    /// `priority + 1` draws between the same two bounds. Default 0: all alike.
    pub priority: u8,
    /// Whether this replica gives promises, and as a leader reads under a lease. Default on. Turn it off
    /// where the monotonic clock may stand still while others go on, as on a machine that is suspended:
    /// reads then take a ReadIndex round each. See `lease.rs`.
    pub leases: bool,
    /// By how much the rates of two replicas' clocks may differ, in millionths; a lease is shorter than the
    /// promise by so much. Default, and least: 10,000 (1 %); at most 500,000.
    pub lease_drift_ppm: u32,
    /// What a lease is shorter still, for clocks that are coarse or read a little late. Default 1 ms.
    pub lease_slack_ns: Nanos,
}

impl Default for Config {
    fn default() -> Self {
        const MS: Nanos = 1_000_000;
        Self {
            election_timeout_min_ns: 150 * MS,
            election_timeout_max_ns: 300 * MS,
            heartbeat_interval_ns: 30 * MS,
            append_bytes_max: 1 << 20,
            inflight_messages_max: 64,
            inflight_bytes_max: 8 << 20,
            uncommitted_bytes_max: 32 << 20,
            apply_bytes_max: 1 << 20,
            peer_reads_max: 1024,
            priority: 0,
            leases: true,
            lease_drift_ppm: 10_000,
            lease_slack_ns: MS,
        }
    }
}

/// A setting that can't be used, with the bound it breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field's name.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Checks every bound.
    ///
    /// # Errors
    /// Names the first field that breaks its bound.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let fail = |field, reason: String| Err(ConfigError { field, reason });
        let time = Duration::from_nanos;
        if self.heartbeat_interval_ns == 0 {
            return fail("heartbeat_interval_ns", "must be above 0".into());
        }
        if self.election_timeout_min_ns <= 2 * self.heartbeat_interval_ns {
            return fail(
                "election_timeout_min_ns",
                format!(
                    "{:?} must be above twice heartbeat_interval_ns ({:?}), or one lost heartbeat starts an election",
                    time(self.election_timeout_min_ns),
                    time(self.heartbeat_interval_ns)
                ),
            );
        }
        if self.election_timeout_max_ns <= self.election_timeout_min_ns {
            return fail(
                "election_timeout_max_ns",
                format!(
                    "{:?} must be above election_timeout_min_ns ({:?}), or votes split for ever",
                    time(self.election_timeout_max_ns),
                    time(self.election_timeout_min_ns)
                ),
            );
        }
        if !(10_000..=500_000).contains(&self.lease_drift_ppm) {
            return fail(
                "lease_drift_ppm",
                format!("{} must be 10,000 to 500,000 millionths", self.lease_drift_ppm),
            );
        }
        if self.lease_slack_ns >= self.election_timeout_min_ns {
            return fail(
                "lease_slack_ns",
                format!(
                    "{:?} must be below election_timeout_min_ns ({:?}), or no lease ever begins",
                    time(self.lease_slack_ns),
                    time(self.election_timeout_min_ns)
                ),
            );
        }
        for (field, value) in [
            ("append_bytes_max", self.append_bytes_max),
            ("inflight_messages_max", self.inflight_messages_max),
            ("inflight_bytes_max", self.inflight_bytes_max),
            ("uncommitted_bytes_max", self.uncommitted_bytes_max),
            ("apply_bytes_max", self.apply_bytes_max),
            ("peer_reads_max", self.peer_reads_max),
        ] {
            if value == 0 {
                return fail(field, "must be above 0".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each bound holds for the default, and is broken by a value that just breaks it.
    #[test]
    fn what_breaks_a_bound_is_refused_by_the_fields_name() {
        type Break = fn(&mut Config);
        let breaks: [(&str, Break); 12] = [
            ("heartbeat_interval_ns", |config| config.heartbeat_interval_ns = 0),
            // The time of a broadcast has to be far below that of an election (paper §5.6).
            ("election_timeout_min_ns", |config| {
                config.election_timeout_min_ns = 2 * config.heartbeat_interval_ns
            }),
            ("election_timeout_max_ns", |config| {
                config.election_timeout_max_ns = config.election_timeout_min_ns
            }),
            ("lease_drift_ppm", |config| config.lease_drift_ppm = 9_999),
            ("lease_drift_ppm", |config| config.lease_drift_ppm = 500_001),
            ("lease_slack_ns", |config| config.lease_slack_ns = config.election_timeout_min_ns),
            ("append_bytes_max", |config| config.append_bytes_max = 0),
            ("inflight_messages_max", |config| config.inflight_messages_max = 0),
            ("inflight_bytes_max", |config| config.inflight_bytes_max = 0),
            ("uncommitted_bytes_max", |config| config.uncommitted_bytes_max = 0),
            ("apply_bytes_max", |config| config.apply_bytes_max = 0),
            ("peer_reads_max", |config| config.peer_reads_max = 0),
        ];
        assert_eq!(Config::default().validate(), Ok(()));
        for (field, broken) in breaks {
            let mut config = Config::default();
            broken(&mut config);
            let error = config.validate().expect_err(field);
            assert_eq!(error.field, field, "{error}");
        }
    }
}
