//! Writes of the log: direct, durable when they complete, several in flight; and the files kept open for them.

use super::super::background::{NameChange, disk_error, make_dirs};
use super::super::direct;
use super::uring::{Uring, Work};
use crate::disk::{BLOCK, DiskDone, DiskError, DiskPath, DiskResult, OpId, Recipe};
use rkyv::util::AlignedVec;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

/// Open files that are kept. One that is dropped while in use stays open until that use ends.
const OPEN_MAX: usize = 64;
/// Buffers kept for the next writes: fresh ones cost a page fault per block.
const SPARE_MAX: usize = 8;
/// Bigger buffers are not kept.
const SPARE_BYTES_MAX: usize = 1 << 20;
/// Short writes in a row that are put up with while none of them completes a block.
const STUCK_MAX: usize = 8;

/// A write in flight.
pub(super) struct DiskWrite {
    op: OpId,
    path: DiskPath,
    file: Rc<File>,
    offset: u64,
    buffer: AlignedVec<BLOCK>,
    /// Whole blocks of the buffer that are written.
    done: usize,
    stuck: usize,
}

impl DiskWrite {
    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Where to go on, and with what.
    pub(super) fn rest(&self) -> (u64, &[u8]) {
        (self.offset + self.done as u64, &self.buffer[self.done..])
    }
}

/// The files of one core.
pub(super) struct Files {
    root: PathBuf,
    open: BTreeMap<DiskPath, Rc<File>>,
    spare: Vec<AlignedVec<BLOCK>>,
    writing: usize,
    /// Whether the file system takes O_DIRECT; otherwise the background writes.
    pub(super) direct: bool,
}

impl Files {
    /// Finds out how the data directory can be written to; makes it if it doesn't exist.
    pub(super) fn new(root: PathBuf, core: u16) -> Result<Self, DiskError> {
        make_dirs(&root)?;
        let path = direct::probe_path(&root, core);
        let direct = direct::probe(&path)?.is_direct();
        direct::conclude(&root, &path, direct)?;
        Ok(Self { root, open: BTreeMap::new(), spare: Vec::new(), writing: 0, direct })
    }

    /// Starts to write aligned blocks into an existing file.
    ///
    /// # Errors
    /// If the file can't be opened; the write is over then.
    pub(super) fn write(
        &mut self,
        ring: &mut Uring,
        op: OpId,
        path: DiskPath,
        offset: u64,
        data: &dyn Recipe,
    ) -> Result<(), DiskError> {
        let file = self.file(&path)?;
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(data.len(), 0);
        data.encode_into(&mut buffer);
        self.writing += 1;
        ring.start(Work::Write(DiskWrite { op, path, file, offset, buffer, done: 0, stuck: 0 }));
        Ok(())
    }

    /// A write came back. It is over, or goes on from its last whole block: writes may be short.
    pub(super) fn on_written(
        &mut self,
        ring: &mut Uring,
        mut write: DiskWrite,
        result: io::Result<usize>,
    ) -> Option<(OpId, DiskResult)> {
        let wrote = match result {
            Ok(wrote) => wrote,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Some(self.fail(&write, &error)),
        };
        let blocks = wrote / BLOCK * BLOCK;
        write.done += blocks;
        if write.done == write.buffer.len() {
            self.writing -= 1;
            if self.spare.len() < SPARE_MAX && write.buffer.capacity() <= SPARE_BYTES_MAX {
                self.spare.push(write.buffer);
            }
            return Some((write.op, Ok(DiskDone::Done)));
        }
        write.stuck = if blocks == 0 { write.stuck + 1 } else { 0 };
        if write.stuck > STUCK_MAX {
            let error = io::Error::new(io::ErrorKind::WriteZero, "the device takes no more bytes");
            return Some(self.fail(&write, &error));
        }
        ring.start(Work::Write(write));
        None
    }

    fn fail(&mut self, write: &DiskWrite, error: &io::Error) -> (OpId, DiskResult) {
        self.writing -= 1;
        let what = format!("writing at {} of", write.offset);
        (write.op, Err(disk_error(&what, &self.root.join(&*write.path), error)))
    }

    /// The file, opened if it isn't. A log's files were made by this process: opening one reads no disk.
    fn file(&mut self, path: &DiskPath) -> Result<Rc<File>, DiskError> {
        if let Some(file) = self.open.get(path) {
            return Ok(Rc::clone(file));
        }
        let absolute = self.root.join(&**path);
        let file = direct::open(&absolute).map_err(|error| disk_error("opening", &absolute, &error))?;
        let file = Rc::new(file);
        if self.open.len() >= OPEN_MAX {
            self.open.pop_first();
        }
        self.open.insert(path.clone(), Rc::clone(&file));
        Ok(file)
    }

    /// Follows a rename or removal that has been done.
    pub(super) fn on_name_change(&mut self, change: NameChange) {
        match change {
            NameChange::None => {}
            NameChange::Renamed { from, to } => {
                self.open.remove(&to);
                if let Some(file) = self.open.remove(&from) {
                    self.open.insert(to, file);
                }
            }
            NameChange::Removed { path } => drop(self.open.remove(&path)),
        }
    }

    /// Writes in flight.
    pub(super) fn writing(&self) -> usize {
        self.writing
    }
}
