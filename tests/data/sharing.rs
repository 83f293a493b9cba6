//! Several SAEs train on the same rows: of different k and n, and of different layers.

use sae::backend::Pool;
use sae::tensor::{DType, Tensor};
use sae::training::data::{Buffer, Choice, Layout, Rows, Taken, Wait};
use sae::training::{Export, TrainOptions, Trainer};

use crate::buffer::options;

const D: usize = 8;

/// Rows that vary.
fn values(rows: usize, width: usize) -> Vec<f32> {
    (0..rows * width).map(|i| ((i * i % 4099) as f32 * 0.37).sin()).collect()
}

fn trainer(n_latents: usize, k: usize, sample: &Tensor<'_>) -> Trainer {
    let options = TrainOptions { d: D, n_latents, k, max_batch_tokens: 32, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&options, Pool::serial()).unwrap();
    trainer.init_from(sample).unwrap();
    trainer
}

fn bits(trainer: &Trainer) -> Vec<u32> {
    let sae = trainer.export(Export::Weights).unwrap();
    let matrix = &sae.weights().w_dec;
    let mut row = vec![0.0; D];
    (0..matrix.rows())
        .flat_map(|i| matrix.row_f32(i, &mut row).iter().map(|v| v.to_bits()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn one_batch_is_lent_to_several_trainers() {
    let x = values(300, D);
    let all = Tensor::new(&x, &[300, D]).unwrap();
    // Together, and each alone with a buffer of its own.
    let run = |sizes: &[(usize, usize)]| {
        let buffer = Buffer::new(&options(Layout::vectors(D, DType::F32), &Choice::default(), 100, None)).unwrap();
        let mut trainers: Vec<Trainer> = sizes.iter().map(|&(n, k)| trainer(n, k, &all)).collect();
        let mut rows = Rows::new(buffer.layout(), 32).unwrap();
        let mut first = 0;
        while first < 300 {
            let rest = sae::training::data::Push { first, ..all.into() };
            first += buffer.push(&rest, Wait::No).unwrap();
            while let Taken::Rows(_) = buffer.take(&mut rows, Wait::No).unwrap() {
                for trainer in &mut trainers {
                    assert_eq!(trainer.step(&rows.tensor().into()).unwrap().tokens, 32);
                }
            }
        }
        trainers.iter().map(bits).collect::<Vec<_>>()
    };
    let together = run(&[(16, 2), (48, 5)]);
    assert_eq!(together, [run(&[(16, 2)]), run(&[(48, 5)])].concat());
    assert_ne!(together[0], bits(&trainer(16, 2, &all)), "they were trained");
}

#[test]
fn layers_of_one_buffer_are_as_buffers_in_step() {
    let (rows, layers) = (200, 2);
    let x = values(rows, layers * D);
    let layered = Layout { layers: Some(layers), d: D, dtype: DType::F32 };
    let whole = Buffer::new(&options(layered, &Choice::default(), 64, None)).unwrap();
    let single: Vec<Buffer> = (0..layers)
        .map(|_| Buffer::new(&options(Layout::vectors(D, DType::F32), &Choice::default(), 64, None)).unwrap())
        .collect();
    let sample = Tensor::new(&x, &[rows * layers, D]).unwrap();
    let mut ours: Vec<Trainer> = (0..layers).map(|_| trainer(16, 3, &sample)).collect();
    let mut theirs: Vec<Trainer> = (0..layers).map(|_| trainer(16, 3, &sample)).collect();
    let mut batch = Rows::new(layered, 32).unwrap();
    let mut alone = Rows::new(Layout::vectors(D, DType::F32), 32).unwrap();
    for some in x.chunks(32 * layers * D) {
        let count = some.len() / (layers * D);
        whole.push(&Tensor::new(some, &[count, layers, D]).unwrap().into(), Wait::No).unwrap();
        for (layer, buffer) in single.iter().enumerate() {
            let part = Tensor::strided(&some[layer * D..], count, D, layers * D).unwrap();
            buffer.push(&part.into(), Wait::No).unwrap();
        }
        if let Taken::Rows(_) = whole.take(&mut batch, Wait::No).unwrap() {
            for layer in 0..layers {
                ours[layer].step(&batch.layer(layer).unwrap().into()).unwrap();
                assert_eq!(single[layer].take(&mut alone, Wait::No).unwrap(), Taken::Rows(32));
                theirs[layer].step(&alone.tensor().into()).unwrap();
            }
        }
    }
    assert!(ours[0].progress().unwrap().step > 3);
    for (ours, theirs) in std::iter::zip(&ours, &theirs) {
        assert_eq!(bits(ours), bits(theirs));
    }
    assert_ne!(bits(&ours[0]), bits(&ours[1]));
}
