//! The steady path allocates per message and batch, never per entry: three replicas, an allocator that counts.

use bytes::Bytes;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use trio::Trio;

mod trio;

/// The system's allocator, counting what each thread asks for.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of the heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of so many rounds of one batch each.
fn allocations(trio: &mut Trio, rounds: u64, batch: u64) -> u64 {
    let before = ALLOCATIONS.get();
    (0..rounds).for_each(|_| trio.batch(batch, &Bytes::from_static(&[7; 128])));
    ALLOCATIONS.get() - before
}

#[test]
fn nothing_is_allocated_per_entry_on_the_steady_path() {
    const ROUNDS: u64 = 1000;
    let mut trio = Trio::new();
    // Buffers grow to what they need: more than any round below asks for.
    allocations(&mut trio, 2, 8192);
    let [few, many] = [8, 256].map(|batch| allocations(&mut trio, ROUNDS, batch));
    // A round's two appends, one per follower, own their entries.
    assert!(few <= 2 * ROUNDS, "{few} allocations in {ROUNDS} rounds of 8 entries");
    assert_eq!(few, many, "a round of 256 entries allocates as often as one of 8");
    assert_eq!(trio.proposed(), 2 * 8192 + ROUNDS * (8 + 256));
    assert!(trio.all_have_applied(trio.proposed(), 128), "all have applied all");
}
