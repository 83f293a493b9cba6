//! Everything a caller can get wrong in making, asking and saving models, sessions and pools.

use std::ffi::{CStr, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

use sae::capi::*;

use crate::host::{Array, BF16, I32, Plan, init, misaligned, ok, plan, refused};

const ARGUMENT: sae_status = SAE_ERROR_INVALID_ARGUMENT;
const TENSOR: sae_status = SAE_ERROR_INVALID_TENSOR;

static RELEASED: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" fn release(_: *mut c_void) {
    RELEASED.fetch_add(1, Ordering::SeqCst);
}

/// All that `sae_model_from_weights` takes.
struct Making {
    plan: Plan,
    options: Box<sae_load_options>,
    convention: Box<sae_convention>,
    positions: Vec<u32>,
    named: Vec<sae_named_tensor>,
    desc_at: *const sae_model_desc,
    named_at: *const sae_named_tensor,
    count: usize,
    options_at: *const sae_load_options,
}

impl Making {
    fn new() -> Box<Self> {
        let mut making = Box::new(Self {
            plan: plan(),
            options: Box::new(init()),
            convention: Box::new(init()),
            positions: vec![0, 1],
            named: Vec::new(),
            desc_at: null(),
            named_at: null(),
            count: 4,
            options_at: null(),
        });
        making.named = making.plan.named();
        making.desc_at = &making.plan.desc;
        making.named_at = making.named.as_ptr();
        making.options_at = &*making.options;
        making.convention.excluded_positions = making.positions.as_ptr();
        making.convention.n_excluded_positions = 2;
        making.options.convention = &*making.convention;
        making
    }

    fn call(&self, out: *mut *mut sae_model, e: *mut *mut sae_error) -> sae_status {
        unsafe { sae_model_from_weights(self.desc_at, self.named_at, self.count, self.options_at, out, e) }
    }
}

