use super::*;
use crate::seam::OutFrame;
use bytes::Bytes;
use floe_checker::random::Random;
use floe_raft::{Body, Entry, EntryKind, FollowerStamp, LeaderStamp, Mark, Membership, Message, ReplicaId};
use floe_shard::descriptor::{Descriptor, KeyRange, ReplicaPlace, ReplicaRole};
use floe_shard::peer::{Beat, BeatReply, GroupBeat, GroupBeatReply, GroupQuiet, PeerBatch, PeerMessage};
use floe_shard::request::{
    Answer, BusyReason, Consistency, MemberChange, Query, Refusal, Request, Rest, Row, Seat, UnknownReason,
    Versioned, ViewId,
};
use floe_shard::{Epoch, NodeId, ShardId};
use rkyv::util::AlignedVec;
use std::time::Duration;

/// Draws what travels.
struct Prng(Random);

impl Prng {
    fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }
    fn next(&mut self) -> u64 {
        self.0.next_u64()
    }
    fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }
    /// Small numbers and extreme ones alike.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(10),
            1 => u64::MAX - self.below(3),
            _ => self.next(),
        }
    }
    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }
    fn bytes(&mut self) -> Bytes {
        let len = match self.below(12) {
            0 => 0,
            1 => COPY_BYTES_MAX as u64 - 1 + self.below(3),
            2 => 10_000 + self.below(9),
            _ => self.below(200),
        };
        (0..len).map(|_| self.next() as u8).collect()
    }
    fn text(&mut self) -> String {
        (0..self.below(20)).map(|_| ['a', 'é', '冰', ' '][self.below(4) as usize]).collect()
    }
    fn id(&mut self) -> ReplicaId {
        ReplicaId::new(self.number().max(1)).unwrap()
    }
    fn shard(&mut self) -> ShardId {
        ShardId(self.number())
    }
    fn node(&mut self) -> NodeId {
        NodeId(self.number())
    }
    fn mark(&mut self) -> Mark {
        Mark::new(self.number(), self.number())
    }
    fn epoch(&mut self) -> Epoch {
        Epoch { range: self.number(), membership: self.number() }
    }
    fn leader_stamp(&mut self) -> LeaderStamp {
        LeaderStamp { sent_at_ns: self.number(), echo: self.number() }
    }
    fn follower_stamp(&mut self) -> FollowerStamp {
        FollowerStamp { echo_ns: self.number(), promise_ns: self.number(), stamp: self.number() }
    }
    fn ids(&mut self) -> Vec<ReplicaId> {
        (0..self.below(4)).map(|_| self.id()).collect()
    }

    fn append(&mut self, term: u64) -> Body {
        let prev = Mark::new(self.below(term + 1), self.below(1 << 40));
        let mut at = prev.term;
        let entries = (0..self.below(8)).map(|n| {
            at += self.below(term - at + 1);
            Entry {
                mark: Mark::new(at, prev.index + 1 + n),
                kind: EntryKind::from_u8(self.below(4) as u8).unwrap(),
                version: self.next() as u8,
                data: self.bytes(),
            }
        });
        let entries = entries.collect();
        let (commit, held_by_all) = (self.number(), self.number());
        Body::Append { prev, commit, held_by_all, entries, stamp: self.leader_stamp() }
    }

    fn body(&mut self, term: u64) -> Body {
        match self.below(16) {
            0 => Body::PreVote { last: self.mark() },
            1 => Body::PreVoteReply { granted: self.flag() },
            2 => Body::Vote { last: self.mark(), transfer: self.flag() },
            3 => Body::VoteReply { granted: self.flag() },
            4 => Body::AppendAccepted { matched: self.number(), stamp: self.follower_stamp() },
            5 => Body::AppendRejected { prev: self.mark(), hint: self.mark(), stamp: self.follower_stamp() },
            6 => Body::Heartbeat {
                commit: self.number(),
                read_round: self.number(),
                stamp: self.leader_stamp(),
            },
            7 => Body::HeartbeatReply { read_round: self.number(), stamp: self.follower_stamp() },
            14 => Body::Quiesce { last: self.mark() },
            8 => Body::TimeoutNow,
            9 => Body::ReadIndex { context: self.number() },
            10 => Body::ReadIndexReply { context: self.number(), index: self.number() },
            11 => Body::InstallSnapshot {
                mark: self.mark(),
                membership: Membership {
                    voters: self.ids(),
                    voters_outgoing: self.ids(),
                    learners: self.ids(),
                    learners_next: self.ids(),
                    auto_leave: self.flag(),
                },
                stamp: self.leader_stamp(),
            },
            13 => Body::AppendRefused { matched: self.number(), stamp: self.follower_stamp() },
            12 => Body::ReadIndexRefused { context: self.number() },
            _ => self.append(term),
        }
    }

    fn request(&mut self) -> Request {
        let consistency = match self.below(4) {
            0 => Consistency::Linearizable,
            1 => Consistency::LinearizableLocal,
            2 => Consistency::ANY_AGE,
            _ => Consistency::Stale { max: Duration::from_nanos(self.number().min(u64::MAX - 1)) },
        };
        let (shard, range_epoch) = (self.shard(), self.number());
        match self.below(5) {
            0 => Request::Write { shard, command: self.bytes() },
            1 => Request::Read { shard, range_epoch, query: Query::Get { key: self.bytes() }, consistency },
            2 => Request::Read {
                shard,
                range_epoch,
                query: Query::Scan {
                    start: self.bytes(),
                    end: self.bytes(),
                    limit: self.next() as u32,
                    bytes_max: self.next() as u32,
                    reverse: self.flag(),
                    view: self.flag().then(|| self.view()),
                },
                consistency,
            },
            3 => {
                let one = |p: &mut Self| MemberChange {
                    node: p.node(),
                    to: Seat::from_u8(p.below(3) as u8).unwrap(),
                };
                let count = self.below(4);
                let changes = (0..count).map(|_| one(self)).collect();
                Request::ChangeMembers { shard, changes, force: self.flag() }
            }
            _ => Request::TransferLeadership { shard, to: self.node() },
        }
    }

    fn view(&mut self) -> ViewId {
        ViewId { node: self.node(), number: self.number().max(1) }
    }

    fn descriptor(&mut self) -> Box<Descriptor> {
        let (mut id, count) = (0, 1 + self.below(6));
        // The first one votes in both halves: with any roles of the others that is a membership.
        let place = |at: u64| {
            id += 1 + self.below(1 << 20);
            let role = if at == 0 { 0 } else { self.below(5) as u8 };
            let (replica, role) = (ReplicaId::new(id).unwrap(), ReplicaRole::from_u8(role).unwrap());
            ReplicaPlace { replica, node: self.node(), role }
        };
        let replicas = (0..count).map(place).collect();
        Box::new(Descriptor {
            shard: self.shard(),
            range: KeyRange { start: self.bytes(), end: self.bytes() },
            epoch: self.epoch(),
            replicas,
            next_replica_id: self.number(),
            feature_level: self.next() as u32,
        })
    }

    fn versioned(&mut self) -> Versioned {
        Versioned { version: self.number(), value: self.bytes() }
    }

    fn answer(&mut self) -> Answer {
        let refusal = match self.below(22) {
            0 => return Answer::Written { version: self.number() },
            1 => return Answer::ConditionFailed { condition: self.next() as u32 },
            2 => return Answer::Value(None),
            3 => return Answer::Value(Some(self.versioned())),
            4 => {
                let row = |p: &mut Self| Row { key: p.bytes(), value: p.versioned() };
                let rows = (0..self.below(9)).map(|_| row(self)).collect();
                let rest = match self.below(3) {
                    0 => Rest::Nothing,
                    1 => Rest::More,
                    _ => Rest::Held(self.view()),
                };
                return Answer::Rows { rows, rest };
            }
            5 => return Answer::Done,
            6 => {
                use UnknownReason as U;
                let all =
                    [U::DeadlinePassed, U::Disconnected, U::LeadershipLost, U::ShuttingDown, U::BadAnswer];
                return Answer::Unknown(all[self.below(5) as usize]);
            }
            7 => {
                use BusyReason as B;
                let all = [
                    B::Requests,
                    B::UncommittedBytes,
                    B::DiskFull,
                    B::Transfer,
                    B::Transport,
                    B::MemberChange,
                    B::WriteBuffer,
                    B::Views,
                    B::LogMemory,
                    B::LogSpace,
                ];
                Refusal::Busy(all[self.below(10) as usize])
            }
            8 => Refusal::NotLeader { leader: None },
            9 => Refusal::NotLeader { leader: Some(self.node()) },
            10 => Refusal::WrongEpoch { descriptor: self.descriptor() },
            11 => Refusal::OutOfRange { descriptor: self.descriptor() },
            12 => Refusal::NoSuchShard { shard: self.shard() },
            13 => Refusal::BadCommand { reason: self.text() },
            14 => Refusal::Overwritten,
            15 => Refusal::DeadlinePassed,
            16 => Refusal::Unavailable { reason: self.text() },
            20 => Refusal::ViewGone,
            17 => Refusal::BadChange { reason: self.text() },
            18 => Refusal::TooStale { age: None },
            19 => Refusal::TooStale { age: Some(Duration::from_nanos(self.number().min(u64::MAX - 1))) },
            _ => Refusal::NotAMember { node: self.node() },
        };
        Answer::Refused(refusal)
    }

    fn message(&mut self) -> PeerMessage {
        let (shard, from, to, generation) = (self.shard(), self.id(), self.id(), self.number());
        let term = self.number();
        match self.below(10) {
            9 => PeerMessage::Placement { shard, from, to, descriptor: self.descriptor() },
            0 => {
                let (mark, len) = (self.mark(), self.number());
                PeerMessage::DumpOffer { shard, from, to, term, generation, mark, len }
            }
            1 => {
                let (offset, len) = (self.number(), self.next() as u32);
                PeerMessage::DumpPull { shard, from, to, generation, offset, len }
            }
            2 => {
                let (offset, data) = (self.number(), self.bytes());
                PeerMessage::DumpChunk { shard, from, to, generation, offset, data }
            }
            3 => PeerMessage::Request {
                id: self.number(),
                origin: self.node(),
                remaining_ns: self.number(),
                request: self.request(),
            },
            4 | 5 => PeerMessage::Answer { id: self.number(), answer: self.answer() },
            _ => {
                let term = self.below(1 << 50);
                let message = Message { from, to, term, body: self.body(term) };
                PeerMessage::Raft { shard, epoch: self.epoch(), message }
            }
        }
    }

    fn beat(&mut self) -> Beat {
        let group = |p: &mut Self| GroupBeat {
            shard: p.shard(),
            from: p.id(),
            to: p.id(),
            term: p.number(),
            commit: p.number(),
            read_round: p.number(),
            stamp: p.leader_stamp(),
        };
        let groups = (0..self.below(5)).map(|_| group(self)).collect();
        let quiet = |p: &mut Self| GroupQuiet {
            shard: p.shard(),
            from: p.id(),
            to: p.id(),
            term: p.number(),
            last: p.mark(),
        };
        let quiet = (0..self.below(5)).map(|_| quiet(self)).collect();
        Beat { boot_epoch: self.number(), groups, quiet }
    }

    fn beat_reply(&mut self) -> BeatReply {
        let group = |p: &mut Self| GroupBeatReply {
            shard: p.shard(),
            from: p.id(),
            to: p.id(),
            term: p.number(),
            read_round: p.number(),
            stamp: p.follower_stamp(),
        };
        let groups = (0..self.below(5)).map(|_| group(self)).collect();
        BeatReply { boot_epoch: self.number(), groups }
    }

    fn batch(&mut self) -> PeerBatch {
        PeerBatch {
            beat: self.flag().then(|| self.beat()),
            beat_reply: self.flag().then(|| self.beat_reply()),
            messages: (0..self.below(12)).map(|_| self.message()).collect(),
        }
    }
}

