//! The durable store: a state machine whose rows lie in tables on disk, above them memtables with what came since.
//!
//! - `lsm_store`: the state machine, on the core;
//! - `memtable`: rows and deleted ranges in memory, and the node's budget for them;
//! - `view`: a state at one moment, for readers on any thread;
//! - `flush`, `stage`, `image`: how a memtable or a leader's dump gets into the tables, and what dumps look like;
//! - `tree`, `limiter`: the tables, and the only users of lsm-tree;
//! - `stores`: what the shards of a node share, and the thread that compacts.
//!
//! Invariants: a core never waits for any of it; tables are published before the memtable that they hold is let go;
//! where a tree's state stands lies in the tree, written with the rows themselves.

mod flush;
mod image;
mod limiter;
mod lsm_store;
mod memtable;
mod stage;
mod stores;
mod tree;
mod view;

#[cfg(test)]
mod tests;

pub use lsm_store::LsmStore;
pub use stores::{Janitor, Stores};
