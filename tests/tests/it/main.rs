//! The integration tests, one binary: named scenarios and a budgeted swarm of seeds in the simulator, and
//! what can be counted about the source code.

mod scenarios;
mod swarm;
mod tidy;