#[test]
fn weights_in_memory() {
    type Spoil = fn(&mut Making);
    let table: &[(sae_status, &str, Spoil)] = &[
        (ARGUMENT, "desc: is NULL", |m| m.desc_at = null()),
        (ARGUMENT, "desc.struct_size: 4", |m| m.plan.desc.struct_size = 4),
        (ARGUMENT, "desc.architecture: 0", |m| (m.plan.desc.architecture, m.plan.desc.k) = (0, 0)),
        (ARGUMENT, "desc.architecture: 77", |m| (m.plan.desc.architecture, m.plan.desc.k) = (77, 0)),
        (ARGUMENT, "desc.normalization: 9", |m| m.plan.desc.normalization = 9),
        (ARGUMENT, "desc.flags: bits 0x8", |m| m.plan.desc.flags = SAE_MODEL_HAS_SKIP),
        (ARGUMENT, "desc.reserved: 1", |m| m.plan.desc.reserved = 1),
        (ARGUMENT, "desc: k must be at least 1", |m| m.plan.desc.k = 0),
        (ARGUMENT, "desc.k: -1", |m| m.plan.desc.k = -1),
        (ARGUMENT, "desc.k: is 4, but this architecture has no such number", |m| {
            m.plan.desc.architecture = SAE_ARCHITECTURE_RELU;
        }),
        (ARGUMENT, "desc: k: 16 latents do not make 5 groups", |m| {
            (m.plan.desc.architecture, m.plan.desc.k) = (SAE_ARCHITECTURE_GROUP_MAX, 5);
        }),
        (ARGUMENT, "r_mag [16] is missing", |m| {
            (m.plan.desc.architecture, m.plan.desc.k) = (SAE_ARCHITECTURE_GATED, 0);
        }),
        (ARGUMENT, "weights: b_gate is missing", |m| m.named[2].name = c"r_mag".as_ptr()),
        (ARGUMENT, "weights: r_mag is missing", |m| m.named[2].name = c"b_gate".as_ptr()),
        (ARGUMENT, "weights: W_glu is missing", |m| m.named[2].name = c"b_glu".as_ptr()),
        (TENSOR, "W_glu: expected shape [16, 8]", |m| m.named[2].name = c"W_glu".as_ptr()),
        (ARGUMENT, "exclude each other", |m| m.plan.desc.flags = SAE_MODEL_RESCALES | SAE_MODEL_SELECTS),
        (ARGUMENT, "desc: layers_in: a width of 8 is not made of 3 layers", |m| m.plan.desc.layers_in = 3),
        (ARGUMENT, "desc.layers_out: -1", |m| m.plan.desc.layers_out = -1),
        (ARGUMENT, "desc.prefixes: is NULL", |m| m.plan.desc.n_prefixes = 2),
        (ARGUMENT, "desc.prefixes: -4", |m| {
            (m.plan.desc.prefixes, m.plan.desc.n_prefixes) = ([-4i64, 16].as_ptr(), 2);
        }),
        (ARGUMENT, "prefixes [4, 8] must ascend to all 16", |m| {
            (m.plan.desc.prefixes, m.plan.desc.n_prefixes) = ([4i64, 8].as_ptr(), 2);
        }),
        (ARGUMENT, "desc: d_in must be between", |m| m.plan.desc.d_in = 0),
        (ARGUMENT, "desc.d_in: -8", |m| m.plan.desc.d_in = -8),
        (ARGUMENT, "n_latents must be between", |m| m.plan.desc.n_latents = 1 << 31),
        (ARGUMENT, "latents 4..+16 are not a part of an SAE's 16", |m| m.plan.desc.first_latent = 4),
        (ARGUMENT, "latents 5..+16 are not a part of an SAE's 20", |m| {
            (m.plan.desc.first_latent, m.plan.desc.shard_of) = (5, 20);
        }),
        (ARGUMENT, "latents 0..+16 are not a part", |m| m.plan.desc.shard_of = i64::MAX),
        (ARGUMENT, "b_dec [6] cannot be subtracted", |m| m.plan.desc.d_out = 6),
        (ARGUMENT, "weights: is NULL", |m| m.named_at = null()),
        (ARGUMENT, "weights: 0x", |m| m.named_at = misaligned()),
        (ARGUMENT, "weights[2].name: is NULL", |m| m.named[2].name = null()),
        (ARGUMENT, "weights[2].name: expected one of W_enc", |m| m.named[2].name = c"W_Enc".as_ptr()),
        (ARGUMENT, "weights[2]: name: \"\\xff\" is not UTF-8", |m| m.named[2].name = c"\xff".as_ptr()),
        (ARGUMENT, "weights[3].name: \"W_enc\" is given twice", |m| m.named[3].name = c"W_enc".as_ptr()),
        (ARGUMENT, "weights: W_dec is missing", |m| m.count = 1),
        (ARGUMENT, "weights: W_enc is missing", |m| m.count = 0),
        (ARGUMENT, "threshold [16] is missing", |m| (m.plan.desc.architecture, m.plan.desc.k) = (3, 0)),
        (ARGUMENT, "threshold is given", |m| m.named[2].name = c"threshold".as_ptr()),
        (TENSOR, "W_enc: expected shape [16, 8], found [15, 8]", |m| m.plan.weights[0].1.shape[0] = 15),
        (TENSOR, "W_dec: expected f32, f16 or bf16", |m| m.named[1].tensor.dtype = I32),
        (TENSOR, "b_enc: expected shape [16], found [8]", |m| m.plan.weights[2].1.shape[0] = 8),
        (TENSOR, "b_dec: the data pointer is null", |m| m.named[3].tensor.data = null_mut()),
        (TENSOR, "W_enc: is on cuda:0", |m| m.named[0].tensor.device.device_type = SAE_DEVICE_CUDA),
        (SAE_ERROR_NOT_FINITE, "W_enc[1, 1]", |m| m.plan.weights[0].1.memory[9] = f32::NAN.to_bits()),
        (SAE_ERROR_NOT_FINITE, "b_dec[7]", |m| m.plan.weights[3].1.memory[7] = f32::INFINITY.to_bits()),
        (ARGUMENT, "options.struct_size", |m| m.options.struct_size = 16),
        (ARGUMENT, "options.flags: bits 0x8", |m| m.options.flags = 8),
        (ARGUMENT, "options: format is for files", |m| m.options.format = c"native".as_ptr()),
        (ARGUMENT, "options: SAE_LOAD_MAP is for files", |m| {
            (m.options.flags, m.options.release) = (SAE_LOAD_MAP, None);
        }),
        (ARGUMENT, "options: SAE_LOAD_CENTER is for files", |m| m.options.flags |= SAE_LOAD_CENTER),
        (ARGUMENT, "options: activation_scale is for files", |m| m.options.activation_scale = 2.0),
        (ARGUMENT, "options: member is for files", |m| m.options.member = c"a".as_ptr()),
        (ARGUMENT, "options.member: \"\\xff\" is not UTF-8", |m| m.options.member = c"\xff".as_ptr()),
        (ARGUMENT, "options: prefix is for files", |m| m.options.prefix = 8),
        (ARGUMENT, "options.prefix: -8", |m| m.options.prefix = -8),
        (ARGUMENT, "options: k is for files", |m| m.options.k = 2),
        (ARGUMENT, "options.k: -2", |m| m.options.k = -2),
        (ARGUMENT, "options: selection is for files", |m| m.options.selection = SAE_SELECTION_TOP_K),
        (ARGUMENT, "options.selection: 3", |m| m.options.selection = 3),
        (ARGUMENT, "options: subtract_b_dec is for files", |m| m.options.subtract_b_dec = SAE_NO),
        (ARGUMENT, "options.subtract_b_dec: expected -1, 0 or 1, found 2", |m| m.options.subtract_b_dec = 2),
        (ARGUMENT, "options.release: is set, but", |m| m.options.flags = 0),
        (ARGUMENT, "options.n_latents: would copy", |m| m.options.n_latents = 2),
        (ARGUMENT, "options.dtype: would copy", |m| m.options.dtype = BF16),
        (ARGUMENT, "options.dtype: code 0 of 8 bits", |m| m.options.dtype.bits = 8),
        (ARGUMENT, "options.dtype: expected f32, f16 or bf16, found i32", |m| m.options.dtype = I32),
        (ARGUMENT, "options.normalization: 5", |m| m.options.normalization = 5),
        (SAE_ERROR_UNSUPPORTED, "options.device: models live on cpu or cuda, not on cuda_managed:0", |m| {
            m.options.device.device_type = SAE_DEVICE_CUDA_MANAGED;
        }),
        (SAE_ERROR_NO_DEVICE, "options.device: cuda:9999: ", |m| {
            m.options.device = sae_device { device_type: SAE_DEVICE_CUDA, device_id: 9999 };
        }),
        (ARGUMENT, "options.device.device_id: there is no device -1", |m| {
            m.options.device = sae_device { device_type: SAE_DEVICE_CUDA, device_id: -1 };
        }),
        (ARGUMENT, "options.device.device_type: 77", |m| m.options.device.device_type = 77),
        (ARGUMENT, "options.convention.struct_size: 1", |m| m.convention.struct_size = 1),
        (ARGUMENT, "options.convention.prepend_bos: expected -1, 0 or 1, found 2", |m| m.convention.prepend_bos = 2),
        (ARGUMENT, "options.convention: model_name", |m| m.convention.model_name = c"\xff".as_ptr()),
        (ARGUMENT, "options.convention: excluded_positions", |m| m.convention.excluded_positions = null()),
        (TENSOR, "W_enc: has gaps between rows", |m| {
            m.plan.weights[0].1.strides[0] = 9;
            m.plan.weights[0].1.memory.resize(160, 0);
            m.named[0].tensor.data = m.plan.weights[0].1.memory.as_mut_ptr().cast();
        }),
    ];
    for (status, named, spoil) in table {
        let mut making = Making::new();
        making.options.flags = SAE_LOAD_BORROW;
        making.options.release = Some(release);
        spoil(&mut making);
        let mut model = misaligned();
        refused(*status, named, |e| making.call(&mut model, e));
        assert_eq!(model, misaligned(), "the place for the model is as it was");
    }
    assert_eq!(RELEASED.load(Ordering::SeqCst), 0, "what was not taken is not released");
    let making = Making::new();
    refused(ARGUMENT, "out: is NULL", |e| making.call(null_mut(), e));

    // And what is taken is released once, when the last user is gone.
    let mut making = Making::new();
    making.options.flags = SAE_LOAD_BORROW;
    making.options.release = Some(release);
    let mut model = null_mut();
    ok(|e| making.call(&mut model, e));
    let mut session = null_mut();
    ok(|e| unsafe { sae_session_create(model, null(), &mut session, e) });
    unsafe { sae_model_free(model) };
    assert_eq!(RELEASED.load(Ordering::SeqCst), 0, "the session still uses the weights");
    unsafe { sae_session_free(session) };
    assert_eq!(RELEASED.load(Ordering::SeqCst), 1);
}

