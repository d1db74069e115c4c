//! `floe evict` and `floe admit`: a node's replicas leave all shards, and a node gets its part of them.
//!
//! Together they replace a node whose disk is lost. Its number must not come back with an empty directory while anybody
//! counts on the votes that went with the disk. So first all shards decide without it that it is no member; then
//! every other node, once it has applied that for each of its own replicas, consents to another store
//! (`PeerStores::forget`); and only then can the number join anew, as a learner that is fed and promoted.
//!
//! Both look how things stand, ask for what is missing, and look again: run a second time they go on where they were cut.
//! What keeps them waiting they say on standard error.

use crate::cluster::Cluster;
use crate::status::{Node, ask_nodes};
use clap::Args;
use floe::remote::ask_to_forget_store;
use floe::{Client, MapInfo, MemberChange, NodeId, ReplicaStatus, Seat, ShardId, WriteError};
use std::thread;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(200);
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// Without progress for so long it is said what is waited for, and then again as often.
const TELL_AFTER: Duration = Duration::from_secs(3);
/// A newcomer that lacks so many entries at the most has caught up: on a busy shard as many are always under way.
const CAUGHT_UP_WITHIN: u64 = 1024;

/// Takes a node's replicas out of all shards; the others then let it come back with an empty directory.
///
/// For a node that is to go, or whose disk is lost. Each shard needs a majority of its replicas for it, without the node
/// if that is down; all other nodes must run. What the node holds is destroyed if it runs. Afterwards the shards
/// are a replica short until `floe admit` gives them another one.
#[derive(Args)]
#[command(
    after_help = "Example, when the disk of node 3 is lost:\n  floe evict --endpoints 127.0.0.1:7401 3\n  floe node --config node.toml   # on its machine, with an empty `dir`\n  floe admit --endpoints 127.0.0.1:7401 3"
)]
pub struct EvictArgs {
    #[command(flatten)]
    members: MembersArgs,
}

/// Gives a node a replica of each shard that has fewer than it was founded with.
///
/// Each begins as a learner, is fed from the shard's leader, and votes once it has caught up.
#[derive(Args)]
#[command(after_help = "Example:\n  floe admit --endpoints 127.0.0.1:7401 3")]
pub struct AdmitArgs {
    #[command(flatten)]
    members: MembersArgs,
}

#[derive(Args)]
struct MembersArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// The node's number, as `floe status` shows it.
    #[arg(value_parser = number)]
    node: u64,
    /// Seconds without any progress after which it is given up.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience: u64,
}

fn number(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|&node| node > 0)
        .ok_or_else(|| "a node's number is 1 or more; `floe status` shows them".into())
}

pub fn evict(args: &EvictArgs) -> Result<(), String> {
    let args = &args.members;
    let node = args.node;
    let mut task = Task::begin(args)?;
    task.change_all(|_, shard, leader| match () {
        () if leader.voters == [node] => Next::Never(format!(
            "only node {node} has what shard {shard} holds: `floe admit` another node first"
        )),
        () if leader.voters.contains(&node) || leader.others.contains(&node) => Next::Change(Seat::Vacant),
        () => Next::Nothing,
    })?;
    let others = task.nodes.iter().filter(|other| other.id != node).map(|other| (other.id, &*other.address));
    for (id, address) in others.collect::<Vec<_>>() {
        task.until_forgotten(id, address)?;
    }
    let left = task.leaders().map(|leader| leader.voters.len()).min().unwrap_or(0);
    crate::print(&format!(
        "node {node} is a member of no shard; each has {left} of its {} replicas or more. It may stop for good, or come back, \
         with an empty directory, too: start it, then `floe admit {node}`\n",
        task.map.replication
    ))
}

pub fn admit(args: &AdmitArgs) -> Result<(), String> {
    let args = &args.members;
    let node = args.node;
    let mut task = Task::begin(args)?;
    if let Some(Node { status: Err(reason), address, .. }) = task.nodes.iter().find(|other| other.id == node)
    {
        return Err(format!("node {node} doesn't answer at {address} ({reason}): start it first"));
    }
    let changed = task.change_all(|task, shard, leader| {
        let replica = task.replica(node, shard).filter(|replica| replica.leader > 0);
        let is_fed = replica.is_some_and(|replica| replica.applied > 0);
        let has_caught_up = replica.is_some_and(|replica| replica.applied + CAUGHT_UP_WITHIN >= leader.commit);
        match () {
            () if !task.answers(node) => Next::Wait(format!("node {node} doesn't answer any more: start it again")),
            () if leader.voters.contains(&node) && replica.is_none() => Next::Wait(format!(
                "node {node} is a member of shard {shard} and hears of no leader; if it has lost its directory, `floe \
                 evict {node}` comes first, else the other nodes' logs say why they don't talk to it"
            )),
            () if leader.voters.contains(&node) => Next::Nothing,
            () if leader.others.contains(&node) && is_fed && has_caught_up => Next::Change(Seat::Voter),
            () if leader.others.contains(&node) => {
                Next::Wait(format!("node {node} is yet to catch up in shard {shard}"))
            }
            () if leader.voters.len() + leader.others.len() < task.map.replication as usize => {
                Next::Change(Seat::Learner)
            }
            () => Next::Nothing,
        }
    })?;
    crate::print(&match changed {
        0 => format!("no shard lacks a replica that node {node} could have\n"),
        _ => format!(
            "node {node} has a replica of each shard that lacked one, has caught up, and votes there\n"
        ),
    })
}

