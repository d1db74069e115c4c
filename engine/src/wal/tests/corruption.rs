//! Damage: what was acknowledged is never cut away in silence, and nothing else is believed.

use super::crash::{DIR, Node, STORE, config, recover};
use super::disk::{Disk, Rng};
use super::model::{Model, append, entries, random_record, state};
use crate::disk::BLOCK;
use crate::wal::frame::{FrameHeader, parse_frame, parse_frame_header};
use crate::wal::record::parse_item;
use crate::wal::segment::{FRAMES_AT, parse_segment_header};
use crate::wal::{Record, Recovered, RecoveryError, WalConfig, salt};

/// Every frame on the disk: file, segment, offset, header.
pub fn frames(disk: &mut Disk) -> Vec<(String, u64, u64, FrameHeader)> {
    let mut frames = Vec::new();
    for path in disk.paths() {
        let id = u64::from_str_radix(&path[DIR.len() + 1..DIR.len() + 17], 16).expect("a segment's name");
        let bytes = disk.bytes(&path);
        for at in (FRAMES_AT as usize..bytes.len()).step_by(BLOCK) {
            if let Some(header) = parse_frame_header(salt(STORE, 1, id), at as u64, &bytes[at..]) {
                frames.push((path.clone(), id, at as u64, header));
            }
        }
    }
    frames.sort_by_key(|frame| frame.3.seq);
    frames
}

/// A disk with a few frames in two segments; not sealed. Each frame waits for the one before.
pub fn small_log(boots: u64) -> Disk {
    let mut disk = Disk::default();
    let mut rng = Rng::new(5);
    for _ in 0..boots {
        let mut node = Node::boot(disk, |epoch| WalConfig { segment_bytes_min: 20 << 10, ..config(epoch) });
        for _ in 0..8 {
            for _ in 0..3 {
                let record = random_record(&node.model, &mut rng);
                if !matches!(&record, Record::Entries { entries, .. } if entries.iter().any(|e| e.data.len() > 3000))
                {
                    node.append(record);
                }
            }
            node.settle();
        }
        disk = node.disk;
    }
    disk
}

fn damage(disk: &Disk, path: &str, at: usize) -> (Disk, Result<Recovered, RecoveryError>) {
    let mut disk = disk.clone();
    disk.bytes(path)[at] ^= 0x20;
    let found = recover(&mut disk);
    (disk, found)
}

#[test]
fn every_flipped_byte_is_reported_or_harmless() {
    let mut node = Node::boot(small_log(2), config);
    node.append(Record::Promise { largest_ns: 4 });
    node.seal();
    let mut disk = node.disk;
    let expected = Model::of(&recover(&mut disk).expect("nothing is wrong"));
    let (mut reported, mut harmless) = (0, 0);
    let last = frames(&mut disk).last().cloned().expect("there are frames");
    for (path, _, offset, header) in frames(&mut disk) {
        let used = 72 + header.body_bytes as usize;
        let all = header.frame_bytes() as usize;
        let places = (0..used)
            .step_by(if used > 2000 { 3 } else { 1 })
            .chain((used..all).step_by(61))
            .chain([all - 1]);
        for at in places {
            match damage(&disk, &path, offset as usize + at).1 {
                Err(RecoveryError::Corruption { file, offset: place, .. }) => {
                    assert_eq!((&*file, place), (&*path, offset), "byte {at} of frame {}", header.seq);
                    reported += 1;
                }
                Err(other) => panic!("byte {at} of frame {}: {other}", header.seq),
                Ok(found) => {
                    assert_eq!(Model::of(&found), expected, "byte {at} of {header:?}");
                    assert_eq!(header.seq, last.3.seq, "only the seal itself proves nothing, {header:?}");
                    harmless += 1;
                }
            }
        }
    }
    assert!(reported > 4000 && harmless > 0, "{reported} reported, {harmless} harmless");
}

