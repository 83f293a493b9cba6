//! The numbers of the original libraries: every model in tests/golden is loaded, encodes and decodes through a session, and
//! is compared with what its maker script recorded. Values agree within 1e-5 of the row's largest; active latents are the
//! same, except those as close as that to the boundary.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sae::backend::Run;
use sae::features::Features;
use sae::formats::{self, LoadOptions, Loaded, Selection};
use sae::sae::{Architecture, Convention, HookPoint, Normalization, Sae, Spec};
use sae::session::{Session, SessionOptions};
use sae::tensor::{DType, Tensor, TensorMut};

use crate::support::assert_same;

const TOLERANCE: f32 = 1e-5;

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A model and what its maker script recorded beside it.
pub(crate) struct Golden {
    pub(crate) format: String,
    pub(crate) name: String,
    pub(crate) model: PathBuf,
    oracle: String,
    by: String,
    pub(crate) options: LoadOptions,
    rows: usize,
    x: Vec<f32>,
    acts: Vec<f32>,
    x_hat: Vec<f32>,
}

impl Golden {
    fn read(format: &str, record: &Path) -> Self {
        let bytes = fs::read(record).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data();
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let fact = |key: &str| header.metadata().as_ref().unwrap()[key].clone();
        let name = record.file_stem().unwrap().to_str().unwrap();
        Self {
            format: format.to_owned(),
            name: name.to_owned(),
            model: model_beside(record, name),
            oracle: fact("oracle"),
            by: fact("by"),
            options: options(&fact("options")),
            rows: file.tensor("x").unwrap().shape()[0],
            x: floats("x"),
            acts: floats("acts"),
            x_hat: floats("x_hat"),
        }
    }

    pub(crate) fn load(&self) -> Loaded {
        formats::load(&self.model, &self.options).unwrap_or_else(|e| panic!("{}/{}: {e}", self.format, self.name))
    }
}

/// Holds runs, not models.
const TRAINING: &str = "training_recipes";

