//! Runs the golden scripts in `testscripts/`; its README describes the language. With
//! `FLOE_REWRITE=1` the outputs are written anew: read the diff.

mod cluster;

use bytes::Bytes;
use cluster::{Cluster, describe_entry, describe_role, replica};
use floe_raft::{Change, Config, EntryKind, FeedState, MembershipChange, Nanos, ReplicaId};
use std::path::{Path, PathBuf};

const MS: Nanos = 1_000_000;
const BEAT_NS: Nanos = 30 * MS;

/// One script under way.
struct Script {
    cluster: Cluster,
    next_beat: Nanos,
}

type Words<'a> = &'a [&'a str];

fn number(word: &str) -> usize {
    word.parse().unwrap_or_else(|_| panic!("{word} is not a number"))
}

fn duration(word: &str) -> Nanos {
    let ms = word.strip_suffix("ms").unwrap_or_else(|| panic!("{word} doesn't end in ms"));
    number(ms) as Nanos * MS
}

fn one_change(what: &str, whom: &str) -> Change {
    let id = replica(number(whom));
    match what {
        "add-voter" => Change::AddVoter(id),
        "add-learner" => Change::AddLearner(id),
        "remove" => Change::Remove(id),
        _ => panic!("unknown change {what}"),
    }
}

impl Script {
    fn new(words: Words) -> Self {
        let mut config = Config::default();
        let (mut learners, mut spares, mut promise_ms) = (0, 0, 0);
        for setting in &words[1..] {
            let (key, value) = setting.split_once('=').expect("key=value");
            let value = number(value);
            match key {
                "learners" => learners = value,
                "spares" => spares = value,
                "append" => config.append_bytes_max = value,
                "inflight" => config.inflight_messages_max = value,
                "inflight-bytes" => config.inflight_bytes_max = value,
                "uncommitted" => config.uncommitted_bytes_max = value,
                "promise" => promise_ms = value,
                "leases" => config.leases = value != 0,
                "apply" => config.apply_bytes_max = value,
                "peer-reads" => config.peer_reads_max = value,
                _ => panic!("unknown setting {key}"),
            }
        }
        let mut cluster = Cluster::with_spares(number(words[0]), learners, spares, config, 1);
        cluster.allow_promises(promise_ms as Nanos * MS);
        Self { cluster, next_beat: BEAT_NS }
    }

    fn run(&mut self, command: &str, words: Words) {
        match command {
            "campaign" | "timeout" | "propose" | "propose-size" | "read" | "transfer" | "wedge"
            | "unwedge" | "full" | "roomy" | "promise" => self.ask(command, words),
            "change" | "joint" | "leave" => self.change(command, words),
            "deliver" | "drop" | "repeat" | "partition" | "heal" | "net" => self.network(command, words),
            "auto-persist" | "auto-apply" | "persist" | "apply" => self.durability(command, words),
            "advance" | "run" | "beat" | "stabilize" | "settle" => self.time(command, words),
            "crash" | "restart" | "load" => self.machine(command, words),
            "compact" | "snapshot" | "snapshot-lost" | "snapshot-delivered" | "unreachable" => {
                self.log_upkeep(command, words)
            }
            "status" | "members" | "log" | "progress" | "deadline" | "lease" | "fresh" => {
                self.look(command, words)
            }
            _ => panic!("unknown command {command}"),
        }
    }

    fn ask(&mut self, command: &str, words: Words) {
        let node = number(words[0]);
        let refused = match command {
            "campaign" => self.cluster.with(node, |raft, now| raft.campaign(now)).map(|()| None),
            "timeout" => self
                .cluster
                .with(node, |raft, _| raft.set_election_timeout(duration(words[1])))
                .map(|()| None),
            "read" => {
                let context = number(words[1]) as u64;
                self.cluster.with(node, |raft, now| raft.read_index(now, context).err())
            }
            "wedge" | "unwedge" => self.cluster.with(node, |raft, now| {
                raft.set_wedged(now, command == "wedge");
                None
            }),
            "full" | "roomy" => self.cluster.with(node, |raft, _| {
                raft.set_full(command == "full");
                None
            }),
            "promise" => self.cluster.with(node, |raft, _| {
                raft.allow_promises(duration(words[1]));
                None
            }),
            "transfer" => {
                let to = replica(number(words[1]));
                self.cluster.with(node, |raft, now| raft.transfer_leadership(now, to).err())
            }
            "propose" => {
                let data: Vec<Bytes> =
                    words[1..].iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
                self.propose(node, data)
            }
            _ => {
                let data = vec![Bytes::from(vec![0; number(words[2])]); number(words[1])];
                self.propose(node, data)
            }
        };
        if let Some(Some(refused)) = refused {
            self.cluster.say(format!("refused: {refused}"));
        }
    }

    /// Proposes a membership change; `force` among the words forces it.
    fn change(&mut self, command: &str, words: Words) {
        let force = words.contains(&"force");
        let words: Vec<&str> = words.iter().copied().filter(|word| *word != "force").collect();
        let change = match command {
            "change" => MembershipChange::Simple(one_change(words[1], words[2])),
            "leave" => MembershipChange::LeaveJoint,
            _ => {
                let auto_leave = match words[1] {
                    "auto" => true,
                    "explicit" => false,
                    word => panic!("{word} is neither auto nor explicit"),
                };
                let changes = words[2..].chunks(2).map(|pair| one_change(pair[0], pair[1])).collect();
                MembershipChange::EnterJoint { changes, auto_leave }
            }
        };
        let refused = self
            .cluster
            .with(number(words[0]), |raft, now| raft.propose_membership(now, &change, force, b"").err());
        if let Some(Some(refused)) = refused {
            self.cluster.say(format!("refused: {refused}"));
        }
    }

    /// Proposes several entries between two calls of `ready`.
    fn propose(&mut self, node: usize, data: Vec<Bytes>) -> Option<Option<floe_raft::Refused>> {
        self.cluster.with(node, |raft, now| {
            data.into_iter().find_map(|data| raft.propose(now, EntryKind::Command, 0, data).err())
        })
    }

    /// Messages in flight that the words (nothing, or from and to) select.
    fn selected(&self, words: Words) -> Vec<usize> {
        let ids: Vec<ReplicaId> = words.iter().map(|word| replica(number(word))).collect();
        let matches = |at: &usize| {
            let message = &self.cluster.net[*at];
            ids.is_empty() || (ids[0] == message.from && ids.get(1).is_none_or(|to| *to == message.to))
        };
        (0..self.cluster.net.len()).filter(matches).collect()
    }

    fn network(&mut self, command: &str, words: Words) {
        match command {
            "deliver" | "drop" => {
                let selected = self.selected(words);
                let picked: Vec<_> =
                    selected.into_iter().rev().filter_map(|at| self.cluster.net.remove(at)).collect();
                if command == "deliver" {
                    picked.into_iter().rev().for_each(|message| self.cluster.deliver(message));
                }
            }
            "repeat" => {
                for at in self.selected(words) {
                    let copy = self.cluster.net[at].clone();
                    self.cluster.net.push_back(copy);
                }
            }
            "net" => {
                let lines: Vec<_> = self.cluster.net.iter().map(cluster::describe).collect();
                lines.into_iter().for_each(|line| self.cluster.say(line));
            }
            "partition" => {
                let groups = words.split(|word| *word == "|");
                for (side, group) in groups.enumerate() {
                    group.iter().for_each(|word| self.cluster.side[number(word) - 1] = side);
                }
                let Cluster { net, side, .. } = &mut self.cluster;
                let side_of = |id: ReplicaId| side[id.get() as usize - 1];
                net.retain(|message| side_of(message.from) == side_of(message.to));
            }
            _ => self.cluster.side.fill(0),
        }
    }

    fn durability(&mut self, command: &str, words: Words) {
        match command {
            "auto-persist" => self.cluster.auto_persist = words[0] == "on",
            "auto-apply" => self.cluster.auto_apply = words[0] == "on",
            "persist" => {
                let count = words.get(1).map_or(usize::MAX, |word| number(word));
                for _ in 0..count.min(self.cluster.node(number(words[0])).pending.len()) {
                    self.cluster.persist_one(number(words[0]));
                }
            }
            _ => self.cluster.apply_all(number(words[0])),
        }
    }

    fn time(&mut self, command: &str, words: Words) {
        match command {
            "advance" => self.pass(duration(words[0]), false),
            "run" => self.quietly(|script| script.pass(duration(words[0]), true)),
            "beat" => self.cluster.beat(),
            "stabilize" => self.deliver_all(),
            _ => self.quietly(Self::deliver_all),
        }
    }

    fn quietly(&mut self, act: impl FnOnce(&mut Self)) {
        self.cluster.trace_messages = false;
        act(self);
        self.cluster.trace_messages = true;
    }

    fn deliver_all(&mut self) {
        for _ in 0..10_000 {
            if self.cluster.net.is_empty() {
                return;
            }
            self.cluster.deliver_at(0);
        }
        panic!("messages never end");
    }

    /// Time passes from event to event: deadlines, and the beat of all leaders.
    fn pass(&mut self, ns: Nanos, with_delivery: bool) {
        let end = self.cluster.now + ns;
        loop {
            let live = self.cluster.nodes.iter().filter_map(|node| node.raft.as_ref());
            let deadline = live.map(|raft| raft.deadline()).min().unwrap_or(Nanos::MAX);
            self.cluster.now = deadline.min(self.next_beat).max(self.cluster.now).min(end);
            self.cluster.tick();
            if self.cluster.now >= self.next_beat {
                self.next_beat += BEAT_NS;
                self.cluster.beat();
            }
            if with_delivery {
                self.deliver_all();
            }
            if self.cluster.now == end {
                return;
            }
        }
    }

    fn machine(&mut self, command: &str, words: Words) {
        let node = number(words[0]);
        match command {
            "crash" => self.cluster.crash(node),
            "restart" => self.cluster.restart(node),
            _ => {
                let terms: Vec<u64> = words[2..].iter().map(|word| number(word) as u64).collect();
                self.cluster.load(node, number(words[1].trim_start_matches("term=")) as u64, &terms);
            }
        }
    }

    fn log_upkeep(&mut self, command: &str, words: Words) {
        let (node, other) = (number(words[0]), number(words[1]));
        match command {
            "compact" => self.cluster.compact(node, other as u64),
            "snapshot" => self.cluster.send_snapshot(node, other),
            "snapshot-lost" | "snapshot-delivered" => {
                let delivered = command == "snapshot-delivered";
                self.cluster.with(node, |raft, _| raft.report_snapshot(replica(other), delivered));
            }
            _ => {
                self.cluster.with(node, |raft, _| raft.report_unreachable(replica(other)));
            }
        }
    }

    fn describe_lease(&self, node: usize) -> String {
        let now = self.cluster.now;
        let lease = self.cluster.node(node).raft().lease().filter(|lease| lease.until > now);
        match lease {
            None => format!("r{node} has no lease"),
            Some(lease) if lease.until == Nanos::MAX => format!("r{node} has a lease without end"),
            Some(lease) => format!("r{node} has a lease for {}us", (lease.until - now) / 1000),
        }
    }

    fn describe_freshness(&self, node: usize) -> String {
        match self.cluster.node(node).raft().fresh_at() {
            0 => format!("r{node} may be of any age"),
            at => format!("r{node} is as of {}ms", at / MS),
        }
    }

    fn look(&mut self, command: &str, words: Words) {
        let all: Vec<usize> = (1..=self.cluster.nodes.len()).collect();
        let nodes = words.first().map_or(all, |word| vec![number(word)]);
        for node in nodes {
            let Some(raft) = &self.cluster.node(node).raft else {
                self.cluster.say(format!("r{node} is down"));
                continue;
            };
            let status = raft.status();
            let lines = match command {
                "status" => vec![format!(
                    "r{node} {} term={} vote={} commit={} applied={} durable={} log={}..={}",
                    describe_role(status.role),
                    status.term,
                    status.vote.map_or("nobody".into(), |vote| vote.to_string()),
                    status.commit,
                    status.applied,
                    status.durable,
                    status.first,
                    status.last,
                )],
                "members" => vec![format!(
                    "r{node} {} since {}",
                    cluster::describe_membership(&status.membership),
                    status.membership_index
                )],
                "log" => {
                    let entries = raft.entries(status.first, status.last.index, usize::MAX);
                    let entries: Vec<_> = entries.iter().map(describe_entry).collect();
                    vec![format!("r{node} {}", entries.join(" "))]
                }
                "deadline" => vec![match raft.deadline() {
                    Nanos::MAX => format!("r{node} never"),
                    at => format!("r{node} in {}ms", (at - self.cluster.now.min(at)) / MS),
                }],
                "lease" => vec![self.describe_lease(node)],
                "fresh" => vec![self.describe_freshness(node)],
                _ => status
                    .peers
                    .iter()
                    .map(|peer| {
                        let state = match peer.state {
                            FeedState::Probe => "probe",
                            FeedState::Replicate => "replicate",
                            FeedState::Snapshot => "snapshot",
                        };
                        let (matched, next, in_flight) = (peer.matched, peer.next, peer.in_flight_messages);
                        format!(
                            "r{node} feeds {}: {state} matched={matched} next={next} in flight={in_flight}",
                            peer.id
                        )
                    })
                    .collect(),
            };
            lines.into_iter().for_each(|line| self.cluster.say(line));
        }
    }
}

/// Runs one script and returns it with the outputs that it has now.
fn replay(text: &str) -> String {
    let mut script: Option<Script> = None;
    let mut result = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        result += &format!("{line}\n");
        if line == "----" {
            // Skip what the output used to be; it ends at the first empty line.
            lines.by_ref().find(|line| line.is_empty());
            let script = script.as_mut().expect("a script begins with `nodes`");
            let trace: Vec<String> = script.cluster.trace.drain(..).collect();
            script.cluster.check_log_matching();
            result += &(if trace.is_empty() { vec!["ok".into()] } else { trace }).join("\n");
            result += "\n\n";
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first() {
            None => {}
            Some(word) if word.starts_with('#') => {}
            Some(&"nodes") => script = Some(Script::new(&words[1..])),
            Some(command) => script.as_mut().expect("a script begins with `nodes`").run(command, &words[1..]),
        }
    }
    format!("{}\n", result.trim_end())
}

fn check(path: &Path, rewrite: bool) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // One that breaks an assertion is named, and the others are played all the same.
    let now = std::panic::catch_unwind(|| replay(&text)).map_err(|cause| {
        let why = cause.downcast_ref::<String>().map_or("it panicked", String::as_str);
        format!("{}:0\n{why}", path.display())
    })?;
    if rewrite {
        return std::fs::write(path, now).map_err(|error| format!("{}: {error}", path.display()));
    }
    let differs = text.lines().zip(now.lines()).position(|(then, now)| then != now);
    match differs {
        Some(at) => {
            let part = |text: &str| text.lines().skip(at).take(5).collect::<Vec<_>>().join("\n");
            let name = path.display();
            Err(format!("{name}:{}\nexpected:\n{}\nbut is now:\n{}", at + 1, part(&text), part(&now)))
        }
        None if text.lines().count() != now.lines().count() => {
            Err(format!("{}: differs at the end", path.display()))
        }
        None => Ok(()),
    }
}

