//! A shard's state at one moment, read on any thread: memtables from new to old, then the tables that were published at
//! that moment. Nothing of it changes any more, so a view stays right through every later flush and compaction.

use super::memtable::{Entry, Memtable, Sealed};
use super::tree::{TableRow, Tables};
use bytes::Bytes;
use floe_shard::{KeyRange, Query, QueryResult, Row, RowTree, StoredKey, Versioned, View};
use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::Arc;

/// Rows that a scan takes out of a memtable at a time.
const STEP_ROWS: usize = 64;

/// A state.
#[derive(Clone)]
pub(super) struct LsmView {
    pub(super) active: Memtable,
    /// From new to old.
    pub(super) sealed: Vec<Arc<Sealed>>,
    pub(super) tables: Option<Arc<Tables>>,
}

impl LsmView {
    fn memtables(&self) -> impl Iterator<Item = &Memtable> {
        std::iter::once(&self.active).chain(self.sealed.iter().map(|sealed| &sealed.memtable))
    }

    /// What the memtables say of a key; `None` = nothing: ask the tables.
    pub(super) fn get_in_memory(&self, key: &StoredKey) -> Option<&Entry> {
        let said = self.memtables().find_map(|memtable| memtable.get(key));
        // Without tables there is nothing below.
        said.or_else(|| self.tables.is_none().then_some(&None))
    }

    /// Shows the rows of `low..high` (`None` = to the end) in order, or in reverse, until `see` says false.
    pub(super) fn visit(
        &self,
        (low, high): (&[u8], Option<&[u8]>),
        reverse: bool,
        see: &mut dyn FnMut(&Bytes, &Versioned) -> bool,
    ) -> Result<(), String> {
        let mut layers: Vec<Layer<'_>> = self
            .memtables()
            .filter(|memtable| !memtable.is_empty())
            .map(|memtable| Layer::of_memtable(memtable, low, high, reverse))
            .collect();
        if let Some(tables) = &self.tables {
            layers.push(Layer::of_tables(tables, low, high, reverse));
        }
        while let Some(key) = next_key(&mut layers, reverse)? {
            let mut newest: Option<Entry> = None;
            let stored = StoredKey::new(&key);
            for layer in &mut layers {
                let own = layer.take(&key)?;
                if newest.is_none() {
                    newest = own.or_else(|| layer.deletes(&stored).then_some(None));
                }
            }
            if let Some(Some(versioned)) = newest
                && !see(&key, &versioned)
            {
                break;
            }
        }
        Ok(())
    }
}

impl View for LsmView {
    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, String> {
        match (self.get_in_memory(&StoredKey::new(key)), &self.tables) {
            (Some(entry), _) => Ok(entry.clone()),
            (None, Some(tables)) => tables.get(key),
            (None, None) => Ok(None),
        }
    }

    fn read(&self, query: &Query, range: &KeyRange) -> Result<QueryResult, String> {
        let Query::Scan { start, end, limit, bytes_max, reverse, .. } = query else {
            let Query::Get { key } = query else { unreachable!("a query is a get or a scan") };
            let value = if range.contains(key) { self.get(key)? } else { None };
            return Ok(QueryResult::Value(value));
        };
        let Some((low, high)) = clip(start, end, range) else {
            return Ok(QueryResult::Rows(Vec::new(), false));
        };
        let limit = if *limit == 0 { usize::MAX } else { *limit as usize };
        let (mut rows, mut bytes, mut more) = (Vec::new(), 0, false);
        self.visit((low, high), *reverse, &mut |key, value| {
            bytes += key.len() + value.value.len();
            more = rows.len() >= limit || (bytes > *bytes_max as usize && !rows.is_empty());
            if !more {
                rows.push(Row { key: key.clone(), value: value.clone() });
            }
            !more
        })?;
        Ok(QueryResult::Rows(rows, more))
    }
}

