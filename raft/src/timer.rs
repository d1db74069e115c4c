//! The randomized election timer (paper §5.2).
//!
//! Time is what the caller says it is: a timer is a start and a length, never a count of ticks, so a
//! stalled core doesn't owe a burst of them. The length is drawn anew with every term and campaign,
//! not with every message from the leader.

use crate::config::Config;
use crate::types::Nanos;

/// When an election is due, unless a leader is heard before.
#[derive(Debug)]
pub(crate) struct ElectionTimer {
    started_at: Nanos,
    length: Nanos,
    /// State of a splitmix64 generator.
    random: u64,
}

impl ElectionTimer {
    /// A timer that starts now.
    pub(crate) fn new(now: Nanos, seed: u64, config: &Config) -> Self {
        let mut timer = Self { started_at: now, length: 0, random: seed };
        timer.redraw(config);
        timer
    }

    /// When it runs out.
    pub(crate) fn due_at(&self) -> Nanos {
        self.started_at.saturating_add(self.length)
    }

    /// Starts it again with the same length.
    pub(crate) fn restart(&mut self, now: Nanos) {
        self.started_at = now;
    }

    /// Sets the length in force until the next draw.
    pub(crate) fn set_length(&mut self, length: Nanos) {
        self.length = length;
    }

    /// Draws a new length from `[min, max)`. A replica of priority `p` takes the least of `p + 1` draws:
    /// the bounds stay the same for all, and the higher priority tends to campaign first.
    pub(crate) fn redraw(&mut self, config: &Config) {
        let (min, max) = (config.election_timeout_min_ns, config.election_timeout_max_ns);
        self.length = max;
        for _ in 0..=config.priority {
            let draw = min + self.next_random() % (max - min);
            self.length = self.length.min(draw);
        }
    }

    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_priority_draws_shorter_timeouts_within_the_same_bounds() {
        let mean = |priority| {
            let config = Config { priority, ..Config::default() };
            let mut timer = ElectionTimer::new(0, 7, &config);
            let draws = (0..1000).map(|_| {
                timer.redraw(&config);
                assert!(
                    (config.election_timeout_min_ns..config.election_timeout_max_ns).contains(&timer.length)
                );
                timer.length
            });
            draws.sum::<u64>() / 1000
        };
        assert!(mean(1) < mean(0) && mean(5) < mean(1), "{} {} {}", mean(0), mean(1), mean(5));
    }
}
