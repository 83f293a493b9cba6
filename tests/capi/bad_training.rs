//! Everything a caller can get wrong in training: a status, a message that names the thing, and a trainer as it was.

use std::ffi::CString;
use std::ptr::{null, null_mut};

use sae::capi::*;

use crate::host::{Array, BF16, F32, I32, Model, Trainer, init, misaligned, numbers, ok, plan, refused};

const ARGUMENT: sae_status = SAE_ERROR_INVALID_ARGUMENT;
const TENSOR: sae_status = SAE_ERROR_INVALID_TENSOR;

pub(crate) fn options() -> sae_train_options {
    let mut options = init::<sae_train_options>();
    (options.d, options.n_latents, options.k, options.max_batch_tokens) = (8, 16, 2, 4);
    options
}

pub(crate) fn trainer(options: &sae_train_options) -> Trainer {
    let mut trainer = null_mut();
    ok(|e| unsafe { sae_trainer_create(options, &mut trainer, e) });
    Trainer(trainer)
}

/// The bits of all weights, as exported.
pub(crate) fn weights(trainer: &Trainer) -> Vec<u32> {
    let mut model = null_mut();
    ok(|e| unsafe { sae_trainer_export(trainer.0, SAE_EXPORT_WEIGHTS, &mut model, e) });
    let model = Model(model);
    let mut all = Vec::new();
    for (which, dims) in [(SAE_WEIGHT_W_ENC, &[16, 8][..]), (SAE_WEIGHT_W_DEC, &[16, 8]), (SAE_WEIGHT_B_DEC, &[8])] {
        let out = Array::f32(&vec![0.0; dims.iter().product::<i64>() as usize], dims);
        ok(|e| unsafe { sae_model_read(model.0, which, 0, dims[0], &out.tensor, e) });
        all.extend(out.memory);
    }
    all
}

