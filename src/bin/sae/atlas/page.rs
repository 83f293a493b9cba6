//! `sae atlas page`: a folder of pages, opened from the disk, without a server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use sae::atlas::Atlas;
use sae::backend::Pool;
use sae::sae::Sae;
use serde::Serialize;
use serde_json::json;

use super::chunk::{Chunk, FEATURES};
use super::lens::Decoder;
use super::recorded::{Batch, Recorded};
use super::script::{base64, make_folder, write, write_file};
use super::vocabulary::Vocabulary;
use super::{labels, site};
use crate::activations::Place;
use crate::open::Open;
use crate::output::{Failure, Outcome, Result};

/// Of more latents, the nearest directions take long.
const MANY: usize = 70_000;
/// Tokens of documents that do not end.
const LONG: usize = 1024;

/// Make a folder of pages from an atlas: an index of features, a page for each, and prompts with the features on their tokens.
///
/// Open OUT/index.html; nothing else is needed, and nothing is loaded from elsewhere.
#[derive(Args)]
pub(crate) struct Page {
    /// What `sae atlas observe` saved.
    atlas: PathBuf,
    /// The folder; what is in it of such pages is replaced.
    out: PathBuf,
    /// The title.
    #[arg(long, default_value = "Feature atlas")]
    title: String,
    /// Labels: explanations as Neuronpedia exports them, or an object of latents and texts.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// The texts of tokens: tokenizer.json, vocab.json, or a JSON list of texts.
    #[arg(long, value_name = "FILE")]
    vocabulary: Option<PathBuf>,
    /// The SAE, for nearest decoder directions, the logit lens and prompts.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The model's unembedding [vocabulary, d], for the logit lens: FILE or FILE:TENSOR.
    #[arg(long, value_name = "FILE", requires = "model")]
    unembedding: Option<Place>,
    /// Nearest directions of more than 70,000 latents, too.
    #[arg(long, requires = "model")]
    near: bool,
    /// Fraction of variance unexplained, if it was measured.
    #[arg(long, value_name = "NUMBER")]
    fvu: Option<f64>,
    /// Recorded activations whose texts are shown as prompts.
    #[arg(long, value_name = "FILE", requires = "model")]
    prompts: Vec<PathBuf>,
    /// Tokens of prompts in all.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    prompt_tokens: u64,
    #[command(flatten)]
    recorded: Recorded,
    #[command(flatten)]
    open: Open,
}

/// A document and the features on its tokens.
#[derive(Serialize)]
struct Prompt {
    document: i64,
    tokens: Vec<String>,
    on: Vec<Vec<(i32, f32)>>,
}

impl Page {
    pub(super) fn run(&self) -> Result {
        let atlas = Atlas::load(&self.atlas, u64::MAX)?;
        let labels = self.labels.as_deref().map(labels::read).transpose()?.unwrap_or_default();
        let vocabulary = self.vocabulary.as_deref().map(Vocabulary::read).transpose()?.unwrap_or_default();
        let sae = match &self.model {
            Some(path) => Some(Arc::new(self.open.load(path)?.sae)),
            None => None,
        };
        if let Some(sae) = sae.as_ref().filter(|sae| sae.spec().n_latents != atlas.latents().len()) {
            let (n, found) = (atlas.latents().len(), sae.spec().n_latents);
            return Err(Failure::Message(format!("the atlas is of {n} latents, the SAE has {found}")));
        }
        let prompts = match &sae {
            Some(sae) if !self.prompts.is_empty() => self.prompts(sae, &vocabulary)?,
            _ => Vec::new(),
        };
        let near = self.near || atlas.latents().len() <= MANY;
        let decoder =
            sae.as_ref().map(|sae| Decoder::new(Arc::clone(sae), self.unembedding.as_ref(), near, &Pool::new(0)?));
        self.write(&atlas, &labels, &vocabulary, sae.as_deref(), decoder.transpose()?, &prompts)?;
        Ok(Outcome::Done)
    }

