//! The simulator: whole clusters in one thread, on a simulated disk, network and clock.
//!
//! ```text
//! plan       what a seed means: cluster, load, mix of faults
//! theme      what it is about
//! run        load and faults, healing, demands, judgement
//! cluster    the queue of events, cores' steps, what they want done
//! node       a disk that stays, processes that come and go
//! lifecycle  how processes start, end, and fail where that is explained
//! disk       live and durable bytes apart       content    bytes by sectors
//! damage     what becomes of stored bytes       network    connections, blocks, cuts
//! clock      virtual time, drifting clocks      client     operations and their history
//! fault      what goes wrong                    coverage   what it met
//! members    who is asked to be a member        watch      what is checked after each step
//! trace      the hash that makes runs comparable
//! ```
//!
//! Everything is a function of the seed: one generator per part, ordered maps only, and no clock but
//! the queue's. The workers, replicas, codec, log and recovery are the production code.

mod calls;
pub mod client;
pub mod clock;
pub mod cluster;
mod content;
pub mod coverage;
pub mod damage;
pub mod disk;
pub mod fault;
mod lifecycle;
mod members;
pub mod network;
pub mod node;
pub mod plan;
pub mod run;
mod theme;
pub mod trace;
mod watch;
