//! The supply of segments: made ahead of need, one at a time, so that a frame rarely waits for one.
//!
//! A segment is ready once its zeros, its header and its name are durable: `Create` or `Rename`, then
//! `Write` of the header, then `SyncDir`. Freed files wait in a pool for their next life.

use super::ops::{Ops, Purpose};
use super::segment::{FRAMES_AT, HeaderRecipe, SegmentFile, SegmentHeader, segment_path};
use super::{FrameSeq, StreamEnd, WalConfig};
use crate::disk::{BLOCK, DiskCall, DiskCalls, DiskError, DiskErrorKind, DiskResult};
use floe_raft::{Nanos, Planted, is_planted};
use std::collections::VecDeque;

/// How long after "no space left" the next attempt comes.
const RETRY_NS: Nanos = 100_000_000;

/// Segments that are ready, in the making, or waiting to be reused.
pub(super) struct Supply {
    config: WalConfig,
    next_id: u64,
    /// Only the segment with this id states where the previous boot's log ends.
    first_id: u64,
    boot_start: StreamEnd,
    bytes_last: u64,
    /// Ascending ids, all above that of the segment in use.
    ready: VecDeque<SegmentFile>,
    pool: Vec<SegmentFile>,
    step: Step,
    /// When the call of that step was issued.
    step_at: Nanos,
    /// Length of the frame that waits for the next segment.
    frame_waiting: u64,
    full: bool,
    bytes_removing: u64,
}

/// How far the segment in the making is.
enum Step {
    Idle,
    Creating(SegmentFile),
    /// A pool file takes the name; kept until it did.
    Renaming(SegmentFile, SegmentFile),
    Heading(SegmentFile),
    Naming(SegmentFile),
    /// No space: what `Create` left behind is removed, to be tried again later.
    Clearing(SegmentFile),
    Waiting(SegmentFile, Nanos),
}

/// What headers state about the stream at the moment.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub seq: FrameSeq,
    pub oldest: u64,
}

impl Supply {
    pub fn new(config: WalConfig, next_id: u64, boot_start: StreamEnd, pool: Vec<SegmentFile>) -> Self {
        assert!(config.segment_bytes_min <= config.segment_bytes_max, "{config:?}");
        Self {
            config,
            next_id,
            first_id: next_id,
            boot_start,
            bytes_last: 0,
            ready: VecDeque::new(),
            pool,
            step: Step::Idle,
            step_at: 0,
            frame_waiting: 0,
            full: false,
            bytes_removing: 0,
        }
    }

    /// The next segment, if it is ready and a frame of `frame` bytes fits into it.
    pub fn take(&mut self, frame: u64) -> Option<SegmentFile> {
        self.frame_waiting = frame;
        let next = self.ready.front()?;
        if self.making().is_some_and(|id| id < next.id) || next.bytes - FRAMES_AT < frame {
            return None;
        }
        self.frame_waiting = 0;
        self.ready.pop_front()
    }

    /// Files that hold nothing any more.
    pub fn recycle(&mut self, files: impl IntoIterator<Item = SegmentFile>) {
        self.pool.extend(files);
    }

    /// Starts what can be started.
    pub fn pump(&mut self, now: Nanos, ops: &mut Ops, calls: &mut DiskCalls) {
        if let Step::Waiting(file, at) = &self.step
            && (now >= *at || self.spare_for(file).is_some())
        {
            let file = file.clone();
            self.start(now, file, ops, calls);
        }
        if matches!(self.step, Step::Idle)
            && let Some(file) = self.next_job()
        {
            self.start(now, file, ops, calls);
        }
        self.trim_pool(ops, calls);
    }

    fn next_job(&mut self) -> Option<SegmentFile> {
        let needed = FRAMES_AT + self.frame_waiting;
        if self.ready.front().is_some_and(|next| next.bytes < needed) {
            // It was never written to, so it is made again, larger, under its own id.
            let small = self.ready.pop_front()?;
            return Some(SegmentFile { bytes: needed, ..small });
        }
        if self.ready.len() >= self.config.spares.max(1) as usize {
            return None;
        }
        let usual = (self.bytes_last * 2).clamp(self.config.segment_bytes_min, self.config.segment_bytes_max);
        let needed = if self.ready.is_empty() { needed } else { 0 };
        let bytes = usual.max(needed).max(FRAMES_AT + BLOCK as u64).next_multiple_of(BLOCK as u64);
        let id = self.next_id;
        self.next_id += 1;
        Some(SegmentFile { id, path: segment_path(&self.config.dir, id), bytes })
    }

    /// The smallest pool file that is long enough; while the disk is full, any that holds a frame.
    fn spare_for(&self, file: &SegmentFile) -> Option<usize> {
        let least = if self.full { FRAMES_AT + self.frame_waiting.max(BLOCK as u64) } else { file.bytes };
        let fits = self.pool.iter().enumerate().filter(|(_, spare)| spare.bytes >= least);
        fits.min_by_key(|(_, spare)| (spare.bytes < file.bytes, spare.bytes.abs_diff(file.bytes)))
            .map(|(at, _)| at)
    }

