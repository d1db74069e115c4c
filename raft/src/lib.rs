//! One Raft group as a pure state machine: no I/O, clock, threads, randomness of its own or codec.
//!
//! # What Raft does, and where it is here
//!
//! A group of replicas holds copies of one log; what is committed in it is never lost or changed, as
//! long as a majority keeps its disks. Time is cut into *terms* with at most one leader each; only
//! the leader appends, and it never overwrites its own log. Five properties carry the argument
//! (Ongaro & Ousterhout, *In Search of an Understandable Consensus Algorithm*, extended version 2014,
//! Figure 3; *thesis* below is Ongaro's of 2014):
//!
//! - **Election Safety**, one leader per term (§5.2): a replica votes once per term
//!   (`follower.rs`, `Raft::on_vote`), and neither a vote nor a request for one leaves before it is
//!   durable (`output.rs`, `Raft::put_messages`). A candidate counts its own vote like anybody
//!   else's, when it is durable (`candidate.rs`, `Raft::maybe_win`).
//! - **Leader Append-Only** (§5.3): only `Raft::cut_conflict` cuts a log, and only a follower runs it.
//! - **Log Matching** (§5.3): an append names the mark right before its entries; who doesn't hold
//!   that refuses with a hint (`Raft::on_append`), and both sides skip a whole term per round trip
//!   (`Log::last_not_above`, `Raft::on_append_rejected`).
//! - **Leader Completeness** (§5.4): votes go only to logs at least as up to date
//!   (`Raft::is_up_to_date`), and counting replicas commits nothing but through an entry of the
//!   leader's own term (Figure 8; `Leader::newly_committed`), which is why a term begins with an
//!   entry of its own (`Raft::become_leader`; §8).
//! - **State Machine Safety** (§5.4.3) follows.
//!
//! Who the majorities are made of may change (§6; thesis ch. 4). A membership is in force as soon as its
//! entry is in the log and until that is cut away (`membership_log.rs`); steps go by one voter at a time or
//! through a joint configuration (`membership.rs`, [`Membership::simple`], [`Membership::enter_joint`],
//! [`Membership::leave_joint`]), in which every decision, be it an election, a commit, CheckQuorum or a read,
//! needs a majority of both halves (`quorum.rs`). At most one change is uncommitted, and none is taken before
//! the leader's first entry is committed (`Raft::propose_membership`; Ongaro's note to raft-dev, 2015). A
//! leader that is no voter any more commits that and hands over (`Raft::after_membership_commit`; §6);
//! strangers are heard, since the entry that makes them members may not have arrived (`Raft::may_speak`;
//! thesis §4.1); a voter that an uncommitted change removed still campaigns (`Raft::may_campaign`; thesis
//! §4.2.2). Learners get the log and count nowhere (thesis §4.2.1).
//!
//! For liveness, with both PreVote and CheckQuorum always on (Howard & Abraham 2020): randomized
//! timeouts (`timer.rs`; §5.2), PreVote (`Raft::on_pre_vote`; thesis §9.6), leader stickiness
//! (`Raft::meet_term`; thesis §4.2.3) and CheckQuorum (`Leader::tick`; thesis §6.2), so a replica that
//! was cut off raises nobody's term when it comes back, and a leader that was cut off stops leading.
//!
//! A group with nothing to do goes quiet and then costs nothing (`quiescence.rs`).
//!
//! On top of that: pipelined appends within a window (`progress.rs`; thesis §10.2.1), ReadIndex
//! (`read_index.rs`; thesis §6.4), leader leases (`lease.rs`; thesis §6.4.1), a bound on how old a replica's state is
//! ([`Raft::fresh_at`], `freshness.rs`), leadership transfer
//! (`Leader::maybe_tell_successor`; thesis §3.10), and handing over to a snapshot transfer that the layer above runs
//! (`Raft::on_install_snapshot`; §7).
//!
//! # Durability is asynchronous
//!
//! The leader sends entries before its own disk has them and counts itself only up to its durable
//! index; a follower acknowledges what is durable *and* known to match. Many writes may be in flight,
//! and one index may be rewritten meanwhile: `writes.rs` says what a completed write vouches for.
//!
//! # How to drive it
//!
//! Feed inputs ([`Raft::step`], [`Raft::propose`], [`Raft::tick`], ...), then take one [`Ready`] for
//! all of them, do what it says in the order that [`Ready`] documents, and report back. Batching
//! comes from asking late: everything proposed between two calls leaves as one append per follower.
//!
//! ```
//! use bytes::Bytes;
//! use floe_raft::*;
//!
//! let id = ReplicaId::new(1).expect("not 0");
//! let restored = Restored {
//!     hard_state: HardState::default(),
//!     snapshot: Mark::ZERO,
//!     membership: Membership::of_voters([id]),
//!     entries: Vec::new(),
//!     applied: 0,
//! };
//! let mut raft = Raft::new(id, Config::default(), restored, 0, 42);
//! raft.tick(0); // the only voter campaigns at once
//! let mut ready = Ready::default();
//! let mut applied = Vec::new();
//! for turn in 0..3 {
//!     if turn == 1 {
//!         raft.propose(0, EntryKind::Command, 0, Bytes::from_static(b"x")).expect("it leads");
//!     }
//!     while raft.has_ready() {
//!         raft.ready(&mut ready); // send ready.messages, write ready.entries, ...
//!         if let Some(write) = ready.write {
//!             raft.persisted(write);
//!         }
//!         applied.extend(raft.slice(ready.committed.clone()).expect("not compacted yet").cloned());
//!         if let Some(last) = ready.committed.clone().last() {
//!             raft.applied(last);
//!         }
//!     }
//! }
//! assert_eq!(applied.last().map(|entry| &entry.data[..]), Some(&b"x"[..]));
//! ```
//!
//! # Section by section
//!
//! | source | rule | here |
//! |---|---|---|
//! | paper §5.1 | terms: who hears of a later one follows; an old one's messages change nothing | `Raft::meet_term`, `Raft::answer_stale` |
//! | §5.2 | randomized timeouts; one durable vote per term; a majority elects | `timer.rs`, `Raft::on_vote`, `Raft::maybe_win` |
//! | §5.3 | consistency check, conflicts, commit index told | `Raft::on_append`, `Raft::cut_conflict`, `Raft::on_append_rejected`, `Progress::accepted` |
//! | §5.4.1 | votes only to logs that are as up to date | `Raft::is_up_to_date` |
//! | §5.4.2 | only entries of the own term are committed by counting | `Leader::newly_committed` |
//! | §5.5 | whatever is sent again does no harm | `Raft::take_entries`, `Raft::note_match`, `Raft::is_vote_free_for` |
//! | §5.6 | broadcast time below election timeout | [`Config::validate`] |
//! | §6, thesis ch. 4 | membership changes | `change.rs`, `membership.rs`, `membership_log.rs` |
//! | §7 | snapshots | `Raft::on_install_snapshot`, [`Raft::snapshot_installed`], [`Raft::compact`], [`Raft::report_snapshot`] |
//! | §8, thesis §6.4 | a term's first entry; reads without a log entry | `Raft::become_leader`, `read_index.rs` |
//! | thesis §3.10 | leadership transfer | [`Raft::transfer_leadership`], `Leader::maybe_tell_successor`, `Raft::on_timeout_now` |
//! | thesis §4.2.3 | a replica that hears a leader helps no other | `Raft::hears_a_leader` |
//! | thesis §6.2 | a leader without a quorum steps down | `Leader::tick` |
//! | thesis §6.4.1 | leases | `lease.rs`, [`Raft::lease`] |
//! | thesis §9.6 | PreVote | `Raft::become_pre_candidate`, `Raft::on_pre_vote` |
//! | thesis §10.2.1 | pipelining; writing and sending side by side | `progress.rs`, `Leader::flush`, `writes.rs` |
//!
//! Which test fails when a rule is taken out stands in `testscripts/README.md`.
//!
//! Beyond the sources: a replica without room refuses commands ([`Raft::set_full`]), one whose disk doesn't
//! answer neither campaigns nor leads ([`Raft::set_wedged`]), some campaign earlier than others
//! ([`Config::priority`]), and what no working replica says changes nothing ([`Nonsense`]).
//!
//! # What is not implemented
//!
//! - *Leases across splits and merges* (rule 6 of `lease.rs`): there are none of these yet.
//! - *Reading cold entries from disk*: every entry after the snapshot is in memory.
//! - *Client sessions* (§8; thesis §6.3): whether a command was applied before is for the state machine to
//!   know. Forwarding proposals to the leader is for the layer above.
//! - *Witnesses*: whoever votes also holds the log.
#![forbid(unsafe_code)]

mod candidate;
mod change;
mod config;
mod error;
mod follower;
mod freshness;
mod lazy;
mod leader;
mod lease;
mod log;
mod membership;
mod membership_entry;
mod membership_log;
mod message;
mod output;
mod planted;
mod progress;
mod quiescence;
pub mod quorum;
mod raft;
mod read_index;
mod ready;
mod status;
mod timer;
mod types;
mod validation;
mod writes;

pub use change::MembershipChange;
pub use config::{Config, ConfigError};
pub use error::{ChangeError, NotHeld, Refused};
pub use lazy::{Lazy, Part};
pub use lease::Lease;
pub use membership::{Change, Membership};
pub use message::{Body, FollowerStamp, LeaderStamp, Message};
#[cfg(feature = "planted")]
pub use planted::plant;
pub use planted::{Planted, is as is_planted};
pub use progress::FeedState;
pub use quorum::VoteResult;
pub use raft::{Raft, Restored};
pub use ready::{Leadership, ReadState, Ready, SnapshotInstall};
pub use status::{PeerStatus, RoleKind, Status};
pub use types::{Entry, EntryKind, HardState, Index, Mark, Nanos, ReplicaId, Term, WriteId};
pub use validation::{ENTRY_BYTES_MAX, Nonsense};
