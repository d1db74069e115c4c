//! Scans: which rows, and how a client collects them page by page over the shards in order.

use crate::client::{Backend, Client, no_answer};
use crate::clock;
use crate::error::ReadError;
use crate::mailbox::Wait;
use bytes::Bytes;
use floe_raft::Nanos;
use floe_shard::descriptor::{Descriptor, KeyRange};
use floe_shard::request::{Answer, Query, Row};

/// Bytes of rows that one core answers at once in a scan.
const SCAN_PAGE_BYTES: u32 = 1 << 20;

/// Which rows a scan returns, in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// First key, inclusive; empty = from the first.
    pub start: Bytes,
    /// First key after the range; empty = to the last.
    pub end: Bytes,
    /// At most so many rows; 0 = all.
    pub limit: usize,
    /// From the end of the range towards its start.
    pub reverse: bool,
}

impl ScanOptions {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        while end.last() == Some(&0xFF) {
            end.pop();
        }
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        Self { start, end: end.into(), ..Self::default() }
    }

    /// Keys from `start`, inclusive, to `end`, exclusive.
    pub fn range(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { start: start.into(), end: end.into(), ..Self::default() }
    }

    /// At most so many rows.
    pub fn limit(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// In descending order.
    pub fn reverse(self) -> Self {
        Self { reverse: true, ..self }
    }
}

/// A page of a scan.
pub(crate) enum Page {
    /// Read on this thread.
    Read(Answer),
    /// A core will answer.
    Asked(Wait),
}

/// A scan over shards in order, page by page.
pub(crate) struct Scan {
    /// What is left of the range.
    start: Bytes,
    end: Bytes,
    limit: usize,
    reverse: bool,
    done: bool,
    /// Of the whole scan.
    deadline: Nanos,
    /// The shard whose page is awaited.
    current: Option<Descriptor>,
    pub(crate) rows: Vec<Row>,
}

impl Scan {
    pub(crate) fn new(options: ScanOptions, deadline: Nanos) -> Self {
        let ScanOptions { start, end, limit, reverse } = options;
        let done = !end.is_empty() && start >= end;
        Self { start, end, limit, reverse, done, deadline, current: None, rows: Vec::new() }
    }

    /// Reads the next page, or asks for it; `None` = all rows are there.
    pub(crate) fn next_page(&mut self, client: &Client) -> Option<Result<Page, ReadError>> {
        if self.done {
            return None;
        }
        if self.deadline <= clock::now() {
            return Some(Err(ReadError::TimedOut));
        }
        let left = KeyRange { start: self.start.clone(), end: self.end.clone() };
        let map = client.map();
        let mut shards = map.covering(&left);
        let next = if self.reverse { shards.last() } else { shards.next() };
        let descriptor = next.expect("the map covers every key");
        let left = if self.limit == 0 { 0 } else { self.limit - self.rows.len() };
        let query = Query::Scan {
            start: self.start.clone(),
            end: self.end.clone(),
            limit: u32::try_from(left).unwrap_or(u32::MAX),
            bytes_max: SCAN_PAGE_BYTES,
            reverse: self.reverse,
        };
        self.current = Some(descriptor.clone());
        let request = client.read(descriptor.shard, descriptor.epoch.range, query);
        let here = match &client.backend {
            Backend::Node(shared) => shared.read_here(&request),
            Backend::Remote(_) => None,
        };
        Some(match here {
            Some(answer) => Ok(Page::Read(answer)),
            None => client.post_by(request, self.deadline).map(Page::Asked).map_err(ReadError::from_refusal),
        })
    }

    pub(crate) fn take_page(&mut self, answer: Answer) -> Result<(), ReadError> {
        let (rows, more) = match answer {
            Answer::Rows { rows, more } => (rows, more),
            Answer::Refused(refusal) => return Err(ReadError::from_refusal(refusal)),
            Answer::Unknown(reason) => return Err(ReadError::from_unknown(reason)),
            _ => return Err(no_answer()),
        };
        let range = self.current.take().expect("set when the page was asked for").range;
        if more {
            let last = &rows.last().ok_or_else(no_answer)?.key;
            if self.reverse { self.end = last.clone() } else { self.start = successor(last) }
        } else if self.reverse {
            self.done = range.start.is_empty() || range.start <= self.start;
            self.end = range.start;
        } else {
            self.done = range.end.is_empty() || (!self.end.is_empty() && range.end >= self.end);
            self.start = range.end;
        }
        self.rows.extend(rows);
        self.done |= self.limit > 0 && self.rows.len() >= self.limit;
        Ok(())
    }
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Shared;
    use crate::mailbox::Mailbox;
    use crate::read_cell::ReadCells;
    use floe_shard::request::Versioned;
    use floe_shard::{NodeId, ShardMap};
    use std::sync::Arc;
    use std::time::Duration;

    /// A client whose shards, on one core, have nothing to read on its own thread, and what it posts.
    fn client(shards: u32) -> (Client, Arc<Mailbox>) {
        let descriptors = floe_shard::pre_split(&[NodeId(1)], shards, 1);
        let mailbox = Arc::new(Mailbox::new(10));
        let (mailboxes, cells) = (vec![mailbox.clone()], ReadCells::new(&descriptors));
        let shared = Shared { mailboxes, map: ShardMap::new(descriptors), cores: 1, cells };
        (Client::new(Backend::Node(Arc::new(shared)), Duration::from_secs(10)), mailbox)
    }

    fn rows(keys: &[&'static str], more: bool) -> Answer {
        let value = || Versioned { version: 1, value: Bytes::new() };
        let row = |key: &&'static str| Row { key: Bytes::from_static(key.as_bytes()), value: value() };
        Answer::Rows { rows: keys.iter().map(row).collect(), more }
    }

    #[test]
    fn one_deadline_holds_for_all_pages_of_a_scan() {
        let (client, mailbox) = client(2);
        let deadline = clock::now() + 1_000_000_000;
        let mut scan = Scan::new(ScanOptions::default(), deadline);
        for page in [rows(&["a"], true), rows(&["b"], false), rows(&[], false)] {
            assert!(matches!(scan.next_page(&client), Some(Ok(Page::Asked(_)))));
            assert_eq!(mailbox.take_post().map(|post| post.deadline), Some(deadline));
            scan.take_page(page).expect("it is a page");
        }
        assert!(scan.next_page(&client).is_none());
        let mut late = Scan::new(ScanOptions::default(), clock::now());
        assert!(matches!(late.next_page(&client), Some(Err(ReadError::TimedOut))));
    }

    #[test]
    fn an_answer_that_is_no_page_is_an_error_and_no_panic() {
        let no_rows = Answer::Rows { rows: Vec::new(), more: true };
        for answer in [no_rows, Answer::Value(None), Answer::Written { version: 1 }, Answer::Done] {
            let mut scan = Scan::new(ScanOptions::default(), Nanos::MAX);
            scan.current = floe_shard::pre_split(&[NodeId(1)], 1, 1).pop();
            assert_eq!(scan.take_page(answer.clone()), Err(no_answer()), "{answer:?}");
        }
    }
}