#[test]
fn options_are_named() {
    type Spoil = fn(&mut sae_train_options);
    const NEGATIVE: &[i64] = &[-4, 16];
    let table: &[(sae_status, &str, Spoil)] = &[
        (ARGUMENT, "options.struct_size", |o| o.struct_size = 100),
        (ARGUMENT, "d must be between", |o| o.d = 0),
        (ARGUMENT, "options.d: -1", |o| o.d = -1),
        (ARGUMENT, "n_latents must be between", |o| o.n_latents = 0),
        (ARGUMENT, "k", |o| o.k = 0),
        (ARGUMENT, "k must be between 1 and 16, not 17", |o| o.k = 17),
        (ARGUMENT, "options.k_aux: -2", |o| o.k_aux = -2),
        (ARGUMENT, "max_batch_tokens must be between", |o| o.max_batch_tokens = 1 << 40),
        (ARGUMENT, "learning_rate", |o| o.learning_rate = -1.0),
        (ARGUMENT, "adam_beta1", |o| o.adam_beta1 = 1.0),
        (ARGUMENT, "clip_norm", |o| o.clip_norm = f32::NAN),
        (ARGUMENT, "decay_fraction needs total_tokens", |o| o.decay_fraction = 0.5),
        (ARGUMENT, "options.normalization: 4", |o| o.normalization = 4),
        (SAE_ERROR_UNSUPPORTED, "constant_norm", |o| o.normalization = SAE_NORMALIZATION_CONSTANT_NORM),
        (ARGUMENT, "options.flags: bits 0x10", |o| o.flags = 16),
        (ARGUMENT, "options.frozen: bits 0x100", |o| o.frozen = 256),
        (ARGUMENT, "frozen: there is no threshold by recipe top_k", |o| o.frozen = SAE_FREEZE_THRESHOLD),
        (ARGUMENT, "options.recipe: 8 is not known", |o| o.recipe = 8),
        (ARGUMENT, "options.recipe: -1 is not known", |o| o.recipe = -1),
        (ARGUMENT, "options.penalty: 3 is not known", |o| o.penalty = 3),
        (ARGUMENT, "options.scaling: 4 is not known", |o| o.scaling = 4),
        (ARGUMENT, "k is given, but recipe gated counts no latents", |o| o.recipe = SAE_RECIPE_GATED),
        (ARGUMENT, "penalty is given, but recipe top_k", |o| o.penalty = SAE_PENALTY_TANH),
        (ARGUMENT, "options.k_start: -1", |o| o.k_start = -1),
        (ARGUMENT, "options.d_out: -1", |o| o.d_out = -1),
        (ARGUMENT, "skip needs transcoder", |o| o.flags = SAE_TRAIN_SKIP),
        (ARGUMENT, "options.layers: -1", |o| o.layers = -1),
        (ARGUMENT, "layers 2 and transcoder", |o| (o.layers, o.flags) = (2, SAE_TRAIN_TRANSCODER)),
        (ARGUMENT, "layers 2 and normalization", |o| {
            (o.layers, o.normalization) = (2, SAE_NORMALIZATION_LAYER_NORM);
        }),
        (ARGUMENT, "layers 4611686018427387904 of d 8", |o| o.layers = 1 << 62),
        (ARGUMENT, "layers 268435456 of d 8", |o| o.layers = 1 << 28),
        (ARGUMENT, "options.n_prefixes: -3", |o| o.n_prefixes = -3),
        (ARGUMENT, "options.n_prefixes: 17 is more than n_latents, which is 16", |o| o.n_prefixes = 17),
        (ARGUMENT, "options.n_prefixes: 4611686018427387904 is more", |o| {
            (o.prefixes, o.n_prefixes) = (misaligned(), 1 << 62);
        }),
        (ARGUMENT, "options.n_prefixes: is 2, but prefixes and prefix_weights are NULL", |o| o.n_prefixes = 2),
        (ARGUMENT, "options.n_prefixes: is 0, but it must tell how many", |o| o.prefix_weights = misaligned()),
        (ARGUMENT, "options.n_prefixes: is 0, but it must tell how many", |o| o.prefixes = misaligned()),
        (ARGUMENT, "options.prefixes: 0x", |o| (o.prefixes, o.n_prefixes) = (misaligned(), 2)),
        (ARGUMENT, "options.prefix_weights: 0x", |o| (o.prefix_weights, o.n_prefixes) = (misaligned(), 2)),
        (ARGUMENT, "options.prefixes: -4", |o| (o.prefixes, o.n_prefixes) = (NEGATIVE.as_ptr(), 2)),
        (ARGUMENT, "resample_every is given beside AuxK", |o| o.resample_every = 5),
        (ARGUMENT, "options.pool: 0x", |o| o.pool = misaligned()),
        (ARGUMENT, "options.convention: 0x", |o| o.convention = misaligned()),
    ];
    let mut made = misaligned();
    for (status, named, spoil) in table {
        let mut options = options();
        spoil(&mut options);
        refused(*status, named, |e| unsafe { sae_trainer_create(&options, &mut made, e) });
    }
    refused(ARGUMENT, "options: is NULL", |e| unsafe { sae_trainer_create(null(), &mut made, e) });
    assert_eq!(made, misaligned());
    refused(ARGUMENT, "out: is NULL", |e| unsafe { sae_trainer_create(&options(), null_mut(), e) });
}

#[test]
fn calls_out_of_turn_are_refused() {
    let trainer = trainer(&options());
    let sample = Array::f32(&numbers(64, 1), &[8, 8]);
    let four = Array::f32(&numbers(32, 2), &[4, 8]);
    let mut batch = init::<sae_train_batch>();
    batch.x = &four.tensor;
    let mut model = null_mut();
    unsafe {
        refused(SAE_ERROR_BAD_STATE, "not started", |e| sae_train_step(trainer.0, null(), &batch, null_mut(), e));
        refused(SAE_ERROR_BAD_STATE, "not started", |e| sae_trainer_save(trainer.0, c"/nowhere".as_ptr(), e));
        refused(SAE_ERROR_BAD_STATE, "not started", |e| sae_trainer_export(trainer.0, 0, &mut model, e));
        refused(ARGUMENT, "what: 2", |e| sae_trainer_export(trainer.0, 2, &mut model, e));
        refused(ARGUMENT, "sample: is NULL", |e| sae_trainer_init_from(trainer.0, null(), e));
        refused(ARGUMENT, "trainer: is NULL", |e| sae_trainer_init_from(null_mut(), &sample.tensor, e));
        refused(ARGUMENT, "model: is NULL", |e| sae_trainer_warm_start(trainer.0, null(), &sample.tensor, e));
        let other = Array::f32(&numbers(56, 1), &[8, 7]);
        refused(TENSOR, "sample: expected shape [8, 8], found [8, 7]", |e| {
            sae_trainer_init_from(trainer.0, &other.tensor, e)
        });
        let constant = Array::f32(&[1.0; 64], &[8, 8]);
        refused(TENSOR, "sample: its rows do not vary", |e| sae_trainer_init_from(trainer.0, &constant.tensor, e));
        ok(|e| sae_trainer_init_from(trainer.0, &sample.tensor, e));
        refused(SAE_ERROR_BAD_STATE, "already started", |e| sae_trainer_init_from(trainer.0, &sample.tensor, e));
        refused(SAE_ERROR_BAD_STATE, "moving average", |e| sae_trainer_export(trainer.0, 1, &mut model, e));
        refused(SAE_ERROR_IO, "/proc/nowhere", |e| sae_trainer_save(trainer.0, c"/proc/nowhere".as_ptr(), e));
        let other = crate::bad_training::trainer(&sae_train_options { n_latents: 17, ..options() });
        let plan = plan().model();
        refused(ARGUMENT, "n_latents 16", |e| sae_trainer_warm_start(other.0, plan.0, &sample.tensor, e));
    }
    assert!(model.is_null());
}

