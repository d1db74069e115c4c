//! A group of replicas with simulated disks and a simulated network, driven by hand. It watches the
//! paper's properties (Figure 3) all the time: at most one leader per term, leaders hold what was
//! committed before, and nobody applies anything different at an index.
#![allow(dead_code, reason = "each test binary uses its own part")]

use bytes::Bytes;
use floe_raft::{
    Body, Config, Entry, EntryKind, HardState, Index, LeaderStamp, Mark, Membership, Message, Nanos, Raft,
    Ready, ReplicaId, Restored, RoleKind, SnapshotInstall, Term, WriteId,
};
use std::collections::{BTreeMap, VecDeque};

pub fn replica(number: usize) -> ReplicaId {
    ReplicaId::new(number as u64).expect("numbers start at 1")
}

/// What survives a crash.
#[derive(Clone, Debug)]
pub struct Disk {
    pub hard: HardState,
    pub base: Mark,
    pub membership: Membership,
    pub entries: Vec<Entry>,
}

/// Handed out, not durable yet.
pub struct PendingWrite {
    id: Option<WriteId>,
    hard: Option<HardState>,
    entries: Vec<Entry>,
    snapshot: Option<SnapshotInstall>,
    /// To send once this is durable.
    after: Vec<Message>,
}

/// One replica and its machine.
pub struct Node {
    pub id: ReplicaId,
    /// `None` while crashed.
    pub raft: Option<Raft>,
    pub disk: Disk,
    pub pending: VecDeque<PendingWrite>,
    /// Handed out to apply, not applied yet.
    pub to_apply: VecDeque<Entry>,
    pub reads: Vec<(u64, Index)>,
    pub reads_dropped: Vec<u64>,
    pub snapshots_needed: Vec<ReplicaId>,
    incarnation: u64,
}

impl Node {
    pub fn raft(&self) -> &Raft {
        self.raft.as_ref().expect("the node runs")
    }
}

/// The group.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub net: VecDeque<Message>,
    pub now: Nanos,
    pub config: Config,
    pub seed: u64,
    /// Which side of a partition each node is on.
    pub side: Vec<usize>,
    pub auto_persist: bool,
    pub auto_apply: bool,
    /// What voters may promise to leaders, durably from the beginning; 0 = nothing.
    pub promise_ns: Nanos,
    /// How much too fast each node's clock runs, in millionths.
    pub drift_ppm: Vec<i64>,
    /// Highest index that some caller was told about: applied by a leader, or read elsewhere by its word.
    pub seen: Index,
    /// What happened, in words.
    pub trace: Vec<String>,
    /// Whether messages are worth a line.
    pub trace_messages: bool,
    /// Everything known to be committed, with the term in which that was first seen.
    pub truth: BTreeMap<Index, (Entry, Term)>,
    /// When the last index of `truth` rose, and to what.
    pub truth_rose: Vec<(Nanos, Index)>,
    pub leaders: BTreeMap<Term, ReplicaId>,
    ready: Ready,
}

impl Cluster {
    pub fn new(voters: usize, learners: usize, config: Config, seed: u64) -> Self {
        Self::with_spares(voters, learners, 0, config, seed)
    }

    /// With `spares` more, which are running but no members: they can be added.
    pub fn with_spares(voters: usize, learners: usize, spares: usize, config: Config, seed: u64) -> Self {
        let count = voters + learners + spares;
        let membership = Membership {
            learners: (voters + 1..=voters + learners).map(replica).collect(),
            ..Membership::of_voters((1..=voters).map(replica))
        };
        let disk = Disk { hard: HardState::default(), base: Mark::ZERO, membership, entries: Vec::new() };
        let mut cluster = Self {
            nodes: Vec::new(),
            net: VecDeque::new(),
            now: 0,
            config,
            seed,
            side: vec![0; count],
            auto_persist: true,
            auto_apply: true,
            promise_ns: 0,
            drift_ppm: vec![0; count],
            seen: 0,
            trace: Vec::new(),
            trace_messages: true,
            truth: BTreeMap::new(),
            truth_rose: Vec::new(),
            leaders: BTreeMap::new(),
            ready: Ready::default(),
        };
        for number in 1..=count {
            cluster.nodes.push(Node {
                id: replica(number),
                raft: None,
                disk: disk.clone(),
                pending: VecDeque::new(),
                to_apply: VecDeque::new(),
                reads: Vec::new(),
                reads_dropped: Vec::new(),
                snapshots_needed: Vec::new(),
                incarnation: 0,
            });
            cluster.restart(number);
        }
        cluster
    }

    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    pub fn say(&mut self, line: String) {
        self.trace.push(line);
    }

