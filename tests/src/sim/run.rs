//! One run: load and faults, then healing, then the demands: fresh writes on every shard within ten election
//! timeouts, every operation answered, every key readable, all replicas of a shard equal; then the
//! history is judged.

use crate::checker::Violation;
use crate::checker::durability::{Changes, value_at};
use crate::sim::client::{ClientId, Counts};
use crate::sim::clock::{MS, SEC};
use crate::sim::cluster::{Cluster, Found, PROBES, Traffic, index};
use crate::sim::coverage::Coverage;
use crate::sim::node::Process;
use crate::sim::plan::Plan;
use floe_checker::linearizability::{BUDGET, Verdict, check_keys};
use floe_raft::{Index, Mark, Nanos};
use floe_shard::{MultiRaft, NodeId, ReplicaPlace, ShardId};
use std::collections::BTreeMap;

/// Probes that write have numbers from here on, then those that read.
const WRITES: ClientId = PROBES;
const READS: ClientId = PROBES + 100_000;
/// Faults that a run with faults has at the least, if time allows.
pub const FAULTS_MIN: u64 = 20;
/// How long the load may take before the run goes on to heal.
const LOAD_NS_MAX: Nanos = 600 * SEC;
/// How long restarts and connections may take after healing.
const START_NS_MAX: Nanos = 60 * SEC;
/// How long clients wait at the most, and then some.
const IDLE_NS_MAX: Nanos = 10 * SEC;
/// Fresh writes must succeed within so many election timeouts.
const LIVENESS_TIMEOUTS: Nanos = 10;

/// What came of a run.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Hash of its trace, in hexadecimal.
    pub hash: String,
    /// Virtual nanoseconds.
    pub time_ns: Nanos,
    /// Steps of cores.
    pub steps: u64,
    /// Log entries that the checker compared.
    pub entries_checked: u64,
    /// Elections won.
    pub elections: u64,
    /// What processes found and did.
    pub found: Found,
    /// Operations.
    pub operations: Counts,
    /// Faults by kind and by the roles that they met.
    pub faults: Coverage,
    /// Faults drawn, whether the plan let them strike or not.
    pub faults_drawn: u64,
    /// From the end of the last restart to the last shard's fresh write.
    pub recovery_ns: Nanos,
    /// Which promise was broken, and how.
    pub failure: Option<(String, String)>,
}

/// Runs a plan from start to end.
pub fn run(plan: Plan) -> Report {
    plant(&plan);
    let mut cluster = Cluster::new(plan);
    let mut recovery_ns = 0;
    let outcome = drive(&mut cluster, &mut recovery_ns);
    report(&cluster, recovery_ns, outcome.err())
}

fn report(cluster: &Cluster, recovery_ns: Nanos, violation: Option<Violation>) -> Report {
    Report {
        seed: cluster.plan.seed,
        hash: format!("{:016x}", cluster.trace.hash()),
        time_ns: cluster.now(),
        steps: cluster.steps,
        entries_checked: cluster.safety.checked,
        elections: cluster.safety.elections,
        found: cluster.found(),
        operations: cluster.clients.counts,
        faults: cluster.faults.clone(),
        faults_drawn: cluster.faults_drawn,
        recovery_ns,
        failure: violation.map(|violation| (violation.property.to_string(), violation.detail)),
    }
}

fn drive(cluster: &mut Cluster, recovery_ns: &mut Nanos) -> Result<(), Violation> {
    cluster.start_clients();
    cluster.start_faults();
    let operations = cluster.plan.load.operations;
    let faults = if cluster.plan.demands_faults() { FAULTS_MIN } else { 0 };
    let is_done = cluster.run_until(LOAD_NS_MAX, |cluster| {
        cluster.clients.counts.begun >= operations && cluster.faults_total >= faults
    })?;
    if !is_done {
        let (begun, met) = (cluster.clients.counts.begun, cluster.faults_total);
        let detail = format!("{begun} operations of {operations} and {met} faults of {faults} in time");
        return Err(Violation::new("load", detail));
    }
    cluster.traffic = Traffic::None;
    cluster.heal();
    cluster.wait_until_started()?;
    *recovery_ns = cluster.demand_fresh_writes()?;
    cluster.finish()
}

#[cfg(feature = "planted")]
fn plant(plan: &Plan) {
    floe_raft::plant(plan.bug);
}

