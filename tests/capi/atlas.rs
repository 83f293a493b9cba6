//! Atlases through the ABI: what the library's own hold, and everything a caller can get wrong.

use std::ffi::CString;
use std::ptr::{null, null_mut};

use sae::atlas::{AtlasOptions, Context, Observed, WindowKind};
use sae::capi::*;
use sae::features::Features;

use crate::host::{Array, Atlas, F32, init, misaligned, ok, refused};

const ARGUMENT: sae_status = SAE_ERROR_INVALID_ARGUMENT;
const TENSOR: sae_status = SAE_ERROR_INVALID_TENSOR;
const UNSUPPORTED: sae_status = SAE_ERROR_UNSUPPORTED;
const T: usize = 100;

fn options() -> sae_atlas_options {
    let mut options = init::<sae_atlas_options>();
    (options.n_latents, options.first_latent, options.seed) = (5, 2, 9);
    (options.top, options.per_interval, options.random) = (3, -1, 4);
    (options.top_before, options.top_after, options.drawn_before) = (4, -1, 2);
    (options.max_width, options.max_documents) = (3, 2);
    options
}

fn create(options: &sae_atlas_options) -> Atlas {
    let mut atlas = null_mut();
    ok(|e| unsafe { sae_atlas_create(options, &mut atlas, e) });
    Atlas(atlas)
}

/// Features of T tokens, two slots of three, and the tokens.
struct Rows {
    values: Box<Array>,
    indices: Box<Array>,
    counts: Box<Array>,
    tokens: Box<Array>,
    features: sae_features,
}

fn rows() -> Rows {
    let t = T as i64;
    let index = |i: usize| if i % 3 == 2 { -1 } else { 2 + (i / 3 * (i % 3 + 1) % 4) as i32 };
    let indices: Vec<i32> = (0..3 * T).map(index).collect();
    let values: Vec<f32> = (0..3 * T).map(|i| if i % 3 == 2 { 0.0 } else { (i * 7 % 11) as f32 + 0.5 }).collect();
    let [values, indices, counts, tokens] = [
        Array::f32(&values, &[t, 3]),
        Array::i32(&indices, &[t, 3]),
        Array::i32(&[2; T], &[t]),
        Array::i32(&(0..T as i32).collect::<Vec<_>>(), &[t]),
    ];
    let mut features = init::<sae_features>();
    (features.values, features.indices, features.counts) = (values.tensor, indices.tensor, counts.tensor);
    Rows { values, indices, counts, tokens, features }
}

fn info(atlas: &Atlas) -> sae_atlas_info {
    let mut info = init();
    ok(|e| unsafe { sae_atlas_get(atlas.0, &mut info, e) });
    info
}

