//! Ports of the loopback interface for nodes that are started by tests.
//!
//! A port that the kernel chose and that was given back can be taken by any outgoing connection before its
//! node listens on it. So these lie below the range from which the kernel chooses (32768 and up by
//! default), and no two callers in one process get the same one.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u16 = 10_000;
const COUNT: u16 = 7_000;

static TAKEN: AtomicU32 = AtomicU32::new(0);

/// So many ports on which nobody listens.
///
/// # Panics
/// If there are not so many.
pub fn free_ports(count: usize) -> Vec<u16> {
    // Test processes that run side by side start far apart.
    let start = std::process::id().wrapping_mul(97);
    let candidates = std::iter::repeat_with(|| start.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)))
        .map(|number| FIRST + (number % u32::from(COUNT)) as u16)
        .take(usize::from(COUNT));
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let ports: Vec<_> = candidates.filter(free).take(count).collect();
    assert_eq!(ports.len(), count, "too few free ports from {FIRST} to {}", FIRST + COUNT);
    ports
}
