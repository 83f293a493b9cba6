//! Which instruction set computes: the host's choice, the environment's, or the machine's best.

use std::ffi::{CStr, CString};
use std::process::Command;
use std::ptr::{null, null_mut};

use sae::capi::*;

use crate::host::{Array, Model, Session, init, numbers, ok, plan, refused};

fn names() -> Vec<&'static CStr> {
    (0..).map_while(|i| unsafe { sae_kernels_name(i).as_ref() }).map(|name| unsafe { CStr::from_ptr(name) }).collect()
}

fn used(session: &Session) -> &'static CStr {
    unsafe { CStr::from_ptr(sae_session_kernels(session.0)) }
}

fn session(model: &Model, kernels: Option<&CStr>) -> Session {
    let mut options = init::<sae_session_options>();
    options.kernels = kernels.map_or(null(), CStr::as_ptr);
    model.session(&options)
}

#[test]
fn every_set_of_the_machine_gives_the_same_bits() {
    let (names, model) = (names(), plan().model());
    assert_eq!(names[0], c"scalar");
    let x = Array::f32(&numbers(64 * 8, 3), &[64, 8]);
    let rebuilt = |name: &&CStr| {
        let session = session(&model, Some(name));
        assert_eq!(used(&session), *name);
        let out = Array::f32(&[0.0; 64 * 8], &[64, 8]);
        ok(|e| unsafe { sae_reconstruct(session.0, null(), &x.tensor, null(), null(), &out.tensor, e) });
        out.memory
    };
    let all: Vec<_> = names.iter().map(rebuilt).collect();
    assert!(all.iter().all(|bits| *bits == all[0]));
}

#[test]
fn a_set_that_is_not_there_is_refused_by_name() {
    let (names, model) = (names(), plan().model());
    let mut options = init::<sae_session_options>();
    for (wrong, named) in [(c"sse9", "options.kernels: expected a set"), (c"", "found \"\""), (c"scalar ", "scalar \"")]
    {
        options.kernels = wrong.as_ptr();
        let mut session = null_mut();
        let message = refused(SAE_ERROR_UNSUPPORTED, named, |e| unsafe {
            sae_session_create(model.0, &options, &mut session, e)
        });
        assert!(names.iter().all(|name| message.contains(name.to_str().unwrap())), "{message}");
        let mut memory = init();
        refused(SAE_ERROR_UNSUPPORTED, named, |e| unsafe { sae_session_memory(model.0, &options, &mut memory, e) });
    }
    options.kernels = c"\xff".as_ptr();
    let mut session = null_mut();
    refused(SAE_ERROR_INVALID_ARGUMENT, "options.kernels: ", |e| unsafe {
        sae_session_create(model.0, &options, &mut session, e)
    });
    // A host older than the choice does not make one.
    options.struct_size = std::mem::offset_of!(sae_session_options, kernels);
    ok(|e| unsafe { sae_session_create(model.0, &options, &mut session, e) });
    assert_eq!(used(&Session(session)), *names.last().unwrap());
}

#[test]
fn the_environment_may_choose() {
    let fastest = names().last().unwrap().to_str().unwrap();
    let forced = names().into_iter().map(|name| name.to_str().unwrap()).map(|name| (name, name));
    for (wish, expected) in forced.chain([("", fastest), ("sse9", "refused")]) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--ignored", "--exact", "kernels::under_the_environments_choice"]);
        let output = child.env("SAE_KERNELS", wish).env("EXPECTED", expected).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "SAE_KERNELS={wish}: {said}");
    }
}

#[test]
#[ignore = "for processes of its own, with SAE_KERNELS set"]
fn under_the_environments_choice() {
    let model = plan().model();
    let mut options = init::<sae_train_options>();
    (options.d, options.n_latents, options.k) = (8, 16, 4);
    let (mut made, mut trainer) = (null_mut(), null_mut());
    match std::env::var("EXPECTED").unwrap().as_str() {
        "refused" => {
            let named = "SAE_KERNELS: expected a set that this machine runs (scalar";
            refused(SAE_ERROR_UNSUPPORTED, named, |e| unsafe { sae_session_create(model.0, null(), &mut made, e) });
            refused(SAE_ERROR_UNSUPPORTED, named, |e| unsafe { sae_trainer_create(&options, &mut trainer, e) });
        }
        expected => {
            assert_eq!(used(&session(&model, None)), &*CString::new(expected).unwrap());
            ok(|e| unsafe { sae_trainer_create(&options, &mut trainer, e) });
            unsafe { sae_trainer_free(trainer) };
        }
    }
    // The host's word goes above the environment's.
    assert_eq!(used(&session(&model, Some(c"scalar"))), c"scalar");
}
