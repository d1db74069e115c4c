//! Scans: which rows, and how a client gets them page by page over the shards in order.
//!
//! All pages of one shard are read from the state that its first page was read from; whoever read that holds it
//! (`held_views.rs`) and names it in its answer.

use crate::client::{Backend, Client, read_failure};
use crate::clock;
use crate::error::ReadError;
use crate::mailbox::Wait;
use bytes::Bytes;
use floe_raft::Nanos;
use floe_shard::ViewId;
use floe_shard::descriptor::{Descriptor, KeyRange};
use floe_shard::request::{Answer, Query, Refusal, Request, Rest, Row, UnknownReason};
use std::task::Poll;

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

/// A scan's rows, page by page: [`Client::pages`]. Within one shard all pages are of one snapshot.
///
/// An error doesn't end it: the next call tries the same page again, or after [`ReadError::SnapshotGone`] goes on behind
/// the last row in a new snapshot of the shard. A page is up to 1 MiB of keys and values, at least one row, and
/// may be empty. Dropping it lets its snapshot go.
#[must_use = "pages are read as they are asked for"]
pub struct Pages {
    client: Client,
    /// What is left of the range.
    start: Bytes,
    end: Bytes,
    /// Rows that are left; `None` = all.
    left: Option<usize>,
    reverse: bool,
    done: bool,
    /// Of the whole scan; `None` = each page has its own.
    deadline: Option<Nanos>,
    /// The shard that is read.
    current: Option<Descriptor>,
    /// The view of it that earlier pages were read from.
    view: Option<ViewId>,
}

/// How a page is had.
enum Page {
    /// Read on this thread.
    Read(Answer),
    /// A core will answer.
    Asked(Wait),
}

impl Pages {
    pub(crate) fn new(client: &Client, options: ScanOptions, deadline: Option<Nanos>) -> Self {
        let ScanOptions { start, end, limit, reverse } = options;
        let done = !end.is_empty() && start >= end;
        let left = (limit > 0).then_some(limit);
        let client = client.clone();
        Self { client, start, end, left, reverse, done, deadline, current: None, view: None }
    }

    /// The next page; `None` = that was all.
    pub async fn next(&mut self) -> Option<Result<Vec<Row>, ReadError>> {
        let answer = match self.ask()? {
            Ok(Page::Read(answer)) => {
                let_others_go_first().await;
                answer
            }
            Ok(Page::Asked(wait)) => wait.await,
            Err(error) => return Some(Err(error)),
        };
        Some(self.take(answer))
    }

    /// [`Pages::next`] on this thread.
    pub fn next_blocking(&mut self) -> Option<Result<Vec<Row>, ReadError>> {
        let answer = match self.ask()? {
            Ok(Page::Read(answer)) => answer,
            Ok(Page::Asked(wait)) => wait.wait(),
            Err(error) => return Some(Err(error)),
        };
        Some(self.take(answer))
    }

    /// Reads the next page, or asks for it; `None` = all rows were there.
    fn ask(&mut self) -> Option<Result<Page, ReadError>> {
        if self.done {
            return None;
        }
        let deadline = self.deadline.unwrap_or_else(|| self.client.deadline());
        if deadline <= clock::now() {
            return Some(Err(ReadError::TimedOut));
        }
        // Further pages of a shard are asked for as the first was, whatever became of the shard.
        let descriptor = match self.current.take().filter(|_| self.view.is_some()) {
            Some(descriptor) => descriptor,
            None => self.next_shard(),
        };
        let request = self.request(&descriptor, (self.start.clone(), self.end.clone()));
        self.current = Some(descriptor);
        Some(match self.read_here(&request) {
            Some(answer) => Ok(Page::Read(answer)),
            None => self.client.post_by(request, deadline).map(Page::Asked).map_err(ReadError::from_refusal),
        })
    }

