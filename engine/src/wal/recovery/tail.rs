//! The end of the log: is a bad frame torn or damaged, and making durable what comes before it.

use super::{BadFrame, LookAhead, Phase, Recovery, Settle, Tail, Wanted};
use crate::disk::{BLOCK, DiskCall};
use crate::wal::RecoveryError;
use crate::wal::frame::{FRAME_HEAD, FrameHeader, parse_frame, parse_frame_header};
use crate::wal::segment::{FRAMES_AT, HeaderRecipe, SegmentFile, segment_path};
use floe_raft::{Planted, is_planted};
use std::collections::VecDeque;

impl Recovery {
    pub(super) fn become_looking_ahead(&mut self, bad: Option<BadFrame>) {
        let bad =
            bad.unwrap_or(BadFrame { found: 0, offset: 0, seq: 0, reason: "", shards: Vec::new(), bytes: 0 });
        self.torn_bytes += bad.bytes;
        // The end of the log is where the cursor is, even if the bad frame lies in the next segment.
        let last = self.runs.last().map(|run| run.files[self.cursor.segment]);
        let later = (last.map_or(0, |at| at + 1)..self.found.len()).map(|at| (at, FRAMES_AT));
        let mut places: VecDeque<_> =
            last.map(|at| (at, self.cursor.offset)).into_iter().chain(later).collect();
        if is_planted(Planted::TornTailIgnored) {
            places.clear();
        }
        self.phase = Phase::LookingAhead(LookAhead { bad, places });
    }

    pub(super) fn look_ahead(&mut self) -> Result<Option<DiskCall>, RecoveryError> {
        let Phase::LookingAhead(ahead) = &self.phase else { unreachable!("only called while looking ahead") };
        let Some(&(found, offset)) = ahead.places.front() else {
            self.become_settling()?;
            return Ok(None);
        };
        let bad = ahead.bad.clone();
        let file_bytes = self.found[found].file.bytes;
        let (mut at, salt) = (offset, self.salt(found));
        while at + BLOCK as u64 <= file_bytes {
            let block = Wanted { found, offset: at, len: BLOCK as u64 };
            let Some(bytes) = self.at_hand(block) else {
                self.set_place(Some(at));
                return Ok(Some(self.read(block)));
            };
            if let Some(header) = parse_frame_header(salt, at, &bytes[..FRAME_HEAD]) {
                self.weigh(&bad, found, at, &header)?;
            }
            at += BLOCK as u64;
        }
        self.set_place(None);
        Ok(None)
    }

    /// Goes on at this offset of the same file, or in the next one.
    fn set_place(&mut self, offset: Option<u64>) {
        let Phase::LookingAhead(ahead) = &mut self.phase else { return };
        match (offset, ahead.places.front_mut()) {
            (Some(offset), Some(place)) => place.1 = offset,
            _ => drop(ahead.places.pop_front()),
        }
    }

    /// What a sound frame header beyond the bad frame proves.
    fn weigh(
        &mut self,
        bad: &BadFrame,
        found: usize,
        at: u64,
        header: &FrameHeader,
    ) -> Result<(), RecoveryError> {
        let is_stale = header.segment != self.found[found].file.id || self.found[found].recycled;
        if is_stale || header.seq < bad.seq {
            return Ok(());
        }
        if self.found[found].header.is_none() {
            let reason = "both header copies are damaged, but the segment holds frames";
            return Err(self.corruption(found, 0, header.seq, reason));
        }
        if header.seq == bad.seq {
            return Ok(());
        }
        if header.durable >= bad.seq || header.seq - bad.seq >= u64::from(header.frames_in_flight) {
            return Err(self.corrupt_frame(bad.clone(), found));
        }
        self.durable_known = self.durable_known.max(header.durable);
        self.torn_bytes += header.frame_bytes().min(self.found[found].file.bytes - at);
        Ok(())
    }

    fn become_settling(&mut self) -> Result<(), RecoveryError> {
        self.check_complete()?;
        self.trim_tail();
        let mut calls = VecDeque::new();
        if !self.found.is_empty() {
            calls.push_back(DiskCall::SyncDir { dir: self.dir.clone() });
        }
        let newest = self.runs.last().map(|run| run.files[0]);
        let blank = self.cursor.offset == FRAMES_AT && self.cursor.segment == 0;
        for &at in self.runs.iter().flat_map(|run| &run.files) {
            let found = &self.found[at];
            let Some(header) = found.header.clone().filter(|_| self.is_used(&found.file)) else { continue };
            if (blank && Some(at) == newest) || found.copies != [true; 2] {
                let data = Box::new(HeaderRecipe(header));
                calls.push_back(DiskCall::Write { path: found.file.path.clone(), offset: 0, data });
            }
        }
        self.phase = Phase::Settling(Settle { calls, frames: std::mem::take(&mut self.tail) });
        Ok(())
    }

    /// Whether nothing is missing between the oldest segment that is needed and the end.
    fn check_complete(&self) -> Result<(), RecoveryError> {
        let Some(run) = self.runs.first() else { return Ok(()) };
        if is_planted(Planted::TornTailIgnored) {
            return Ok(());
        }
        let first = &self.found[run.files[0]].file;
        if self.oldest < first.id {
            // What broke the chain of segments stands right before its sound part.
            let file = segment_path(&self.dir, (first.id - 1).max(1));
            let reason = "the segment is missing, or has no sound header";
            return Err(RecoveryError::Corruption { file, offset: 0, seq: 0, shards: Vec::new(), reason });
        }
        let shards = self.replay.orphans();
        if !shards.is_empty() {
            let (file, reason) =
                (first.path.clone(), "there are records of a shard, but not the state they build on");
            return Err(RecoveryError::Corruption { file, offset: FRAMES_AT, seq: 0, shards, reason });
        }
        Ok(())
    }

    pub(super) fn is_used(&self, file: &SegmentFile) -> bool {
        (self.oldest..=self.end().segment).contains(&file.id)
    }

    pub(super) fn settle(&mut self) -> Result<Option<DiskCall>, RecoveryError> {
        let Phase::Settling(settle) = &mut self.phase else { unreachable!("only called while settling") };
        if let Some(call) = settle.calls.pop_front() {
            return Ok(Some(call));
        }
        let Some(Tail { found, offset, header }) = settle.frames.front().cloned() else {
            self.phase = Phase::Done;
            return Ok(None);
        };
        let wanted = Wanted { found, offset, len: header.frame_bytes() };
        let Some(bytes) = self.at_hand(wanted) else { return Ok(Some(self.read(wanted))) };
        let again = parse_frame_header(self.salt(found), offset, &bytes[..FRAME_HEAD]);
        if again.as_ref() != Some(&header) || parse_frame(&header, self.salt(found), offset, &bytes).is_err()
        {
            return Err(self.corruption(
                found,
                offset,
                header.seq,
                "a frame reads differently the second time",
            ));
        }
        if let Phase::Settling(settle) = &mut self.phase {
            settle.frames.pop_front();
        }
        let path = self.found[found].file.path.clone();
        Ok(Some(DiskCall::Write { path, offset, data: Box::new(bytes) }))
    }
}
