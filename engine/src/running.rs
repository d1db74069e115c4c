//! A core that runs: one turn after another over its replicas, log and requests.

use crate::boot::{BootRecord, stream_name};
use crate::codec;
use crate::config::WalSettings;
use crate::connections::{self, Connections};
use crate::disk::{DiskResult, OpId, OpOwner};
use crate::disk_watch::{Change, DiskWatch};
use crate::dumps::Dumps;
use crate::metrics::{add, set};
use crate::promise::DurablePromise;
use crate::requests::{Origin, Place, Requests};
use crate::restore::restore;
use crate::seam::{CoreMessage, DisconnectReason, Effects, Event, Failure, Input, StartReport};
use crate::settle::Settling;
use crate::start::FoundAll;
use crate::wal::{FrameSeq, Record, Wal, WalConfig};
use crate::worker::WorkerConfig;
use floe_raft::Nanos;
use floe_shard::descriptor::Descriptor;
use floe_shard::output::{LogWrite, Output, PersistToken, RefusedMessage};
use floe_shard::peer::{PeerBatch, PeerMessage};
use floe_shard::request::{Answer, BusyReason, Refusal, RequestId};
use floe_shard::state_machine::Pressure;
use floe_shard::{CoreAddr, MultiRaft, NodeId, ShardId};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

const MS: Nanos = 1_000_000;
/// How often a core looks after what no event brings: parked requests and the log's space.
pub(crate) const HOUSEKEEPING_NS: Nanos = 20 * MS;
/// How long a clean shutdown waits for requests under way.
const DRAIN_NS: Nanos = 1_000 * MS;

/// How a turn ended.
pub enum Progress {
    /// The core goes on.
    Running,
    /// Everything is answered and durable after a clean shutdown.
    Stopped,
}

/// What waits until the stream is durable up to a frame.
pub(crate) struct Held {
    until: FrameSeq,
    persists: Vec<PersistToken>,
    pub(crate) sends: Vec<(CoreAddr, PeerMessage)>,
}

/// A core that runs.
pub struct Running {
    pub(crate) config: WorkerConfig,
    pub(crate) wal: Wal,
    pub(crate) multi: MultiRaft,
    pub(crate) dumps: Dumps,
    pub(crate) requests: Requests,
    pub(crate) parked: Vec<RequestId>,
    pub(crate) connections: Connections,
    pub(crate) held: VecDeque<Held>,
    /// Everything found at start stands in this core's stream once it is durable up to here.
    pub(crate) settled_at: Option<FrameSeq>,
    pub(crate) settling: Settling,
    pub(crate) disk_watch: DiskWatch,
    pub(crate) promise: DurablePromise,
    pub(crate) housekeeping_at: Nanos,
    pub(crate) draining_until: Option<Nanos>,
    pub(crate) sealed: bool,
    pub(crate) output: Output,
    pub(crate) batches: BTreeMap<CoreAddr, PeerBatch>,
    pub(crate) expired: Vec<RequestId>,
    pub(crate) latencies: Vec<u64>,
}

