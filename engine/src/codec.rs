//! The wire codec: one frame carries one [`PeerBatch`], what one core has for another in one turn, or one [`Info`] between a client and
//! a node. A client's requests, and the answers to them, travel as batches of nothing else.
//!
//! ```text
//! frame = header (32 bytes) + body
//!
//! header, little-endian            body, starts at a multiple of 16 in memory
//!  0  magic "FLOE"                  0  metadata length (again)          4
//!  4  protocol version   2          4  payload length (again)           4
//!  6  kind (0 = batch,   1          8  metadata: an rkyv archive, its root at its end
//!     1 = info)
//!  7  flags              1         ..  payloads back to back, each padded with zeros to 8
//!  8  metadata length    4
//! 12  payload length     4         The lengths are repeated so that the body can be decoded
//! 16  CRC-32C of body    4         without its header.
//! 20  reserved, 0        8
//! 28  CRC-32C of 0..28   4
//! ```
//!
//! The metadata is plain columns and rows of fixed size (`wire`); all bytes that a batch carries (entries, commands,
//! keys, values, texts) are payloads, in the order in which the batch names them. On receipt a payload
//! is a slice of the body's buffer, aligned to 8; on sending, only payloads below [`COPY_BYTES_MAX`] are copied.
//!
//! Invariants: a peer is not trusted, so nothing here panics or allocates by a length that was not
//! checked against the bytes that are there; what decodes is what was encoded, exactly; bits 0-3 of the
//! flags must be understood, bits 4-7 may be ignored. The driver calls [`parse_header`] and
//! [`check_body`], the worker [`encode`] and [`decode`].

mod decode;
mod encode;
mod info;
#[cfg(test)]
mod tests;
mod wire;

pub use decode::decode;
pub use encode::encode;
pub use info::{CoreStatus, Info, MapInfo, NodeStatus, ReplicaStatus, decode_info, encode_info};

#[cfg(doc)]
use floe_shard::peer::PeerBatch;

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 32;
/// Largest body that is accepted. One entry may have up to 16 MiB.
pub const FRAME_BYTES_MAX: usize = 24 << 20;
/// Payloads below this many bytes are copied into the frame's buffer; larger ones become parts of their own.
pub const COPY_BYTES_MAX: usize = 4096;
/// The version of the frame format and of everything in it.
pub const PROTOCOL_VERSION: u16 = 1;
/// Oldest version that this build speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;

const MAGIC: [u8; 4] = *b"FLOE";
const KIND_BATCH: u8 = 0;
const KIND_INFO: u8 = 1;
/// Flags that a receiver must know; none is defined yet.
const FLAGS_MUST: u8 = 0x0F;
/// The two lengths at the start of a body.
const PROLOGUE_LEN: usize = 8;

const _: () = assert!(HEADER_LEN.is_multiple_of(16), "header and body share a buffer when sent");
const _: () = assert!(FRAME_BYTES_MAX <= u32::MAX as usize, "lengths on the wire are 32 bits");

/// Why bytes from a peer are not a frame, or not a batch. The connection can't be used any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Not a header at all, or the stream lost its place.
    #[error("frame does not start with the magic number")]
    Magic,
    /// Another protocol version than the one agreed on.
    #[error("frame has protocol version {0}, this connection speaks {PROTOCOL_VERSION}")]
    Version(u16),
    /// The header's checksum is wrong.
    #[error("frame header has a wrong checksum")]
    HeaderChecksum,
    /// A kind of frame that this version doesn't know.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A flag that must be understood and isn't.
    #[error("unknown frame flags {0:#04x}")]
    Flags(u8),
    /// The body is over [`FRAME_BYTES_MAX`].
    #[error("frame body of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(u64),
    /// The body has another length than the header says.
    #[error("frame body has {got} bytes instead of {expected}")]
    BodyLength {
        /// By the header.
        expected: usize,
        /// In fact.
        got: usize,
    },
    /// The body's checksum is wrong.
    #[error("frame body has a wrong checksum")]
    BodyChecksum,
    /// The body's buffer is not aligned to 8 bytes: the receiver's fault.
    #[error("frame body is not aligned to 8 bytes")]
    Misaligned,
    /// The archive is damaged or of another version.
    #[error("frame metadata is not valid: {0}")]
    Metadata(String),
    /// A number names no variant that this version knows.
    #[error("unknown {what} {number}")]
    Unknown {
        /// Of what.
        what: &'static str,
        /// The number.
        number: u64,
    },
    /// The parts of the metadata contradict each other.
    #[error("frame is inconsistent: {0}")]
    Inconsistent(&'static str),
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// What one core has for another: a `PeerBatch`.
    Batch,
    /// An [`Info`]; only between a client and a node.
    Info,
}

