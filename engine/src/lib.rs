//! Floe: a multi-Raft sharded storage engine, to build a distributed database on.
//!
//! A node is one [`Engine`] on one directory. Its key space is divided into shards; each shard is a Raft
//! group of its own, replicated on up to as many nodes as it has replicas. A node has one or more cores, each
//! a thread that owns some of the shards and one write-ahead log for all of them.
//!
//! ```no_run
//! use floe::{Config, Engine};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::open(Config::embedded("data"))?;
//! let client = engine.client();
//! client.put_blocking("ice/floe", "drifts")?;
//! assert_eq!(client.get_blocking("ice/floe")?.as_deref(), Some(&b"drifts"[..]));
//! engine.shutdown();
//! # Ok(())
//! # }
//! ```
//!
//! The same call opens a member of a cluster ([`Config::member`]). A [`Client`] works on any thread and any
//! async runtime; every call has a form that is a plain future and one that blocks.
//!
//! # What is promised
//! - An acknowledged write is durable on a majority of its shard's replicas, and survives any minority
//!   of them failing in any way, and the power failing on all of them at once.
//! - Reads see every write that was acknowledged before they began, unless [`Consistency::Stale`] is asked for by name;
//!   [`Consistency::LinearizableLocal`] reads this node's own replica. A scan is one snapshot per shard.
//! - An error says whether the write surely didn't happen ([`WriteError::is_surely_not_done`]) or may have.
//! - Every queue has a bound; at the bound a call is refused at once as `Busy`.
//! - Corruption is reported by file, offset and shard, never served and never cut away in silence.
//!
//! # Reading the code
//! ARCHITECTURE.md has the map. In short: [`client`] posts into a core's [`mailbox`]; a [`driver`] carries
//! inputs to the core's [`worker::Worker`] and its effects to the disk and the network, across the
//! [`seam`]; a turn of the worker ([`running`]) steps the replicas (crate `floe-shard`), writes one frame
//! to the [`wal`], and sends one frame ([`codec`]) per peer.

#![deny(unsafe_code)]

pub mod boot;
pub mod client;
pub mod clock;
pub mod codec;
pub mod config;
#[cfg(feature = "cli")]
pub mod config_file;
mod connections;
pub mod disk;
mod disk_watch;
pub mod driver;
pub mod dumps;
pub mod engine;
pub mod error;
pub(crate) mod frames;
pub mod gateway;
pub mod held_views;
pub mod mailbox;
pub mod metrics;
pub mod offline;
pub mod probe;
pub(crate) mod promise;
pub mod read_cell;
pub mod remote;
pub mod requests;
mod restore;
pub mod routing;
#[cfg(feature = "cli")]
pub mod rows;
pub mod running;
pub mod scan;
pub mod seam;
pub mod settle;
pub mod start;
pub mod store;
pub mod transport;
pub mod wal;
pub mod worker;

pub use client::{Call, Client};
pub use codec::{CoreStatus, MapInfo, NodeStatus, ReplicaStatus};
pub use config::{Config, LsmSettings, Member, Store, WalSettings};
pub use driver::Driver;
pub use engine::Engine;
pub use error::{OpenError, ReadError, TransferError, WriteError, WriteOutcome};
pub use metrics::Metrics;
pub use remote::ConnectError;
pub use scan::{Pages, ScanOptions};
pub use seam::StartReport;
pub use worker::MachineFactory;

pub use floe_raft::{ConfigError, Mark};
pub use floe_shard::descriptor::{Descriptor, KeyRange};
pub use floe_shard::request::{
    BusyReason, Consistency, MEMBER_CHANGES_MAX, MemberChange, Query, Row, Seat, UnknownReason, Versioned,
};
pub use floe_shard::state_machine;
pub use floe_shard::{
    BATCH_BYTES_MAX, CommandError, KEY_BYTES_MAX, NodeId, ShardId, VALUE_BYTES_MAX, WriteBatch,
};
