//! What was seen of each feature of an SAE: how often and how strongly it is active, and the texts in which it is.
//!
//! An [`Atlas`] watches features flow by, from any host, in one pass and in memory that is known before. Of each feature it
//! keeps
//!
//! - how many tokens it is active on, Σa to Σa⁴, the extremes, and a histogram of |a| whose bins are a quarter of an octave;
//! - the [`top`](AtlasOptions::top) windows: the tokens around its highest peaks. A peak is an activation that none in its
//!   window exceeds (of equal ones the first is meant), so that windows do not repeat each other;
//! - windows drawn at random: from all its activations, and from each of up to [`INTERVALS`] equal intervals of its range.
//!
//! Activations are ranked by |a|, which matters to signed architectures alone; 0 is not active, and of a latent that is listed twice
//! on a token the largest is meant. What is drawn depends on the seed
//! and on each token's document and position, and on nothing else. So an atlas does not depend on how its tokens were split
//! into calls, on the order of documents, or on which of several atlases, that were then [merged](Atlas::merge), saw which
//! document: all it holds is equal, but for the sums, which are rounded (to about 1e-16 of Σ|a|ⁿ at each addition) in the order in which they are made.
//! This needs numbers of documents that are each used once, and documents that come whole: where one goes on after it was
//! [ended](Atlas::finish), after a gap in its positions, or in another atlas, its windows end and begin there.
//!
//! ```
//! use sae::atlas::{Atlas, AtlasOptions, Observed, WindowKind};
//! use sae::features::Features;
//!
//! let mut atlas = Atlas::new(&AtlasOptions { n_latents: 4, ..Default::default() })?;
//! let mut features = Features::new(3, 1, 0);
//! (features.indices[1], features.values[1], features.counts[1]) = (2, 0.5, 1); // feature 2, on the second token
//! let documents = [7; 3];
//! atlas.observe(&Observed { documents: Some(&documents), ..Observed::new(features.view(), &[10, 11, 12]) })?;
//! atlas.finish();
//! assert_eq!(atlas.feature(2)?.count, 1);
//! let window = &atlas.windows(2, WindowKind::Top)?[0];
//! assert_eq!((&window.tokens[..], window.at, window.document), (&[10, 11, 12][..], 1, 7));
//! # Ok::<(), sae::Error>(())
//! ```

mod block;
mod documents;
mod load;
mod lots;
mod options;
mod save;
mod shelf;
mod statistics;

pub use options::{AtlasOptions, Context, INTERVALS};
pub use statistics::BINS;

use half::{bf16, f16};

use crate::error::{Result, fail};
use crate::features::{FeaturesRef, check_host};
use crate::tensor::{Array, DType};
use block::Neighbourhood;
use documents::Documents;
use lots::Lots;
use shelf::{Head, Shelf};
use statistics::{Statistics, edge, interval, range};

/// What was seen of each feature.
pub struct Atlas {
    options: AtlasOptions,
    documents: Documents,
    content: Content,
    totals: Totals,
    /// The features of a token, gathered.
    row: Vec<(u32, f32)>,
}

/// What is known of each feature.
struct Content {
    lots: Lots,
    statistics: Array<Statistics>,
    histograms: Array<u64>,
    top: Shelf,
    intervals: Shelf,
    random: Shelf,
}

/// What was seen of tokens, whatever their features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Tokens.
    pub tokens: u64,
    /// Tokens of them that were not finite, or have a feature that is not: their features are not counted.
    pub not_finite: u64,
    /// Tokens on which more features were active than were handed in; only those were counted.
    pub cut: u64,
    /// Stretches of consecutive tokens of a document; with documents that come whole, documents.
    pub stretches: u64,
}

/// Tokens and their features.
#[derive(Clone, Copy)]
pub struct Observed<'a> {
    /// Features of T tokens, in the host's memory; `row_state` is not looked at.
    pub features: FeaturesRef<'a>,
    /// `[T]`: the tokens, by whatever numbers the host has for them.
    pub tokens: &'a [i32],
    /// `[T]`: the document of each token; `None`: all are of document 0.
    pub documents: Option<&'a [i64]>,
    /// `[T]`: the position of each token in its document; `None`: each follows the last of its document.
    pub positions: Option<&'a [i64]>,
}

impl<'a> Observed<'a> {
    /// Tokens of document 0.
    pub fn new(features: FeaturesRef<'a>, tokens: &'a [i32]) -> Self {
        Self { features, tokens, documents: None, positions: None }
    }
}

