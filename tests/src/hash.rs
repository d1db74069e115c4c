//! A 64-bit hash of our own for traces and for comparing entries: quick, frozen, no defence against malice.

const PRIME: u64 = 0x9E37_79B1_85EB_CA87;

/// Folds words and bytes into 64 bits, order mattering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash64(u64);

impl Default for Hash64 {
    fn default() -> Self {
        Self(0x27D4_EB2F_1656_67C5)
    }
}

impl Hash64 {
    /// Folds a word in.
    pub fn word(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word.wrapping_mul(PRIME)) * u128::from(PRIME);
        self.0 = (product as u64) ^ ((product >> 64) as u64).rotate_left(29) ^ self.0.rotate_left(17);
    }

    /// Folds bytes and their length in.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.word(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(last));
        }
    }

    /// The hash so far.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The hash of some bytes.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = Hash64::default();
    hash.bytes(bytes);
    hash.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_length_and_content_count() {
        let all =
            [hash_bytes(b""), hash_bytes(b"\0"), hash_bytes(b"ab"), hash_bytes(b"ba"), hash_bytes(&[0; 8])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b), "{all:?}");
        }
    }
}
