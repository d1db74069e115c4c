//! Whether a data directory takes direct writes, found out by making one.

use super::background::disk_error;
use crate::disk::{BLOCK, DiskError, DiskErrorKind};
use rkyv::util::AlignedVec;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Bytes of the probe file.
pub(super) const PROBE_LEN: usize = 2 * BLOCK;

/// What a probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Direct writes work.
    Works,
    /// The file system refuses them.
    Refused,
    /// The disk is full, which must not keep a node from starting: its log has spare segments.
    TakenForGranted,
}

impl Verdict {
    /// Whether writes are to be direct.
    pub(super) fn is_direct(self) -> bool {
        self != Self::Refused
    }
}

/// Where a core's probe file is.
pub(super) fn probe_path(root: &Path, core: u16) -> PathBuf {
    root.join(format!(".probe-c{core}"))
}

/// Writes the probe file, first in the usual way and then directly. It stays until [`conclude`].
pub(super) fn probe(path: &Path) -> Result<Verdict, DiskError> {
    let verdict = match write(path) {
        Ok(()) => Verdict::Works,
        Err(error) if is_refusal(&error) => Verdict::Refused,
        Err(error) => {
            let error = disk_error("writing", path, &error);
            if error.kind != DiskErrorKind::Full {
                return Err(error);
            }
            tracing::warn!(error = error.message, "the disk is full: direct writes are taken for granted");
            Verdict::TakenForGranted
        }
    };
    Ok(verdict)
}

/// Whether the error says that direct writes don't work here.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

fn write(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&[0; PROBE_LEN])?;
    file.sync_all()?;
    let file = open(path)?;
    let mut block = AlignedVec::<BLOCK>::with_capacity(PROBE_LEN);
    block.resize(PROBE_LEN, 0);
    file.write_all_at(&block, 0)
}

/// Opens an existing file for direct writes that are durable when they return.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)
}

/// Removes the probe file, and says so if writes will be slow.
pub(super) fn conclude(root: &Path, path: &Path, is_direct: bool) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(disk_error("removing", path, &error));
        }
        _ => {}
    }
    if !is_direct {
        tracing::warn!(
            directory = %root.display(),
            "the file system doesn't take O_DIRECT: writes are buffered and synced, which is slower"
        );
    }
    Ok(())
}
