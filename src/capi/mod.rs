//! The C ABI: every exported function, thin: check, convert, call, report. `include/sae.h` is made from these files, one
//! section from each; their comments are its comments.
//!
//! Every fallible function runs inside one boundary, which turns errors and panics into statuses. Pointers are
//! checked for null and alignment, structs for their size, codes and flags for being known; that they point to what they
//! say is the caller's promise, and the one reason why these functions are unsafe.

// The names are C's, and the contract of each function is the header's.
#![allow(non_camel_case_types, clippy::missing_safety_doc)]

mod boundary;
mod handle;
mod sized;

mod atlas;
mod buffer;
mod collective;
mod convention;
mod doctor;
mod features;
mod load;
mod log;
mod model;
mod model_operations;
mod model_weights;
mod pool;
mod run;
mod session;
mod status;
mod steering;
mod tensor;
mod trainer;

pub use atlas::*;
pub use buffer::*;
pub use collective::*;
pub use convention::*;
pub use doctor::*;
pub use features::*;
pub use load::*;
pub use log::*;
pub use model::*;
pub use model_operations::*;
pub use model_weights::*;
pub use pool::*;
pub use run::*;
pub use session::*;
pub use status::*;
pub use steering::*;
pub use tensor::*;
pub use trainer::*;
