//! Tests of the log as a whole: a disk that forgets, a model of what the records amount to, and
//! promises checked against both.

mod chain;
mod corruption;
mod crash;
mod disk;
mod model;
mod mutated;
mod space;
mod survey;