fn flat(frame: &OutFrame) -> Vec<u8> {
    frame.parts.concat()
}

/// What a driver does with the bytes of one connection.
fn receive(mut wire: &[u8]) -> Result<Vec<PeerBatch>, CodecError> {
    let mut batches = Vec::new();
    while !wire.is_empty() {
        let header = wire.first_chunk().ok_or(CodecError::Inconsistent("test: cut header"))?;
        let head = parse_header(header)?;
        let Some(body) = wire[HEADER_LEN..].get(..head.body_len()) else {
            return Err(CodecError::Inconsistent("test: cut body"));
        };
        batches.push(decode_body(&head, body)?);
        wire = &wire[HEADER_LEN + head.body_len()..];
    }
    Ok(batches)
}

fn aligned(body: &[u8]) -> Bytes {
    let mut aligned = AlignedVec::<16>::with_capacity(body.len());
    aligned.extend_from_slice(body);
    Bytes::from_owner(aligned)
}

fn decode_body(head: &FrameHead, body: &[u8]) -> Result<PeerBatch, CodecError> {
    check_body(head, body)?;
    decode(aligned(body))
}

#[test]
fn every_batch_comes_back_exactly() {
    for seed in 1..=1500 {
        let mut prng = Prng::new(seed);
        let batch = prng.batch();
        let frame = encode(&batch);
        let wire = flat(&frame);
        assert_eq!(wire.len(), frame.len(), "seed {seed}");
        assert_eq!(receive(&wire), Ok(vec![batch]), "seed {seed}");
    }
}

