//! System calls that std doesn't offer: the only unsafe code of the drivers.

#![allow(unsafe_code)]

use bytes::Bytes;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

/// Parts that one `sendmsg` takes.
pub(crate) const PARTS_MAX: usize = 64;

/// After so long without an acknowledgement of sent bytes the connection counts as dead. Without it,
/// retransmission backs off for minutes after a partition.
const SEND_TIMEOUT_MS: libc::c_int = 5_000;
/// Above Ethernet's packets. Linux shrinks a window to four segments of the receiver's at the least.
const SEGMENT_BYTES_MAX: libc::c_int = 16 << 10;
const KEEPALIVE_IDLE_S: libc::c_int = 5;
const KEEPALIVE_INTERVAL_S: libc::c_int = 2;
const KEEPALIVE_PROBES: libc::c_int = 3;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Sends parts back to back without waiting; returns how many bytes went, at least 1.
///
/// # Errors
/// `WouldBlock` if nothing can be sent now.
pub(crate) fn send_parts<'a>(
    socket: BorrowedFd<'_>,
    parts: impl Iterator<Item = &'a Bytes>,
) -> io::Result<usize> {
    let mut slots = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PARTS_MAX];
    let mut count = 0;
    for (slot, part) in slots.iter_mut().zip(parts) {
        *slot = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        count += 1;
    }
    // SAFETY: all-zero bytes are a valid msghdr: no name, no control data, null pointers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slots.as_mut_ptr();
    message.msg_iovlen = count;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` slots point to bytes borrowed for 'a, which outlive this call, and the
    // kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

/// Both directions at once: whoever waits on the socket wakes up.
pub(crate) fn shutdown(socket: BorrowedFd<'_>) {
    // SAFETY: the descriptor is open for as long as it is borrowed. An error means that the
    // connection is already gone.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Makes dead connections be noticed within seconds.
pub(crate) fn watch_connection(socket: BorrowedFd<'_>) -> io::Result<()> {
    let tcp = libc::IPPROTO_TCP;
    for (level, name, value) in [
        (tcp, libc::TCP_USER_TIMEOUT, SEND_TIMEOUT_MS),
        (tcp, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (tcp, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (tcp, libc::TCP_KEEPCNT, KEEPALIVE_PROBES),
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
    ] {
        set_option(socket, level, name, value)?;
    }
    Ok(())
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the option's value is a c_int that lives across the call, and `len` is its size.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) })
        .map(drop)
}

/// Bounds the segments of all connections that `listener` will accept, in both directions. On a loopback device they have
/// up to 64 KiB otherwise, more than the window of a receiver that was short of buffers: see `connections.rs`.
pub(crate) fn bound_segments(listener: BorrowedFd<'_>) -> io::Result<()> {
    set_option(listener, libc::IPPROTO_TCP, libc::TCP_MAXSEG, SEGMENT_BYTES_MAX)
}

/// Starts to write what of a file the page cache alone holds, and waits for what was started before. It makes nothing
/// durable: neither the file's metadata nor the disk's own cache are flushed.
pub(crate) fn write_back(file: BorrowedFd<'_>) -> io::Result<()> {
    let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: no pointers. A length of 0 means up to the end.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, how) }).map(drop)
}

/// Waits until a descriptor can be read, or accepted from; false if the time runs out.
pub(crate) fn wait_readable(descriptor: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let limit_ms = libc::c_int::try_from(limit.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: exactly one pollfd, which lives across the call.
    match check(unsafe { libc::poll(&raw mut poll, 1, limit_ms) }) {
        Ok(ready) => Ok(ready > 0),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(error) => Err(error),
    }
}

/// A counter that wakes who reads it once it isn't 0; reading takes the count.
pub(crate) fn event_counter() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let descriptor = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
    // SAFETY: it was opened right above, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Binds the calling thread to a processor.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all-zero bytes are the empty set; `cpu` is within the set's size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        set
    };
    // SAFETY: the set lives across the call and has the size that is named; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) }).map(drop)
}

/// Hands a descriptor to a runtime's type.
pub(crate) fn adopt<T: FromRawFd>(descriptor: OwnedFd) -> T {
    // SAFETY: the descriptor is open and nobody else's: `into_raw_fd` gave up its ownership.
    unsafe { T::from_raw_fd(descriptor.into_raw_fd()) }
}

/// Lets everything else run before the calling thread.
pub(crate) fn lower_priority() -> io::Result<()> {
    // SAFETY: no pointers. On Linux, id 0 means the calling thread alone.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }).map(drop)
}

/// Soft limit of locked memory in bytes; `u64::MAX` = none.
pub(crate) fn locked_memory_max() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the one struct that is pointed to.
    check(unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) })?;
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn segment_bytes(socket: &TcpStream) -> libc::c_int {
        let (mut value, mut len) = (0, size_of::<libc::c_int>() as libc::socklen_t);
        let (into, fd) = ((&raw mut value).cast(), socket.as_raw_fd());
        // SAFETY: the kernel writes at most `len` bytes, the size of `value`, to `value`.
        check(unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG, into, &raw mut len) })
            .unwrap();
        value
    }

    #[test]
    fn segments_of_accepted_connections_are_bounded_both_ways() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        bound_segments(listener.as_fd()).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        for socket in [client, server] {
            let bytes = segment_bytes(&socket);
            assert!((536..=SEGMENT_BYTES_MAX).contains(&bytes), "{bytes}");
        }
    }
}
