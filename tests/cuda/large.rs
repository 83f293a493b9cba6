//! More latents and tokens than one range and one chunk take, on the stand-in, against the processor.

use std::sync::Arc;

use sae::backend::cuda::CudaModel;
use sae::backend::{Order, Run, Screen};
use sae::features::Features;
use sae::session::{Session, SessionOptions};
use sae::tensor::{Tensor, TensorMut};

use crate::common::cases::Case;
use crate::common::definition::{encode, same};
use crate::common::placed::Place;
use crate::stand_in::StandInDriver;

fn case(architecture: u8, values: u8) -> Case {
    Case {
        seed: 7,
        d_in: 20,
        d_out: 20,
        n: 6000,
        rows: 9,
        architecture,
        k: 12,
        normalization: 0,
        center: false,
        layers: 1,
        subtract: true,
        rescale: true,
        select: false,
        glu: false,
        skip: false,
        weights: 0,
        first_latent: 0,
        values,
    }
}

/// The case's sessions on the stand-in and on the processor, and activations.
fn sessions(case: &Case, max_width: usize) -> (Session, Session, Vec<f32>) {
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let model = CudaModel::on(Arc::clone(&sae), StandInDriver::new(11)).unwrap();
    let options =
        SessionOptions { max_tokens: case.rows, max_width, screen: Screen::Auto, ..SessionOptions::default() };
    let x = numbers.activations(case.rows * case.d_in);
    (Session::new(model, options.clone()).unwrap(), Session::new(sae, options).unwrap(), x)
}

#[test]
fn thousands_of_latents_are_found_by_bounds() {
    // Smooth, tied so that lists overflow, huge, with rows that are not finite, and all of them negative.
    for (architecture, values) in [(0, 0), (0, 1), (0, 2), (0, 3), (3, 0), (3, 1), (2, 0), (2, 1), (5, 0), (1, 5)] {
        let case = case(architecture, values);
        let (mut cuda, mut cpu, x) = sessions(&case, 40);
        for (width, order) in [(40, Order::Value), (5, Order::Index)] {
            let found = encode(&mut cuda, &x, case.rows, width, order);
            let expected = encode(&mut cpu, &x, case.rows, width, order);
            assert_eq!(found.indices, expected.indices, "{architecture}, {values}");
            assert!(same(&found.values, &expected.values), "{architecture}, {values}");
            assert_eq!(found.counts, expected.counts, "{architecture}, {values}");
        }
    }
}

#[test]
fn calls_of_several_chunks_put_every_row_in_its_place() {
    let rows = (1 << 15) + 70;
    let case = Case { d_in: 3, d_out: 3, n: 4, rows, k: 2, ..case(0, 0) };
    let (mut cuda, mut cpu, x) = sessions(&case, 3);
    let ids = [2, 9];
    let results = [&mut cuda, &mut cpu].map(|session| {
        let place = Place::of(session);
        let input = place.read(Tensor::new(&x, &[rows, 3]).unwrap());
        let (mut features, mut x_hat, mut picked) =
            (Features::new(rows, 3, 0), vec![7.0; rows * 3], vec![7.0; rows * 2]);
        let out = place.write(TensorMut::new(&mut x_hat, &[rows, 3]).unwrap());
        let shown = place.features_mut(features.view_mut());
        session.reconstruct(Run::default(), input.into(), Some(shown), out).unwrap();
        let out = place.write(TensorMut::new(&mut picked, &[rows, 2]).unwrap());
        let ids = place.read(Tensor::new(&ids, &[2]).unwrap());
        session.encode_selected(Run::default(), input.into(), ids, out).unwrap();
        assert_eq!(session.ignored_indices(), 1, "an id is counted once, however many chunks there are");
        (features, x_hat, picked)
    });
    assert_eq!(results[0].0, results[1].0);
    assert!(same(&results[0].1, &results[1].1) && same(&results[0].2, &results[1].2));
}
