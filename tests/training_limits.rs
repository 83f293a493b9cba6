//! A trainer under a limit of memory: every call either works or says that memory could not be had; none ends the process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::path::Path;

use sae::backend::Pool;
use sae::tensor::Tensor;
use sae::training::{Export, TrainOptions, Trainer};
use sae::{Result, Status};

const D: usize = 256;
const N: usize = 8192;
/// Bytes of a matrix.
const MATRIX: usize = 4 * N * D;

fn options() -> TrainOptions {
    TrainOptions { d: D, n_latents: N, k: 4, max_batch_tokens: 64, ..TrainOptions::default() }
}

#[test]
fn little_memory_is_an_error_and_not_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child_has_little_memory", "--include-ignored", "--nocapture"]);
    // So that no memory is kept back that the limit does not see.
    child.env("MALLOC_ARENA_MAX", "1").env("MALLOC_MMAP_THRESHOLD_", "131072");
    // Blocks of the size of a vector or a message come from a heap that already has room for them: what is tested is what
    // grows with the SAE.
    child.env("MALLOC_TOP_PAD_", "16777216").env("MALLOC_TRIM_THRESHOLD_", "1073741824");
    let output = child.env("CHECKPOINT_FOLDER", folder.path()).output().unwrap();
    assert!(output.status.success(), "{:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "run by little_memory_is_an_error_and_not_the_end"]
fn child_has_little_memory() {
    let folder = std::env::var_os("CHECKPOINT_FOLDER").expect("set by the parent");
    let folder = Path::new(&folder);
    let x: Vec<f32> = (0..64 * D).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
    let x = Tensor::new(&x, &[64, D]).unwrap();
    let start = || Trainer::new(&options(), Pool::serial()).unwrap();

    let mut trainer = start();
    with_more_and_more_memory("init_from", || trainer.init_from(&x));
    trainer.step(&x.into()).unwrap();
    with_more_and_more_memory("save", || trainer.save(folder));
    with_more_and_more_memory("export", || trainer.export(Export::Weights).map(drop));
    with_more_and_more_memory("export the average", || trainer.export(Export::Ema).map(drop));
    with_more_and_more_memory("resume", || Trainer::resume(folder, &TrainOptions::default(), Pool::serial()).map(drop));
    let sae = trainer.export(Export::Weights).unwrap();
    let mut warm = start();
    with_more_and_more_memory("warm_start", || warm.warm_start(&sae, &x));
}

/// Repeats a call with ever more room than the process has now, until it works.
fn with_more_and_more_memory(what: &str, mut call: impl FnMut() -> Result<()>) {
    let mut refused = 0;
    loop {
        limit(address_space() + MATRIX / 8 + refused * MATRIX / 3);
        let result = call();
        limit(libc::RLIM_INFINITY as usize);
        match result {
            Ok(()) => break,
            Err(error) => assert_eq!(error.status(), Status::OutOfMemory, "{what}: {error}"),
        }
        refused += 1;
        assert!(refused < 100, "{what} never works");
    }
    assert!(refused > 0, "{what} needs so little memory that this means nothing");
}

fn limit(bytes: usize) {
    let limit = libc::rlimit { rlim_cur: bytes as libc::rlim_t, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a plain call into libc with valid arguments.
    #[allow(unsafe_code)]
    let outcome = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(outcome, 0);
}

/// Bytes of the process's address space.
fn address_space() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').next().unwrap().parse().unwrap();
    // SAFETY: a plain call into libc.
    #[allow(unsafe_code)]
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * page as usize
}
