//! All rows that a scan finds in one shard stood at one moment of its log, however many pages it took.
//!
//! That every single row could be read at that time is the linearizability checker's to say. Two rows of one page can
//! each be right by themselves and yet never have stood together: this looks for one index in the shard's committed
//! history at which all of them did, and all keys without a row were absent.

use crate::checker::Violation;
use crate::checker::durability::{Changes, Stored, value_at};
use floe_raft::Index;
use floe_shard::{FOUNDED_AT, ShardId};
use std::collections::BTreeMap;

/// What a scan saw of the keys in its range: the row, or `None` where there was none.
pub type Seen = BTreeMap<u32, Option<Stored>>;

/// The checker.
#[derive(Debug, Default)]
pub struct Snapshots {
    scans: Vec<(ShardId, Seen)>,
}

impl Snapshots {
    /// A scan of a shard has ended, or gave up, after it saw this.
    pub fn saw(&mut self, shard: ShardId, seen: Seen) {
        self.scans.push((shard, seen));
    }

    /// Compares the scans of a shard with what its committed history did to each key.
    ///
    /// # Errors
    /// A scan whose rows never stood together.
    pub fn judge(&self, shard: ShardId, changes: &Changes) -> Result<(), Violation> {
        for (_, seen) in self.scans.iter().filter(|(of, _)| *of == shard) {
            let of_key = |key: &u32| changes.get(key).into_iter().flatten().map(|(index, _)| *index);
            let mut moments: Vec<Index> = seen.keys().flat_map(of_key).collect();
            moments.push(FOUNDED_AT.index);
            let stood = |at: Index| seen.iter().all(|(key, row)| value_at(changes, *key, at) == *row);
            if !moments.into_iter().any(stood) {
                let detail = format!("{shard}: a scan saw {seen:?}, which never stood together");
                return Err(Violation::new("snapshot", detail));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(1);

    /// Key 1 gets a value at 2 and another at 5 and is deleted at 7; key 2 gets one at 4.
    fn broken(seen: &[(u32, Option<Stored>)]) -> Option<&'static str> {
        let changes = [(1, vec![(2, Some(10)), (5, Some(11)), (7, None)]), (2, vec![(4, Some(20))])];
        let mut snapshots = Snapshots::default();
        snapshots.saw(SHARD, seen.iter().copied().collect());
        snapshots.judge(SHARD, &changes.into()).err().map(|violation| violation.property)
    }

    #[test]
    fn rows_that_stood_together_pass() {
        assert_eq!(broken(&[(1, None), (2, None)]), None, "before the first write");
        assert_eq!(broken(&[(1, Some((10, 2))), (2, None)]), None);
        assert_eq!(broken(&[(1, Some((10, 2))), (2, Some((20, 4)))]), None);
        assert_eq!(broken(&[(1, None), (2, Some((20, 4))), (3, None)]), None, "after the deletion");
    }

    #[test]
    fn rows_of_two_moments_are_found() {
        assert_eq!(broken(&[(1, Some((11, 5))), (2, None)]), Some("snapshot"), "2 was there by then");
        assert_eq!(broken(&[(1, Some((10, 2))), (3, Some((30, 6)))]), Some("snapshot"), "nobody wrote 3");
        assert_eq!(broken(&[(1, None), (2, Some((20, 4))), (3, Some((30, 8)))]), Some("snapshot"));
    }

    #[test]
    fn scans_of_other_shards_are_not_judged_here() {
        let mut snapshots = Snapshots::default();
        snapshots.saw(ShardId(2), [(1, Some((1, 2)))].into());
        assert_eq!(snapshots.judge(SHARD, &Changes::new()), Ok(()));
    }
}
