//! What an atlas is to hold, computed from the definitions alone, over a corpus that is all there.

use half::bf16;
use sae::atlas::{Atlas, AtlasOptions, Context, INTERVALS, Window, WindowKind};

use crate::support::{Corpus, Token, document};

/// Of a latent: its activations as (document, position, value), in the order of the corpus.
pub(crate) fn activations(corpus: &Corpus, latent: usize) -> Vec<(usize, usize, f32)> {
    let mut found = Vec::new();
    for (i, tokens) in corpus.iter().enumerate() {
        for (position, token) in tokens.iter().enumerate() {
            let value = activation(token, latent);
            if value != 0.0 {
                found.push((i, position, value));
            }
        }
    }
    found
}

fn activation(Token(_, on): &Token, latent: usize) -> f32 {
    on.iter().flatten().find(|(index, _)| *index == latent as i32).map_or(0.0, |(_, value)| *value)
}

/// The window around a token, from its document.
fn window(
    corpus: &Corpus,
    latent: usize,
    (i, position, value): (usize, usize, f32),
    context: Context,
    range: f64,
) -> Window {
    let from = position.saturating_sub(context.before);
    let tokens = &corpus[i][from..(position + context.after + 1).min(corpus[i].len())];
    let rounded = |value: f32| {
        let rounded = bf16::from_f32(value).to_f32();
        if rounded.is_finite() { rounded } else { bf16::MAX.to_f32().copysign(value) }
    };
    Window {
        document: document(i),
        position: position as u64,
        value,
        at: position - from,
        interval: interval(value, range),
        tokens: tokens.iter().map(|token| token.0).collect(),
        activations: tokens.iter().map(|token| rounded(activation(token, latent))).collect(),
    }
}

fn interval(value: f32, range: f64) -> usize {
    (f64::from(value.abs()) / (range / INTERVALS as f64)).floor() as usize
}

/// The power of two above every |a|.
fn range(all: &[(usize, usize, f32)]) -> f64 {
    let largest = all.iter().map(|(.., value)| f64::from(value.abs())).fold(0.0, f64::max);
    let mut range = 2f64.powi(-1000);
    while range <= largest {
        range *= 2.0;
    }
    range
}

/// The highest peaks.
pub(crate) fn top(corpus: &Corpus, latent: usize, options: &AtlasOptions) -> Vec<Window> {
    let context = options.top_context;
    let all = activations(corpus, latent);
    let is_peak = |&(i, position, value): &(usize, usize, f32)| {
        let near = |other: usize| other + context.before >= position && other <= position + context.after;
        all.iter().filter(|(document, other, _)| *document == i && near(*other) && *other != position).all(
            |(_, other, compared)| match *other < position {
                true => compared.abs() < value.abs(),
                false => compared.abs() <= value.abs(),
            },
        )
    };
    let mut peaks: Vec<_> = all.iter().copied().filter(is_peak).collect();
    peaks.sort_by(|a, b| b.2.abs().total_cmp(&a.2.abs()).then((a.0, a.1).cmp(&(b.0, b.1))));
    peaks.truncate(options.top);
    peaks.into_iter().map(|peak| window(corpus, latent, peak, context, range(&all))).collect()
}

/// What the drawn windows must be, whichever were drawn: windows of the corpus, each once, and no fewer than there can be.
pub(crate) fn check_drawn(corpus: &Corpus, latent: usize, atlas: &Atlas) {
    let options = atlas.options();
    let all = activations(corpus, latent);
    let range = range(&all);
    for (kind, classes, most) in
        [(WindowKind::Random, 1, options.random), (WindowKind::Intervals, INTERVALS, options.per_interval)]
    {
        let drawn = atlas.windows(latent, kind).unwrap();
        assert_eq!(atlas.n_windows(latent, kind).unwrap(), drawn.len());
        for window in &drawn {
            let place = |a: &&(usize, usize, f32)| document(a.0) == window.document && a.1 as u64 == window.position;
            let of = all.iter().find(place).expect("what is drawn is there");
            assert_eq!(*window, self::window(corpus, latent, *of, options.drawn_context, range));
        }
        let mut places: Vec<_> = drawn.iter().map(|window| (window.document, window.position)).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), drawn.len(), "no token is drawn twice");
        let class = |value: f32| if classes == 1 { 0 } else { interval(value, range) };
        for of in 0..classes {
            let there = all.iter().filter(|a| class(a.2) == of).count();
            assert_eq!(drawn.iter().filter(|w| class(w.value) == of).count(), there.min(most), "{kind:?} {of}");
        }
    }
}

/// Everything of a latent.
pub(crate) fn check(corpus: &Corpus, latent: usize, atlas: &Atlas) {
    let all = activations(corpus, latent);
    let feature = atlas.feature(latent).unwrap();
    assert_eq!(feature.count, all.len() as u64);
    assert_eq!(atlas.count(latent).unwrap(), feature.count);
    let extreme = |pick: fn(f32, f32) -> f32| all.iter().map(|a| a.2).reduce(pick).unwrap_or(0.0);
    assert_eq!((feature.max, feature.min), (extreme(f32::max), extreme(f32::min)));
    for (power, sum) in feature.sums.into_iter().enumerate() {
        let power = power as i32 + 1;
        let expected: f64 = all.iter().map(|a| f64::from(a.2).powi(power)).sum();
        let scale: f64 = all.iter().map(|a| f64::from(a.2.abs()).powi(power)).sum();
        assert!((sum - expected).abs() <= 1e-12 * scale, "Σa^{power}: {sum}, not {expected}");
    }
    let mut counted = feature.below;
    for bin in &feature.histogram {
        let inside = all.iter().filter(|a| (bin.from..bin.to).contains(&a.2.abs())).count();
        assert_eq!(bin.count, inside as u64, "{bin:?}");
        assert!(bin.from == 0.0 || bin.from < 1e-37 || bin.to <= bin.from * 1.26, "{bin:?} is a quarter of an octave");
        counted += bin.count;
    }
    assert_eq!(counted, feature.count);
    let largest = feature.max.max(-feature.min);
    assert!(
        feature.below
            == all
                .iter()
                .filter(|a| f64::from(a.2.abs()) < f64::from(largest) / 50_000.0 && !in_a_bin(&feature, a.2))
                .count() as u64
    );
    assert_eq!(atlas.windows(latent, WindowKind::Top).unwrap(), top(corpus, latent, atlas.options()));
    check_drawn(corpus, latent, atlas);
}

fn in_a_bin(feature: &sae::atlas::Feature, value: f32) -> bool {
    feature.histogram.iter().any(|bin| (bin.from..bin.to).contains(&value.abs()))
}
