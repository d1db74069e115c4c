//! Recovery: reads one stream at start and decides where its log ends.
//!
//! 1. List the directory, read the header copies, order the files into runs (`scan`).
//! 2. Read all frames in sequence and replay their records. The end of every boot but the newest is
//!    stated by the boot after it: any shortfall is corruption.
//! 3. At the newest boot's first bad frame s, look ahead through the rest for sound frame headers
//!    with a higher sequence. None: a torn tail. One whose durable sequence is >= s, or that lies K or more (its
//!    own K) beyond s: s was acknowledged, so this is corruption. Otherwise the frames beyond s were
//!    in flight, nobody was told that they are durable, and the log ends before s.
//! 4. Settle the tail: what was read may sit in the device's cache only. The frames not known durable are
//!    written again, in place, byte for byte, before anybody is told of them; so are missing header copies.
//!
//! Nothing is written before the end is decided, and what is written is what is there: recovery can crash
//! anywhere and be repeated with the same outcome.

use super::frame::{FRAME_HEAD, FrameFault, FrameHeader, parse_frame, parse_frame_header};
use super::record::{Item, RecordFault};
use super::recovered::{Recovered, RecoveredSegments, RecoveryError};
use super::replay::{Contradiction, Replay};
use super::scan::{Cursor, Found, HeaderCopies, Run, read_header, runs};
use super::segment::{FRAMES_AT, SegmentHeader, segment_files};
use super::{FrameSeq, StreamEnd, salt};
use crate::disk::{
    BLOCK, DirEntry, DiskCall, DiskCalls, DiskDone, DiskError, DiskErrorKind, DiskPath, DiskResult, OpId,
    OpOwner,
};
use bytes::Bytes;
use floe_raft::{Planted, is_planted};
use floe_shard::ShardId;
use std::collections::VecDeque;

mod tail;

/// How much is read at once.
const CHUNK: u64 = 2 << 20;

enum Phase {
    Listing,
    /// Header reads in flight.
    Headers(usize),
    Scanning,
    LookingAhead(LookAhead),
    Settling(Settle),
    Done,
}

/// The search for evidence against the end of the log.
struct LookAhead {
    /// The bad frame.
    bad: BadFrame,
    /// Positions in the list of files, and where to start in them.
    places: VecDeque<(usize, u64)>,
}

#[derive(Clone)]
struct BadFrame {
    found: usize,
    offset: u64,
    seq: FrameSeq,
    reason: &'static str,
    shards: Vec<ShardId>,
    bytes: u64,
}

/// What is left to make durable.
struct Settle {
    calls: VecDeque<DiskCall>,
    frames: VecDeque<Tail>,
}

/// A frame that is not known to be durable.
#[derive(Clone)]
struct Tail {
    found: usize,
    offset: u64,
    header: FrameHeader,
}

/// What is at a place.
enum Probe {
    /// This has to be read first.
    Unread(Wanted),
    Sound(FrameHeader, Vec<Item>),
    Bad(BadFrame),
}

/// A stretch of a file.
#[derive(Clone, Copy)]
struct Wanted {
    found: usize,
    offset: u64,
    len: u64,
}

/// The bytes read last.
struct Window {
    found: usize,
    offset: u64,
    bytes: Bytes,
}

/// Reads one stream.
pub struct Recovery {
    dir: DiskPath,
    stream: u32,
    store_uuid: u128,
    op_last: u64,
    phase: Phase,
    /// All segment files, ascending ids.
    found: Vec<Found>,
    runs: Vec<Run>,
    cursor: Cursor,
    window: Option<Window>,
    /// What is wrong where the cursor is, while the next segment is looked at.
    stuck: Option<BadFrame>,
    reading: Option<Wanted>,
    replay: Replay,
    /// Frames of the newest run above `durable_known`.
    tail: VecDeque<Tail>,
    durable_known: FrameSeq,
    /// Segments below are not needed, by what was read so far.
    oldest: u64,
    frames: u64,
    bytes: u64,
    torn_bytes: u64,
}

