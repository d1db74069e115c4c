//! `floe` as it is used: processes that are started, asked over sockets, and killed.

use floe_tests::ports::free_ports;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take on the slowest machine; nothing waits so long if it works.
pub const GUARD: Duration = Duration::from_secs(60);

/// The command, built by the same `cargo test --workspace` that built this test.
pub fn floe() -> Command {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap().join("floe");
    assert!(built.exists(), "{} isn't there: cargo build -p floe --bin floe", built.display());
    Command::new(built)
}

pub fn temp_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// So many consecutive ports on which nobody listens, and that no other test gets; the first.
fn consecutive_ports(count: usize) -> u16 {
    let tries = std::iter::repeat_with(|| free_ports(count)).take(1000);
    tries.into_iter().find(|ports| ports.windows(2).all(|pair| pair[1] == pair[0] + 1)).unwrap()[0]
}

/// A child that is killed when the test ends, whichever way.
pub struct Process {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// The next line that it says with this in it.
    pub fn await_line(&mut self, part: &str) -> String {
        let mut heard = String::new();
        loop {
            let mut line = String::new();
            let more = self.said.read_line(&mut line).unwrap();
            assert!(more > 0, "it ended without saying {part:?}, but: {heard}");
            if line.contains(part) {
                return line;
            }
            heard += &line;
        }
    }

    /// Everything that it still says, and how it ends.
    pub fn rest(mut self) -> (String, ExitStatus) {
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        (rest, self.child.wait().unwrap())
    }

    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(process: u32, name: &str) {
    let status = Command::new("kill").args(["-s", name, &process.to_string()]).status().unwrap();
    assert!(status.success(), "signal {name} for {process}");
}

/// What a command says that must come to its end by itself, and says little.
fn output_of(command: &mut Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + GUARD;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("it doesn't end: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn is_running(process: u32) -> bool {
    // A process that has ended and isn't waited for yet is a zombie.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn await_gone(process: u32) {
    let until = Instant::now() + GUARD;
    while is_running(process) {
        assert!(Instant::now() < until, "process {process} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The number after "process" in a line.
fn process_of(line: &str) -> u32 {
    line.trim_end().rsplit(' ').next().unwrap().parse().unwrap()
}

fn config_file(dir: &Path, changes: &str) -> PathBuf {
    let file = dir.join("node.toml");
    std::fs::write(&file, changes).unwrap();
    file
}

fn single(dir: &Path) -> PathBuf {
    let port = free_ports(1)[0];
    let (data, member) =
        (dir.join("data"), format!("[[members]]\nnode = 1\naddress = \"127.0.0.1:{port}\"\n"));
    config_file(dir, &format!("dir = {data:?}\n{member}"))
}

#[test]
fn a_node_says_what_it_recovered_and_stops_cleanly_when_asked() {
    let dir = temp_dir();
    let file = single(dir.path());
    for (signal, says) in [("TERM", "new directory"), ("INT", "recovered 1 shards")] {
        let mut node = Process::start(floe().arg("node").arg("--config").arg(&file));
        node.await_line(says);
        node.await_line("serves on 127.0.0.1:");
        node.signal(signal);
        let (rest, status) = node.rest();
        assert!(status.success() && rest.contains("stopped"), "{status}: {rest}");
    }
    let verify = floe().args(["wal", "verify"]).arg(dir.path().join("data")).output().unwrap();
    assert!(verify.status.success(), "{verify:?}");
}

#[test]
fn mistakes_in_a_configuration_are_answered_with_what_to_do() {
    let dir = temp_dir();
    let error = |file: &Path| {
        let output = floe().arg("node").arg("--config").arg(file).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(error(&dir.path().join("none.toml")).contains("floe config >"));
    let directory = error(dir.path());
    assert!(directory.contains("Is a directory") && !directory.contains("floe config"), "{directory}");
    assert!(error(&config_file(dir.path(), &"# ".repeat(1 << 20))).contains("that is no configuration"));
    assert!(error(&config_file(dir.path(), "colour = 1")).contains("colour"));
    assert!(error(&config_file(dir.path(), "cores = 1")).contains("members"));
    let own = std::fs::read_to_string(single(dir.path())).unwrap();
    assert!(
        error(&config_file(dir.path(), &format!("cores = 0\n{own}"))).contains("cores: must be 1 to 1024")
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listen = \"{}\"\n{own}", taken.local_addr().unwrap());
    assert!(error(&config_file(dir.path(), &listen)).contains("stop the process that serves there"));
}

#[test]
fn nobody_is_told_to_talk_to_whoever_has_a_local_clusters_port() {
    let dir = temp_dir();
    let port = consecutive_ports(3);
    let taken = std::net::TcpListener::bind(("127.0.0.1", port + 1)).unwrap();
    let mut local = floe();
    local.arg("local").arg("--dir").arg(dir.path()).args(["--port", &port.to_string()]);
    let output = output_of(&mut local);
    let said = String::from_utf8(output.stderr).unwrap();
    let named = format!("can't listen on {}", taken.local_addr().unwrap());
    assert!(said.contains(&named) && said.contains("another --port"), "{said}");
    assert!(output.stdout.is_empty() && output.status.code() == Some(1), "{:?}", output.stdout);
}

#[test]
fn a_local_cluster_restarts_nothing_and_ends_as_a_whole() {
    let dir = temp_dir();
    let port = consecutive_ports(3);
    let start = || {
        Process::start(floe().arg("local").arg("--dir").arg(dir.path()).args(["--port", &port.to_string()]))
    };
    let mut local = start();
    local.await_line(&format!("export FLOE_ENDPOINTS=127.0.0.1:{port},"));
    let nodes: Vec<_> = (0..3).map(|_| process_of(&local.await_line("serves on"))).collect();
    signal(nodes[1], "KILL");
    local.await_line("has ended");
    local.await_line("it isn't restarted");
    await_gone(nodes[1]);
    local.signal("TERM");
    let (rest, status) = local.rest();
    assert!(status.success() && rest.matches(": stopped").count() == 2, "{rest}");

    let mut local = start();
    let nodes: Vec<_> = (0..3).map(|_| process_of(&local.await_line("serves on"))).collect();
    local.signal("KILL");
    nodes.into_iter().for_each(await_gone);
}
