//! Memory that belongs to the host, looked at: element types, borrowed strided views, and the bytes behind weights.

mod array;
mod dtype;
mod storage;
mod view;

pub use array::{Array, try_vec};
pub use dtype::{DType, Element};
pub use storage::{AlignedBytes, Storage};
pub use view::{Device, DeviceKind, MAX_DIMS, Tensor, TensorMut};