    // --- crashes

    /// Loses everything that isn't durable, messages that wait for durability included.
    pub fn crash(&mut self, number: usize) {
        let node = &mut self.nodes[number - 1];
        node.raft = None;
        node.pending.clear();
        node.to_apply.clear();
        node.snapshots_needed.clear();
    }

    /// Starts from the disk; the state machine has only what its snapshot holds.
    pub fn restart(&mut self, number: usize) {
        let node = &mut self.nodes[number - 1];
        assert!(node.raft.is_none(), "{} runs", node.id);
        node.incarnation += 1;
        let disk = node.disk.clone();
        let restored = Restored {
            hard_state: disk.hard,
            snapshot: disk.base,
            membership: disk.membership,
            entries: disk.entries,
            applied: disk.base.index,
        };
        let seed = self.seed ^ (node.incarnation << 48);
        let is_first = node.incarnation == 1;
        let now = self.local(number);
        let node = &mut self.nodes[number - 1];
        let mut raft = Raft::new(node.id, self.config.clone(), restored, now, seed);
        if !is_first {
            raft.owe_promise(now, self.promise_ns);
        }
        raft.allow_promises(self.promise_ns);
        node.raft = Some(raft);
    }

    /// Lets voters promise, from the beginning.
    pub fn allow_promises(&mut self, ns: Nanos) {
        self.promise_ns = ns;
        self.nodes.iter_mut().filter_map(|node| node.raft.as_mut()).for_each(|raft| raft.allow_promises(ns));
    }

    /// What a node's clock reads.
    pub fn local(&self, number: usize) -> Nanos {
        self.local_of(number, self.now)
    }

    fn local_of(&self, number: usize, now: Nanos) -> Nanos {
        let fast = i128::from(now) * i128::from(self.drift_ppm[number - 1]) / 1_000_000;
        u64::try_from(i128::from(now) + fast).expect("clocks don't run backwards")
    }

    /// Replaces a node's log, before anything has happened.
    pub fn load(&mut self, number: usize, term: Term, terms: &[Term]) {
        self.crash(number);
        let disk = &mut self.nodes[number - 1].disk;
        disk.hard.term = term;
        disk.entries =
            (1..).zip(terms).map(|(index, &term)| command(Mark::new(term, index), "old")).collect();
        self.restart(number);
    }

    // --- inputs

    /// Runs `act` on a live replica and carries out what it wants.
    pub fn with<T>(&mut self, number: usize, act: impl FnOnce(&mut Raft, Nanos) -> T) -> Option<T> {
        let now = self.local(number);
        let result = self.nodes[number - 1].raft.as_mut().map(|raft| act(raft, now));
        self.process(number);
        self.check_reads_by_clock();
        result
    }

    pub fn deliver_at(&mut self, position: usize) {
        let Some(message) = self.net.remove(position) else { return };
        self.deliver(message);
    }

    pub fn deliver(&mut self, message: Message) {
        let (from, to) = (message.from.get() as usize, message.to.get() as usize);
        if self.side[from - 1] != self.side[to - 1] || self.nodes[to - 1].raft.is_none() {
            return;
        }
        let text = describe(&message);
        if self.trace_messages {
            self.say(text.clone());
        }
        if let Some(Err(nonsense)) = self.with(to, |raft, now| raft.step(now, message)) {
            panic!("a working replica is taken for a faulty one: {nonsense}: {text}");
        }
    }

