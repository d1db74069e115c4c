//! Blocking file calls on a few threads of low priority, for everything but the writes of the log.
//!
//! What may take long has threads of its own, so that nothing waits behind it: a flush, which keeps to a rate, must
//! hold up neither a reader nor the log's next segment. What is written is synced piece by piece: tens of megabytes
//! at once would fill the disk's queue, and the log's writes would wait behind them.
//!
//! Calls of one core run in any order. When the pool is dropped, what was handed in is still done: nothing
//! touches the disk on behalf of a core whose thread has ended.

use super::{direct, sys};
use crate::disk::{
    BLOCK, DirEntry, DiskCall, DiskDone, DiskError, DiskErrorKind, DiskPath, DiskResult, OpId, Recipe,
};
use crate::mailbox::Mailbox;
use bytes::Bytes;
use crossbeam_queue::SegQueue;
use floe_shard::Dump;
use parking_lot::Mutex;
use rkyv::util::AlignedVec;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes that are written at a time.
const PIECE: usize = 1 << 20;

/// What became of a name, for whoever keeps files open.
pub(super) enum NameChange {
    None,
    Renamed { from: DiskPath, to: DiskPath },
    Removed { path: DiskPath },
}

/// A call that came back.
pub(super) struct Done {
    pub(super) op: OpId,
    pub(super) change: NameChange,
    pub(super) result: DiskResult,
}

/// The threads of one core.
pub(super) struct Background {
    /// By [`Kind`].
    queues: Vec<Sender<(OpId, DiskCall)>>,
    done: Arc<SegQueue<Done>>,
    threads: Vec<JoinHandle<()>>,
}

/// What has threads of its own.
#[derive(Clone, Copy)]
enum Kind {
    /// Names, new segments, reads of files.
    File,
    /// Flushes, and dumps of states in memory.
    Save,
    /// Whole dumps for followers, and those from leaders.
    Long,
    /// A state machine's reads.
    Read,
}

impl Kind {
    const ALL: [Self; 4] = [Self::File, Self::Save, Self::Long, Self::Read];

    fn of(call: &DiskCall) -> Self {
        match call {
            DiskCall::Save { is_long: true, .. } | DiskCall::Run { is_long: true, .. } => Self::Long,
            DiskCall::Save { .. } => Self::Save,
            DiskCall::Run { .. } => Self::Read,
            _ => Self::File,
        }
    }

    fn threads(self) -> usize {
        match self {
            Self::File | Self::Long => 1,
            // One flush at a time is what leaves the disk to the log.
            Self::Save => 1,
            Self::Read => 2,
        }
    }
}

impl Background {
    /// Starts the threads. Results wake the core through its mailbox. With `nudge` it is also woken when
    /// nothing has been handed in for so long, for a runtime that may sleep with work to do.
    pub(super) fn start(
        name: &str,
        root: &Path,
        mailbox: &Arc<Mailbox>,
        nudge: Option<Duration>,
    ) -> io::Result<Self> {
        let done = Arc::new(SegQueue::new());
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for kind in Kind::ALL {
            let (jobs, queue) = channel();
            queues.push(jobs);
            let queue = Arc::new(Mutex::new(queue));
            for _ in 0..kind.threads() {
                let disk = Disk { root: root.to_owned() };
                let (queue, done) = (Arc::clone(&queue), Arc::clone(&done));
                let mailbox = Arc::clone(mailbox);
                let thread = std::thread::Builder::new().name(format!("{name}-io{}", threads.len()));
                threads.push(thread.spawn(move || serve(&disk, &queue, &done, &mailbox, nudge))?);
            }
        }
        Ok(Self { queues, done, threads })
    }

    /// Hands a call in.
    pub(super) fn start_call(&self, op: OpId, call: DiskCall) {
        let queue = &self.queues[Kind::of(&call) as usize];
        queue.send((op, call)).expect("the threads end only after the sender is gone, or the process aborts");
    }

    /// Next call that came back.
    pub(super) fn take_done(&self) -> Option<Done> {
        self.done.pop()
    }

    /// Whether something came back.
    pub(super) fn has_done(&self) -> bool {
        !self.done.is_empty()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.queues.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread for file calls panicked");
            }
        }
    }
}

/// A call that panics (a recipe, say) leaves its core waiting for ever: the process must not go on.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("floe: a file call panicked (see above); the process aborts");
            std::process::abort();
        }
    }
}

