//! A look at a whole stream without opening it: what is in it, and everything that is wrong with it.
//!
//! Whether the log is damaged is decided by [`Recovery`] itself, on a disk that takes no writes. But a
//! recovery ends at the first damage, and quietly makes good what is there twice. So every segment is also
//! walked from end to end: frames with damaged records, places where frames are missing, lost header copies.
//! A bad frame counts only where it is proved that it had been acknowledged; what a crash has torn is no damage.

use super::frame::{FRAME_HEAD, FrameFault, FrameHeader, claimed_shards, parse_frame, parse_frame_header};
use super::record::RecordFault;
use super::scan::{HeaderCopies, read_header};
use super::segment::{FRAMES_AT, SegmentFile, SegmentHeader, segment_files};
use super::{FrameSeq, Recovered, Recovery, RecoveryError, ShardState, StreamEnd, salt};
use crate::disk::{BLOCK, DiskCall, DiskDone, DiskError, DiskErrorKind, DiskPath, DiskResult};
use bytes::Bytes;
use floe_shard::ShardId;
use std::collections::BTreeMap;

/// Carries out calls that only read: `List` and `Read`.
pub type ReadOnlyDisk<'a> = dyn FnMut(&DiskCall) -> DiskResult + 'a;

/// What is wrong at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The file, or the stream's directory if none can be named.
    pub file: DiskPath,
    /// Where in it.
    pub offset: u64,
    /// The frame there; 0 if that is not known.
    pub seq: FrameSeq,
    /// Shards that the bytes in question name, as far as they can be read.
    pub shards: Vec<ShardId>,
    /// What is wrong.
    pub what: String,
    /// Whether acknowledged data is lost; if not, the next start makes it good.
    pub is_loss: bool,
}

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSurvey {
    /// The file.
    pub file: SegmentFile,
    /// The boot that wrote it; `None` without a sound header.
    pub boot_epoch: Option<u64>,
    /// Sound frames in it; none = a spare.
    pub frames: u64,
    /// Their bytes, padding included.
    pub frame_bytes: u64,
    /// Sequences of the first and the last of them.
    pub seqs: Option<(FrameSeq, FrameSeq)>,
}

/// What there is to know of one stream.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The stream.
    pub stream: u32,
    /// Its segment files, ascending.
    pub segments: Vec<SegmentSurvey>,
    /// Records in sound frames, by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// The live state of every shard; empty if the log can't be replayed.
    pub shards: BTreeMap<ShardId, ShardState>,
    /// Where the log ends; `None` if it can't be replayed.
    pub end: Option<StreamEnd>,
    /// Bytes behind the end that a crash has left and that were never acknowledged.
    pub torn_bytes: u64,
    /// Everything that is wrong, in order of file and offset.
    pub findings: Vec<Finding>,
}

impl Survey {
    /// Whether nothing acknowledged is lost.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| !finding.is_loss)
    }
}

/// A frame with a sound header.
struct Frame {
    header: FrameHeader,
    /// Position among the segments.
    at: usize,
    offset: u64,
    /// What is wrong with its records.
    fault: Option<(String, Vec<ShardId>)>,
}

/// A survey in progress.
struct Surveyor {
    survey: Survey,
    headers: Vec<SegmentHeader>,
    frames: Vec<Frame>,
    /// What is named by bytes where a frame could be, but no sound header is.
    headless: BTreeMap<(DiskPath, u64), Vec<ShardId>>,
}

/// Looks at a stream: reads all of it, one file at a time, and changes nothing. Damage of any kind is a
/// [`Finding`], an unreadable file too.
///
/// # Errors
/// The directory can't be listed.
pub fn survey(
    dir: &DiskPath,
    stream: u32,
    store_uuid: u128,
    disk: &mut ReadOnlyDisk,
) -> Result<Survey, DiskError> {
    let listed = match disk(&DiskCall::List { dir: dir.clone() })? {
        DiskDone::Listed(listed) => listed,
        other => panic!("a listing answered {other:?}"),
    };
    let mut surveyor = Surveyor::new(stream);
    for file in segment_files(dir, &listed) {
        let salt = salt(store_uuid, stream, file.id);
        match read(&file, disk) {
            Ok(bytes) => surveyor.walk(file, salt, &bytes),
            Err(error) => surveyor.note(&file.path, 0, 0, Vec::new(), &error.message),
        }
    }
    surveyor.judge();
    surveyor.take_outcome(dir, recover(dir, stream, store_uuid, disk));
    let mut survey = surveyor.survey;
    survey.findings.sort_by(|one, other| (&one.file, one.offset).cmp(&(&other.file, other.offset)));
    Ok(survey)
}