impl Running {
    /// Opens the log behind what was found, and brings the replicas up.
    ///
    /// # Errors
    /// A dump is damaged.
    pub fn new(
        now: Nanos,
        config: &WorkerConfig,
        seed: u64,
        record: &Arc<BootRecord>,
        found: FoundAll,
        effects: &mut Effects,
    ) -> Result<Self, Failure> {
        let stream = record.current().first + u32::from(config.me.core);
        let wal_config = wal_config(&config.wal, record, stream);
        let mut wal = Wal::new(wal_config, found.own.as_ref(), now, &mut effects.disk);
        let mut multi = MultiRaft::new(config.me, config.shard.clone(), record.boot_epoch, seed);
        let promise = DurablePromise::start(now, wanted_promise_ns(config), &found, &mut wal, &mut multi);
        let report = report(record, &found);
        for (&shard, &lowest_replica) in &found.tombstones {
            let own = found.own.as_ref().and_then(|own| own.tombstones.get(&shard));
            if own.is_none_or(|&own| own < lowest_replica) {
                wal.append(Record::ShardTombstone { shard, lowest_replica });
            }
            multi.forbid(shard, lowest_replica);
        }
        let known: Vec<ShardId> = found.shards.iter().map(|found| found.state.shard).collect();
        for shard in found.shards {
            restore(now, config, shard, &mut multi)?;
        }
        if !record.settled {
            let is_new = |descriptor: &&Descriptor| {
                descriptor.shard.core(config.cores) == config.me.core
                    && descriptor.replica_on(config.me.node).is_some()
                    && !known.contains(&descriptor.shard)
                    && !found.tombstones.contains_key(&descriptor.shard)
            };
            for descriptor in config.bootstrap.iter().filter(is_new) {
                multi.bootstrap(now, descriptor.clone(), (config.machines)(descriptor.shard));
            }
        }
        tracing::info!(
            core = %config.me, shards = report.shards, frames = report.frames, bytes = report.bytes,
            torn_bytes = report.torn_bytes, rehomed = report.rehomed, boot_epoch = report.boot_epoch,
            "recovered"
        );
        config.metrics.leaders.lock().extend(multi.shards().map(|shard| (shard, None)));
        effects.events.push(Event::Started(report));
        Ok(Self {
            config: config.clone(),
            wal,
            multi,
            dumps: Dumps::default(),
            requests: Requests::new(),
            parked: Vec::new(),
            connections: Connections::new(config.shard.raft.election_timeout_max_ns, HOUSEKEEPING_NS),
            held: VecDeque::new(),
            settled_at: None,
            settling: Settling::new(record.clone()),
            disk_watch: DiskWatch::new(patience(config)),
            promise,
            housekeeping_at: now,
            draining_until: None,
            sealed: false,
            output: Output::default(),
            batches: BTreeMap::new(),
            expired: Vec::new(),
            latencies: Vec::new(),
        })
    }

    // ---- inputs

    /// Takes one input.
    ///
    /// # Errors
    /// A write failed: the core must stop.
    pub fn take(&mut self, now: Nanos, input: Input, effects: &mut Effects) -> Result<(), Failure> {
        match input {
            Input::Request { id, deadline, park_until, request } => {
                add(&self.config.metrics.requests, 1);
                self.admit(now, Origin::Local(id), deadline, park_until, request, effects);
            }
            Input::Frame { from, body } => self.on_frame(now, from, body, effects),
            Input::Disk { op, result } => self.on_disk(now, op, result, effects)?,
            Input::PeerUp { peer, cores } => self.peer_up(now, peer, cores),
            Input::PeerDown { peer } => self.peer_down(now, peer, effects),
            Input::Core { message, .. } => self.on_core(&message, effects),
            Input::Shutdown => {
                self.draining_until.get_or_insert(now + DRAIN_NS);
            }
        }
        Ok(())
    }

    fn on_frame(&mut self, now: Nanos, from: CoreAddr, body: bytes::Bytes, effects: &mut Effects) {
        add(&self.config.metrics.frames_received, 1);
        self.connections.heard(from);
        let mut batch = match codec::decode(body) {
            Ok(batch) => batch,
            Err(error) => return effects.disconnects.push((from, error.into())),
        };
        let mut kept = Vec::with_capacity(batch.messages.len());
        for message in batch.messages.drain(..) {
            match message {
                PeerMessage::Request { id, remaining_ns, request, .. } => {
                    let deadline = now.saturating_add(remaining_ns);
                    self.admit(now, Origin::Peer(from, id), deadline, deadline, request, effects);
                }
                PeerMessage::Answer { id, answer } => {
                    self.on_answer(now, RequestId(id), answer, Some(from), effects);
                }
                other => kept.push(other),
            }
        }
        batch.messages = kept;
        if !batch.is_empty() {
            self.multi.receive(now, from, batch);
        }
    }

    fn on_disk(
        &mut self,
        now: Nanos,
        op: OpId,
        result: DiskResult,
        effects: &mut Effects,
    ) -> Result<(), Failure> {
        match op.owner {
            OpOwner::Wal => self
                .wal
                .on_disk(now, op.number, result, &mut effects.disk)
                .map_err(|failure| Failure::Disk(failure.to_string())),
            OpOwner::Store => {
                self.dumps.on_disk(op.number, result, &mut self.multi, &mut effects.disk);
                Ok(())
            }
            OpOwner::Boot => self.settling.on_disk(op.number, result, &mut effects.disk),
            OpOwner::Recovery(_) => Ok(()),
        }
    }

    /// A connection is up.
    pub fn peer_up(&mut self, now: Nanos, peer: CoreAddr, cores: u16) {
        self.connections.up(peer, cores);
        self.multi.peer_up(now, peer.node, cores);
        self.housekeeping_at = now;
    }

    // ---- the turn

