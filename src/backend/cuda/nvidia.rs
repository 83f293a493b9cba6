//! NVIDIA's driver, opened when it is first asked for. Never seen on a GPU yet; the tests have a library in its place that runs
//! the kernels on the processor.
//!
//! The device's primary context is the one that other libraries in the process use, so their memory and streams serve here.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::sys::{self, CUcontext, CUevent, CUfunction, CUmodule, CUresult, CUstream};

use super::code::Code;
use super::driver::{CaptureId, Driver, EventHandle, Facts, Pinned, Shape, SharedMemory, StreamHandle, When};
use super::later;
use super::library::{self, CaptureInfo, check};
use super::params::{DevicePtr, Kernel, SCREEN_SHARED};
use crate::error::{Error, Result, Status, fail};

/// A GPU, with the kernels loaded.
pub struct NvidiaDriver {
    facts: Facts,
    device: sys::CUdevice,
    context: CUcontext,
    module: CUmodule,
    functions: Vec<CUfunction>,
    /// For what is done while nothing runs: uploads.
    stream: CUstream,
    capture_info: CaptureInfo,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for NvidiaDriver {}
// SAFETY: as above; nothing changes after it is made.
unsafe impl Sync for NvidiaDriver {}

impl NvidiaDriver {
    /// The GPU of a number, shared by all who ask for it; [`Status::NoDevice`] with the reason if there is none that serves.
    pub fn open(ordinal: i32) -> Result<Arc<dyn Driver>> {
        static OPEN: Mutex<Vec<Weak<NvidiaDriver>>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|driver| driver.strong_count() > 0);
        if let Some(driver) = open.iter().filter_map(Weak::upgrade).find(|driver| driver.facts.ordinal == ordinal) {
            return Ok(driver);
        }
        let driver = Self::new(ordinal).map_err(|e| e.at(format_args!("cuda:{ordinal}")))?;
        let driver = Arc::new(driver);
        open.push(Arc::downgrade(&driver));
        Ok(driver)
    }

    fn new(ordinal: i32) -> Result<Self> {
        let capture_info = library::open()?;
        let no_device =
            |what: &'static str| move |e: Error| Error::new(Status::NoDevice, format!("{what}: {}", e.message()));
        // SAFETY: every function called here and below is there, as just checked; the pointers are to places of ours.
        unsafe {
            check(sys::cuInit(0)).map_err(no_device("the driver does not start"))?;
            let mut version = 0;
            check(sys::cuDriverGetVersion(&mut version)).map_err(no_device("the driver's version"))?;
            library::check_version(version)?;
            let mut count = 0;
            check(sys::cuDeviceGetCount(&mut count)).map_err(no_device("devices"))?;
            if !(0..count).contains(&ordinal) {
                return fail!(NoDevice, "there is no such device; the driver knows {count}");
            }
            let mut device = 0;
            check(sys::cuDeviceGet(&mut device, ordinal)).map_err(no_device("the device"))?;
            let facts = facts(device, ordinal).map_err(no_device("the device"))?;
            if facts.capability < (8, 0) {
                let (major, minor) = facts.capability;
                let name = &facts.name;
                return fail!(NoDevice, "{name} has compute capability {major}.{minor}; 8.0 is needed");
            }
            let mut context = null_mut();
            check(sys::cuDevicePrimaryCtxRetain(&mut context, device)).map_err(no_device("the device's context"))?;
            // From here on dropping it gives back what was had.
            let (module, functions, stream) = (null_mut(), Vec::new(), null_mut());
            let mut driver = Self { facts, device, context, module, functions, stream, capture_info };
            let entered = driver.enter().map_err(no_device("the device's context"))?;
            let loaded = driver.load();
            driver.leave(entered);
            loaded?;
            Ok(driver)
        }
    }

