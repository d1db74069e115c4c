//! `floe import`: a file's rows into a cluster, many at once, and on from where it was cut.
//!
//! Rows are batched per shard (`lanes.rs`), in which those of a key keep the order of the file: the last one wins. They are
//! acknowledged in any order. What is remembered in the sidecar file is the longest beginning of the file of which
//! every row was acknowledged (or is bad, and counted): nothing after it counts as imported.

use crate::cluster::Cluster;
use crate::lanes::{GivenUp, Lanes};
use crate::resume::is_held;
use clap::Args;
use floe::rows::{Format, Row, Shape};
use floe::{CommandError, KEY_BYTES_MAX, ShardId, VALUE_BYTES_MAX};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the sidecar file is written.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Lines whose fate isn't known, at the most: bad ones and empty ones pile up behind one that waits.
const LINES_MAX: usize = 1 << 20;
/// Bad rows that are listed in full.
const LISTED_MAX: usize = 20;
/// Longest line that is read as one: the largest row as `floe export` writes it, in which a byte may take six ("\u0001").
const LINE_BYTES_MAX: u64 = 6 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) as u64 + 4096;
/// What some editors begin a text with. It belongs to no row.
pub const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Imports a file, one row per line.
///
/// The key of a row is one of its columns (TSV) or fields (NDJSON), of 1 byte to 16 KiB; its value is another one, or the
/// whole line, of up to 8 MiB. If the import is cut, whatever the reason, the same command goes on after the last row that
/// was acknowledged together with all before it: that is kept in FILE.floe-import, which is removed at the end. If the
/// cluster doesn't hold that row, because it was begun anew meanwhile, the import begins anew, too, and says so.
///
/// Rows that can't be imported are skipped and listed with their line numbers at the end; the exit status is 1 then.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  floe import --endpoints 127.0.0.1:7401 --key 2 places.tsv\n  floe import --endpoints 127.0.0.1:7401 --key id events.ndjson\n  floe import --endpoints 127.0.0.1:7401 --key key --value value backup.ndjson   # what `floe export` wrote"
)]
pub struct ImportArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// The file.
    file: PathBuf,
    /// Which column (from 1) or field is the key. Equal keys overwrite each other: the last one stays.
    #[arg(long, value_name = "COLUMN")]
    key: String,
    /// Which column or field is the value [default: the whole line].
    #[arg(long, value_name = "COLUMN")]
    value: Option<String>,
    /// How rows stand in the file [default: by the file's ending].
    #[arg(long)]
    format: Option<Format>,
    /// TSV: columns hold \t, \n, \r, \\ and \xNN for what they stand for, as `floe export` writes them.
    #[arg(long)]
    escaped: bool,
    /// The first line is no row.
    #[arg(long)]
    header: bool,
    /// MiB of rows that are not acknowledged: they lie in memory, some of them twice.
    #[arg(long, default_value_t = 16, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=32))]
    window: u32,
    /// Seconds after which a row that can't be written ends the import.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience: u64,
    /// Begin anew, whatever an earlier import has done.
    #[arg(long)]
    restart: bool,
}

/// How far the import is, as the sidecar has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mark {
    /// Bytes of the file whose rows are all acknowledged or bad.
    offset: u64,
    lines: u64,
    rows: u64,
    bad: u64,
}

/// A line that was read, in the order of the file.
struct Line {
    /// Where the file goes on after it.
    end: u64,
    fate: Fate,
}

enum Fate {
    /// It is not a row.
    Nothing,
    /// It can't be a row: why.
    Bad(String),
    Awaited(ShardId),
    Written,
}

pub fn run(args: ImportArgs) -> Result<(), String> {
    let name = args.file.display();
    let (file, len) = open(&args.file)?;
    let shape = Shape {
        format: args.format.or_else(|| Format::of_file(&args.file)).ok_or_else(|| {
            format!("is {} TSV or NDJSON? Say --format tsv or --format ndjson", args.file.display())
        })?,
        key: args.key.clone(),
        value: args.value.clone(),
        escaped: args.escaped,
    };
    shape.check()?;
    let sidecar = Sidecar::new(&args, &shape);
    let client = args.cluster.client()?;
    let mut mark = if args.restart { Mark::default() } else { sidecar.load(len)? };
    if mark.offset > 0 {
        if is_held(&client, (&file, &shape, args.header), mark.offset)? {
            eprintln!("going on after line {} of {name}, where an earlier import was cut", mark.lines);
        } else {
            eprintln!(
                "beginning anew: an earlier import came to line {} of {name}, but the last row before it isn't in this cluster",
                mark.lines
            );
            mark = Mark::default();
        }
    }
    let mut import = Import {
        lanes: Lanes::new(client, Duration::from_secs(args.patience)),
        window_bytes: (args.window as usize) << 20,
        mark,
        lines: VecDeque::new(),
        listed: Vec::new(),
        bar: bar(len, mark.offset),
        sidecar,
        saved: Instant::now(),
    };
    let begun = Instant::now();
    let done = import.all(file, &shape, args.header);
    import.bar.finish_and_clear();
    import.report(&args.file, begun.elapsed(), len);
    if let Err(reason) = done {
        import.sidecar.save(&import.mark)?;
        return Err(format!("{reason}\n  the same command goes on after line {}", import.mark.lines));
    }
    import.sidecar.remove()?;
    match import.mark.bad {
        0 => Ok(()),
        bad => Err(format!("{bad} lines of {name} were not imported: mend them and import them again")),
    }
}

