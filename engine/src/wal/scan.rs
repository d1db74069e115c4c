//! What recovery finds in the directory, and in which order it is to be read: *runs*, one per boot.
//!
//! Only the first segment of a boot says where the log before it ended, so the runs are found backwards
//! from the newest segment in use, until a boot whose first segments were freed, or the beginning.
//! Segments that were only made ready are left out: a crash between two boots may have taken some of them, in any order.

use super::segment::{HeaderFault, SegmentFile, SegmentHeader, parse_segment_header};
use super::{FrameSeq, StreamEnd};
use crate::disk::BLOCK;

/// A segment file and what its header copies say.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub file: SegmentFile,
    /// `None` if neither copy is sound: an unused file, or a damaged one.
    pub header: Option<SegmentHeader>,
    /// Which copies are sound.
    pub copies: [bool; 2],
    /// Whether a sound frame header follows them.
    pub holds_frames: bool,
    /// A copy is sound, and of a later segment, written when nothing in this one was needed any more: it was
    /// recycled, and only its new name was lost.
    pub recycled: bool,
}

/// The segments of one boot, as far as they are needed.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Positions in the list of files; never empty, contiguous ids.
    pub files: Vec<usize>,
    /// The exact end that the next boot states; `None` for the newest boot.
    pub end: Option<StreamEnd>,
}

/// What a file's header copies say.
#[derive(Default)]
pub(super) struct HeaderCopies {
    /// Of the segment that the file's name says.
    pub header: Option<SegmentHeader>,
    /// Which copies are sound.
    pub sound: [bool; 2],
    /// Of another segment: the file's former life, or the next one.
    pub other: Option<SegmentHeader>,
}

/// Reads both copies from a file's first two blocks.
pub(super) fn read_header(file: &SegmentFile, bytes: &[u8]) -> Result<HeaderCopies, String> {
    let mut copies = HeaderCopies::default();
    for (copy, block) in bytes.chunks_exact(BLOCK).take(2).enumerate() {
        match parse_segment_header(copy, block) {
            Ok(found) if found.segment == file.id => {
                copies.sound[copy] = true;
                copies.header.get_or_insert(found);
            }
            Ok(other) => copies.other = Some(other),
            Err(HeaderFault::Absent) => {}
            Err(HeaderFault::Unknown(what)) => return Err(what),
        }
    }
    Ok(copies)
}

/// The runs to replay, oldest first.
pub(super) fn runs(found: &[Found]) -> Vec<Run> {
    let sound: Vec<(usize, &SegmentHeader)> =
        found.iter().enumerate().filter_map(|(at, file)| Some((at, file.header.as_ref()?))).collect();
    let in_use =
        |&(at, header): &(usize, &SegmentHeader)| header.boot_start.is_some() || found[at].holds_frames;
    let mut runs = Vec::new();
    let Some(newest_at) = sound.iter().rposition(in_use) else { return runs };
    let newest = sound[newest_at].1;
    let (mut last, mut end) = (newest_at, None);
    loop {
        let first = first_of_run(&sound, last, newest.oldest);
        runs.push(Run { files: sound[first..=last].iter().map(|&(at, _)| at).collect(), end });
        let header = sound[first].1;
        let before = header.boot_start.filter(|start| start.segment >= newest.oldest.max(1));
        let Some(start) = before else { break };
        let Some(at) = sound[..first].iter().position(|(_, header)| header.segment == start.segment) else {
            break;
        };
        (last, end) = (at, Some(start));
    }
    runs.reverse();
    runs
}

/// Goes back from `last` over the segments of the same boot, down to the id `oldest`.
fn first_of_run(sound: &[(usize, &SegmentHeader)], last: usize, oldest: u64) -> usize {
    let mut first = last;
    while first > 0 {
        let (this, before) = (sound[first].1, sound[first - 1].1);
        let joined = before.segment + 1 == this.segment && before.boot_epoch == this.boot_epoch;
        if this.boot_start.is_some() || !joined || this.segment <= oldest {
            break;
        }
        first -= 1;
    }
    first
}

/// Where the next frame is expected.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    pub run: usize,
    /// Position in the run's files.
    pub segment: usize,
    pub offset: u64,
    /// Its sequence; `None` where a run's beginning is gone.
    pub seq: Option<FrameSeq>,
    /// What it has to state as `previous`.
    pub link: Option<u32>,
}