#[test]
fn every_script_gives_its_golden_output() {
    let rewrite = std::env::var_os("FLOE_REWRITE").is_some_and(|value| value == "1");
    let only = std::env::var("FLOE_SCRIPT").ok();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts");
    let files = std::fs::read_dir(folder).expect("the scripts lie beside the sources");
    let mut paths: Vec<PathBuf> = files.map(|file| file.expect("readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.retain(|path| only.as_ref().is_none_or(|only| path.to_string_lossy().contains(only.as_str())));
    paths.sort();
    let failures: Vec<String> = paths.iter().filter_map(|path| check(path, rewrite).err()).collect();
    assert!(failures.is_empty(), "{} scripts differ\n\n{}", failures.len(), failures.join("\n\n"));
    assert!(paths.len() >= 60 || only.is_some(), "only {} scripts", paths.len());
}

/// Each rule of leases, and of how fresh a state is, is guarded by a script that fails when the rule is taken out.
/// (Stamps of a former incarnation, too: `freshness.rs`.)
#[cfg(feature = "planted")]
#[test]
fn scripts_find_each_rule_of_reading_by_the_clock_missing() {
    use floe_raft::{Planted, plant};
    for (bug, script) in [
        (Planted::LeaseWithoutDrift, "lease"),
        (Planted::LeaseBeforeNoop, "lease"),
        (Planted::PromiseBroken, "promise_binds"),
        (Planted::PromiseBroken, "promise_binds_whatever_the_term"),
        (Planted::LeaseOutlivesTransfer, "lease_ends_with_transfer"),
        (Planted::PromiseForgotten, "promise_survives_restart"),
        (Planted::StampOfDeposedLeader, "freshness_by_a_deposed_leader"),
        (Planted::StampBeforeOwnCommit, "freshness_before_an_own_commit"),
        (Planted::StampBesideLess, "freshness_of_a_lagging_follower"),
        (Planted::FreshBeforeApplied, "freshness_of_a_slow_follower"),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testscripts/{script}.txt"));
        plant(Some(bug));
        let outcome = check(&path, false);
        plant(None);
        assert!(outcome.is_err(), "{script} passes with {bug:?}");
    }
}
