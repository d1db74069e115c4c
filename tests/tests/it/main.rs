//! The integration tests, one binary: named scenarios and a budgeted swarm of seeds in the simulator, and
//! what can be counted about the source code.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

mod check_history;
mod commands;
mod documents;
mod engine;
mod fuzz;
mod log_space;
mod loop_disk;
mod lost_store;
mod many_groups;
mod members;
mod old_streams;
mod power_cuts;
mod process_faults;
mod processes;
mod remote;
mod scans;
mod scenarios;
mod sim_command;
mod swarm;
mod tidy;
