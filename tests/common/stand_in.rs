//! The CUDA kernels on the processor: compiled as C++ against the stand-in for the execution model, and launched from here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, TryLockError};

use sae::backend::cuda::params::Params;

type Launch = unsafe extern "C" fn(
    *const c_char,
    *const u32,
    *const u32,
    usize,
    *const c_void,
    usize,
    u64,
    *mut c_char,
    usize,
) -> c_int;

type Symbol = unsafe extern "C" fn(usize) -> *const c_char;

/// Kernels in shared objects: one of them has one set of shared memory and thread indices, and so runs one launch at a time;
/// tests that run side by side each find another.
pub struct StandIn {
    engines: Vec<Mutex<Launch>>,
    symbol: Symbol,
}

impl StandIn {
    /// The library's kernels.
    pub fn kernels() -> &'static Self {
        static KERNELS: LazyLock<StandIn> = LazyLock::new(|| StandIn::build("kernels", None));
        &KERNELS
    }

    /// Compiles and loads kernels: the library's, or those of a source of the tests.
    pub fn build(name: &str, source: Option<&Path>) -> Self {
        let kernels = source.map(|source| format!("-DSTAND_IN_KERNELS=\"{}\"", source.display()));
        let made = compile(name, &kernel_sources().join("stand_in/host.cpp"), kernels.as_slice());
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let loaded: Vec<_> = (0..count).map(|i| load(&made, i)).collect();
        std::fs::remove_file(made).unwrap();
        let symbol = loaded[0].1;
        Self { engines: loaded.into_iter().map(|(launch, _)| Mutex::new(launch)).collect(), symbol }
    }

    /// An engine that has nothing to do, or else the first that comes free.
    fn engine(&self) -> MutexGuard<'_, Launch> {
        for engine in &self.engines {
            match engine.try_lock() {
                Ok(engine) => return engine,
                Err(TryLockError::Poisoned(engine)) => return engine.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.engines[0].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernels' names.
    pub fn symbols(&self) -> Vec<String> {
        // SAFETY: takes any number, and gives a string that lives as long as the object, or null.
        let symbols = (0..).map(|i| unsafe { (self.symbol)(i) }).take_while(|symbol| !symbol.is_null());
        // SAFETY: as above.
        symbols.map(|symbol| unsafe { CStr::from_ptr(symbol) }.to_str().unwrap().to_owned()).collect()
    }

    /// Runs a kernel to its end. Every seed but 0 is an order of its own.
    ///
    /// # Safety
    /// The parameters are what the kernel asks for, and point to memory that has room for what it reads and writes.
    pub unsafe fn try_launch(
        &self,
        symbol: &str,
        (grid, block): ([u32; 3], [u32; 3]),
        shared: usize,
        params: &[u8],
        seed: u64,
    ) -> Result<(), String> {
        let (name, mut message) = (CString::new(symbol).unwrap(), [0u8; 256]);
        // SAFETY: the caller's promise.
        let code = unsafe {
            (self.engine())(
                name.as_ptr(),
                grid.as_ptr(),
                block.as_ptr(),
                shared,
                params.as_ptr().cast(),
                params.len(),
                seed,
                message.as_mut_ptr().cast(),
                message.len(),
            )
        };
        match code {
            0 => Ok(()),
            4 => Err(CStr::from_bytes_until_nul(&message).unwrap().to_str().unwrap().to_owned()),
            code => {
                Err(format!("{symbol}: {}", ["", "no such kernel", "not its parameters", "not a block"][code as usize]))
            }
        }
    }

    /// Runs one of the library's kernels, which must succeed.
    ///
    /// # Safety
    /// As [`Self::try_launch`].
    pub unsafe fn launch<P: Params>(&self, grid: [u32; 2], block: u32, shared: u32, params: &P, seed: u64) {
        if grid.contains(&0) {
            return; // CUDA refuses such a grid; there is nothing to do
        }
        let shape = ([grid[0], grid[1], 1], [block, 1, 1]);
        // SAFETY: the caller's promise.
        unsafe { self.try_launch(P::KERNEL.symbol(), shape, shared as usize, bytemuck::bytes_of(params), seed) }
            .unwrap();
    }
}

/// Loads a copy of a shared object, apart from all others.
fn load(made: &Path, number: usize) -> (Launch, Symbol) {
    let copy = made.with_extension(format!("{number}.so"));
    std::fs::copy(made, &copy).unwrap();
    let path = CString::new(copy.to_str().unwrap()).unwrap();
    // SAFETY: the object was just made; its functions are what host.cpp says they are.
    let loaded = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        assert!(!library.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
        let function = |name: &CStr| {
            let found = libc::dlsym(library, name.as_ptr());
            assert!(!found.is_null(), "{name:?}");
            found
        };
        (
            std::mem::transmute::<*mut c_void, Launch>(function(c"stand_in_launch")),
            std::mem::transmute::<*mut c_void, Symbol>(function(c"stand_in_symbol")),
        )
    };
    std::fs::remove_file(copy).unwrap();
    loaded
}

/// Compiles a shared object against the stand-in, for this process.
pub fn compile(name: &str, source: &Path, arguments: &[String]) -> PathBuf {
    let folder = kernel_sources();
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.so", std::process::id()));
    let mut command = Command::new("g++");
    command.args(["-std=c++17", "-O2", "-g", "-ffp-contract=off", "-fPIC", "-shared", "-pthread"]);
    // What is shared within one object is not shared among several.
    command.arg("-fno-gnu-unique");
    command.args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-but-set-variable"]);
    command.args(arguments).arg("-I").arg(&folder).arg(source).arg("-o").arg(&out);
    let output = command.output().expect("g++ compiles the kernels for the processor; .ci/run shows what to install");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

pub fn kernel_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cuda/kernels")
}
