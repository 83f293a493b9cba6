//! The operations on the processor.

mod blocks;
mod core;
mod decode;
mod encode;
mod encoder;
mod inference;
pub mod kernels;
mod merge;
mod outliers;
mod prepare;
mod rounding;
mod rows;
mod scratch;
mod screen;
mod select;
mod steer;
pub mod training;
mod write;

pub use inference::CpuSession;
pub use kernels::Kernels;
pub(crate) use prepare::{Prepared, normalize_row, read_row};
