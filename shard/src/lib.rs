//! All replicas of one core as one pure state machine: [`MultiRaft`].
//!
//! A *shard* is one key range and one Raft group; a *replica* is its copy on one node; a *core* owns some
//! of its node's replicas. This crate ties the groups of one core together and to their state machines.
//! It does no I/O, reads no clock and starts no thread: inputs are method calls with `now`, outputs
//! are plain data in [`Output`], which the core's worker carries out.
//!
//! # A turn
//!
//! The worker hands in everything that is there ([`MultiRaft::receive`], [`MultiRaft::submit`],
//! [`MultiRaft::persisted`], [`MultiRaft::tick`], ...) and then calls [`MultiRaft::collect`] once: each replica
//! that was touched is stepped once, all their log records form one group commit, and all their messages
//! to one core one [`PeerBatch`]. Nothing else batches, and no timer is needed for it.
//!
//! # The way of a write
//!
//! 1. The caller finds the shard in a [`ShardMap`] and encodes the command ([`encode`], [`encode_put`]), with
//!    the range epoch it went by.
//! 2. [`MultiRaft::submit`] on the leader checks epoch, limits and range, so that what is in a log can be
//!    applied, and proposes. Which request waits for which mark: `proposal.rs`.
//! 3. [`MultiRaft::collect`] hands out the entries for the WAL and, at the same time, the appends for
//!    the followers; those acknowledge when [`MultiRaft::persisted`] has told them that it is durable.
//! 4. Committed, and durable here, it is applied: range epoch, range, conditions, effects, in this order.
//!    Only then is the caller answered: [`Answer::Written`] with the index as the keys' new version.
//!
//! # The way of a read
//!
//! All linearizable reads of one replica that come in between two turns share one ReadIndex round
//! (thesis §6.4): `reads.rs`. Its heartbeats leave with the turn's [`Beat`]; the reads are served once the
//! index is confirmed and applied. A follower or learner asks its leader for the index, once for all of them
//! ([`Consistency::LinearizableLocal`]). Stale reads are served at once, on any replica.
//!
//! # Many groups
//!
//! One beat timer per core and one [`Beat`] per peer core and interval, whatever the number of groups:
//! `heartbeat.rs`. A group with nothing to do costs nothing, not even a row of a beat: `quiescence.rs`.
//! Deadlines in one lazy heap: `timers.rs`. Round-robin with a cap per replica and turn:
//! `ready_queue.rs`, [`ShardConfig::turn_bytes_max`].
//!
//! # Dumps
//!
//! The Raft log is the only journal, and a *dump* is what lets it be cut: `flush.rs`. A follower whose next entry
//! is gone pulls the leader's dump: `transfer.rs`. The file's format: `dump_file.rs`; [`open_dump`] checks it.
//!
//! A machine that keeps files of its own saves a dump that merely names them ([`StateMachine::flush`]); for a follower it
//! is saved whole. What such a machine reads from its files goes by jobs: `jobs.rs`.
//!
//! # Members
//!
//! Replicas are added, promoted, demoted and removed through the log: `members.rs`
//! ([`Request::ChangeMembers`]). New ones are created by an order alone, removed ones destroyed for good.
//!
//! # Invariants
//!
//! - A replica says nothing before its first record is durable, and nothing of a vote or an entry
//!   before that is.
//! - Flushed <= applied <= min(commit, own durable index).
//! - A request is answered once; `Refused` means that it surely has no effect, `Unknown` that
//!   nobody here can tell.
//! - The same inputs give the same outputs.
//!
//! # What is not implemented
//!
//! Splits and merges, and sessions.
#![forbid(unsafe_code)]

mod archive;
mod callers;
pub mod command;
mod config;
mod cursor;
pub mod descriptor;
mod descriptor_codec;
mod dump_file;
mod dump_receiver;
mod dump_sender;
mod elections;
mod flush;
mod heartbeat;
pub mod ids;
mod jobs;
mod log_budget;
mod members;
mod memory_store;
mod memory_view;
mod multi_raft;
pub mod output;
pub mod peer;
mod peers;
mod proposal;
mod quiescence;
mod readable;
mod reads;
mod ready_queue;
mod replica;
pub mod request;
mod row_tree;
mod shard_map;
mod shared;
pub mod state_machine;
mod status;
mod stored_key;
mod submit;
mod timers;
mod transfer;
mod turn;
mod work;

pub use archive::{Command, CommandView, Condition, ConditionView, Effect, EffectView};
pub use command::{
    BATCH_BYTES_MAX, COMMAND_HEAD_BYTES, COMMAND_VERSION, CommandError, KEY_BYTES_MAX, VALUE_BYTES_MAX,
    WriteBatch, check_limits, encode, encode_delete, encode_put, split_head, with_command,
};
pub use config::{DUMP_PULL_BYTES_MAX, ShardConfig};
pub use descriptor::{Descriptor, KeyRange, ReplicaPlace, ReplicaRole};
pub use descriptor_codec::BadDescriptor;
pub use dump_file::{DumpError, DumpHead, encode_dump, open_dump};
pub use ids::{CoreAddr, Epoch, NodeId, ShardId};
pub use members::FOUNDED_AT;
pub use memory_store::{MemoryStore, check_command, is_within};
pub use multi_raft::MultiRaft;
pub use output::{
    DumpRead, DumpRemove, DumpSave, Fault, LogWrite, Output, PersistToken, RefusedMessage, ShardState,
};
pub use peer::{Beat, BeatReply, GroupBeat, GroupBeatReply, GroupQuiet, PeerBatch, PeerMessage};
pub use readable::{Readable, StateView};
pub use request::{
    Answer, BusyReason, Consistency, MEMBER_CHANGES_MAX, MemberChange, Query, Refusal, Request, RequestId,
    Rest, Row, Seat, UnknownReason, Versioned, ViewId,
};
pub use row_tree::RowTree;
pub use shard_map::{ShardMap, pre_split};
pub use state_machine::{
    BadPayload, CommandResult, Dump, Job, JobDone, Pressure, QueryResult, Stage, StateMachine, View,
};
pub use status::{ShardStatus, Stats};
pub use stored_key::StoredKey;
