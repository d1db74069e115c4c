//! The boot record: who a data directory belongs to, and which WAL streams it has.
//!
//! One small file, `node.floe`, replaced atomically at each start (temporary name, rename, directory
//! sync). Core 0 reads and writes it before any core recovers, and once more when every core has
//! settled. Layout, little-endian:
//!
//! ```text
//! +-----------+---------+---------+-----------+------------+------------+-------------+-------------+
//! | magic  8  | ver. 4  | flags 4 | cluster 16| node 8     | store  16  | boot epoch 8| sets 4      |
//! +-----------+---------+---------+-----------+------------+------------+-------------+-------------+
//! | members 4 | shards 4 | replication 4 | per set: first stream 4, cores 2, 0 2  ...               |
//! +-----------+----------+---------------+----------------------------------------------------------+
//! | per member: node 8  ...                                             | CRC-32C of all before  4  |
//! +---------------------------------------------------------------------+---------------------------+
//! ```
//!
//! Flag bit 0: *settled once*: every bootstrap shard stands in the log. From then on a missing
//! stream is a lost disk, never a new node.

use crate::disk::{
    DirEntry, DiskCall, DiskCalls, DiskDone, DiskError, DiskErrorKind, DiskResult, OpId, OpOwner,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, checksum};
use floe_shard::NodeId;
use std::fmt;

const MAGIC: &[u8; 8] = b"FLOENODE";
const VERSION: u32 = 2;
const FLAG_SETTLED: u32 = 1;
const FILE: &str = "node.floe";
const FILE_NEW: &str = "node.floe.new";
const FILE_LEN_MAX: usize = 64 << 10;
/// What is left to whoever can't get lost data back. An empty directory under the same number would forget its votes.
pub(crate) const WITHOUT_IT: &str = "Without it this node must stay down: `floe evict` takes it out of all shards. Then \
                                     it can start with an empty directory, and `floe admit` gives it the others' data";

/// The streams of one core count. The stream of core `i` is `first + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSet {
    /// Id of core 0's stream; ids are never reused.
    pub first: u32,
    /// How many.
    pub cores: u16,
}

impl StreamSet {
    /// Ids of the set's streams.
    pub fn ids(&self) -> impl Iterator<Item = u32> + use<> {
        let first = self.first;
        (0..u32::from(self.cores)).map(move |core| first + core)
    }
}

/// A cluster's number as settings have it: in decimal if it fits there, else in hexadecimal.
pub(crate) fn cluster_text(number: u128) -> String {
    if i64::try_from(number).is_ok() { number.to_string() } else { format!("{number:#x}") }
}

/// What the shards of a new cluster are made from. Another one would found other shards, so it never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founding {
    /// All nodes, ascending.
    pub members: Vec<NodeId>,
    /// How many shards.
    pub shards: u32,
    /// Replicas of each.
    pub replication: u32,
}

impl fmt::Display for Founding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { members, shards, replication } = self;
        let members: Vec<String> = members.iter().map(NodeId::to_string).collect();
        write!(f, "members {}, {shards} shards, {replication} replicas of each", members.join(" "))
    }
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootRecord {
    /// The cluster it belongs to.
    pub cluster: u128,
    /// The node it belongs to.
    pub node: NodeId,
    /// What its shards were made from.
    pub founding: Founding,
    /// Made at the first start; every segment of the log bears it.
    pub store_uuid: u128,
    /// Raised at every start; higher than any stream's, and durable before anything is sent.
    pub boot_epoch: u64,
    /// Whether all bootstrap shards are in the log.
    pub settled: bool,
    /// Oldest first; the last one is in use, the others await their removal.
    pub sets: Vec<StreamSet>,
}

impl BootRecord {
    /// The set in use.
    pub fn current(&self) -> StreamSet {
        *self.sets.last().expect("a record has at least one set: both ways to make one add it")
    }

    /// Sets of other core counts that may still hold something.
    pub fn old_sets(&self) -> &[StreamSet] {
        &self.sets[..self.sets.len() - 1]
    }

    /// The file's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(128);
        out.put_slice(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(if self.settled { FLAG_SETTLED } else { 0 });
        out.put_u128_le(self.cluster);
        out.put_u64_le(self.node.0);
        out.put_u128_le(self.store_uuid);
        out.put_u64_le(self.boot_epoch);
        out.put_u32_le(u32::try_from(self.sets.len()).expect("sets are dropped at each settling"));
        let Founding { members, shards, replication } = &self.founding;
        out.put_u32_le(u32::try_from(members.len()).expect("each member is in the configuration"));
        out.put_u32_le(*shards);
        out.put_u32_le(*replication);
        for set in &self.sets {
            out.put_u32_le(set.first);
            out.put_u16_le(set.cores);
            out.put_u16_le(0);
        }
        members.iter().for_each(|member| out.put_u64_le(member.0));
        out.put_u32_le(crc(&out));
        out.freeze()
    }

