//! Whether an import may go on where an earlier one was cut.
//!
//! What the sidecar file says was true of the cluster that it was written for. If that was begun anew meanwhile, going on
//! would skip millions of rows and say nothing. So the last row before that point is looked up first.

use crate::import::{BYTE_ORDER_MARK, row};
use floe::rows::Shape;
use floe::{Client, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes before the point that are read first; then ever more of them.
const STEP_BYTES: u64 = 64 << 10;
/// Where the longest row and a bad one beside it would be found.
const BACK_BYTES_MAX: u64 = 16 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) as u64;

/// Whether the cluster holds the last row before `offset`; also if no row is found there.
///
/// # Errors
/// The file can't be read, or the cluster doesn't answer.
pub fn is_held(
    client: &Client,
    (file, shape, header): (&File, &Shape, bool),
    offset: u64,
) -> Result<bool, String> {
    let key = last_key(file, shape, header, offset).map_err(|error| format!("reading the file: {error}"))?;
    let Some(key) = key else { return Ok(true) };
    let found = client.get_blocking(key);
    found.map(|found| found.is_some()).map_err(|error| {
        format!("the last row that was imported can't be looked up: {error}\n  the same command tries again")
    })
}

/// The key of the last line before `offset` that is a row.
fn last_key(file: &File, shape: &Shape, header: bool, offset: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut len = STEP_BYTES;
    loop {
        let from = offset.saturating_sub(len);
        let mut text = vec![0; (offset - from) as usize];
        file.read_exact_at(&mut text, from)?;
        let sound = if from == 0 { text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text) } else { &text };
        let mut lines: Vec<&[u8]> = sound.split(|&byte| byte == b'\n').collect();
        // A line that is cut, or no row.
        if from > 0 || header {
            lines.remove(0);
        }
        let is_row = |line: &&[u8]| !matches!(line, [] | [b'\r']);
        let key = lines.into_iter().rev().filter(is_row).find_map(|line| row(shape, line).ok());
        if let Some((key, _)) = key {
            return Ok(Some(key.into_owned()));
        }
        if from == 0 || len >= BACK_BYTES_MAX {
            return Ok(None);
        }
        len *= 2;
    }
}
