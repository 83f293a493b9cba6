//! Drivers that do not serve, and what is said of them.

use std::process::Command;

use sae::Status;
use sae::backend::cuda::{CudaModel, NvidiaDriver};

use crate::fake::{Fake, VARIANT, load};
use crate::scene::{Memory, on_device, on_processor, sae};

#[test]
fn drivers_and_devices_that_do_not_serve_are_refused_with_the_reason() {
    let fake = Fake::new();
    for (setting, value, ordinal, reason) in [
        ("init", 100, 0, "cuda:0: the driver does not start: what the fake says (CUDA_ERROR_OF_THE_FAKE)"),
        ("version", 11_080, 0, "cuda:0: the driver is of CUDA 11.8, which is too old; CUDA 12.0 is needed"),
        ("devices", 0, 0, "cuda:0: there is no such device; the driver knows 0"),
        ("devices", 2, 2, "cuda:2: there is no such device; the driver knows 2"),
        ("devices", 2, -1, "cuda:-1: there is no such device; the driver knows 2"),
        ("major", 7, 0, "cuda:0: a fake has compute capability 7.0; 8.0 is needed"),
        ("refuse_shared", 1, 0, "cuda:0: shared memory: what the fake says (CUDA_ERROR_OF_THE_FAKE)"),
    ] {
        let before = fake.get(setting);
        fake.set(setting, value);
        let error = NvidiaDriver::open(ordinal).err().unwrap();
        assert_eq!((error.status(), error.message()), (Status::NoDevice, reason));
        fake.set(setting, before);
        assert!(fake.is_clean() && fake.get("contexts") == 1 && fake.get("mode") == 0, "{setting}");
    }
    // Machine code that the driver does not take is passed over for PTX, and that is the last.
    fake.set("refuse_binaries", 1);
    drop(NvidiaDriver::open(0).unwrap());
    fake.set("refuse_ptx", 1);
    let error = NvidiaDriver::open(0).err().unwrap();
    assert!(error.message().starts_with("cuda:0: no kernels load for compute capability 9.0: "), "{error}");
    assert!(fake.is_clean());
}

#[test]
fn a_device_is_opened_once_and_closed_with_its_last_user() {
    let fake = Fake::new();
    let (one, two) = (NvidiaDriver::open(0).unwrap(), NvidiaDriver::open(0).unwrap());
    assert_eq!((fake.get("modules"), fake.get("retained")), (1, 1));
    assert_eq!((one.facts().capability, &*one.facts().name, one.facts().multiprocessors), ((9, 0), "a fake", 3));
    drop(one);
    assert_eq!(fake.get("modules"), 1);
    drop(two);
    assert!(fake.is_clean());
}

#[test]
fn what_goes_wrong_later_is_told_and_leaves_the_thread_as_it_was() {
    let fake = Fake::new();
    let sae = sae();
    fake.set("memory", 1000);
    let error = CudaModel::new(sae.clone(), 0).err().unwrap();
    assert_eq!(error.status(), Status::OutOfMemory);
    assert!(error.message().contains("bytes could not be allocated") && error.message().contains("cuda:0"), "{error}");
    assert!(fake.is_clean());
    fake.set("memory", 0);
    let mut session = on_device(&sae);
    fake.set("break_launch", 2);
    let error = Memory::new(0).encode(&mut session, Default::default()).unwrap_err();
    assert!(error.status() == Status::DeviceFault && error.message().starts_with("sae_"), "{error}");
    assert_eq!((fake.get("contexts"), fake.get("mode")), (1, 0));
    session.fault().unwrap();
    fake.set("broken", 1);
    assert_eq!(session.fault().unwrap_err().status(), Status::DeviceFault);
    fake.set("broken", 0);
    // A thread without any context is left without one.
    fake.enter(false);
    let mut memory = Memory::new(0);
    memory.encode(&mut session, sae::backend::Stream::Synchronous).unwrap();
    assert_eq!(fake.get("contexts"), 0);
    fake.enter(true);
    let mut expected = Memory::new(0);
    expected.encode(&mut on_processor(&sae), Default::default()).unwrap();
    assert_eq!(memory.results(), expected.results());
}

/// Runs a test of this file in a process of its own, with another library in the driver's place.
fn elsewhere(variant: &str, test: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--test-threads=1"])
        .env(VARIANT, variant)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_wrong_library_is_refused() {
    elsewhere("wrong", "opening::refuses_a_library_without_functions");
}

#[test]
#[ignore = "runs in a process of its own, where libcuda is another"]
fn refuses_a_library_without_functions() {
    load();
    let error = NvidiaDriver::open(0).err().unwrap();
    assert_eq!(error.status(), Status::NoDevice);
    assert_eq!(error.message(), "cuda:0: NVIDIA's driver library has no cuDriverGetVersion; it is too old");
}

#[test]
fn the_oldest_driver_that_serves_tells_of_captures_too() {
    elsewhere("OLD", "graphs::launches_come_in_turn_with_calls_and_edits_on_an_old_driver");
}
