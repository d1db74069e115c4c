//! The command `floe`: runs nodes, and looks after them.

mod cluster;
mod export;
mod import;
mod lanes;
mod local;
mod members;
mod node;
mod resume;
mod scrape;
mod signals;
mod status;
mod wal;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Runs and operates nodes of Floe, a multi-Raft sharded storage engine.
///
/// To try it: `floe local --dir /tmp/ice` starts three nodes on this machine and says how to talk to them.
///
/// Commands that talk to a cluster take `--endpoints`, or the environment's FLOE_ENDPOINTS.
///
/// For real: `floe config > node.toml` writes the settings with their meaning; change `node`, `dir` and `members`,
/// then `floe node --config node.toml` on each machine.
#[derive(Parser)]
#[command(version, about, long_about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Node(node::NodeArgs),
    Local(local::LocalArgs),
    Status(status::StatusArgs),
    Put(cluster::PutArgs),
    Get(cluster::GetArgs),
    Delete(cluster::DeleteArgs),
    Scan(cluster::ScanArgs),
    Import(import::ImportArgs),
    Export(export::ExportArgs),
    Evict(members::EvictArgs),
    Admit(members::AdmitArgs),
    /// Prints the default settings with their meaning, as a file for `floe node --config`.
    Config,
    /// Looks at the write-ahead log of a node that doesn't run. Changes nothing.
    #[command(subcommand)]
    Wal(wal::WalCommand),
    /// Prints a script that lets a shell complete this command: `floe completions bash > /etc/bash_completion.d/floe`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Node(args) => node::run(&args),
        Command::Local(args) => local::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Put(args) => cluster::put(args),
        Command::Get(args) => cluster::get(args),
        Command::Delete(args) => cluster::delete(args),
        Command::Scan(args) => cluster::scan(args),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Evict(args) => members::evict(&args),
        Command::Admit(args) => members::admit(&args),
        Command::Config => print(&floe::config_file::explain(&floe::config_file::defaults())),
        Command::Wal(command) => return wal::run(&command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "floe", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("floe: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> Result<(), String> {
    print_bytes(text.as_bytes())
}

/// Prints to standard output. A reader that has seen enough may close the pipe: that is no error.
fn print_bytes(bytes: &[u8]) -> Result<(), String> {
    let mut out = std::io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("can't write to the standard output: {error}"))
        }
        _ => Ok(()),
    }
}
