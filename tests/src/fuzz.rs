//! What is fuzzed: every reader of bytes that come from a disk, a network or a person, each with what must hold whatever
//! the bytes are. `fuzz/` gives these functions to libFuzzer; a test gives them examples with random damage.
//!
//! None may panic, nor take memory that only a length field claims. Where a reader accepts bytes, writing what it read
//! and reading that again must give the same. Checksums are made right first: they are no defence against a writer
//! with a bug, and would keep a fuzzer at the door.

use bytes::Bytes;
use floe::boot::{BootRecord, Founding, StreamSet};
use floe::codec::{
    self, Info, MapInfo, NodeStatus, check_body, decode, decode_info, encode, encode_info,
    parse_client_header,
};
use floe::rows::{Format, Shape, line};
use floe::transport::{HELLO_LEN, Hello};
use floe::wal::record::{Item, RECORD_HEAD, encode_item, item_len, parse_item};
use floe::wal::{Record, ShardState};
use floe::{Config, NodeId, ShardId, WriteBatch, config_file};
use floe_checker::history::{History, Model};
use floe_raft::{Entry, EntryKind, HardState, Mark, ReplicaId};
use floe_shard::peer::{PeerBatch, PeerMessage};
use floe_shard::request::{Consistency, Query, Request};
use floe_shard::{COMMAND_HEAD_BYTES, Descriptor, DumpHead};
use floe_shard::{check_limits, encode_dump, open_dump, pre_split, split_head, with_command};
use rkyv::util::AlignedVec;
use std::time::Duration;

/// One reader.
pub struct Target {
    /// As in `cargo fuzz run NAME`.
    pub name: &'static str,
    /// Reads the bytes; panics if something doesn't hold.
    pub run: fn(&[u8]),
    /// Bytes that it accepts.
    pub examples: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "frame", run: frame, examples: frames },
    Target { name: "hello", run: hello, examples: || vec![Hello::of_client(7).encode().to_vec()] },
    Target { name: "wal_record", run: wal_record, examples: wal_records },
    Target { name: "boot_record", run: boot_record, examples: || vec![a_boot_record().encode().to_vec()] },
    Target { name: "dump", run: dump, examples: || vec![a_dump(), a_descriptor().encode().to_vec()] },
    Target { name: "command", run: command, examples: commands },
    Target { name: "settings", run: settings, examples: all_settings },
    Target { name: "rows", run: rows, examples: all_rows },
    Target { name: "history", run: history, examples: histories },
];

fn aligned(bytes: &[u8]) -> Bytes {
    let mut buffer = AlignedVec::<16>::with_capacity(bytes.len());
    buffer.extend_from_slice(bytes);
    Bytes::from_owner(buffer)
}

/// The frame's header and body on the wire.
fn on_the_wire(batch: &PeerBatch) -> Vec<u8> {
    encode(batch).parts.concat()
}