struct Step {
    x: Box<Array>,
    mask: Box<Array>,
    batch: Box<sae_train_batch>,
    run: Box<sae_run>,
    stats: Box<sae_train_stats>,
    batch_at: *const sae_train_batch,
}

#[test]
fn batches() {
    type Spoil = fn(&mut Step);
    let table: &[(sae_status, &str, Spoil)] = &[
        (ARGUMENT, "batch: is NULL", |s| s.batch_at = null()),
        (ARGUMENT, "batch.struct_size: 16", |s| s.batch.struct_size = 16),
        (ARGUMENT, "batch.flags: bits 0x2", |s| s.batch.flags = 2),
        (ARGUMENT, "batch.reserved", |s| s.batch.reserved = 1),
        (ARGUMENT, "x: is NULL", |s| s.batch.x = null()),
        (TENSOR, "x: ", |s| s.x.tensor.byte_offset = 1),
        (TENSOR, "x: expected shape [4, 8], found [4, 7]", |s| s.x.shape[1] = 7),
        (TENSOR, "x: expected f32", |s| s.x.tensor.dtype = I32),
        (SAE_ERROR_UNSUPPORTED, "x: training runs on the cpu", |s| s.x.tensor.device.device_type = SAE_DEVICE_CUDA),
        (TENSOR, "addend: expected shape [4, 8], found [4]", |s| s.batch.addend = &s.mask.tensor),
        (ARGUMENT, "target: an autoencoder has none", |s| s.batch.target = &s.x.tensor),
        (TENSOR, "row_mask: expected i32, found f32", |s| s.mask.tensor.dtype = F32),
        (TENSOR, "row_mask: expected shape [4], found [3]", |s| s.mask.shape[0] = 3),
        (ARGUMENT, "stats.struct_size: 8", |s| s.stats.struct_size = 8),
        (ARGUMENT, "run.flags: bits 0x2", |s| s.run.flags = SAE_RUN_ORDER_INDEX),
        (SAE_ERROR_UNSUPPORTED, "run.stream_kind", |s| s.run.stream_kind = SAE_STREAM_HOST),
        (SAE_ERROR_UNSUPPORTED, "run.workspace", |s| s.run.workspace_size = 1),
        (TENSOR, "5 rows are more than max_batch_tokens", |s| {
            s.x.memory.resize(40, 0);
            (s.x.tensor.data, s.x.shape[0]) = (s.x.memory.as_mut_ptr().cast(), 5);
        }),
    ];
    let trainer = trainer(&options());
    let sample = Array::f32(&numbers(64, 1), &[8, 8]);
    ok(|e| unsafe { sae_trainer_init_from(trainer.0, &sample.tensor, e) });
    let before = weights(&trainer);
    let step = || {
        let mut step = Step {
            x: Array::f32(&numbers(32, 2), &[4, 8]),
            mask: Array::i32(&[0, 1, 1, 1], &[4]),
            batch: Box::new(init()),
            run: Box::new(init()),
            stats: Box::new(init()),
            batch_at: null(),
        };
        (step.batch.x, step.batch.row_mask) = (&step.x.tensor, &step.mask.tensor);
        step.batch_at = &*step.batch;
        step
    };
    for (status, named, spoil) in table {
        let mut step = step();
        spoil(&mut step);
        refused(*status, named, |e| unsafe {
            sae_train_step(trainer.0, &*step.run, step.batch_at, &mut *step.stats, e)
        });
        assert_eq!((step.stats.step, step.stats.tokens), (0, 0), "{named}");
    }
    assert_eq!(weights(&trainer), before, "a refused call changes nothing");
    let mut progress = init::<sae_train_progress>();
    ok(|e| unsafe { sae_trainer_progress(trainer.0, &mut progress, e) });
    assert_eq!((progress.started, progress.tokens_seen), (1, 0));

    let mut good = step();
    ok(|e| unsafe { sae_train_step(trainer.0, &*good.run, good.batch_at, &mut *good.stats, e) });
    assert_eq!((good.stats.step, good.stats.tokens, good.stats.tokens_masked, good.stats.applied), (1, 3, 1, 1));
    assert_ne!(weights(&trainer), before);
}

