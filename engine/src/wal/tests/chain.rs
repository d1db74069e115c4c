//! The chain of segments, from the oldest that is needed to the end: what breaks it is found and named, and only frames
//! shorten it. Each test stands for a run of the simulator that found the opposite.

use super::corruption::frames;
use super::crash::{Node, STORE, config, recover};
use super::disk::Disk;
use super::model::{append, entries, state};
use crate::disk::BLOCK;
use crate::wal::frame::FrameHeader;
use crate::wal::segment::{FRAMES_AT, parse_segment_header};
use crate::wal::{Record, RecoveryError, ShardState, WalConfig};
use floe_raft::Mark;
use floe_shard::ShardId;
use std::collections::BTreeSet;

/// Writes entries of shard 1, each in a frame of its own, until frames lie in so many segments.
fn fill(node: &mut Node, next: &mut u64, segments: usize) {
    while ids(&mut node.disk).len() < segments {
        node.append(append(1, 1, entries(1, *next, 1, &[7; 3000])));
        node.settle();
        *next += 1;
    }
}

/// Segments that hold frames, in order.
fn ids(disk: &mut Disk) -> Vec<(u64, String)> {
    let all: BTreeSet<_> = frames(disk).into_iter().map(|(path, id, ..)| (id, path)).collect();
    all.into_iter().collect()
}

/// File, segment, offset and header.
fn last_frame(node: &mut Node) -> (String, u64, u64, FrameHeader) {
    frames(&mut node.disk).pop().expect("there are frames")
}

fn booted() -> (Node, u64) {
    let small =
        |epoch| WalConfig { segment_bytes_min: 20 << 10, segment_bytes_max: 20 << 10, ..config(epoch) };
    let mut node = Node::boot(Disk::default(), small);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.settle();
    (node, 1)
}

/// (Seed 1795949036032: a sound segment was said to be missing.)
#[test]
fn the_segment_that_breaks_the_chain_is_named_and_not_the_oldest() {
    let (mut node, mut next) = booted();
    fill(&mut node, &mut next, 4);
    let segments = ids(&mut node.disk);
    let (_, broken) = &segments[1];
    node.disk.bytes(broken)[..2 * BLOCK].fill(0);
    match recover(&mut node.disk) {
        Err(RecoveryError::Corruption { file, .. }) => assert_eq!(*file, **broken, "of {segments:?}"),
        other => panic!("{other:?}"),
    }
}

/// (Misdirected writes: recovery went on with the next segment, and a shard that had records only before was gone.)
#[test]
fn the_first_frame_of_the_oldest_needed_segment_is_not_skipped() {
    let (mut node, mut next) = booted();
    fill(&mut node, &mut next, 3);
    // All that there is of shard 2 begins a segment.
    let (path, oldest) = loop {
        node.append(Record::ShardReset(Box::new(state(2, 1))));
        node.settle();
        let (path, id, offset, _) = last_frame(&mut node);
        if offset == FRAMES_AT {
            break (path, id);
        }
    };
    // All that is needed of shard 1 lies beyond it, so that nothing there tells that something is missing.
    while last_frame(&mut node).1 == oldest {
        node.append(append(1, 1, entries(1, next, 1, &[7; 3000])));
        node.settle();
        next += 1;
    }
    let before = node.model.shards[&ShardId(1)].clone();
    let flushed = ShardState { flushed: Mark::new(1, next - 1), entries: Vec::new(), ..before };
    node.append(Record::ShardReset(Box::new(flushed)));
    node.settle();
    for index in next..next + 12 {
        node.append(append(1, 1, entries(1, index, 1, &[7; 3000])));
        node.settle();
    }
    assert_eq!(last_frame(&mut node).3.oldest, oldest, "shard 2 needs nothing before");
    assert_eq!(ids(&mut node.disk)[0].0, oldest, "what lies before is freed");
    node.disk.bytes(&path)[FRAMES_AT as usize..][..BLOCK].fill(0);
    match recover(&mut node.disk) {
        Err(RecoveryError::Corruption { file, .. }) => assert_eq!(*file, *path),
        other => panic!("shards are missing without a word: {other:?}"),
    }
}

/// (Restarts with other cores: the spare was believed, then removed, and the chain had a hole after a power cut.)
#[test]
fn a_spare_segments_header_frees_nothing() {
    let (mut node, mut next) = booted();
    fill(&mut node, &mut next, 3);
    let segments = ids(&mut node.disk);
    let spare = node.disk.paths().into_iter().find(|path| segments.iter().all(|(_, used)| used != path));
    let spare = spare.expect("one is prepared ahead");
    let bytes = node.disk.bytes(&spare);
    let mut header = parse_segment_header(0, &bytes[..BLOCK]).expect("it is headed");
    assert_eq!(header.store_uuid, STORE);
    header.oldest = segments[2].0;
    for copy in 0..2 {
        header.encode(copy, &mut bytes[copy * BLOCK..][..BLOCK]);
    }
    let found = recover(&mut node.disk).expect("nothing is wrong");
    let used: Vec<u64> = found.segments.used.iter().map(|file| file.id).collect();
    let expected: Vec<u64> = segments.iter().map(|(id, _)| *id).collect();
    assert_eq!(used, expected, "no frame says that any is free");
}

/// (Seed 9100359: the header of a segment's next life was on the disk, its new name not yet; frames that the power cut
/// before had orphaned stood in it still, and the log was refused.)
#[test]
fn a_recycled_segment_whose_new_name_was_lost_holds_nothing() {
    for (freed, is_free) in [(1, true), (0, false)] {
        let (mut node, mut next) = booted();
        fill(&mut node, &mut next, 3);
        let segments = ids(&mut node.disk);
        let (id, path) = segments[2].clone();
        let bytes = node.disk.bytes(&path);
        let mut header = parse_segment_header(0, &bytes[..BLOCK]).expect("it is headed");
        (header.segment, header.oldest) = (id + 5, id + freed);
        for copy in 0..2 {
            header.encode(copy, &mut bytes[copy * BLOCK..][..BLOCK]);
        }
        match recover(&mut node.disk) {
            Ok(found) if is_free => assert_eq!(found.segments.used.len(), 2, "the log ends before it"),
            Err(RecoveryError::Corruption { file, .. }) if !is_free => assert_eq!(*file, *path),
            other => panic!("freed: {is_free}: {other:?}"),
        }
    }
}