/// Carries out one call after another.
fn serve(
    disk: &Disk,
    queue: &Mutex<Receiver<(OpId, DiskCall)>>,
    done: &SegQueue<Done>,
    mailbox: &Mailbox,
    nudge: Option<Duration>,
) {
    let _guard = AbortOnPanic;
    if let Err(error) = sys::lower_priority() {
        tracing::debug!(%error, "threads for file calls keep their priority");
    }
    loop {
        let next = match nudge {
            Some(nudge) => queue.lock().recv_timeout(nudge),
            None => queue.lock().recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let (op, call) = match next {
            Ok(call) => call,
            Err(RecvTimeoutError::Timeout) => {
                mailbox.nudge();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let (result, change) = disk.carry_out(call);
        done.push(Done { op, change, result });
        mailbox.wake();
    }
}

/// The kind of an error of the system's.
pub(super) fn error_kind(error: &io::Error) -> DiskErrorKind {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskErrorKind::Full,
        Some(libc::EROFS | libc::EACCES | libc::EPERM) => DiskErrorKind::ReadOnly,
        Some(libc::ENOENT) => DiskErrorKind::NotFound,
        _ => DiskErrorKind::Io,
    }
}

/// An error that names the operation and the file.
pub(super) fn disk_error(what: &str, path: &Path, error: &io::Error) -> DiskError {
    DiskError { kind: error_kind(error), message: format!("{what} {}: {error}", path.display()) }
}

/// Makes a directory and what is missing above it; each one made is synced into its parent.
pub(super) fn make_dirs(dir: &Path) -> Result<(), DiskError> {
    let mut missing = Vec::new();
    let mut at = dir;
    while !at.is_dir() {
        missing.push(at);
        match at.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => at = parent,
            _ => break,
        }
    }
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Ok(()) => {}
            // Another core was faster; the sync below is then needed all the same.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) => return Err(disk_error("creating directory", dir, &error)),
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync_dir(parent.unwrap_or(Path::new(".")))?;
    }
    Ok(())
}

fn sync_dir(dir: &Path) -> Result<(), DiskError> {
    let synced = File::open(dir).and_then(|file| file.sync_all());
    synced.map_err(|error| disk_error("syncing directory", dir, &error))
}

struct Disk {
    root: PathBuf,
}

impl Disk {
    fn path(&self, path: &DiskPath) -> PathBuf {
        self.root.join(&**path)
    }

    fn carry_out(&self, call: DiskCall) -> (DiskResult, NameChange) {
        let done = |result: Result<(), DiskError>| (result.map(|()| DiskDone::Done), NameChange::None);
        match call {
            DiskCall::List { dir } => (list(&self.path(&dir)).map(DiskDone::Listed), NameChange::None),
            DiskCall::Create { path, len } => done(create(&self.path(&path), len)),
            DiskCall::Rename { from, to } => {
                let (old, new) = (self.path(&from), self.path(&to));
                let what = || format!("renaming {} to", old.display());
                let result = fs::rename(&old, &new).map_err(|e| disk_error(&what(), &new, &e));
                (result.map(|()| DiskDone::Done), NameChange::Renamed { from, to })
            }
            DiskCall::Remove { path } => {
                (remove(&self.path(&path)).map(|()| DiskDone::Done), NameChange::Removed { path })
            }
            DiskCall::SyncDir { dir } => done(sync_dir(&self.path(&dir))),
            DiskCall::Read { path, offset, len } => {
                (read(&self.path(&path), offset, len).map(DiskDone::Read), NameChange::None)
            }
            DiskCall::Write { path, offset, data } => done(write(&self.path(&path), offset, &*data)),
            DiskCall::Save { path, data, .. } => {
                (save(&self.path(&path), data).map(DiskDone::Saved), NameChange::None)
            }
            DiskCall::Run { job, .. } => {
                let failed = |message| DiskError { kind: DiskErrorKind::Io, message };
                (job().map(DiskDone::Ran).map_err(failed), NameChange::None)
            }
        }
    }
}