#[test]
fn reading_weights() {
    let model = plan().model();
    let mut out = Array::f32(&[7.0; 24], &[3, 8]);
    let read =
        |which, first, rows, out: *const sae_tensor, e| unsafe { sae_model_read(model.0, which, first, rows, out, e) };
    let before = out.memory.clone();
    for (status, named, which, first, rows) in [
        (ARGUMENT, "which: 0", 0, 0, 3),
        (ARGUMENT, "which: 11", 11, 0, 3),
        (SAE_ERROR_UNSUPPORTED, "no W_glu", SAE_WEIGHT_W_GLU, 0, 3),
        (SAE_ERROR_UNSUPPORTED, "no b_glu", SAE_WEIGHT_B_GLU, 0, 3),
        (SAE_ERROR_UNSUPPORTED, "no r_mag", SAE_WEIGHT_R_MAG, 0, 3),
        (SAE_ERROR_UNSUPPORTED, "no b_gate", SAE_WEIGHT_B_GATE, 0, 3),
        (SAE_ERROR_UNSUPPORTED, "no threshold", SAE_WEIGHT_THRESHOLD, 0, 3),
        (SAE_ERROR_UNSUPPORTED, "no W_skip", SAE_WEIGHT_W_SKIP, 0, 3),
        (ARGUMENT, "first: -1", SAE_WEIGHT_W_DEC, -1, 3),
        (ARGUMENT, "rows: -3", SAE_WEIGHT_W_DEC, 0, -3),
        (ARGUMENT, "first: 14..+3 is not a part of 0..16", SAE_WEIGHT_W_DEC, 14, 3),
        (ARGUMENT, "first: 9223372036854775807", SAE_WEIGHT_W_DEC, i64::MAX, 3),
        (ARGUMENT, "first: 0..+9223372036854775807", SAE_WEIGHT_W_DEC, 0, i64::MAX),
        (TENSOR, "out: expected shape [2, 8]", SAE_WEIGHT_W_DEC, 0, 2),
        (TENSOR, "out: expected shape [3], found [3, 8]", SAE_WEIGHT_B_DEC, 0, 3),
    ] {
        refused(status, named, |e| read(which, first, rows, &out.tensor, e));
        assert_eq!(out.memory, before);
    }
    refused(ARGUMENT, "out: is NULL", |e| read(SAE_WEIGHT_W_DEC, 0, 3, null(), e));
    refused(ARGUMENT, "model: is NULL", |e| unsafe { sae_model_read(null(), 2, 0, 3, &out.tensor, e) });
    out.tensor.device.device_type = SAE_DEVICE_CUDA;
    refused(TENSOR, "out: is on cuda:0", |e| read(SAE_WEIGHT_W_DEC, 0, 3, &out.tensor, e));
    out.tensor.device.device_type = SAE_DEVICE_CPU;
    out.tensor.dtype = I32;
    refused(TENSOR, "out: expected f32, f16 or bf16", |e| read(SAE_WEIGHT_W_DEC, 0, 3, &out.tensor, e));
    assert_eq!(out.memory, before);
}

