//! Drivers carry inputs to a core and its effects into the world.
//!
//! Two are for real nodes: [`ring`], one io_uring per core and nothing else, and [`glommio`]; the simulator has its
//! own, in the tests' crate. What doesn't depend on a runtime is shared: a core's worker and its ways in and out
//! (`hub`), blocking file calls (`background`), the table of callers that wait (`requests`), whether a directory
//! takes direct writes (`direct`), the few system calls that std doesn't offer (`sys`).
//!
//! Invariant: when a core's thread has ended, however it did, every caller has been answered and nothing touches
//! the disk for this core any more. A panic on it aborts the process.

mod background;
mod direct;
pub mod glommio;
mod hub;
mod requests;
pub mod ring;
pub(crate) mod sys;

use self::background::Background;
use crate::mailbox::Mailbox;
use crate::metrics::CoreMetrics;
use crate::probe;
use crate::seam::{Effects, Event};
use crate::transport::{HelloIdentity, PeerStores};
use crate::worker::Worker;
use floe_raft::Nanos;
use floe_shard::{CoreAddr, NodeId};
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;

/// What carries a node's inputs and effects. All run the same code above them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// A bare io_uring per core: one system call submits what a turn wants and waits for what comes next.
    #[default]
    Ring,
    /// An executor of the glommio runtime per core.
    Glommio,
}

impl Driver {
    /// Operations of io_uring that it needs.
    pub fn needs(self) -> &'static [probe::Need] {
        match self {
            Self::Ring => probe::FOR_RING,
            Self::Glommio => probe::FOR_GLOMMIO,
        }
    }
}

/// Makes a core's worker, on the core's thread.
pub type WorkerFactory = Box<dyn FnOnce(&mut Effects, Nanos) -> Worker + Send>;

/// Everything that one core needs.
pub struct CoreSetup {
    /// Makes its worker.
    pub worker: WorkerFactory,
    /// Its place.
    pub me: CoreAddr,
    /// How many cores this node has.
    pub cores: u16,
    /// The node's data directory; made if it doesn't exist.
    pub data_dir: PathBuf,
    /// The way in.
    pub mailbox: Arc<Mailbox>,
    /// The mailboxes of all cores of the node, in order.
    pub siblings: Vec<Arc<Mailbox>>,
    /// The other nodes and their addresses. Those with higher ids are connected to from here.
    pub peers: Vec<(NodeId, String)>,
    /// Who this node is, for hellos; set before [`crate::mailbox::Control::Connect`] is posted.
    pub identity: Arc<OnceLock<HelloIdentity>>,
    /// Which stores the peers have.
    pub stores: Arc<PeerStores>,
    /// Where events go, with the core's number.
    pub events: Sender<(u16, Event)>,
    /// Where frames that were dropped are counted.
    pub metrics: Arc<CoreMetrics>,
    /// The CPU to run on.
    pub pin: Option<usize>,
    /// For how long to poll before going to sleep: 100 us brings a wake-up from 25-55 us to 5 us, for a busy
    /// CPU. `None` by default.
    pub spin_before_park: Option<Duration>,
    /// Bytes of registered I/O memory; `None` = by the limit of locked memory.
    pub io_memory: Option<usize>,
    /// Bound of bytes that wait for one peer; frames beyond it are dropped and counted.
    pub send_queue_bytes_max: usize,
    /// Bound of callers that wait for answers; beyond it they get `Busy(Requests)`.
    pub requests_max: usize,
}

/// Starts a core on a thread of its own, named `floe-n{node}-c{core}`.
///
/// # Errors
/// If io_uring can't be used, memory can't be locked, or there can't be a thread; says what to change.
pub fn spawn(driver: Driver, setup: CoreSetup) -> io::Result<JoinHandle<()>> {
    probe::check(driver.needs()).map_err(io::Error::other)?;
    match driver {
        Driver::Ring => ring::spawn(setup),
        Driver::Glommio => glommio::spawn(setup),
    }
}

/// Starts a core's threads. `prepare` and then `run` are called on its own one; returns when `prepare` has.
fn launch<R>(
    setup: CoreSetup,
    background: Background,
    prepare: impl FnOnce(&CoreSetup) -> io::Result<R> + Send + 'static,
    run: impl FnOnce(R, CoreSetup, Background) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (started, start) = sync_channel(1);
    let thread =
        std::thread::Builder::new().name(setup.thread_name()).spawn(move || match prepare(&setup) {
            Ok(runtime) => {
                // The other end waits right below.
                let _ = started.send(Ok(()));
                abort_on_panic(setup.me, move || run(runtime, setup, background));
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        })?;
    match start.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the core's thread panicked while starting")),
    }
}

/// State that broke an invariant is not used any further: a panic ends the process, after everybody who waits has
/// been told.
fn abort_on_panic(me: CoreAddr, run: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
        eprintln!("floe: core {me} panicked (see above); its state is not used further: the process aborts");
        tracing::error!(core = %me, "panic on a core; the process aborts");
        std::process::abort();
    }
}

impl CoreSetup {
    fn thread_name(&self) -> String {
        format!("floe-{}-c{}", self.me.node, self.me.core)
    }
}

/// Refuses what comes after the core's end.
struct CloseMailbox(Arc<Mailbox>);

impl Drop for CloseMailbox {
    fn drop(&mut self) {
        self.0.close();
        self.0.refuse_posts();
        // Sockets that were handed over too late.
        while self.0.take_control().is_some() {}
        // What the waker wakes must not outlive the thread.
        self.0.sleep(Waker::noop());
    }
}
