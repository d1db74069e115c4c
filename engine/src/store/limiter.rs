//! Keeps the writing of tables out of the log's way: in small steps, and below so many bytes per second, for all
//! trees of a node together.
//!
//! A table that is synced only when it is complete hands the disk tens of megabytes at once, and the log's next write
//! waits behind them. So whatever writes tables stops after each step, has the kernel write it, waits for the step before,
//! and until the rate allows more. (A sync per step would wait for the disk's cache and the file's metadata each time: it
//! held compaction to 32 MB/s.) Flushes wait for the rate only while memory isn't short: else writers would be refused for
//! its sake.
//!
//! lsm-tree writes a table, and merges, in one call and offers nothing of that. But its files lie in one directory and have
//! ascending numbers, so that they can be reached from outside; and a merge shows every row that it keeps to
//! a filter, which may take its time. It syncs each table itself when that is complete.

use super::memtable::Budget;
use crate::driver::sys;
use floe_shard::Pressure;
use lsm_tree::compaction::filter::{CompactionFilter, Context, Factory, ItemAccessor, Verdict};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a step.
const STEP_BYTES: u64 = 512 << 10;
/// Where a tree's tables lie in its directory.
const TABLES: &str = "tables";

/// A budget of bytes per second; nothing is saved up while it isn't used.
pub(super) struct Limiter {
    bytes_per_second: u64,
    /// Until when what was taken lasts.
    paid_until: Mutex<Instant>,
    memory: Arc<Budget>,
}

impl Limiter {
    pub(super) fn new(bytes_per_second: u64, memory: Arc<Budget>) -> Self {
        Self { bytes_per_second, paid_until: Mutex::new(Instant::now()), memory }
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

/// Why tables are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Flush,
    Compaction,
}

/// One flush, or one merge.
pub(super) struct Writing {
    limiter: Arc<Limiter>,
    reason: Reason,
    tables: PathBuf,
    /// No table that it writes has a lower number.
    lowest: u64,
    /// Since the last step.
    bytes: u64,
}

impl Writing {
    /// Begins to write tables of the tree in `dir`; called before or right after its first one was made.
    pub(super) fn begin(limiter: &Arc<Limiter>, reason: Reason, dir: &Path) -> io::Result<Self> {
        let tables = dir.join(TABLES);
        let lowest = numbers(&tables)?.into_iter().max().unwrap_or(0);
        Ok(Self { limiter: limiter.clone(), reason, tables, lowest, bytes: 0 })
    }

    /// So many bytes more were written. Once per step it waits for the disk, and for the rate.
    pub(super) fn wrote(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes += bytes;
        if self.bytes < STEP_BYTES {
            return Ok(());
        }
        self.write_back()?;
        let step = std::mem::take(&mut self.bytes);
        if self.reason == Reason::Compaction || self.limiter.memory.pressure() == Pressure::None {
            self.limiter.take(step);
        }
        Ok(())
    }

    /// Hands the disk what it may have written; doing so to others' tables too does no harm.
    fn write_back(&self) -> io::Result<()> {
        let own = numbers(&self.tables)?.into_iter().filter(|&number| number >= self.lowest);
        for number in own {
            match File::open(self.tables.join(number.to_string()))
                .and_then(|file| sys::write_back(file.as_fd()))
            {
                // Another one's, which a merge has replaced meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                begun => begun?,
            }
        }
        Ok(())
    }
}

/// Numbers of the tables in a directory.
fn numbers(tables: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(tables)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(numbers)
}

/// Makes the filters of a tree.
pub(super) struct Throttle {
    limiter: Arc<Limiter>,
    dir: PathBuf,
}

impl Throttle {
    pub(super) fn new(limiter: Arc<Limiter>, dir: &Path) -> Self {
        Self { limiter, dir: dir.into() }
    }
}

impl Factory for Throttle {
    fn name(&self) -> &str {
        "floe-throttle"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        Box::new(Brake(Writing::begin(&self.limiter, Reason::Compaction, &self.dir)))
    }
}

/// One merge; an error is told to it with its first row.
struct Brake(io::Result<Writing>);

impl CompactionFilter for Brake {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> lsm_tree::Result<Verdict> {
        let bytes = (item.key().len() + item.value()?.len()) as u64;
        match &mut self.0 {
            Ok(writing) => writing.wrote(bytes)?,
            Err(error) => return Err(io::Error::new(error.kind(), error.to_string()).into()),
        }
        Ok(Verdict::Keep)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memtable::Charge;
    use super::*;

    fn limiter(bytes_per_second: u64, memory: &Arc<Budget>) -> Arc<Limiter> {
        Arc::new(Limiter::new(bytes_per_second, memory.clone()))
    }

    #[test]
    fn two_that_take_share_one_rate() {
        let limiter = limiter(1 << 20, &Budget::new(1));
        let begun = Instant::now();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..4).for_each(|_| limiter.take(32 << 10)));
            }
        });
        // Eight steps of 1/32 s each; the last one isn't waited for.
        assert!(begun.elapsed() >= Duration::from_millis(7 * 1000 / 32), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_flush_waits_for_the_rate_only_while_there_is_memory() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(TABLES)).unwrap();
        let memory = Budget::new(1000);
        let limiter = limiter(1 << 40, &memory);
        let keeps_to_the_rate = |reason| {
            let before = *limiter.paid_until.lock().unwrap();
            let mut writing = Writing::begin(&limiter, reason, dir.path()).unwrap();
            (0..2).for_each(|_| writing.wrote(STEP_BYTES / 2).unwrap());
            *limiter.paid_until.lock().unwrap() > before
        };
        assert!(keeps_to_the_rate(Reason::Flush));
        let mut charge = Charge::new(&memory);
        charge.set(600);
        assert!(!keeps_to_the_rate(Reason::Flush));
        assert!(keeps_to_the_rate(Reason::Compaction));
    }

    #[test]
    fn tables_that_a_merge_has_removed_meanwhile_are_no_error_and_others_are() {
        let dir = tempfile::tempdir().unwrap();
        let tables = dir.path().join(TABLES);
        fs::create_dir(&tables).unwrap();
        fs::write(tables.join("7"), b"table").unwrap();
        let limiter = limiter(1 << 40, &Budget::new(1));
        let mut writing = Writing::begin(&limiter, Reason::Flush, dir.path()).unwrap();
        assert_eq!(writing.lowest, 7);
        // As one that is listed, and gone when it is opened.
        std::os::unix::fs::symlink("gone", tables.join("8")).unwrap();
        writing.wrote(STEP_BYTES).unwrap();
        fs::remove_dir_all(&tables).unwrap();
        writing.wrote(STEP_BYTES - 1).unwrap();
        assert_eq!(writing.wrote(1).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
