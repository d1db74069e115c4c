//! `floe status`: how the nodes of a cluster and their shards stand.

use crate::cluster::Cluster;
use clap::Args;
use floe::remote::{ask_map, ask_status};
use floe::{MapInfo, NodeStatus};
use serde_json::{Value, json};
use std::fmt::Write;
use std::thread;
use std::time::Duration;

const WATCH_EVERY: Duration = Duration::from_secs(1);
/// A node that doesn't answer must not keep the others from being shown for long.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// Moves a terminal's cursor to the upper left corner and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows nodes, and who leads which shard.
///
/// Each node is asked for itself. `lag` is how many entries a replica is behind the highest commit index that any of
/// the shard's replicas knows. Exit status 1 if a node doesn't answer or hears of no leader of shards that have one, or if
/// a shard has no leader that answers.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  floe status --endpoints 127.0.0.1:7401 --watch\n  floe status --endpoints 127.0.0.1:7401 --json | jq '.shards[] | select(.leader == 0)'"
)]
pub struct StatusArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Ask and print again every second, until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// Print every shard, not only those with something to say about.
    #[arg(long)]
    shards: bool,
}

pub fn run(args: &StatusArgs) -> Result<(), String> {
    loop {
        let picture = Picture::take(args)?;
        let text = if args.json { format!("{:#}\n", picture.json()) } else { picture.text(args.shards) };
        crate::print(&if args.watch && !args.json { format!("{CLEAR}{text}") } else { text })?;
        if !args.watch {
            return picture.verdict();
        }
        thread::sleep(WATCH_EVERY);
    }
}

/// One node, asked.
pub struct Node {
    pub id: u64,
    pub address: String,
    pub status: Result<NodeStatus, String>,
}

/// Asks a cluster's nodes how they stand, all at once.
pub fn ask_nodes(cluster: &Cluster, limit: Duration) -> Result<(MapInfo, Vec<Node>), String> {
    let map = first_map(cluster.named()?, limit)?;
    let ask = |(id, address): (u64, String)| {
        thread::spawn(move || {
            let status = ask_status(&address, limit).map_err(|error| error.reason());
            Node { id, address, status }
        })
    };
    let asked: Vec<_> = map.nodes.iter().copied().zip(map.addresses.iter().cloned()).map(ask).collect();
    let nodes = asked.into_iter().map(thread::JoinHandle::join).collect::<Result<_, _>>();
    Ok((map, nodes.map_err(|_| "a thread that asked a node has panicked")?))
}

/// One shard, as its replicas see it together.
struct Shard {
    id: u64,
    /// 0 = none that answers.
    leader: u64,
    term: u64,
    commit: u64,
    /// Nodes of its voters, as the leader has them; none without a leader.
    voters: Vec<u64>,
    /// Those of them whose replicas answer, and know of no leader.
    unled: Vec<u64>,
    /// Node, entries behind `commit`, and what is wrong with the replica.
    replicas: Vec<(u64, u64, String)>,
}

struct Picture {
    nodes: Vec<Node>,
    shards: Vec<Shard>,
    /// Replicas that a shard should have.
    replication: usize,
}

impl Picture {
    fn take(args: &StatusArgs) -> Result<Self, String> {
        let (map, nodes) = ask_nodes(&args.cluster, args.cluster.limit().min(ASK_LIMIT))?;
        let shards = map.shards.iter().map(|bytes| shard(bytes, &nodes)).collect::<Result<_, _>>()?;
        Ok(Self { nodes, shards, replication: map.replication as usize })
    }

