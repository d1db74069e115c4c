//! What this process used: processor time and memory. `unsafe`, as `allocator.rs` is: calls into C.

use std::time::Duration;

/// Processor time of all threads, in user and kernel mode.
pub fn cpu_time() -> Duration {
    cpu_time_of(libc::RUSAGE_SELF)
}

/// That of processes that this one has started, that have ended and were waited for, and of theirs.
pub fn cpu_time_of_ended_children() -> Duration {
    cpu_time_of(libc::RUSAGE_CHILDREN)
}

fn cpu_time_of(whom: libc::c_int) -> Duration {
    // SAFETY: `rusage` is plain numbers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live `rusage` of ours, which the call fills.
    let result = unsafe { libc::getrusage(whom, &mut usage) };
    assert_eq!(result, 0, "getrusage({whom}) fails only on a bad pointer or for somebody unknown");
    of_timeval(usage.ru_utime) + of_timeval(usage.ru_stime)
}

fn of_timeval(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

/// Lets this thread's timers fire on time instead of up to 50 us late.
pub fn precise_timers() {
    // SAFETY: takes numbers only, and concerns this thread only. A failure leaves the default.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000 as libc::c_ulong) };
}

/// Resident memory in bytes; 0 if the kernel doesn't tell.
pub fn rss_bytes() -> u64 {
    status_bytes("self", "VmRSS:")
}

/// The most resident memory that a process ever had, in bytes; 0 if it is gone.
pub fn peak_rss_bytes(process: u32) -> u64 {
    status_bytes(&process.to_string(), "VmHWM:")
}

fn status_bytes(process: &str, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib =
        line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_what_we_use() {
        let before = cpu_time();
        let mut sum = 0u64;
        while cpu_time() == before {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(rss_bytes() > 100_000 && peak_rss_bytes(std::process::id()) >= rss_bytes() / 2);
        assert_eq!(peak_rss_bytes(u32::MAX), 0);
    }
}
