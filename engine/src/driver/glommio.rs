//! The driver for real nodes: one thread with one glommio executor per core. Only this file and those below
//! `driver/glommio/` import glommio.
//!
//! Everything of a core runs in one task, the `pump`; beside it there are a reader and a writer per
//! connection (`net`), a task per write in flight (`files`) and the ticker.
//!
//! Facts about glommio 0.9 that this rests on, each measured:
//! - An executor can park with runnable tasks when its preempt timer fires at the wrong moment. The *ticker*, a
//!   task that sleeps 2 ms in a loop, bounds that stall; no executor may run without it.
//! - While tasks keep yielding, or sleep for 0 or 1 ns, I/O is not polled. So the pump really parks after
//!   every turn: until something happens, or for 1 us if something already waits.
//! - The first file opened with O_DIRECT must have data: glommio probes at offset 0 and caches
//!   the answer per device.
//!
//! Invariant: when the thread has ended, however it did, every caller has been answered and nothing
//! touches the disk for this core any more. A panic on it aborts the process.

mod files;
mod inbox;
mod net;
mod pump;

use super::background::Background;
use super::sys;
use crate::mailbox::Mailbox;
use crate::metrics::CoreMetrics;
use crate::probe;
use crate::seam::{Effects, Event, Failure};
use crate::transport::HelloIdentity;
use crate::worker::Worker;
use ::glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use floe_raft::Nanos;
use floe_shard::{CoreAddr, NodeId};
use std::future::poll_fn;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

/// Shorter ones make the stall described above likelier.
const PREEMPT_TIMER: Duration = Duration::from_micros(500);
/// What glommio refuses to start below.
const LOCKED_MEMORY_MIN: u64 = 512 << 10;
const IO_MEMORY_MIN: u64 = 64 << 10;
const IO_MEMORY_MAX: u64 = 4 << 20;
/// Rings per executor; each registers the I/O memory.
const RINGS: u64 = 3;

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
pub fn spawn(setup: CoreSetup) -> io::Result<JoinHandle<()>> {
    probe::check().map_err(io::Error::other)?;
    let io_memory = io_memory(&setup)?;
    let name = format!("floe-{}-c{}", setup.me.node, setup.me.core);
    let background = Background::start(&name, &setup.data_dir, &setup.mailbox)?;
    let (started, start) = sync_channel(1);
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        match executor(&setup, io_memory) {
            Ok(executor) => {
                // The other end waits right below.
                let _ = started.send(Ok(()));
                run(&executor, setup, background);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    })?;
    match start.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::Error::other("the core's thread panicked while starting")),
    }
}

/// A fair part of what the process may lock, or what was asked for.
fn io_memory(setup: &CoreSetup) -> io::Result<usize> {
    let limit = sys::locked_memory_max()?;
    if limit < LOCKED_MEMORY_MIN {
        return Err(io::Error::other(format!(
            "the limit of locked memory is {limit} bytes, at least {LOCKED_MEMORY_MIN} are needed: raise it \
             with `ulimit -l 8192`, LimitMEMLOCK= in a systemd unit, or --ulimit memlock= for a container"
        )));
    }
    let share = limit / 2 / RINGS / u64::from(setup.cores.max(1));
    let fair = share.clamp(IO_MEMORY_MIN, IO_MEMORY_MAX) as usize;
    Ok(setup.io_memory.unwrap_or(fair))
}

fn executor(setup: &CoreSetup, io_memory: usize) -> io::Result<LocalExecutor> {
    let placement = setup.pin.map_or(Placement::Unbound, Placement::Fixed);
    let mut builder = LocalExecutorBuilder::new(placement)
        .name(&format!("floe-{}-c{}", setup.me.node, setup.me.core))
        .io_memory(io_memory)
        .preempt_timer(PREEMPT_TIMER);
    if let Some(spin) = setup.spin_before_park {
        builder = builder.spin_before_park(spin);
    }
    builder.make().map_err(|error| {
        let pin = setup.pin.map_or(String::new(), |cpu| format!(" on CPU {cpu}"));
        io::Error::other(format!("starting an executor{pin}: {error}"))
    })
}

/// Runs the core until it has stopped. State that broke an invariant is not used any further: a panic
/// ends the process, after everybody who waits has been told.
fn run(executor: &LocalExecutor, setup: CoreSetup, background: Background) {
    let me = setup.me;
    let events = setup.events.clone();
    let mailbox = Arc::clone(&setup.mailbox);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
        executor.run(async move {
            // What comes after this drops the pump first and then the mailbox's last posts.
            let _closing = CloseMailbox(Arc::clone(&mailbox));
            be_watched(&mailbox).await;
            match pump::Pump::new(setup, background).await {
                Ok(pump) => pump.run().await,
                Err(error) => {
                    // Nobody listens any more if the node is being torn down.
                    let _ = events.send((me.core, Event::Failed(Failure::Disk(error.message))));
                }
            }
        });
    }));
    if result.is_err() {
        eprintln!("floe: core {me} panicked (see above); its state is not used further: the process aborts");
        tracing::error!(core = %me, "panic on a core; the process aborts");
        std::process::abort();
    }
}

/// Tells the mailbox whom to nudge, before anything is waited for: a core was seen hanging at its start
/// without having used any processor time.
async fn be_watched(mailbox: &Mailbox) {
    poll_fn(|context| {
        mailbox.sleep(context.waker());
        Poll::Ready(())
    })
    .await;
    mailbox.awake();
}

/// Refuses what comes after the core's end.
struct CloseMailbox(Arc<Mailbox>);

impl Drop for CloseMailbox {
    fn drop(&mut self) {
        self.0.close();
        self.0.refuse_posts();
        // Sockets that were handed over too late.
        while self.0.take_control().is_some() {}
        // The executor's waker must not outlive it.
        self.0.sleep(std::task::Waker::noop());
    }
}