    /// Loads the kernels.
    ///
    /// # Safety
    /// The device is entered.
    unsafe fn load(&mut self) -> Result<()> {
        let mut refusal = None;
        for code in Code::fitting(self.facts.capability) {
            let image = code.unpack()?;
            // SAFETY: machine code, or PTX with a zero behind it.
            match check(unsafe { sys::cuModuleLoadData(&mut self.module, image.as_ptr().cast()) }) {
                Ok(()) => break,
                Err(e) => refusal = Some(e),
            }
        }
        let (major, minor) = self.facts.capability;
        if self.module.is_null() {
            let reason = refusal.map_or_else(|| "this build holds none".to_owned(), |e| e.message().to_owned());
            return fail!(NoDevice, "no kernels load for compute capability {major}.{minor}: {reason}");
        }
        for kernel in Kernel::ALL {
            let name = CString::new(kernel.symbol()).expect("a symbol holds no zero");
            let mut function = null_mut();
            // SAFETY: a loaded module, and a C string.
            check(unsafe { sys::cuModuleGetFunction(&mut function, self.module, name.as_ptr()) })
                .map_err(|e| Error::new(Status::NoDevice, format!("{}: {}", kernel.symbol(), e.message())))?;
            self.functions.push(function);
        }
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        for kernel in [Kernel::Screen, Kernel::Fast, Kernel::Product] {
            // SAFETY: a function of the module.
            check(unsafe { sys::cuFuncSetAttribute(self.functions[kernel as usize], most, SCREEN_SHARED as c_int) })
                .map_err(|e| Error::new(Status::NoDevice, format!("shared memory: {}", e.message())))?;
        }
        // SAFETY: a place of ours.
        check(unsafe { sys::cuStreamCreate(&mut self.stream, NON_BLOCKING) })
    }
}

/// Apart from the default stream.
const NON_BLOCKING: c_uint = 1;

/// # Safety
/// The driver has started.
unsafe fn facts(device: sys::CUdevice, ordinal: i32) -> Result<Facts> {
    use sys::CUdevice_attribute as Attribute;
    let mut name = [0 as c_char; 128];
    // SAFETY: places of ours; the driver ends the name with a zero.
    let name = unsafe {
        check(sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, device))?;
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: a place of ours.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) }).map(|()| value)
    };
    Ok(Facts {
        ordinal,
        name,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32,
    })
}

fn stream(handle: StreamHandle) -> CUstream {
    std::ptr::with_exposed_provenance_mut(handle.0 as usize)
}

fn event(handle: EventHandle) -> CUevent {
    std::ptr::with_exposed_provenance_mut(handle.0 as usize)
}

/// Of an event: it takes no times.
const NO_TIMES: c_uint = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
/// Of setting an event in a capture: part of the graph.
const RECORD_EXTERNAL: c_uint = sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as c_uint;
/// The same of awaiting one.
const WAIT_EXTERNAL: c_uint = sys::CUevent_wait_flags::CU_EVENT_WAIT_EXTERNAL as c_uint;

/// What the driver calls, from a thread that must not call it, when nobody can launch a graph any more.
unsafe extern "C" fn unpin(kept: *mut c_void) {
    // SAFETY: from `pin`, given back once.
    later::release(*unsafe { Box::from_raw(kept.cast::<Pinned>()) });
}