#[test]
fn sums_are_rounded_only_if_asked() {
    let bf16 = |values: &[f32]| {
        let mut array = Array::i32(&[0; 32], &[4, 8]);
        for (word, pair) in array.memory.iter_mut().zip(values.chunks(2)) {
            *word = pair[0].to_bits() >> 16 | pair[1].to_bits() & 0xFFFF_0000;
        }
        array.tensor.dtype = BF16;
        array
    };
    let (x, addend) = (bf16(&numbers(32, 2)), bf16(&numbers(32, 3)));
    let sample = Array::f32(&numbers(64, 1), &[8, 8]);
    let mse = |flags| {
        let trainer = trainer(&options());
        let (mut batch, mut run, mut stats) = (init::<sae_train_batch>(), init::<sae_run>(), init::<sae_train_stats>());
        (batch.x, batch.addend, run.flags) = (&x.tensor, &addend.tensor, flags);
        ok(|e| unsafe { sae_trainer_init_from(trainer.0, &sample.tensor, e) });
        ok(|e| unsafe { sae_train_step(trainer.0, &run, &batch, &mut stats, e) });
        stats.mse
    };
    assert_eq!(mse(0), mse(SAE_RUN_FAST));
    assert_ne!(mse(0), mse(SAE_RUN_ROUND_SUM));
}

#[test]
fn resuming_with_other_options_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let name = CString::new(dir.path().to_str().unwrap()).unwrap();
    let first = trainer(&options());
    let sample = Array::f32(&numbers(64, 1), &[8, 8]);
    ok(|e| unsafe { sae_trainer_init_from(first.0, &sample.tensor, e) });
    ok(|e| unsafe { sae_trainer_save(first.0, name.as_ptr(), e) });
    let mut again = null_mut();
    let other = sae_train_options { k: 3, ..options() };
    refused(ARGUMENT, "k is 3, but the checkpoint was made with 2", |e| unsafe {
        sae_trainer_resume(name.as_ptr(), &other, &mut again, e)
    });
    refused(ARGUMENT, "dir: is NULL", |e| unsafe { sae_trainer_resume(null(), null(), &mut again, e) });
    assert!(again.is_null());
    ok(|e| unsafe { sae_trainer_resume(name.as_ptr(), null(), &mut again, e) });
    assert_eq!(weights(&Trainer(again)), weights(&first));
}