/// Recovers, but keeps every write from the disk: what recovery writes is what is there already.
fn recover(
    dir: &DiskPath,
    stream: u32,
    store_uuid: u128,
    disk: &mut ReadOnlyDisk,
) -> Result<Recovered, RecoveryError> {
    let mut calls = Vec::new();
    let mut recovery = Recovery::new(dir.clone(), stream, store_uuid, &mut calls);
    loop {
        let (op, call) = calls.pop().expect("recovery waits for a call until it is done");
        let result = match &call {
            DiskCall::List { .. } | DiskCall::Read { .. } => disk(&call),
            _ => Ok(DiskDone::Done),
        };
        if let Some(recovered) = recovery.on_disk(op.number, result, &mut calls)? {
            return Ok(recovered);
        }
    }
}

fn read(file: &SegmentFile, disk: &mut ReadOnlyDisk) -> Result<Bytes, DiskError> {
    let len = usize::try_from(file.bytes).expect("segments fit into memory");
    match disk(&DiskCall::Read { path: file.path.clone(), offset: 0, len })? {
        DiskDone::Read(bytes) if bytes.len() == len => Ok(bytes),
        DiskDone::Read(bytes) => {
            let message = format!("only {} of {len} bytes can be read", bytes.len());
            Err(DiskError { kind: DiskErrorKind::Io, message })
        }
        other => panic!("a read answered {other:?}"),
    }
}

impl Surveyor {
    fn new(stream: u32) -> Self {
        let survey = Survey {
            stream,
            segments: Vec::new(),
            records: BTreeMap::new(),
            shards: BTreeMap::new(),
            end: None,
            torn_bytes: 0,
            findings: Vec::new(),
        };
        Self { survey, headers: Vec::new(), frames: Vec::new(), headless: BTreeMap::new() }
    }

    /// Something acknowledged is lost. The first finding at a place stays.
    fn note(&mut self, file: &DiskPath, offset: u64, seq: FrameSeq, shards: Vec<ShardId>, what: &str) {
        let is_known = |known: &Finding| known.file == *file && known.offset == offset && known.is_loss;
        if self.survey.findings.iter().any(is_known) {
            return;
        }
        let named = || self.headless.get(&(file.clone(), offset)).cloned().unwrap_or_default();
        let shards = if shards.is_empty() { named() } else { shards };
        let (file, what) = (file.clone(), what.to_owned());
        self.survey.findings.push(Finding { file, offset, seq, shards, what, is_loss: true });
    }

    /// Finds every sound frame header of a segment, and checks the frames and the header copies.
    fn walk(&mut self, file: SegmentFile, salt: u64, bytes: &[u8]) {
        let HeaderCopies { header, sound: copies, .. } = read_header(&file, bytes).unwrap_or_else(|what| {
            self.note(&file.path, 0, 0, Vec::new(), &later(&what));
            HeaderCopies { sound: [true; 2], ..HeaderCopies::default() }
        });
        let first = self.frames.len();
        let (mut offset, mut expected) = (FRAMES_AT, FRAMES_AT);
        while let Some(rest) = bytes.get(offset as usize..).filter(|rest| rest.len() >= BLOCK) {
            let found = parse_frame_header(salt, offset, rest).filter(|found| found.segment == file.id);
            if let Some(header) = found {
                let len = header.frame_bytes().min(rest.len() as u64);
                let fault = self.check_frame(&header, salt, offset, &rest[..len as usize]);
                self.frames.push(Frame { header, at: self.survey.segments.len(), offset, fault });
                offset += len;
                expected = offset;
            } else {
                if offset == expected {
                    self.headless.insert((file.path.clone(), offset), claimed_shards(&rest[FRAME_HEAD..]));
                }
                offset += BLOCK as u64;
            }
        }
        self.close_segment(file, header, copies, first);
    }