/// What windows of a feature are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// The highest peaks, the highest first.
    Top,
    /// Drawn from each interval, the highest interval first.
    Intervals,
    /// Drawn from all.
    Random,
}

/// The numbers of a feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    /// Tokens on which it is active.
    pub count: u64,
    /// Σa, Σa², Σa³, Σa⁴ over them.
    pub sums: [f64; 4],
    /// Its largest and smallest activation; 0 if it is never active.
    pub max: f32,
    /// See `max`.
    pub min: f32,
    /// Activations that are smaller than the histogram's lowest bin.
    pub below: u64,
    /// The bins with something in them, from the lowest on.
    pub histogram: Vec<Bin>,
}

impl Feature {
    /// `E[a³]/E[a²]^1.5` over all of `tokens`, 0 if it is never active.
    pub fn skew(&self, tokens: u64) -> f64 {
        self.moment(2, 1.5, tokens)
    }

    /// `E[a⁴]/E[a²]²` over all of `tokens`, 0 if it is never active.
    pub fn kurtosis(&self, tokens: u64) -> f64 {
        self.moment(3, 2.0, tokens)
    }

    fn moment(&self, sum: usize, power: f64, tokens: u64) -> f64 {
        let [square, other] = [self.sums[1], self.sums[sum]].map(|sum| sum / tokens as f64);
        if square > 0.0 { other / square.powf(power) } else { 0.0 }
    }
}

/// A part of a histogram: how many |a| lie in `from..to`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// The least |a| of the bin.
    pub from: f32,
    /// The least |a| of the next.
    pub to: f32,
    /// How many lie in it.
    pub count: u64,
}

/// Tokens around an activation.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The document.
    pub document: i64,
    /// The position of the activation in the document.
    pub position: u64,
    /// The activation.
    pub value: f32,
    /// Which of the tokens it is on.
    pub at: usize,
    /// In which of [`INTERVALS`] equal parts of 0 to the power of two above the feature's largest |a| it lies.
    pub interval: usize,
    /// The tokens.
    pub tokens: Vec<i32>,
    /// The feature's activations on them, rounded to bf16.
    pub activations: Vec<f32>,
}

impl Atlas {
    /// An atlas of which nothing was seen yet. It takes its memory now, but for the tokens of open documents.
    pub fn new(options: &AtlasOptions) -> Result<Self> {
        options.check()?;
        let n = options.n_latents;
        let shelf = |classes, per_class, context| Shelf::new(n, classes, per_class, context);
        Ok(Self {
            content: Content {
                lots: Lots { seed: options.seed, first_latent: options.first_latent },
                statistics: Array::zeroed(n)?,
                histograms: Array::zeroed(n * BINS)?,
                top: shelf(1, options.top, options.top_context)?,
                intervals: shelf(INTERVALS, options.per_interval, options.drawn_context)?,
                random: shelf(1, options.random, options.drawn_context)?,
            },
            documents: Documents::new(options.block(), options.max_width, options.max_documents),
            totals: Totals::default(),
            row: Vec::with_capacity(options.max_width),
            options: options.clone(),
        })
    }

    /// What is kept.
    pub fn options(&self) -> &AtlasOptions {
        &self.options
    }

    /// Watches tokens. If they are refused, none of them was seen, unless there was no memory for another document.
    pub fn observe(&mut self, observed: &Observed<'_>) -> Result<()> {
        self.check(observed)?;
        let Self { documents, content, totals, row, options } = self;
        let features = &observed.features;
        for (t, &token) in observed.tokens.iter().enumerate() {
            let count = features.counts.element::<i32>(t);
            row.clear();
            let finite = count >= 0 && gather(features, t, options.first_latent, row);
            if !finite {
                row.clear();
            }
            let document = observed.documents.map_or(0, |documents| documents[t]);
            let position = observed.positions.map(|positions| positions[t] as u64);
            documents.push((document, position, token), row, |around| content.settle(&around))?;
            totals.tokens += 1;
            totals.not_finite += u64::from(!finite);
            totals.cut += u64::from(count > features.width() as i32);
        }
        Ok(())
    }

