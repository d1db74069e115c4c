//! `floe evict` and `floe admit`: a node's replicas leave all shards, and a node gets its part of them.
//!
//! Together they replace a node whose disk is lost. Its number must not come back with an empty directory while anybody
//! counts on the votes that went with the disk. So first all shards decide without it that it is no member; then
//! every other node, once it has applied that for each of its own replicas, consents to another store
//! (`PeerStores::forget`); and only then can the number join anew, as a learner that is fed and promoted.
//!
//! Both look how things stand, ask for what is missing, and look again: run a second time they go on where they were cut.

use crate::cluster::Cluster;
use crate::status::{Node, ask_nodes};
use clap::Args;
use floe::remote::ask_to_forget_store;
use floe::{Client, MapInfo, MemberChange, NodeId, ReplicaStatus, Seat, ShardId, WriteError};
use std::thread;
use std::time::{Duration, Instant};

const LOOK_EVERY: Duration = Duration::from_millis(200);
const ASK_LIMIT: Duration = Duration::from_secs(3);

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
    /// The node's number.
    node: u64,
    /// Seconds without any progress after which it is given up.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    patience: u64,
}

pub fn evict(args: &EvictArgs) -> Result<(), String> {
    let args = &args.members;
    let mut task = Task::begin(args)?;
    let out = |_: usize, leader: &ReplicaStatus| {
        let is_member = leader.voters.contains(&args.node) || leader.others.contains(&args.node);
        is_member.then_some(Seat::Vacant)
    };
    task.change_all(out)?;
    let others = task.nodes.iter().filter(|node| node.id != args.node).map(|node| (node.id, &*node.address));
    for (id, address) in others.collect::<Vec<_>>() {
        task.until_forgotten(id, address)?;
    }
    let node = args.node;
    crate::print(&format!(
        "node {node} is a member of no shard, and may come with an empty directory: start it so, then `floe admit {node}`\n"
    ))
}

pub fn admit(args: &AdmitArgs) -> Result<(), String> {
    let args = &args.members;
    let mut task = Task::begin(args)?;
    if let Some(Node { status: Err(reason), address, .. }) =
        task.nodes.iter().find(|node| node.id == args.node)
    {
        return Err(format!("node {} doesn't answer at {address} ({reason}): start it first", args.node));
    }
    let changed = task.change_all(|replication, leader| match () {
        () if leader.voters.contains(&args.node) => None,
        () if leader.others.contains(&args.node) => Some(Seat::Voter),
        () => (leader.voters.len() + leader.others.len() < replication).then_some(Seat::Learner),
    })?;
    let node = args.node;
    crate::print(&match changed {
        0 => format!("no shard lacks a replica that node {node} could have\n"),
        _ => format!("node {node} has a replica of each shard that lacked one, and votes there\n"),
    })
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

    /// Looks and asks until `wanted`, told the replication and the status of a shard's leader, wants nothing of any
    /// shard; how many changes that took.
    fn change_all(
        &mut self,
        wanted: impl Fn(usize, &ReplicaStatus) -> Option<Seat>,
    ) -> Result<usize, String> {
        let (mut changed, mut progress) = (0, Instant::now());
        loop {
            let (left, done, trouble) = self.change_once(&wanted)?;
            changed += done;
            if left == 0 {
                return Ok(changed);
            }
            if done > 0 {
                progress = Instant::now();
            }
            if progress.elapsed() > Duration::from_secs(self.args.patience) {
                return Err(format!(
                    "{left} shards are left, and nothing moves: {trouble}; see `floe status`. The same command goes on"
                ));
            }
            thread::sleep(LOOK_EVERY);
            (self.map, self.nodes) = ask_nodes(&self.args.cluster, ASK_LIMIT)?;
        }
    }

    /// How many shards still want something, how many changes were made, and why another one wasn't.
    fn change_once(
        &self,
        wanted: impl Fn(usize, &ReplicaStatus) -> Option<Seat>,
    ) -> Result<(usize, usize, String), String> {
        let mut trouble = String::from("changes are under way");
        let (mut left, mut calls) = (0, Vec::new());
        for shard in self.map.shards.iter() {
            let shard = floe::Descriptor::decode(shard).map_err(|error| error.to_string())?.shard;
            let Some(leader) = self.leader_of(shard) else {
                left += 1;
                trouble = format!("shard {shard} has no leader that answers");
                continue;
            };
            if let Some(to) = wanted(self.map.replication as usize, leader) {
                left += 1;
                let change = MemberChange { node: NodeId(self.args.node), to };
                calls.push((shard, self.client.change_members(shard, &[change], false)));
            }
        }
        let mut done = 0;
        for (shard, call) in calls {
            match call.wait() {
                Ok(()) => done += 1,
                // It is looked at again, whatever came of it.
                Err(WriteError::OutcomeUnknown(_)) => {}
                Err(error) => trouble = format!("shard {shard}: {error}"),
            }
        }
        Ok((left, done, trouble))
    }

    /// Of two that think they lead, the one of the later term is right.
    fn leader_of(&self, shard: ShardId) -> Option<&ReplicaStatus> {
        let replicas =
            self.nodes.iter().filter_map(|node| node.status.as_ref().ok()).flat_map(|up| &up.shards);
        replicas
            .filter(|replica| replica.shard == shard.0 && replica.is_leader)
            .max_by_key(|leader| leader.term)
    }

    /// Asks a node to forget the store of the one that was taken out, until it has applied that.
    fn until_forgotten(&self, id: u64, address: &str) -> Result<(), String> {
        let until = Instant::now() + Duration::from_secs(self.args.patience);
        while let Err(reason) = ask_to_forget_store(address, NodeId(self.args.node), ASK_LIMIT) {
            if Instant::now() > until {
                return Err(format!(
                    "node {id} at {address} must consent first that node {} comes with an empty directory: {reason}. \
                     When it runs again, the same command goes on",
                    self.args.node
                ));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}
