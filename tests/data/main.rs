//! Where training's activations come from: files of them, and the buffer that mixes what a host pushes.

#![allow(clippy::unwrap_used)]

mod arrow;
mod buffer;
mod files;
mod shards;
mod sharing;
mod support;
mod threads;
