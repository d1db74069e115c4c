//! The floor under every latency: what the disk and the loopback interface cost without Floe.
//!
//! Measured in the same run, with as many concurrent synchronous writers as the cluster has logs on
//! this disk.

use crate::error::BenchError;
use crate::report::{Latency, latency};
use crate::usage;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const FILE_BLOCKS: u64 = 1024;
const DISK_TIME: Duration = Duration::from_millis(700);
const ROUND_TRIPS: usize = 5000;
const MESSAGE: usize = 64;

/// What nothing above can be faster than.
#[derive(Clone, Debug, Serialize)]
pub struct Floor {
    /// Concurrent writers.
    pub writers: usize,
    /// A synced write of 4 KiB over written space.
    pub disk_write_us: Latency,
    /// 64 bytes there and back between two threads.
    pub loopback_round_trip_us: Latency,
}

/// Measures it; the files are in `dir` and are removed.
pub fn measure(dir: &Path, writers: usize) -> Result<Floor, BenchError> {
    let disk = disk_writes(dir, writers)?;
    let loopback = round_trips().map_err(BenchError::Loopback)?;
    Ok(Floor { writers, disk_write_us: latency(&disk), loopback_round_trip_us: latency(&loopback) })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(100, 100_000_000_000, 3).expect("the bounds are constants in order")
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn disk_writes(dir: &Path, writers: usize) -> Result<Histogram<u64>, BenchError> {
    let one = |number: usize| {
        let path = dir.join(format!("floor-{number}"));
        let result = write_synced(&path);
        // Nothing depends on it: the directory is ours, or the user's to clean.
        let _ = std::fs::remove_file(&path);
        result.map_err(BenchError::file(path))
    };
    let mut sum = histogram();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|number| scope.spawn(move || one(number))).collect();
        for thread in threads {
            sum.add(thread.join().expect("a writer doesn't panic")?).expect("all have the same bounds");
        }
        Ok(sum)
    })
}

fn write_synced(path: &Path) -> std::io::Result<Histogram<u64>> {
    let mut file = File::create(path)?;
    for _ in 0..FILE_BLOCKS {
        file.write_all(&[0; BLOCK])?;
    }
    file.sync_all()?;
    drop(file);
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(path)?;
    let mut latencies = histogram();
    let start = Instant::now();
    let mut block = 0;
    while start.elapsed() < DISK_TIME {
        let begun = Instant::now();
        file.write_all_at(&[1; BLOCK], (block % FILE_BLOCKS) * BLOCK as u64)?;
        latencies.saturating_record(nanos(begun.elapsed()));
        block += 1;
    }
    Ok(latencies)
}

fn round_trips() -> std::io::Result<Histogram<u64>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut message = [0; MESSAGE];
        for _ in 0..ROUND_TRIPS {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
        Ok(())
    });
    usage::precise_timers();
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut latencies = histogram();
    let mut message = [7; MESSAGE];
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        latencies.saturating_record(nanos(begun.elapsed()));
    }
    echo.join().expect("the echo doesn't panic")?;
    Ok(latencies)
}
