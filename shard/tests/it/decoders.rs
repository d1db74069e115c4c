//! Decoders of what comes from a disk or a peer meet spoiled bytes under right checksums: none panics, and
//! none asks for more memory than the bytes at hand can fill.

use crate::allocator::LARGEST;
use crate::{S1, fill, small_logs};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use floe_shard::*;
use std::cell::Cell;

/// splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((z ^ (z >> 27)) % n as u64) as usize
    }

    /// Spoils some bytes, often with numbers at the edge of what fits, or cuts the end off.
    fn spoil(&mut self, sound: &[u8]) -> Vec<u8> {
        let mut bytes = sound.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.below(256) as u8,
                2 if at + 4 <= bytes.len() => {
                    let edge = [0, 1, 8, 9, u32::MAX, u32::MAX - 7, 1 << 31][self.below(7)];
                    bytes[at..at + 4].copy_from_slice(&edge.to_le_bytes());
                }
                _ if self.below(20) == 0 => bytes.truncate(at.max(1)),
                _ => {}
            }
        }
        bytes
    }
}

/// Feeds a decoder 100,000 spoiled inputs; answers how many it took.
fn feed(sound: &[u8], reseal: impl Fn(&mut Vec<u8>), takes: impl Fn(Bytes) -> bool) -> usize {
    let mut random = Random(sound.len() as u64);
    let mut taken = 0;
    for _ in 0..100_000 {
        let mut bytes = random.spoil(sound);
        reseal(&mut bytes);
        let (len, input) = (bytes.len(), Bytes::from(bytes));
        LARGEST.set(0);
        taken += usize::from(takes(input));
        let asked = LARGEST.get();
        assert!(asked <= 16 * len + 4096, "{asked} bytes are asked for to decode {len}");
    }
    taken
}

fn descriptor() -> Descriptor {
    pre_split(&[NodeId(1), NodeId(2), NodeId(3)], 4, 3).remove(1)
}

#[test]
fn descriptors_are_read_within_bounds() {
    let taken = feed(&descriptor().encode(), |_| {}, |bytes| Descriptor::decode(&bytes).is_ok());
    assert!((10_000..90_000).contains(&taken), "{taken} are taken");
}

#[test]
fn commands_are_read_within_bounds() {
    let mut batch = WriteBatch::new();
    batch.if_absent("lock").put("lock", "me").delete("queue/7").put("a", vec![7; 100]);
    let command = encode(&batch, 1).unwrap();
    let store = MemoryStore::new();
    let range = KeyRange { start: Bytes::new(), end: Bytes::new() };
    let takes = |bytes: Bytes| match split_head(&bytes) {
        Some((_, payload)) => store.check(payload, &range).is_ok(),
        None => false,
    };
    let taken = feed(&command, |_| {}, takes);
    assert!((1_000..90_000).contains(&taken), "{taken} are taken");
}

/// The newest dump of a shard with a few rows.
fn dump() -> Bytes {
    let mut cluster = small_logs();
    let leader = cluster.await_leader(S1);
    fill(&mut cluster, leader, 80);
    cluster.run_until("a dump", |cluster| !cluster.nodes[leader].dumps.is_empty());
    cluster.nodes[leader].dumps.last_key_value().expect("one was awaited").1.clone()
}

#[test]
fn dumps_are_opened_and_restored_within_bounds() {
    let sound = dump();
    // Lengths and rows lie in front; the rest of a row is its value.
    let front = sound.slice(..sound.len().min(1500));
    let with_rest = |bytes: &[u8]| {
        let mut whole = bytes.to_vec();
        whole.extend_from_slice(sound.get(bytes.len()..).unwrap_or_default());
        whole
    };
    let reseal = |bytes: &mut Vec<u8>| {
        *bytes = with_rest(bytes);
        let foot = bytes.len() - 8;
        let crc = checksum(CrcAlgorithm::Crc64Nvme, &bytes[..foot]);
        bytes[foot..].copy_from_slice(&crc.to_le_bytes());
    };
    let (opened, restored) = (Cell::new(0), Cell::new(0));
    let takes = |bytes: Bytes| {
        let Ok((_, body)) = open_dump(&bytes) else { return false };
        opened.set(opened.get() + 1);
        let is_restored = MemoryStore::new().restore(&body).is_ok();
        restored.set(restored.get() + u32::from(is_restored));
        true
    };
    feed(&front, reseal, takes);
    assert!(opened.get() > 10_000 && restored.get() > 1_000, "{opened:?} opened, {restored:?} restored");
}
