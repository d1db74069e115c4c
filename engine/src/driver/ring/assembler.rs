//! Puts frames together from pieces as a socket gives them.
//!
//! Small frames come through one buffer, many with one receive, and each body is copied into memory of its own:
//! what keeps a few bytes of it alive must not keep everybody else's. The rest of a big body is received
//! right where it belongs.

use crate::codec::{self, CodecError, FrameHead, HEADER_LEN};
use bytes::Bytes;
use rkyv::util::AlignedVec;

/// Bytes of the shared buffer. What is missing of a body is received into its place from this size on.
const BUFFER_BYTES: usize = 64 << 10;

/// Where received bytes are to go: `buffer[from..]`.
pub(super) struct Landing {
    pub(super) buffer: AlignedVec,
    pub(super) from: usize,
    /// It is the rest of a body: nothing can be done before all of it is there.
    pub(super) whole: bool,
}

/// What was received of the next frame.
pub(super) struct Assembler {
    header: [u8; HEADER_LEN],
    header_have: usize,
    /// Present once the header is complete and was checked.
    body: Option<Body>,
    /// Empty while it is lent.
    buffer: AlignedVec,
}

struct Body {
    head: FrameHead,
    /// Empty while it is lent.
    bytes: AlignedVec,
}

impl Assembler {
    pub(super) fn new() -> Self {
        let mut buffer = AlignedVec::with_capacity(BUFFER_BYTES);
        buffer.resize(BUFFER_BYTES, 0);
        Self { header: [0; HEADER_LEN], header_have: 0, body: None, buffer }
    }

    /// Memory for what comes next; to be brought back with [`Assembler::take_back`].
    pub(super) fn lend(&mut self) -> Landing {
        match &mut self.body {
            Some(body) if body.head.body_len() - body.bytes.len() >= BUFFER_BYTES => {
                let mut buffer = std::mem::take(&mut body.bytes);
                let from = buffer.len();
                buffer.resize(body.head.body_len(), 0);
                Landing { buffer, from, whole: true }
            }
            _ => Landing { buffer: std::mem::take(&mut self.buffer), from: 0, whole: false },
        }
    }

    /// Takes lent memory back with `got` more bytes in it; hands each frame that is complete now to `each`.
    ///
    /// # Errors
    /// If it is no frame. Nothing that follows can be understood then.
    pub(super) fn take_back(
        &mut self,
        landing: Landing,
        got: usize,
        each: &mut impl FnMut(Bytes),
    ) -> Result<(), CodecError> {
        let Landing { mut buffer, from, whole } = landing;
        if !whole {
            let result = self.feed(&buffer[..got], each);
            self.buffer = buffer;
            return result;
        }
        // Short only if the connection ends or a signal came: the rest is asked for again.
        buffer.resize(from + got, 0);
        let body = self.body.as_mut().expect("its memory was lent");
        body.bytes = buffer;
        self.finish_body(each)
    }

    fn feed(&mut self, mut bytes: &[u8], each: &mut impl FnMut(Bytes)) -> Result<(), CodecError> {
        while !bytes.is_empty() {
            if let Some(body) = &mut self.body {
                let missing = body.head.body_len() - body.bytes.len();
                let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
                body.bytes.extend_from_slice(taken);
                bytes = rest;
                self.finish_body(each)?;
                continue;
            }
            let (taken, rest) = bytes.split_at((HEADER_LEN - self.header_have).min(bytes.len()));
            self.header[self.header_have..][..taken.len()].copy_from_slice(taken);
            self.header_have += taken.len();
            bytes = rest;
            if self.header_have == HEADER_LEN {
                // Nothing is allocated before the header is known to be good.
                let head = codec::parse_header(&self.header)?;
                self.header_have = 0;
                self.body = Some(Body { head, bytes: AlignedVec::with_capacity(head.body_len()) });
            }
        }
        Ok(())
    }

    fn finish_body(&mut self, each: &mut impl FnMut(Bytes)) -> Result<(), CodecError> {
        let is_complete = |body: &mut Body| body.bytes.len() == body.head.body_len();
        if let Some(Body { head, bytes }) = self.body.take_if(is_complete) {
            codec::check_body(&head, &bytes)?;
            each(Bytes::from_owner(bytes));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_shard::ShardId;
    use floe_shard::peer::{PeerBatch, PeerMessage};

    fn frame(number: u64, len: usize) -> Vec<u8> {
        let from = floe_raft::ReplicaId::new(1).unwrap();
        let data = Bytes::from(vec![number as u8; len]);
        let (shard, generation) = (ShardId(1), 1);
        let chunk = PeerMessage::DumpChunk { shard, from, to: from, generation, offset: number, data };
        codec::encode(&PeerBatch { messages: vec![chunk], ..PeerBatch::default() }).parts.concat()
    }

    /// Gives the stream in pieces of at most `piece` bytes; returns the bodies.
    fn assemble(mut stream: &[u8], piece: usize) -> Result<Vec<Bytes>, CodecError> {
        let mut assembler = Assembler::new();
        let mut bodies = Vec::new();
        while !stream.is_empty() {
            let mut landing = assembler.lend();
            let into = &mut landing.buffer[landing.from..];
            let got = piece.min(into.len()).min(stream.len());
            into[..got].copy_from_slice(&stream[..got]);
            stream = &stream[got..];
            assembler.take_back(landing, got, &mut |body| bodies.push(body))?;
        }
        Ok(bodies)
    }

    #[test]
    fn the_same_frames_come_out_however_the_stream_is_cut() {
        let lens = [0, 7, 5000, 200_000, 1, 70_000, 64 << 10, 300];
        let frames: Vec<_> = (0..).zip(lens).map(|(number, len)| frame(number, len)).collect();
        let expected: Vec<_> = frames.iter().map(|frame| &frame[HEADER_LEN..]).collect();
        for piece in [1, 31, 33, 4096, 60_000, usize::MAX] {
            let bodies = assemble(&frames.concat(), piece).unwrap();
            assert_eq!(bodies, expected, "pieces of {piece} bytes");
            assert!(bodies.iter().all(|body| (body.as_ptr() as usize).is_multiple_of(8)));
        }
    }

    #[test]
    fn damage_in_header_or_body_is_an_error() {
        let stream = [frame(1, 100), frame(2, 100_000)].concat();
        for at in [0, 20, 40, stream.len() - 100_000] {
            let mut bad = stream.clone();
            bad[at] ^= 1;
            assert!(assemble(&bad, 1000).is_err(), "byte {at}");
        }
    }
}
