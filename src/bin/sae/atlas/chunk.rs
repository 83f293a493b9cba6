//! What a page shows of features, some to a file.

use std::collections::{BTreeMap, BTreeSet};

use sae::atlas::{Atlas, Feature, INTERVALS, Window, WindowKind};
use serde::Serialize;

use super::lens::Written;
use super::vocabulary::Vocabulary;
use crate::output::Result;

/// Features of a file.
pub(super) const FEATURES: usize = 16;

/// Some features and the texts of their windows' tokens.
#[derive(Serialize)]
pub(super) struct Chunk {
    tokens: BTreeMap<i32, String>,
    features: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    count: u64,
    sums: [f64; 4],
    max: f32,
    min: f32,
    /// From, to, how many.
    histogram: Vec<(f32, f32, u64)>,
    top: Vec<Text>,
    /// From, to, windows; the highest first, those without windows left out.
    intervals: Vec<(f64, f64, Vec<Text>)>,
    random: Vec<Text>,
    #[serde(flatten)]
    written: Written,
}

/// A window, in few letters: document, position, value, which token that is, the tokens, and of those the activations that are not 0.
#[derive(Serialize)]
struct Text {
    d: i64,
    p: u64,
    v: f32,
    a: usize,
    t: Vec<i32>,
    x: Vec<(usize, f32)>,
}

impl Chunk {
    /// Of latents, whose indices count from the atlas's first.
    pub(super) fn of(
        atlas: &Atlas,
        latents: std::ops::Range<usize>,
        written: Vec<Written>,
        vocabulary: &Vocabulary,
    ) -> Result<Self> {
        let mut written = written.into_iter();
        let mut features = Vec::new();
        for latent in latents {
            features.push(Shown::of(atlas, atlas.latents().start + latent, written.next().unwrap_or_default())?);
        }
        let texts = |shown: &Shown| -> Vec<i32> {
            let drawn = shown.intervals.iter().flat_map(|(.., windows)| windows);
            shown.top.iter().chain(&shown.random).chain(drawn).flat_map(|text| text.t.iter().copied()).collect()
        };
        let tokens: BTreeSet<i32> = features.iter().flat_map(texts).collect();
        Ok(Self { tokens: tokens.into_iter().map(|token| (token, vocabulary.text(token))).collect(), features })
    }
}

impl Shown {
    fn of(atlas: &Atlas, latent: usize, written: Written) -> Result<Self> {
        let feature = atlas.feature(latent)?;
        let windows = |kind| atlas.windows(latent, kind);
        let texts = |windows: Vec<Window>| windows.into_iter().map(Text::of).collect::<Vec<_>>();
        let width = range(&feature) / INTERVALS as f64;
        let mut intervals: Vec<(f64, f64, Vec<Text>)> = Vec::new();
        for window in windows(WindowKind::Intervals)? {
            let from = window.interval as f64 * width;
            if intervals.last().is_none_or(|last| last.0 != from) {
                intervals.push((from, from + width, Vec::new()));
            }
            let last = intervals.last_mut().expect("one was just pushed");
            last.2.push(Text::of(window));
        }
        Ok(Self {
            count: feature.count,
            sums: feature.sums,
            max: feature.max,
            min: feature.min,
            histogram: feature.histogram.iter().map(|bin| (bin.from, bin.to, bin.count)).collect(),
            top: texts(windows(WindowKind::Top)?),
            intervals,
            random: texts(windows(WindowKind::Random)?),
            written,
        })
    }
}

/// Intervals are equal parts of 0 to this: the power of two above the largest |a|.
pub(super) fn range(feature: &Feature) -> f64 {
    let largest = f64::from(feature.max.max(-feature.min));
    let mut range = 2f64.powi(-150);
    while range <= largest {
        range *= 2.0;
    }
    range
}

impl Text {
    fn of(window: Window) -> Self {
        let active = window.activations.iter().copied().enumerate().filter(|&(_, value)| value != 0.0);
        Self {
            d: window.document,
            p: window.position,
            v: window.value,
            a: window.at,
            x: active.collect(),
            t: window.tokens,
        }
    }
}
