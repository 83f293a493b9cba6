//! What the backend asks of a device: memory, copies, launches, streams. [`NvidiaDriver`](super::NvidiaDriver) asks NVIDIA's
//! driver; tests have drivers of their own, which record what is asked or run the kernels on the processor.

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;

use super::params::{DevicePtr, Kernel};
use crate::error::{Result, fail};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its number among the machine's.
    pub ordinal: i32,
    /// What its maker calls it.
    pub name: String,
    /// Major and minor compute capability.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: u32,
}

/// A stream of work: the driver's own handle, of which 0 is the default stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamHandle(pub u64);

impl StreamHandle {
    /// What a host calls by this pointer.
    pub fn of_host(stream: *mut c_void) -> Self {
        Self(stream.addr() as u64)
    }
}

/// A mark in the work of streams: the driver's own handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventHandle(pub u64);

/// One capture of streams into a graph, among all of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CaptureId(pub u64);

/// Where a mark is set or waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// In the stream's own work; while that is captured, in this capture alone.
    Now,
    /// Of a captured stream: each time the graph is launched, among everything that the device does.
    Replayed,
}

/// What must stay as long as a graph may be launched.
pub type Pinned = Arc<dyn Any + Send + Sync>;

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// Host memory that the device reaches too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemory {
    /// Where the host finds it.
    pub host: *mut u8,
    /// Where the device does.
    pub device: DevicePtr,
}

/// One device. Between [`Self::enter`] and [`Self::leave`] alone, on the same thread, may the others be called: see [`Inside`].
///
/// # Safety
/// Implementors keep memory they hand out valid until it is freed, and do what the functions say.
pub unsafe trait Driver: Send + Sync {
    /// What the device is. The one function that needs no entering.
    fn facts(&self) -> &Facts;

    /// Makes the device the thread's current one, and what the thread does harmless to captures elsewhere. Gives what
    /// [`Self::leave`] needs.
    fn enter(&self) -> Result<u32>;

    /// Restores what was before [`Self::enter`].
    fn leave(&self, entered: u32);

    /// Memory of the device, aligned to 256 bytes, not initialised; `bytes` is not 0.
    fn allocate(&self, bytes: usize) -> Result<DevicePtr>;

    /// Gives such memory back once nothing uses it any more.
    ///
    /// # Safety
    /// It must come from [`Self::allocate`], and not have been given back.
    unsafe fn free(&self, memory: DevicePtr);

    /// Host memory that the device reaches too, zeroed.
    fn allocate_shared(&self, bytes: usize) -> Result<SharedMemory>;

    /// Gives such memory back.
    ///
    /// # Safety
    /// As [`Self::free`].
    unsafe fn free_shared(&self, memory: SharedMemory);

    /// Copies bytes to the device and waits.
    ///
    /// # Safety
    /// There must be room for them.
    unsafe fn upload(&self, to: DevicePtr, from: &[u8]) -> Result<()>;

    /// Zeroes bytes and waits.
    ///
    /// # Safety
    /// There must be so many.
    unsafe fn zero(&self, to: DevicePtr, bytes: usize) -> Result<()>;

    /// Writes a word of 32 bits so many times, once the stream has come so far.
    ///
    /// # Safety
    /// There must be room for them, until it has.
    unsafe fn fill(&self, to: DevicePtr, word: u32, times: usize, stream: StreamHandle) -> Result<()>;

    /// Starts a kernel.
    ///
    /// # Safety
    /// `params` must be the kernel's structure, and what it points to be there until the kernel is done.
    unsafe fn launch(&self, kernel: Kernel, shape: Shape, stream: StreamHandle, params: &[u8]) -> Result<()>;

    /// A new stream, apart from the default one.
    fn create_stream(&self) -> Result<StreamHandle>;

    /// Ends a stream once its work is done.
    ///
    /// # Safety
    /// It must come from [`Self::create_stream`], and nobody may use it any more.
    unsafe fn destroy_stream(&self, stream: StreamHandle);

    /// Refuses a host's stream that is of another device, or not of its primary context.
    fn check_stream(&self, stream: StreamHandle) -> Result<()>;

    /// What the stream's work is being captured into instead of being done, if it is.
    fn capture(&self, stream: StreamHandle) -> Result<Option<CaptureId>>;

    /// Has the graph that a captured stream's work goes into keep something until nobody can launch it any more.
    fn pin(&self, stream: StreamHandle, kept: Pinned) -> Result<()>;

    /// A new mark, which counts as reached until it is set.
    fn create_event(&self) -> Result<EventHandle>;

    /// Ends a mark.
    ///
    /// # Safety
    /// It must come from [`Self::create_event`], and nobody may use it any more.
    unsafe fn destroy_event(&self, event: EventHandle);

    /// Sets a mark behind what the stream was given so far.
    fn record(&self, event: EventHandle, stream: StreamHandle, when: When) -> Result<()>;

    /// Has what the stream is given from now on wait until a mark, where it was set last, is reached.
    fn wait_for(&self, event: EventHandle, stream: StreamHandle, when: When) -> Result<()>;

    /// Waits until a mark, where it was set last, is reached.
    fn await_event(&self, event: EventHandle) -> Result<()>;

    /// Waits until the stream's work is done.
    fn synchronize(&self, stream: StreamHandle) -> Result<()>;

