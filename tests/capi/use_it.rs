//! The ABI as it is meant: the numbers are the library's own, whoever calls and from wherever.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use sae::capi::*;

use crate::host::{Array, BF16, F16, Pool, init, numbers, ok, plan, refused, transcoder_plan};

#[test]
fn info_tells_what_a_saved_model_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = CString::new(dir.path().join("sae").to_str().unwrap()).unwrap();
    let mut plan = plan();
    let mut convention = init::<sae_convention>();
    let positions = [0u32, 5];
    convention.model_name = c"a model".as_ptr();
    convention.hook_point = c"l_out-8".as_ptr();
    (convention.excluded_positions, convention.n_excluded_positions) = (positions.as_ptr(), 2);
    (convention.prepend_bos, convention.folded_layer_norm, convention.context_size) = (SAE_YES, SAE_NO, 64);
    plan.desc.convention = &convention;
    (plan.desc.normalization, plan.desc.flags) = (SAE_NORMALIZATION_LAYER_NORM, SAE_MODEL_RESCALES);
    (plan.desc.first_latent, plan.desc.shard_of) = (100, 200);
    ok(|e| unsafe { sae_model_save(plan.model().0, path.as_ptr(), null(), e) });

    let mut options = init::<sae_load_options>();
    let mut known = init::<sae_convention>();
    known.centered_writing_weights = SAE_YES;
    (options.convention, options.dtype, options.first_latent, options.n_latents) = (&known, BF16, 2, 12);
    let mut memory = init::<sae_memory>();
    ok(|e| unsafe { sae_model_memory(path.as_ptr(), &options, &mut memory, e) });
    let mut model = null_mut();
    ok(|e| unsafe { sae_model_load(path.as_ptr(), &options, &mut model, e) });
    let model = crate::host::Model(model);
    let info = model.info();
    assert_eq!(memory.resident, info.bytes);
    assert_eq!((info.architecture, info.normalization), (SAE_ARCHITECTURE_TOP_K, SAE_NORMALIZATION_LAYER_NORM));
    assert_eq!((info.flags, info.row_state_width, info.k), (SAE_MODEL_RESCALES, 2, 4));
    assert_eq!((info.d_in, info.d_out, info.n_latents, info.first_latent, info.shard_of), (8, 8, 12, 102, 200));
    assert_eq!((info.dtype.code, info.dtype.bits, info.device.device_type), (SAE_DTYPE_BFLOAT, 16, SAE_DEVICE_CPU));
    assert_eq!((info.prepend_bos, info.folded_layer_norm, info.centered_writing_weights), (1, -1, 1));
    assert_eq!((info.context_size, info.n_excluded_positions), (64, 2));
    assert_eq!(unsafe { std::slice::from_raw_parts(info.excluded_positions, 2) }, positions);
    let text = |at: *const c_char| unsafe { CStr::from_ptr(at) }.to_str().unwrap();
    assert_eq!((text(info.format), text(info.model_name), text(info.hook_point)), ("native", "a model", "l_out-8"));
    assert_eq!(text(info.hook_point_transformer_lens), "blocks.8.hook_resid_post");
    assert_eq!((text(info.hook_point_hugging_face), text(info.hook_point_ggml)), ("model.layers.8", "l_out-8"));
    assert!(info.hook_point_out.is_null() && info.hook_point_out_ggml.is_null());

    // Indices are global in whatever asks for rows.
    let out = Array::f32(&[0.0; 16], &[2, 8]);
    ok(|e| unsafe { sae_model_read(model.0, SAE_WEIGHT_W_DEC, 103, 2, &out.tensor, e) });
    let stored = plan.weights[1].1.floats();
    for (read, stored) in out.floats().iter().zip(&stored[24..40]) {
        assert_eq!(*read, half::bf16::from_f32(*stored).to_f32());
    }
}

#[test]
fn a_model_given_in_parts_and_types() {
    // What is not given is zero, gaps between rows are skipped, and types are kept.
    let whole = transcoder_plan();
    let info = whole.model().info();
    assert_eq!((info.d_out, info.flags), (6, SAE_MODEL_KEEPS_B_DEC | SAE_MODEL_STAYS_NORMALIZED | SAE_MODEL_HAS_SKIP));
    assert!(info.format.is_null() && info.notes.is_null() && info.hook_point.is_null());
    let mut plan = plan();
    plan.weights.truncate(2);
    let wide = &mut plan.weights[0].1;
    let dense = wide.floats();
    wide.memory = dense.chunks(8).flat_map(|row| row.iter().map(|v| v.to_bits()).chain([0xffff_ffff; 3])).collect();
    wide.strides[0] = 11;
    wide.tensor.data = wide.memory.as_mut_ptr().cast();
    let model = plan.model();
    let (w, b) = (Array::f32(&[0.0; 128], &[16, 8]), Array::f32(&[9.0; 16], &[16]));
    ok(|e| unsafe { sae_model_read(model.0, SAE_WEIGHT_W_ENC, 0, 16, &w.tensor, e) });
    ok(|e| unsafe { sae_model_read(model.0, SAE_WEIGHT_B_ENC, 0, 16, &b.tensor, e) });
    assert_eq!((w.floats(), b.floats()), (dense, vec![0.0; 16]));
}

