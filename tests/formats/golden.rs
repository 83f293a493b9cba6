//! The numbers of the original libraries: every model in tests/golden is loaded, encodes and decodes through a session, and
//! is compared with what its maker script recorded. Values agree within 1e-5 of the row's largest; active latents are the
//! same, except those as close as that to the boundary.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sae::backend::Run;
use sae::features::Features;
use sae::formats::{self, LoadOptions, Loaded};
use sae::sae::{Architecture, Convention, HookPoint, Normalization, Sae, Spec};
use sae::session::{Session, SessionOptions};
use sae::tensor::{DType, Tensor, TensorMut};

use crate::support::assert_same;

const TOLERANCE: f32 = 1e-5;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What the maker script recorded beside the model.
struct Expected {
    rows: usize,
    x: Vec<f32>,
    acts: Vec<f32>,
    x_hat: Vec<f32>,
}

impl Expected {
    fn beside(model: &Path) -> Self {
        let bytes = fs::read(model.with_extension("safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data();
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let rows = file.tensor("x").unwrap().shape()[0];
        Self { rows, x: floats("x"), acts: floats("acts"), x_hat: floats("x_hat") }
    }
}

fn check(model: &Path, sae: Sae) {
    let Expected { rows, x, acts, x_hat } = Expected::beside(model);
    let (spec, sae) = (sae.spec().clone(), Arc::new(sae));
    let (d, n) = (spec.d_in, spec.n_latents);
    let place = |row: usize| format!("{}, row {row}", model.display());
    let options = SessionOptions { max_width: n, ..SessionOptions::default() };
    let mut session = Session::new(Arc::clone(&sae), options).unwrap();
    let input = Tensor::new(&x, &[rows, d]).unwrap();
    let mut features = Features::new(rows, n, spec.row_state_width());
    session.encode(Run::default(), input.into(), features.view_mut()).unwrap();

    // The recorded activations, in the shape that decoding takes them.
    let mut recorded = features.clone();
    for row in 0..rows {
        let expected = &acts[row * n..][..n];
        if expected.iter().any(|v| v.is_nan()) {
            assert_eq!(features.counts[row], -1, "{}: no numbers there, so no features here", place(row));
            continue;
        }
        let mut found = vec![0.0f32; n];
        features.row(row).for_each(|(latent, value)| found[latent as usize] = value);
        let epsilon = TOLERANCE * expected.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let smallest = expected.iter().copied().filter(|&v| v > 0.0).fold(f32::INFINITY, f32::min);
        for (i, (&found, &expected)) in std::iter::zip(&found, expected).enumerate() {
            let boundary = match spec.architecture {
                Architecture::Relu => 0.0,
                Architecture::TopK { .. } => smallest,
                Architecture::JumpRelu => sae.weights().threshold.as_ref().unwrap()[i],
            };
            let swapped = (found > 0.0) != (expected > 0.0) && (found.max(expected) - boundary).abs() <= epsilon;
            let close = (found - expected).abs() <= epsilon;
            assert!(close || swapped, "{}, latent {i}: expected {expected}, found {found}", place(row));
        }
        let active: Vec<usize> = (0..n).filter(|&i| expected[i] > 0.0).collect();
        recorded.counts[row] = active.len() as i32;
        for slot in 0..n {
            let latent = active.get(slot).copied();
            recorded.indices[row * n + slot] = latent.map_or(-1, |i| i as i32);
            recorded.values[row * n + slot] = latent.map_or(0.0, |i| expected[i]);
        }
    }

    let mut decoded = vec![0.0; rows * d];
    let out = TensorMut::new(&mut decoded, &[rows, d]).unwrap();
    session.decode(Run::default(), recorded.view(), Some(input), out).unwrap();
    let mut whole = vec![0.0; rows * d];
    let out = TensorMut::new(&mut whole, &[rows, d]).unwrap();
    session.reconstruct(Run::default(), input.into(), None, out).unwrap();
    for found in [decoded, whole] {
        for row in 0..rows {
            let (found, expected) = (&found[row * d..][..d], &x_hat[row * d..][..d]);
            let epsilon = TOLERANCE * expected.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            for (found, expected) in std::iter::zip(found, expected) {
                let same = if expected.is_nan() { found.is_nan() } else { (found - expected).abs() <= epsilon };
                assert!(same, "{}: expected {expected}, found {found}", place(row));
            }
        }
    }
}

/// The models below a folder of goldens, by name.
fn models(format: &str, is_model: impl Fn(&Path) -> bool) -> Vec<(String, PathBuf)> {
    let paths = fs::read_dir(golden(format)).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    let mut models: Vec<_> = paths.filter(|path| is_model(path)).map(|path| (name(&path), path)).collect();
    models.sort();
    models
}

fn saelens(name: &str) -> Loaded {
    let scale = name.contains("expected_average").then_some(0.25);
    let options = LoadOptions { activation_scale: scale, ..LoadOptions::default() };
    formats::load(golden("saelens").join(name), &options).unwrap()
}

#[test]
fn saelens_computes_the_same() {
    let models = models("saelens", Path::is_dir);
    assert_eq!(models.len(), 39);
    for (name, path) in models {
        let loaded = saelens(&name);
        assert_eq!(loaded.format, "saelens");
        check(&path, loaded.sae);
    }
}

#[test]
fn saelens_flags_are_understood() {
    let spec = |name: &str| saelens(name).sae.spec().clone();
    let flags = |s: &Spec| (s.architecture, s.normalization, s.subtract_b_dec, s.rescale_by_decoder_norm);
    let top_k = |k| Architecture::TopK { k };
    for (name, expected) in [
        ("v6_standard_none_apply", (Architecture::Relu, Normalization::None, true, false)),
        ("v6_topk_layer_norm_rescale", (top_k(64), Normalization::LayerNorm, false, true)),
        ("v6_topk_constant_norm_apply", (top_k(8), Normalization::ConstantNorm, true, false)),
        ("v6_jumprelu_none", (Architecture::JumpRelu, Normalization::None, false, false)),
        ("v5_topk_layer_norm", (top_k(5), Normalization::LayerNorm, true, false)),
        ("old_names", (Architecture::Relu, Normalization::None, true, false)),
    ] {
        assert_eq!(flags(&spec(name)), expected, "{name}");
    }
    let known = Convention {
        model_name: Some("gpt2-small".into()),
        hook_point: Some(HookPoint::parse("blocks.8.hook_resid_pre")),
        prepend_bos: Some(true),
        context_size: Some(128),
        centered_writing_weights: Some(true),
        ..Convention::default()
    };
    assert_eq!(spec("v6_standard_none_apply").convention, known);
    assert_eq!(spec("v5_jumprelu").convention.excluded_positions, [0, 1, 2, 3, 4]);
    let old = spec("old_names").convention;
    assert_eq!((old.hook_point.unwrap().name(), old.prepend_bos), ("blocks.3.hook_resid_pre", Some(false)));
    assert_eq!(saelens("v5_bf16_weights").sae.weights().w_enc.dtype(), DType::BF16);
    assert!(saelens("v5_tanh_relu").notes.iter().any(|note| note.contains("tanh-relu")));
}

fn is_pt(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pt") && !path.ends_with("legacy.pt")
}

#[test]
fn openai_computes_the_same() {
    let models = models("openai", is_pt);
    assert_eq!(models.len(), 9);
    for (name, path) in models {
        let loaded = formats::load(&path, &LoadOptions::default()).unwrap();
        let spec = loaded.sae.spec();
        let top_k = name.starts_with("topk") || name == "one_storage";
        let (architecture, normalization) = match top_k {
            true => (Architecture::TopK { k: 8 }, Normalization::LayerNorm),
            false => (Architecture::Relu, Normalization::None),
        };
        assert_eq!(*spec, Spec { normalization, ..Spec::new(architecture, 24, 96) }, "{name}");
        let kept = if name.ends_with("f16") && !name.ends_with("bf16") { DType::F16 } else { DType::F32 };
        let kept = if name.ends_with("bf16") { DType::BF16 } else { kept };
        assert_eq!((loaded.format, loaded.sae.weights().w_dec.dtype()), ("openai", kept), "{name}");
        check(&path, loaded.sae);
    }
}

#[test]
fn every_model_survives_the_native_format_and_loads_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    for (name, source) in models("saelens", Path::is_dir).into_iter().chain(models("openai", is_pt)) {
        let scale = name.contains("expected_average").then_some(0.25);
        let options = LoadOptions { activation_scale: scale, ..LoadOptions::default() };
        let loaded = formats::load(&source, &options).unwrap();
        formats::save(&loaded.sae, &path, &formats::SaveOptions::default()).unwrap();
        assert_same(&formats::load(&path, &LoadOptions { map: true, ..Default::default() }).unwrap().sae, &loaded.sae);
        let part = LoadOptions { latents: Some((31, 40)), map: true, ..options };
        let shard = formats::load(&source, &part).unwrap().sae;
        assert_same(&shard, &loaded.sae.shard(31, 40).unwrap());
        let memory = formats::memory(&source, &part).unwrap();
        assert_eq!(memory.resident + memory.mapped, shard.byte_size() as u64, "{name}");
    }
}