impl Recovery {
    /// Starts to read the stream.
    pub fn new(dir: DiskPath, stream: u32, store_uuid: u128, calls: &mut DiskCalls) -> Recovery {
        let mut recovery = Recovery {
            dir: dir.clone(),
            stream,
            store_uuid,
            op_last: 0,
            phase: Phase::Listing,
            found: Vec::new(),
            runs: Vec::new(),
            cursor: Cursor { run: 0, segment: 0, offset: FRAMES_AT, seq: None, link: None },
            window: None,
            stuck: None,
            reading: None,
            replay: Replay::default(),
            tail: VecDeque::new(),
            durable_known: 0,
            oldest: 0,
            frames: 0,
            bytes: 0,
            torn_bytes: 0,
        };
        recovery.issue(DiskCall::List { dir }, calls);
        recovery
    }

    fn issue(&mut self, call: DiskCall, calls: &mut DiskCalls) {
        self.op_last += 1;
        calls.push((OpId { owner: OpOwner::Recovery(self.stream), number: self.op_last }, call));
    }

    /// A call is done. Returns the stream once it is read and its tail is durable.
    ///
    /// # Errors
    /// Final: start over, or don't start.
    pub fn on_disk(
        &mut self,
        number: u64,
        result: DiskResult,
        calls: &mut DiskCalls,
    ) -> Result<Option<Recovered>, RecoveryError> {
        match (&mut self.phase, result?) {
            (Phase::Listing, DiskDone::Listed(listed)) => self.on_listed(&listed, calls),
            (Phase::Headers(left), DiskDone::Read(bytes)) => {
                *left -= 1;
                // The listing was call 1, the headers are the next ones in the order of the files.
                self.on_header(number as usize - 2, &bytes)?;
                if !matches!(self.phase, Phase::Headers(0)) {
                    return Ok(None);
                }
                self.become_scanning()?;
            }
            (Phase::Scanning | Phase::LookingAhead(_) | Phase::Settling(_), DiskDone::Read(bytes)) => {
                self.on_read(bytes)?;
            }
            (Phase::Settling(_), DiskDone::Done) => {}
            (_, done) => panic!("recovery did not ask for {done:?}"),
        }
        self.advance(calls)
    }

    fn on_listed(&mut self, listed: &[DirEntry], calls: &mut DiskCalls) {
        let files = segment_files(&self.dir, listed);
        for file in &files {
            let len = file.bytes.min(FRAMES_AT + BLOCK as u64) as usize;
            self.issue(DiskCall::Read { path: file.path.clone(), offset: 0, len }, calls);
        }
        self.phase = if files.is_empty() { Phase::Scanning } else { Phase::Headers(files.len()) };
        self.found = files
            .into_iter()
            .map(|file| Found {
                file,
                header: None,
                copies: [false; 2],
                holds_frames: false,
                recycled: false,
            })
            .collect();
    }

    fn on_header(&mut self, at: usize, bytes: &[u8]) -> Result<(), RecoveryError> {
        let salt = self.salt(at);
        let found = &mut self.found[at];
        let unknown = |what| RecoveryError::UnknownFormat { file: found.file.path.clone(), offset: 0, what };
        let HeaderCopies { header, sound, other } = read_header(&found.file, bytes).map_err(unknown)?;
        if let Some(header) = &header
            && (header.store_uuid, header.stream) != (self.store_uuid, self.stream)
        {
            return Err(RecoveryError::WrongStore {
                file: found.file.path.clone(),
                found: (header.store_uuid, header.stream),
                expected: (self.store_uuid, self.stream),
            });
        }
        let me = (self.store_uuid, self.stream);
        let is_next_life = |next: SegmentHeader| {
            (next.store_uuid, next.stream) == me
                && next.segment > found.file.id
                && next.oldest > found.file.id
        };
        found.recycled = header.is_none() && other.is_some_and(is_next_life);
        (found.header, found.copies) = (header, sound);
        let first = bytes.get(FRAMES_AT as usize..).unwrap_or_default();
        found.holds_frames = parse_frame_header(salt, FRAMES_AT, first).is_some();
        Ok(())
    }

    fn become_scanning(&mut self) -> Result<(), RecoveryError> {
        self.runs = runs(&self.found);
        // What a spare's header says counts for nothing, unless there is nothing else: segments are freed by
        // frames, and the spare goes.
        let has_frames = self.found.iter().any(|found| found.holds_frames);
        let counts = self.found.iter().filter(|found| found.holds_frames || !has_frames);
        self.oldest = counts.filter_map(|found| Some(found.header.as_ref()?.oldest)).max().unwrap_or(0);
        for &at in self.runs.iter().flat_map(|run| &run.files) {
            let found = &self.found[at];
            let stated = found.header.as_ref().expect("runs have sound headers").bytes;
            if stated != found.file.bytes {
                return Err(self.corruption(at, 0, 0, "the file is not as long as its header says"));
            }
        }
        self.enter_run(0);
        self.phase = Phase::Scanning;
        Ok(())
    }