// SAFETY: memory is the driver's own, and the functions do what the driver's do.
unsafe impl Driver for NvidiaDriver {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn enter(&self) -> Result<u32> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: a context that is retained; a place of ours.
        unsafe {
            check(sys::cuCtxPushCurrent_v2(self.context))?;
            if let Err(e) = check(sys::cuThreadExchangeStreamCaptureMode(&mut mode)) {
                sys::cuCtxPopCurrent_v2(&mut null_mut());
                return Err(e);
            }
        }
        Ok(mode as u32)
    }

    fn leave(&self, entered: u32) {
        use sys::CUstreamCaptureMode as Mode;
        let modes = [
            Mode::CU_STREAM_CAPTURE_MODE_GLOBAL,
            Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            Mode::CU_STREAM_CAPTURE_MODE_RELAXED,
        ];
        let mut mode = modes.into_iter().find(|mode| *mode as u32 == entered).unwrap_or(modes[0]);
        // SAFETY: undoes what `enter` did.
        unsafe {
            sys::cuThreadExchangeStreamCaptureMode(&mut mode);
            sys::cuCtxPopCurrent_v2(&mut null_mut());
        }
    }

    fn allocate(&self, bytes: usize) -> Result<DevicePtr> {
        let mut at = 0;
        // SAFETY: a place of ours.
        check(unsafe { sys::cuMemAlloc_v2(&mut at, bytes) }).map_err(|e| {
            let (ordinal, reason) = (self.facts.ordinal, e.message());
            Error::new(e.status(), format!("cuda:{ordinal}: {bytes} bytes could not be allocated: {reason}"))
        })?;
        Ok(DevicePtr(at))
    }

    unsafe fn free(&self, memory: DevicePtr) {
        // SAFETY: the caller's promise. What the driver says is of no use here.
        unsafe { sys::cuMemFree_v2(memory.0) };
    }

    fn allocate_shared(&self, bytes: usize) -> Result<SharedMemory> {
        let (mut host, mut device): (*mut c_void, _) = (null_mut(), 0);
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: places of ours; the memory is as long as asked.
        unsafe {
            check(sys::cuMemHostAlloc(&mut host, bytes, flags))?;
            if let Err(e) = check(sys::cuMemHostGetDevicePointer_v2(&mut device, host, 0)) {
                sys::cuMemFreeHost(host);
                return Err(e);
            }
            host.cast::<u8>().write_bytes(0, bytes);
        }
        Ok(SharedMemory { host: host.cast(), device: DevicePtr(device) })
    }

    unsafe fn free_shared(&self, memory: SharedMemory) {
        // SAFETY: the caller's promise.
        unsafe { sys::cuMemFreeHost(memory.host.cast()) };
    }

    unsafe fn upload(&self, to: DevicePtr, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise; waits before the bytes may go.
        unsafe { check(sys::cuMemcpyHtoDAsync_v2(to.0, from.as_ptr().cast(), from.len(), self.stream))? };
        self.wait()
    }

    unsafe fn zero(&self, to: DevicePtr, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { check(sys::cuMemsetD8Async(to.0, 0, bytes, self.stream))? };
        self.wait()
    }

    unsafe fn fill(&self, to: DevicePtr, word: u32, times: usize, on: StreamHandle) -> Result<()> {
        // SAFETY: the caller's promise.
        check(unsafe { sys::cuMemsetD32Async(to.0, word, times, stream(on)) })
    }

    unsafe fn launch(&self, kernel: Kernel, shape: Shape, on: StreamHandle, params: &[u8]) -> Result<()> {
        let (function, (x, y)) = (self.functions[kernel as usize], shape.grid);
        let mut params = [params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the kernel takes one structure, which the driver copies; the rest is the caller's promise.
        check(unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                1,
                shape.block,
                1,
                1,
                shape.shared,
                stream(on),
                params.as_mut_ptr(),
                null_mut(),
            )
        })
        .map_err(|e| e.at(kernel.symbol()))
    }

    fn create_stream(&self) -> Result<StreamHandle> {
        let mut made = null_mut();
        // SAFETY: a place of ours.
        check(unsafe { sys::cuStreamCreate(&mut made, NON_BLOCKING) })?;
        Ok(StreamHandle(made.expose_provenance() as u64))
    }

    unsafe fn destroy_stream(&self, made: StreamHandle) {
        // SAFETY: the caller's promise; the driver waits for its work before it goes.
        unsafe { sys::cuStreamDestroy_v2(stream(made)) };
    }

    fn check_stream(&self, given: StreamHandle) -> Result<()> {
        let mut context = null_mut();
        // SAFETY: the host's stream, which it says is one; a place of ours.
        check(unsafe { sys::cuStreamGetCtx(stream(given), &mut context) }).map_err(|e| e.at("stream"))?;
        if context != self.context {
            let ordinal = self.facts.ordinal;
            return fail!(InvalidArgument, "the stream is not one of the primary context of cuda:{ordinal}");
        }
        Ok(())
    }

    fn capture(&self, on: StreamHandle) -> Result<Option<CaptureId>> {
        // SAFETY: a stream.
        Ok(unsafe { self.capture_info.of(stream(on))? }.map(|(id, _)| CaptureId(id)))
    }

    fn pin(&self, on: StreamHandle, kept: Pinned) -> Result<()> {
        // SAFETY: a stream.
        let Some((_, graph)) = (unsafe { self.capture_info.of(stream(on))? }) else {
            return fail!(Internal, "the stream is not being captured");
        };
        let kept = Box::into_raw(Box::new(kept));
        let unsynchronized = sys::CUuserObject_flags::CU_USER_OBJECT_NO_DESTRUCTOR_SYNC as c_uint;
        let ours_becomes_its = sys::CUuserObjectRetain_flags::CU_GRAPH_USER_OBJECT_MOVE as c_uint;
        let mut object = null_mut();
        // SAFETY: `unpin` takes what it is given here; a place of ours; the graph is being made by this capture.
        unsafe {
            if let Err(e) = check(sys::cuUserObjectCreate(&mut object, kept.cast(), Some(unpin), 1, unsynchronized)) {
                drop(Box::from_raw(kept));
                return Err(e);
            }
            check(sys::cuGraphRetainUserObject(graph, object, 1, ours_becomes_its))
                .inspect_err(|_| drop(check(sys::cuUserObjectRelease(object, 1))))
        }
    }

    fn create_event(&self) -> Result<EventHandle> {
        let mut made = null_mut();
        // SAFETY: a place of ours.
        check(unsafe { sys::cuEventCreate(&mut made, NO_TIMES) })?;
        Ok(EventHandle(made.expose_provenance() as u64))
    }

    unsafe fn destroy_event(&self, made: EventHandle) {
        // SAFETY: the caller's promise.
        unsafe { sys::cuEventDestroy_v2(event(made)) };
    }

    fn record(&self, mark: EventHandle, on: StreamHandle, when: When) -> Result<()> {
        // SAFETY: an event of ours, and a stream.
        check(unsafe {
            match when {
                When::Now => sys::cuEventRecord(event(mark), stream(on)),
                When::Replayed => sys::cuEventRecordWithFlags(event(mark), stream(on), RECORD_EXTERNAL),
            }
        })
    }

    fn wait_for(&self, mark: EventHandle, on: StreamHandle, when: When) -> Result<()> {
        let flags = if when == When::Replayed { WAIT_EXTERNAL } else { 0 };
        // SAFETY: as above.
        check(unsafe { sys::cuStreamWaitEvent(stream(on), event(mark), flags) })
    }

    fn await_event(&self, mark: EventHandle) -> Result<()> {
        // SAFETY: an event of ours.
        check(unsafe { sys::cuEventSynchronize(event(mark)) })
    }

    fn synchronize(&self, on: StreamHandle) -> Result<()> {
        // SAFETY: a stream.
        check(unsafe { sys::cuStreamSynchronize(stream(on)) })
    }

    fn fault(&self, on: StreamHandle) -> Result<()> {
        // SAFETY: a stream.
        match unsafe { sys::cuStreamQuery(stream(on)) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            result => check(result),
        }
    }
}

impl NvidiaDriver {
    fn wait(&self) -> Result<()> {
        // SAFETY: a stream of ours.
        check(unsafe { sys::cuStreamSynchronize(self.stream) })
    }
}

impl Drop for NvidiaDriver {
    fn drop(&mut self) {
        // SAFETY: what was made in `new`, given back once; the last user is gone.
        unsafe {
            if let Ok(entered) = self.enter() {
                if !self.stream.is_null() {
                    sys::cuStreamDestroy_v2(self.stream);
                }
                if !self.module.is_null() {
                    sys::cuModuleUnload(self.module);
                }
                self.leave(entered);
            }
            sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_named_with_the_reason() {
        let error = NvidiaDriver::open(9999).err().unwrap();
        assert_eq!(error.status(), Status::NoDevice);
        assert!(error.message().starts_with("cuda:9999: "), "{error}");
        // SAFETY: loads the library, if there is one.
        let reason = if unsafe { sys::is_culib_present() } { "" } else { "libcuda" };
        assert!(error.message().contains(reason), "{error}");
    }
}
