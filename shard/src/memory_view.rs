//! Reading the rows of a memory store: the same code on the core, on its rows as they are, and on callers'
//! threads, on a snapshot of them.

use crate::descriptor::KeyRange;
use crate::request::{Query, Row, Versioned};
use crate::row_tree::{RowTree, Slot};
use crate::state_machine::{QueryResult, View};
use crate::stored_key::StoredKey;

impl View for RowTree<Slot> {
    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, String> {
        Ok(self.find(key))
    }

    fn read(&self, query: &Query, range: &KeyRange) -> Result<QueryResult, String> {
        Ok(RowTree::read(self, query, range))
    }
}

impl RowTree<Slot> {
    fn find(&self, key: &[u8]) -> Option<Versioned> {
        self.get(&StoredKey::new(key)).map(Slot::versioned)
    }

    /// What a query finds, within `range`.
    pub(crate) fn read(&self, query: &Query, range: &KeyRange) -> QueryResult {
        match query {
            Query::Get { key } if range.contains(key) => QueryResult::Value(self.find(key)),
            Query::Get { .. } => QueryResult::Value(None),
            Query::Scan { start, end, limit, bytes_max, reverse, .. } => {
                let Some((low, high)) = clip(start, end, range) else {
                    return QueryResult::Rows(Vec::new(), false);
                };
                let limit = if *limit == 0 { usize::MAX } else { *limit as usize };
                scan(self, &low, high.as_ref(), *reverse, limit, *bytes_max as usize)
            }
        }
    }
}

/// One page: at most `limit` rows and `bytes_max` bytes; one row is always admitted.
fn scan(
    rows: &RowTree<Slot>,
    low: &StoredKey,
    high: Option<&StoredKey>,
    reverse: bool,
    limit: usize,
    bytes_max: usize,
) -> QueryResult {
    let (mut taken, mut bytes, mut more) = (Vec::new(), 0_usize, false);
    rows.visit(low, high, reverse, &mut |key, slot| {
        bytes += key.len() + slot.value.len();
        more = taken.len() >= limit || (bytes > bytes_max && !taken.is_empty());
        if !more {
            taken.push(Row { key: key.to_bytes(), value: slot.versioned() });
        }
        !more
    });
    QueryResult::Rows(taken, more)
}

/// The part of `start..end` that lies in `range`; an empty upper bound, or `None`, means none. `None` if
/// nothing does.
pub(crate) fn clip(start: &[u8], end: &[u8], range: &KeyRange) -> Option<(StoredKey, Option<StoredKey>)> {
    let low = start.max(&range.start[..]);
    let high = match (end.is_empty(), range.end.is_empty()) {
        (true, _) => &range.end[..],
        (false, true) => end,
        (false, false) => end.min(&range.end[..]),
    };
    let high_key = (!high.is_empty()).then(|| StoredKey::new(high));
    (high.is_empty() || low < high).then(|| (StoredKey::new(low), high_key))
}

impl Slot {
    fn versioned(&self) -> Versioned {
        Versioned { version: self.version, value: self.value.clone() }
    }
}
