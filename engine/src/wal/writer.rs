//! The writer: from records to frames to writes, and what is durable so far.
//!
//! Records go into the open frame. [`Wal::submit`], called at the end of every turn of the core,
//! issues frames as far as K and the segments allow; otherwise the open frame goes on growing, and that is group commit.

use super::bounds::Bounds;
use super::frame::{FrameHeader, FrameRecipe, frame_bytes};
use super::ops::{Ops, Purpose};
use super::pins::{PinMove, Pins};
use super::record::Item;
use super::recovered::Recovered;
use super::segment::{FRAMES_AT, SegmentFile};
use super::stats::{WalFailure, WalStats};
use super::supply::{Position, Supply};
use super::{FrameSeq, Record, ShardState, StreamEnd, WalConfig, salt};
use crate::disk::{DiskCall, DiskCalls, DiskErrorKind, DiskResult};
use floe_raft::{Nanos, Planted, is_planted};
use floe_shard::ShardId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

mod append;

const LATENCIES_MAX: usize = 65_536;

/// A frame before it is issued.
struct Open {
    seq: FrameSeq,
    items: Vec<Item>,
    body_bytes: usize,
    entries: u64,
    moves: Vec<PinMove>,
}

/// A frame on its way to the disk.
struct InFlight {
    seq: FrameSeq,
    done: bool,
    issued_at: Nanos,
    body_bytes: usize,
    frame_bytes: u64,
    records: u64,
    entries: u64,
    segment: u64,
    oldest: u64,
    moves: Vec<PinMove>,
}

/// The segment that frames go to.
struct Current {
    file: SegmentFile,
    salt: u64,
    offset: u64,
}

/// The writer of one stream.
pub struct Wal {
    config: WalConfig,
    ops: Ops,
    supply: Supply,
    /// Segments that hold something, ascending; the one in use is the last.
    segments: VecDeque<SegmentFile>,
    current: Option<Current>,
    /// Records arrive here.
    open: Option<Open>,
    /// Closed frames that could not be issued yet.
    waiting: VecDeque<Open>,
    /// Ascending sequences without gaps, from `durable + 1`.
    in_flight: VecDeque<InFlight>,
    /// The sequence of the next frame to be opened.
    seq_next: FrameSeq,
    durable: FrameSeq,
    /// The last issued frame's link.
    link: u32,
    /// Segments below are not needed; only ever grows.
    oldest: u64,
    pins: Pins,
    bounds: BTreeMap<ShardId, Bounds>,
    /// Lowest accepted replica per shard, as far as no reset says it by itself.
    tombstones: BTreeMap<ShardId, u64>,
    promise: Option<u64>,
    /// Files to be reused once the first segment of this boot is ready.
    discarded: Vec<SegmentFile>,
    /// Resets appended but not durable.
    resets_pending: BTreeMap<ShardId, u32>,
    /// Repeated records of the whole stream are on their way up to this frame.
    repeated: FrameSeq,
    queued_bytes: usize,
    sealed: bool,
    sealing: bool,
    /// The next frame waits for a segment.
    blocked: bool,
    active_at: Nanos,
    failure: Option<WalFailure>,
    stats: WalStats,
}

impl Wal {
    /// Goes on where recovery has found the stream to end, in a new segment. Records may be appended
    /// at once; they wait for it.
    ///
    /// # Panics
    /// If the configuration makes no sense, or the boot epoch is not higher than all before.
    pub fn new(config: WalConfig, recovered: Option<&Recovered>, now: Nanos, calls: &mut DiskCalls) -> Wal {
        assert!(config.frames_in_flight > 0, "no frame could ever be issued");
        let epoch = recovered.map_or(0, |found| found.boot_epoch);
        assert!(config.boot_epoch > epoch, "boot epoch {} does not exceed {epoch}", config.boot_epoch);
        let end = recovered.map_or(StreamEnd::START, |found| found.end);
        let seq_next = recovered.map_or(1, |found| found.seq_next);
        let next_id = recovered.map_or(1, |found| found.segments.next_id);
        let left = recovered.map(|found| found.segments.clone()).unwrap_or_default();
        let mut wal = Wal {
            ops: Ops::default(),
            supply: Supply::new(config.clone(), next_id, end, left.unused),
            oldest: left.used.first().map_or(next_id, |file| file.id),
            segments: left.used.into(),
            current: None,
            open: None,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            seq_next,
            durable: seq_next - 1,
            link: end.link,
            pins: left.pins,
            bounds: recovered.map(bounds_of).unwrap_or_default(),
            tombstones: recovered.map(|found| found.tombstones.clone()).unwrap_or_default(),
            promise: recovered.map(|found| found.promise_ns),
            discarded: left.discarded,
            resets_pending: BTreeMap::new(),
            repeated: 0,
            queued_bytes: 0,
            sealed: true,
            sealing: false,
            blocked: false,
            active_at: now,
            failure: None,
            stats: WalStats::default(),
            config,
        };
        wal.supply.pump(now, &mut wal.ops, calls);
        wal
    }

