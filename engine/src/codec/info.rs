//! What a client and a node tell each other beside requests and answers: frames of kind 1.
//!
//! The body is an [`Info`] as an rkyv archive behind the two lengths that every body begins with; it has no payloads.

use super::{CodecError, FRAME_BYTES_MAX, HEADER_LEN, KIND_INFO, PROLOGUE_LEN, u32_at, write_header};
use rkyv::{Archive, Deserialize, Serialize};

/// One message about the node itself. A client asks, a node tells.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum Info {
    /// Client: who is in the cluster, and which shard is where?
    AskMap {
        /// The version of the shards that it knows; 0 = none.
        known: u64,
    },
    /// Client: how do you stand?
    AskStatus,
    /// Client: a node has lost its store; let it come with another one.
    ForgetStore {
        /// The node.
        node: u64,
    },
    /// Node: the answer to `AskMap`.
    Map(MapInfo),
    /// Node: the answer to `AskStatus`.
    Status(NodeStatus),
    /// Node: the answer to `ForgetStore`.
    Forgotten {
        /// Why not; empty if it is so.
        refusal: String,
    },
}

/// The cluster as one node knows it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// Ids of all nodes.
    pub nodes: Vec<u64>,
    /// Their addresses; parallel to `nodes`.
    pub addresses: Vec<String>,
    /// Another number for other shards; never 0.
    pub version: u64,
    /// Descriptors of all shards, encoded, in order of their keys; none if the client knows this version.
    pub shards: Vec<Vec<u8>>,
    /// The leading node of each shard, as far as is known; 0 = it isn't. In order of the shards.
    pub leaders: Vec<u64>,
    /// How many replicas each shard was founded with.
    pub replication: u32,
}

/// How a node stands.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its id.
    pub node: u64,
    /// How often it was started.
    pub boot_epoch: u64,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// Its cores, in order.
    pub cores: Vec<CoreStatus>,
    /// Its replicas, in order of shard.
    pub shards: Vec<ReplicaStatus>,
}

/// How one core stands. Counts are since the start.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreStatus {
    /// Whether it runs: not while it starts, and not after it has met a disk or a log that it can't go on with.
    pub runs: bool,
    /// Bytes of its log's segment files.
    pub log_disk_bytes: u64,
    /// Bytes that wait for their write to the log.
    pub log_queued_bytes: u64,
    /// Requests under way.
    pub requests_pending: u64,
    /// Requests taken in from this node's clients.
    pub requests: u64,
    /// Requests refused because a bound was reached.
    pub busy: u64,
    /// Elections that its replicas began.
    pub elections: u64,
}

/// How one replica stands.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The shard.
    pub shard: u64,
    /// The core that owns it on this node.
    pub core: u16,
    /// The replica's id.
    pub replica: u64,
    /// Its term.
    pub term: u64,
    /// The leading node, as seen from here; 0 = unknown.
    pub leader: u64,
    /// Whether this replica leads.
    pub is_leader: bool,
    /// Highest index known to be committed.
    pub commit: u64,
    /// Index of the last entry applied.
    pub applied: u64,
    /// Index of the last entry of the log.
    pub last: u64,
    /// Index up to which the state is in a file.
    pub flushed: u64,
    /// Bytes of log in memory.
    pub log_bytes: u64,
    /// Size of the state, roughly, in bytes.
    pub size_bytes: u64,
    /// Why it doesn't take part; empty if it does.
    pub fault: String,
    /// Nodes of the shard's voters, by the change of members that was applied here last.
    pub voters: Vec<u64>,
    /// Nodes of its other members: learners, and those that come or go.
    pub others: Vec<u64>,
}

/// The archived layout is the wire format: a change here needs a new protocol version.
macro_rules! pin {
    ($($archived:ty = $size:literal;)*) => {
        $(const _: () = assert!(size_of::<$archived>() == $size, "the archived layout is the wire format");)*
    };
}

pin! {
    ArchivedInfo = 56;
    ArchivedMapInfo = 48;
    ArchivedNodeStatus = 40;
    ArchivedCoreStatus = 56;
    ArchivedReplicaStatus = 120;
}

