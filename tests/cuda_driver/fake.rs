//! The library in libcuda's place, loaded under its name, and what tests ask of it beyond what libsae does.
#![allow(unused_unsafe, reason = "the macro is used within unsafe blocks and without")]

use std::ffi::{CStr, CString, c_char, c_int, c_longlong, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::common::stand_in::compile;

/// Where the fake is wanted that is compiled with something defined, or another library altogether.
pub(crate) const VARIANT: &str = "SAE_FAKE_DRIVER";

struct Library(*mut c_void);

unsafe impl Send for Library {}
unsafe impl Sync for Library {}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    // A library that is loaded already is found by the name that it gives itself.
    let mut arguments = vec!["-Wl,-soname,libcuda.so".to_owned()];
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_driver");
    let source = match std::env::var(VARIANT) {
        Ok(variant) if variant == "wrong" => source.join("wrong.cpp"),
        Ok(variant) => {
            arguments.push(format!("-D{variant}"));
            source.join("libcuda.cpp")
        }
        Err(_) => source.join("libcuda.cpp"),
    };
    let path = compile("libcuda", &source, &arguments);
    let name = CString::new(path.to_str().unwrap()).unwrap();
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!library.is_null(), "{:?}", unsafe { CStr::from_ptr(libc::dlerror()) });
    std::fs::remove_file(path).unwrap();
    Library(library)
});

/// Loads it without asking anything of it.
pub(crate) fn load() {
    LazyLock::force(&LIBRARY);
}

macro_rules! function {
    ($name:literal: ($($argument:ty),*) -> $result:ty) => {{
        let found = unsafe { libc::dlsym(LIBRARY.0, concat!($name, "\0").as_ptr().cast()) };
        assert!(!found.is_null(), $name);
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(found) }
    }};
}

fn ok(result: c_int) {
    assert_eq!(result, 0);
}

/// A host's thread that has the device; one test at a time.
pub(crate) struct Fake(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Fake {
    pub(crate) fn new() -> Self {
        static ONE: Mutex<()> = Mutex::new(());
        let fake = Self(ONE.lock().unwrap_or_else(PoisonError::into_inner));
        for (name, value) in [("version", 13_000), ("devices", 1), ("major", 9), ("minor", 0), ("lazy", 1), ("seed", 1)]
        {
            fake.set(name, value);
        }
        for name in ["init", "memory", "broken", "break_launch"] {
            fake.set(name, 0);
        }
        for name in ["refuse_binaries", "refuse_ptx", "refuse_shared", "refuse_objects", "refuse_retains"] {
            fake.set(name, 0);
        }
        fake.enter(true);
        fake
    }

    pub(crate) fn set(&self, name: &str, value: i64) {
        let name = CString::new(name).unwrap();
        unsafe { function!("fake_set": (*const c_char, c_longlong) -> ())(name.as_ptr(), value) }
    }

    pub(crate) fn get(&self, name: &str) -> i64 {
        let name = CString::new(name).unwrap();
        unsafe { function!("fake_get": (*const c_char) -> c_longlong)(name.as_ptr()) }
    }

    /// Puts the device's context onto this thread's stack, or takes it off.
    pub(crate) fn enter(&self, on: bool) {
        unsafe { function!("fake_context": (c_int) -> ())(on.into()) }
    }

    /// What was done that is not allowed, since the last time.
    pub(crate) fn faults(&self) -> String {
        let text = unsafe { function!("fake_fault": () -> *const c_char)() };
        unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
    }

    /// Waits until everything was given back, as what a thread of the driver's sets off is some time later.
    pub(crate) fn is_clean(&self) -> bool {
        let until = Instant::now() + Duration::from_secs(20);
        let what = ["blocks", "events", "streams", "modules", "retained"];
        while what.iter().any(|what| self.get(what) != 0) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        what.iter().all(|what| self.get(what) == 0)
    }

    pub(crate) fn stream(&self, non_blocking: bool) -> Stream {
        let mut stream = null_mut();
        let create = function!("cuStreamCreate": (*mut *mut c_void, u32) -> c_int);
        ok(unsafe { create(&mut stream, non_blocking.into()) });
        Stream(stream)
    }

    /// A stream of another context.
    pub(crate) fn foreign_stream(&self) -> u64 {
        unsafe { function!("fake_foreign_stream": () -> *mut c_void)() }.addr() as u64
    }

    /// Captures what is put on a stream meanwhile; global as torch does it.
    pub(crate) fn capture(&self, stream: &Stream, work: impl FnOnce()) -> Result<Graph, c_int> {
        let begin = function!("cuStreamBeginCapture_v2": (*mut c_void, c_int) -> c_int);
        let end = function!("cuStreamEndCapture": (*mut c_void, *mut *mut c_void) -> c_int);
        let instantiate = function!("cuGraphInstantiateWithFlags": (*mut *mut c_void, *mut c_void, u64) -> c_int);
        ok(unsafe { begin(stream.0, 0) });
        work();
        let (mut graph, mut exec) = (null_mut(), null_mut());
        match unsafe { end(stream.0, &mut graph) } {
            0 => ok(unsafe { instantiate(&mut exec, graph, 0) }),
            error => return Err(error),
        }
        Ok(Graph { graph, exec })
    }

    /// Has a second stream take part in a capture.
    pub(crate) fn fork(&self, from: &Stream, to: &Stream) {
        ok(unsafe { function!("fake_fork": (*mut c_void, *mut c_void) -> c_int)(from.0, to.0) });
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.enter(false);
        let faults = self.faults();
        assert!(std::thread::panicking() || faults.is_empty(), "{faults}");
    }
}

/// A host's stream.
pub(crate) struct Stream(*mut c_void);

impl Stream {
    pub(crate) fn handle(&self) -> u64 {
        self.0.expose_provenance() as u64
    }

    pub(crate) fn wait(&self) {
        ok(unsafe { function!("cuStreamSynchronize": (*mut c_void) -> c_int)(self.0) });
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        ok(unsafe { function!("cuStreamDestroy_v2": (*mut c_void) -> c_int)(self.0) });
    }
}

/// What was captured, ready to launch.
pub(crate) struct Graph {
    graph: *mut c_void,
    exec: *mut c_void,
}

impl Graph {
    pub(crate) fn launch(&self, on: &Stream) {
        ok(unsafe { function!("cuGraphLaunch": (*mut c_void, *mut c_void) -> c_int)(self.exec, on.0) });
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        ok(unsafe { function!("cuGraphExecDestroy": (*mut c_void) -> c_int)(self.exec) });
        ok(unsafe { function!("cuGraphDestroy": (*mut c_void) -> c_int)(self.graph) });
    }
}