    /// Issues frames as far as K and the segments allow. Call it at the end of every turn.
    pub fn submit(&mut self, now: Nanos, calls: &mut DiskCalls) {
        if self.failure.is_some() {
            return;
        }
        while let Some(frame) = self.waiting.front().or(self.open.as_ref()) {
            let bytes = frame_bytes(frame.body_bytes);
            let more = if is_planted(Planted::FrameBeyondLimit) { 2 } else { 0 };
            let allowed = frame.seq <= self.durable + u64::from(self.config.frames_in_flight) + more;
            if !allowed {
                break;
            }
            self.blocked = !self.make_room(bytes);
            if self.blocked {
                break;
            }
            let frame =
                self.waiting.pop_front().or_else(|| self.open.take()).expect("it was looked at above");
            self.issue(frame, now, calls);
        }
        self.supply.pump(now, &mut self.ops, calls);
    }

    /// Whether the next frame has a place. Changes to the next segment where needed.
    fn make_room(&mut self, bytes: u64) -> bool {
        if self.current.as_ref().is_some_and(|current| current.offset + bytes <= current.file.bytes) {
            return true;
        }
        let Some(file) = self.supply.take(bytes) else { return false };
        let salt = salt(self.config.store_uuid, self.config.stream, file.id);
        assert!(
            self.segments.back().is_none_or(|last| last.id < file.id),
            "segments come in the order of their ids"
        );
        self.supply.recycle(self.discarded.drain(..));
        self.segments.push_back(file.clone());
        self.current = Some(Current { file, salt, offset: FRAMES_AT });
        true
    }

    fn issue(&mut self, frame: Open, now: Nanos, calls: &mut DiskCalls) {
        let current = self.current.as_mut().expect("room was made");
        let expected = self.in_flight.back().map_or(self.durable, |last| last.seq) + 1;
        assert_eq!(frame.seq, expected, "frames are issued in sequence");
        let header = FrameHeader {
            segment: current.file.id,
            seq: frame.seq,
            durable: self.durable,
            boot_epoch: self.config.boot_epoch,
            oldest: self.oldest,
            body_bytes: frame.body_bytes as u32,
            records: frame.items.len() as u32,
            frames_in_flight: self.config.frames_in_flight,
            flags: 0,
            previous: self.link,
            records_crc: 0,
        };
        self.link = header.link(current.salt, current.offset);
        let frame_bytes = header.frame_bytes();
        self.sealed = matches!(frame.items.last(), Some(Item::Seal));
        for &moved in &frame.moves {
            self.pins.on_issued(moved, current.file.id);
        }
        self.in_flight.push_back(InFlight {
            seq: frame.seq,
            done: false,
            issued_at: now,
            body_bytes: frame.body_bytes,
            frame_bytes,
            records: frame.items.len() as u64,
            entries: frame.entries,
            segment: current.file.id,
            oldest: self.oldest,
            moves: frame.moves,
        });
        let (path, offset) = (current.file.path.clone(), current.offset);
        let data = Box::new(FrameRecipe { header, salt: current.salt, offset, items: frame.items });
        current.offset += frame_bytes;
        self.active_at = now;
        self.ops.issue(Purpose::Frame(frame.seq), DiskCall::Write { path, offset, data }, calls);
    }

    /// The frame that makes everything appended so far durable, once [`Wal::durable`] reaches it.
    pub fn barrier(&self) -> FrameSeq {
        self.seq_next - 1
    }

    /// The highest sequence up to which everything is durable.
    pub fn durable(&self) -> FrameSeq {
        if is_planted(Planted::AckBeforeDurable) {
            return self.in_flight.back().map_or(self.durable, |last| last.seq);
        }
        if is_planted(Planted::OutOfOrderDurable) {
            let done = self.in_flight.iter().rev().find(|frame| frame.done);
            return done.map_or(self.durable, |frame| frame.seq);
        }
        self.durable
    }