    fn enter_run(&mut self, run: usize) {
        self.stuck = None;
        self.cursor = Cursor { run, segment: 0, offset: FRAMES_AT, seq: None, link: None };
        if let Some(run) = self.runs.get(run) {
            let header = self.found[run.files[0]].header.as_ref().expect("runs have sound headers");
            if let Some(start) = header.boot_start {
                (self.cursor.seq, self.cursor.link) = (Some(header.first_seq), Some(start.link));
            }
        }
    }

    fn corruption(&self, found: usize, offset: u64, seq: FrameSeq, reason: &'static str) -> RecoveryError {
        let file = self.found[found].file.path.clone();
        RecoveryError::Corruption { file, offset, seq, shards: Vec::new(), reason }
    }

    fn on_read(&mut self, bytes: Bytes) -> Result<(), RecoveryError> {
        let wanted = self.reading.take().expect("a read was issued");
        if (bytes.len() as u64) < wanted.len {
            let file = &self.found[wanted.found].file.path;
            let message =
                format!("{file}: {} of {} bytes at offset {}", bytes.len(), wanted.len, wanted.offset);
            return Err(RecoveryError::Disk(DiskError { kind: DiskErrorKind::Io, message }));
        }
        self.window = Some(Window { found: wanted.found, offset: wanted.offset, bytes });
        Ok(())
    }

    /// Goes on until something has to come from the disk.
    fn advance(&mut self, calls: &mut DiskCalls) -> Result<Option<Recovered>, RecoveryError> {
        loop {
            let call = match &self.phase {
                Phase::Listing | Phase::Headers(_) => return Ok(None),
                Phase::Scanning => self.scan()?,
                Phase::LookingAhead(_) => self.look_ahead()?,
                Phase::Settling(_) => self.settle()?,
                Phase::Done => return self.finish().map(Some),
            };
            if let Some(call) = call {
                self.issue(call, calls);
                return Ok(None);
            }
        }
    }

    /// The bytes at a place, if they are at hand.
    fn at_hand(&self, wanted: Wanted) -> Option<Bytes> {
        let window = self.window.as_ref().filter(|window| window.found == wanted.found)?;
        let from = wanted.offset.checked_sub(window.offset)?;
        let end = from + wanted.len;
        (end <= window.bytes.len() as u64).then(|| window.bytes.slice(from as usize..end as usize))
    }

    /// Reads at least what is wanted; ahead as far as a chunk goes.
    fn read(&mut self, wanted: Wanted) -> DiskCall {
        let file = &self.found[wanted.found].file;
        let len = wanted.len.max(CHUNK).min(file.bytes - wanted.offset);
        assert!(len >= wanted.len, "{}: nothing is wanted beyond the end of the file", file.path);
        self.reading = Some(Wanted { len, ..wanted });
        self.window = None;
        DiskCall::Read { path: file.path.clone(), offset: wanted.offset, len: len as usize }
    }

    /// Is the frame that the cursor expects at this place?
    fn probe(&self, found: usize, offset: u64) -> Result<Probe, RecoveryError> {
        let file = &self.found[found].file;
        let first_seq = self.found[found].header.as_ref().map_or(0, |header| header.first_seq);
        let seq = self.cursor.seq.unwrap_or(first_seq);
        let bad = |reason, bytes| BadFrame { found, offset, seq, reason, shards: Vec::new(), bytes };
        if offset + BLOCK as u64 > file.bytes {
            return Ok(Probe::Bad(bad("the segment ends", 0)));
        }
        let block = Wanted { found, offset, len: BLOCK as u64 };
        let Some(bytes) = self.at_hand(block) else { return Ok(Probe::Unread(block)) };
        let salt = self.salt(found);
        let Some(header) = parse_frame_header(salt, offset, &bytes[..FRAME_HEAD]) else {
            return Ok(Probe::Bad(bad("no sound frame header", 0)));
        };
        if !self.is_expected(&header, found, seq) {
            return Ok(Probe::Bad(bad("another frame than the next one", 0)));
        }
        let len = header.frame_bytes();
        if len > file.bytes - offset {
            return Ok(Probe::Bad(bad("the file ends within a frame", 0)));
        }
        let whole = Wanted { found, offset, len };
        let Some(bytes) = self.at_hand(whole) else { return Ok(Probe::Unread(whole)) };
        match parse_frame(&header, salt, offset, &bytes) {
            Ok(items) => Ok(Probe::Sound(header, items)),
            Err(FrameFault { fault: RecordFault::Damaged(reason), shards }) => {
                Ok(Probe::Bad(BadFrame { shards, ..bad(reason, len) }))
            }
            Err(FrameFault { fault: RecordFault::Unknown(what), .. }) => {
                Err(RecoveryError::UnknownFormat { file: file.path.clone(), offset, what })
            }
        }
    }