    /// Ticks everybody who is due.
    pub fn tick(&mut self) {
        for number in 1..=self.nodes.len() {
            let now = self.local(number);
            if self.nodes[number - 1].raft.as_ref().is_some_and(|raft| raft.deadline() <= now) {
                self.with(number, |raft, now| raft.tick(now));
            }
        }
    }

    pub fn beat(&mut self) {
        for number in 1..=self.nodes.len() {
            self.with(number, |raft, now| raft.beat(now));
        }
    }

    /// Makes the oldest write of a node durable.
    pub fn persist_one(&mut self, number: usize) {
        let node = &mut self.nodes[number - 1];
        let Some(write) = node.pending.pop_front() else { return };
        write.save(&mut node.disk);
        let raft = node.raft.as_mut().expect("a crashed node has no writes");
        if let Some(id) = write.id {
            raft.persisted(id);
        }
        if let Some(snapshot) = write.snapshot {
            raft.snapshot_installed(snapshot.mark);
            node.to_apply.clear();
            self.say(format!("{} installed a snapshot at {}", replica(number), snapshot.mark));
        }
        write.after.into_iter().for_each(|message| self.post(message));
        self.process(number);
        self.check_reads_by_clock();
    }

    /// Applies everything that was handed out.
    pub fn apply_all(&mut self, number: usize) {
        let node = &mut self.nodes[number - 1];
        let Some(last) = node.to_apply.back().map(|entry| entry.mark.index) else { return };
        node.to_apply.clear();
        let raft = node.raft.as_mut().expect("a crashed node applies nothing");
        raft.applied(last);
        let served = node.reads.iter().map(|(_, index)| *index).filter(|index| *index <= last).max();
        let told = if raft.is_leader() { Some(last) } else { served };
        self.seen = self.seen.max(told.unwrap_or(0));
        self.process(number);
    }

    /// Flushes the state machine up to `to` and drops the log up to there.
    pub fn compact(&mut self, number: usize, to: Index) {
        let node = &mut self.nodes[number - 1];
        let Some(raft) = &mut node.raft else { return };
        let disk = &mut node.disk;
        if to > disk.base.index && to <= raft.applied_index() {
            let mark = Mark::new(raft.term_at(to).expect("applied and not compacted"), to);
            disk.membership = raft.membership_at(to).clone();
            disk.entries.retain(|entry| entry.mark.index > to);
            disk.base = mark;
            raft.compact(to);
        }
        self.process(number);
    }

    /// Hands `from`'s applied state to `to`, as the layer above would.
    pub fn send_snapshot(&mut self, from: usize, to: usize) {
        let raft = self.node(from).raft();
        let index = raft.applied_index();
        let mark = Mark::new(raft.term_at(index).expect("applied, so at or after the base"), index);
        let stamp = LeaderStamp::default();
        let body = Body::InstallSnapshot { mark, membership: raft.membership_at(index).clone(), stamp };
        let message = Message { from: replica(from), to: replica(to), term: raft.term(), body };
        self.nodes[from - 1].snapshots_needed.retain(|peer| *peer != replica(to));
        self.post(message);
    }

    // --- outputs

    fn post(&mut self, message: Message) {
        if self.side[message.from.get() as usize - 1] == self.side[message.to.get() as usize - 1] {
            self.net.push_back(message);
        }
    }

    /// Carries out everything a replica wants.
    pub fn process(&mut self, number: usize) {
        let mut rounds = 0;
        while self.nodes[number - 1].raft.as_ref().is_some_and(Raft::has_ready) {
            rounds += 1;
            assert!(rounds < 1000, "r{number} is never done: {:?}", self.nodes[number - 1].raft);
            let mut ready = std::mem::take(&mut self.ready);
            if let Some(raft) = &mut self.nodes[number - 1].raft {
                raft.ready(&mut ready);
            }
            self.carry_out(number, &mut ready);
            self.ready = ready;
            self.check(number);
        }
        if self.auto_persist && !self.nodes[number - 1].pending.is_empty() {
            self.persist_one(number);
        }
        if self.auto_apply && !self.nodes[number - 1].to_apply.is_empty() {
            self.apply_all(number);
        }
    }