    /// A call is done. Frames that only waited for K or for a segment are issued, the open one is not: see
    /// [`Wal::submit`].
    ///
    /// # Errors
    /// A failed write or sync is final, and every later call returns the same failure.
    ///
    /// # Panics
    /// If there is no such call.
    pub fn on_disk(
        &mut self,
        now: Nanos,
        number: u64,
        result: DiskResult,
        calls: &mut DiskCalls,
    ) -> Result<(), WalFailure> {
        let op = self.ops.complete(number);
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let outcome = match op.purpose {
            Purpose::Frame(seq) if is_planted(Planted::FailedWriteIgnored) => {
                self.on_written(seq, now);
                Ok(())
            }
            Purpose::Frame(seq) => result.map(|_| self.on_written(seq, now)),
            Purpose::Supply => {
                self.blocked = false;
                let position = Position { seq: self.seq_unissued(), oldest: self.oldest };
                self.supply.on_disk(now, result, position, &mut self.ops, calls)
            }
            Purpose::Remove(bytes) => match result {
                Err(error) if error.kind != DiskErrorKind::NotFound => Err(error),
                _ => {
                    self.supply.on_removed(bytes);
                    Ok(())
                }
            },
        };
        if let Err(error) = outcome {
            let failure = WalFailure { file: op.path, offset: op.offset, error };
            self.failure = Some(failure.clone());
            return Err(failure);
        }
        self.advance_oldest();
        self.submit_closed(now, calls);
        Ok(())
    }

    fn submit_closed(&mut self, now: Nanos, calls: &mut DiskCalls) {
        if self.waiting.is_empty() {
            return self.supply.pump(now, &mut self.ops, calls);
        }
        let open = self.open.take();
        self.submit(now, calls);
        self.open = open;
    }

    fn seq_unissued(&self) -> FrameSeq {
        self.in_flight.back().map_or(self.durable, |last| last.seq) + 1
    }

    fn on_written(&mut self, seq: FrameSeq, now: Nanos) {
        let at = usize::try_from(seq - self.durable - 1).expect("at most K frames are in flight");
        let frame = &mut self.in_flight[at];
        assert!(frame.seq == seq && !frame.done, "frame {seq} is done once, found {}", frame.seq);
        frame.done = true;
        if self.stats.write_latencies_ns.len() < LATENCIES_MAX {
            self.stats.write_latencies_ns.push(now.saturating_sub(frame.issued_at));
        }
        self.active_at = now;
        while self.in_flight.front().is_some_and(|frame| frame.done) {
            let frame = self.in_flight.pop_front().expect("it was looked at");
            self.on_durable(frame);
        }
    }

    fn on_durable(&mut self, frame: InFlight) {
        assert_eq!(frame.seq, self.durable + 1, "durability is contiguous");
        self.durable = frame.seq;
        self.queued_bytes -= frame.body_bytes;
        self.stats.frames += 1;
        self.stats.bytes += frame.frame_bytes;
        self.stats.records += frame.records;
        self.stats.entries += frame.entries;
        for moved in frame.moves {
            if let PinMove::ResetEnds { shard, .. } = moved {
                self.on_reset_durable(shard);
            }
            self.pins.on_durable(moved, frame.segment);
        }
        let freed = self.segments.iter().take_while(|file| file.id < frame.oldest).count();
        self.supply.recycle(self.segments.drain(..freed));
    }

    fn on_reset_durable(&mut self, shard: ShardId) {
        let pending = self.resets_pending.get_mut(&shard).expect("it was counted when it was appended");
        *pending -= 1;
        if *pending == 0 {
            self.resets_pending.remove(&shard);
        }
    }

    /// Finds out which segments are still needed; repeats what only the whole stream needs of older ones.
    /// They are freed once a frame that says so is durable.
    fn advance_oldest(&mut self) {
        let Some(current) = &self.current else { return };
        let pinned = self.pins.oldest_of_shards().filter(|_| !is_planted(Planted::FreedTooEarly));
        let of_shards = pinned.unwrap_or(current.file.id);
        let of_stream = self.pins.oldest_of_stream().unwrap_or(current.file.id);
        let oldest = of_shards.min(of_stream).min(current.file.id);
        assert!(oldest >= self.oldest, "segment {oldest} is needed again, {} was stated", self.oldest);
        self.oldest = oldest;
        if of_stream < of_shards.min(current.file.id) && self.durable >= self.repeated {
            self.repeat_below(of_shards.min(current.file.id));
        }
    }