    /// Does everything that the inputs since the last turn ask for.
    ///
    /// # Errors
    /// The core must stop.
    pub fn turn(&mut self, now: Nanos, effects: &mut Effects) -> Result<Progress, Failure> {
        self.watch_disk(now);
        self.multi.tick(now);
        self.expire(now, effects);
        if now >= self.housekeeping_at {
            self.housekeep(now, effects);
        }
        self.promise.turn(now, &mut self.wal, &mut self.multi);
        self.release_durable();
        self.collect(now, effects);
        self.wal.tick(now, &mut effects.disk);
        self.wal.submit(now, &mut effects.disk);
        self.report_settled(effects);
        self.send(effects);
        self.count();
        Ok(self.drain(now, effects))
    }

    /// The replicas.
    pub fn multi(&self) -> &MultiRaft {
        &self.multi
    }

    /// Whose replicas were stepped in the last turn.
    pub fn turned(&self) -> &[ShardId] {
        &self.output.turned
    }

    /// Whether another turn would do something at once.
    pub fn has_work(&self) -> bool {
        self.multi.has_work()
    }

    /// Stops leading while the log's disk doesn't answer.
    fn watch_disk(&mut self, now: Nanos) {
        let core = self.config.me;
        match self.disk_watch.turn(now, self.wal.waiting_since()) {
            None => return,
            Some(Change::Stuck) => {
                add(&self.config.metrics.wal_stuck, 1);
                let why = if self.wal.is_tight() { "is full" } else { "doesn't answer" };
                tracing::error!(%core, "the log's disk {why}: this core stops leading until that ends");
            }
            Some(Change::Answers { after }) => {
                let ms = after / MS;
                tracing::warn!(%core, ms, "the log's disk answers again: this core may lead again");
            }
        }
        self.multi.set_wedged(now, self.disk_watch.is_stuck());
    }

    /// What waited for durability goes on, in order.
    fn release_durable(&mut self) {
        let durable = self.wal.durable();
        while self.held.front().is_some_and(|held| held.until <= durable) {
            let held = self.held.pop_front().expect("looked at in the condition");
            self.multi.persisted(&held.persists);
            for (peer, message) in held.sends {
                self.batches.entry(peer).or_default().messages.push(message);
            }
        }
    }

    /// What this core has too much of to take proposals.
    fn full(&self) -> Option<BusyReason> {
        let memory_is_full = self.multi.pressure() == Pressure::Full;
        let log_is_long = self.wal.bytes_in_use() > self.config.wal.bytes_max.saturating_mul(4);
        let reasons = [
            (self.wal.is_tight(), BusyReason::DiskFull),
            (memory_is_full, BusyReason::WriteBuffer),
            (log_is_long, BusyReason::LogSpace),
        ];
        reasons.into_iter().find_map(|(is_so, reason)| is_so.then_some(reason))
    }

    fn collect(&mut self, now: Nanos, effects: &mut Effects) {
        let mut output = std::mem::take(&mut self.output);
        output.turned.clear();
        self.multi.refuse_proposals(self.full());
        self.multi.collect(now, &mut output);
        for &shard in &output.turned {
            if self.config.cells.refresh(shard, &self.multi) {
                self.multi.note_read(shard);
            }
        }
        for write in output.writes.drain(..) {
            self.wal.append(record(write));
        }
        let (persists, sends) =
            (std::mem::take(&mut output.persists), std::mem::take(&mut output.sends_after));
        if !persists.is_empty() || !sends.is_empty() {
            self.held.push_back(Held { until: self.wal.barrier(), persists, sends });
        }
        for (peer, batch) in std::mem::take(&mut output.sends) {
            merge(self.batches.entry(peer).or_default(), batch);
        }
        for (id, answer) in output.answers.drain(..) {
            self.on_answer(now, id, answer, None, effects);
        }
        self.note_leaders(&output.leaders, effects);
        output.leaders.clear();
        for save in output.dump_saves.drain(..) {
            self.dumps.save(save, &mut effects.disk);
        }
        for read in output.dump_reads.drain(..) {
            self.dumps.read(read, &mut effects.disk);
        }
        for job in output.jobs.drain(..) {
            self.dumps.run(job, false, &mut effects.disk);
        }
        for job in output.stagings.drain(..) {
            self.dumps.run(job, true, &mut effects.disk);
        }
        for remove in output.dump_removes.drain(..) {
            self.dumps.remove(remove, &mut effects.disk);
        }
        for descriptor in output.creates.drain(..) {
            let machine = (self.config.machines)(descriptor.shard);
            self.multi.create(now, descriptor, machine);
        }
        for RefusedMessage { peer, shard, from, why } in output.refused.drain(..) {
            let me = self.config.me;
            tracing::warn!(core = %me, %peer, %shard, %from, %why, "a peer's message is refused; is it faulty?");
        }
        self.output = output;
    }