unsafe extern "C" fn threads_of_the_host(context: *mut c_void, n: usize, task: sae_task, arg: *mut c_void) {
    unsafe { &*context.cast::<AtomicBool>() }.store(true, Ordering::SeqCst);
    let (task, arg) = (task.unwrap(), arg as usize);
    std::thread::scope(|scope| {
        for i in 0..n {
            scope.spawn(move || unsafe { task(arg as *mut c_void, i) });
        }
    });
}

#[test]
fn every_pool_gives_the_same_bits() {
    let model = plan().model();
    let x = Array::f32(&numbers(64 * 8, 3), &[64, 8]);
    let encode = |pool: *const sae_pool| {
        let mut options = init::<sae_session_options>();
        options.pool = pool;
        let session = model.session(&options);
        let (values, indices, counts) =
            (Array::f32(&[0.0; 256], &[64, 4]), Array::i32(&[0; 256], &[64, 4]), Array::i32(&[0; 64], &[64]));
        let mut features = init::<sae_features>();
        (features.values, features.indices, features.counts) = (values.tensor, indices.tensor, counts.tensor);
        ok(|e| unsafe { sae_encode(session.0, null(), &x.tensor, null(), &features, e) });
        (values.memory.clone(), indices.memory.clone(), counts.memory.clone())
    };
    let serial = encode(null());
    let used = AtomicBool::new(false);
    let (mut own, mut host) = (null_mut(), null_mut());
    ok(|e| unsafe { sae_pool_create(3, &mut own, e) });
    ok(|e| unsafe {
        let context = std::ptr::from_ref(&used).cast_mut().cast();
        sae_pool_from_host(5, Some(threads_of_the_host), context, &mut host, e)
    });
    let (own, host) = (Pool(own), Pool(host));
    assert_eq!(unsafe { (sae_pool_threads(own.0), sae_pool_threads(host.0)) }, (3, 5));
    assert!(encode(own.0) == serial);
    assert!(encode(host.0) == serial);
    assert!(used.load(Ordering::SeqCst), "the host's threads were asked");
}

/// What a task does while the session it serves is busy: calls that session again.
struct Reentry {
    session: *mut sae_session,
    statuses: Mutex<Vec<sae_status>>,
}

unsafe extern "C" fn calls_again(context: *mut c_void, n: usize, task: sae_task, arg: *mut c_void) {
    let reentry = unsafe { &*context.cast::<Reentry>() };
    let status = unsafe { sae_set_edits(reentry.session, 0, null(), 0, null_mut()) };
    reentry.statuses.lock().unwrap().push(status);
    (0..n).for_each(|i| unsafe { task.unwrap()(arg, i) });
}

#[test]
fn a_call_into_a_busy_session_is_refused() {
    let mut reentry = Box::new(Reentry { session: null_mut(), statuses: Mutex::new(Vec::new()) });
    let mut pool = null_mut();
    ok(|e| unsafe { sae_pool_from_host(2, Some(calls_again), std::ptr::from_mut(&mut *reentry).cast(), &mut pool, e) });
    let pool = Pool(pool);
    let mut options = init::<sae_session_options>();
    options.pool = pool.0;
    let session = plan().model().session(&options);
    reentry.session = session.0;
    let x = Array::f32(&numbers(64 * 8, 3), &[64, 8]);
    let z = Array::f32(&numbers(64 * 16, 3), &[64, 16]);
    ok(|e| unsafe { sae_encode_dense(session.0, null(), &x.tensor, 0, &z.tensor, e) });
    let statuses = reentry.statuses.lock().unwrap();
    assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == SAE_ERROR_BAD_STATE), "{statuses:?}");
    ok(|e| unsafe { sae_set_edits(session.0, 0, null(), 0, e) });
}

#[test]
fn the_hosts_workspace_serves_as_well() {
    let model = plan().model();
    let mut options = init::<sae_session_options>();
    options.flags = SAE_SESSION_HOST_WORKSPACE;
    let mut memory = init::<sae_memory>();
    ok(|e| unsafe { sae_session_memory(model.0, &options, &mut memory, e) });
    let session = model.session(&options);
    let own = model.session(&init());
    let x = Array::f32(&numbers(24, 3), &[3, 8]);
    let (a, b) = (Array::f32(&[0.0; 24], &[3, 8]), Array::f32(&[0.0; 24], &[3, 8]));
    let reconstruct = |session: *mut sae_session, run: *const sae_run, out: &Array, e| unsafe {
        sae_reconstruct(session, run, &x.tensor, null(), null(), &out.tensor, e)
    };
    let bytes = memory.workspace.to_string();
    refused(SAE_ERROR_INVALID_ARGUMENT, &bytes, |e| reconstruct(session.0, null(), &a, e));
    let mut workspace = vec![0u8; memory.workspace as usize + 64];
    let at = workspace.as_mut_ptr();
    let mut run = init::<sae_run>();
    run.workspace = at.wrapping_add(at.align_offset(64)).cast();
    run.workspace_size = memory.workspace as usize;
    ok(|e| reconstruct(session.0, &run, &a, e));
    ok(|e| reconstruct(own.0, null(), &b, e));
    assert_eq!(a.memory, b.memory);
    assert!(memory.resident < memory.workspace, "a session in the host's workspace keeps little itself");
}

