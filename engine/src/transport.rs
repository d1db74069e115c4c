//! How cores of different nodes come to be connected: the hello that both sides exchange before the first frame.
//!
//! One TCP connection per core pair. The node with the lower id connects ([`Dialer`]), the other one
//! accepts ([`Acceptor`]); both exchange hellos with blocking calls on threads of their own, under a time
//! limit, and hand the socket to its core ([`crate::mailbox::Control::Accepted`]). With equal core counts
//! core i talks only to core i; otherwise every core of one node connects to every core of the other.
//!
//! ```text
//! hello, 80 bytes, little-endian        reply, 256 bytes
//!  0  magic "FLOEHELO"     8             0  magic "FLOEREPL"              8
//!  8  protocol min, max    2 + 2         8  code, 0 = accepted            2
//! 12  core, cores          2 + 2        10  length of the text            2
//! 16  target core          2            12  the acceptor's hello         80
//! 18  kind                 1            92  text, padded with 0         160
//! 19  reserved, 0          5           252  CRC-32C of 0..252             4
//! 24  node                 8
//! 32  cluster             16
//! 48  store uuid          16
//! 64  boot epoch           8
//! 72  reserved, 0          4
//! 76  CRC-32C of 0..76     4
//! ```
//!
//! A *client* (kind 1) may connect to any node. It has no node id, store, or boot epoch (all 0), and may leave the cluster
//! open (0): the reply names it. Its connection stays with the node's [`Gateway`](crate::gateway::Gateway).
//!
//! A node's store never changes: both ends hold it against the one before (`peer_stores.rs`).
//!
//! Invariants: nothing that a stranger sends makes a parser panic or allocate; a silent stranger holds a place
//! for [`HELLO_TIMEOUT`] at the most.

mod acceptor;
mod dialer;
mod peer_stores;
#[cfg(test)]
mod tests;

pub use acceptor::Acceptor;
pub(crate) use dialer::connect;
pub use dialer::{DialError, DialSetup, Dialer};
pub use peer_stores::PeerStores;

use crate::codec::{PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, checksum};
use floe_shard::NodeId;
use std::io::{self, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Bytes of a hello.
pub const HELLO_LEN: usize = 80;
/// Bytes of a reply to a hello.
pub const REPLY_LEN: usize = 256;
/// For how long a hello or a reply is waited for, as a whole.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// More cores than this are not believed: a node connects to each of them.
const CORES_MAX: u16 = 1024;
const HELLO_MAGIC: [u8; 8] = *b"FLOEHELO";
const REPLY_MAGIC: [u8; 8] = *b"FLOEREPL";
const REPLY_HELLO_AT: usize = 12;
const TEXT_AT: usize = REPLY_HELLO_AT + HELLO_LEN;
const TEXT_LEN: usize = 160;

const _: () = assert!(TEXT_AT + TEXT_LEN + 4 == REPLY_LEN, "the reply is drawn at the top of this file");

/// What is at the sender's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HelloKind {
    /// A core of a node.
    Core = 0,
    /// A client.
    Client = 1,
}

/// What the two ends of a new connection tell each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest protocol version the sender speaks.
    pub protocol_min: u16,
    /// Newest protocol version the sender speaks.
    pub protocol_max: u16,
    /// Core or client.
    pub kind: HelloKind,
    /// The cluster.
    pub cluster: u128,
    /// The sender's node.
    pub node: NodeId,
    /// The sender's data directory.
    pub store_uuid: u128,
    /// The sender's core.
    pub core: u16,
    /// How many cores the sender's node has.
    pub cores: u16,
    /// The receiver's core.
    pub target_core: u16,
    /// Boot epoch of the sender's node.
    pub boot_epoch: u64,
}

/// Why a hello was turned down. The number is part of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RefusalCode {
    /// The nodes belong to different clusters.
    WrongCluster = 1,
    /// No protocol version in common.
    Version = 2,
    /// The acceptor doesn't know the sender's node id.
    UnknownNode = 3,
    /// The sender claims the acceptor's own node id.
    OwnNode = 4,
    /// The acceptor has no such core.
    NoSuchCore = 5,
    /// Another node, or the acceptor itself, has the sender's store: a copied data directory.
    DuplicateStore = 6,
    /// The sender has the higher node id: it should be the one that accepts.
    WrongDirection = 7,
    /// The acceptor is stopping, or can't note the sender's store.
    NotReady = 8,
    /// The acceptor serves as many clients as it may.
    ManyClients = 9,
    /// The sender's node had another store before: its disk was lost, or its directory is the wrong one.
    OtherStore = 10,
}