    fn repeat_below(&mut self, segment: u64) {
        if self.pins.promise.is_some_and(|at| at < segment)
            && let Some(largest_ns) = self.promise
        {
            self.push(Item::Record(Record::Promise { largest_ns }), Some(PinMove::Promise));
        }
        let shards: Vec<ShardId> = self.pins.tombstones.below(segment).collect();
        for shard in shards {
            self.push_tombstone(shard, false);
        }
        self.repeated = self.barrier();
    }

    /// Something may be due: a seal, or another attempt after the disk was full.
    pub fn tick(&mut self, now: Nanos, calls: &mut DiskCalls) {
        let idle = self.in_flight.is_empty() && self.waiting.is_empty() && self.open.is_none();
        let due = self.sealing || now >= self.active_at.saturating_add(self.config.seal_idle_ns);
        if idle && due && !self.sealed {
            self.push(Item::Seal, None);
        }
        self.submit(now, calls);
    }

    /// When [`Wal::tick`] is needed next, at the latest.
    pub fn deadline(&self) -> Nanos {
        if self.failure.is_some() {
            return Nanos::MAX;
        }
        let unsealed = !self.sealed && self.in_flight.is_empty() && !self.blocked;
        let seal = self.active_at.saturating_add(self.config.seal_idle_ns);
        self.supply.deadline().min(if unsealed { seal } else { Nanos::MAX })
    }

    /// A clean shutdown: seals the stream as soon as all that was appended is durable. Go on with
    /// [`Wal::on_disk`] and [`Wal::tick`] until [`Wal::is_sealed`].
    pub fn seal(&mut self, now: Nanos, calls: &mut DiskCalls) {
        self.sealing = true;
        self.tick(now, calls);
    }

    /// Whether everything appended is durable and the last frame says so.
    pub fn is_sealed(&self) -> bool {
        self.sealed && self.in_flight.is_empty()
    }

    /// If the segments in use take more than `bytes_max`: the shards whose base keeps the oldest one. Flush
    /// them, or append a `ShardReset`. Those whose reset is on its way are not named.
    pub fn pinning(&self, bytes_max: u64) -> Vec<ShardId> {
        let none = BTreeSet::new();
        let pinning = match self.pins.bases.oldest() {
            Some((segment, shards)) if self.bytes_in_use() > bytes_max && self.is_past(segment) => shards,
            _ => &none,
        };
        pinning.iter().copied().filter(|shard| !self.resets_pending.contains_key(shard)).collect()
    }

    /// Whether frames no longer go to this segment.
    fn is_past(&self, segment: u64) -> bool {
        self.current.as_ref().is_some_and(|current| segment < current.file.id)
    }

    /// What the segments take that a restart reads.
    pub fn bytes_in_use(&self) -> u64 {
        self.segments.iter().map(|file| file.bytes).sum()
    }

    /// What all files of the stream take, spares included.
    pub fn bytes_used(&self) -> u64 {
        let files = self.segments.iter().chain(&self.discarded);
        files.map(|file| file.bytes).sum::<u64>() + self.supply.bytes()
    }

    /// Whether the disk has no space for the next segments: proposals are to be refused, while hard
    /// state, truncation and membership changes go on.
    pub fn is_tight(&self) -> bool {
        self.supply.is_tight()
    }

    /// Since when the oldest disk call has been on its way that records wait for. `None` if none is: nothing
    /// was appended, or what was waits for space, which is another matter ([`Wal::is_tight`]).
    pub fn waiting_since(&self) -> Option<Nanos> {
        match self.in_flight.front() {
            Some(frame) => Some(frame.issued_at),
            None if self.blocked => self.supply.waiting_since(),
            None => None,
        }
    }

    /// Bytes of records that are appended but not durable.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// What was written so far. The latencies are handed out once.
    pub fn stats(&mut self) -> WalStats {
        let write_latencies_ns = std::mem::take(&mut self.stats.write_latencies_ns);
        let frames_in_flight = self.in_flight.len() as u32;
        WalStats { write_latencies_ns, frames_in_flight, ..self.stats.clone() }
    }

    /// Why the stream has stopped, if it has.
    pub fn failure(&self) -> Option<&WalFailure> {
        self.failure.as_ref()
    }
}

fn bounds_of(recovered: &Recovered) -> BTreeMap<ShardId, Bounds> {
    let of = |state: &ShardState| Bounds::of(state).expect("recovery has checked the states it hands out");
    recovered.shards.iter().map(|(&shard, state)| (shard, of(state))).collect()
}