#[test]
fn it_holds_what_the_librarys_own_holds() {
    let rows = rows();
    let documents: Vec<i64> = (0..T as i64).map(|t| t / 60).collect();
    let mut own = sae::atlas::Atlas::new(&AtlasOptions {
        n_latents: 5,
        first_latent: 2,
        top: 3,
        per_interval: 0,
        random: 4,
        top_context: Context { before: 4, after: 0 },
        drawn_context: Context { before: 2, after: 8 },
        max_width: 3,
        max_documents: 2,
        seed: 9,
    })
    .unwrap();
    let mut features = Features::new(T, 3, 0);
    features.values = rows.values.floats();
    features.indices = rows.indices.memory.iter().map(|&i| i as i32).collect();
    features.counts.fill(2);
    let tokens: Vec<i32> = (0..T as i32).collect();
    own.observe(&Observed { documents: Some(&documents), ..Observed::new(features.view(), &tokens) }).unwrap();
    own.finish();

    let mut bytes = 0;
    ok(|e| unsafe { sae_atlas_memory(&options(), &mut bytes, e) });
    assert_eq!(bytes, own.options().memory().unwrap());
    let (one, other) = (create(&options()), create(&options()));
    // Document 1 is seen by another, and both are merged.
    let observe = |atlas: &Atlas, from: usize, to: usize| {
        let part = |array: &Array, width: usize| {
            let (memory, len) = (&array.memory[from * width..to * width], (to - from) as i64);
            let dims = [len, width as i64];
            Array::new(memory.to_vec(), array.tensor.dtype, if array.tensor.ndim == 2 { &dims } else { &dims[..1] })
        };
        let [values, indices] = [&rows.values, &rows.indices].map(|array| part(array, 3));
        let [counts, tokens] = [&rows.counts, &rows.tokens].map(|array| part(array, 1));
        let mut features = init::<sae_features>();
        (features.values, features.indices, features.counts) = (values.tensor, indices.tensor, counts.tensor);
        let documents = documents[from..].as_ptr();
        ok(|e| unsafe { sae_atlas_observe(atlas.0, &features, &tokens.tensor, documents, null(), e) });
    };
    observe(&one, 0, 10);
    observe(&one, 10, 60);
    observe(&other, 60, T);
    ok(|e| unsafe { sae_atlas_finish(one.0, e) });
    ok(|e| unsafe { sae_atlas_merge(one.0, other.0, e) });

    let dir = tempfile::tempdir().unwrap();
    let path = CString::new(dir.path().join("atlas").to_str().unwrap()).unwrap();
    ok(|e| unsafe { sae_atlas_save(one.0, path.as_ptr(), e) });
    let mut loaded = null_mut();
    ok(|e| unsafe { sae_atlas_load(path.as_ptr(), 0, &mut loaded, e) });
    let loaded = Atlas(loaded);

    for atlas in [&one, &loaded] {
        let info = info(atlas);
        assert_eq!((info.n_latents, info.first_latent, info.tokens, info.stretches), (5, 2, T as u64, 2));
        assert_eq!((info.not_finite, info.cut, info.max_window), (0, 0, 11));
        for latent in 2..7 {
            let mut told = init::<sae_atlas_feature>();
            ok(|e| unsafe { sae_atlas_read(atlas.0, latent, &mut told, e) });
            let feature = own.feature(latent as usize).unwrap();
            assert_eq!(
                (told.count, told.sums, told.max, told.min),
                (feature.count, feature.sums, feature.max, feature.min)
            );
            assert_eq!(
                (told.n_bins as usize, told.n_intervals, told.below),
                (feature.histogram.len(), 0, feature.below)
            );
            for (i, bin) in feature.histogram.iter().enumerate() {
                assert_eq!((told.bin_from[i], told.bin_to[i], told.bin_count[i]), (bin.from, bin.to, bin.count));
            }
            for (kind, of, n) in [
                (SAE_WINDOWS_TOP, WindowKind::Top, told.n_top),
                (SAE_WINDOWS_RANDOM, WindowKind::Random, told.n_random),
            ] {
                let windows = own.windows(latent as usize, of).unwrap();
                assert_eq!(windows.len(), n as usize);
                for (i, window) in windows.iter().enumerate() {
                    let (mut got, mut tokens, mut activations) = (init::<sae_atlas_window>(), [-7; 11], [-7.0; 11]);
                    let (t, a) = (tokens.as_mut_ptr(), activations.as_mut_ptr());
                    ok(|e| unsafe { sae_atlas_read_window(atlas.0, latent, kind, i as i64, &mut got, t, a, e) });
                    let len = got.length as usize;
                    assert_eq!((&tokens[..len], &activations[..len]), (&window.tokens[..], &window.activations[..]));
                    assert!(tokens[len..].iter().all(|&t| t == -7), "nothing is written beyond the window");
                    assert_eq!(
                        (got.document, got.position as u64, got.value),
                        (window.document, window.position, window.value)
                    );
                    assert_eq!((got.at as usize, got.interval as usize), (window.at, window.interval));
                    let unseen = null_mut();
                    ok(|e| unsafe {
                        sae_atlas_read_window(atlas.0, latent, kind, i as i64, &mut got, unseen, null_mut(), e)
                    });
                }
            }
        }
    }
    assert!(own.windows(2, WindowKind::Top).unwrap().len() == 3);
}

#[test]
fn bad_options_are_refused() {
    type Spoil = fn(&mut sae_atlas_options);
    let table: &[(&str, Spoil)] = &[
        ("options.struct_size: 3", |o| o.struct_size = 3),
        ("options: n_latents", |o| o.n_latents = 0),
        ("options.n_latents: -5", |o| o.n_latents = -5),
        ("options.first_latent: -1", |o| o.first_latent = -1),
        ("options: top: 5000", |o| o.top = 5000),
        ("options.random: -2", |o| o.random = -2),
        ("options: top_context", |o| o.top_before = 4000),
        ("options.drawn_after: -3", |o| o.drawn_after = -3),
        ("options: max_width", |o| o.max_width = -1),
        ("options: max_documents", |o| o.max_documents = i32::MAX),
        ("options.reserved", |o| o.reserved = 1),
    ];
    let (mut made, mut bytes) = (misaligned(), 7);
    for (named, spoil) in table {
        let mut options = options();
        spoil(&mut options);
        refused(ARGUMENT, named, |e| unsafe { sae_atlas_create(&options, &mut made, e) });
        refused(ARGUMENT, named, |e| unsafe { sae_atlas_memory(&options, &mut bytes, e) });
    }
    unsafe {
        refused(ARGUMENT, "options: is NULL", |e| sae_atlas_create(null(), &mut made, e));
        refused(ARGUMENT, "out: is NULL", |e| sae_atlas_create(&options(), null_mut(), e));
        refused(ARGUMENT, "bytes: is NULL", |e| sae_atlas_memory(&options(), null_mut(), e));
        refused(SAE_ERROR_IO, "/nowhere", |e| sae_atlas_load(c"/nowhere".as_ptr(), 0, &mut made, e));
        refused(ARGUMENT, "path: is NULL", |e| sae_atlas_load(null(), 0, &mut made, e));
    }
    assert_eq!((made, bytes), (misaligned(), 7));
}

