//! A whole cluster in one thread: nodes, their cores, disks, clocks, the network and the clients, moved by
//! one queue of events. The workers are the real ones; so is all that is below them but the driver.
//!
//! An event makes a core runnable: its inputs are collected, it takes one step a little later, and what it
//! wants done is carried out with drawn latencies. After each step the checkers look at its replicas.

use crate::checker::Violation;
use crate::checker::raft_safety::RaftSafety;
use crate::checker::ranges::Ranges;
use crate::checker::recovery::Recovery;
use crate::checker::votes::Votes;
use crate::random::Random;
use crate::sim::client::{Call, ClientId, Clients};
use crate::sim::clock::{MS, Queue, US};
use crate::sim::coverage::Coverage;
use crate::sim::disk::{Crash, Disk};
use crate::sim::fault::Fault;
use crate::sim::network::{Delivery, NetEvent, Network};
use crate::sim::node::{Core, Node};
use crate::sim::plan::{FaultKind, Plan};
use crate::sim::run::FAULTS_MIN;
use crate::sim::trace::Trace;
use floe::read_cell::Open;
use floe::seam::{DisconnectReason, Input};
use floe_raft::{Index, Nanos};
use floe_shard::{Answer, CoreAddr, Descriptor, NodeId, RequestId, ShardId, pre_split};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// So many faults that were drawn in vain let as much load through as one that struck.
const IN_VAIN: u64 = 10;

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    /// In the network.
    Net(NetEvent),
    /// A disk call of a node completes.
    Disk(usize, u64),
    /// A core takes a step: node, its incarnation, core.
    Run(usize, u64, u16),
    /// A core's own deadline: node, its incarnation, core, the time it was set for.
    Timer(usize, u64, u16, Nanos),
    /// Something arrives at a core from its own node.
    Input(usize, u64, u16, Box<Input>),
    /// A client goes on.
    Client(ClientId),
    /// A client's answer arrives.
    Answer(ClientId, Option<Answer>),
    /// A client on this node in this incarnation, which has loaded what may be read, looks at the clock.
    ReadHere(usize, u64, ClientId, Box<(Arc<Open>, Call)>),
    /// Shards get their first learners.
    FirstLearners,
    /// The next fault is drawn.
    NextFault,
    /// A node that has just become a leader is struck.
    NewLeader(usize),
    /// A node that has just taken a transferred state is struck.
    NewState(usize),
    /// The second half of [`FaultKind::Usurp`]: this leader loses these followers, which restart, for so long.
    Usurp(usize, Vec<usize>, Nanos),
    /// A fault that was to meet a candidate meets one.
    Candidate(usize),
    /// A fault that was to meet a candidate has waited long enough for one.
    NoCandidate,
    /// A fault ends.
    Undo(Fault),
    /// A node that ended in this incarnation starts again.
    Restart(usize, u64),
    /// A node that didn't stop in time is killed.
    Kill(usize, u64),
}

/// Which operations clients begin by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// They go on and on.
    Load,
    /// They begin nothing.
    None,
}