    fn check(&self, observed: &Observed<'_>) -> Result<()> {
        let Observed { features, tokens, documents, positions } = observed;
        let rows = tokens.len();
        let unread = FeaturesRef { row_state: None, ..*features };
        unread.check(rows, 0)?;
        for (name, tensor) in unread.tensors() {
            check_host(name, &tensor, "an atlas reads the host's memory; copy the features there first")?;
        }
        let (width, most) = (features.width(), self.options.max_width);
        if width > most {
            return fail!(InvalidTensor, "features.values: {width} slots per token; this atlas has max_width {most}");
        }
        let lens = [("documents", documents.map(<[i64]>::len)), ("positions", positions.map(<[i64]>::len))];
        for (name, len) in lens {
            if len.is_some_and(|len| len != rows) {
                return fail!(InvalidArgument, "{name}: {} numbers for {rows} tokens", len.unwrap_or(0));
            }
        }
        if let Some(t) = positions.and_then(|positions| positions.iter().position(|&p| p < 0 || p == i64::MAX)) {
            return fail!(InvalidArgument, "positions[{t}]: {} is not a position", positions.map_or(0, |p| p[t]));
        }
        let known = self.latents();
        for t in 0..rows {
            let indices = features.indices.row::<i32>(t);
            // Without a branch, the check is hardly noticed.
            let fine = |i: i32| i < 0 || known.contains(&(i as usize));
            if !indices.iter().fold(true, |all, &i| all & fine(i)) {
                let found = indices.iter().find(|&&i| !fine(i)).copied().unwrap_or(0);
                return fail!(InvalidTensor, "features.indices[{t}]: {found} is not one of the latents {known:?}");
            }
        }
        Ok(())
    }

    /// Ends all documents, so that what was held back of their ends is seen.
    pub fn finish(&mut self) {
        let Self { documents, content, .. } = self;
        documents.finish(|around| content.settle(&around));
    }

    /// Adds what another atlas has seen, as if this one had seen it. Both atlases' documents are ended; those of one must not
    /// be in the other.
    pub fn merge(&mut self, other: &mut Self) -> Result<()> {
        if !self.options.same_content(&other.options) {
            let (a, b) = (&self.options, &other.options);
            return fail!(InvalidArgument, "other: atlases of other options do not merge: {a:?} and {b:?}");
        }
        self.finish();
        other.finish();
        self.content.merge(&other.content);
        let (totals, others) = (&mut self.totals, &other.totals());
        totals.tokens += others.tokens;
        totals.not_finite += others.not_finite;
        totals.cut += others.cut;
        totals.stretches += others.stretches;
        Ok(())
    }

    /// What was seen of tokens. Of features, the last tokens of open documents are not counted yet.
    pub fn totals(&self) -> Totals {
        Totals { stretches: self.totals.stretches + self.documents.begun, ..self.totals }
    }

    /// The indices of the latents.
    pub fn latents(&self) -> std::ops::Range<usize> {
        self.options.first_latent..self.options.first_latent + self.options.n_latents
    }

    fn number(&self, latent: usize) -> Result<usize> {
        let known = self.latents();
        if !known.contains(&latent) {
            return fail!(InvalidArgument, "latent: {latent} is not one of {known:?}");
        }
        Ok(latent - known.start)
    }

    /// On how many tokens a latent is active.
    pub fn count(&self, latent: usize) -> Result<u64> {
        Ok(self.content.statistics[self.number(latent)?].count)
    }

    /// The numbers of a latent.
    pub fn feature(&self, latent: usize) -> Result<Feature> {
        let feature = self.number(latent)?;
        let statistics = self.content.statistics[feature];
        let Statistics { count, sums, max, min, below, .. } = statistics;
        let bins = statistics.bins(self.content.histogram(feature));
        let bin = |(bin, count)| Bin { from: edge(bin), to: edge(bin + 1), count };
        Ok(Feature { count, sums, max, min, below, histogram: bins.map(bin).collect() })
    }

    /// How many windows there are of a latent.
    pub fn n_windows(&self, latent: usize, kind: WindowKind) -> Result<usize> {
        let feature = self.number(latent)? as u32;
        let shelf = self.content.shelf(kind);
        Ok((0..shelf.classes).map(|class| shelf.len(feature, class)).sum())
    }

    /// The windows of a latent.
    pub fn windows(&self, latent: usize, kind: WindowKind) -> Result<Vec<Window>> {
        let feature = self.number(latent)?;
        let shelf = self.content.shelf(kind);
        let range = range(self.content.statistics[feature].magnitude());
        let window = |(head, tokens, activations): (&Head, &[i32], &[u16])| Window {
            document: head.document,
            position: head.position,
            value: head.value,
            at: head.at.into(),
            interval: interval(head.value, range, INTERVALS),
            tokens: tokens[..head.len.into()].to_vec(),
            activations: activations[..head.len.into()].iter().map(|&bits| bf16::from_bits(bits).to_f32()).collect(),
        };
        Ok((0..shelf.classes).rev().flat_map(|class| shelf.sorted(feature as u32, class)).map(window).collect())
    }
}

