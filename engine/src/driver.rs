//! Drivers carry inputs to a core and its effects into the world.
//!
//! [`glommio`] is the one for real nodes; the simulator has its own, in the tests' crate. What
//! doesn't depend on a runtime is shared: blocking file calls (`background`), the table of callers that
//! wait (`requests`), the few system calls that std doesn't offer (`sys`).

mod background;
pub mod glommio;
mod requests;
pub(crate) mod sys;

pub use self::glommio::{CoreSetup, WorkerFactory, spawn};