fn list(dir: &Path) -> Result<Vec<DirEntry>, DiskError> {
    let fail = |error: io::Error| disk_error("listing", dir, &error);
    let found = match fs::read_dir(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut entries = Vec::new();
    for entry in found {
        let entry = entry.map_err(fail)?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // Removed since the directory was read (another core's trial file, say): it isn't there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(fail(error)),
        };
        let is_dir = metadata.is_dir();
        entries.push(DirEntry {
            name: entry.file_name().to_string_lossy().into_owned(),
            len: if is_dir { 0 } else { metadata.len() },
            is_dir,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn make_parent(path: &Path) -> Result<(), DiskError> {
    path.parent().map_or(Ok(()), make_dirs)
}

fn create(path: &Path, len: u64) -> Result<(), DiskError> {
    make_parent(path)?;
    let created = File::create(path).and_then(|file| {
        zero(path, len)?;
        file.sync_data()
    });
    created.map_err(|error: io::Error| disk_error("creating", path, &error))
}

/// Writes zeros past the page cache, where the file system can: they would be copied there for nothing, and
/// the log's direct writes would have to drop them from it again.
fn zero(path: &Path, len: u64) -> io::Result<()> {
    let piece_len = PIECE.min(usize::try_from(len).unwrap_or(PIECE));
    let mut zeros = AlignedVec::<BLOCK>::with_capacity(piece_len);
    zeros.resize(piece_len, 0);
    let mut options = OpenOptions::new();
    options.write(true);
    let mut file = match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if direct::is_refusal(&error) => options.open(path)?,
        opened => opened?,
    };
    let mut at = 0;
    while at < len {
        let piece = &zeros[..(len - at).min(PIECE as u64) as usize];
        match file.write_all_at(piece, at) {
            // Opened, but not written to in this way.
            Err(error) if at == 0 && direct::is_refusal(&error) => file = options.open(path)?,
            written => {
                written.and_then(|()| file.sync_data())?;
                at += piece.len() as u64;
            }
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(disk_error("removing", path, &error)),
        _ => Ok(()),
    }
}

fn read(path: &Path, offset: u64, len: usize) -> Result<Bytes, DiskError> {
    let fail = |error: io::Error| disk_error(&format!("reading at {offset} of"), path, &error);
    let file = File::open(path).map_err(fail)?;
    let left = file.metadata().map_err(fail)?.len().saturating_sub(offset);
    let len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
    let mut buffer = AlignedVec::<16>::with_capacity(len);
    buffer.resize(len, 0);
    let mut have = 0;
    while have < len {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(Bytes::from_owner(buffer).slice(..have))
}

/// For file systems without O_DIRECT.
fn write(path: &Path, offset: u64, data: &dyn Recipe) -> Result<(), DiskError> {
    let mut bytes = vec![0; data.len()];
    data.encode_into(&mut bytes);
    let file = OpenOptions::new().write(true).open(path);
    let written = file.and_then(|file| {
        file.write_all_at(&bytes, offset)?;
        file.sync_data()
    });
    written.map_err(|error| disk_error(&format!("writing at {offset} of"), path, &error))
}

fn save(path: &Path, data: Box<dyn Dump>) -> Result<u64, DiskError> {
    make_parent(path)?;
    let saved = File::create(path).and_then(|file| {
        let mut out = BufWriter::with_capacity(PIECE, Synced { file, unsynced: 0, len: 0 });
        data.write(&mut out)?;
        let Synced { file, len, .. } = out.into_inner()?;
        file.sync_all().map(|()| len)
    });
    saved.map_err(|error| disk_error("saving", path, &error))
}

/// A file that is synced piece by piece, the last one apart.
struct Synced {
    file: File,
    unsynced: usize,
    len: u64,
}

impl Write for Synced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unsynced >= PIECE {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        let written = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.unsynced += written;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::OpOwner;
    use floe_shard::state_machine::JobDone;

    /// Saved only when the other end says so.
    struct Waits(Receiver<()>);

    impl Dump for Waits {
        fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
            self.0.recv().map_err(io::Error::other)?;
            (0..2 * PIECE + 1).try_for_each(|_| out.write_all(&[7]))
        }
    }

    fn next_done(background: &Background) -> Option<(u64, DiskResult)> {
        let until = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            match background.take_done() {
                Some(done) => return Some((done.op.number, done.result)),
                None if std::time::Instant::now() > until => return None,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    #[test]
    fn nothing_waits_behind_flushes_and_no_flush_is_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let mailbox = Arc::new(Mailbox::new(1));
        let background = Background::start("test", dir.path(), &mailbox, None).unwrap();
        let op = |number| OpId { owner: OpOwner::Store, number };
        let (goes_on, waits) = [channel(), channel(), channel()].into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
        for (number, waits) in (0..).zip(waits) {
            let (path, data) = (format!("save{number}").into(), Box::new(Waits(waits)));
            background.start_call(op(number), DiskCall::Save { path, data, is_long: number == 0 });
        }
        background.start_call(op(10), DiskCall::Create { path: "segment".into(), len: 3 * PIECE as u64 });
        assert_eq!(next_done(&background), Some((10, Ok(DiskDone::Done))));
        let job = Box::new(|| Ok(JobDone::Done));
        background.start_call(op(11), DiskCall::Run { job, is_long: false });
        assert_eq!(next_done(&background), Some((11, Ok(DiskDone::Ran(JobDone::Done)))));
        // The others don't wait for the first one, which takes long.
        let mut in_turns: Vec<_> = (0..).zip(goes_on).collect();
        in_turns.rotate_left(1);
        for (number, goes_on) in in_turns {
            goes_on.send(()).unwrap();
            let len = 2 * PIECE as u64 + 1;
            assert_eq!(next_done(&background), Some((number, Ok(DiskDone::Saved(len)))));
            let saved = fs::read(dir.path().join(format!("save{number}"))).unwrap();
            assert_eq!(saved, vec![7; len as usize]);
        }
        assert_eq!(fs::read(dir.path().join("segment")).unwrap(), vec![0; 3 * PIECE]);
    }
}
