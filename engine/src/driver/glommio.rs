//! The driver for real nodes: one thread with one glommio executor per core. Only this file and those below
//! `driver/glommio/` import glommio.
//!
//! Everything of a core runs in one task, the `pump`; beside it there are a reader and a writer per
//! connection (`net`), a task per write in flight (`files`) and the ticker.
//!
//! Facts about glommio 0.9 that this rests on, each measured:
//! - An executor parks with runnable tasks when its preempt timer fires between two of its instructions: if it loses its
//!   processor there for as long as the timer runs. The *ticker*, a task that sleeps 2 ms in a loop, bounds that stall; no
//!   executor may run without it. Before the ticker's first turn nothing bounds it, and nothing wakes such an
//!   executor: so the timer is long. Nothing here needs it: the pump parks after every turn.
//! - While tasks keep yielding, or sleep for 0 or 1 ns, I/O is not polled. So the pump really parks after
//!   every turn: until something happens, or for 1 us if something already waits.
//! - The first file opened with O_DIRECT must have data: glommio probes at offset 0 and caches
//!   the answer per device.

mod files;
mod inbox;
mod net;
mod pump;

use super::background::Background;
use super::{CloseMailbox, CoreSetup, launch, sys};
use crate::mailbox::Mailbox;
use crate::seam::{Event, Failure};
use ::glommio::{LocalExecutor, LocalExecutorBuilder, Placement};
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::Duration;

/// Shorter ones make the stall described above likelier: with 500 us cores were seen hanging at their start.
const PREEMPT_TIMER: Duration = Duration::from_millis(50);
/// What glommio refuses to start below.
const LOCKED_MEMORY_MIN: u64 = 512 << 10;
const IO_MEMORY_MIN: u64 = 64 << 10;
const IO_MEMORY_MAX: u64 = 4 << 20;
/// Rings per executor; each registers the I/O memory.
const RINGS: u64 = 3;

/// A core that nothing else has woken for so long is woken from outside: an executor was seen asleep for good, its
/// own ticker included, with work to do.
const NUDGE_AFTER: Duration = Duration::from_millis(20);

/// Starts a core; see [`super::spawn`].
pub(super) fn spawn(setup: CoreSetup) -> io::Result<JoinHandle<()>> {
    let io_memory = io_memory(&setup)?;
    let (name, nudge) = (setup.thread_name(), Some(NUDGE_AFTER));
    let background = Background::start(&name, &setup.data_dir, &setup.mailbox, nudge)?;
    launch(setup, background, move |setup| executor(setup, io_memory), run)
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
        .name(&setup.thread_name())
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

/// Runs the core until it has stopped.
fn run(executor: LocalExecutor, setup: CoreSetup, background: Background) {
    let (me, events) = (setup.me, setup.events.clone());
    let mailbox = Arc::clone(&setup.mailbox);
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
