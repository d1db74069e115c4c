//! A descriptor as bytes: in WAL records, dumps and frames.
//!
//! ```text
//!  0  version u8 = 1
//!  1  feature_level u32
//!  5  shard u64 | epoch.range u64 | epoch.membership u64 | next_replica_id u64
//! 37  start_len u32 | end_len u32 | replica_count u32
//! 49  start | end | replica_count x { replica u64, node u64, role u8 }
//! ```
//! All numbers little-endian, no padding, nothing after the last replica. Replicas are in order of id, and
//! form a membership that can be ([`floe_raft::Membership::broken_rule`]).

use crate::cursor::Cursor;
use crate::descriptor::{Descriptor, KeyRange, ReplicaPlace, ReplicaRole};
use crate::ids::{Epoch, NodeId, ShardId};
use bytes::Bytes;
use floe_raft::ReplicaId;
use std::fmt;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 49;
const REPLICA_BYTES: usize = 17;

/// Bytes that are not a descriptor of a version known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BadDescriptor {
    /// Another version of the encoding.
    Version(u8),
    /// They end too early, or go on after the end, or hold an impossible value.
    Malformed,
}

impl fmt::Display for BadDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "descriptor encoding {version} is not known here"),
            Self::Malformed => write!(f, "not a shard descriptor"),
        }
    }
}

impl std::error::Error for BadDescriptor {}

impl Descriptor {
    /// The descriptor as bytes.
    pub fn encode(&self) -> Bytes {
        let range = &self.range;
        let len = HEAD_BYTES + range.start.len() + range.end.len() + self.replicas.len() * REPLICA_BYTES;
        let mut out = Vec::with_capacity(len);
        out.push(VERSION);
        out.extend_from_slice(&self.feature_level.to_le_bytes());
        for number in [self.shard.0, self.epoch.range, self.epoch.membership, self.next_replica_id] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for len in [range.start.len(), range.end.len(), self.replicas.len()] {
            out.extend_from_slice(&(len as u32).to_le_bytes());
        }
        out.extend_from_slice(&range.start);
        out.extend_from_slice(&range.end);
        for place in &*self.replicas {
            out.extend_from_slice(&place.replica.get().to_le_bytes());
            out.extend_from_slice(&place.node.0.to_le_bytes());
            out.push(place.role as u8);
        }
        assert_eq!(out.len(), len, "a descriptor's length is known before it is written");
        Bytes::from(out)
    }

    /// The descriptor that `bytes` encode. Copies what it keeps.
    ///
    /// # Errors
    /// Any bytes that [`Descriptor::encode`] didn't write.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadDescriptor> {
        let mut cursor = Cursor::new(bytes);
        match cursor.u8() {
            Some(VERSION) => {}
            Some(version) => return Err(BadDescriptor::Version(version)),
            None => return Err(BadDescriptor::Malformed),
        }
        let descriptor = read_body(&mut cursor).ok_or(BadDescriptor::Malformed)?;
        if cursor.is_empty() { Ok(descriptor) } else { Err(BadDescriptor::Malformed) }
    }
}

fn read_body(cursor: &mut Cursor<'_>) -> Option<Descriptor> {
    let feature_level = cursor.u32()?;
    let shard = ShardId(cursor.u64()?);
    let epoch = Epoch { range: cursor.u64()?, membership: cursor.u64()? };
    let next_replica_id = cursor.u64()?;
    let (start, end, count) = (cursor.len32()?, cursor.len32()?, cursor.len32()?);
    let start = Bytes::copy_from_slice(cursor.take(start)?);
    let end = Bytes::copy_from_slice(cursor.take(end)?);
    if cursor.rest().len() != count.checked_mul(REPLICA_BYTES)? {
        return None;
    }
    let replicas = (0..count).map(|_| read_replica(cursor)).collect::<Option<_>>()?;
    let range = KeyRange { start, end };
    let descriptor = Descriptor { shard, range, epoch, replicas, next_replica_id, feature_level };
    descriptor.membership().broken_rule().is_none().then_some(descriptor)
}

fn read_replica(cursor: &mut Cursor<'_>) -> Option<ReplicaPlace> {
    let replica = ReplicaId::new(cursor.u64()?)?;
    let node = NodeId(cursor.u64()?);
    let role = ReplicaRole::from_u8(cursor.u8()?)?;
    Some(ReplicaPlace { replica, node, role })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Descriptor {
        let place = |id: u64, role| ReplicaPlace {
            replica: ReplicaId::new(id).unwrap(),
            node: NodeId(id * 10),
            role,
        };
        Descriptor {
            shard: ShardId(7),
            range: KeyRange { start: Bytes::from_static(b"a"), end: Bytes::from_static(b"mm") },
            epoch: Epoch { range: 3, membership: 9 },
            replicas: [place(1, ReplicaRole::Voter), place(4, ReplicaRole::Learner)].into(),
            next_replica_id: 5,
            feature_level: 2,
        }
    }

    #[test]
    fn what_is_encoded_comes_back() {
        assert_eq!(Descriptor::decode(&sample().encode()), Ok(sample()));
    }

    #[test]
    fn every_cut_and_every_extension_is_refused() {
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Descriptor::decode(&bytes[..len]).is_err(), "cut at {len}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert_eq!(Descriptor::decode(&longer), Err(BadDescriptor::Malformed));
        longer[0] = 2;
        assert_eq!(Descriptor::decode(&longer), Err(BadDescriptor::Version(2)));
    }
}
