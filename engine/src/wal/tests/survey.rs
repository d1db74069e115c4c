//! A survey names everything that is wrong, and nothing else.

use super::corruption::{frames, small_log};
use super::crash::{DIR, Node, STORE, config};
use super::disk::Disk;
use super::model::Model;
use crate::disk::{BLOCK, DiskCall};
use crate::wal::{Record, Survey, survey};

/// Looks at the disk; only what reads is asked for.
fn look(disk: &mut Disk) -> Survey {
    let only_reads = |call: &DiskCall| {
        assert!(matches!(call, DiskCall::List { .. } | DiskCall::Read { .. }), "{call:?} changes something");
        disk.execute(call, &[])
    };
    survey(&DIR.into(), 1, STORE, &mut { only_reads }).expect("a directory in memory can be listed")
}

/// Two boots, sealed.
fn sealed_log() -> Node {
    let mut node = Node::boot(small_log(2), config);
    node.append(Record::Promise { largest_ns: 4 });
    node.seal();
    node
}

#[test]
fn a_sound_log_has_no_findings_and_the_state_of_its_model() {
    let mut node = sealed_log();
    let before: Vec<_> = node.disk.paths().iter().map(|path| node.disk.bytes(path).clone()).collect();
    let found = look(&mut node.disk);
    assert_eq!(found.findings, []);
    assert_eq!(found.shards, node.model.shards);
    let after: Vec<_> = node.disk.paths().iter().map(|path| node.disk.bytes(path).clone()).collect();
    assert!(before == after, "looking changes nothing");
    assert!(found.records["Entries"] > 5 && found.records["Seal"] == 1, "{:?}", found.records);
    let counted: u64 = found.segments.iter().map(|segment| segment.frames).sum();
    assert_eq!(counted, frames(&mut node.disk).len() as u64);
}

#[test]
fn every_flipped_byte_of_a_durable_frame_is_found_with_file_offset_and_shard() {
    let disk = sealed_log().disk;
    let all = frames(&mut disk.clone());
    let (_, durable) = all.split_last().expect("there are frames");
    let mut found_shards = 0;
    for (path, _, offset, header) in durable {
        let used = 72 + header.body_bytes as usize;
        let padding = (used..header.frame_bytes() as usize).step_by(509);
        for at in (0..used.min(400)).step_by(5).chain((400..used).step_by(97)).chain(padding) {
            let mut disk = disk.clone();
            disk.bytes(path)[*offset as usize + at] ^= 0x10;
            let found = look(&mut disk);
            let [finding] = &found.findings[..] else {
                panic!("byte {at} of {header:?}: {:?}", found.findings)
            };
            assert_eq!(
                (&*finding.file, finding.offset, finding.is_loss),
                (&**path, *offset, true),
                "byte {at}"
            );
            assert!(!found.is_sound());
            found_shards += usize::from(!finding.shards.is_empty());
        }
    }
    assert!(found_shards > 300, "shards are named {found_shards} times");
}

#[test]
fn every_one_of_several_damages_is_found() {
    let mut disk = sealed_log().disk;
    let all = frames(&mut disk);
    let (body, head, gone) = (&all[2], &all[5], &all[9]);
    disk.bytes(&body.0)[body.2 as usize + 80] ^= 1;
    disk.bytes(&head.0)[head.2 as usize + 20] ^= 1;
    disk.bytes(&gone.0)[gone.2 as usize..][..gone.3.frame_bytes() as usize].fill(0);
    let found = look(&mut disk);
    let places: Vec<_> =
        found.findings.iter().map(|finding| (finding.file.to_string(), finding.offset)).collect();
    let mut expected: Vec<_> = [body, head, gone].map(|frame| (frame.0.clone(), frame.2)).into();
    expected.sort();
    assert_eq!(places, expected, "{:?}", found.findings);
}

#[test]
fn a_lost_header_copy_is_told_but_is_no_loss() {
    let mut disk = sealed_log().disk;
    let path = frames(&mut disk)[0].0.clone();
    disk.bytes(&path)[BLOCK + 7] ^= 1;
    let found = look(&mut disk);
    let [finding] = &found.findings[..] else { panic!("{:?}", found.findings) };
    assert_eq!((&*finding.file, finding.offset, finding.is_loss), (&*path, BLOCK as u64, false));
    assert!(found.is_sound());
    disk.bytes(&path)[7] ^= 1;
    assert!(!look(&mut disk).is_sound(), "without either copy the segment can't be used");
}

#[test]
fn what_a_crash_has_torn_is_no_damage() {
    let mut node = sealed_log();
    let sound = Model::of(&super::crash::recover(&mut node.disk.clone()).expect("nothing is wrong"));
    let last = frames(&mut node.disk).pop().expect("there are frames");
    node.disk.bytes(&last.0)[last.2 as usize + 75] ^= 1;
    let found = look(&mut node.disk);
    assert_eq!(found.findings, []);
    assert_eq!(found.shards, sound.shards);
}
