//! What all commands that talk to a running cluster have in common, and the four that need little else.

use clap::Args;
use floe::rows::escape;
use floe::{Client, KEY_BYTES_MAX, ReadError, ScanOptions, VALUE_BYTES_MAX, WriteError};
use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

/// Which cluster, and how long to wait for it.
#[derive(Args)]
pub struct Cluster {
    /// Addresses of some of its nodes, separated by commas; the others are found. Needed, here or in the environment.
    #[arg(
        long,
        env = "FLOE_ENDPOINTS",
        value_delimiter = ',',
        value_parser = endpoint,
        value_name = "HOST:PORT,..."
    )]
    pub endpoints: Vec<String>,
    /// Seconds after which a request is given up.
    #[arg(long, default_value_t = 10.0, value_parser = seconds, value_name = "SECONDS")]
    pub timeout: f64,
}

fn endpoint(text: &str) -> Result<String, String> {
    let port =
        text.trim().rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse());
    match port {
        Some(Ok(1..=u16::MAX)) => Ok(text.trim().to_owned()),
        _ => Err("an address is HOST:PORT, as 127.0.0.1:7401, with a port of 1 to 65535".into()),
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "must be 0.001 to 3600 seconds".into())
}

impl Cluster {
    pub fn limit(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }

    /// Where to ask.
    pub fn named(&self) -> Result<&[String], String> {
        if self.endpoints.is_empty() {
            return Err(
                "which cluster? Name some of its nodes: --endpoints HOST:PORT,..., or set FLOE_ENDPOINTS; \
                        `floe local` starts a cluster to try"
                    .into(),
            );
        }
        Ok(&self.endpoints)
    }

    /// Connects.
    pub fn client(&self) -> Result<Client, String> {
        let client = Client::connect(self.named()?).map_err(|error| error.to_string())?;
        Ok(client.with_timeout(self.limit()))
    }
}

/// A failed call's sentence, and where to look if nobody was there to do it.
fn said(error: impl std::fmt::Display, timed_out: bool) -> String {
    let hint = if timed_out { "; `floe status` shows which nodes and leaders are missing" } else { "" };
    format!("{error}{hint}")
}

fn write_failed(error: WriteError) -> String {
    let timed_out = error == WriteError::TimedOut;
    said(error, timed_out)
}

fn read_failed(error: ReadError) -> String {
    let timed_out = error == ReadError::TimedOut;
    said(error, timed_out)
}

// What the help of `put` says.
const _: () = assert!(KEY_BYTES_MAX == 16 << 10 && VALUE_BYTES_MAX == 8 << 20, "change the help, too");

/// Writes a value. Done when a majority of the replicas has it on disk.
#[derive(Args)]
#[command(after_help = "Example:\n  floe put --endpoints 127.0.0.1:7401 greeting hello")]
pub struct PutArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// The key: 1 byte to 16 KiB.
    key: OsString,
    /// The value, up to 8 MiB; `-` reads it from standard input.
    value: OsString,
}

pub fn put(args: PutArgs) -> Result<(), String> {
    let value = if args.value == "-" {
        let mut value = Vec::new();
        std::io::stdin()
            .read_to_end(&mut value)
            .map_err(|error| format!("reading standard input: {error}"))?;
        value
    } else {
        args.value.into_vec()
    };
    let client = args.cluster.client()?;
    client.put_blocking(args.key.into_vec(), value).map(drop).map_err(write_failed)
}

/// Prints a value, with a line end after it. Exit status 1 if there is none.
#[derive(Args)]
#[command(after_help = "Example:\n  floe get --endpoints 127.0.0.1:7401 greeting")]
pub struct GetArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// The key.
    key: OsString,
    /// Print the value's bytes and nothing else.
    #[arg(long)]
    raw: bool,
}

pub fn get(args: GetArgs) -> Result<(), String> {
    let key = args.key.into_vec();
    let found = args.cluster.client()?.get_blocking(&key).map_err(read_failed)?;
    let value = found.ok_or_else(|| format!("there is no key \"{}\"", key.escape_ascii()))?;
    let mut out = value.to_vec();
    if !args.raw {
        out.push(b'\n');
    }
    crate::print_bytes(&out)
}

/// Removes a key. One that isn't there is no mistake.
#[derive(Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// The key.
    key: OsString,
}

pub fn delete(args: DeleteArgs) -> Result<(), String> {
    let client = args.cluster.client()?;
    client.delete_blocking(args.key.into_vec()).map(drop).map_err(write_failed)
}

/// Prints keys and values in order of the keys: one row per line, a tab between.
///
/// Tabs, line ends, backslashes and bytes that are no text are printed as \t, \n, \r, \\ and \xNN. The rows of one
/// shard are one consistent snapshot; shards are not one snapshot together.
#[derive(Args)]
#[command(after_help = "Example:\n  floe scan --endpoints 127.0.0.1:7401 --prefix user/ --limit 10")]
pub struct ScanArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// Only keys that begin with this.
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<OsString>,
    /// First key.
    #[arg(long)]
    start: Option<OsString>,
    /// First key that is not printed any more.
    #[arg(long)]
    end: Option<OsString>,
    /// At most so many rows; 0 = all.
    #[arg(long, default_value_t = 100)]
    limit: usize,
    /// From the last key to the first.
    #[arg(long)]
    reverse: bool,
}

pub fn scan(args: ScanArgs) -> Result<(), String> {
    let bytes = |text: Option<OsString>| text.unwrap_or_default().into_vec();
    let options = match args.prefix {
        Some(prefix) => ScanOptions::prefix(prefix.into_vec()),
        None => ScanOptions::range(bytes(args.start), bytes(args.end)),
    };
    let options = ScanOptions { limit: args.limit, reverse: args.reverse, ..options };
    let mut pages = args.cluster.client()?.pages(options);
    let mut printed = 0;
    while let Some(page) = pages.next_blocking() {
        let rows = match page {
            // Whoever reads the output may take his time.
            Err(error @ ReadError::SnapshotGone) => {
                eprintln!("{error}");
                continue;
            }
            page => page.map_err(read_failed)?,
        };
        let mut out = Vec::new();
        for row in &rows {
            // Writing to a Vec can't fail.
            let _ = writeln!(out, "{}\t{}", escape(&row.key), escape(&row.value.value));
        }
        crate::print_bytes(&out)?;
        printed += rows.len();
    }
    if args.limit > 0 && printed == args.limit {
        eprintln!("the first {} rows; --limit 0 prints all", args.limit);
    }
    Ok(())
}