#[test]
fn one_lost_header_copy_is_made_good_and_two_are_reported() {
    let mut disk = small_log(2);
    let expected = Model::of(&recover(&mut disk).expect("nothing is wrong"));
    for path in disk.paths() {
        let holds_frames = frames(&mut disk).iter().any(|frame| frame.0 == path);
        for copy in [0, BLOCK] {
            let (mut again, found) = damage(&disk, &path, copy + 100);
            assert_eq!(Model::of(&found.expect("the other copy is sound")), expected);
            let half = again.bytes(&path)[copy..copy + BLOCK].to_vec();
            let healed = parse_segment_header(copy / BLOCK, &half).is_ok();
            assert!(healed || !holds_frames, "{path}: copy {copy} is written again");
            again.bytes(&path)[BLOCK - copy + 100] ^= 1;
            assert_eq!(Model::of(&recover(&mut again).expect("the healed copy is sound")), expected);
        }
        let mut disk = disk.clone();
        disk.bytes(&path)[..2 * BLOCK].fill(0);
        match recover(&mut disk) {
            Ok(found) => assert!(!holds_frames && Model::of(&found) == expected, "{path}"),
            Err(RecoveryError::Corruption { .. }) => assert!(holds_frames, "{path}"),
            Err(other) => panic!("{path}: {other}"),
        }
        disk.remove(&path);
        match recover(&mut disk) {
            Ok(found) if holds_frames => {
                // Only the newest segment of all can be lost without a trace.
                assert_eq!(frames(&mut disk).iter().filter(|frame| frame.0 > path).count(), 0, "{path}");
                assert_ne!(Model::of(&found), expected);
            }
            Ok(found) => assert_eq!(Model::of(&found), expected),
            Err(error) => assert!(matches!(error, RecoveryError::Corruption { .. }), "{path}: {error}"),
        }
    }
}

/// Four frames in flight at once after some durable ones; those in `lost` never reach the disk.
fn in_flight(lost: &[usize], frames_in_flight: u32) -> (Node, Vec<(String, u64, u64, FrameHeader)>) {
    let mut node = Node::boot(Disk::default(), |epoch| WalConfig { frames_in_flight, ..config(epoch) });
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.settle();
    for index in 1..=4 {
        while node.wal.stats().frames_in_flight == frames_in_flight {
            node.complete(0);
        }
        node.append(append(1, 1, entries(1, index, 1, &[index as u8; 100])));
        node.submit();
    }
    node.settle();
    let written = frames(&mut node.disk);
    for &at in lost {
        let (path, _, offset, _) = &written[written.len() - 4 + at];
        node.disk.bytes(path)[*offset as usize..][..BLOCK].fill(0);
    }
    (node, written)
}

fn last_entry(found: &Recovered) -> usize {
    found.shards.values().next().expect("one shard").entries.len()
}

#[test]
fn the_torn_tail_rule() {
    // Nothing sound beyond: torn.
    for at in 0..4 {
        let lost: Vec<usize> = (at..4).collect();
        let found = recover(&mut in_flight(&lost, 4).0.disk).expect("a torn tail");
        assert_eq!(last_entry(&found), at);
        assert_eq!(found.torn_bytes, 0);
    }
    // Frames in flight beyond, which prove nothing: they are discarded.
    let found = recover(&mut in_flight(&[1], 4).0.disk).expect("undecided");
    assert_eq!((last_entry(&found), found.torn_bytes), (1, 2 * BLOCK as u64));
    assert_eq!(found.seq_next, found.end.seq + 4, "no sequence is used twice");
    // K = 2: of four frames the last two were issued when the first two were durable.
    let error = recover(&mut in_flight(&[1], 2).0.disk).expect_err("it was acknowledged");
    let RecoveryError::Corruption { file, offset, seq, .. } = error else { panic!("{error}") };
    let written = in_flight(&[], 2).1;
    let bad = &written[written.len() - 3];
    assert_eq!((&*file, offset, seq), (&*bad.0, bad.2, bad.3.seq));
    // Not proven with K = 2 either: the last one.
    assert_eq!(last_entry(&recover(&mut in_flight(&[3], 2).0.disk).expect("torn")), 3);
}

#[test]
fn a_frame_k_beyond_proves_the_one_before_by_its_own_k() {
    // The durable sequence in the last frame alone would do; so take a frame of a boot with K = 1,
    // and look at it with a configuration of K = 6.
    let (mut node, written) = in_flight(&[2], 1);
    let error = recover(&mut node.disk).expect_err("K was 1 when it was written");
    assert!(
        matches!(error, RecoveryError::Corruption { seq, .. } if seq == written[written.len() - 2].3.seq)
    );
}

