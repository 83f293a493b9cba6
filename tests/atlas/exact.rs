//! The same whatever the order, the split into calls, and the split into atlases.

use proptest::prelude::*;
use sae::atlas::{Atlas, AtlasOptions, INTERVALS, WindowKind};

use crate::brute;
use crate::support::*;

/// All that two atlases hold is equal, their sums nearly.
fn assert_same(a: &Atlas, b: &Atlas) {
    assert_eq!(a.totals(), b.totals());
    for latent in a.latents() {
        let [mut one, other] = [a, b].map(|atlas| atlas.feature(latent).unwrap());
        let largest = f64::from(one.max.max(-one.min));
        for (power, (sum, other)) in one.sums.iter_mut().zip(other.sums).enumerate() {
            let scale = largest.powi(power as i32 + 1) * one.count as f64;
            assert!((*sum - other).abs() <= 1e-12 * scale, "latent {latent}");
            *sum = other;
        }
        assert_eq!(one, other, "latent {latent}");
        for kind in [WindowKind::Top, WindowKind::Intervals, WindowKind::Random] {
            assert_eq!(a.windows(latent, kind).unwrap(), b.windows(latent, kind).unwrap(), "latent {latent}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(96), ..ProptestConfig::default() })]

    #[test]
    fn it_holds_what_brute_force_finds(corpus in corpus(5, 110)) {
        let atlas = seen(&options(), &corpus);
        let tokens: Vec<&Token> = corpus.iter().flatten().collect();
        let totals = atlas.totals();
        prop_assert_eq!(totals.tokens, tokens.len() as u64);
        prop_assert_eq!(totals.not_finite, tokens.iter().filter(|token| token.1.is_none()).count() as u64);
        prop_assert_eq!(totals.stretches, corpus.iter().filter(|tokens| !tokens.is_empty()).count() as u64);
        atlas.latents().for_each(|latent| brute::check(&corpus, latent, &atlas));
    }

    #[test]
    fn calls_may_be_split_and_documents_come_by_turns(
        corpus in corpus(8, 90),
        cuts in prop::collection::vec(1usize..40, 1..8),
        turns in prop::collection::vec(0usize..3, 1..64),
        with_positions: bool,
    ) {
        let expected = seen(&options(), &corpus);
        // Three lines of documents, each line in order, whose tokens come by turns.
        let mut lines: [Vec<_>; 3] = Default::default();
        for row in rows(&corpus) {
            let line = row.0.rem_euclid(3 * 3) as usize / 3;
            lines[line].push(row);
        }
        let mut lines = lines.map(Vec::into_iter);
        let (mut all, mut turn) = (Vec::new(), turns.iter().cycle());
        while lines.iter().any(|line| line.len() > 0) {
            all.extend(lines[*turn.next().unwrap()].next());
            // However they fall, everyone's turn comes.
            all.extend(lines.iter_mut().find_map(Iterator::next));
        }
        let mut atlas = Atlas::new(&AtlasOptions { max_documents: 16, ..options() }).unwrap();
        let (mut rest, mut cut) = (&all[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (call, left) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
            observe(&mut atlas, call, with_positions);
            rest = left;
        }
        atlas.finish();
        assert_same(&atlas, &expected);
    }

    #[test]
    fn merged_atlases_are_the_atlas_of_all(corpus in corpus(9, 60), parts in prop::collection::vec(0usize..3, 9)) {
        let expected = seen(&options(), &corpus);
        let mut atlases = [0; 3].map(|_| Atlas::new(&options()).unwrap());
        let all = rows(&corpus);
        for tokens in all.chunk_by(|a, b| a.0 == b.0) {
            let part = parts[(tokens[0].0 + 2) as usize / 3];
            observe(&mut atlases[part], tokens, false);
        }
        let [mut a, mut b, mut c] = atlases;
        b.merge(&mut c).unwrap();
        b.merge(&mut a).unwrap();
        assert_same(&b, &expected);
    }
}

#[test]
fn gaps_end_stretches() {
    let tokens: Vec<Token> = (0..60).map(|i| Token(i, Some(vec![(3, 1.0 + (i == 30) as i32 as f32)]))).collect();
    let corpus = vec![tokens];
    let mut atlas = Atlas::new(&options()).unwrap();
    // The tokens before position 28, and then those from 30 on.
    observe(&mut atlas, &rows(&corpus)[..28], true);
    observe(&mut atlas, &rows(&corpus)[30..], true);
    atlas.finish();
    assert_eq!((atlas.totals().stretches, atlas.count(3).unwrap()), (2, 58));
    let highest = &atlas.windows(3, WindowKind::Top).unwrap()[0];
    assert_eq!((highest.position, highest.at, &highest.tokens[..]), (30, 0, &[30, 31, 32][..]));
}

#[test]
fn a_latent_that_is_listed_twice_counts_once() {
    let corpus = vec![vec![Token(1, Some(vec![(3, 1.0), (5, 4.0), (3, -2.0), (3, 0.5)])); 3]];
    let atlas = seen(&options(), &corpus);
    let feature = atlas.feature(3).unwrap();
    assert_eq!((feature.count, feature.sums[0], feature.max, feature.min), (3, -6.0, -2.0, -2.0));
    assert_eq!(atlas.windows(3, WindowKind::Top).unwrap()[0].activations, [-2.0; 3]);
}

#[test]
fn the_one_that_waited_longest_gives_way() {
    let tokens: Vec<Token> = (0..8).map(|i| Token(i, Some(vec![(3, 1.0)]))).collect();
    let corpus = vec![tokens; 4];
    let all = rows(&corpus);
    let mut atlas = Atlas::new(&options()).unwrap();
    let order = [0, 8, 16, 1, 24, 9, 2].map(|i| all[i]);
    observe(&mut atlas, &order, true);
    // Document 1 waited longest when document 3 came, so that it begins anew, in the place of document 2.
    assert_eq!(atlas.totals().stretches, 5);
    assert_eq!(atlas.count(3).unwrap(), 2, "what is open is not counted yet");
    atlas.finish();
    assert_eq!(atlas.count(3).unwrap(), 7);
}

#[test]
fn every_activation_is_as_likely_to_be_drawn() {
    // Of 40 activations 4 are drawn, by 3000 seeds.
    let tokens: Vec<Token> = (0..40).map(|i| Token(i, Some(vec![(3, 1.5)]))).collect();
    let corpus = vec![tokens];
    let mut drawn = [[0u32; 40]; 2];
    let mut both = 0;
    for seed in 0..3000 {
        let options = AtlasOptions { random: 4, per_interval: 4, seed, ..options() };
        let atlas = seen(&options, &corpus);
        let [all, some] = [WindowKind::Random, WindowKind::Intervals].map(|kind| atlas.windows(3, kind).unwrap());
        for (drawn, windows) in drawn.iter_mut().zip([&all, &some]) {
            assert_eq!(windows.len(), 4);
            windows.iter().for_each(|window| drawn[window.position as usize] += 1);
        }
        both += all.iter().filter(|a| some.iter().any(|b| a.position == b.position)).count();
    }
    for drawn in drawn {
        let chi: f64 = drawn.iter().map(|&n| (f64::from(n) - 300.0).powi(2) / 300.0).sum();
        assert!(chi < 72.1, "chi² of 39 degrees exceeds this once in a thousand times: {chi}");
    }
    // Independent draws share 0.4 on average.
    assert!((1000..1400).contains(&both), "{both}");
    let spread = seen(&options(), &vec![(0..2000).map(|i| Token(0, Some(vec![(3, i as f32 / 250.0)]))).collect()]);
    let intervals: Vec<_> = spread.windows(3, WindowKind::Intervals).unwrap().iter().map(|w| w.interval).collect();
    assert_eq!(intervals, (0..INTERVALS).rev().flat_map(|i| [i; 2]).collect::<Vec<_>>());
}