    fn request(&self, descriptor: &Descriptor, (start, end): (Bytes, Bytes)) -> Request {
        let query = Query::Scan {
            start,
            end,
            limit: self.left.map_or(0, |left| u32::try_from(left).unwrap_or(u32::MAX)),
            bytes_max: SCAN_PAGE_BYTES,
            reverse: self.reverse,
            view: self.view,
        };
        self.client.read(descriptor.shard, descriptor.epoch.range, query)
    }

    fn read_here(&self, request: &Request) -> Option<Answer> {
        match &self.client.backend {
            Backend::Node(shared) => shared.read_here(request),
            Backend::Remote(_) => None,
        }
    }

    fn next_shard(&self) -> Descriptor {
        let left = KeyRange { start: self.start.clone(), end: self.end.clone() };
        let map = self.client.map();
        let mut shards = map.covering(&left);
        let next = if self.reverse { shards.last() } else { shards.next() };
        next.expect("the map covers every key").clone()
    }

    fn take(&mut self, answer: Answer) -> Result<Vec<Row>, ReadError> {
        let (rows, rest) = match answer {
            Answer::Rows { rows, rest } => (rows, rest),
            other => {
                self.view.take_if(|_| matches!(other, Answer::Refused(Refusal::ViewGone)));
                return Err(read_failure(other));
            }
        };
        let last = rows.last().map(|row| &row.key);
        if rest == Rest::Nothing {
            self.view = None;
            let range = &self.current.as_ref().expect("set when the page was asked for").range;
            if self.reverse {
                self.done = range.start.is_empty() || range.start <= self.start;
                self.end = range.start.clone();
            } else {
                self.done = range.end.is_empty() || (!self.end.is_empty() && range.end >= self.end);
                self.start = range.end.clone();
            }
        } else {
            let last = last.ok_or_else(|| ReadError::from_unknown(UnknownReason::BadAnswer))?;
            if self.reverse {
                self.end = last.clone()
            } else {
                self.start = successor(last)
            }
            self.view = if let Rest::Held(view) = rest { Some(view) } else { None };
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(rows.len());
            self.done |= *left == 0;
        }
        Ok(rows)
    }
}

impl Drop for Pages {
    /// What isn't read to its end is let go: where the view is held elsewhere, by a last page of an empty range.
    fn drop(&mut self) {
        let (Some(_), Some(descriptor)) = (self.view, &self.current) else { return };
        let nowhere = Bytes::from_static(b"\0");
        let request = self.request(descriptor, (nowhere.clone(), nowhere));
        if self.read_here(&request).is_none() {
            // Nobody waits for the answer; if it can't be sent, the view goes by its age.
            let _ = self.client.post_by(request, self.client.deadline());
        }
    }
}

/// All rows of a scan. If a shard's snapshot goes meanwhile, that shard is read again from its beginning.
pub(crate) struct Collected {
    pages: Pages,
    rows: Vec<Row>,
    /// Where the pages stood, and how many rows there were, when the current shard was begun.
    began: (Bytes, Bytes, Option<usize>, usize),
}

impl Collected {
    pub(crate) fn new(client: &Client, options: ScanOptions) -> Self {
        let pages = Pages::new(client, options, Some(client.deadline()));
        let began = (pages.start.clone(), pages.end.clone(), pages.left, 0);
        Self { pages, rows: Vec::new(), began }
    }

    pub(crate) async fn all(mut self) -> Result<Vec<Row>, ReadError> {
        while let Some(page) = self.pages.next().await {
            self.add(page)?;
        }
        Ok(self.rows)
    }

    pub(crate) fn all_blocking(mut self) -> Result<Vec<Row>, ReadError> {
        while let Some(page) = self.pages.next_blocking() {
            self.add(page)?;
        }
        Ok(self.rows)
    }

    fn add(&mut self, page: Result<Vec<Row>, ReadError>) -> Result<(), ReadError> {
        let pages = &mut self.pages;
        match page {
            Ok(rows) => self.rows.extend(rows),
            Err(ReadError::SnapshotGone) => {
                let rows;
                (pages.start, pages.end, pages.left, rows) = self.began.clone();
                self.rows.truncate(rows);
            }
            Err(error) => return Err(error),
        }
        if pages.view.is_none() {
            self.began = (pages.start.clone(), pages.end.clone(), pages.left, self.rows.len());
        }
        Ok(())
    }
}