#[test]
fn the_end_that_the_next_boot_states_is_exact() {
    let mut disk = small_log(1);
    let last = frames(&mut disk).last().cloned().expect("there are frames");
    let (_, torn) = damage(&disk, &last.0, last.2 as usize + 80);
    torn.expect("the last frame was not proven by anything");
    let mut node = Node::boot(disk, config);
    node.settle();
    let (_, found) = damage(&node.disk, &last.0, last.2 as usize + 80);
    let error = found.expect_err("the next boot has stated the end");
    assert!(matches!(error, RecoveryError::Corruption { seq, .. } if seq == last.3.seq), "{error}");
    assert!(error.to_string().contains(&last.0), "{error}");
}

#[test]
fn a_discarded_frame_never_comes_back() {
    let (node, _) = in_flight(&[1], 4);
    let mut node = Node::boot(node.disk, config);
    node.append(append(1, 1, entries(2, 2, 1, b"new")));
    node.settle();
    let found = recover(&mut node.disk).expect("nothing is wrong");
    assert_eq!(Model::of(&found), node.model);
    assert_eq!(last_entry(&found), 2);
}

#[test]
fn a_payload_that_looks_like_a_frame_is_never_taken_for_one() {
    let mut node = Node::boot(Disk::default(), config);
    node.append(Record::ShardReset(Box::new(state(1, 1))));
    node.settle();
    for index in 1..=3 {
        node.append(append(1, 1, entries(1, index, 1, &[1; 900])));
        node.settle();
    }
    // A value that holds the newest frame's bytes, block-aligned in the file.
    let newest = frames(&mut node.disk).last().cloned().expect("there are frames");
    let image = node.disk.bytes(&newest.0)[newest.2 as usize..][..BLOCK].to_vec();
    let mut value = vec![0; BLOCK - 72 - 48 - 16];
    for _ in 0..3 {
        value.extend_from_slice(&image);
    }
    node.append(append(1, 1, entries(1, 4, 1, &value)));
    node.settle();
    let with_value = frames(&mut node.disk).last().cloned().expect("there are frames");
    let bytes = node.disk.bytes(&with_value.0);
    let inside = with_value.2 as usize + BLOCK;
    assert_eq!(&bytes[inside..inside + BLOCK], &image[..], "the image is block-aligned");
    assert_eq!(Model::of(&recover(&mut node.disk.clone()).expect("nothing is wrong")), node.model);
    // With its header torn off, the value is all that is left to look ahead to.
    node.disk.bytes(&with_value.0)[with_value.2 as usize..][..512].fill(0);
    let found = recover(&mut node.disk).expect("a torn tail");
    assert_eq!((last_entry(&found), found.torn_bytes), (3, 0));
}

#[test]
fn another_store_and_later_formats_are_refused_by_name() {
    let mut disk = small_log(1);
    let path = disk.paths()[0].clone();
    let mut header = parse_segment_header(0, &disk.bytes(&path)[..BLOCK]).expect("it is sound");
    header.store_uuid += 1;
    header.encode(0, &mut disk.bytes(&path)[..BLOCK]);
    let error = recover(&mut disk).expect_err("another store");
    assert!(matches!(&error, RecoveryError::WrongStore { file, .. } if **file == *path), "{error}");
}

#[test]
fn parsers_survive_any_bytes() {
    let mut disk = small_log(1);
    let all = frames(&mut disk);
    let mut rng = Rng::new(3);
    for round in 0..40_000 {
        let (path, id, offset, header) = &all[rng.below(all.len() as u64) as usize];
        let len = header.frame_bytes() as usize;
        let mut bytes = disk.bytes(path)[*offset as usize..][..len].to_vec();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(if round % 2 == 0 { 200 } else { len as u64 }) as usize;
            bytes[at] = rng.next() as u8;
        }
        let salt = salt(STORE, 1, *id);
        let _ = parse_frame_header(salt, *offset, &bytes);
        drop(parse_frame(header, salt, *offset, &bytes));
        drop(parse_segment_header(0, &bytes[..BLOCK]));
        // With its checksum made good again, so that the parser sees what it would never see.
        let cut = 72 + rng.below(200).min(len as u64 - 72) as usize;
        let record = &mut bytes[72..];
        for at in 4..record.len().min(140) {
            if rng.one_in(12) {
                record[at] = rng.next() as u8;
            }
        }
        let claimed = u32::from_le_bytes([record[8], record[9], record[10], record[11]]) as usize;
        if (48..=record.len()).contains(&claimed) {
            let crc = crc_fast::crc32_iscsi(&record[4..claimed]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
        }
        drop(parse_item(record, 0));
        drop(parse_item(&bytes[cut..], 0));
    }
}
