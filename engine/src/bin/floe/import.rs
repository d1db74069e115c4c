//! `floe import`: a file's rows into a cluster, many at once, and on from where it was cut.
//!
//! Rows are sent in the order of the file and acknowledged in any. What is remembered in the sidecar file is the
//! longest beginning of the file of which every row was acknowledged (or is bad, and counted): nothing after it counts as
//! imported. A row is tried again until it is acknowledged; that is harmless, as it would write the same again. A row
//! whose key is still under way with another value waits for that one, so that the last row of a key wins.

use crate::cluster::Cluster;
use crate::rows::{Format, Shape};
use clap::Args;
use floe::{Call, Client, KEY_BYTES_MAX, VALUE_BYTES_MAX, WriteError};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the sidecar file is written.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// A pause before a row is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Bad rows that are listed in full.
const LISTED_MAX: usize = 20;
/// Longest line that is read as one: the largest row as `floe export` writes it, in which a byte may take six ("\u0001").
const LINE_BYTES_MAX: u64 = 6 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) as u64 + 4096;

/// Imports a file, one row per line.
///
/// The key of a row is one of its columns (TSV) or fields (NDJSON), of 1 byte to 16 KiB; its value is another one, or the
/// whole line, of up to 8 MiB. If the import is cut, whatever the reason, the same command goes on after the last row that
/// was acknowledged together with all before it: that is kept in FILE.floe-import, which is removed at the end.
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
    /// Rows under way at once.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    outstanding: u32,
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

/// A row that was sent.
struct Sent {
    key: Vec<u8>,
    value: Vec<u8>,
    /// Where the file goes on after it.
    end: u64,
    line: u64,
    outcome: Outcome,
}

enum Outcome {
    Awaited(Call<u64, WriteError>),
    Written,
    /// It can't be a row.
    Bad(String),
    /// It may be written or not.
    Failed(WriteError),
}

impl Sent {
    /// Waits for its outcome, if that isn't known.
    fn settle(&mut self) {
        self.outcome = match std::mem::replace(&mut self.outcome, Outcome::Written) {
            Outcome::Awaited(call) => match call.wait() {
                Ok(_) => Outcome::Written,
                Err(WriteError::Invalid(reason)) => Outcome::Bad(reason.to_string()),
                Err(error) => Outcome::Failed(error),
            },
            known => known,
        };
    }
}

pub fn run(args: ImportArgs) -> Result<(), String> {
    let name = args.file.display();
    let shape = Shape {
        format: args.format.map_or_else(|| format_of(&args.file), Ok)?,
        key: args.key.clone(),
        value: args.value.clone(),
        escaped: args.escaped,
    };
    shape.check()?;
    let file = File::open(&args.file).map_err(|error| format!("can't open {name}: {error}"))?;
    let len = file.metadata().map_err(|error| format!("can't read {name}: {error}"))?.len();
    let sidecar = Sidecar::new(&args, &shape);
    let mark = if args.restart { Mark::default() } else { sidecar.load(len)? };
    if mark.offset > 0 {
        eprintln!("going on after line {} of {name}, where an earlier import was cut", mark.lines);
    }
    let mut import = Import {
        client: args.cluster.client()?,
        patience: Duration::from_secs(args.patience),
        window: args.outstanding as usize,
        mark,
        sent: VecDeque::new(),
        keys: BTreeSet::new(),
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

fn format_of(file: &Path) -> Result<Format, String> {
    match file.extension().and_then(|ending| ending.to_str()) {
        Some("tsv") => Ok(Format::Tsv),
        Some("ndjson" | "jsonl") => Ok(Format::Ndjson),
        _ => Err(format!("is {} TSV or NDJSON? Say --format tsv or --format ndjson", file.display())),
    }
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
    client: Client,
    patience: Duration,
    window: usize,
    mark: Mark,
    /// In the order of the file.
    sent: VecDeque<Sent>,
    /// Keys of what is under way.
    keys: BTreeSet<Vec<u8>>,
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
            if line.is_empty() || (header && number == 1) {
                self.skip(offset, number)?;
                continue;
            }
            match shape.row(&line) {
                Ok((key, value)) => self.send(key, value, offset, number)?,
                Err(reason) => {
                    self.bad(number, reason);
                    self.skip(offset, number)?;
                }
            }
        }
        while self.finish_first()? {}
        Ok(())
    }

    fn send(&mut self, key: Vec<u8>, value: Vec<u8>, end: u64, line: u64) -> Result<(), String> {
        while self.sent.len() >= self.window || self.keys.contains(&key) {
            self.finish_first()?;
        }
        let outcome = Outcome::Awaited(self.client.put(&key, &value));
        self.keys.insert(key.clone());
        self.sent.push_back(Sent { key, value, end, line, outcome });
        Ok(())
    }

    /// A line without a row: everything before it must be done before it counts.
    fn skip(&mut self, end: u64, line: u64) -> Result<(), String> {
        while self.finish_first()? {}
        (self.mark.offset, self.mark.lines) = (end, line);
        Ok(())
    }

    /// Waits until the oldest row is done; false if there is none.
    fn finish_first(&mut self) -> Result<bool, String> {
        let (since, mut pause) = (Instant::now(), Duration::ZERO);
        loop {
            let Some(first) = self.sent.front_mut() else { return Ok(false) };
            first.settle();
            let Outcome::Failed(error) = &first.outcome else { break };
            if since.elapsed() > self.patience {
                return Err(format!("line {} can't be written: {error}", first.line));
            }
            self.bar.set_message(format!("waiting: {error}"));
            std::thread::sleep(pause);
            pause = RETRY_AFTER;
            self.send_failed_again();
        }
        let Some(Sent { key, end, line, outcome, .. }) = self.sent.pop_front() else { return Ok(false) };
        self.keys.remove(&key);
        (self.mark.offset, self.mark.lines) = (end, line);
        match outcome {
            Outcome::Bad(reason) => self.bad(line, reason),
            _ => self.mark.rows += 1,
        }
        self.note_progress()?;
        Ok(true)
    }

    /// All at once: when a node dies, everything that was on its way there fails together.
    fn send_failed_again(&mut self) {
        for sent in &mut self.sent {
            sent.settle();
            if let Outcome::Failed(_) = sent.outcome {
                sent.outcome = Outcome::Awaited(self.client.put(&sent.key, &sent.value));
            }
        }
    }

    fn note_progress(&mut self) -> Result<(), String> {
        if self.saved.elapsed() >= SAVE_EVERY {
            self.saved = Instant::now();
            self.sidecar.save(&self.mark)?;
            self.bar.set_message(format!("{} rows", self.mark.rows));
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
    use crate::rows::line;

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
