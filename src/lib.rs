//! Sparse autoencoders (SAEs) for the engines that run language models: load, encode, decode, steer and train, inside the
//! host's process, over memory the host already has.
//!
//! The same library speaks Rust (this crate) and C (`include/sae.h`, made from [`capi`]). Where to look:
//!
//! | question | room |
//! |---|---|
//! | what can go wrong | [`error`] |
//! | how activations are handed in, and results out | [`tensor`], [`features`] |
//! | what an SAE is: architecture, flags, weights, input convention | [`sae`] |
//! | which files load and how they are saved | [`formats`] |
//! | how a file appears whole or not at all, and what our own files begin with | `atomic`, `container` |
//! | the hot calls: encode, decode, steer | [`session`], [`steering`] |
//! | how a score is computed, bit for bit, and what runs it | [`backend`] |
//! | how an SAE is trained | [`training`] |
//! | how the processes of one training run work together | [`collective`] |
//! | how well it fits activations, and what is wrong if it does not | [`evaluation`] |
//! | what was seen of each feature | [`atlas`] |
//!
//! Imports run one way: capi → training → evaluation → session → backend, formats → sae, features, tensor → error; capi → atlas →
//! features; formats, training and atlas → atomic, container → error;
//! training and backend → collective → tensor.

pub mod atlas;
mod atomic;
#[allow(unsafe_code)]
pub mod backend;
#[allow(unsafe_code)]
pub mod capi;
pub mod collective;
mod container;
pub mod error;
pub mod evaluation;
pub mod features;
pub mod formats;
pub mod sae;
pub mod session;
pub mod steering;
#[allow(unsafe_code)]
pub mod tensor;
pub mod training;

pub use error::{Error, Result, Status};

/// The book's programs in Rust, run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/start/rust.md")]
mod book {}
