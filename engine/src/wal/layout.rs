//! Little-endian numbers at fixed places, the salts of segments, and seeded checksums.
//!
//! A checksum is CRC-32C of the bytes, with a hash of its seed mixed in. The seed names where the bytes belong
//! (which store, stream, segment, frame, offset), so that sound bytes in a wrong place don't pass:
//! old frames in a recycled file, or a frame that a client stored as a value.

use floe_raft::{Planted, is_planted};

/// The number at `at`; the caller has checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// The number at `at`; the caller has checked the length.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// The number at `at`; the caller has checked the length.
pub(super) fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from(u64_at(bytes, at)) | u128::from(u64_at(bytes, at + 8)) << 64
}

/// Writes a number at `at`.
pub(super) fn put_u32(bytes: &mut [u8], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

/// Writes a number at `at`.
pub(super) fn put_u64(bytes: &mut [u8], at: usize, number: u64) {
    bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

/// Writes a number at `at`.
pub(super) fn put_u128(bytes: &mut [u8], at: usize, number: u128) {
    bytes[at..at + 16].copy_from_slice(&number.to_le_bytes());
}

/// Whether all bytes are zero.
pub(super) fn all_zero(bytes: &[u8]) -> bool {
    let mut words = bytes.chunks_exact(8);
    words.all(|word| u64_at(word, 0) == 0) && words.remainder().iter().all(|&byte| byte == 0)
}

/// `len` rounded up to 8.
pub(super) const fn aligned(len: usize) -> usize {
    len.next_multiple_of(8)
}

/// Mixes one more word into a seed that is a hash already (the finaliser of splitmix64).
pub(super) const fn mix(seed: u64, word: u64) -> u64 {
    let mut z = (seed ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The checksum of bytes that belong where `seed` says. As strong as starting the CRC from the
/// seed, since a CRC's start value only adds a constant to the result; and it keeps the fast path.
pub(super) fn checksum(seed: u64, bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes) ^ (seed ^ (seed >> 32)) as u32
}

/// The salt of a segment. It depends on what the file's name and place say, not on the header, so
/// that frames stay readable when both header copies are lost.
pub fn salt(store_uuid: u128, stream: u32, segment: u64) -> u64 {
    if is_planted(Planted::StaleFramesReplayed) {
        return 0;
    }
    let store = mix(mix(0, store_uuid as u64), (store_uuid >> 64) as u64);
    mix(mix(store, u64::from(stream)), segment)
}
