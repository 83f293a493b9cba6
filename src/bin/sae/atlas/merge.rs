//! `sae atlas merge`: atlases of different documents made one.

use std::path::PathBuf;

use clap::Args;
use sae::atlas::Atlas;

use crate::output::{Outcome, Result};

/// Merge atlases that have seen different documents, with the same options, into that of all.
#[derive(Args)]
pub(crate) struct Merge {
    /// Where the whole goes.
    out: PathBuf,
    /// The parts.
    #[arg(required = true)]
    parts: Vec<PathBuf>,
}

impl Merge {
    pub(super) fn run(&self) -> Result {
        let (first, others) = self.parts.split_first().expect("one is required");
        let mut whole = Atlas::load(first, u64::MAX)?;
        for part in others {
            let mut part_atlas = Atlas::load(part, u64::MAX)?;
            whole.merge(&mut part_atlas).map_err(|e| e.at(part.display()))?;
        }
        whole.save(&self.out)?;
        Ok(Outcome::Done)
    }
}
