//! `sae atlas observe`: an atlas from recorded activations.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use sae::atlas::{Atlas, AtlasOptions, Context, Observed};

use super::recorded::{Batch, Recorded};
use crate::open::Open;
use crate::output::{Failure, Outcome, Result, bytes, fields, grouped, print};

/// Watch recorded activations pass through an SAE, and save what was seen of each feature.
#[derive(Args)]
pub(crate) struct Observe {
    /// A file, or a directory that holds an SAE.
    sae: PathBuf,
    /// Files of activations, folders of them, or patterns: .safetensors, .npy, .npz, .pt, .arrow.
    #[arg(required = true)]
    activations: Vec<PathBuf>,
    /// Where the atlas goes.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// Goes on with an atlas that was saved, of other documents.
    #[arg(long, value_name = "ATLAS", conflicts_with_all = ["top", "per_interval", "random", "before", "after", "seed"])]
    add_to: Option<PathBuf>,
    /// The most tokens that are watched.
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    max_tokens: u64,
    /// Windows kept of each feature around its highest peaks.
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Windows drawn from each interval of its activations.
    #[arg(long, value_name = "N", default_value_t = 5)]
    per_interval: usize,
    /// Windows drawn from all its activations.
    #[arg(long, value_name = "N", default_value_t = 10)]
    random: usize,
    /// Tokens before the peak in top windows; drawn ones have half as many.
    #[arg(long, value_name = "N", default_value_t = 47)]
    before: usize,
    /// Tokens after it.
    #[arg(long, value_name = "N", default_value_t = 16)]
    after: usize,
    /// Of what is drawn.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    recorded: Recorded,
    #[command(flatten)]
    open: Open,
}

impl Observe {
    pub(super) fn run(&self) -> Result {
        let sae = Arc::new(self.open.load(&self.sae)?.sae);
        let spec = sae.spec();
        let mut atlas = match &self.add_to {
            Some(path) => Atlas::load(path, u64::MAX)?,
            None => Atlas::new(&AtlasOptions {
                n_latents: spec.n_latents,
                first_latent: spec.first_latent,
                top: self.top,
                per_interval: self.per_interval,
                random: self.random,
                top_context: Context { before: self.before, after: self.after },
                drawn_context: Context { before: self.before / 2, after: self.after / 2 },
                max_width: Recorded::width(&sae),
                seed: self.seed,
                ..AtlasOptions::default()
            })?,
        };
        let latents = spec.first_latent..spec.first_latent + spec.n_latents;
        if atlas.latents() != latents {
            let found = atlas.latents();
            return Err(Failure::Message(format!("the atlas is of latents {found:?}, the SAE has {latents:?}")));
        }
        let see = |Batch { features, tokens, documents, positions }: Batch<'_>| {
            let documents = Some(documents);
            Ok(atlas.observe(&Observed { documents, positions, ..Observed::new(features.view(), tokens) })?)
        };
        let left_out = self.recorded.encode(&sae, &self.activations, self.max_tokens, see)?;
        atlas.save(&self.out)?;
        let totals = atlas.totals();
        let counts = atlas.latents().map(|latent| atlas.count(latent)).collect::<sae::Result<Vec<u64>>>()?;
        let dead = counts.iter().filter(|&&count| count == 0).count();
        let l0 = counts.iter().sum::<u64>() as f64 / totals.tokens.max(1) as f64;
        print(&fields([
            ("tokens", grouped(totals.tokens)),
            ("documents", grouped(totals.stretches)),
            ("left out", grouped(left_out)),
            ("not finite", grouped(totals.not_finite)),
            ("cut", grouped(totals.cut)),
            ("L0", format!("{l0:.3}")),
            ("never active", format!("{} of {}", grouped(dead as u64), grouped(counts.len() as u64))),
            ("memory", bytes(atlas.options().memory()?)),
        ]))?;
        Ok(Outcome::Done)
    }
}