    /// Reads a file's bytes. Never panics.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        const FIXED: usize = 8 + 4 + 4 + 16 + 8 + 16 + 8 + 4 + 4 + 4 + 4;
        if bytes.len() < FIXED + 4 || !bytes.starts_with(MAGIC) {
            return Err("it is not a Floe boot record".into());
        }
        let (body, mut tail) = bytes.split_at(bytes.len() - 4);
        if tail.get_u32_le() != crc(body) {
            return Err("its checksum is wrong".into());
        }
        let mut rest = &body[8..];
        let version = rest.get_u32_le();
        if version != VERSION {
            return Err(format!("its format version is {version}; this build knows {VERSION}"));
        }
        let settled = rest.get_u32_le() & FLAG_SETTLED != 0;
        let (cluster, node) = (rest.get_u128_le(), NodeId(rest.get_u64_le()));
        let (store_uuid, boot_epoch) = (rest.get_u128_le(), rest.get_u64_le());
        let (count, members) = (rest.get_u32_le() as usize, rest.get_u32_le() as usize);
        let (shards, replication) = (rest.get_u32_le(), rest.get_u32_le());
        if count == 0 || rest.len() != (count + members) * 8 {
            return Err(format!(
                "it claims {count} stream sets and {members} members in {} bytes",
                rest.len()
            ));
        }
        let mut sets = Vec::with_capacity(count);
        for _ in 0..count {
            sets.push(StreamSet { first: rest.get_u32_le(), cores: rest.get_u16_le() });
            rest.advance(2);
        }
        let members = (0..members).map(|_| NodeId(rest.get_u64_le())).collect();
        let founding = Founding { members, shards, replication };
        Ok(Self { cluster, node, founding, store_uuid, boot_epoch, settled, sets })
    }
}

fn crc(bytes: &[u8]) -> u32 {
    u32::try_from(checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("a CRC-32 has 32 bits")
}

/// Who opens the directory.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The cluster it must belong to.
    pub cluster: u128,
    /// The node it must belong to.
    pub node: NodeId,
    /// What its shards must have been made from.
    pub founding: Founding,
    /// Cores it is opened with.
    pub cores: u16,
    /// Taken if the directory is new.
    pub new_store_uuid: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    ListRoot,
    ListTrees,
    ReadRecord,
    ListWal,
    Save,
    Rename,
    Sync,
    Done,
}

/// Reads, checks, raises and rewrites the boot record; run by core 0.
pub struct Boot {
    identity: Identity,
    step: Step,
    record: Option<BootRecord>,
}

impl Boot {
    /// Begins a start.
    pub fn new(identity: Identity, calls: &mut DiskCalls) -> Self {
        let mut boot = Self { identity, step: Step::ListRoot, record: None };
        boot.issue(Step::ListRoot, DiskCall::List { dir: "".into() }, calls);
        boot
    }

    /// Rewrites the record once every core has settled: old sets are forgotten.
    pub fn settle(record: &BootRecord, calls: &mut DiskCalls) -> Self {
        let settled = BootRecord { settled: true, sets: vec![record.current()], ..record.clone() };
        let identity = Identity {
            cluster: record.cluster,
            node: record.node,
            founding: record.founding.clone(),
            cores: record.current().cores,
            new_store_uuid: record.store_uuid,
        };
        let mut boot = Self { identity, step: Step::Save, record: Some(settled) };
        boot.save(calls);
        boot
    }

