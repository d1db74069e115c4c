//! `floe node`: one node in a process of its own.

use crate::signals::StopSignals;
use clap::Args;
use floe::config_file;
use floe::{Config, Engine, StartReport};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs one node until SIGTERM or Ctrl-C.
///
/// Says on standard output what it recovered once it serves, and logs to standard error (RUST_LOG chooses what:
/// `RUST_LOG=debug`). SIGTERM and SIGINT finish what is under way, for up to a second, and seal the log; kill -9 at any
/// moment loses nothing that was acknowledged, and makes the next start read a little more.
#[derive(Args)]
#[command(
    after_help = "Example:\n  floe config > node.toml   # then set node, dir and members\n  floe node --config node.toml"
)]
pub struct NodeArgs {
    /// Its configuration; `floe config` prints one with the defaults.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Serve `/metrics` (for Prometheus) and `/health` over HTTP on this address.
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Stop as well when standard input ends: with the process that started it.
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

/// Runs it to its end.
pub fn run(args: &NodeArgs) -> Result<(), String> {
    let signals = StopSignals::block().map_err(|error| format!("can't wait for signals: {error}"))?;
    let log = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(log).with_writer(std::io::stderr).init();
    let config = config_file::read(&args.config)?;
    let begun = Instant::now();
    let engine = Engine::open(config.clone()).map_err(|error| error.to_string())?;
    crate::print(&started(&config, engine.start_report(), begun.elapsed()))?;
    let mut engine = Arc::new(engine);
    if let Some(address) = &args.metrics {
        crate::scrape::start(address, config.node, &engine)?;
    }
    if args.until_stdin_ends {
        stop_with_stdin()?;
    }
    let signal = signals.wait().map_err(|error| format!("can't wait for signals: {error}"))?;
    crate::print(&format!("node {}: stopping ({signal})\n", config.node.0))?;
    let engine = loop {
        match Arc::try_unwrap(engine) {
            Ok(engine) => break engine,
            // Somebody is being told the metrics.
            Err(still) => engine = still,
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    engine.shutdown();
    crate::print(&format!("node {}: stopped\n", config.node.0))
}

fn started(config: &Config, report: &StartReport, took: Duration) -> String {
    let StartReport { shards, bytes, torn_bytes, boot_epoch, .. } = report;
    let (node, dir) = (config.node.0, config.dir.display());
    let recovered = match boot_epoch {
        1 => "new directory".into(),
        _ => format!(
            "recovered {shards} shards from {bytes} bytes of log in {:.2} s ({torn_bytes} bytes of a torn end cut off), start number {boot_epoch}",
            took.as_secs_f64()
        ),
    };
    let listen = config.listen_address().unwrap_or("nowhere");
    format!(
        "node {node}: {recovered} ({dir})\nnode {node}: serves on {listen}, process {}\n",
        std::process::id()
    )
}

/// Sends this process SIGTERM once standard input ends.
fn stop_with_stdin() -> Result<(), String> {
    let wait = || {
        // Whatever ends it, nobody is there any more.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        if let Err(error) = crate::signals::terminate(std::process::id()) {
            tracing::error!(%error, "can't stop myself");
        }
    };
    let thread = std::thread::Builder::new().name("floe-stdin".into()).spawn(wait);
    thread.map(drop).map_err(|error| format!("can't start a thread: {error}"))
}
