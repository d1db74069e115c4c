//! Kills a whole embedded cluster with SIGKILL in mid-write, again and again, and checks after each
//! restart that every acknowledged write is there.
//!
//! The parent keeps the books: a child runs three members in one process and says on its standard
//! output which write it is about to try (`t`), which was acknowledged (`a`), and what it reads back
//! after a restart (`r`). A key's value must lie between the last acknowledged and the last tried.

use clap::{Parser, ValueEnum};
use floe::{Client, Config, Engine, LsmSettings, Member, NodeId, Store};
use floe_tests::ports::free_ports;
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const NODES: u64 = 3;

/// Kill an embedded three-node cluster with SIGKILL and check that nothing acknowledged is lost.
#[derive(Parser)]
struct Args {
    /// How often to kill it.
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Where the data goes; made anew, and removed at the end if all is well.
    #[arg(long, default_value = "target/kill9")]
    dir: PathBuf,
    /// Writers, each with a key of its own.
    #[arg(long, default_value_t = 48)]
    writers: u32,
    /// Run as the child: the ports of the members.
    #[arg(long, hide = true, value_delimiter = ',')]
    child: Vec<u16>,
    /// Cores per node in the child.
    #[arg(long, hide = true, default_value_t = 1)]
    cores: u16,
    /// Where the shards' state lies
    #[arg(long, value_enum, default_value_t = StoreKind::Lsm)]
    store: StoreKind,
}

#[derive(Clone, Copy, ValueEnum)]
enum StoreKind {
    Memory,
    Lsm,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = if args.child.is_empty() { parent(&args) } else { child(&args) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kill9: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Book {
    acknowledged: u64,
    tried: u64,
}

fn parent(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.dir.exists() {
        std::fs::remove_dir_all(&args.dir)?;
    }
    let mut books: BTreeMap<u32, Book> = (0..args.writers).map(|writer| (writer, Book::default())).collect();
    let mut total = 0;
    for round in 0..=args.rounds {
        // Every tenth restart has another core count.
        let cores = if round % 20 >= 10 { 2 } else { 1 };
        let mut child = spawn(args, cores)?;
        let stdout = child.stdout.take().ok_or("the child has no standard output")?;
        let delay = Duration::from_millis(150 + u64::from(round * 37 % 400));
        let last = round == args.rounds;
        let acknowledged = follow(&mut child, stdout, delay, last, &mut books)
            .map_err(|error| format!("round {round}: {error}"))?;
        total += acknowledged;
        eprintln!("round {round}: {acknowledged} writes acknowledged, {total} in all, none lost");
    }
    println!("{} kills, {total} acknowledged writes, 0 lost, 0 wrong", args.rounds);
    std::fs::remove_dir_all(&args.dir)?;
    Ok(())
}

fn spawn(args: &Args, cores: u16) -> Result<Child, Box<dyn Error>> {
    let ports: Vec<_> = free_ports(NODES as usize).iter().map(u16::to_string).collect();
    Ok(Command::new(std::env::current_exe()?)
        .arg("--dir")
        .arg(&args.dir)
        .args([
            "--writers",
            &args.writers.to_string(),
            "--child",
            &ports.join(","),
            "--cores",
            &cores.to_string(),
            "--store",
            match args.store {
                StoreKind::Memory => "memory",
                StoreKind::Lsm => "lsm",
            },
        ])
        .stdout(Stdio::piped())
        .spawn()?)
}

/// Reads what the child says, kills it `delay` after it began to write, and takes the rest from the pipe.
fn follow(
    child: &mut Child,
    stdout: ChildStdout,
    delay: Duration,
    last: bool,
    books: &mut BTreeMap<u32, Book>,
) -> Result<u64, Box<dyn Error>> {
    let (mut acknowledged, mut kill_at, mut killed) = (0, None, false);
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = String::new();
        // A line without its end was cut by the kill.
        if stdout.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            break;
        }
        let mut words = line.trim_end().split(' ');
        let kind = words.next().unwrap_or_default();
        if kind == "ready" && last {
            child.kill()?;
            killed = true;
        }
        if kind == "ready" {
            kill_at = Some(Instant::now() + delay);
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) && !killed {
            child.kill()?;
            killed = true;
        }
        let (Some(Ok(writer)), Some(Ok(value))) =
            (words.next().map(str::parse::<u32>), words.next().map(str::parse::<u64>))
        else {
            continue;
        };
        let book = books.get_mut(&writer).ok_or_else(|| format!("unknown writer {writer}"))?;
        match kind {
            "t" => book.tried = book.tried.max(value),
            "a" => {
                book.acknowledged = book.acknowledged.max(value);
                acknowledged += 1;
            }
            "r" if value < book.acknowledged => {
                return Err(format!(
                    "LOST: writer {writer} had {} acknowledged, reads {value}",
                    book.acknowledged
                )
                .into());
            }
            "r" if value > book.tried => {
                return Err(format!(
                    "WRONG: writer {writer} tried {} at the most, reads {value}",
                    book.tried
                )
                .into());
            }
            "r" => *book = Book { acknowledged: value, tried: book.tried.max(value) },
            _ => {}
        }
    }
    child.wait()?;
    if !killed {
        return Err("the child ended by itself".into());
    }
    Ok(acknowledged)
}

