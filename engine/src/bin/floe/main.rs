//! The command `floe`: runs nodes, and looks after them.

mod config_file;
mod local;
mod node;
mod signals;
mod wal;

use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Runs and operates nodes of Floe, a multi-Raft sharded storage engine.
///
/// To try it: `floe local --dir /tmp/ice` starts three nodes on this machine and says how to talk to them.
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
    /// Runs one node until SIGTERM or Ctrl-C.
    Node(node::NodeArgs),
    /// Runs a cluster on this machine, each node a process of its own, until Ctrl-C.
    Local(local::LocalArgs),
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
        Command::Config => print(&config_file::explain(&config_file::defaults())),
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

/// Prints to standard output. A reader that has seen enough may close the pipe: that is no error.
fn print(text: &str) -> Result<(), String> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(format!("can't write to the standard output: {error}"))
        }
        _ => Ok(()),
    }
}
