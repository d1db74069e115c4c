//! What an embedder who cares for speed would choose for memory.
//!
//! Requests are allocated on callers' threads and freed on cores, which the system's allocator handles
//! slowly. Entries go from memory in bulk, when a log is truncated, and as much is needed again within
//! seconds: an allocator that gives such memory back at once has every page of it zeroed anew by the
//! kernel, 8 % of the main job's processor time.

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// mimalloc's `mi_option_purge_delay`: how long freed pages are kept before the system gets them back. The
/// crate doesn't name it; its place among the options is the same in versions 2 and 3.
const PURGE_DELAY: mi_option_t = 15;
/// In milliseconds, instead of 1,000: longer than the main job's logs take from one truncation to the next.
const PURGE_DELAY_MS: std::ffi::c_long = 10_000;

/// Sets the allocator's options, unless the environment does (`MIMALLOC_PURGE_DELAY`). Call it first.
pub fn configure() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets a number in the allocator's table of options, which it may do at any time; the index
        // is one of that table's.
        unsafe { mi_option_set(PURGE_DELAY, PURGE_DELAY_MS) };
    }
}
