//! Looks at a node's data directory while no node runs on it, and changes nothing: for `floe wal`.

use crate::boot::{BootRecord, StreamSet, stream_name};
use crate::disk::{DirEntry, DiskCall, DiskDone, DiskError, DiskErrorKind, DiskResult};
use crate::wal::{Finding, Survey, survey};
use bytes::Bytes;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Why a directory can't be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// A node runs on it: what its log holds changes all the while.
    #[error("{} is in use by {holder}; stop that process first", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who holds the lock, as far as it says so itself.
        holder: String,
    },
    /// There is no boot record.
    #[error("{} is no data directory of a node: it has no file node.floe; give what `dir` says in the node's configuration", dir.display())]
    NoNode {
        /// The directory.
        dir: PathBuf,
    },
    /// A file or directory can't be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The boot record, which says whose log this is, can't be used.
    #[error("{}: {reason}; without it the log can't be read", path.display())]
    BootRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A stream's directory can't be listed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What a data directory's logs hold.
#[derive(Clone, Debug)]
pub struct DirectorySurvey {
    /// Whose it is.
    pub record: BootRecord,
    /// Its streams, ascending: those of older core counts first.
    pub streams: Vec<Survey>,
}

impl DirectorySurvey {
    /// Whether nothing acknowledged is lost.
    pub fn is_sound(&self) -> bool {
        self.streams.iter().all(Survey::is_sound)
    }
}

/// Looks at every stream of a node's data directory. Reads all of the log, one segment at a time.
///
/// # Errors
/// A node runs there, it is no node's directory, or something can't be read. Damage within the log is
/// no error: it is what the survey reports.
pub fn survey_directory(dir: &Path) -> Result<DirectorySurvey, OfflineError> {
    let _lock = lock(dir)?;
    let path = dir.join("node.floe");
    let bytes = fs::read(&path).map_err(|source| match is_missing(&source) {
        true => OfflineError::NoNode { dir: dir.to_owned() },
        false => OfflineError::Io { path: path.clone(), source },
    })?;
    let record = BootRecord::decode(&bytes).map_err(|reason| OfflineError::BootRecord { path, reason })?;
    let mut streams = Vec::new();
    for stream in record.sets.iter().flat_map(StreamSet::ids) {
        let wal_dir = format!("wal/{}", stream_name(stream)).into();
        let mut found = survey(&wal_dir, stream, record.store_uuid, &mut |call| read_only(dir, call))?;
        if record.settled && found.segments.is_empty() && record.current().ids().any(|id| id == stream) {
            let what = "the stream is missing: is the right disk mounted?".to_owned();
            let (offset, seq, shards, is_loss) = (0, 0, Vec::new(), true);
            found.findings.push(Finding { file: wal_dir, offset, seq, shards, what, is_loss });
        }
        streams.push(found);
    }
    Ok(DirectorySurvey { record, streams })
}

/// Keeps a node from starting while the directory is read. Its lock file stays as it is.
fn lock(dir: &Path) -> Result<Option<File>, OfflineError> {
    let path = dir.join("LOCK");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(source) => return Err(OfflineError::Io { path, source }),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let holder = if holder.trim().is_empty() { "another process" } else { holder.trim() }.to_owned();
            Err(OfflineError::InUse { dir: dir.to_owned(), holder })
        }
        Err(TryLockError::Error(source)) => Err(OfflineError::Io { path, source }),
    }
}

/// Whether it was no directory of a node that was named, or none at all.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn read_only(root: &Path, call: &DiskCall) -> DiskResult {
    let fail = |path: &str, error: &io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => DiskErrorKind::NotFound,
            _ => DiskErrorKind::Io,
        };
        DiskError { kind, message: format!("{path}: {error}") }
    };
    match call {
        DiskCall::List { dir } => match list(&root.join(&**dir)) {
            Ok(entries) => Ok(DiskDone::Listed(entries)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DiskDone::Listed(Vec::new())),
            Err(error) => Err(fail(dir, &error)),
        },
        DiskCall::Read { path, offset, len } => {
            let bytes = read(&root.join(&**path), *offset, *len);
            bytes.map(DiskDone::Read).map_err(|error| fail(path, &error))
        }
        other => panic!("{other:?} doesn't only read"),
    }
}

fn list(dir: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let (len, is_dir) = (if meta.is_dir() { 0 } else { meta.len() }, meta.is_dir());
        entries.push(DirEntry { name: entry.file_name().to_string_lossy().into_owned(), len, is_dir });
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(entries)
}

fn read(path: &Path, offset: u64, len: usize) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes.into())
}
