//! Damage to what a disk holds: bytes that rot, writes that never landed, writes that landed elsewhere.
//!
//! Damage only strikes what can be told from a torn write (the one case of promise 4 that can't is rot in
//! the last unsealed frames together with a crash): a frame of the log that a later, completed frame says was
//! durable, a copy of a segment's header, a dump, the boot record. Nothing reads the log while a process runs,
//! so a write that is lost the moment another one proves that it had been acknowledged is, to all who look,
//! a write that never landed.

use crate::random::Random;
use crate::sim::content::{Content, SECTOR, SECTOR_U64, Sector};
use crate::sim::disk::{Disk, Inode};
use floe::disk::{BLOCK, DiskPath};
use std::collections::{BTreeMap, VecDeque};

/// Frames of a stream that are remembered.
const FRAMES_MAX: usize = 64;
/// Of these, so many of the newest are struck: older ones are soon not needed any more.
const RECENT: usize = 16;

/// How stored bytes go bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A few bits flip.
    BitRot,
    /// A write that was acknowledged left what had been there before.
    LostWrite,
    /// A write that was acknowledged went to another place: that one is spoiled too.
    Misdirected,
}

/// A frame that was written, and what it replaced.
#[derive(Debug)]
struct Stored {
    inode: Inode,
    offset: u64,
    seq: u64,
    bytes: u64,
    before: Vec<(u64, Option<Sector>)>,
}

impl Stored {
    fn sectors(&self) -> impl Iterator<Item = u64> + use<> {
        self.offset / SECTOR_U64..(self.offset + self.bytes) / SECTOR_U64
    }
}

#[derive(Debug, Default)]
struct Stream {
    frames: VecDeque<Stored>,
    /// A frame on the disk says that everything up to here was durable.
    proved: u64,
}

/// The frames of each stream, as far as they were written whole.
#[derive(Debug, Default)]
pub(super) struct FrameLog {
    streams: BTreeMap<DiskPath, Stream>,
}

impl FrameLog {
    /// A frame is about to be written over what `live` holds.
    pub(super) fn written(&mut self, dir: &str, inode: Inode, offset: u64, data: &[u8], live: &Content) {
        // The header begins with its magic number; so does a segment's, with more of it.
        if !data.starts_with(b"floe") || data.starts_with(b"floewal") {
            return;
        }
        let word = |at: usize| data[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (seq, durable) = (word(16), word(24));
        let stream = self.streams.entry(dir.into()).or_default();
        stream.proved = stream.proved.max(durable);
        let sectors = offset / SECTOR_U64..(offset + data.len() as u64) / SECTOR_U64;
        let before: Vec<_> = sectors.map(|sector| (sector, live.sector(sector).cloned())).collect();
        // Recovery writes again what is there.
        let is_new = before.iter().zip(data.chunks(SECTOR)).any(|((_, before), now)| {
            before.as_ref().map_or_else(|| now.iter().any(|byte| *byte != 0), |before| before[..] != *now)
        });
        if is_new {
            stream.frames.push_back(Stored { inode, offset, seq, bytes: data.len() as u64, before });
            if stream.frames.len() > FRAMES_MAX {
                stream.frames.pop_front();
            }
        }
    }

    /// A file got another name or none: whatever it held is not needed.
    pub(super) fn forget(&mut self, inode: Inode) {
        for stream in self.streams.values_mut() {
            stream.frames.retain(|frame| frame.inode != inode);
        }
    }

    /// Takes one of the newest frames that were surely durable, and its directory.
    fn take(&mut self, random: &mut Random) -> Option<(DiskPath, Stored)> {
        let mut candidates = Vec::new();
        for (dir, stream) in &self.streams {
            let proved = |(at, frame): (usize, &Stored)| (frame.seq <= stream.proved).then_some((dir, at));
            candidates.extend(stream.frames.iter().enumerate().rev().filter_map(proved).take(RECENT));
        }
        if candidates.is_empty() {
            return None;
        }
        let (dir, at) = *random.pick(&candidates);
        let dir = dir.clone();
        let frame = self.streams.get_mut(&dir)?.frames.remove(at)?;
        Some((dir, frame))
    }

    /// Whether a frame that nothing proves yet lies in these bytes: its loss could not be told.
    fn holds_unproved(&self, inode: Inode, from: u64, to: u64) -> bool {
        self.streams.values().any(|stream| {
            let overlaps = |frame: &Stored| {
                frame.inode == inode && frame.offset < to && from < frame.offset + frame.bytes
            };
            stream.frames.iter().any(|frame| frame.seq > stream.proved && overlaps(frame))
        })
    }

    /// Frames that were overwritten.
    fn forget_within(&mut self, inode: Inode, from: u64, to: u64) {
        for stream in self.streams.values_mut() {
            stream.frames.retain(|frame| {
                frame.inode != inode || frame.offset >= to || from >= frame.offset + frame.bytes
            });
        }
    }
}

impl Disk {
    /// Damages something that is stored. Answers which file, or `None` if there is nothing that may be struck.
    pub fn damage(&mut self, damage: Damage) -> Option<DiskPath> {
        let inode = match damage {
            Damage::BitRot => match self.random.below(20) {
                0 => self.rot_file(|path| path == "node.floe"),
                1..8 => match self.rot_file(|path| path.starts_with("dump/")) {
                    None => self.rot_frame(),
                    struck => struck,
                },
                8..10 => self.rot_header(),
                _ => self.rot_frame(),
            },
            Damage::LostWrite => self.lose_frame().map(|(_, frame, _)| frame.inode),
            Damage::Misdirected => self.misdirect_frame(),
        }?;
        self.damaged.insert(inode);
        self.names.iter().find(|(_, named)| **named == inode).map(|(path, _)| path.clone())
    }