/// Encodes one frame; `None` if it would be over [`FRAME_BYTES_MAX`].
pub fn encode_info(info: &Info) -> Option<Vec<u8>> {
    let empty = vec![0; HEADER_LEN + PROLOGUE_LEN];
    let mut frame = rkyv::api::high::to_bytes_in::<_, rkyv::rancor::Panic>(info, empty)
        .unwrap_or_else(|never| match never {});
    let body_len = frame.len() - HEADER_LEN;
    if body_len > FRAME_BYTES_MAX {
        return None;
    }
    let meta_len = u32::try_from(body_len - PROLOGUE_LEN).expect("bounded right above");
    frame[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&meta_len.to_le_bytes());
    let crc = super::checksum(&frame[HEADER_LEN..]);
    write_header(&mut frame[..HEADER_LEN], KIND_INFO, meta_len, 0, crc);
    Some(frame)
}

/// Decodes a body whose checksum was checked, aligned to 8.
///
/// # Errors
/// Names what is wrong; the connection it came from should be closed.
pub fn decode_info(body: &[u8]) -> Result<Info, CodecError> {
    if !(body.as_ptr() as usize).is_multiple_of(8) {
        return Err(CodecError::Misaligned);
    }
    let meta = body.get(PROLOGUE_LEN..).unwrap_or_default();
    if body.len() < PROLOGUE_LEN || u32_at(body, 0) as usize != meta.len() || u32_at(body, 4) != 0 {
        return Err(CodecError::Inconsistent("an info has another length than it says"));
    }
    rkyv::from_bytes::<Info, rkyv::rancor::Error>(meta)
        .map_err(|error| CodecError::Metadata(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{FrameKind, check_body, parse_client_header, parse_header};
    use rkyv::util::AlignedVec;

    fn infos() -> [Info; 6] {
        let core = CoreStatus { runs: true, log_disk_bytes: 1, busy: 2, ..CoreStatus::default() };
        let replica = ReplicaStatus {
            shard: 3,
            core: 4,
            fault: "broken".into(),
            voters: vec![5, 6],
            ..Default::default()
        };
        let (cores, shards) = (vec![core; 2], vec![replica; 3]);
        let map = MapInfo {
            nodes: vec![1, 2],
            addresses: vec!["one:1".into(), "two:2".into()],
            version: 9,
            shards: vec![vec![1, 2, 3], Vec::new()],
            leaders: vec![0, 2],
            replication: 3,
        };
        let status = NodeStatus { node: 5, boot_epoch: 6, uptime_ms: 7, cores, shards };
        let (forget, forgotten) =
            (Info::ForgetStore { node: 8 }, Info::Forgotten { refusal: "it is a member".into() });
        [Info::AskMap { known: 3 }, Info::AskStatus, Info::Map(map), Info::Status(status), forget, forgotten]
    }

    fn aligned(bytes: &[u8]) -> AlignedVec {
        let mut body = AlignedVec::with_capacity(bytes.len());
        body.extend_from_slice(bytes);
        body
    }

    #[test]
    fn what_is_told_comes_back_and_is_no_frame_between_cores() {
        for info in infos() {
            let frame = encode_info(&info).expect("it is small");
            let header = frame[..HEADER_LEN].try_into().expect("a header's length");
            let (head, kind) = parse_client_header(&header).expect("it was just made");
            assert_eq!(kind, FrameKind::Info);
            assert_eq!(parse_header(&header), Err(CodecError::Kind(KIND_INFO)));
            let body = aligned(&frame[HEADER_LEN..]);
            check_body(&head, &body).expect("it was just made");
            assert_eq!(decode_info(&body), Ok(info));
        }
    }

    #[test]
    fn spoiled_bytes_are_an_error_or_another_info_and_no_panic() {
        let mut refused = 0;
        for info in infos() {
            let frame = encode_info(&info).expect("it is small");
            let body = &frame[HEADER_LEN..];
            (0..body.len()).for_each(|len| drop(decode_info(&aligned(&body[..len]))));
            for at in 0..body.len() {
                for change in [1, 0x80, 0xFF] {
                    let mut spoiled = aligned(body);
                    spoiled[at] ^= change;
                    refused += u32::from(decode_info(&spoiled).is_err());
                }
            }
        }
        assert!(refused > 100, "{refused}");
    }
}