    fn carry_out(&mut self, number: usize, ready: &mut Ready) {
        let id = replica(number);
        if let Some(news) = ready.leadership {
            self.say(match news.leader {
                Some(_) if news.is_self => format!("{id} leads term {}", news.term),
                Some(leader) => format!("{id} follows {leader} in term {}", news.term),
                None => format!("{id} knows no leader in term {}", news.term),
            });
        }
        ready.messages.drain(..).for_each(|message| self.post(message));
        let committed = self.node(number).raft().slice(ready.committed.clone());
        let committed: Vec<_> = committed.expect("not compacted yet").cloned().collect();
        for entry in &committed {
            self.say(format!("{id} applies {}", describe_entry(entry)));
            self.check_committed(number, entry);
        }
        for read in &ready.reads {
            self.say(format!("{id} may serve read {} at {}", read.context, read.index));
        }
        for context in &ready.reads_dropped {
            self.say(format!("{id} drops read {context}"));
        }
        for peer in &ready.snapshots_needed {
            self.say(format!("{id} needs a snapshot for {peer}"));
        }
        let node = &mut self.nodes[number - 1];
        node.to_apply.extend(committed);
        node.reads.extend(ready.reads.iter().map(|read| (read.context, read.index)));
        let applied = node.raft().applied_index();
        let served = ready.reads.iter().map(|read| read.index).filter(|index| *index <= applied).max();
        self.seen = self.seen.max(served.unwrap_or(0));
        node.reads_dropped.append(&mut ready.reads_dropped);
        node.snapshots_needed.append(&mut ready.snapshots_needed);
        self.queue_write(number, ready);
    }

    fn queue_write(&mut self, number: usize, ready: &mut Ready) {
        let node = &mut self.nodes[number - 1];
        let after: Vec<_> = ready.messages_after_persist.drain(..).collect();
        if ready.write.is_none() && node.pending.is_empty() {
            after.into_iter().for_each(|message| self.post(message));
            return;
        }
        if ready.write.is_some() || !after.is_empty() {
            node.pending.push_back(PendingWrite {
                id: ready.write,
                hard: ready.hard_state,
                entries: std::mem::take(&mut ready.entries),
                snapshot: ready.snapshot.take(),
                after,
            });
            if !self.auto_persist && self.trace_messages {
                let line = self.nodes[number - 1].pending.back().map(|write| write.describe(number));
                self.trace.extend(line.flatten());
            }
        }
    }

    // --- the paper's properties

    fn check(&mut self, number: usize) {
        let node = &self.nodes[number - 1];
        let raft = node.raft();
        check_membership_in_force(raft, &node.disk);
        if raft.is_leader() {
            let (term, id) = (raft.term(), raft.id());
            let elected = *self.leaders.entry(term).or_insert(id);
            assert!(elected == id, "Election Safety: {elected} and {id} lead term {term}");
            for (entry, seen_in) in self.truth.values() {
                let Mark { term: entry_term, index } = entry.mark;
                if *seen_in < term && index >= raft.first_index() {
                    let held = raft.term_at(index);
                    assert!(
                        held == Some(entry_term),
                        "Leader Completeness: {id} of {term} lacks {}",
                        entry.mark
                    );
                }
            }
        }
    }

    /// What a replica may read by what its clock says.
    fn check_reads_by_clock(&self) {
        self.check_leases();
        self.check_freshness();
    }

