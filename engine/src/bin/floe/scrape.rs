//! `/metrics` and `/health` over HTTP, for what watches nodes.

use floe::metrics::{TURN_BOUNDS_NS, TurnsCounted};
use floe::{Engine, Metrics, NodeId};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Whoever asks has so long for it; one is served after the other.
const LIMIT: Duration = Duration::from_secs(1);
/// Bytes of a request's head: more is not read.
const HEAD_BYTES_MAX: u64 = 8 << 10;

/// Serves until the process ends.
pub fn start(address: &str, node: NodeId, engine: &Arc<Engine>) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("can't serve metrics on {address}: {error}; check --metrics");
    let listener = TcpListener::bind(address).map_err(fail)?;
    let engine = Arc::downgrade(engine);
    let serve = move || {
        for client in listener.incoming() {
            let Some(engine) = engine.upgrade() else { return };
            if let Err(error) = client.and_then(|client| answer(&client, node, &engine)) {
                tracing::debug!(%error, "somebody who asked for metrics is gone");
            }
        }
    };
    thread::Builder::new().name("floe-metrics".into()).spawn(serve).map(drop).map_err(fail)
}

fn answer(mut client: &TcpStream, node: NodeId, engine: &Engine) -> std::io::Result<()> {
    client.set_read_timeout(Some(LIMIT))?;
    client.set_write_timeout(Some(LIMIT))?;
    let mut head = BufReader::new(client.take(HEAD_BYTES_MAX));
    let mut request = String::new();
    head.read_line(&mut request)?;
    let mut line = String::new();
    // The rest is read, or closing would reset the connection before the answer is there.
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    let (status, body) = match request.split(' ').collect::<Vec<_>>()[..] {
        ["GET", "/metrics", ..] => ("200 OK", metrics(node, engine)),
        ["GET", "/health", ..] => health(engine),
        _ => ("404 Not Found", "GET /metrics or GET /health\n".into()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    client.write_all(head.as_bytes())?;
    client.write_all(body.as_bytes())
}

fn health(engine: &Engine) -> (&'static str, String) {
    let status = engine.status();
    let ended: Vec<_> =
        (0..).zip(&status.cores).filter(|(_, core)| !core.runs).map(|(at, _): (u16, _)| at).collect();
    match ended.is_empty() {
        true => ("200 OK", format!("ok: {} cores, {} replicas\n", status.cores.len(), status.shards.len())),
        false => ("503 Service Unavailable", format!("cores {ended:?} don't run; the node's log says why\n")),
    }
}

/// The text format of Prometheus, version 0.0.4. Numbers that fall again are gauges, other single ones counters.
fn metrics(node: NodeId, engine: &Engine) -> String {
    let (counted, leaders) = (engine.metrics(), engine.leaders());
    let mut out = String::new();
    for (name, about, value) in counted.counters() {
        let kind = if Metrics::is_gauge(about) { "gauge" } else { "counter" };
        describe(&mut out, name, about, kind);
        // Writing to a String can't fail.
        let _ = writeln!(out, "floe_{name} {value}");
    }
    let led = leaders.values().filter(|leader| **leader == Some(node)).count();
    let without = leaders.values().filter(|leader| leader.is_none()).count();
    for (name, about, value) in [
        ("shards_led", "Shards that this node leads.", led),
        ("shards_without_leader", "Shards with a replica here of which no leader is known.", without),
    ] {
        describe(&mut out, name, about, "gauge");
        let _ = writeln!(out, "floe_{name} {value}");
    }
    for (name, about, histogram) in [
        ("request_seconds", "From request to answer, as the cores see it.", &counted.request_latency),
        (
            "wal_write_seconds",
            "From the issue of a write to the log to its completion.",
            &counted.wal_write_latency,
        ),
        (
            "apply_seconds",
            "How long the durable store kept a core with a command, of every eighth.",
            &counted.apply_latency,
        ),
    ] {
        describe(&mut out, name, about, "summary");
        for quantile in [0.5, 0.9, 0.99, 0.999] {
            let seconds = histogram.value_at_quantile(quantile) as f64 / 1e9;
            let _ = writeln!(out, "floe_{name}{{quantile=\"{quantile}\"}} {seconds}");
        }
        let (count, sum) = (histogram.len(), histogram.mean() * histogram.len() as f64 / 1e9);
        let _ = writeln!(out, "floe_{name}_sum {sum}\nfloe_{name}_count {count}");
    }
    turns(&mut out, &counted.turn_lengths);
    out
}

/// The longest turns matter: a core hears nobody meanwhile. So a histogram, in which they can be seen for any time and core.
fn turns(out: &mut String, cores: &[TurnsCounted]) {
    let name = "core_turn_seconds";
    describe(out, name, "How long a core was busy before it looked at what had come in.", "histogram");
    for (core, TurnsCounted { counts, sum_ns, .. }) in cores.iter().enumerate() {
        let mut so_far = 0;
        let bounds = TURN_BOUNDS_NS.iter().map(|&bound| (bound as f64 / 1e9).to_string());
        for (bound, count) in bounds.chain(["+Inf".into()]).zip(counts) {
            so_far += count;
            let _ = writeln!(out, "floe_{name}_bucket{{core=\"{core}\",le=\"{bound}\"}} {so_far}");
        }
        let sum = *sum_ns as f64 / 1e9;
        let _ = writeln!(out, "floe_{name}_sum{{core=\"{core}\"}} {sum}");
        let _ = writeln!(out, "floe_{name}_count{{core=\"{core}\"}} {so_far}");
    }
}

fn describe(out: &mut String, name: &str, about: &str, kind: &str) {
    let _ = writeln!(out, "# HELP floe_{name} {about}\n# TYPE floe_{name} {kind}");
}