    fn salt(&self, found: usize) -> u64 {
        salt(self.store_uuid, self.stream, self.found[found].file.id)
    }

    fn is_expected(&self, header: &FrameHeader, found: usize, seq: FrameSeq) -> bool {
        let Found { file, header: Some(segment), .. } = &self.found[found] else { return false };
        let in_sequence = if self.cursor.seq.is_some() { header.seq == seq } else { header.seq >= seq };
        let linked = self.cursor.link.is_none_or(|link| link == header.previous);
        if is_planted(Planted::StaleFramesReplayed) {
            return true;
        }
        header.segment == file.id && header.boot_epoch == segment.boot_epoch && in_sequence && linked
    }

    fn scan(&mut self) -> Result<Option<DiskCall>, RecoveryError> {
        let Some(run) = self.runs.get(self.cursor.run) else {
            // A stream without any sound header: only unused files, unless one of them holds frames.
            self.become_looking_ahead(None);
            return Ok(None);
        };
        let (found, offset) = (run.files[self.cursor.segment], self.cursor.offset);
        let next = run.files.get(self.cursor.segment + 1).copied();
        if let (Some(end), Some(seq)) = (run.end, self.cursor.seq)
            && seq == end.seq
        {
            return self.leave_run(end, found).map(|()| None);
        }
        let mut place = (found, offset, self.cursor.segment);
        let mut probe = match self.stuck.clone() {
            Some(bad) => Probe::Bad(bad),
            None => self.probe(found, offset)?,
        };
        if let (Probe::Bad(here), Some(next)) = (&probe, next) {
            // Where a segment is full, the log goes on in the next one.
            let here = here.clone();
            if self.cursor.seq.is_none() && self.found[next].holds_frames {
                // The log before this segment was freed, which was not before something in it was durable:
                // so its first frame was. To go on without it would lose whole shards unnoticed.
                return Err(self.corrupt_frame(here, next));
            }
            self.stuck = Some(here.clone());
            probe = self.probe(next, FRAMES_AT)?;
            place = (next, FRAMES_AT, self.cursor.segment + 1);
            if matches!(&probe, Probe::Bad(there) if there.bytes == 0) {
                probe = Probe::Bad(here);
            }
        }
        match probe {
            Probe::Unread(wanted) => Ok(Some(self.read(wanted))),
            Probe::Sound(header, items) => {
                self.cursor.segment = place.2;
                self.on_frame(place.0, place.1, header, items).map(|()| None)
            }
            Probe::Bad(bad) => self.on_bad_frame(bad).map(|()| None),
        }
    }

    fn on_frame(
        &mut self,
        found: usize,
        offset: u64,
        header: FrameHeader,
        items: Vec<Item>,
    ) -> Result<(), RecoveryError> {
        self.stuck = None;
        let segment = self.found[found].file.id;
        for item in items {
            if let Err(Contradiction { shard, reason }) = self.replay.apply(item, segment) {
                if is_planted(Planted::TornTailIgnored) {
                    continue;
                }
                let file = self.found[found].file.path.clone();
                return Err(RecoveryError::Corruption {
                    file,
                    offset,
                    seq: header.seq,
                    shards: vec![shard],
                    reason,
                });
            }
        }
        self.frames += 1;
        self.bytes += header.frame_bytes();
        self.oldest = self.oldest.max(header.oldest);
        self.cursor.offset = offset + header.frame_bytes();
        self.cursor.seq = Some(header.seq + 1);
        self.cursor.link = Some(header.link(self.salt(found), offset));
        if self.cursor.run + 1 == self.runs.len() {
            self.durable_known = self.durable_known.max(header.durable);
            self.tail.push_back(Tail { found, offset, header });
            self.trim_tail();
        }
        Ok(())
    }

