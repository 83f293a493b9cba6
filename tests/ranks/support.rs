//! Ranks as threads.

use std::time::Duration;

use sae::collective::{Ranks, threads};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What `body` gives on each rank of a grid, in the order of ranks.
pub(crate) fn on_grid<R: Send>(data: usize, latents: usize, body: impl Fn(Ranks) -> R + Sync) -> Vec<R> {
    let ranks = threads(data, latents, PATIENCE).unwrap();
    std::thread::scope(|scope| {
        let body = &body;
        let all: Vec<_> = ranks.into_iter().map(|ranks| scope.spawn(move || body(ranks))).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