#[cfg(not(feature = "planted"))]
fn plant(plan: &Plan) {
    assert!(plan.bug.is_none(), "bugs can only be planted with the feature `planted`");
}

impl Cluster {
    /// Waits until every node runs, but those whose disks are damaged, and every connection is up.
    ///
    /// # Errors
    /// They aren't in time.
    pub fn wait_until_started(&mut self) -> Result<(), Violation> {
        let started = self.run_until(START_NS_MAX, |cluster| {
            cluster.nodes.iter().all(|node| node.is_started() || node.is_condemned)
                && cluster.network.is_whole()
        })?;
        if started {
            return Ok(());
        }
        let states = self.nodes.iter().map(|node| {
            let process = node.process.as_ref();
            let state = process.map(|process| (process.started, process.stopped, process.is_ending));
            format!(
                "{}: (started, stopped, ending) {state:?}, {} disk calls",
                node.id,
                node.disk.in_flight().len()
            )
        });
        let detail = format!("not all nodes run: {:?}", states.collect::<Vec<_>>());
        Err(Violation::new("liveness", detail))
    }

    /// Demands that a write succeeds on every shard within ten election timeouts. Answers after how long
    /// the last did.
    ///
    /// # Errors
    /// Which shards took none.
    pub fn demand_fresh_writes(&mut self) -> Result<Nanos, Violation> {
        let begun_at = self.now();
        self.probes.clear();
        let keys = (0..self.clients.keys()).map(|key| (self.clients.shard_of(key), key));
        let keys: BTreeMap<ShardId, u32> = keys.collect();
        let within = LIVENESS_TIMEOUTS * self.plan.election_timeout_ns();
        let all = self.run_until(within, |cluster| {
            let mut all = true;
            for &key in keys.values() {
                all &= cluster.probe(WRITES + key, |clients, now, client| clients.put(now, client, key));
            }
            all
        })?;
        if all {
            return Ok(self.now() - begun_at);
        }
        let missing = keys.iter().filter(|(_, key)| self.probes.get(&(WRITES + **key)) != Some(&true));
        let missing: Vec<String> = missing.map(|(shard, _)| self.describe(*shard)).collect();
        let detail = format!("no write within {} ms after healing:\n{}", within / MS, missing.join("\n"));
        Err(Violation::new("liveness", detail))
    }

    /// Begins a probe's call if it waits for none and hasn't succeeded; whether it has.
    fn probe(
        &mut self,
        client: ClientId,
        call: impl FnOnce(&mut crate::sim::client::Clients, Nanos, ClientId) -> crate::sim::client::Call,
    ) -> bool {
        if self.probes.get(&client) == Some(&true) {
            return true;
        }
        let up: Vec<usize> = (0..self.nodes.len()).filter(|node| self.nodes[*node].is_started()).collect();
        if !self.clients.is_waiting(client) && !up.is_empty() {
            let node = *self.random.pick(&up);
            let now = self.now();
            let call = call(&mut self.clients, now, client);
            self.send_call(client, node, call);
        }
        false
    }

