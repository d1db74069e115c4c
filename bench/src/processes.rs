//! Nodes as processes of their own, so that they can be killed, and the command `floe` run beside them.

use crate::error::BenchError;
use crate::members::free_ports;
use crate::options::Store;
use crate::usage;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What a node says once it can be asked.
const READY: &str = "serves on";

/// The command `floe`.
pub struct Floe(PathBuf);

impl Floe {
    /// This one, or the one beside this program.
    pub fn find(path: Option<&Path>) -> Result<Self, BenchError> {
        let path = match path {
            Some(path) => path.into(),
            None => std::env::current_exe().map_err(BenchError::file("this program"))?.with_file_name("floe"),
        };
        if path.exists() { Ok(Self(path)) } else { Err(BenchError::NoCommand { path }) }
    }

    /// Runs it to its end; what it says on standard error.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<String, BenchError> {
        let output = Command::new(&self.0).args(arguments).output().map_err(BenchError::file(&self.0))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(said) } else { Err(BenchError::Command { said }) }
    }
}

/// The nodes of a cluster on this machine, numbered from 1, each with its data below one directory.
pub struct Nodes<'a> {
    floe: &'a Floe,
    dir: &'a Path,
    addresses: Vec<String>,
    children: Vec<Option<Child>>,
}

impl<'a> Nodes<'a> {
    /// Writes their settings and starts them.
    pub fn start(
        floe: &'a Floe,
        dir: &'a Path,
        count: usize,
        shards: u32,
        store: Store,
    ) -> Result<Self, BenchError> {
        let addresses = free_ports(count)?.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut nodes = Self { floe, dir, addresses, children: (0..count).map(|_| None).collect() };
        for node in 1..=count {
            let file = nodes.file(node, "toml");
            fs::write(&file, nodes.settings(node, shards, store)).map_err(BenchError::file(&file))?;
        }
        nodes.restart(1..=count)?;
        Ok(nodes)
    }

    fn file(&self, node: usize, ending: &str) -> PathBuf {
        self.dir.join(format!("node-{node}.{ending}"))
    }

    fn settings(&self, node: usize, shards: u32, store: Store) -> String {
        let data = self.data(node);
        let kind = match store {
            Store::Memory => "memory",
            Store::Lsm => "lsm",
        };
        let mut text =
            format!("node = {node}\nshards = {shards}\ndir = {data:?}\n[store]\nkind = \"{kind}\"\n");
        for (number, address) in (1..).zip(&self.addresses) {
            text += &format!("[[members]]\nnode = {number}\naddress = \"{address}\"\n");
        }
        text
    }

    /// Where they listen.
    pub fn endpoints(&self) -> String {
        self.addresses.join(",")
    }

    /// `kill -9`; it is gone when this returns.
    pub fn kill(&mut self, node: usize) -> Result<(), BenchError> {
        let Some(mut child) = self.children[node - 1].take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map(drop).map_err(BenchError::file(&self.floe.0))
    }

    /// Starts these, side by side, and waits until all serve.
    pub fn restart(&mut self, nodes: impl Iterator<Item = usize> + Clone) -> Result<(), BenchError> {
        for node in nodes.clone() {
            let path = self.file(node, "log");
            let log =
                File::options().create(true).append(true).open(&path).map_err(BenchError::file(&path))?;
            let mut command = Command::new(&self.floe.0);
            command.args(["node", "--until-stdin-ends", "--config"]).arg(self.file(node, "toml"));
            let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn();
            self.children[node - 1] = Some(child.map_err(BenchError::file(&self.floe.0))?);
        }
        for node in nodes {
            self.await_ready(node)?;
        }
        Ok(())
    }

    /// The most memory that any of those which run has had, and the most that any node's log takes on disk now.
    pub fn peaks(&self) -> (u64, u64) {
        let memory = self.children.iter().flatten().map(|child| usage::peak_rss_bytes(child.id())).max();
        let logs = (1..=self.children.len()).map(|node| files_bytes(&self.data(node).join("wal"))).max();
        (memory.unwrap_or(0), logs.unwrap_or(0))
    }

    fn data(&self, node: usize) -> PathBuf {
        self.dir.join(format!("node-{node}"))
    }

    fn await_ready(&mut self, node: usize) -> Result<(), BenchError> {
        let said = self.children[node - 1].as_mut().and_then(|child| child.stdout.take());
        let lines = BufReader::new(said.expect("it was just started with a pipe")).lines();
        if lines.map_while(Result::ok).any(|line| line.contains(READY)) {
            return Ok(());
        }
        let log = fs::read_to_string(self.file(node, "log")).unwrap_or_default();
        let last = log.lines().next_back().unwrap_or_default().to_owned();
        Err(BenchError::Node { node, said: last })
    }
}

impl Drop for Nodes<'_> {
    fn drop(&mut self) {
        for node in 1..=self.children.len() {
            if let Err(error) = self.kill(node) {
                eprintln!("floe-bench: node {node} can't be killed: {error}");
            }
        }
    }
}

/// Of all files below a directory; those that go meanwhile count as nothing.
fn files_bytes(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => files_bytes(&entry.path()),
        about => about.map_or(0, |about| about.len()),
    };
    entries.map(bytes).sum()
}
