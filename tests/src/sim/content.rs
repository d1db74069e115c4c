//! Bytes of a simulated file, by sectors that are shared between its live and its durable content.

use bytes::Bytes;
use floe::disk::Recipe;
use floe_shard::state_machine::Dump;
use rkyv::util::AlignedVec;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What lands or doesn't as a whole.
pub const SECTOR: usize = 512;
pub(super) const SECTOR_U64: u64 = SECTOR as u64;

/// Shared until it is written.
pub(super) type Sector = Arc<[u8; SECTOR]>;

/// Bytes of a file, by sectors; what isn't there is zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) len: u64,
    pub(super) sectors: BTreeMap<u64, Sector>,
}

impl Content {
    pub(super) fn zeros(len: u64) -> Self {
        Self { len, sectors: BTreeMap::new() }
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut content = Self::zeros(bytes.len() as u64);
        for (number, chunk) in (0..).zip(bytes.chunks(SECTOR)) {
            content.set(number, chunk);
        }
        content
    }

    /// `None` = zeros.
    pub(super) fn sector(&self, sector: u64) -> Option<&Sector> {
        self.sectors.get(&sector)
    }

    pub(super) fn put_sector(&mut self, sector: u64, bytes: Option<Sector>) {
        match bytes {
            Some(bytes) => self.sectors.insert(sector, bytes),
            None => self.sectors.remove(&sector),
        };
    }

    pub(super) fn set(&mut self, sector: u64, bytes: &[u8]) {
        if bytes.iter().all(|byte| *byte == 0) {
            self.sectors.remove(&sector);
        } else {
            let mut whole = [0; SECTOR];
            whole[..bytes.len()].copy_from_slice(bytes);
            self.sectors.insert(sector, Arc::new(whole));
        }
    }

    pub(super) fn copy_sector(&mut self, from: &Self, sector: u64) {
        self.put_sector(sector, from.sector(sector).cloned());
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Bytes {
        let len = self.len.saturating_sub(offset).min(len as u64) as usize;
        let mut buffer = AlignedVec::<16>::with_capacity(len);
        buffer.resize(len, 0);
        let sectors = offset / SECTOR_U64..(offset + len as u64).div_ceil(SECTOR_U64);
        for (&number, bytes) in self.sectors.range(sectors) {
            let at = (number * SECTOR_U64 - offset) as usize;
            let part = SECTOR.min(len - at);
            buffer[at..at + part].copy_from_slice(&bytes[..part]);
        }
        Bytes::from_owner(buffer)
    }
}

/// The bytes of a write.
pub(super) fn encoded(recipe: &dyn Recipe) -> Bytes {
    let mut buffer = vec![0; recipe.len()];
    recipe.encode_into(&mut buffer);
    buffer.into()
}

/// The bytes of a file that is saved.
pub(super) fn written(dump: Box<dyn Dump>) -> Bytes {
    let mut bytes = Vec::new();
    dump.write(&mut bytes).expect("memory takes what it is given");
    bytes.into()
}