#[test]
fn payloads_are_aligned_and_big_ones_are_not_copied() {
    let big = Bytes::from(vec![7; COPY_BYTES_MAX]);
    let from = ReplicaId::new(1).unwrap();
    let chunk = |data: &Bytes| PeerMessage::DumpChunk {
        shard: ShardId(1),
        from,
        to: from,
        generation: 1,
        offset: 0,
        data: data.clone(),
    };
    let small = Bytes::from_static(b"abc");
    let messages = vec![chunk(&small), chunk(&big), chunk(&small)];
    let batch = PeerBatch { messages, ..PeerBatch::default() };
    let frame = encode(&batch);
    assert_eq!(frame.parts.len(), 3);
    assert_eq!(frame.parts[1].as_ptr(), big.as_ptr());
    for message in &receive(&flat(&frame)).unwrap()[0].messages {
        let PeerMessage::DumpChunk { data, .. } = message else { panic!("{message:?}") };
        assert!((data.as_ptr() as usize).is_multiple_of(8));
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    for seed in [3, 14, 159] {
        let mut prng = Prng::new(seed);
        let messages = (0..3).map(|_| prng.message()).collect();
        let batch = PeerBatch { beat: Some(prng.beat()), beat_reply: None, messages };
        let wire = flat(&encode(&batch));
        for cut in 1..wire.len() {
            assert!(receive(&wire[..cut]).is_err(), "seed {seed} cut at {cut}");
        }
        for bit in 0..(wire.len() * 8).min(40_000) {
            let mut damaged = wire.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(receive(&damaged).is_err(), "seed {seed} bit {bit}");
        }
    }
}

/// The checksum is no defence against a peer that computes it over nonsense.
#[test]
fn bodies_with_nonsense_under_a_right_checksum_never_panic() {
    for seed in 1..=300 {
        let mut prng = Prng::new(seed);
        let wire = flat(&encode(&prng.batch()));
        let body = &wire[HEADER_LEN..];
        let meta = u32_at(body, 0) as usize + PROLOGUE_LEN;
        for _ in 0..200 {
            let mut damaged = body.to_vec();
            for _ in 0..=prng.below(3) {
                let at = prng.below(meta as u64) as usize;
                damaged[at] = [0, 1, 0xFF, prng.next() as u8][prng.below(4) as usize];
            }
            damaged.truncate(damaged.len() - (prng.below(8) == 0) as usize * 8);
            let _ = decode(aligned(&damaged));
        }
        let noise: Vec<u8> = (0..prng.below(400)).map(|_| prng.next() as u8).collect();
        assert!(decode(aligned(&noise)).is_err());
    }
}

#[test]
fn a_claimed_length_over_the_bound_is_refused_from_the_header_alone() {
    let mut header = [0; HEADER_LEN];
    write_header(&mut header, KIND_BATCH, u32::MAX - 7, u32::MAX - 7, 0);
    assert!(matches!(parse_header(&header), Err(CodecError::TooLong(_))));
    write_header(&mut header, KIND_BATCH, 8, FRAME_BYTES_MAX as u32 - 16, 0);
    assert_eq!(parse_header(&header).unwrap().body_len(), FRAME_BYTES_MAX);
}

#[test]
fn a_batch_over_the_bound_becomes_several_frames() {
    let from = ReplicaId::new(9).unwrap();
    let data = Bytes::from(vec![1; 5 << 20]);
    let chunk = |offset| PeerMessage::DumpChunk {
        shard: ShardId(2),
        from,
        to: from,
        generation: 3,
        offset,
        data: data.clone(),
    };
    let mut prng = Prng::new(77);
    let messages: Vec<_> = (0..11).map(chunk).collect();
    let batch = PeerBatch { beat: Some(prng.beat()), beat_reply: None, messages };
    let got = receive(&flat(&encode(&batch))).unwrap();
    assert_eq!(got.len(), 3);
    assert_eq!(got[0].beat, batch.beat);
    assert!(got[1..].iter().all(|batch| batch.beat.is_none()));
    let messages: Vec<_> = got.into_iter().flat_map(|batch| batch.messages).collect();
    assert_eq!(messages, batch.messages);
}