impl RefusalCode {
    fn from_u16(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::WrongCluster,
            2 => Self::Version,
            3 => Self::UnknownNode,
            4 => Self::OwnNode,
            5 => Self::NoSuchCore,
            6 => Self::DuplicateStore,
            7 => Self::WrongDirection,
            8 => Self::NotReady,
            9 => Self::ManyClients,
            10 => Self::OtherStore,
            _ => return None,
        })
    }
}

/// The answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HelloReply {
    /// Frames may follow. The acceptor's hello.
    Accepted(Hello),
    /// The connection is closed after this.
    Refused {
        /// Why.
        code: RefusalCode,
        /// In words; at most 160 bytes travel.
        text: String,
    },
}

/// Why bytes are not a hello or a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Somebody else's protocol.
    #[error("not a floe hello")]
    Magic,
    /// Damaged.
    #[error("a hello with a wrong checksum")]
    Checksum,
    /// A field has a value that makes no sense.
    #[error("a hello with an invalid {0}")]
    Field(&'static str),
}

/// Who this node is, for its hellos; known in full when its boot record is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloIdentity {
    /// The cluster.
    pub cluster: u128,
    /// This node.
    pub node: NodeId,
    /// Its data directory.
    pub store_uuid: u128,
    /// Higher at every start.
    pub boot_epoch: u64,
    /// Its cores.
    pub cores: u16,
}

impl HelloIdentity {
    /// The hello of one of its cores to a core of another node.
    pub fn hello(&self, core: u16, target_core: u16) -> Hello {
        Hello {
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION,
            kind: HelloKind::Core,
            cluster: self.cluster,
            node: self.node,
            store_uuid: self.store_uuid,
            core,
            cores: self.cores,
            target_core,
            boot_epoch: self.boot_epoch,
        }
    }
}

impl Hello {
    /// A client's; `cluster` 0 = whichever it is.
    pub fn of_client(cluster: u128) -> Self {
        Self {
            protocol_min: PROTOCOL_VERSION_MIN,
            protocol_max: PROTOCOL_VERSION,
            kind: HelloKind::Client,
            cluster,
            node: NodeId(0),
            store_uuid: 0,
            core: 0,
            cores: 1,
            target_core: 0,
            boot_epoch: 0,
        }
    }

