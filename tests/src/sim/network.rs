//! Connections between cores of different nodes, as TCP gives them: in order and without loss while a
//! connection lasts; a loss is the end of a connection, which both ends notice at times of their own.
//!
//! A blocked direction (a one-way partition) holds frames back. If it opens soon, they all arrive, late;
//! if not, the connection is cut. With *chaos*, which TCP never does but Raft must stand, the parts of a
//! frame that belong to Raft are also lost without a word, or arrive once more, late and out of order.
//!
//! Which cores connect: equal numbers if the nodes have equally many cores, else every pair.

use crate::random::Random;
use crate::sim::clock::{MS, US};
use bytes::Bytes;
use floe::codec;
use floe::seam::OutFrame;
use floe_raft::Nanos;
use floe_shard::{CoreAddr, NodeId, PeerBatch, PeerMessage};
use rkyv::util::AlignedVec;
use std::collections::BTreeMap;

/// How the network behaves; faults change it while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkProfile {
    /// Usual latency of a frame; larger ones have a long tail.
    pub latency_ns: Nanos,
    /// Added to every latency.
    pub delay_ns: Nanos,
    /// Of a million frames, how many end their connection.
    pub loss_ppm: u64,
    /// Of a million frames, how many lose what Raft says in them, and as many have it arrive twice.
    pub chaos_ppm: u64,
}

impl Default for NetworkProfile {
    fn default() -> Self {
        Self { latency_ns: 100 * US, delay_ns: 0, loss_ppm: 0, chaos_ppm: 0 }
    }
}

/// Two cores of different nodes, the smaller address first.
type Pair = [CoreAddr; 2];

/// What the network does later.
#[derive(Debug)]
pub enum NetEvent {
    /// Tries to connect a pair.
    Connect(Pair),
    /// One side learns of a new connection.
    Up(Pair, u64, usize),
    /// One side learns that a connection is gone.
    Down(Pair, u64, usize),
    /// Cuts a connection if a direction is still blocked.
    KeepAlive(Pair, u64),
    /// A frame's body arrives at one side.
    Arrive(Pair, u64, usize, Bytes),
}

/// What reaches a core.
#[derive(Debug)]
pub enum Delivery {
    /// A connection is up.
    Up {
        /// Who learns it.
        to: CoreAddr,
        /// The other end.
        peer: CoreAddr,
        /// Its node's cores.
        cores: u16,
    },
    /// A connection is gone.
    Down {
        /// Who learns it.
        to: CoreAddr,
        /// The other end.
        peer: CoreAddr,
    },
    /// A frame's body.
    Frame {
        /// Who gets it.
        to: CoreAddr,
        /// Who sent it.
        from: CoreAddr,
        /// The body, aligned.
        body: Bytes,
    },
}

#[derive(Debug, Default)]
struct Link {
    generation: u64,
    connected: bool,
    /// Which connection each side believes to be up.
    known: [Option<u64>; 2],
    /// Nothing may arrive at a side before this: order is kept.
    arrived_at: [Nanos; 2],
    /// Frames towards a side that is blocked.
    held: [Vec<Bytes>; 2],
    /// The connection brings nothing to a side any more, and neither end is told.
    stuck: [bool; 2],
}

/// The network of a cluster.
#[derive(Debug)]
pub struct Network {
    random: Random,
    /// How it behaves now.
    pub profile: NetworkProfile,
    /// Running nodes and their cores.
    nodes: BTreeMap<NodeId, u16>,
    links: BTreeMap<Pair, Link>,
    /// Directions that let nothing through: from, to.
    blocked: BTreeMap<(NodeId, NodeId), u32>,
    /// How often all directions were opened at once.
    pub openings: u64,
    /// To be put into the queue of events: when and what.
    pub later: Vec<(Nanos, NetEvent)>,
    /// To be handed to cores now, in order.
    pub deliveries: Vec<Delivery>,
    /// What cores have sent over connections since somebody last set it to zero.
    pub sent: Sent,
}

/// Frames, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// How many.
    pub frames: u64,
    /// The largest one's length, in bytes.
    pub bytes_max: usize,
}

impl Network {
    /// A network without nodes.
    pub fn new(random: Random, profile: NetworkProfile) -> Self {
        Self {
            random,
            profile,
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            blocked: BTreeMap::new(),
            openings: 0,
            later: Vec::new(),
            deliveries: Vec::new(),
            sent: Sent::default(),
        }
    }

