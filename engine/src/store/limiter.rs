//! Keeps compaction below so many bytes per second, for all trees of a node together.
//!
//! lsm-tree merges in one call and offers no limit of its own; but it shows every row that it keeps to a filter, and
//! the filter may take its time.

use lsm_tree::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes after which a merge looks at the clock.
const STEP_BYTES: u64 = 256 << 10;

/// A budget of bytes per second; nothing is saved up while it isn't used.
pub(super) struct Limiter {
    bytes_per_second: u64,
    /// Until when what was taken lasts.
    paid_until: Mutex<Instant>,
}

impl Limiter {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, paid_until: Mutex::new(Instant::now()) }
    }

    /// Takes so many bytes, and sleeps until they are due.
    fn take(&self, bytes: u64) {
        let price = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let due = {
            let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let due = (*paid_until).max(Instant::now());
            *paid_until = due + price;
            due
        };
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Makes the filters of a tree.
pub(super) struct Throttle(Arc<Limiter>);

impl Throttle {
    pub(super) fn new(limiter: Arc<Limiter>) -> Self {
        Self(limiter)
    }
}

impl Factory for Throttle {
    fn name(&self) -> &str {
        "floe-throttle"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Brake { limiter: self.0.clone(), bytes: 0 })
    }
}

/// One merge.
struct Brake {
    limiter: Arc<Limiter>,
    bytes: u64,
}

impl CompactionFilter for Brake {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        self.bytes += (item.key().len() + item.value()?.len()) as u64;
        if self.bytes >= STEP_BYTES {
            self.limiter.take(std::mem::take(&mut self.bytes));
        }
        Ok(Verdict::Keep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_take_share_one_rate() {
        let limiter = Limiter::new(1 << 20);
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..4).for_each(|_| limiter.take(32 << 10)));
            }
        });
        // Eight steps of 1/32 s each; the last one isn't waited for.
        assert!(begun.elapsed() >= Duration::from_millis(7 * 1000 / 32), "{:?}", begun.elapsed());
    }
}
