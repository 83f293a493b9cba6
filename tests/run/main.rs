//! Whole training runs: what they write, how they end, and how they go on.

#![allow(clippy::unwrap_used)]

mod ends;
mod files;
mod kills;
mod support;