    /// One frame per peer and turn.
    fn send(&mut self, effects: &mut Effects) {
        for (peer, batch) in std::mem::take(&mut self.batches) {
            let is_due = !batch.is_empty() || self.connections.is_owed(peer);
            if !is_due || !self.connections.is_up(peer) {
                continue;
            }
            let frame = codec::encode(&batch);
            self.connections.said(peer);
            add(&self.config.metrics.frames_sent, 1);
            add(&self.config.metrics.bytes_sent, frame.len() as u64);
            effects.sends.push((peer, frame));
        }
    }

    fn housekeep(&mut self, now: Nanos, effects: &mut Effects) {
        self.housekeeping_at = now + HOUSEKEEPING_NS;
        self.look_after_connections(effects);
        for id in std::mem::take(&mut self.parked) {
            match self.requests.get_mut(id) {
                Some(pending) if pending.place != Place::Parked => {}
                Some(pending) if pending.park_until <= now && now < pending.deadline => {
                    self.finish(now, id, Answer::Refused(Refusal::NotLeader { leader: None }), effects);
                }
                Some(_) => self.try_once(now, id, effects),
                None => {}
            }
        }
        self.multi.free_bases(&self.wal.pinning(self.config.wal.bytes_max));
        let pressure = self.multi.pressure();
        if pressure > Pressure::None {
            self.multi.flush_largest();
        }
        if pressure == Pressure::Full {
            self.config.cells.views.let_all_go();
        }
        let gone = self.config.cells.views.take_gone(now);
        if !gone.is_empty() {
            self.multi.free(gone);
        }
    }

    fn look_after_connections(&mut self, effects: &mut Effects) {
        let connections::Found { stuck, owed } = self.connections.look();
        effects.disconnects.extend(stuck.into_iter().map(|peer| (peer, DisconnectReason::Silent)));
        for peer in owed {
            self.batches.entry(peer).or_default();
        }
    }

    /// The lock is taken once for all of them: after a node's death they are many.
    fn note_leaders(&self, changed: &[(ShardId, Option<NodeId>)], effects: &mut Effects) {
        if changed.is_empty() {
            return;
        }
        self.config.metrics.leaders.lock().extend(changed.iter().copied());
        for &(shard, leader) in changed {
            tracing::debug!(core = %self.config.me, %shard, ?leader, "leader");
            effects.events.push(Event::Leader { shard, leader });
        }
    }

    fn count(&mut self) {
        let metrics = &self.config.metrics;
        if !self.latencies.is_empty() {
            metrics.request_latency.record_all(self.latencies.drain(..));
        }
        let wal = self.wal.stats();
        if !wal.write_latencies_ns.is_empty() {
            metrics.wal_write_latency.record_all(wal.write_latencies_ns);
        }
        set(&metrics.wal_writes, wal.frames);
        set(&metrics.wal_bytes, wal.bytes);
        set(&metrics.wal_entries, wal.entries);
        set(&metrics.wal_queued_bytes, self.wal.queued_bytes() as u64);
        set(&metrics.wal_disk_bytes, self.wal.bytes_used());
        set(&metrics.log_memory_bytes, self.multi.log_bytes() as u64);
        set(&metrics.requests_pending, self.requests.len() as u64);
        let shard = self.multi.stats();
        set(&metrics.proposals, shard.proposals);
        set(&metrics.commits, shard.commits);
        set(&metrics.applied, shard.applied);
        set(&metrics.elections, shard.elections);
        set(&metrics.dumps_installed, shard.installs);
        set(&metrics.flushes_postponed, shard.flushes_postponed);
        set(&metrics.reads, shard.reads);
        set(&metrics.read_rounds, shard.read_rounds);
        set(&metrics.messages_refused, shard.messages_refused);
    }

    /// When a turn is wanted without input.
    pub fn deadline(&self) -> Nanos {
        let drain = match self.draining_until {
            Some(until) => until,
            None => Nanos::MAX,
        };
        self.multi
            .deadline()
            .min(self.wal.deadline())
            .min(self.requests.earliest())
            .min(self.housekeeping_at)
            .min(drain)
            .min(self.disk_watch.deadline(self.wal.waiting_since()))
    }

