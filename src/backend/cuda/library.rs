//! NVIDIA's driver library: whether it is there, is new enough and has every function that is called, and what its answers
//! mean. cudarc looks functions up when they are first called and panics at one that is missing, so all are asked for before.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use cudarc::driver::sys::{self, CUgraph, CUresult, CUstream, CUstreamCaptureStatus};

use crate::error::{Error, Result, Status, fail};

/// The oldest driver that serves, as the driver counts: CUDA 12.0.
const OLDEST: c_int = 12_000;

/// Every function of the driver that is called, but for those that tell of captures, of which one will do.
const SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGet",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuThreadExchangeStreamCaptureMode",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuFuncSetAttribute",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuMemsetD32Async",
    "cuLaunchKernel",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamGetCtx",
    "cuStreamSynchronize",
    "cuStreamQuery",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventRecordWithFlags",
    "cuEventSynchronize",
    "cuUserObjectCreate",
    "cuUserObjectRelease",
    "cuGraphRetainUserObject",
];

/// Tells of captures, in drivers before CUDA 12.3; later ones have it too, but it refuses graphs whose edges carry data.
const OLD_CAPTURE: &str = "cuStreamGetCaptureInfo_v2";
const NEW_CAPTURE: &str = "cuStreamGetCaptureInfo_v3";

type Capturing = CUstreamCaptureStatus;
type Nodes = *mut *const sys::CUgraphNode;
type OldCapture = unsafe extern "C" fn(CUstream, *mut Capturing, *mut u64, *mut CUgraph, Nodes, *mut usize) -> CUresult;
type NewCapture = unsafe extern "C" fn(
    CUstream,
    *mut Capturing,
    *mut u64,
    *mut CUgraph,
    Nodes,
    *mut *const c_void,
    *mut usize,
) -> CUresult;

/// How this driver is asked about captures.
#[derive(Clone, Copy)]
pub(super) enum CaptureInfo {
    Old(OldCapture),
    New(NewCapture),
}

impl CaptureInfo {
    /// The number of a capture and its graph, if the stream is being captured.
    ///
    /// # Safety
    /// The stream must be one.
    pub(super) unsafe fn of(self, stream: CUstream) -> Result<Option<(u64, CUgraph)>> {
        let (mut status, mut id, mut graph) = (Capturing::CU_STREAM_CAPTURE_STATUS_NONE, 0, null_mut());
        let (mut nodes, mut edges, mut count) = (null(), null(), 0);
        // SAFETY: the caller's promise, and places of ours.
        check(unsafe {
            match self {
                Self::Old(ask) => ask(stream, &mut status, &mut id, &mut graph, &mut nodes, &mut count),
                Self::New(ask) => ask(stream, &mut status, &mut id, &mut graph, &mut nodes, &mut edges, &mut count),
            }
        })?;
        match status {
            Capturing::CU_STREAM_CAPTURE_STATUS_NONE => Ok(None),
            Capturing::CU_STREAM_CAPTURE_STATUS_ACTIVE => Ok(Some((id, graph))),
            Capturing::CU_STREAM_CAPTURE_STATUS_INVALIDATED => {
                fail!(BadState, "the stream's capture has failed: an earlier call was not allowed in it; end it")
            }
        }
    }
}

/// Refuses a machine without the driver's library, or with one that lacks what is called.
pub(super) fn open() -> Result<CaptureInfo> {
    // SAFETY: loads the driver's library, whose initialisers are NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        return fail!(NoDevice, "NVIDIA's driver library (libcuda) was not found");
    }
    // SAFETY: as above.
    let library = unsafe { sys::culib() };
    for symbol in SYMBOLS {
        // SAFETY: the symbol is looked up, not called.
        if unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) }.is_err() {
            return fail!(NoDevice, "NVIDIA's driver library has no {symbol}; it is too old");
        }
    }
    // SAFETY: the functions are declared as in NVIDIA's cuda.h; they live as long as the library, which is never closed.
    unsafe {
        if let Ok(ask) = library.get::<NewCapture>(NEW_CAPTURE.as_bytes()) {
            return Ok(CaptureInfo::New(*ask));
        }
        match library.get::<OldCapture>(OLD_CAPTURE.as_bytes()) {
            Ok(ask) => Ok(CaptureInfo::Old(*ask)),
            Err(_) => fail!(NoDevice, "NVIDIA's driver library has no {OLD_CAPTURE}; it is too old"),
        }
    }
}

/// Refuses a driver that is too old.
pub(super) fn check_version(found: c_int) -> Result<()> {
    if found >= OLDEST {
        return Ok(());
    }
    let name = |v: c_int| format!("{}.{}", v / 1000, v % 1000 / 10);
    fail!(NoDevice, "the driver is of CUDA {}, which is too old; CUDA {} is needed", name(found), name(OLDEST))
}

/// What an answer of the driver's comes to for the caller.
fn status(result: CUresult) -> Status {
    match result {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Status::OutOfMemory,
        CUresult::CUDA_ERROR_INVALID_HANDLE | CUresult::CUDA_ERROR_INVALID_CONTEXT => Status::InvalidArgument,
        CUresult::CUDA_ERROR_NOT_SUPPORTED => Status::Unsupported,
        // Of captures: what cannot be captured, and what may not be done beside one.
        result if (900..=908).contains(&(result as u32)) => Status::BadState,
        _ => Status::DeviceFault,
    }
}

/// What the driver says, as an error with its own words.
pub(super) fn check(result: CUresult) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let words = |ask: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = null();
        // SAFETY: a place of ours.
        match unsafe { ask(result, &mut text) } {
            CUresult::CUDA_SUCCESS if !text.is_null() => {
                // SAFETY: the driver's texts are C strings, and last.
                unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
            }
            _ => format!("{}", result as u32),
        }
    };
    Err(Error::new(status(result), format!("{} ({})", words(sys::cuGetErrorString), words(sys::cuGetErrorName))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_drivers_are_refused_by_their_version() {
        assert!(check_version(12_000).is_ok() && check_version(13_020).is_ok());
        let error = check_version(11_080).unwrap_err();
        assert_eq!(error.status(), Status::NoDevice);
        assert_eq!(error.message(), "the driver is of CUDA 11.8, which is too old; CUDA 12.0 is needed");
    }

    #[test]
    fn answers_become_the_status_that_says_what_to_do() {
        for (result, expected) in [
            (CUresult::CUDA_ERROR_OUT_OF_MEMORY, Status::OutOfMemory),
            (CUresult::CUDA_ERROR_INVALID_HANDLE, Status::InvalidArgument),
            (CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, Status::BadState),
            (CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, Status::BadState),
            (CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, Status::BadState),
            (CUresult::CUDA_ERROR_TIMEOUT, Status::DeviceFault),
            (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, Status::DeviceFault),
            (CUresult::CUDA_ERROR_UNKNOWN, Status::DeviceFault),
        ] {
            assert_eq!(status(result), expected, "{result:?}");
        }
    }
}