    /// Lets operations end, reads every key, waits for equal replicas, and judges the history.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn finish(&mut self) -> Result<(), Violation> {
        self.traffic = Traffic::None;
        if !self.run_until(IDLE_NS_MAX, |cluster| cluster.clients.waiting().next().is_none())? {
            let now = self.now();
            let waiting: Vec<_> =
                self.clients.waiting().map(|(id, since)| (id, (now - since) / MS)).collect();
            let detail = format!("operations (client, age in ms) without an answer: {waiting:?}");
            return Err(Violation::new("one answer", detail));
        }
        // A write without an outcome may come late: not after its deadline, though.
        self.run_until(IDLE_NS_MAX, |cluster| cluster.now() >= cluster.clients.open_until)?;
        self.read_everything()?;
        self.demand_equal_replicas()?;
        self.compare_with_replay()?;
        match check_keys(&self.clients.history, BUDGET) {
            Verdict::Linearizable => Ok(()),
            Verdict::NotLinearizable { evidence } => Err(Violation::new("linearizability", evidence)),
            Verdict::Unknown => Err(Violation::new("linearizability unknown", "out of budget")),
        }
    }

    fn read_everything(&mut self) -> Result<(), Violation> {
        self.probes.clear();
        let all = self.run_until(IDLE_NS_MAX, |cluster| {
            let mut all = true;
            for key in 0..cluster.clients.keys() {
                all &= cluster.probe(READS + key, |clients, now, client| clients.get(now, client, key));
            }
            all
        })?;
        if all { Ok(()) } else { Err(Violation::new("liveness", "not every key can be read after healing")) }
    }

    fn demand_equal_replicas(&mut self) -> Result<(), Violation> {
        let equal = |cluster: &Self, shard: ShardId| {
            let states = cluster.states(shard);
            let members = cluster.descriptor(shard).replicas;
            let lives = |place: &&ReplicaPlace| !cluster.nodes[index(place.node)].is_condemned;
            let nodes: Vec<_> = members.iter().filter(lives).map(|place| place.node).collect();
            let all_live = nodes.iter().all(|node| states.iter().any(|(at, _)| at == node));
            all_live && states.len() == nodes.len() && states.iter().all(|(_, state)| *state == states[0].1)
        };
        let shards: Vec<ShardId> = self.shards.iter().map(|shard| shard.shard).collect();
        if self.run_until(IDLE_NS_MAX, |cluster| shards.iter().all(|shard| equal(cluster, *shard)))? {
            return Ok(());
        }
        let unequal = shards.iter().filter(|shard| !equal(self, **shard));
        let replicas: Vec<String> = unequal.map(|shard| self.describe(*shard)).collect();
        Err(Violation::new("convergence", format!("replicas differ:\n{}", replicas.join("\n"))))
    }

    /// The final reads, and every answer before them, against the replayed history.
    fn compare_with_replay(&self) -> Result<(), Violation> {
        let mut changes = Changes::new();
        for shard in self.shards.iter() {
            let of_shard = self.clients.durability.replay(shard.shard, &self.safety)?;
            self.clients.snapshots.judge(shard.shard, &of_shard)?;
            changes.extend(of_shard);
        }
        for key in 0..self.clients.keys() {
            let found = self.clients.last_seen(READS + key, key).flatten();
            let expected = value_at(&changes, key, Index::MAX);
            if found != expected {
                let detail = format!("key {key} reads {found:?} at the end, its history says {expected:?}");
                return Err(Violation::new("durability", detail));
            }
        }
        Ok(())
    }

    /// Every running core that has recovered its replicas.
    pub fn multis(&self) -> impl Iterator<Item = (&crate::sim::node::Node, &MultiRaft)> {
        self.nodes.iter().flat_map(|node| {
            let cores = node.process.iter().flat_map(|process| &process.cores);
            cores.filter_map(move |core| Some((node, core.worker.multi()?)))
        })
    }

    /// Of all but learners that were removed and don't know it: they ask for no votes, so nobody tells them.
    fn states(&self, shard: ShardId) -> Vec<(NodeId, (Mark, u64))> {
        let descriptor = self.descriptor(shard);
        let counts = |multi: &MultiRaft| {
            multi.raft(shard).is_some_and(|raft| {
                !descriptor.has_removed(raft.id()) || raft.membership().is_voter(raft.id())
            })
        };
        let states = self.multis().filter(|(_, multi)| counts(multi));
        states.filter_map(|(node, multi)| Some((node.id, multi.state_hash(shard)?))).collect()
    }

    fn describe(&self, shard: ShardId) -> String {
        let replicas = self
            .multis()
            .filter_map(|(node, multi)| Some((node.id, multi.status(shard)?, multi.raft(shard)?.status())))
            .map(|(node, status, raft)| format!("{node}: {status:?}\n  {raft:?}"));
        replicas.collect::<Vec<_>>().join("\n")
    }

    /// What processes have found and done so far.
    pub fn found(&self) -> Found {
        let running = self.nodes.iter().filter_map(|node| node.process.as_ref());
        Found { installs: self.found.installs + running.map(Process::installs).sum::<u64>(), ..self.found }
    }

    /// The node whose replica leads a shard in the highest term, as of now.
    pub fn leader(&self, shard: ShardId) -> Option<usize> {
        let leads = |(node, multi): (&crate::sim::node::Node, &MultiRaft)| {
            let raft = multi.raft(shard).filter(|raft| raft.is_leader())?;
            Some((raft.term(), index(node.id)))
        };
        self.multis().filter_map(leads).max().map(|(_, node)| node)
    }
}