#[test]
fn asking_and_saving() {
    let model = plan().model();
    let mut info = init::<sae_info>();
    refused(ARGUMENT, "model: is NULL", |e| unsafe { sae_model_info(null(), &mut info, e) });
    refused(ARGUMENT, "model: 0x", |e| unsafe { sae_model_info(misaligned(), &mut info, e) });
    refused(ARGUMENT, "out: is NULL", |e| unsafe { sae_model_info(model.0, null_mut(), e) });
    info.struct_size = 12;
    refused(ARGUMENT, "out.struct_size: 12", |e| unsafe { sae_model_info(model.0, &mut info, e) });
    assert_eq!((info.struct_size, info.d_in), (12, 0));

    let dir = tempfile::tempdir().unwrap();
    let path = std::ffi::CString::new(dir.path().join("sae.safetensors").to_str().unwrap()).unwrap();
    let save = |path: *const _, options: *const _, e| unsafe { sae_model_save(model.0, path, options, e) };
    refused(ARGUMENT, "path: is NULL", |e| save(null(), null(), e));
    refused(ARGUMENT, "path: \"\\xff\" is not UTF-8", |e| save(c"\xff".as_ptr(), null(), e));
    refused(SAE_ERROR_IO, "/no/such/dir/x", |e| save(c"/no/such/dir/x".as_ptr(), null(), e));
    let mut options = init::<sae_save_options>();
    options.flags = 1;
    refused(ARGUMENT, "options.flags", |e| save(path.as_ptr(), &options, e));
    (options.flags, options.dtype) = (0, I32);
    refused(ARGUMENT, "dtype", |e| save(path.as_ptr(), &options, e));
    options = init();
    options.format = c"\xff".as_ptr();
    refused(ARGUMENT, "options.format: \"\\xff\" is not UTF-8", |e| save(path.as_ptr(), &options, e));
    options.format = c"pickle".as_ptr();
    refused(ARGUMENT, "format: expected one of native", |e| save(path.as_ptr(), &options, e));
    options.format = c"openai".as_ptr();
    refused(SAE_ERROR_UNSUPPORTED, "openai is read but not written", |e| save(path.as_ptr(), &options, e));
    options.struct_size = 3;
    refused(ARGUMENT, "options.struct_size: 3", |e| save(path.as_ptr(), &options, e));
    assert!(!dir.path().join("sae.safetensors").exists());
}