#[test]
fn a_transcoder_trains() {
    let (x, y) = (Array::f32(&numbers(64, 1), &[8, 8]), Array::f32(&numbers(48, 5), &[8, 6]));
    let prefixes = [4, 16];
    let mut options = sae_train_options { recipe: SAE_RECIPE_MATRYOSHKA, flags: SAE_TRAIN_TRANSCODER, ..options() };
    (options.d_out, options.max_batch_tokens) = (6, 8);
    (options.prefixes, options.n_prefixes) = (prefixes.as_ptr(), 2);
    let trainer = trainer(&options);
    refused(ARGUMENT, "target: is missing", |e| unsafe { sae_trainer_init_from(trainer.0, &x.tensor, e) });
    refused(ARGUMENT, "target: is NULL", |e| unsafe { sae_trainer_init_transcoder(trainer.0, &x.tensor, null(), e) });
    refused(TENSOR, "target: expected shape [8, 6]", |e| unsafe {
        sae_trainer_init_transcoder(trainer.0, &x.tensor, &x.tensor, e)
    });
    ok(|e| unsafe { sae_trainer_init_transcoder(trainer.0, &x.tensor, &y.tensor, e) });
    let (mut batch, mut stats) = (init::<sae_train_batch>(), init::<sae_train_stats>());
    batch.x = &x.tensor;
    refused(ARGUMENT, "target: is missing", |e| unsafe { sae_train_step(trainer.0, null(), &batch, &mut stats, e) });
    batch.target = &y.tensor;
    ok(|e| unsafe { sae_train_step(trainer.0, null(), &batch, &mut stats, e) });
    assert!(stats.applied == 1 && stats.mse > 0.0 && stats.l0 == 2.0, "{} {}", stats.mse, stats.l0);
    let (mut model, mut info) = (null_mut(), init::<sae_info>());
    ok(|e| unsafe { sae_trainer_export(trainer.0, SAE_EXPORT_WEIGHTS, &mut model, e) });
    let model = Model(model);
    ok(|e| unsafe { sae_model_info(model.0, &mut info, e) });
    assert_eq!((info.d_in, info.d_out), (8, 6));
    let again = crate::bad_training::trainer(&options);
    ok(|e| unsafe { sae_trainer_warm_start_transcoder(again.0, model.0, &x.tensor, &y.tensor, e) });
}

#[test]
fn a_crosscoder_trains_at_a_rate_that_may_change() {
    let x = Array::f32(&numbers(128, 1), &[8, 2, 8]);
    let options = sae_train_options { layers: 2, max_batch_tokens: 8, recipe: SAE_RECIPE_BATCH_TOP_K, ..options() };
    let trainer = trainer(&options);
    refused(SAE_ERROR_BAD_STATE, "not started", |e| unsafe { sae_trainer_set_rate(trainer.0, 0.5, e) });
    let other = Array::f32(&numbers(64, 1), &[8, 8]);
    refused(TENSOR, "sample: expected shape [8, 2, 8], found [8, 8]", |e| unsafe {
        sae_trainer_init_from(trainer.0, &other.tensor, e)
    });
    ok(|e| unsafe { sae_trainer_init_from(trainer.0, &x.tensor, e) });
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(ARGUMENT, "rate must be", |e| unsafe { sae_trainer_set_rate(trainer.0, rate, e) });
    }
    refused(ARGUMENT, "trainer: is NULL", |e| unsafe { sae_trainer_set_rate(null_mut(), 0.5, e) });
    let (mut batch, mut stats) = (init::<sae_train_batch>(), init::<sae_train_stats>());
    batch.x = &x.tensor;
    ok(|e| unsafe { sae_train_step(trainer.0, null(), &batch, &mut stats, e) });
    let rate = stats.learning_rate;
    ok(|e| unsafe { sae_trainer_set_rate(trainer.0, 0.5, e) });
    let dir = tempfile::tempdir().unwrap();
    let name = CString::new(dir.path().to_str().unwrap()).unwrap();
    ok(|e| unsafe { sae_trainer_save(trainer.0, name.as_ptr(), e) });
    let mut again = null_mut();
    ok(|e| unsafe { sae_trainer_resume(name.as_ptr(), null(), &mut again, e) });
    let again = Trainer(again);
    for trainer in [&trainer, &again] {
        ok(|e| unsafe { sae_train_step(trainer.0, null(), &batch, &mut stats, e) });
        assert_eq!((stats.step, stats.learning_rate), (2, rate / 2.0));
    }
    let (mut model, mut info) = (null_mut(), init::<sae_info>());
    ok(|e| unsafe { sae_trainer_export(trainer.0, SAE_EXPORT_WEIGHTS, &mut model, e) });
    let model = Model(model);
    ok(|e| unsafe { sae_model_info(model.0, &mut info, e) });
    assert_eq!((info.d_in, info.layers_in, info.layers_out, info.architecture), (16, 2, 2, SAE_ARCHITECTURE_JUMP_RELU));
    let warm = crate::bad_training::trainer(&options);
    ok(|e| unsafe { sae_trainer_warm_start(warm.0, model.0, &x.tensor, e) });
    let plain = crate::bad_training::trainer(&sae_train_options { d: 16, layers: 0, ..options });
    refused(ARGUMENT, "model: reads and writes layers [2, 2], the run 1", |e| unsafe {
        sae_trainer_warm_start(plain.0, model.0, &Array::f32(&numbers(128, 1), &[8, 16]).tensor, e)
    });
}
