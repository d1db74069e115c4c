//! A client's side of a cluster in other processes: [`Client::connect`](crate::Client::connect).
//!
//! One connection per node, with a thread that sends and one that receives (`remote/link.rs`), and one thread for
//! what only time brings. Callers' threads put requests into one table and into the queue of the connection
//! that suits: to the node that leads the shard, as far as is known, else to any that is connected and answers; every
//! node forwards what it can't do itself. All that was queued while a frame was being sent leaves as one frame.
//!
//! What may be tried again, and what not:
//! - A request that has not left, or that a node refused because it can't serve, is tried elsewhere until its deadline.
//! - A read that has left and whose connection broke, or whose node stays silent, is tried elsewhere.
//! - A write that has left is never sent twice: if its connection breaks, its outcome is unknown.
//!
//! Invariants: every request in the table is answered exactly once, soon after its deadline at the latest; an answer
//! counts only if it comes from where the request was sent last; callers are woken without any lock held.

mod link;
mod routes;

pub use link::{ConnectError, ask_map, ask_status, ask_to_forget_store};

use self::link::Wire;
use self::routes::{Pending, Place, Table};
use crate::clock;
use crate::codec::MapInfo;
use crate::mailbox::Slot;
use arc_swap::ArcSwap;
use floe_raft::Nanos;
use floe_shard::ShardMap;
use floe_shard::request::{Answer, BusyReason, Refusal, Request};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Requests under way; beyond it they are refused as busy.
const REQUESTS_MAX: usize = 65_536;
/// Bytes of them.
const REQUEST_BYTES_MAX: usize = 256 << 20;
/// How long [`Remote::connect`] waits for the first node.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How often the clock is looked at while requests wait.
const TICK: Duration = Duration::from_millis(10);

/// The connections of a client. Dropping it ends them; what was not answered yet has an unknown outcome.
pub(crate) struct Remote(Arc<Inner>);

/// What callers' threads and those of the connections share.
struct Inner {
    table: Mutex<Table>,
    /// The thread that watches the clock, and who waits for the first map.
    changed: Condvar,
    map: ArcSwap<ShardMap>,
}

impl Remote {
    /// Connects; returns when a node has told who and where the shards are.
    pub(crate) fn connect(endpoints: &[String]) -> Result<Self, ConnectError> {
        if endpoints.is_empty() {
            return Err(ConnectError::NoEndpoints);
        }
        let inner = Arc::new(Inner {
            table: Mutex::new(Table::default()),
            changed: Condvar::new(),
            map: ArcSwap::from_pointee(ShardMap::default()),
        });
        // From here on, an error ends what was started.
        let remote = Self(inner);
        for endpoint in endpoints {
            remote.0.start_link(endpoint.clone()).map_err(ConnectError::Thread)?;
        }
        let watch = Arc::clone(&remote.0);
        let thread =
            thread::Builder::new().name("floe-client-clock".into()).spawn(move || watch.watch_clock());
        thread.map_err(ConnectError::Thread)?;
        remote.await_map()?;
        Ok(remote)
    }

    fn await_map(&self) -> Result<(), ConnectError> {
        let until = clock::now() + CONNECT_LIMIT.as_nanos() as Nanos;
        let mut table = self.0.table.lock();
        while self.0.map.load().is_empty() {
            let left = until.saturating_sub(clock::now());
            if left == 0 || table.links.iter().all(|link| link.failure.is_some()) {
                return Err(ConnectError::NoNode(table.failures()));
            }
            self.0.changed.wait_for(&mut table, Duration::from_nanos(left));
        }
        Ok(())
    }

    pub(crate) fn map(&self) -> arc_swap::Guard<Arc<ShardMap>> {
        self.0.map.load()
    }

    /// Sends a request to where it belongs; the answer goes into the slot.
    pub(crate) fn post(&self, request: Request, deadline: Nanos, slot: Arc<Slot>) -> Result<(), Refusal> {
        let mut table = self.0.table.lock();
        if table.requests.len() >= REQUESTS_MAX {
            return Err(Refusal::Busy(BusyReason::Requests));
        }
        let size = request.size();
        if table.bytes > 0 && table.bytes + size > REQUEST_BYTES_MAX {
            return Err(Refusal::Busy(BusyReason::Transport));
        }
        let was_idle = table.requests.is_empty();
        let id = table.insert(Pending {
            request,
            deadline,
            slot,
            place: Place::Parked,
            avoid: None,
            refusal: None,
        });
        table.route(id);
        drop(table);
        if was_idle {
            self.0.changed.notify_all();
        }
        Ok(())
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        let mut table = self.0.table.lock();
        table.closed = true;
        table.links.iter().for_each(|link| link.cut());
        let left = table.take_all();
        drop(table);
        self.0.changed.notify_all();
        deliver(left);
    }
}

/// Wakes the callers; no lock is held.
fn deliver(answers: Vec<(Arc<Slot>, Answer)>) {
    for (slot, answer) in answers {
        slot.answer(answer);
    }
}

impl Inner {
    fn start_link(self: &Arc<Self>, address: String) -> std::io::Result<()> {
        let wake = Arc::new(Condvar::new());
        let at = self.table.lock().add_link(address.clone(), Arc::clone(&wake));
        let inner = Arc::clone(self);
        let thread = thread::Builder::new().name("floe-client-link".into());
        thread.spawn(move || link::run(&inner, at, &address, &wake)).map(drop)
    }

    /// Deadlines, nodes that have fallen silent, and nodes that are not connected to yet; until the client is dropped.
    fn watch_clock(self: &Arc<Self>) {
        let mut table = self.table.lock();
        while !table.closed {
            if table.requests.is_empty() {
                self.changed.wait(&mut table);
            } else {
                self.changed.wait_for(&mut table, TICK);
            }
            let late = table.tick(clock::now());
            let found = table.take_found();
            parking_lot::MutexGuard::unlocked(&mut table, || {
                deliver(late);
                for address in found {
                    if let Err(error) = self.start_link(address) {
                        tracing::warn!(%error, "no thread for a connection to another node");
                    }
                }
            });
        }
    }

    /// A connection works.
    fn on_up(&self, at: usize, wire: Wire) {
        self.table.lock().up(at, wire);
    }

    /// A connection is gone, or never came to be.
    fn on_down(&self, at: usize, reason: String) {
        let lost = self.table.lock().down(at, reason);
        deliver(lost);
        self.changed.notify_all();
    }

    fn on_answers(&self, at: usize, answers: impl Iterator<Item = (u64, Answer)>) {
        let mut table = self.table.lock();
        let done: Vec<_> = answers.filter_map(|(id, answer)| table.on_answer(at, id, answer)).collect();
        drop(table);
        deliver(done);
    }

    /// A node told how it knows the cluster.
    ///
    /// # Errors
    /// It can't be so.
    fn on_map(&self, at: usize, info: MapInfo) -> Result<(), String> {
        let mut table = self.table.lock();
        let told = routes::map_of(&info, table.version)?;
        let map = told.map_or_else(|| self.map.load_full(), Arc::new);
        if routes::is_news(&self.map.load(), &map) {
            self.map.store(Arc::clone(&map));
            table.version = info.version;
        }
        table.learn(at, info, &map);
        drop(table);
        self.changed.notify_all();
        Ok(())
    }
}