#[test]
fn bad_calls_are_refused() {
    type Spoil = fn(&mut Rows);
    let table: &[(sae_status, &str, Spoil)] = &[
        (TENSOR, "features.indices[1]: 7 is not one", |r| r.indices.memory[3] = 7),
        (UNSUPPORTED, "features.values: an atlas reads", |r| r.features.values.device.device_type = SAE_DEVICE_CUDA),
        (TENSOR, "tokens: expected i32", |r| r.tokens.tensor.dtype = F32),
        (TENSOR, "tokens: expected shape [100], found [99]", |r| r.tokens.shape[0] = 99),
        (TENSOR, "features.indices: expected shape", |r| r.indices.shape[1] = 2),
        (TENSOR, "features.counts: expected i32", |r| r.features.counts.dtype = F32),
        (ARGUMENT, "features.struct_size: 1", |r| r.features.struct_size = 1),
        (TENSOR, "features.values", |r| r.features.values.data = null_mut()),
    ];
    let atlas = create(&options());
    for (status, named, spoil) in table {
        let mut rows = rows();
        spoil(&mut rows);
        refused(*status, named, |e| unsafe {
            sae_atlas_observe(atlas.0, &rows.features, &rows.tokens.tensor, null(), null(), e)
        });
    }
    let rows = rows();
    let (features, tokens) = (&rows.features, &rows.tokens.tensor);
    let negative = [-1i64; T];
    unsafe {
        let observe = |a: *const sae_atlas, f, t, d, p, e| sae_atlas_observe(a, f, t, d, p, e);
        refused(ARGUMENT, "atlas: is NULL", |e| observe(null(), features, tokens, null(), null(), e));
        refused(ARGUMENT, "features: is NULL", |e| observe(atlas.0, null(), tokens, null(), null(), e));
        refused(ARGUMENT, "tokens: is NULL", |e| observe(atlas.0, features, null(), null(), null(), e));
        refused(ARGUMENT, "documents: 0x", |e| observe(atlas.0, features, tokens, misaligned(), null(), e));
        refused(ARGUMENT, "positions[0]: -1", |e| observe(atlas.0, features, tokens, null(), negative.as_ptr(), e));
        assert_eq!(info(&atlas).tokens, 0, "none of these was seen");

        let (mut feature, mut window) = (init::<sae_atlas_feature>(), init::<sae_atlas_window>());
        refused(ARGUMENT, "latent: 1 is not", |e| sae_atlas_read(atlas.0, 1, &mut feature, e));
        refused(ARGUMENT, "latent: -1", |e| sae_atlas_read(atlas.0, -1, &mut feature, e));
        refused(ARGUMENT, "out: is NULL", |e| sae_atlas_read(atlas.0, 2, null_mut(), e));
        ok(|e| sae_atlas_observe(atlas.0, features, tokens, null(), null(), e));
        ok(|e| sae_atlas_finish(atlas.0, e));
        let none = null_mut();
        let mut read = |latent, kind, index, e| {
            sae_atlas_read_window(atlas.0, latent, kind, index, &mut window, none, null_mut(), e)
        };
        refused(ARGUMENT, "kind: 3", |e| read(2, 3, 0, e));
        refused(ARGUMENT, "index: 3 is not one of the latent's 3", |e| read(2, SAE_WINDOWS_TOP, 3, e));
        refused(ARGUMENT, "index: -1", |e| read(2, SAE_WINDOWS_TOP, -1, e));
        refused(ARGUMENT, "index: 0", |e| read(2, SAE_WINDOWS_INTERVALS, 0, e));
        refused(ARGUMENT, "tokens: 0x", |e| {
            sae_atlas_read_window(atlas.0, 2, SAE_WINDOWS_TOP, 0, &mut window, misaligned(), null_mut(), e)
        });
        refused(ARGUMENT, "other: is the atlas itself", |e| sae_atlas_merge(atlas.0, atlas.0, e));
        let other = create(&sae_atlas_options { seed: 10, ..options() });
        refused(ARGUMENT, "other options", |e| sae_atlas_merge(atlas.0, other.0, e));
        sae_atlas_free(null_mut());
    }
}
