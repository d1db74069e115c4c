//! `floe-bench idle`: what shards cost in which nothing happens. Three nodes in this process, once per number of
//! shards: open them, wait until the groups have gone quiet, and look at the clock, the counters and the memory.
//!
//! The nodes' fixed costs are those of the first, smallest number; memory per replica is what comes on top of it.
//! Memory that a smaller cluster gave back is used again by the next, so all are measured in one process, in
//! ascending order. A shard that lost its leader meanwhile makes the run unsound.

use crate::cluster::open_members;
use crate::error::BenchError;
use crate::home::Home;
use crate::members::{Members, Places, Stir};
use crate::options::{ClusterOptions, IdleOptions};
use crate::report::{Head, whole, write_json};
use crate::usage;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// Groups go quiet a second after their last activity; before that, seconds may look alike.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// Groups are quiet when two seconds, one after the other, differ by at most this part in bytes sent.
const STEADY: f64 = 0.02;
/// For how long that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// One number of shards.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    shards: u32,
    replicas: u64,
    seconds: f64,
    /// Of one processor, all nodes together.
    cpu_percent: f64,
    frames_per_second: f64,
    bytes_per_frame: f64,
    turns_per_second: f64,
    /// Elections while nothing happened: there is no reason for any.
    elections: u64,
    rss_bytes: u64,
    /// On top of the first number of shards; `None` for that itself.
    rss_bytes_per_replica: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    nodes: u8,
    figures: Vec<Figures>,
}

/// Runs it. False if a shard lost its leader.
pub fn run(options: &IdleOptions) -> Result<bool, BenchError> {
    let mut shards = options.shards.clone();
    shards.sort_unstable();
    let mut cluster = ClusterOptions::default();
    let mut figures: Vec<Figures> = Vec::new();
    for shards in shards {
        cluster.shards = shards;
        let home = Home::new(options.output.dir.as_deref(), false)?;
        let places = Places::choose(home.path(), cluster.nodes)?;
        let (members, _) = open_members(&places, &cluster, "opening")?;
        await_quiet(&members);
        let mut one = measure(&members, &cluster, Duration::from_secs_f64(options.seconds));
        one.rss_bytes_per_replica = figures.first().and_then(|first| per_replica(first, &one));
        members.close();
        home.close(false);
        println!("{}", line(&one));
        figures.push(one);
    }
    let is_sound = figures.iter().all(|one| one.elections == 0);
    let head = Head::new("idle", options.output.dir.as_deref().unwrap_or(Path::new(".")));
    write_json(&Report { head, nodes: cluster.nodes, figures }, options.output.json.as_deref())?;
    Ok(is_sound)
}

/// Waits until what is sent in a second doesn't get less any more. Groups that never go quiet are waited for in vain,
/// and show in the figures.
fn await_quiet(members: &Members) {
    let begun = Instant::now();
    std::thread::sleep(QUIET_AFTER);
    let second = || {
        let before = members.stir().bytes;
        std::thread::sleep(Duration::from_secs(1));
        members.stir().bytes - before
    };
    let mut before = second();
    while begun.elapsed() < PATIENCE {
        let now = second();
        if is_steady(before, now) {
            return;
        }
        before = now;
    }
}

fn is_steady(before: u64, now: u64) -> bool {
    before.abs_diff(now) as f64 <= STEADY * before.max(now) as f64
}

fn measure(members: &Members, options: &ClusterOptions, time: Duration) -> Figures {
    let (begun, cpu, before) = (Instant::now(), usage::cpu_time(), members.stir());
    std::thread::sleep(time);
    let (seconds, cpu, after) = (begun.elapsed().as_secs_f64(), usage::cpu_time() - cpu, members.stir());
    let Stir { frames, bytes, turns, elections } = after;
    let (frames, bytes, turns) = (frames - before.frames, bytes - before.bytes, turns - before.turns);
    Figures {
        shards: options.shards,
        replicas: u64::from(options.shards) * u64::from(options.replicas()),
        seconds,
        cpu_percent: 100.0 * cpu.as_secs_f64() / seconds,
        frames_per_second: frames as f64 / seconds,
        bytes_per_frame: bytes as f64 / frames.max(1) as f64,
        turns_per_second: turns as f64 / seconds,
        elections: elections - before.elections,
        rss_bytes: usage::rss_bytes(),
        rss_bytes_per_replica: None,
    }
}

fn per_replica(first: &Figures, one: &Figures) -> Option<f64> {
    let more = one.replicas.checked_sub(first.replicas).filter(|more| *more > 0)?;
    Some(one.rss_bytes.saturating_sub(first.rss_bytes) as f64 / more as f64)
}

fn line(one: &Figures) -> String {
    let memory = one
        .rss_bytes_per_replica
        .map_or_else(String::new, |bytes| format!(", {} B per replica on top of the first", whole(bytes)));
    format!(
        "{:>6} shards: {:.2} % of a processor, {:.0} frames/s of {:.0} B, {:.0} turns/s, {} elections, {} MiB{memory}",
        one.shards,
        one.cpu_percent,
        one.frames_per_second,
        one.bytes_per_frame,
        one.turns_per_second,
        one.elections,
        one.rss_bytes >> 20,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_per_replica_is_what_comes_on_top_of_the_first() {
        let first = Figures {
            shards: 1,
            replicas: 3,
            seconds: 1.0,
            cpu_percent: 0.0,
            frames_per_second: 0.0,
            bytes_per_frame: 0.0,
            turns_per_second: 0.0,
            elections: 0,
            rss_bytes: 1_000,
            rss_bytes_per_replica: None,
        };
        let more = Figures { replicas: 13, rss_bytes: 21_000, ..first.clone() };
        assert_eq!(per_replica(&first, &more), Some(2_000.0));
        assert_eq!(per_replica(&first, &first), None, "there is none on top");
    }

    #[test]
    fn a_second_with_less_traffic_than_the_one_before_is_not_steady() {
        assert!(is_steady(0, 0) && is_steady(10_000, 9_900));
        assert!(!is_steady(10_000, 9_000) && !is_steady(9_000, 10_000));
    }
}