    /// Once everything found or bootstrapped at start is durable in this core's stream, core 0 is told.
    fn report_settled(&mut self, effects: &mut Effects) {
        let barrier = self.wal.barrier();
        let until = *self.settled_at.get_or_insert(barrier);
        if until != FrameSeq::MAX && self.wal.durable() >= until {
            self.settled_at = Some(FrameSeq::MAX);
            let me = self.config.me.core;
            if me == 0 {
                self.on_core(&CoreMessage::Settled, effects);
            } else {
                effects.to_cores.push((0, CoreMessage::Settled));
            }
        }
    }

    /// Another core of this node, or this one, says something.
    pub fn on_core(&mut self, message: &CoreMessage, effects: &mut Effects) {
        if matches!(message, CoreMessage::Settled) {
            self.settling.core_settled(&mut effects.disk);
        }
    }

    /// A clean shutdown: requests under way are finished or given up, the log is sealed.
    fn drain(&mut self, now: Nanos, effects: &mut Effects) -> Progress {
        let Some(until) = self.draining_until else { return Progress::Running };
        if !self.requests.is_empty() && now >= until {
            self.answer_all(effects);
        }
        if !self.requests.is_empty() {
            return Progress::Running;
        }
        if !self.sealed {
            self.sealed = true;
            self.wal.seal(now, &mut effects.disk);
        }
        let quiet = self.wal.is_sealed() && self.dumps.is_idle();
        if quiet || now >= until + DRAIN_NS { Progress::Stopped } else { Progress::Running }
    }
}

fn merge(into: &mut PeerBatch, mut from: PeerBatch) {
    if from.beat.is_some() {
        assert!(into.beat.is_none(), "one beat per peer and turn");
        into.beat = from.beat;
    }
    if from.beat_reply.is_some() {
        assert!(into.beat_reply.is_none(), "one beat reply per peer and turn");
        into.beat_reply = from.beat_reply;
    }
    into.messages.append(&mut from.messages);
}

fn record(write: LogWrite) -> Record {
    match write {
        LogWrite::Entries { shard, replica, entries } => Record::Entries { shard, replica, entries },
        LogWrite::HardState { shard, replica, state } => Record::HardState { shard, replica, state },
        LogWrite::TruncatePrefix { shard, replica, flushed, generation } => {
            Record::TruncatePrefix { shard, replica, flushed, generation }
        }
        LogWrite::SnapshotInstall { shard, replica, mark, generation, descriptor, keep_suffix } => {
            Record::SnapshotInstall { shard, replica, mark, generation, descriptor, keep_suffix }
        }
        LogWrite::Tombstone { shard, lowest_replica } => Record::ShardTombstone { shard, lowest_replica },
        LogWrite::Reset(state) => Record::ShardReset(state),
    }
}

/// What voters promise: by their minimum election timeout, if at all.
fn wanted_promise_ns(config: &WorkerConfig) -> Nanos {
    let raft = &config.shard.raft;
    if raft.leases { raft.election_timeout_min_ns } else { 0 }
}

fn wal_config(settings: &WalSettings, record: &BootRecord, stream: u32) -> WalConfig {
    WalConfig {
        dir: format!("wal/{}", stream_name(stream)).into(),
        stream,
        store_uuid: record.store_uuid,
        boot_epoch: record.boot_epoch,
        segment_bytes_min: settings.segment_bytes_min,
        segment_bytes_max: settings.segment_bytes_max,
        frames_in_flight: settings.frames_in_flight,
        frame_bytes_max: settings.frame_bytes_max,
        spares: settings.spares,
        seal_idle_ns: 10 * MS,
    }
}

/// How long the log's disk may take for a call: unless set, the upper election timeout.
fn patience(config: &WorkerConfig) -> Nanos {
    match config.wal.stuck_after {
        Some(after) => u64::try_from(after.as_nanos()).unwrap_or(Nanos::MAX),
        None => config.shard.raft.election_timeout_max_ns,
    }
}

fn report(record: &BootRecord, found: &FoundAll) -> StartReport {
    let (frames, bytes, torn_bytes) = found.replayed;
    StartReport {
        shards: found.shards.len(),
        frames,
        bytes,
        torn_bytes,
        rehomed: found.shards.iter().filter(|found| found.moved).count(),
        boot_epoch: record.boot_epoch,
        store_uuid: record.store_uuid,
    }
}
