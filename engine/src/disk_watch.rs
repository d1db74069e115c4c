//! Whether the log's disk answers.
//!
//! A core whose disk doesn't answer can't do its work: it stops beating and leading, so that others can, until
//! the disk answers. Patience counts from the first turn *after* the one that issued a call: the driver
//! carries calls out when the turn is over, and a turn in which the thread lost its processor for long would
//! otherwise make a call look old that has only just begun. Nor does the time count in which the thread had no turn at
//! all, as after a SIGSTOP: it hasn't looked whether the disk has answered.

use floe_raft::Nanos;

/// What a turn found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The oldest call has been on its way for too long.
    Stuck,
    /// It has come back, after so long beyond the patience.
    Answers { after: Nanos },
}

/// Watches the oldest disk call that records wait for.
pub(crate) struct DiskWatch {
    patience: Nanos,
    oldest: Option<Oldest>,
    turned_at: Nanos,
    stuck_since: Option<Nanos>,
}

#[derive(Clone, Copy)]
struct Oldest {
    /// Tells the calls apart: only one is the oldest at a time, and none is issued in the past.
    issued_at: Nanos,
    seen_at: Nanos,
}

impl DiskWatch {
    pub(crate) fn new(patience: Nanos) -> Self {
        Self { patience, oldest: None, turned_at: Nanos::MAX, stuck_since: None }
    }

    /// Looks at when the oldest call was issued, at the start of a turn whose inputs have been taken.
    pub(crate) fn turn(&mut self, now: Nanos, issued_at: Option<Nanos>) -> Option<Change> {
        let without_turn = now.saturating_sub(std::mem::replace(&mut self.turned_at, now));
        let not_looked = without_turn.saturating_sub(self.patience / 2);
        self.oldest = issued_at.map(|issued_at| match self.oldest {
            Some(Oldest { issued_at: before, seen_at }) if before == issued_at => {
                Oldest { issued_at, seen_at: seen_at + not_looked }
            }
            _ => Oldest { issued_at, seen_at: now },
        });
        let is_stuck = self.oldest.is_some_and(|oldest| oldest.seen_at + self.patience <= now);
        match self.stuck_since {
            None if is_stuck => {
                self.stuck_since = Some(now);
                Some(Change::Stuck)
            }
            Some(since) if !is_stuck => {
                self.stuck_since = None;
                Some(Change::Answers { after: now.saturating_sub(since) })
            }
            _ => None,
        }
    }

    /// Whether the disk is taken for stuck.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck_since.is_some()
    }

    /// When to look again, given the oldest call's issue; `Nanos::MAX` = when something comes in.
    pub(crate) fn deadline(&self, issued_at: Option<Nanos>) -> Nanos {
        match (issued_at, self.oldest) {
            _ if self.stuck_since.is_some() => Nanos::MAX,
            (None, _) => Nanos::MAX,
            (Some(at), Some(oldest)) if oldest.issued_at == at => oldest.seen_at + self.patience,
            // Only to see it, should no other turn come meanwhile.
            (Some(at), _) => at + self.patience / 4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Nanos = 100;

    #[test]
    fn a_call_that_stays_out_is_found_and_its_return_too() {
        let mut watch = DiskWatch::new(PATIENCE);
        assert_eq!(watch.deadline(Some(10)), 35, "soon enough to see it");
        assert_eq!(watch.turn(35, Some(10)), None);
        assert_eq!(watch.deadline(Some(10)), 135);
        for now in [60, 100, 134] {
            assert_eq!(watch.turn(now, Some(10)), None, "at {now}");
        }
        assert_eq!(watch.turn(135, Some(10)), Some(Change::Stuck));
        assert_eq!((watch.turn(140, Some(10)), watch.deadline(Some(10))), (None, Nanos::MAX));
        assert_eq!(watch.turn(150, Some(145)), Some(Change::Answers { after: 15 }));
        assert_eq!(watch.turn(160, None), None);
        assert_eq!(watch.deadline(None), Nanos::MAX);
    }

    #[test]
    fn a_thread_that_was_stopped_gives_the_disk_time_to_be_heard() {
        let mut watch = DiskWatch::new(PATIENCE);
        assert_eq!(watch.turn(35, Some(10)), None);
        assert_eq!(watch.turn(1000, Some(10)), None, "the answer may wait to be taken");
        assert_eq!(watch.turn(1040, Some(10)), None);
        assert_eq!(watch.turn(1050, Some(10)), Some(Change::Stuck));
    }

    #[test]
    fn a_turn_that_takes_long_makes_no_call_look_old() {
        let mut watch = DiskWatch::new(PATIENCE);
        // Issued by the turn at 10, which ended at 1000; the driver has just begun with the call.
        assert_eq!(watch.turn(1000, Some(10)), None);
        // Each turn sees another one: the disk works.
        for now in (1050..2000).step_by(50) {
            assert_eq!(watch.turn(now, Some(now - 40)), None);
        }
    }
}
