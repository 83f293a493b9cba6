//! The C ABI: its header, its symbols, programs in C and C++ that use it, and what it does with bad input.

#![allow(clippy::unwrap_used, unsafe_code, clippy::undocumented_unsafe_blocks)]

mod atlas;
mod bad_buffer;
mod bad_files;
mod bad_input;
mod bad_models;
mod bad_training;
mod doctor;
mod header;
mod host;
mod kernels;
mod library;
mod no_gpu;
mod operations;
mod programs;
mod ranks;
mod readme;
mod releases;
mod toolchain;
mod use_it;