    /// Whether anything on it was ever damaged.
    pub fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// The files that were damaged and have a name still.
    pub fn damaged_files(&self) -> impl Iterator<Item = &DiskPath> {
        self.names.iter().filter(|(_, inode)| self.damaged.contains(inode)).map(|(path, _)| path)
    }

    /// Replaces a sector, on the platter and in every cache.
    fn put_sector(&mut self, inode: Inode, sector: u64, bytes: Option<Sector>) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        for content in [&mut file.live, &mut file.durable] {
            content.put_sector(sector, bytes.clone());
        }
    }

    /// Flips a few bits of the bytes `from..to`.
    fn rot(&mut self, inode: Inode, from: u64, to: u64) -> Option<Inode> {
        for _ in 0..self.random.between(1, 3) {
            let (at, bit) = (self.random.between(from, to - 1), self.random.below(8));
            let file = self.files.get(&inode)?;
            let mut bytes = file.live.sector(at / SECTOR_U64).map_or([0; SECTOR], |sector| **sector);
            bytes[(at % SECTOR_U64) as usize] ^= 1 << bit;
            self.put_sector(inode, at / SECTOR_U64, Some(bytes.into()));
        }
        Some(inode)
    }

    fn rot_frame(&mut self) -> Option<Inode> {
        let (_, frame) = self.frames.take(&mut self.random)?;
        self.rot(frame.inode, frame.offset, frame.offset + frame.bytes)
    }

    /// One copy of a segment's header.
    fn rot_header(&mut self) -> Option<Inode> {
        let inode = self.pick_file(|path| path.ends_with(".seg"))?;
        let copy = self.random.below(2) * BLOCK as u64;
        self.rot(inode, copy, copy + BLOCK as u64)
    }

    fn rot_file(&mut self, is_it: impl Fn(&str) -> bool) -> Option<Inode> {
        let inode = self.pick_file(is_it)?;
        let len = self.files.get(&inode).map_or(0, |file| file.durable.len);
        if len > 0 { self.rot(inode, 0, len) } else { None }
    }

    fn pick_file(&mut self, is_it: impl Fn(&str) -> bool) -> Option<Inode> {
        let matching = self.names.iter().filter(|(path, _)| is_it(path)).map(|(_, inode)| *inode);
        let matching: Vec<Inode> = matching.collect();
        if matching.is_empty() { None } else { Some(*self.random.pick(&matching)) }
    }

    /// Takes a frame back: what it replaced is there again. Answers its bytes.
    fn lose_frame(&mut self) -> Option<(DiskPath, Stored, Vec<Option<Sector>>)> {
        let (dir, frame) = self.frames.take(&mut self.random)?;
        let file = self.files.get(&frame.inode)?;
        let bytes = frame.sectors().map(|sector| file.live.sector(sector).cloned()).collect();
        for (sector, before) in &frame.before {
            self.put_sector(frame.inode, *sector, before.clone());
        }
        Some((dir, frame, bytes))
    }

