//! Judges histories: did every read, write and conditional write take effect at one moment between its call and its
//! answer? ([`linearizability`]) A library of its own: it knows nothing of Floe, and nothing of it is needed to
//! judge another store's histories ([`history`]).
//!
//! ```
//! use floe_checker::linearizability::{Action, BUDGET, Operation, Verdict, check};
//!
//! let write = Operation { client: 1, called: 0, answered: Some(10), action: Action::Write(Some(7)) };
//! let read = |value| Operation { client: 2, called: 20, answered: Some(30), action: Action::Read(value) };
//! assert_eq!(check(&[write, read(Some(7))], BUDGET), Verdict::Linearizable);
//! assert!(matches!(check(&[write, read(None)], BUDGET), Verdict::NotLinearizable { .. }));
//! ```
//!
//! ```text
//! linearizability   operations of a key, verdicts      search      orders in which they may have taken effect
//! model             what a key does, one by one        reductions  what makes the search tractable
//! zones             when a value stood                 history     histories from outside, to their shortest failure
//! edn               their languages: EDN and JSON      random_history  known-good and known-bad ones, to check all this
//! random            a seeded generator of chance
//! ```
//!
//! Not implemented: transactions over several keys, and models other than a register and a map of texts.

pub mod edn;
pub mod history;
pub mod linearizability;
pub mod model;
pub mod random;
pub mod random_history;
mod reductions;
mod search;
mod zones;
