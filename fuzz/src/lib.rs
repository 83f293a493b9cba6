//! What the targets share: files are loaded as a host would load them, and what loads is used. Nothing may panic, and
//! nothing may be allocated that the files do not justify (`-malloc_limit_mb` watches over that).

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use sae::backend::Run;
use sae::features::Features;
use sae::formats::{self, LoadOptions, Selection};
use sae::session::{Session, SessionOptions};
use sae::tensor::{DType, Tensor, TensorMut};
use sae::training::data::{Rows, ShardOptions, Shards, Source};
use tempfile::TempDir;

macro_rules! golden {
    ($path:literal) => {
        include_bytes!(concat!("../../tests/golden/", $path))
    };
}

/// A name and what the file of that name holds.
pub type File<'a> = (&'a str, &'a [u8]);

/// Configurations of the formats that keep one beside their weights.
pub const CONFIGS: &[File<'static>] = &[
    ("cfg.json", golden!("saelens/v6_topk_none_rescale/cfg.json")),
    ("cfg.json", golden!("sparsify/topk/cfg.json")),
    ("config.json", golden!("gemma_scope/v2_transcoder/config.json")),
    ("config.json", golden!("openmoss/topk/config.json")),
    ("hyperparams.json", golden!("llama_scope/topk/hyperparams.json")),
];

/// dictionary_learning's configuration.
pub const TRAINER: &[u8] = golden!("dictionary_learning/top_k/config.json");

/// Weights of the formats whose configuration is JSON, and the name that it has.
pub const WEIGHTS: &[(&str, File<'static>)] = &[
    ("cfg.json", ("sae_weights.safetensors", golden!("saelens/v6_topk_none_rescale/sae_weights.safetensors"))),
    ("cfg.json", ("sae.safetensors", golden!("sparsify/topk/sae.safetensors"))),
    ("config.json", ("ae.pt", golden!("dictionary_learning/top_k/ae.pt"))),
    ("config.json", ("params.safetensors", golden!("gemma_scope/v2_transcoder/params.safetensors"))),
    ("config.json", ("sae_weights.safetensors", golden!("openmoss/topk/sae_weights.safetensors"))),
    ("hyperparams.json", ("final.safetensors", golden!("llama_scope/topk/checkpoints/final.safetensors"))),
];

/// One layer of a set whose configuration is YAML.
pub const LAYER: &[u8] = golden!("circuit_tracer/jumprelu/layer_0.safetensors");

/// Loads the files, with nothing said and with everything said, and uses what comes of it.
pub fn load(files: &[File<'_>]) {
    let said = LoadOptions {
        k: Some(2),
        selection: Some(Selection::Threshold),
        subtract_b_dec: Some(false),
        activation_scale: Some(0.5),
        dtype: Some(DType::BF16),
        ..LoadOptions::default()
    };
    for options in [LoadOptions::default(), said] {
        if let Ok(loaded) = formats::load_bytes(files, &options) {
            run(loaded.sae);
        }
    }
}

fn run(sae: sae::sae::Sae) {
    let (spec, size) = (sae.spec().clone(), sae.byte_size());
    // A file of a few bytes can be the weights of a wide model only if it is sparse; such a one is not worth the time.
    if size > 1 << 20 {
        return;
    }
    let options = SessionOptions { max_tokens: 2, max_width: 8, ..SessionOptions::default() };
    let mut session = Session::new(Arc::new(sae), options).expect("a session of a sound model");
    let x: Vec<f32> = (0..2 * spec.d_in).map(|i| (i % 7) as f32 - 3.0).collect();
    let x = Tensor::new(&x, &[2, spec.d_in]).expect("a view");
    let mut features = Features::new(2, 8, spec.row_state_width());
    session.encode(Run::default(), x.into(), features.view_mut()).expect("features of sound tokens");
    let mut x_hat = vec![0.0; 2 * spec.d_out];
    let out = TensorMut::new(&mut x_hat, &[2, spec.d_out]).expect("a view");
    session.decode(Run::default(), features.view(), Some(x), out).expect("their reconstruction");
}

/// A file of this process that holds the bytes, for readers that map files; the next takes its place.
pub fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let path = FOLDER.get_or_init(|| TempDir::new().expect("a folder")).path().join(name);
    // A new file each time: what is mapped must not change.
    std::fs::remove_file(&path).ok();
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// Goes through the rows of files.
pub fn rows(options: &ShardOptions) {
    let Ok(mut shards) = Shards::open(options) else { return };
    let Ok(mut rows) = Rows::new(shards.layout(), 3) else { return };
    let mut given = 0;
    // Where there are very many, what comes first is enough.
    while given < 1000 {
        match shards.next(&mut rows) {
            Ok(0) => return assert_eq!(Some(given), shards.len()),
            Ok(count) => given += count as u64,
            Err(_) => return,
        }
        std::hint::black_box(rows.tensor());
    }
}
