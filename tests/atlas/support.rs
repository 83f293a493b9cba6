//! Streams of tokens with features, made up.

use proptest::prelude::*;
use sae::atlas::{Atlas, AtlasOptions, Context, Observed};
use sae::features::Features;

/// A token: its number, and the latents that are active on it. `None`: it was not finite.
#[derive(Clone, Debug)]
pub(crate) struct Token(pub(crate) i32, pub(crate) Option<Vec<(i32, f32)>>);

/// Documents, each whole, whose numbers are their places times 3, less 2.
pub(crate) type Corpus = Vec<Vec<Token>>;

pub(crate) fn document(i: usize) -> i64 {
    3 * i as i64 - 2
}

pub(crate) const WIDTH: usize = 4;
pub(crate) const FIRST: usize = 2;
pub(crate) const N: usize = 6;

/// A small atlas, of which blocks have 32 tokens.
pub(crate) fn options() -> AtlasOptions {
    AtlasOptions {
        n_latents: N,
        first_latent: FIRST,
        top: 3,
        per_interval: 2,
        random: 3,
        top_context: Context { before: 5, after: 2 },
        drawn_context: Context { before: 2, after: 4 },
        max_width: WIDTH,
        max_documents: 3,
        seed: 11,
    }
}

/// Activations with ties, signs, zeros, and all sizes.
fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => prop::sample::select(vec![1.0f32, 2.0, 2.5, -2.0, 3.0]),
        4 => 0.01f32..50.0,
        1 => prop::sample::select(vec![0.0f32, -0.0, 1e-45, f32::MAX, -f32::MAX, 1e-20, 1e30]),
    ]
}

fn token() -> impl Strategy<Value = Token> {
    let latents = prop::collection::btree_map(FIRST as i32..(FIRST + N) as i32, value(), 0..=WIDTH);
    // Dead latents, and one that is nearly always active.
    let features = latents.prop_map(|latents| latents.into_iter().filter(|(latent, _)| *latent != 4).collect());
    (0i32..50, prop_oneof![9 => features.prop_map(Some), 1 => Just(None)]).prop_map(|(id, on)| Token(id, on))
}

pub(crate) fn corpus(documents: usize, tokens: usize) -> impl Strategy<Value = Corpus> {
    prop::collection::vec(prop::collection::vec(token(), 0..tokens), 1..documents)
}

/// Has an atlas watch rows: document, position, token.
pub(crate) fn observe(atlas: &mut Atlas, rows: &[(i64, i64, &Token)], with_positions: bool) {
    let mut features = Features::new(rows.len(), WIDTH, 0);
    for (t, (_, _, Token(_, on))) in rows.iter().enumerate() {
        features.counts[t] = on.as_ref().map_or(-1, |on| on.len() as i32);
        for (slot, &(latent, value)) in on.iter().flatten().enumerate() {
            (features.indices[t * WIDTH + slot], features.values[t * WIDTH + slot]) = (latent, value);
        }
    }
    let tokens: Vec<i32> = rows.iter().map(|(_, _, token)| token.0).collect();
    let documents: Vec<i64> = rows.iter().map(|row| row.0).collect();
    let positions: Vec<i64> = rows.iter().map(|row| row.1).collect();
    let observed = Observed {
        documents: Some(&documents),
        positions: with_positions.then_some(&positions[..]),
        ..Observed::new(features.view(), &tokens)
    };
    atlas.observe(&observed).unwrap();
}

/// All rows of a corpus, document after document.
pub(crate) fn rows(corpus: &Corpus) -> Vec<(i64, i64, &Token)> {
    let of = |(i, tokens)| {
        let tokens: &Vec<Token> = tokens;
        tokens.iter().enumerate().map(move |(position, token)| (document(i), position as i64, token))
    };
    corpus.iter().enumerate().flat_map(of).collect()
}

/// An atlas that has seen a corpus in one call.
pub(crate) fn seen(options: &AtlasOptions, corpus: &Corpus) -> Atlas {
    let mut atlas = Atlas::new(options).unwrap();
    observe(&mut atlas, &rows(corpus), true);
    atlas.finish();
    atlas
}