/// A scan whose pages are read on the caller's thread would never return to its executor otherwise.
async fn let_others_go_first() {
    let mut went = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut went, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
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
    use crate::mailbox::{Mailbox, Post};
    use crate::read_cell::ReadCells;
    use floe_shard::request::Versioned;
    use floe_shard::{NodeId, ShardId, ShardMap};
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Waker};
    use std::time::Duration;

    const VIEW: ViewId = ViewId { node: NodeId(2), number: 9 };

    /// A client whose shards, on one core, have nothing to read on its own thread, and what it posts.
    fn client(shards: u32) -> (Client, Arc<Mailbox>) {
        let descriptors = floe_shard::pre_split(&[NodeId(1)], shards, 1);
        let mailbox = Arc::new(Mailbox::new(10));
        let (mailboxes, cells) = (vec![mailbox.clone()], ReadCells::new(NodeId(1), 1, &descriptors));
        let shared = Shared { mailboxes, map: ShardMap::new(descriptors), cores: 1, cells };
        (Client::new(Backend::Node(Arc::new(shared)), Duration::from_secs(10)), mailbox)
    }

    fn rows(keys: &[&'static str], rest: Rest) -> Answer {
        let value = || Versioned { version: 1, value: Bytes::new() };
        let row = |key: &&'static str| Row { key: Bytes::from_static(key.as_bytes()), value: value() };
        Answer::Rows { rows: keys.iter().map(row).collect(), rest }
    }

    fn asked(mailbox: &Mailbox) -> (ShardId, Bytes, Option<ViewId>, Post) {
        let post = mailbox.take_post().expect("a page was asked for");
        let Request::Read { shard, query: Query::Scan { start, .. }, .. } = &post.request else {
            panic!("{:?}", post.request)
        };
        (*shard, start.clone(), post.request.view(), post)
    }

    type Asked = (ShardId, Bytes, Option<ViewId>);

    /// Runs a scan against scripted answers; returns what was asked.
    fn run(shards: u32, options: ScanOptions, answers: Vec<Answer>) -> (Vec<Asked>, Vec<Row>) {
        let (client, mailbox) = client(shards);
        let mut future = pin!(client.scan(options));
        let mut context = Context::from_waker(Waker::noop());
        let (mut all, mut deadlines) = (Vec::new(), Vec::new());
        for answer in answers {
            assert!(future.as_mut().poll(&mut context).is_pending());
            let (shard, start, view, post) = asked(&mailbox);
            all.push((shard, start, view));
            deadlines.push(post.deadline);
            post.slot.answer(answer);
        }
        deadlines.dedup();
        assert_eq!(deadlines.len(), 1, "one deadline for all pages");
        let Poll::Ready(found) = future.poll(&mut context) else { panic!("more than {all:?} is asked for") };
        (all, found.expect("nothing failed"))
    }

    fn keys(rows: &[Row]) -> Vec<&[u8]> {
        rows.iter().map(|row| &row.key[..]).collect()
    }

    #[test]
    fn all_pages_of_a_shard_are_of_one_view_and_the_next_shard_has_its_own() {
        let answers = vec![
            rows(&["a"], Rest::Held(VIEW)),
            rows(&["b"], Rest::Held(VIEW)),
            rows(&["c"], Rest::Nothing),
            rows(&[], Rest::Nothing),
        ];
        let (asked, found) = run(2, ScanOptions::default(), answers);
        let views: Vec<_> = asked.iter().map(|(shard, _, view)| (shard.0, *view)).collect();
        assert_eq!(views, [(1, None), (1, Some(VIEW)), (1, Some(VIEW)), (2, None)]);
        assert_eq!(asked[2].1, "b\0", "behind the last row");
        assert_eq!(keys(&found), [b"a", b"b", b"c"]);
    }

    #[test]
    fn a_shard_whose_snapshot_goes_is_read_again_from_its_beginning() {
        let gone = Answer::Refused(Refusal::ViewGone);
        let answers = vec![
            rows(&["a"], Rest::Nothing),
            rows(&["x"], Rest::Held(VIEW)),
            gone,
            rows(&["w", "x"], Rest::Nothing),
        ];
        let (asked, found) = run(2, ScanOptions::default().limit(9), answers);
        assert_eq!(
            (asked[1].1.clone(), None),
            (asked[3].1.clone(), asked[3].2),
            "from the shard's first key"
        );
        assert_eq!(keys(&found), [b"a", b"w", b"x"], "no row of the snapshot that is gone");
    }

    #[test]
    fn pages_go_on_behind_the_last_row_after_an_error() {
        let (client, mailbox) = client(1);
        let mut pages = client.pages(ScanOptions::default());
        let mut context = Context::from_waker(Waker::noop());
        let mut next = |answer| {
            let mut future = pin!(pages.next());
            assert!(future.as_mut().poll(&mut context).is_pending());
            let (_, start, view, post) = asked(&mailbox);
            post.slot.answer(answer);
            let Poll::Ready(Some(page)) = future.poll(&mut context) else { panic!("it was answered") };
            (start, view, page.map(|rows| rows.len()))
        };
        let (none, behind) = (Bytes::new(), Bytes::from_static(b"a\0"));
        assert_eq!(next(rows(&["a"], Rest::Held(VIEW))), (none, None, Ok(1)));
        let late = Answer::Refused(Refusal::DeadlinePassed);
        assert_eq!(next(late), (behind.clone(), Some(VIEW), Err(ReadError::TimedOut)));
        let gone = Answer::Refused(Refusal::ViewGone);
        assert_eq!(next(gone), (behind.clone(), Some(VIEW), Err(ReadError::SnapshotGone)));
        assert_eq!(next(rows(&["b"], Rest::Nothing)), (behind, None, Ok(1)));
        assert_eq!(pages.next_blocking(), None);
    }

    #[test]
    fn a_view_that_is_not_read_to_its_end_is_let_go() {
        let (client, mailbox) = client(1);
        let mut pages = client.pages(ScanOptions::default());
        assert!(matches!(pages.ask(), Some(Ok(Page::Asked(_)))));
        assert_eq!(pages.take(rows(&["a"], Rest::Held(VIEW))).map(|rows| rows.len()), Ok(1));
        asked(&mailbox);
        drop(pages);
        let (_, start, view, post) = asked(&mailbox);
        assert_eq!(view, Some(VIEW), "the node that holds it is told");
        let Request::Read { query: Query::Scan { end, .. }, .. } = post.request else { panic!() };
        assert!(start >= end && !end.is_empty(), "nothing is to be read: {start:?} to {end:?}");
        drop(client.pages(ScanOptions::default()));
        assert!(mailbox.is_empty(), "nothing is held");
    }

    #[test]
    fn a_scan_whose_time_is_over_asks_for_nothing() {
        let (client, mailbox) = client(1);
        let mut pages = Pages::new(&client, ScanOptions::default(), Some(clock::now()));
        assert_eq!(pages.next_blocking(), Some(Err(ReadError::TimedOut)));
        assert!(mailbox.is_empty());
    }

    #[test]
    fn an_answer_that_is_no_page_is_an_error_and_no_panic() {
        let no_rows = rows(&[], Rest::More);
        for answer in [no_rows, Answer::Value(None), Answer::Written { version: 1 }, Answer::Done] {
            let mut pages = client(1).0.pages(ScanOptions::default());
            assert!(matches!(pages.ask(), Some(Ok(Page::Asked(_)))));
            assert_eq!(
                pages.take(answer.clone()),
                Err(ReadError::from_unknown(UnknownReason::BadAnswer)),
                "{answer:?}"
            );
        }
    }
}
