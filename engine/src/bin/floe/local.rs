//! `floe local`: a cluster on one machine, to try things with. Each node is a process, so that it can be killed.

use crate::signals::{StopSignals, terminate};
use clap::{Args, ValueEnum};
use floe::config_file;
use floe::{Config, LsmSettings, Member, NodeId, Store};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// Runs a cluster on this machine, each node a process of its own, until Ctrl-C.
///
/// Node N keeps its data in DIR/node-N and its settings in DIR/node-N.toml. Files that are there are used as they
/// are, so a cluster comes back with its data when it is started again in the same directory. A node that
/// ends isn't restarted: kill one, see what happens, and start it again with the command that is printed.
#[derive(Args)]
#[command(after_help = "Example:\n  floe local --nodes 3 --dir /tmp/ice")]
pub struct LocalArgs {
    /// How many nodes: 1 to 7.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,
    /// Where the data goes; made if it is missing.
    #[arg(long)]
    dir: PathBuf,
    /// Port of node 1 on 127.0.0.1; the others follow. Below 32768: above, the system takes ports for itself.
    #[arg(long, default_value_t = 7401, value_parser = clap::value_parser!(u16).range(1..=32_000))]
    port: u16,
    /// Shards into which a new cluster splits its keys, evenly by their first two bytes.
    #[arg(long, default_value_t = 12)]
    shards: u32,
    /// Threads per node that own shards.
    #[arg(long, default_value_t = 1)]
    cores: u16,
    /// Where a new cluster's state lies: in tables on disk, or in memory and dumped from time to time.
    #[arg(long, value_enum, default_value_t = StoreKind::Lsm)]
    store: StoreKind,
}

#[derive(Clone, Copy, ValueEnum)]
enum StoreKind {
    Lsm,
    Memory,
}