    /// Faults of the device so far, as far as this stream tells without waiting.
    fn fault(&self, stream: StreamHandle) -> Result<()>;
}

/// A device entered; dropping it leaves.
pub struct Inside<'a>(&'a dyn Driver, u32);

impl<'a> Inside<'a> {
    /// Enters a device.
    pub fn new(driver: &'a dyn Driver) -> Result<Self> {
        Ok(Self(driver, driver.enter()?))
    }
}

impl<'a> std::ops::Deref for Inside<'a> {
    type Target = dyn Driver + 'a;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

/// A block of the device's memory, freed when dropped.
pub struct Block {
    driver: Arc<dyn Driver>,
    at: DevicePtr,
    bytes: usize,
}

impl Block {
    /// A block, not initialised; none of the device's memory if it is empty.
    pub fn new(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let at = match bytes {
            0 => DevicePtr::NULL,
            _ => Inside::new(&**driver)?.allocate(bytes)?,
        };
        Ok(Self { driver: Arc::clone(driver), at, bytes })
    }

    /// A block of zeros.
    pub fn zeroed(driver: &Arc<dyn Driver>, bytes: usize) -> Result<Self> {
        let block = Self::new(driver, bytes)?;
        if bytes > 0 {
            // SAFETY: the block is so long.
            unsafe { Inside::new(&**driver)?.zero(block.at, bytes)? };
        }
        Ok(block)
    }

    /// A block with a copy of `values`.
    pub fn of<T: bytemuck::Pod>(driver: &Arc<dyn Driver>, values: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut block = Self::new(driver, bytes.len())?;
        block.write(0, bytes)?;
        Ok(block)
    }

    /// Copies bytes to a place in the block, and waits.
    pub fn write(&mut self, start: usize, bytes: &[u8]) -> Result<()> {
        assert!(start.checked_add(bytes.len()).is_some_and(|end| end <= self.bytes), "{start} of {}", self.bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        // SAFETY: within the block, as just checked.
        unsafe { Inside::new(&*self.driver)?.upload(DevicePtr(self.at.0 + start as u64), bytes) }
    }

    /// Where it is.
    pub fn at(&self) -> DevicePtr {
        self.at
    }

    /// Its bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // Where the device cannot be entered any more, its memory is gone already.
        if let Ok(inside) = Inside::new(&*self.driver) {
            // SAFETY: from `allocate`, and given back once.
            unsafe { inside.free(self.at) };
        }
    }
}

/// A number that kernels count up and the host reads without waiting.
pub struct Counter {
    driver: Arc<dyn Driver>,
    memory: SharedMemory,
}

// SAFETY: the memory is this value's alone, and read as an atomic number.
unsafe impl Send for Counter {}
// SAFETY: as above.
unsafe impl Sync for Counter {}

impl Counter {
    /// Its bytes.
    pub const BYTES: usize = size_of::<u64>();

    /// From 0 on.
    pub fn new(driver: &Arc<dyn Driver>) -> Result<Self> {
        let memory = Inside::new(&**driver)?.allocate_shared(Self::BYTES)?;
        let counter = Self { driver: Arc::clone(driver), memory };
        match counter.memory.host.cast::<u64>().is_aligned() && !counter.memory.host.is_null() {
            true => Ok(counter),
            false => fail!(Internal, "the driver gave memory at {:p}", counter.memory.host),
        }
    }

    /// Where kernels count.
    pub fn at(&self) -> DevicePtr {
        self.memory.device
    }

    /// As far as the device has come.
    pub fn value(&self) -> u64 {
        // SAFETY: aligned and there, as `new` made sure; written by the device as a whole word.
        unsafe { self.memory.host.cast::<u64>().read_volatile() }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        if let Ok(inside) = Inside::new(&*self.driver) {
            // SAFETY: from `allocate_shared`, and given back once.
            unsafe { inside.free_shared(self.memory) };
        }
    }
}

/// A stream of our own, ended when dropped.
pub struct OwnStream {
    driver: Arc<dyn Driver>,
    handle: StreamHandle,
}

impl OwnStream {
    /// A new one.
    pub fn new(driver: &Arc<dyn Driver>) -> Result<Self> {
        let handle = Inside::new(&**driver)?.create_stream()?;
        Ok(Self { driver: Arc::clone(driver), handle })
    }

    /// The driver's handle.
    pub fn handle(&self) -> StreamHandle {
        self.handle
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        if let Ok(inside) = Inside::new(&*self.driver) {
            // SAFETY: from `create_stream`, and ended once.
            unsafe { inside.destroy_stream(self.handle) };
        }
    }
}

/// A mark of our own, ended when dropped.
pub struct OwnEvent {
    driver: Arc<dyn Driver>,
    handle: EventHandle,
}

impl OwnEvent {
    /// A new one.
    pub fn new(driver: &Arc<dyn Driver>) -> Result<Self> {
        let handle = Inside::new(&**driver)?.create_event()?;
        Ok(Self { driver: Arc::clone(driver), handle })
    }

    /// The driver's handle.
    pub fn handle(&self) -> EventHandle {
        self.handle
    }
}

impl Drop for OwnEvent {
    fn drop(&mut self) {
        if let Ok(inside) = Inside::new(&*self.driver) {
            // SAFETY: from `create_event`, and ended once.
            unsafe { inside.destroy_event(self.handle) };
        }
    }
}