#[test]
fn loading() {
    let mut model = misaligned();
    let dir = tempfile::tempdir().unwrap();
    let empty = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    let mut load = |path: *const _, options: *const _, e| unsafe { sae_model_load(path, options, &mut model, e) };
    refused(ARGUMENT, "path: is NULL", |e| load(null(), null(), e));
    refused(ARGUMENT, "not UTF-8", |e| load(c"\xc0".as_ptr(), null(), e));
    refused(SAE_ERROR_IO, "/no/such/file", |e| load(c"/no/such/file".as_ptr(), null(), e));
    refused(SAE_ERROR_FORMAT, "known format", |e| load(empty.as_ptr(), null(), e));
    refused(SAE_ERROR_IO, "", |e| load(c"".as_ptr(), null(), e));
    let mut options = init::<sae_load_options>();
    options.format = c"pickle".as_ptr();
    refused(ARGUMENT, "format: expected one of", |e| load(empty.as_ptr(), &options, e));
    options = init();
    options.flags = SAE_LOAD_BORROW;
    refused(ARGUMENT, "SAE_LOAD_BORROW is for weights in memory", |e| load(empty.as_ptr(), &options, e));
    options = init();
    options.first_latent = 4;
    refused(ARGUMENT, "options.n_latents: is 0, but first_latent is 4", |e| load(empty.as_ptr(), &options, e));
    options.first_latent = -4;
    refused(ARGUMENT, "options.first_latent: -4", |e| load(empty.as_ptr(), &options, e));
    options = init();
    options.activation_scale = f32::NAN;
    refused(ARGUMENT, "activation_scale must be a positive number", |e| load(empty.as_ptr(), &options, e));
    assert_eq!(model, misaligned());
    refused(ARGUMENT, "out: is NULL", |e| unsafe { sae_model_load(empty.as_ptr(), null(), null_mut(), e) });

    let mut memory = init::<sae_memory>();
    refused(SAE_ERROR_IO, "/no/such/file", |e| unsafe {
        sae_model_memory(c"/no/such/file".as_ptr(), null(), &mut memory, e)
    });
    memory.struct_size = 0;
    refused(ARGUMENT, "out.struct_size: 0", |e| unsafe { sae_model_memory(empty.as_ptr(), null(), &mut memory, e) });
}