    /// Takes a call's outcome. `Some` = the record is durable.
    ///
    /// # Errors
    /// The directory can't be used: a sentence that says why and what to do.
    pub fn on_disk(
        &mut self,
        result: DiskResult,
        calls: &mut DiskCalls,
    ) -> Result<Option<BootRecord>, String> {
        let done = result.map_err(|error| self.explain(&error))?;
        match (self.step, done) {
            (Step::ListRoot, DiskDone::Listed(entries)) => self.on_root(&entries, calls)?,
            // Opening the store makes its directory; what is in it is data.
            (Step::ListTrees, DiskDone::Listed(trees)) if trees.is_empty() => self.begin(calls),
            (Step::ListTrees, DiskDone::Listed(_)) => return Err(lost("store")),
            (Step::ReadRecord, DiskDone::Read(bytes)) => {
                let record =
                    BootRecord::decode(&bytes).map_err(|why| format!("{FILE} can't be used: {why}"))?;
                self.check(&record)?;
                self.record = Some(record);
                self.issue(Step::ListWal, DiskCall::List { dir: "wal".into() }, calls);
            }
            (Step::ListWal, DiskDone::Listed(entries)) => {
                let record = self.record.take().expect("read in the step before");
                Self::check_streams(&record, |name| entries.iter().any(|entry| entry.name == name))?;
                self.record = Some(self.raise(record));
                self.save(calls);
            }
            (Step::Save, DiskDone::Saved(_)) => {
                let call = DiskCall::Rename { from: FILE_NEW.into(), to: FILE.into() };
                self.issue(Step::Rename, call, calls);
            }
            (Step::Rename, DiskDone::Done) => {
                self.issue(Step::Sync, DiskCall::SyncDir { dir: "".into() }, calls)
            }
            (Step::Sync, DiskDone::Done) => {
                self.step = Step::Done;
                return Ok(self.record.take());
            }
            (step, done) => panic!("boot step {step:?} got {done:?}"),
        }
        Ok(None)
    }

    /// Without a boot record the directory must hold nothing: it may be a new node's, or a disk isn't mounted.
    fn on_root(&mut self, entries: &[DirEntry], calls: &mut DiskCalls) -> Result<(), String> {
        let has_dir = |name: &str| entries.iter().any(|entry| entry.is_dir && entry.name == name);
        if entries.iter().any(|entry| entry.name == FILE) {
            let call = DiskCall::Read { path: FILE.into(), offset: 0, len: FILE_LEN_MAX };
            self.issue(Step::ReadRecord, call, calls);
        } else if let Some(dir) = ["wal", "dump"].into_iter().find(|dir| has_dir(dir)) {
            return Err(lost(dir));
        } else if has_dir("store") {
            self.issue(Step::ListTrees, DiskCall::List { dir: "store".into() }, calls);
        } else {
            self.begin(calls);
        }
        Ok(())
    }

    /// A new node's first start.
    fn begin(&mut self, calls: &mut DiskCalls) {
        self.record = Some(self.fresh());
        self.save(calls);
    }

    fn issue(&mut self, step: Step, call: DiskCall, calls: &mut DiskCalls) {
        self.step = step;
        calls.push((OpId { owner: OpOwner::Boot, number: step as u64 }, call));
    }

    fn save(&mut self, calls: &mut DiskCalls) {
        let bytes = self.record.as_ref().expect("set before it is saved").encode();
        self.issue(
            Step::Save,
            DiskCall::Save { path: FILE_NEW.into(), data: Box::new(bytes), is_long: false },
            calls,
        );
    }

    fn fresh(&self) -> BootRecord {
        let Identity { cluster, node, founding, cores, new_store_uuid: store_uuid } = self.identity.clone();
        let sets = vec![StreamSet { first: 1, cores }];
        BootRecord { cluster, node, founding, store_uuid, boot_epoch: 1, settled: false, sets }
    }

    fn raise(&self, mut record: BootRecord) -> BootRecord {
        record.boot_epoch += 1;
        let current = record.current();
        if current.cores != self.identity.cores {
            let first = current.first + u32::from(current.cores);
            record.sets.push(StreamSet { first, cores: self.identity.cores });
        }
        record
    }

    fn check(&self, record: &BootRecord) -> Result<(), String> {
        if record.cluster != self.identity.cluster {
            return Err(format!(
                "this directory belongs to cluster {}, not {}: check `cluster` and `dir` in the configuration",
                cluster_text(record.cluster),
                cluster_text(self.identity.cluster)
            ));
        }
        if record.node != self.identity.node {
            return Err(format!(
                "this directory belongs to node {}, not {}: check `node` and `dir` in the configuration",
                record.node.0, self.identity.node.0
            ));
        }
        if record.founding != self.identity.founding {
            return Err(format!(
                "this directory was founded with {}; the configuration says {}. Put that back: a cluster's list of \
                 nodes and its shards don't change. Addresses may, and which nodes have a shard's replicas \
                 (`floe evict`, `floe admit`)",
                record.founding, self.identity.founding
            ));
        }
        Ok(())
    }