    fn start(&mut self, now: Nanos, mut file: SegmentFile, ops: &mut Ops, calls: &mut DiskCalls) {
        self.step_at = now;
        if let Some(at) = self.spare_for(&file) {
            let spare = self.pool.swap_remove(at);
            file.bytes = spare.bytes;
            let call = DiskCall::Rename { from: spare.path.clone(), to: file.path.clone() };
            ops.issue(Purpose::Supply, call, calls);
            self.step = Step::Renaming(file, spare);
        } else {
            let call = DiskCall::Create { path: file.path.clone(), len: file.bytes };
            ops.issue(Purpose::Supply, call, calls);
            self.step = Step::Creating(file);
        }
    }

    /// A step is done.
    ///
    /// # Errors
    /// Any failure but a lack of space is final.
    pub fn on_disk(
        &mut self,
        now: Nanos,
        result: DiskResult,
        position: Position,
        ops: &mut Ops,
        calls: &mut DiskCalls,
    ) -> Result<(), DiskError> {
        let step = std::mem::replace(&mut self.step, Step::Idle);
        self.step_at = now;
        let full = matches!(&result, Err(error) if error.kind == DiskErrorKind::Full);
        self.step = match step {
            Step::Creating(file) if full => {
                self.full = true;
                ops.issue(Purpose::Supply, DiskCall::Remove { path: file.path.clone() }, calls);
                Step::Clearing(file)
            }
            Step::Renaming(file, spare) if full => {
                self.full = true;
                self.pool.push(spare);
                Step::Waiting(file, now + RETRY_NS)
            }
            Step::Creating(file) | Step::Renaming(file, _) => {
                result?;
                self.full = false;
                self.write_header(&file, position, ops, calls);
                Step::Heading(file)
            }
            Step::Heading(file) if is_planted(Planted::SegmentNameNotSynced) => {
                result?;
                self.on_ready(file);
                Step::Idle
            }
            Step::Heading(file) => {
                result?;
                ops.issue(Purpose::Supply, DiskCall::SyncDir { dir: self.config.dir.clone() }, calls);
                Step::Naming(file)
            }
            Step::Naming(file) => {
                result?;
                self.on_ready(file);
                Step::Idle
            }
            Step::Clearing(file) => {
                result?;
                Step::Waiting(file, now + RETRY_NS)
            }
            Step::Idle | Step::Waiting(..) => unreachable!("no step of the supply was in flight"),
        };
        Ok(())
    }

    fn write_header(&self, file: &SegmentFile, position: Position, ops: &mut Ops, calls: &mut DiskCalls) {
        let header = SegmentHeader {
            bytes: file.bytes,
            store_uuid: self.config.store_uuid,
            stream: self.config.stream,
            segment: file.id,
            boot_epoch: self.config.boot_epoch,
            first_seq: position.seq,
            oldest: position.oldest,
            frames_in_flight: self.config.frames_in_flight,
            boot_start: (file.id == self.first_id).then_some(self.boot_start),
        };
        let data = Box::new(HeaderRecipe(header));
        ops.issue(Purpose::Supply, DiskCall::Write { path: file.path.clone(), offset: 0, data }, calls);
    }

    fn on_ready(&mut self, file: SegmentFile) {
        self.bytes_last = self.bytes_last.max(file.bytes);
        let at = self.ready.partition_point(|other| other.id < file.id);
        self.ready.insert(at, file);
    }

    fn trim_pool(&mut self, ops: &mut Ops, calls: &mut DiskCalls) {
        let keep = self.config.spares as usize;
        if self.pool.len() <= keep {
            return;
        }
        self.pool.sort_by_key(|file| (std::cmp::Reverse(file.bytes), file.id));
        for file in self.pool.drain(keep..) {
            self.bytes_removing += file.bytes;
            ops.issue(Purpose::Remove(file.bytes), DiskCall::Remove { path: file.path }, calls);
        }
    }

    /// A removal is done.
    pub fn on_removed(&mut self, bytes: u64) {
        self.bytes_removing -= bytes;
    }

    fn making(&self) -> Option<u64> {
        self.in_the_making().map(|file| file.id)
    }

    fn in_the_making(&self) -> Option<&SegmentFile> {
        match &self.step {
            Step::Idle => None,
            Step::Creating(file)
            | Step::Renaming(file, _)
            | Step::Heading(file)
            | Step::Naming(file)
            | Step::Clearing(file)
            | Step::Waiting(file, _) => Some(file),
        }
    }

    /// What all files take that are not in use.
    pub fn bytes(&self) -> u64 {
        let making = self.in_the_making().map_or(0, |file| file.bytes);
        let spare: u64 = self.ready.iter().chain(&self.pool).map(|file| file.bytes).sum();
        making + spare + self.bytes_removing
    }

    /// Whether space for the spare segments is lacking.
    pub fn is_tight(&self) -> bool {
        self.full && self.ready.len() < self.config.spares.max(1) as usize
    }

    /// Since when a call has been on its way that the next segment needs.
    pub fn waiting_since(&self) -> Option<Nanos> {
        (!matches!(self.step, Step::Idle | Step::Waiting(..))).then_some(self.step_at)
    }

    /// When to try again.
    pub fn deadline(&self) -> Nanos {
        match self.step {
            Step::Waiting(_, at) => at,
            _ => Nanos::MAX,
        }
    }
}