    /// A frame that was meant for one place lies in another of the same stream.
    fn misdirect_frame(&mut self) -> Option<Inode> {
        let (dir, frame, bytes) = self.lose_frame()?;
        let inode =
            self.pick_file(|path| path.strip_prefix(&*dir).is_some_and(|rest| rest.starts_with('/')))?;
        let len = self.files.get(&inode).map_or(0, |file| file.durable.len);
        if len >= frame.bytes {
            let offset = self.random.between(0, (len - frame.bytes) / BLOCK as u64) * BLOCK as u64;
            if !self.frames.holds_unproved(inode, offset, offset + frame.bytes) {
                self.frames.forget_within(inode, offset, offset + frame.bytes);
                for (sector, bytes) in (offset / SECTOR_U64..).zip(bytes) {
                    self.put_sector(inode, sector, bytes);
                }
                self.damaged.insert(inode);
            }
        }
        Some(frame.inode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::disk::{Crash, DiskProfile};
    use bytes::Bytes;
    use floe::disk::{DiskCall, DiskDone, OpId, OpOwner};

    const SEGMENT: &str = "wal/00000001/0000000000000001.seg";

    fn call(disk: &mut Disk, call: DiskCall) -> DiskDone {
        let ticket = disk.issue(0, OpId { owner: OpOwner::Wal, number: 1 }, call).0;
        disk.complete(ticket).expect("nothing crashed").2.expect("nothing fails")
    }

    /// A disk with one segment, and in it frames of one block each: sequence, durable sequence.
    fn disk(seed: u64, frames: &[(u64, u64)]) -> Disk {
        let mut disk = Disk::new(Random::new(seed), DiskProfile::default());
        call(&mut disk, DiskCall::Create { path: SEGMENT.into(), len: 8 * BLOCK as u64 });
        call(&mut disk, DiskCall::SyncDir { dir: "wal/00000001".into() });
        for &(seq, durable) in frames {
            let mut frame = vec![seq as u8; BLOCK];
            frame[..4].copy_from_slice(b"floe");
            frame[16..24].copy_from_slice(&seq.to_le_bytes());
            frame[24..32].copy_from_slice(&durable.to_le_bytes());
            let (offset, data) = ((seq + 1) * BLOCK as u64, Box::new(Bytes::from(frame)));
            call(&mut disk, DiskCall::Write { path: SEGMENT.into(), offset, data });
        }
        disk
    }

    fn block(disk: &mut Disk, at: u64) -> Bytes {
        let read = DiskCall::Read { path: SEGMENT.into(), offset: at * BLOCK as u64, len: BLOCK };
        match call(disk, read) {
            DiskDone::Read(bytes) => bytes,
            other => panic!("a read answers {other:?}"),
        }
    }

    #[test]
    fn only_frames_that_a_later_one_proves_are_lost() {
        for seed in 0..20 {
            let mut disk = disk(seed, &[(1, 0), (2, 0)]);
            assert_eq!(disk.damage(Damage::LostWrite), None, "nothing proves that 1 was acknowledged");
            assert!(!disk.is_damaged());
            let mut disk = self::disk(seed, &[(1, 0), (2, 0), (3, 1)]);
            assert_eq!(disk.damage(Damage::LostWrite).as_deref(), Some(SEGMENT));
            disk.crash(Crash::Power);
            assert!(block(&mut disk, 2).iter().all(|byte| *byte == 0), "1 is what it was before");
            assert_eq!((block(&mut disk, 3)[100], block(&mut disk, 4)[100]), (2, 3), "2 and 3 stay");
            assert_eq!(disk.damaged_files().count(), 1);
        }
    }

    #[test]
    fn rot_changes_few_bits_and_no_unproved_frame() {
        let mut struck = 0;
        for seed in 0..50 {
            let mut disk = disk(seed, &[(1, 0), (2, 0), (3, 1)]);
            let before: Vec<Bytes> = (0..5).map(|at| block(&mut disk, at)).collect();
            if disk.damage(Damage::BitRot).is_none() {
                continue;
            }
            struck += 1;
            let flipped = |at: usize, now: &Bytes| -> u32 {
                before[at].iter().zip(now).map(|(old, new)| (old ^ new).count_ones()).sum()
            };
            let flips: Vec<u32> = (0..5).map(|at| flipped(at, &block(&mut disk, at as u64))).collect();
            assert!(flips.iter().sum::<u32>() <= 3 && flips[3] == 0 && flips[4] == 0, "{flips:?}");
        }
        assert!(struck > 30, "{struck}");
    }

    #[test]
    fn a_misdirected_frame_spares_what_nothing_proves() {
        let mut elsewhere = 0;
        for seed in 0..100 {
            let mut disk = disk(seed, &[(1, 0), (2, 0), (3, 1)]);
            disk.damage(Damage::Misdirected).expect("1 may be struck");
            assert_eq!((block(&mut disk, 3)[100], block(&mut disk, 4)[100]), (2, 3), "seed {seed}");
            elsewhere += u32::from([0, 1, 5, 6, 7].iter().any(|at| block(&mut disk, *at)[100] == 1));
        }
        assert!(elsewhere > 30, "{elsewhere}");
    }
}
