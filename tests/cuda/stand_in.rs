//! A driver whose memory is the host's, and whose launches run the kernels on the processor, each in an order of its own.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use sae::backend::cuda::params::{DevicePtr, Kernel};
use sae::backend::cuda::{CaptureId, Driver, EventHandle, Facts, Pinned, Shape, SharedMemory, StreamHandle, When};
use sae::error::{Error, Result, Status};

use crate::common::stand_in::StandIn;

pub(crate) struct StandInDriver {
    facts: Facts,
    blocks: Mutex<BTreeMap<u64, Layout>>,
    seed: AtomicU64,
}

impl StandInDriver {
    /// Whose orders follow from a seed.
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        // Few processors, so that some do several tokens.
        let facts = Facts { ordinal: 0, name: "a processor".to_owned(), capability: (9, 0), multiprocessors: 3 };
        Arc::new(Self { facts, blocks: Mutex::default(), seed: AtomicU64::new(seed) })
    }
}

impl Drop for StandInDriver {
    fn drop(&mut self) {
        let left = self.blocks.lock().unwrap().len();
        assert!(std::thread::panicking() || left == 0, "{left} blocks were not given back");
    }
}

fn at<T>(memory: DevicePtr) -> *mut T {
    std::ptr::with_exposed_provenance_mut(memory.0 as usize)
}

unsafe impl Driver for StandInDriver {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn enter(&self) -> Result<u32> {
        Ok(0)
    }

    fn leave(&self, _: u32) {}

    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        let layout = Layout::from_size_align(bytes, 256).unwrap();
        let memory = unsafe { alloc(layout) };
        // What a kernel reads without having written it is no number.
        unsafe { memory.write_bytes(0xff, bytes) };
        let address = memory.expose_provenance() as u64;
        self.blocks.lock().unwrap().insert(address, layout);
        Ok(DevicePtr(address))
    }

    unsafe fn free(&self, memory: DevicePtr) {
        let layout = self.blocks.lock().unwrap().remove(&memory.0).unwrap();
        unsafe { dealloc(at(memory), layout) };
    }

    fn allocate_shared(&self, bytes: usize) -> Result<SharedMemory> {
        let device = self.allocate(bytes)?;
        unsafe { self.zero(device, bytes)? };
        Ok(SharedMemory { host: at(device), device })
    }

    unsafe fn free_shared(&self, memory: SharedMemory) {
        unsafe { self.free(memory.device) };
    }

    unsafe fn upload(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        unsafe { at::<u8>(to).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
        Ok(())
    }

    unsafe fn zero(&self, to: DevicePtr, bytes: usize) -> Result<()> {
        unsafe { at::<u8>(to).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn fill(&self, to: DevicePtr, word: u32, times: usize, _: StreamHandle) -> Result<()> {
        (0..times).for_each(|i| unsafe { at::<u32>(to).add(i).write(word) });
        Ok(())
    }

    unsafe fn launch(&self, kernel: Kernel, shape: Shape, _: StreamHandle, params: &[u8]) -> Result<()> {
        let seed = self.seed.fetch_add(1, Ordering::Relaxed);
        let (grid, block) = ([shape.grid.0, shape.grid.1, 1], [shape.block, 1, 1]);
        let kernels = StandIn::kernels();
        unsafe { kernels.try_launch(kernel.symbol(), (grid, block), shape.shared as usize, params, seed) }
            .map_err(|e| Error::new(Status::DeviceFault, e))
    }

    fn create_stream(&self) -> Result<StreamHandle> {
        Ok(StreamHandle(1))
    }

    unsafe fn destroy_stream(&self, _: StreamHandle) {}

    fn check_stream(&self, _: StreamHandle) -> Result<()> {
        Ok(())
    }

    fn capture(&self, _: StreamHandle) -> Result<Option<CaptureId>> {
        Ok(None)
    }

    fn pin(&self, _: StreamHandle, _: Pinned) -> Result<()> {
        unreachable!("nothing is captured")
    }

    fn create_event(&self) -> Result<EventHandle> {
        Ok(EventHandle(1))
    }

    unsafe fn destroy_event(&self, _: EventHandle) {}

    fn record(&self, _: EventHandle, _: StreamHandle, _: When) -> Result<()> {
        Ok(())
    }

    fn wait_for(&self, _: EventHandle, _: StreamHandle, _: When) -> Result<()> {
        Ok(())
    }

    fn await_event(&self, _: EventHandle) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self, _: StreamHandle) -> Result<()> {
        Ok(())
    }

    fn fault(&self, _: StreamHandle) -> Result<()> {
        Ok(())
    }
}
