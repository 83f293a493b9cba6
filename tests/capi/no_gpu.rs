//! Where there is no GPU, asking for one is answered with the reason, and everything else goes on.

use std::ffi::CString;
use std::ptr::null;

use sae::capi::*;

use crate::host::{Model, init, ok, plan, refused};

/// No machine has so many.
const NOWHERE: sae_device = sae_device { device_type: SAE_DEVICE_CUDA, device_id: 9999 };

fn saved() -> (tempfile::TempDir, CString) {
    let dir = tempfile::tempdir().unwrap();
    let path = CString::new(dir.path().join("sae").to_str().unwrap()).unwrap();
    ok(|e| unsafe { sae_model_save(plan().model().0, path.as_ptr(), null(), e) });
    (dir, path)
}

#[test]
fn loading_says_why_and_leaves_the_place_as_it_was() {
    let (_dir, path) = saved();
    let mut options = init::<sae_load_options>();
    options.device = NOWHERE;
    let place = 64 as *mut sae_model;
    let mut model = place;
    let message = refused(SAE_ERROR_NO_DEVICE, "options.device: cuda:9999: ", |e| unsafe {
        sae_model_load(path.as_ptr(), &options, &mut model, e)
    });
    let reasons = ["(libcuda) was not found", "there is no such device", "does not start", "is too old"];
    assert!(reasons.iter().any(|reason| message.contains(reason)), "{message}");
    assert_eq!(model, place);
    options.device = init::<sae_load_options>().device;
    ok(|e| unsafe { sae_model_load(path.as_ptr(), &options, &mut model, e) });
    drop(Model(model));
}

#[test]
fn memory_on_a_gpu_is_told_without_one() {
    let (_dir, path) = saved();
    let mut options = init::<sae_load_options>();
    let mut on_cpu = init::<sae_memory>();
    ok(|e| unsafe { sae_model_memory(path.as_ptr(), &options, &mut on_cpu, e) });
    assert_eq!(on_cpu.device, 0);
    for flags in [0, SAE_LOAD_MAP] {
        (options.device, options.flags) = (NOWHERE, flags);
        let mut on_gpu = init::<sae_memory>();
        ok(|e| unsafe { sae_model_memory(path.as_ptr(), &options, &mut on_gpu, e) });
        assert_eq!((on_gpu.device, on_gpu.resident + on_gpu.mapped), (on_cpu.resident, on_cpu.resident));
    }
}