    /// Checks a frame's records, and counts them.
    fn check_frame(
        &mut self,
        header: &FrameHeader,
        salt: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Option<(String, Vec<ShardId>)> {
        match parse_frame(header, salt, offset, bytes) {
            Ok(items) => {
                for item in items {
                    *self.survey.records.entry(item.kind_name()).or_default() += 1;
                }
                None
            }
            Err(FrameFault { fault: RecordFault::Damaged(what), shards }) => Some((what.to_owned(), shards)),
            Err(FrameFault { fault: RecordFault::Unknown(what), shards }) => Some((later(&what), shards)),
        }
    }

    fn close_segment(
        &mut self,
        file: SegmentFile,
        header: Option<SegmentHeader>,
        copies: [bool; 2],
        first: usize,
    ) {
        let frames = &self.frames[first..];
        let sound = || frames.iter().filter(|frame| frame.fault.is_none());
        self.survey.segments.push(SegmentSurvey {
            boot_epoch: header.as_ref().map(|header| header.boot_epoch),
            frames: sound().count() as u64,
            frame_bytes: sound().map(|frame| frame.header.frame_bytes()).sum(),
            seqs: frames.first().zip(frames.last()).map(|(first, last)| (first.header.seq, last.header.seq)),
            file: file.clone(),
        });
        // Both copies were durable before the first frame was issued; recovery needs one of them.
        for copy in (0..2).filter(|&copy| !copies[copy] && !frames.is_empty() && header.is_some()) {
            self.survey.findings.push(Finding {
                file: file.path.clone(),
                offset: (copy * BLOCK) as u64,
                seq: 0,
                shards: Vec::new(),
                what: format!("header copy {copy} is damaged; the other one serves"),
                is_loss: false,
            });
        }
        self.headers.extend(header);
    }

    /// Which of the bad and missing frames had been acknowledged.
    fn judge(&mut self) {
        let mut frames = std::mem::take(&mut self.frames);
        let oldest = frames.iter().map(|frame| frame.header.oldest).max().unwrap_or(0);
        frames.retain(|frame| frame.header.segment >= oldest && !self.is_discarded(&frame.header));
        frames.sort_by_key(|frame| frame.header.seq);
        for (at, frame) in frames.iter().enumerate() {
            let (seq, rest) = (frame.header.seq, &frames[at + 1..]);
            if let Some((what, shards)) = &frame.fault
                && is_proved(seq, rest)
            {
                let path = self.survey.segments[frame.at].file.path.clone();
                self.note(&path, frame.offset, seq, shards.clone(), what);
            }
            if let Some(next) = rest.first()
                && next.header.seq > seq + 1
                && next.header.boot_epoch == frame.header.boot_epoch
                && is_proved(seq + 1, rest)
            {
                self.note_missing(frame, next);
            }
        }
    }

    /// Whether a later boot has begun before this frame: nobody had been told of it.
    fn is_discarded(&self, frame: &FrameHeader) -> bool {
        let mut later = self.headers.iter().filter(|header| header.boot_epoch > frame.boot_epoch);
        later.any(|header| header.boot_start.is_some_and(|end| end.seq <= frame.seq))
    }

    fn note_missing(&mut self, before: &Frame, after: &Frame) {
        let (first, last) = (before.header.seq + 1, after.header.seq - 1);
        let starts_next = before.at != after.at && after.offset > FRAMES_AT;
        let end = before.offset + before.header.frame_bytes();
        let (at, offset) = if starts_next { (after.at, FRAMES_AT) } else { (before.at, end) };
        let path = self.survey.segments[at].file.path.clone();
        self.note(&path, offset, first, Vec::new(), &format!("frames {first} to {last} are missing"));
    }

    fn take_outcome(&mut self, dir: &DiskPath, outcome: Result<Recovered, RecoveryError>) {
        match outcome {
            Ok(recovered) => {
                self.survey.shards = recovered.shards;
                self.survey.end = Some(recovered.end);
                self.survey.torn_bytes = recovered.torn_bytes;
            }
            Err(RecoveryError::Corruption { file, offset, seq, shards, reason }) => {
                self.note(&file, offset, seq, shards, reason);
            }
            Err(RecoveryError::UnknownFormat { file, offset, what }) => {
                self.note(&file, offset, 0, Vec::new(), &later(&what));
            }
            Err(RecoveryError::WrongStore { file, found: (store, stream), .. }) => {
                let what = format!("it belongs to stream {stream} of store {store:032x}");
                self.note(&file, 0, 0, Vec::new(), &what);
            }
            Err(RecoveryError::Disk(error)) => self.note(dir, 0, 0, Vec::new(), &error.message),
        }
    }
}

/// Whether a later frame proves that this one had been acknowledged.
fn is_proved(seq: FrameSeq, later: &[Frame]) -> bool {
    later.iter().any(|frame| {
        let FrameHeader { seq: later, durable, frames_in_flight, .. } = frame.header;
        durable >= seq || later - seq >= u64::from(frames_in_flight)
    })
}

fn later(what: &str) -> String {
    format!("a later version wrote it: {what}")
}
