//! The allocator of these tests: it notes, per thread, what is asked for and what is held.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Noting;

thread_local! {
    /// The largest request since it was last set.
    pub static LARGEST: Cell<usize> = const { Cell::new(0) };
    /// Bytes asked for and not given back.
    pub static HELD: Cell<i64> = const { Cell::new(0) };
}

// SAFETY: every call is handed to the system's allocator unchanged; the cells need no allocation and no destructor.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        HELD.set(HELD.get() + layout.size() as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.set(HELD.get() - layout.size() as i64);
        // SAFETY: the caller's promise is passed on; `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;