    /// Before the first settling a stream may not have been made yet; afterwards each one that could
    /// hold something must be there.
    fn check_streams(record: &BootRecord, exists: impl Fn(&str) -> bool) -> Result<(), String> {
        let needed = match record.old_sets() {
            [] if record.settled => vec![record.current()],
            old if record.settled => vec![old[0]],
            _ => vec![],
        };
        for stream in needed.iter().flat_map(StreamSet::ids) {
            let name = stream_name(stream);
            if !exists(&name) {
                return Err(format!(
                    "the log stream wal/{name} is missing: a disk is lost or not mounted. Mount it. {WITHOUT_IT}"
                ));
            }
        }
        Ok(())
    }

    fn explain(&self, error: &DiskError) -> String {
        let hint = match error.kind {
            DiskErrorKind::Full => "; free some space",
            DiskErrorKind::ReadOnly => "; make it writable for this user",
            DiskErrorKind::NotFound | DiskErrorKind::Io => "",
        };
        format!("can't open the data directory: {error}{hint}")
    }
}

fn lost(dir: &str) -> String {
    format!(
        "{FILE} is missing but `{dir}` is there: part of this node's data is lost or not mounted. Restore it. {WITHOUT_IT}"
    )
}

/// Directory of a stream below `wal/`.
pub fn stream_name(stream: u32) -> String {
    format!("{stream:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> BootRecord {
        BootRecord {
            cluster: 7,
            node: NodeId(3),
            founding: Founding { members: [3, 4, 7].map(NodeId).to_vec(), shards: 8, replication: 2 },
            store_uuid: 9,
            boot_epoch: 4,
            settled: true,
            sets: vec![StreamSet { first: 1, cores: 2 }, StreamSet { first: 3, cores: 4 }],
        }
    }

    #[test]
    fn a_record_survives_its_encoding() {
        assert_eq!(BootRecord::decode(&record().encode()), Ok(record()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = record().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(BootRecord::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(BootRecord::decode(&bytes[..len]).is_err(), "cut at {len}");
        }
    }

    fn boot(change: impl Fn(&mut Identity)) -> Boot {
        let BootRecord { cluster, node, founding, store_uuid: new_store_uuid, .. } = record();
        let mut identity = Identity { cluster, node, founding, cores: 4, new_store_uuid };
        change(&mut identity);
        Boot::new(identity, &mut DiskCalls::default())
    }

    /// A directory with these directories and files below.
    fn listed(names: &[&str]) -> DiskResult {
        let entry = |name: &&str| DirEntry { name: name.to_string(), len: 0, is_dir: !name.contains('.') };
        Ok(DiskDone::Listed(names.iter().map(entry).collect()))
    }

    #[test]
    fn data_without_a_boot_record_is_no_new_node() {
        for dir in ["wal", "dump"] {
            let error = boot(|_| {}).on_disk(listed(&["LOCK.", dir]), &mut DiskCalls::default()).unwrap_err();
            assert!(error.contains(&format!("`{dir}` is there")) && error.contains("stay down"), "{error}");
        }
        let boot_with = |trees: &[&str]| {
            let (mut boot, mut calls) = (boot(|_| {}), DiskCalls::default());
            boot.on_disk(listed(&["store"]), &mut calls)?;
            assert!(matches!(&calls[..], [(_, DiskCall::List { dir })] if &**dir == "store"), "{calls:?}");
            calls.clear();
            boot.on_disk(listed(trees), &mut calls)?;
            assert!(matches!(&calls[..], [(_, DiskCall::Save { .. })]), "{calls:?}");
            Ok::<_, String>(())
        };
        boot_with(&[]).expect("a store that was just opened holds no tree");
        let error = boot_with(&["t1"]).unwrap_err();
        assert!(error.contains("`store` is there"), "{error}");
    }

    /// What a start with another configuration says to the record.
    fn refusal(change: impl Fn(&mut Identity)) -> Option<String> {
        let (mut boot, mut calls) = (boot(change), DiskCalls::default());
        boot.on_disk(listed(&[FILE]), &mut calls).expect("a boot record is there");
        boot.on_disk(Ok(DiskDone::Read(record().encode())), &mut calls).err()
    }

    #[test]
    fn another_list_of_members_or_other_shards_are_refused() {
        assert_eq!(refusal(|_| {}), None);
        assert_eq!(refusal(|identity| identity.cores = 1), None, "cores may change");
        let changes: [fn(&mut Founding); 4] = [
            |founding| founding.members.push(NodeId(8)),
            |founding| {
                founding.members.pop();
            },
            |founding| founding.shards += 1,
            |founding| founding.replication += 1,
        ];
        for change in changes {
            let error = refusal(|identity| change(&mut identity.founding)).expect("another founding");
            assert!(error.contains("founded with members n3 n4 n7, 8 shards, 2 replicas"), "{error}");
        }
    }
}