    /// A node's process runs and connects to the others.
    pub fn node_up(&mut self, now: Nanos, node: NodeId, cores: u16) {
        // Whoever still believes in a connection to the old process is told so by the new one.
        self.notice_all(now, node, 20 * MS);
        self.nodes.insert(node, cores);
        for (&other, &other_cores) in self.nodes.iter().filter(|(other, _)| **other != node) {
            for pair in pairs((node, cores), (other, other_cores)) {
                self.later.push((now + self.random.between(MS, 20 * MS), NetEvent::Connect(pair)));
            }
        }
    }

    /// A node's process is gone; its peers notice within about `notice_ns`.
    pub fn node_down(&mut self, now: Nanos, node: NodeId, notice_ns: Nanos) {
        self.nodes.remove(&node);
        for (pair, link) in self.links.iter_mut().filter(|(pair, _)| side_of(pair, node).is_some()) {
            let gone = side_of(pair, node).expect("filtered by it");
            link.connected = false;
            link.known[gone] = None;
            link.held = Default::default();
        }
        self.notice_all(now, node, notice_ns);
    }

    /// Blocks or opens a direction; blocks of several faults add up.
    pub fn block(&mut self, now: Nanos, from: NodeId, to: NodeId, blocks: bool) {
        let count = self.blocked.entry((from, to)).or_default();
        *count = if blocks { *count + 1 } else { count.saturating_sub(1) };
        let open = *count == 0;
        let concerned = |pair: &Pair| {
            pair[0].node.min(pair[1].node) == from.min(to)
                && side_of(pair, from).is_some()
                && side_of(pair, to).is_some()
        };
        let concerned: Vec<Pair> = self.links.keys().filter(|pair| concerned(pair)).copied().collect();
        for pair in concerned {
            let side = side_of(&pair, to).expect("filtered by it");
            let link = self.links.get_mut(&pair).expect("its key was just found");
            let generation = link.generation;
            if open {
                for body in std::mem::take(&mut link.held[side]) {
                    self.schedule(now, pair, side, body);
                }
            } else if link.connected {
                let patience = self.random.between(200 * MS, 3_000 * MS);
                self.later.push((now + patience, NetEvent::KeepAlive(pair, generation)));
            }
        }
    }

    /// Connections that were made so far.
    pub fn connections_made(&self) -> u64 {
        self.links.values().map(|link| link.generation).sum()
    }

    /// The connections from one node to another are stuck: nothing arrives on them in this direction until they are
    /// replaced.
    pub fn stick(&mut self, from: NodeId, to: NodeId) {
        for (pair, link) in &mut self.links {
            if let (Some(_), Some(side)) = (side_of(pair, from), side_of(pair, to)) {
                link.stuck[side] = true;
            }
        }
    }

    /// Opens every direction.
    pub fn open_all(&mut self, now: Nanos) {
        self.openings += 1;
        for (from, to) in self.blocked.keys().copied().collect::<Vec<_>>() {
            self.blocked.insert((from, to), 1);
            self.block(now, from, to, false);
        }
    }

    /// Cuts the connections of a node, or of one pair of nodes.
    pub fn cut(&mut self, now: Nanos, node: NodeId, other: Option<NodeId>) {
        let concerned = |pair: &Pair| {
            side_of(pair, node).is_some() && other.is_none_or(|other| side_of(pair, other).is_some())
        };
        for pair in self.links.keys().filter(|pair| concerned(pair)).copied().collect::<Vec<_>>() {
            self.cut_pair(now, pair);
        }
    }

    /// Cuts the connection of two cores.
    pub fn disconnect(&mut self, now: Nanos, one: CoreAddr, other: CoreAddr) {
        self.cut_pair(now, pair_of(one, other));
    }