    fn verdict(&self) -> Result<(), String> {
        let down = self.nodes.iter().filter(|node| node.status.is_err());
        let down: Vec<_> = down.map(|node| node.id.to_string()).collect();
        let without = self.shards.iter().filter(|shard| shard.leader == 0).count();
        let mut wrong = Vec::new();
        if !down.is_empty() {
            wrong.push(format!("no answer from node {}: is `floe node` running there?", down.join(", ")));
        }
        if without > 0 {
            wrong.push(format!(
                "shards without a leader that answers: {without}. An election takes less than a second, and a majority \
                 of a shard's replicas"
            ));
        }
        for node in &self.nodes {
            let unled = self.shards.iter().filter(|shard| shard.unled.contains(&node.id)).count();
            if unled > 0 {
                wrong.push(format!(
                    "node {} hears of no leader of {unled} shards that have one: if that stays so, the others' logs say \
                     why they don't talk to it",
                    node.id
                ));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n      ")) }
    }

    fn text(&self, all: bool) -> String {
        let mut out = format!(
            "{:>5} {:22} {:>6} {:>9} {:>6} {:>9} {:>6} {:>11} {:>8} {:>6}\n",
            "node",
            "address",
            "start",
            "uptime",
            "cores",
            "replicas",
            "leads",
            "log on disk",
            "waiting",
            "busy"
        );
        for node in &self.nodes {
            // Writing to a String can't fail.
            let _ = match &node.status {
                Ok(status) => write!(out, "{}", node_line(node, status)),
                Err(reason) => writeln!(out, "{:>5} {:22} DOWN: {reason}", node.id, node.address),
            };
        }
        let led = self.shards.iter().filter(|shard| shard.leader > 0).count();
        let _ = writeln!(out, "\n{led} of {} shards have a leader", self.shards.len());
        let few =
            self.shards.iter().filter(|shard| shard.leader > 0 && shard.voters.len() < self.replication);
        match few.count() {
            0 => {}
            few => {
                let should = self.replication;
                let _ = writeln!(
                    out,
                    "{few} shards have fewer than {should} voters: `floe admit NODE` gives them one"
                );
            }
        }
        let is_shown = |shard: &&Shard| {
            all || shard.leader == 0
                || shard.replicas.iter().any(|(_, lag, fault)| *lag > 0 || !fault.is_empty())
        };
        let shown: Vec<_> = self.shards.iter().filter(is_shown).collect();
        if !shown.is_empty() {
            let _ =
                writeln!(out, "{:>6} {:>6} {:>6} {:>10}  lag by node", "shard", "leader", "term", "commit");
        }
        for shard in shown {
            let replicas = shard.replicas.iter().map(|(node, lag, fault)| match fault.as_str() {
                "" => format!("{node}: {lag}"),
                fault => format!("{node}: {lag} ({fault})"),
            });
            let leader = if shard.leader == 0 { "none".into() } else { shard.leader.to_string() };
            let (id, term, commit) = (shard.id, shard.term, shard.commit);
            let replicas = replicas.collect::<Vec<_>>().join(", ");
            let _ = writeln!(out, "{id:>6} {leader:>6} {term:>6} {commit:>10}  {replicas}");
        }
        out
    }

    fn json(&self) -> Value {
        let nodes = self.nodes.iter().map(|node| match &node.status {
            Ok(status) => json!({
                "node": node.id, "address": node.address, "up": true,
                "start": status.boot_epoch, "uptime_ms": status.uptime_ms,
                "cores": status.cores.iter().map(|core| json!({ "runs": core.runs,
                    "log_disk_bytes": core.log_disk_bytes, "log_queued_bytes": core.log_queued_bytes,
                    "requests_pending": core.requests_pending, "requests": core.requests,
                    "busy": core.busy, "elections": core.elections,
                })).collect::<Vec<_>>(),
                "replicas": status.shards.iter().map(|replica| json!({
                    "shard": replica.shard, "core": replica.core, "replica": replica.replica,
                    "term": replica.term, "leader": replica.leader, "leads": replica.is_leader,
                    "commit": replica.commit, "applied": replica.applied, "last": replica.last,
                    "flushed": replica.flushed, "log_bytes": replica.log_bytes,
                    "size_bytes": replica.size_bytes, "fault": replica.fault,
                })).collect::<Vec<_>>(),
            }),
            Err(reason) => json!({ "node": node.id, "address": node.address, "up": false, "reason": reason }),
        });
        let shards = self.shards.iter().map(|shard| {
            let replicas = shard
                .replicas
                .iter()
                .map(|(node, lag, fault)| json!({ "node": node, "lag": lag, "fault": fault }));
            json!({
                "shard": shard.id, "leader": shard.leader, "term": shard.term, "commit": shard.commit,
                "voters": shard.voters,
                "replicas": replicas.collect::<Vec<_>>(),
            })
        });
        json!({ "nodes": nodes.collect::<Vec<_>>(), "shards": shards.collect::<Vec<_>>() })
    }
}

fn first_map(endpoints: &[String], limit: Duration) -> Result<MapInfo, String> {
    let mut reasons = Vec::new();
    for endpoint in endpoints {
        match ask_map(endpoint, limit) {
            Ok(map) => return Ok(map),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(reasons.join("\n"))
}

fn shard(descriptor: &[u8], nodes: &[Node]) -> Result<Shard, String> {
    let descriptor = floe::Descriptor::decode(descriptor).map_err(|error| error.to_string())?;
    let up = nodes.iter().filter_map(|node| Some((node.id, node.status.as_ref().ok()?)));
    let replicas: Vec<_> = up
        .flat_map(|(node, status)| status.shards.iter().map(move |replica| (node, replica)))
        .filter(|(_, replica)| replica.shard == descriptor.shard.0)
        .collect();
    // Of two that think so, the one of the later term is right.
    let leader =
        replicas.iter().filter(|(_, replica)| replica.is_leader).max_by_key(|(_, replica)| replica.term);
    let commit = replicas.iter().map(|(_, replica)| replica.commit).max().unwrap_or(0);
    let voters = leader.map_or_else(Vec::new, |(_, replica)| replica.voters.clone());
    let unled = replicas.iter().filter(|(node, replica)| replica.leader == 0 && voters.contains(node));
    Ok(Shard {
        id: descriptor.shard.0,
        leader: leader.map_or(0, |(node, _)| *node),
        term: replicas.iter().map(|(_, replica)| replica.term).max().unwrap_or(0),
        commit,
        unled: unled.map(|(node, _)| *node).collect(),
        voters,
        replicas: replicas
            .iter()
            .map(|(node, replica)| (*node, commit.saturating_sub(replica.applied), replica.fault.clone()))
            .collect(),
    })
}

fn node_line(node: &Node, status: &NodeStatus) -> String {
    let sum = |of: fn(&floe::CoreStatus) -> u64| status.cores.iter().map(of).sum::<u64>();
    let leads = status.shards.iter().filter(|replica| replica.is_leader).count();
    let ended: Vec<_> =
        (0_u16..).zip(&status.cores).filter(|(_, core)| !core.runs).map(|(at, _)| at).collect();
    let ended = if ended.is_empty() { String::new() } else { format!("  cores {ended:?} DON'T RUN") };
    format!(
        "{:>5} {:22} {:>6} {:>9} {:>6} {:>9} {:>6} {:>11} {:>8} {:>6}{ended}\n",
        node.id,
        node.address,
        status.boot_epoch,
        uptime(status.uptime_ms / 1000),
        status.cores.len(),
        status.shards.len(),
        leads,
        indicatif::BinaryBytes(sum(|core| core.log_disk_bytes)).to_string(),
        sum(|core| core.requests_pending),
        sum(|core| core.busy),
    )
}

fn uptime(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_names_what_is_wrong_and_nothing_else() {
        let node = |id, status| Node { id, address: String::new(), status };
        let down = || Err("connecting: refused".into());
        let shard = |leader| Shard {
            id: 1,
            leader,
            term: 1,
            commit: 1,
            voters: Vec::new(),
            unled: Vec::new(),
            replicas: Vec::new(),
        };
        let nodes = vec![node(1, Ok(NodeStatus::default())), node(2, down()), node(4, down())];
        let mut picture = Picture { nodes, shards: vec![shard(0), shard(1)], replication: 1 };
        let said = picture.verdict().unwrap_err();
        assert!(said.contains("no answer from node 2, 4: is") && said.contains("that answers: 1."), "{said}");
        picture.nodes.truncate(1);
        assert!(!picture.verdict().unwrap_err().contains("no answer"));
        picture.shards.remove(0);
        assert_eq!(picture.verdict(), Ok(()));
        picture.shards[0].unled.push(1);
        assert!(picture.verdict().unwrap_err().starts_with("node 1 hears of no leader of 1 shards"));
    }
}