impl Content {
    fn histogram(&self, feature: usize) -> &[u64] {
        &self.histograms[feature * BINS..(feature + 1) * BINS]
    }

    fn shelf(&self, kind: WindowKind) -> &Shelf {
        match kind {
            WindowKind::Top => &self.top,
            WindowKind::Intervals => &self.intervals,
            WindowKind::Random => &self.random,
        }
    }

    /// Counts what is in a block, and keeps what is worth it.
    fn settle(&mut self, around: &Neighbourhood<'_>) {
        for group in around.here().groups() {
            let feature = group[0].feature;
            let values = group.iter().map(|entry| entry.value);
            self.widen(feature, values.fold(0.0, |max, value| max.max(value.abs())));
            let histogram = &mut self.histograms[feature as usize * BINS..(feature as usize + 1) * BINS];
            let statistics = &mut self.statistics[feature as usize];
            group.iter().for_each(|entry| statistics.add(histogram, entry.value));
            let range = range(statistics.magnitude());
            for entry in group {
                let at = (i64::from(entry.offset), entry.value);
                let position = around.position + u64::from(entry.offset);
                let [all, some] = self.lots.draw(feature, around.document, position);
                if self.random.accepts(feature, 0, all) {
                    self.random.offer(feature, 0, all, at, around);
                }
                let interval = interval(entry.value, range, INTERVALS);
                if self.intervals.accepts(feature, interval, some) {
                    self.intervals.offer(feature, interval, some, at, around);
                }
                let key = height(entry.value);
                if self.top.accepts(feature, 0, key) && is_peak(feature, at, self.top.context, around) {
                    self.top.offer(feature, 0, key, at, around);
                }
            }
        }
    }

    /// Makes a feature's intervals wide enough for an activation.
    fn widen(&mut self, feature: u32, magnitude: f32) {
        let known = &self.statistics[feature as usize];
        let wider = range(magnitude);
        if known.count > 0 && wider > range(known.magnitude()) {
            self.intervals.regroup(feature, |head| interval(head.value, wider, INTERVALS));
        }
    }

    fn merge(&mut self, other: &Self) {
        for i in 0..self.statistics.len() {
            let (feature, others) = (i as u32, &other.statistics[i]);
            self.widen(feature, others.magnitude());
            let histogram = &mut self.histograms[i * BINS..(i + 1) * BINS];
            self.statistics[i].merge(histogram, others, other.histogram(i));
            let range = range(self.statistics[i].magnitude());
            for window in other.top.sorted(feature, 0) {
                self.top.take(feature, 0, window);
            }
            for window in other.random.sorted(feature, 0) {
                self.random.take(feature, 0, window);
            }
            for window in (0..INTERVALS).flat_map(|class| other.intervals.sorted(feature, class)) {
                self.intervals.take(feature, interval(window.0.value, range, INTERVALS), window);
            }
        }
    }
}

/// The key of an activation by its |a|, the highest first.
fn height(value: f32) -> u64 {
    u64::from(u32::MAX - value.abs().to_bits())
}

/// Whether no other activation in the window around this one is above it, nor one before it equal.
fn is_peak(feature: u32, (place, value): (i64, f32), context: Context, around: &Neighbourhood<'_>) -> bool {
    let window = place - context.before as i64..=place + context.after as i64;
    around.around(feature).filter(|(other, _)| window.contains(other)).all(|(other, compared)| {
        let (a, b) = (compared.abs(), value.abs());
        if other < place { a < b } else { a <= b }
    })
}

/// The active features of a token, counted from the first latent; whether all are finite.
fn gather(features: &FeaturesRef<'_>, t: usize, first: usize, row: &mut Vec<(u32, f32)>) -> bool {
    fn active<V: Copy>(
        indices: &[i32],
        values: &[V],
        first: usize,
        value: impl Fn(V) -> f32,
        row: &mut Vec<(u32, f32)>,
    ) -> bool {
        let mut finite = true;
        for (&index, &given) in indices.iter().zip(values) {
            let value = value(given);
            if index >= 0 && value != 0.0 {
                finite &= value.is_finite();
                row.push((index as u32 - first as u32, value));
            }
        }
        finite
    }
    let indices = features.indices.row::<i32>(t);
    match features.values.dtype() {
        DType::F16 => active(indices, features.values.row::<f16>(t), first, f16::to_f32, row),
        DType::BF16 => active(indices, features.values.row::<bf16>(t), first, bf16::to_f32, row),
        _ => active(indices, features.values.row::<f32>(t), first, |v| v, row),
    }
}
