//! NVIDIA's driver as the library uses it, with a library in its place that does on the processor, in racing orders, what the
//! driver's documentation says.
#![allow(clippy::unwrap_used, unsafe_code, clippy::undocumented_unsafe_blocks)]

#[path = "../common/mod.rs"]
mod common;
mod fake;
mod graphs;
mod lifetimes;
mod opening;
mod orders;
mod scene;