/// A running cluster.
pub struct Cluster {
    /// What it is like.
    pub plan: Plan,
    pub(crate) random: Random,
    pub(crate) queue: Queue<Event>,
    pub(crate) nodes: Vec<Node>,
    /// What is between the nodes.
    pub network: Network,
    /// The clients and what they learned.
    pub clients: Clients,
    /// The checkers of every step.
    pub safety: RaftSafety,
    pub(crate) votes: Votes,
    pub(crate) recovery: Recovery,
    pub(crate) ranges: Ranges,
    /// What happened.
    pub trace: Trace,
    /// Shards of the cluster.
    pub shards: Arc<Vec<Descriptor>>,
    /// Faults so far.
    pub faults: Coverage,
    pub(crate) traffic: Traffic,
    pub(crate) faults_on: bool,
    /// Faults so far, of all kinds; also those that the plan keeps from striking, so that a run goes on without
    /// them as it did with them.
    pub faults_total: u64,
    /// Faults drawn so far, whether the plan let them strike or not.
    pub faults_drawn: u64,
    /// Clients of the harness that have asked for other leaders or members.
    pub(crate) operators: ClientId,
    /// A new leader, by node, that is struck as soon as it commits more than this of its shard.
    pub(crate) spared: Option<(usize, ShardId, Index)>,
    /// A kind of fault that waits for a candidate.
    pub(crate) armed: Option<FaultKind>,
    /// Candidates are spared until then, or none would ever be elected.
    pub(crate) candidates_spared_until: Nanos,
    /// Nodes whose disks may be damaged: never more than a shard can lose replicas.
    pub(crate) damaged: BTreeSet<usize>,
    violation: Option<Violation>,
    /// Whether the last call of each of the harness's own clients was carried out.
    pub(crate) probes: BTreeMap<ClientId, bool>,
    /// Steps taken by all cores.
    pub steps: u64,
    /// What starts of processes found.
    pub found: Found,
}

/// What processes found and did, to see that the rare paths are taken.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Found {
    /// Starts of processes.
    pub starts: u64,
    /// Cores that found a torn tail.
    pub torn_tails: u64,
    /// Replicas that came from streams of another core count.
    pub rehomed: u64,
    /// Transferred dumps installed.
    pub installs: u64,
    /// Cores that failed because of their disk.
    pub failed_cores: u64,
    /// Nodes that refused their damaged disks.
    pub condemned: u64,
    /// Reads that clients did without the core, under a lease.
    pub reads_here: u64,
}

/// Clients of one operation, that come many at once, have numbers from here on.
pub const BURSTS: ClientId = 1 << 19;
/// Clients of the harness itself have numbers from here on.
pub const PROBES: ClientId = 1 << 20;
/// Those of them that ask for other leaders and members.
pub const OPERATORS: ClientId = 1 << 21;

impl std::ops::AddAssign for Found {
    fn add_assign(&mut self, other: Self) {
        self.starts += other.starts;
        self.torn_tails += other.torn_tails;
        self.rehomed += other.rehomed;
        self.installs += other.installs;
        self.failed_cores += other.failed_cores;
        self.condemned += other.condemned;
        self.reads_here += other.reads_here;
    }
}