    /// The newest protocol version that both sides speak.
    pub fn common_version(&self, other: &Self) -> Option<u16> {
        let newest = self.protocol_max.min(other.protocol_max);
        (newest >= self.protocol_min.max(other.protocol_min)).then_some(newest)
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut out = [0; HELLO_LEN];
        out[..8].copy_from_slice(&HELLO_MAGIC);
        out[8..10].copy_from_slice(&self.protocol_min.to_le_bytes());
        out[10..12].copy_from_slice(&self.protocol_max.to_le_bytes());
        out[12..14].copy_from_slice(&self.core.to_le_bytes());
        out[14..16].copy_from_slice(&self.cores.to_le_bytes());
        out[16..18].copy_from_slice(&self.target_core.to_le_bytes());
        out[18] = self.kind as u8;
        out[24..32].copy_from_slice(&self.node.0.to_le_bytes());
        out[32..48].copy_from_slice(&self.cluster.to_le_bytes());
        out[48..64].copy_from_slice(&self.store_uuid.to_le_bytes());
        out[64..72].copy_from_slice(&self.boot_epoch.to_le_bytes());
        let crc = checksum(&out[..76]);
        out[76..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a hello.
    ///
    /// # Errors
    /// If these are not the bytes of one.
    pub fn parse(bytes: &[u8; HELLO_LEN]) -> Result<Self, HelloError> {
        if bytes[..8] != HELLO_MAGIC {
            return Err(HelloError::Magic);
        }
        if field(bytes, 76) != checksum(&bytes[..76]).to_le_bytes() {
            return Err(HelloError::Checksum);
        }
        let hello = Self {
            protocol_min: u16::from_le_bytes(field(bytes, 8)),
            protocol_max: u16::from_le_bytes(field(bytes, 10)),
            core: u16::from_le_bytes(field(bytes, 12)),
            cores: u16::from_le_bytes(field(bytes, 14)),
            target_core: u16::from_le_bytes(field(bytes, 16)),
            kind: match bytes[18] {
                0 => HelloKind::Core,
                1 => HelloKind::Client,
                _ => return Err(HelloError::Field("kind")),
            },
            node: NodeId(u64::from_le_bytes(field(bytes, 24))),
            cluster: u128::from_le_bytes(field(bytes, 32)),
            store_uuid: u128::from_le_bytes(field(bytes, 48)),
            boot_epoch: u64::from_le_bytes(field(bytes, 64)),
        };
        if hello.protocol_min > hello.protocol_max {
            return Err(HelloError::Field("protocol version range"));
        }
        if hello.core >= hello.cores || hello.cores > CORES_MAX {
            return Err(HelloError::Field("core"));
        }
        if (hello.node.0 == 0) != (hello.kind == HelloKind::Client) {
            return Err(HelloError::Field("node id"));
        }
        Ok(hello)
    }
}

/// `N` bytes at `at`; both are constants of the layout.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

impl HelloReply {
    /// Its bytes; a text that is too long is cut.
    pub fn encode(&self) -> [u8; REPLY_LEN] {
        let mut out = [0; REPLY_LEN];
        out[..8].copy_from_slice(&REPLY_MAGIC);
        match self {
            Self::Accepted(hello) => {
                out[REPLY_HELLO_AT..TEXT_AT].copy_from_slice(&hello.encode());
            }
            Self::Refused { code, text } => {
                let text = &text.as_bytes()[..text.floor_char_boundary(TEXT_LEN)];
                out[8..10].copy_from_slice(&(*code as u16).to_le_bytes());
                out[10..12].copy_from_slice(&(text.len() as u16).to_le_bytes());
                out[TEXT_AT..TEXT_AT + text.len()].copy_from_slice(text);
            }
        }
        let crc = checksum(&out[..REPLY_LEN - 4]);
        out[REPLY_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// If these are not the bytes of one.
    pub fn parse(bytes: &[u8; REPLY_LEN]) -> Result<Self, HelloError> {
        if bytes[..8] != REPLY_MAGIC {
            return Err(HelloError::Magic);
        }
        if field(bytes, REPLY_LEN - 4) != checksum(&bytes[..REPLY_LEN - 4]).to_le_bytes() {
            return Err(HelloError::Checksum);
        }
        let code = u16::from_le_bytes(field(bytes, 8));
        if code == 0 {
            return Ok(Self::Accepted(Hello::parse(&field(bytes, REPLY_HELLO_AT))?));
        }
        let code = RefusalCode::from_u16(code).ok_or(HelloError::Field("refusal code"))?;
        let len = usize::from(u16::from_le_bytes(field(bytes, 10)));
        let text = bytes[TEXT_AT..TEXT_AT + TEXT_LEN].get(..len);
        let text = text.ok_or(HelloError::Field("length of the text"))?;
        Ok(Self::Refused { code, text: String::from_utf8_lossy(text).into_owned() })
    }
}

/// Reads exactly `N` bytes within `limit`, however slowly they trickle in.
fn read_within<const N: usize>(socket: &TcpStream, limit: Duration) -> io::Result<[u8; N]> {
    let until = Instant::now() + limit;
    let mut bytes = [0; N];
    let mut have = 0;
    let mut socket = socket;
    while have < N {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no whole hello within the time limit"));
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut bytes[have..]) {
            Ok(0) => {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before a whole hello"));
            }
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Before a socket goes to its core: no time limits of the hello's.
fn hand_over(socket: TcpStream) -> io::Result<std::os::fd::OwnedFd> {
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)?;
    socket.set_nodelay(true)?;
    Ok(socket.into())
}