/// A frame: header and body, whose checksums and lengths are made right.
pub fn frame(bytes: &[u8]) {
    let Some((header, body)) = bytes.split_first_chunk::<{ codec::HEADER_LEN }>() else { return };
    let _ = parse_client_header(header);
    let mut header = *header;
    header[16..20].copy_from_slice(&codec::checksum(body).to_le_bytes());
    let crc = codec::checksum(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    if let Ok((head, _)) = parse_client_header(&header) {
        let _ = check_body(&head, body);
    }
    let body = aligned(body);
    if let Ok(batch) = decode(body.clone()) {
        let again = on_the_wire(&batch);
        let again = decode(aligned(&again[codec::HEADER_LEN..])).expect("what was encoded can be decoded");
        assert_eq!(again, batch, "a batch changed on its way");
    }
    if let Ok(info) = decode_info(&body) {
        let again = encode_info(&info).expect("it came in a frame");
        assert_eq!(
            decode_info(&aligned(&again[codec::HEADER_LEN..])),
            Ok(info),
            "an info changed on its way"
        );
    }
}

fn frames() -> Vec<Vec<u8>> {
    let request =
        |id, request| PeerMessage::Request { id, remaining_ns: 1_000_000, origin: NodeId(0), request };
    let put = floe_shard::encode_put(1, b"key", b"value").expect("a small put");
    let query =
        Query::Scan { start: "a".into(), end: "b".into(), limit: 3, bytes_max: 9, reverse: true, view: None };
    let consistency = Consistency::Stale { max: Duration::from_secs(3) };
    let read = Request::Read { shard: ShardId(2), range_epoch: 1, query, consistency };
    let messages = vec![request(1, Request::Write { shard: ShardId(1), command: put }), request(2, read)];
    let batch = PeerBatch { messages, ..PeerBatch::default() };
    let nodes = MapInfo { nodes: vec![1], addresses: vec!["host:1".into()], ..MapInfo::default() };
    let infos = [Info::AskMap { known: 3 }, Info::Map(nodes), Info::Status(NodeStatus::default())];
    let infos = infos.iter().map(|info| encode_info(info).expect("it is small"));
    infos.chain([on_the_wire(&batch)]).collect()
}

/// What both ends of a connection say first.
pub fn hello(bytes: &[u8]) {
    let Some(bytes) = bytes.first_chunk::<HELLO_LEN>() else { return };
    if let Ok(hello) = Hello::parse(bytes) {
        assert_eq!(Hello::parse(&hello.encode()), Ok(hello), "a hello changed on its way");
    }
}

/// A record of the log, whose length and checksum are made right; seed 0 leaves the bare CRC.
pub fn wal_record(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(RECORD_HEAD).next_multiple_of(8), 0);
    let len = u32::try_from(bytes.len()).expect("an input is short");
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    let crc = codec::checksum(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    match parse_item(&bytes, 0) {
        Err(_) | Ok((Item::Skipped, ..)) => {}
        // Nobody writes a record of no entries.
        Ok((Item::Record(Record::Entries { entries, .. }), ..)) if entries.is_empty() => {}
        Ok((item, _, read)) => {
            assert_eq!(read, bytes.len());
            let mut again = vec![0; item_len(&item)];
            encode_item(&item, 0, &mut again);
            let (back, ..) = parse_item(&again, 0).expect("what was encoded can be parsed");
            assert_eq!(back, item, "a record changed on its way");
        }
    }
}

fn wal_records() -> Vec<Vec<u8>> {
    let (shard, replica) = (ShardId(3), ReplicaId::new(4).expect("it isn't 0"));
    let entry = |index| Entry {
        mark: Mark::new(2, index),
        kind: EntryKind::Command,
        version: 1,
        data: Bytes::from_static(b"0123456789"),
    };
    let hard_state = HardState { term: 2, vote: Some(replica), commit: 6 };
    let state = ShardState {
        shard,
        replica,
        home_epoch: 1,
        descriptor: a_descriptor().encode(),
        hard_state,
        flushed: Mark::new(1, 4),
        generation: 2,
        entries: vec![entry(5), entry(6)],
        lowest_replica: 4,
    };
    let part = floe::wal::record::ResetPart { state, id: 1, part: 0, last: true };
    let (mark, descriptor) = (Mark::new(2, 9), a_descriptor().encode());
    let records = [
        Record::Entries { shard, replica, entries: vec![entry(7), entry(8)] },
        Record::HardState { shard, replica, state: hard_state },
        Record::TruncatePrefix { shard, replica, flushed: mark, generation: 3 },
        Record::SnapshotInstall { shard, replica, mark, generation: 4, descriptor, keep_suffix: true },
        Record::ShardTombstone { shard, lowest_replica: 9 },
        Record::Promise { largest_ns: 5 },
    ];
    let items = records.map(Item::Record).into_iter().chain([Item::Reset(Box::new(part)), Item::Seal]);
    let encoded = items.map(|item| {
        let mut bytes = vec![0; item_len(&item)];
        encode_item(&item, 0, &mut bytes);
        bytes
    });
    encoded.collect()
}

/// The file that says whose directory it is.
pub fn boot_record(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    let _ = BootRecord::decode(&bytes);
    if let Some(body) = bytes.len().checked_sub(4) {
        let crc = codec::checksum(&bytes[..body]);
        bytes[body..].copy_from_slice(&crc.to_le_bytes());
    }
    if let Ok(record) = BootRecord::decode(&bytes) {
        assert_eq!(BootRecord::decode(&record.encode()), Ok(record), "a boot record changed on its way");
    }
}

fn a_boot_record() -> BootRecord {
    let sets = vec![StreamSet { first: 1, cores: 2 }, StreamSet { first: 3, cores: 1 }];
    BootRecord {
        cluster: 1,
        node: NodeId(2),
        store_uuid: 3,
        boot_epoch: 4,
        settled: true,
        founding: Founding { members: vec![NodeId(2)], shards: 4, replication: 1 },
        sets,
    }
}

/// A dump, or the descriptor of a shard. A dump's checksum is kept: whatever is changed of one must be found.
pub fn dump(bytes: &[u8]) {
    if let Ok((head, body)) = open_dump(&Bytes::copy_from_slice(bytes)) {
        assert_eq!(encode_dump(&head, &body), bytes, "a changed dump was accepted");
    }
    if let Ok(descriptor) = Descriptor::decode(bytes) {
        assert_eq!(
            Descriptor::decode(&descriptor.encode()),
            Ok(descriptor),
            "a descriptor changed on its way"
        );
    }
}

fn a_descriptor() -> Descriptor {
    pre_split(&[NodeId(1), NodeId(2), NodeId(3)], 2, 3).remove(1)
}

fn a_dump() -> Vec<u8> {
    let descriptor = a_descriptor();
    let membership = descriptor.membership();
    let head = DumpHead { shard: descriptor.shard, mark: Mark::new(3, 9), descriptor, membership };
    encode_dump(&head, &Bytes::from_static(b"any body"))
}

/// A command of the built-in state machine, as a caller or a log holds it.
pub fn command(bytes: &[u8]) {
    let bytes = aligned(bytes);
    if let Some((_, payload)) = split_head(&bytes) {
        let _ = with_command(payload, |command| check_limits(command).is_ok());
    }
}

fn commands() -> Vec<Vec<u8>> {
    let mut batch = WriteBatch::new();
    batch.if_equals("k", "v").if_absent("n").if_version("w", 9);
    batch.put("a", "value").delete("b").delete_range("c", "d");
    let bytes = floe_shard::encode(&batch, 1).expect("a small batch");
    assert!(bytes.len() > COMMAND_HEAD_BYTES);
    vec![bytes.to_vec()]
}

/// A node's settings.
pub fn settings(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = config_file::parse(text) else { return };
    let _ = config.validate();
    let again = config_file::parse(&config_file::explain(&config)).expect("what is printed can be read");
    assert_eq!(format!("{again:?}"), format!("{config:?}"), "printing changed a setting");
}

fn all_settings() -> Vec<Vec<u8>> {
    let mut other: Config = config_file::defaults();
    other.cluster = u128::MAX;
    other.quiet_after = Duration::MAX;
    other.wal.stuck_after = Some(Duration::from_millis(700));
    [config_file::defaults(), other].map(|config| config_file::explain(&config).into_bytes()).into()
}

/// A line of a file to import, in each format.
pub fn rows(bytes: &[u8]) {
    for (format, key, value) in [(Format::Tsv, "1", "2"), (Format::Ndjson, "key", "value")] {
        for value in [Some(value), None] {
            let (key, value) = (key.to_owned(), value.map(str::to_owned));
            let shape = Shape { format, key, value, escaped: true };
            let Ok((key, value)) = shape.row(bytes) else { continue };
            let written = line(format, &key, &value);
            let body = written.strip_suffix('\n').expect("a line has an end");
            let shape =
                Shape { value: Some(["2", "value"][usize::from(format == Format::Ndjson)].into()), ..shape };
            assert_eq!(shape.row(body.as_bytes()), Ok((key, value)), "a row changed on its way");
        }
    }
}

fn all_rows() -> Vec<Vec<u8>> {
    let nasty: Vec<u8> = (0..=255).collect();
    let of = |format| [line(format, b"key", b"a value"), line(format, &nasty, b"\t\\")];
    [Format::Tsv, Format::Ndjson].into_iter().flat_map(of).map(|line| line.trim_end().into()).collect()
}

/// A history to be judged, in EDN or JSON.
pub fn history(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for model in [Model::Register, Model::Map] {
        if let Ok(history) = History::read(text, model) {
            let _ = history.summary();
        }
    }
}

fn histories() -> Vec<Vec<u8>> {
    [
        "{:process 0, :type :invoke, :f :write, :value 3}\n{:process 0, :type :ok, :f :write, :value 3}\n\
         {:process 1, :type :invoke, :f :read, :value nil}\n{:process 1, :type :ok, :f :read, :value 3}\n",
        "[{:process 0 :type :invoke :f :cas :value [0 3]} {:process 0 :type :info :f :cas :value [0 3]}]",
        "{\"process\": 0, \"type\": \"invoke\", \"f\": \"put\", \"key\": \"a\", \"value\": \"x\"}\n\
         {\"process\": 0, \"type\": \"ok\", \"f\": \"put\", \"key\": \"a\", \"value\": \"x\"}\n",
        "#_ {:a #{1 2}} ;; a comment\n[]",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
