//! What follows a start: once every core has everything that it found durably in its own stream, the
//! boot record forgets the streams of older core counts, and only then are their files removed. So a
//! crash at any moment leaves either the old streams or all that was in them.

use crate::boot::{Boot, BootRecord, StreamSet, stream_name};
use crate::disk::{DiskCall, DiskCalls, DiskDone, DiskErrorKind, DiskResult, OpId, OpOwner};
use crate::seam::Failure;
use floe_raft::{Planted, is_planted};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Numbers of boot calls from here on list or remove files of old streams.
const REMOVALS: u64 = 1 << 32;

/// Run by core 0; the other cores only report to it.
pub struct Settling {
    record: Arc<BootRecord>,
    waiting_for: usize,
    boot: Option<Boot>,
    next: u64,
    listings: BTreeMap<u64, String>,
}

impl Settling {
    /// Waits for all cores of the node.
    pub fn new(record: Arc<BootRecord>) -> Self {
        let cores = usize::from(record.current().cores);
        let waiting_for = if is_planted(Planted::SettledEarly) { 1 } else { cores };
        Self { record, waiting_for, boot: None, next: REMOVALS, listings: BTreeMap::new() }
    }

    /// One more core has settled.
    pub fn core_settled(&mut self, calls: &mut DiskCalls) {
        if is_planted(Planted::SettledEarly) && self.waiting_for == 0 {
            return;
        }
        assert!(self.waiting_for > 0, "a core settles once per start");
        self.waiting_for -= 1;
        let nothing_to_do = self.record.settled && self.record.old_sets().is_empty();
        if self.waiting_for == 0 && !nothing_to_do {
            self.boot = Some(Boot::settle(&self.record, calls));
        }
    }

    /// Takes a call's outcome.
    ///
    /// # Errors
    /// The boot record can't be rewritten, for another reason than a full disk: then it stays as it is, and
    /// the next start settles. Files that can't be removed are only in the way: no error.
    pub fn on_disk(&mut self, number: u64, result: DiskResult, calls: &mut DiskCalls) -> Result<(), Failure> {
        if let Some(error) = result.as_ref().err().filter(|error| error.kind == DiskErrorKind::Full) {
            tracing::warn!(%error, "old streams are kept until the next start, for want of space");
            self.boot = None;
            return Ok(());
        }
        if let Some(boot) = self.boot.as_mut().filter(|_| number < REMOVALS) {
            if boot.on_disk(result, calls).map_err(Failure::Boot)?.is_some() {
                self.boot = None;
                self.list_old_streams(calls);
            }
        } else if let (Some(dir), Ok(DiskDone::Listed(entries))) = (self.listings.remove(&number), result) {
            for entry in entries {
                self.issue(DiskCall::Remove { path: format!("{dir}/{}", entry.name).into() }, calls);
            }
        }
        Ok(())
    }

    fn list_old_streams(&mut self, calls: &mut DiskCalls) {
        let record = self.record.clone();
        for stream in record.old_sets().iter().flat_map(StreamSet::ids) {
            let dir = format!("wal/{}", stream_name(stream));
            let number = self.issue(DiskCall::List { dir: dir.as_str().into() }, calls);
            self.listings.insert(number, dir);
        }
    }

    fn issue(&mut self, call: DiskCall, calls: &mut DiskCalls) -> u64 {
        self.next += 1;
        calls.push((OpId { owner: OpOwner::Boot, number: self.next }, call));
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Founding;
    use crate::disk::DiskError;
    use floe_shard::NodeId;

    fn settling(calls: &mut DiskCalls) -> Settling {
        let record = BootRecord {
            cluster: 7,
            node: NodeId(3),
            founding: Founding { members: vec![NodeId(3)], shards: 1, replication: 1 },
            store_uuid: 9,
            boot_epoch: 4,
            settled: true,
            sets: vec![StreamSet { first: 1, cores: 2 }, StreamSet { first: 3, cores: 1 }],
        };
        let mut settling = Settling::new(Arc::new(record));
        settling.core_settled(calls);
        assert_eq!(calls.len(), 1, "the boot record is saved");
        settling
    }

    fn failed(kind: DiskErrorKind) -> DiskResult {
        Err(DiskError { kind, message: "saving node.floe.new".into() })
    }

    #[test]
    fn a_full_disk_after_the_start_stops_no_core_and_removes_nothing() {
        let mut calls = DiskCalls::default();
        let mut settling = settling(&mut calls);
        calls.clear();
        assert_eq!(settling.on_disk(0, failed(DiskErrorKind::Full), &mut calls), Ok(()));
        assert!(calls.is_empty(), "nothing is removed while the record still names the old streams");
    }

    #[test]
    fn any_other_failure_to_save_the_boot_record_is_named() {
        let mut calls = DiskCalls::default();
        let mut settling = settling(&mut calls);
        let failure = settling.on_disk(0, failed(DiskErrorKind::Io), &mut calls).unwrap_err();
        assert!(failure.to_string().contains("node.floe.new"), "{failure}");
    }
}
