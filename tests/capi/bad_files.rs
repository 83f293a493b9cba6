//! Files that are cut off, corrupt or hostile, through `sae_model_load` and `sae_trainer_resume`: a status and a message that
//! names the file, never a crash, and no handle.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::{null, null_mut};

use sae::capi::*;

use crate::host::{init, ok, plan, refused};

/// Loads a file; if it is refused, checks how.
fn load(path: &Path, flags: u32) -> sae_status {
    let name = CString::new(path.to_str().unwrap()).unwrap();
    let mut options = init::<sae_load_options>();
    options.flags = flags;
    let (mut model, mut error) = (null_mut(), null_mut());
    let status = unsafe { sae_model_load(name.as_ptr(), &options, &mut model, &mut error) };
    if status == SAE_OK {
        assert!(error.is_null() && !model.is_null());
        unsafe { sae_model_free(model) };
        return status;
    }
    let message = unsafe { CStr::from_ptr(sae_error_message(error)) }.to_str().unwrap().to_owned();
    assert!(model.is_null());
    assert_ne!(status, SAE_ERROR_INTERNAL, "{message}");
    assert!(message.contains(path.file_name().unwrap().to_str().unwrap()), "{message} does not name the file");
    unsafe { sae_error_free(error) };
    status
}

#[test]
fn a_file_that_is_cut_off_or_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sae.safetensors");
    let name = CString::new(path.to_str().unwrap()).unwrap();
    ok(|e| unsafe { sae_model_save(plan().model().0, name.as_ptr(), null(), e) });
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(load(&path, 0), SAE_OK);
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;

    let spoiled = dir.path().join("spoiled.safetensors");
    for flags in [0, SAE_LOAD_MAP] {
        for len in (0..header).chain((header..whole.len()).step_by(13)) {
            std::fs::write(&spoiled, &whole[..len]).unwrap();
            assert_ne!(load(&spoiled, flags), SAE_OK, "cut off after {len} of {} bytes", whole.len());
        }
        // One byte changed: refused, or an SAE with another number.
        let mut refusals = 0;
        for at in (0..header).chain((header..whole.len()).step_by(17)) {
            for change in [0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                std::fs::write(&spoiled, &bytes).unwrap();
                refusals += usize::from(load(&spoiled, flags) != SAE_OK);
            }
        }
        assert!(refusals > header, "a changed header is hardly ever sound, but {refusals} of {header} were refused");
    }
}

#[test]
fn hostile_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile");
    let json = |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let files: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0; 7],
        vec![0xff; 64],
        (u64::MAX - 8).to_le_bytes().to_vec(),
        [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(),
        json("{}"),
        json("[]"),
        json(&"[".repeat(100_000)),
        json(&format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000))),
        json("{\"W_enc\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}"),
        json("{\"W_enc\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[18446744073709551612,0]}}"),
        json("{\"__metadata__\":{\"libsae\":\"{\\\"version\\\":1}\"}}"),
        json("{\"__metadata__\":{\"libsae\":\"{\\\"version\\\":99}\"}}"),
        b"PK\x03\x04 not a zip".to_vec(),
        b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(),
        b"\x80\x02cos\nsystem\nX\x02\0\0\0id\x85R.".to_vec(),
    ];
    for (i, bytes) in files.iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        for flags in [0, SAE_LOAD_MAP] {
            assert_ne!(load(&path, flags), SAE_OK, "file {i}");
        }
    }
}

#[test]
fn files_of_the_other_formats_cut_off() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dir = tempfile::tempdir().unwrap();
    let mut tried = 0;
    let mut folders = vec![golden];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "pt") && load(&path, 0) == SAE_OK {
                let whole = std::fs::read(&path).unwrap();
                let spoiled = dir.path().join("spoiled.pt");
                for part in 0..40 {
                    std::fs::write(&spoiled, &whole[..whole.len() * part / 40]).unwrap();
                    assert_ne!(load(&spoiled, 0), SAE_OK, "{} cut off at {part}/40", path.display());
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 0, "no .pt file was found among the goldens");
}

#[test]
fn broken_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let name = CString::new(dir.path().to_str().unwrap()).unwrap();
    let mut trainer = crate::host::misaligned();
    let mut resume = |e| unsafe { sae_trainer_resume(name.as_ptr(), null(), &mut trainer, e) };
    refused(SAE_ERROR_IO, "checkpoint.safetensors", &mut resume);
    for bytes in [&b""[..], b"short", &[0xff; 100]] {
        std::fs::write(dir.path().join("checkpoint.safetensors"), bytes).unwrap();
        refused(SAE_ERROR_FORMAT, "checkpoint.safetensors", &mut resume);
    }
    assert_eq!(trainer, crate::host::misaligned());
}