/// What is to be done for a shard.
enum Next {
    Nothing,
    Change(Seat),
    /// Something else must come about first: what.
    Wait(String),
    /// It can't be done: why.
    Never(String),
}

/// What one look at all shards brought.
struct Look {
    /// Shards that aren't as wanted.
    left: usize,
    /// Changes made.
    done: usize,
    /// Why one of those that are left isn't done.
    trouble: String,
}

/// Asks for changes of a node's seats until none is left to ask for.
struct Task<'a> {
    args: &'a MembersArgs,
    client: Client,
    map: MapInfo,
    nodes: Vec<Node>,
}

impl<'a> Task<'a> {
    fn begin(args: &'a MembersArgs) -> Result<Self, String> {
        let (map, nodes) = ask_nodes(&args.cluster, ASK_LIMIT)?;
        if !map.nodes.contains(&args.node) {
            let all: Vec<_> = map.nodes.iter().map(u64::to_string).collect();
            return Err(format!("there is no node {}; the cluster's are {}", args.node, all.join(", ")));
        }
        Ok(Self { args, client: args.cluster.client()?, map, nodes })
    }

    /// Looks and asks until `next`, told the status of a shard's leader, wants nothing of any shard; how many changes that
    /// took.
    fn change_all(&mut self, next: impl Fn(&Self, ShardId, &ReplicaStatus) -> Next) -> Result<usize, String> {
        let (mut changed, mut progress, mut told) = (0, Instant::now(), Instant::now());
        let mut left_before = usize::MAX;
        loop {
            let Look { left, done, trouble } = self.change_once(&next)?;
            changed += done;
            if left == 0 {
                return Ok(changed);
            }
            if done > 0 || left < left_before {
                (progress, told, left_before) = (Instant::now(), Instant::now(), left);
            }
            let trouble = format!("{left} shards are left, and nothing moves: {trouble}{}", self.absent());
            if progress.elapsed() > Duration::from_secs(self.args.patience) {
                return Err(format!(
                    "{trouble}. The same command goes on; `floe status` shows how far it is"
                ));
            }
            if told.elapsed() > TELL_AFTER {
                told = Instant::now();
                eprintln!("{trouble}");
            }
            thread::sleep(LOOK_EVERY);
            (self.map, self.nodes) = ask_nodes(&self.args.cluster, ASK_LIMIT)?;
        }
    }

    fn change_once(&self, next: impl Fn(&Self, ShardId, &ReplicaStatus) -> Next) -> Result<Look, String> {
        let mut look = Look { left: 0, done: 0, trouble: "changes are under way".into() };
        let mut calls = Vec::new();
        for shard in self.map.shards.iter() {
            let shard = floe::Descriptor::decode(shard).map_err(|error| error.to_string())?.shard;
            let wanted = match self.leader_of(shard) {
                Some(leader) => next(self, shard, leader),
                None => Next::Wait(format!("shard {shard} has no leader that answers")),
            };
            match wanted {
                Next::Nothing => continue,
                Next::Never(why) => return Err(why),
                Next::Wait(what) => look.trouble = what,
                Next::Change(to) => {
                    let change = MemberChange { node: NodeId(self.args.node), to };
                    calls.push((shard, self.client.change_members(shard, &[change], false)));
                }
            }
            look.left += 1;
        }
        for (shard, call) in calls {
            match call.wait() {
                Ok(()) => look.done += 1,
                // It is looked at again, whatever came of it.
                Err(WriteError::OutcomeUnknown(_)) => {}
                Err(error) => look.trouble = format!("shard {shard}: {error}"),
            }
        }
        Ok(look)
    }

    /// Names the nodes that must run and don't answer, as the end of a sentence.
    fn absent(&self) -> String {
        let down = self.nodes.iter().filter(|node| node.status.is_err() && node.id != self.args.node);
        down.map(|node| format!("; node {} doesn't answer at {}: start it", node.id, node.address)).collect()
    }

    fn answers(&self, node: u64) -> bool {
        self.nodes.iter().any(|other| other.id == node && other.status.is_ok())
    }

    fn replica(&self, node: u64, shard: ShardId) -> Option<&ReplicaStatus> {
        let node = self.nodes.iter().find(|other| other.id == node)?;
        node.status.as_ref().ok()?.shards.iter().find(|replica| replica.shard == shard.0)
    }

    /// All replicas that think they lead.
    fn leaders(&self) -> impl Iterator<Item = &ReplicaStatus> {
        let up = self.nodes.iter().filter_map(|node| node.status.as_ref().ok());
        up.flat_map(|up| &up.shards).filter(|replica| replica.is_leader)
    }

    /// Of two that think they lead, the one of the later term is right.
    fn leader_of(&self, shard: ShardId) -> Option<&ReplicaStatus> {
        self.leaders().filter(|leader| leader.shard == shard.0).max_by_key(|leader| leader.term)
    }

    /// Asks a node to forget the store of the one that was taken out, until it has applied that.
    fn until_forgotten(&self, id: u64, address: &str) -> Result<(), String> {
        let (begun, mut told) = (Instant::now(), Instant::now());
        while let Err(reason) = ask_to_forget_store(address, NodeId(self.args.node), ASK_LIMIT) {
            let reason = format!(
                "node {id} at {address} must run, and consent that node {} comes with another directory: {reason}",
                self.args.node
            );
            if begun.elapsed() > Duration::from_secs(self.args.patience) {
                return Err(format!("{reason}. When it runs, the same command goes on"));
            }
            if told.elapsed() > TELL_AFTER {
                told = Instant::now();
                eprintln!("{reason}");
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}
