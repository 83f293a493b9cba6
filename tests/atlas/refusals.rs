//! What an atlas refuses, unchanged.

use half::{bf16, f16};
use sae::Status;
use sae::atlas::{Atlas, AtlasOptions, Context, Observed, WindowKind};
use sae::features::{Features, FeaturesRef};
use sae::tensor::Tensor;

use crate::support::*;

#[test]
fn options_are_checked() {
    let good = options();
    let table: [(&str, AtlasOptions); 9] = [
        ("n_latents: 0", AtlasOptions { n_latents: 0, ..good.clone() }),
        ("n_latents", AtlasOptions { n_latents: 1 << 31, ..good.clone() }),
        ("n_latents", AtlasOptions { first_latent: i32::MAX as usize, ..good.clone() }),
        ("top: 1001", AtlasOptions { top: 1001, ..good.clone() }),
        ("random: 1001", AtlasOptions { random: 1001, ..good.clone() }),
        ("max_width", AtlasOptions { max_width: 0, ..good.clone() }),
        ("max_documents", AtlasOptions { max_documents: 5000, ..good.clone() }),
        ("top_context", AtlasOptions { top_context: Context { before: 1000, after: 24 }, ..good.clone() }),
        ("drawn_context", AtlasOptions { drawn_context: Context { before: usize::MAX, after: 2 }, ..good.clone() }),
    ];
    for (named, options) in table {
        let error = Atlas::new(&options).err().unwrap();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert!(error.message().starts_with(named), "{error}");
        assert_eq!(options.memory().unwrap_err(), error);
    }
    let none = AtlasOptions { top: 0, per_interval: 0, random: 0, ..good };
    let corpus = vec![vec![Token(1, Some(vec![(3, 1.0)])); 40]];
    let atlas = seen(&none, &corpus);
    assert_eq!((atlas.count(3).unwrap(), atlas.n_windows(3, WindowKind::Top).unwrap()), (40, 0));
}

#[test]
fn refused_tokens_are_not_seen() {
    type Spoil = fn(&mut Features, &mut Vec<i32>, &mut Vec<i64>, &mut Vec<i64>);
    let table: [(Status, &str, Spoil); 7] = [
        (Status::InvalidTensor, "features.indices[4]: 8", |f, _, _, _| f.indices[4 * WIDTH + 3] = 8),
        (Status::InvalidTensor, "features.indices[0]: 1", |f, _, _, _| f.indices[0] = 1),
        (Status::InvalidTensor, "expected shape [4", |_, tokens, _, _| tokens.truncate(4)),
        (Status::InvalidArgument, "documents: 4 numbers", |_, _, documents, _| documents.truncate(4)),
        (Status::InvalidArgument, "positions: 6 numbers", |_, _, _, positions| positions.push(0)),
        (Status::InvalidArgument, "positions[2]: -1", |_, _, _, positions| positions[2] = -1),
        (Status::InvalidTensor, "max_width 4", |f, _, _, _| *f = Features::new(5, WIDTH + 1, 0)),
    ];
    let mut atlas = Atlas::new(&options()).unwrap();
    for (status, named, spoil) in table {
        let mut features = Features::new(5, WIDTH, 0);
        (features.indices[0], features.values[0]) = (3, 1.0);
        let (mut tokens, mut documents, mut positions) = (vec![1; 5], vec![1; 5], (0..5).collect());
        spoil(&mut features, &mut tokens, &mut documents, &mut positions);
        let observed = Observed {
            documents: Some(&documents),
            positions: Some(&positions),
            ..Observed::new(features.view(), &tokens)
        };
        let error = atlas.observe(&observed).unwrap_err();
        assert_eq!(error.status(), status, "{error}");
        assert!(error.message().contains(named), "{error}");
    }
    atlas.finish();
    assert_eq!(atlas.totals(), Default::default());
    for latent in [FIRST - 1, FIRST + N] {
        assert_eq!(atlas.feature(latent).unwrap_err().status(), Status::InvalidArgument);
        assert_eq!(atlas.windows(latent, WindowKind::Top).unwrap_err().status(), Status::InvalidArgument);
    }
    let mut other = Atlas::new(&AtlasOptions { seed: 12, ..options() }).unwrap();
    assert_eq!(atlas.merge(&mut other).unwrap_err().status(), Status::InvalidArgument);
    atlas.merge(&mut Atlas::new(&AtlasOptions { max_width: 9, ..options() }).unwrap()).unwrap();
}

#[test]
fn values_of_every_type_are_read() {
    let values = [1.5f32, 0.0, -2.0, f32::INFINITY, 1.0, f32::NAN];
    let (indices, counts) = ([3, 4, 5, 3, 4, 5], [3, 1, 9]);
    let halves = values.map(f16::from_f32);
    let brains = values.map(bf16::from_f32);
    for values in [Tensor::new(&values, &[3, 2]), Tensor::new(&halves, &[3, 2]), Tensor::new(&brains, &[3, 2])] {
        let features = FeaturesRef {
            values: values.unwrap(),
            indices: Tensor::new(&indices, &[3, 2]).unwrap(),
            counts: Tensor::new(&counts, &[3]).unwrap(),
            row_state: None,
        };
        let mut atlas = Atlas::new(&options()).unwrap();
        atlas.observe(&Observed::new(features, &[1, 2, -1])).unwrap();
        atlas.finish();
        let totals = atlas.totals();
        // The second and the third token have features that are not finite.
        assert_eq!((totals.tokens, totals.not_finite, totals.cut, totals.stretches), (3, 2, 2, 1));
        let counts = [3, 4, 5].map(|latent| atlas.count(latent).unwrap());
        assert_eq!(counts, [1, 0, 0], "a zero is not active");
        let window = &atlas.windows(3, WindowKind::Top).unwrap()[0];
        assert_eq!(
            (window.value, &window.tokens[..], &window.activations[..]),
            (1.5, &[1, 2, -1][..], &[1.5, 0.0, 0.0][..])
        );
    }
}
