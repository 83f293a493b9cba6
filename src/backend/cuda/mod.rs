//! The operations on an NVIDIA GPU. Nothing here was seen on one yet: the kernels run on the processor in the tests.

mod call;
pub mod code;
mod driver;
mod edits;
mod later;
mod launch;
mod library;
mod model;
mod nvidia;
mod operations;
mod order;
pub mod params;
mod plan;
mod session;

pub use driver::{
    Block, CaptureId, Counter, Driver, EventHandle, Facts, Inside, OwnEvent, OwnStream, Pinned, Shape, SharedMemory,
    StreamHandle, When,
};
pub use model::CudaModel;
pub use nvidia::NvidiaDriver;
pub use session::CudaSession;
