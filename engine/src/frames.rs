//! Frames on a blocking socket: how clients and the nodes they talk to read and write them, each on threads of its
//! own.

use crate::codec::{self, CodecError, FrameKind, HEADER_LEN, Info};
use crate::seam::OutFrame;
use bytes::Bytes;
use floe_shard::peer::PeerBatch;
use rkyv::util::AlignedVec;
use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;

const BUFFER_BYTES: usize = 64 << 10;

/// What came in.
pub(crate) enum Frame {
    /// Requests or answers, or what no client or node should send the other.
    Batch(PeerBatch),
    /// Something about a node.
    Info(Info),
}

/// Why nothing more can come in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("closed by the other end")]
    Closed,
    #[error("{0}")]
    Io(io::Error),
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Reads frames from a socket.
pub(crate) struct FrameReader(BufReader<TcpStream>);

impl FrameReader {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self(BufReader::with_capacity(BUFFER_BYTES, socket))
    }

    /// Waits for a whole frame.
    pub(crate) fn next(&mut self) -> Result<Frame, FrameError> {
        let mut header = [0; HEADER_LEN];
        self.fill(&mut header)?;
        let (head, kind) = codec::parse_client_header(&header)?;
        let body = self.body(head.body_len())?;
        codec::check_body(&head, &body)?;
        Ok(match kind {
            FrameKind::Batch => Frame::Batch(codec::decode(Bytes::from_owner(body))?),
            FrameKind::Info => Frame::Info(codec::decode_info(&body)?),
        })
    }

    /// Memory grows with what is there, not with what was announced.
    fn body(&mut self, len: usize) -> Result<AlignedVec, FrameError> {
        let mut body = AlignedVec::with_capacity(len.min(BUFFER_BYTES));
        while body.len() < len {
            let have = body.len();
            body.resize(len.min(have + BUFFER_BYTES.max(have)), 0);
            self.fill(&mut body[have..])?;
        }
        Ok(body)
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), FrameError> {
        self.0.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FrameError::Closed,
            _ => FrameError::Io(error),
        })
    }
}

/// Sends a frame, or several back to back.
pub(crate) fn write_frame(mut socket: &TcpStream, frame: &OutFrame) -> io::Result<()> {
    frame.parts.iter().try_for_each(|part| socket.write_all(part))
}
