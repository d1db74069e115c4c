//! The monotonic clock of a process, for drivers and callers' threads. Nothing on a core's side of
//! the seam reads it.

use floe_raft::Nanos;
use std::sync::OnceLock;
use std::time::Instant;

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// Nanoseconds since the first call in this process; starts at 1 s so that 0 can mean "never".
pub fn now() -> Nanos {
    let origin = ORIGIN.get_or_init(Instant::now);
    1_000_000_000 + u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