    fn write(
        &self,
        atlas: &Atlas,
        labels: &BTreeMap<usize, String>,
        vocabulary: &Vocabulary,
        sae: Option<&Sae>,
        mut decoder: Option<Decoder>,
        prompts: &[Prompt],
    ) -> Result<()> {
        let chunks = self.out.join("data").join("f");
        make_folder(&chunks)?;
        for (name, text) in site::FILES {
            write_file(&self.out.join(name), text.as_bytes())?;
        }
        let n = atlas.latents().len();
        for (number, first) in (0..n).step_by(FEATURES).enumerate() {
            let latents = first..(first + FEATURES).min(n);
            let written = match &mut decoder {
                Some(decoder) => decoder.written(latents.clone(), vocabulary)?,
                None => Vec::new(),
            };
            let chunk = Chunk::of(atlas, latents, written, vocabulary)?;
            write(&chunks.join(format!("{number}.js")), "atlas.chunk", &[&number, &chunk])?;
        }
        let prompts_file = self.out.join("data/prompts.js");
        match prompts.is_empty() {
            false => write(&prompts_file, "atlas.prompts", &[&prompts])?,
            true => remove(&prompts_file)?,
        }
        // Last, so that pages which were not finished are not taken for whole ones.
        write(&self.out.join("data/index.js"), "atlas.index", &[&self.index(atlas, labels, sae, prompts)?])
    }

    fn index(
        &self,
        atlas: &Atlas,
        labels: &BTreeMap<usize, String>,
        sae: Option<&Sae>,
        prompts: &[Prompt],
    ) -> Result<serde_json::Value> {
        let (known, totals) = (atlas.latents(), atlas.totals());
        let (mut counts, mut max) = (Vec::new(), Vec::new());
        for latent in known.clone() {
            let feature = atlas.feature(latent)?;
            counts.extend((feature.count as f64).to_le_bytes());
            max.extend(feature.max.max(-feature.min).to_le_bytes());
        }
        let labels: Vec<(usize, &str)> = labels
            .iter()
            .filter(|(latent, _)| known.contains(latent))
            .map(|(latent, label)| (latent - known.start, label.as_str()))
            .collect();
        let convention = sae.map(|sae| &sae.spec().convention);
        let hook = convention.and_then(|c| c.hook_point.as_ref()).map(ToString::to_string);
        Ok(json!({
            "title": self.title,
            "n": known.len(),
            "first": known.start,
            "tokens": totals.tokens,
            "not_finite": totals.not_finite,
            "stretches": totals.stretches,
            "chunk": FEATURES,
            "model": convention.and_then(|c| c.model_name.as_deref()),
            "hook": hook,
            "fvu": self.fvu,
            "prompts": !prompts.is_empty(),
            "labels": labels,
            "count": base64(&counts),
            "max": base64(&max),
        }))
    }

    fn prompts(&self, sae: &Arc<Sae>, vocabulary: &Vocabulary) -> Result<Vec<Prompt>> {
        let mut prompts: Vec<Prompt> = Vec::new();
        self.recorded.encode(
            sae,
            &self.prompts,
            self.prompt_tokens,
            |Batch { features, tokens, documents, .. }| {
                for (t, (&token, &document)) in tokens.iter().zip(documents).enumerate() {
                    if prompts.last().is_none_or(|last| last.document != document || last.tokens.len() == LONG) {
                        prompts.push(Prompt { document, tokens: Vec::new(), on: Vec::new() });
                    }
                    let last = prompts.last_mut().expect("one was just pushed");
                    last.tokens.push(vocabulary.text(token));
                    let mut on: Vec<(i32, f32)> = features.row(t).filter(|&(_, value)| value != 0.0).collect();
                    on.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
                    last.on.push(on);
                }
                Ok(())
            },
        )?;
        Ok(prompts)
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Failure::Message(format!("{}: {e}", path.display()))),
        _ => Ok(()),
    }
}
