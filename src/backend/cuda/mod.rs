//! The operations on an NVIDIA GPU. Nothing here was seen on one yet: the kernels run on the processor in the tests.

mod call;
pub mod code;
mod driver;
mod edits;
mod launch;
mod model;
mod nvidia;
mod operations;
pub mod params;
mod plan;
mod session;

pub use driver::{Block, Counter, Driver, Facts, Inside, OwnStream, Shape, SharedMemory, StreamHandle};
pub use model::CudaModel;
pub use nvidia::NvidiaDriver;
pub use session::CudaSession;