enum Event {
    Said(String),
    Ended { node: u16, status: String },
    Asked(&'static str),
}

/// Runs it to its end.
pub fn run(args: &LocalArgs) -> Result<(), String> {
    let signals = StopSignals::block().map_err(|error| format!("can't wait for signals: {error}"))?;
    fs::create_dir_all(&args.dir)
        .map_err(|error| format!("can't make {}: {error}; choose another --dir", args.dir.display()))?;
    let dir = fs::canonicalize(&args.dir).map_err(|error| format!("{}: {error}", args.dir.display()))?;
    let files: Vec<_> = (1..=args.nodes).map(|node| config_of(args, &dir, node)).collect::<Result<_, _>>()?;
    let addresses = addresses(&files)?;
    check_ports(&addresses)?;
    crate::print(&greeting(&addresses))?;
    let (events, arrived) = channel();
    let mut nodes = Vec::new();
    for (number, file) in (1..).zip(&files) {
        match Node::start(number, file, &events) {
            Ok(node) => nodes.push(node),
            Err(reason) => {
                nodes.iter().for_each(Node::stop);
                return Err(reason);
            }
        }
    }
    spawn("floe-signals", move || {
        while let Ok(signal) = signals.wait() {
            // The receiver goes when all nodes have ended.
            let _ = events.send(Event::Asked(signal));
        }
    })?;
    follow(&nodes, &files, &arrived)
}

/// Writes a node's settings, unless they are there.
fn config_of(args: &LocalArgs, dir: &Path, node: u16) -> Result<PathBuf, String> {
    let file = dir.join(format!("node-{node}.toml"));
    if file.exists() {
        let config = config_file::read(&file)?;
        if config.members.len() != usize::from(args.nodes) {
            return Err(format!(
                "{} is of a cluster of {} nodes: use --nodes {}, or another --dir",
                file.display(),
                config.members.len(),
                config.members.len()
            ));
        }
        return Ok(file);
    }
    let member = |number: u16| Member {
        node: NodeId(u64::from(number)),
        address: format!("127.0.0.1:{}", args.port + number - 1),
    };
    let members = (1..=args.nodes).map(member).collect();
    let mut config = Config::member(dir.join(format!("node-{node}")), NodeId(u64::from(node)), members);
    (config.shards, config.cores) = (args.shards, args.cores);
    config.store = match args.store {
        StoreKind::Lsm => Store::Lsm(LsmSettings::default()),
        StoreKind::Memory => Store::Memory,
    };
    config.validate().map_err(|error| error.to_string())?;
    fs::write(&file, config_file::explain(&config))
        .map_err(|error| format!("can't write {}: {error}", file.display()))?;
    Ok(file)
}

/// Where the nodes are to serve.
fn addresses(files: &[PathBuf]) -> Result<Vec<String>, String> {
    let address = |(number, file): (usize, &PathBuf)| {
        let config = config_file::read(file)?;
        config.listen_address().map(str::to_owned).ok_or_else(|| format!("node {number} listens nowhere"))
    };
    (1..).zip(files).map(address).collect()
}

/// Before anybody is told to talk to whoever serves there.
fn check_ports(addresses: &[String]) -> Result<(), String> {
    for address in addresses {
        TcpListener::bind(address).map_err(|error| {
            format!("can't listen on {address}: {error}; stop what serves there, or choose another --port and a new --dir")
        })?;
    }
    Ok(())
}

fn greeting(addresses: &[String]) -> String {
    let (nodes, addresses) = (addresses.len(), addresses.join(","));
    format!(
        "{nodes} nodes are starting. Ctrl-C stops all of them. In another terminal:\n  \
         export FLOE_ENDPOINTS={addresses}\n  floe put greeting hello\n  floe get greeting\n  floe status --watch\n"
    )
}

struct Node {
    process: u32,
}

impl Node {
    /// Starts a node and two threads that wait for what it says and for its end.
    fn start(number: u16, file: &Path, events: &Sender<Event>) -> Result<Self, String> {
        let fail = |error: std::io::Error| format!("can't start node {number}: {error}");
        let floe = std::env::current_exe().map_err(fail)?;
        let log_path = file.with_extension("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path).map_err(fail)?;
        let mut command = Command::new(floe);
        command.arg("node").arg("--until-stdin-ends").arg("--config").arg(file);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().map_err(fail)?;
        let process = child.id();
        let events = events.clone();
        let waits = move || {
            relay(child.stdout.take(), &events);
            let status = end_of(&mut child, &log_path);
            let _ = events.send(Event::Ended { node: number, status });
        };
        spawn("floe-node", waits)?;
        Ok(Self { process })
    }

    fn stop(&self) {
        // An error means that it has ended.
        let _ = terminate(self.process);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = thread::Builder::new().name(name.into()).spawn(work);
    thread.map(drop).map_err(|error| format!("can't start a thread: {error}"))
}

fn relay(said: Option<impl Read>, events: &Sender<Event>) {
    let Some(said) = said else { return };
    for line in BufReader::new(said).lines().map_while(Result::ok) {
        let _ = events.send(Event::Said(line));
    }
}

/// Waits for a node's end; how it ended, and what its log said last if it failed.
fn end_of(child: &mut Child, log: &Path) -> String {
    match child.wait() {
        Ok(status) if status.success() => String::new(),
        Ok(status) => {
            let log_text = fs::read(log).unwrap_or_default();
            let log_text = String::from_utf8_lossy(&log_text);
            let last = log_text.lines().rfind(|line| line.starts_with("floe: ")).unwrap_or_default();
            let reason = if status.code().is_some() { format!(", {last}") } else { String::new() };
            format!("{status}{reason}; its log: {}", log.display())
        }
        Err(error) => error.to_string(),
    }
}

/// Says what happens until every node has ended.
fn follow(nodes: &[Node], files: &[PathBuf], arrived: &Receiver<Event>) -> Result<(), String> {
    let (mut running, mut asked) = (nodes.len(), false);
    while running > 0 {
        match arrived.recv().map_err(|_| "all threads have ended")? {
            Event::Said(line) => crate::print(&format!("{line}\n"))?,
            Event::Asked(_) if asked => {}
            Event::Asked(signal) => {
                asked = true;
                crate::print(&format!("stopping all nodes ({signal})\n"))?;
                nodes.iter().for_each(Node::stop);
            }
            Event::Ended { node, status } => {
                running -= 1;
                if !asked {
                    let file = files[usize::from(node) - 1].display();
                    let again = format!("it isn't restarted; start it again with: floe node --config {file}");
                    crate::print(&format!("node {node} has ended: {status}\n  {again}\n"))?;
                }
            }
        }
    }
    if asked { Ok(()) } else { Err("every node has ended".into()) }
}
