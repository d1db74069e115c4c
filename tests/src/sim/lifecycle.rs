//! Processes come and go: they start on what their disk holds, end in several ways, and fail where that is
//! explained. One that refuses a damaged disk by name is gone for good; its peers go on without it.

use crate::checker::Violation;
use crate::sim::clock::{MS, SEC};
use crate::sim::cluster::{Cluster, Event};
use crate::sim::disk::Crash;
use crate::sim::node::{Node, Process};
use floe::seam::{Event as CoreEvent, Failure, Input};
use floe_shard::CoreAddr;

impl Cluster {
    /// Starts a node's process on what its disk holds, unless that is known to be damaged.
    pub fn start_node(&mut self, node: usize) {
        if self.nodes[node].is_condemned {
            return;
        }
        let now = self.now();
        let process = Process::start(&mut self.nodes[node], now, &self.plan, &self.shards);
        let Node { id, incarnation, .. } = self.nodes[node];
        let cores = process.cores.len() as u16;
        self.trace.note(now, &[1, id.0, incarnation, u64::from(cores)], || {
            format!("start {id}, {cores} cores, incarnation {incarnation}")
        });
        self.nodes[node].process = Some(process);
        self.found.starts += 1;
        self.network.node_up(now, id, cores);
        self.pump_network();
        for core in 0..cores {
            self.carry_out(node, core);
            self.wake(node, core);
        }
    }

    /// Ends a node's process: everything in memory is gone, its clients lose their answers.
    pub fn end_node(&mut self, node: usize, crash: Crash) {
        let now = self.now();
        let Some(process) = self.nodes[node].process.take() else {
            if crash == Crash::Power {
                self.nodes[node].disk.crash(crash);
            }
            return;
        };
        let id = self.nodes[node].id;
        self.trace.note(now, &[2, id.0, crash as u64], || format!("end {id} by {crash:?}"));
        self.nodes[node].disk.crash(crash);
        self.nodes[node].paused_until = 0;
        self.safety.forget(id);
        self.found.installs += process.installs();
        for client in process.cores.into_iter().flat_map(|core| core.clients.into_values()) {
            let after = self.random.between(MS, 50 * MS);
            self.queue.after(after, Event::Answer(client, None));
        }
        let notice = match crash {
            Crash::Process => 5 * MS,
            Crash::Power => self.random.between(50 * MS, 3 * SEC),
        };
        self.network.node_down(now, id, notice);
        self.pump_network();
    }

    /// Asks a node's cores to shut down cleanly; it is killed if that takes too long.
    pub fn shut_down(&mut self, node: usize) {
        let incarnation = self.nodes[node].incarnation;
        let Some(process) = &mut self.nodes[node].process else { return };
        process.is_ending = true;
        for core in 0..process.cores.len() as u16 {
            self.input(node, incarnation, core, Input::Shutdown);
        }
        self.queue.after(20 * SEC, Event::Kill(node, incarnation));
    }

    pub(crate) fn on_event(&mut self, node: usize, core: u16, event: CoreEvent) {
        let now = self.queue.now();
        let me = CoreAddr { node: self.nodes[node].id, core };
        self.trace.core(now, me, &[7], || format!("-> event {event:?}"));
        let Node { ref mut process, incarnation, ref mut boot_epoch, ref disk, .. } = self.nodes[node];
        let Some(process) = process else { return };
        match event {
            CoreEvent::Started(report) => {
                process.started += 1;
                self.found.torn_tails += u64::from(report.torn_bytes > 0);
                self.found.rehomed += report.rehomed as u64;
                let known = boot_epoch.entry(incarnation).or_insert(report.boot_epoch);
                let (known, highest) =
                    (*known, boot_epoch.range(..incarnation).map(|(_, epoch)| *epoch).max());
                if known != report.boot_epoch || highest.is_some_and(|highest| highest >= known) {
                    let detail =
                        format!("{me}: boot epoch {} after {highest:?}, {known} here", report.boot_epoch);
                    self.break_promise(Violation::new("boot epoch", detail));
                }
                if self.nodes[node].is_started() {
                    self.check_started(node);
                }
            }
            CoreEvent::Stopped => {
                process.stopped += 1;
                if process.stopped == process.cores.len() {
                    self.end_node(node, Crash::Process);
                }
            }
            CoreEvent::Failed(failure) => {
                process.is_ending = true;
                let saw_errors = disk.errors > process.disk_errors_before;
                self.found.failed_cores += 1;
                self.on_failure(node, me, &failure, saw_errors);
            }
            CoreEvent::Leader { .. } => {}
        }
    }

    /// Kills a node soon, and starts it again some time later.
    fn restart_later(&mut self, node: usize) {
        let incarnation = self.nodes[node].incarnation;
        let (dies, lives) = (self.random.skewed(10 * MS), self.random.between(20 * MS, 500 * MS));
        self.queue.after(dies, Event::Kill(node, incarnation));
        self.queue.after(20 * 32 * MS + lives, Event::Restart(node, incarnation));
    }

    /// A core can't go on. Whoever runs the node starts it again, unless its data is damaged.
    fn on_failure(&mut self, node: usize, me: CoreAddr, failure: &Failure, saw_errors: bool) {
        let text = failure.to_string();
        let names_damage = self.nodes[node].disk.damaged_files().any(|path| text.contains(&**path));
        match failure {
            Failure::Corrupt(_) | Failure::Boot(_) if names_damage => self.condemn(node, text),
            Failure::Disk(_) | Failure::Boot(_) if saw_errors => self.restart_later(node),
            _ => {
                let damaged: Vec<_> = self.nodes[node].disk.damaged_files().cloned().collect();
                let detail = format!("{me} failed: {text}; damaged: {damaged:?}");
                self.break_promise(Violation::new("start", detail));
            }
        }
    }

    /// A node's data is damaged and it said so: it stays down.
    fn condemn(&mut self, node: usize, why: String) {
        if std::mem::replace(&mut self.nodes[node].is_condemned, true) {
            return; // another core has said so already
        }
        let (now, incarnation) = (self.now(), self.nodes[node].incarnation);
        self.trace.note(now, &[23, node as u64], || format!("node {} is gone: {why}", node + 1));
        self.found.condemned += 1;
        let dies = self.random.skewed(10 * MS);
        self.queue.after(dies, Event::Kill(node, incarnation));
    }
}