static LINES: Mutex<Vec<(i32, String)>> = Mutex::new(Vec::new());

unsafe extern "C" fn listen(level: i32, message: *const c_char, length: usize, context: *mut c_void) {
    assert!(context.is_null());
    let message = unsafe { CStr::from_ptr(message) }.to_str().unwrap();
    assert_eq!(message.len(), length);
    // Calls of the library are allowed from here.
    assert!(!sae_version().is_null());
    LINES.lock().unwrap().push((level, message.to_owned()));
}

#[test]
fn the_log_is_set_once() {
    unsafe {
        refused(SAE_ERROR_INVALID_ARGUMENT, "callback: is NULL", |e| sae_log_set(None, 3, null_mut(), e));
        refused(SAE_ERROR_INVALID_ARGUMENT, "level: expected 1 to 3, found 0", |e| {
            sae_log_set(Some(listen), 0, null_mut(), e)
        });
        ok(|e| sae_log_set(Some(listen), SAE_LOG_INFO, null_mut(), e));
        refused(SAE_ERROR_BAD_STATE, "one is set already", |e| sae_log_set(Some(listen), 3, null_mut(), e));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("logged.safetensors").to_str().unwrap().to_owned();
    let name = CString::new(path.clone()).unwrap();
    ok(|e| unsafe { sae_model_save(plan().model().0, name.as_ptr(), null(), e) });
    let mut model = null_mut();
    ok(|e| unsafe { sae_model_load(name.as_ptr(), null(), &mut model, e) });
    unsafe { sae_model_free(model) };
    let lines = LINES.lock().unwrap();
    let ours: Vec<_> = lines.iter().filter(|(_, line)| line.starts_with(&path)).collect();
    assert!(ours.len() == 2 && ours[1].1.contains("loaded top_k SAE of 16 latents over 8"), "{ours:?}");
}

#[test]
fn one_model_serves_many_threads() {
    let model = plan().model();
    let encode = |model: *const sae_model| {
        let mut session = null_mut();
        ok(|e| unsafe { sae_session_create(model, null(), &mut session, e) });
        let session = crate::host::Session(session);
        let x = Array::f32(&numbers(32 * 8, 5), &[32, 8]);
        let x_hat = Array::f32(&[0.0; 256], &[32, 8]);
        for _ in 0..20 {
            ok(|e| unsafe { sae_reconstruct(session.0, null(), &x.tensor, null(), null(), &x_hat.tensor, e) });
        }
        x_hat.memory.clone()
    };
    let alone = encode(model.0);
    let shared = model.0 as usize;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(move || encode(shared as *const sae_model))).collect();
        assert!(all.into_iter().all(|thread| thread.join().unwrap() == alone));
    });
}

#[test]
fn tensors_begin_where_they_say_and_hold_what_they_say() {
    let session = plan().model().session(&init());
    let encode = |x: &sae_tensor| {
        let (values, indices, counts) =
            (Array::f32(&[0.0; 12], &[3, 4]), Array::i32(&[0; 12], &[3, 4]), Array::i32(&[0; 3], &[3]));
        let mut features = init::<sae_features>();
        (features.values, features.indices, features.counts) = (values.tensor, indices.tensor, counts.tensor);
        ok(|e| unsafe { sae_encode(session.0, null(), x, null(), &features, e) });
        (values.memory.clone(), indices.memory.clone(), counts.memory.clone())
    };
    let numbers = numbers(24, 3);
    type Halves = (sae_dtype, fn(f32) -> u16, fn(u16) -> f32);
    let halves: [Halves; 2] = [
        (F16, |v| half::f16::from_f32(v).to_bits(), |v| half::f16::from_bits(v).to_f32()),
        (BF16, |v| half::bf16::from_f32(v).to_bits(), |v| half::bf16::from_bits(v).to_f32()),
    ];
    for (dtype, narrow, widen) in halves {
        let bits: Vec<u16> = numbers.iter().map(|&v| narrow(v)).collect();
        let wide: Vec<f32> = bits.iter().map(|&v| widen(v)).collect();
        let expected = encode(&Array::f32(&wide, &[3, 8]).tensor);
        // Rows ten elements apart, the first of them after three others.
        let mut strided = vec![u16::MAX; 3];
        strided.extend(bits.chunks(8).flat_map(|row| row.iter().copied().chain([u16::MAX; 2])));
        let mut x = Array::f32(&[0.0; 24], &[3, 8]);
        (x.tensor.data, x.tensor.byte_offset, x.tensor.dtype) = (strided.as_mut_ptr().cast(), 6, dtype);
        x.strides[0] = 10;
        assert!(encode(&x.tensor) == expected);
    }
    let mut x = Array::f32(&numbers, &[3, 8]);
    let expected = encode(&x.tensor);
    x.tensor.strides = null_mut();
    assert!(encode(&x.tensor) == expected, "no strides: row-major");
}
