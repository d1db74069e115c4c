//! Decoders of what a disk may hold meet spoiled bytes under right checksums: a checksum keeps out chance, not a
//! bug that wrote nonsense, nor whoever can write to the disk. Nothing may panic.

use super::crash::STORE;
use super::disk::Rng;
use super::model::{Model, random_record};
use crate::disk::{BLOCK, Recipe};
use crate::wal::frame::{FRAME_HEAD, FrameHeader, FrameRecipe, parse_frame, parse_frame_header};
use crate::wal::layout::{checksum, mix, put_u32, u32_at};
use crate::wal::record::{Item, ResetPart, encode_item, item_len, parse_item};
use crate::wal::replay::Replay;
use crate::wal::segment::{HeaderFault, SegmentHeader, parse_segment_header};
use crate::wal::{Record, StreamEnd, salt};

/// Spoils a few bytes, often with numbers at the edge of what fits, or cuts the end off.
fn spoil(bytes: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..=rng.below(3) {
        let at = rng.below(bytes.len() as u64) as usize;
        match rng.below(4) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next() as u8,
            2 => {
                let edge = [0, 1, 7, 8, 9, u32::MAX, u32::MAX - 7, 1 << 31][rng.below(8) as usize];
                let at = (at & !3).min(bytes.len().saturating_sub(4));
                put_u32(bytes, at, edge);
            }
            _ => bytes.truncate(bytes.len().saturating_sub(8 * rng.below(3) as usize).max(1)),
        }
    }
}

/// A record of any kind that fits to those before it.
fn item(model: &mut Model, rng: &mut Rng) -> Item {
    if rng.one_in(20) {
        return Item::Seal;
    }
    let record = random_record(model, rng);
    model.apply(&record);
    match record {
        Record::ShardReset(state) => {
            Item::Reset(Box::new(ResetPart { state: *state, id: rng.next(), part: 0, last: true }))
        }
        record => Item::Record(record),
    }
}

#[test]
fn spoiled_records_under_right_checksums_never_panic() {
    let mut rng = Rng::new(11);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..100 {
        let mut model = Model::default();
        for _ in 0..40 {
            let item = item(&mut model, &mut rng);
            let mut sound = vec![0; item_len(&item)];
            encode_item(&item, 0, &mut sound);
            if sound.len() > 4096 {
                continue;
            }
            for _ in 0..30 {
                let mut bytes = sound.clone();
                spoil(&mut bytes, &mut rng);
                // The checksum covers what the length claims, if that can be true.
                let claimed = if bytes.len() < 12 { 0 } else { u32_at(&bytes, 8) as usize };
                if (12..=bytes.len()).contains(&claimed) {
                    let crc = checksum(0, &bytes[4..claimed]);
                    put_u32(&mut bytes, 0, crc);
                }
                match parse_item(&bytes, 0) {
                    Ok((item, _, _)) => {
                        read += 1;
                        let mut replay = Replay::default();
                        let _ = replay.apply(item, 1);
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(read > 20_000 && refused > 20_000, "{read} read, {refused} refused");
}

#[test]
fn spoiled_frames_under_right_checksums_never_panic() {
    let mut rng = Rng::new(12);
    let (salt, offset) = (salt(STORE, 1, 1), 2 * BLOCK as u64);
    let (mut read, mut refused) = (0, 0);
    for _ in 0..40 {
        let mut model = Model::default();
        let items: Vec<Item> = (0..4).map(|_| item(&mut model, &mut rng)).collect();
        let header = FrameHeader {
            segment: 1,
            seq: 5,
            durable: 4,
            boot_epoch: 1,
            oldest: 1,
            body_bytes: items.iter().map(item_len).sum::<usize>() as u32,
            records: items.len() as u32,
            frames_in_flight: 4,
            flags: 0,
            previous: 0,
            records_crc: 0,
        };
        let recipe = FrameRecipe { header, salt, offset, items };
        let mut sound = vec![0; recipe.len()];
        recipe.encode_into(&mut sound);
        for _ in 0..500 {
            let mut bytes = sound.clone();
            let mut head = bytes[..FRAME_HEAD].to_vec();
            spoil(&mut head, &mut rng);
            bytes[..head.len()].copy_from_slice(&head);
            let crc = checksum(mix(salt, offset), &bytes[8..FRAME_HEAD]);
            put_u32(&mut bytes, 4, crc);
            let Some(header) = parse_frame_header(salt, offset, &bytes) else {
                refused += 1;
                continue;
            };
            read += 1;
            let len = header.frame_bytes().min(bytes.len() as u64) as usize;
            let _ = parse_frame(&header, salt, offset, &bytes[..len]);
        }
    }
    assert!(read > 5_000 && refused > 1_000, "{read} read, {refused} refused");
}

#[test]
fn spoiled_segment_headers_under_right_checksums_never_panic() {
    let mut rng = Rng::new(13);
    let header = SegmentHeader {
        bytes: 1 << 20,
        store_uuid: STORE,
        stream: 1,
        segment: 1,
        boot_epoch: 1,
        first_seq: 1,
        oldest: 1,
        frames_in_flight: 4,
        boot_start: Some(StreamEnd::START),
    };
    let mut sound = vec![0; BLOCK];
    header.encode(0, &mut sound);
    let crc_seed = u32_at(&sound, BLOCK - 4) ^ checksum(0, &sound[..BLOCK - 4]);
    let (mut read, mut unknown) = (0, 0);
    for _ in 0..10_000 {
        let mut block = sound.clone();
        let mut front = block[8..128].to_vec();
        spoil(&mut front, &mut rng);
        block[8..8 + front.len()].copy_from_slice(&front);
        let crc = checksum(0, &block[..BLOCK - 4]) ^ crc_seed;
        put_u32(&mut block, BLOCK - 4, crc);
        match parse_segment_header(0, &block) {
            Ok(_) => read += 1,
            Err(HeaderFault::Unknown(_)) => unknown += 1,
            Err(HeaderFault::Absent) => panic!("the checksum is right"),
        }
    }
    assert!(read > 1_000 && unknown > 1_000, "{read} read, {unknown} of another format");
}
