//! The steady path allocates per message and batch, never per entry: three replicas, an allocator that counts.

use bytes::Bytes;
use floe_raft::{Config, EntryKind, HardState, Mark, Membership, Message, Raft, Ready, ReplicaId, Restored};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;

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

/// Entries after which a replica compacts its log.
const COMPACT_EVERY: u64 = 1024;

fn replica(number: u64) -> ReplicaId {
    ReplicaId::new(number).expect("not 0")
}

/// Three replicas, a network without delay and disks without latency.
struct Trio {
    replicas: Vec<Raft>,
    net: VecDeque<Message>,
    ready: Ready,
}

impl Trio {
    fn new() -> Self {
        let start = |number| {
            let restored = Restored {
                hard_state: HardState::default(),
                snapshot: Mark::ZERO,
                membership: Membership::of_voters((1..=3).map(replica)),
                entries: Vec::new(),
                applied: 0,
            };
            Raft::new(replica(number), &Config::default(), restored, 0, 1)
        };
        let replicas = (1..=3).map(start).collect();
        let mut trio = Self { replicas, net: VecDeque::new(), ready: Ready::default() };
        trio.replicas[0].campaign(0);
        trio.settle();
        assert!(trio.replicas[0].is_leader());
        trio
    }

    fn round(&mut self, batch: u64) {
        for _ in 0..batch {
            let data = Bytes::from_static(&[7; 128]);
            self.replicas[0].propose(0, EntryKind::Command, 0, data).expect("it leads");
        }
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            (0..3).for_each(|at| self.turn(at));
            if self.net.is_empty() {
                return;
            }
            while let Some(message) = self.net.pop_front() {
                self.replicas[message.to.get() as usize - 1].step(0, message).expect("sense");
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let (raft, ready) = (&mut self.replicas[at], &mut self.ready);
        while raft.has_ready() {
            raft.ready(ready);
            ready.write.into_iter().for_each(|write| raft.persisted(write));
            ready.committed.last().into_iter().for_each(|entry| raft.applied(entry.mark.index));
            self.net.extend(ready.messages.drain(..));
            self.net.extend(ready.messages_after_persist.drain(..));
        }
        if raft.applied_index() + 1 - raft.first_index() >= COMPACT_EVERY {
            raft.compact(raft.applied_index());
        }
    }

    /// Allocations of so many rounds of one batch each.
    fn allocations(&mut self, rounds: u64, batch: u64) -> u64 {
        let before = ALLOCATIONS.get();
        (0..rounds).for_each(|_| self.round(batch));
        ALLOCATIONS.get() - before
    }
}

#[test]
fn nothing_is_allocated_per_entry_on_the_steady_path() {
    const ROUNDS: u64 = 1000;
    let mut trio = Trio::new();
    trio.allocations(100, 256);
    let [few, many] = [8, 256].map(|batch| trio.allocations(ROUNDS, batch));
    // A round's two appends, one per follower, own their entries.
    assert!(few <= 2 * ROUNDS, "{few} allocations in {ROUNDS} rounds of 8 entries");
    assert_eq!(few, many, "a round of 256 entries allocates as often as one of 8");
    let applied: Vec<_> = trio.replicas.iter().map(Raft::applied_index).collect();
    assert_eq!(applied, [1 + 100 * 256 + ROUNDS * (8 + 256); 3], "all have applied all");
}