/// The file and its length.
fn open(path: &Path) -> Result<(File, u64), String> {
    let name = path.display();
    let no_file = || {
        format!(
            "{name} is no regular file, in which an import could go on where it was cut: write the rows into one first"
        )
    };
    if path == Path::new("-") {
        return Err(no_file());
    }
    let file = File::open(path).map_err(|error| format!("can't open {name}: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("can't read {name}: {error}"))?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err(no_file()) }
}

fn bar(len: u64, from: u64) -> ProgressBar {
    let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
    let style = ProgressStyle::with_template(style).expect("a constant that was tried");
    let bar = ProgressBar::new(len).with_style(style);
    bar.set_position(from);
    bar.reset_eta();
    bar
}

struct Import {
    lanes: Lanes,
    window_bytes: usize,
    mark: Mark,
    /// Those after the mark.
    lines: VecDeque<Line>,
    /// Line numbers and reasons of the first bad rows.
    listed: Vec<(u64, String)>,
    bar: ProgressBar,
    sidecar: Sidecar,
    saved: Instant,
}

impl Import {
    fn all(&mut self, file: File, shape: &Shape, header: bool) -> Result<(), String> {
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let fail = |error: std::io::Error| format!("reading the file: {error}");
        reader.seek(SeekFrom::Start(self.mark.offset)).map_err(fail)?;
        let (mut offset, mut number) = (self.mark.offset, self.mark.lines);
        let mut line = Vec::new();
        loop {
            line.clear();
            let taken = std::io::Read::take(&mut reader, LINE_BYTES_MAX)
                .read_until(b'\n', &mut line)
                .map_err(fail)?;
            if taken == 0 {
                break;
            }
            offset += taken as u64;
            if taken as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n') {
                return Err(format!(
                    "line {} is longer than any row can be ({LINE_BYTES_MAX} bytes)",
                    number + 1
                ));
            }
            number += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
            }
            if number == 1 && line.starts_with(BYTE_ORDER_MARK) {
                line.drain(..BYTE_ORDER_MARK.len());
            }
            let is_none = matches!(line[..], [] | [b'\r']) || (header && number == 1);
            let row = (!is_none).then(|| row(shape, &line));
            self.take(offset, row)?;
        }
        while self.finish_first()? {}
        Ok(())
    }

    /// A line that ends at `end`: a row, a bad one, or none. Waits while too much is under way.
    fn take(&mut self, end: u64, row: Option<Result<Row<'_>, String>>) -> Result<(), String> {
        let number = self.mark.lines + self.lines.len() as u64 + 1;
        let fate = match row {
            None => Fate::Nothing,
            Some(Err(reason)) => Fate::Bad(reason),
            Some(Ok((key, value))) => Fate::Awaited(self.lanes.add(number, &key, &value).map_err(given_up)?),
        };
        self.lines.push_back(Line { end, fate });
        self.note_written()?;
        while self.lanes.bytes() > self.window_bytes || self.lines.len() > LINES_MAX {
            self.finish_first()?;
        }
        Ok(())
    }

    /// Waits for the oldest line's lane, if its fate isn't known; false if there is no line.
    fn finish_first(&mut self) -> Result<bool, String> {
        let Some(first) = self.lines.front() else { return Ok(false) };
        if let Fate::Awaited(shard) = first.fate {
            self.lanes.await_lane(shard).map_err(given_up)?;
        }
        self.note_written()?;
        Ok(true)
    }

    /// Moves the mark beyond all lines whose fate is known.
    fn note_written(&mut self) -> Result<(), String> {
        for number in self.lanes.take_done() {
            self.lines[(number - self.mark.lines - 1) as usize].fate = Fate::Written;
        }
        let before = self.mark.offset;
        while self.lines.front().is_some_and(|line| !matches!(line.fate, Fate::Awaited(_))) {
            let Some(Line { end, fate }) = self.lines.pop_front() else { break };
            (self.mark.offset, self.mark.lines) = (end, self.mark.lines + 1);
            match fate {
                Fate::Bad(reason) => self.bad(self.mark.lines, reason),
                Fate::Written => self.mark.rows += 1,
                Fate::Nothing | Fate::Awaited(_) => {}
            }
        }
        if self.mark.offset > before { self.note_progress() } else { Ok(()) }
    }

    fn note_progress(&mut self) -> Result<(), String> {
        if self.saved.elapsed() >= SAVE_EVERY {
            self.saved = Instant::now();
            self.sidecar.save(&self.mark)?;
            let message = match self.lanes.take_trouble() {
                Some(trouble) => format!("tried again: {trouble}"),
                None => format!("{} rows", self.mark.rows),
            };
            self.bar.set_message(message);
        }
        self.bar.set_position(self.mark.offset);
        Ok(())
    }

    fn bad(&mut self, line: u64, reason: String) {
        self.mark.bad += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push((line, reason));
        }
    }

    fn report(&self, file: &Path, took: Duration, len: u64) {
        let Mark { offset, lines, rows, bad } = self.mark;
        let seconds = took.as_secs_f64();
        eprintln!(
            "{}: {rows} rows of {lines} lines, {offset} of {len} bytes, {bad} bad, in {seconds:.1} s",
            file.display()
        );
        for (line, reason) in &self.listed {
            eprintln!("  line {line}: {reason}");
        }
        if bad as usize > self.listed.len() {
            eprintln!("  and {} more", bad as usize - self.listed.len());
        }
    }
}