/// The part of `start..end` that lies in `range`; an empty `end` means none. `None` if nothing does.
pub(super) fn clip<'a>(
    start: &'a [u8],
    end: &'a [u8],
    range: &'a KeyRange,
) -> Option<(&'a [u8], Option<&'a [u8]>)> {
    let low = start.max(&range.start[..]);
    let ends = [end, &range.end[..]].into_iter().filter(|end| !end.is_empty());
    let high = ends.min();
    high.is_none_or(|high| low < high).then_some((low, high))
}

/// Rows of one layer, in the order of a scan.
type Entries<'a> = Box<dyn Iterator<Item = Result<(Bytes, Entry), String>> + 'a>;

/// One memtable, or the tables.
struct Layer<'a> {
    rows: Peekable<Entries<'a>>,
    memtable: Option<&'a Memtable>,
}

impl<'a> Layer<'a> {
    fn of_memtable(memtable: &'a Memtable, low: &[u8], high: Option<&[u8]>, reverse: bool) -> Self {
        let (low, high) = (StoredKey::new(low), high.map(StoredKey::new));
        let steps = Steps { rows: memtable.rows(), low, high, reverse, ready: VecDeque::new(), done: false };
        let rows: Entries<'a> = Box::new(steps.map(Ok));
        Self { rows: rows.peekable(), memtable: Some(memtable) }
    }

    fn of_tables(tables: &'a Tables, low: &[u8], high: Option<&[u8]>, reverse: bool) -> Self {
        let entry = |row: TableRow| row.map(|(key, versioned)| (key, Some(versioned)));
        let rows: Entries<'a> = Box::new(tables.rows(low, high, reverse).map(entry));
        Self { rows: rows.peekable(), memtable: None }
    }

    fn peek(&mut self) -> Result<Option<&Bytes>, String> {
        match self.rows.peek() {
            Some(Ok((key, _))) => Ok(Some(key)),
            Some(Err(error)) => Err(error.clone()),
            None => Ok(None),
        }
    }

    /// Its row of this key, if that is the next one.
    fn take(&mut self, key: &Bytes) -> Result<Option<Entry>, String> {
        if self.peek()? != Some(key) {
            return Ok(None);
        }
        self.rows.next().map(|row| row.map(|(_, entry)| entry)).transpose()
    }

    fn deletes(&self, key: &StoredKey) -> bool {
        self.memtable.is_some_and(|memtable| memtable.deletes(key))
    }
}

/// The next key of any layer.
fn next_key(layers: &mut [Layer<'_>], reverse: bool) -> Result<Option<Bytes>, String> {
    let mut best: Option<Bytes> = None;
    for layer in layers {
        if let Some(key) = layer.peek()?
            && best.as_ref().is_none_or(|best| if reverse { key > best } else { key < best })
        {
            best = Some(key.clone());
        }
    }
    Ok(best)
}

/// The rows of a memtable, some at a time.
struct Steps<'a> {
    rows: &'a RowTree<Entry>,
    /// What is left.
    low: StoredKey,
    high: Option<StoredKey>,
    reverse: bool,
    ready: VecDeque<(Bytes, Entry)>,
    done: bool,
}

impl Steps<'_> {
    fn step(&mut self) {
        let mut last = None;
        self.rows.visit(&self.low, self.high.as_ref(), self.reverse, &mut |key, entry| {
            self.ready.push_back((key.to_bytes(), entry.clone()));
            last = Some(key);
            self.ready.len() < STEP_ROWS
        });
        self.done = self.ready.len() < STEP_ROWS;
        match last {
            Some(last) if self.reverse => self.high = Some(last.clone()),
            Some(last) => {
                let mut next = last.to_bytes().to_vec();
                next.push(0);
                self.low = StoredKey::new(&next);
            }
            None => {}
        }
    }
}

impl Iterator for Steps<'_> {
    type Item = (Bytes, Entry);

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty() && !self.done {
            self.step();
        }
        self.ready.pop_front()
    }
}
