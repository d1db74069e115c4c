//! Where a run's data lies.

use crate::error::BenchError;
use std::path::Path;
use tempfile::TempDir;

/// A directory of its own; removed at the end, unless it is to be kept or is evidence.
pub struct Home(TempDir);

impl Home {
    /// Below `dir`, or ./target, or . if there is none; kept also after a failure, if so wanted.
    pub fn new(dir: Option<&Path>, keep: bool) -> Result<Self, BenchError> {
        let base = match dir {
            Some(dir) => dir,
            None if Path::new("target").is_dir() => Path::new("target"),
            None => Path::new("."),
        };
        std::fs::create_dir_all(base).map_err(BenchError::file(base))?;
        let mut temporary = tempfile::Builder::new()
            .prefix("floe-bench-")
            .tempdir_in(base)
            .map_err(BenchError::file(base))?;
        temporary.disable_cleanup(keep);
        Ok(Self(temporary))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The end of the run.
    pub fn close(self, keep: bool) {
        if keep {
            eprintln!("{:>14}  {}", "data kept", self.0.keep().display());
            return;
        }
        // A failure to remove is worth a line, not the figures.
        if let Err(error) = self.0.close() {
            eprintln!("floe-bench: the data stays behind: {error}");
        }
    }
}
