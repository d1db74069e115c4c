//! Writes of the log: O_DIRECT and O_DSYNC through the ring, several in flight; and the files kept open for them.

use super::super::background::{NameChange, disk_error, make_dirs};
use super::super::direct::{self, PROBE_LEN, Verdict};
use crate::disk::{BLOCK, DiskDone, DiskError, DiskErrorKind, DiskPath, DiskResult, Recipe};
use ::glommio::GlommioError;
use ::glommio::io::{DmaBuffer, DmaFile, OpenOptions};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Open files that are kept. One that is dropped while in use stays open until that use ends.
const OPEN_MAX: usize = 64;
/// Short writes in a row that are put up with while none of them completes a block.
const STUCK_MAX: usize = 8;

/// The files of one core.
pub(super) struct Files {
    root: PathBuf,
    open: RefCell<BTreeMap<DiskPath, Rc<DmaFile>>>,
    /// Writes in flight.
    pub(super) writing: Cell<usize>,
    /// Whether the file system takes O_DIRECT; otherwise the background writes.
    pub(super) direct: bool,
}

impl Files {
    /// Finds out how the data directory can be written to; makes it if it doesn't exist. Writes a small
    /// file for that, because the first O_DIRECT file that glommio opens must not be empty.
    pub(super) async fn new(root: PathBuf, core: u16) -> Result<Self, DiskError> {
        make_dirs(&root)?;
        let path = direct::probe_path(&root, core);
        let direct = probe(&path).await?;
        direct::conclude(&root, &path, direct)?;
        Ok(Self { root, open: RefCell::default(), writing: Cell::new(0), direct })
    }

    /// Writes aligned blocks into an existing file; durable when it returns.
    pub(super) async fn write(&self, path: DiskPath, offset: u64, data: Box<dyn Recipe>) -> DiskResult {
        let absolute = self.root.join(&*path);
        let file = self.file(&path, &absolute).await?;
        let mut buffer = file.alloc_dma_buffer(data.len());
        data.encode_into(buffer.as_bytes_mut());
        drop(data);
        write_whole(&file, &absolute, buffer, offset).await?;
        Ok(DiskDone::Done)
    }

    /// The file, opened if it isn't. Two writes may open the same file at once: the later one's is kept.
    async fn file(&self, path: &DiskPath, absolute: &Path) -> Result<Rc<DmaFile>, DiskError> {
        let known = self.open.borrow().get(path).cloned();
        if let Some(file) = known {
            return Ok(file);
        }
        let file = Rc::new(open(absolute).await?);
        let mut kept = self.open.borrow_mut();
        if kept.len() >= OPEN_MAX {
            kept.pop_first();
        }
        kept.insert(path.clone(), Rc::clone(&file));
        Ok(file)
    }

    /// Follows a rename or removal that has been done.
    pub(super) fn on_name_change(&self, change: NameChange) {
        let mut open = self.open.borrow_mut();
        match change {
            NameChange::None => {}
            NameChange::Renamed { from, to } => {
                open.remove(&to);
                if let Some(file) = open.remove(&from) {
                    open.insert(to, file);
                }
            }
            NameChange::Removed { path } => drop(open.remove(&path)),
        }
    }

    /// Closes what is kept open.
    pub(super) async fn close(&self) {
        let open = std::mem::take(&mut *self.open.borrow_mut());
        for (path, file) in open {
            if let Err(error) = file.close_rc().await {
                tracing::warn!(%path, %error, "closing a file");
            }
        }
    }
}

/// Whether direct writes work here, through glommio too.
async fn probe(path: &Path) -> Result<bool, DiskError> {
    match direct::probe(path)? {
        Verdict::Works => match try_ring_write(path).await {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::warn!(error = error.message, "a direct write failed");
                Ok(false)
            }
        },
        verdict => Ok(verdict.is_direct()),
    }
}

async fn try_ring_write(path: &Path) -> Result<(), DiskError> {
    let file = open(path).await?;
    let mut buffer = file.alloc_dma_buffer(PROBE_LEN);
    buffer.as_bytes_mut().fill(0);
    write_whole(&file, path, buffer, 0).await?;
    file.close().await.map_err(|error| ring_error("closing", path, &error))
}

async fn open(path: &Path) -> Result<DmaFile, DiskError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DSYNC);
    let opened = options.dma_open(path).await;
    opened.map_err(|error| ring_error("opening", path, &error))
}

/// Writes may come back short: goes on from the last whole block.
async fn write_whole(file: &DmaFile, path: &Path, buffer: DmaBuffer, offset: u64) -> Result<(), DiskError> {
    let what = || format!("writing at {offset} of");
    let mut buffer = Rc::new(buffer);
    let mut offset = offset;
    let mut stuck = 0;
    loop {
        let wrote = file.write_rc_at(Rc::clone(&buffer), offset).await;
        let wrote = wrote.map_err(|error| ring_error(&what(), path, &error))?;
        if wrote == buffer.len() {
            return Ok(());
        }
        let blocks = wrote / BLOCK * BLOCK;
        stuck = if blocks == 0 { stuck + 1 } else { 0 };
        if stuck > STUCK_MAX {
            let error = io::Error::new(io::ErrorKind::WriteZero, "the device takes no more bytes");
            return Err(disk_error(&what(), path, &error));
        }
        if blocks > 0 {
            let mut rest = file.alloc_dma_buffer(buffer.len() - blocks);
            rest.as_bytes_mut().copy_from_slice(&buffer.as_bytes()[blocks..]);
            buffer = Rc::new(rest);
            offset += blocks as u64;
        }
    }
}

fn ring_error(what: &str, path: &Path, error: &GlommioError<()>) -> DiskError {
    match error.raw_os_error().map(io::Error::from_raw_os_error) {
        Some(error) => disk_error(what, path, &error),
        None => DiskError { kind: DiskErrorKind::Io, message: format!("{what} {}: {error}", path.display()) },
    }
}
