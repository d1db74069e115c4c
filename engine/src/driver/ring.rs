//! The driver on a bare ring: one io_uring per core, and nothing else that the core's thread could wait for.
//!
//! A turn's sends, receives, log writes and the wait for what comes next are one system call
//! (`Uring::enter`). Other threads wake the core through an eventfd that a read of the ring waits for,
//! once per sleep and not per item. There is no executor between: what is submitted is either completed or in
//! flight, so a core needs no watchdog.
//!
//! Memory that the kernel works on belongs to the ring meanwhile (`uring`, the only unsafe code). `connection` and
//! `assembler` make frames of a socket's bytes, `files` writes the log; other file calls block on the
//! threads of `background`.

mod assembler;
mod connection;
mod files;
mod pump;
mod uring;

use self::pump::Pump;
use self::uring::Uring;
use super::background::Background;
use super::{CloseMailbox, CoreSetup, launch, sys};
use crate::seam::{Event, Failure};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Starts a core; see [`super::spawn`].
pub(super) fn spawn(setup: CoreSetup) -> io::Result<JoinHandle<()>> {
    let background = Background::start(&setup.thread_name(), &setup.data_dir, &setup.mailbox, None)?;
    launch(setup, background, prepare, run)
}

fn prepare(setup: &CoreSetup) -> io::Result<Uring> {
    if let Some(cpu) = setup.pin {
        sys::pin(cpu).map_err(|error| io::Error::other(format!("binding a core to CPU {cpu}: {error}")))?;
    }
    Uring::new().map_err(|error| io::Error::other(format!("setting a ring up: {error}")))
}

/// Runs the core until it has stopped.
fn run(ring: Uring, setup: CoreSetup, background: Background) {
    let _closing = CloseMailbox(Arc::clone(&setup.mailbox));
    let (core, events) = (setup.me.core, setup.events.clone());
    let failure = match Pump::new(ring, setup, background) {
        Ok(pump) => pump.run().err().map(|error| format!("the ring can't be used any more: {error}")),
        Err(error) => Some(error.message),
    };
    if let Some(reason) = failure {
        // Nobody listens any more if the node is being torn down.
        let _ = events.send((core, Event::Failed(Failure::Disk(reason))));
    }
}
