//! Which store each peer has: noted durably at its first hello, and never another one afterwards.
//!
//! A node that has lost its disk must not come back under its number with an empty directory: it would be founded anew,
//! and its replicas would have forgotten what they voted for and acknowledged. It can't know that itself, but whoever
//! knew it can, since every new data directory makes itself a store identity. So both ends of a connection hold the
//! other's hello against this list, and refuse a store that isn't the one before.
//!
//! The list is one small file beside `node.floe`, replaced atomically whenever a peer is seen for the first time:
//!
//! ```text
//! +----------+---------+---------+--------------------------------+--------------------------+
//! | magic  8 | ver. 4  | peers 4 | per peer: node 8, store 16 ... | CRC-32C of all before  4 |
//! +----------+---------+---------+--------------------------------+--------------------------+
//! ```
//!
//! Little-endian. Only hellos need it, and their threads may wait for a disk, so it isn't on the core's side of the seam.
//!
//! Whoever has lost a store for good takes its node out of all shards first. Then the list is made to forget it
//! ([`PeerStores::forget`]), and the next store that the node comes with is noted.
//!
//! Invariant: no connection comes about with a peer whose store isn't noted durably.

use super::{Hello, RefusalCode};
use crate::codec::checksum;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use floe_shard::NodeId;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"FLOEPEER";
const VERSION: u32 = 1;
const FILE: &str = "peers.floe";
const FILE_NEW: &str = "peers.floe.new";
const PEER_LEN: usize = 8 + 16;

/// The stores of a node's peers.
#[derive(Debug)]
pub struct PeerStores {
    dir: PathBuf,
    /// What the file says.
    known: Mutex<BTreeMap<NodeId, u128>>,
}

impl PeerStores {
    /// Those that the data directory `dir` knows.
    ///
    /// # Errors
    /// The file is there but can't be used: a sentence that says why and what to do.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let known = match fs::read(dir.join(FILE)) {
            Ok(bytes) => decode(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error.to_string()),
        };
        let explain = |why| {
            format!(
                "{FILE} can't be used: {why}. Restore it; or, if no node has lost its disk, remove it: it is made anew"
            )
        };
        Ok(Self { dir: dir.to_owned(), known: Mutex::new(known.map_err(explain)?) })
    }

    /// Whether the node that says `peer` has the store that it should have; `own` is this node's hello. Waits for the
    /// disk if it is seen for the first time.
    ///
    /// # Errors
    /// Why there can't be a connection.
    pub fn judge(&self, own: &Hello, peer: &Hello) -> Result<(), (RefusalCode, String)> {
        let (node, store) = (peer.node, peer.store_uuid);
        let mut known = self.known.lock();
        let is_its = |(owner, its): &(&NodeId, &u128)| **its == store && **owner != node;
        let owner = known.iter().find(is_its).map(|(owner, _)| *owner);
        if let Some(owner) = owner.or((store == own.store_uuid).then_some(own.node)) {
            let text = format!("store {store:032x} is that of {owner}: was a data directory copied?");
            return Err((RefusalCode::DuplicateStore, text));
        }
        match known.get(&node) {
            Some(before) if *before == store => Ok(()),
            Some(_) => {
                let text = format!(
                    "{node} has another store than before, and forgot its votes. Restore that; if it is lost: `floe \
                     evict {number}`, then `floe admit {number}`",
                    number = node.0
                );
                Err((RefusalCode::OtherStore, text))
            }
            None => {
                let mut next = known.clone();
                next.insert(node, store);
                let noted = self.replace(&mut known, next);
                noted.map_err(|error| {
                    (RefusalCode::NotReady, format!("can't note the store of {node}: {error}"))
                })
            }
        }
    }

    /// Lets `node` come with another store; the next one that it comes with is its store then. **Must:** only if nothing
    /// here depends on what it has promised with the old one.
    ///
    /// # Errors
    /// The disk's; nothing is changed then.
    pub fn forget(&self, node: NodeId) -> io::Result<()> {
        let mut known = self.known.lock();
        let mut next = known.clone();
        match next.remove(&node) {
            Some(_) => self.replace(&mut known, next),
            None => Ok(()),
        }
    }

    fn replace(&self, known: &mut BTreeMap<NodeId, u128>, next: BTreeMap<NodeId, u128>) -> io::Result<()> {
        save(&self.dir, &encode(&next))?;
        *known = next;
        Ok(())
    }
}

