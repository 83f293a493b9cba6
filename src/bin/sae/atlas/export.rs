//! `sae atlas export`: what others' viewers read.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use sae::atlas::{Atlas, Feature, Window, WindowKind};
use serde_json::{Map, Value, json};

use super::script::{make_folder, write_file};
use super::vocabulary::Vocabulary;
use crate::output::{Failure, Outcome, Result};

/// Features of a batch.
const BATCH: usize = 128;

/// Write what other viewers read: Neuronpedia's batches of features, or atoms of OpenAI's sae-viewer.
#[derive(Args)]
pub(crate) struct Export {
    /// What `sae atlas observe` saved.
    atlas: PathBuf,
    /// The folder.
    out: PathBuf,
    /// What is written.
    #[arg(long)]
    to: Kind,
    /// The texts of tokens: tokenizer.json, vocab.json, or a JSON list of texts.
    #[arg(long, value_name = "FILE")]
    vocabulary: Option<PathBuf>,
    /// Neuronpedia's name of the model.
    #[arg(long, default_value = "")]
    model_id: String,
    /// The layer.
    #[arg(long, default_value_t = 0)]
    layer: u32,
    /// Neuronpedia's name of the set of SAEs.
    #[arg(long, default_value = "")]
    sae_set: String,
    /// And what tells this one from others of the set.
    #[arg(long, default_value = "")]
    sae_id_suffix: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// `batch-0.json` and on, 128 features each.
    Neuronpedia,
    /// `atoms/0.json` and on, a feature each.
    Atoms,
}

impl Export {
    pub(super) fn run(&self) -> Result {
        let atlas = Atlas::load(&self.atlas, u64::MAX)?;
        let vocabulary = self.vocabulary.as_deref().map(Vocabulary::read).transpose()?.unwrap_or_default();
        match self.to {
            Kind::Neuronpedia => self.batches(&atlas, &vocabulary)?,
            Kind::Atoms => atoms(&atlas, &vocabulary, &self.out.join("atoms"))?,
        }
        Ok(Outcome::Done)
    }

    fn batches(&self, atlas: &Atlas, vocabulary: &Vocabulary) -> Result<()> {
        make_folder(&self.out)?;
        let latents: Vec<usize> = atlas.latents().collect();
        for (number, latents) in latents.chunks(BATCH).enumerate() {
            let features = latents.iter().map(|&latent| neuronpedia(atlas, latent, vocabulary));
            let batch = json!({
                "model_id": self.model_id,
                "layer": self.layer,
                "sae_set": self.sae_set,
                "sae_id_suffix": self.sae_id_suffix,
                "features": features.collect::<Result<Vec<_>>>()?,
            });
            save(&self.out.join(format!("batch-{number}.json")), &batch)?;
        }
        Ok(())
    }
}

/// A feature in Neuronpedia's batch. What would need the model's unembedding is empty.
fn neuronpedia(atlas: &Atlas, latent: usize, vocabulary: &Vocabulary) -> Result<Value> {
    let feature = atlas.feature(latent)?;
    let (heights, values): (Vec<u64>, Vec<f32>) =
        feature.histogram.iter().map(|bin| (bin.count, 0.5 * (bin.from + bin.to))).unzip();
    let total = feature.count.max(1) as f64;
    // Intervals of windows, and how much of all activations lie in them; top windows in one of their own, as there.
    let top = atlas.windows(latent, WindowKind::Top)?;
    let drawn = atlas.windows(latent, WindowKind::Intervals)?;
    let mut activations = Vec::new();
    let sequence = |window: &Window, [min, max]: [f64; 2], contains: f64| {
        json!({
            "bin_min": min,
            "bin_max": max,
            "bin_contains": contains,
            "qualifying_token_index": window.at,
            "tokens": texts(window, vocabulary),
            "values": window.activations,
        })
    };
    // -1 for both ends stands for the top, there.
    activations.extend(top.iter().map(|window| sequence(window, [-1.0, -1.0], -1.0)));
    for windows in drawn.chunk_by(|a, b| a.interval == b.interval) {
        let [min, max] = interval(&feature, windows[0].interval);
        // A bin that lies across a border is shared by its width on either side.
        let inside = |from: f64, to: f64| ((to.min(max) - from.max(min)) / (to - from)).max(0.0);
        let contains: f64 =
            feature.histogram.iter().map(|bin| bin.count as f64 * inside(bin.from.into(), bin.to.into())).sum();
        activations.extend(windows.iter().map(|window| sequence(window, [min, max], contains / total)));
    }
    Ok(json!({
        "feature_index": latent,
        "neg_str": [], "neg_values": [], "pos_str": [], "pos_values": [],
        "frac_nonzero": share(feature.count, atlas.totals().tokens),
        "freq_hist_data_bar_heights": heights,
        "freq_hist_data_bar_values": values,
        "logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": [],
        "activations": activations,
    }))
}

fn interval(feature: &Feature, number: usize) -> [f64; 2] {
    let range = super::chunk::range(feature);
    let width = range / sae::atlas::INTERVALS as f64;
    [number as f64 * width, (number + 1) as f64 * width]
}

/// A file for each feature, as sae-viewer has them.
fn atoms(atlas: &Atlas, vocabulary: &Vocabulary, folder: &Path) -> Result<()> {
    make_folder(folder)?;
    let tokens = atlas.totals().tokens;
    for latent in atlas.latents() {
        let feature = atlas.feature(latent)?;
        let density = share(feature.count, tokens);
        let sequences = |kind| -> Result<Vec<Value>> {
            let windows = atlas.windows(latent, kind)?;
            Ok(windows.iter().map(|window| sequence(window, vocabulary)).collect())
        };
        let histogram: Map<String, Value> =
            feature.histogram.iter().map(|bin| (bin.from.to_string(), bin.count.into())).collect();
        let atom = json!({
            "density": density,
            "mean_act": share_of(feature.sums[0], tokens),
            "mean_act_squared": share_of(feature.sums[1], tokens),
            "skew": feature.skew(tokens),
            "kurtosis": feature.kurtosis(tokens),
            "hist": histogram,
            "random": sequences(WindowKind::Random)?,
            "top": sequences(WindowKind::Top)?,
        });
        save(&folder.join(format!("{latent}.json")), &atom)?;
    }
    Ok(())
}

fn sequence(window: &Window, vocabulary: &Vocabulary) -> Value {
    let active = window.activations.iter().filter(|&&value| value != 0.0).count();
    json!({
        "density": active as f64 / window.tokens.len() as f64,
        "doc_id": window.document,
        "idx": window.at,
        "act": window.value,
        "acts": window.activations,
        "tokens": texts(window, vocabulary),
        "token_ints": window.tokens,
    })
}

fn texts(window: &Window, vocabulary: &Vocabulary) -> Vec<String> {
    window.tokens.iter().map(|&token| vocabulary.text(token)).collect()
}

fn share(part: u64, whole: u64) -> f64 {
    share_of(part as f64, whole)
}

fn share_of(part: f64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part / whole as f64 }
}

fn save(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|e| Failure::Message(format!("{}: {e}", path.display())))?;
    write_file(path, text.as_bytes())
}