    /// A state that is said to be as of some time holds all that was committed anywhere before.
    fn check_freshness(&self) {
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(raft) = &node.raft else { continue };
            let (fresh_at, applied) = (raft.fresh_at(), raft.applied_index());
            let before = self.truth_rose.partition_point(|(rose, _)| self.local_of(at + 1, *rose) < fresh_at);
            let floor = self.truth_rose[..before].last().map_or(0, |(_, index)| *index);
            let id = node.id;
            assert!(applied >= floor, "{id} at {applied} is as of {fresh_at}, when {floor} was committed");
        }
    }

    /// Who holds a lease by its own clock reads what is newest: nobody was elected after it, and nobody was
    /// told of anything that it hasn't applied.
    pub fn check_leases(&self) {
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(raft) = &node.raft else { continue };
            let Some(lease) = raft.lease().filter(|lease| self.local(at + 1) < lease.until) else { continue };
            let newest = self.leaders.keys().last().copied().unwrap_or(0);
            let id = node.id;
            assert!(
                lease.term >= newest,
                "stale read: {id} holds a lease of {}, led is {newest}",
                lease.term
            );
            let (applied, seen) = (raft.applied_index(), self.seen);
            assert!(applied >= seen, "stale read: {id} holds a lease at {applied}, {seen} was seen");
        }
    }

    fn check_committed(&mut self, number: usize, entry: &Entry) {
        let term = self.nodes[number - 1].raft().term();
        if self.truth.keys().last().is_none_or(|last| *last < entry.mark.index) {
            self.truth_rose.push((self.now, entry.mark.index));
        }
        let (known, _) = self.truth.entry(entry.mark.index).or_insert_with(|| (entry.clone(), term));
        assert!(known == entry, "State Machine Safety: r{number} applies {entry:?}, another {known:?}");
    }

    /// Log Matching: two logs with the same mark are identical up to it.
    pub fn check_log_matching(&self) {
        let live: Vec<&Raft> = self.nodes.iter().filter_map(|node| node.raft.as_ref()).collect();
        for (at, one) in live.iter().enumerate() {
            for other in &live[at + 1..] {
                let first = one.first_index().max(other.first_index());
                let last = one.last_mark().index.min(other.last_mark().index);
                let agree = (first..=last).rev().find(|&index| one.term_at(index) == other.term_at(index));
                if let Some(agree) = agree {
                    let (ours, theirs) =
                        (one.entries(first, agree, usize::MAX), other.entries(first, agree, usize::MAX));
                    assert!(ours == theirs, "Log Matching: {} and {} up to {agree}", one.id(), other.id());
                }
            }
        }
    }

    pub fn leader(&self) -> Option<usize> {
        let leads = |node: &&Node| node.raft.as_ref().is_some_and(Raft::is_leader);
        self.nodes
            .iter()
            .filter(leads)
            .max_by_key(|node| node.raft().term())
            .map(|node| node.id.get() as usize)
    }
}

/// The membership in force is the newest in the log, else the stored one (paper §6).
fn check_membership_in_force(raft: &Raft, disk: &Disk) {
    let entries = raft.entries(raft.first_index(), raft.last_mark().index, usize::MAX);
    let newest = entries.iter().rfind(|entry| entry.kind == EntryKind::Membership);
    let from_log = newest.map(|entry| Membership::decode(&entry.data).expect("it was let in").0);
    let expected = from_log.as_ref().unwrap_or(&disk.membership);
    let in_force = raft.membership();
    assert!(in_force == expected, "{}: {in_force:?} is in force, not {expected:?}", raft.id());
}

impl PendingWrite {
    fn save(&self, disk: &mut Disk) {
        if let Some(hard) = self.hard {
            assert!(hard.term >= disk.hard.term, "the durable term fell: {:?} after {:?}", hard, disk.hard);
            disk.hard = hard;
        }
        if let Some(first) = self.entries.first() {
            disk.entries.retain(|entry| entry.mark.index < first.mark.index);
            // Entries may have been compacted away while the write was in flight.
            let fresh = self.entries.iter().filter(|entry| entry.mark.index > disk.base.index);
            disk.entries.extend(fresh.cloned());
        }
        if let Some(snapshot) = &self.snapshot {
            disk.base = snapshot.mark;
            disk.membership = snapshot.membership.clone();
            disk.entries.retain(|entry| snapshot.keep_suffix && entry.mark.index > snapshot.mark.index);
        }
        let starts = disk.base.index + 1;
        for (index, entry) in (starts..).zip(&disk.entries) {
            assert!(entry.mark.index == index, "the durable log has a gap: {entry:?} at {index}");
        }
    }