    fn trim_tail(&mut self) {
        while self.tail.front().is_some_and(|frame| frame.header.seq <= self.durable_known) {
            self.tail.pop_front();
        }
    }

    fn leave_run(&mut self, end: StreamEnd, found: usize) -> Result<(), RecoveryError> {
        let here = (self.found[found].file.id, self.cursor.offset);
        if here != (end.segment, end.offset) || self.cursor.link.is_some_and(|link| link != end.link) {
            let reason = "the log does not end where the next boot says";
            return Err(self.corruption(found, self.cursor.offset, end.seq, reason));
        }
        self.enter_run(self.cursor.run + 1);
        Ok(())
    }

    fn on_bad_frame(&mut self, bad: BadFrame) -> Result<(), RecoveryError> {
        if self.cursor.run + 1 == self.runs.len() {
            self.become_looking_ahead(Some(bad));
            return Ok(());
        }
        if is_planted(Planted::TornTailIgnored) {
            self.enter_run(self.cursor.run + 1);
            return Ok(());
        }
        let last = self.runs[self.cursor.run].files.last().copied().unwrap_or(bad.found);
        Err(self.corrupt_frame(bad, last))
    }

    /// The log is known to go on up to this file. Where the first frame of a segment on the way isn't
    /// sound, it is there that one is missing, not at the end of the segment before.
    fn corrupt_frame(&self, mut bad: BadFrame, up_to: usize) -> RecoveryError {
        let headless = |at: &usize| self.found[*at].header.is_some() && !self.found[*at].holds_frames;
        if let Some(at) = (bad.found + 1..=up_to).find(headless) {
            (bad.found, bad.offset, bad.reason) = (at, FRAMES_AT, "no sound frame header");
        }
        let BadFrame { found, offset, seq, reason, shards, .. } = bad;
        RecoveryError::Corruption { file: self.found[found].file.path.clone(), offset, seq, shards, reason }
    }

    fn end(&self) -> StreamEnd {
        let Some(run) = self.runs.last() else { return StreamEnd::START };
        let found = &self.found[run.files[self.cursor.segment]];
        let first_seq = found.header.as_ref().map_or(1, |header| header.first_seq);
        StreamEnd {
            segment: found.file.id,
            offset: self.cursor.offset,
            seq: self.cursor.seq.unwrap_or(first_seq),
            link: self.cursor.link.unwrap_or(0),
        }
    }

    fn finish(&mut self) -> Result<Recovered, RecoveryError> {
        let end = self.end();
        let headers = || self.found.iter().filter_map(|found| found.header.as_ref());
        let in_flight = self.runs.last().and_then(|run| self.found[run.files[0]].header.as_ref());
        let in_flight = in_flight.map_or(0, |header| u64::from(header.frames_in_flight));
        let boot_epoch = headers().map(|header| header.boot_epoch).max().unwrap_or(0);
        let in_runs: Vec<usize> = self.runs.iter().flat_map(|run| run.files.iter().copied()).collect();
        let mut segments = RecoveredSegments::default();
        for (at, found) in self.found.iter().enumerate() {
            let kind = match in_runs.contains(&at) {
                true if self.is_used(&found.file) => &mut segments.used,
                true if found.file.id > end.segment => &mut segments.discarded,
                _ => &mut segments.unused,
            };
            kind.push(found.file.clone());
        }
        segments.next_id = self.found.last().map_or(1, |found| found.file.id + 1);
        let replay = std::mem::take(&mut self.replay);
        segments.pins.promise = replay.promise.map(|(_, segment)| segment);
        for (&shard, &(_, segment)) in &replay.tombstones {
            segments.pins.tombstones.set(shard, segment);
        }
        for (&shard, live) in &replay.shards {
            segments.pins.bases.set(shard, live.base);
        }
        Ok(Recovered {
            shards: replay.shards.into_iter().map(|(shard, live)| (shard, live.finish())).collect(),
            tombstones: replay.tombstones.iter().map(|(&shard, &(lowest, _))| (shard, lowest)).collect(),
            promise_ns: replay.promise.map_or(0, |(ns, _)| ns),
            boot_epoch,
            end,
            seq_next: end.seq + in_flight,
            segments,
            frames: self.frames,
            bytes: self.bytes,
            torn_bytes: self.torn_bytes,
        })
    }
}