/// Every golden of a model below tests/golden, by format and name.
pub(crate) fn goldens() -> Vec<Golden> {
    let children = |dir: &Path| {
        let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let mut all = Vec::new();
    for dir in children(&golden("")).into_iter().filter(|path| path.is_dir() && !path.ends_with(TRAINING)) {
        let format = dir.file_name().unwrap().to_str().unwrap();
        let records = children(&dir).into_iter().filter(|path| path.is_file() && has_extension(path, "safetensors"));
        all.extend(records.map(|record| Golden::read(format, &record)));
    }
    all
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The directory or file of a record's name.
fn model_beside(record: &Path, name: &str) -> PathBuf {
    let beside = fs::read_dir(record.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let mut beside = beside.filter(|path| path != record && path.file_stem().unwrap() == name);
    beside.next().unwrap_or_else(|| panic!("no model beside {}", record.display()))
}

/// Load options as a maker script gives them.
fn options(json: &str) -> LoadOptions {
    let mut options = LoadOptions::default();
    for (key, value) in serde_json::from_str::<serde_json::Map<_, _>>(json).unwrap() {
        let count = || Some(value.as_u64().unwrap() as usize);
        match key.as_str() {
            "format" => options.format = Some(value.as_str().unwrap().to_owned()),
            "member" => options.member = Some(value.as_str().unwrap().to_owned()),
            "activation_scale" => options.activation_scale = Some(value.as_f64().unwrap() as f32),
            "k" => options.k = count(),
            "prefix" => options.prefix = count(),
            "selection" if value == "top_k" => options.selection = Some(Selection::TopK),
            "selection" if value == "threshold" => options.selection = Some(Selection::Threshold),
            "subtract_b_dec" => options.subtract_b_dec = Some(value.as_bool().unwrap()),
            "center" => options.center = value.as_bool().unwrap(),
            _ => panic!("the option {key}: {value} is not known here"),
        }
    }
    options
}

/// The absolute pre-activation at which a latent of a row begins to be active, where that can be told.
fn boundary(sae: &Sae, i: usize, smallest: f32) -> f32 {
    let threshold = sae.weights().threshold.as_ref();
    let scale = if sae.spec().select_by_decoder_norm { sae.decoder_norms().unwrap()[i] } else { 1.0 };
    match sae.spec().architecture {
        Architecture::Relu => 0.0,
        Architecture::JumpRelu => threshold.unwrap()[i] / scale,
        Architecture::TopK { .. } | Architecture::AbsTopK { .. } | Architecture::GroupMax { .. } => smallest,
        // Not by its activation: nothing is forgiven.
        Architecture::Gated => f32::INFINITY,
    }
}

pub(crate) fn check(golden: &Golden, sae: Sae) {
    let Golden { rows, x, acts, x_hat, .. } = golden;
    let rows = *rows;
    let (spec, sae) = (sae.spec().clone(), Arc::new(sae));
    let (d, d_out, n) = (spec.d_in, spec.d_out, spec.n_latents);
    let place = |row: usize| format!("{}/{}, row {row}", golden.format, golden.name);
    assert_eq!((x.len(), acts.len(), x_hat.len()), (rows * d, rows * n, rows * d_out), "{}", place(0));
    let options = SessionOptions { max_width: n, ..SessionOptions::default() };
    let mut session = Session::new(Arc::clone(&sae), options).unwrap();
    let input = Tensor::new(x, &[rows, d]).unwrap();
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
        let smallest = expected.iter().map(|v| v.abs()).filter(|&v| v > 0.0).fold(f32::INFINITY, f32::min);
        for (i, (&found, &expected)) in std::iter::zip(&found, expected).enumerate() {
            let largest = found.abs().max(expected.abs());
            let swapped =
                (found != 0.0) != (expected != 0.0) && (largest - boundary(&sae, i, smallest)).abs() <= epsilon;
            let close = (found - expected).abs() <= epsilon;
            assert!(close || swapped, "{}, latent {i}: expected {expected}, found {found}", place(row));
        }
        let active: Vec<usize> = (0..n).filter(|&i| expected[i] != 0.0).collect();
        recorded.counts[row] = active.len() as i32;
        for slot in 0..n {
            let latent = active.get(slot).copied();
            recorded.indices[row * n + slot] = latent.map_or(-1, |i| i as i32);
            recorded.values[row * n + slot] = latent.map_or(0.0, |i| expected[i]);
        }
    }

    let mut decoded = vec![0.0; rows * d_out];
    let out = TensorMut::new(&mut decoded, &[rows, d_out]).unwrap();
    session.decode(Run::default(), recorded.view(), Some(input), out).unwrap();
    let mut whole = vec![0.0; rows * d_out];
    let out = TensorMut::new(&mut whole, &[rows, d_out]).unwrap();
    session.reconstruct(Run::default(), input.into(), None, out).unwrap();
    for found in [decoded, whole] {
        for row in 0..rows {
            let (found, expected) = (&found[row * d_out..][..d_out], &x_hat[row * d_out..][..d_out]);
            let epsilon = TOLERANCE * expected.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            for (found, expected) in std::iter::zip(found, expected) {
                let same = if expected.is_nan() { found.is_nan() } else { (found - expected).abs() <= epsilon };
                assert!(same, "{}: expected {expected}, found {found}", place(row));
            }
        }
    }
}

#[test]
fn every_golden_computes_the_same() {
    let goldens = goldens();
    assert!(goldens.len() >= 48, "only {} goldens", goldens.len());
    for golden in &goldens {
        let loaded = golden.load();
        assert_eq!(loaded.format, golden.format, "{}", golden.name);
        check(golden, loaded.sae);
    }
}

/// The table of docs/formats.md says what is held against what; `SAE_BLESS=1` writes it anew.
#[test]
fn the_table_of_goldens_is_up_to_date() {
    const MARK: &str = "<!-- from here on made by the tests: SAE_BLESS=1 cargo test --test formats table -->\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/formats.md");
    let page = fs::read_to_string(&path).unwrap();
    let (text, _) = page.split_once(MARK).expect("the mark");
    let mut table =
        String::from("\n| format | case | architecture | flags | oracle | computed by |\n|---|---|---|---|---|---|\n");
    for golden in goldens() {
        let sae = golden.load().sae;
        let Golden { format, name, oracle, by, .. } = &golden;
        let (architecture, flags) = (sae.spec().architecture.name(), flags(&sae));
        writeln!(table, "| {format} | {name} | {architecture} | {flags} | {oracle} | {by} |").unwrap();
    }
    let wanted = format!("{text}{MARK}{table}");
    if std::env::var_os("SAE_BLESS").is_some() {
        fs::write(&path, wanted).unwrap();
    } else {
        assert!(page == wanted, "docs/formats.md is out of date: SAE_BLESS=1 cargo test --test formats table");
    }
}

/// What an SAE does beyond its architecture, in words.
fn flags(sae: &Sae) -> String {
    let (spec, w) = (sae.spec(), sae.weights());
    let normalization = match spec.normalization {
        Normalization::None => None,
        Normalization::LayerNorm => Some("layer norm"),
        Normalization::ConstantNorm => Some("constant norm"),
    };
    let flag = |set: bool, name| set.then_some(name);
    let flags = [
        normalization,
        flag(spec.subtract_b_dec, "subtracts b_dec"),
        flag(spec.rescale_by_decoder_norm, "rescales by decoder norms"),
        flag(spec.select_by_decoder_norm, "selects by decoder norms"),
        flag(spec.center, "centres"),
        flag(spec.normalization != Normalization::None && !spec.denormalize_output, "stays normalised"),
        flag(spec.d_in != spec.d_out || spec.layers_out > 1, "transcodes"),
        flag(spec.layers_in > 1, "crosscoder"),
        flag(w.glu.is_some(), "GLU encoder"),
        flag(w.w_skip.is_some(), "skip path"),
        flag(w.w_dec.shares_memory_with(&w.w_enc), "tied"),
        flag(!spec.prefixes.is_empty(), "prefixes"),
    ];
    let kept = w.w_enc.dtype();
    let kept = (kept != DType::F32).then(|| format!("kept in {kept}"));
    flags.into_iter().flatten().map(str::to_owned).chain(kept).collect::<Vec<_>>().join(", ")
}

fn saelens(name: &str) -> Loaded {
    let all = goldens();
    all.iter().find(|golden| golden.format == "saelens" && golden.name == name).unwrap().load()
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

#[test]
fn openai_flags_are_understood() {
    for golden in goldens().iter().filter(|golden| golden.format == "openai") {
        let (name, loaded) = (&golden.name, golden.load());
        let top_k = name.starts_with("topk") || name == "one_storage";
        let (architecture, normalization) = match top_k {
            true => (Architecture::TopK { k: 8 }, Normalization::LayerNorm),
            false => (Architecture::Relu, Normalization::None),
        };
        assert_eq!(*loaded.sae.spec(), Spec { normalization, ..Spec::new(architecture, 24, 96) }, "{name}");
        let kept = if name.ends_with("f16") && !name.ends_with("bf16") { DType::F16 } else { DType::F32 };
        let kept = if name.ends_with("bf16") { DType::BF16 } else { kept };
        assert_eq!(loaded.sae.weights().w_dec.dtype(), kept, "{name}");
    }
}

#[test]
fn every_model_survives_the_native_format_and_loads_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    for golden in goldens() {
        let Golden { name, model: source, options, .. } = &golden;
        let loaded = golden.load();
        formats::save(&loaded.sae, &path, &formats::SaveOptions::default()).unwrap();
        assert_same(&formats::load(&path, &LoadOptions { map: true, ..Default::default() }).unwrap().sae, &loaded.sae);
        if options.prefix.is_some() {
            continue;
        }
        let group = loaded.sae.spec().group_size().unwrap_or(1);
        let (first, count) = (31usize.next_multiple_of(group), 40usize.next_multiple_of(group));
        let part = LoadOptions { latents: Some((first, count)), map: true, ..options.clone() };
        let shard = formats::load(source, &part).unwrap().sae;
        assert_same(&shard, &loaded.sae.shard(first, count).unwrap());
        let memory = formats::memory(source, &part).unwrap();
        assert_eq!(memory.resident + memory.mapped, shard.byte_size() as u64, "{name}");
    }
}
