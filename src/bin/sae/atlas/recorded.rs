//! Recorded activations and the tokens they are of, encoded.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use sae::backend::{Pool, Run};
use sae::features::Features;
use sae::sae::Sae;
use sae::session::{Session, SessionOptions};
use sae::training::data::{Rows, ShardOptions, Shards, Source};

use crate::output::{Failure, Result};

/// Tokens that are encoded together.
const TOGETHER: usize = 256;
/// The first tokens, whose median norm says what is usual.
const SAMPLE: usize = 4096;

/// Which files, and what of their tokens is told beside the activations.
#[derive(Args, Clone)]
pub(super) struct Recorded {
    /// The tensor beside the activations that holds the tokens, i32 or i64. For an array a.npy it is the file a.NAME.npy.
    #[arg(long, value_name = "NAME", default_value = "tokens")]
    tokens: String,
    /// The tensor of each token's document. Without it, contexts of [contexts, tokens, d] are documents.
    #[arg(long, value_name = "NAME")]
    documents: Option<String>,
    /// The tensor of each token's position in its document.
    #[arg(long, value_name = "NAME")]
    positions: Option<String>,
    /// The tensor of activations, where a file holds several.
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// Of rows [layers, d], the layer that the SAE reads.
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// Tokens at positions before this are shown, but their features are left out.
    #[arg(long, value_name = "N", default_value_t = 0)]
    first_position: u64,
    /// So are those of tokens whose norm is more than this many times the median of the first 4096: attention sinks. 0: none.
    #[arg(long, value_name = "NUMBER", default_value_t = 10.0)]
    sink_multiple: f32,
    /// Threads that encode; 0: one for each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Some tokens, one after another, and their features.
pub(super) struct Batch<'a> {
    pub(super) features: &'a Features,
    pub(super) tokens: &'a [i32],
    pub(super) documents: &'a [i64],
    /// Of all or of none.
    pub(super) positions: Option<&'a [i64]>,
}

impl Recorded {
    /// Encodes the first `most` tokens of the files, or all. Tells on how many the features were left out.
    pub(super) fn encode(
        &self,
        sae: &Arc<Sae>,
        paths: &[PathBuf],
        most: u64,
        mut each: impl FnMut(Batch<'_>) -> Result<()>,
    ) -> Result<u64> {
        let options = ShardOptions {
            paths: paths.to_vec(),
            tensor: self.tensor.clone(),
            documents: self.documents.clone(),
            positions: self.positions.clone(),
            tokens: Some(self.tokens.clone()),
            layered: self.layer.is_some(),
            ..ShardOptions::default()
        };
        let mut source = Shards::open(&options)?;
        let spec = sae.spec();
        let layout = source.layout();
        if layout.d != spec.d_in {
            let message = format!("the activations are {} wide, the SAE reads {}", layout.d, spec.d_in);
            return Err(Failure::Message(message));
        }
        let most_norm = self.most_norm(&options)?;
        let mut vector = vec![0.0; layout.d];
        let pool = Pool::new(self.threads)?;
        let width = spec.max_active().min(1024);
        let session = SessionOptions { max_tokens: TOGETHER, max_width: width, pool, ..SessionOptions::default() };
        let mut session = Session::new(Arc::clone(sae), session)?;
        let mut rows = Rows::new(layout, TOGETHER)?;
        let mut features = Features::new(0, width, spec.row_state_width());
        let (mut first, mut left_out) = (0, 0);
        while first < most {
            rows.set_room((most - first).min(TOGETHER as u64) as usize);
            let count = source.next(&mut rows)?;
            if count == 0 {
                break;
            }
            if features.rows() != count {
                features = Features::new(count, width, spec.row_state_width());
            }
            let x = rows.layer(self.layer.unwrap_or(0))?;
            session.encode(Run::default(), x.into(), features.view_mut())?;
            let told: Vec<_> = (first..first + count as u64).map_while(|row| source.told(row)).collect();
            let token = |token: i64| {
                i32::try_from(token).map_err(|_| Failure::Message(format!("{}: {token} is no token", self.tokens)))
            };
            let tokens = told.iter().map(|told| token(told.token.unwrap_or(-1))).collect::<Result<Vec<_>>>()?;
            let documents: Vec<i64> = told.iter().map(|told| told.document).collect();
            let positions: Option<Vec<i64>> = told.iter().map(|told| told.position.map(|p| p as i64)).collect();
            for (row, told) in told.iter().enumerate() {
                x.read_row(row, &mut vector);
                let early = told.position.is_some_and(|position| position < self.first_position);
                if early || norm(&vector) > most_norm {
                    features.indices[row * width..(row + 1) * width].fill(-1);
                    features.counts[row] = 0;
                    left_out += 1;
                }
            }
            let positions = positions.as_deref();
            each(Batch { features: &features, tokens: &tokens, documents: &documents, positions })?;
            first += count as u64;
        }
        Ok(left_out)
    }

    /// Norms above this are those of attention sinks.
    fn most_norm(&self, options: &ShardOptions) -> Result<f32> {
        if self.sink_multiple == 0.0 {
            return Ok(f32::INFINITY);
        }
        let mut source = Shards::open(options)?;
        let mut rows = Rows::new(source.layout(), SAMPLE)?;
        let count = source.next(&mut rows)?;
        let x = rows.layer(self.layer.unwrap_or(0))?;
        let mut vector = vec![0.0; source.layout().d];
        let mut norm_of = |row| {
            x.read_row(row, &mut vector);
            norm(&vector)
        };
        let mut norms: Vec<f32> = (0..count).map(&mut norm_of).filter(|norm| norm.is_finite()).collect();
        norms.sort_unstable_by(f32::total_cmp);
        Ok(norms.get(norms.len() / 2).map_or(f32::INFINITY, |median| median * self.sink_multiple))
    }

    /// How many slots per token features come with.
    pub(super) fn width(sae: &Sae) -> usize {
        sae.spec().max_active().min(1024)
    }
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32
}