fn child(args: &Args) -> Result<(), Box<dyn Error>> {
    let members: Vec<_> = (1..)
        .zip(&args.child)
        .map(|(node, port)| Member { node: NodeId(node), address: format!("127.0.0.1:{port}") })
        .collect();
    let openers: Vec<_> = members
        .iter()
        .map(|member| {
            let config = config(args, member.node, &members);
            thread::spawn(move || Engine::open(config))
        })
        .collect();
    let engines: Vec<_> = openers
        .into_iter()
        .map(|opener| opener.join().map_err(|_| "opening a member panicked")?.map_err(Into::into))
        .collect::<Result<_, Box<dyn Error>>>()?;
    let start: Vec<u64> =
        (0..args.writers).map(|writer| read(&engines[0].client(), writer)).collect::<Result<_, _>>()?;
    say(&start.iter().enumerate().map(|(writer, value)| format!("r {writer} {value}\n")).collect::<String>());
    say("ready\n");
    let writers: Vec<_> = (0..args.writers)
        .map(|writer| {
            let client = engines[writer as usize % engines.len()].client();
            let from = start[writer as usize];
            thread::spawn(move || write(&client, writer, from))
        })
        .collect();
    for writer in writers {
        writer.join().map_err(|_| "a writer panicked")?;
    }
    Err("the writers ended before the kill".into())
}

fn config(args: &Args, node: NodeId, members: &[Member]) -> Config {
    let mut config = Config::member(args.dir.join(format!("node-{node}")), node, members.to_vec());
    config.shards = 16;
    config.cores = args.cores;
    config.store = match args.store {
        StoreKind::Memory => Store::Memory,
        StoreKind::Lsm => Store::Lsm(LsmSettings::default()),
    };
    // Small enough that dumps, truncation and recycling happen between the kills.
    config.flush_log_bytes = 64 << 10;
    config.wal.segment_bytes_min = 256 << 10;
    config.wal.segment_bytes_max = 1 << 20;
    config.wal.bytes_max = 4 << 20;
    config
}

fn key(writer: u32) -> Vec<u8> {
    // Spread over the shards, which split the key space by its first bytes.
    let mut key = (writer.wrapping_mul(0x9E37_79B9)).to_be_bytes().to_vec();
    key.extend_from_slice(format!("writer-{writer}").as_bytes());
    key
}

fn read(client: &Client, writer: u32) -> Result<u64, Box<dyn Error>> {
    match client.get_blocking(key(writer))? {
        Some(value) => Ok(u64::from_le_bytes(value[..8].try_into()?)),
        None => Ok(0),
    }
}

fn write(client: &Client, writer: u32, from: u64) {
    let mut value = vec![0xF1; 128];
    for n in from + 1.. {
        value[..8].copy_from_slice(&n.to_le_bytes());
        say(&format!("t {writer} {n}\n"));
        match client.put_blocking(key(writer), &value) {
            Ok(_) => say(&format!("a {writer} {n}\n")),
            Err(error) => eprintln!("writer {writer}: {error}"),
        }
    }
}

/// One whole line (or several) at once; a pipe takes up to 4 KiB atomically.
fn say(lines: &str) {
    for chunk in lines.as_bytes().chunks(4096) {
        if std::io::stdout().lock().write_all(chunk).and_then(|()| std::io::stdout().flush()).is_err() {
            std::process::exit(1); // the parent is gone
        }
    }
}