fn given_up(GivenUp { row, reason }: GivenUp) -> String {
    format!("line {row} can't be written: {reason}")
}

/// Key and value of a line that can be written; or what is wrong with it.
pub fn row<'a>(shape: &Shape, line: &'a [u8]) -> Result<Row<'a>, String> {
    let (key, value) = shape.row(line)?;
    let error = match (key.len(), value.len()) {
        (0, _) => CommandError::EmptyKey,
        (len, _) if len > KEY_BYTES_MAX => CommandError::KeyTooLong(len),
        (_, len) if len > VALUE_BYTES_MAX => CommandError::ValueTooLong(len),
        _ => return Ok((key, value)),
    };
    Err(error.to_string())
}

/// The file beside the imported one that says how far the import is.
struct Sidecar {
    path: PathBuf,
    /// What the import was asked for: another one can't go on from there.
    request: Value,
}

impl Sidecar {
    fn new(args: &ImportArgs, shape: &Shape) -> Self {
        let mut path = args.file.clone().into_os_string();
        path.push(".floe-import");
        let format = match shape.format {
            Format::Tsv => "tsv",
            Format::Ndjson => "ndjson",
        };
        let request = json!({
            "format": format, "key": shape.key, "value": shape.value, "escaped": shape.escaped,
            "header": args.header, "endpoints": args.cluster.endpoints,
        });
        Self { path: path.into(), request }
    }

    /// Where to go on; at the start if there is no sidecar.
    fn load(&self, len: u64) -> Result<Mark, String> {
        let name = self.path.display();
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Mark::default()),
            Err(error) => return Err(format!("can't read {name}: {error}")),
        };
        let found: Value = serde_json::from_slice(&text).unwrap_or_default();
        let number = |field: &str| found["done"][field].as_u64();
        let mark = (|| {
            let (offset, lines) = (number("offset")?, number("lines")?);
            Some(Mark { offset, lines, rows: number("rows")?, bad: number("bad")? })
        })();
        match mark.filter(|mark| mark.offset <= len && found["request"] == self.request) {
            Some(mark) => Ok(mark),
            None => Err(format!(
                "{name} is of an import with other settings, or of another file: --restart begins anew"
            )),
        }
    }

    /// The old or the new one is there whatever happens meanwhile.
    fn save(&self, mark: &Mark) -> Result<(), String> {
        let Mark { offset, lines, rows, bad } = mark;
        let text = json!({
            "request": self.request,
            "done": { "offset": offset, "lines": lines, "rows": rows, "bad": bad },
        });
        let new = self.path.with_extension("floe-import-new");
        std::fs::write(&new, format!("{text}\n"))
            .and_then(|()| std::fs::rename(&new, &self.path))
            .map_err(|error| format!("can't write {}: {error}", self.path.display()))
    }

    fn remove(&self) -> Result<(), String> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("can't remove {}: {error}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe::rows::line;

    #[test]
    fn the_largest_row_of_an_export_is_no_longer_than_a_line_may_be() {
        for byte in [1, b'"', 0xFF] {
            for format in [Format::Tsv, Format::Ndjson] {
                let len = line(format, &[byte; KEY_BYTES_MAX], &vec![byte; VALUE_BYTES_MAX]).len() as u64;
                assert!(len <= LINE_BYTES_MAX, "{format:?} of byte {byte}: {len} > {LINE_BYTES_MAX}");
            }
        }
    }
}
