//! SIGINT and SIGTERM as something to wait for. The only unsafe code of the command.

use std::io;

/// The two signals by which a process is asked to stop, kept from their default action.
pub struct StopSignals(libc::sigset_t);

impl StopSignals {
    /// Must be called before any other thread is started: they inherit that the signals are blocked.
    ///
    /// # Errors
    /// What the system says.
    pub fn block() -> io::Result<Self> {
        // A shell starts background jobs with SIGINT ignored, and an ignored signal may not reach who waits for it.
        // SAFETY: all-zero bytes are a valid sigset_t, which sigemptyset and sigaddset then fill; the set
        // lives across all calls, and no old mask is asked for. `signal` takes no pointers.
        unsafe {
            libc::signal(libc::SIGINT, libc::SIG_DFL);
            libc::signal(libc::SIGTERM, libc::SIG_DFL);
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(Self(set)),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }

    /// Waits for one of them; its name.
    ///
    /// # Errors
    /// What the system says.
    pub fn wait(&self) -> io::Result<&'static str> {
        let mut signal = 0;
        // SAFETY: the set was filled by `block`, and the signal's number is written to a live integer.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 if signal == libc::SIGINT => Ok("SIGINT"),
            0 => Ok("SIGTERM"),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Asks a process to stop. An error means that it is already gone.
pub fn terminate(process: u32) -> io::Result<()> {
    let process = libc::pid_t::try_from(process).map_err(io::Error::other)?;
    // SAFETY: no pointers.
    match unsafe { libc::kill(process, libc::SIGTERM) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
