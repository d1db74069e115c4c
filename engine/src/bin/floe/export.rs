//! `floe export`: all rows of a cluster, or a range of them, as lines.

use crate::cluster::Cluster;
use clap::Args;
use floe::rows::{Format, escape, line};
use floe::{Pages, ReadError, Row, ScanOptions};
use indicatif::{ProgressBar, ProgressStyle};
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Exports rows in order of their keys, one per line.
///
/// Each shard is one consistent snapshot, unless reading it takes more than 30 s or the node that holds the snapshot goes:
/// then the rest is of a newer one, and a line says so. Shards are not one snapshot together. If it is cut, it says with
/// which key to go on.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  floe export --endpoints 127.0.0.1:7401 --output backup.ndjson\n  floe export --endpoints 127.0.0.1:7401 --values > places.tsv   # what whole lines were imported from"
)]
pub struct ExportArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// Where to [default: standard output].
    #[arg(long)]
    output: Option<PathBuf>,
    /// How: key and value with \t, \n, \r, \\, \xNN for what would break lines, or {"key": ..., "value": ...}
    /// [default: by the output's ending, or ndjson].
    #[arg(long)]
    format: Option<Format>,
    /// The values alone, as they are: the lines that `floe import` without --value has read.
    #[arg(long, conflicts_with = "format")]
    values: bool,
    /// First key.
    #[arg(long)]
    start: Option<OsString>,
    /// First key that is not exported any more.
    #[arg(long)]
    end: Option<OsString>,
    /// Seconds after which rows that can't be read end the export.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience: u64,
}

pub fn run(args: ExportArgs) -> Result<(), String> {
    let name = args.output.as_ref().map_or("standard output".into(), |path| path.display().to_string());
    let fail = |error: std::io::Error| format!("can't write to {name}: {error}");
    let client = args.cluster.client()?;
    let mut out: Box<dyn Write> = match &args.output {
        Some(path) => Box::new(BufWriter::new(File::create(path).map_err(fail)?)),
        None => Box::new(BufWriter::new(std::io::stdout())),
    };
    let by_ending = args.output.as_deref().and_then(Format::of_file);
    let format = args.format.or(by_ending).unwrap_or(Format::Ndjson);
    let bytes = |text: Option<OsString>| text.unwrap_or_default().into_vec();
    let (mut start, end) = (bytes(args.start), bytes(args.end));
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {pos} rows {per_sec}").expect("a constant that was tried"),
    );
    let mut pages = client.pages(ScanOptions::range(start.clone(), end));
    while let Some(rows) = page(&mut pages, Duration::from_secs(args.patience)) {
        let rows = rows.map_err(|error| format!("{error}\n  go on with --start '{}'", escape(&start)))?;
        for Row { key, value } in &rows {
            if args.values {
                out.write_all(&value.value).and_then(|()| out.write_all(b"\n")).map_err(fail)?;
            } else {
                out.write_all(line(format, key, &value.value).as_bytes()).map_err(fail)?;
            }
        }
        bar.inc(rows.len() as u64);
        if let Some(last) = rows.last() {
            start = [&last.key[..], b"\0"].concat();
        }
    }
    out.flush().map_err(fail)?;
    bar.finish_and_clear();
    eprintln!("{} rows exported to {name}", bar.position());
    Ok(())
}

/// Reads are tried again: they change nothing.
fn page(pages: &mut Pages, patience: Duration) -> Option<Result<Vec<Row>, ReadError>> {
    let since = Instant::now();
    loop {
        match pages.next_blocking()? {
            Err(error @ ReadError::SnapshotGone) => eprintln!("{error}"),
            Err(error) if since.elapsed() < patience && !matches!(error, ReadError::Invalid(_)) => {
                tracing::debug!(%error, "reading a page again");
                std::thread::sleep(RETRY_AFTER);
            }
            outcome => return Some(outcome),
        }
    }
}