/// A header that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    meta_len: u32,
    payload_len: u32,
    body_crc: u32,
}

impl FrameHead {
    /// Bytes of the body that follows; at most [`FRAME_BYTES_MAX`].
    pub fn body_len(&self) -> usize {
        PROLOGUE_LEN + self.meta_len as usize + self.payload_len as usize
    }
}

/// CRC-32C, the checksum of everything on the wire.
pub fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

/// Checks a header of a frame between cores: magic, version, checksum, kind, flags and bounds.
///
/// # Errors
/// Names what is wrong with it. Nothing has been allocated then.
pub fn parse_header(header: &[u8; HEADER_LEN]) -> Result<FrameHead, CodecError> {
    match parse_client_header(header)? {
        (head, FrameKind::Batch) => Ok(head),
        (_, FrameKind::Info) => Err(CodecError::Kind(KIND_INFO)),
    }
}

/// Checks a header of a frame between a client and a node, as [`parse_header`].
///
/// # Errors
/// Names what is wrong with it. Nothing has been allocated then.
pub fn parse_client_header(header: &[u8; HEADER_LEN]) -> Result<(FrameHead, FrameKind), CodecError> {
    if header[..4] != MAGIC {
        return Err(CodecError::Magic);
    }
    let version = u16::from_le_bytes([header[4], header[5]]);
    if version != PROTOCOL_VERSION {
        return Err(CodecError::Version(version));
    }
    if u32_at(header, 28) != checksum(&header[..28]) {
        return Err(CodecError::HeaderChecksum);
    }
    let kind = match header[6] {
        KIND_BATCH => FrameKind::Batch,
        KIND_INFO => FrameKind::Info,
        other => return Err(CodecError::Kind(other)),
    };
    if header[7] & FLAGS_MUST != 0 {
        return Err(CodecError::Flags(header[7]));
    }
    let (meta_len, payload_len) = (u32_at(header, 8), u32_at(header, 12));
    let body = PROLOGUE_LEN as u64 + u64::from(meta_len) + u64::from(payload_len);
    if body > FRAME_BYTES_MAX as u64 {
        return Err(CodecError::TooLong(body));
    }
    Ok((FrameHead { meta_len, payload_len, body_crc: u32_at(header, 16) }, kind))
}

/// Checks a body's length and checksum against its header.
///
/// # Errors
/// Says which of the two is wrong.
pub fn check_body(head: &FrameHead, body: &[u8]) -> Result<(), CodecError> {
    if body.len() != head.body_len() {
        return Err(CodecError::BodyLength { expected: head.body_len(), got: body.len() });
    }
    if checksum(body) != head.body_crc {
        return Err(CodecError::BodyChecksum);
    }
    Ok(())
}

/// Writes the header of a body with these lengths and this checksum.
fn write_header(header: &mut [u8], kind: u8, meta_len: u32, payload_len: u32, body_crc: u32) {
    header[..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    header[6] = kind;
    header[7] = 0;
    header[8..12].copy_from_slice(&meta_len.to_le_bytes());
    header[12..16].copy_from_slice(&payload_len.to_le_bytes());
    header[16..20].copy_from_slice(&body_crc.to_le_bytes());
    header[20..28].fill(0);
    let crc = checksum(&header[..28]);
    header[28..32].copy_from_slice(&crc.to_le_bytes());
}