    /// Sends a frame; it is lost if there is no connection.
    pub fn send(&mut self, now: Nanos, from: CoreAddr, to: CoreAddr, frame: &OutFrame) {
        let pair = pair_of(from, to);
        let Some(link) = self.links.get_mut(&pair) else { return };
        let side = usize::from(pair[1] == to);
        if !link.connected || link.stuck[side] || link.known[1 - side] != Some(link.generation) {
            return;
        }
        self.sent.frames += 1;
        self.sent.bytes_max = self.sent.bytes_max.max(frame.len());
        let body = receive(frame);
        if self.random.chance_ppm(self.profile.loss_ppm) {
            return self.cut_pair(now, pair);
        }
        let body = self.chaos(now, pair, side, body);
        let link = self.links.get_mut(&pair).expect("it was there above");
        if self.blocked.get(&(from.node, to.node)).is_some_and(|count| *count > 0) {
            link.held[side].push(body);
        } else {
            self.schedule(now, pair, side, body);
        }
    }

    /// Carries out what was scheduled.
    pub fn handle(&mut self, now: Nanos, event: NetEvent) {
        match event {
            NetEvent::Connect(pair) => self.connect(now, pair),
            NetEvent::KeepAlive(pair, generation) => {
                let link = &self.links[&pair];
                if link.generation == generation && link.connected && self.is_blocked(&pair) {
                    self.cut_pair(now, pair);
                }
            }
            NetEvent::Up(pair, generation, side) => self.on_up(pair, generation, side),
            NetEvent::Down(pair, generation, side) => {
                let link = self.links.get_mut(&pair).expect("links are never removed");
                if link.known[side] == Some(generation) {
                    link.known[side] = None;
                    self.deliveries.push(Delivery::Down { to: pair[side], peer: pair[1 - side] });
                }
            }
            NetEvent::Arrive(pair, generation, side, body) => {
                if self.links[&pair].known[side] == Some(generation) {
                    let (to, from) = (pair[side], pair[1 - side]);
                    self.deliveries.push(Delivery::Frame { to, from, body });
                }
            }
        }
    }

    /// Whether every pair that should be connected is, as far as both sides know.
    pub fn is_whole(&self) -> bool {
        let nodes: Vec<(NodeId, u16)> = self.nodes.iter().map(|(node, cores)| (*node, *cores)).collect();
        nodes.iter().enumerate().all(|(at, &one)| {
            nodes[at + 1..].iter().all(|&other| {
                pairs(one, other).iter().all(|pair| {
                    self.links.get(pair).is_some_and(|link| {
                        link.connected && link.known.iter().all(|known| *known == Some(link.generation))
                    })
                })
            })
        })
    }

    fn is_blocked(&self, [one, other]: &Pair) -> bool {
        let blocked =
            |from: NodeId, to: NodeId| self.blocked.get(&(from, to)).is_some_and(|count| *count > 0);
        blocked(one.node, other.node) || blocked(other.node, one.node)
    }

    fn connect(&mut self, now: Nanos, pair: Pair) {
        let ends = pair.map(|end| self.nodes.get(&end.node).map(|cores| (end.node, *cores)));
        let [Some(one), Some(other)] = ends else { return };
        if !pairs(one, other).contains(&pair) || self.links.get(&pair).is_some_and(|link| link.connected) {
            return;
        }
        if self.is_blocked(&pair) {
            let again = now + self.random.between(20 * MS, 100 * MS);
            return self.later.push((again, NetEvent::Connect(pair)));
        }
        let up_at = [0, 1].map(|_| now + self.profile.delay_ns + self.random.skewed(MS));
        let link = self.links.entry(pair).or_default();
        link.generation += 1;
        link.connected = true;
        link.stuck = [false; 2];
        link.arrived_at = up_at;
        for (side, at) in up_at.into_iter().enumerate() {
            self.later.push((at, NetEvent::Up(pair, link.generation, side)));
        }
    }

    fn on_up(&mut self, pair: Pair, generation: u64, side: usize) {
        let link = self.links.get_mut(&pair).expect("links are never removed");
        let cores = self.nodes.get(&pair[1 - side].node);
        let Some(&cores) = cores.filter(|_| link.connected && link.generation == generation) else { return };
        let (to, peer) = (pair[side], pair[1 - side]);
        if link.known[side].replace(generation).is_some() {
            self.deliveries.push(Delivery::Down { to, peer });
        }
        self.deliveries.push(Delivery::Up { to, peer, cores });
    }