#[test]
fn sessions_and_pools() {
    let model = plan().model();
    type Spoil = fn(&mut sae_session_options);
    let table: [(&str, Spoil); 11] = [
        ("options.struct_size: 55", |o| o.struct_size = 55),
        ("options.flags: bits 0x8", |o| o.flags = 8),
        ("SAE_SESSION_NO_SCREEN and SAE_SESSION_SCREEN contradict", |o| o.flags = 6),
        ("options.run_flags: bits 0x8", |o| o.run_flags = 8),
        ("options.max_tokens: -1", |o| o.max_tokens = -1),
        ("max_tokens: 9223372036854775807 is more than", |o| o.max_tokens = i64::MAX),
        ("options.max_width: -4", |o| o.max_width = -4),
        ("max_width: 536870912 is more than", |o| o.max_width = 1 << 29),
        ("options.slots: -1", |o| o.slots = -1),
        ("slots: 65536 of 4096 edits are too many", |o| (o.slots, o.edits_per_slot) = (1 << 16, 4096)),
        ("options.pool: 0x", |o| o.pool = misaligned()),
    ];
    for (named, spoil) in table {
        let mut options = init();
        spoil(&mut options);
        let mut session = misaligned();
        refused(ARGUMENT, named, |e| unsafe { sae_session_create(model.0, &options, &mut session, e) });
        assert_eq!(session, misaligned());
        let mut memory = init::<sae_memory>();
        refused(ARGUMENT, named, |e| unsafe { sae_session_memory(model.0, &options, &mut memory, e) });
        assert_eq!(memory.workspace, 0);
    }
    let mut session = misaligned();
    refused(ARGUMENT, "model: is NULL", |e| unsafe { sae_session_create(null(), null(), &mut session, e) });
    refused(ARGUMENT, "out: is NULL", |e| unsafe { sae_session_create(model.0, null(), null_mut(), e) });

    let mut pool = misaligned();
    for (threads, named) in [(-1, "threads: -1"), (1025, "threads must be between 1 and 1024"), (i32::MAX, "threads")] {
        refused(ARGUMENT, named, |e| unsafe { sae_pool_create(threads, &mut pool, e) });
    }
    refused(ARGUMENT, "out: is NULL", |e| unsafe { sae_pool_create(1, null_mut(), e) });
    refused(ARGUMENT, "parallel_for: is NULL", |e| unsafe { sae_pool_from_host(2, None, null_mut(), &mut pool, e) });
    assert_eq!(pool, misaligned());
}

#[test]
fn freeing_nothing_and_asking_nothing_is_fine() {
    unsafe {
        sae_error_free(null_mut());
        sae_model_free(null_mut());
        sae_session_free(null_mut());
        sae_trainer_free(null_mut());
        sae_pool_free(null_mut());
        assert_eq!(sae_error_status(null()), SAE_OK);
        assert_eq!(CStr::from_ptr(sae_error_message(null())), c"");
        assert_eq!(sae_pool_threads(null()), 0);
        assert_eq!((sae_session_kernels(null()), sae_kernels_name(99)), (null(), null()));
        assert_eq!(CStr::from_ptr(sae_status_name(SAE_ERROR_IO)), c"SAE_ERROR_IO");
        assert_eq!(CStr::from_ptr(sae_status_name(-7)), c"unknown status");
    }
}
