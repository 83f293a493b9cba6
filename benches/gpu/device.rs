//! What a host does on a device: memory, streams, graphs, time.

use std::marker::PhantomData;
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUevent, CUgraph, CUgraphExec, CUresult, CUstream};
use sae::tensor::{Device, DeviceKind, Element, Tensor, TensorMut};

pub fn check(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

/// The device's primary context, current on this thread while it lasts.
pub struct Context;

impl Context {
    pub fn enter() -> Self {
        let mut context = null_mut();
        unsafe {
            check(sys::cuDevicePrimaryCtxRetain(&mut context, 0));
            check(sys::cuCtxPushCurrent_v2(context));
        }
        Self
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        unsafe {
            check(sys::cuCtxPopCurrent_v2(&mut null_mut()));
            check(sys::cuDevicePrimaryCtxRelease_v2(0));
        }
    }
}

/// Numbers of the host's, or a copy of them on the device.
pub enum Buffer<T> {
    Host(Vec<T>),
    Device(u64, usize, PhantomData<T>),
}

impl<T: Element + bytemuck::Pod> Buffer<T> {
    pub fn new(on_device: bool, values: &[T]) -> Self {
        if !on_device {
            return Self::Host(values.to_vec());
        }
        let (mut at, bytes) = (0, size_of_val(values));
        unsafe {
            check(sys::cuMemAlloc_v2(&mut at, bytes.max(1)));
            check(sys::cuMemcpyHtoD_v2(at, values.as_ptr().cast(), bytes));
        }
        Self::Device(at, values.len(), PhantomData)
    }

    pub fn at(&self) -> u64 {
        match self {
            Self::Host(values) => values.as_ptr().addr() as u64,
            Self::Device(at, ..) => *at,
        }
    }

    pub fn tensor(&self, shape: &[usize]) -> Tensor<'_> {
        match self {
            Self::Host(values) => Tensor::new(values, shape).unwrap(),
            Self::Device(at, ..) => unsafe { Tensor::from_raw(*at as *const u8, T::DTYPE, HERE, shape, None).unwrap() },
        }
    }

    pub fn tensor_mut(&mut self, shape: &[usize]) -> TensorMut<'_> {
        match self {
            Self::Host(values) => TensorMut::new(values, shape).unwrap(),
            Self::Device(at, ..) => unsafe {
                TensorMut::from_raw(*at as *mut u8, T::DTYPE, HERE, shape, None).unwrap()
            },
        }
    }

    /// What is there, once all work is done.
    pub fn read(&self) -> Vec<T> {
        match self {
            Self::Host(values) => values.clone(),
            Self::Device(at, len, _) => {
                let mut values = vec![T::zeroed(); *len];
                unsafe { check(sys::cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), *at, size_of_val(&values[..]))) };
                values
            }
        }
    }
}

const HERE: Device = Device { kind: DeviceKind::Cuda, id: 0 };

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Self::Device(at, ..) = self {
            unsafe { check(sys::cuMemFree_v2(*at)) };
        }
    }
}

/// Free bytes of the device.
pub fn free_memory() -> usize {
    let (mut free, mut total) = (0, 0);
    unsafe { check(sys::cuMemGetInfo_v2(&mut free, &mut total)) };
    free
}

pub struct Stream(CUstream);

impl Stream {
    pub fn new() -> Self {
        let mut made = null_mut();
        unsafe { check(sys::cuStreamCreate(&mut made, 1)) };
        Self(made)
    }

    pub fn handle(&self) -> u64 {
        self.0.expose_provenance() as u64
    }

    pub fn wait(&self) {
        unsafe { check(sys::cuStreamSynchronize(self.0)) };
    }

    /// Copies on the device.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) {
        unsafe { check(sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.0)) };
    }

    pub fn capture(&self, work: impl FnOnce()) -> Graph {
        let (mut graph, mut exec) = (null_mut(), null_mut());
        unsafe {
            check(sys::cuStreamBeginCapture_v2(self.0, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL));
            work();
            check(sys::cuStreamEndCapture(self.0, &mut graph));
            check(sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        }
        Graph(graph, exec)
    }

    /// Seconds that the device takes for `work`.
    pub fn seconds(&self, work: impl FnOnce()) -> f64 {
        let (start, end) = (Mark::new(), Mark::new());
        let mut milliseconds = 0.0;
        unsafe {
            check(sys::cuEventRecord(start.0, self.0));
            work();
            check(sys::cuEventRecord(end.0, self.0));
            check(sys::cuEventSynchronize(end.0));
            // Under this name every driver has it; cudarc knows that of the newest alone.
            type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;
            let elapsed = sys::culib().get::<Elapsed>(b"cuEventElapsedTime").unwrap();
            check(elapsed(&mut milliseconds, start.0, end.0));
        }
        f64::from(milliseconds) / 1e3
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        unsafe { check(sys::cuStreamDestroy_v2(self.0)) };
    }
}

struct Mark(CUevent);

impl Mark {
    fn new() -> Self {
        let mut made = null_mut();
        unsafe { check(sys::cuEventCreate(&mut made, 0)) };
        Self(made)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        unsafe { check(sys::cuEventDestroy_v2(self.0)) };
    }
}

pub struct Graph(CUgraph, CUgraphExec);

impl Graph {
    pub fn launch(&self, on: &Stream) {
        unsafe { check(sys::cuGraphLaunch(self.1, on.0)) };
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        unsafe {
            check(sys::cuGraphExecDestroy(self.1));
            check(sys::cuGraphDestroy(self.0));
        }
    }
}