    fn describe(&self, number: usize) -> Option<String> {
        let id = self.id?;
        let mut line = format!("r{number} write {}:", id.0);
        if let Some(hard) = self.hard {
            let vote = hard.vote.map_or("nobody".into(), |vote| vote.to_string());
            line += &format!(" term {} vote {vote}", hard.term);
        }
        self.entries.iter().for_each(|entry| line += &format!(" {}", describe_entry(entry)));
        if let Some(snapshot) = &self.snapshot {
            line += &format!(" snapshot {}", snapshot.mark);
        }
        Some(line)
    }
}

pub fn command(mark: Mark, data: &str) -> Entry {
    Entry { mark, kind: EntryKind::Command, version: 0, data: Bytes::copy_from_slice(data.as_bytes()) }
}

pub fn describe_entry(entry: &Entry) -> String {
    match entry.kind {
        EntryKind::Noop => format!("{}:noop", entry.mark),
        EntryKind::Membership => {
            let (membership, _) = Membership::decode(&entry.data).expect("a membership");
            format!("{}:{}", entry.mark, describe_membership(&membership))
        }
        _ if entry.data.len() > 8 => format!("{}:[{}]", entry.mark, entry.data.len()),
        _ => format!("{}:{}", entry.mark, String::from_utf8_lossy(&entry.data)),
    }
}

/// `{voters}`, or `{incoming}&{outgoing}`; `+learners`, `~learners to be`, `auto`.
pub fn describe_membership(membership: &Membership) -> String {
    let list = |ids: &[ReplicaId]| ids.iter().map(|id| id.get().to_string()).collect::<Vec<_>>().join(",");
    let mut text = format!("{{{}}}", list(&membership.voters));
    if membership.is_joint() {
        text += &format!("&{{{}}}", list(&membership.voters_outgoing));
    }
    for (sign, ids) in [('+', &membership.learners), ('~', &membership.learners_next)] {
        if !ids.is_empty() {
            text += &format!("{sign}{}", list(ids));
        }
    }
    text + if membership.auto_leave { "auto" } else { "" }
}

pub fn describe(message: &Message) -> String {
    let body = match &message.body {
        Body::PreVote { last } => format!("pre-vote last={last}"),
        Body::PreVoteReply { granted } => {
            format!("pre-vote {}", if *granted { "granted" } else { "refused" })
        }
        Body::Vote { last, transfer } => {
            format!("vote last={last}{}", if *transfer { " transfer" } else { "" })
        }
        Body::VoteReply { granted } => format!("vote {}", if *granted { "granted" } else { "refused" }),
        Body::Append { prev, commit, entries, .. } => {
            let entries: Vec<_> = entries.iter().map(describe_entry).collect();
            format!("append prev={prev} commit={commit} [{}]", entries.join(" "))
        }
        Body::AppendAccepted { matched, .. } => format!("accepted {matched}"),
        Body::AppendRefused { matched, .. } => format!("full after {matched}"),
        Body::AppendRejected { prev, hint, .. } => format!("rejected prev={prev} hint={hint}"),
        Body::Quiesce { last } => format!("quiesce last={last}"),
        Body::Heartbeat { commit, read_round, .. } => format!("heartbeat commit={commit} round={read_round}"),
        Body::HeartbeatReply { read_round, .. } => format!("heartbeat reply round={read_round}"),
        Body::TimeoutNow => "timeout now".into(),
        Body::ReadIndex { context } => format!("read index {context}"),
        Body::ReadIndexReply { context, index } => format!("read index {context} is {index}"),
        Body::ReadIndexRefused { context } => format!("read index {context} refused"),
        Body::InstallSnapshot { mark, .. } => format!("install snapshot {mark}"),
    };
    format!("  {}>{} t{} {body}", message.from, message.to, message.term)
}

pub fn describe_role(role: RoleKind) -> &'static str {
    match role {
        RoleKind::Follower => "follower",
        RoleKind::PreCandidate => "pre-candidate",
        RoleKind::Candidate => "candidate",
        RoleKind::Leader => "leader",
    }
}
