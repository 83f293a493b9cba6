//! The CUDA backend without a GPU: what it asks of a driver that only writes it down, and what comes of it on one that runs
//! the kernels on the processor.
#![allow(clippy::unwrap_used, unsafe_code, clippy::undocumented_unsafe_blocks)]

mod c_abi;
mod captures;
#[path = "../common/mod.rs"]
mod common;
mod fast;
#[allow(dead_code)]
#[path = "../capi/host.rs"]
mod host;
mod large;
mod launches;
mod lifetimes;
mod recorder;
mod refusals;
mod sessions;
mod stand_in;