fn encode(known: &BTreeMap<NodeId, u128>) -> Bytes {
    let mut out = BytesMut::with_capacity(20 + PEER_LEN * known.len());
    out.put_slice(MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(u32::try_from(known.len()).expect("each peer is in the configuration"));
    for (node, store) in known {
        out.put_u64_le(node.0);
        out.put_u128_le(*store);
    }
    out.put_u32_le(checksum(&out));
    out.freeze()
}

fn decode(bytes: &[u8]) -> Result<BTreeMap<NodeId, u128>, String> {
    let Some((body, mut crc_read)) = bytes.split_last_chunk::<4>().map(|(body, crc)| (body, &crc[..])) else {
        return Err("it is cut off".into());
    };
    if !body.starts_with(MAGIC) || crc_read.get_u32_le() != checksum(body) || body.len() < 16 {
        return Err("it is damaged, or no list of Floe's".into());
    }
    let mut rest = &body[MAGIC.len()..];
    let (version, peers) = (rest.get_u32_le(), rest.get_u32_le() as usize);
    if version != VERSION {
        return Err(format!("its format version is {version}; this build knows {VERSION}"));
    }
    if rest.len() != peers * PEER_LEN {
        return Err(format!("it claims {peers} peers in {} bytes", rest.len()));
    }
    Ok((0..peers).map(|_| (NodeId(rest.get_u64_le()), rest.get_u128_le())).collect())
}

fn save(dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let (new, path) = (dir.join(FILE_NEW), dir.join(FILE));
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::super::HelloIdentity;
    use super::*;

    fn hello(node: u64, store_uuid: u128) -> Hello {
        HelloIdentity { cluster: 1, node: NodeId(node), store_uuid, boot_epoch: 1, cores: 1 }.hello(0, 0)
    }

    fn judge(stores: &PeerStores, node: u64, store: u128) -> Option<RefusalCode> {
        stores.judge(&hello(9, 900), &hello(node, store)).err().map(|(code, _)| code)
    }

    #[test]
    fn a_peer_with_another_store_is_refused_and_a_restart_forgets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let stores = PeerStores::open(dir.path()).unwrap();
        assert_eq!([judge(&stores, 1, 100), judge(&stores, 2, 200), judge(&stores, 1, 100)], [None; 3]);
        for stores in [stores, PeerStores::open(dir.path()).unwrap()] {
            assert_eq!(judge(&stores, 1, 101), Some(RefusalCode::OtherStore));
            assert_eq!(judge(&stores, 3, 200), Some(RefusalCode::DuplicateStore));
            assert_eq!(judge(&stores, 3, 900), Some(RefusalCode::DuplicateStore), "it is our own");
            assert_eq!([judge(&stores, 1, 100), judge(&stores, 2, 200)], [None; 2], "nothing is changed");
        }
    }

    #[test]
    fn a_store_that_is_forgotten_may_be_replaced_once_and_no_other_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let stores = PeerStores::open(dir.path()).unwrap();
        assert_eq!([judge(&stores, 1, 100), judge(&stores, 2, 200)], [None; 2]);
        stores.forget(NodeId(1)).unwrap();
        stores.forget(NodeId(7)).unwrap();
        let stores = PeerStores::open(dir.path()).unwrap();
        assert_eq!(judge(&stores, 2, 201), Some(RefusalCode::OtherStore));
        assert_eq!(judge(&stores, 1, 101), None);
        assert_eq!(judge(&stores, 1, 100), Some(RefusalCode::OtherStore), "that is the one before");
    }

    #[test]
    fn who_cant_be_noted_is_refused_and_heard_again() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let stores = PeerStores::open(&gone).unwrap();
        assert_eq!(judge(&stores, 1, 100), Some(RefusalCode::NotReady));
        fs::create_dir(&gone).unwrap();
        assert_eq!(judge(&stores, 1, 100), None);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let known = BTreeMap::from([(NodeId(1), 5), (NodeId(7), u128::MAX)]);
        let bytes = encode(&known);
        assert_eq!(decode(&bytes), Ok(known));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
        (0..bytes.len()).for_each(|len| assert!(decode(&bytes[..len]).is_err(), "cut at {len}"));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), &bytes[1..]).unwrap();
        assert!(PeerStores::open(dir.path()).unwrap_err().contains(FILE));
    }
}
