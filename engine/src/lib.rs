//! Floe: a multi-Raft sharded storage engine.

#![deny(unsafe_code)]

pub mod boot;
pub mod client;
pub mod clock;
pub mod codec;
pub mod config;
pub mod disk;
pub mod driver;
pub mod dumps;
pub mod engine;
pub mod error;
pub mod mailbox;
pub mod metrics;
pub mod probe;
pub mod requests;
pub mod routing;
pub mod running;
pub mod seam;
pub mod settle;
pub mod start;
pub mod transport;
pub mod wal;
pub mod worker;

pub use client::{Call, Client, ScanOptions};
pub use config::{Config, Member, WalSettings};
pub use engine::Engine;
pub use error::{OpenError, ReadError, WriteError, WriteOutcome};
pub use metrics::Metrics;
pub use seam::StartReport;
pub use worker::MachineFactory;

pub use floe_raft::ConfigError;
pub use floe_shard::descriptor::{Descriptor, KeyRange};
pub use floe_shard::request::{BusyReason, Consistency, Row, UnknownReason, Versioned};
pub use floe_shard::state_machine;
pub use floe_shard::{CommandError, NodeId, ShardId, WriteBatch};
