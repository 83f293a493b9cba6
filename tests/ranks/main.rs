//! Training by several ranks: what one process would do, decided together.

#![allow(clippy::unwrap_used)]

mod checkpoints;
mod exact;
mod kills;
mod refusals;
#[path = "../runs/mod.rs"]
mod runs;
mod support;
mod training;
