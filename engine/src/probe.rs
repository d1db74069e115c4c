//! Whether this process may use io_uring: found out at start, so that the error says what to change.

use io_uring::{IoUring, Probe, opcode};
use std::io;

const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";

/// Why io_uring can't be used, and which knob to turn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// The kernel doesn't have it, or a seccomp profile hides it.
    #[error(
        "io_uring is missing: the kernel is older than 5.11 or built without it, or a seccomp profile hides it; \
         in a container allow io_uring_setup, io_uring_enter and io_uring_register (Docker: --security-opt \
         seccomp=PROFILE; the default profile forbids them)"
    )]
    Missing,
    /// The sysctl forbids it.
    #[error("io_uring is switched off: set sysctl kernel.io_uring_disabled=0 (it is {0})")]
    Disabled(u8),
    /// Something else forbids it, most likely a seccomp profile.
    #[error(
        "io_uring is forbidden, most likely by the container's seccomp profile: allow io_uring_setup, \
         io_uring_enter and io_uring_register (Docker: --security-opt seccomp=PROFILE), or grant it in SELinux \
         or AppArmor"
    )]
    Forbidden,
    /// Not enough memory may be locked.
    #[error(
        "io_uring finds no memory that it may lock: raise RLIMIT_MEMLOCK (`ulimit -l 8192`, LimitMEMLOCK= in \
         a systemd unit, --ulimit memlock= for a container)"
    )]
    LockedMemory,
    /// The kernel is too old.
    #[error("this kernel's io_uring lacks {0}: Linux 5.11 or newer is needed")]
    Lacks(&'static str),
    /// Anything else.
    #[error("setting io_uring up: {0}")]
    Other(String),
}

/// An operation that a driver needs: its number and what it is for.
pub type Need = (u8, &'static str);

/// What the glommio driver needs.
pub const FOR_GLOMMIO: &[Need] = &[
    (opcode::Read::CODE, "reads"),
    (opcode::WriteFixed::CODE, "writes from registered buffers"),
    (opcode::OpenAt::CODE, "opening files"),
    (opcode::PollAdd::CODE, "polling sockets"),
    (opcode::Timeout::CODE, "timeouts"),
    (opcode::AsyncCancel::CODE, "cancellation"),
];

/// What the ring driver needs.
pub const FOR_RING: &[Need] = &[
    (opcode::Read::CODE, "reads"),
    (opcode::Write::CODE, "writes"),
    (opcode::Recv::CODE, "receiving from sockets"),
    (opcode::SendMsg::CODE, "sending to sockets"),
];

/// Sets a small ring up and looks for the operations that are needed.
///
/// # Errors
/// Says what forbids it, and what to change.
pub fn check(needs: &[Need]) -> Result<(), ProbeError> {
    let ring = IoUring::new(4).map_err(|error| explain(&error, disabled()))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| explain(&error, disabled()))?;
    if !ring.params().is_feature_ext_arg() {
        return Err(ProbeError::Lacks("waiting with a time limit"));
    }
    match needs.iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, name)) => Err(ProbeError::Lacks(name)),
        None => Ok(()),
    }
}

/// The sysctl's value; `None` if the kernel has none.
fn disabled() -> Option<u8> {
    std::fs::read_to_string(DISABLED).ok()?.trim().parse().ok()
}

fn explain(error: &io::Error, disabled: Option<u8>) -> ProbeError {
    match (error.raw_os_error(), disabled) {
        (Some(libc::EPERM | libc::EACCES), Some(value)) if value > 0 => ProbeError::Disabled(value),
        (Some(libc::EPERM | libc::EACCES), _) => ProbeError::Forbidden,
        (Some(libc::ENOSYS), _) => ProbeError::Missing,
        (Some(libc::ENOMEM), _) => ProbeError::LockedMemory,
        _ => ProbeError::Other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_operation_is_refused_by_name() {
        check(FOR_RING).unwrap();
        assert_eq!(check(&[FOR_RING[0], (u8::MAX, "levitation")]), Err(ProbeError::Lacks("levitation")));
    }

    #[test]
    fn every_reason_names_its_knob() {
        let of = |code, disabled| explain(&io::Error::from_raw_os_error(code), disabled).to_string();
        assert!(of(libc::EPERM, Some(2)).contains("kernel.io_uring_disabled"));
        assert!(of(libc::EPERM, Some(0)).contains("seccomp"));
        assert!(of(libc::ENOSYS, None).contains("seccomp"));
        assert!(of(libc::ENOMEM, Some(0)).contains("RLIMIT_MEMLOCK"));
    }
}