impl Cluster {
    /// A cluster whose nodes all start at once, on empty disks.
    pub fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed ^ 0xF10E);
        let ids: Vec<NodeId> = (1..=plan.cores.len() as u64).map(NodeId).collect();
        let shards = Arc::new(pre_split(&ids, plan.shards, plan.replication));
        let nodes = ids.iter().zip(&plan.cores).map(|(&id, &cores)| {
            Node::new(id, cores, Disk::new(random.fork(), plan.disk.clone()), random.fork())
        });
        let nodes = nodes.collect();
        let network = Network::new(random.fork(), plan.network.clone());
        let clients = Clients::new(random.fork(), plan.load.clone(), &shards);
        let mut cluster = Self {
            random,
            queue: Queue::default(),
            nodes,
            network,
            clients,
            safety: RaftSafety::default(),
            votes: Votes::default(),
            recovery: Recovery::default(),
            ranges: Ranges::default(),
            trace: Trace::new(plan.prints),
            shards,
            faults: Coverage::default(),
            traffic: Traffic::None,
            faults_on: false,
            faults_total: 0,
            faults_drawn: 0,
            operators: 0,
            spared: None,
            armed: None,
            candidates_spared_until: 0,
            damaged: BTreeSet::new(),
            violation: None,
            probes: BTreeMap::new(),
            steps: 0,
            found: Found::default(),
            plan,
        };
        for node in 0..cluster.nodes.len() {
            cluster.start_node(node);
        }
        cluster
    }

    /// True time.
    pub fn now(&self) -> Nanos {
        self.queue.now()
    }

    /// Lets the plan's clients begin.
    pub fn start_clients(&mut self) {
        self.traffic = Traffic::Load;
        for client in 0..self.plan.load.clients {
            let after = self.random.below(10 * MS);
            self.queue.after(after, Event::Client(client));
        }
    }

    /// Handles events until `done`, at most for `within`. Answers whether it is done.
    ///
    /// # Errors
    /// A promise that was broken.
    pub fn run_until(
        &mut self,
        within: Nanos,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<bool, Violation> {
        let end = self.now().saturating_add(within);
        loop {
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if done(self) {
                return Ok(true);
            }
            if self.now() >= end {
                return Ok(false);
            }
            match self.queue.pop() {
                Some(event) => self.handle(event),
                None => return Ok(false),
            }
        }
    }

    /// Handles events for a while.
    ///
    /// # Errors
    /// A promise that was broken.
    pub fn run_for(&mut self, time: Nanos) -> Result<(), Violation> {
        self.run_until(time, |_| false).map(|_| ())
    }

    pub(crate) fn break_promise(&mut self, violation: Violation) {
        let now = self.now();
        self.trace.note(now, &[0xBAD], || format!("VIOLATION {violation}"));
        self.violation.get_or_insert(violation);
    }

    fn handle(&mut self, event: Event) {
        let now = self.queue.now();
        match event {
            Event::Net(event) => {
                self.network.handle(now, event);
                self.pump_network();
            }
            Event::Disk(node, ticket) => {
                let incarnation = self.nodes[node].incarnation;
                if let Some((core, op, result)) = self.nodes[node].disk.complete(ticket) {
                    self.input(node, incarnation, core, Input::Disk { op, result });
                }
            }
            Event::Run(node, incarnation, core) => self.run_core(node, incarnation, core),
            Event::Timer(node, incarnation, core, at) => {
                if let Some(process) = self.nodes[node].process_of(incarnation) {
                    let waiting = &mut process.cores[usize::from(core)];
                    if waiting.timer_at == at {
                        waiting.timer_at = Nanos::MAX;
                        self.wake(node, core);
                    }
                }
            }
            Event::Input(node, incarnation, core, input) => self.input(node, incarnation, core, *input),
            Event::Client(client) => self.client_turn(client),
            Event::Answer(client, answer) => self.client_answer(client, answer),
            Event::ReadHere(node, incarnation, client, read) => {
                self.read_here(node, incarnation, client, *read)
            }
            Event::FirstLearners => self.seat_learners(),
            Event::NextFault => self.next_fault(),
            Event::NewLeader(node) => self.strike_new_leader(node),
            Event::NewState(node) => self.strike_new_state(node),
            Event::Usurp(leader, followers, lasts) => self.restart_followers(leader, &followers, lasts),
            Event::Candidate(node) => self.strike_armed(Some(node)),
            Event::NoCandidate => self.strike_armed(None),
            Event::Undo(fault) => self.undo(&fault),
            Event::Restart(node, incarnation) => {
                if self.nodes[node].incarnation == incarnation && self.nodes[node].process.is_none() {
                    self.start_node(node);
                }
            }
            Event::Kill(node, incarnation) => {
                if self.nodes[node].process_of(incarnation).is_some() {
                    self.end_node(node, Crash::Process);
                }
            }
        }
    }

    /// Puts what the network wants later into the queue, and what it delivers into inboxes.
    pub(crate) fn pump_network(&mut self) {
        for (at, event) in std::mem::take(&mut self.network.later) {
            self.queue.at(at, Event::Net(event));
        }
        for delivery in std::mem::take(&mut self.network.deliveries) {
            let (to, input) = match delivery {
                Delivery::Up { to, peer, cores } => (to, Input::PeerUp { peer, cores }),
                Delivery::Down { to, peer } => (to, Input::PeerDown { peer }),
                Delivery::Frame { to, from, body } => (to, Input::Frame { from, body }),
            };
            let node = index(to.node);
            let incarnation = self.nodes[node].incarnation;
            self.input(node, incarnation, to.core, input);
        }
    }

    // ---- cores

    pub(crate) fn input(&mut self, node: usize, incarnation: u64, core: u16, input: Input) {
        let Some(process) = self.nodes[node].process_of(incarnation) else { return };
        let Some(state) = process.cores.get_mut(usize::from(core)) else { return };
        state.inbox.push(input);
        self.wake(node, core);
    }

    pub(crate) fn wake(&mut self, node: usize, core: u16) {
        let now = self.queue.now();
        let Node { incarnation, paused_until, ref mut process, .. } = self.nodes[node];
        let Some(process) = process else { return };
        let state = &mut process.cores[usize::from(core)];
        if !std::mem::replace(&mut state.is_scheduled, true) {
            let soon = now + self.random.skewed(5 * US);
            self.queue.at(soon.max(state.free_at).max(paused_until), Event::Run(node, incarnation, core));
        }
    }

    fn run_core(&mut self, node: usize, incarnation: u64, core: u16) {
        let now = self.queue.now();
        let Node { id, paused_until, clock, ref mut process, incarnation: current, .. } = self.nodes[node];
        let Some(process) = process.as_mut().filter(|_| current == incarnation) else { return };
        if paused_until > now {
            return self.queue.at(paused_until, Event::Run(node, incarnation, core));
        }
        let state = &mut process.cores[usize::from(core)];
        state.is_scheduled = false;
        let local = clock.local(now);
        let me = CoreAddr { node: id, core };
        for input in &state.inbox {
            self.trace.input(now, me, input);
        }
        state.free_at = now + US * (2 + state.inbox.len() as u64);
        let Core { worker, inbox, effects, .. } = state;
        worker.step(local, inbox, effects);
        self.steps += 1;
        self.check_core(node, core);
        self.carry_out(node, core);
        let Some(process) = self.nodes[node].process_of(incarnation) else { return };
        let state = &mut process.cores[usize::from(core)];
        if state.worker.has_work() {
            return self.wake(node, core);
        }
        let due = clock.true_time(state.worker.deadline());
        if due != Nanos::MAX && due != state.timer_at {
            state.timer_at = due;
            let late = if due > now { self.random.skewed(20 * US) } else { 2 * US };
            self.queue.at(due.max(now) + late, Event::Timer(node, incarnation, core, due));
        }
    }

    /// Carries out what a core wants done.
    pub(crate) fn carry_out(&mut self, node: usize, core: u16) {
        let now = self.queue.now();
        let Node { id, incarnation, ref mut process, ref mut disk, .. } = self.nodes[node];
        let Some(process) = process else { return };
        let state = &mut process.cores[usize::from(core)];
        let mut effects = std::mem::take(&mut state.effects);
        let me = CoreAddr { node: id, core };
        for (op, call) in effects.disk.drain(..) {
            let number = crate::sim::disk::op_number(op);
            self.trace.core(now, me, &[3, number], || format!("-> {op:?} {call:?}"));
            let (ticket, latency) = disk.issue(core, op, call);
            self.queue.after(latency, Event::Disk(node, ticket));
        }
        for (to, message) in effects.to_cores.drain(..) {
            self.trace.core(now, me, &[4, u64::from(to)], || format!("-> core {to} {message:?}"));
            let input = Box::new(Input::Core { from: core, message });
            // Always delivered and in order: equal delays, and the queue keeps the order of equal times.
            self.queue.after(5 * US, Event::Input(node, incarnation, to, input));
        }
        for (to, frame) in effects.sends.drain(..) {
            self.trace.core(now, me, &[5, to.node.0, u64::from(to.core), frame.len() as u64], || {
                format!("-> {to} frame of {} bytes", frame.len())
            });
            self.network.send(now, me, to, &frame);
        }
        for (peer, reason) in effects.disconnects.drain(..) {
            if let DisconnectReason::BadFrame(error) = reason {
                self.violation
                    .get_or_insert(Violation::new("protocol", format!("{me} refuses {peer}: {error}")));
            }
            self.network.disconnect(now, me, peer);
        }
        let answers: Vec<_> = effects.answers.drain(..).collect();
        let events: Vec<_> = effects.events.drain(..).collect();
        state.effects = effects;
        self.pump_network();
        answers.into_iter().for_each(|(id, answer)| self.on_answer(node, core, id, answer));
        events.into_iter().for_each(|event| self.on_event(node, core, event));
    }

    fn on_answer(&mut self, node: usize, core: u16, id: RequestId, answer: Answer) {
        let now = self.queue.now();
        let me = CoreAddr { node: self.nodes[node].id, core };
        self.trace.core(now, me, &[6, id.0], || format!("-> answer {} {answer:?}", id.0));
        let Some(process) = &mut self.nodes[node].process else { return };
        match process.cores[usize::from(core)].clients.remove(&id) {
            Some(client) => {
                let after = self.random.skewed(10 * US);
                self.queue.after(after, Event::Answer(client, Some(answer)));
            }
            None => self.break_promise(Violation::new(
                "one answer",
                format!("{me} answered request {} once more, or nobody asked: {answer:?}", id.0),
            )),
        }
    }

    // ---- clients

    /// The load is spread over the faults that there must be at the least, so that each meets some of it. (Some kinds need
    /// load to strike: what was drawn in vain counts a little, too.)
    fn is_ahead_of_faults(&self) -> bool {
        let faults = self.faults_total.max(self.faults_drawn / IN_VAIN);
        let share = self.plan.load.operations * (faults + 1) / FAULTS_MIN;
        self.faults_on && !self.plan.faults.is_empty() && self.clients.counts.begun >= share
    }

    fn client_turn(&mut self, client: ClientId) {
        if self.traffic == Traffic::None || self.clients.is_waiting(client) {
            return;
        }
        if self.is_ahead_of_faults() {
            return self.queue.after(5 * MS, Event::Client(client));
        }
        let up: Vec<usize> =
            (0..self.nodes.len()).filter(|node| self.nodes[*node].process.is_some()).collect();
        if up.is_empty() {
            return self.queue.after(10 * MS, Event::Client(client));
        }
        let node = *self.random.pick(&up);
        let call = self.clients.begin(self.queue.now(), client);
        self.send_call(client, node, call);
    }

    /// Whether the last call of one of the harness's own clients was carried out; `None` while it waits.
    pub fn outcome(&self, client: ClientId) -> Option<bool> {
        self.probes.get(&client).copied()
    }

    /// Sends a call that a client has begun to a node.
    pub fn ask(&mut self, client: ClientId, node: usize, call: Call) {
        self.send_call(client, node, call);
    }

    /// A node.
    pub fn node(&self, node: usize) -> &Node {
        &self.nodes[node]
    }

    /// Sets how many cores a node has from its next start on.
    pub fn set_cores(&mut self, node: usize, cores: u16) {
        self.nodes[node].cores_next = cores;
    }

    pub(crate) fn client_answer(&mut self, client: ClientId, answer: Option<Answer>) {
        let now = self.queue.now();
        match self.clients.end(now, client, answer, &self.safety) {
            Err(violation) => self.break_promise(violation),
            Ok(done) if client < BURSTS => {
                // Who is refused waits a little before he asks for more.
                let back_off = if done { 0 } else { self.random.below(4 * self.plan.load.think_ns) };
                let after = self.clients.think() + back_off;
                self.queue.after(after, Event::Client(client));
            }
            Ok(_) if client < PROBES => {}
            Ok(done) => {
                self.probes.insert(client, done);
            }
        }
    }
}

/// A node's place among the nodes.
pub(crate) fn index(node: NodeId) -> usize {
    node.0 as usize - 1
}