    fn cut_pair(&mut self, now: Nanos, pair: Pair) {
        let Some(link) = self.links.get_mut(&pair).filter(|link| link.connected) else { return };
        link.connected = false;
        link.held = Default::default();
        let quick = self.random.percent(70);
        for (side, known) in link.known.into_iter().enumerate() {
            let within = if quick { 2 * MS } else { 500 * MS };
            if let Some(generation) = known {
                let at = now + self.random.between(0, within);
                self.later.push((at, NetEvent::Down(pair, generation, side)));
            }
        }
        self.later.push((now + self.random.between(MS, 100 * MS), NetEvent::Connect(pair)));
    }

    /// Everybody who believes in a dead connection to `node` notices soon.
    fn notice_all(&mut self, now: Nanos, node: NodeId, within: Nanos) {
        for (pair, link) in &self.links {
            let Some(gone) = side_of(pair, node).filter(|_| !link.connected) else { continue };
            if let Some(generation) = link.known[1 - gone] {
                let at = now + self.random.between(0, within);
                self.later.push((at, NetEvent::Down(*pair, generation, 1 - gone)));
            }
        }
    }

    fn schedule(&mut self, now: Nanos, pair: Pair, side: usize, body: Bytes) {
        let usual = self.profile.latency_ns;
        let latency = self.profile.delay_ns + usual / 2 + self.random.skewed(usual) + body.len() as u64;
        let link = self.links.get_mut(&pair).expect("frames travel on links");
        let at = (now + latency).max(link.arrived_at[side]);
        link.arrived_at[side] = at;
        self.later.push((at, NetEvent::Arrive(pair, link.generation, side, body)));
    }

    /// Loses or repeats what Raft says in a frame, if that is drawn.
    fn chaos(&mut self, now: Nanos, pair: Pair, side: usize, body: Bytes) -> Bytes {
        if self.profile.chaos_ppm == 0 {
            return body;
        }
        let (lose, repeat) =
            (self.random.chance_ppm(self.profile.chaos_ppm), self.random.chance_ppm(self.profile.chaos_ppm));
        if !lose && !repeat {
            return body;
        }
        let whole = codec::decode(body.clone()).expect("own frames decode");
        let is_raft = |message: &PeerMessage| matches!(message, PeerMessage::Raft { .. });
        let (raft, rest): (Vec<_>, Vec<_>) = whole.messages.into_iter().partition(is_raft);
        let raft = PeerBatch { beat: whole.beat, beat_reply: whole.beat_reply, messages: raft };
        if repeat && !raft.is_empty() {
            let at = now + self.random.between(0, 100 * MS);
            let generation = self.links[&pair].generation;
            let again = receive(&codec::encode(&raft));
            self.later.push((at, NetEvent::Arrive(pair, generation, side, again)));
        }
        match lose {
            true => receive(&codec::encode(&PeerBatch { messages: rest, ..PeerBatch::default() })),
            false => body,
        }
    }
}

/// The body of a frame as a receiver has it: checked and in an aligned buffer.
pub(crate) fn receive(frame: &OutFrame) -> Bytes {
    let mut header = [0; codec::HEADER_LEN];
    let mut filled = 0;
    let mut body = AlignedVec::<16>::with_capacity(frame.len());
    for part in &frame.parts {
        let (head, rest) = part.split_at(part.len().min(codec::HEADER_LEN - filled));
        header[filled..filled + head.len()].copy_from_slice(head);
        filled += head.len();
        body.extend_from_slice(rest);
    }
    let head = codec::parse_header(&header).expect("a core sends right headers");
    codec::check_body(&head, &body).expect("a core sends whole bodies");
    Bytes::from_owner(body)
}

fn pair_of(one: CoreAddr, other: CoreAddr) -> Pair {
    if one < other { [one, other] } else { [other, one] }
}

fn side_of(pair: &Pair, node: NodeId) -> Option<usize> {
    pair.iter().position(|end| end.node == node)
}

/// The pairs of cores that connect.
fn pairs((one, cores): (NodeId, u16), (other, other_cores): (NodeId, u16)) -> Vec<Pair> {
    let all = (0..cores).flat_map(|core| (0..other_cores).map(move |other_core| (core, other_core)));
    all.filter(|(core, other_core)| cores != other_cores || core == other_core)
        .map(|(core, other_core)| {
            pair_of(CoreAddr { node: one, core }, CoreAddr { node: other, core: other_core })
        })
        .collect()
}
